"""Ranges of a logical unit that one command holds against all others, in whichever worker they run.

COMPARE AND WRITE, ORWRITE and WRITE ATOMIC read and write as one step (SBC-3 5.2). Between the threads of a worker a
mutex sees to that, between workers an open file description lock (fcntl(2), F_OFD_SETLK) on a file of the unit in
``runtime_dir``. The kernel takes the lock from a worker that dies, so nobody ever waits for the dead.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import struct
import threading
from collections.abc import Iterator

from iscsid.errors import BlockError, Fault

UNIT = 512  # bytes of medium that one byte of the lock file stands for, so that offsets stay below 2**63
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock: l_type, l_whence, l_start, l_len, l_pid, which must be 0 here
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def lock_path(runtime_dir: str, serial: str) -> str:
    """The lock file of the logical unit with this serial number; all workers, and all its LUNs, have the same."""
    digest = hashlib.sha256(serial.encode()).hexdigest()
    return os.path.join(runtime_dir, f"lu-{digest[:32]}.lock")


class RangeLock:
    """The locks of one unit, as one worker sees them.

    The file is made when it is first needed. Made by whichever worker comes first, it is never removed: a worker that
    locks a file without a name would be alone with it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1
        self._mutex = threading.Lock()

    @contextlib.contextmanager
    def exclusive(self, offset: int, length: int, wait: bool = True, /) -> Iterator[None]:
        """Hold the range (see ``block.guard.Guarded.exclusive``). One thread of a worker has one range at a time.

        Raises BlockingIOError without ``wait`` where it is not free, BlockError(INTERNAL) where the lock file cannot
        be used.
        """
        if not self._mutex.acquire(blocking=wait):
            raise BlockingIOError
        try:
            start = offset // UNIT
            count = max(1, -(-(offset + length) // UNIT) - start)
            fd = self._lock(start, count, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK)
            try:
                yield
            finally:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, count, 0))
        finally:
            self._mutex.release()

    def close(self) -> None:
        """Give the file back; what is held by then is free."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _lock(self, start: int, count: int, command: int) -> int:
        """Lock the range of the file that has the name now; its descriptor."""
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, count, 0)
        try:
            while True:
                if self._fd < 0:
                    self._fd = os.open(self._path, _FLAGS, 0o600)
                fcntl.fcntl(self._fd, command, wanted)
                if os.fstat(self._fd).st_nlink:
                    return self._fd
                self.close()  # somebody has removed it, and others have made a new one
        except BlockingIOError:
            raise
        except OSError as error:
            raise BlockError(Fault.INTERNAL, f"{self._path}: {error.strerror or error}") from error
