"""All PDUs together: golden bytes both ways, the tables by opcode, decode() on whole, cut and overlong bytes."""

from __future__ import annotations

import contextlib
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.errors import LocalProtocolError, RejectError, RemoteProtocolError
from iscsid.wire import pdu as pdus
from iscsid.wire.const import Opcode, RejectReason
from iscsid.wire.pdu import INITIATOR_RECEIVES, PDU_BY_OPCODE, TARGET_RECEIVES, decode


def test_golden_pdu_packs_to_its_bytes(golden: Any) -> None:
    assert golden.build().pack().hex(" ", 4) == golden.header.hex(" ", 4)


def test_golden_pdu_decodes_to_its_fields(golden: Any) -> None:
    decoded = decode(golden.wire())
    assert type(decoded) is golden.cls
    assert decoded == golden.build()
    for name, value in golden.fields.items():
        assert getattr(decoded, name) == value, name


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_golden_pdu_decodes_from_every_kind_of_buffer(golden: Any, kind: Any) -> None:
    assert decode(kind(golden.wire())) == golden.build()


def test_golden_pdu_decodes_without_its_padding(golden: Any) -> None:
    assert decode(golden.header + golden.data) == golden.build()


def test_golden_pdu_cut_short_anywhere_is_refused(golden: Any) -> None:
    whole = golden.header + golden.data
    for length in range(len(whole)):
        with pytest.raises(RemoteProtocolError, match=r"cut short|bytes in"):
            decode(whole[:length])


@pytest.mark.parametrize("tail", [b"\0" * 4, bytes(48)])
def test_golden_pdu_with_trailing_bytes_is_refused(golden: Any, tail: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="bytes in"):
        decode(golden.wire() + tail)


def test_golden_pdu_with_reserved_bits_set_says_the_same(golden: Any) -> None:
    """What no field of the class can set is reserved, and ignored by a receiver; bit 7 of byte 1 is ours to ignore."""
    used = bytes(48)
    for changed in _extremes(golden.cls):
        used = bytes(left | right for left, right in zip(used, changed.pack()[:48], strict=True))
    header = bytearray(golden.wire())
    for index in (0, *range(1, 4), *range(8, 48)):
        mask = 0x80 if index == 0 else ~used[index] & 0xFF
        header[index] |= mask
    assert decode(header) == golden.build()


BYTES = ("cdb", "additional_response_information")


def _extremes(cls: type[pdus.Pdu]) -> list[pdus.Pdu]:
    """One PDU per field and candidate value that fits: together they set every bit that the class uses."""
    found = [cls()]
    for item in fields(cls):
        for value in (True, 3, 0xF, 0x7F, 0xFF, 0xFFFF, 0xFFFFFFFF, (1 << 48) - 1, (1 << 64) - 1, b"\xff" * 16):
            if item.name in ("ahs", "data") or isinstance(value, bytes) != (item.name in BYTES):
                continue
            candidate = cls(**{item.name: value})
            with contextlib.suppress(LocalProtocolError):  # too large for this field, and tested as such elsewhere
                candidate.pack()
                found.append(candidate)
    return found


def test_golden_pdus_cover_every_class(all_requests: list[Any], all_responses: list[Any]) -> None:
    assert {golden.cls for golden in all_requests} == set(TARGET_RECEIVES.values())
    assert {golden.cls for golden in all_responses} == set(INITIATOR_RECEIVES.values())


def test_tables_have_every_opcode_of_the_rfc_once() -> None:
    assert set(PDU_BY_OPCODE) == set(Opcode)
    assert not set(TARGET_RECEIVES) & set(INITIATOR_RECEIVES)
    assert all(opcode < 0x20 for opcode in TARGET_RECEIVES)
    assert all(0x20 <= opcode < 0x40 for opcode in INITIATOR_RECEIVES)


@pytest.mark.parametrize("cls", PDU_BY_OPCODE.values(), ids=lambda cls: cls.__name__)
def test_class_is_named_after_its_opcode_and_has_a_plain_int(cls: type[pdus.Pdu]) -> None:
    assert type(cls.opcode) is int
    assert Opcode(cls.opcode).name.replace("_", "").lower() == cls.__name__.lower()
    assert PDU_BY_OPCODE[cls.opcode] is cls


@pytest.mark.parametrize("cls", PDU_BY_OPCODE.values(), ids=lambda cls: cls.__name__)
def test_class_has_slots_only(cls: type[pdus.Pdu]) -> None:
    assert not hasattr(cls(), "__dict__")


@pytest.mark.parametrize("opcode", [0x07, 0x0F, 0x1C, 0x1E, 0x1F, 0x27, 0x30, 0x33, 0x3C, 0x3E])
def test_decode_of_an_unknown_opcode_is_not_supported(opcode: int) -> None:
    with pytest.raises(RejectError, match="unknown opcode") as caught:
        decode(bytes([opcode]) + bytes(47))
    assert caught.value.reason == RejectReason.COMMAND_NOT_SUPPORTED


def test_decode_of_the_other_roles_pdu_is_a_protocol_error(golden: Any) -> None:
    other = INITIATOR_RECEIVES if golden.cls.opcode in TARGET_RECEIVES else TARGET_RECEIVES
    with pytest.raises(RejectError, match="wrong direction") as caught:
        decode(golden.wire(), other)
    assert caught.value.reason == RejectReason.PROTOCOL_ERROR


@given(st.binary(max_size=80))
def test_decode_of_anything_gives_a_pdu_or_a_remote_error(data: bytes) -> None:
    try:
        decoded = decode(data)
    except RemoteProtocolError:
        return
    assert isinstance(decoded, pdus.Pdu)


@given(st.sampled_from(sorted(PDU_BY_OPCODE)), st.binary(min_size=47, max_size=47))
def test_pack_of_any_decoded_header_is_stable(opcode: int, rest: bytes) -> None:
    """Once reserved bits are gone, bytes and fields say the same."""
    header = bytes([opcode]) + rest[:3] + bytes(4) + rest[7:]
    decoded = decode(header)
    assert decode(decoded.pack()) == decoded
    assert decode(decoded.pack()).pack() == decoded.pack()


def test_all_names_exist_and_are_sorted_out() -> None:
    assert all(hasattr(pdus, name) for name in pdus.__all__)
    assert len(set(pdus.__all__)) == len(pdus.__all__)
