"""The guard: what it refuses, what it emulates, and what it makes of a device that misbehaves."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import mmap
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from turns import leaves

from iscsid.block.device import Capabilities, Content, Device, Extent, Mode, Space, Support, Threading
from iscsid.block.filter import Filter
from iscsid.block.guard import CHUNK, SPARE_BUFFERS, Guarded, is_aligned
from iscsid.block.turn import pause
from iscsid.errors import BlockError, Fault

SIZE = 4 << 20
INLINE = {"mode": Mode.INLINE, "threading": Threading.PARALLEL}


class Plain(Device):
    """Size, read_into and write, in memory; ``calls`` is what it was asked."""

    def __init__(self, size: int = SIZE, **facts: Any) -> None:
        self.size = size
        self.memory = bytearray(size)
        self.calls: list[tuple[Any, ...]] = []
        for name, value in facts.items():
            setattr(self, name, value)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.calls.append(("read_into", offset, len(buffer)))
        buffer[:] = self.memory[offset : offset + len(buffer)]

    def write(self, data: memoryview, offset: int) -> None:
        self.calls.append(("write", offset, len(data)))
        self.memory[offset : offset + len(data)] = data

    def close(self) -> None:
        self.calls.append(("close",))


class Flushing(Plain):
    def flush(self) -> None:
        self.calls.append(("flush",))


class Able(Flushing):
    """Has every method."""

    discard_zeroes = True

    def write_fua(self, data: memoryview, offset: int) -> None:
        self.calls.append(("write_fua", offset, len(data)))
        self.memory[offset : offset + len(data)] = data

    def discard(self, offset: int, length: int) -> None:
        self.calls.append(("discard", offset, length))

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self.calls.append(("write_zeroes", offset, length, may_unmap))

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        self.calls.append(("block_status", offset, length))
        yield Extent(offset, length, Content.HOLE)

    def prefetch(self, offset: int, length: int) -> None:
        self.calls.append(("prefetch", offset, length))

    def space(self) -> Space:
        return Space(1024, -1)

    def view(self, offset: int, length: int) -> memoryview:
        return memoryview(self.memory)[offset : offset + length]

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        self.calls.append(("read_nowait", offset, len(buffer)))

    def write_nowait(self, data: memoryview, offset: int) -> None:
        self.calls.append(("write_nowait", offset, len(data)))


def buffer(length: int = 512, fill: int = 0xA5) -> memoryview:
    return memoryview(bytearray([fill]) * length)


def fault(call: Any, *arguments: Any, **named: Any) -> Fault:
    with pytest.raises(BlockError) as caught:
        call(*arguments, **named)
    return caught.value.fault


# Facts.


@pytest.mark.parametrize(
    "facts",
    [
        {"size": 511},
        {"size": 0},
        {"size": -512},
        {"size": 4096.0},
        {"size": "4096"},
        {"size": True},
        {"block_size": 0},
        {"block_size": 256},
        {"block_size": 520},
        {"block_size": 1 << 17},
        {"alignment": 0},
        {"alignment": 3},
        {"alignment": 1024},  # more than the block
        {"block_size": 65536, "alignment": 65536},  # more than a page: no buffer of ours is aligned so
        {"physical_block_size": 1000},
        {"physical_block_size": -1},
        {"minimum_io": -1},
        {"optimal_io": None},
        {"discard_granularity": 1.5},
        {"discard_alignment": "x"},
        {"mode": "inline"},
        {"threading": None},
    ],
)
def test_facts_that_make_no_sense_are_refused(facts: dict[str, Any]) -> None:
    device = Plain(4096)
    for name, value in facts.items():
        setattr(device, name, value)
    assert fault(Guarded, device) is Fault.INVALID


def test_device_without_a_size_is_refused() -> None:
    class Sizeless(Device):
        pass

    assert fault(Guarded, Sizeless()) is Fault.INVALID


def test_something_else_than_a_device_is_refused() -> None:
    assert fault(Guarded, object()) is Fault.INVALID


def test_tail_behind_the_last_whole_block_is_out_of_reach() -> None:
    guard = Guarded(Plain(4096 + 700))
    assert (guard.size, guard.blocks) == (4096 + 512, 9)
    assert fault(guard.read_into, buffer(512), 4096 + 512) is Fault.OUT_OF_RANGE


@pytest.mark.parametrize("block_size", [512, 1024, 4096, 65536])
def test_block_size_of_the_logical_unit_is_taken(block_size: int) -> None:
    guard = Guarded(Plain(), block_size=block_size)
    assert (guard.block_size, guard.blocks) == (block_size, SIZE // block_size)
    assert guard.physical_block_size == block_size


@pytest.mark.parametrize("block_size", [256, 513, 520, 131072, -512])
def test_block_size_that_is_none_is_refused(block_size: int) -> None:
    assert fault(Guarded, Plain(), block_size=block_size) is Fault.INVALID


def test_block_size_below_that_of_the_device_is_refused() -> None:
    assert fault(Guarded, Plain(block_size=4096), block_size=512) is Fault.INVALID


def test_length_that_is_not_in_blocks_is_not_told() -> None:
    guard = Guarded(Plain(minimum_io=512, optimal_io=65536, discard_granularity=4096), block_size=4096)
    assert (guard.minimum_io, guard.optimal_io, guard.discard_granularity) == (0, 65536, 4096)


def test_facts_are_passed_on() -> None:
    guard = Guarded(Plain(rotational=True, removable=True, physical_block_size=4096))
    assert guard.rotational
    assert guard.removable
    assert guard.serialised
    assert guard.physical_block_size == 4096


# Capabilities.


def test_capabilities_of_the_smallest_device() -> None:
    assert Guarded(Plain()).can == Capabilities(
        write=Support.NATIVE, fua=Support.EMULATE, write_zeroes=Support.EMULATE, block_status=Support.EMULATE
    )


def test_capabilities_of_a_device_with_everything() -> None:
    assert set(dataclasses.astuple(Guarded(Able()).can)) == {Support.NATIVE}


def test_capabilities_of_a_readonly_device_keep_what_reads() -> None:
    can = Guarded(Able(), readonly=True).can
    writing = {"write", "fua", "discard", "write_zeroes", "write_nowait"}
    for field in dataclasses.fields(Capabilities):
        assert getattr(can, field.name) is (Support.NONE if field.name in writing else Support.NATIVE)


def test_device_that_cannot_write_is_readonly() -> None:
    class Reader(Device):
        size = 4096

        def read_into(self, buffer: memoryview, offset: int) -> None:
            pass

    guard = Guarded(Reader())
    assert guard.readonly
    assert fault(guard.write, buffer(), 0) is Fault.READ_ONLY
    assert fault(guard.write_now, buffer(), 0) is Fault.READ_ONLY


class Narrow(Able):
    """An able class that a poor medium makes less able."""

    def capabilities(self) -> Capabilities:
        return Capabilities(write=Support.NATIVE, discard=Support.EMULATE)


def test_what_the_object_does_not_declare_is_not_called() -> None:
    device = Narrow()
    guard = Guarded(device)
    assert guard.can.discard is Support.NONE
    assert not guard.discard_zeroes
    guard.write(buffer(), 0, fua=True)
    guard.write_zeroes(0, 512)
    guard.flush()
    assert {call[0] for call in device.calls} == {"write"}
    assert fault(guard.discard, 0, 512) is Fault.UNSUPPORTED
    assert fault(guard.prefetch, 0, 512) is Fault.UNSUPPORTED
    assert fault(guard.view, 0, 512) is Fault.UNSUPPORTED


def test_declaring_what_is_not_there_is_refused() -> None:
    class Boaster(Plain):
        def capabilities(self) -> Capabilities:
            return Capabilities(write=Support.NATIVE, discard=Support.NATIVE)

    assert fault(Guarded, Boaster()) is Fault.INVALID


def test_capabilities_of_another_type_are_refused() -> None:
    class Confused(Plain):
        def capabilities(self) -> Any:
            return {"write": True}

    assert fault(Guarded, Confused()) is Fault.INVALID


# Emulation.


def test_fua_without_write_fua_is_a_write_and_a_flush() -> None:
    device = Flushing()
    Guarded(device).write(buffer(1024), 512, fua=True)
    assert device.calls == [("write", 512, 1024), ("flush",)]


def test_fua_of_the_device_is_used() -> None:
    device = Able()
    Guarded(device).write(buffer(1024), 512, fua=True)
    assert device.calls == [("write_fua", 512, 1024)]


def test_fua_where_nothing_is_volatile_is_a_write() -> None:
    device = Plain()
    Guarded(device).write(buffer(1024), 512, fua=True)
    assert device.calls == [("write", 512, 1024)]


def test_failed_flush_fails_the_fua_write() -> None:
    class Lossy(Flushing):
        def flush(self) -> None:
            raise OSError(errno.EIO, "lost")

    with pytest.raises(OSError, match="lost"):
        Guarded(Lossy()).write(buffer(), 0, fua=True)


def test_flush_where_nothing_is_volatile_does_nothing() -> None:
    device = Plain()
    guard = Guarded(device)
    guard.flush()
    assert not guard.volatile
    assert not device.calls


def test_zeroes_are_written_in_bounded_pieces() -> None:
    device = Plain()
    device.memory[:] = b"\xff" * SIZE
    Guarded(device).write_zeroes(512, 2 * CHUNK + 512)
    assert device.calls == [("write", 512, CHUNK), ("write", 512 + CHUNK, CHUNK), ("write", 512 + 2 * CHUNK, 512)]
    assert device.memory == b"\xff" * 512 + bytes(2 * CHUNK + 512) + b"\xff" * (SIZE - 2 * CHUNK - 1024)


def test_zeroes_with_fua_are_flushed_however_they_are_made() -> None:
    for device in (Flushing(), Able()):
        Guarded(device).write_zeroes(0, 512, fua=True)
        assert device.calls[-1] == ("flush",)


@pytest.mark.parametrize("error", [BlockError(Fault.UNSUPPORTED), OSError(errno.EOPNOTSUPP, "no")])
def test_zeroes_that_the_device_cannot_make_after_all_are_written(error: Exception) -> None:
    class Unwilling(Able):
        def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
            raise error

    device = Unwilling()
    device.memory[:1024] = b"\xff" * 1024
    Guarded(device).write_zeroes(0, 512)
    assert device.memory[:1024] == bytes(512) + b"\xff" * 512


def test_zeroes_that_fail_are_not_tried_otherwise() -> None:
    class Full(Able):
        def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
            raise OSError(errno.ENOSPC, "full")

    device = Full()
    with pytest.raises(OSError, match="full"):
        Guarded(device).write_zeroes(0, 512)
    assert not device.calls


@pytest.mark.parametrize("may_unmap", [False, True])
def test_permission_to_unmap_reaches_the_device(may_unmap: bool) -> None:
    device = Able()
    Guarded(device).write_zeroes(512, 1024, may_unmap)
    assert device.calls == [("write_zeroes", 512, 1024, may_unmap)]


def test_block_status_of_a_device_that_cannot_tell_is_data() -> None:
    assert list(Guarded(Plain()).block_status(512, 4096)) == [Extent(512, 4096, Content.DATA)]


def test_block_status_is_rounded_to_the_blocks_of_the_logical_unit() -> None:
    class Holey(Plain):
        def block_status(self, offset: int, length: int) -> Iterator[Extent]:
            yield Extent(0, 4608, Content.HOLE)
            yield Extent(4608, 512, Content.DATA)
            yield Extent(5120, 7168, Content.HOLE)

    extents = list(Guarded(Holey(12288), block_size=4096).block_status(0, 12288))
    assert extents == [
        Extent(0, 4096, Content.HOLE),
        Extent(4096, 4096, Content.DATA),
        Extent(8192, 4096, Content.HOLE),
    ]


def test_block_status_that_leaves_a_gap_is_the_devices_fault() -> None:
    class Gappy(Plain):
        def block_status(self, offset: int, length: int) -> Iterator[Extent]:
            yield Extent(offset + 512, length - 512, Content.HOLE)

    assert fault(lambda: list(Guarded(Gappy()).block_status(0, 4096))) is Fault.INTERNAL


def test_space_is_what_the_device_tells_and_never_negative() -> None:
    assert Guarded(Able()).space() == Space(1024, 0)
    assert fault(Guarded(Plain()).space) is Fault.UNSUPPORTED


def test_discard_and_prefetch_go_to_the_device() -> None:
    device = Able()
    guard = Guarded(device)
    guard.discard(512, 1024)
    guard.prefetch(1024, 512)
    assert guard.discard_zeroes
    assert device.calls == [("discard", 512, 1024), ("prefetch", 1024, 512)]


# The hot calls.


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("threads", Threading)
def test_only_a_parallel_device_that_never_waits_is_inline(mode: Mode, threads: Threading) -> None:
    guard = Guarded(Plain(mode=mode, threading=threads))
    assert guard.inline is (mode is Mode.INLINE and threads is Threading.PARALLEL)
    assert guard.serialised is (threads is not Threading.PARALLEL)


def test_now_calls_of_an_inline_device_are_its_plain_calls() -> None:
    device = Plain(**INLINE)
    guard = Guarded(device)
    guard.write_now(buffer(1024), 512)
    guard.read_now(buffer(1024), 1024)
    assert device.calls == [("write", 512, 1024), ("read_into", 1024, 1024)]


def test_now_calls_of_a_blocking_device_are_its_nowait_calls() -> None:
    device = Able(threading=Threading.PARALLEL)
    guard = Guarded(device)
    guard.write_now(buffer(1024), 512)
    guard.read_now(buffer(1024), 1024)
    assert device.calls == [("write_nowait", 512, 1024), ("read_nowait", 1024, 1024)]


@pytest.mark.parametrize(
    "device",
    [
        Plain(threading=Threading.PARALLEL),  # has no such calls
        Able(threading=Threading.SERIAL),  # a thread of the pool may be inside
        Able(threading=Threading.SERIAL, mode=Mode.INLINE),
        Able(threading=Threading.PARALLEL, alignment=512),  # O_DIRECT waits for the medium
    ],
)
def test_now_calls_refuse_where_they_might_wait(device: Plain) -> None:
    guard = Guarded(device)
    for call in (guard.read_now, guard.write_now):
        with pytest.raises(BlockingIOError):
            call(buffer(), 0)
    assert not device.calls


@pytest.mark.parametrize("device", [Plain(), Plain(**INLINE), Able(threading=Threading.PARALLEL)])
def test_now_calls_are_guarded(device: Plain) -> None:
    guard = Guarded(device)
    for call in (guard.read_now, guard.write_now):
        assert fault(call, buffer(), SIZE) is Fault.OUT_OF_RANGE
        assert fault(call, buffer(), -512) is Fault.OUT_OF_RANGE
        assert fault(call, buffer(), 1) is Fault.INVALID
        assert fault(call, buffer(100), 0) is Fault.INVALID
    assert not device.calls


@pytest.mark.parametrize("device", [Plain(**INLINE), Able(threading=Threading.PARALLEL)])
def test_write_now_to_a_readonly_unit_is_refused(device: Plain) -> None:
    assert fault(Guarded(device, readonly=True).write_now, buffer(), 0) is Fault.READ_ONLY
    assert not device.calls


def test_view_lends_the_range() -> None:
    device = Able()
    device.memory[512:1024] = b"x" * 512
    guard = Guarded(device)
    assert guard.lends
    assert guard.view(512, 512) == b"x" * 512
    for offset, length in ((SIZE, 512), (-512, 512), (0, SIZE + 512), (512, -512)):
        assert fault(guard.view, offset, length) is Fault.OUT_OF_RANGE
    assert fault(guard.view, 1, 512) is Fault.INVALID


# Errors of the device.


class Broken(Able):
    def __init__(self, error: BaseException) -> None:
        super().__init__(threading=Threading.PARALLEL)
        self.error = error

    def _fail(self, *arguments: Any) -> Any:
        raise self.error

    read_into = write = write_fua = flush = discard = write_zeroes = prefetch = _fail
    read_nowait = write_nowait = block_status = space = _fail


def calls_of(guard: Guarded) -> list[Any]:
    return [
        lambda: guard.read_into(buffer(), 0),
        lambda: guard.write(buffer(), 0),
        lambda: guard.write(buffer(), 0, fua=True),
        lambda: guard.read_now(buffer(), 0),
        lambda: guard.write_now(buffer(), 0),
        lambda: guard.write_zeroes(0, 512),
        lambda: guard.discard(0, 512),
        lambda: guard.prefetch(0, 512),
        lambda: list(guard.block_status(0, 512)),
        guard.flush,
        guard.space,
    ]


@pytest.mark.parametrize("error", [BlockError(Fault.NO_MEDIUM), OSError(errno.EIO, "bad sector")])
def test_errors_of_the_contract_pass(error: Exception) -> None:
    for call in calls_of(Guarded(Broken(error))):
        with pytest.raises(type(error)) as caught:
            call()
        assert caught.value is error


@pytest.mark.parametrize("error", [ValueError("oops"), NotImplementedError(), KeyError("k"), AssertionError()])
def test_any_other_error_is_internal_with_its_cause(error: Exception) -> None:
    for call in calls_of(Guarded(Broken(error))):
        with pytest.raises(BlockError) as caught:
            call()
        assert caught.value.fault is Fault.INTERNAL
        assert caught.value.__cause__ is error


def test_device_that_exits_ends_nobody() -> None:
    for call in calls_of(Guarded(Broken(SystemExit(3)))):
        with pytest.raises(BlockError) as caught:
            call()
        assert caught.value.fault is Fault.INTERNAL


class Counting(Plain):
    """Says how many bytes it has moved: ``less`` than all."""

    def __init__(self, less: int, **facts: Any) -> None:
        super().__init__(**facts)
        self.less = less

    def read_into(self, buffer: memoryview, offset: int) -> Any:
        return len(buffer) - self.less

    def write(self, data: memoryview, offset: int) -> Any:
        return len(data) - self.less

    def view(self, offset: int, length: int) -> memoryview:
        return memoryview(self.memory)[offset : offset + length - self.less]

    read_nowait = read_into
    write_fua = write_nowait = write


@pytest.mark.parametrize("facts", [INLINE, {"threading": Threading.PARALLEL}, {"alignment": 512}])
def test_device_that_returns_short_has_failed(facts: dict[str, Any]) -> None:
    guard = Guarded(Counting(1, **facts))
    reads = [lambda: guard.read_into(buffer(), 0)]
    writes = [lambda: guard.write(buffer(), 0), lambda: guard.write(buffer(), 0, fua=True)]
    if "alignment" not in facts:
        reads += [lambda: guard.read_now(buffer(), 0), lambda: guard.view(0, 512)]  # type: ignore[list-item]
        writes += [lambda: guard.write_now(buffer(), 0), lambda: guard.write_zeroes(0, 512)]
    assert {fault(call) for call in reads} == {Fault.READ_ERROR}
    assert {fault(call) for call in writes} == {Fault.WRITE_ERROR}
    assert guard.health.counts == {"read": len(reads), "write": len(writes), "flush": 0}
    assert guard.health.words == "the device has moved 511 of 512 bytes"


def test_device_that_counts_what_it_moves_is_well() -> None:
    guard = Guarded(Counting(0, **INLINE))
    for call in calls_of(guard)[:5]:
        call()
    assert guard.health.kind == ""


def test_device_that_is_cut_tells_its_size() -> None:
    device = Plain()
    guard = Guarded(device)
    device.size = 512
    assert (guard.current_size(), guard.size) == (512, SIZE)


def test_device_that_cannot_tell_its_size_has_not_failed_once_more() -> None:
    class Silent(Plain):
        def current_size(self) -> int:
            raise ValueError("?")

    guard = Guarded(Silent())
    assert fault(guard.current_size) is Fault.INTERNAL
    assert guard.health.kind == ""


def test_errors_are_noted_by_their_kind() -> None:
    guard = Guarded(Broken(OSError(errno.EIO, "bad sector")))
    for call in calls_of(guard):
        with pytest.raises(OSError, match="bad sector"):
            call()
    assert guard.health.counts == {"read": 5, "write": 5, "flush": 1}
    assert guard.health.kind == "read"  # space, the last
    assert (guard.health.fault, guard.health.words) == (Fault.READ_ERROR, "[Errno 5] bad sector")


def test_error_that_is_none_of_the_contract_is_noted_by_its_name() -> None:
    guard = Guarded(Broken(KeyError("k")))
    assert fault(guard.read_into, buffer(), 0) is Fault.INTERNAL
    assert (guard.health.fault, guard.health.words) == (Fault.INTERNAL, "the device raised KeyError: 'k'")


def test_forced_write_whose_flush_fails_is_a_flush_that_failed() -> None:
    class Volatile(Flushing):
        def flush(self) -> None:
            raise BlockError(Fault.WRITE_ERROR)

    guard = Guarded(Volatile())
    assert fault(guard.write, buffer(), 0, fua=True) is Fault.WRITE_ERROR
    assert guard.health.counts == {"read": 0, "write": 0, "flush": 1}


def test_would_block_is_no_error() -> None:
    guard = Guarded(Broken(BlockingIOError()))
    for call in calls_of(guard):
        with pytest.raises(BlockingIOError):
            call()
    assert guard.health.kind == ""


def test_lack_of_memory_in_the_device_is_a_lack_of_resources() -> None:
    for call in calls_of(Guarded(Broken(MemoryError()))):
        assert fault(call) is Fault.NO_RESOURCES


def test_interrupt_is_not_an_error_of_the_device() -> None:
    with pytest.raises(KeyboardInterrupt):
        Guarded(Broken(KeyboardInterrupt())).read_into(buffer(), 0)


# Alignment.


class Choosy(Plain):
    """Refuses buffers that O_DIRECT would refuse."""

    def __init__(self) -> None:
        super().__init__(block_size=512, alignment=512)

    def _need_aligned(self, data: memoryview) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(data)) if not data.readonly else 0
        if address % 512:
            raise OSError(errno.EINVAL, "not aligned")

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._need_aligned(buffer)
        super().read_into(buffer, offset)

    def write(self, data: memoryview, offset: int) -> None:
        self._need_aligned(data)
        super().write(data, offset)


def page_buffer(length: int, shift: int = 0) -> memoryview:
    return memoryview(mmap.mmap(-1, length + mmap.PAGESIZE))[shift : shift + length]


def test_alignment_of_a_buffer_is_seen() -> None:
    assert is_aligned(page_buffer(512), 512)
    assert is_aligned(page_buffer(512, 512), 512)
    assert not is_aligned(page_buffer(512, 8), 512)
    assert not is_aligned(memoryview(bytes(512)), 512)
    assert is_aligned(memoryview(b""), 512)


def test_aligned_buffer_is_passed_on() -> None:
    device = Choosy()
    guard = Guarded(device)
    guard.write(page_buffer(2 * CHUNK), 0)
    guard.read_into(page_buffer(2 * CHUNK), 0)
    assert device.calls == [("write", 0, 2 * CHUNK), ("read_into", 0, 2 * CHUNK)]


@pytest.mark.parametrize("length", [512, CHUNK, 2 * CHUNK + 1024])
def test_unaligned_buffer_goes_through_an_aligned_one(length: int) -> None:
    device = Choosy()
    guard = Guarded(device)
    data = page_buffer(length, 8)
    data[:] = (bytes(range(251)) * (length // 251 + 1))[:length]
    guard.write(data, 512)
    answer = page_buffer(length, 8)
    guard.read_into(answer, 512)
    assert answer == data
    assert device.memory[512 : 512 + length] == data
    assert max(call[2] for call in device.calls) <= CHUNK


def test_readonly_data_goes_through_an_aligned_buffer() -> None:
    device = Choosy()
    Guarded(device).write(memoryview(b"x" * 512), 512)
    assert device.memory[512:1024] == b"x" * 512


def test_unaligned_fua_write_is_still_one() -> None:
    class Able512(Choosy):
        def write_fua(self, data: memoryview, offset: int) -> None:
            self._need_aligned(data)
            self.calls.append(("write_fua", offset, len(data)))

    device = Able512()
    Guarded(device).write(page_buffer(512, 8), 0, fua=True)
    assert device.calls == [("write_fua", 0, 512)]


def test_spare_buffers_are_kept_and_bounded() -> None:
    guard = Guarded(Choosy())
    with contextlib.ExitStack() as stack:
        lent = [stack.enter_context(guard._bounce()) for _ in range(SPARE_BUFFERS + 3)]
        assert len({id(view.obj) for view in lent}) == len(lent)
    assert len(guard._bounces) == SPARE_BUFFERS


def test_bounce_buffers_are_not_shared_by_threads() -> None:
    guard = Guarded(Choosy())
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(50):
                data = page_buffer(4096, 8)
                data[:] = bytes([number * 50 + turn & 0xFF]) * 4096
                guard.write(data, number * 4096)
                answer = page_buffer(4096, 8)
                guard.read_into(answer, number * 4096)
                assert answer == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# The end.


def test_close_closes_the_device_once() -> None:
    device = Plain()
    guard = Guarded(device)
    guard.close()
    guard.close()
    assert device.calls == [("close",)]


def test_closed_device_is_not_called() -> None:
    device = Able()
    guard = Guarded(device)
    guard.close()
    for call in [*calls_of(guard), lambda: guard.view(0, 512)]:
        assert fault(call) is Fault.NOT_READY
    assert device.calls == [("close",)]


def test_view_that_raises_something_else_is_a_failure_of_the_device() -> None:
    class Torn(Able):
        def view(self, offset: int, length: int) -> memoryview:
            raise ValueError("mmap closed or invalid")

    assert fault(lambda: Guarded(Torn()).view(0, 512)) is Fault.INTERNAL


def test_buffer_of_a_call_that_failed_is_free_when_the_error_is_dealt_with() -> None:
    class Waiting(Able):
        def read_nowait(self, buffer: memoryview, offset: int) -> None:
            raise BlockingIOError

    guard = Guarded(Waiting(threading=Threading.PARALLEL))
    memory = bytearray(512)
    with pytest.raises(BlockingIOError) as caught:
        guard.read_now(memoryview(memory), 0)
    del caught
    memory.clear()  # BufferError while anything holds a view of it


def test_close_that_fails_says_so_and_is_done() -> None:
    class Sticky(Plain):
        def close(self) -> None:
            raise ValueError("stuck")

    guard = Guarded(Sticky())
    assert fault(guard.close) is Fault.INTERNAL
    guard.close()


def test_lock_is_none_until_the_daemon_gives_one() -> None:
    guard = Guarded(Plain())
    with guard.lock, guard.lock:
        pass
    guard.lock = threading.Lock()
    with guard.lock:
        assert not guard.lock.acquire(blocking=False)


# Ranges held against others.


@pytest.mark.parametrize("wait", [True, False])
def test_range_is_exclusive_to_everybody_where_nobody_else_can_be(wait: bool) -> None:
    guard = Guarded(Plain())
    with guard.exclusive(0, 512, wait), guard.exclusive(0, 512, wait):
        pass


class Pausing(Device):
    """The calls named in ``where`` pause, each as a layer of its own would."""

    size = 1 << 22
    block_size = 4096
    alignment = 4096
    threading = Threading.PARALLEL

    def __init__(self, *where: str) -> None:
        self.where = where
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        if name in self.where:
            pause(name, lambda: 1.0, lambda _seconds: None)
        self.calls.append(name)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._call("read")

    def write(self, data: memoryview, offset: int) -> None:
        self._call("write")

    def flush(self) -> None:
        self._call("flush")

    def discard(self, offset: int, length: int) -> None:
        self._call("discard")


@pytest.mark.parametrize(
    "change",
    [
        lambda guard: guard.write(memoryview(bytes(4096)), 0),
        lambda guard: guard.write_zeroes(0, 4096),
        lambda guard: guard.discard(0, 4096),
    ],
    ids=["write", "zeroes", "discard"],
)
def test_call_that_has_changed_the_medium_is_not_left_by_its_next_step(change: Callable[[Guarded], None]) -> None:
    device = Pausing("read")
    guard = Guarded(device)

    def steps() -> None:
        change(guard)
        guard.read_into(memoryview(bytearray(4096)), 0)

    assert leaves(steps) == 0
    assert len(device.calls) == 2


def test_forced_write_is_not_left_before_its_flush() -> None:
    device = Pausing("flush")
    guard = Guarded(device)
    assert leaves(lambda: guard.write(memoryview(bytes(4096)), 0, fua=True)) == 0
    assert leaves(lambda: guard.write_zeroes(0, 4096, fua=True)) == 0
    assert device.calls == ["write", "flush"] * 2


def test_write_that_is_bounced_in_pieces_is_left_before_the_first_only() -> None:
    device = Pausing("write")
    guard = Guarded(device)
    assert leaves(lambda: guard.write(memoryview(bytes(3 << 20)), 0)) == 1
    assert device.calls == ["write"] * 3


# Which block it is.


class Scratched(Plain):
    """The fourth block of 512 bytes cannot be read, and it tells so."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        if offset <= 3 * 512 < offset + len(buffer):
            raise BlockError(Fault.READ_ERROR, at=(self, 3 * 512))


