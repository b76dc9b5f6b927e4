"""The copy itself, and the comparison of both ends: many transfers in flight, holes left out, resumable.

The copy goes from the beginning to the end. Now and then all that is in flight is waited for, the destination is
flushed, and how far that was is written into a state file; after a crash the copy goes on from there.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from iscsid.disk import state as states
from iscsid.disk.ends import ZEROES, End, EndError, Extent
from iscsid.disk.state import CopyState

MAX_HOLE: Final = 256 << 20  # bytes that are made zero at once: what an interrupt waits for
ZERO_RUN: Final = 64 << 10  # bytes of zeros that are worth a hole
CHECKPOINT_SECONDS: Final = 1.0
LOSSES: Final = 8  # of the destination, from one checkpoint to the next, that are made good

Report = Callable[[int], None]


class Interrupted(EndError):
    """The copy was stopped; ``position`` bytes of it are on the medium."""

    def __init__(self, position: int) -> None:
        self.position = position
        super().__init__(f"interrupted after {position} bytes")


class Differs(EndError):
    """Source and destination differ; ``offset`` is the first byte that does."""

    def __init__(self, source: End, destination: End, offset: int) -> None:
        self.offset = offset
        super().__init__(f"{destination.name} differs from {source.name} at byte {offset}")


@dataclass(slots=True)
class Copied:
    """What a copy did, in bytes: from where on, what was written, and what was zeros."""

    begin: int
    size: int
    written: int = 0
    zeros: int = 0


class Transfer(NamedTuple):
    """A chunk in flight: where, how long, in which buffer; what ``finish`` takes."""

    offset: int
    length: int
    buffer: bytearray
    tickets: tuple[Any, ...]


# -- extents -----------------------------------------------------------------------------------------------------------


def aligned(extents: Iterable[Extent], grain: int, size: int) -> Iterator[Extent]:
    """Widen data to multiples of ``grain``, and fill the gaps with holes, up to ``size``.

    The extents come by their offsets; they may overlap.
    """
    end = 0
    for extent in extents:
        if not extent.data:
            continue
        start = max(end, extent.offset // grain * grain)
        stop = min(size, -(-(extent.offset + extent.length) // grain) * grain)
        if stop <= start:
            continue
        if start > end:
            yield Extent(end, start - end, data=False)
        yield Extent(start, stop - start, data=True)
        end = stop
    if end < size:
        yield Extent(end, size - end, data=False)


def chunks(extents: Iterable[Extent], begin: int, longest: int) -> Iterator[Extent]:
    """Cut extents into what is done at once, and leave out what lies before ``begin``."""
    for extent in extents:
        offset, end = max(extent.offset, begin), extent.offset + extent.length
        step = longest if extent.data else MAX_HOLE
        while offset < end:
            length = min(step, end - offset)
            yield Extent(offset, length, extent.data)
            offset += length


def data_runs(buffer: bytearray, length: int, run: int) -> list[tuple[int, int]]:
    """The stretches (start, end) of the first ``length`` bytes of a buffer that are not zeros, cut at multiples of
    ``run``, which is at most as long as ``ZEROES``."""
    found: list[tuple[int, int]] = []
    zeros = ZEROES[:run]
    for start in range(0, length, run):
        end = min(start + run, length)
        if buffer.startswith(zeros if end - start == run else zeros[: end - start], start):
            continue
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


# -- the two passes ----------------------------------------------------------------------------------------------------


class Pass:
    """What the copy and the comparison have in common: chunks, and buffers for as many as may be in flight."""

    def __init__(
        self, source: End, destination: End, depth: int, sparse: bool, report: Report, stop: Callable[[], bool]
    ) -> None:
        if depth < 1:
            raise ValueError("depth: at least one transfer must be in flight")
        self.source = source
        self.destination = destination
        self.sparse = sparse
        self.report = report
        self.stop = stop
        self.grain = math.lcm(source.block_size, destination.block_size)
        longest = min(source.max_transfer, destination.max_transfer)
        self.chunk = max(longest // self.grain, 1) * self.grain
        self.depth = depth
        self.free = [bytearray(self.chunk) for _ in range(depth)]
        self.reading: deque[Transfer] = deque()

    def everything(self) -> Iterator[Extent]:
        """The whole source, as data."""
        yield Extent(0, self.source.size, data=True)

    def padded(self, length: int) -> int:
        """The length in whole blocks of the destination."""
        return -(-length // self.destination.block_size) * self.destination.block_size


class Copy(Pass):
    """Copy ``source`` to ``destination``.

    Args:
        depth: chunks in flight.
        sparse: do not read what the source says is zeros, nor write zeros as data.
        path: of the state file; None for none.
        report: is called with the number of bytes that are done or under way.
        stop: is asked after each chunk; when it says yes, the copy stops where it can be resumed.
        state: of a copy that goes on.
    """

    def __init__(
        self,
        source: End,
        destination: End,
        *,
        depth: int = 16,
        sparse: bool = True,
        path: Path | None = None,
        state: CopyState | None = None,
        report: Report = lambda position: None,
        stop: Callable[[], bool] = lambda: False,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(source, destination, depth, sparse, report, stop)
        self._path = path
        self._state = state or CopyState.of(source, destination)
        self._every = checkpoint_seconds
        self._clock = clock
        self._writing: deque[Transfer] = deque()
        block = destination.block_size
        self._run = ZERO_RUN if ZERO_RUN % block == 0 else block
        self.copied = Copied(self._state.position, source.size)
        self._counted = (0, 0)  # what was written and what was zeros, at the last checkpoint
        self._sessions = destination.sessions
        self._losses = 0

    def run(self) -> Copied:
        """Do it; all of it is on the medium when this returns. Raises Interrupted, EndError and InitiatorError."""
        self._keep()
        while not self._pass():
            self._losses += 1
            if self._losses > LOSSES:
                raise EndError(f"{self.destination.name} is lost again and again")
            self.copied.written, self.copied.zeros = self._counted
        self.source.check_size()  # one that has grown in the meantime is not copied, and one that has shrunk never was
        return self.copied

    def _pass(self) -> bool:
        """Copy what the state does not count, to the end; False where something of that has to be done once more."""
        extents = self.source.extents() if self.sparse else self.everything()
        due = self._clock() + self._every
        for chunk in chunks(aligned(extents, self.grain, self.source.size), self._state.position, self.chunk):
            if chunk.data:
                self._start(chunk)
            else:
                self._zero(chunk.offset, chunk.length)
            position = chunk.offset + chunk.length
            self.report(position)
            stopping = self.stop()
            if stopping or self._clock() >= due:
                if not self._checkpoint(position):
                    return False
                if stopping and position < self.source.size:
                    raise Interrupted(position)
                due = self._clock() + self._every
        return self._checkpoint(self.source.size)

    def _start(self, chunk: Extent) -> None:
        """Begin to read a chunk, when there is a buffer, and let what was read be written."""
        while not self.free:
            self._advance()
        buffer = self.free.pop()
        ticket = self.source.start_read(chunk.offset, memoryview(buffer)[: chunk.length])
        self.reading.append(Transfer(chunk.offset, chunk.length, buffer, (ticket,)))
        if len(self.reading) > self.depth // 2:
            self._advance()

    def _advance(self) -> None:
        """Finish the oldest write, or the oldest read where there are more of them."""
        if len(self.reading) >= len(self._writing):
            self._write(self.reading.popleft())
        else:
            self._written(self._writing.popleft())

    def _write(self, transfer: Transfer) -> None:
        """Wait for what was read, and begin to write it."""
        self.source.finish(transfer.tickets[0])
        offset, length, buffer, _ = transfer
        padded = self.padded(length)
        if padded > length:
            buffer[length:padded] = bytes(padded - length)
        runs = data_runs(buffer, padded, self._run) if self.sparse else [(0, padded)]
        if runs and not self.destination.fresh:
            runs = [(0, padded)]  # one write is cheaper than several and the zeroing between them
        written = sum(end - start for start, end in runs)
        self.copied.written += written
        view = memoryview(buffer)
        tickets = tuple(self.destination.start_write(offset + start, view[start:end]) for start, end in runs)
        self._writing.append(Transfer(offset, length, buffer, tickets))
        if not runs:
            self._zero(offset, length)
        else:
            self.copied.zeros += padded - written

    def _written(self, transfer: Transfer) -> None:
        for ticket in transfer.tickets:
            self.destination.finish(ticket)
        self.free.append(transfer.buffer)

    def _zero(self, offset: int, length: int) -> None:
        if not self.destination.fresh:
            self.destination.zero(offset, self.padded(length))
        self.copied.zeros += length

    def _checkpoint(self, position: int) -> bool:
        """Wait for all that is in flight, flush, and note that everything before ``position`` is on the medium.

        False where the destination was lost since the last time: it may have lost what it had answered and not flushed,
        and the flush after that says nothing of it.
        """
        while self.reading:
            self._write(self.reading.popleft())
        while self._writing:
            self._written(self._writing.popleft())
        self.destination.flush()
        before, self._sessions = self._sessions, self.destination.sessions
        if before != self._sessions:
            return False
        self._losses = 0
        self._counted = (self.copied.written, self.copied.zeros)
        self._state.position = position
        self._keep()
        return True

    def _keep(self) -> None:
        if self._path is not None:
            states.save(self._path, self._state)


class Compare(Pass):
    """Compare all of ``source`` with the beginning of ``destination``; arguments as those of ``Copy``."""

    def __init__(
        self,
        source: End,
        destination: End,
        *,
        depth: int = 16,
        sparse: bool = True,
        report: Report = lambda position: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(source, destination, depth, sparse, report, stop)
        self._free_too = [bytearray(self.chunk) for _ in range(depth)]
        self._others: deque[tuple[bytearray, Any]] = deque()

    def run(self) -> None:
        """Do it. Raises Differs, Interrupted, EndError and InitiatorError."""
        self.source.drop_cache()
        self.destination.drop_cache()
        extents: Iterable[Extent] = self.everything()
        if self.sparse:  # what both ends say is zeros need not be read
            extents = heapq.merge(self.source.extents(), self.destination.extents(), key=lambda extent: extent.offset)
        for chunk in chunks(aligned(extents, self.grain, self.source.size), 0, self.chunk):
            if chunk.data:
                self._start(chunk)
            self.report(chunk.offset + chunk.length)
            if self.stop():
                raise Interrupted(self.source.size)
        while self.reading:
            self._finish()

    def _start(self, chunk: Extent) -> None:
        if not self.free:
            self._finish()
        one, other = self.free.pop(), self._free_too.pop()
        ticket = self.source.start_read(chunk.offset, memoryview(one)[: chunk.length])
        twin = self.destination.start_read(chunk.offset, memoryview(other)[: self.padded(chunk.length)])
        self.reading.append(Transfer(chunk.offset, chunk.length, one, (ticket,)))
        self._others.append((other, twin))

    def _finish(self) -> None:
        offset, length, one, (ticket,) = self.reading.popleft()
        other, twin = self._others.popleft()
        self.source.finish(ticket)
        self.destination.finish(twin)
        if one[:length] != other[:length]:
            first = next(index for index in range(length) if one[index] != other[index])
            raise Differs(self.source, self.destination, offset + first)
        self.free.append(one)
        self._free_too.append(other)
