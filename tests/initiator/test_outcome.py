"""initiator.outcome: statuses and sense data as exceptions, held against the target's own builder of sense data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.errors import (
    CommandAborted,
    CommandFailed,
    InitiatorError,
    Miscompare,
    ReservationConflict,
    ScsiError,
    SenseError,
)
from iscsid.initiator.outcome import AT_ONCE, LATER, NEVER, error_of, retry, sense_error
from iscsid.initiator.task import Task
from iscsid.scsi.const import Status
from iscsid.scsi.sense import REASONS, Reason, build_sense


@pytest.mark.parametrize("descriptor", [False, True])
@pytest.mark.parametrize("reason", Reason)
def test_every_reason_of_the_target_is_known_again(reason: Reason, descriptor: bool) -> None:
    error = sense_error(build_sense(ScsiError(reason), descriptor))
    assert isinstance(error, SenseError)
    assert (error.key, error.asc, error.ascq) == REASONS[reason]
    assert REASONS[Reason[error.reason]] == REASONS[reason]
    assert (error.field, error.bit, error.information) == (None, None, None)


@pytest.mark.parametrize("descriptor", [False, True])
def test_pointer_and_information_are_read(descriptor: bool) -> None:
    told = ScsiError(Reason.INVALID_FIELD_IN_CDB, field=14, bit=3, information=77)
    error = sense_error(build_sense(told, descriptor))
    assert isinstance(error, SenseError)
    assert (error.field, error.bit, error.in_data, error.information) == (14, 3, False, 77)
    assert str(error) == "ILLEGAL REQUEST: INVALID FIELD IN CDB (5/24/00), byte 14 bit 3 of the CDB"


def test_pointer_into_the_parameter_list_says_so() -> None:
    error = sense_error(build_sense(ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=2, in_data=True)))
    assert isinstance(error, SenseError) and error.in_data
    assert str(error).endswith("byte 2 of the parameter list")


def test_miscompare_is_an_exception_of_its_own() -> None:
    error = sense_error(build_sense(ScsiError(Reason.MISCOMPARE_DURING_VERIFY, information=9)))
    assert isinstance(error, Miscompare) and error.information == 9


@given(st.binary(max_size=64))
def test_any_sense_data_is_an_exception(data: bytes) -> None:
    assert isinstance(sense_error(data), CommandFailed)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (Status.RESERVATION_CONFLICT, ReservationConflict),
        (Status.TASK_ABORTED, CommandAborted),
        (Status.BUSY, CommandFailed),
        (0x77, CommandFailed),
    ],
)
def test_status_is_an_exception(status: int, kind: type[InitiatorError]) -> None:
    assert type(error_of(status, b"")) is kind


def test_recovered_error_is_a_success() -> None:
    assert (
        error_of(Status.CHECK_CONDITION, bytes((0x70, 0, 1, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x17, 1, 0, 0, 0, 0))) is None
    )
    assert error_of(Status.CHECK_CONDITION, bytes((0x72, 1, 0x17, 1, 0, 0, 0, 0))) is None


def test_good_is_none() -> None:
    assert error_of(Status.GOOD, b"") is error_of(Status.CONDITION_MET, b"") is None


@pytest.mark.parametrize(
    ("status", "sense", "replay", "expected"),
    [
        (Status.BUSY, b"", False, LATER),
        (Status.TASK_SET_FULL, b"", False, LATER),
        (Status.RESERVATION_CONFLICT, b"", True, NEVER),
        (Status.CHECK_CONDITION, build_sense(ScsiError(Reason.I_T_NEXUS_LOSS)), False, AT_ONCE),
        (Status.CHECK_CONDITION, build_sense(ScsiError(Reason.PROTOCOL_SERVICE_CRC_ERROR)), True, AT_ONCE),
        (Status.CHECK_CONDITION, build_sense(ScsiError(Reason.PROTOCOL_SERVICE_CRC_ERROR)), False, NEVER),
        (Status.CHECK_CONDITION, bytes((0x72, 0x02, 0x04, 0x01, 0, 0, 0, 0)), True, LATER),
        (Status.CHECK_CONDITION, build_sense(ScsiError(Reason.WRITE_PROTECTED)), True, NEVER),
        (Status.CHECK_CONDITION, b"", True, NEVER),
    ],
)
def test_retry_follows_the_table(status: int, sense: bytes, replay: bool, expected: str) -> None:
    task = Task(0, bytes(16), replay=replay)
    task.status, task.sense = int(status), sense
    assert retry(task) == expected
