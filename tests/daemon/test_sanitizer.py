"""daemon.sanitizer: when an operation begins, who is answered when, and how it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.daemon.sanitizer import Sanitizer
from iscsid.errors import ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.sanitize import Stopped
from iscsid.scsi.sense import Reason

IMMED = 0x80


class Rig:
    """One operation, begun; the test is the pool and the authority."""

    def __init__(self, flags: int = 0) -> None:
        self.calls: list[tuple[Callable[[], Any], Callable[[Any, Exception | None], None]]] = []
        self.reports: list[tuple[str, bool, Callable[[ScsiError | None], None]]] = []
        self.answers: list[ScsiError | None] = []
        self.sanitizer = Sanitizer(
            lambda run, done: self.calls.append((run, done)), lambda *report: self.reports.append(report)
        )
        unit: Any = SimpleNamespace(identity=SimpleNamespace(name="the disk"))
        self.sanitizer.begin(7, "S1", unit, bytes((0x48, flags | 0x02)) + bytes(8), b"", self.answers.append)

    def end(self, error: Exception | None = None) -> None:
        self.calls[0][1](None, error)

    def reason(self) -> Any:
        [error] = self.answers
        return error and error.reason


def test_command_is_answered_when_everybody_knows_that_it_is_done() -> None:
    rig = Rig()
    rig.end()
    assert rig.answers == []
    [(unit, ok, told)] = rig.reports
    assert (unit, ok) == ("S1", True)
    told(None)
    assert rig.answers == [None]


def test_command_with_immed_is_answered_once_it_has_begun() -> None:
    rig = Rig(IMMED)
    assert rig.answers == [None]
    rig.end(OSError(5, "bad sector"))
    rig.reports[0][2](None)
    assert rig.answers == [None]


@pytest.mark.parametrize("error", [OSError(5, "bad sector"), Stopped(), RuntimeError("a bug")])
def test_operation_that_fails_is_reported_and_answered_as_failed(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig()
    with caplog.at_level(logging.ERROR):
        rig.end(error)
    assert str(error) in caplog.text
    assert rig.reports[0][1] is False
    rig.reports[0][2](None)
    assert rig.reason() is Reason.SANITIZE_COMMAND_FAILED


def test_operation_whose_completion_does_not_count_has_failed() -> None:
    rig = Rig()
    rig.end()
    rig.reports[0][2](ScsiError(Reason.INTERNAL_TARGET_FAILURE))
    assert rig.reason() is Reason.SANITIZE_COMMAND_FAILED


def test_operation_that_is_abandoned_goes_on_unheard() -> None:
    rig = Rig()
    rig.sanitizer.abandon(7)
    assert rig.reason() is Status.TASK_ABORTED
    rig.sanitizer.abandon(8)
    rig.end()
    assert rig.reports[0][1] is True
    rig.reports[0][2](None)
    rig.sanitizer.abandon(7)
    assert len(rig.answers) == 1


def test_stop_reaches_what_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    stopped: list[bool] = []
    monkeypatch.setattr("iscsid.scsi.sanitize.Erasure.stop", lambda self: stopped.append(True))
    rig.sanitizer.stop()
    rig.end()
    rig.reports[0][2](None)
    rig.sanitizer.stop()
    assert stopped == [True]
