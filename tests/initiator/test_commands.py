"""initiator.commands: CDBs as the standards draw them, and parsers that take whatever comes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.errors import InitiatorError
from iscsid.initiator import commands
from iscsid.initiator.commands import Provisioning, ReservationType
from iscsid.scsi.const import PersistentReserveIn, PersistentReserveOut


@pytest.mark.parametrize(
    ("cdb", "expected"),
    [
        (commands.read_16(0x123456789, 8), "88 00 0000000123456789 00000008 00 00"),
        (commands.write_16(1, 2, commands.FUA), "8a 08 0000000000000001 00000002 00 00"),
        (commands.synchronize_cache_16(), "91 00 0000000000000000 00000000 00 00"),
        (commands.write_same_16(5, 6, unmap=True), "93 08 0000000000000005 00000006 00 00"),
        (commands.compare_and_write(7, 1), "89 00 0000000000000007 000000 01 00 00"),
        (commands.inquiry(), "12 00 00 ffff 00 00000000000000000000"),
        (commands.inquiry(0x83), "12 01 83 ffff 00 00000000000000000000"),
        (commands.read_capacity_16(), "9e 10 0000000000000000 00000020 00 00"),
        (commands.report_luns(), "a0 0000000000 00010000 0000 00000000"),
        (commands.get_lba_status(3), "9e 12 0000000000000003 00010000 00 00"),
        (commands.persistent_reserve_in(PersistentReserveIn.READ_RESERVATION), "5e 01 0000000000 ffff 00 000000000000"),
    ],
)
def test_cdb_is_as_drawn(cdb: bytes, expected: str) -> None:
    assert cdb.hex() == expected.replace(" ", "")


def test_unmap_lists_its_extents() -> None:
    cdb, data = commands.unmap([(1, 2), (3, 4)])
    assert cdb.hex() == "42000000000000" + "0028" + "00" + "00" * 6
    assert data.hex() == "0026002000000000" + "00000000000000010000000200000000" + "00000000000000030000000400000000"


def test_reserve_out_has_24_bytes_of_parameters() -> None:
    cdb, data = commands.persistent_reserve_out(
        PersistentReserveOut.PREEMPT, key=1, service_action_key=2, kind=ReservationType.EXCLUSIVE_ACCESS, aptpl=True
    )
    assert cdb.hex() == "5f 04 03 0000 00000018 00 000000000000".replace(" ", "")
    assert data.hex() == f"{1:016x}{2:016x}00000000" + "01000000"


def test_capacity_is_read_in_both_forms() -> None:
    long = commands.parse_capacity_16(bytes.fromhex("00000000000003ff 00000200 00 03 c000") + bytes(16))
    assert (long.size, long.physical_block_size, long.thin, long.zeroes) == (1024 * 512, 4096, True, True)
    short = commands.parse_capacity_10(bytes.fromhex("000003ff00001000"))
    assert (short.size, short.thin) == (1024 * 4096, False)


def test_keys_and_reservation_are_read() -> None:
    keys = bytes.fromhex("00000007 00000010") + (1).to_bytes(8, "big") + (2).to_bytes(8, "big")
    assert commands.parse_keys(keys) == (7, (1, 2))
    held = bytes.fromhex("00000007 00000010 00000000000000aa 00000000 00 05 0000")
    assert commands.parse_reservation(held) == (0xAA, ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY)
    assert commands.parse_reservation(bytes(8)) is None


def test_lba_status_and_luns_are_read() -> None:
    status = bytes.fromhex("00000024 00000000 0000000000000001 00000002 01 000000 0000000000000003 00000004 00 000000")
    assert commands.parse_lba_status(status) == [(1, 2, Provisioning.DEALLOCATED), (3, 4, Provisioning.MAPPED)]
    luns = bytes.fromhex("00000018 00000000 0001000000000000 4100000000000000 c101000000000000")
    assert commands.parse_luns(luns) == [1, 256]


def test_pieces_cover_the_range() -> None:
    assert list(commands.pieces(10, 25, 10)) == [(10, 10), (20, 10), (30, 5)]
    assert list(commands.pieces(10, 0, 10)) == []


PARSERS: list[Callable[[bytes], Any]] = [
    commands.parse_inquiry,
    commands.parse_capacity_16,
    commands.parse_capacity_10,
    commands.parse_lba_status,
    commands.parse_luns,
    commands.parse_keys,
    commands.parse_reservation,
    commands.parse_block_limits,
    lambda data: commands.parse_vpd(0x83, data),
]


@pytest.mark.parametrize("parse", PARSERS)
@given(data=st.binary(max_size=80))
def test_whatever_a_target_sends_is_read_or_refused(parse: Callable[[bytes], Any], data: bytes) -> None:
    with contextlib.suppress(InitiatorError):
        parse(data)
