"""Several handles of one medium: no two calls in one of them, several at once in all, and nothing lost between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from iscsid.block.device import Content, Device, Extent, Mode, Support, Threading
from iscsid.block.guard import Guarded
from iscsid.block.handles import BATCH, Handles, handles_of
from iscsid.errors import BlockError, Fault

WAIT = 20.0
SIZE = 1 << 20


class Touchy(Device):
    """A handle of a shared memory, which fails when it is entered twice. Calls wait for ``gate``."""

    threading = Threading.PER_HANDLE
    discard_zeroes = True

    def __init__(self, shelf: Shelf) -> None:
        self.size = SIZE
        self.shelf = shelf
        self.inside = threading.Lock()
        self.lost = False
        self.log: list[str] = []

    def _enter(self, what: str, act: Callable[[], Any]) -> Any:
        if not self.inside.acquire(blocking=False):
            self.shelf.entered_twice = True
            raise AssertionError("entered twice")
        try:
            self.log.append(what)
            with self.shelf.counted():
                return act()
        finally:
            self.inside.release()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        def act() -> None:
            buffer[:] = self.shelf.memory[offset : offset + len(buffer)]

        self._enter("read", act)

    def write(self, data: memoryview, offset: int) -> None:
        def act() -> None:
            self.shelf.memory[offset : offset + len(data)] = data

        self._enter("write", act)

    def flush(self) -> None:
        self._enter("flush", lambda: None)
        if self.lost:
            raise BlockError(Fault.WRITE_ERROR, "an earlier flush failed")

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        self.log.append("status")
        for at in range(offset, offset + length, 512):
            yield Extent(at, 512, Content.HOLE if at // 512 % 2 else Content.DATA)

    def view(self, offset: int, length: int) -> memoryview:
        return memoryview(self.shelf.memory)[offset : offset + length]

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        raise AssertionError

    def close(self) -> None:
        self.log.append("close")
        if self.shelf.closing_fails:
            raise OSError(5, "close is broken")


class Shelf:
    """The medium. ``opened`` are its handles; ``limit`` is how many can be opened at all."""

    def __init__(self, limit: int = 100) -> None:
        self.memory = bytearray(SIZE)
        self.opened: list[Touchy] = []
        self.limit = limit
        self.gate = threading.Event()
        self.gate.set()
        self.entered_twice = self.closing_fails = False
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def open(self) -> Touchy:
        if len(self.opened) == self.limit:
            raise OSError(24, "Too many open files")
        device = Touchy(self)
        self.opened.append(device)
        return device

    def counted(self) -> Shelf:
        return self

    def __enter__(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.gate.wait(WAIT)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.inside -= 1

    def handles(self, limit: int = 4) -> Handles:
        device = handles_of(self.open, limit, threading.Condition)
        assert isinstance(device, Handles)
        return device


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def started(count: int, call: Callable[[int], Any]) -> list[threading.Thread]:
    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads


def joined(threads: Iterable[threading.Thread]) -> None:
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def block(fill: int = 1) -> memoryview:
    return memoryview(bytearray([fill]) * 512)


@pytest.mark.parametrize(("mode", "limit", "make"), [(Threading.SERIAL, 4, True), (Threading.PARALLEL, 4, True)])
def test_other_devices_are_what_they_are(mode: Threading, limit: int, make: bool) -> None:
    device = Touchy(Shelf())
    device.threading = mode  # type: ignore[misc]
    assert handles_of(lambda: device, limit, threading.Condition if make else None) is device


def test_without_threads_or_further_handles_one_is_enough_and_is_serial() -> None:
    for limit, make in ((1, threading.Condition), (4, None)):
        shelf = Shelf()
        device = handles_of(shelf.open, limit, make)
        assert [device] == shelf.opened
        assert Guarded(device).serialised


def test_many_threads_are_in_several_handles_and_never_two_in_one() -> None:
    shelf = Shelf()
    guard = Guarded(shelf.handles())
    assert not guard.serialised
    shelf.gate.clear()
    threads = started(10, lambda number: guard.write(block(number), number * 512))
    until(lambda: shelf.inside == 4)
    assert len(shelf.opened) == 4
    shelf.gate.set()
    joined(threads)
    assert (shelf.most, shelf.entered_twice) == (4, False)
    assert [shelf.memory[number * 512] for number in range(10)] == list(range(10))


def test_one_thread_uses_one_handle() -> None:
    shelf = Shelf()
    guard = Guarded(shelf.handles())
    for _ in range(5):
        guard.write(block(), 0)
        guard.read_into(block(), 0)
    assert len(shelf.opened) == 1


@pytest.mark.parametrize("limit", [1, 2])
def test_handles_that_cannot_be_opened_are_done_without(limit: int) -> None:
    shelf = Shelf(limit)
    guard = Guarded(shelf.handles())
    shelf.gate.clear()
    threads = started(6, lambda number: guard.write(block(number), number * 512))
    until(lambda: shelf.inside == limit)
    shelf.gate.set()
    joined(threads)
    assert (shelf.most, shelf.entered_twice) == (limit, False)
    assert [shelf.memory[number * 512] for number in range(6)] == list(range(6))


def test_handle_that_is_not_as_the_first_is_closed_and_done_without() -> None:
    shelf = Shelf()
    guard = Guarded(handles_of(lambda: grown(shelf), 4, threading.Condition))
    shelf.gate.clear()
    threads = started(3, lambda number: guard.write(block(number), number * 512))
    until(lambda: any("close" in device.log for device in shelf.opened))
    shelf.gate.set()
    joined(threads)
    assert shelf.most == 1


def grown(shelf: Shelf) -> Touchy:
    """Each is larger than the one before."""
    device = shelf.open()
    device.size += 512 * len(shelf.opened)
    return device


def test_flush_goes_through_every_handle_that_there_is() -> None:
    shelf = Shelf()
    guard = Guarded(shelf.handles())
    shelf.gate.clear()
    threads = started(3, lambda number: guard.write(block(), number * 512))
    until(lambda: shelf.inside == 3)
    flush = started(1, lambda _: guard.flush())
    shelf.gate.set()
    joined([*threads, *flush])
    assert [device.log.count("flush") for device in shelf.opened] == [1, 1, 1]
    assert all(device.log.index("flush") > device.log.index("write") for device in shelf.opened)


def test_handle_whose_flush_has_failed_fails_every_flush() -> None:
    shelf = Shelf()
    guard = Guarded(shelf.handles())
    shelf.gate.clear()
    threads = started(2, lambda number: guard.write(block(), number * 512))
    until(lambda: shelf.inside == 2)
    shelf.gate.set()
    joined(threads)
    shelf.opened[1].lost = True
    for _ in range(3):
        with pytest.raises(BlockError) as caught:
            guard.flush()
        assert caught.value.fault is Fault.WRITE_ERROR
    assert shelf.opened[0].log.count("flush") == 3
    guard.write(block(), 0)


def test_flush_gets_its_handle_however_many_others_want_it() -> None:
    shelf = Shelf()
    guard = Guarded(shelf.handles(2))
    over = threading.Event()

    def busy(number: int) -> None:
        while not over.is_set():
            guard.write(block(), number * 512)

    threads = started(4, busy)
    try:
        until(lambda: len(shelf.opened) == 2)
        joined(started(3, lambda _: guard.flush()))
    finally:
        over.set()
        joined(threads)
    assert not shelf.entered_twice


def test_extents_come_in_batches_and_hold_no_handle() -> None:
    shelf = Shelf()
    guard = Guarded(shelf.handles(2))
    extents = iter(guard.block_status(0, 512 * (2 * BATCH + 10)))
    first = next(extents)
    assert all(not device.inside.locked() for device in shelf.opened)
    guard.write(block(), 0)
    found = [first, *extents]
    assert [extent.offset for extent in found] == list(range(0, 512 * (2 * BATCH + 10), 512))
    assert shelf.opened[0].log.count("status") == 3


def test_status_that_ends_early_is_found_out() -> None:
    class Silent(Touchy):
        def block_status(self, offset: int, length: int) -> Iterable[Extent]:
            return []

    shelf = Shelf()
    guard = Guarded(handles_of(lambda: Silent(shelf), 4, threading.Condition))
    with pytest.raises(BlockError) as caught:
        list(guard.block_status(0, 4096))
    assert caught.value.fault is Fault.INTERNAL


def test_nothing_is_offered_that_may_not_wait() -> None:
    handles = Shelf().handles()
    can = handles.capabilities()
    assert {can.view, can.read_nowait, can.write_nowait} == {Support.NONE}
    assert {can.write, can.flush, can.block_status} == {Support.NATIVE}
    assert (handles.mode, handles.threading) == (Mode.BLOCKING, Threading.PARALLEL)
    assert not Guarded(handles).lends


def test_error_of_a_call_gives_its_handle_back() -> None:
    shelf = Shelf()
    handles = shelf.handles(2)
    for _ in range(5):
        with pytest.raises(TypeError):
            handles.write(memoryview(bytearray(3)), "nowhere")  # type: ignore[arg-type]
    handles.write(block(), 0)
    assert len(shelf.opened) == 1


def test_close_closes_every_handle_whatever_fails() -> None:
    shelf = Shelf()
    handles = shelf.handles()
    shelf.gate.clear()
    threads = started(3, lambda number: handles.write(block(), number * 512))
    until(lambda: shelf.inside == 3)
    shelf.gate.set()
    joined(threads)
    shelf.closing_fails = True
    with pytest.raises(OSError, match="close is broken"):
        handles.close()
    assert [device.log[-1] for device in shelf.opened] == ["close"] * 3


def test_size_is_asked_of_a_handle() -> None:
    shelf = Shelf()
    handles = shelf.handles()
    shelf.opened[0].size = 512
    assert (handles.current_size(), handles.size) == (512, SIZE)
