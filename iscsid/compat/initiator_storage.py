"""The file ``storage`` of iscsi-initiator(8): a disk at any offset and length, for several threads, with errno.

What begins or ends inside of a block is read, changed and written back. While that goes on, no other write of the same
blocks does, so that neighbours in one block do not undo each other.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from iscsid.compat.initiator_settings import trace
from iscsid.errors import CommandFailed, InitiatorError, LoginRefused, ReservationConflict, SenseError, Unsupported
from iscsid.initiator import Disk
from iscsid.scsi.const import SenseKey, Status

_MODE_SENSE_6: Final = bytes((0x1A, 0x08, 0x3F, 0, 0xFC, 0))  # SPC-4 6.13: all pages, no block descriptors
_WRITE_PROTECTED: Final = 0x80  # SBC-3 6.5.1: WP of the DEVICE-SPECIFIC PARAMETER
_LOGIN_ERRNO: Final = {  # RFC 7143 section 11.13.5
    0x0201: errno.EACCES,  # authentication failure
    0x0202: errno.EACCES,  # authorization failure
    0x0203: errno.ENODEV,  # not found
    0x0204: errno.ENODEV,  # removed
}
_SENSE_ERRNO: Final[
    dict[tuple[int, int | None], int]
] = {  # by additional sense code and qualifier (SPC-4 annex D.2); None: any qualifier
    (0x27, 0x07): errno.ENOSPC,  # SPACE ALLOCATION FAILED WRITE PROTECT
    (0x27, None): errno.EROFS,  # WRITE PROTECTED
    (0x21, None): errno.ENOSPC,  # LOGICAL BLOCK ADDRESS OUT OF RANGE: the disk has shrunk
    (0x25, None): errno.ENODEV,  # LOGICAL UNIT NOT SUPPORTED
    (0x3A, None): errno.ENOMEDIUM,  # MEDIUM NOT PRESENT
    (0x20, None): errno.EOPNOTSUPP,  # INVALID COMMAND OPERATION CODE
}
_KEY_ERRNO: Final[dict[int, int]] = {SenseKey.DATA_PROTECT: errno.EROFS, SenseKey.VOLUME_OVERFLOW: errno.ENOSPC}
_STATUS_ERRNO: Final[dict[int, int]] = {Status.BUSY: errno.EBUSY, Status.TASK_SET_FULL: errno.EBUSY}


def errno_of(error: InitiatorError) -> int:
    """The number that a system call fails with. EIO where there is nothing better, a target that is gone included."""
    match error:
        case ReservationConflict():
            return errno.EBUSY
        case SenseError():
            exact, any_qualifier = (error.asc, error.ascq), (error.asc, None)
            by_code = _SENSE_ERRNO.get(exact) or _SENSE_ERRNO.get(any_qualifier)
            return by_code or _KEY_ERRNO.get(error.key, errno.EIO)
        case CommandFailed():
            return _STATUS_ERRNO.get(error.status, errno.EIO)
        case LoginRefused():
            return _LOGIN_ERRNO.get(error.status, errno.EIO)
        case Unsupported():
            return errno.EOPNOTSUPP
    return errno.EIO


class _Blocks:
    """Ranges of blocks that are being written; who wants one that overlaps waits."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._held: list[tuple[int, int]] = []

    @contextmanager
    def hold(self, first: int, end: int) -> Iterator[None]:
        mine = (first, end)
        with self._free:
            while any(first < other_end and other < end for other, other_end in self._held):
                self._free.wait()
            self._held.append(mine)
        try:
            yield
        finally:
            with self._free:
                self._held.remove(mine)
                self._free.notify_all()


