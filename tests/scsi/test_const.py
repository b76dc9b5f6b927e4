"""Numbers against the tables of the standards, written out a second time."""

from __future__ import annotations

import pytest

from iscsid.scsi.const import (
    DIRECT_ACCESS_BLOCK_DEVICE,
    NO_LOGICAL_UNIT,
    PROTOCOL_ISCSI,
    SERVICE_ACTIONS,
    Association,
    CodeSet,
    Designator,
    Opcode,
    SenseKey,
    Status,
)

STATUSES = {
    "GOOD": 0x00,
    "CHECK_CONDITION": 0x02,
    "CONDITION_MET": 0x04,
    "BUSY": 0x08,
    "RESERVATION_CONFLICT": 0x18,
    "TASK_SET_FULL": 0x28,
    "ACA_ACTIVE": 0x30,
    "TASK_ABORTED": 0x40,
}
SENSE_KEYS = (
    "NO_SENSE RECOVERED_ERROR NOT_READY MEDIUM_ERROR HARDWARE_ERROR ILLEGAL_REQUEST UNIT_ATTENTION DATA_PROTECT"
)


def test_statuses_are_those_of_sam() -> None:
    assert {status.name: int(status) for status in Status} == STATUSES


@pytest.mark.parametrize(("value", "name"), list(enumerate(SENSE_KEYS.split())))
def test_first_eight_sense_keys_are_those_of_spc(value: int, name: str) -> None:
    assert SenseKey(value).name == name


@pytest.mark.parametrize(("name", "value"), [("ABORTED_COMMAND", 0xB), ("VOLUME_OVERFLOW", 0xD), ("MISCOMPARE", 0xE)])
def test_later_sense_keys_are_those_of_spc(name: str, value: int) -> None:
    assert SenseKey[name] == value


# The length of a CDB follows from the group of its operation code (SPC-4 4.2.5.1).
@pytest.mark.parametrize("opcode", list(Opcode))
def test_name_with_a_length_is_in_the_group_of_that_length(opcode: Opcode) -> None:
    lengths = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}
    _, _, suffix = opcode.name.rpartition("_")
    if suffix.isdigit():
        assert lengths[opcode >> 5] == int(suffix)


def test_service_actions_fit_five_bits() -> None:
    assert all(0 <= action <= 0x1F for actions in SERVICE_ACTIONS for action in actions)


def test_designators_code_sets_and_associations_fit_their_fields() -> None:
    assert all(0 <= kind <= 0xF for kind in Designator)
    assert all(0 < code_set <= 0xF for code_set in CodeSet)
    assert [int(association) for association in Association] == [0, 1, 2]


def test_peripheral_bytes() -> None:
    assert (DIRECT_ACCESS_BLOCK_DEVICE >> 5, DIRECT_ACCESS_BLOCK_DEVICE & 0x1F) == (0, 0)
    assert (NO_LOGICAL_UNIT >> 5, NO_LOGICAL_UNIT & 0x1F) == (0b011, 0x1F)
    assert PROTOCOL_ISCSI == 5
