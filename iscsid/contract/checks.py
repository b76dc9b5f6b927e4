"""The contract of a device (docs/backends.md), a check for each sentence of it.

What is checked is what the rooms above rely on: the guard over the device, opened as a worker opens it. A check takes
the medium as it finds it and leaves it overwritten. What no check can see from here is the durability contract: for
that, power has to fail.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import os
import random
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any, Final

from iscsid.block.device import Content, Support
from iscsid.block.guard import CHUNK, Guarded
from iscsid.contract.expect import holds, needed, read, refused, same, write
from iscsid.contract.medium import Medium
from iscsid.errors import Fault

Check = Callable[[Medium], None]
LENGTHS: Final = ("minimum_io", "optimal_io", "discard_granularity", "discard_alignment")
READONLY_FIELDS: Final = ("write", "fua", "discard", "write_zeroes", "write_nowait")


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that no device has by itself."""
    return random.Random(seed).randbytes(length)


def unit_of(guard: Guarded) -> int:
    """The bytes that the checks count in: whole blocks, and pages."""
    return max(4096, guard.block_size)


# What it says of itself.


def facts_fit_together(medium: Medium) -> None:
    """Its size is whole blocks, and its hints are multiples of the block."""
    guard = medium.open()
    holds(guard.blocks > 0, f"size {guard.size}: not a single block")
    holds(guard.size == guard.blocks * guard.block_size, f"size {guard.size}: not {guard.blocks} blocks")
    holds(not guard.physical_block_size % guard.block_size, f"physical_block_size {guard.physical_block_size}")
    for name in LENGTHS:
        holds(not getattr(guard, name) % guard.block_size, f"{name} {getattr(guard, name)}: not whole blocks")


def volatile_is_what_has_a_flush(medium: Medium) -> None:
    """A device with a flush has a volatile write cache, one without has none."""
    guard = medium.open()
    holds(guard.volatile is (guard.can.flush is Support.NATIVE), f"volatile is {guard.volatile}")


def readonly_device_can_write_nothing(medium: Medium) -> None:
    """Opened read-only, no capability to write is left."""
    can = medium.open("readonly", readonly=True).can
    left = [name for name in READONLY_FIELDS if getattr(can, name) is not Support.NONE]
    holds(not left, f"a read-only device offers {', '.join(left)}")


def absent_capability_is_refused(medium: Medium) -> None:
    """What is not declared is UNSUPPORTED, and what is declared works."""
    guard = medium.open()
    calls: dict[str, Callable[[], Any]] = {
        "discard": lambda: guard.discard(0, guard.block_size),
        "prefetch": lambda: guard.prefetch(0, guard.block_size),
        "space": guard.space,
        "view": lambda: guard.view(0, guard.block_size),
    }
    for name, call in calls.items():
        if getattr(guard.can, name) is Support.NONE:
            refused(Fault.UNSUPPORTED, name, call)
        else:
            call()


def size_never_changes(medium: Medium) -> None:
    """Writing, zeroing and discarding leave the size as it is."""
    guard = medium.open()
    block = guard.block_size
    write(guard, pattern(block), guard.size - block)
    guard.write_zeroes(guard.size - 4 * block, 4 * block, True)
    if guard.can.discard:
        guard.discard(0, guard.size)
    size, now = guard.size, medium.open().size
    holds(now == size, f"the size was {size} and is {now}")


# Data.


def write_is_read_back_and_its_neighbours_stay(medium: Medium) -> None:
    """What was written is read, and the blocks beside it are as they were."""
    guard = medium.open()
    size = guard.block_size
    for blocks in (1, 3, 16, 257):
        data, around = pattern(blocks * size), pattern((blocks + 2) * size, 2)
        write(guard, around, 5 * size)
        write(guard, data, 6 * size)
        expected = around[:size] + data + around[-size:]
        same(read(guard, 5 * size, len(around)), medium.kept(expected), f"{blocks} blocks and their neighbours")


