"""The layer ``cache``: blocks in memory, for a device below that is slow.

* ``mode = "through"``: reads are kept, writes go to the device below at once and forget what they make old. Nothing is
  at risk, and a flush is that of the device below.
* ``mode = "back"``: writes are kept too, and reach the device below when there are more than ``dirty`` of them, when an
  initiator flushes, and at the end. Initiators see a volatile write cache. ``flush`` writes everything that was written
  before it, and then flushes the device below; what cannot be written stays, and the flush fails each time until it
  can. The host's death loses what was not flushed; that of a worker loses nothing (``plugins/slots.py``).

One worker has the device. Reads that hit are answered in its loop. What is read while a write is under way is not kept.
The lock is held for as long as memory is copied; only where a part of a block is written that is not here does it last
for a read of that block.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from iscsid.plugin import (
    Capabilities,
    Descriptor,
    Device,
    Filter,
    LayerInfo,
    Mode,
    Option,
    Sharing,
    Support,
    Threading,
    hookimpl,
)

from .slots import Slots

UNITS = tuple(1 << shift for shift in range(12, 17))
OPTIONS = (
    Option("size", "size", default=64 << 20, minimum=1 << 20, maximum=1 << 40, doc="memory for data"),
    Option("mode", "str", default="through", choices=("through", "back"), doc="where a write is done"),
    Option(
        "dirty", "size", minimum=1 << 16, doc="what may not be written yet, at most half of size, which it is without"
    ),
    Option("unit", "size", default=4096, choices=UNITS, doc="of a block"),
)
_KEY = "cache_memory"
LONGEST = 256 << 10  # longer reads are not kept: who reads a whole disk shall not empty the cache
RUN = 1 << 20  # what is written below at once


class Cache(Filter):
    """``slots`` are owned by the object; ``limit`` is how many blocks may be dirty, 0 for a write-through cache."""

    mode = Mode.BLOCKING

    def __init__(self, below: Device, slots: Slots, limit: int) -> None:
        super().__init__(below)
        self._slots, self._limit = slots, limit
        self._unit = slots.unit
        self._end = below.size // below.block_size * below.block_size
        self._mutex = threading.Lock()
        self._cleaning = threading.Lock()  # before the mutex: one at a time writes below what is dirty
        self._writing = 0  # writes under way below
        self._version = 0  # changes with each write
        can = below.capabilities()
        inline = below.mode is Mode.INLINE and below.threading is Threading.PARALLEL
        self._read_now = below.read_into if inline else below.read_nowait if _has(can.read_nowait) else _would_block
        self._write_now = below.write if inline else below.write_nowait if _has(can.write_nowait) else _would_block
        self._flushes = _has(can.flush)
        if limit and slots.dirty:
            self._clean(None)  # of a worker that died

    def capabilities(self) -> Capabilities:
        below = self.below.capabilities()
        now = Support.NATIVE if self.alignment == 1 and self.threading is Threading.PARALLEL else Support.NONE
        write_now = now if self._limit or self._write_now is not _would_block else Support.NONE
        can = dataclasses.replace(below, view=Support.NONE, read_nowait=now, write_nowait=write_now)
        if self._limit:
            can = dataclasses.replace(can, flush=Support.NATIVE, fua=Support.NONE, block_status=Support.NONE)
        if self.readonly:
            none = Support.NONE
            can = dataclasses.replace(can, write=none, write_nowait=none)
        return can

    # Reading.

    def read_into(self, buffer: memoryview, offset: int) -> None:
        with self._mutex:
            missing = self._copy(buffer, offset)
            version = self._version
        for start, stop in missing:
            part = buffer[start - offset : stop - offset]
            self.below.read_into(part, start)
            if len(buffer) <= LONGEST:
                self._keep(part, start, version)

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        if not self._mutex.acquire(blocking=False):
            raise BlockingIOError
        try:
            missing = self._copy(buffer, offset)
        finally:
            self._mutex.release()
        for start, stop in missing:
            self._read_now(buffer[start - offset : stop - offset], start)

    def _copy(self, buffer: memoryview, offset: int) -> list[tuple[int, int]]:
        """Fill what is here; the ranges that are not, as start and end."""
        missing: list[tuple[int, int]] = []
        for block, start, stop in self._blocks(offset, len(buffer)):
            memory = self._slots.get(block)
            if memory is not None:
                base = block * self._unit
                buffer[start - offset : stop - offset] = memory[start - base : stop - base]
            elif missing and missing[-1][1] == start:
                missing[-1] = missing[-1][0], stop
            else:
                missing.append((start, stop))
        return missing

    def _keep(self, data: memoryview, offset: int, version: int) -> None:
        """Keep the whole blocks of what was read, unless something was written meanwhile."""
        with self._mutex:
            if self._writing or self._version != version:
                return
            for block, start, stop in self._blocks(offset, len(data)):
                if start == block * self._unit and stop == self._end_of(block) and block not in self._slots:
                    self._slots.put(block, data[start - offset : stop - offset], dirty=False)

    def _blocks(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(block, start, end) of the part of each block that a range touches."""
        at, end = offset, offset + length
        while at < end:
            block = at // self._unit
            stop = min((block + 1) * self._unit, end)
            yield block, at, stop
            at = stop

    def _end_of(self, block: int) -> int:
        return min((block + 1) * self._unit, self._end)

    # Writing.

    def write(self, data: memoryview, offset: int) -> None:
        if not self._limit:
            with self._forgotten(offset, len(data)):
                self.below.write(data, offset)
            return
        step = max(1, self._limit // 2) * self._unit
        for start in range(offset - offset % self._unit, offset + len(data), step):
            first, last = max(start, offset), min(start + step, offset + len(data))
            part = data[first - offset : last - offset]
            while not self._take(part, first, wait=True):
                self._clean(self._limit // 2)

    def write_nowait(self, data: memoryview, offset: int) -> None:
        if not self._limit:
            with self._forgotten(offset, len(data), wait=False):
                self._write_now(data, offset)
        elif not self._take(data, offset, wait=False):
            raise BlockingIOError

    def write_fua(self, data: memoryview, offset: int) -> None:
        with self._forgotten(offset, len(data)):  # only where writes go through
            self.below.write_fua(data, offset)

    def discard(self, offset: int, length: int) -> None:
        with self._cleaned_range(offset, length):
            self.below.discard(offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        with self._cleaned_range(offset, length):
            self.below.write_zeroes(offset, length, may_unmap)

    def _take(self, data: memoryview, offset: int, *, wait: bool) -> bool:
        """Keep what is written as dirty; False when there has to be room first, or, without ``wait``, a wait."""
        if not self._mutex.acquire(blocking=wait):
            return False
        try:
            if self._writing:
                return False  # of a range that is changed below; to clean is to wait for the end of that
            parts = list(self._blocks(offset, len(data)))
            more = sum(1 for block, _, _ in parts if block not in self._slots.dirty)
            if len(self._slots.dirty) + more > self._limit or not self._slots.room(more):
                return False
            absent = [part for part in parts if part[0] not in self._slots]
            torn = [part for part in absent if part[1:] != (part[0] * self._unit, self._end_of(part[0]))]
            if torn and not wait:
                return False
            self._version += 1  # before the first of them is here: the next may fail
            # Those that are here first: once dirty, they do not have to make room for the others.
            for block, start, stop in parts:
                if block in self._slots:
                    self._slots.patch(block, data[start - offset : stop - offset], start - block * self._unit)
            for block, start, stop in absent:
                part = data[start - offset : stop - offset]
                if (block, start, stop) in torn:
                    self._fill(block)
                    self._slots.patch(block, part, start - block * self._unit)
                else:
                    self._slots.put(block, part, dirty=True)
            return True
        finally:
            self._mutex.release()

    def _fill(self, block: int) -> None:
        start = block * self._unit
        whole = memoryview(mmap.mmap(-1, self._unit))[: self._end_of(block) - start]  # as O_DIRECT takes it
        self.below.read_into(whole, start)
        self._slots.put(block, whole, dirty=True)

    @contextmanager
    def _forgotten(self, offset: int, length: int, *, wait: bool = True) -> Iterator[None]:
        """Around a write below: what it makes old is not kept, and what is read meanwhile neither."""
        if not self._mutex.acquire(blocking=wait):
            raise BlockingIOError
        self._version += 1
        self._writing += 1
        if length // self._unit > len(self._slots):
            for block in self._slots.within(offset // self._unit, (offset + length - 1) // self._unit):
                self._slots.drop(block)
        else:
            for block, _, _ in self._blocks(offset, length):
                self._slots.drop(block)
        self._mutex.release()
        try:
            yield
        finally:
            with self._mutex:
                self._version += 1
                self._writing -= 1

    @contextmanager
    def _cleaned_range(self, offset: int, length: int) -> Iterator[None]:
        """As ``_forgotten``, where blocks may be dirty: their parts outside of the range are below first.

        No write is kept meanwhile: one beside the range, in the same block, would be forgotten with it, or would bring
        up what is being changed. Dirty blocks within the range stay if it fails, for what they hold was answered.
        """
        with self._cleaning:
            with self._mutex:
                self._version += 1
                self._writing += 1
                blocks = self._slots.within(offset // self._unit, (offset + length - 1) // self._unit)
                ends = {offset // self._unit, (offset + length - 1) // self._unit}
                dirty = sorted(block for block in ends if block in self._slots.dirty)
            try:
                self._write_below(dirty)
                try:
                    yield
                except BaseException:
                    blocks = [block for block in blocks if block not in self._slots.dirty]
                    raise
                finally:
                    with self._mutex:
                        for block in blocks:
                            self._slots.drop(block)
            finally:
                with self._mutex:
                    self._version += 1
                    self._writing -= 1

    # Dirty blocks.

    def flush(self) -> None:
        if self._limit:
            self._clean(None)
        if self._flushes:
            self.below.flush()

    def _clean(self, keep: int | None) -> None:
        """Write below what is dirty now, or, with ``keep``, as much of it that no more than that is left."""
        with self._cleaning:
            with self._mutex:
                blocks = sorted(self._slots.dirty)
            self._write_below(blocks if keep is None else blocks[: max(0, len(blocks) - keep)])

    def _write_below(self, blocks: list[int]) -> None:
        """Write these blocks, neighbours together. Those that fail stay dirty. The caller holds ``_cleaning``."""
        longest = RUN // self._unit
        buffer = memoryview(mmap.mmap(-1, RUN)) if blocks else memoryview(b"")
        at = 0
        while at < len(blocks):
            count = 1
            while count < longest and at + count < len(blocks) and blocks[at + count] == blocks[at] + count:
                count += 1
            run = blocks[at : at + count]
            with self._mutex:
                stamps = [self._slots.stamp(block) for block in run]
                for index, block in enumerate(run):
                    memory = self._slots.get(block)
                    assert memory is not None  # dirty blocks go nowhere but through here
                    buffer[index * self._unit : (index + 1) * self._unit] = memory
            start = run[0] * self._unit
            self.below.write(buffer[: self._end_of(run[-1]) - start], start)
            with self._mutex:
                for block, stamp in zip(run, stamps, strict=True):
                    self._slots.cleaned(block, stamp)
            at += count

    def close(self) -> None:
        try:
            if self._limit and self._slots.dirty:
                self._clean(None)
        finally:
            self._slots.close()
            super().close()


def _has(support: Support) -> bool:
    return support is Support.NATIVE


def _would_block(_buffer: memoryview, _offset: int) -> None:
    raise BlockingIOError


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    return LayerInfo("cache", "blocks in memory, for reads or for writes too", OPTIONS, sharing=Sharing.EXCLUSIVE_OWNER)


@hookimpl
def iscsid_layer_validate(name: str, options: Mapping[str, Any]) -> list[str]:
    if options["dirty"] is not None and options["mode"] != "back":
        return ['dirty: is for mode = "back"']
    if options["dirty"] is not None and options["dirty"] > options["size"] // 2:
        return [f"dirty: {options['dirty']} is more than half of size, {options['size']}"]
    return []


@hookimpl
def iscsid_layer_prepare(name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    return {_KEY: Descriptor(os.memfd_create("iscsid-cache", os.MFD_CLOEXEC))}


@hookimpl
def iscsid_layer_release(name: str, options: Mapping[str, Any]) -> None:
    os.close(options[_KEY])


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Cache:
    unit = max(options["unit"], device.block_size)
    limit = 0
    if options["mode"] == "back":
        limit = (options["dirty"] or options["size"] // 2) // unit
    fd = os.dup(options[_KEY]) if _KEY in options else os.memfd_create("iscsid-cache", os.MFD_CLOEXEC)
    try:
        slots = Slots(fd, unit, options["size"] // unit)
    except BaseException:
        os.close(fd)
        raise
    try:
        return Cache(device, slots, limit)
    except BaseException:
        slots.close()
        raise
