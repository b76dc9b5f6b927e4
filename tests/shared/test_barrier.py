"""Invariant: a barrier is passed exactly when each worker has acknowledged every part or is dead."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from iscsid.shared.barrier import DEADLINE, Barrier


def test_barrier_for_nobody_is_passed_at_once() -> None:
    barrier = Barrier(1, {}, 0.0)
    assert barrier.passed
    assert barrier.deadline is None
    assert barrier.late(1000.0) == []


def test_worker_without_a_part_is_not_waited_for() -> None:
    assert Barrier(1, {0: 0}, 0.0).passed


def test_barrier_waits_for_every_part_of_every_worker() -> None:
    barrier = Barrier(7, {0: 1, 1: 2}, 0.0)
    barrier.applied(1, 7)
    barrier.applied(0, 7)
    assert not barrier.waits_for(0)
    assert barrier.waits_for(1)
    assert not barrier.passed
    barrier.applied(1, 7)
    assert barrier.passed


def test_acknowledgement_of_another_generation_does_not_count() -> None:
    barrier = Barrier(7, {0: 1}, 0.0)
    barrier.applied(0, 6)
    barrier.applied(0, 8)
    assert not barrier.passed


def test_acknowledgement_of_a_stranger_does_not_count() -> None:
    barrier = Barrier(7, {0: 1}, 0.0)
    barrier.applied(3, 7)
    assert not barrier.passed


def test_acknowledgement_too_many_does_not_count_for_others() -> None:
    barrier = Barrier(7, {0: 1, 1: 1}, 0.0)
    barrier.applied(0, 7)
    barrier.applied(0, 7)
    assert barrier.waits_for(1)


def test_death_counts_for_all_parts() -> None:
    barrier = Barrier(7, {0: 3}, 0.0)
    barrier.died(0)
    assert barrier.passed
    barrier.died(0)
    assert barrier.passed


def test_late_workers_are_told_once_and_waited_for_still() -> None:
    barrier = Barrier(7, {2: 1, 0: 1, 1: 1}, 100.0)
    barrier.applied(1, 7)
    assert barrier.deadline == 100.0 + DEADLINE
    assert barrier.late(100.0 + DEADLINE - 0.001) == []
    assert barrier.late(100.0 + DEADLINE) == [0, 2]
    assert barrier.late(200.0) == []
    assert barrier.deadline is None
    assert not barrier.passed


def test_extended_barrier_gives_its_whole_time_again() -> None:
    barrier = Barrier(7, {0: 1}, 100.0)
    barrier.extend(150.0)
    assert barrier.late(150.0) == []
    assert barrier.deadline == 150.0 + DEADLINE
    assert barrier.late(160.0) == [0]
    barrier.extend(170.0)
    assert barrier.late(1000.0) == [], "who was told of is killed already"


@given(
    st.dictionaries(st.integers(0, 3), st.integers(0, 3)),
    st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(1, 2)), max_size=30),
)
def test_any_order_of_events_passes_when_and_only_when_all_are_through(
    parts: dict[int, int], events: list[tuple[bool, int, int]]
) -> None:
    barrier = Barrier(1, parts, 0.0)
    left = dict(parts)
    for dies, worker, generation in events:
        if dies:
            barrier.died(worker)
            left.pop(worker, None)
        else:
            barrier.applied(worker, generation)
            if generation == 1 and left.get(worker):
                left[worker] -= 1
        assert barrier.passed == (not any(left.values()))
        assert all(barrier.waits_for(worker) == bool(left.get(worker)) for worker in range(5))
