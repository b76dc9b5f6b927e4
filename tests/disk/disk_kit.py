"""Ends of memory: what was not flushed is lost when they crash, and every transfer waits until it is finished."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from iscsid.disk.ends import EndError, Extent


class MemoryEnd:
    """An end that a test can look into.

    Args:
        content: its bytes.
        holes: stretches (offset, length) that it says are no data.
        lazy: data moves when the transfer is finished, not when it is started.
        fail_at: the number of the transfer that fails.
        lose_at: numbers of the transfers after which it loses what was not flushed, and is there again.
    """

    def __init__(
        self,
        content: bytes,
        *,
        block_size: int = 1,
        max_transfer: int = 64,
        holes: Sequence[tuple[int, int]] = (),
        fresh: bool = False,
        lazy: bool = True,
        name: str = "memory",
        fail_at: int | None = None,
        lose_at: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.identity: dict[str, Any] = {"path": name, "size": len(content)}
        self.content = bytearray(content)
        self.durable = bytes(content)
        self.size = len(content)
        self.block_size = block_size
        self.max_transfer = max_transfer
        self.fresh = fresh
        self.holes = sorted(holes)
        self.lazy = lazy
        self.fail_at = fail_at
        self.lose_at = set(lose_at)
        self.sessions = 1
        self.calls: list[tuple[str, int, int]] = []
        self.most_in_flight = self._in_flight = 0

    def extents(self) -> Iterator[Extent]:
        position = 0
        for offset, length in self.holes:
            if offset > position:
                yield Extent(position, offset - position, data=True)
            yield Extent(offset, length, data=False)
            position = offset + length
        if position < self.size:
            yield Extent(position, self.size - position, data=True)

    def start_read(self, offset: int, buffer: memoryview) -> Any:
        return self._start("read", offset, buffer)

    def start_write(self, offset: int, data: memoryview) -> Any:
        return self._start("write", offset, data)

    def _start(self, kind: str, offset: int, buffer: memoryview) -> Any:
        length = len(buffer)
        assert offset % self.block_size == 0, "not on a block"
        assert 0 < length <= self.max_transfer
        assert length % self.block_size == 0, "not whole blocks"
        assert offset + length <= self.size
        self.calls.append((kind, offset, length))
        ticket = [kind, offset, buffer, len(self.calls) - 1]
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        if not self.lazy:
            self._move(ticket)
        return ticket

    def finish(self, ticket: Any) -> None:
        self._in_flight -= 1
        if self.lazy:
            self._move(ticket)

    def _move(self, ticket: Any) -> None:
        kind, offset, buffer, number = ticket
        if number == self.fail_at:
            raise EndError(f"{self.name}: cannot {kind} at byte {offset}")
        if kind == "read":
            buffer[:] = self.content[offset : offset + len(buffer)]
        else:
            self.content[offset : offset + len(buffer)] = buffer
        if number in self.lose_at:
            self.content[:] = self.durable
            self.sessions += 1
            if kind == "write":  # what had no answer is sent again
                self.content[offset : offset + len(buffer)] = buffer

    def zero(self, offset: int, length: int) -> None:
        assert offset % self.block_size == length % self.block_size == 0
        self.calls.append(("zero", offset, length))
        self.content[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        assert not self._in_flight, "what is in flight is not covered by a flush"
        self.durable = bytes(self.content)

    def drop_cache(self) -> None:
        self.calls.append(("drop cache", 0, 0))

    def check_size(self) -> None:
        if len(self.content) != self.size:
            raise EndError(f"{self.name} has {len(self.content)} bytes now, it had {self.size}")

    def close(self) -> None:
        self.calls.append(("close", 0, 0))

    def crash(self) -> None:
        """Forget what was not flushed."""
        self.content[:] = self.durable
        self._in_flight = 0
        self.fail_at = None

    def count(self, kind: str) -> int:
        return sum(call[0] == kind for call in self.calls)
