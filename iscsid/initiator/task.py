"""What is asked of a target and not answered yet: the tickets that callers hold.

A ticket is filled in by the session; ``done`` turns true last. ``result`` is what the caller wants to know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from iscsid.errors import InitiatorError
from iscsid.text.codec import Pair
from iscsid.wire.const import FINAL, READ, WRITE, TaskAttribute

SIMPLE: Final = int(TaskAttribute.SIMPLE)
NO_DATA: Final = memoryview(b"")


class Result(NamedTuple):
    """How a command ended: SCSI status, data-in (what came of it), sense data, residual.

    ``residual`` is positive for bytes that were expected and not transferred, negative for bytes that did not fit.
    """

    status: int
    data: memoryview
    sense: bytes
    residual: int


class Ticket:
    """One request to a target.

    Attributes:
        done: it is over: either ``error`` is set or the answer is there.
        error: what ``wait`` raises.
        callback: called with the ticket when it is over, from where bytes are received.
        timeout: seconds from the time it is sent; ``deadline`` is the moment, on the clock of the session.
    """

    __slots__ = ("callback", "deadline", "done", "error", "tag", "timeout")

    def __init__(self, timeout: float) -> None:
        self.tag = 0
        self.timeout = timeout
        self.deadline = 0.0
        self.done = False
        self.error: InitiatorError | None = None
        self.callback: Callable[[Any], None] | None = None

    def end(self, error: InitiatorError | None = None) -> None:
        """Be over."""
        self.error = error
        self.done = True
        if self.callback is not None:
            self.callback(self)


class Task(Ticket):
    """One SCSI command.

    Args:
        lun: the LUN field (``wire.lun.encode``).
        cdb: 16 bytes, or longer.
        buffer: where data-in goes, as long as is expected; empty for none.
        data_out: what is sent; it must not change before the task is done.
        timeout: seconds.
        replay: whether it may be done twice, so that it is sent again when the connection broke under it.
        raw: the caller looks at status and sense himself: nothing is retried, no status is an error.
        exact: to move more or less data than expected is an error.
    """

    __slots__ = (
        "asked",
        "attempts",
        "breaks",
        "broken_at",
        "buffer",
        "cdb",
        "cmd_sn",
        "data_out",
        "data_sn",
        "exact",
        "expected",
        "flags",
        "last",
        "lun",
        "not_before",
        "patience",
        "raw",
        "received",
        "replay",
        "residual",
        "sense",
        "status",
    )

    def __init__(
        self,
        lun: int,
        cdb: bytes,
        buffer: memoryview = NO_DATA,
        data_out: memoryview = NO_DATA,
        *,
        timeout: float = 30.0,
        replay: bool = True,
        raw: bool = False,
        exact: bool = False,
    ) -> None:
        self.tag = 0
        self.timeout = timeout
        self.deadline = 0.0
        self.done = False
        self.error = None
        self.callback = None
        self.lun = lun
        self.cdb = cdb
        self.buffer = buffer
        self.data_out = data_out
        self.expected = expected = len(buffer)
        # The F bit and the data-out in one piece are the most frequent; the connection takes F away where more follows.
        if expected:
            self.flags = FINAL | SIMPLE | READ
        elif len(data_out):
            self.flags = FINAL | SIMPLE | WRITE
            self.expected = len(data_out)
        else:
            self.flags = FINAL | SIMPLE
        self.replay = replay
        self.raw = raw
        self.exact = exact
        self.asked = 0  # bytes that R2Ts wanted
        self.attempts = 0
        self.last = False  # somebody wants it aborted: it is not sent again, whatever comes of it
        self.breaks = 0
        self.broken_at = 0.0
        self.not_before = 0.0
        self.patience = 0.0
        self.cmd_sn = 0
        self.received = 0
        self.data_sn = 0
        self.status = -1
        self.sense = b""
        self.residual = 0

    def reset(self) -> None:
        """Forget what came of the last attempt."""
        self.received = self.data_sn = self.residual = self.asked = 0
        self.status = -1
        self.sense = b""

    @property
    def result(self) -> Result:
        return Result(self.status, self.buffer[: self.received], self.sense, self.residual)


class Management(Ticket):
    """One task management function (RFC 7143 section 11.5). ``victim`` is the task of ABORT TASK."""

    __slots__ = ("function", "lun", "response", "victim")

    def __init__(self, function: int, lun: int, victim: Task | None = None, *, timeout: float = 10.0) -> None:
        super().__init__(timeout)
        self.function = function
        self.lun = lun
        self.victim = victim
        self.response = -1

    @property
    def result(self) -> int:
        """The target's answer, a ``TmfResponse``."""
        return self.response


class TextExchange(Ticket):
    """One Text negotiation sequence: SendTargets (RFC 7143 section 11.10)."""

    __slots__ = ("answer", "pairs")

    def __init__(self, pairs: list[Pair], *, timeout: float = 30.0) -> None:
        super().__init__(timeout)
        self.pairs = pairs
        self.answer: list[Pair] = []

    @property
    def result(self) -> list[Pair]:
        return self.answer
