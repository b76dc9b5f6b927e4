"""An open image: its header, its tables, and the checkpoint that brings what has changed onto the medium.

Data goes to the file at once, into clusters to which nothing on the medium refers yet; all changes of tables stay in
memory until a checkpoint. It writes them in the one order that a crash between any two writes cannot hurt:

1. reference counts that have risen; 2. barrier, for them and for all data; 3. L2 tables; 4. barrier; 5. L1 entries;
6. barrier. Only then the counts of what is no longer referred to are lowered, and the clusters may be used again.

So after a crash the medium shows the state of one checkpoint, or of one and parts of the next, and at worst clusters
that are counted and not used. A flush is a checkpoint. It keeps nobody from reading or writing: what it writes is
copied under ``lock``, and written and waited for without it.

``lock`` is around every change in memory. Looking up a slice that is in memory takes none (see qcow2_gate).
"""

from __future__ import annotations

import contextlib
import threading
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from iscsid.plugin import BlockError, Device, Fault

from .qcow2_compress import Decompressor
from .qcow2_format import (
    COMPRESSED,
    COPIED,
    CORRUPT,
    DIRTY,
    KNOWN_INCOMPATIBLE,
    MAX_SNAPSHOT_TABLE,
    OFFSET_MASK,
    RAW_DATA,
    ZERO,
    Header,
    Snapshot,
    clusters_of,
    compressed_place,
    parse_snapshots,
)
from .qcow2_gate import Gate
from .qcow2_mapping import Mapping, big_endian
from .qcow2_refcounts import Refcounts
from .qcow2_storage import Storage

L2_CACHE = 32 << 20
REFCOUNT_CACHE = 4 << 20
#: Clusters given back that may wait for a checkpoint before one is made.
MAX_FREED = 65536


@dataclass(slots=True)
class _Batch:
    """What one checkpoint writes."""

    blocks: list[tuple[int, int, bytes]]
    slices: list[tuple[int, int, bytes]]
    l1: list[tuple[int, bytes]]
    freed: list[int]
    age: int


@dataclass(slots=True)
class Limits:
    """How much memory an image may take for its tables, in bytes."""

    l2_cache: int = L2_CACHE
    refcount_cache: int = REFCOUNT_CACHE


