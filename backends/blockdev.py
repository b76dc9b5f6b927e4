"""The back end ``block``: a raw block device, by the block layer of the kernel.

The supervisor claims the device (O_EXCL), so that it is neither mounted nor part of anything else, and stays so while
it is served. Workers open it without O_EXCL for their data, each a descriptor of its own, and use the inherited claim
for the ioctls that change the medium behind the page cache: only the holder of the claim may drop cached pages that
are dirty; for everybody else BLKDISCARD and BLKZEROOUT fail with EBUSY then.
"""

from __future__ import annotations

import dataclasses
import errno
import mmap
import os
import stat
from collections.abc import Mapping
from functools import partial
from typing import Any

from iscsid.plugin import BackendInfo, BlockError, Capabilities, Descriptor, Fault, Option, Support, hookimpl

from . import linux
from .claims import Claims
from .descriptor import UNREADABLE, DescriptorDevice, reopen

OPTIONS = (
    Option("path", "path", required=True, doc="the device, best by a name in /dev/disk/by-id", medium=True),
    Option("direct", "bool", default=False, doc="go past the page cache (O_DIRECT)"),
)
#: What fallocate and the ioctls say when the device has no such command.
_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)

DISKS = Claims(lambda facts: facts.st_rdev)


class BlockDevice(DescriptorDevice):
    """A block device open at ``fd``; ``claim`` is the descriptor opened with O_EXCL, or ``fd`` where there is none."""

    deferred = (*UNREADABLE, errno.ENOSPC)

    def __init__(self, fd: int, name: str, *, claim: int | None, direct: bool = False, readonly: bool = False) -> None:
        super().__init__(fd, name, waits=True, direct=direct)
        self._claim = fd if claim is None else claim
        facts = linux.block_geometry(fd)
        self._queue = linux.queue_facts(os.fstat(fd).st_rdev)
        self.size = facts.size
        self.block_size = facts.logical_block_size
        self._page = max(mmap.PAGESIZE, self.block_size)  # what the page cache reads at least
        self.physical_block_size = facts.physical_block_size
        self.minimum_io = facts.minimum_io
        self.optimal_io = facts.optimal_io
        self.rotational = facts.rotational
        self.readonly = readonly or facts.readonly
        self.discard_granularity = self._queue.discard_granularity
        self.discard_alignment = self._queue.discard_alignment
        if direct:
            self.alignment = self.block_size

    def _read_around(self, buffer: memoryview, offset: int, error: OSError) -> int:
        """In the page cache, one bad sector makes all of its page unreadable, so that is read past it."""
        if self._direct or error.errno not in UNREADABLE:
            return super()._read_around(buffer, offset, error)
        fd = reopen(self._fd, self._name, os.O_RDONLY | os.O_DIRECT)
        try:
            return self._read_blocks(fd, buffer[: self._page - offset % self._page], offset)
        finally:
            os.close(fd)

    def _write_around(self, data: memoryview, offset: int, error: OSError) -> int:
        """Write a part of a page past the page cache, which fails to read the rest of it: for the disk, a write is what
        makes a bad sector good. That there is no space says that the device has become smaller."""
        if error.errno == errno.ENOSPC and offset + len(data) > self.current_size():
            raise self._cut(Fault.WRITE_ERROR, offset) from error
        length = min(len(data), self._page - offset % self._page)
        if self._direct or error.errno not in UNREADABLE or length == self._page:
            raise error
        scratch = memoryview(mmap.mmap(-1, self._page))[:length]
        scratch[:] = data[:length]
        fd = reopen(self._fd, self._name, os.O_WRONLY | os.O_DIRECT)
        try:
            return os.pwrite(fd, scratch, offset)
        finally:
            os.close(fd)

    def _cut(self, fault: Fault, offset: int) -> BlockError:
        if self.current_size():
            return super()._cut(fault, offset)
        return BlockError(Fault.NOT_READY, f"{self._name} is gone: unplugged, or without a medium")

    def current_size(self) -> int:
        return linux.block_geometry(self._fd).size

    def discard(self, offset: int, length: int) -> None:
        linux.block_discard(self._claim, offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        """By an unmapping command of the device where allowed and there, else BLKZEROOUT, which always works."""
        if may_unmap:
            try:
                return linux.punch_hole(self._claim, offset, length)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
        return linux.block_zero_out(self._claim, offset, length)

    def capabilities(self) -> Capabilities:
        answer = super().capabilities()
        if not self._queue.discard_max:
            answer = dataclasses.replace(answer, discard=Support.NONE)
        if self._direct and not self._queue.write_cache:
            # Past the page cache to a disk that keeps nothing back: a completed write is on the medium.
            answer = dataclasses.replace(answer, flush=Support.NONE, fua=Support.NONE)
        return answer


def _must_be_block(path: str, facts: os.stat_result) -> None:
    if not stat.S_ISBLK(facts.st_mode):
        kind = "a regular file: use the back end file" if stat.S_ISREG(facts.st_mode) else "not a block device"
        raise BlockError(Fault.INVALID, f"{path} is {kind}")


@hookimpl
def iscsid_backend_info() -> BackendInfo:
    return BackendInfo("block", "a raw block device", OPTIONS)


@hookimpl
def iscsid_validate(options: Mapping[str, Any]) -> list[str]:
    """Looks without claiming: the device may well be served, by us, while its configuration is checked."""
    path = options["path"]
    try:
        facts = os.stat(path)
        _must_be_block(path, facts)
    except OSError as error:
        return [f"path: {path}: {error.strerror}"]
    except BlockError as error:
        return [f"path: {error}"]
    users = linux.users_of(facts.st_rdev)
    return [f"path: {path} is in use: {', '.join(users)}"] if users else []


@hookimpl
def iscsid_prepare(options: Mapping[str, Any], role: str) -> Mapping[str, Any]:
    """Two units may be parts of one device: the second shares the claim of the first, which ends with the last."""
    path = options["path"]
    _must_be_block(path, os.stat(path))
    try:
        return {"claim": Descriptor(DISKS.take(path, partial(_claim, path), writes=role != "readonly"))}
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        users = linux.users_of(os.stat(path).st_rdev) or ["by another program that serves or changes it"]
        raise BlockError(Fault.BUSY, f"{path} is in use: {', '.join(users)}") from error


def _claim(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_EXCL)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
    return os.open(path, os.O_RDONLY | os.O_EXCL)  # write-protected: served read-only


@hookimpl
def iscsid_release(options: Mapping[str, Any]) -> None:
    DISKS.give(int(options["claim"]))


@hookimpl
def iscsid_open(options: Mapping[str, Any], role: str) -> BlockDevice:
    path, direct, claim = options["path"], options["direct"], options.get("claim")
    flags = os.O_DIRECT if direct else 0
    readonly = role == "readonly"
    try:
        fd = reopen(claim, path, flags | (os.O_RDONLY if readonly else os.O_RDWR))
    except OSError as error:
        if readonly or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        readonly = True  # a device that is write-protected (BLKROGET) is a fact, not a failure
        fd = reopen(claim, path, flags | os.O_RDONLY)
    try:
        _must_be_block(path, os.fstat(fd))
        return BlockDevice(fd, path, claim=claim, direct=direct, readonly=readonly)
    except BaseException:
        os.close(fd)
        raise
