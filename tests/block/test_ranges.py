"""Splitting ranges, and making extents fit blocks, against a byte-by-byte model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.block.device import Content, Extent
from iscsid.block.ranges import checked, chunks, merged, whole_blocks
from iscsid.errors import BlockError, Fault

DATA, ZERO, HOLE = Content.DATA, Content.ZERO, Content.HOLE | Content.ZERO
BLOCK = 8


def test_chunks_of_an_empty_range_are_none() -> None:
    assert list(chunks(5, 0, 10)) == []


def test_chunks_of_a_short_range_are_the_range() -> None:
    assert list(chunks(5, 10, 10)) == [(5, 10)]


def test_chunks_end_with_the_rest() -> None:
    assert list(chunks(5, 23, 10)) == [(5, 10), (15, 10), (25, 3)]


@given(st.integers(0, 1000), st.integers(0, 500), st.integers(1, 100))
def test_chunks_cover_the_range_once(offset: int, length: int, limit: int) -> None:
    pieces = list(chunks(offset, length, limit))
    assert [at for piece in pieces for at in range(piece[0], sum(piece))] == list(range(offset, offset + length))
    assert all(size <= limit for _, size in pieces)


def test_checked_passes_what_covers_the_range() -> None:
    extents = [Extent(10, 5, DATA), Extent(15, 5, HOLE)]
    assert list(checked(extents, 10, 10)) == extents


def test_checked_cuts_what_reaches_over_the_end() -> None:
    assert list(checked([Extent(10, 500, DATA)], 10, 10)) == [Extent(10, 10, DATA)]


def test_checked_takes_no_more_than_it_needs() -> None:
    extents = iter([Extent(0, 10, DATA), Extent(99, 1, DATA)])
    assert list(checked(extents, 0, 10)) == [Extent(0, 10, DATA)]
    assert next(extents) == Extent(99, 1, DATA)


@pytest.mark.parametrize(
    "extents",
    [
        [],
        [Extent(0, 5, DATA)],  # ends early
        [Extent(1, 9, DATA)],  # begins late
        [Extent(0, 5, DATA), Extent(6, 4, DATA)],  # a gap
        [Extent(0, 5, DATA), Extent(4, 6, DATA)],  # an overlap
        [Extent(0, 0, DATA), Extent(0, 10, DATA)],  # an empty one
        [Extent(0, -5, DATA), Extent(-5, 15, DATA)],
    ],
)
def test_checked_refuses_what_does_not_cover_the_range(extents: list[Extent]) -> None:
    with pytest.raises(BlockError) as caught:
        list(checked(extents, 0, 10))
    assert caught.value.fault is Fault.INTERNAL


def test_whole_blocks_leaves_block_borders_alone() -> None:
    extents = [Extent(8, 16, DATA), Extent(24, 8, HOLE)]
    assert list(whole_blocks(extents, BLOCK)) == extents


def test_block_that_is_partly_data_is_data() -> None:
    extents = [Extent(0, 10, HOLE), Extent(10, 14, DATA)]
    assert list(whole_blocks(extents, BLOCK)) == [Extent(0, 8, HOLE), Extent(8, 8, DATA), Extent(16, 8, DATA)]


def test_block_of_many_pieces_is_what_all_of_them_are() -> None:
    extents = [Extent(0, 2, HOLE), Extent(2, 2, ZERO), Extent(4, 2, HOLE), Extent(6, 2, ZERO)]
    assert list(whole_blocks(extents, BLOCK)) == [Extent(0, 8, ZERO)]


@given(st.lists(st.tuples(st.integers(1, 20), st.sampled_from([DATA, ZERO, HOLE])), min_size=1, max_size=12))
def test_whole_blocks_agree_with_a_model(pieces: list[tuple[int, Content]]) -> None:
    """Each block's content is the AND of its bytes'."""
    pieces = [*pieces, (-sum(size for size, _ in pieces) % BLOCK or BLOCK, DATA)]
    extents, at = [], 0
    for size, content in pieces:
        extents.append(Extent(at, size, content))
        at += size
    data = [content for size, content in pieces for _ in range(size)]
    model = []
    for start in range(0, at, BLOCK):
        content = HOLE
        for byte in data[start : start + BLOCK]:
            content &= byte
        model.append(content)
    answer = list(whole_blocks(extents, BLOCK))
    assert [extent.content for extent in answer for _ in range(extent.length // BLOCK)] == model
    assert [extent.offset % BLOCK for extent in answer] == [0] * len(answer)


def test_merged_joins_equal_neighbours() -> None:
    extents = [Extent(0, 5, DATA), Extent(5, 5, DATA), Extent(10, 1, HOLE), Extent(11, 1, DATA)]
    assert list(merged(extents)) == [Extent(0, 10, DATA), Extent(10, 1, HOLE), Extent(11, 1, DATA)]


def test_merged_of_nothing_is_nothing() -> None:
    assert list(merged([])) == []
