"""Opening: backing files and data files where they may lie, chains, loops, and what has to be done before a write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from iscsid_backends.qcow2_chain import Rules, open_image, resolve
from iscsid_backends.qcow2_format import BITMAPS, CORRUPT, DIRTY
from qcow2_kit import assert_same, assert_sound, content, make, opened, put, qemu, qemu_io, qemu_make

from iscsid.errors import BlockError, Fault

judge = pytest.mark.judge("qemu-img")


def overlay(path: Path, base: str, kind: str = "qcow2") -> Path:
    return make(path, size=1 << 20, backing_file=base, backing_format=kind)


def patch(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@judge
def test_chain_shows_the_uppermost_data_of_each_cluster(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(b"0" * (1 << 20))
    model = bytearray(b"0" * (1 << 20))
    for level in range(1, 5):
        path = overlay(tmp_path / str(level), str(level - 1), "raw" if level == 1 else "qcow2")
        image = opened(path)
        put(image, str(level).encode() * 65536, level * 100000 // 512 * 512)
        start = level * 100000 // 512 * 512
        model[start : start + 65536] = str(level).encode() * 65536
        image.close()
    image = opened(path, writing=False)
    assert content(image) == model
    image.close()
    assert_same(path, bytes(model), tmp_path)


def test_backing_file_is_held_against_writers(tmp_path: Path) -> None:
    make(tmp_path / "base", size=1 << 20)
    image = opened(overlay(tmp_path / "top", "base"))
    with pytest.raises(BlockError, match="in use"):
        opened(tmp_path / "base")
    opened(tmp_path / "base", writing=False).close()
    image.close()
    opened(tmp_path / "base").close()


def test_chain_that_is_a_loop_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "x", size=1 << 20)
    overlay(tmp_path / "b", "x")
    overlay(tmp_path / "a", "b")
    (tmp_path / "x").unlink()
    (tmp_path / "x").symlink_to("a")
    with pytest.raises(BlockError, match="a loop"):
        opened(tmp_path / "a", writing=False)


def test_image_that_backs_itself_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "x", size=1 << 20)
    overlay(tmp_path / "a", "x")
    (tmp_path / "x").unlink()
    os.link(tmp_path / "a", tmp_path / "x")
    with pytest.raises(BlockError, match=r"a loop|in use"):
        opened(tmp_path / "a")


def test_chain_that_is_too_long_is_refused_without_leaving_files_open(tmp_path: Path) -> None:
    make(tmp_path / "0", size=1 << 20)
    for level in range(1, 6):
        overlay(tmp_path / str(level), str(level - 1))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("iscsid_backends.qcow2_chain.MAX_DEPTH", 3)
        with pytest.raises(BlockError, match="longer than 3"):
            opened(tmp_path / "5", writing=False)
    assert len(os.listdir("/proc/self/fd")) == before
    opened(tmp_path / "5", writing=False).close()


def test_format_of_a_backing_file_is_never_guessed(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"b" * (1 << 20))
    path = overlay(tmp_path / "top", "base", "raw")
    raw = path.read_bytes()
    at = raw.index(bytes.fromhex("E2792ACA"))
    patch(path, at, bytes.fromhex("E2792ACB"))
    with pytest.raises(BlockError, match="does not record the format"):
        opened(path)
    patch(path, at, raw[at : at + 4])
    patch(path, at + 8, b"vdi")
    with pytest.raises(BlockError, match="format 'vdi'") as caught:
        opened(path)
    assert caught.value.fault is Fault.UNSUPPORTED


def test_files_outside_the_folder_are_opened_only_where_allowed(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "base").write_bytes(b"b" * (1 << 20))
    (inside / "link").symlink_to(outside / "base")
    (inside / "base").write_bytes(b"b" * (1 << 20))
    for number, name in enumerate(("../outside/base", str(outside / "base"), "link")):
        path = overlay(inside / f"top{number}", "base", "raw")
        image = open_image(str(path), Rules(), writing=False)
        image.header.backing = name
        image.close()
        with pytest.raises(BlockError, match="backing_dir"):
            resolve(str(path), name, Rules(), "backing file")
        assert resolve(str(path), name, Rules(backing_dir=str(tmp_path)), "backing file") == str(outside / "base")
    assert resolve(str(path), "sub/../base", Rules(), "backing file") == str(inside / "base")
    assert resolve(str(path), "file:base", Rules(), "backing file") == str(inside / "base")


@pytest.mark.parametrize("name", ["nbd://host/x", "json:{}", "http://x/y", "rbd:pool/x"])
def test_name_of_another_protocol_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BlockError, match="no plain file name"):
        resolve(str(tmp_path / "x"), name, Rules(), "backing file")


def test_missing_backing_file_is_told_by_name(tmp_path: Path) -> None:
    make(tmp_path / "base", size=1 << 20)
    path = overlay(tmp_path / "top", "base")
    (tmp_path / "base").unlink()
    with pytest.raises(FileNotFoundError, match="base"):
        opened(path)


@judge
def test_dirty_image_is_repaired_before_it_is_written(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", lazy_refcounts=True)
    image = opened(path)
    put(image, b"x" * 300000 + bytes(212), 0)
    image.checkpoint()
    image.storage.close()  # as a kill does
    again = opened(path, writing=False)
    assert again.header.incompatible & DIRTY
    assert content(again)[:300000] == b"x" * 300000
    again.close()
    image = opened(path)
    assert not image.header.incompatible & DIRTY
    put(image, b"y" * 65536, 1 << 20)
    image.close()
    assert_sound(path)


@judge
def test_image_that_qemu_left_dirty_is_repaired(tmp_path: Path) -> None:
    path = qemu_make(tmp_path / "disk.qcow2", 1 << 20, "lazy_refcounts=on")
    qemu_io(path, "write -P 7 0 512k")
    patch(path, 79, b"\1")
    image = opened(path)
    assert content(image) == b"\7" * (512 << 10) + bytes(512 << 10)
    image.close()
    assert_sound(path)


def test_corrupt_image_is_read_and_not_written(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    patch(path, 79, bytes([CORRUPT]))
    with pytest.raises(BlockError, match=r"disk\.qcow2: is marked as corrupt") as caught:
        opened(path)
    assert caught.value.fault is Fault.READ_ONLY
    opened(path, writing=False).close()


@judge
def test_autoclear_bits_are_cleared_by_the_first_opening_for_writing(tmp_path: Path) -> None:
    path = qemu_make(tmp_path / "disk.qcow2", 1 << 20)
    qemu("bitmap", "--add", path, "b0")
    image = opened(path, writing=False)
    assert image.header.autoclear & BITMAPS
    image.close()
    patch(path, 88, b"\x40")
    image = opened(path)
    assert image.header.autoclear == 0
    image.close()
    assert path.read_bytes()[88:96] == bytes(8)


@judge
def test_encrypted_image_is_refused(tmp_path: Path) -> None:
    options = "encrypt.format=aes,encrypt.key-secret=s"
    secret = ["--object", "secret,id=s,data=abc"]
    qemu("create", "-q", *secret, "-f", "qcow2", "-o", options, tmp_path / "disk.qcow2", "1M")
    with pytest.raises(BlockError, match=r"encrypted .AES.") as caught:
        opened(tmp_path / "disk.qcow2", writing=False)
    assert caught.value.fault is Fault.UNSUPPORTED
