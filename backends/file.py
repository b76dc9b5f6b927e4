"""The back end ``file``: a regular file, sparse where the file system can.

Cached data is read in the worker's loop (RWF_NOWAIT), holes are kept, punched and reported, FUA is RWF_DSYNC and a
flush is fdatasync. On tmpfs the file is memory: nothing waits and nothing needs a flush.
"""

from __future__ import annotations

import dataclasses
import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from iscsid.plugin import (
    BackendInfo,
    BlockError,
    Capabilities,
    Descriptor,
    Extent,
    Fault,
    Option,
    Space,
    Support,
    hookimpl,
)

from . import linux
from .claims import Claims
from .descriptor import DescriptorDevice, reopen
from .file_clone import VERBS, clone

OPTIONS = (
    Option("path", "path", required=True, doc="the file", medium=True),
    Option("size", "size", minimum=512, doc="made this large, sparse, when it is missing or smaller; never cut"),
    Option(
        "physical_block_size",
        "size",
        minimum=512,
        maximum=65536,
        doc="the physical block that initiators are told of, a power of two; by default the logical block",
    ),
    Option("direct", "bool", default=False, doc="go past the page cache (O_DIRECT)"),
    Option("share", "bool", default=False, doc="others may write to the file, too: they know of each other"),
)
FILES = Claims(lambda facts: (facts.st_dev, facts.st_ino))


