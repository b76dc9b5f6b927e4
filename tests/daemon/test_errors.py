"""The messages are for an operator, who has nothing else to go by."""

from __future__ import annotations

from iscsid.daemon.errors import AlreadyRunning, StartError
from iscsid.errors import IscsidError


def test_already_running_names_file_and_pid() -> None:
    error = AlreadyRunning("/run/x.pid", 42)
    assert str(error) == "a server is already running (pid 42): /run/x.pid is locked"
    assert isinstance(error, StartError)
    assert isinstance(error, IscsidError)


def test_already_running_without_a_pid_says_so() -> None:
    assert "its pid is unknown" in str(AlreadyRunning("/run/x.pid", 0))
