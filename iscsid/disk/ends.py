"""The two ends of a copy: a file or block device of this host, and a disk of a target, as one kind of thing.

Offsets and lengths are bytes on multiples of an end's ``block_size``. Reads and writes are started and finished, so
that a disk of a target has many in flight; a file does them when they are started, for the kernel has its own
read-ahead and write-behind. What fails raises EndError or InitiatorError.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Protocol

from iscsid.errors import IscsidError, SenseError, Unsupported
from iscsid.initiator import Disk, Provisioning, open_disk, parse_url
from iscsid.scsi.const import SenseKey

TRANSFER: Final = 1 << 20  # bytes that one read or write of a file moves
ZEROES: Final = bytes(TRANSFER)
URL_PREFIX: Final = "iscsi://"
SERIAL_PAGE: Final = 0x80  # unit serial number (SPC-4 7.8.16)
PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01  # linux/falloc.h
ZERO_RANGE_KEEP_SIZE: Final = 0x10 | 0x01

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class EndError(IscsidError):
    """A file or a disk cannot be what it should be in a copy."""


class Extent(NamedTuple):
    """A stretch in bytes; without ``data`` it is known to read as zeros."""

    offset: int
    length: int
    data: bool


class End(Protocol):
    """A source or a destination.

    Attributes:
        name: what people call it; without secrets.
        identity: what must be the same when a copy is resumed.
        size, block_size, max_transfer: bytes; ``max_transfer`` of one read or write.
        fresh: all of it reads as zeros, so that zeros need not be written.
        sessions: how often it was there anew; what was not flushed before may be lost with the one before.
    """

    name: str
    identity: dict[str, Any]
    size: int
    block_size: int
    max_transfer: int
    fresh: bool

    @property
    def sessions(self) -> int: ...

    def extents(self) -> Iterator[Extent]:
        """All of it, in order and without a gap."""

    def start_read(self, offset: int, buffer: memoryview) -> Any:
        """Begin to fill ``buffer``; ``finish`` what is returned."""

    def start_write(self, offset: int, data: memoryview) -> Any:
        """Begin to write; ``data`` may not change until that is finished."""

    def finish(self, ticket: Any) -> None:
        """Return when the read or write is done; raises what went wrong."""

    def zero(self, offset: int, length: int) -> None:
        """Make it read as zeros, if possible without a place on the medium."""

    def flush(self) -> None:
        """Return when all writes that are finished are on the medium."""

    def drop_cache(self) -> None:
        """Have this host forget what it knows of the content, which is flushed: the next reads ask the medium."""

    def check_size(self) -> None:
        """Raise EndError where its size is not ``size`` any more."""

    def close(self) -> None:
        """Let go of it. Nothing is flushed."""


class FileEnd:
    """A raw image or a block device, opened already: ``open_source`` and ``open_destination`` do that."""

    sessions = 1

    def __init__(self, path: str, fd: int) -> None:
        found = os.fstat(fd)
        self.name = path
        self.fd = fd
        self.device = stat.S_ISBLK(found.st_mode)
        if not self.device and not stat.S_ISREG(found.st_mode):
            raise EndError(f"{path} is neither a file nor a block device")
        self.size = os.lseek(fd, 0, os.SEEK_END)
        self.block_size = 1
        self.max_transfer = TRANSFER
        self.fresh = False
        self.identity = {"path": os.path.realpath(path), "size": self.size}

    def remember_change(self) -> None:
        """Make the time of the last change a part of the identity: for a source, whose content counts."""
        found = os.fstat(self.fd)
        self.identity |= {"inode": found.st_ino, "mtime": found.st_mtime_ns}

    def extents(self) -> Iterator[Extent]:
        """What SEEK_DATA and SEEK_HOLE tell; all is data where they do not work."""
        offset, size = 0, self.size
        while offset < size:
            try:
                start = os.lseek(self.fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    self.check_size()  # so it says at the end of a file that has become shorter too
                yield Extent(offset, size - offset, data=error.errno != errno.ENXIO)
                return
            if start > offset:
                yield Extent(offset, min(start, size) - offset, data=False)
            if start >= size:
                return
            end = min(os.lseek(self.fd, start, os.SEEK_HOLE), size)
            yield Extent(start, end - start, data=True)
            offset = end

    def start_read(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise self._failed("read", offset + done, error) from error
            if not count:
                raise EndError(f"{self.name} has become shorter than {self.size} bytes")
            done += count

    def start_write(self, offset: int, data: memoryview) -> None:
        while data:
            try:
                count = os.pwrite(self.fd, data, offset)
            except OSError as error:
                raise self._failed("write", offset, error) from error
            offset += count
            data = data[count:]

    def finish(self, ticket: Any) -> None:
        """Nothing is left to do."""

    def zero(self, offset: int, length: int) -> None:
        mode = ZERO_RANGE_KEEP_SIZE if self.device else PUNCH_HOLE_KEEP_SIZE
        if _fallocate(self.fd, mode, offset, length) == 0:
            return
        for start in range(offset, offset + length, TRANSFER):  # a file system that has no such call
            self.start_write(start, memoryview(ZEROES)[: min(TRANSFER, offset + length - start)])

    def flush(self) -> None:
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise EndError(f"{self.name}: cannot be flushed: {error.strerror}") from error

    def drop_cache(self) -> None:
        with contextlib.suppress(OSError):  # not every file system has that
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def check_size(self) -> None:
        size = os.lseek(self.fd, 0, os.SEEK_END)
        if size != self.size:
            raise EndError(f"{self.name} has {size} bytes now, it had {self.size}")

    def close(self) -> None:
        os.close(self.fd)

    def _failed(self, verb: str, offset: int, error: OSError) -> EndError:
        return EndError(f"{self.name}: cannot {verb} at byte {offset}: {error.strerror}")


class LunEnd:
    """A disk of a target."""

    def __init__(self, url: str, disk: Disk) -> None:
        self.name = plain_url(url)
        self.disk = disk
        self.size = disk.size
        self.block_size = disk.block_size
        self.max_transfer = disk.max_transfer
        # The same URL may lead to another disk the next time, which its serial number tells.
        self.identity = {"url": self.name, "size": self.size, "serial": serial_of(disk)}
        self._zeroes = disk.capacity().zeroes
        self.fresh = False

    @property
    def sessions(self) -> int:
        return self.disk.client.session.logins

    def look_if_fresh(self) -> None:
        """Find out whether nothing is mapped, so that all of it reads as zeros."""
        self.fresh = all(not extent.data for extent in self.extents())

    def extents(self) -> Iterator[Extent]:
        """What GET LBA STATUS tells; all is data where unmapped blocks need not read as zeros, or nothing is told."""
        if not self._zeroes:
            yield Extent(0, self.size, data=True)
            return
        offset = 0
        try:
            for found in self.disk.block_status():
                yield Extent(found.offset, found.length, data=found.status == Provisioning.MAPPED)
                offset = found.offset + found.length
        except Unsupported:
            yield Extent(offset, self.size - offset, data=True)

    def start_read(self, offset: int, buffer: memoryview) -> Any:
        return self.disk.submit_read(offset, buffer)

    def start_write(self, offset: int, data: memoryview) -> Any:
        return self.disk.submit_write(offset, data)

    def finish(self, ticket: Any) -> None:
        self.disk.wait(ticket)

    def zero(self, offset: int, length: int) -> None:
        self.disk.write_zeroes(offset, length)

    def flush(self) -> None:
        try:
            self.disk.flush()
        except SenseError as error:
            if error.key != SenseKey.ILLEGAL_REQUEST:  # there is no such command: there is no cache either
                raise

    def drop_cache(self) -> None:
        """This host keeps nothing of it."""

    def check_size(self) -> None:
        size = self.disk.capacity().size
        if size != self.size:
            raise EndError(f"{self.name} has {size} bytes now, it had {self.size}")

    def close(self) -> None:
        self.disk.close()


# -- opening -----------------------------------------------------------------------------------------------------------


def open_source(name: str, *, depth: int, **options: Any) -> End:
    """Open a URL or a path for reading. ``options`` are those of ``open_disk``."""
    if name.startswith(URL_PREFIX):
        return LunEnd(name, open_disk(name, depth=depth, **options))
    end = _file_end(name, os.O_RDONLY)
    end.remember_change()
    return end


def open_destination(name: str, source: End, *, force: bool, resume: bool, depth: int, **options: Any) -> End:
    """Open a URL or a path, for a copy of ``source``.

    A file is made, with the size of the source; one that is there, or a block device, only with ``force`` or
    ``resume``. A disk of a target and a block device must be large enough, and nobody else's.
    """
    if name.startswith(URL_PREFIX):
        if source.identity.get("url") == plain_url(name):
            raise EndError(f"{source.name} cannot be copied to itself")
        disk = LunEnd(name, open_disk(name, depth=depth, **options))
        _check_size(disk, source.size)
        if not resume:
            disk.look_if_fresh()
        return disk
    _refuse_same_file(name, source)
    if not resume and not force and os.path.lexists(name):
        raise EndError(f"{name} exists; --force overwrites it")
    end = _file_end(name, _destination_flags(name, force=force, resume=resume))
    if end.device:
        _check_size(end, source.size)
        return end
    if not resume:
        _make_empty(end, source.size)
    elif end.size != source.size:
        end.close()
        raise EndError(f"{name} has {end.size} bytes, not the {source.size} of {source.name}")
    end.fresh = True  # holes, but for what this copy has written
    end.identity["inode"] = os.fstat(end.fd).st_ino  # another file would have something in the place of our holes
    return end


def _refuse_same_file(name: str, source: End) -> None:
    if isinstance(source, FileEnd) and os.path.exists(name) and os.path.samestat(os.stat(name), os.fstat(source.fd)):
        raise EndError(f"{source.name} cannot be copied to itself")


def _destination_flags(name: str, *, force: bool, resume: bool) -> int:
    """A block device is opened for us alone: it shall not be mounted (open(2), O_EXCL)."""
    if os.path.exists(name) and stat.S_ISBLK(os.stat(name).st_mode):
        return os.O_RDWR | os.O_EXCL
    if resume:
        return os.O_RDWR
    return os.O_RDWR | os.O_CREAT | (0 if force else os.O_EXCL)


def _check_size(end: FileEnd | LunEnd, size: int) -> None:
    if end.size < size:
        end.close()
        raise EndError(f"{end.name} is too small: it has {end.size} bytes, and {size} are to be copied")


def _file_end(path: str, flags: int) -> FileEnd:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)  # a FIFO shall not make us wait
    except OSError as error:
        raise EndError(f"{path}: {error.strerror}") from error
    try:
        return FileEnd(path, fd)
    except OSError as error:
        os.close(fd)
        raise EndError(f"{path}: {error.strerror}") from error
    except EndError:
        os.close(fd)
        raise


def _make_empty(end: FileEnd, size: int) -> None:
    try:
        os.ftruncate(end.fd, 0)
        os.ftruncate(end.fd, size)
    except OSError as error:
        end.close()
        raise EndError(f"{end.name}: cannot have {size} bytes: {error.strerror}") from error
    end.size = size
    end.identity["size"] = size


# -- names -------------------------------------------------------------------------------------------------------------


def plain_url(url: str) -> str:
    """A URL without credentials and options: what may be shown and kept."""
    parsed = parse_url(url)
    parts = [str(parsed.portal), *([parsed.target] if parsed.target else [])]
    return URL_PREFIX + "/".join([*parts, *([str(parsed.lun)] if parsed.lun is not None else [])])


def serial_of(disk: Disk) -> str:
    """The unit serial number; "" where the target has none."""
    try:
        return disk.vpd(SERIAL_PAGE)[4:].decode("ascii", "replace").strip(" \0")
    except SenseError:
        return ""
