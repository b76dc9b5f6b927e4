"""Checking an image: what every table refers to is counted and compared with the reference counts; and repairing it.

``check`` reads and tells. ``repair`` makes the counts and the COPIED flags what they have to be; it is what opening an
image does that was not closed (the dirty bit), and cannot mend entries that make no sense. Memory is bounded by
``MAX_CHUNKS``, whatever an image claims.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

from iscsid.plugin import BlockError, Fault

from .qcow2_format import (
    BITMAPS,
    COMPRESSED,
    COPIED,
    EXT_BITMAPS,
    OFFSET_MASK,
    ZERO,
    clusters_of,
    compressed_place,
)
from .qcow2_image import Image
from .qcow2_mapping import l2_place, read_table, senseless

CHUNK = 1024
MAX_CHUNKS = 1 << 18  # of 4 KiB each: 1 GiB, or 268 million clusters if they lie together
MAX_WORDS = 50  # problems that are told one by one
_DIRECTORY = struct.Struct(">QIIBBHI")


@dataclass(slots=True)
class Report:
    """What a check has found. ``words`` tells of the first problems."""

    clusters: int = 0  # of the disk that are allocated
    compressed: int = 0
    leaks: int = 0  # clusters that are counted and not used
    wrong_counts: int = 0  # clusters that are used more often than counted
    wrong_flags: int = 0  # entries whose COPIED flag is wrong
    errors: int = 0  # entries that make no sense
    words: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not (self.wrong_counts or self.wrong_flags or self.errors)

    def tell(self, words: str) -> None:
        if len(self.words) < MAX_WORDS:
            self.words.append(words)


class Counts:
    """References to clusters, in memory for those parts of the file that are referred to."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.chunks: dict[int, array[int]] = {}

    def add(self, cluster: int) -> None:
        chunk = self.chunks.get(cluster // CHUNK)
        if chunk is None:
            if len(self.chunks) >= MAX_CHUNKS:
                raise BlockError(Fault.NO_RESOURCES, f"{self._name}: its clusters are too scattered to be counted")
            chunk = self.chunks[cluster // CHUNK] = array("I", bytes(4 * CHUNK))
        chunk[cluster % CHUNK] += 1

    def get(self, cluster: int) -> int:
        chunk = self.chunks.get(cluster // CHUNK)
        return 0 if chunk is None else chunk[cluster % CHUNK]

    @property
    def end(self) -> int:
        """No cluster from here on is referred to."""
        return (max(self.chunks, default=-1) + 1) * CHUNK


class Walk:
    """One pass over all tables of ``image``."""

    def __init__(self, image: Image, report: Report) -> None:
        self.image = image
        self.report = report
        self.counts = Counts(image.name)
        self.bits = image.header.cluster_bits
        size = image.storage.size
        self.end = -(-size // image.cluster_size) * image.cluster_size

    def run(self) -> Counts:
        """Count everything."""
        image, header = self.image, self.image.header
        self._range(0, image.cluster_size, "the header")
        self._range(header.reftable_offset, header.reftable_clusters << self.bits, "the refcount table")
        for index in range(len(image.refs.table)):
            offset = image.refs.place_of(index)
            if offset < 0:
                self._error(image.refs.senseless(index))
            elif offset:
                self._range(offset, image.cluster_size, "a refcount block")
        self._tables(header.l1_offset, image.mapping.l1, "the active L1 table", active=True)
        self._range(header.snapshots_offset, image.snapshot_bytes, "the snapshot table")
        for snapshot in image.snapshots:
            l1 = read_table(image.storage, snapshot.l1_offset, snapshot.l1_size)
            self._tables(snapshot.l1_offset, l1, f"the L1 table of snapshot {snapshot.name!r}", active=False)
        if header.autoclear & BITMAPS:
            for kind, data in header.extensions:
                if kind == EXT_BITMAPS:
                    self._bitmaps(data)
        return self.counts

    def _error(self, words: str) -> None:
        self.report.errors += 1
        self.report.tell(words)

    def _range(self, offset: int, length: int, what: str) -> None:
        if not length:
            return None
        if offset >= self.end or offset + length > self.end + self.image.cluster_size:
            return self._error(f"{what} at {offset:#x} lies behind the end of the file")
        for cluster in clusters_of(offset, length, self.bits):
            self.counts.add(cluster)
        return None

    def _tables(self, offset: int, l1: array[int], what: str, *, active: bool) -> None:
        self._range(offset, len(l1) * 8, what)
        for index, entry in enumerate(l1):
            if not entry:
                continue
            place = l2_place(self.image.storage, self.image.header, entry)
            if place < 0:
                self._error(f"{what}: {senseless(index, entry)}")
            elif place:
                self._range(place, self.image.cluster_size, "an L2 table")
                self._l2(place, active)

    def _l2(self, place: int, active: bool) -> None:
        image = self.image
        step = image.header.l2_entry_size // 8
        table = read_table(image.storage, place, image.cluster_size // 8)
        for number in range(0, len(table), step):
            entry = table[number]
            if not entry & ~ZERO:
                continue
            if entry & COMPRESSED:
                self._compressed(entry, active)
                continue
            host = entry & OFFSET_MASK
            if host & (image.cluster_size - 1) or entry & ~(COPIED | OFFSET_MASK | ZERO):
                self._error(f"the L2 entry {entry:#x} makes no sense")
            elif image.external or host:
                self.report.clusters += active
                if not image.external:
                    self._range(host, image.cluster_size, "a cluster of data")

    def _compressed(self, entry: int, active: bool) -> None:
        self.report.clusters += active
        self.report.compressed += active
        if entry & COPIED:
            self._error(f"the compressed cluster {entry:#x} is marked as writable in place")
        offset, length = compressed_place(entry, self.bits)
        self._range(offset, min(length, max(self.end - offset, 1)), "a compressed cluster")

    def _bitmaps(self, extension: bytes) -> None:
        if len(extension) < 24:
            return self._error("the extension about bitmaps is too short")
        count, _, size, offset = struct.unpack_from(">IIQQ", extension)
        if size > 1 << 26 or offset + size > self.end:
            return self._error("the directory of bitmaps lies behind the end of the file")
        self._range(offset, size, "the directory of bitmaps")
        directory, at = bytes(self.image.storage.read(offset, size)), 0
        for _ in range(count):
            if at + _DIRECTORY.size > len(directory):
                return self._error("the directory of bitmaps ends within an entry")
            place, entries, _, _, _, name_size, extra = _DIRECTORY.unpack_from(directory, at)
            at += -(-(_DIRECTORY.size + name_size + extra) // 8) * 8
            if place + entries * 8 > self.end:
                return self._error("a table of a bitmap lies behind the end of the file")
            self._range(place, entries * 8, "a table of a bitmap")
            for entry in read_table(self.image.storage, place, entries):
                if entry & OFFSET_MASK:
                    self._range(entry & OFFSET_MASK, self.image.cluster_size, "a part of a bitmap")
        return None


def check(image: Image) -> Report:
    """What is wrong with an image, of which nothing is waiting for a checkpoint."""
    report = Report()
    counts = Walk(image, report).run()
    for cluster, counted, used in _differences(image, counts):
        if counted > used:
            report.leaks += 1
            report.tell(f"cluster {cluster} is counted {counted} times and used {used} times: a leak")
        else:
            report.wrong_counts += 1
            report.tell(f"cluster {cluster} is counted {counted} times and used {used} times")
    for _, _, words in _wrong_flags(image):
        report.wrong_flags += 1
        report.tell(words)
    return report


def _differences(image: Image, counts: Counts) -> Iterator[tuple[int, int, int]]:
    """Number, count and uses of each cluster of which they differ."""
    refs = image.refs
    for index in range(len(refs.table)):
        block = refs.block(index) if refs.place_of(index) > 0 else None
        if block is None:
            continue  # or the entry makes no sense, which has been told
        first = index * refs.per_block
        nothing = not any(block)
        for start in range(first, first + refs.per_block, CHUNK):
            chunk = counts.chunks.get(start // CHUNK)
            if nothing and chunk is None:
                continue
            for cluster in range(start, min(start + CHUNK, first + refs.per_block)):
                counted, used = refs.get(cluster), counts.get(cluster)
                if counted != used:
                    yield cluster, counted, used
    yield from _uncounted(image, counts)


def _uncounted(image: Image, counts: Counts) -> Iterator[tuple[int, int, int]]:
    """Clusters that are used and have no refcount block."""
    refs = image.refs
    for number in sorted(counts.chunks):
        chunk = counts.chunks[number]
        for cluster in range(number * CHUNK, (number + 1) * CHUNK):
            if chunk[cluster % CHUNK] and refs.place_of(cluster // refs.per_block) <= 0:
                yield cluster, 0, chunk[cluster % CHUNK]


def _wrong_flags(image: Image) -> Iterator[tuple[int, int, str]]:
    """Entries of the active tables whose COPIED flag is not what the count says: offset on disk, right value, words."""
    mapping, header, refs = image.mapping, image.header, image.refs

    def get(cluster: int) -> int:
        return refs.get(cluster) if refs.place_of(cluster // refs.per_block) > 0 else 0

    bits, step = header.cluster_bits, header.l2_entry_size // 8
    for index, entry in enumerate(mapping.l1):
        place = l2_place(image.storage, header, entry)
        if place <= 0:
            continue
        if (get(place >> bits) == 1) != bool(entry & COPIED):
            yield header.l1_offset + index * 8, entry ^ COPIED, f"entry {index} of the L1 table has a wrong COPIED flag"
        if image.external:
            continue
        table = read_table(image.storage, place, image.cluster_size // 8)
        for number in range(0, len(table), step):
            entry = table[number]
            host = entry & OFFSET_MASK
            if entry & COMPRESSED or not host or host & (image.cluster_size - 1):
                continue
            if (get(host >> bits) == 1) != bool(entry & COPIED):
                yield place + number * 8, entry ^ COPIED, f"the L2 entry {entry:#x} has a wrong COPIED flag"


def repair(image: Image) -> Report:
    """Make counts and flags right, and clear the dirty bit. What was wrong is in the report.

    Raises BlockError where entries make no sense: whoever mends them decides what data is lost.
    """
    report = check(image)
    if report.errors:
        words = f"is damaged, and not only in its reference counts: {report.words[0]}"
        raise BlockError(Fault.READ_ERROR, f"{image.name} {words}; see `qemu-img check -r all`")
    image.set_dirty(True)
    counts = Walk(image, Report()).run()
    if _add_blocks(image, counts):
        counts = Walk(image, Report()).run()
    for cluster, _, used in list(_differences(image, counts)):
        if used > image.refs.maximum:
            words = f"cluster {cluster} is used {used} times, more than its count can tell"
            raise BlockError(Fault.READ_ERROR, f"{image.name}: {words}")
        image.refs.set(cluster, used)
        if image.refs.pressed:
            image.flush_counts()
    image.flush_counts()
    fix_flags(image)
    image.refs.hint = 1
    image.set_dirty(False)
    return report


def fix_flags(image: Image) -> None:
    """Make the COPIED flags of the active tables agree with the counts; all of it on the medium at the return.

    The flags on disk must be those in memory, and no slice may be dirty.
    """
    for offset, value, _ in _wrong_flags(image):
        image.storage.write(value.to_bytes(8, "big"), offset)
    image.storage.sync()
    image.mapping.replace_l1(read_table(image.storage, image.header.l1_offset, image.header.l1_size))


def _add_blocks(image: Image, counts: Counts) -> bool:
    """Make the refcount blocks that are missing; whether there were any."""
    refs = image.refs
    missing = {cluster // refs.per_block for cluster, _, _ in _uncounted(image, counts)}
    if not missing:
        return False
    if max(missing) >= len(refs.table):
        refs.grow_table(max(missing) + 1)
    for index in sorted(missing):
        first = index * refs.per_block
        free = next((c for c in range(first, first + refs.per_block) if not counts.get(c)), None)
        cluster = counts.end if free is None else free
        counts.add(cluster)
        refs.add_block_at(index, cluster)
        refs.dirty.add(index)
        image.flush_counts()
        image.storage.write(refs.table_bytes(), image.header.reftable_offset)
        image.storage.sync()
    return bool(missing)
