"""One runtime directory, one server; a file left by a dead one stops nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from iscsid.daemon import pidfile as module
from iscsid.daemon.errors import AlreadyRunning, StartError
from iscsid.daemon.pidfile import PidFile, read_pid


def test_file_holds_the_pid_and_goes_with_release(tmp_path: Path) -> None:
    path = tmp_path / "server.pid"
    pidfile = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.release()
    assert not path.exists()
    pidfile.release()


def test_second_server_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    path = str(tmp_path / "server.pid")
    first = PidFile(path)
    with pytest.raises(AlreadyRunning, match=f"already running .pid {os.getpid()}.") as caught:
        PidFile(path)
    assert caught.value.pid == os.getpid()
    assert Path(path).read_text() == f"{os.getpid()}\n", "the loser must not touch the file"
    first.release()
    PidFile(path).release()


def test_stale_file_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "server.pid"
    path.write_text("999999999 and more\n")
    pidfile = PidFile(str(path))
    assert path.read_text() == f"{os.getpid()}\n"
    pidfile.release()


def test_lock_does_not_outlive_the_server_in_a_worker_that_closed_its_copy(tmp_path: Path) -> None:
    path = str(tmp_path / "server.pid")
    pidfile = PidFile(path)
    copy = os.dup(pidfile._fd)  # what a fork makes
    pidfile.close()
    with pytest.raises(AlreadyRunning):
        PidFile(path)
    os.close(copy)
    PidFile(path).release()


def test_file_removed_between_open_and_lock_is_not_taken_for_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "server.pid"
    real = module.fcntl.flock
    calls: list[int] = []

    def flock(fd: int, operation: int) -> None:
        real(fd, operation)
        calls.append(fd)
        if len(calls) == 1:
            path.unlink()  # the server that stops

    monkeypatch.setattr(module.fcntl, "flock", flock)
    pidfile = PidFile(str(path))
    assert len(calls) == 2
    assert path.exists()
    pidfile.release()


def test_directory_that_is_not_there_refuses_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file"):
        PidFile(str(tmp_path / "none" / "server.pid"))


@pytest.mark.parametrize(("text", "pid"), [(b"", 0), (b"12\n", 12), (b"x\n", 0), (b"9" * 50, int("9" * 20))])
def test_pid_is_read_or_unknown(tmp_path: Path, text: bytes, pid: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(text)
    with path.open("rb") as file:
        assert read_pid(file.fileno()) == pid
