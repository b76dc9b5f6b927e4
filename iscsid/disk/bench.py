"""How fast a disk is: closed loops of reads and writes from several sessions, each in a process of its own.

A session keeps ``depth`` commands in flight: whatever is done is replaced at once. The time from the submission of each
command to its answer is counted by the microsecond, so percentiles are exact and memory does not grow with time.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, Final

from iscsid.disk.ends import EndError
from iscsid.errors import InitiatorError, IscsidError
from iscsid.initiator import Disk, Task, open_disk

SLICES: Final = 40  # parts of the time, each with figures of its own
START_SECONDS: Final = 90.0  # until all sessions are logged in
GRACE_SECONDS: Final = 90.0  # beyond the time itself: for commands that time out, and recoveries
LOGOUT_SECONDS: Final = 10.0
MAX_SESSIONS: Final = 64

READ, WRITE = 0, 1


@dataclass(frozen=True, slots=True)
class Load:
    """What to do: commands of ``size`` bytes, ``depth`` of them in flight in each of ``sessions``, for ``seconds``.

    ``reads`` of a hundred are reads. Sequential sessions begin at equal distances over the disk.
    """

    size: int = 4096
    depth: int = 32
    seconds: float = 5.0
    reads: int = 100
    sequential: bool = False
    sessions: int = 1
    seed: int = 1

    def check(self, disk: Disk) -> None:
        """Raise EndError where the disk cannot take this load."""
        if self.size % disk.block_size or not 0 < self.size <= disk.max_transfer:
            raise EndError(
                f"size {self.size}: commands move multiples of {disk.block_size} bytes, up to {disk.max_transfer}"
            )
        if self.size > disk.size:
            raise EndError(f"size {self.size}: the disk has {disk.size} bytes")


def _counters() -> list[Counter[int]]:
    return [Counter() for _ in range(SLICES)]


@dataclass(slots=True)
class Figures:
    """What came of it.

    Attributes:
        seconds: how long it took, answers to the last commands included.
        slices: for reads and for writes, a counter of microseconds for each of the equal parts of the time.
    """

    seconds: float = 0.0
    slices: tuple[list[Counter[int]], list[Counter[int]]] = field(default_factory=lambda: (_counters(), _counters()))

    def add(self, other: Figures) -> None:
        """Take in what another session did at the same time."""
        self.seconds = max(self.seconds, other.seconds)
        for mine, yours in zip(self.slices, other.slices, strict=True):
            for counter, more in zip(mine, yours, strict=True):
                counter.update(more)

    def latencies(self, *kinds: int) -> Counter[int]:
        """Microseconds of all commands of these kinds."""
        total: Counter[int] = Counter()
        for kind in kinds:
            for counter in self.slices[kind]:
                total.update(counter)
        return total


def percentile(latencies: Counter[int], percent: float) -> int:
    """The smallest latency that at least so many percent do not exceed; 0 of nothing."""
    needed = latencies.total() * percent / 100
    seen = 0
    for latency in sorted(latencies):
        seen += latencies[latency]
        if seen >= needed:
            return latency
    return 0


# -- one session -------------------------------------------------------------------------------------------------------


class Loop:
    """One session's load on an open disk."""

    def __init__(self, disk: Disk, load: Load, number: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._disk = disk
        self._load = load
        self._clock = clock
        self._random = random.Random(f"{load.seed} {number}")
        self._places = disk.size // load.size
        self._next = self._places * number // load.sessions
        self._data = memoryview(os.urandom(load.size))
        self._finished: list[Slot] = []
        self._slots = [Slot(load.size, self._finished, clock) for _ in range(load.depth)]
        self.figures = Figures()

    def run(self) -> Figures:
        """Do it. Raises InitiatorError when a command fails."""
        client, finished, clock = self._disk.client, self._finished, self._clock
        begin = clock()
        end = begin + self._load.seconds
        scale = SLICES / self._load.seconds
        for slot in self._slots:
            self._submit(slot)
        busy = len(self._slots)
        while busy:
            if not finished:
                client.wait_until(lambda: bool(finished))
            batch = finished[:]
            del finished[: len(batch)]
            for slot in batch:
                part = min(int((slot.ended - begin) * scale), SLICES - 1)
                self.figures.slices[slot.kind][part][round((slot.ended - slot.begun) * 1e6)] += 1
                if slot.error is not None:
                    raise slot.error
                if slot.ended < end:
                    self._submit(slot)
                else:
                    busy -= 1
        self.figures.seconds = clock() - begin
        return self.figures

    def _submit(self, slot: Slot) -> None:
        load = self._load
        if load.sequential:
            place = self._next
            self._next = (place + 1) % self._places
        else:
            place = int(self._random.random() * self._places)
        slot.kind = READ if load.reads == 100 or self._random.random() * 100 < load.reads else WRITE
        offset = place * load.size
        slot.begun = self._clock()
        if slot.kind == READ:
            self._disk.submit_read(offset, slot.buffer, callback=slot.done)
        else:
            self._disk.submit_write(offset, self._data, callback=slot.done)


class Slot:
    """One of the commands in flight."""

    __slots__ = ("_clock", "_finished", "begun", "buffer", "ended", "error", "kind")

    def __init__(self, size: int, finished: list[Slot], clock: Callable[[], float]) -> None:
        self.buffer = memoryview(bytearray(size))
        self.kind = READ
        self.begun = self.ended = 0.0
        self.error: InitiatorError | None = None
        self._finished = finished
        self._clock = clock

    def done(self, task: Task) -> None:
        """The callback."""
        self.ended = self._clock()
        self.error = task.error
        self._finished.append(self)


# -- many sessions -----------------------------------------------------------------------------------------------------


def session(pipe: Connection, url: str, load: Load, number: int, options: dict[str, Any]) -> None:
    """The life of a child: log in, say so, wait for the word, measure, tell. Errors are told as text."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    try:
        with open_disk(url, depth=load.depth, **options) as disk:
            loop = Loop(disk, load, number)
            pipe.send(None)
            pipe.recv()
            pipe.send(loop.run())
    except IscsidError as error:
        pipe.send(str(error))
    except EOFError:  # the parent is gone
        return


def run(url: str, load: Load, report: Callable[[float], None] = lambda seconds: None, **options: Any) -> Figures:
    """Measure; raises EndError when a session fails.

    Args:
        report: is called now and then with the seconds that have passed.
        options: of ``open_disk``.
    """
    with children(url, load, options) as pipes:
        for pipe in pipes:
            _receive(pipe, START_SECONDS)
        for pipe in pipes:
            pipe.send("go")
        begin = time.monotonic()
        while not pipes[0].poll(0.1) and time.monotonic() < begin + load.seconds:
            report(time.monotonic() - begin)
        total = Figures()
        for pipe in pipes:
            total.add(_receive(pipe, load.seconds + GRACE_SECONDS))
        return total


def _receive(pipe: Connection, seconds: float) -> Any:
    try:
        answer = pipe.recv() if pipe.poll(seconds) else "a session does not answer"
    except (EOFError, OSError):
        answer = "a session ended before its time"
    if isinstance(answer, str):
        raise EndError(answer)
    return answer


@contextmanager
def children(url: str, load: Load, options: dict[str, Any]) -> Iterator[Sequence[Connection]]:
    """Start one process for each session; gives a pipe to each. They are gone afterwards.

    They are spawned, for a fork would take along the threads and sockets of whoever calls this.
    """
    context = multiprocessing.get_context("spawn")
    started: list[SpawnProcess] = []
    pipes: list[Connection] = []
    try:
        for number in range(load.sessions):
            mine, theirs = context.Pipe()
            child = context.Process(target=session, args=(theirs, url, load, number, options), daemon=True)
            child.start()
            theirs.close()
            started.append(child)
            pipes.append(mine)
        yield pipes
        for child in started:  # it has told its figures, and logs out
            child.join(LOGOUT_SECONDS)
    finally:
        for pipe in pipes:
            pipe.close()
        for child in started:
            child.kill()
            child.join()
            child.close()
