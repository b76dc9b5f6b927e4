"""Calls in the devices of a worker that no session has asked for: flushes when a state changes, questions how full a
medium is. A device is not closed while one is under way, and none begins on one that is about to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

from iscsid.block.guard import Guarded
from iscsid.target.task import Done, Run, Submit


class Errands:
    """Those of one worker; ``submit`` is the pool."""

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._running: Counter[Guarded] = Counter()
        self._shut: set[Guarded] = set()
        self._waiting: list[tuple[frozenset[Guarded], Callable[[], None]]] = []

    def submit(self, device: Guarded, run: Run, done: Done) -> None:
        """Call ``run``, which is in ``device``, in the pool, and then ``done(result, error)`` in the loop. Where the
        device is shut, ``run`` is not called, and the result is None: what it would do is done by who shut it."""
        if device in self._shut:
            self._submit(_nothing, done)
            return

        def ended(result: Any, error: Exception | None) -> None:
            self._running[device] -= 1
            try:
                done(result, error)
            finally:
                self._tell()

        self._running[device] += 1
        self._submit(run, ended)

    def shut(self, devices: Iterable[Guarded], then: Callable[[], None]) -> None:
        """When nothing is under way in ``devices``, at once or later, begin nothing more there, and call ``then``."""
        self._waiting.append((frozenset(devices), then))
        self._tell()

    def open(self, devices: Collection[Guarded]) -> None:
        """Take back ``shut``; who waits for it still is not told."""
        self._waiting = [waiter for waiter in self._waiting if waiter[0].isdisjoint(devices)]
        self._shut.difference_update(devices)

    def _tell(self) -> None:
        self._running = +self._running
        ready = [waiter for waiter in self._waiting if not any(self._running[device] for device in waiter[0])]
        self._waiting = [waiter for waiter in self._waiting if waiter not in ready]
        for devices, then in ready:
            self._shut |= devices
            then()


def _nothing() -> None:
    """What is left to do in a device that is shut."""
