"""A file that shares its blocks with another, where the file system knows how."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from iscsid_backends import file_clone

from iscsid.errors import BlockError, Fault, PluginError
from iscsid.plugin.manager import load


def shares(target: int, request: int, source: int) -> int:
    """What a file system does that can."""
    assert request == file_clone.FICLONE
    os.pwrite(target, os.pread(source, 1 << 20, 0), 0)
    return 0


def refuses(number: int) -> Any:
    def ioctl(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    return ioctl


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"d" * 4096)
    return path


def test_clone_holds_what_the_file_holds(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", shares)
    to = tmp_path / "new"
    answer = load(["file"]).image("file", {"path": str(disk)}, "clone", {"to": str(to)})
    assert answer == {"path": str(to), "size": 4096}
    assert to.read_bytes() == disk.read_bytes()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL])
def test_file_system_that_cannot_is_told_with_what_to_do(
    number: int, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuses(number))
    with pytest.raises(BlockError, match="iscsid disk copy") as caught:
        file_clone.clone(str(disk), str(tmp_path / "new"))
    assert caught.value.fault is Fault.UNSUPPORTED
    assert not (tmp_path / "new").exists()


def test_full_disk_is_told_as_that(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "ioctl", refuses(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        file_clone.clone(str(disk), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_file_that_is_there_is_left_alone(disk: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text("mine")
    with pytest.raises(FileExistsError):
        file_clone.clone(str(disk), str(new))
    with pytest.raises(PluginError, match="to: missing"):
        load(["file"]).image("file", {"path": str(disk)}, "clone", {})
    assert new.read_text() == "mine"
