"""Additional header segments: both known types both ways; whatever is wrong with one is a Reject."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.errors import LocalProtocolError, RejectError
from iscsid.wire import ahs
from iscsid.wire.ahs import Ahs
from iscsid.wire.const import AHS_SIZE_LIMIT, RejectReason

# Segments on the wire and what they say.
WELL_FORMED = [
    ("", Ahs()),
    ("00050100 a1a2a3a4", Ahs(extended_cdb=bytes.fromhex("a1a2a3a4"))),
    ("00020100 a1000000", Ahs(extended_cdb=b"\xa1")),
    ("00040100 a1a2a300", Ahs(extended_cdb=bytes.fromhex("a1a2a3"))),
    ("00050200 00001000", Ahs(read_length=4096)),
    ("00050200 ffffffff", Ahs(read_length=0xFFFFFFFF)),
    ("00050200 00000000", Ahs(read_length=0)),
    ("00050100 a1a2a3a4 00050200 00001000", Ahs(bytes.fromhex("a1a2a3a4"), 4096)),
    ("00050200 00001000 00050100 a1a2a3a4", Ahs(bytes.fromhex("a1a2a3a4"), 4096)),
    ("000501ff a1a2a3a4", Ahs(extended_cdb=bytes.fromhex("a1a2a3a4"))),  # the specific byte is reserved
    ("000201ff a1eeeeee", Ahs(extended_cdb=b"\xa1")),  # so is the padding
]

MALFORMED = {
    "type 0": "00050000 00000000",
    "type 3": "00050300 00000000",
    "vendor type": "00053f00 00000000",
    "type with reserved bits": "00054100 00000000",
    "no length": "00000100 00000000",
    "nothing but the specific byte": "00010100",
    "longer than what is there": "00060100 a1a2a3a4",
    "much longer than what is there": "ffff0100 a1a2a3a4",
    "read length of three bytes": "00040200 00001000",
    "read length of eight bytes": "00090200 00001000 00000000",
    "two extended CDBs": "00050100 a1a2a3a4 00050100 b1b2b3b4",
    "two read lengths": "00050200 00001000 00050200 00001000",
    "zeros left over": "00050100 a1a2a3a4 00000000",
    "half a head left over": "00050100 a1a2a3a4 0005",
}


@pytest.mark.parametrize(("wire", "meaning"), WELL_FORMED)
def test_parse_of_well_formed_segments_says_what_is_there(wire: str, meaning: Ahs) -> None:
    assert ahs.parse(bytes.fromhex(wire)) == meaning


@pytest.mark.parametrize("wire", MALFORMED.values(), ids=MALFORMED.keys())
def test_parse_of_a_malformed_segment_is_an_invalid_field(wire: str) -> None:
    with pytest.raises(RejectError, match="additional header segment") as caught:
        ahs.parse(bytes.fromhex(wire))
    assert caught.value.reason == RejectReason.INVALID_PDU_FIELD
    assert not caught.value.fatal


def test_build_of_nothing_is_nothing() -> None:
    assert ahs.build() == ahs.build(bytes(16)) == ahs.build(bytes(6)) == b""


@pytest.mark.parametrize(
    ("cdb", "read_length", "wire"),
    [
        (bytes(16) + b"\xa1\xa2\xa3\xa4", None, "00050100a1a2a3a4"),
        (bytes(16) + b"\xa1", None, "00020100a1000000"),
        (bytes(16), 4096, "0005020000001000"),
        (bytes(16) + b"\xa1\xa2\xa3\xa4", 0, "00050100a1a2a3a40005020000000000"),
    ],
)
def test_build_pads_and_counts_as_the_rfc_draws_it(cdb: bytes, read_length: int | None, wire: str) -> None:
    assert ahs.build(cdb, read_length).hex() == wire


@given(st.binary(min_size=17, max_size=260), st.none() | st.integers(0, 0xFFFFFFFF))
def test_build_and_parse_are_each_others_inverse(cdb: bytes, read_length: int | None) -> None:
    built = ahs.build(cdb, read_length)
    assert len(built) % 4 == 0
    assert ahs.parse(built) == Ahs(cdb[16:], read_length)
    assert ahs.full_cdb(cdb[:16], built) == cdb


def test_full_cdb_without_segments_is_the_field() -> None:
    assert ahs.full_cdb(bytes(range(16)), b"") == bytes(range(16))


def test_build_beyond_what_the_header_can_count_is_our_own_error() -> None:
    fits = 16 + AHS_SIZE_LIMIT - 4
    assert len(ahs.build(bytes(fits))) == AHS_SIZE_LIMIT
    with pytest.raises(LocalProtocolError, match="does not fit"):
        ahs.build(bytes(fits + 1))
    with pytest.raises(LocalProtocolError, match="does not fit"):
        ahs.build(bytes(fits), 1)


@given(st.binary(max_size=AHS_SIZE_LIMIT))
def test_parse_of_anything_gives_segments_or_a_reject(data: bytes) -> None:
    try:
        parsed = ahs.parse(data)
    except RejectError:
        return
    assert len(parsed.extended_cdb) <= len(data)
