"""Writing an image: in place where a cluster is its own, else into a new cluster with what was there before around it.

Whatever changes a table happens under ``image.lock``, data included, so that two writers to one new cluster follow each
other; writing in place takes no lock. Functions that get an offset and a length may be given any range of the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from iscsid.plugin import BlockError, Fault

from .qcow2_format import COMPRESSED, COPIED, OFFSET_MASK, SUBCLUSTERS, ZERO
from .qcow2_image import Image
from .qcow2_read import Kind, Piece, pieces, read, reads_zero

_ALL = (1 << SUBCLUSTERS) - 1
#: The most that is copied from cluster to cluster, or written into new ones, in one go.
MAX_BATCH = 1 << 20


def check_writable(image: Image) -> None:
    """Raises BlockError where the image is read-only, or has become so because it is damaged."""
    if not image.writing:
        raise BlockError(Fault.READ_ONLY, f"{image.name} is open for reading only")


def write(image: Image, data: memoryview, offset: int) -> None:
    """Write all of ``data``; may wait. The caller has entered the gate."""
    check_writable(image)
    while data:
        host, length = in_place(image, offset, len(data))
        if length:
            image.data.write(data[:length], host)
        else:
            with image.lock:
                length = _write_new(image, data, offset)
        data = data[length:]
        offset += length


def in_place(image: Image, offset: int, length: int) -> tuple[int, int]:
    """Where the data at ``offset`` lies and how much of it, up to ``length`` bytes, may be written there; else 0, 0."""
    bits, size, extended = image.header.cluster_bits, image.cluster_size, image.extended
    start, done = 0, 0
    while done < length:
        at = offset + done
        entry, bitmap = image.entry(at >> bits)
        count = min(size - (at & (size - 1)), length - done)
        if not entry & COPIED or entry & (COMPRESSED | ZERO) or (extended and not _has(image, bitmap, at, count)):
            break
        host = image.host_of(entry)
        if host < 0 or host >= image.limit:
            break
        host += at & (size - 1)
        if done and host != start + done:
            break
        start = start if done else host
        done += count
    return start, done


def _has(image: Image, bitmap: int, offset: int, length: int) -> bool:
    """Whether all subclusters that the range touches, in one cluster, are allocated."""
    touched = _mask(image, offset, length)
    return bitmap & touched == touched


def _mask(image: Image, offset: int, length: int) -> int:
    """The subclusters that a range within one cluster touches, as bits."""
    size = image.cluster_size // SUBCLUSTERS
    within = offset & (image.cluster_size - 1)
    first, last = within // size, (within + length - 1) // size
    return (1 << last + 1) - (1 << first)


def _write_new(image: Image, data: memoryview, offset: int) -> int:
    """Write the beginning of ``data`` where it needs a change of the tables, under ``lock``; how much of it."""
    size = image.cluster_size
    within = offset & (size - 1)
    if not within and len(data) >= 2 * size and not image.external:
        count = _new_run(image, offset, min(len(data), MAX_BATCH) // size)
        if count > 1:
            return _write_clusters(image, data, offset, count)
    length = min(size - within, len(data))
    if not in_place(image, offset, length)[1]:  # another writer may have been here since
        _write_cluster(image, data[:length], offset)
    else:
        host, length = in_place(image, offset, length)
        image.data.write(data[:length], host)
    return length


def _new_run(image: Image, offset: int, limit: int) -> int:
    """How many whole clusters from ``offset`` on, at most ``limit``, need new clusters."""
    first = offset >> image.header.cluster_bits
    for count in range(limit):
        entry, _ = image.entry(first + count)
        if not entry & COMPRESSED and entry & COPIED and image.host_of(entry) >= 0:
            return count
    return limit


def _write_clusters(image: Image, data: memoryview, offset: int, count: int) -> int:
    """Write whole clusters into new ones; as many as there are in a row."""
    size, bits = image.cluster_size, image.header.cluster_bits
    host, got = image.allocate(count)
    try:
        image.data.write(data[: got * size], host)
    except BaseException:
        _give_back(image, host, got)
        raise
    first = offset >> bits
    for number in range(got):
        old, _ = image.entry(first + number)
        image.set_entry(first + number, host + number * size | COPIED, _ALL if image.extended else 0)
        image.free_entry(old)
    return got * size


def _give_back(image: Image, host: int, count: int) -> None:
    """Clusters that were taken and are not used after all."""
    for number in range(count):
        image.free(host + number * image.cluster_size)


def _write_cluster(image: Image, data: memoryview, offset: int) -> None:
    """Write within one cluster that is not there, not its own, zero or compressed, or lacks the subclusters."""
    cluster, base = offset >> image.header.cluster_bits, offset & -image.cluster_size
    entry, bitmap = image.entry(cluster)
    own = not entry & COMPRESSED and bool(entry & COPIED) and image.host_of(entry) >= 0
    if own or image.external:
        host = image.host_of(entry) if own else base
        if host >= image.limit:
            image.damaged(f"the cluster at {host:#x} lies behind the end of the file")
        _fill(image, data, offset, host, virgin=False)
        added = _mask(image, offset, len(data)) if image.extended else 0
        bitmap = (bitmap | added) & ~(added << SUBCLUSTERS)
        return image.set_entry(cluster, host | COPIED, bitmap)
    end = image.storage.size if image.storage.regular else 1 << 62
    host, _ = image.allocate(1)
    try:
        allocated = _ALL
        if image.extended and not entry & (OFFSET_MASK | COMPRESSED):
            # Nothing to bring along: the other subclusters stay what they are.
            allocated = _mask(image, offset, len(data))
            _fill(image, data, offset, host, virgin=host >= end)
        else:
            _copy_around(image, data, offset, host, virgin=host >= end)
    except BaseException:
        _give_back(image, host, 1)
        raise
    kept = bitmap & ~allocated & _ALL | (bitmap >> SUBCLUSTERS & ~allocated) << SUBCLUSTERS
    image.set_entry(cluster, host | COPIED, (allocated | kept if allocated != _ALL else _ALL) if image.extended else 0)
    image.free_entry(entry)
    return None


def _fill(image: Image, data: memoryview, offset: int, host: int, *, virgin: bool) -> None:
    """Write ``data`` into the cluster at ``host``, and complete the (sub)clusters at its ends."""
    grain = image.cluster_size // SUBCLUSTERS if image.extended else image.cluster_size
    base = offset & -image.cluster_size
    start, end = offset & -grain, -(-(offset + len(data)) // grain) * grain
    _complete(image, start, offset, host - base, virgin)
    image.data.write(data, host + offset - base)
    _complete(image, offset + len(data), end, host - base, virgin)


def _copy_around(image: Image, data: memoryview, offset: int, host: int, *, virgin: bool) -> None:
    """Write the whole cluster at ``host``: ``data``, and around it what the cluster of the disk holds now."""
    base = offset & -image.cluster_size
    _complete(image, base, offset, host - base, virgin, force=True)
    image.data.write(data, host + offset - base)
    _complete(image, offset + len(data), base + image.cluster_size, host - base, virgin, force=True)


def _complete(image: Image, start: int, end: int, shift: int, virgin: bool, *, force: bool = False) -> None:
    """Write what the disk holds from ``start`` to ``end`` at the same offset plus ``shift``.

    Where it is there already (DATA of the same cluster) nothing is done unless ``force``. A ``virgin`` cluster lies
    behind the end of the file, so that it is zeros.
    """
    if start >= end:
        return
    for piece in list(pieces(image, start, end - start)):
        if reads_zero(image, piece):
            if not virgin:
                image.data.zero(piece.offset + shift, piece.length)
        elif piece.kind is not Kind.DATA or force:
            buffer = bytearray(piece.length)
            with memoryview(buffer) as view:
                read(image, view, piece.offset)
            image.data.write(buffer, piece.offset + shift)


# Zeros and discards.


def discard(image: Image, offset: int, length: int) -> None:
    """Give whole clusters back; the range reads as zeros afterwards. May wait. The caller has entered the gate."""
    _zero(image, offset, length, unmap=True)


def write_zeroes(image: Image, offset: int, length: int, may_unmap: bool) -> None:
    """Make the range read as zeros, and keep what is allocated unless ``may_unmap``.

    Raises BlockError(UNSUPPORTED) in version 2, which has no mark for zeros, where data would have to be written.
    """
    if image.header.version == 2 and (image.backing is not None or not may_unmap):
        raise BlockError(Fault.UNSUPPORTED)
    _zero(image, offset, length, unmap=may_unmap)


def _zero(image: Image, offset: int, length: int, *, unmap: bool) -> None:
    check_writable(image)
    size = image.cluster_size
    while length:
        within = offset & (size - 1)
        count = min(size - within, length)
        whole = count == size or (offset + count >= image.size and not within)
        with image.lock:
            for _ in range(256):
                _zero_cluster(image, offset, count, whole=whole, unmap=unmap)
                offset += count
                length -= count
                if length < size:
                    break
                count, whole = size, True
        image.relieve()


def _zero_cluster(image: Image, offset: int, length: int, *, whole: bool, unmap: bool) -> None:
    """Zeros within one cluster, all of it if ``whole``; under ``lock``."""
    if all(reads_zero(image, piece) and (piece.host < 0 or not unmap) for piece in pieces(image, offset, length)):
        return
    cluster = offset >> image.header.cluster_bits
    entry, bitmap = image.entry(cluster)
    if whole and image.header.version > 2 and not image.header.raw_data:
        if unmap or entry & COMPRESSED:
            zero = 0 if image.backing is None else ZERO
            image.set_entry(cluster, 0 if image.extended else zero, _ALL << SUBCLUSTERS if image.extended else 0)
            image.free_entry(entry)
        elif image.extended:
            image.set_entry(cluster, entry, _ALL << SUBCLUSTERS)
        else:
            image.set_entry(cluster, entry | ZERO)
    elif whole and image.header.version == 2 and image.backing is None and unmap:
        image.set_entry(cluster, 0)
        image.free_entry(entry)
    else:
        _zero_part(image, offset, length, bitmap, cluster)


def _zero_part(image: Image, offset: int, length: int, bitmap: int, cluster: int) -> None:
    """Zeros in a part of a cluster: by subclusters where there are some, else by writing them."""
    entry, _ = image.entry(cluster)
    grain = image.cluster_size // SUBCLUSTERS
    if image.extended and not entry & COMPRESSED and not (offset | length) & (grain - 1) and not image.header.raw_data:
        zero = _mask(image, offset, length)
        return image.set_entry(cluster, entry, bitmap & ~zero & ((1 << 64) - 1) | zero << SUBCLUSTERS)
    host, count = in_place(image, offset, length)
    if count == length:
        return image.data.zero(host, length)
    zeroes = bytearray(length)
    with memoryview(zeroes) as view:
        return _write_cluster(image, view, offset)


def forget_range(image: Image, offset: int, length: int) -> None:
    """Make whole clusters unallocated, so that what is behind shows again; under ``alone``.

    For commit and resize. L2 tables of which nothing is left go with their clusters.
    """
    first, last = -(-offset // image.cluster_size), -(-(offset + length) // image.cluster_size)
    per_table = image.header.l2_entries
    while first < last:
        index = first // per_table
        end = min(last, (index + 1) * per_table)
        if index < len(image.mapping.l1) and image.mapping.l2_offset(index):
            whole = end - first == per_table or (
                end << image.header.cluster_bits >= image.size and not first % per_table
            )
            for cluster in range(first, end):
                entry, bitmap = image.entry(cluster)
                if entry or bitmap:
                    if not whole:
                        image.set_entry(cluster, 0, 0)
                    image.free_entry(entry)
            if whole:
                image.mapping.drop_table(index)
        first = end
        image.relieve()


# Without waiting.


def nowait_writer(image: Image) -> Callable[[memoryview, int], None]:
    """A function that writes in place, in the worker's loop, and raises BlockingIOError where the tables change."""
    mapping, fd = image.mapping, image.data.fd
    bits, mask, shift = image.header.cluster_bits, image.cluster_size - 1, mapping.shift
    in_slice = mapping.slice_clusters - 1
    acquire, release, pwrite = image.gate.now.acquire, image.gate.now.release, os.pwrite
    slices = mapping.slices
    plain = ((1 << 56) - 1) & ~mask

    def write_nowait(data: memoryview, offset: int) -> None:
        length = len(data)
        within = offset & mask
        if not acquire(False):
            raise BlockingIOError
        try:
            if within + length > mask + 1:
                return _write_segments(image, data, offset)
            cluster = offset >> bits
            table = slices.get(cluster >> shift)
            if table is None:
                raise BlockingIOError
            entry = table[cluster & in_slice]
            host = entry & plain
            # host | COPIED is the whole entry, or there is something about the cluster
            if not host or entry != host | COPIED or host >= image.limit or not image.writing:
                raise BlockingIOError
            if pwrite(fd, data, host + within) != length:
                raise BlockingIOError
        finally:
            release()
        return None

    def write_nowait_generally(data: memoryview, offset: int) -> None:
        if not acquire(False):
            raise BlockingIOError
        try:
            _write_segments(image, data, offset)
        finally:
            release()

    return write_nowait_generally if image.extended or image.external else write_nowait


def _write_segments(image: Image, data: memoryview, offset: int) -> None:
    """Write several clusters if all of them can be written in place; with ``gate.now`` held."""
    bits, mapping, length = image.header.cluster_bits, image.mapping, len(data)
    first, last = offset >> bits + mapping.shift, offset + length - 1 >> bits + mapping.shift
    if any(key not in mapping.slices for key in range(first, last + 1)) or not image.writing:
        raise BlockingIOError
    if not image.lock.acquire(blocking=False):
        raise BlockingIOError
    try:
        segments, at = list[Piece](), 0
        while at < length:
            host, count = in_place(image, offset + at, length - at)
            if not count or len(segments) >= 16:
                raise BlockingIOError
            segments.append(Piece(Kind.DATA, at, count, host))
            at += count
    finally:
        image.lock.release()
    for segment in segments:
        if os.pwrite(image.data.fd, data[segment.offset : segment.offset + segment.length], segment.host) != (
            segment.length
        ):
            raise BlockingIOError
