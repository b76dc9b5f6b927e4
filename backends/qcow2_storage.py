"""The file under an image: whole reads and writes, zeros, the one barrier, and the locks that QEMU understands.

Reads behind the end of the file give zeros, as QEMU's do: the last cluster of an image need not be complete. Nothing
here knows what the bytes mean. The crash tests put an object with these methods in the place of the file.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat

from iscsid.plugin import BlockError, Fault

from . import claims, linux
from .descriptor import can_read_nowait

_ZEROES = memoryview(mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)).toreadonly()
MAX_FILE = 1 << 63


class Storage:
    """A regular file or block device open at ``fd``, which the object owns; ``name`` is for messages."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self._punches = True
        self._lost = ""
        self.regular = stat.S_ISREG(os.fstat(fd).st_mode)
        #: What preadv takes so that it does not wait; None where the file system cannot say whether it would.
        self.nowait: int | None = None
        if linux.file_system(fd) in linux.IN_MEMORY:
            self.nowait = 0
        elif can_read_nowait(fd):
            self.nowait = os.RWF_NOWAIT

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self.fd).st_size if self.regular else os.lseek(self.fd, 0, os.SEEK_END)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``; what lies behind the end of the file is zeros."""
        done = 0
        while done < len(buffer):
            count = 0 if offset + done >= MAX_FILE else os.preadv(self.fd, (buffer[done:],), offset + done)
            if not count:
                fill_zeroes(buffer[done:])
                return
            done += count

    def read(self, offset: int, length: int) -> bytearray:
        """``length`` bytes; the caller has bounded it."""
        buffer = bytearray(length)
        with memoryview(buffer) as view:
            self.read_into(view, offset)
        return buffer

    def write(self, data: memoryview | bytes | bytearray, offset: int) -> None:
        """Write all of ``data``."""
        done = os.pwrite(self.fd, data, offset)
        if done == len(data):
            return
        with memoryview(data) as view:
            while done < len(view):
                count = os.pwrite(self.fd, view[done:], offset + done)
                if not count:
                    raise BlockError(Fault.WRITE_ERROR, f"{self.name}: nothing could be written at {offset + done}")
                done += count

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, by a hole where the file system has them; what is behind the end stays so."""
        length = min(length, self.size - offset) if self.regular else length
        if length <= 0:
            return None
        if self._punches:
            try:
                return linux.punch_hole(self.fd, offset, length)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
                    raise
                self._punches = False
        while length > 0:
            piece = min(length, len(_ZEROES))
            self.write(_ZEROES[:piece], offset)
            offset += piece
            length -= piece
        return None

    def truncate(self, size: int) -> None:
        """Make the file ``size`` bytes long; a block device stays as it is."""
        if self.regular:
            os.ftruncate(self.fd, size)

    def sync(self) -> None:
        """Everything that was written is on the medium at the return.

        The kernel tells of a failed write-back once, so after a failure every further call fails as well.
        """
        if self._lost:
            raise BlockError(Fault.WRITE_ERROR, self._lost)
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._lost = f"{self.name}: an earlier flush failed ({error}); what was written before it may be lost"
            raise

    def lock(self, writing: bool) -> None:
        """Hold the image against other programs; the kernel frees it when the file is closed or the process dies.

        Raises BlockError(BUSY) when another one has it in a way that excludes ours.
        """
        claims.lock(self.fd, self.name, writes=writing)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def fill_zeroes(buffer: memoryview) -> None:
    """Make all of ``buffer`` zeros."""
    done = 0
    while done < len(buffer):
        piece = min(len(buffer) - done, len(_ZEROES))
        buffer[done : done + piece] = _ZEROES[:piece]
        done += piece


def open_storage(path: str, *, writing: bool, lock: bool = True) -> Storage:
    """Open ``path``, and hold it. Raises OSError, or BlockError when it is no file or disk or is in use.

    Never waits: a name in an image may be that of a pipe.
    """
    flags = (os.O_RDWR if writing else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode) and not stat.S_ISBLK(os.fstat(fd).st_mode):
            raise BlockError(Fault.INVALID, f"{path} is neither a regular file nor a block device")
        storage = Storage(fd, path)
        if lock:
            storage.lock(writing)
        return storage
    except BaseException:
        os.close(fd)
        raise
