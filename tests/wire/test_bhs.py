"""What all PDUs share: the lengths, bytes 0 and 1, checks on what does not fit, and that the fast ways say the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.errors import LocalProtocolError
from iscsid.wire.bhs import Layout, Pdu, bits, padding, segment_lengths
from iscsid.wire.pdu import (
    PDU_BY_OPCODE,
    R2T,
    AsyncMessage,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    NopIn,
    NopOut,
    ScsiCommand,
    SnackRequest,
    TaskManagementRequest,
    TextRequest,
    TextResponse,
)


@given(st.sampled_from(sorted(PDU_BY_OPCODE)), st.binary(min_size=47, max_size=47))
def test_fast_unpack_says_what_the_layout_says(opcode: int, rest: bytes) -> None:
    header = bytes([opcode | rest[0] & 0x40]) + rest
    cls = PDU_BY_OPCODE[opcode]
    assert cls.unpack(header, 0, b"ahs!", b"data") == Pdu.unpack.__func__(cls, header, 0, b"ahs!", b"data")


@pytest.mark.parametrize("offset", [0, 1, 48, 1000])
def test_unpack_reads_at_the_offset(golden: Any, offset: int) -> None:
    buffer = bytearray(b"\xff" * offset + golden.header + b"\xff" * 48)
    pdu = golden.cls.unpack(buffer, offset, golden.header[48:], golden.data)
    assert pdu == golden.build()


def test_unpack_keeps_the_data_it_is_given_without_a_copy() -> None:
    data = memoryview(bytearray(b"abcd"))
    assert NopOut.unpack(NopOut().pack(), 0, b"", data).data is data
    assert ScsiCommand.unpack(ScsiCommand().pack(), 0, b"", data).data is data


@pytest.mark.parametrize("cls", [NopOut, NopIn, TaskManagementRequest, LogoutRequest, SnackRequest, R2T, AsyncMessage])
def test_constant_bit_of_byte_1_is_packed_and_not_asked_for(cls: type[Pdu]) -> None:
    header = bytearray(cls().pack())
    assert header[1] & 0x80
    header[1] &= 0x7F
    assert cls.unpack(header, 0, b"", b"") == cls()


@pytest.mark.parametrize("cls", PDU_BY_OPCODE.values(), ids=lambda cls: cls.__name__)
def test_immediate_bit_is_bit_6_of_byte_0(cls: type[Pdu]) -> None:
    assert cls(immediate=False).pack()[0] == cls.opcode
    assert cls(immediate=True).pack()[0] == cls.opcode | 0x40
    assert cls.unpack(cls(immediate=True).pack(), 0, b"", b"").immediate is True
    assert cls.unpack(cls(immediate=False).pack(), 0, b"", b"").immediate is False


@pytest.mark.parametrize(
    ("ahs", "data", "word"),
    [
        (0, 0, "00000000"),
        (0, 1, "00000001"),
        (4, 0, "01000000"),
        (8, 0x123456, "02123456"),
        (1020, 0xFFFFFF, "ffffffff"),
    ],
)
def test_lengths_are_filled_in_and_read_back(ahs: int, data: int, word: str) -> None:
    header = ScsiCommand(ahs=bytes(ahs), data=bytes(data)).pack()
    assert len(header) == 48 + ahs
    assert header[4:8].hex() == word
    assert segment_lengths(header) == (ahs, data)
    assert segment_lengths(b"??" + header, 2) == (ahs, data)


@pytest.mark.parametrize(("ahs", "data"), [(3, 0), (1024, 0), (0, 0x1000000)])
def test_lengths_that_do_not_fit_are_our_own_error(ahs: int, data: int) -> None:
    with pytest.raises(LocalProtocolError, match="do not fit"):
        ScsiCommand(ahs=bytes(ahs), data=bytes(data)).pack()


@pytest.mark.parametrize(
    "pdu",
    [
        NopOut(cmd_sn=1 << 32),
        NopOut(cmd_sn=-1),
        NopOut(lun=1 << 64),
        ScsiCommand(flags=256),
        TaskManagementRequest(function=0x80),
        TaskManagementRequest(function=-1),
        LogoutRequest(reason=0x80),
        SnackRequest(snack_type=0x10),
        LoginRequest(csg=4),
        LoginRequest(nsg=-1),
        LoginRequest(tsih=0x10000),
        LoginRequest(isid=1 << 48),
        LoginResponse(status=0x10000),
        AsyncMessage(async_event=256),
    ],
    ids=repr,
)
def test_value_that_does_not_fit_its_field_is_our_own_error(pdu: Pdu) -> None:
    with pytest.raises(LocalProtocolError):
        pdu.pack()


def test_bits_keeps_to_its_mask() -> None:
    assert bits("stage", 3, 3) == 3
    with pytest.raises(LocalProtocolError, match="stage out of range: 4"):
        bits("stage", 4, 3)


@pytest.mark.parametrize("cls", [LoginRequest, LoginResponse])
@pytest.mark.parametrize(
    ("transit", "continued", "csg", "nsg", "byte_1"),
    [
        (False, False, 0, 0, 0x00),
        (True, False, 0, 1, 0x81),
        (True, False, 1, 3, 0x87),
        (False, True, 1, 0, 0x44),
        (False, False, 3, 3, 0x0F),
        (True, True, 2, 2, 0xCA),
    ],
)
def test_login_byte_1_is_both_bits_and_both_stages(
    cls: Any, transit: bool, continued: bool, csg: int, nsg: int, byte_1: int
) -> None:
    pdu = cls(transit=transit, continued=continued, csg=csg, nsg=nsg)
    assert pdu.pack()[1] == byte_1
    assert cls.unpack(pdu.pack(), 0, b"", b"") == pdu


@pytest.mark.parametrize("cls", [TextRequest, TextResponse])
@pytest.mark.parametrize(
    ("final", "continued", "byte_1"), [(True, False, 0x80), (False, True, 0x40), (False, False, 0), (True, True, 0xC0)]
)
def test_text_byte_1_is_final_and_continued(cls: Any, final: bool, continued: bool, byte_1: int) -> None:
    pdu = cls(final=final, continued=continued)
    assert pdu.pack()[1] == byte_1
    assert cls.unpack(pdu.pack(), 0, b"", b"") == pdu


def test_isid_and_tsih_share_eight_bytes() -> None:
    pdu = LoginRequest(isid=0x0102030405F6, tsih=0x0708)
    assert pdu.pack()[8:16].hex() == "0102030405f60708"
    assert LoginRequest.unpack(pdu.pack(), 0, b"", b"") == pdu


@pytest.mark.parametrize(("length", "pad"), [(0, 0), (1, 3), (2, 2), (3, 1), (4, 0), (0xFFFFFF, 1)])
def test_padding_fills_the_word(length: int, pad: int) -> None:
    assert padding(length) == pad


def test_layout_of_a_wrong_size_is_seen_when_it_is_made() -> None:
    with pytest.raises(AssertionError):
        Layout("B2x", "QIIII12x", "byte_1 lun initiator_task_tag target_transfer_tag cmd_sn exp_stat_sn")
