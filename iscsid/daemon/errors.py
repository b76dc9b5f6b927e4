"""What stops a server from starting."""

from __future__ import annotations

from iscsid.errors import IscsidError


class StartError(IscsidError):
    """The server cannot start; the message is for the operator."""


class AlreadyRunning(StartError):
    """Another server has this runtime directory; ``pid`` is 0 when it did not say."""

    def __init__(self, path: str, pid: int) -> None:
        self.pid = pid
        who = f"pid {pid}" if pid else "its pid is unknown"
        super().__init__(f"a server is already running ({who}): {path} is locked")
