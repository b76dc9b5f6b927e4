"""The sanitize operations that a worker executes: in its pool, and on behalf of nobody.

An operation begins when the authority has answered the SANITIZE command, so that no worker touches the unit any more.
From then on it belongs to the unit. The command that asked for it may be aborted and its session may end: then only the
answer is dropped. When the operation has ended the authority is told, and when all workers know that it has completed,
whoever still waits gets GOOD. A failure, and the end of this process, leave the unit failed (``scsi.sanitize``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from iscsid.errors import ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.lu import LogicalUnit
from iscsid.scsi.sanitize import IMMED, Erasure
from iscsid.scsi.sense import Reason
from iscsid.target.task import Submit

log = logging.getLogger(__name__)

Done = Callable[[ScsiError | None], None]
Report = Callable[[str, bool, Done], None]


class _Operation:
    """An erasure under way, and who waits for it."""

    def __init__(self, unit: str, erasure: Erasure, done: Done) -> None:
        self.unit = unit
        self.erasure = erasure
        self._done: Done | None = done

    def answer(self, error: ScsiError | None) -> None:
        """Answer the command, if it is not yet."""
        done, self._done = self._done, None
        if done is not None:
            done(error)


class Sanitizer:
    """The operations of one worker; one a unit at most, as the authority sees to.

    Args:
        submit: the pool.
        report: ``report(unit, ok, done)`` tells the authority that the operation of a unit has ended; ``done`` is
            called when every worker knows of it, with an error when it does not count as completed.
    """

    def __init__(self, submit: Submit, report: Report) -> None:
        self._submit = submit
        self._report = report
        self._operations: dict[int, _Operation] = {}

    def begin(self, number: int, unit: str, lu: LogicalUnit, cdb: bytes, data: bytes, done: Done) -> None:
        """Execute the SANITIZE command that was the ask ``number``; with IMMED it is answered at once."""
        operation = self._operations[number] = _Operation(unit, Erasure(lu, cdb, data), done)
        log.info("%s: sanitize begins", lu.identity.name)
        self._submit(operation.erasure, partial(self._ended, number, lu.identity.name))
        if cdb[1] & IMMED:
            operation.answer(None)

    def abandon(self, number: int) -> None:
        """The command of this ask is aborted: it is over, and the operation goes on."""
        operation = self._operations.get(number)
        if operation is not None:
            operation.answer(ScsiError(Status.TASK_ABORTED))

    def stop(self) -> None:
        """The worker is about to end: leave undone what is not done."""
        for operation in self._operations.values():
            operation.erasure.stop()

    def _ended(self, number: int, name: str, _: object, error: Exception | None) -> None:
        operation = self._operations[number]
        if error is None:
            log.info("%s: sanitize has completed", name)
        else:
            log.error("%s: sanitize has failed: %s", name, error or type(error).__name__)
        failure = None if error is None else ScsiError(Reason.SANITIZE_COMMAND_FAILED)

        def told(refused: ScsiError | None) -> None:
            del self._operations[number]
            operation.answer(failure or (refused and ScsiError(Reason.SANITIZE_COMMAND_FAILED)))

        self._report(operation.unit, error is None, told)
