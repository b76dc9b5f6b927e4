"""Each action does what it says, to the calls that are meant and to no other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from layer_kit import Recorder, read, write

from iscsid.block.guard import Guarded, is_aligned
from iscsid.errors import BlockError, Fault

Wrap = Callable[..., Any]


def fault_of(call: Callable[..., Any], *arguments: Any) -> Fault | None:
    try:
        call(*arguments)
    except BlockError as error:
        return error.fault
    return None


def test_error_is_that_of_the_medium_or_the_one_named(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "fault"))
    assert fault_of(read, guard) is Fault.READ_ERROR
    assert fault_of(write, guard, bytes(512)) is Fault.WRITE_ERROR
    assert fault_of(guard.flush) is Fault.WRITE_ERROR
    assert fault_of(read, Guarded(wrap(below, "fault", error="not_ready"))) is Fault.NOT_READY
    assert below.calls == []


def test_only_the_calls_and_the_range_that_are_named_are_hit(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "fault", calls="read", offset=4096, size=512))
    assert fault_of(read, guard, 0, 4096) is None
    assert fault_of(read, guard, 4096, 512) is Fault.READ_ERROR
    assert fault_of(read, guard, 4608, 512) is None
    assert fault_of(write, guard, bytes(8192)) is None


def test_after_and_count_say_which_in_order(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "fault", after=2, count=3))
    hits = [fault_of(read, guard) is not None for _ in range(7)]
    assert hits == [False, False, True, True, True, False, False]


def test_chance_is_about_as_said_and_the_same_for_a_seed(below: Recorder, wrap: Wrap) -> None:
    runs = []
    for _ in range(2):
        guard = Guarded(wrap(below, "fault", per_million=250_000, seed=7))
        runs.append([fault_of(read, guard, 0, 512) is not None for _ in range(400)])
    assert runs[0] == runs[1]
    assert 60 < sum(runs[0]) < 140


def test_torn_write_is_half_done(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "fault", action="torn", calls="write"))
    assert fault_of(write, guard, b"x" * 4096) is Fault.WRITE_ERROR
    assert bytes(below.memory[:4096]) == b"x" * 2048 + bytes(2048)


def test_dropped_write_is_not_done_and_says_nothing(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "fault", action="drop", calls="write"))
    write(guard, b"x" * 512)
    assert not any(below.memory)


@pytest.mark.parametrize("calls", ["read", "write"])
def test_corruption_is_one_bit(below: Recorder, wrap: Wrap, calls: str) -> None:
    guard = Guarded(wrap(below, "fault", action="corrupt", calls=calls))
    data = bytes(512)
    write(guard, data)
    assert sum(byte.bit_count() for byte in read(guard, 0, 512)) == 1
    assert data == bytes(512)


@pytest.mark.parametrize("calls", ["read", "write"])
def test_corruption_reaches_a_device_that_takes_aligned_buffers_only(below: Recorder, wrap: Wrap, calls: str) -> None:
    below.alignment = 512
    seen: list[bool] = []
    below_write = below.write

    def aligned_write(data: memoryview, offset: int) -> None:
        seen.append(is_aligned(data, 512))
        below_write(data, offset)

    below.write = aligned_write  # type: ignore[method-assign]
    guard = Guarded(wrap(below, "fault", action="corrupt", calls=calls))
    for length in (512, 1024, 4096) * 4:  # memory of the heap may be aligned by chance
        write(guard, bytes(length))
    assert all(seen)


def test_hang_ends_with_the_device(below: Recorder, wrap: Wrap) -> None:
    device = wrap(below, "fault", action="hang")
    thread = threading.Thread(target=read, args=(device,))
    thread.start()
    assert below.calls == []
    device.close()
    thread.join(20)
    assert below.names() == ["read_into"]


def test_one_command_counts_once(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "fault", count=1))
    with pytest.raises(BlockingIOError):
        guard.read_now(memoryview(bytearray(512)), 0)
    assert fault_of(read, guard) is Fault.READ_ERROR
    assert fault_of(read, guard) is None
