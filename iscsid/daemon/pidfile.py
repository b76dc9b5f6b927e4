"""The pid file, whose lock is what makes a runtime directory belong to one server.

The lock is the kernel's and goes with the process, so a stale file stops nobody. A worker that was just forked closes
its copy: a flock lasts as long as any copy of its descriptor is open.
"""

from __future__ import annotations

import fcntl
import os

from iscsid.daemon.errors import AlreadyRunning, StartError


class PidFile:
    """A locked file with this process's id. Raises StartError, AlreadyRunning."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd = self._lock()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        except OSError as exc:
            raise StartError(f"{path}: {exc.strerror or exc}") from exc

    def release(self) -> None:
        """Remove the file and let go of it."""
        if self._fd >= 0:
            os.unlink(self.path)
            self.close()

    def close(self) -> None:
        """Close this process's copy; the file stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _lock(self) -> int:
        """Open and lock. A server that stops removes the file while it holds the lock, so who waited at the door may
        have locked a file that is no longer there; it tries again."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = read_pid(fd)
                os.close(fd)
                raise AlreadyRunning(self.path, pid) from None
            except OSError:
                os.close(fd)
                raise
            try:
                if os.path.samestat(os.fstat(fd), os.stat(self.path)):
                    return fd
            except FileNotFoundError:
                pass
            os.close(fd)


def read_pid(fd: int) -> int:
    """The number in an open pid file, 0 when there is none (yet)."""
    digits = os.pread(fd, 20, 0).strip()
    return int(digits) if digits.isdigit() else 0
