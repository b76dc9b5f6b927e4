"""L1 and L2 tables: where in the file each cluster of the disk lies.

The L1 table is in memory. L2 tables come in slices of at most 4 KiB, decoded into arrays of native integers, so that a
lookup is a dict access and an index; ``slices`` may be read without a lock (see qcow2_image). Changes stay in memory
until a checkpoint takes them. A range without an L2 table has the one empty slice that all such ranges share.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import NoReturn

from .qcow2_format import COPIED, OFFSET_MASK, Header
from .qcow2_storage import Storage

SLICE_BYTES = 4096
_SECTOR = 512


class Mapping:
    """The active tables of an image.

    ``allocate_table()`` answers the offset of a new cluster of zeros for an L2 table, ``release(offset)`` gives one
    back when the checkpoint after this has made sure that nothing on the medium refers to it. ``damaged(words)`` raises
    where a table makes no sense.
    """

    def __init__(
        self,
        storage: Storage,
        header: Header,
        capacity_bytes: int,
        allocate_table: Callable[[], int],
        release: Callable[[int], None],
        damaged: Callable[[str], NoReturn],
    ) -> None:
        self._storage = storage
        self._header = header
        self._allocate_table = allocate_table
        self._release = release
        self._damaged = damaged
        self.slice_bytes = min(header.cluster_size, SLICE_BYTES)
        self.words = header.l2_entry_size // 8  # of an entry
        self.slice_clusters = self.slice_bytes // header.l2_entry_size
        self.shift = self.slice_clusters.bit_length() - 1
        self._per_table = header.cluster_size // self.slice_bytes
        self.capacity = max(8, capacity_bytes // self.slice_bytes)
        self.empty = array("Q", bytes(self.slice_bytes))
        self.slices: dict[int, array[int]] = {}
        self.dirty: set[int] = set()
        self.pinned: set[int] = set()
        self.dirty_l1: set[int] = set()
        self.l1 = read_table(storage, header.l1_offset, header.l1_size)

    # L1.

    def l2_offset(self, index: int) -> int:
        """Where the L2 table of L1 entry ``index`` lies, 0 when there is none; checked."""
        place = l2_place(self._storage, self._header, self.l1[index])
        return self._damaged(senseless(index, self.l1[index])) if place < 0 else place

    def replace_l1(self, l1: array[int]) -> None:
        """Another L1 table has become the active one, on the medium too."""
        self.l1 = l1
        self.dirty_l1.clear()
        self.forget()

    def forget(self) -> None:
        """Drop every slice; none may be dirty."""
        self.slices.clear()

    # Slices.

    def load(self, key: int) -> array[int]:
        """Slice ``key``: the one of cluster ``key << shift`` of the disk and those that follow it."""
        found = self.slices.get(key)
        if found is not None:
            return found
        index, part = divmod(key, self._per_table)
        offset = self.l2_offset(index)
        if not offset:
            table = self.empty
        else:
            table = array("Q", bytes(self._storage.read(offset + part * self.slice_bytes, self.slice_bytes)))
            table.byteswap()
        self._make_room()
        self.slices[key] = table
        return table

    def writable(self, key: int) -> array[int]:
        """As ``load``, to be changed; the L2 table is made, or copied where a snapshot has it too."""
        index = key // self._per_table
        if not self.l1[index] & COPIED:
            self._own_table(index)
        table = self.load(key)
        if table is self.empty:
            table = self.slices[key] = array("Q", self.empty)
        self.dirty.add(key)
        return table

    def _own_table(self, index: int) -> None:
        old = self.l2_offset(index)
        new = self._allocate_table()
        if old:
            self._storage.write(self._storage.read(old, self._header.cluster_size), new)
            self._release(old)
        self.l1[index] = new | COPIED
        self.dirty_l1.add(index)

    def drop_table(self, index: int) -> None:
        """L1 entry ``index`` has no L2 table any more; what that referred to is the caller's."""
        old = self.l2_offset(index)
        if old:
            self._release(old)
            self.l1[index] = 0
            self.dirty_l1.add(index)
        for key in range(index * self._per_table, (index + 1) * self._per_table):
            self.slices.pop(key, None)
            self.dirty.discard(key)

    def keys_of(self, index: int) -> range:
        """The slices of L1 entry ``index``."""
        return range(index * self._per_table, (index + 1) * self._per_table)

    def _make_room(self) -> None:
        """The slice that was loaded first goes. One that may not go yet gets a new place in the queue."""
        slices = self.slices
        for _ in range(len(slices)):
            if len(slices) < self.capacity:
                return
            key = next(iter(slices))
            table = slices.pop(key)
            if key in self.dirty or key in self.pinned:
                slices[key] = table

    @property
    def pressed(self) -> bool:
        """Whether so much has been changed that a checkpoint should make room."""
        return len(self.dirty) * 2 > self.capacity

    # Checkpoints.

    def take(self) -> tuple[list[tuple[int, int, bytes]], list[tuple[int, bytes]]]:
        """All that has changed and counts as clean from now on: L2 as (key, offset, content), L1 as (offset, content).

        L2 slices have to be on the medium before L1 is written. They stay in memory until ``done``.
        """
        taken = []
        for key in sorted(self.dirty):
            index, part = divmod(key, self._per_table)
            offset = (self.l1[index] & OFFSET_MASK) + part * self.slice_bytes
            taken.append((key, offset, big_endian(self.slices[key])))
        self.pinned |= self.dirty
        self.dirty.clear()
        per_sector = _SECTOR // 8
        sectors = sorted({index // per_sector for index in self.dirty_l1})
        self.dirty_l1.clear()
        l1 = []
        for sector in sectors:
            part_of_l1 = self.l1[sector * per_sector : (sector + 1) * per_sector]
            l1.append((self._header.l1_offset + sector * _SECTOR, big_endian(part_of_l1)))
        return taken, l1

    def done(self, keys: Iterable[int], l1: Iterable[int] = (), *, failed: bool = False) -> None:
        """The end of a checkpoint that took the slices ``keys`` and the L1 table at the offsets ``l1``."""
        keys = set(keys)
        self.pinned -= keys
        if failed:
            self.dirty |= keys & self.slices.keys()
            for offset in l1:
                first = (offset - self._header.l1_offset) // 8
                self.dirty_l1 |= set(range(first, min(first + _SECTOR // 8, len(self.l1))))
        self._make_room()


def big_endian(table: array[int]) -> bytes:
    """``table`` as it lies on disk."""
    copy = array("Q", table)
    copy.byteswap()
    return copy.tobytes()


def read_table(storage: Storage, offset: int, entries: int) -> array[int]:
    """A table of ``entries`` numbers, whose place has been checked."""
    table = array("Q", bytes(storage.read(offset, entries * 8)))
    table.byteswap()
    return table


def l2_place(storage: Storage, header: Header, entry: int) -> int:
    """Where an L1 entry says that its L2 table lies; 0 when there is none, -1 when it makes no sense."""
    offset = entry & OFFSET_MASK
    if entry & ~(COPIED | OFFSET_MASK) or offset & (header.cluster_size - 1):
        return -1
    if offset and offset + header.cluster_size > -(-storage.size // header.cluster_size) * header.cluster_size:
        return -1
    return offset


def senseless(index: int, entry: int) -> str:
    """What is wrong where ``l2_place`` is -1."""
    return f"entry {index} of the L1 table, {entry:#x}, makes no sense"
