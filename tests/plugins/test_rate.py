"""The limit holds, over all processes; what is saved up is given; nobody waits in the loop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from iscsid_plugins import rate
from iscsid_plugins.rate import Line, make_page
from layer_kit import Recorder, read, write

from iscsid.block.guard import Guarded
from iscsid.plugin.manager import Plugins

Wrap = Callable[..., Any]


class Clock:
    """Stands in the place of the module ``time``."""

    def __init__(self) -> None:
        self.now = 10**12
        self.slept: list[float] = []

    def monotonic_ns(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += int(seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(rate, "time", clock)
    return clock


@pytest.fixture
def page() -> Iterator[int]:
    fd = make_page()
    yield fd
    os.close(fd)


def test_slots_of_operations_follow_each_other(page: int, clock: Clock) -> None:
    line = Line(page, 100, None, 0)
    assert [round(line.reserve(4096), 6) for _ in range(4)] == [0.0, 0.01, 0.02, 0.03]
    clock.now += 10**9
    assert line.reserve(0) <= 0


def test_slots_of_bytes_are_as_long_as_the_transfer(page: int, clock: Clock) -> None:
    line = Line(page, None, 1 << 20, 0)
    assert line.reserve(1 << 20) == 0
    assert line.reserve(1 << 19) == 1.0
    assert line.reserve(512) == 1.5


def test_burst_is_what_was_left_unused(page: int, clock: Clock) -> None:
    line = Line(page, 100, None, 50)  # five operations
    free = 0
    while line.reserve(0) <= 0:
        free += 1
    assert free == 6  # and the one that is due anyway
    clock.now += 3600 * 10**9  # an hour saves up no more
    free = 0
    while line.reserve(0) <= 0:
        free += 1
    assert free == 6


def test_try_takes_only_what_is_free_and_may_give_it_back(page: int, clock: Clock) -> None:
    line = Line(page, 100, 1 << 20, 0)
    assert line.try_now(512)
    assert not line.try_now(512)
    line.give_back(512)
    assert line.try_now(512)


def test_all_processes_share_one_line(page: int, clock: Clock) -> None:
    waits = [Line(page, 100, None, 0).reserve(0)]
    child = os.fork()
    if not child:
        Line(page, 100, None, 0).reserve(0)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    waits.append(Line(page, 100, None, 0).reserve(0))
    assert waits == [0.0, 0.02]


def test_process_that_dies_with_the_line_blocks_nobody(page: int) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if not child:
        with Line(page, 100, None, 0)._alone(wait=True):
            os.write(told, b"x")
            signal.pause()
    os.read(ready, 1)
    line = Line(page, 100, None, 0)
    assert not line.try_now(0)  # another one has it, and the loop does not wait
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    line.reserve(0)
    os.close(ready)
    os.close(told)


def test_calls_are_paced_and_flushes_are_not(below: Recorder, wrap: Wrap, clock: Clock) -> None:
    guard = Guarded(wrap(below, "rate", iops=10, burst=0))
    read(guard)
    write(guard, bytes(512))
    guard.discard(0, 512)
    guard.flush()
    assert clock.slept == [0.1, 0.1]
    guard.close()


def test_direction_that_is_not_limited_is_the_call_below(below: Recorder, wrap: Wrap, clock: Clock) -> None:
    guard = Guarded(wrap(below, "rate", iops=10, burst=0, direction="write"))
    for _ in range(5):
        read(guard)
    assert clock.slept == []
    write(guard, bytes(512))
    write(guard, bytes(512))
    assert clock.slept == [0.1]
    guard.close()


def test_loop_is_refused_when_no_slot_is_free(below: Recorder, wrap: Wrap, clock: Clock) -> None:
    guard, buffer = Guarded(wrap(below, "rate", iops=10, burst=0)), memoryview(bytearray(512))
    guard.read_now(buffer, 0)
    with pytest.raises(BlockingIOError):
        guard.read_now(buffer, 0)
    assert below.names() == ["read_nowait"]
    guard.close()


def test_slot_of_a_try_in_vain_is_given_back(below: Recorder, wrap: Wrap, clock: Clock) -> None:
    def would_block(name: str, _offset: int, _length: int) -> None:
        if name == "read_nowait":
            raise BlockingIOError

    below.fail = would_block
    guard = Guarded(wrap(below, "rate", iops=10, burst=0))
    with pytest.raises(BlockingIOError):
        guard.read_now(memoryview(bytearray(512)), 0)
    read(guard)
    assert clock.slept == []
    guard.close()


def test_prepared_page_is_shared_by_all_who_open_it(below: Recorder, all_plugins: Plugins, clock: Clock) -> None:
    prepared = all_plugins.prepare_layers([("rate", {"iops": 10, "burst": 0})])
    (name, options) = prepared[0]
    one, two = (all_plugins.wrap(Recorder(), name, options) for _ in range(2))
    read(one)
    read(two)
    assert clock.slept == [0.1]
    one.close()
    two.close()
    all_plugins.release_layers(prepared)


def test_limit_without_a_number_is_refused(all_plugins: Plugins) -> None:
    assert all_plugins.validate_layer("rate", {}) == ["needs iops, bytes_per_second or both"]


def test_rate_holds_by_the_real_clock(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "rate", iops=500, burst=0))
    begun = time.monotonic()
    for _ in range(51):
        read(guard, 0, 512)
    assert time.monotonic() - begun >= 0.0999
    guard.close()
