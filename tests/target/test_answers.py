"""target.answers: status, sense and residual for every way a command ends and for both directions."""

from __future__ import annotations

import errno
import logging
from types import SimpleNamespace

import pytest
from helpers import Pair
from target_rig import CHECK_CONDITION, GOOD

from iscsid.errors import BlockError, Fault, ScsiError
from iscsid.scsi.log import Figures
from iscsid.scsi.mode import ModeState
from iscsid.scsi.sense import REASONS, Reason, parse_sense
from iscsid.target.answers import Answers, expected_length
from iscsid.wire.const import FINAL, OVERFLOW, READ, UNDERFLOW, WRITE
from iscsid.wire.pdu import ScsiCommand, ScsiResponse, unpack_sense

NONE = 0
BOTH = READ | WRITE


def nowhere(_: int) -> None:
    return None


def command(direction: int, expected: int) -> ScsiCommand:
    return ScsiCommand(flags=FINAL | direction, initiator_task_tag=5, expected_data_transfer_length=expected)


def good(asked: ScsiCommand, length: int, direction: int) -> ScsiResponse:
    pair = Pair()
    Answers(pair.connection, nowhere).good(asked, length, direction)
    (response,) = pair.receive()
    assert (response.initiator_task_tag, response.status, response.data) == (5, GOOD, b"")
    return response


def residual(response: ScsiResponse) -> tuple[str, int]:
    kind = {0: "", OVERFLOW: "O", UNDERFLOW: "U"}[response.flags & (OVERFLOW | UNDERFLOW)]
    return kind, response.residual_count


def failed(error: Exception, **more: int) -> ScsiResponse:
    pair = Pair()
    Answers(pair.connection, nowhere).fail(command(WRITE, 1000), error, **more)
    (response,) = pair.receive()
    return response


@pytest.mark.parametrize(
    ("flags", "direction", "length"),
    [
        (READ, READ, 512),
        (READ, WRITE, 0),
        (WRITE, WRITE, 512),
        (WRITE, READ, 0),
        (BOTH, WRITE, 512),
        (BOTH, READ, 0),
        (NONE, READ, 0),
        (NONE, WRITE, 0),
    ],
)
def test_expected_length_counts_in_its_own_direction_only(flags: int, direction: int, length: int) -> None:
    assert expected_length(command(flags, 512), direction) == length


@pytest.mark.parametrize(
    ("flags", "expected", "direction", "length", "told"),
    [
        # As expected, too much, too little.
        (READ, 512, READ, 512, ("", 0)),
        (WRITE, 512, WRITE, 512, ("", 0)),
        (BOTH, 512, WRITE, 512, ("", 0)),
        (READ, 512, READ, 1024, ("O", 512)),
        (WRITE, 512, WRITE, 1024, ("O", 512)),
        (READ, 1024, READ, 512, ("U", 512)),
        (WRITE, 1024, WRITE, 0, ("U", 1024)),
        # No data at all.
        (NONE, 0, READ, 0, ("", 0)),
        (READ, 512, READ, 0, ("U", 512)),
        (WRITE, 512, READ, 0, ("U", 512)),
        # Nothing expected in this direction: nothing was moved, however well the numbers fit.
        (NONE, 0, READ, 512, ("O", 512)),
        (NONE, 0, WRITE, 512, ("O", 512)),
        (NONE, 512, WRITE, 512, ("O", 512)),
        (READ, 0, READ, 512, ("O", 512)),
        (WRITE, 0, READ, 512, ("O", 512)),
        (WRITE, 512, READ, 512, ("U", 512)),
        (READ, 512, WRITE, 512, ("U", 512)),
        (READ, 512, WRITE, 4096, ("U", 512)),
        (BOTH, 512, READ, 512, ("U", 512)),
    ],
)
def test_good_tells_what_was_not_moved(
    flags: int, expected: int, direction: int, length: int, told: tuple[str, int]
) -> None:
    assert residual(good(command(flags, expected), length, direction)) == told


def test_error_with_sense_is_a_check_condition() -> None:
    response = failed(ScsiError(Reason.LBA_OUT_OF_RANGE), sent=400, exp_data_sn=3)
    assert response.status == CHECK_CONDITION
    assert parse_sense(unpack_sense(response.data)) == REASONS[Reason.LBA_OUT_OF_RANGE]
    assert (residual(response), response.exp_data_sn) == (("U", 600), 3)


