"""The format as bytes: what is written is parsed, and what makes no sense is refused with the file and the thing."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iscsid_backends.qcow2_format import (
    COMPRESSION_TYPE,
    EXTENDED_L2,
    EXTERNAL_DATA,
    FULL_LENGTH,
    V2_LENGTH,
    ZSTD,
    Header,
    Snapshot,
    clusters_of,
    compressed_place,
    l1_entries,
    pack,
    parse,
    parse_snapshots,
)

from iscsid.errors import BlockError, Fault

FILE = 1 << 20


def header(**fields: Any) -> Header:
    usual = {"size": 1 << 20, "l1_size": 1, "l1_offset": 0x30000, "reftable_offset": 0x10000, "reftable_clusters": 1}
    return Header(**{**usual, **fields})


def parsed(made: Header) -> Header:
    return parse(pack(made), "x.qcow2", FILE)


def test_header_of_version_3_comes_back() -> None:
    made = header(
        backing="base.raw", backing_format="raw", compatible=1, refcount_order=6, extensions=[(0x12345678, b"abc")]
    )
    back = parsed(made)
    assert back == made


def test_header_of_version_2_comes_back() -> None:
    made = header(version=2, header_length=V2_LENGTH, backing="b", backing_format="qcow2")
    assert parsed(made) == made
    assert len(made.fixed()) == V2_LENGTH


@pytest.mark.parametrize(
    "fields",
    [
        {"incompatible": EXTENDED_L2},
        {"incompatible": COMPRESSION_TYPE, "compression": ZSTD},
        {"incompatible": EXTERNAL_DATA, "data_file": "d.raw", "autoclear": 2},
    ],
)
def test_header_with_features_comes_back(fields: dict[str, Any]) -> None:
    back = parsed(header(**fields))
    assert {name: getattr(back, name) for name in fields} == fields
    assert back.l2_entries == back.cluster_size // (16 if back.extended else 8)
    assert back.raw_data == bool(back.autoclear & 2)


def test_fixed_part_fits_into_a_sector_and_is_what_pack_begins_with() -> None:
    made = header()
    assert pack(made).startswith(made.fixed())
    assert len(made.fixed()) == FULL_LENGTH


# offset, bytes, what the refusal says
BAD: list[tuple[int, bytes, str]] = [
    (0, b"QFI\xfa", "not a qcow2 image"),
    (4, b"\0\0\0\x01", "version 1"),
    (4, b"\0\0\0\x04", "version 4"),
    (8, b"\0\0\0\0\xff\0\0\0\0\0\0\x08", "name of the backing file"),
    (8, b"\0\0\0\0\0\0\0\x70\xff\xff\xff\xff", "name of the backing file"),
    (20, b"\0\0\0\x08", "cluster_bits 8"),
    (20, b"\0\0\0\x16", "cluster_bits 22"),
    (20, b"\xff\xff\xff\xff", "cluster_bits"),
    (24, b"\xff" * 8, "too large"),
    (24, b"\x0f" * 8, "too large"),
    (24, b"\0\0\0\x10\0\0\0\0", "the L1 table has 1 entries"),
    (32, b"\0\0\0\x01", "encrypted .AES."),
    (32, b"\0\0\0\x02", "encrypted .LUKS."),
    (36, b"\xff" * 4, "too large"),
    (36, b"\0\0\0\0", "the L1 table has 0 entries"),
    (36, b"\0\x10\0\0", "L1 table .* behind the end"),
    (40, b"\xff" * 8, "not aligned"),
    (40, b"\0" * 8, "over the header"),
    (40, b"\0\0\0\1\0\0\0\0", "behind the end of the file"),
    (48, b"\0\0\0\0\0\1\0\1", "not aligned"),
    (48, b"\x7f\0\0\0\0\1\0\0", "behind the end"),
    (56, b"\0" * 4, "no refcount table"),
    (56, b"\xff" * 4, "too large"),
    (60, b"\xff" * 4, "snapshots are too many"),
    (60, b"\0\0\0\1", "snapshot table lies over the header"),
    (72, b"\x80" + bytes(7), "incompatible bits 63"),
    (72, b"\0" * 7 + b"\x20", "incompatible bits 5"),
    (72, b"\0" * 7 + b"\x04", "name is not recorded"),
    (72, b"\0" * 7 + b"\x08", "compression type does not agree"),
    (96, b"\0\0\0\x07", "refcount_order 7"),
    (100, b"\0\0\0\x60", "header_length 96"),
    (100, b"\0\0\0\x69", "header_length 105"),
    (100, b"\xff" * 4, "header_length"),
    (104, b"\2", "compression type 2 is not known"),
    (112, b"\1\1\1\1\xff\xff\xff\xff", "longer than the header"),
]


@pytest.mark.parametrize(("offset", "data", "words"), BAD)
def test_bad_field_is_refused_with_file_and_reason(offset: int, data: bytes, words: str) -> None:
    image = bytearray(pack(header()).ljust(65536, b"\0"))
    image[offset : offset + len(data)] = data
    with pytest.raises(BlockError, match=rf"x\.qcow2: .*{words}") as caught:
        parse(bytes(image), "x.qcow2", FILE)
    assert caught.value.fault in (Fault.INVALID, Fault.UNSUPPORTED)


@given(st.integers(0, 200), st.binary(min_size=1, max_size=16))
def test_any_change_of_the_header_is_refused_or_understood(offset: int, data: bytes) -> None:
    image = bytearray(pack(header(backing="base", backing_format="raw")).ljust(65536, b"\0"))
    image[offset : offset + len(data)] = data
    try:
        found = parse(bytes(image), "x", FILE)
    except BlockError:
        return
    assert found.l1_size * 8 + found.l1_offset <= FILE


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_understood(data: bytes) -> None:
    with pytest.raises(BlockError):
        parse(b"QFI\xfb" + data[:60], "x", FILE)


@pytest.mark.parametrize("length", [0, 3, 4, 71, 72, 103])
def test_header_that_is_cut_is_refused(length: int) -> None:
    with pytest.raises(BlockError):
        parse(pack(header())[:length], "x", FILE)


def test_names_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BlockError, match="do not fit"):
        pack(header(cluster_bits=9, backing="x" * 400))
    with pytest.raises(BlockError, match="do not fit"):
        pack(header(backing="x" * 1024))


def test_backing_name_that_is_no_text_is_refused() -> None:
    image = bytearray(pack(header(backing="abcd", backing_format="raw")))
    image[-4:] = b"\xff\xfe\xfd\xfc"
    with pytest.raises(BlockError, match="not UTF-8"):
        parse(bytes(image), "x", FILE)
    image[-4:] = b"ab\0d"
    with pytest.raises(BlockError, match="NUL"):
        parse(bytes(image), "x", FILE)


# Snapshots.


def snapshots() -> list[Snapshot]:
    return [
        Snapshot("1", "first", 0x50000, 1, 1 << 20, 5, 6, 7, 1 << 33),
        Snapshot("2", "zweiter Ü", 0x60000, 1, 1 << 21, extra=b"12345678"),
    ]


def test_snapshots_come_back() -> None:
    table = b"".join(one.pack() for one in snapshots())
    made = header(nb_snapshots=2, snapshots_offset=0x40000)
    assert parse_snapshots(table + b"rest", made, "x", FILE) == (snapshots(), len(table))


def test_snapshot_without_extra_data_has_the_size_of_the_disk() -> None:
    entry = struct.pack(">QIHHIIQII", 0x50000, 1, 1, 1, 0, 0, 0, 77, 0) + b"1a" + bytes(6)
    found, _ = parse_snapshots(entry, header(nb_snapshots=1), "x", FILE)
    assert (found[0].disk_size, found[0].vm_state_size, found[0].name) == (1 << 20, 77, "a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table[:30], "ends within entry 0"),
        (lambda table: table[:36] + b"\xff\xff\xff\xff" + table[40:], "entry 0 of the snapshot table makes no sense"),
        (lambda table: table[:12] + b"\xff\xff" + table[14:], "entry 0"),
        (lambda table: b"\xff" * 8 + table[8:], "not aligned"),
        (lambda table: b"\0\0\1\0\0\0\0\0" + table[8:], "behind the end"),
        (lambda table: table[:8] + b"\xff" * 4 + table[12:], "too large"),
    ],
)
def test_bad_snapshot_is_refused(change: Any, words: str) -> None:
    with pytest.raises(BlockError, match=words):
        parse_snapshots(change(snapshots()[0].pack()), header(nb_snapshots=1), "x", FILE)


# Entries.


def test_place_of_a_compressed_cluster_is_offset_and_sectors() -> None:
    shift = 62 - 8
    entry = 1 << 62 | 3 << shift | 0x12345
    assert compressed_place(entry, 16) == (0x12345, 4 * 512 - 0x145)


@given(st.integers(0, 2**63 - 1), st.integers(9, 21))
def test_compressed_cluster_is_never_larger_than_two_clusters(entry: int, bits: int) -> None:
    _, length = compressed_place(entry, bits)
    assert 0 < length <= 2 << bits


def test_clusters_of_a_range() -> None:
    assert list(clusters_of(65535, 2, 16)) == [0, 1]
    assert list(clusters_of(65536, 65536, 16)) == [1]
    assert list(clusters_of(5, 0, 16)) == []


def test_l1_entries_round_up() -> None:
    assert l1_entries(header(), 0) == 0
    assert l1_entries(header(), 1) == 1
    assert l1_entries(header(), (512 << 20) + 1) == 2
