"""The layer ``record``: every change of the device below, and every flush, goes into a file as well.

For tests of what a crash may leave: from the record, any state can be built that the durability contract of a device
allows (``tests/crash/replay.py`` does). It costs a second write of all data and grows without bound. What was on the
device before the record began is not in it.

The file is a header and entries, in the order in which the calls were done; all numbers are little-endian.

* header, 64 bytes: ``iscsid record 1`` and a zero byte; u64 size and u64 block size of the device; zeros.
* entry, 32 bytes and then its data: u32 CRC-32 of the rest of the entry and the data, u8 kind, u8 flags, u16 zero, u64
  begun, u64 offset, u64 length.
* kind: 1 write (``length`` bytes of data follow), 2 zeros, 3 discard (neither has data), 4 flush (offset and length 0).
* flags: 1 durable (FUA, or a device without a volatile cache), 2 failed (the call raised an error, and may have been
  done or not, or in part), 4 the range reads as zeros (of discard; its content is anybody's guess otherwise).

``begun`` is how long the file was when the call began. So all that a flush promises is what lies before its ``begun``;
and a call was under way, and may have been done in part, at any time from its ``begun`` to its end in the file. Writes
to one range that were under way together stand in either order, as they may have been done. A call is recorded before
it is answered: who notes the length of the file after an answer knows that the entry lies before it.

A worker that dies may leave a part of an entry at the end; the next one cuts it off. A call that cannot be recorded
fails. One worker serves the LUN.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from iscsid.plugin import BlockError, Device, Fault, Filter, LayerInfo, Mode, Option, Sharing, Support, hookimpl, stay

OPTIONS = (Option("path", "path", required=True, doc="the file of the record, made if it is missing", medium=True),)
MAGIC: Final = b"iscsid record 1\0"
_HEADER: Final = struct.Struct("<16sQQ32x")
_ENTRY: Final = struct.Struct("<IBBHQQQ")
WRITE, ZEROES, DISCARD, FLUSH = range(1, 5)
DURABLE, FAILED, READS_ZEROES = 1, 2, 4
_NOTHING: Final = memoryview(b"")


class Entry(NamedTuple):
    """One call. ``end`` is where the entry ends in the file, ``data`` what a write wrote."""

    kind: int
    flags: int
    begun: int
    end: int
    offset: int
    length: int
    data: memoryview


class Record:
    """The file at ``path``, for a device of ``size`` bytes; made, or gone on with.

    Raises BlockError(INVALID) for a file that is something else or of another device, and OSError.
    """

    def __init__(self, path: str, size: int, block_size: int) -> None:
        self._path, self._mutex = path, threading.Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            self._take()
            facts = os.fstat(self._fd)
            if not stat.S_ISREG(facts.st_mode):
                raise BlockError(Fault.INVALID, f"{path}: not a regular file")
            if not facts.st_size:
                os.pwrite(self._fd, _HEADER.pack(MAGIC, size, block_size), 0)
            self.length = self._whole(size, block_size)
            os.ftruncate(self._fd, self.length)
        except BaseException:
            os.close(self._fd)
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockError(Fault.INVALID, f"{self._path}: somebody else records there") from None

    def _whole(self, size: int, block_size: int) -> int:
        """The length of the header and all whole entries."""
        found = geometry(os.pread(self._fd, _HEADER.size, 0), self._path)
        if found != (size, block_size):
            raise BlockError(Fault.INVALID, f"{self._path}: the record of a device of {found[0]} bytes")
        at, end = _HEADER.size, os.fstat(self._fd).st_size
        while at + _ENTRY.size <= end:
            _, kind, _, _, _, _, length = _ENTRY.unpack(os.pread(self._fd, _ENTRY.size, at))
            following = at + _ENTRY.size + (length if kind == WRITE else 0)
            if following > end:
                break
            at = following
        return at

    def append(self, kind: int, flags: int, begun: int, offset: int, data: memoryview, length: int) -> None:
        """Raises OSError when there is no room; the file is then as it was."""
        rest = _ENTRY.pack(0, kind, flags, 0, begun, offset, length)[4:]
        head = zlib.crc32(data, zlib.crc32(rest)).to_bytes(4, "little") + rest
        with self._mutex:
            try:
                self._put(memoryview(head), self.length)
                self._put(data, self.length + len(head))
            except OSError:
                os.ftruncate(self._fd, self.length)
                raise
            self.length += len(head) + len(data)

    def _put(self, data: memoryview, at: int) -> None:
        while data:
            count = os.pwrite(self._fd, data, at)
            data, at = data[count:], at + count

    def close(self) -> None:
        os.close(self._fd)


def geometry(header: bytes, path: str) -> tuple[int, int]:
    """Size and block size of the device, out of the head of a record. Raises BlockError(INVALID)."""
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise BlockError(Fault.INVALID, f"{path}: not a record")
    _, size, block_size = _HEADER.unpack_from(header)
    return size, block_size


def entries(record: memoryview, path: str) -> Iterator[Entry]:
    """All entries of the content of a file; what is incomplete at its end is left out.

    Raises BlockError(INVALID) for what is no record, and for a damaged entry.
    """
    geometry(bytes(record[: _HEADER.size]), path)
    at = _HEADER.size
    while at + _ENTRY.size <= len(record):
        crc, kind, flags, _, begun, offset, length = _ENTRY.unpack_from(record, at)
        data = at + _ENTRY.size
        end = data + (length if kind == WRITE else 0)
        if end > len(record):
            return
        if zlib.crc32(record[at + 4 : end]) != crc:
            raise BlockError(Fault.INVALID, f"{path}: the entry at {at} is damaged")
        yield Entry(kind, flags, begun, end, offset, length, record[data:end])
        at = end


class Recording(Filter):
    """``record`` is owned by the object. Writes always go to the pool; there is no ``write_nowait``."""

    mode = Mode.BLOCKING

    def __init__(self, below: Device, record: Record) -> None:
        super().__init__(below)
        self._record = record
        self._written = 0 if below.capabilities().flush is Support.NATIVE else DURABLE
        self._discarded = self._written | (READS_ZEROES if below.discard_zeroes else 0)

    def _done(
        self, call: Callable[[], None], kind: int, flags: int, offset: int, data: memoryview, length: int
    ) -> None:
        stay()  # a call that is left half-way is in no record
        begun = self._record.length
        try:
            call()
        except Exception:
            if kind != FLUSH:
                self._record.append(kind, flags & ~DURABLE | FAILED, begun, offset, data, length)
            raise
        self._record.append(kind, flags, begun, offset, data, length)

    def write(self, data: memoryview, offset: int) -> None:
        self._done(lambda: self.below.write(data, offset), WRITE, self._written, offset, data, len(data))

    def write_fua(self, data: memoryview, offset: int) -> None:
        self._done(lambda: self.below.write_fua(data, offset), WRITE, DURABLE, offset, data, len(data))

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        call = self.below.write_zeroes
        self._done(lambda: call(offset, length, may_unmap), ZEROES, self._written, offset, _NOTHING, length)

    def discard(self, offset: int, length: int) -> None:
        call = self.below.discard
        self._done(lambda: call(offset, length), DISCARD, self._discarded, offset, _NOTHING, length)

    def flush(self) -> None:
        self._done(self.below.flush, FLUSH, 0, 0, _NOTHING, 0)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._record.close()


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    doc = "every write and flush into a file, for tests of crashes"
    return LayerInfo("record", doc, OPTIONS, sharing=Sharing.EXCLUSIVE_OWNER, keeps=True)


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Recording:
    record = Record(options["path"], device.size, device.block_size)
    try:
        return Recording(device, record)
    except BaseException:
        record.close()
        raise
