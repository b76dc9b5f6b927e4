"""A device behind a file descriptor: what regular files and block devices have in common.

Reads and writes carry their offset (preadv, pwrite), so any number of threads may be in one object. Python makes a call
that a signal interrupted again (PEP 475); a short transfer is continued here.
"""

from __future__ import annotations

import dataclasses
import errno
import mmap
import os
from collections.abc import Callable

from iscsid.plugin import BlockError, Capabilities, Device, Fault, Mode, Support, Threading

UNREADABLE = (errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ)
"""What the kernel says of a sector that cannot be read (``blk_errors[]`` of block/blk-core.c)."""
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class DescriptorDevice(Device):
    """``fd`` is owned by the object and closed with it; ``name`` is for messages.

    ``waits`` tells that the medium is a disk or a network, not memory; ``direct`` that ``fd`` goes past the page cache;
    ``dsync`` that the file system honours RWF_DSYNC.
    """

    threading = Threading.PARALLEL
    #: What ``write`` may be able to deal with, and a write in the worker's loop is not.
    deferred: tuple[int, ...] = UNREADABLE

    def __init__(self, fd: int, name: str, *, waits: bool, direct: bool, dsync: bool = True) -> None:
        self._fd = fd
        self._name = name
        self._waits = waits
        self._direct = direct
        self._dsync = dsync
        self._lost = ""
        self.mode = Mode.BLOCKING if waits or direct else Mode.INLINE
        if not direct:
            self._bind_nowait()

    def _bind_nowait(self) -> None:
        """Put closures in the place of the two hot methods: the system call is all they do."""
        write, pwrite, fd, deferred = self.write, os.pwrite, self._fd, self.deferred

        def write_nowait(data: memoryview, offset: int) -> None:
            if pwrite(fd, data, offset) != len(data):
                write(data, offset)

        def write_or_leave(data: memoryview, offset: int) -> None:
            try:
                write_nowait(data, offset)
            except OSError as error:
                if error.errno in deferred:
                    raise BlockingIOError from error
                raise

        self.write_nowait = write_or_leave if self._waits else write_nowait  # type: ignore[method-assign]
        if not self._waits:
            read = _reader(fd, self.read_into)
            self.read_into = read  # type: ignore[method-assign, assignment]
            self.read_nowait = read  # type: ignore[method-assign, assignment]
            self.write = write_nowait  # type: ignore[method-assign]
        elif can_read_nowait(fd):
            self.read_nowait = _nowait_reader(fd)  # type: ignore[method-assign, assignment]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, (buffer[done:],), offset + done)
            except OSError as error:
                count = self._read_around(buffer[done:], offset + done, error)
            if not count:
                raise self._cut(Fault.READ_ERROR, offset + done)
            done += count

    def _read_around(self, buffer: memoryview, offset: int, error: OSError) -> int:
        """``error`` has come of reading this: how many bytes can be read after all, or where it is that none can.

        The page cache gives what comes before a bad page, so it begins here; O_DIRECT gives nothing.
        """
        if error.errno not in UNREADABLE:
            raise error
        if not self._direct:
            raise self._unreadable(offset, error) from error
        return self._read_blocks(self._fd, buffer, offset)

    def _read_blocks(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Read with O_DIRECT, block by block, what could not be read as a whole."""
        size = self.block_size
        block = memoryview(mmap.mmap(-1, max(size, mmap.PAGESIZE)))[:size]  # aligned, as O_DIRECT wants it
        for done in range(0, len(buffer), size):
            try:
                if os.preadv(fd, (block,), offset + done) != size:
                    return done
            except OSError as error:
                if error.errno not in UNREADABLE:
                    raise
                raise self._unreadable(offset + done, error) from error
            buffer[done : done + size] = block
        return len(buffer)

    def _unreadable(self, offset: int, error: OSError) -> BlockError:
        words = f"{self._name}: byte {offset} cannot be read: {error.strerror}"
        return BlockError(Fault.READ_ERROR, words, at=(self, offset))

    def _write_around(self, data: memoryview, offset: int, error: OSError) -> int:
        """Write what ``error`` has come of in another way; how many bytes that is, or ``error`` again."""
        raise error

    def _cut(self, fault: Fault, offset: int) -> BlockError:
        """The medium ends before its size."""
        return BlockError(fault, f"{self._name} ends at {offset}: it was cut while in use", at=(self, offset))

    def write(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            try:
                count = os.pwrite(self._fd, data[done:], offset + done)
            except OSError as error:
                count = self._write_around(data[done:], offset + done, error)
            if not count:
                raise BlockError(Fault.WRITE_ERROR, f"{self._name}: nothing could be written at {offset + done}")
            done += count

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        raise BlockingIOError  # a file system without RWF_NOWAIT; otherwise a closure stands in its place

    def write_nowait(self, data: memoryview, offset: int) -> None:
        """A buffered write: into the page cache, as a rule without waiting. It is the worker that sees it stall."""
        raise BlockingIOError

    def write_fua(self, data: memoryview, offset: int) -> None:
        if self._dsync:
            try:
                return self._write_dsync(data, offset)
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    self._dsync = False
                elif self._takes(data, offset):
                    self._lose(error)  # the call has heard of a failed write-back, and not only of its own data
                    raise
        self.write(data, offset)
        return self.flush()

    def _takes(self, data: memoryview, offset: int) -> bool:
        """Whether a write gets as far as the page cache."""
        try:
            return os.pwrite(self._fd, data, offset) == len(data)
        except OSError:
            return False

    def _write_dsync(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            count = os.pwritev(self._fd, (data[done:],), offset + done, os.RWF_DSYNC)
            if not count:
                raise BlockError(Fault.WRITE_ERROR, f"{self._name}: nothing could be written at {offset + done}")
            done += count

    def flush(self) -> None:
        """fdatasync, which also empties the write cache of the disk.

        The kernel reports a failed write-back once and then takes the pages for clean, so the next fdatasync would
        succeed although data is lost. Once it, or a forced write, has heard of one, this handle fails every flush.
        """
        if self._lost:
            raise BlockError(Fault.WRITE_ERROR, self._lost)
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._lose(error)
            raise

    def _lose(self, error: OSError) -> None:
        self._lost = f"{self._name}: an earlier flush failed ({error}); what was written before it may be lost"

    def prefetch(self, offset: int, length: int) -> None:
        os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def capabilities(self) -> Capabilities:
        answer = super().capabilities()
        if self._direct:
            none = Support.NONE
            return dataclasses.replace(answer, read_nowait=none, write_nowait=none, prefetch=none)
        if not self._waits:
            return dataclasses.replace(answer, flush=Support.NONE, fua=Support.NONE)
        if "read_nowait" not in self.__dict__:
            return dataclasses.replace(answer, read_nowait=Support.NONE)
        return answer


def _reader(fd: int, slow: Callable[[memoryview, int], None]) -> Callable[[memoryview, int], None]:
    preadv = os.preadv

    def read(buffer: memoryview, offset: int) -> None:
        if preadv(fd, (buffer,), offset) != len(buffer):
            slow(buffer, offset)

    return read


def _nowait_reader(fd: int) -> Callable[[memoryview, int], None]:
    preadv, nowait = os.preadv, os.RWF_NOWAIT

    def read_nowait(buffer: memoryview, offset: int) -> None:
        if preadv(fd, (buffer,), offset, nowait) != len(buffer):
            raise BlockingIOError  # the rest is not in the page cache, or the file was cut: read_into finds out

    return read_nowait


def can_read_nowait(fd: int) -> bool:
    """Whether the file system knows RWF_NOWAIT: asked once, with a byte."""
    try:
        os.preadv(fd, (bytearray(1),), 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


def reopen(claim: int | None, path: str, flags: int) -> int:
    """A descriptor of its own for the file that ``claim`` has open, or that ``path`` names when there is no claim.

    Through /proc, so that every worker, also one that is started years later, gets the file that the supervisor got,
    whatever has taken its name since. Of its own, because the kernel tells a failed write-back to each open file once.
    """
    return os.open(path if claim is None else f"/proc/self/fd/{claim}", flags)
