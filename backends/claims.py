"""Who has a file or a disk: by the locks of QEMU, so that it, its tools and other servers see ours, and we theirs.

QEMU locks single bytes of an image (block/file-posix.c): one for each permission that it holds, from 100 on, and one
for each that others may not have, from 200 on. All are read locks of the open file description, which the kernel frees
with the last descriptor of it; who takes one looks whether somebody else has the opposite. On a file system without
locks QEMU goes on without, and so do we.

In one process a file is claimed once: a further claim, of another logical unit or of the same one in another
configuration, is a copy of the descriptor, and the locks are what all of them need. Whether two units may have one file
at all is seen when the configuration is read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from iscsid.plugin import BlockError, Fault

_HELD: Final = 100
_DENIED: Final = 200
_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE = range(4)
_FLOCK: Final = struct.Struct("@hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def lock(fd: int, name: str, *, writes: bool, share: bool = False) -> None:
    """Hold the file against other programs, as a reader or as the one that writes; with ``share`` against those only
    that do not want to share it either. What this open file has locked already, and needs no more, is given back.

    Raises BlockError(BUSY) when another one has it in a way that excludes ours; then nothing of that is locked.
    """
    held = (_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE) if writes else (_READ,)
    denied = () if share else (_WRITE, _RESIZE)
    wanted = [_HELD + bit for bit in held] + [_DENIED + bit for bit in denied]
    opposite = [_DENIED + bit for bit in held] + [_HELD + bit for bit in denied]
    try:
        _set(fd, fcntl.F_RDLCK, wanted)
        if any(_is_locked(fd, byte) for byte in opposite):
            _set(fd, fcntl.F_UNLCK, wanted)
            raise BlockError(Fault.BUSY, f"{name} is in use by another program, another server or another logical unit")
        _set(fd, fcntl.F_UNLCK, {*_bytes(_HELD), *_bytes(_DENIED)} - set(wanted))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            _set(fd, fcntl.F_UNLCK, wanted)
            raise BlockError(Fault.BUSY, f"{name} is in use by another program") from error
        if error.errno not in _NO_LOCKS:
            raise


def _bytes(first: int) -> Iterable[int]:
    return range(first, first + _RESIZE + 1)


def _set(fd: int, kind: int, where: Iterable[int]) -> None:
    for byte in where:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def _is_locked(fd: int, byte: int) -> bool:
    """Whether another open file has a lock there."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


@dataclass(slots=True)
class _Claimed:
    """A file that this process has claimed: by which descriptors, all of one open file, and for what."""

    wants: dict[int, tuple[bool, bool]] = field(default_factory=dict)  # descriptor -> writes, share


class Claims:
    """The files that this process has claimed. ``key`` tells two of them apart."""

    def __init__(self, key: Callable[[os.stat_result], object]) -> None:
        self._key = key
        self._claimed: dict[object, _Claimed] = {}
        self._pid = os.getpid()

    def take(self, path: str, opener: Callable[[], int], *, writes: bool, share: bool = False) -> int:
        """A descriptor of the file at ``path``, to be given back by :meth:`give`; ``opener`` opens it the first time.

        Raises BlockError(BUSY), with nothing changed, and OSError.
        """
        claimed = self._find(path)
        if claimed is not None:
            fd = os.dup(next(iter(claimed.wants)))
        else:
            fd = opener()
            claimed = self._claimed[self._key(os.fstat(fd))] = _Claimed()
        claimed.wants[fd] = (writes, share)
        try:
            self._lock(claimed, path)
        except BaseException:
            self.give(fd)
            raise
        return fd

    def give(self, fd: int) -> None:
        """Give back what :meth:`take` has answered; the locks are those that the others need."""
        key = self._key(os.fstat(fd))
        claimed = self._claimed.get(key)
        if claimed is not None and claimed.wants.pop(fd, None) is not None:
            if claimed.wants:
                self._lock(claimed, "")  # what the others need
            else:
                del self._claimed[key]
        os.close(fd)

    def _find(self, path: str) -> _Claimed | None:
        """What is claimed here already; what the process that we are a copy of has claimed is not ours."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._claimed.clear()
        try:
            return self._claimed.get(self._key(os.stat(path)))
        except FileNotFoundError:
            return None

    @staticmethod
    def _lock(claimed: _Claimed, path: str) -> None:
        writes = any(wants for wants, _ in claimed.wants.values())
        share = all(shares for _, shares in claimed.wants.values())
        lock(next(iter(claimed.wants)), path, writes=writes, share=share)
