"""Each kind of call takes its own time more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from iscsid_plugins import delay
from layer_kit import Recorder, read, write

from iscsid.block.guard import Guarded

Wrap = Callable[..., Any]


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(delay.time, "sleep", slept.append)
    return slept


def test_calls_wait_as_long_as_is_said(below: Recorder, wrap: Wrap, slept: list[float]) -> None:
    guard = Guarded(wrap(below, "delay", read=10, write=20, flush=30))
    read(guard)
    write(guard, bytes(512))
    guard.discard(0, 512)
    guard.flush()
    assert slept == [0.01, 0.02, 0.02, 0.03]


def test_jitter_adds_up_to_its_bound(below: Recorder, wrap: Wrap, slept: list[float]) -> None:
    guard = Guarded(wrap(below, "delay", read=10, jitter=5))
    for _ in range(50):
        read(guard, 0, 512)
    guard.flush()
    assert len(set(slept)) > 10
    assert all(0.01 <= seconds <= 0.015 for seconds in slept)


def test_delayed_call_is_refused_in_the_loop_and_others_are_not(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "delay", write=10))
    guard.read_now(memoryview(bytearray(512)), 0)
    with pytest.raises(BlockingIOError):
        guard.write_now(memoryview(bytes(512)), 0)
    assert below.names() == ["read_nowait"]