class Image:
    """An image over ``storage``; ``data`` holds the clusters (the same, or an external data file).

    ``backing`` shows what is not allocated here. The object owns all three. ``writing`` tells that it may be changed:
    then the storages are held for writing, and what has to be done before the first change has been done by
    ``prepare_writing``.
    """

    def __init__(
        self,
        header: Header,
        storage: Storage,
        data: Storage | None = None,
        backing: Device | None = None,
        *,
        writing: bool = False,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self.header = header
        self.storage = storage
        self.data = data or storage
        self.external = data is not None
        self.backing = backing
        self.writing = writing
        self.name = storage.name
        self.size = header.size
        self.cluster_size = header.cluster_size
        self.extended = header.extended
        self.lock = threading.RLock()
        self.gate = Gate()
        self._flush_lock = threading.RLock()
        self._freed: list[int] = []
        self._waiting: list[tuple[int, list[int]]] = []
        self.decompressor = Decompressor(self.name, header.compression, header.cluster_size)
        capacity = max(4, limits.refcount_cache // header.cluster_size)
        self.refs = Refcounts(storage, header, capacity, self._switch_reftable, self.is_metadata, self.damaged)
        self.mapping = Mapping(storage, header, limits.l2_cache, self._allocate_table, self.free, self.damaged)
        self.snapshots: list[Snapshot] = []
        self.snapshot_bytes = 0
        if header.nb_snapshots:
            room = min(MAX_SNAPSHOT_TABLE, max(storage.size - header.snapshots_offset, 0), header.nb_snapshots << 18)
            table = bytes(storage.read(header.snapshots_offset, room))
            self.snapshots, self.snapshot_bytes = parse_snapshots(table, header, self.name, storage.size)
        self._fixed_metadata: list[range] = []
        self.note_metadata()
        if writing:
            self.refs.guard((entry & OFFSET_MASK) >> header.cluster_bits for entry in self.mapping.l1 if entry)
        #: No cluster of data lies at or behind it: a multiple of the cluster size.
        self.limit = 0
        self.note_limit(max(self.data.size, self.size if self.external else 0))

    def note_limit(self, end: int) -> None:
        """The file of the data, or what may be used of it, goes as far as ``end``."""
        self.limit = max(self.limit, -(-end // self.cluster_size) * self.cluster_size)

    # What is where.

    def note_metadata(self) -> None:
        """Remember the clusters of the tables that may never be given out."""
        header, bits = self.header, self.header.cluster_bits

        def span(offset: int, length: int) -> range:
            return range(offset >> bits, (offset + length + self.cluster_size - 1) >> bits) if length else range(0)

        found = [
            range(1),
            span(header.l1_offset, header.l1_size * 8),
            span(header.reftable_offset, header.reftable_clusters << bits),
            span(header.snapshots_offset, self.snapshot_bytes),
        ]
        found += [span(snapshot.l1_offset, snapshot.l1_size * 8) for snapshot in self.snapshots]
        self._fixed_metadata = [part for part in found if part]

    def is_metadata(self, cluster: int) -> bool:
        """Whether ``cluster`` of the file holds the header or one of the fixed tables."""
        return any(cluster in part for part in self._fixed_metadata)

    def entry(self, cluster: int) -> tuple[int, int]:
        """L2 entry and subcluster bitmap of a cluster of the disk; the bitmap is 0 where there are no subclusters."""
        mapping = self.mapping
        index = cluster & (mapping.slice_clusters - 1)
        key = cluster >> mapping.shift
        if self.extended:
            with self.lock:
                table = mapping.load(key)
                return table[2 * index], table[2 * index + 1]
        found = mapping.slices.get(key)
        if found is None:
            with self.lock:
                found = mapping.load(key)
        return found[index], 0

    def host_of(self, entry: int) -> int:
        """Where the cluster of an uncompressed L2 entry lies in ``data``, -1 when it has none; checked."""
        host = entry & OFFSET_MASK
        if host & (self.cluster_size - 1) or entry & ~(COPIED | OFFSET_MASK | ZERO):
            self.damaged(f"the L2 entry {entry:#x} makes no sense")
        if not host and not (self.external and entry & COPIED):
            return -1
        return host

    def set_entry(self, cluster: int, entry: int, bitmap: int = 0) -> None:
        """Change an L2 entry, under ``lock``. The host cluster is written before the bitmap: see ``read_nowait``."""
        mapping = self.mapping
        table = mapping.writable(cluster >> mapping.shift)
        index = cluster & (mapping.slice_clusters - 1)
        if self.extended:
            table[2 * index] = entry
            table[2 * index + 1] = bitmap
        else:
            table[index] = entry

    def compressed(self, entry: int) -> bytes:
        """The content of a compressed cluster."""
        offset, length = compressed_place(entry, self.header.cluster_bits)
        if offset >= self.storage.size:
            self.damaged(f"the compressed cluster at {offset:#x} lies behind the end of the file")
        return self.decompressor.cluster(entry, lambda: self.storage.read(offset, length))

    def damaged(self, words: str) -> NoReturn:
        """The tables contradict themselves: say so, and in an image that is written see that nobody goes on."""
        if self.writing and self.header.version > 2:
            with self.lock, contextlib.suppress(OSError, BlockError):
                self.header.incompatible |= CORRUPT
                self.write_header()
        self.writing = False
        raise BlockError(Fault.READ_ERROR, f"{self.name} is corrupt: {words}")

    # Clusters.

    def allocate(self, count: int) -> tuple[int, int]:
        """Up to ``count`` new clusters in a row: offset of the first, and how many. Under ``lock``."""
        self.mark_dirty()
        first, got = self.refs.allocate(count)
        offset = first << self.header.cluster_bits
        self.note_limit(offset + got * self.cluster_size)
        return offset, got

    def allocate_whole(self, length: int) -> int:
        """New clusters in a row for ``length`` bytes of a table; they read as zeros. The offset of the first."""
        self.mark_dirty()
        count = max(1, -(-length // self.cluster_size))
        first, _ = self.refs.allocate(count, whole=True)
        offset = first << self.header.cluster_bits
        self.storage.zero(offset, count * self.cluster_size)
        if self.storage.size < offset + count * self.cluster_size:
            self.storage.truncate(offset + count * self.cluster_size)
        return offset

    def _allocate_table(self) -> int:
        offset = self.allocate_whole(self.cluster_size)
        self.refs.guard((offset >> self.header.cluster_bits,))
        return offset

    def free(self, offset: int) -> None:
        """Give back the cluster at ``offset``, once nothing on the medium refers to it any more. Under ``lock``."""
        self._freed.append(offset >> self.header.cluster_bits)

    def free_entry(self, entry: int) -> None:
        """Give back what an L2 entry refers to. Under ``lock``."""
        if entry & COMPRESSED:
            self._freed += clusters_of(*compressed_place(entry, self.header.cluster_bits), self.header.cluster_bits)
        elif (host := self.host_of(entry)) >= 0:
            if self.external:
                if not self.header.raw_data:
                    self.data.zero(host, self.cluster_size)
            else:
                self._freed.append(host >> self.header.cluster_bits)

    # The header.

    def write_header(self) -> None:
        """Put the fixed part of the header on the medium: one sector, which is old or new after a crash."""
        self.storage.write(self.header.fixed(), 0)
        self.storage.sync()

    def _switch_reftable(self, offset: int, clusters: int) -> None:
        self.header.reftable_offset, self.header.reftable_clusters = offset, clusters
        self.write_header()
        self.note_metadata()

    def switch_l1(self, l1: array[int], size: int) -> None:
        """Make ``l1`` the active L1 table of a disk of ``size`` bytes, in one step. Under ``alone``."""
        old = self.header.l1_offset, self.header.l1_size * 8
        offset = self.allocate_whole(max(len(l1), 1) * 8)
        self.storage.write(big_endian(l1), offset)
        self.flush_counts()
        self.header.l1_offset, self.header.l1_size, self.header.size = offset, len(l1), size
        self.write_header()
        self.mapping.replace_l1(l1)
        self.size = size
        self.note_metadata()
        self._freed += clusters_of(*old, self.header.cluster_bits)

    def flush_counts(self) -> None:
        """Put the reference counts, as they are, and all that was written on the medium. Under ``lock``."""
        blocks = self.refs.take()
        try:
            for _, offset, content in blocks:
                self.storage.write(content, offset)
            self.barrier()
        except BaseException:
            self.refs.done([index for index, _, _ in blocks], failed=True)
            raise
        self.refs.done([index for index, _, _ in blocks])

    def mark_dirty(self) -> None:
        """Before the first change of an image with lazy reference counts: they may be wrong from now on."""
        if self.header.lazy and not self.header.incompatible & DIRTY:
            self.set_dirty(True)

    def set_dirty(self, dirty: bool) -> None:
        """Say in the header, durably, whether the reference counts may be wrong (version 3 only)."""
        if self.header.version > 2 and bool(self.header.incompatible & DIRTY) != dirty:
            self.header.incompatible ^= DIRTY
            self.write_header()

    def prepare_writing(self) -> None:
        """Before the first change: drop the features that writers have to know. Dirty images are repaired before."""
        unknown = self.header.autoclear & ~(RAW_DATA if self.header.external else 0)
        if unknown:
            self.header.autoclear &= ~unknown
            self.write_header()
        assert not self.header.incompatible & ~KNOWN_INCOMPATIBLE

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Have the image for oneself, with everything that was done before on the medium."""
        with self.gate.alone(), self._flush_lock, self.lock:
            self.checkpoint()
            yield

    # Checkpoints.

    def barrier(self) -> None:
        """All that was written is on the medium at the return."""
        if self.external:
            self.data.sync()
        self.storage.sync()

    def checkpoint(self) -> None:
        """Bring every change that was made before onto the medium; see the head of this module."""
        with self._flush_lock:
            with self.lock:
                batch = self._freeze()
            try:
                self._put(batch)
            except BaseException:
                with self.lock:
                    self._thaw(batch, failed=True)
                    self._freed = batch.freed + self._freed
                raise
            with self.lock:
                self._thaw(batch)
                if batch.freed:
                    self._waiting.append((batch.age, batch.freed))
                self._reuse()

    def _freeze(self) -> _Batch:
        slices, l1 = self.mapping.take()
        lazy = self.header.lazy and self.header.incompatible & DIRTY and not self.refs.pressed
        blocks = [] if lazy else self.refs.take()
        freed, self._freed = self._freed, []
        return _Batch(blocks, slices, l1, freed, self.gate.next_age())

    def _put(self, batch: _Batch) -> None:
        storage = self.storage
        for _, offset, content in batch.blocks:
            storage.write(content, offset)
        if batch.slices or batch.l1:
            self.barrier()
        for offset, content in joined((offset, content) for _, offset, content in batch.slices):
            storage.write(content, offset)
        if batch.l1:
            storage.sync()
            for offset, content in batch.l1:
                storage.write(content, offset)
        self.barrier()

    def _thaw(self, batch: _Batch, *, failed: bool = False) -> None:
        self.refs.done([index for index, _, _ in batch.blocks], failed=failed)
        self.mapping.done([key for key, _, _ in batch.slices], [offset for offset, _ in batch.l1], failed=failed)

    def _reuse(self) -> None:
        """Lower the counts of what nothing on the medium refers to and no operation under way can still touch."""
        free: list[int] = []
        while self._waiting and self.gate.gone(self._waiting[0][0]):
            free += [cluster for cluster in self._waiting.pop(0)[1] if self.refs.lower(cluster)]
        if free:
            self.decompressor.forget()
        bits = self.header.cluster_bits
        for first, count in spans(free):
            self.storage.zero(first << bits, count << bits)

    @property
    def given_back(self) -> int:
        """How many bytes of clusters wait to be given back to the file system."""
        waiting = len(self._freed) + sum(len(clusters) for _, clusters in self._waiting)
        return waiting << self.header.cluster_bits

    @property
    def pressed(self) -> bool:
        """Whether a checkpoint should make room in memory."""
        return self.mapping.pressed or self.refs.pressed or len(self._freed) > MAX_FREED

    def relieve(self) -> None:
        """To be called after an operation, by one that holds nothing."""
        if self.pressed:
            self.checkpoint()

    def close(self) -> None:
        """Bring everything onto the medium, and let go. Everything is closed even when that fails."""
        try:
            if self.writing:
                self._finish()
        finally:
            self.writing = False
            for part in (self.storage, self.data, self.backing):
                if part is not None:
                    part.close()

    def _finish(self) -> None:
        """Two checkpoints: the second has the counts that the first one has made free to be lowered."""
        self.checkpoint()
        self.checkpoint()
        with self.lock:
            if self.refs.dirty:
                self.flush_counts()
            if self.header.lazy:
                self.set_dirty(False)


def spans(clusters: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and number of each row of neighbours among ``clusters``."""
    first = count = 0
    for cluster in sorted(clusters):
        if count and cluster == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = cluster, 1
    if count:
        yield first, count


def joined(pieces: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Join pieces that follow each other, up to 1 MiB."""
    start, parts, length = 0, list[bytes](), 0
    for offset, content in pieces:
        if parts and offset == start + length and length < 1 << 20:
            parts.append(content)
            length += len(content)
            continue
        if parts:
            yield start, b"".join(parts)
        start, parts, length = offset, [content], len(content)
    if parts:
        yield start, b"".join(parts)