class FileDevice(DescriptorDevice):
    """A regular file open at ``fd``; ``closed`` is called when it is closed."""

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        direct: bool = False,
        readonly: bool = False,
        physical_block_size: int = 0,
        closed: Callable[[], None] | None = None,
    ) -> None:
        kind = linux.file_system(fd)
        # FUSE servers that bypass the page cache see the data without the flag: use write and fdatasync there.
        dsync = kind != linux.FUSE_SUPER_MAGIC
        super().__init__(fd, name, waits=kind not in linux.IN_MEMORY, direct=direct, dsync=dsync)
        facts = os.fstat(fd)
        self.size = facts.st_size
        self.readonly = readonly
        self._closed = closed
        self.discard_granularity = min(max(facts.st_blksize, 512), 65536)
        # The page cache takes a single logical block; that the file system's block suits it better is a hint.
        self.physical_block_size = physical_block_size
        self.minimum_io = self.discard_granularity
        self._holes = not readonly and can_punch(fd, self.size)
        self.discard_zeroes = self._holes
        if direct:
            self.alignment = self.block_size = direct_alignment(fd)
            self.physical_block_size = physical_block_size or self.discard_granularity

    def current_size(self) -> int:
        return os.fstat(self._fd).st_size

    def discard(self, offset: int, length: int) -> None:
        linux.punch_hole(self._fd, offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        """Raises UNSUPPORTED where only writing zeros keeps the range allocated (tmpfs); the guard does that then."""
        if may_unmap and self._holes:
            linux.punch_hole(self._fd, offset, length)
        else:
            linux.zero_range(self._fd, offset, length)

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        return linux.extents(self._fd, offset, length)

    def space(self) -> Space:
        return linux.file_space(self._fd)

    def close(self) -> None:
        super().close()
        closed, self._closed = self._closed, None
        if closed is not None:
            closed()

    def capabilities(self) -> Capabilities:
        answer = super().capabilities()
        return answer if self._holes else dataclasses.replace(answer, discard=Support.NONE)


def can_punch(fd: int, size: int) -> bool:
    """Whether the file system punches holes: asked with one behind the end of the file, where it changes nothing."""
    try:
        linux.punch_hole(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, mmap.PAGESIZE)
    except OSError:
        return False
    return True


def direct_alignment(fd: int) -> int:
    """The block that O_DIRECT takes on this file: 512 bytes where the disk has such sectors, else a page."""
    with memoryview(mmap.mmap(-1, mmap.PAGESIZE)) as page:
        try:
            os.preadv(fd, (page[512:1024],), 512)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return mmap.PAGESIZE
    return 512


def _must_be_regular(path: str, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        kind = "a block device: use the back end block" if stat.S_ISBLK(facts.st_mode) else "not a regular file"
        raise BlockError(Fault.INVALID, f"{path} is {kind}")


def _open_or_create(path: str, size: int | None) -> int:
    """Open ``path``, made and grown as ``size`` asks, for the claim of the supervisor."""
    flags = os.O_RDWR if size else os.O_RDONLY
    if size:
        try:
            return os.open(path, flags | os.O_CREAT, 0o600)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
    return os.open(path, os.O_RDONLY)  # a file that may not be written can still be served read-only


def _grow(claim: int, path: str, size: int) -> None:
    have = os.fstat(claim).st_size
    if have > size:
        raise BlockError(Fault.INVALID, f"{path} has {have} bytes, more than size = {size}: it is never cut")
    if have < size:
        fd = reopen(claim, path, os.O_RDWR)  # the claim may be of somebody who only reads
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)


@hookimpl
def iscsid_backend_info() -> BackendInfo:
    return BackendInfo("file", "a regular file", OPTIONS, verbs=VERBS)


@hookimpl
def iscsid_validate(options: Mapping[str, Any]) -> list[str]:
    path, size = options["path"], options["size"]
    physical = options.get("physical_block_size") or 0
    if physical & (physical - 1):
        return [f"physical_block_size: {physical} is not a power of two"]
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        folder = os.path.dirname(path) or "."
        if not os.path.isdir(folder):
            return [f"path: there is no folder {folder}"]
        return [] if size else [f"path: {path} does not exist; size would make it"]
    except OSError as error:
        return [f"path: {path}: {error.strerror}"]
    try:
        _must_be_regular(path, facts)
    except BlockError as error:
        return [f"path: {error}"]
    if size and facts.st_size > size:
        return [f"size: {path} has {facts.st_size} bytes, more than {size}: it is never cut"]
    if not size and facts.st_size < 512:
        return [f"path: {path} has {facts.st_size} bytes, not even one block; size would make it larger"]
    return []


@hookimpl
def iscsid_create(options: Mapping[str, Any]) -> None:
    iscsid_release({"claim": _claim(options, "worker")})


@hookimpl
def iscsid_image(options: Mapping[str, Any], verb: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    return clone(options["path"], arguments["to"])


@hookimpl
def iscsid_prepare(options: Mapping[str, Any], role: str) -> Mapping[str, Any]:
    """Create and grow the file once, and hold it for the workers to open (see ``reopen``), and against others."""
    return {"claim": Descriptor(_claim(options, role))}


@hookimpl
def iscsid_resize(options: Mapping[str, Any], size: int, shrink: bool) -> None:
    claim, path = options["claim"], options["path"]
    if os.fstat(claim).st_size == size:
        return
    # The claim of a file that had its size before is read-only.
    fd = reopen(claim, path, os.O_RDWR)
    try:
        have = os.fstat(fd).st_size
        if size < have and not shrink:
            words = f"{path} has {have} bytes: what is behind {size} would be lost; say shrink to do it"
            raise BlockError(Fault.INVALID, words)
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _claim(options: Mapping[str, Any], role: str) -> int:
    path, size = options["path"], options["size"]
    claim = FILES.take(
        path, partial(_open_or_create, path, size), writes=role != "readonly", share=options.get("share") or False
    )
    try:
        _must_be_regular(path, os.fstat(claim))
        if size:
            _grow(claim, path, size)
    except BaseException:
        FILES.give(claim)
        raise
    return claim


@hookimpl
def iscsid_release(options: Mapping[str, Any]) -> None:
    FILES.give(int(options["claim"]))


@hookimpl
def iscsid_open(options: Mapping[str, Any], role: str) -> FileDevice:
    path, direct = options["path"], options["direct"]
    readonly = role == "readonly"
    flags = os.O_RDONLY if readonly else os.O_RDWR
    claim, closed = options.get("claim"), None
    if claim is None:  # nobody has prepared it: it is held for as long as it is open
        share = options.get("share") or False
        claim = FILES.take(path, partial(os.open, path, os.O_RDONLY), writes=not readonly, share=share)
        closed = partial(FILES.give, claim)
    try:
        fd = reopen(claim, path, flags | (os.O_DIRECT if direct else 0))
        try:
            _must_be_regular(path, os.fstat(fd))
            physical = options.get("physical_block_size") or 0
            return FileDevice(fd, path, direct=direct, readonly=readonly, physical_block_size=physical, closed=closed)
        except BaseException:
            os.close(fd)
            raise
    except BaseException:
        if closed is not None:
            closed()
        raise
