"""daemon.thresholds: who has asked for it is told, once, when a medium runs full."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.block.device import Space
from iscsid.daemon.errands import Errands
from iscsid.daemon.thresholds import Thresholds
from iscsid.scsi.mode import ModeState
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId

ENABLED = ModeState(lbpere=True, threshold_enabled=True, threshold_count=10)
NEXUS = NexusId("iqn.2026-11.org.example:host", 1, "iqn.2026-11.org.iscsid:disk0", 1)
SET = 1 << 20


class Bench:
    """A unit, a session and a pool that answers when it is told to."""

    def __init__(self, state: ModeState = ENABLED) -> None:
        self.left = 100 * SET
        self.trouble: Exception | None = None
        self.asked: list[Callable[[], None]] = []
        self.heard: list[tuple[Any, ...]] = []
        device = type("Device", (), {"lock": contextlib.nullcontext()})()
        device.space = self._space
        identity = SimpleNamespace(name="disk0")
        self.unit: Any = type("Unit", (), {})()
        vars(self.unit).update(metered=True, mode_state=state, device=device, identity=identity, threshold_set=SET)
        self.session: Any = SimpleNamespace(nexus=NEXUS, update=self._update)
        self.thresholds = Thresholds([self.unit], lambda: [self.session], Errands(self._submit))

    def _space(self) -> Space:
        if self.trouble is not None:
            raise self.trouble
        return Space(0, self.left)

    def _update(self, unit: Any, attentions: Any, aborts: Any, then: Callable[[], None]) -> None:
        assert unit is self.unit and not aborts
        self.heard += [(raised.nexus, raised.reason) for raised in attentions]
        then()

    def _submit(self, run: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        def answer() -> None:
            try:
                result = run()
            except OSError as error:
                done(None, error)
            else:
                done(result, None)

        self.asked.append(answer)

    def second(self) -> int:
        """A tick and its answers; how many unit attentions it has brought."""
        before = len(self.heard)
        self.thresholds.tick()
        while self.asked:
            self.asked.pop()()
        return len(self.heard) - before


def test_threshold_that_is_reached_is_told_once() -> None:
    bench = Bench()
    assert bench.second() == 0
    bench.left = 11 * SET
    assert bench.second() == 0
    bench.left = 11 * SET - 1  # ten whole threshold sets are left
    assert [bench.second(), bench.second()] == [1, 0]
    assert bench.heard == [(NEXUS, Reason.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED)]


def test_threshold_is_armed_again_by_space() -> None:
    bench = Bench()
    bench.left = 0
    assert bench.second() == 1
    bench.left = 50 * SET
    assert bench.second() == 0
    bench.left = 0
    assert bench.second() == 1


@pytest.mark.parametrize(
    "state",
    [ModeState(threshold_enabled=True, threshold_count=10), ModeState(lbpere=True, threshold_count=10), ModeState()],
)
def test_device_is_not_asked_for_a_threshold_that_nobody_has_enabled(state: ModeState) -> None:
    bench = Bench(state)
    bench.left = 0
    bench.thresholds.tick()
    assert not bench.asked


def test_threshold_that_is_enabled_again_is_told_again() -> None:
    bench = Bench()
    bench.left = 0
    assert bench.second() == 1
    bench.unit.mode_state = ModeState()
    assert bench.second() == 0
    bench.unit.mode_state = ENABLED
    assert bench.second() == 1


def test_threshold_that_is_disabled_meanwhile_is_not_told() -> None:
    bench = Bench()
    bench.left = 0
    bench.thresholds.tick()
    bench.unit.mode_state = ModeState()
    bench.asked.pop()()
    assert not bench.heard


def test_device_that_takes_its_time_is_not_asked_twice() -> None:
    bench = Bench()
    bench.thresholds.tick()
    bench.thresholds.tick()
    assert len(bench.asked) == 1


def test_device_that_fails_to_tell_is_asked_again() -> None:
    bench = Bench()
    bench.trouble = OSError(5, "no")
    assert bench.second() == 0
    bench.trouble, bench.left = None, 0
    assert bench.second() == 1


def test_session_without_a_target_is_told_nothing() -> None:
    bench = Bench()
    bench.left, bench.session.nexus = 0, None
    assert bench.second() == 0


def test_unit_that_is_not_metered_is_left_alone() -> None:
    bench = Bench()
    bench.unit.metered = False
    thresholds = Thresholds([bench.unit], lambda: [bench.session], Errands(bench._submit))
    thresholds.tick()
    assert not bench.asked
