"""The file under an image: zeros behind its end, whole writes, one barrier, and locks that QEMU minds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from iscsid_backends.qcow2_storage import Storage, fill_zeroes, open_storage
from qcow2_kit import make, opened

from iscsid.errors import BlockError, Fault


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    path = tmp_path / "file"
    path.write_bytes(b"abcdef")
    return open_storage(str(path), writing=True)


def test_read_behind_the_end_gives_zeros(storage: Storage) -> None:
    assert storage.read(4, 6) == b"ef\0\0\0\0"
    assert storage.read(1 << 62, 4) == bytes(4)
    assert storage.read(1 << 63, 4) == bytes(4)
    storage.close()


def test_write_and_truncate_change_the_size(storage: Storage) -> None:
    storage.write(memoryview(b"xyz"), 10)
    assert storage.size == 13
    storage.truncate(20)
    assert storage.read(9, 8) == b"\0xyz\0\0\0\0"
    storage.close()


@pytest.mark.parametrize("punches", [True, False])
def test_zero_makes_zeros_and_no_file_longer(storage: Storage, punches: bool) -> None:
    storage._punches = punches
    storage.zero(2, 2)
    storage.zero(5, 1000)
    storage.zero(50, 1000)
    assert storage.read(0, 6) == b"ab\0\0e\0"
    assert storage.size == 6
    storage.close()


def test_sync_that_failed_fails_for_ever(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="Input/output"):
            storage.sync()
    with pytest.raises(BlockError, match="may be lost"):
        storage.sync()
    storage.close()


@pytest.mark.parametrize("kind", ["pipe", "folder", "missing"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises((BlockError, OSError)):
        open_storage(str(path), writing=False)


def test_writer_excludes_every_other_and_readers_share(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(512))
    one, two = open_storage(str(path), writing=False), open_storage(str(path), writing=False)
    with pytest.raises(BlockError, match="in use") as caught:
        open_storage(str(path), writing=True)
    assert caught.value.fault is Fault.BUSY
    one.close()
    two.close()
    writer = open_storage(str(path), writing=True)
    for writing in (False, True):
        with pytest.raises(BlockError, match="in use"):
            open_storage(str(path), writing=writing)
    open_storage(str(path), writing=False, lock=False).close()
    writer.close()
    open_storage(str(path), writing=True).close()


@pytest.mark.judge("qemu-img")
def test_qemu_refuses_an_image_that_we_have(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    image = opened(path)
    for words in (["info"], ["check"], ["resize", "-q"]):
        more = ["1G"] if words[0] == "resize" else []
        done = subprocess.run(["qemu-img", *words, str(path), *more], capture_output=True, text=True, check=False)
        assert done.returncode
        assert "lock" in done.stderr
    image.close()
    assert subprocess.run(["qemu-img", "info", str(path)], capture_output=True, check=False).returncode == 0


@pytest.mark.judge("qemu-io")
@pytest.mark.parametrize("readonly", [False, True])
def test_image_that_qemu_has_is_refused(tmp_path: Path, readonly: bool) -> None:
    path = make(tmp_path / "disk.qcow2")
    words = ["qemu-io", *(["-r"] if readonly else []), str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdin
        assert qemu.stdout
        qemu.stdin.write("length\n")
        qemu.stdin.flush()
        while "MiB" not in qemu.stdout.readline():
            pass
        with pytest.raises(BlockError, match="in use"):
            opened(path)
        if readonly:
            opened(path, writing=False).close()
        qemu.communicate("quit\n")
    opened(path).close()


def test_fill_zeroes_fills_all() -> None:
    buffer = bytearray(b"x" * ((1 << 20) + 5))
    fill_zeroes(memoryview(buffer))
    assert not any(buffer)
