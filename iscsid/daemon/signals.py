"""Signals as events of the loop: a handler does nothing, the kernel writes a byte, the loop reads it.

``signal.set_wakeup_fd`` writes the signal's number into a pipe from C; no Python runs in a handler that could meet a
lock or a half-done change.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Requests:
    """What a supervisor is asked to do, as numbers of signals, by whoever has this: any thread, and a signal handler.

    For a server in a program that keeps its signals to itself, and in a thread that is not the main one.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._closing = threading.RLock()  # a handler may interrupt the thread that holds it

    def fileno(self) -> int:
        return self._reader

    def send(self, number: int) -> None:
        """Ask, as the signal would; nothing when the server has gone."""
        with self._closing, contextlib.suppress(BlockingIOError):
            if self._writer >= 0:
                os.write(self._writer, bytes([number]))

    def read(self) -> list[int]:
        """The signals that came since the last call, oldest first; the others that Python handles are left out."""
        with contextlib.suppress(BlockingIOError):
            return [number for number in os.read(self._reader, 512) if number in HANDLED]
        return []

    def close(self) -> None:
        """There is no server any more. To close it again does nothing."""
        with self._closing:
            ends = self._reader, self._writer
            self._reader = self._writer = -1
            for end in ends:
                if end >= 0:
                    os.close(end)

    def leave_to_supervisor(self) -> None:
        """In a worker just forked: ignore what is meant for the supervisor.

        A terminal sends SIGINT to the whole group and systemd SIGTERM to the whole cgroup; a worker goes when its
        supervisor tells it to, or is gone.
        """
        signal.set_wakeup_fd(-1)
        for number in HANDLED:
            signal.signal(number, signal.SIG_IGN)
        os.close(self._reader)
        os.close(self._writer)


class Signals(Requests):
    """The process's own signals. To be made in the main thread; ``close`` puts everything back."""

    def __init__(self) -> None:
        super().__init__()
        self._old_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {
            number: signal.signal(number, _enqueue) for number in HANDLED
        }

    def close(self) -> None:
        """Restore what was before, once."""
        if self.fileno() < 0:
            return
        for number, handler in self._old.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._old_fd)
        super().close()


def _enqueue(_number: int, _frame: FrameType | None) -> None:
    """Nothing: that a handler is set is what makes the wake-up byte come."""
