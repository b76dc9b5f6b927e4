"""What may pass is tried again, as often as is said and no oftener; a flush never."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from iscsid_plugins import retry
from layer_kit import Recorder, read, write

from iscsid.block.guard import Guarded
from iscsid.block.turn import Later, Turn, current
from iscsid.errors import BlockError, Fault

Wrap = Callable[..., Any]


def failing(times: int, error: Exception) -> Callable[[str, int, int], None]:
    left = [times]

    def fail(_name: str, _offset: int, _length: int) -> None:
        if left[0]:
            left[0] -= 1
            raise error

    return fail


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("error", [OSError(errno.EIO, "x"), BlockError(Fault.BUSY), OSError(errno.ENOTCONN, "x")])
def test_call_that_fails_for_a_while_succeeds(
    below: Recorder, wrap: Wrap, slept: list[float], error: Exception
) -> None:
    below.fail = failing(2, error)
    guard = Guarded(wrap(below, "retry", times=2, delay=50))
    read(guard)
    assert (len(below.calls), slept) == (3, [0.05, 0.05])


def test_call_that_goes_on_failing_fails(below: Recorder, wrap: Wrap, slept: list[float]) -> None:
    below.fail = failing(100, OSError(errno.EIO, "x"))
    with pytest.raises(OSError, match="x"):
        write(Guarded(wrap(below, "retry", times=3)), bytes(512))
    assert len(below.calls) == 4


@pytest.mark.parametrize("error", [BlockError(Fault.NO_SPACE), OSError(errno.EROFS, "x"), BlockError(Fault.INVALID)])
def test_what_does_not_pass_is_not_tried_again(below: Recorder, wrap: Wrap, error: Exception) -> None:
    below.fail = failing(100, error)
    with pytest.raises(type(error)):
        write(Guarded(wrap(below, "retry")), bytes(512))
    assert len(below.calls) == 1


def test_flush_is_not_tried_again(below: Recorder, wrap: Wrap) -> None:
    below.fail = failing(1, OSError(errno.EIO, "x"))
    with pytest.raises(OSError, match="x"):
        Guarded(wrap(below, "retry")).flush()


def test_failure_in_the_loop_goes_to_the_pool(below: Recorder, wrap: Wrap) -> None:
    below.fail = failing(1, OSError(errno.EIO, "x"))
    with pytest.raises(BlockingIOError):
        Guarded(wrap(below, "retry")).read_now(memoryview(bytearray(512)), 0)


def test_call_begun_anew_is_not_tried_oftener(below: Recorder, wrap: Wrap, slept: list[float]) -> None:
    """As the pool does it: each wait leaves the call."""
    below.fail = failing(100, OSError(errno.EIO, "x"))
    guard, turn = Guarded(wrap(below, "retry", times=3)), Turn()
    token, over, waits = current.set(turn), frozenset[int](), 0
    try:
        with pytest.raises(OSError, match="x"):
            while True:
                turn.begin(over)
                try:
                    read(guard)
                except Later:
                    over, waits = frozenset(turn.over), waits + 1
    finally:
        current.reset(token)
    assert (len(below.calls), waits, slept) == (4, 3, [])
