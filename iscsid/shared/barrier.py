"""Who has yet to apply a change: the authority answers when nobody is left.

A worker is through when it has acknowledged every part that it was sent, or when it is dead. One that is neither at the
deadline is told of once, so that it can be killed; it is waited for all the same, because a process that waits for its
medium in the kernel dies, and stops writing, only later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DEADLINE: Final = 10.0  # seconds; a disk that retries takes about as long, and an initiator gives up a reset after 15


class Barrier:
    """One change on its way to the workers.

    Args:
        generation: of the state that the change makes.
        parts: how many messages each worker is to acknowledge.
        now: when they were sent.
    """

    __slots__ = ("_deadline", "_left", "generation")

    def __init__(self, generation: int, parts: Mapping[int, int], now: float) -> None:
        self.generation = generation
        self._left = {worker: count for worker, count in parts.items() if count}
        self._deadline: float | None = now + DEADLINE

    @property
    def passed(self) -> bool:
        """Nobody is waited for."""
        return not self._left

    @property
    def deadline(self) -> float | None:
        """When those who are still waited for are late; None when that was told."""
        return self._deadline if self._left else None

    def waits_for(self, worker: int) -> bool:
        """Whether ``worker`` has not applied all of it."""
        return worker in self._left

    def applied(self, worker: int, generation: int) -> None:
        """``worker`` acknowledges one part. What it was sent for another reason does not count here."""
        if generation != self.generation or worker not in self._left:
            return
        self._left[worker] -= 1
        if not self._left[worker]:
            del self._left[worker]

    def died(self, worker: int) -> None:
        """``worker`` executes nothing any more."""
        self._left.pop(worker, None)

    def late(self, now: float) -> list[int]:
        """Who is late; told once."""
        if self._deadline is None or now < self._deadline:
            return []
        self._deadline = None
        return sorted(self._left)

    def extend(self, now: float) -> None:
        """Nobody could be heard for a while: the time that they have begins again."""
        if self._deadline is not None:
            self._deadline = now + DEADLINE
