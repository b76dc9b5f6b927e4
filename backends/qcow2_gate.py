"""Who is inside an image: operations that may run side by side, and those that need it for themselves.

Operations are counted by the age in which they began. What was given back in one age may be used for something else
only when no operation of that age or an older one is left: it could still be about to read or write there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Gate:
    """``now`` is held by the one operation that runs in the worker's loop, which never waits for it."""

    def __init__(self) -> None:
        self.now = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._inside: dict[int, int] = {}
        self._closed = False
        self._age = 0

    def enter(self) -> int:
        """Wait until nobody has the image for itself, and go in; the answer is for ``leave``."""
        with self._changed:
            while self._closed:
                self._changed.wait()
            age = self._age
            self._inside[age] = self._inside.get(age, 0) + 1
            return age

    def leave(self, age: int) -> None:
        """The end of an operation."""
        with self._changed:
            left = self._inside[age] - 1
            if left:
                self._inside[age] = left
            else:
                del self._inside[age]
                if self._closed:
                    self._changed.notify_all()

    def next_age(self) -> int:
        """End the present age; its number."""
        with self._changed:
            self._age += 1
            return self._age - 1

    def gone(self, age: int) -> bool:
        """Whether every operation that began in ``age`` or before has ended."""
        with self._changed:
            alone = self._closed and not self._inside
            return alone or (not self.now.locked() and all(begun > age for begun in self._inside))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have the image for oneself: waits for all others, who then wait."""
        with self.now:
            with self._changed:
                while self._closed:
                    self._changed.wait()
                self._closed = True
                while self._inside:
                    self._changed.wait()
            try:
                yield
            finally:
                with self._changed:
                    self._closed = False
                    self._changed.notify_all()
