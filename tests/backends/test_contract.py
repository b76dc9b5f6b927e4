"""The contract of a device, as one suite that runs on every back end (see ``MAKERS`` in conftest.py).

What is tested is what the rooms above rely on: the guard over the device, opened as a worker opens it.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import random
import threading
from typing import Any

import pytest

from iscsid.block.device import Capabilities, Content, Support
from iscsid.block.guard import CHUNK, Guarded
from iscsid.errors import BlockError, Fault

NONE, EMULATE, NATIVE = Support.NONE, Support.EMULATE, Support.NATIVE

_IN_MEMORY = Capabilities(
    write=NATIVE,
    flush=NONE,
    fua=EMULATE,
    discard=NATIVE,
    write_zeroes=NATIVE,
    block_status=NATIVE,
    prefetch=NATIVE,
    space=NATIVE,
    view=NONE,
    read_nowait=NATIVE,
    write_nowait=NATIVE,
)
_BUFFERED = dataclasses.replace(_IN_MEMORY, flush=NATIVE, fua=NATIVE)
_DIRECT = dataclasses.replace(_BUFFERED, prefetch=NONE, read_nowait=NONE, write_nowait=NONE)

_REMOTE = dataclasses.replace(_BUFFERED, read_nowait=NONE, write_nowait=NONE, space=NONE)

# The truth table: what the guard says of each medium. Everything that is advertised to an initiator follows from it.
EXPECTED = {
    "null": Capabilities(write=NATIVE, fua=EMULATE, write_zeroes=EMULATE, block_status=EMULATE),
    "ram": dataclasses.replace(_IN_MEMORY, prefetch=NONE, view=NATIVE, read_nowait=NONE, write_nowait=NONE),
    "file-tmpfs": _IN_MEMORY,
    "file-disk": _BUFFERED,
    "file-direct": _DIRECT,
    "block": dataclasses.replace(_BUFFERED, block_status=EMULATE, space=NONE),
    "block-4k": dataclasses.replace(_BUFFERED, block_status=EMULATE, space=NONE),
    "block-direct": dataclasses.replace(_DIRECT, block_status=EMULATE, space=NONE),
    "qcow2": dataclasses.replace(_BUFFERED, fua=EMULATE),
    "qcow2-v2": dataclasses.replace(_BUFFERED, fua=EMULATE),
    "qcow2-subclusters": dataclasses.replace(_BUFFERED, fua=EMULATE),
    "concat": _BUFFERED,
    "mirror": dataclasses.replace(_BUFFERED, write_nowait=NONE, space=NONE),
    "nbd": _REMOTE,
    "nbd-shared": dataclasses.replace(_REMOTE, flush=NONE),
    "nbd-qemu": _REMOTE,
}
INLINE = {"null", "ram", "file-tmpfs"}


def pattern(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def read(guard: Guarded, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xa5" * length)
    guard.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def write(guard: Guarded, data: bytes, offset: int, **arguments: Any) -> None:
    guard.write(memoryview(data), offset, **arguments)


def kept(medium: Any, data: bytes) -> bytes:
    """What a read of ``data`` gives: the null device is the one that forgets."""
    return data if medium.keeps else bytes(len(data))


def fault_of(call: Any, *arguments: Any) -> Fault:
    with pytest.raises(BlockError) as caught:
        call(*arguments)
    return caught.value.fault


# What it says of itself.


def test_capabilities_are_those_of_the_truth_table(medium: Any) -> None:
    assert medium.open().can == EXPECTED[medium.kind]


def test_capabilities_of_a_readonly_device_write_nothing(medium: Any) -> None:
    can = medium.open("readonly", readonly=True).can
    writing = (can.write, can.fua, can.discard, can.write_zeroes, can.write_nowait)
    assert writing == (NONE,) * 5
    assert can.block_status == EXPECTED[medium.kind].block_status


def test_volatile_is_what_needs_a_flush(medium: Any) -> None:
    guard = medium.open()
    assert guard.volatile is (EXPECTED[medium.kind].flush is NATIVE)
    assert guard.inline is (medium.kind in INLINE)


def test_facts_fit_together(medium: Any) -> None:
    guard = medium.open()
    assert guard.size == guard.blocks * guard.block_size == 8 << 20
    assert guard.physical_block_size % guard.block_size == 0
    for length in (guard.minimum_io, guard.optimal_io, guard.discard_granularity, guard.discard_alignment):
        assert length % guard.block_size == 0
    assert not guard.readonly


def test_capability_that_is_absent_is_refused(medium: Any) -> None:
    guard = medium.open()
    calls = {
        "discard": lambda: guard.discard(0, guard.block_size),
        "prefetch": lambda: guard.prefetch(0, guard.block_size),
        "space": guard.space,
        "view": lambda: guard.view(0, guard.block_size),
    }
    for name, call in calls.items():
        if getattr(guard.can, name) is NONE:
            assert fault_of(call) is Fault.UNSUPPORTED
        else:
            call()


def test_space_tells_what_is_written(medium: Any) -> None:
    guard = medium.open()
    if guard.can.space is NONE:
        pytest.skip("this medium does not tell how full it is")
    before = guard.space()
    guard.write(memoryview(pattern(1 << 20)), 0)
    guard.flush()
    after = guard.space()
    assert before.used + (1 << 20) <= after.used <= before.used + (2 << 20)
    assert after.available > 0
    guard.discard(0, 1 << 20)
    assert guard.space().used < after.used


# Data.


@pytest.mark.parametrize("blocks", [1, 3, 16, 257])
def test_write_is_read_back_and_its_neighbours_stay(medium: Any, blocks: int) -> None:
    guard = medium.open()
    size = guard.block_size
    data, around = pattern(blocks * size), pattern((blocks + 2) * size, 2)
    write(guard, around, 5 * size)
    write(guard, data, 6 * size)
    expected = around[:size] + data + around[-size:]
    assert read(guard, 5 * size, len(around)) == kept(medium, expected)


def test_first_and_last_block_are_reached(medium: Any) -> None:
    guard = medium.open()
    last = guard.size - guard.block_size
    write(guard, pattern(guard.block_size, 1), 0)
    write(guard, pattern(guard.block_size, 2), last)
    assert read(guard, 0, guard.block_size) == kept(medium, pattern(guard.block_size, 1))
    assert read(guard, last, guard.block_size) == kept(medium, pattern(guard.block_size, 2))


def test_transfer_larger_than_the_pieces_of_the_guard_is_whole(medium: Any) -> None:
    guard = medium.open()
    data = pattern(CHUNK * 2 + guard.block_size)
    write(guard, data, guard.block_size)
    assert read(guard, guard.block_size, len(data)) == kept(medium, data)


def test_fresh_medium_reads_as_zeros(medium: Any) -> None:
    guard = medium.open()
    assert read(guard, 0, 1 << 20) == bytes(1 << 20)


def test_size_of_the_medium_never_changes(medium: Any) -> None:
    guard = medium.open()
    write(guard, pattern(guard.block_size), guard.size - guard.block_size)
    guard.write_zeroes(guard.size - 4 * guard.block_size, 4 * guard.block_size, True)
    if guard.can.discard:
        guard.discard(0, guard.size)
    assert medium.open().size == guard.size


@pytest.mark.parametrize("shift", [1, 8, 511])
def test_buffer_at_any_address_is_good(medium: Any, shift: int) -> None:
    guard = medium.open()
    data = pattern(8192)
    area = bytearray(8192 + shift)
    area[shift:] = data
    guard.write(memoryview(area)[shift:], 16384)
    answer = bytearray(8192 + shift)
    guard.read_into(memoryview(answer)[shift:], 16384)
    assert bytes(answer) == bytes(shift) + kept(medium, data)


def test_readonly_buffer_is_written(medium: Any) -> None:
    guard = medium.open()
    guard.write(memoryview(pattern(4096)).toreadonly(), 4096)
    assert read(guard, 4096, 4096) == kept(medium, pattern(4096))


def test_empty_ranges_do_nothing(medium: Any) -> None:
    guard = medium.open()
    nothing = memoryview(bytearray())
    for offset in (0, guard.size):
        guard.read_into(nothing, offset)
        guard.write(nothing, offset)
        guard.write(nothing, offset, fua=True)
        guard.write_zeroes(offset, 0)
        assert list(guard.block_status(offset, 0)) == []
        if guard.can.discard:
            guard.discard(offset, 0)


# Without waiting.


def test_read_now_reads_or_refuses(medium: Any) -> None:
    guard = medium.open()
    write(guard, pattern(8192), 8192)
    buffer = bytearray(8192)
    try:
        guard.read_now(memoryview(buffer), 8192)
    except BlockingIOError:
        assert not guard.inline
    else:
        assert bytes(buffer) == kept(medium, pattern(8192))


def test_read_now_of_cached_data_does_not_refuse_where_it_is_native(medium: Any) -> None:
    guard = medium.open()
    if guard.can.read_nowait is not NATIVE and not guard.inline:
        with pytest.raises(BlockingIOError):
            guard.read_now(memoryview(bytearray(4096)), 0)
        return
    write(guard, pattern(4096), 4096)
    buffer = bytearray(4096)
    guard.read_now(memoryview(buffer), 4096)
    assert bytes(buffer) == kept(medium, pattern(4096))


def test_write_now_of_what_is_allocated_writes_or_refuses(medium: Any) -> None:
    guard = medium.open()
    write(guard, pattern(8192, 2), 8192)
    try:
        guard.write_now(memoryview(pattern(8192)), 8192)
    except BlockingIOError:
        assert not guard.inline
        assert guard.can.write_nowait is NONE
    else:
        assert read(guard, 8192, 8192) == kept(medium, pattern(8192))


# Bounds.


def _ranges(guard: Guarded) -> list[tuple[int, int, Fault]]:
    size, block = guard.size, guard.block_size
    return [
        (size, block, Fault.OUT_OF_RANGE),
        (size - block, 2 * block, Fault.OUT_OF_RANGE),
        (-block, block, Fault.OUT_OF_RANGE),
        (-block, 2 * block, Fault.OUT_OF_RANGE),
        (1 << 64, block, Fault.OUT_OF_RANGE),
        (0, size + block, Fault.OUT_OF_RANGE),
        (1, block, Fault.INVALID),
        (0, block - 1, Fault.INVALID),
        (block // 2, block // 2, Fault.INVALID),
    ]


def test_range_that_is_not_inside_is_refused_by_every_call(medium: Any) -> None:
    guard = medium.open()
    for offset, length, fault in _ranges(guard):
        buffer = memoryview(bytearray(length))
        for transfer in (guard.read_into, guard.write, guard.read_now, guard.write_now):
            assert fault_of(transfer, buffer, offset) is fault
        for call in (guard.discard, guard.write_zeroes, guard.prefetch):
            assert fault_of(call, offset, length) is fault
        assert fault_of(lambda: list(guard.block_status(offset, length))) is fault  # noqa: B023
        if guard.lends:
            assert fault_of(guard.view, offset, length) is fault


def test_refused_write_changes_nothing(medium: Any) -> None:
    guard = medium.open()
    before = pattern(guard.block_size * 2)
    write(guard, before, guard.size - len(before))
    assert fault_of(write, guard, pattern(guard.block_size * 2, 3), guard.size - guard.block_size) is Fault.OUT_OF_RANGE
    assert read(guard, guard.size - len(before), len(before)) == kept(medium, before)


# Right to write.


@pytest.mark.parametrize("role", ["worker", "readonly"])
def test_readonly_device_is_read_and_not_written(medium: Any, role: str) -> None:
    write(medium.open(), pattern(4096), 4096)
    guard = medium.open(role, readonly=True)
    assert guard.readonly
    assert read(guard, 4096, 4096) == kept(medium, pattern(4096))
    data = memoryview(bytes(4096))
    calls: list[tuple[Any, ...]] = [
        (guard.write, data, 4096),
        (guard.write, data, 4096, True),
        (guard.write_now, data, 4096),
        (guard.write_zeroes, 4096, 4096),
        (guard.discard, 4096, 4096),
    ]
    for call, *arguments in calls:
        assert fault_of(call, *arguments) is Fault.READ_ONLY
    guard.flush()
    assert read(guard, 4096, 4096) == kept(medium, pattern(4096))


# Durability.


def test_fua_write_is_read_back_by_another_handle(medium: Any) -> None:
    one, two = medium.open(), medium.open()
    write(one, pattern(8192), 0, fua=True)
    assert read(two, 0, 8192) == kept(medium, pattern(8192))


def test_flush_through_either_handle_succeeds(medium: Any) -> None:
    one, two = medium.open(), medium.open()
    write(one, pattern(8192), 0)
    two.flush()
    one.flush()
    assert read(two, 0, 8192) == kept(medium, pattern(8192))


# Zeros, discard, holes.


@pytest.mark.parametrize("may_unmap", [False, True])
@pytest.mark.parametrize("fua", [False, True])
def test_write_zeroes_zeroes_the_range_and_no_more(medium: Any, may_unmap: bool, fua: bool) -> None:
    guard = medium.open()
    size = guard.block_size
    write(guard, pattern(64 * size), 0)
    guard.write_zeroes(3 * size, 50 * size, may_unmap, fua)
    expected = pattern(64 * size)[: 3 * size] + bytes(50 * size) + pattern(64 * size)[53 * size :]
    assert read(guard, 0, 64 * size) == kept(medium, expected)


def test_write_zeroes_of_more_than_a_piece_is_whole(medium: Any) -> None:
    guard = medium.open()
    write(guard, pattern(3 * CHUNK), 0)
    guard.write_zeroes(guard.block_size, 2 * CHUNK + guard.block_size)
    data = pattern(3 * CHUNK)
    end = 2 * CHUNK + 2 * guard.block_size
    expected = data[: guard.block_size] + bytes(end - guard.block_size) + data[end:]
    assert read(guard, 0, 3 * CHUNK) == kept(medium, expected)


def test_discard_zeroes_the_range_where_it_says_so_and_never_more(medium: Any) -> None:
    guard = medium.open()
    if not guard.can.discard:
        return
    size = guard.block_size
    data = pattern(64 * size)
    write(guard, data, 0)
    guard.discard(3 * size, 50 * size)
    assert read(guard, 0, 3 * size) == data[: 3 * size]
    assert read(guard, 53 * size, 11 * size) == data[53 * size :]
    if guard.discard_zeroes:
        assert read(guard, 3 * size, 50 * size) == bytes(50 * size)


def test_discarded_range_can_be_written_again(medium: Any) -> None:
    guard = medium.open()
    if not guard.can.discard:
        return
    write(guard, pattern(65536), 0)
    guard.discard(0, 65536)
    write(guard, pattern(8192, 2), 16384)
    assert read(guard, 16384, 8192) == pattern(8192, 2)


def _status(guard: Guarded, offset: int, length: int) -> list[tuple[int, int, Content]]:
    extents = list(guard.block_status(offset, length))
    at = offset
    for extent in extents:
        assert extent.offset == at
        assert extent.length > 0
        assert extent.length % guard.block_size == 0
        at += extent.length
    assert at == offset + length
    assert all(one.content != two.content for one, two in itertools.pairwise(extents))
    return [tuple(extent) for extent in extents]


def test_block_status_covers_the_range_and_never_calls_data_zero(medium: Any) -> None:
    guard = medium.open()
    write(guard, pattern(65536), 1 << 20)
    write(guard, pattern(4096), (2 << 20) + 4096)
    for start, length in ((0, guard.size), (1 << 20, 65536), ((1 << 20) - 4096, 131072), (guard.size - 4096, 4096)):
        for offset, size, content in _status(guard, start, length):
            if content & Content.ZERO:
                assert read(guard, offset, size) == bytes(size)


def test_block_status_finds_the_holes(medium: Any) -> None:
    guard = medium.open()
    if guard.can.block_status is not NATIVE:
        assert _status(guard, 0, guard.size) == [(0, guard.size, Content.DATA)]
        return
    hole = Content.HOLE | Content.ZERO
    write(guard, pattern(1 << 20), 1 << 20)
    guard.flush()
    assert _status(guard, 0, 3 << 20) == [
        (0, 1 << 20, hole),
        (1 << 20, 1 << 20, Content.DATA),
        (2 << 20, 1 << 20, hole),
    ]
    guard.discard(1 << 20, 512 << 10)
    assert _status(guard, 1 << 20, 1 << 20) == [
        (1 << 20, 512 << 10, hole),
        ((1 << 20) + (512 << 10), 512 << 10, Content.DATA),
    ]


# Several at once.


def test_write_by_one_handle_is_read_by_the_other(medium: Any) -> None:
    one, two = medium.open(), medium.open()
    for seed, (writer, reader) in enumerate(((one, two), (two, one))):
        data = pattern(12288, seed)
        write(writer, data, 4096)
        assert read(reader, 4096, 12288) == kept(medium, data)
        writer.write_zeroes(4096, 4096, True)
        assert read(reader, 4096, 12288) == kept(medium, bytes(4096) + data[4096:])


def test_discard_by_one_handle_is_seen_by_the_other(medium: Any) -> None:
    one, two = medium.open(), medium.open()
    if not one.discard_zeroes:
        return
    write(one, pattern(65536), 65536)
    assert read(two, 65536, 65536) == pattern(65536)
    one.discard(65536, 65536)
    assert read(two, 65536, 65536) == bytes(65536)


def test_threads_on_two_handles_do_not_disturb_each_other(medium: Any) -> None:
    handles = [medium.open(), medium.open()]
    for handle in handles:
        if handle.serialised:
            handle.lock = threading.Lock()
    slot, rounds, failures = 65536, 20, []

    def work(number: int) -> None:
        handle = handles[number % 2]
        try:
            for turn in range(rounds):
                data = pattern(slot, number * rounds + turn)
                with handle.lock:
                    write(handle, data, number * slot, fua=turn % 8 == 7)
                with handle.lock:
                    assert read(handle, number * slot, slot) == kept(medium, data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    expected = b"".join(pattern(slot, number * rounds + rounds - 1) for number in range(6))
    assert read(medium.open(), 0, 6 * slot) == kept(medium, expected)


def test_lent_view_shows_the_medium_and_outlives_the_handle(medium: Any) -> None:
    guard, other = medium.open(), medium.open()
    if not guard.lends:
        return
    write(guard, pattern(4096), 8192)
    lent = guard.view(8192, 4096)
    assert lent == pattern(4096)
    write(other, pattern(4096, 2), 8192)
    assert lent == pattern(4096, 2)
    guard.close()
    assert lent == pattern(4096, 2)


@pytest.mark.parametrize("seed", range(3))
def test_random_operations_agree_with_a_model(medium: Any, seed: int) -> None:
    """A bytearray is the model; two handles take turns, so that neither may keep a copy of its own."""
    if not medium.keeps:
        return
    rng = random.Random(seed)
    handles = [medium.open(), medium.open()]
    block, area = handles[0].block_size, 1 << 20
    model = bytearray(area)
    for _ in range(150):
        guard = rng.choice(handles)
        first = rng.randrange(area // block)
        offset, length = first * block, rng.randint(1, min(64, area // block - first)) * block
        operation = rng.choice(("read", "write", "fua", "zero", "unmap", "discard", "flush"))
        if operation in ("write", "fua"):
            model[offset : offset + length] = data = rng.randbytes(length)
            write(guard, data, offset, fua=operation == "fua")
        elif operation in ("zero", "unmap"):
            model[offset : offset + length] = bytes(length)
            guard.write_zeroes(offset, length, operation == "unmap")
        elif operation == "discard" and guard.discard_zeroes:
            model[offset : offset + length] = bytes(length)
            guard.discard(offset, length)
        elif operation == "flush":
            guard.flush()
        assert read(rng.choice(handles), offset, length) == model[offset : offset + length]
    assert read(medium.open(), 0, area) == model


# Block sizes.


def test_larger_logical_block_is_served(medium: Any) -> None:
    guard = medium.open(block_size=4096)
    assert (guard.block_size, guard.blocks) == (4096, guard.size // 4096)
    write(guard, pattern(8192), 4096)
    assert read(guard, 4096, 8192) == kept(medium, pattern(8192))
    assert fault_of(read, guard, 512, 4096) is Fault.INVALID
    _status(guard, 0, guard.size)


def test_smaller_logical_block_than_the_device_has_is_refused(medium: Any) -> None:
    device = medium.device()
    smaller = device.block_size // 2
    assert fault_of(lambda: Guarded(device, block_size=smaller)) is Fault.INVALID
    device.close()


# The end.


def test_closed_device_refuses_every_call(medium: Any) -> None:
    guard = medium.open()
    guard.close()
    guard.close()
    buffer = memoryview(bytearray(4096))
    for transfer in (guard.read_into, guard.write, guard.read_now, guard.write_now):
        assert fault_of(transfer, buffer, 0) is Fault.NOT_READY
    assert fault_of(guard.flush) is Fault.NOT_READY
    assert fault_of(guard.write_zeroes, 0, 4096) is Fault.NOT_READY
    assert fault_of(guard.view, 0, 4096) is Fault.NOT_READY


def test_data_outlives_every_handle(medium: Any) -> None:
    guard = medium.open()
    write(guard, pattern(4096), 4096)
    guard.close()
    gc.collect()
    assert read(medium.open(), 4096, 4096) == kept(medium, pattern(4096))


def test_close_gives_every_descriptor_back(medium: Any) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        guard = medium.open()
        write(guard, pattern(4096), 0)
        guard.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_descriptors_are_not_inherited_by_programs(medium: Any) -> None:
    medium.open()
    said = {option.name for option in medium.plugins.backends[medium.backend].options}
    made = [value for name, value in medium.options.items() if name not in said]
    ours = [value for value in made if isinstance(value, int) and value in _descriptors()]
    assert not any(os.get_inheritable(fd) for fd in ours if fd > 2)


def _descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}
