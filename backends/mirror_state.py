"""What a mirror must remember: which legs may differ from the others, and where. One small file.

The device is cut into regions, with one byte for each: a bit per leg that is set while the leg's copy of the region is
not to be trusted, and one more, the intent, while a write to the region may have reached some legs and not others.
Both are on the medium before the write that needs them goes on; bits are taken back lazily, for to copy a region once
too often costs time, and once too seldom data.

The file begins with a page of JSON that says what it belongs to; the bytes follow.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from iscsid.plugin import BlockError, Fault

MAGIC: Final = "iscsid mirror 1"
HEADER: Final = 4096
INTENT: Final = 0x80
MAX_LEGS: Final = 7
MAX_REGIONS: Final = 1 << 16
SMALLEST_REGION: Final = 16 << 20


def region_size(size: int) -> int:
    """Bytes of a region: a power of two, so that there are at most MAX_REGIONS."""
    region = SMALLEST_REGION
    while -(-size // region) > MAX_REGIONS:
        region *= 2
    return region


class MirrorState:
    """The file at ``path``, which is made if it is missing; then leg 0 is the one to be trusted, and all others are
    copied from it.

    ``legs`` names each leg: one whose name is another than last time is copied anew. Raises BlockError(INVALID) for a
    file that belongs to another mirror, BlockError(BUSY) for one that another one has open, and OSError.
    """

    def __init__(self, path: str, size: int, legs: Sequence[str]) -> None:
        self.path = path
        self.region = region_size(size)
        self.count = -(-size // self.region)
        self._legs = list(legs)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of the open file, which the map keeps open
            fresh = not os.pread(fd, HEADER, 0).strip(b"\0")  # its header is written last
            names = self._legs if fresh else self._names(fd, size)
            if fresh:
                os.ftruncate(fd, HEADER + self.count)
            os.posix_fallocate(fd, 0, HEADER + self.count)  # a map of a hole on a full disk would end the process
            self._map = mmap.mmap(fd, HEADER + self.count)
        except BlockingIOError as error:
            raise BlockError(Fault.BUSY, f"{path} is in use by another mirror") from error
        finally:
            os.close(fd)
        self._intended = {region for region in range(self.count) if self._map[HEADER + region] & INTENT}
        self._synced = set(self._intended)  # those of them that are on the medium
        self._adopt(fresh, names)
        self._write_header(size)
        self.sync()
        sync_directory(path)

    def _adopt(self, fresh: bool, names: Sequence[str]) -> None:
        """Distrust what is new. On the medium before the header is: without it, all of this is done again."""
        for leg, (name, was) in enumerate(zip(self._legs, names, strict=True)):
            if (fresh and leg) or name != was:
                self.distrust(leg, range(self.count))
        self.sync()

    def _names(self, fd: int, size: int) -> list[str]:
        """The legs of last time."""
        header = os.pread(fd, HEADER, 0)
        try:
            said = _said(header)
            names = said["legs"]
            fits = said["magic"] == MAGIC and said["size"] == size and len(names) == len(self._legs)
        except (ValueError, TypeError, KeyError) as error:
            raise BlockError(Fault.INVALID, f"{self.path}: not the state of a mirror") from error
        if not fits or os.fstat(fd).st_size != HEADER + self.count:
            reason = f"the state of a mirror of {said['size']} bytes and {len(names)} legs, not {size} and"
            raise BlockError(Fault.INVALID, f"{self.path}: {reason} {len(self._legs)}")
        if not any(name == was for name, was in zip(self._legs, names, strict=True)):
            raise BlockError(Fault.INVALID, f"{self.path}: no leg is what it was: {', '.join(map(str, names))}")
        return [str(name) for name in names]

    def _write_header(self, size: int) -> None:
        text = json.dumps({"magic": MAGIC, "size": size, "legs": self._legs}).encode()
        if len(text) >= HEADER:
            raise BlockError(Fault.INVALID, f"{self.path}: the names of the legs are too long")
        self._map[:HEADER] = text.ljust(HEADER, b"\0")

    def regions(self, offset: int, length: int) -> range:
        """The regions that a range touches."""
        return range(offset // self.region, (offset + length - 1) // self.region + 1)

    def stale(self, region: int) -> int:
        """The bits of the legs that are not to be trusted in ``region``, legs being 1, 2, 4, ..."""
        return self._map[HEADER + region] & ~INTENT

    def any_stale(self, leg: int) -> bool:
        """Whether the leg is stale anywhere."""
        return next(self.stale_regions(leg), None) is not None

    def stale_regions(self, leg: int) -> Iterator[int]:
        """The regions in which the leg is stale, as they are found."""
        bit = 1 << leg
        return (region for region in range(self.count) if self._map[HEADER + region] & bit)

    def intend(self, regions: range) -> bool:
        """Note that writes are under way; True when that is not on the medium yet, and has to be before they go on."""
        for region in regions:
            if region not in self._intended:
                self._map[HEADER + region] |= INTENT
                self._intended.add(region)
        return not self._synced.issuperset(regions)

    def intended(self) -> list[int]:
        """The regions with writes under way."""
        return sorted(self._intended)

    def recover(self, up: Iterable[int]) -> None:
        """After a crash: writes that were under way may be on some legs only, so the first of the legs that are ``up``
        and have the region has it alone. Raises OSError."""
        legs = list(up)
        for region in self.intended():
            winner = next((leg for leg in legs if not self.stale(region) & 1 << leg), None)
            if winner is not None:
                for leg in range(len(self._legs)):
                    if leg != winner:
                        self.distrust(leg, [region])
        self.sync()

    def settle(self, regions: Iterable[int]) -> None:
        """Nothing is under way there, and all is on every leg that is trusted."""
        for region in regions:
            self._map[HEADER + region] &= ~INTENT & 0xFF
            self._intended.discard(region)
            self._synced.discard(region)

    def distrust(self, leg: int, regions: Iterable[int]) -> None:
        """The leg's copy of these regions is not to be trusted any more."""
        for region in regions:
            self._map[HEADER + region] |= 1 << leg

    def trust(self, leg: int, region: int) -> None:
        """The leg has the region's data, on its medium."""
        self._map[HEADER + region] &= ~(1 << leg) & 0xFF

    def sync(self) -> None:
        """Put everything noted on the medium. Raises OSError."""
        self._map.flush()
        self._synced = set(self._intended)

    def close(self) -> None:
        """Raises OSError."""
        self._map.flush()
        self._map.close()


def recorded_size(path: str) -> int:
    """The size of the mirror whose state this is; 0 where there is none that can be read."""
    try:
        with open(path, "rb") as file:
            size = _said(file.read(HEADER))["size"]
    except (OSError, ValueError, TypeError, KeyError):
        return 0
    return size if isinstance(size, int) else 0


def recorded_names(path: str) -> list[str]:
    """The legs of the mirror whose state this is; none where there is none that can be read."""
    try:
        with open(path, "rb") as file:
            return [str(name) for name in _said(file.read(HEADER))["legs"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _said(header: bytes) -> Any:
    return json.loads(header.rstrip(b"\0 \n"))


def sync_directory(path: str) -> None:
    """Have the name of the file at ``path`` outlive a crash. Raises OSError."""
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
