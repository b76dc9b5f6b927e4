"""What a ``cow`` keeps: the clusters that were written, and a bitmap of which they are.

The file begins with a page of JSON that says what it belongs to, then comes the bitmap, a bit for each cluster, then
the clusters, each in its own place, so the file is sparse. The bitmap that counts while the device is open is in
memory, in a memfd that the supervisor holds: what a dying worker had written is there for the next one. It is of the
content that has the same ``id``, a random number: a file that was emptied or replaced meanwhile has another one.

Order of what reaches the disk: a cluster is written whole before its bit is set; ``sync`` puts the clusters on the
medium, then the bits, and then syncs again. So a bit on the medium has its cluster there. A crash in between costs
clusters that were first written since the last ``sync``: they are what they were before, as in any volatile cache.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import threading
from collections.abc import Iterator
from typing import Any, Final

from iscsid.plugin import BlockError, Fault

MAGIC: Final = "iscsid cow 1"
PAGE: Final = 4096
_ID: Final = 16  # bytes
_SPOILT: Final = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Overlay:
    """``fd`` (the file, or memory) and ``bits`` (a memfd) are owned by the object. ``size`` is that of the device.

    ``durable`` tells that ``fd`` is a file. Raises BlockError(INVALID) for a file that belongs to another device.
    """

    def __init__(self, fd: int, bits: int, size: int, cluster: int, *, durable: bool, name: str = "overlay") -> None:
        self._fd, self._bits, self.size, self.name, self.durable = fd, bits, size, name, durable
        self._id = bytes(_ID)
        self.cluster = self._adopt(cluster)
        self.count = -(-size // self.cluster)
        self._bitmap_pages = -(-self.count // (8 * PAGE))
        self._data = -(-(PAGE * (1 + self._bitmap_pages)) // self.cluster) * self.cluster
        self._mutex = threading.Lock()  # of the bits
        self._syncing = threading.Lock()
        self._lost = ""
        self._unsaved = set[int]()  # pages of the bitmap
        self._fit()
        self._map = self._load()
        self.waits = durable and not self._probe()

    def _adopt(self, cluster: int) -> int:
        """The cluster size of the file; that asked for where there is none yet."""
        header = os.pread(self._fd, PAGE, 0).strip(b"\0")
        if not header:
            return cluster
        try:
            said: Any = json.loads(header)
            magic, size, cluster = said["magic"], said["size"], said["cluster"]
            self._id = bytes.fromhex(said.get("id", bytes(_ID).hex()))
        except (ValueError, TypeError, KeyError) as error:
            raise BlockError(Fault.INVALID, f"{self.name}: not an overlay") from error
        sound = isinstance(cluster, int) and PAGE <= cluster <= 1 << 24 and not cluster & (cluster - 1)
        if magic != MAGIC or not sound or len(self._id) != _ID:
            raise BlockError(Fault.INVALID, f"{self.name}: not an overlay")
        if size != self.size:
            raise BlockError(Fault.INVALID, f"{self.name}: belongs to a device of {size} bytes, not {self.size}")
        return cluster

    def _fit(self) -> None:
        """Make the file as long as it has to be; the header last, so that what has one is whole."""
        length = self._data + self.count * self.cluster
        if os.fstat(self._fd).st_size < length:
            os.ftruncate(self._fd, length)
        if self.durable:
            os.posix_fallocate(self._fd, 0, self._data)  # a bitmap that finds no room costs the clusters
        if not os.pread(self._fd, PAGE, 0).strip(b"\0"):
            if self.durable:
                os.fsync(self._fd)
            self._be_new()

    def _be_new(self) -> None:
        """What is here from now on is no continuation of what was here."""
        self._id = os.urandom(_ID)
        header = {"magic": MAGIC, "size": self.size, "cluster": self.cluster, "id": self._id.hex()}
        os.pwrite(self._fd, json.dumps(header).encode().ljust(PAGE, b"\0"), 0)
        if self.durable:
            os.fsync(self._fd)

    def _load(self) -> mmap.mmap:
        """The bits: of the worker before, or of the file. The memfd begins with a byte that tells that they are there,
        and the id of what they belong to."""
        length = self._bitmap_pages * PAGE
        if not os.fstat(self._bits).st_size:
            os.posix_fallocate(self._bits, 0, PAGE + length)
        area = mmap.mmap(self._bits, PAGE + length)
        if not area[0] or area[1 : 1 + _ID] != self._id:
            area[0] = 0
            area[PAGE:] = os.pread(self._fd, length, PAGE).ljust(length, b"\0")
            area[1 : 1 + _ID] = self._id
            area[0] = 1
        elif self.durable:
            self._unsaved.update(range(self._bitmap_pages))  # nobody knows what the one before had saved
        return area

    def _probe(self) -> bool:
        """Whether a read that would wait says so instead."""
        try:
            os.preadv(self._fd, [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in _SPOILT:
                raise
            return False
        return True

    def has(self, index: int) -> bool:
        """Whether the cluster is here."""
        return bool(self._map[PAGE + (index >> 3)] & (1 << (index & 7)))

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, whether it is here) of the parts of a range, one after the other."""
        at, end, cluster = offset, offset + length, self.cluster
        while at < end:
            here = self.has(at // cluster)
            stop = (at // cluster + 1) * cluster
            while stop < end and self.has(stop // cluster) is here:
                stop += cluster
            stop = min(stop, end)
            yield at, stop - at, here
            at = stop

    def read_into(self, buffer: memoryview, offset: int, flags: int = 0) -> None:
        """Fill ``buffer`` from clusters that are here; with RWF_NOWAIT, BlockingIOError instead of waiting."""
        done = 0
        while done < len(buffer):
            count = os.preadv(self._fd, [buffer[done:]], self._data + offset + done, flags)
            if not count or (flags and count < len(buffer) - done):
                if flags:
                    raise BlockingIOError
                raise BlockError(Fault.READ_ERROR, f"{self.name} ends early: it was cut while in use")
            done += count

    def write(self, data: memoryview, offset: int) -> None:
        """Write into clusters that are here, or are not yet and become so by ``mark``."""
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], self._data + offset + done)

    def mark(self, first: int, end: int) -> None:
        """The clusters from ``first`` to ``end``, which have been written whole, are here from now on."""
        with self._mutex:
            for index in range(first, end):
                self._map[PAGE + (index >> 3)] |= 1 << (index & 7)
            if self.durable:
                self._unsaved.update(range(first // (8 * PAGE), (end - 1) // (8 * PAGE) + 1))

    def sync(self) -> None:
        """Put what was written on the medium. Once this has failed it goes on failing. Raises OSError."""
        with self._syncing:
            if self._lost:
                raise BlockError(Fault.WRITE_ERROR, self._lost)
            with self._mutex:
                pages = {page: bytes(self._map[PAGE * (page + 1) : PAGE * (page + 2)]) for page in self._unsaved}
                self._unsaved.clear()
            try:
                os.fdatasync(self._fd)
                for page, content in pages.items():
                    os.pwrite(self._fd, content, PAGE * (page + 1))
                if pages:
                    os.fdatasync(self._fd)
            except OSError as error:
                self._lost = f"{self.name}: an earlier flush failed ({error}); what was written before may be lost"
                raise

    def clear(self) -> None:
        """Forget all clusters, on the medium too. Nobody may use the overlay meanwhile."""
        self._be_new()
        self._map[1 : 1 + _ID] = self._id
        self._map[PAGE:] = bytes(len(self._map) - PAGE)
        self._unsaved.update(range(self._bitmap_pages))
        self.sync()
        os.ftruncate(self._fd, self._data)
        self._fit()

    def close(self) -> None:
        self._map.close()
        os.close(self._fd)
        os.close(self._bits)


def open_file(path: str, *, create: bool = True) -> int:
    """The descriptor of an overlay's file, which nobody else has open. Raises BlockError(BUSY) and OSError."""
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    fd = os.open(path, flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise BlockError(Fault.BUSY, f"{path} is in use") from error
    except BaseException:
        os.close(fd)
        raise
    return fd
