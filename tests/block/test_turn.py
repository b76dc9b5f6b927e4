"""Waits on purpose: who sleeps, who leaves, and what is asked again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from iscsid.block.device import Device
from iscsid.block.guard import Guarded
from iscsid.block.turn import Later, Turn, current, pause, stay


@pytest.fixture
def turn() -> Iterator[Turn]:
    turn = Turn()
    token = current.set(turn)
    yield turn
    current.reset(token)


def test_pause_without_a_turn_sleeps() -> None:
    slept: list[float] = []
    pause("layer", lambda: 2.0, slept.append)
    pause("layer", lambda: 0.0, slept.append)
    assert slept == [2.0]


def test_pause_in_a_turn_leaves_and_is_over_the_next_time(turn: Turn) -> None:
    slept: list[float] = []
    turn.begin()
    with pytest.raises(Later) as caught:
        pause("layer", lambda: 2.0, slept.append)
    assert caught.value.seconds == 2.0
    turn.begin(frozenset(turn.over))
    pause("layer", lambda: 1 / 0, slept.append)
    assert slept == []


def test_second_call_of_a_layer_sleeps(turn: Turn) -> None:
    slept: list[float] = []
    turn.begin()
    pause("layer", lambda: 0.0, slept.append)
    pause("layer", lambda: 3.0, slept.append)
    assert slept == [3.0]


def test_wait_that_was_none_is_not_asked_for_again(turn: Turn) -> None:
    turn.begin()
    asked: list[str] = []
    pause("upper", lambda: asked.append("upper") or 0.0, asked.append)  # type: ignore[func-returns-value, arg-type]
    with pytest.raises(Later):
        pause("lower", lambda: 1.0, asked.append)  # type: ignore[arg-type]
    turn.begin(frozenset(turn.over))
    pause("upper", lambda: 1 / 0, asked.append)  # type: ignore[arg-type]
    pause("lower", lambda: 1 / 0, asked.append)  # type: ignore[arg-type]
    assert asked == ["upper"]


def test_turn_that_begins_anew_has_forgotten(turn: Turn) -> None:
    for _ in range(2):
        turn.begin()
        with pytest.raises(Later):
            pause("layer", lambda: 1.0, lambda _: None)


def test_guard_lets_a_device_leave(turn: Turn) -> None:
    class Slow(Device):
        size = 4096

        def read_into(self, buffer: memoryview, offset: int) -> None:
            pause(self, lambda: 1.0, lambda _: None)
            buffer[:] = b"x" * len(buffer)

    guard, buffer = Guarded(Slow()), bytearray(512)
    turn.begin()
    with pytest.raises(Later):
        guard.read_into(memoryview(buffer), 0)
    turn.begin(frozenset(turn.over))
    guard.read_into(memoryview(buffer), 0)
    assert buffer == b"x" * 512


def test_call_that_stays_sleeps_where_it_would_be_left(turn: Turn) -> None:
    slept: list[float] = []
    turn.begin()
    stay()
    pause("layer", lambda: 2.0, slept.append)
    assert slept == [2.0]
    turn.begin()
    with pytest.raises(Later):
        pause("layer", lambda: 2.0, slept.append)


def test_staying_without_a_turn_is_nothing() -> None:
    stay()
