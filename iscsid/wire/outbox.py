"""The bytes that wait to be sent on one connection.

PDUs are built where they are sent from: ``room`` hands out a stretch of a reused chunk, the caller packs a header and
lets a device read its data straight behind it, ``commit`` makes both part of the stream. ``lend`` appends memory that
belongs to somebody else (a RAM disk's mapping, a finished read) without copying it. ``segments`` and ``sent`` are for
whoever owns the socket: one system call takes everything that is queued.

Whoever fills the outbox looks at ``queued`` first and stops above a bound of its own: nothing here refuses to grow.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

CHUNK_SIZE = 1 << 20
SPARE_SIZE = 2 * CHUNK_SIZE  # bytes of chunks that are kept for later beside the current one
MAX_SEGMENTS = 512  # below IOV_MAX (1024): longer lists cost the kernel more than a second call


class Outbox:
    """Queue of outgoing bytes with in-place building.

    Attributes:
        buffer: the current chunk; ``Struct.pack_into(outbox.buffer, position, …)`` writes headers.
        view: a memoryview of it; slices of it are what devices read into.
        size: its length.
        end: where the next byte goes, after a ``room`` the position that it returned.
        queued: bytes that wait to be sent.
    """

    __slots__ = (
        "_lent",
        "_ready",
        "_sealed",
        "_spare",
        "_start",
        "_taken",
        "buffer",
        "chunk_size",
        "end",
        "queued",
        "size",
        "view",
    )

    def __init__(self, chunk_size: int = CHUNK_SIZE) -> None:
        self.chunk_size = chunk_size
        self.buffer = bytearray(0)
        self.view = memoryview(self.buffer)
        self.size = 0
        self.queued = 0
        self._start = 0  # first byte of the chunk that is neither sent nor in _ready
        self.end = 0
        self._ready: deque[memoryview] = deque()
        self._lent = 0  # bytes in _ready
        self._taken = 0  # bytes of the stream that were sent
        # Full chunks of which something is still in _ready, each with where in the stream its last byte was.
        self._sealed: deque[tuple[int, bytearray]] = deque()
        self._spare: list[bytearray] = []

    def room(self, length: int) -> int:
        """Return the position in ``buffer`` where ``length`` contiguous bytes may be built; ``commit`` follows."""
        end = self.end
        if end + length > self.size:
            self._next_chunk(length)
            return 0
        return end

    def commit(self, length: int) -> None:
        """Append the ``length`` bytes built at the last ``room`` to the stream."""
        self.end += length
        self.queued += length

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Append a copy of ``data``."""
        length = len(data)
        position = self.room(length)
        self.buffer[position : position + length] = data
        self.end += length
        self.queued += length

    def lend(self, data: memoryview) -> None:
        """Append ``data`` itself; it must stay valid until it was sent."""
        if not len(data):
            return  # an empty segment would look like something to send
        end = self.end
        start = self._start
        if end > start:
            self._ready.append(self.view[start:end])
            self._lent += end - start
            self._start = end
        self._ready.append(data)
        self._lent += len(data)
        self.queued += len(data)

    def commit_and_lend(self, length: int, data: memoryview) -> None:
        """``commit`` and ``lend`` in one; ``data`` must not be empty."""
        end = self.end + length
        start = self._start
        ready = self._ready
        ready.append(self.view[start:end])
        ready.append(data)
        self._start = self.end = end
        lent = len(data)
        self._lent += end - start + lent
        self.queued += length + lent

    def segments(self) -> list[memoryview]:
        """Return what can go out in one ``sendmsg``; empty when nothing waits."""
        ready = self._ready
        start = self._start
        end = self.end
        if not ready:
            return [self.view[start:end]] if end > start else []
        if end > start and len(ready) < MAX_SEGMENTS:
            ready.append(self.view[start:end])
            self._lent += end - start
            self._start = end
        return list(ready) if len(ready) <= MAX_SEGMENTS else list(islice(ready, MAX_SEGMENTS))

    def sent(self, count: int) -> None:
        """Forget the first ``count`` bytes: the socket has taken them."""
        ready = self._ready
        self._taken += count
        self.queued -= count
        if not ready:
            self._start += count
        elif count == self._lent:
            ready.clear()
            self._lent = 0
        else:
            self._lent -= count
            while count:
                first = ready[0]
                if count < len(first):
                    ready[0] = first[count:]
                    break
                count -= len(first)
                ready.popleft()
        if self._sealed:
            self._recycle()
        if self._start == self.end and not ready:
            self._start = self.end = 0

    def clear(self) -> None:
        """Drop everything, and the borrowed memory with it."""
        self._ready.clear()
        self._sealed.clear()
        self._lent = self._start = self.end = self.queued = 0

    def _recycle(self) -> None:
        """Let go of the chunks that were sent whole, also while what follows them waits: a peer may read for ever and
        never take everything."""
        sealed = self._sealed
        while sealed and sealed[0][0] <= self._taken:
            chunk = sealed.popleft()[1]
            if sum(map(len, self._spare)) + len(chunk) <= SPARE_SIZE:
                self._spare.append(chunk)

    def _next_chunk(self, length: int) -> None:
        """Seal what was built and go on in a chunk with room for ``length`` bytes."""
        if self.end > self._start:
            self._ready.append(self.view[self._start : self.end])
            self._lent += self.end - self._start
        if self.buffer:
            self._sealed.append((self._taken + self._lent, self.buffer))
        self.buffer = self._spare_of(length)
        self.view = memoryview(self.buffer)
        self.size = len(self.buffer)
        self._start = self.end = 0

    def _spare_of(self, length: int) -> bytearray:
        for index, chunk in enumerate(self._spare):
            if len(chunk) >= length:
                return self._spare.pop(index)
        return bytearray(max(self.chunk_size, length))