def unread(guard: Guarded, offset: int = 0) -> int | None:
    with pytest.raises(BlockError) as caught:
        guard.read_into(buffer(4096), offset)
    assert caught.value.fault is Fault.READ_ERROR
    return caught.value.block


def test_block_that_cannot_be_read_is_one_of_the_logical_unit() -> None:
    assert unread(Guarded(Scratched())) == 3
    assert unread(Guarded(Scratched(), block_size=1024)) == 1


def test_place_that_a_layer_hands_on_counts() -> None:
    class Clear(Filter):
        pass

    assert unread(Guarded(Clear(Clear(Scratched())))) == 3


def test_place_in_a_device_that_a_layer_reads_in_its_own_way_does_not_count() -> None:
    class Shifted(Filter):
        def read_into(self, buffer: memoryview, offset: int) -> None:
            self.below.read_into(buffer, offset + 1024)

    class Pair(Plain):
        """As a back end of several."""

        def read_into(self, buffer: memoryview, offset: int) -> None:
            Guarded(Scratched()).read_into(buffer, offset)

    assert unread(Guarded(Shifted(Scratched()))) is None
    assert unread(Guarded(Pair())) is None


def test_error_of_no_place_has_no_block() -> None:
    guard = Guarded(Broken(BlockError(Fault.READ_ERROR)))
    assert unread(guard) is None