def first_and_last_block_are_reached(medium: Medium) -> None:
    """The device is as large as it says."""
    guard = medium.open()
    block, last = guard.block_size, guard.size - guard.block_size
    write(guard, pattern(block, 1), 0)
    write(guard, pattern(block, 2), last)
    same(read(guard, 0, block), medium.kept(pattern(block, 1)), "the first block")
    same(read(guard, last, block), medium.kept(pattern(block, 2)), "the last block")


def large_transfer_is_whole(medium: Medium) -> None:
    """A transfer of more than the pieces of the guard is done as a whole."""
    guard = medium.open()
    data = pattern(CHUNK * 2 + guard.block_size)
    write(guard, data, guard.block_size)
    same(read(guard, guard.block_size, len(data)), medium.kept(data), "a large transfer")


def buffer_at_any_address_is_good(medium: Medium) -> None:
    """Buffers need no alignment but the one that the device declares, and nothing beside them is touched."""
    guard = medium.open()
    unit = unit_of(guard)
    data = pattern(2 * unit)
    for shift in (1, 8, 511):
        area = bytearray(2 * unit + shift)
        area[shift:] = data
        guard.write(memoryview(area)[shift:], 4 * unit)
        answer = bytearray(2 * unit + shift)
        guard.read_into(memoryview(answer)[shift:], 4 * unit)
        same(answer, bytes(shift) + medium.kept(data), f"a buffer {shift} bytes behind an aligned one")


def readonly_buffer_is_written(medium: Medium) -> None:
    """Data to write may lie in memory that cannot be written."""
    guard = medium.open()
    unit = unit_of(guard)
    guard.write(memoryview(pattern(unit)).toreadonly(), unit)
    same(read(guard, unit, unit), medium.kept(pattern(unit)), "data out of a read-only buffer")


def data_is_not_kept_after_the_write(medium: Medium) -> None:
    """The buffer of a write belongs to the caller again when it returns."""
    guard = medium.open()
    unit = unit_of(guard)
    data = bytearray(pattern(unit))
    guard.write(memoryview(data), unit)
    data[:] = b"\x5a" * unit
    guard.flush()
    same(read(guard, unit, unit), medium.kept(pattern(unit)), "data whose buffer was changed after the write")


def empty_ranges_do_nothing(medium: Medium) -> None:
    """Nothing can be read, written and zeroed, at the very end too."""
    guard = medium.open()
    nothing = memoryview(bytearray())
    for offset in (0, guard.size):
        guard.read_into(nothing, offset)
        guard.write(nothing, offset)
        guard.write(nothing, offset, fua=True)
        guard.write_zeroes(offset, 0)
        holds(list(guard.block_status(offset, 0)) == [], "the status of nothing has an extent")
        if guard.can.discard:
            guard.discard(offset, 0)


# Without waiting.


def read_now_reads_or_refuses(medium: Medium) -> None:
    """A read that may not wait reads all or raises BlockingIOError; one of a device that never waits reads."""
    guard = medium.open()
    unit = unit_of(guard)
    write(guard, pattern(2 * unit), 2 * unit)
    buffer = bytearray(2 * unit)
    try:
        guard.read_now(memoryview(buffer), 2 * unit)
    except BlockingIOError:
        holds(not guard.inline, "a device that never waits refused a read")
    else:
        same(buffer, medium.kept(pattern(2 * unit)), "a read that may not wait")


def read_now_of_what_was_just_read_reads(medium: Medium) -> None:
    """Where read_nowait is native, what was just written and read is at hand; where it is not, it is refused."""
    guard = medium.open()
    unit = unit_of(guard)
    write(guard, pattern(unit), unit)
    read(guard, unit, unit)
    buffer = bytearray(unit)
    able = guard.can.read_nowait is Support.NATIVE or guard.inline
    try:
        guard.read_now(memoryview(buffer), unit)
    except BlockingIOError:
        holds(not able or guard.serialised, "read_nowait refused what had just been read")
    else:
        holds(able, "a device without read_nowait read")
        same(buffer, medium.kept(pattern(unit)), "a read that may not wait")


