"""Placement is a table: each row is one situation and the worker it gives."""

from __future__ import annotations

import pytest

from iscsid.block.device import Sharing
from iscsid.daemon.placement import choose, is_exclusive, owners
from iscsid.specs import LunSpec, TargetSpec

LOADS = {0: 3, 1: 1, 2: 1, 3: 2}


@pytest.mark.parametrize(
    ("session", "nexus", "owner", "loads", "worker"),
    [
        # by load
        (None, None, None, LOADS, 1),  # the least loaded; the lower index of two
        (None, None, None, {3: 0, 1: 0}, 1),
        (None, None, None, {0: 5}, 0),
        (None, None, None, {}, None),  # nobody is ready
        # by rule, whatever the load
        (0, None, None, LOADS, 0),
        (None, 0, None, LOADS, 0),
        (None, None, 0, LOADS, 0),
        # which rule wins
        (0, 1, 2, LOADS, 0),
        (None, 3, 2, LOADS, 3),
        # the one it belongs to is being replaced: wait, do not go elsewhere
        (4, None, None, LOADS, None),
        (None, 4, None, LOADS, None),
        (None, None, 4, LOADS, None),
        (4, 1, 2, LOADS, None),
    ],
)
def test_choose(
    session: int | None, nexus: int | None, owner: int | None, loads: dict[int, int], worker: int | None
) -> None:
    assert choose(session, nexus, owner, loads) == worker


@pytest.mark.parametrize(
    ("loads", "coming", "worker"),
    [
        ({0: 1}, {1}, None),  # the one that comes will be the least loaded: wait for it
        ({0: 0}, {1}, 0),
        ({1: 0}, {0}, 1),  # as good as the one that comes, and there
        ({0: 2, 1: 1}, {2}, None),
        ({}, {0}, None),
    ],
)
def test_choose_waits_for_a_worker_that_comes_only_where_it_will_be_better(
    loads: dict[int, int], coming: set[int], worker: int | None
) -> None:
    assert choose(None, None, None, loads, coming) == worker


@pytest.mark.parametrize("rule", [(0, None, None), (None, 0, None), (None, None, 0)])
def test_choose_by_rule_does_not_look_at_who_comes(rule: tuple[int | None, int | None, int | None]) -> None:
    assert choose(*rule, {0: 5}, {1}) == 0
    assert choose(*rule, {1: 5}, {0}) is None


def test_choose_deals_new_sessions_evenly() -> None:
    loads = dict.fromkeys(range(3), 0)
    for _ in range(9):
        worker = choose(None, None, None, loads)
        assert worker is not None
        loads[worker] += 1
    assert loads == {0: 3, 1: 3, 2: 3}


@pytest.mark.parametrize(
    ("readonly", "sharing", "expected"),
    [
        (False, Sharing.SHARED, False),
        (True, Sharing.SHARED, False),
        (False, Sharing.SHARED_READ, True),
        (True, Sharing.SHARED_READ, False),
        (False, Sharing.EXCLUSIVE_OWNER, True),
        (True, Sharing.EXCLUSIVE_OWNER, True),
    ],
)
def test_is_exclusive(readonly: bool, sharing: Sharing, expected: bool) -> None:
    assert is_exclusive(LunSpec(0, "x", readonly=readonly), sharing) is expected


def target(name: str, *backends: str) -> TargetSpec:
    return TargetSpec(name, tuple(LunSpec(lun, backend) for lun, backend in enumerate(backends)))


def test_owners_are_dealt_out_in_turn_to_exclusive_targets_only() -> None:
    sharing = {"file": Sharing.SHARED, "qcow2": Sharing.EXCLUSIVE_OWNER}
    targets = [target("a", "file"), target("b", "file", "qcow2"), target("c", "qcow2", "qcow2"), target("d", "qcow2")]
    assert owners(targets, lambda lun: sharing[lun.backend], 2) == {"b": 0, "c": 1, "d": 0}


def test_owners_of_shared_targets_are_none() -> None:
    assert owners([target("a", "file"), target("b")], lambda lun: Sharing.SHARED, 4) == {}
