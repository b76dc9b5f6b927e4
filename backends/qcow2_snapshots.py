"""Internal snapshots: copies of the L1 table that share L2 tables and data with the disk, by reference counts.

Each function has the image for itself. In version 3 the dirty bit is set meanwhile, so that counts and flags that a
crash left half done are made right when the image is opened again; the step that decides, another snapshot table or
another active L1 table, is one write of the header.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections.abc import Iterator

from iscsid.plugin import BlockError, Fault

from .qcow2_check import fix_flags
from .qcow2_format import (
    COMPRESSED,
    COPIED,
    DIRTY,
    MAX_SNAPSHOTS,
    OFFSET_MASK,
    Snapshot,
    clusters_of,
    compressed_place,
    l1_entries,
)
from .qcow2_image import Image, spans
from .qcow2_mapping import big_endian, l2_place, read_table, senseless

MAX_NAME = 255  # bytes


def find(image: Image, key: str) -> Snapshot:
    """The snapshot with this name, or else this id. Raises BlockError(INVALID)."""
    for name in ("name", "id"):
        for snapshot in image.snapshots:
            if getattr(snapshot, name) == key:
                return snapshot
    raise BlockError(Fault.INVALID, f"{image.name} has no snapshot {key!r}")


def create(image: Image, name: str) -> Snapshot:
    """Keep the disk as it is now under ``name``."""
    if not name or len(name.encode()) > MAX_NAME or not name.isprintable():
        raise BlockError(Fault.INVALID, f"a snapshot needs a name of at most {MAX_NAME} printable letters")
    if any(snapshot.name == name for snapshot in image.snapshots):
        raise BlockError(Fault.INVALID, f"{image.name} has a snapshot {name!r} already")
    if len(image.snapshots) >= MAX_SNAPSHOTS:
        raise BlockError(Fault.NO_SPACE, f"{image.name} has {MAX_SNAPSHOTS} snapshots, the most there can be")
    with _changing(image):
        l1 = array("Q", (entry & ~COPIED for entry in image.mapping.l1))
        _must_have_room(image, l1)
        for cluster in references(image, l1):
            image.refs.raise_(cluster)
            _relieve(image)
        offset = image.allocate_whole(max(len(l1), 1) * 8)
        image.storage.write(big_endian(l1), offset)
        image.flush_counts()
        _clear_flags(image)
        now = time.time_ns()
        number = max((int(s.id) for s in image.snapshots if s.id.isascii() and s.id.isdigit()), default=0) + 1
        snapshot = Snapshot(str(number), name, offset, len(l1), image.size, *divmod(now, 10**9))
        _replace_table(image, [*image.snapshots, snapshot])
        return snapshot


def delete(image: Image, key: str) -> None:
    """Give up a snapshot, and the space that only it takes."""
    snapshot = find(image, key)
    with _changing(image):
        l1 = read_table(image.storage, snapshot.l1_offset, snapshot.l1_size)
        _replace_table(image, [other for other in image.snapshots if other is not snapshot])
        _drop(image, references(image, l1))
        _drop(image, clusters_of(snapshot.l1_offset, snapshot.l1_size * 8, image.header.cluster_bits))
        image.flush_counts()
        fix_flags(image)


def apply(image: Image, key: str) -> None:
    """Make the disk what it was, its size too. What it is now is lost."""
    snapshot = find(image, key)
    with _changing(image):
        old = array("Q", image.mapping.l1)
        l1 = read_table(image.storage, snapshot.l1_offset, snapshot.l1_size)
        l1 = array("Q", (entry & ~COPIED for entry in l1))
        _must_have_room(image, l1)
        for cluster in references(image, l1):
            image.refs.raise_(cluster)
            _relieve(image)
        l1.extend([0] * (l1_entries(image.header, snapshot.disk_size) - len(l1)))
        image.switch_l1(l1, snapshot.disk_size)
        _drop(image, references(image, old))
        image.flush_counts()
        fix_flags(image)


@contextlib.contextmanager
def _changing(image: Image) -> Iterator[None]:
    """Have the image for oneself, marked as dirty."""
    if not image.writing:
        raise BlockError(Fault.READ_ONLY, f"{image.name} is open for reading only")
    if image.external:
        raise BlockError(Fault.UNSUPPORTED, f"{image.name} has an external data file: it can have no snapshots")
    with image.alone():
        image.checkpoint()  # a second one, so that nothing waits to be given back
        before = image.header.incompatible & DIRTY
        image.set_dirty(True)
        yield
        image.checkpoint()
        image.checkpoint()
        if image.refs.dirty:
            image.flush_counts()
        if not before:
            image.set_dirty(False)


def references(image: Image, l1: array[int]) -> Iterator[int]:
    """Every cluster that an L1 table refers to, through all levels, as often as it does."""
    header, bits = image.header, image.header.cluster_bits
    step = header.l2_entry_size // 8
    for index, entry in enumerate(l1):
        place = l2_place(image.storage, header, entry)
        if place < 0:
            image.damaged(senseless(index, entry))
        if not place:
            continue
        yield place >> bits
        table = read_table(image.storage, place, image.cluster_size // 8)
        for number in range(0, len(table), step):
            entry = table[number]
            if entry & COMPRESSED:
                yield from clusters_of(*compressed_place(entry, bits), bits)
            elif entry & OFFSET_MASK:
                yield image.host_of(entry) >> bits


def _must_have_room(image: Image, l1: array[int]) -> None:
    """Raises BlockError where one more reference is more than the counts can tell; before anything has changed."""
    maximum = image.refs.maximum
    seen: dict[int, int] = {}
    for cluster in references(image, l1):
        more = seen[cluster] = seen.get(cluster, 0) + 1 if maximum < 1 << 15 else 1
        if image.refs.get(cluster) + more > maximum:
            words = f"its reference counts of {image.header.refcount_bits} bits allow no further snapshot"
            raise BlockError(Fault.UNSUPPORTED, f"{image.name}: {words}")
        if len(seen) > 1 << 20:
            seen.clear()


def _relieve(image: Image) -> None:
    if image.refs.pressed:
        image.flush_counts()


def _drop(image: Image, clusters: Iterator[int]) -> None:
    """Lower counts of what nothing on the medium refers to any more."""
    free = []
    for cluster in clusters:
        if image.refs.lower(cluster):
            free.append(cluster)
        _relieve(image)
    image.decompressor.forget()
    for first, count in spans(free):
        image.storage.zero(first << image.header.cluster_bits, count << image.header.cluster_bits)


def _clear_flags(image: Image) -> None:
    """Nothing of the active tables may be written in place any more."""
    header = image.header
    step = header.l2_entry_size // 8
    for index in range(len(image.mapping.l1)):
        place = image.mapping.l2_offset(index)
        if place:
            table = read_table(image.storage, place, image.cluster_size // 8)
            for number in range(0, len(table), step):
                table[number] &= ~COPIED
            image.storage.write(big_endian(table), place)
    l1 = array("Q", (entry & ~COPIED for entry in image.mapping.l1))
    image.storage.write(big_endian(l1), header.l1_offset)
    image.storage.sync()
    image.mapping.replace_l1(l1)


def _replace_table(image: Image, snapshots: list[Snapshot]) -> None:
    """Write another snapshot table, and make it the one that counts by one write of the header."""
    table = b"".join(snapshot.pack() for snapshot in snapshots)
    old = image.header.snapshots_offset, image.snapshot_bytes
    offset = image.allocate_whole(len(table)) if table else 0
    if table:
        image.storage.write(table, offset)
    image.flush_counts()
    image.header.nb_snapshots, image.header.snapshots_offset = len(snapshots), offset
    image.write_header()
    image.snapshots, image.snapshot_bytes = snapshots, len(table)
    image.note_metadata()
    _drop(image, clusters_of(*old, image.header.cluster_bits))
