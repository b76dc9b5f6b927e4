"""Reading an image: from its own clusters, from what lies behind it, and without waiting where everything is cached."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

from iscsid.plugin import Content, Extent

from .qcow2_format import COMPRESSED, COPIED, SUBCLUSTERS, ZERO
from .qcow2_image import Image
from .qcow2_storage import fill_zeroes

_ALL = (1 << SUBCLUSTERS) - 1
#: Segments that one read in the worker's loop may have.
MAX_SEGMENTS = 16


class Kind(enum.IntEnum):
    """Where a piece of the disk comes from."""

    DATA = 0
    ZERO = 1
    BACKING = 2  # not allocated: the backing file, zeros without one
    COMPRESSED = 3


class Piece(NamedTuple):
    """A range of the disk that comes from one place: for DATA ``host`` is the offset in the data file, for COMPRESSED
    the L2 entry; for ZERO it is -1 when nothing is allocated for it."""

    kind: Kind
    offset: int
    length: int
    host: int


def pieces(image: Image, offset: int, length: int) -> Iterator[Piece]:
    """The pieces of a range, each within one cluster."""
    bits, size = image.header.cluster_bits, image.cluster_size
    while length:
        within = offset & (size - 1)
        count = min(size - within, length)
        entry, bitmap = image.entry(offset >> bits)
        if entry & COMPRESSED:
            yield Piece(Kind.COMPRESSED, offset, count, entry)
        else:
            host = image.host_of(entry)
            if image.extended:
                yield from _subclusters(image, offset, count, host, bitmap)
            elif entry & ZERO:
                yield Piece(Kind.ZERO, offset, count, host)
            elif host < 0:
                yield Piece(Kind.BACKING, offset, count, -1)
            else:
                yield Piece(Kind.DATA, offset, count, host + within)
        offset += count
        length -= count


def _subclusters(image: Image, offset: int, length: int, host: int, bitmap: int) -> Iterator[Piece]:
    size = image.cluster_size // SUBCLUSTERS
    allocated, zero = bitmap & _ALL, bitmap >> SUBCLUSTERS
    if allocated & zero or (allocated and host < 0):
        image.damaged(f"the subcluster bitmap {bitmap:#x} makes no sense")
    while length:
        within = offset & (image.cluster_size - 1)
        count = min(size - within % size, length)
        bit = 1 << within // size
        if allocated & bit:
            yield Piece(Kind.DATA, offset, count, host + within)
        elif zero & bit:
            yield Piece(Kind.ZERO, offset, count, host)
        else:
            yield Piece(Kind.BACKING, offset, count, -1)
        offset += count
        length -= count


def runs(image: Image, offset: int, length: int) -> Iterator[Piece]:
    """As ``pieces``, neighbours that can be read with one call joined."""
    last: Piece | None = None
    for piece in pieces(image, offset, length):
        if last is None:
            last = piece
        elif _follows(piece, last):
            last = Piece(last.kind, last.offset, last.length + piece.length, last.host)
        else:
            yield last
            last = piece
    if last is not None:
        yield last


def _follows(piece: Piece, last: Piece) -> bool:
    """Whether one call can read both, and they are allocated alike."""
    if piece.kind is not last.kind or piece.kind is Kind.COMPRESSED:
        return False
    if piece.kind is Kind.DATA:
        return piece.host == last.host + last.length
    return (piece.host < 0) == (last.host < 0)


def read(image: Image, buffer: memoryview, offset: int) -> None:
    """Fill ``buffer``; may wait. The caller has entered the gate."""
    start = offset
    for piece in runs(image, offset, len(buffer)):
        target = buffer[piece.offset - start : piece.offset - start + piece.length]
        if piece.kind is Kind.DATA:
            image.data.read_into(target, piece.host)
        elif piece.kind is Kind.ZERO:
            fill_zeroes(target)
        elif piece.kind is Kind.COMPRESSED:
            within = piece.offset & (image.cluster_size - 1)
            target[:] = image.compressed(piece.host)[within : within + piece.length]
        else:
            read_backing(image, target, piece.offset)


def read_backing(image: Image, buffer: memoryview, offset: int) -> None:
    """What lies behind the image; zeros behind the end of the backing file, or without one."""
    backing = image.backing
    have = 0 if backing is None else max(0, min(len(buffer), backing.size - offset))
    if backing is not None and have:
        backing.read_into(buffer[:have], offset)
    fill_zeroes(buffer[have:])


def reads_zero(image: Image, piece: Piece) -> bool:
    """Whether a piece is known to be zeros without looking at data."""
    if piece.kind is Kind.ZERO:
        return True
    return piece.kind is Kind.BACKING and (image.backing is None or piece.offset >= image.backing.size)


def block_status(image: Image, offset: int, length: int) -> Iterator[Extent]:
    """Data, zeros and holes of the range, through the whole chain."""
    for piece in runs(image, offset, length):
        if piece.kind in (Kind.DATA, Kind.COMPRESSED):
            yield Extent(piece.offset, piece.length, Content.DATA)
        elif piece.kind is Kind.ZERO:
            yield Extent(piece.offset, piece.length, Content.ZERO if piece.host >= 0 else Content.ZERO | Content.HOLE)
        else:
            yield from _backing_status(image, piece)


def _backing_status(image: Image, piece: Piece) -> Iterator[Extent]:
    backing = image.backing
    have = 0 if backing is None else max(0, min(piece.length, backing.size - piece.offset))
    if backing is not None and have:
        yield from backing.block_status(piece.offset, have)
    if have < piece.length:
        yield Extent(piece.offset + have, piece.length - have, Content.ZERO | Content.HOLE)


def nowait_reader(image: Image) -> Callable[[memoryview, int], None]:
    """A function that reads what is cached, in the worker's loop, and raises BlockingIOError for everything else.

    One allocated cluster with its slice in memory is the case that counts: a lookup and a preadv.
    """
    mapping, nowait, fd = image.mapping, image.data.nowait, image.data.fd
    if nowait is None:
        return _would_wait
    bits, mask, shift = image.header.cluster_bits, image.cluster_size - 1, mapping.shift
    in_slice = mapping.slice_clusters - 1
    # What a plain entry may not have: flags, reserved bits, an offset that is not aligned.
    plain = ~COPIED & ((1 << 56) - 1) & ~mask
    acquire, release, preadv = image.gate.now.acquire, image.gate.now.release, os.preadv
    slices = mapping.slices

    def read_nowait(buffer: memoryview, offset: int) -> None:
        length = len(buffer)
        within = offset & mask
        if within + length > mask + 1:
            return _read_segments(image, buffer, offset, nowait)
        cluster = offset >> bits
        if not acquire(False):
            raise BlockingIOError
        try:
            table = slices.get(cluster >> shift)
            if table is None:
                raise BlockingIOError
            entry = table[cluster & in_slice]
            host = entry & plain
            if not host or entry & ~COPIED != host:
                return _read_special(image, buffer, offset, nowait)
            if preadv(fd, (buffer,), host + within, nowait) != length:
                raise BlockingIOError
        finally:
            release()
        return None

    def read_nowait_generally(buffer: memoryview, offset: int) -> None:
        _read_segments(image, buffer, offset, nowait)

    return read_nowait_generally if image.extended or image.external else read_nowait


def _would_wait(buffer: memoryview, offset: int) -> None:
    raise BlockingIOError  # for all that the file system can tell


def _read_segments(image: Image, buffer: memoryview, offset: int, nowait: int) -> None:
    if not image.gate.now.acquire(blocking=False):
        raise BlockingIOError
    try:
        _read_special(image, buffer, offset, nowait)
    finally:
        image.gate.now.release()


def _read_special(image: Image, buffer: memoryview, offset: int, nowait: int) -> None:
    """Several clusters, zeros, or the backing file; with ``gate.now`` held."""
    bits, mapping, length = image.header.cluster_bits, image.mapping, len(buffer)
    first, last = offset >> bits + mapping.shift, offset + length - 1 >> bits + mapping.shift
    if any(key not in mapping.slices for key in range(first, last + 1)):
        raise BlockingIOError
    if not image.lock.acquire(blocking=False):  # somebody changes the tables, and may be at it for long
        raise BlockingIOError
    try:
        found = []
        for piece in runs(image, offset, length):
            found.append(piece)
            if piece.kind is Kind.COMPRESSED or len(found) > MAX_SEGMENTS:
                raise BlockingIOError
    finally:
        image.lock.release()
    for piece in found:
        _read_piece(image, buffer[piece.offset - offset : piece.offset - offset + piece.length], piece, nowait)


def _read_piece(image: Image, buffer: memoryview, piece: Piece, nowait: int) -> None:
    if piece.kind is Kind.DATA:
        if os.preadv(image.data.fd, (buffer,), piece.host, nowait) != len(buffer):
            raise BlockingIOError
    elif reads_zero(image, piece):
        fill_zeroes(buffer)
    elif image.backing is None or piece.offset + piece.length > image.backing.size:
        raise BlockingIOError
    else:
        image.backing.read_nowait(buffer, piece.offset)
