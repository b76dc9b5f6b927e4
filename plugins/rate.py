"""The layer ``rate``: operations and bytes per second have a limit.

Each limit is a line of slots in time (the generic cell rate algorithm, ITU-T I.371): a call takes the next one that is
free and waits for it, without occupying a thread. So calls are served in the order in which they came, whoever sent
them, and none starves. What was not used in the last ``burst`` milliseconds may be used at once.

The line lies in a page of memory that all workers share: the limit is that of the LUN, on however many sessions and
cores. A worker that dies takes nothing with it, for the kernel frees the lock of a dead process.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from iscsid.plugin import Descriptor, Device, LayerInfo, Option, hookimpl, pause

from .around import NOWAIT, Around, Call, extent_of

OPTIONS = (
    Option("iops", "int", minimum=1, maximum=10**9, doc="operations per second"),
    Option("bytes_per_second", "size", minimum=512, doc="of reads and writes together"),
    Option("burst", "int", default=100, minimum=0, maximum=3_600_000, doc="milliseconds whose share is saved up"),
    Option("direction", "str", default="both", choices=("both", "read", "write"), doc="what is counted"),
)
_SECOND = 10**9
_KEY = "rate_page"


class Line:
    """The slots of one LUN, in the page behind ``fd``, which the caller owns.

    Times are nanoseconds of CLOCK_MONOTONIC, one clock for all processes: for each limit, when its next slot is.
    """

    def __init__(self, fd: int, iops: int | None, bytes_per_second: int | None, burst: int) -> None:
        """``burst`` in milliseconds."""
        self._fd = fd
        self._page = mmap.mmap(fd, mmap.PAGESIZE)
        self._next = memoryview(self._page).cast("q")
        self._per_call = _SECOND / iops if iops else 0.0
        self._per_byte = _SECOND / bytes_per_second if bytes_per_second else 0.0
        self._burst = burst * 10**6
        self._mutex = threading.Lock()

    @contextmanager
    def _alone(self, wait: bool) -> Iterator[bool]:
        """Hold the line among threads and processes. Without ``wait``: False where another one holds it."""
        if not self._mutex.acquire(blocking=wait):
            yield False
            return
        try:
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                yield False
                return
            try:
                yield True
            finally:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)
        finally:
            self._mutex.release()

    def _wait(self, now: int) -> int:
        return max(self._next[0], self._next[1]) - self._burst - now

    def _take(self, now: int, length: int) -> None:
        for index, cost in enumerate((self._per_call, self._per_byte * length)):
            self._next[index] = max(self._next[index], now) + int(cost)

    def reserve(self, length: int) -> float:
        """Take a slot for ``length`` bytes; how long until it comes, in seconds."""
        with self._alone(wait=True):
            now = time.monotonic_ns()
            wait = self._wait(now)
            self._take(now, length)
        return max(0, wait) / _SECOND

    def try_now(self, length: int) -> bool:
        """Take a slot if one is free now; False otherwise."""
        with self._alone(wait=False) as alone:
            now = time.monotonic_ns()
            free = alone and self._wait(now) <= 0
            if free:
                self._take(now, length)
        return free

    def give_back(self, length: int) -> None:
        """A slot that was taken is not needed after all."""
        with self._alone(wait=True):
            self._next[0] -= int(self._per_call)
            self._next[1] -= int(self._per_byte * length)

    def close(self) -> None:
        self._next.release()
        self._page.close()


class Rate(Around):
    """``fd`` is the shared page, which the object owns."""

    waits = True

    def __init__(self, below: Device, fd: int, options: Mapping[str, Any]) -> None:
        self._fd = fd
        self._line = Line(fd, options["iops"], options["bytes_per_second"], options["burst"])
        self._direction = options["direction"]
        super().__init__(below)

    def around(self, name: str, kind: str, call: Call) -> Call:
        if kind == "flush" or self._direction not in ("both", "write" if kind == "discard" else kind):
            return call
        extent = extent_of(name)
        moves = name not in ("write_zeroes", "discard")  # those move no data, and count as an operation

        def paced(*arguments: Any) -> Any:
            length = extent(*arguments)[1] if moves else 0
            pause(self, lambda: self._line.reserve(length), time.sleep)
            return call(*arguments)

        def tried(*arguments: Any) -> Any:
            length = extent(*arguments)[1]
            if not self._line.try_now(length):
                raise BlockingIOError
            try:
                return call(*arguments)
            except BlockingIOError:
                self._line.give_back(length)
                raise

        return tried if name in NOWAIT else paced

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._line.close()
            os.close(self._fd)


def make_page() -> int:
    """A page of shared memory: its descriptor."""
    fd = os.memfd_create("iscsid-rate", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
    except BaseException:
        os.close(fd)
        raise
    return fd


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    return LayerInfo("rate", "a limit of operations and bytes per second", OPTIONS)


@hookimpl
def iscsid_layer_validate(name: str, options: Mapping[str, Any]) -> list[str]:
    if options["iops"] is None and options["bytes_per_second"] is None:
        return ["needs iops, bytes_per_second or both"]
    return []


@hookimpl
def iscsid_layer_prepare(name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    return {_KEY: Descriptor(make_page())}


@hookimpl
def iscsid_layer_release(name: str, options: Mapping[str, Any]) -> None:
    os.close(options[_KEY])


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Rate:
    fd = os.dup(options[_KEY]) if _KEY in options else make_page()
    try:
        return Rate(device, fd, options)
    except BaseException:
        os.close(fd)
        raise
