"""Arithmetic on byte ranges: splitting them, and making the extents of a device fit the blocks of a logical unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from iscsid.block.device import Content, Extent
from iscsid.errors import BlockError, Fault


def chunks(offset: int, length: int, limit: int) -> Iterator[tuple[int, int]]:
    """Split the range into (offset, length) pieces of at most ``limit`` bytes."""
    end = offset + length
    while offset < end:
        piece = min(limit, end - offset)
        yield offset, piece
        offset += piece


def checked(extents: Iterable[Extent], offset: int, length: int) -> Iterator[Extent]:
    """Pass ``extents`` on as far as the range goes, and see that they cover it without gap or overlap.

    Raises BlockError(INTERNAL) where they do not: a hole that is reported in the wrong place loses data in a copy.
    """
    end = offset + length
    for extent in extents:
        start, size, content = extent
        if start != offset or size <= 0:
            raise BlockError(Fault.INTERNAL, f"block_status: an extent of {size} bytes at {start}, not at {offset}")
        offset = min(end, start + size)
        yield Extent(start, offset - start, Content(content))
        if offset == end:
            return
    if offset < end:
        raise BlockError(Fault.INTERNAL, f"block_status: nothing said of the range from {offset} to {end}")


def whole_blocks(extents: Iterable[Extent], block_size: int) -> Iterator[Extent]:
    """Move the borders of gapless ``extents`` to block boundaries; their first offset and their end lie on one.

    A block that is partly data is data: a block is a hole, or zeros, only if all of it is.
    """
    at = -1  # where the block begins that is partly covered by the extents so far, or the next block
    shared: Content | None = None  # what its covered part holds
    for start, size, content in extents:
        end = start + size
        if at < 0:
            at = start
        if shared is not None:
            shared &= content
            if end < at + block_size:
                continue
            yield Extent(at, block_size, shared)
            at += block_size
            shared = None
        whole = (end - at) // block_size * block_size
        if whole:
            yield Extent(at, whole, content)
            at += whole
        if end > at:
            shared = content


def merged(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours with the same content."""
    last: Extent | None = None
    for extent in extents:
        if last is None:
            last = extent
        elif last.content == extent.content:
            last = Extent(last.offset, last.length + extent.length, last.content)
        else:
            yield last
            last = extent
    if last is not None:
        yield last
