"""The back end ``ram``: a disk in memory.

The memory is a memfd that the supervisor makes, so all workers share it and it outlives each of them; it is gone when
the server ends. Its mapping is lent to the network where it lies. Nothing waits and nothing needs a flush.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable, Mapping
from typing import Any

from iscsid.plugin import (
    BackendInfo,
    BlockError,
    Content,
    Descriptor,
    Device,
    Extent,
    Fault,
    Mode,
    Option,
    Space,
    Threading,
    hookimpl,
)

from . import linux

OPTIONS = (Option("size", "size", required=True, minimum=512, doc="memory is taken as it is written, not before"),)

PIECE = 1 << 20  # bytes; what is compared with zeros at once: it ends at the first byte that is none
_ZEROES = memoryview(bytes(PIECE))


class RamDevice(Device):
    """A mapping of the first ``size`` bytes of the memfd ``fd``, which the object owns."""

    mode = Mode.INLINE
    threading = Threading.PARALLEL
    discard_granularity = mmap.PAGESIZE
    discard_zeroes = True

    def __init__(self, fd: int, size: int, *, readonly: bool = False) -> None:
        self.readonly = readonly
        self.size = size
        access = mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE
        self._map = mmap.mmap(fd, self.size, access=access)
        self._memory = memoryview(self._map)
        self._fd = fd

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self._memory[offset : offset + len(buffer)]

    def write(self, data: memoryview, offset: int) -> None:
        self._map[offset : offset + len(data)] = data

    def view(self, offset: int, length: int) -> memoryview:
        return self._memory[offset : offset + length]

    def discard(self, offset: int, length: int) -> None:
        linux.punch_hole(self._fd, offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        if not may_unmap:
            raise BlockError(Fault.UNSUPPORTED)  # then the guard writes zeros, which keeps the memory
        linux.punch_hole(self._fd, offset, length)

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        """Holes, and memory that holds nothing but zeros over whole PIECEs.

        To read a hole through the mapping takes a page of memory for it, of zeros: for the kernel it is data then. But
        nobody has written it, and it reads as what is not allocated does, so it is told as that.
        """
        for extent in linux.extents(self._fd, offset, length):
            if extent.content & Content.HOLE:
                yield extent
                continue
            end = extent.offset + extent.length
            for at in range(extent.offset, end, PIECE):
                size = min(PIECE, end - at)
                empty = self._memory[at : at + size] == _ZEROES[:size]
                yield Extent(at, size, Content.HOLE | Content.ZERO if empty else Content.DATA)

    def space(self) -> Space:
        return linux.memory_space(self._fd, self.size)

    def close(self) -> None:
        """The mapping itself goes with the last slice of it that is still lent."""
        fd, self._fd = self._fd, -1
        del self._memory, self._map
        os.close(fd)


@hookimpl
def iscsid_backend_info() -> BackendInfo:
    return BackendInfo("ram", "memory, gone when the server ends", OPTIONS)


@hookimpl
def iscsid_prepare(options: Mapping[str, Any]) -> Mapping[str, Any]:
    fd = os.memfd_create("iscsid-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, options["size"])
        # A mapping that is cut kills the process that touches it. To grow is no harm.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return {"memfd": Descriptor(fd)}


@hookimpl
def iscsid_resize(options: Mapping[str, Any], size: int, shrink: bool) -> None:
    """The memory is never cut, for the kernel does not allow it: what is cut off of the disk is emptied."""
    have, there = options["size"], os.fstat(options["memfd"]).st_size
    if size < have and not shrink:
        words = f"a RAM disk of {have} bytes: what is behind {size} would be lost; say shrink to do it"
        raise BlockError(Fault.INVALID, words)
    if size < there:
        linux.punch_hole(options["memfd"], size, there - size)
    else:
        os.ftruncate(options["memfd"], size)


@hookimpl
def iscsid_release(options: Mapping[str, Any]) -> None:
    os.close(options["memfd"])


@hookimpl
def iscsid_open(options: Mapping[str, Any], role: str) -> RamDevice:
    if "memfd" not in options:
        raise BlockError(Fault.INVALID, "the memory of a RAM disk is made by prepare, once for all workers")
    fd = os.dup(options["memfd"])
    try:
        size = min(options["size"], os.fstat(fd).st_size)
        return RamDevice(fd, size, readonly=role == "readonly")
    except BaseException:
        os.close(fd)
        raise
