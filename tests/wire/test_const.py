"""The numbers: against the registry's values, and the plain masks against the fields they cut."""

from __future__ import annotations

import enum
import inspect

import pytest

from iscsid.wire import const
from iscsid.wire.const import LoginStatus, Opcode, RejectReason, TmfFunction, TmfResponse


def enums() -> list[type[enum.IntEnum]]:
    return [item for _, item in inspect.getmembers(const, inspect.isclass) if issubclass(item, enum.IntEnum)]


@pytest.mark.parametrize("item", [item for item in enums() if item is not enum.IntEnum], ids=lambda item: item.__name__)
def test_enum_names_its_section_and_has_no_alias(item: type[enum.IntEnum]) -> None:
    assert "RFC 7143 section 1" in (item.__doc__ or "")
    assert len(item.__members__) == len({int(member) for member in item})


def test_opcode_of_a_target_has_bit_5() -> None:
    from_target = {opcode for opcode in Opcode if opcode & 0x20}
    assert {opcode.name for opcode in from_target} == {
        "NOP_IN",
        "SCSI_RESPONSE",
        "TASK_MANAGEMENT_RESPONSE",
        "LOGIN_RESPONSE",
        "TEXT_RESPONSE",
        "SCSI_DATA_IN",
        "LOGOUT_RESPONSE",
        "R2T",
        "ASYNC_MESSAGE",
        "REJECT",
    }


# Opcodes of requests and the answer to each, section 11.2.1.2.
@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (Opcode.NOP_OUT, Opcode.NOP_IN),
        (Opcode.SCSI_COMMAND, Opcode.SCSI_RESPONSE),
        (Opcode.TASK_MANAGEMENT_REQUEST, Opcode.TASK_MANAGEMENT_RESPONSE),
        (Opcode.LOGIN_REQUEST, Opcode.LOGIN_RESPONSE),
        (Opcode.TEXT_REQUEST, Opcode.TEXT_RESPONSE),
        (Opcode.SCSI_DATA_OUT, Opcode.SCSI_DATA_IN),
        (Opcode.LOGOUT_REQUEST, Opcode.LOGOUT_RESPONSE),
    ],
)
def test_opcode_of_an_answer_is_that_of_the_request_and_bit_5(request_: Opcode, response: Opcode) -> None:
    assert response == request_ | 0x20


def test_login_status_classes_are_the_four_of_the_rfc() -> None:
    assert {status >> 8 for status in LoginStatus} == {0, 1, 2, 3}
    assert [int(status) for status in LoginStatus if status >> 8 == 2] == list(range(0x0200, 0x020C))
    assert [int(status) for status in LoginStatus if status >> 8 == 3] == [0x0300, 0x0301, 0x0302]


def test_reject_reasons_leave_out_the_reserved_and_the_deprecated() -> None:
    assert [int(reason) for reason in RejectReason] == [*range(0x02, 0x0B), 0x0C]


def test_task_management_numbers_are_consecutive() -> None:
    assert [int(function) for function in TmfFunction] == list(range(1, 13))
    assert [int(response) for response in TmfResponse] == [*range(8), 255]


def test_masks_of_byte_1_do_not_overlap_in_one_pdu() -> None:
    for masks in (
        (const.FINAL, const.READ, const.WRITE, const.ATTRIBUTES),
        (const.FINAL, const.ACKNOWLEDGE, const.OVERFLOW, const.UNDERFLOW, const.STATUS),
        (
            const.FINAL,
            const.BIDIRECTIONAL_OVERFLOW,
            const.BIDIRECTIONAL_UNDERFLOW,
            const.OVERFLOW,
            const.UNDERFLOW,
        ),
        (const.FINAL, const.CONTINUE),
    ):
        assert sum(masks) == masks[0] | sum(masks[1:])
        assert len(set(masks)) == len(masks)
        for index, mask in enumerate(masks):
            assert not any(mask & other for other in masks[index + 1 :])


def test_hot_constants_are_plain_ints() -> None:
    plain = {name: value for name, value in vars(const).items() if name.isupper()}
    assert plain
    assert {name for name, value in plain.items() if type(value) is not int} == set()


def test_byte_0_is_immediate_and_opcode() -> None:
    assert const.IMMEDIATE & const.OPCODE_MASK == 0
    assert all(opcode & const.OPCODE_MASK == opcode for opcode in Opcode)
