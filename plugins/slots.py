"""The memory of a ``cache``: slots for blocks, and which block is in which.

It lies in a memfd that the supervisor holds. A table in it tells what each slot holds and whether that is dirty, newer
than the device below; so the dirty blocks of a worker that died are there for the next one. What was clean is
forgotten then, for nobody knows whether a write below had just made it old. Nothing here takes a lock.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict

_DIRTY = 1


class Slots:
    """``count`` slots of ``unit`` bytes in the memfd ``fd``, which the object owns."""

    def __init__(self, fd: int, unit: int, count: int) -> None:
        self.unit, self.count, self._fd = unit, count, fd
        self._data = -(-count * 8 // mmap.PAGESIZE) * mmap.PAGESIZE
        length = self._data + count * unit
        if os.fstat(fd).st_size < length:
            os.ftruncate(fd, length)
        self._map = mmap.mmap(fd, length)
        self._memory = memoryview(self._map)
        self._table = self._memory[: count * 8].cast("Q")  # (block + 1) * 2 + dirty; 0: nothing
        self._of: OrderedDict[int, int] = OrderedDict()  # block -> slot, the one used longest ago first
        self._free: list[int] = []
        self._stamps = [0] * count  # counts the writes into a slot
        self.dirty: set[int] = set()  # blocks
        for slot in range(count - 1, -1, -1):
            entry = self._table[slot]
            if entry & _DIRTY:
                self._of[(entry >> 1) - 1] = slot
                self.dirty.add((entry >> 1) - 1)
            else:
                self._table[slot] = 0
                self._free.append(slot)

    def __contains__(self, block: int) -> bool:
        return block in self._of

    def __len__(self) -> int:
        return len(self._of)

    def get(self, block: int) -> memoryview | None:
        """The block's memory, if it is here; it has been used now."""
        slot = self._of.get(block)
        if slot is None:
            return None
        self._of.move_to_end(block)
        return self._slice(slot)

    def within(self, first: int, last: int) -> list[int]:
        """The blocks that are here from ``first`` to ``last``."""
        return [block for block in self._of if first <= block <= last]

    def _slice(self, slot: int) -> memoryview:
        start = self._data + slot * self.unit
        return self._memory[start : start + self.unit]

    def room(self, blocks: int) -> bool:
        """Whether as many blocks more can be put here, clean ones making room for them."""
        return len(self._free) + len(self._of) - len(self.dirty) >= blocks

    def put(self, block: int, data: memoryview, *, dirty: bool) -> bool:
        """Keep all of a block; False when there is no room for it."""
        slot = self._of.get(block)
        if slot is None:
            slot = self._take()
            if slot is None:
                return False
        self._slice(slot)[: len(data)] = data
        self._of[block] = slot
        self._of.move_to_end(block)
        self._note(block, slot, dirty)
        return True

    def patch(self, block: int, data: memoryview, at: int) -> None:
        """Change a part of a block that is here; it is dirty then."""
        slot = self._of[block]
        self._slice(slot)[at : at + len(data)] = data
        self._note(block, slot, dirty=True)

    def _note(self, block: int, slot: int, dirty: bool) -> None:
        self._stamps[slot] += 1
        self._table[slot] = (block + 1) << 1 | dirty  # after the data: what the table tells of is whole
        if dirty:
            self.dirty.add(block)

    def stamp(self, block: int) -> int:
        """Another number whenever the block has been written."""
        return self._stamps[self._of[block]]

    def cleaned(self, block: int, stamp: int) -> None:
        """The device below has the block, as it was with this stamp."""
        slot = self._of.get(block)
        if slot is not None and self._stamps[slot] == stamp:
            self._table[slot] = (block + 1) << 1
            self.dirty.discard(block)

    def drop(self, block: int) -> None:
        """Forget the block, dirty or not."""
        slot = self._of.pop(block, None)
        if slot is not None:
            self._table[slot] = 0
            self._stamps[slot] += 1
            self.dirty.discard(block)
            self._free.append(slot)

    def _take(self) -> int | None:
        """A slot for another block: a free one, or that of the clean block used longest ago."""
        if not self._free:
            victim = next((block for block in self._of if block not in self.dirty), None)
            if victim is None:
                return None
            self.drop(victim)
        return self._free.pop()

    def close(self) -> None:
        """The mapping goes with the last slice of it."""
        del self._table, self._memory, self._map
        os.close(self._fd)