class Storage:
    """One disk as a file has it. Every method raises OSError, and may be called by several threads.

    A file's end is the disk's: reads stop there, and a write that begins there or beyond is ENOSPC.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._blocks = _Blocks()
        self._marks = threading.Lock()  # of the two below
        self._unflushed = False
        self._flushes = 0  # under way

    @property
    def size(self) -> int:
        return self.disk.size

    @property
    def block_size(self) -> int:
        return self.disk.block_size

    def refresh(self) -> None:
        """Ask how large the disk is now: it may have grown since it was mounted."""
        with _as_os_error("READ CAPACITY"):
            self.disk.capacity()

    def writable(self) -> bool:
        """Whether the unit says that it may be written. One that says nothing of it may be."""
        with _as_os_error("MODE SENSE"):
            result = self.disk.command(_MODE_SENSE_6, data_in_length=_MODE_SENSE_6[4], replay=True)
            if result.status == Status.CHECK_CONDITION:  # a unit attention, or no such command
                result = self.disk.command(_MODE_SENSE_6, data_in_length=_MODE_SENSE_6[4], replay=True)
        return result.status != Status.GOOD or len(result.data) < 3 or not result.data[2] & _WRITE_PROTECTED

    def read(self, offset: int, length: int) -> memoryview:
        """Up to ``length`` bytes; fewer, or none, at the end."""
        if offset < 0 or length < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        end = min(self.size, offset + length)
        if offset >= end:
            return memoryview(b"")
        first, last = self._whole(offset, end)
        with _as_os_error("READ"):
            data = self.disk.read(first, last - first)
        trace("scsi", "read %d bytes at %d", end - offset, offset)
        return memoryview(data)[offset - first : end - first]

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write, and return how many bytes: fewer than there are at the end."""
        view = memoryview(data).cast("B")
        end = self._end(offset, len(view))
        if end == offset:
            return 0
        view = view[: end - offset]
        first, last = self._whole(offset, end)
        size = self.block_size
        with self._blocks.hold(first // size, last // size), self._changing(), _as_os_error("WRITE"):
            if (first, last) == (offset, end):
                self.disk.write(offset, view)
            else:
                self.disk.write(first, self._merged(first, last, offset, view))
        trace("scsi", "wrote %d bytes at %d", len(view), offset)
        return len(view)

    def zero(self, offset: int, length: int) -> None:
        """Have a range read as zeros, by UNMAP where the target makes zeros of that."""
        end = self._end(offset, length)
        first, last = self._whole(offset, end)
        inner = min(first + (self.block_size if first < offset else 0), end)
        outer = max(last - (self.block_size if last > end else 0), inner)
        self.write(offset, bytes(inner - offset))
        if outer > inner:
            size = self.block_size
            with self._blocks.hold(inner // size, outer // size), self._changing(), _as_os_error("WRITE SAME"):
                self.disk.write_zeroes(inner, outer - inner)
        self.write(outer, bytes(end - outer))

    def flush(self, *, always: bool = True) -> None:
        """Return when the medium has everything (SYNCHRONIZE CACHE). Not ``always``: if there was a write since."""
        with self._marks:
            if not always and not self._unflushed and not self._flushes:
                return  # while one is under way, nobody knows yet whether it succeeds
            self._unflushed = False  # before: a write that ends in the meantime may be left out
            self._flushes += 1
        done = False
        try:
            with _as_os_error("SYNCHRONIZE CACHE"):
                self.disk.flush()
            done = True
        finally:
            with self._marks:
                self._flushes -= 1
                self._unflushed = self._unflushed or not done
        trace("scsi", "flushed")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """What is written has to be flushed by a flush that begins after it: one that is under way may not have it."""
        try:
            yield
        finally:
            with self._marks:
                self._unflushed = True

    def _end(self, offset: int, length: int) -> int:
        if offset < 0 or length < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if length and offset >= self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return min(self.size, offset + length) if length else offset

    def _whole(self, offset: int, end: int) -> tuple[int, int]:
        """The blocks that hold a range of bytes, in bytes."""
        size = self.block_size
        return offset - offset % size, end + -end % size

    def _merged(self, first: int, last: int, offset: int, view: memoryview) -> bytearray:
        """The blocks from ``first`` to ``last`` as they are to be: what is there, and ``view`` over it."""
        size, disk, end = self.block_size, self.disk, offset + len(view)
        content = bytearray(last - first)
        if first < offset:
            content[:size] = disk.read(first, size)
        if end < last and (last - size > first or first == offset):
            content[-size:] = disk.read(last - size, size)
        content[offset - first : end - first] = view
        return content


@contextmanager
def _as_os_error(command: str) -> Iterator[None]:
    try:
        yield
    except InitiatorError as error:
        number = errno_of(error)
        if number == errno.ENOSPC and command == "READ":
            number = errno.EIO  # nobody who reads expects the other one
        trace("scsi", "%s: %s (%s)", command, error, errno.errorcode[number])
        raise OSError(number, os.strerror(number)) from error
