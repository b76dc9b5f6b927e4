"""Reference counts of the clusters of an image: who uses which, and where the next free one is.

On disk a table names blocks, each of them a cluster of counts 1 to 64 bits wide. The table is in memory, of the blocks
as many as ``capacity`` allows, as they lie on disk.

The rule that makes a crash harmless: **a count on disk is never lower than the references on disk.** It is raised
before the reference is written, which is why a checkpoint begins with what ``take`` answers, and lowered (``lower``)
only after the reference is gone from the medium. So a crash can leave a cluster counted that nobody uses, a leak, and
never a cluster used that is not counted.

Not safe for threads: the image has a lock around it.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable
from itertools import islice
from typing import NoReturn, Protocol

from iscsid.plugin import BlockError, Fault

from .qcow2_format import MAX_REFTABLE_BYTES, OFFSET_MASK, Header
from .qcow2_storage import Storage

RESERVED = 0x1FF  # of a refcount table entry
#: A cluster number behind this cannot be written in an L2 entry (bits 9 to 55).
MAX_OFFSET = 1 << 56
#: Tables that are guarded against being given out, at most; an image has more of them only beyond many TiB.
MAX_GUARDED = 1 << 17


class Write(Protocol):
    """How a block comes onto the disk right now."""

    def __call__(self, data: bytes | bytearray, offset: int, /) -> None: ...


def _empty_field(bits: int) -> re.Pattern[bytes]:
    """A byte in which one field of ``bits`` (at most 8) is zero."""
    mask = (1 << bits) - 1
    found = [byte for byte in range(256) if any(not byte >> shift & mask for shift in range(0, 8, bits))]
    return re.compile(b"[" + b"".join(b"\\x%02x" % byte for byte in found) + b"]")


class Refcounts:
    """The reference counts of an image whose header is ``header``.

    ``switch(offset, clusters)`` writes the place of a new refcount table into the header, durably; ``forbidden`` tells
    whether a cluster holds something that must never be given out; ``damaged(words)`` raises where the counts make no
    sense.
    """

    def __init__(
        self,
        storage: Storage,
        header: Header,
        capacity: int,
        switch: Callable[[int, int], None],
        forbidden: Callable[[int], bool],
        damaged: Callable[[str], NoReturn],
    ) -> None:
        self._storage = storage
        self._header = header
        self._switch = switch
        self._forbidden = forbidden
        self._damaged = damaged
        self.capacity = max(capacity, 2)
        bits = header.refcount_bits
        self.maximum = (1 << min(bits, 63)) - 1
        self.per_block = header.cluster_size * 8 // bits
        self._width = bits // 8  # bytes; 0 for counts below a byte
        self._gap = None if bits > 8 else _empty_field(bits)
        self.table = array("Q", storage.read(header.reftable_offset, header.reftable_clusters * header.cluster_size))
        self.table.byteswap()
        self._blocks: dict[int, bytearray] = {}
        self.dirty: set[int] = set()
        self.pinned: set[int] = set()
        self._guarded: set[int] = set()
        self.guard(entry >> header.cluster_bits for entry in self.table if entry)
        self.hint = 1  # no free cluster below

    # Blocks.

    def place_of(self, index: int) -> int:
        """Where block ``index`` lies, 0 when there is none, -1 when the table makes no sense there."""
        if index >= len(self.table):
            return 0
        entry = self.table[index]
        if entry & RESERVED or entry >= MAX_OFFSET or entry & (self._header.cluster_size - 1):
            return -1
        return -1 if entry and entry >= self._storage.size else entry

    def senseless(self, index: int) -> str:
        """What is wrong where ``place_of`` is -1."""
        return f"entry {index} of the refcount table, {self.table[index]:#x}, makes no sense"

    def block(self, index: int) -> bytearray | None:
        """Block ``index`` as it lies on disk, None when there is none. Whoever changes it adds it to ``dirty``."""
        found = self._blocks.get(index)
        if found is None and (offset := self.place_of(index)):
            if offset < 0:
                self._damaged(self.senseless(index))
            self._make_room()
            found = self._blocks[index] = self._storage.read(offset, self._header.cluster_size)
        return found

    def _make_room(self) -> None:
        if len(self._blocks) >= self.capacity:
            for index in list(self._blocks):
                if index not in self.dirty and index not in self.pinned:
                    del self._blocks[index]
                    return

    @property
    def pressed(self) -> bool:
        """Whether so much has been changed that a checkpoint should make room."""
        return len(self.dirty) * 2 > self.capacity

    def guard(self, clusters: Iterable[int]) -> None:
        """These hold tables: should they be counted as free, they are not given out all the same."""
        self._guarded.update(islice(clusters, max(0, MAX_GUARDED - len(self._guarded))))

    # Counts.

    def get(self, cluster: int) -> int:
        """How often ``cluster`` is referenced."""
        index, field = divmod(cluster, self.per_block)
        block = self.block(index)
        return 0 if block is None else self._field(block, field)

    def _field(self, block: bytearray, field: int) -> int:
        width = self._width
        if width:
            return int.from_bytes(block[field * width : field * width + width], "big")
        bits = self._header.refcount_bits
        byte, shift = divmod(field * bits, 8)
        return block[byte] >> shift & ((1 << bits) - 1)

    def set(self, cluster: int, value: int) -> None:
        """Set one count; its block must be there."""
        index, field = divmod(cluster, self.per_block)
        block = self.block(index)
        if block is None:
            self._damaged(f"cluster {cluster} is in use, and nothing counts it")
        width = self._width
        if width:
            block[field * width : field * width + width] = value.to_bytes(width, "big")
        else:
            bits = self._header.refcount_bits
            byte, shift = divmod(field * bits, 8)
            block[byte] = block[byte] & ~(((1 << bits) - 1) << shift) & 0xFF | value << shift
        self.dirty.add(index)
        if not value:
            self._guarded.discard(cluster)

    def raise_(self, cluster: int) -> None:
        """Count one reference more. Raises BlockError when the width of the counts does not allow it."""
        value = self.get(cluster)
        if value >= self.maximum:
            words = (
                f"cluster {cluster} is referenced {value} times, the most that {self._header.refcount_bits} bits hold"
            )
            raise BlockError(Fault.UNSUPPORTED, f"{self._storage.name}: {words}")
        self.set(cluster, value + 1)

    def lower(self, cluster: int) -> bool:
        """Count one reference less; whether the cluster is free now. One that is not counted is left as it is."""
        value = self.get(cluster)
        if not value:
            return False  # the image was not sound; a check tells, and nothing gets worse here
        self.set(cluster, value - 1)
        if value == 1:
            self.hint = min(self.hint, cluster)
        return value == 1

    # Allocation.

    def allocate(self, count: int, *, whole: bool = False) -> tuple[int, int]:
        """Take up to ``count`` clusters in a row (exactly so many, if ``whole``): the first, and how many.

        Their counts are 1 in memory at the return, and have to be on disk before anything refers to them.
        """
        if whole and count > 1:
            row = self._find_row(count)
            start, run = self._new_row(count) if row is None else row, count
        else:
            start = self._next_free(self.hint)
            run = self._run(start, count)
        if (start + run) << self._header.cluster_bits > MAX_OFFSET:
            raise BlockError(Fault.NO_SPACE, f"{self._storage.name}: the format has no room for more clusters")
        for cluster in range(start, start + run):
            if cluster in self._guarded or self._forbidden(cluster):
                self._damaged(f"cluster {cluster} is counted as free, but holds metadata")
        for cluster in range(start, start + run):
            self.set(cluster, 1)
        if not whole or start == self.hint:
            self.hint = start + run
        return start, run

    def _find_row(self, count: int) -> int | None:
        """The first of ``count`` free clusters in a row, among those that blocks count already."""
        cluster = self.hint
        while (block := self.block(cluster // self.per_block)) is not None:
            index, field = divmod(cluster, self.per_block)
            free = self._find(block, field)
            if free < 0:
                cluster = (index + 1) * self.per_block
                continue
            start = index * self.per_block + free
            run = self._run(start, count)
            if run == count:
                return start
            cluster = start + run
        return None

    def _new_row(self, count: int) -> int:
        """Clusters behind all that is in use, with the blocks that count them in front of all of them."""
        blocks = -(-count // (self.per_block - 1))
        while (index := self._end_index()) + blocks > len(self.table):
            self.grow_table(index + blocks)
        start = index * self.per_block
        for number in range(blocks):
            self.add_block_at(index + number, start + number)
        for number in range(blocks):
            self.set(start + number, 1)
        for number in range(blocks):
            self.dirty.discard(index + number)
            self._write_block(index + number)
        self._link(index, blocks)
        return start + blocks

    def _end_index(self) -> int:
        """The first block from which on there are neither blocks nor clusters in the file."""
        used = len(self.table)
        while used and not self.table[used - 1]:
            used -= 1
        return max(used, -(-self._storage.size // (self._header.cluster_size * self.per_block)))

    def _next_free(self, cluster: int) -> int:
        """The first free cluster from ``cluster`` on; its refcount block is there at the return."""
        while True:
            index, field = divmod(cluster, self.per_block)
            block = self.block(index)
            if block is None:
                self._add_block(index)
                continue
            free = self._find(block, field)
            if free >= 0:
                return index * self.per_block + free
            cluster = (index + 1) * self.per_block

    def _find(self, block: bytearray, field: int) -> int:
        """The first zero in ``block`` from ``field`` on, -1 when there is none."""
        width = self._width
        if self._gap is None:
            at, zero = field * width, bytes(width)
            while (at := block.find(zero, at)) >= 0 and at % width:
                at += 1
            return -1 if at < 0 else at // width
        per_byte = 8 // self._header.refcount_bits
        at = field // per_byte
        while (match := self._gap.search(block, at)) is not None:
            at = match.start()
            for candidate in range(max(at * per_byte, field), (at + 1) * per_byte):
                if not self._field(block, candidate):
                    return candidate
            at += 1
        return -1

    def _run(self, start: int, count: int) -> int:
        """How many free clusters follow each other from ``start`` on, at most ``count`` and within one block."""
        index, field = divmod(start, self.per_block)
        block = self.block(index)
        run = 1
        limit = min(count, self.per_block - field)
        while block is not None and run < limit and not self._field(block, field + run):
            run += 1
        if run < count and field + run == self.per_block and run == limit:
            return run + self._run_on(start + run, count - run)
        return run

    def _run_on(self, start: int, count: int) -> int:
        """The run goes on in the next block, which is made where there is none, and cannot begin it then."""
        block = self.block(start // self.per_block)
        if block is None or self._field(block, 0):
            return 0
        return self._run(start, count)

    # Growth. Rare, and therefore done at once: everything is on the medium before it is pointed at.

    def _add_block(self, index: int) -> None:
        """Make refcount block ``index``; it takes the first of the clusters that it counts."""
        if index >= len(self.table):
            self.grow_table(index + 1)
            if self.table[index]:
                return
        cluster = index * self.per_block
        if self._forbidden(cluster):
            self._damaged(f"cluster {cluster} is not counted, but holds metadata")
        self.add_block_at(index, cluster)
        self.set(cluster, 1)
        self.dirty.discard(index)
        self._write_block(index)
        self._link(index, 1)

    def add_block_at(self, index: int, cluster: int) -> None:
        """An empty block ``index`` in memory, to lie at ``cluster``."""
        self._make_room()
        self._blocks[index] = bytearray(self._header.cluster_size)
        self.table[index] = cluster << self._header.cluster_bits
        self.guard((cluster,))
        self.dirty.add(index)  # so that it is not dropped before it has been written

    def _write_block(self, index: int) -> None:
        self._storage.write(self._blocks[index], self.table[index])

    def _link(self, index: int, count: int) -> None:
        """Point the table on disk at ``count`` blocks that are written."""
        self._storage.sync()
        at = self._header.reftable_offset + index * 8
        self._storage.write(self.table_bytes()[index * 8 : (index + count) * 8], at)

    def grow_table(self, entries: int) -> None:
        """A larger table, behind everything that is in use, with the blocks that count it; then the old one goes."""
        bits, size = self._header.cluster_bits, self._header.cluster_size
        old = self._header.reftable_offset >> bits, self._header.reftable_clusters
        first_index = max(len(self.table), entries, self._end_index())
        start = first_index * self.per_block
        wanted = max(entries, len(self.table) * 2, first_index + 1)
        while True:
            clusters = -(-wanted * 8 // size)
            blocks = -(-clusters // max(self.per_block - 1, 1)) + 1
            if first_index + blocks <= clusters * size // 8:
                break
            wanted = first_index + blocks + 1
        if clusters * size > MAX_REFTABLE_BYTES:
            raise BlockError(Fault.NO_SPACE, f"{self._storage.name}: the refcount table cannot become larger")
        self.table.extend([0] * (clusters * size // 8 - len(self.table)))
        used = range(start, start + blocks + clusters)
        for index in range(first_index, (used.stop - 1) // self.per_block + 1):
            self.add_block_at(index, start + index - first_index)
        made = (used.stop - 1) // self.per_block + 1 - first_index
        for cluster in [*range(start, start + made), *range(start + blocks, used.stop)]:
            self.set(cluster, 1)
        for index in range(first_index, first_index + made):
            self.dirty.discard(index)
            self._write_block(index)
        self._storage.write(self.table_bytes(), (start + blocks) << bits)
        self._storage.sync()
        self._switch((start + blocks) << bits, clusters)
        for cluster in range(old[0], old[0] + old[1]):
            self.lower(cluster)

    def table_bytes(self) -> bytes:
        """The table as it lies on disk."""
        copy = array("Q", self.table)
        copy.byteswap()
        return copy.tobytes()

    # Checkpoints.

    def take(self) -> list[tuple[int, int, bytes]]:
        """Index, place and content of all changed blocks, which count as clean now but stay until ``done``."""
        taken = [(index, self.table[index], bytes(self._blocks[index])) for index in sorted(self.dirty)]
        self.pinned |= self.dirty
        self.dirty.clear()
        return taken

    def done(self, indexes: Iterable[int], *, failed: bool = False) -> None:
        """The end of a checkpoint that took ``indexes``; when it has ``failed`` they have to be written again."""
        indexes = set(indexes)
        self.pinned -= indexes
        if failed:
            self.dirty |= indexes
        while len(self._blocks) > self.capacity and any(i not in self.dirty | self.pinned for i in self._blocks):
            self._make_room()

    def check_offset(self, offset: int) -> bool:
        """Whether ``offset`` can be that of a cluster."""
        return not offset & (self._header.cluster_size - 1) and 0 < offset <= OFFSET_MASK
