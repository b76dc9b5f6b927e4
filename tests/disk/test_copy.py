"""The copy and the comparison: chunks, holes, buffers, and what is left after a crash."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from disk_kit import MemoryEnd
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsid.disk import state as states
from iscsid.disk.copy import Compare, Copied, Copy, Differs, Interrupted, aligned, chunks, data_runs
from iscsid.disk.ends import EndError, Extent


def data(offset: int, length: int) -> Extent:
    return Extent(offset, length, data=True)


def hole(offset: int, length: int) -> Extent:
    return Extent(offset, length, data=False)


# -- extents -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extents", "grain", "size", "expected"),
    [
        ([], 4, 10, [hole(0, 10)]),
        ([data(0, 10)], 4, 10, [data(0, 10)]),
        ([hole(0, 5), data(5, 1), hole(6, 10)], 4, 16, [hole(0, 4), data(4, 4), hole(8, 8)]),
        ([data(1, 1), data(3, 1)], 4, 4, [data(0, 4)]),
        ([data(0, 6), data(2, 6)], 1, 8, [data(0, 6), data(6, 2)]),
        ([data(9, 1)], 4, 10, [hole(0, 8), data(8, 2)]),
        ([data(0, 20)], 4, 10, [data(0, 10)]),
        ([], 4, 0, []),
    ],
)
def test_data_is_widened_to_the_grain_and_gaps_become_holes(
    extents: list[Extent], grain: int, size: int, expected: list[Extent]
) -> None:
    assert list(aligned(extents, grain, size)) == expected


@given(
    pieces=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 50), st.booleans()), max_size=12),
    grain=st.integers(1, 16),
    size=st.integers(0, 260),
)
def test_aligned_extents_have_no_gap_and_lose_no_data(
    pieces: list[tuple[int, int, bool]], grain: int, size: int
) -> None:
    found = list(aligned([Extent(*piece) for piece in sorted(pieces)], grain, size))
    position = 0
    for extent in found:
        assert extent.offset == position
        assert extent.length > 0
        assert extent.offset % grain == 0
        position += extent.length
    assert position == size
    covered = {byte for extent in found if extent.data for byte in range(extent.offset, extent.offset + extent.length)}
    for offset, length, is_data in pieces:
        if is_data:
            assert set(range(offset, min(offset + length, size))) <= covered


def test_chunks_begin_where_the_copy_goes_on() -> None:
    extents = [data(0, 10), hole(10, 5), data(15, 4)]
    assert list(chunks(extents, 0, 4)) == [data(0, 4), data(4, 4), data(8, 2), hole(10, 5), data(15, 4)]
    assert list(chunks(extents, 9, 4)) == [data(9, 1), hole(10, 5), data(15, 4)]
    assert list(chunks(extents, 12, 4)) == [hole(12, 3), data(15, 4)]
    assert list(chunks(extents, 19, 4)) == []


@pytest.mark.parametrize(
    ("content", "length", "expected"),
    [
        (b"\0" * 12, 12, []),
        (b"a" * 12, 12, [(0, 12)]),
        (b"\0\0\0\0a\0\0\0\0\0\0\0", 12, [(4, 8)]),
        (b"a\0\0\0\0\0\0\0\0a", 10, [(0, 4), (8, 10)]),
        (b"\0\0\0\0\0\0aaaaaa", 6, []),
    ],
)
def test_runs_of_data_are_found(content: bytes, length: int, expected: list[tuple[int, int]]) -> None:
    assert data_runs(bytearray(content), length, 4) == expected


# -- the copy ----------------------------------------------------------------------------------------------------------

SPARSE = b"a" * 100 + bytes(300) + b"b" * 50 + bytes(150) + b"c" * 40


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("block_size", [1, 8, 32])
def test_destination_becomes_equal(block_size: int, fresh: bool, sparse: bool, depth: int, lazy: bool) -> None:
    source = MemoryEnd(SPARSE, holes=[(100, 300)], lazy=lazy)
    before = bytes(704) if fresh else b"x" * 704
    destination = MemoryEnd(before, block_size=block_size, fresh=fresh, lazy=lazy)
    copied = Copy(source, destination, depth=depth, sparse=sparse).run()
    padded = -(-640 // block_size) * block_size
    assert destination.durable == SPARSE.ljust(padded, b"\0") + before[padded:]
    assert copied.written + copied.zeros >= len(SPARSE)
    assert source.most_in_flight <= depth


def test_holes_are_neither_read_nor_written_on_a_fresh_destination() -> None:
    source = MemoryEnd(SPARSE, holes=[(100, 300), (450, 150)])
    destination = MemoryEnd(bytes(640), fresh=True)
    copied = Copy(source, destination).run()
    assert sum(length for kind, _, length in source.calls if kind == "read") == 190
    assert sum(length for kind, _, length in destination.calls if kind == "write") == 190
    assert destination.count("zero") == 0
    assert copied == Copied(0, 640, written=190, zeros=450)


def test_holes_are_zeroed_on_a_destination_that_had_something() -> None:
    destination = MemoryEnd(b"x" * 640)
    Copy(MemoryEnd(SPARSE, holes=[(100, 300)]), destination).run()
    assert ("zero", 100, 300) in destination.calls


def test_zeros_that_the_source_calls_data_are_not_written_to_a_fresh_destination() -> None:
    destination = MemoryEnd(bytes(640), fresh=True)
    copied = Copy(MemoryEnd(SPARSE), destination).run()
    assert copied.zeros > 0
    assert destination.content == SPARSE
    assert destination.count("write") < 640 // 64


def test_without_sparse_everything_is_written() -> None:
    destination = MemoryEnd(bytes(640), fresh=True)
    assert Copy(MemoryEnd(SPARSE, holes=[(100, 300)]), destination, sparse=False).run() == Copied(0, 640, 640, 0)


def test_several_transfers_are_in_flight_at_both_ends() -> None:
    source, destination = MemoryEnd(b"a" * 2000), MemoryEnd(bytes(2000))
    Copy(source, destination, depth=8).run()
    assert source.most_in_flight >= 4
    assert destination.most_in_flight >= 4


def test_progress_goes_up_to_the_size() -> None:
    told: list[int] = []
    Copy(MemoryEnd(SPARSE), MemoryEnd(bytes(640)), report=told.append).run()
    assert told == sorted(told)
    assert told[-1] == 640


def test_empty_source_is_copied() -> None:
    assert Copy(MemoryEnd(b""), MemoryEnd(b"xyz")).run() == Copied(0, 0)


def test_depth_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        Copy(MemoryEnd(b"a"), MemoryEnd(b"b"), depth=0)


# -- state -------------------------------------------------------------------------------------------------------------


def test_interrupted_copy_goes_on_where_it_was(tmp_path: Path) -> None:
    source, destination = MemoryEnd(b"abcd" * 100), MemoryEnd(bytes(400))
    path = tmp_path / "state"
    asked: list[int] = []

    def third_time() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(Interrupted) as caught:
        Copy(source, destination, path=path, stop=third_time).run()
    assert caught.value.position == 192
    assert destination.durable[:192] == bytes(source.content[:192])
    state = states.load(path)
    assert state is not None
    assert state.position == 192
    source.calls.clear()
    assert Copy(source, destination, path=path, state=state).run().begin == 192
    assert min(offset for _, offset, _ in source.calls) == 192
    assert destination.durable == bytes(source.content)


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("lose_at", [range(2, 8), [9, 10], [9, 10, 12, 13], [4, 5, 6, 7, 22, 23]])
def test_what_a_destination_has_lost_before_it_was_flushed_is_copied_again(
    tmp_path: Path, lose_at: Sequence[int], fresh: bool
) -> None:
    """It was lost with its cache, and was there again: the flush after that succeeds."""
    source = MemoryEnd(SPARSE + b"xyz" * 200 + SPARSE)
    destination = MemoryEnd(bytes(source.size), fresh=fresh, lose_at=lose_at)
    clock = iter(range(10_000))
    told: list[int] = []
    Copy(
        source,
        destination,
        depth=3,
        path=tmp_path / "state",
        checkpoint_seconds=6,
        clock=lambda: float(next(clock)),
        report=told.append,
    ).run()
    assert destination.sessions > 1
    assert destination.durable == bytes(source.content)
    assert told[-1] == source.size


def test_destination_that_is_lost_again_and_again_is_given_up(tmp_path: Path) -> None:
    source = MemoryEnd(b"abcd" * 200)
    destination = MemoryEnd(bytes(800), lose_at=range(10_000))
    with pytest.raises(EndError, match="again and again"):
        Copy(source, destination, depth=2, path=tmp_path / "state").run()
    state = states.load(tmp_path / "state")
    assert state is not None and state.position == 0


def test_state_is_there_before_anything_was_copied(tmp_path: Path) -> None:
    source = MemoryEnd(b"a" * 64, fail_at=0)
    with pytest.raises(EndError):
        Copy(source, MemoryEnd(bytes(64)), path=tmp_path / "state").run()
    state = states.load(tmp_path / "state")
    assert state is not None
    assert state.position == 0


def test_checkpoints_come_by_the_clock(tmp_path: Path) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    flushed: list[int] = []
    destination = MemoryEnd(bytes(640))
    flush = destination.flush

    def counting() -> None:
        flush()
        flushed.append(1)

    destination.flush = counting  # type: ignore[method-assign]
    Copy(MemoryEnd(b"a" * 640), destination, path=tmp_path / "state", checkpoint_seconds=3, clock=clock).run()
    assert 3 <= len(flushed) <= 5


@settings(deadline=None)  # it waits for a disk, which others use too
@given(
    content=st.lists(st.sampled_from([b"a" * 24, b"bc" * 20, bytes(48), bytes(8)]), min_size=1, max_size=24),
    ticks=st.integers(1, 6),
    depth=st.integers(1, 5),
    fail=st.integers(0, 40),
    fresh=st.booleans(),
    lazy=st.booleans(),
)
def test_crash_at_any_time_loses_nothing_that_the_state_counts(
    tmp_path_factory: pytest.TempPathFactory,
    content: list[bytes],
    ticks: int,
    depth: int,
    fail: int,
    fresh: bool,
    lazy: bool,
) -> None:
    path = tmp_path_factory.mktemp("state") / "state"
    whole = b"".join(content)
    destination = MemoryEnd(
        (bytes if fresh else lambda count: b"x" * count)(len(whole) + 8 - len(whole) % 8),
        block_size=8,
        max_transfer=32,
        fresh=fresh,
        lazy=lazy,
        fail_at=fail,
    )
    source = MemoryEnd(whole, max_transfer=48)
    clock = iter(range(10_000))
    try:
        Copy(
            source, destination, depth=depth, path=path, checkpoint_seconds=ticks, clock=lambda: float(next(clock))
        ).run()
    except EndError:
        destination.crash()
        state = states.load(path)
        assert state is not None
        assert destination.durable[: state.position] == whole[: state.position]
        Copy(source, destination, depth=depth, path=path, state=state).run()
    assert destination.durable[: len(whole)] == whole


# -- the comparison ----------------------------------------------------------------------------------------------------


def test_equal_ends_compare_equal_whatever_lies_behind() -> None:
    told: list[int] = []
    Compare(MemoryEnd(SPARSE), MemoryEnd(SPARSE + b"more"), depth=3, report=told.append).run()
    assert told[-1] == 640


@pytest.mark.parametrize("offset", [0, 63, 64, 300, 639])
@pytest.mark.parametrize("depth", [1, 4])
def test_first_difference_is_told(offset: int, depth: int) -> None:
    other = bytearray(SPARSE)
    for place in {offset, 639}:
        other[place] ^= 1
    with pytest.raises(Differs, match=f"other differs from memory at byte {offset}$") as caught:
        Compare(MemoryEnd(SPARSE), MemoryEnd(bytes(other), name="other"), depth=depth).run()
    assert caught.value.offset == offset


def test_what_both_call_a_hole_is_not_read() -> None:
    source = MemoryEnd(SPARSE, holes=[(100, 300)])
    destination = MemoryEnd(SPARSE, holes=[(200, 250), (450, 150)])
    with pytest.raises(Differs):
        Compare(source, MemoryEnd(SPARSE.replace(b"b", b"x"), holes=[(200, 200)]), depth=2).run()
    destination = MemoryEnd(SPARSE, holes=[(200, 200)])
    source.calls.clear()
    Compare(source, destination).run()
    assert not any(offset < 400 and offset + length > 200 for _, offset, length in source.calls + destination.calls)


def test_last_block_of_the_destination_may_be_padded() -> None:
    Compare(MemoryEnd(b"a" * 100), MemoryEnd(b"a" * 100 + b"z" * 28, block_size=32)).run()


def test_comparison_does_not_read_what_this_host_remembers() -> None:
    source, destination = MemoryEnd(b"abc" * 20), MemoryEnd(b"abc" * 20)
    Compare(source, destination).run()
    assert source.calls[0] == destination.calls[0] == ("drop cache", 0, 0)


def test_comparison_stops_when_asked() -> None:
    with pytest.raises(Interrupted):
        Compare(MemoryEnd(SPARSE), MemoryEnd(SPARSE), stop=lambda: True).run()
