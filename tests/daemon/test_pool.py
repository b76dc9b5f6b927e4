"""The pool: results come back in the loop, threads are bounded, and nothing that hangs or raises stops the rest."""

from __future__ import annotations

import gc
import os
import select
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.block.turn import pause
from iscsid.daemon import pool as module
from iscsid.daemon.pool import Pool
from iscsid.errors import BlockError, Fault, ScsiError
from iscsid.scsi.sense import Reason
from iscsid.target.task import DeviceCall

WAIT = 20.0


class Heard(list[tuple[Any, Exception | None]]):
    """A ``done`` that keeps what it was told, and where."""

    def __init__(self) -> None:
        self.threads: set[threading.Thread] = set()

    def __call__(self, result: Any, error: Exception | None) -> None:
        self.append((result, error))
        self.threads.add(threading.current_thread())


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(3)
    yield pool
    assert pool.close(WAIT), "a thread hangs"


def test_result_of_a_call_is_reported_in_the_collecting_thread(pool: Pool) -> None:
    heard, ran = Heard(), Heard()
    pool.submit(lambda: ran(1, None) or 7, heard)
    assert pool.outstanding == 1
    assert pool.wait(WAIT)
    assert heard == [(7, None)]
    assert heard.threads == {threading.current_thread()}
    assert ran.threads != heard.threads
    assert pool.outstanding == 0


def test_file_descriptor_is_readable_only_when_something_has_finished(pool: Pool) -> None:
    gate = threading.Event()
    pool.submit(gate.wait, Heard())
    assert not select.select([pool], [], [], 0)[0]
    gate.set()
    assert select.select([pool], [], [], WAIT)[0]
    pool.collect()
    assert not select.select([pool], [], [], 0)[0]


def test_collect_with_nothing_finished_does_nothing(pool: Pool) -> None:
    pool.collect()
    assert pool.outstanding == 0


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), BlockError(Fault.BUSY), ZeroDivisionError()])
def test_error_of_a_call_is_reported_as_it_is(pool: Pool, error: Exception) -> None:
    heard = Heard()

    def run() -> None:
        raise error

    pool.submit(run, heard)
    assert pool.wait(WAIT)
    assert heard == [(None, error)]


def test_call_that_exits_the_interpreter_fails_and_its_thread_lives_on() -> None:
    pool, heard = Pool(1), Heard()
    pool.submit(lambda: sys.exit(3), heard)
    pool.submit(lambda: "next", heard)
    assert pool.wait(WAIT)
    (result, error), after = heard
    assert result is None
    assert isinstance(error, BlockError)
    assert error.fault is Fault.INTERNAL
    assert isinstance(error.__cause__, SystemExit)
    assert after == ("next", None)
    assert pool.close(WAIT)


def test_threads_are_started_on_demand_and_bounded(pool: Pool) -> None:
    gate, inside = threading.Event(), threading.Semaphore(0)
    heard = Heard()

    def run() -> None:
        inside.release()
        gate.wait(WAIT)

    assert pool.threads == 0
    for _ in range(10):
        pool.submit(run, heard)
    assert pool.threads == 3
    for _ in range(3):
        assert inside.acquire(timeout=WAIT)
    assert not inside.acquire(blocking=False), "a fourth is running"
    gate.set()
    assert pool.wait(WAIT)
    assert len(heard) == 10


def test_one_call_after_the_other_needs_one_thread(pool: Pool) -> None:
    for _ in range(5):
        pool.submit(int, Heard())
        assert pool.wait(WAIT)
    assert pool.threads == 1


