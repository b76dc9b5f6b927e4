"""The last step of a command, here and in a pool that is a list; and what is told when a session is over."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.errors import BlockError, Fault
from iscsid.target.calls import Calls, holds


class Rig:
    """Calls over a pool that runs when it is told to, and a log of everything that they ask for."""

    def __init__(self) -> None:
        self.pool: list[tuple[Callable[[], Any], Callable[[Any, Exception | None], None]]] = []
        self.log: list[Any] = []
        data_out: Any = SimpleNamespace(end=lambda task, answer: answer())
        answers: Any = SimpleNamespace(
            fail=lambda command, error, *, writes, sent: self.log.append(("fail", str(error), writes, sent))
        )
        self.calls = Calls(
            lambda run, done: self.pool.append((run, done)), data_out, answers, lambda: self.log.append("heard")
        )

    def turn(self) -> None:
        run, done = self.pool.pop(0)
        try:
            result = run()
        except Exception as error:
            done(None, error)
        else:
            done(result, None)

    def good(self, data: Any) -> None:
        self.log.append(("good", bytes(data)))


@pytest.fixture
def rig() -> Rig:
    return Rig()


def task(**values: Any) -> Any:
    made = {"aborted": False, "running": False, "command": None, "transfer": SimpleNamespace(received=512)}
    return SimpleNamespace(**{**made, "ended": lambda: None, **values})


def device(log: list[Any], free: bool = True) -> Any:
    @contextlib.contextmanager
    def held(name: str) -> Iterator[None]:
        log.append(f"{name} held")
        yield
        log.append(f"{name} free")

    def exclusive(offset: int, length: int, wait: bool = True) -> contextlib.AbstractContextManager[None]:
        if not wait and not free:
            raise BlockError(Fault.BUSY)
        return held("range")

    return SimpleNamespace(lock=held("lock"), exclusive=exclusive)


def fail() -> bytes:
    raise OSError("no")


def test_conclude_runs_and_answers_at_once(rig: Rig) -> None:
    rig.calls.conclude(task(), lambda: b"data", rig.good, writes=False)
    rig.calls.conclude(task(), fail, rig.good, writes=True)
    assert rig.log == [("good", b"data"), ("fail", "no", True, 512)]


def test_call_in_the_pool_holds_the_range_before_the_lock_and_answers_afterwards(rig: Rig) -> None:
    one = task()
    rig.calls.in_pool(one, device(rig.log), lambda: b"data", rig.good, writes=True, exclusive=(0, 512))
    assert one.running
    assert rig.calls.in_flight == 1
    assert rig.log == []
    rig.turn()
    assert not one.running
    assert rig.calls.in_flight == 0
    assert rig.log == ["range held", "lock held", "lock free", "range free", ("good", b"data"), "heard"]


def test_call_with_a_lock_of_its_own_leaves_that_of_the_device(rig: Rig) -> None:
    lock = contextlib.nullcontext()
    rig.calls.in_pool(task(), device(rig.log), lambda: b"", rig.good, writes=True, lock=lock)
    rig.turn()
    assert rig.log == [("good", b""), "heard"]


def test_call_that_fails_in_the_pool_is_answered_with_its_error(rig: Rig) -> None:
    rig.calls.in_pool(task(), device([]), fail, rig.good, writes=True)
    rig.turn()
    assert rig.log == [("fail", "no", True, 512), "heard"]


def test_aborted_task_is_not_answered(rig: Rig) -> None:
    one = task()
    rig.calls.in_pool(one, device([]), lambda: b"", rig.good, writes=True)
    one.aborted = True
    rig.turn()
    assert rig.log == ["heard"]


def test_when_idle_without_a_call_is_told_at_once(rig: Rig) -> None:
    rig.calls.when_idle(lambda: rig.log.append("idle"))
    assert rig.log == ["idle"]


def test_closed_session_hears_nothing_of_its_calls_and_tells_when_the_last_has_ended(rig: Rig) -> None:
    one, two = task(ended=lambda: rig.log.append("ended")), task()
    for each in (one, two):
        rig.calls.in_pool(each, device([]), lambda: b"", rig.good, writes=True)
    rig.calls.close([one])
    rig.calls.when_idle(lambda: rig.log.append("idle"))
    rig.turn()
    assert rig.log == []
    rig.turn()
    assert rig.log == ["ended", "idle"]


@pytest.mark.parametrize(
    ("free", "exclusive", "expected"), [(True, (0, 512), True), (False, (0, 512), False), (False, None, True)]
)
def test_holds_waits_for_nobody(free: bool, exclusive: tuple[int, int] | None, expected: bool) -> None:
    log: list[Any] = []
    with contextlib.ExitStack() as held:
        assert holds(held, device(log, free), exclusive) is expected
        assert log == (["range held"] if exclusive and free else [])
