"""The last step of a command: run here or in the pool, answered when the task has ended; and what still runs when a
session is over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from iscsid.block.guard import Guarded
from iscsid.errors import BlockError
from iscsid.target.answers import Answers
from iscsid.target.data_out import DataOutCollector, WriteTask
from iscsid.target.task import DeviceCall, Done, Submit, Task

Data = bytes | bytearray
Good = Callable[[Data], None]

NOTHING_HELD = contextlib.nullcontext()


class Calls:
    """Those of one session.

    ``heard`` is called after each answer of the pool: what waited for the command may be able to go on.
    """

    def __init__(self, submit: Submit, data_out: DataOutCollector, answers: Answers, heard: Callable[[], None]) -> None:
        self.in_flight = 0  # calls in the pool
        self._closed = False
        self._submit_to_pool = submit
        self._data_out = data_out
        self._answers = answers
        self._heard = heard
        self._when_idle: list[Callable[[], None]] = []

    def conclude(self, task: WriteTask, run: Callable[[], Data], good: Good, *, writes: bool) -> None:
        """Run the last step of a task here, and answer it, by ``good`` where it succeeds."""
        result: Data = b""
        error: Exception | None = None
        try:
            result = run()
        except Exception as exc:  # answered as what it is, or as HARDWARE ERROR, and logged there
            error = exc
        self.answer(task, result, error, good, writes=writes)

    def in_pool(
        self,
        task: WriteTask,
        device: Guarded,
        run: Callable[[], Data],
        good: Good,
        *,
        writes: bool,
        exclusive: tuple[int, int] | None = None,
        lock: contextlib.AbstractContextManager[Any] | None = None,
        patience: int = 1,
    ) -> None:
        """Run the last step of a task in the pool, and answer it afterwards; ``lock`` None: that of the device.

        For ``patience`` see DeviceCall."""
        held = device.lock if lock is None else lock

        def locked() -> Data:
            # The range first: whoever waits for it keeps nobody else from the device.
            with device.exclusive(*exclusive) if exclusive else NOTHING_HELD, held:
                return run()

        def done(result: Data | None, error: Exception | None) -> None:
            task.running = False
            self.answer(task, result or b"", error, good, writes=writes)

        task.running = True
        self.submit(DeviceCall(device, locked, writes=writes, patience=patience), done)

    def answer(self, task: WriteTask, result: Data, error: Exception | None, good: Good, *, writes: bool) -> None:
        """Answer a task when its data-out has ended, unless it was aborted."""

        def answer() -> None:
            if task.aborted:
                return
            if error is not None:
                self._answers.fail(task.command, error, writes=writes, sent=task.transfer.received)
            else:
                good(result)

        self._data_out.end(task, answer)

    def submit(self, run: Callable[[], Any], done: Done) -> None:
        """Hand ``run`` to the pool; nothing is heard of it when the session is over by then."""

        def heard(result: Any, error: Exception | None) -> None:
            self.in_flight -= 1
            if not self._closed:
                done(result, error)
                self._heard()
            elif not self.in_flight:
                self._tell_idle()

        self.in_flight += 1
        self._submit_to_pool(run, heard)

    def when_idle(self, then: Callable[[], None]) -> None:
        """Call ``then``, at once or later, when nothing of a closed session runs in the pool any more.

        A write that is still in the pool when its session ends must not overtake those of the session's successor.
        """
        if self.in_flight:
            self._when_idle.append(then)
        else:
            then()

    def close(self, running: Iterable[Task]) -> None:
        """The session is over. Whoever waits for the end of a task that is in the pool still hears of it."""
        self._closed = True
        self._when_idle += [task.ended for task in running]

    def _tell_idle(self) -> None:
        for then in self._when_idle:
            then()
        self._when_idle.clear()


def holds(held: contextlib.ExitStack, device: Guarded, exclusive: tuple[int, int] | None) -> bool:
    """Hold the range in ``held`` if nobody has to be waited for; what fails otherwise fails again in the pool."""
    if exclusive is not None:
        try:
            held.enter_context(device.exclusive(*exclusive, False))
        except (BlockError, OSError):
            return False
    return True
