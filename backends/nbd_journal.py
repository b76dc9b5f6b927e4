"""What was written and is not flushed yet, to be done once more when the server is lost.

A server that ends may take with it what it had not put on its medium, although it had answered. The next flush, by the
server that comes after it, would succeed all the same, and the promise of a flush would be broken. So all that changes
data is kept, in the order of the answers, until a flush that began after its answer has succeeded.

This works only for one who has the export to himself: what is done once more must not undo the writes of another.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final, NamedTuple

MAX_ENTRIES: Final = 65536


class Entry(NamedTuple):
    """A request that was answered: as in nbd_connection.Request, ``data`` with a copy of what was written."""

    number: int
    kind: int
    offset: int
    length: int
    flags: int
    data: bytes


class Journal:
    """``limit``: bytes of data to keep. Any number of threads may be in it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque()
        self._number = 0
        self._bytes = 0

    def add(self, kind: int, offset: int, length: int, flags: int, data: memoryview | None) -> None:
        """Keep it."""
        kept = b"" if data is None else bytes(data)
        with self._lock:
            self._number += 1
            self._entries.append(Entry(self._number, kind, offset, length, flags, kept))
            self._bytes += len(kept)

    @property
    def full(self) -> bool:
        """Whether a flush has to come before more is added."""
        return bool(self._entries) and (self._bytes >= self.limit or len(self._entries) >= MAX_ENTRIES)

    def mark(self) -> int:
        """For ``forget``: asked before a flush is sent."""
        with self._lock:
            return self._number

    def forget(self, mark: int) -> None:
        """Everything up to ``mark`` is on the medium."""
        with self._lock:
            while self._entries and self._entries[0].number <= mark:
                self._bytes -= len(self._entries.popleft().data)

    def entries(self) -> list[Entry]:
        """What to do once more, in this order."""
        with self._lock:
            return list(self._entries)
