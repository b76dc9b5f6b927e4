"""The PDUs of a target, class by class: properties over ``flags``, status, sense."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.errors import RejectError
from iscsid.wire import responses
from iscsid.wire.const import RESERVED_TAG, LoginStatus, RejectReason
from iscsid.wire.pdu import INITIATOR_RECEIVES, decode
from iscsid.wire.responses import (
    R2T,
    AsyncMessage,
    LoginResponse,
    LogoutResponse,
    NopIn,
    Reject,
    ScsiDataIn,
    ScsiResponse,
    pack_sense,
    unpack_sense,
)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (0x80, set()),
        (0x84, {"overflow"}),
        (0x82, {"underflow"}),
        (0x90, {"bidirectional_overflow"}),
        (0x88, {"bidirectional_underflow"}),
        (0x8A, {"underflow", "bidirectional_underflow"}),
        (0xE1, set()),  # reserved bits
    ],
)
def test_scsi_response_flags_are_read_by_their_names(flags: int, names: set[str]) -> None:
    response = decode(ScsiResponse(flags=flags).pack())
    every = ("overflow", "underflow", "bidirectional_overflow", "bidirectional_underflow")
    assert {name for name in every if getattr(response, name)} == names


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (0x00, set()),
        (0x80, {"final"}),
        (0x40, {"acknowledge"}),
        (0x81, {"final", "has_status"}),
        (0x83, {"final", "underflow", "has_status"}),
        (0x85, {"final", "overflow", "has_status"}),
        (0x38, set()),  # reserved bits
    ],
)
def test_data_in_flags_are_read_by_their_names(flags: int, names: set[str]) -> None:
    data_in = decode(ScsiDataIn(flags=flags).pack())
    every = ("final", "acknowledge", "overflow", "underflow", "has_status")
    assert {name for name in every if getattr(data_in, name)} == names


@pytest.mark.parametrize("status", LoginStatus)
def test_login_status_is_class_and_detail(status: LoginStatus) -> None:
    header = LoginResponse(status=status).pack()
    assert (header[36], header[37]) == (status >> 8, status & 0xFF)
    assert decode(header).status == status


def test_logout_times_are_two_bytes_each() -> None:
    header = LogoutResponse(time2wait=0x0102, time2retain=0x0304).pack()
    assert header[40:44].hex() == "01020304"


def test_reject_carries_the_header_of_what_it_rejects() -> None:
    rejected = NopIn().pack()
    reject = Reject(reason=RejectReason.PROTOCOL_ERROR, data=rejected)
    assert reject.initiator_task_tag == RESERVED_TAG
    assert reject.pack()[4:8].hex() == "00000030"
    assert decode(reject.pack() + rejected).data == rejected


def test_async_message_has_no_task() -> None:
    assert AsyncMessage().pack()[16:20] == b"\xff" * 4


def test_status_numbers_have_the_same_place_everywhere() -> None:
    for cls in INITIATOR_RECEIVES.values():
        header = cls(stat_sn=0x11111111, exp_cmd_sn=0x22222222, max_cmd_sn=0x33333333).pack()
        assert header[24:36].hex() == "11" * 4 + "22" * 4 + "33" * 4, cls.__name__


def test_r2t_asks_for_a_range() -> None:
    header = R2T(r2t_sn=1, buffer_offset=2, desired_data_transfer_length=3).pack()
    assert header[36:48].hex() == "000000010000000200000003"


SENSE = bytes.fromhex("70000500 0000000a 00000000 20000000 0000")


def test_sense_has_its_length_before_it() -> None:
    assert pack_sense(SENSE) == b"\x00\x12" + SENSE
    assert ScsiResponse(data=pack_sense(SENSE)).sense == SENSE


def test_sense_of_no_data_segment_is_empty() -> None:
    assert ScsiResponse().sense == b""
    assert ScsiResponse(data=b"\0\0").sense == b""


def test_sense_before_response_data_ends_where_its_length_says() -> None:
    assert unpack_sense(pack_sense(SENSE) + b"response data") == SENSE
    assert unpack_sense(memoryview(pack_sense(SENSE) + b"response data")) == SENSE


@pytest.mark.parametrize("data", [b"\0", b"\1", b"\0\1", b"\0\x13" + SENSE, b"\xff\xff" + bytes(100)])
def test_sense_that_is_cut_short_is_an_invalid_field(data: bytes) -> None:
    with pytest.raises(RejectError, match="SenseLength") as caught:
        unpack_sense(data)
    assert caught.value.reason == RejectReason.INVALID_PDU_FIELD


@given(st.binary(max_size=300), st.binary(max_size=8))
def test_sense_of_any_length_comes_back(sense: bytes, tail: bytes) -> None:
    assert unpack_sense(pack_sense(sense) + tail) == sense


@pytest.mark.parametrize("cls", INITIATOR_RECEIVES.values(), ids=lambda cls: cls.__name__)
def test_every_response_lives_here(cls: type[NopIn]) -> None:
    assert getattr(responses, cls.__name__) is cls
    assert "section 11." in (cls.__doc__ or "")


def test_golden_responses_know_their_direction(golden_response: object) -> None:
    assert golden_response.cls.__module__ == "iscsid.wire.responses"
