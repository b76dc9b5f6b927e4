"""What a ``checksum`` keeps: a CRC32C for each unit of the device, and which regions are being written.

The file begins with a page of JSON that says what it belongs to, then come the marks, a byte for each region, then the
sums, four bytes for each unit. A sum of 0 means that none is known: the unit was never written through the layer.

Data and its sum cannot be written in one go. So a region is marked, and the mark is on the medium, before the first
write to it; while it is marked, data and sum may differ after a crash. Marks are taken back by ``settle``, after data
and sums are on the medium. To mark costs a sync, so a region stays marked until MAX_MARKED of them are.
"""

from __future__ import annotations

import fcntl
import json
import os
from array import array
from typing import Any, Final

from google_crc32c import value as crc32c

from iscsid.plugin import BlockError, Fault

MAGIC: Final = "iscsid checksum 1"
PAGE: Final = 4096
REGION: Final = 4 << 20
MAX_MARKED: Final = 16  # regions: what has to be read again after a crash, 64 MiB
UNKNOWN: Final = 0


def sum_of(data: memoryview) -> int:
    """The checksum of a unit; never UNKNOWN."""
    return int(crc32c(bytes(data))) or 0xFFFFFFFF


class Sums:
    """The file at ``path``, made if it is missing. Raises BlockError(INVALID, BUSY) and OSError."""

    def __init__(self, path: str, size: int, unit: int) -> None:
        self.path, self.size = path, size
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockError(Fault.BUSY, f"{path} is in use") from error
            self.unit = self._adopt(unit)
            regions = -(-size // REGION)
            self._at = PAGE + -(-regions // PAGE) * PAGE
            self._make()
            marks = os.pread(self._fd, regions, PAGE)
            self.marked = {region for region, mark in enumerate(marks) if mark}
        except BaseException:
            os.close(self._fd)
            raise
        self._lost = ""

    def _adopt(self, unit: int) -> int:
        header = os.pread(self._fd, PAGE, 0).strip(b"\0")
        if not header:
            return unit
        try:
            said: Any = json.loads(header)
            magic, size, unit = said["magic"], said["size"], said["unit"]
        except (ValueError, TypeError, KeyError) as error:
            raise BlockError(Fault.INVALID, f"{self.path}: not a file of checksums") from error
        if magic != MAGIC or not isinstance(unit, int) or not 512 <= unit <= 65536 or unit & (unit - 1):
            raise BlockError(Fault.INVALID, f"{self.path}: not a file of checksums")
        if size != self.size:
            raise BlockError(Fault.INVALID, f"{self.path}: belongs to a device of {size} bytes, not {self.size}")
        return unit

    def _make(self) -> None:
        length = self._at + -(-self.size // self.unit) * 4
        facts = os.fstat(self._fd)
        if facts.st_size < length or facts.st_blocks * 512 < length:
            # All at once: data whose sum finds no room could not be read any more.
            os.posix_fallocate(self._fd, 0, length)
        if not os.pread(self._fd, PAGE, 0).strip(b"\0"):
            os.fsync(self._fd)
            header = {"magic": MAGIC, "size": self.size, "unit": self.unit}
            os.pwrite(self._fd, json.dumps(header).encode().ljust(PAGE, b"\0"), 0)
            os.fsync(self._fd)

    def read(self, first: int, count: int) -> array[int]:
        """The sums of ``count`` units from ``first`` on."""
        sums = array("I", os.pread(self._fd, count * 4, self._at + first * 4))
        if len(sums) != count:
            raise BlockError(Fault.READ_ERROR, f"{self.path} ends early: it was cut while in use")
        return sums

    def write(self, first: int, sums: array[int]) -> None:
        """Keep the sums of units from ``first`` on, whose regions are marked."""
        data = sums.tobytes()
        if os.pwrite(self._fd, data, self._at + first * 4) != len(data):
            raise BlockError(Fault.WRITE_ERROR, f"{self.path} could not be written")

    def mark(self, offset: int, length: int) -> None:
        """The range is about to be written. On the medium when this returns."""
        regions = range(offset // REGION, (offset + length - 1) // REGION + 1)
        new = [region for region in regions if region not in self.marked]
        if new:
            self._check()
            for region in new:
                os.pwrite(self._fd, b"\1", PAGE + region)
            self._sync()
            self.marked.update(new)

    def sync(self) -> None:
        """Put the sums on the medium. Once this has failed it goes on failing."""
        self._check()
        self._sync()

    def settle(self) -> None:
        """Data and sums of all marked regions are on the medium: take the marks back, some time."""
        for region in self.marked:
            os.pwrite(self._fd, b"\0", PAGE + region)
        self.marked.clear()

    def _check(self) -> None:
        if self._lost:
            raise BlockError(Fault.WRITE_ERROR, self._lost)

    def _sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._lost = f"{self.path}: an earlier flush failed ({error}); sums written before may be lost"
            raise

    def close(self) -> None:
        os.close(self._fd)
