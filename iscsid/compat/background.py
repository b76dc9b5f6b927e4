"""Going into the background as daemon(3) does, but with an answer: the shell hears whether it worked.

The first process waits until the second says that it is up, or ends, and passes on what that wrote to stderr.
"""

from __future__ import annotations

import os
import sys
from typing import Final

READY: Final = b"\0"  # what the daemon writes when it is up; it never is part of a text
FAILED: Final = 1


class Background:
    """The daemon's end of it. ``begin`` first, then ``ready``."""

    def __init__(self, writer: int) -> None:
        self._writer = writer

    def ready(self) -> None:
        """Let the shell go; from now on stderr leads nowhere."""
        if self._writer >= 0:
            os.write(self._writer, READY)
            os.dup2(0, 2)
            os.close(self._writer)
            self._writer = -1


def begin() -> Background:
    """Fork. Returns in the daemon alone: its folder is /, its stdio is /dev/null but for stderr, until it is ready.

    The first process ends here, with 0 when the other is ready and otherwise with that one's exit code. To be called
    before there are threads. Raises OSError when there can be no process.
    """
    sys.stdout.flush()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(writer)
        code = _wait(pid, reader)
        sys.stderr.flush()
        os._exit(code)  # what was to be cleaned up is the daemon's now
    os.close(reader)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    # A pipe and not the terminal, so that the daemon keeps nothing of the shell's open.
    for number, source in ((0, null), (1, null), (2, writer)):
        os.dup2(source, number)
    os.close(null)
    return Background(writer)


def _wait(pid: int, reader: int) -> int:
    """Pass on what the daemon says; its exit code, or 0 when it is up."""
    while data := os.read(reader, 4096):
        sys.stderr.write(data.replace(READY, b"").decode(errors="replace"))
        if READY in data:
            return 0
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) or FAILED