def test_done_that_raises_costs_no_other_its_answer(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard()

    def broken(_result: Any, _error: Exception | None) -> None:
        raise ZeroDivisionError

    gate = threading.Event()
    pool.submit(gate.wait, heard)
    pool.submit(int, broken)
    pool.submit(int, heard)
    gate.set()
    assert pool.wait(WAIT)
    assert len(heard) == 2
    assert "ZeroDivisionError" in caplog.text


def test_done_may_submit_again(pool: Pool) -> None:
    heard = Heard()
    pool.submit(int, lambda *_: pool.submit(int, heard))
    assert pool.wait(WAIT)
    assert heard == [(0, None)]


def test_wait_gives_up_when_the_time_is_up(pool: Pool) -> None:
    gate = threading.Event()
    pool.submit(gate.wait, Heard())
    assert not pool.wait(0.01)
    assert pool.outstanding == 1
    gate.set()
    assert pool.wait(WAIT)


def test_close_runs_first_what_was_submitted() -> None:
    pool, done = Pool(1), []
    for number in range(20):
        pool.submit(lambda number=number: done.append(number), Heard())  # type: ignore[misc]
    assert pool.close(WAIT)
    assert done == list(range(20))
    assert pool.close(), "twice is no harm"


def test_close_leaves_behind_what_hangs_within_one_deadline_for_all() -> None:
    pool, gate, inside = Pool(8), threading.Event(), threading.Semaphore(0)
    left = threading.Semaphore(0)

    def run() -> None:
        inside.release()
        gate.wait(WAIT)
        left.release()

    for _ in range(8):
        pool.submit(run, Heard())
    for _ in range(8):
        assert inside.acquire(timeout=WAIT)
    assert not pool.close(0.01)
    descriptor = pool.fileno()
    os.fstat(descriptor)  # still open: those that hang will write to it
    assert all(thread.daemon for thread in pool._threads)
    gate.set()
    for thread in pool._threads:
        thread.join(WAIT)
    assert all(left.acquire(timeout=0) for _ in range(8))
    os.close(descriptor)


def test_without_any_thread_calls_fail_at_once(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _cannot_start)
        pool.submit(int, heard)
        assert not heard, "never within submit"
        assert pool.wait(WAIT)
    (_, error) = heard[0]
    assert isinstance(error, BlockError)
    assert error.fault is Fault.NO_RESOURCES
    pool.submit(int, heard)
    assert pool.wait(WAIT)
    assert heard[1] == (0, None)


def test_with_some_threads_calls_wait_for_them(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, heard = threading.Event(), Heard()
    pool.submit(gate.wait, heard)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", _cannot_start)
        pool.submit(int, heard)
    assert pool.threads == 1
    gate.set()
    assert pool.wait(WAIT)
    assert heard == [(True, None), (0, None)]


def test_idle_thread_keeps_nothing_of_its_last_call_alive(pool: Pool) -> None:
    class Piece:
        pass

    piece = Piece()
    ghost = weakref.ref(piece)
    pool.submit(lambda piece=piece: piece, lambda *_: None)  # type: ignore[misc]
    del piece
    assert pool.wait(WAIT)
    # The thread says that it has finished before it has let go.
    deadline = time.monotonic() + WAIT
    while ghost() is not None:
        assert time.monotonic() < deadline, "kept until the next call"
        gc.collect()


def _cannot_start(_self: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


# Waiting without a thread.


def settled(pool: Pool, heard: Heard, count: int) -> None:
    assert pool.wait(WAIT)
    assert len(heard) == count


def test_parked_calls_take_no_thread(pool: Pool) -> None:
    heard, slow = Heard(), [object() for _ in range(50)]
    order: list[str] = []

    def parked(who: object) -> None:
        pause(who, lambda: 0.5, time.sleep)
        order.append("slow")

    for who in slow:
        pool.submit(partial(parked, who), heard)
    pool.submit(lambda: order.append("quick"), heard)
    begun = time.monotonic()
    settled(pool, heard, 51)
    assert order[0] == "quick"
    assert time.monotonic() - begun < 5  # 50 * 0.5 s in three threads are 8.3 s, and here they are all at once
    assert all(error is None for _, error in heard)


def test_call_is_begun_again_and_each_wait_is_asked_for_once(pool: Pool) -> None:
    heard, asked, begun = Heard(), [], []

    def run() -> str:
        begun.append(1)
        for who in ("a", "b", "a"):  # the last is a second call of the same layer: its thread sleeps
            pause(who, lambda who=who: asked.append(who) or 0.001, time.sleep)  # type: ignore[misc, func-returns-value]
        return "done"

    pool.submit(run, heard)
    settled(pool, heard, 1)
    assert heard[0] == ("done", None)
    assert (asked, len(begun)) == (["a", "b", "a"], 3)


def test_parked_calls_are_finished_by_a_close() -> None:
    pool, heard, ran = Pool(2), Heard(), []

    def run() -> None:
        pause(pool, lambda: 3600.0, time.sleep)
        ran.append(1)

    pool.submit(run, heard)
    until_parked = time.monotonic() + WAIT
    while not pool._parked._heap and time.monotonic() < until_parked:
        select.select([], [], [], 0.005)
    assert pool.close(WAIT)
    assert ran == [1]


# Devices that hang.


class Slow:
    """A device whose calls wait for a gate, with what the pool wants of it."""

    def __init__(self, io_timeout: float = 1.0) -> None:
        self.io_timeout = io_timeout
        self.label = "disk0 LUN 3"
        self.gate = threading.Event()
        self.inside = 0

    def call(self, *, writes: bool = False, patience: int = 1) -> DeviceCall:
        def run() -> str:
            self.inside += 1
            self.gate.wait(WAIT)
            return "done"

        return DeviceCall(self, run, writes=writes, patience=patience)  # type: ignore[arg-type]


@pytest.fixture
def wide() -> Iterator[Pool]:
    pool = Pool(4)
    yield pool
    assert pool.close(WAIT), "a thread hangs"


def until(condition: Any) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_one_device_has_half_of_the_threads(wide: Pool) -> None:
    slow, heard, other = Slow(), Heard(), Heard()
    for _ in range(6):
        wide.submit(slow.call(), heard)
    for number in range(20):
        wide.submit(DeviceCall(object(), partial(int, number), writes=True), other)  # type: ignore[arg-type]
    until(lambda: wide.collect() or len(other) == 20)
    assert slow.inside == 2
    assert not heard
    slow.gate.set()
    assert wide.wait(WAIT)
    assert heard == [("done", None)] * 6


def test_call_that_hangs_is_answered_and_its_result_dropped(wide: Pool) -> None:
    slow, heard = Slow(), Heard()
    wide.submit(slow.call(), heard)
    until(lambda: slow.inside)
    wide.expire(time.monotonic())
    assert not heard
    wide.expire(time.monotonic() + 1.5)
    ((result, error),) = heard
    assert result is None
    assert isinstance(error, ScsiError)
    assert error.reason is Reason.COMMAND_TIMEOUT_DURING_PROCESSING
    assert (wide.outstanding, wide.hung) == (0, 1)
    slow.gate.set()
    until(lambda: wide.collect() or not wide.hung)
    assert len(heard) == 1


def test_device_that_hangs_is_named_and_told_with_what_waits_for_it(
    wide: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    slow, heard = Slow(), Heard()
    began = time.monotonic()
    for _ in range(5):
        wide.submit(slow.call(), heard)
    until(lambda: slow.inside == 2)
    assert wide.stuck() == {}
    wide.expire(time.monotonic() + 0.9)
    assert wide.stuck() == {}
    wide.expire(time.monotonic() + 1.5)
    ((device, (hung, waiting, since)),) = wide.stuck().items()
    assert (device, hung, waiting) == (slow, 2, 3)
    assert began <= since <= time.monotonic()
    (record,) = caplog.records
    assert record.getMessage().startswith("disk0 LUN 3: a call hangs in the device since ")
    slow.gate.set()
    until(lambda: wide.collect() or not wide.hung)
    assert wide.stuck() == {}
    assert caplog.records[-1].getMessage().startswith("disk0 LUN 3: the device answers again")
    assert len(caplog.records) == 2


def test_device_with_a_write_that_hangs_is_busy_until_it_comes_back(wide: Pool) -> None:
    slow, heard, late = Slow(), Heard(), Heard()
    for _ in range(3):
        wide.submit(slow.call(writes=True), heard)
    until(lambda: slow.inside == 2)
    wide.expire(time.monotonic() + 1.5)
    assert len(heard) == 3
    assert isinstance(heard[1][1], BlockError)  # the third waited, and went nowhere
    assert {error.fault for _, error in heard if isinstance(error, BlockError)} == {Fault.BUSY}
    wide.submit(slow.call(), late)
    until(lambda: wide.collect() or late)
    assert isinstance(late[0][1], BlockError)
    assert late[0][1].fault is Fault.BUSY
    slow.gate.set()
    until(lambda: wide.collect() or not wide.hung)
    assert slow.inside == 2
    wide.submit(slow.call(), late)
    assert wide.wait(WAIT)
    assert late[1] == ("done", None)


def test_threads_that_hang_are_replaced(wide: Pool) -> None:
    gates = [Slow(), Slow(), Slow()]
    heard, other = Heard(), Heard()
    for slow in gates:
        for _ in range(2):
            wide.submit(slow.call(), heard)
        until(lambda slow=slow: slow.inside == 2)
        wide.expire(time.monotonic() + 1.5)
    assert (len(heard), wide.hung, wide.threads) == (6, 6, 6)
    wide.submit(partial(int, 1), other)
    assert wide.wait(WAIT)
    assert other == [(1, None)]
    for slow in gates:
        slow.gate.set()
    until(lambda: wide.collect() or not wide.hung)


def test_read_that_waits_for_a_device_that_hangs_is_busy_in_time(wide: Pool) -> None:
    slow, heard = Slow(), Heard()
    for _ in range(3):
        wide.submit(slow.call(), heard)
    until(lambda: slow.inside == 2)
    wide.expire(time.monotonic() + 1.5)
    faults = [error.fault for _, error in heard if isinstance(error, BlockError)]
    assert (len(heard), faults) == (3, [Fault.BUSY])
    slow.gate.set()
    until(lambda: wide.collect() or not wide.hung)


def test_call_that_is_begun_at_that_moment_is_not_answered_as_if_it_never_was(
    wide: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def monotonic() -> float:
        if threading.current_thread().name.startswith("pool-"):
            beginning.set()
            looked.wait(0.5)  # not for ever: the loop may have to wait for this thread
        return time.monotonic()

    slow, heard, beginning, looked = Slow(), Heard(), threading.Event(), threading.Event()
    wide.submit(slow.call(), Heard())
    until(lambda: slow.inside == 1)
    wide.expire(time.monotonic() + 1.5)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))
    wide.submit(slow.call(writes=True), heard)
    assert beginning.wait(WAIT)
    wide.expire(time.monotonic() + 5.0)
    looked.set()
    slow.gate.set()
    until(lambda: wide.collect() or (heard and not wide.hung))
    assert (slow.inside, heard) == (2, [("done", None)])


def test_jobs_have_more_patience_and_no_limit_is_none(wide: Pool) -> None:
    slow, free, heard = Slow(), Slow(io_timeout=0.0), Heard()
    wide.submit(slow.call(patience=10), heard)
    wide.submit(free.call(), heard)
    until(lambda: slow.inside and free.inside)
    wide.expire(time.monotonic() + 9.0)
    assert not heard
    wide.expire(time.monotonic() + 11.0)
    assert len(heard) == 1
    slow.gate.set()
    free.gate.set()
    until(lambda: wide.collect() or (len(heard) == 2 and not wide.hung))


def test_call_that_pauses_takes_no_place_and_does_not_expire(wide: Pool) -> None:
    device, heard = Slow(), Heard()
    waits = object()

    def run() -> int:
        pause(waits, lambda: 0.8, time.sleep)
        return 1

    for _ in range(12):
        wide.submit(DeviceCall(device, run, writes=False), heard)  # type: ignore[arg-type]
    wide.expire(time.monotonic() + 0.1)
    begun = time.monotonic()
    assert wide.wait(WAIT)
    assert heard == [(1, None)] * 12
    assert time.monotonic() - begun < 4.0  # and not 12 / 2 times 0.8
