"""The PDUs of an initiator, class by class: defaults, properties over ``flags`` and sub-byte fields."""

from __future__ import annotations

import pytest

from iscsid.wire import requests
from iscsid.wire.const import FINAL, READ, RESERVED_TAG, WRITE, LogoutReason, SnackType, TaskAttribute, TmfFunction
from iscsid.wire.pdu import TARGET_RECEIVES, decode
from iscsid.wire.requests import (
    LoginRequest,
    LogoutRequest,
    NopOut,
    ScsiCommand,
    ScsiDataOut,
    SnackRequest,
    TaskManagementRequest,
    TextRequest,
)


@pytest.mark.parametrize(
    ("flags", "final", "read", "write", "attributes"),
    [
        (0x00, False, False, False, TaskAttribute.UNTAGGED),
        (0x80, True, False, False, TaskAttribute.UNTAGGED),
        (0xC1, True, True, False, TaskAttribute.SIMPLE),
        (0xA2, True, False, True, TaskAttribute.ORDERED),
        (0x23, False, False, True, TaskAttribute.HEAD_OF_QUEUE),
        (0xE4, True, True, True, TaskAttribute.ACA),
        (0x1F, False, False, False, 7),  # two reserved bits and a reserved attribute
    ],
)
def test_scsi_command_flags_are_read_by_their_names(
    flags: int, final: bool, read: bool, write: bool, attributes: int
) -> None:
    command = decode(ScsiCommand(flags=flags).pack())
    assert isinstance(command, ScsiCommand)
    assert (command.final, command.read, command.write, command.attributes) == (final, read, write, attributes)


def test_scsi_command_flags_are_put_together_from_masks() -> None:
    assert ScsiCommand(flags=FINAL | READ | TaskAttribute.SIMPLE).pack()[1] == 0xC1
    assert ScsiCommand(flags=WRITE | TaskAttribute.ORDERED).pack()[1] == 0x22


def test_scsi_command_cdb_is_always_sixteen_bytes() -> None:
    short = ScsiCommand(cdb=b"\x12\0\0\0\x24\0").pack()
    assert short[32:].hex() == "120000002400" + "00" * 10
    assert decode(short).cdb == b"\x12\0\0\0\x24\0" + bytes(10)


@pytest.mark.parametrize(("flags", "final"), [(0x80, True), (0x00, False), (0x7F, False), (0xFF, True)])
def test_data_out_final_is_bit_7(flags: int, final: bool) -> None:
    assert ScsiDataOut(flags=flags).final is final


@pytest.mark.parametrize("function", [*TmfFunction, 0, 0x7F])
def test_task_management_function_has_seven_bits(function: int) -> None:
    header = TaskManagementRequest(function=function).pack()
    assert header[1] == 0x80 | function
    assert decode(header).function == function


@pytest.mark.parametrize("reason", [*LogoutReason, 0x7F])
def test_logout_reason_has_seven_bits(reason: int) -> None:
    header = LogoutRequest(reason=reason).pack()
    assert header[1] == 0x80 | reason
    assert decode(header).reason == reason


@pytest.mark.parametrize("snack_type", [*SnackType, 0x0F])
def test_snack_type_has_four_bits_and_ignores_the_rest(snack_type: int) -> None:
    header = bytearray(SnackRequest(snack_type=snack_type).pack())
    assert header[1] == 0x80 | snack_type
    header[1] |= 0x70
    assert decode(header).snack_type == snack_type


def test_login_request_is_immediate_by_itself() -> None:
    assert LoginRequest().pack()[0] == 0x43


def test_tags_that_nothing_was_said_about_are_reserved() -> None:
    assert (NopOut().initiator_task_tag, NopOut().target_transfer_tag) == (RESERVED_TAG, RESERVED_TAG)
    assert TextRequest().target_transfer_tag == RESERVED_TAG
    assert ScsiDataOut().target_transfer_tag == RESERVED_TAG
    assert TaskManagementRequest().referenced_task_tag == RESERVED_TAG


def test_numbered_requests_have_cmd_sn_at_byte_24() -> None:
    """Data-Out and SNACK do not have the field: those bytes are reserved there (section 11.2.1)."""
    for cls in TARGET_RECEIVES.values():
        if cls in (ScsiDataOut, SnackRequest):
            assert not hasattr(cls(), "cmd_sn")
            assert cls().pack()[24:28] == bytes(4)
        else:
            assert cls(cmd_sn=0x01020304).pack()[24:28].hex() == "01020304"


@pytest.mark.parametrize("cls", TARGET_RECEIVES.values(), ids=lambda cls: cls.__name__)
def test_every_request_acknowledges_at_byte_28(cls: type[NopOut]) -> None:
    assert cls(exp_stat_sn=0x01020304).pack()[28:32].hex() == "01020304"


@pytest.mark.parametrize("cls", TARGET_RECEIVES.values(), ids=lambda cls: cls.__name__)
def test_every_request_lives_here(cls: type[NopOut]) -> None:
    assert getattr(requests, cls.__name__) is cls
    assert "section 11." in (cls.__doc__ or "")


def test_golden_requests_know_their_direction(golden_request: object) -> None:
    assert golden_request.cls.__module__ == "iscsid.wire.requests"
