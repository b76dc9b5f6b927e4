"""Several devices of one medium in one process, as one that any number of threads may enter.

A device that is ``Threading.PER_HANDLE`` serves one call at a time, but there may be several of it. The first is opened
at once, the others when there are more calls than devices, up to a bound. Each call has a device for itself, the one
that was used last if there is a choice. Where no further one can be opened, those that there are do it.

A flush goes through all of them, one after the other: a device need not know what was written through another one, and
one whose flush has failed goes on failing whichever of them is asked.

This room makes no locks: whoever has threads gives a ``Condition``. Without one there is one thread and one device.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from iscsid.block.device import Capabilities, Device, Extent, Mode, Support, Threading
from iscsid.block.filter import FACTS, Filter

BATCH: Final = 64  # extents that are taken at a time, so that nobody who thinks about one holds a device
_SAME: Final = tuple(fact for fact in FACTS if fact != "threading")
_CALLS: Final = ("read_into", "write", "write_fua", "discard", "write_zeroes", "prefetch", "space", "current_size")
_NOW: Final = {"view": Support.NONE, "read_nowait": Support.NONE, "write_nowait": Support.NONE}


class Condition(Protocol):
    """What is used of ``threading.Condition``."""

    def __enter__(self) -> bool: ...

    def __exit__(self, *_: Any) -> None: ...

    def wait(self) -> object: ...

    def notify_all(self) -> None: ...


def handles_of(opener: Callable[[], Device], limit: int, make: Callable[[], Condition] | None) -> Device:
    """What ``opener`` opens, with up to ``limit`` handles if it is PER_HANDLE and ``make`` makes conditions."""
    device = opener()
    if device.threading is not Threading.PER_HANDLE or make is None or limit < 2:
        return device
    return Handles(device, opener, limit, make())


class Handles(Filter):
    """``first``, and as many more as ``opener`` opens, at most ``limit`` in all; all of them are closed with it."""

    threading = Threading.PARALLEL
    mode = Mode.BLOCKING  # a call may wait for a device

    def __init__(self, first: Device, opener: Callable[[], Device], limit: int, condition: Condition) -> None:
        super().__init__(first)
        self._opener = opener
        self._free = limit - 1  # how many more may be opened
        self._condition = condition
        self._all = [first]
        self._idle = [first]
        self._wanted: list[Device] = []  # by flushes, which otherwise might wait for as long as there are other calls
        for call in _CALLS:
            setattr(self, call, self._through(call))

    def capabilities(self) -> Capabilities:
        """Those of the first; what may not wait would have to wait for a device."""
        return dataclasses.replace(self.below.capabilities(), **_NOW)

    def flush(self) -> None:
        """All of them, whatever fails; the first failure is raised."""
        failure: Exception | None = None
        for device in list(self._all):
            self._take_this(device)
            try:
                device.flush()
            except Exception as error:
                failure = failure or error
            finally:
                self._give(device)
        if failure is not None:
            raise failure

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        while offset < end and (extents := self._extents(offset, end - offset)):
            yield from extents
            offset = extents[-1].offset + extents[-1].length

    def close(self) -> None:
        """Close all, whatever fails; the first failure is raised."""
        failure: Exception | None = None
        for device in self._all:
            try:
                device.close()
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _through(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            device = self._take()
            try:
                return getattr(device, name)(*arguments)
            finally:
                self._give(device)

        return call

    def _extents(self, offset: int, length: int) -> list[Extent]:
        device = self._take()
        try:
            found = iter(device.block_status(offset, length))
            return [extent for extent, _ in zip(found, range(BATCH), strict=False)]
        finally:
            self._give(device)

    def _take(self) -> Device:
        """A device that nobody is in; it may have to be opened, or waited for."""
        while True:
            with self._condition:
                while (device := self._next()) is None and not self._free:
                    self._condition.wait()
                if device is not None:
                    self._idle.remove(device)
                    return device
                self._free -= 1
            device = self._opened()
            with self._condition:
                if device is not None:
                    self._all.append(device)
                    return device
                self._free = 0

    def _next(self) -> Device | None:
        return next((device for device in reversed(self._idle) if device not in self._wanted), None)

    def _opened(self) -> Device | None:
        """One more; None where there is none to be had, or one that is not as the first."""
        try:
            device = self._opener()
        except Exception:
            return None
        if all(getattr(device, fact) == getattr(self._all[0], fact) for fact in _SAME):
            return device
        with contextlib.suppress(Exception):
            device.close()
        return None

    def _take_this(self, device: Device) -> None:
        with self._condition:
            self._wanted.append(device)
            while device not in self._idle:
                self._condition.wait()
            self._wanted.remove(device)
            self._idle.remove(device)

    def _give(self, device: Device) -> None:
        with self._condition:
            self._idle.append(device)
            self._condition.notify_all()
