"""The back end ``concat``: other devices one after the other, as one. What NetBSD's targets(5) calls RAID0.

It can do what all of its members can; where one has nothing to flush, the others are flushed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from iscsid.plugin import (
    BackendInfo,
    BlockError,
    Capabilities,
    Content,
    Device,
    Extent,
    Fault,
    Member,
    Mode,
    Option,
    Space,
    Support,
    Threading,
    hookimpl,
    stay,
)

OPTIONS = (Option("members", "members", required=True, doc="the back ends, in order"),)


class ConcatDevice(Device):
    """Owns its members. A member's tail that is no whole block of the whole is out of reach."""

    def __init__(self, members: Sequence[Device]) -> None:
        self._members = list(members)
        self._able = [member.capabilities() for member in members]
        self.block_size = max(member.block_size for member in members)
        self.physical_block_size = max(member.physical_block_size for member in members)
        self.alignment = max(member.alignment for member in members)
        self.readonly = any(member.readonly for member in members)
        self.rotational = any(member.rotational for member in members)
        self.discard_granularity = max(member.discard_granularity for member in members)
        self.discard_zeroes = all(member.discard_zeroes for member in members)
        self.mode = Mode.INLINE if all(member.mode is Mode.INLINE for member in members) else Mode.BLOCKING
        parallel = all(member.threading is Threading.PARALLEL for member in members)
        self.threading = Threading.PARALLEL if parallel else Threading.SERIAL
        lengths = [member.size - member.size % self.block_size for member in members]
        if not all(lengths):
            raise BlockError(Fault.INVALID, f"member {lengths.index(0)} has no block of {self.block_size} bytes")
        self._ends = list(accumulate(lengths))
        self.size = self._ends[-1]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        for member, start, piece in self._pieces(buffer, offset):
            self._members[member].read_into(piece, start)

    def write(self, data: memoryview, offset: int) -> None:
        for member, start, piece in self._pieces(data, offset):
            self._members[member].write(piece, start)
            stay()  # what one member has need not be done again because the next one pauses

    def write_fua(self, data: memoryview, offset: int) -> None:
        for member, start, piece in self._pieces(data, offset):
            # A member that has nothing to flush has it on the medium when the write returns.
            device = self._members[member]
            (device.write_fua if self._able[member].fua is Support.NATIVE else device.write)(piece, start)
            stay()

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        for member, start, piece in self._pieces(buffer, offset):
            self._members[member].read_nowait(piece, start)

    def write_nowait(self, data: memoryview, offset: int) -> None:
        for member, start, piece in self._pieces(data, offset):
            self._members[member].write_nowait(piece, start)

    def flush(self) -> None:
        """All of them, whatever fails; the first failure is raised."""
        failure: Exception | None = None
        for device, able in zip(self._members, self._able, strict=True):
            if able.flush is Support.NATIVE:
                try:
                    device.flush()
                except Exception as error:
                    failure = failure or error
        if failure is not None:
            raise failure

    def current_size(self) -> int:
        return self.size - sum(max(0, member.size - member.current_size()) for member in self._members)

    def discard(self, offset: int, length: int) -> None:
        for member, start, size in self._parts(offset, length):
            self._members[member].discard(start, size)
            stay()

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        for member, start, size in self._parts(offset, length):
            self._members[member].write_zeroes(start, size, may_unmap)
            stay()

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        for member, start, size in self._parts(offset, length):
            base = self._ends[member - 1] if member else 0
            if self._able[member].block_status is not Support.NATIVE:
                yield Extent(base + start, size, Content.DATA)
                continue
            for extent in self._members[member].block_status(start, size):
                yield Extent(base + extent.offset, extent.length, extent.content)

    def prefetch(self, offset: int, length: int) -> None:
        for member, start, size in self._parts(offset, length):
            if self._able[member].prefetch is Support.NATIVE:
                self._members[member].prefetch(start, size)

    def space(self) -> Space:
        """The least that is left for any of them: that is where the next write may fail."""
        spaces = [device.space() for device in self._members]
        return Space(sum(space.used for space in spaces), min(space.available for space in spaces))

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for device in self._members:
                stack.callback(device.close)

    def capabilities(self) -> Capabilities:
        """What all can; for a call that a member may be left out of, what any can."""

        def of(name: str, enough: Callable[[Iterable[bool]], bool]) -> Support:
            found = enough(getattr(able, name) is Support.NATIVE for able in self._able)
            return Support.NATIVE if found else Support.NONE

        answer = super().capabilities()
        fua = all(Support.NATIVE in (able.fua, _unflushed(able)) for able in self._able)
        return dataclasses.replace(
            answer,
            **{name: of(name, all) for name in ("discard", "write_zeroes", "space", "read_nowait", "write_nowait")},
            **{name: of(name, any) for name in ("flush", "block_status", "prefetch")},
            write=Support.NONE if self.readonly else of("write", all),
            fua=Support.NATIVE if fua else Support.NONE,
        )

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """The range as (member, offset in it, length)."""
        member = bisect_right(self._ends, offset)
        while length:
            start = offset - (self._ends[member - 1] if member else 0)
            size = min(length, self._ends[member] - offset)
            yield member, start, size
            offset += size
            length -= size
            member += 1

    def _pieces(self, data: memoryview, offset: int) -> Iterator[tuple[int, int, memoryview]]:
        position = 0
        for member, start, size in self._parts(offset, len(data)):
            yield member, start, data[position : position + size]
            position += size


def _unflushed(able: Capabilities) -> Support:
    return Support.NATIVE if able.flush is Support.NONE else Support.NONE


@hookimpl
def iscsid_backend_info() -> BackendInfo:
    return BackendInfo("concat", "other back ends, one after the other", OPTIONS)


@hookimpl
def iscsid_open(options: Mapping[str, Any], role: str) -> ConcatDevice:
    members: tuple[Member, ...] = options["members"]
    with contextlib.ExitStack() as stack:
        opened = []
        for member in members:
            opened.append(member.open())
            stack.callback(opened[-1].close)
        device = ConcatDevice(opened)
        stack.pop_all()
    return device