@pytest.mark.parametrize(
    ("error", "writes", "reason"),
    [
        (OSError(5, "EIO"), False, Reason.UNRECOVERED_READ_ERROR),
        (OSError(5, "EIO"), True, Reason.WRITE_ERROR),
        (OSError(28, "ENOSPC"), True, Reason.SPACE_ALLOCATION_FAILED),
        (BlockError(Fault.READ_ONLY), True, Reason.WRITE_PROTECTED),
    ],
)
def test_error_of_the_medium_is_told_by_its_direction(error: Exception, writes: bool, reason: Reason) -> None:
    response = failed(error, writes=writes)
    assert parse_sense(unpack_sense(response.data)) == REASONS[reason]


@pytest.mark.parametrize(
    ("error", "status"),
    [(BlockError(Fault.BUSY), 0x08), (BlockError(Fault.NO_RESOURCES), 0x28), (OSError(12, "ENOMEM"), 0x28)],
)
def test_passing_trouble_is_a_status_without_sense(error: Exception, status: int) -> None:
    response = failed(error, sent=1000)
    assert (response.status, response.data, residual(response)) == (status, b"", ("", 0))


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), BlockError(Fault.INTERNAL, "broken")])
def test_bug_is_logged_and_told_as_a_failure_of_the_target(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        response = failed(error)
    assert parse_sense(unpack_sense(response.data)) == REASONS[Reason.INTERNAL_TARGET_FAILURE]
    assert "the device failed" in caplog.text


def test_error_that_the_initiator_causes_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    failed(ScsiError(Reason.INVALID_FIELD_IN_CDB))
    failed(OSError(5, "EIO"))
    assert not caplog.records


@pytest.mark.parametrize(("direction", "residue"), [(NONE, ("", 0)), (READ, ("U", 512)), (WRITE, ("U", 512))])
def test_status_without_data_leaves_all_that_was_expected(direction: int, residue: tuple[str, int]) -> None:
    pair = Pair()
    Answers(pair.connection, nowhere).status(command(direction, 512), 0x04)
    (response,) = pair.receive()
    assert (response.initiator_task_tag, response.status, response.data) == (5, 0x04, b"")
    assert residual(response) == residue


@pytest.mark.parametrize(
    ("error", "writes", "read_errors", "write_errors"),
    [
        (OSError(errno.EIO, "x"), False, 1, 0),
        (OSError(errno.EIO, "x"), True, 0, 1),
        (BlockError(Fault.READ_ERROR), False, 1, 0),
        (BlockError(Fault.WRITE_ERROR), True, 0, 1),
        (ScsiError(Reason.LBA_OUT_OF_RANGE), True, 0, 0),
        (BlockError(Fault.BUSY), False, 0, 0),
    ],
)
def test_error_of_the_medium_is_counted_for_its_unit(
    error: Exception, writes: bool, read_errors: int, write_errors: int
) -> None:
    pair, tally = Pair(), Figures()
    unit = SimpleNamespace(tally=tally, mode_state=ModeState())
    Answers(pair.connection, {0: (unit, None)}.get).fail(command(WRITE, 1000), error, writes=writes)
    assert (tally.read_errors, tally.write_errors) == (read_errors, write_errors)


@pytest.mark.parametrize("d_sense", [False, True])
def test_sense_data_has_the_format_that_the_mode_page_asks_for(d_sense: bool) -> None:
    pair = Pair()
    unit = SimpleNamespace(tally=Figures(), mode_state=ModeState(d_sense=d_sense))
    answers = Answers(pair.connection, {0: (unit, None)}.get)
    answers.fail(command(READ, 512), ScsiError(Reason.LBA_OUT_OF_RANGE))
    (response,) = pair.receive()
    sense = unpack_sense(response.data)
    assert sense[0] & 0x7F == (0x72 if d_sense else 0x70)  # SPC-4 4.5.2, 4.5.3
    assert parse_sense(sense) == REASONS[Reason.LBA_OUT_OF_RANGE]