def write_now_of_what_is_there_writes_or_refuses(medium: Medium) -> None:
    """A write that may not wait writes all or raises BlockingIOError."""
    guard = medium.open()
    unit = unit_of(guard)
    write(guard, pattern(2 * unit, 2), 2 * unit)
    try:
        guard.write_now(memoryview(pattern(2 * unit)), 2 * unit)
    except BlockingIOError:
        holds(not guard.inline, "a device that never waits refused a write")
        able = guard.can.write_nowait is Support.NATIVE and not guard.serialised
        holds(not able, "write_nowait refused what was there")
    else:
        same(read(guard, 2 * unit, 2 * unit), medium.kept(pattern(2 * unit)), "a write that may not wait")


# Bounds.


def _ranges(guard: Guarded) -> list[tuple[int, int, Fault]]:
    size, block = guard.size, guard.block_size
    return [
        (size, block, Fault.OUT_OF_RANGE),
        (size - block, 2 * block, Fault.OUT_OF_RANGE),
        (-block, block, Fault.OUT_OF_RANGE),
        (-block, 2 * block, Fault.OUT_OF_RANGE),
        (1 << 64, block, Fault.OUT_OF_RANGE),
        (1, block, Fault.INVALID),
        (0, block - 1, Fault.INVALID),
        (block // 2, block // 2, Fault.INVALID),
    ]


def range_that_is_not_inside_is_refused_by_every_call(medium: Medium) -> None:
    """No call goes beyond the end, or into a part of a block."""
    guard = medium.open()
    for offset, length, fault in _ranges(guard):
        buffer = memoryview(bytearray(length))
        where = f"{length} bytes at {offset}"
        for transfer in (guard.read_into, guard.write, guard.read_now, guard.write_now):
            refused(fault, where, transfer, buffer, offset)
        for call in (guard.discard, guard.write_zeroes, guard.prefetch):
            refused(fault, where, call, offset, length)
        refused(fault, where, list, guard.block_status(offset, length))
        if guard.lends:
            refused(fault, where, guard.view, offset, length)


def refused_write_changes_nothing(medium: Medium) -> None:
    """A write across the end writes no byte before it."""
    guard = medium.open()
    block = guard.block_size
    before = pattern(2 * block)
    write(guard, before, guard.size - len(before))
    refused(Fault.OUT_OF_RANGE, "a write across the end", write, guard, pattern(2 * block, 3), guard.size - block)
    same(read(guard, guard.size - len(before), len(before)), medium.kept(before), "what is before the end")


# Right to write.


def _readonly(medium: Medium, role: str) -> None:
    first = medium.open()
    unit = unit_of(first)
    write(first, pattern(unit), unit)
    guard = medium.open(role, readonly=True)
    holds(guard.readonly, f"opened read-only in the role {role}, it is not")
    same(read(guard, unit, unit), medium.kept(pattern(unit)), "a read of a read-only device")
    data = memoryview(bytes(unit))
    refused(Fault.READ_ONLY, "a write", guard.write, data, unit)
    refused(Fault.READ_ONLY, "a write with FUA", guard.write, data, unit, fua=True)
    refused(Fault.READ_ONLY, "a write that may not wait", guard.write_now, data, unit)
    refused(Fault.READ_ONLY, "write_zeroes", guard.write_zeroes, unit, unit)
    refused(Fault.READ_ONLY, "a discard", guard.discard, unit, unit)
    guard.flush()
    same(read(guard, unit, unit), medium.kept(pattern(unit)), "a read after the refused writes")


def write_protected_device_is_read_and_not_written(medium: Medium) -> None:
    """A LUN that is write-protected can be read and flushed, and nothing changes it."""
    _readonly(medium, "worker")


def device_of_a_reader_is_read_and_not_written(medium: Medium) -> None:
    """The same, where the device itself was opened in the role "readonly"."""
    _readonly(medium, "readonly")


# Several handles, as workers have them.


def fua_write_is_read_by_another_handle(medium: Medium) -> None:
    """What was written with FUA is seen by everybody."""
    one, two = medium.open(), medium.open()
    unit = unit_of(one)
    write(one, pattern(2 * unit), 0, fua=True)
    same(read(two, 0, 2 * unit), medium.kept(pattern(2 * unit)), "a write with FUA, through another handle")


def flush_through_either_handle_succeeds(medium: Medium) -> None:
    """A flush is for what was written through any handle."""
    one, two = medium.open(), medium.open()
    unit = unit_of(one)
    write(one, pattern(2 * unit), 0)
    two.flush()
    one.flush()
    same(read(two, 0, 2 * unit), medium.kept(pattern(2 * unit)), "a flushed write, through another handle")


def write_by_one_handle_is_read_by_the_other(medium: Medium) -> None:
    """No handle keeps a copy of its own."""
    one, two = medium.open(), medium.open()
    unit = unit_of(one)
    for seed, (writer, reader) in enumerate(((one, two), (two, one))):
        data = pattern(3 * unit, seed)
        write(writer, data, unit)
        same(read(reader, unit, 3 * unit), medium.kept(data), "a write through another handle")
        writer.write_zeroes(unit, unit, True)
        same(read(reader, unit, 3 * unit), medium.kept(bytes(unit) + data[unit:]), "zeros through another handle")


def discard_by_one_handle_is_seen_by_the_other(medium: Medium) -> None:
    """A discarded range that is promised to be zeros is so for everybody."""
    one, two = medium.open(), medium.open()
    needed(one.can.discard and one.discard_zeroes, "discarded ranges need not be zeros")
    write(one, pattern(65536), 65536)
    same(read(two, 65536, 65536), medium.kept(pattern(65536)), "a write through another handle")
    one.discard(65536, 65536)
    same(read(two, 65536, 65536), bytes(65536), "a range that another handle discarded")


def threads_on_two_handles_do_not_disturb_each_other(medium: Medium) -> None:
    """Threads that write and read each its own range see their own data: any number at once where it is parallel."""
    handles = [medium.open(), medium.open()]
    for handle in handles:
        if handle.serialised:
            handle.lock = threading.Lock()
    slot, rounds = 65536, 20
    failures: list[BaseException] = []

    def work(number: int) -> None:
        handle = handles[number % 2]
        try:
            for turn in range(rounds):
                data = pattern(slot, number * rounds + turn)
                with handle.lock:
                    write(handle, data, number * slot, fua=turn % 8 == 7)
                with handle.lock:
                    same(read(handle, number * slot, slot), medium.kept(data), "what a thread of several wrote")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    expected = b"".join(pattern(slot, number * rounds + rounds - 1) for number in range(6))
    same(read(medium.open(), 0, 6 * slot), medium.kept(expected), "what all threads wrote last")


def lent_view_shows_the_medium_and_outlives_the_handle(medium: Medium) -> None:
    """Memory that was lent shows every write, and stays when the handle is closed."""
    guard, other = medium.open(), medium.open()
    needed(guard.lends, "it lends no memory")
    unit = unit_of(guard)
    write(guard, pattern(unit), 2 * unit)
    lent = guard.view(2 * unit, unit)
    same(lent, pattern(unit), "a lent view")
    write(other, pattern(unit, 2), 2 * unit)
    same(lent, pattern(unit, 2), "a lent view after a write through another handle")
    guard.close()
    same(lent, pattern(unit, 2), "a lent view after the close")


def random_operations_agree_with_a_model(medium: Medium) -> None:
    """Random reads, writes, zeros, discards and flushes, by two handles in turns, do what they do to an array."""
    needed(not medium.forgets, "it forgets what is written")
    for seed in range(3):
        _agree(medium, random.Random(seed))


def _agree(medium: Medium, rng: random.Random) -> None:
    handles = [medium.open(), medium.open()]
    block, area = handles[0].block_size, 1 << 20
    handles[0].write_zeroes(0, area)
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
        elif operation == "discard" and guard.can.discard and guard.discard_zeroes:
            model[offset : offset + length] = bytes(length)
            guard.discard(offset, length)
        elif operation == "flush":
            guard.flush()
        expected = bytes(model[offset : offset + length])
        same(read(rng.choice(handles), offset, length), expected, f"{length} bytes at {offset} after a {operation}")
    same(read(medium.open(), 0, area), bytes(model), "the medium at the end")


# Zeros, discard, holes.


def write_zeroes_zeroes_the_range_and_no_more(medium: Medium) -> None:
    """Zeros are where they were asked for, whether it may deallocate or not."""
    guard = medium.open()
    size = guard.block_size
    data = pattern(64 * size)
    expected = data[: 3 * size] + bytes(50 * size) + data[53 * size :]
    for may_unmap, fua in itertools.product((False, True), repeat=2):
        write(guard, data, 0)
        guard.write_zeroes(3 * size, 50 * size, may_unmap, fua)
        what = f"write_zeroes with may_unmap={may_unmap}, fua={fua}"
        same(read(guard, 0, 64 * size), medium.kept(expected), what)


def large_write_zeroes_is_whole(medium: Medium) -> None:
    """Zeros for more than a piece of the guard."""
    guard = medium.open()
    block = guard.block_size
    data = pattern(3 * CHUNK)
    write(guard, data, 0)
    guard.write_zeroes(block, 2 * CHUNK + block)
    end = 2 * CHUNK + 2 * block
    expected = data[:block] + bytes(end - block) + data[end:]
    same(read(guard, 0, 3 * CHUNK), medium.kept(expected), "write_zeroes of more than 2 MiB")


def discard_zeroes_the_range_where_it_says_so_and_never_more(medium: Medium) -> None:
    """A discard leaves what is beside the range, and leaves zeros in it where discard_zeroes says so."""
    guard = medium.open()
    needed(guard.can.discard, "it has no discard")
    size = guard.block_size
    data = pattern(64 * size)
    write(guard, data, 0)
    guard.discard(3 * size, 50 * size)
    same(read(guard, 0, 3 * size), medium.kept(data[: 3 * size]), "what is before a discarded range")
    same(read(guard, 53 * size, 11 * size), medium.kept(data[53 * size :]), "what is behind a discarded range")
    if guard.discard_zeroes:
        same(read(guard, 3 * size, 50 * size), bytes(50 * size), "a discarded range")


def discarded_range_can_be_written_again(medium: Medium) -> None:
    """What was given back can be had again."""
    guard = medium.open()
    needed(guard.can.discard, "it has no discard")
    write(guard, pattern(65536), 0)
    guard.discard(0, 65536)
    unit = unit_of(guard)
    write(guard, pattern(2 * unit, 2), unit)
    same(read(guard, unit, 2 * unit), medium.kept(pattern(2 * unit, 2)), "what was written where it was discarded")


def extents_of(guard: Guarded, offset: int, length: int) -> list[tuple[int, int, Content]]:
    """The block status of a range, checked: whole blocks, no gap, no overlap, neighbours that differ."""
    extents = list(guard.block_status(offset, length))
    at = offset
    for extent in extents:
        holds(extent.offset == at, f"an extent begins at {extent.offset} and not at {at}")
        holds(extent.length > 0, f"the extent at {at} has {extent.length} bytes")
        holds(not extent.length % guard.block_size, f"the extent at {at} has {extent.length} bytes: no whole blocks")
        at += extent.length
    holds(at == offset + length, f"the extents end at {at} and not at {offset + length}")
    holds(all(one.content != two.content for one, two in itertools.pairwise(extents)), "neighbours do not differ")
    return [(extent.offset, extent.length, extent.content) for extent in extents]


def block_status_covers_the_range_and_never_calls_data_zero(medium: Medium) -> None:
    """Extents cover what was asked for, and what they call zeros reads as zeros."""
    guard = medium.open()
    unit = unit_of(guard)
    write(guard, pattern(65536), 1 << 20)
    write(guard, pattern(unit), (2 << 20) + unit)
    ranges = ((0, guard.size), (1 << 20, 65536), ((1 << 20) - unit, 131072), (guard.size - unit, unit))
    for start, length in ranges:
        for offset, size, content in extents_of(guard, start, min(length, guard.size - start)):
            if content & Content.ZERO:
                for at in range(offset, offset + size, CHUNK):
                    piece = min(CHUNK, offset + size - at)
                    same(read(guard, at, piece), bytes(piece), f"what block_status calls zeros at {at}")


# Block sizes, and the end.


def larger_logical_block_is_served(medium: Medium) -> None:
    """A LUN may have larger blocks than the device."""
    device_block = medium.open().block_size
    medium.close_handles()
    block = max(4096, device_block)
    guard = medium.open(block_size=block)
    holds((guard.block_size, guard.blocks) == (block, guard.size // block), f"{guard.blocks} blocks of {block} bytes")
    write(guard, pattern(2 * block), block)
    same(read(guard, block, 2 * block), medium.kept(pattern(2 * block)), f"blocks of {block} bytes")
    refused(Fault.INVALID, "half a block", read, guard, block // 2, block)
    extents_of(guard, 0, guard.size)


def smaller_logical_block_than_the_device_has_is_refused(medium: Medium) -> None:
    """A LUN has no smaller blocks than the device."""
    device = medium.device()
    try:
        smaller = device.block_size // 2
        refused(Fault.INVALID, f"blocks of {smaller} bytes", Guarded, device, block_size=smaller)
    finally:
        device.close()


def closed_device_refuses_every_call(medium: Medium) -> None:
    """Nothing is done after the close, and a second close is harmless."""
    guard = medium.open()
    unit = unit_of(guard)
    guard.close()
    guard.close()
    buffer = memoryview(bytearray(unit))
    for transfer in (guard.read_into, guard.write, guard.read_now, guard.write_now):
        refused(Fault.NOT_READY, "a transfer after the close", transfer, buffer, 0)
    refused(Fault.NOT_READY, "a flush after the close", guard.flush)
    refused(Fault.NOT_READY, "write_zeroes after the close", guard.write_zeroes, 0, unit)
    refused(Fault.NOT_READY, "view after the close", guard.view, 0, unit)


def data_outlives_every_handle(medium: Medium) -> None:
    """What was written is there when the medium is opened again."""
    guard = medium.open()
    unit = unit_of(guard)
    write(guard, pattern(unit), unit)
    medium.close_handles()
    del guard
    gc.collect()
    same(read(medium.open(), unit, unit), medium.kept(pattern(unit)), "what was written before the close")


def close_gives_every_descriptor_back(medium: Medium) -> None:
    """No file stays open when the device is closed."""
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        guard = medium.open()
        write(guard, pattern(unit_of(guard)), 0)
        medium.close_handles()
    left = set(os.listdir("/proc/self/fd")) - set(before)
    holds(not left, f"{len(left)} file descriptors are open after the close")


def descriptors_are_not_inherited_by_programs(medium: Medium) -> None:
    """File descriptors that iscsid_prepare made are close-on-exec."""
    medium.open()
    said = {option.name for option in medium.plugins.backends[medium.backend].options or ()}
    made = [value for name, value in medium.options.items() if name not in said]
    there = {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}
    bad = [fd for fd in made if isinstance(fd, int) and fd > 2 and fd in there and os.get_inheritable(fd)]
    holds(not bad, "iscsid_prepare made file descriptors that programs inherit")


def _is_check(name: str, value: object) -> bool:
    return (
        isinstance(value, FunctionType) and name[0] != "_" and inspect.signature(value).parameters.keys() == {"medium"}
    )


CHECKS: Final[tuple[Check, ...]] = tuple(value for name, value in list(globals().items()) if _is_check(name, value))
"""Every check, in the order of this file."""


def name_of(check: Check) -> str:
    """What the check is about, in words."""
    return getattr(check, "__name__", str(check)).replace("_", " ")
