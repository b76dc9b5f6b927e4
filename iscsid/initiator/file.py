"""A disk as a binary file: any offset, any length.

    with open_disk(url) as disk, open_file(disk) as file:
        file.seek(1000)
        file.write(b"some bytes")

Whole blocks go straight between the caller's buffer and the disk. What begins or ends inside of a block is read first
and written back, so two writers of the same block need an agreement between them.
"""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any

from iscsid.initiator.disk import Disk

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class DiskFile(io.RawIOBase):
    """An unbuffered file over ``disk``, which stays open when the file is closed.

    Its length is the disk's: writing at the end is ENOSPC, ``truncate`` is refused. ``flush`` returns when the medium
    has everything. It has one position, so it is for one thread at a time; the disk is for any number of files.
    """

    def __init__(self, disk: Disk, *, writable: bool = True) -> None:
        super().__init__()
        self._disk = disk
        self._writable = writable
        self._position = 0
        self._written = False

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return self._writable

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check_open()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._disk.size}
        if whence not in bases:
            raise ValueError(f"whence {whence} is not supported")
        position = bases[whence] + offset
        if position < 0:
            raise ValueError(f"there is no position {position}")
        self._position = position
        return position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._check_open()
        view = memoryview(buffer).cast("B")
        count = min(len(view), max(0, self._disk.size - self._position))
        self._read(view[:count], self._position)
        self._position += count
        return count

    def write(self, data: ReadableBuffer, /) -> int:
        self._check_open()
        if not self._writable:
            raise io.UnsupportedOperation("the file is open for reading")
        view = memoryview(data).cast("B")
        count = min(len(view), max(0, self._disk.size - self._position))
        if len(view) and not count:
            raise OSError(errno.ENOSPC, "beyond the end of the disk")
        try:
            self._write(view[:count], self._position)
        finally:
            self._written = True  # afterwards: a flush of another thread may have begun before
        self._position += count
        return count

    def flush(self) -> None:
        """Return when the medium has all that was written."""
        super().flush()
        if not self._written or self.closed:
            return
        self._written = False  # before: what another thread writes in the meantime may be left out
        try:
            self._disk.flush()
        except BaseException:
            self._written = True
            raise

    def truncate(self, size: int | None = None, /) -> int:
        raise io.UnsupportedOperation("a disk has the length that it has")

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def _read(self, view: memoryview, offset: int) -> None:
        for start, length, whole in self._parts(offset, len(view)):
            part = view[start : start + length]
            if whole:
                self._disk.readinto(offset + start, part)
            else:
                block, inside = self._block(offset + start)
                part[:] = self._disk.read(block, self._disk.block_size)[inside : inside + length]

    def _write(self, view: memoryview, offset: int) -> None:
        for start, length, whole in self._parts(offset, len(view)):
            part = view[start : start + length]
            if whole:
                self._disk.write(offset + start, part)
            else:
                block, inside = self._block(offset + start)
                content = self._disk.read(block, self._disk.block_size)
                content[inside : inside + length] = part
                self._disk.write(block, content)

    def _block(self, offset: int) -> tuple[int, int]:
        inside = offset % self._disk.block_size
        return offset - inside, inside

    def _parts(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """Cut a range into the end of a block, whole blocks, and the beginning of one: (start, length, whole)."""
        size = self._disk.block_size
        head = min(-offset % size, length)
        body = (length - head) // size * size
        parts = [(0, head, False), (head, body, True), (head + body, length - head - body, False)]
        return [part for part in parts if part[1]]


class BufferedDiskFile(io.BufferedRandom):
    """A buffer before a DiskFile; unlike its base it hands ``flush`` on, down to the medium."""

    def flush(self) -> None:
        super().flush()
        self.raw.flush()


def open_file(disk: Disk, *, buffer_size: int = 1 << 20, **options: Any) -> BufferedDiskFile:
    """Return a buffered file over ``disk``; closing or flushing it reaches the medium."""
    return BufferedDiskFile(DiskFile(disk, **options), buffer_size)
