"""The file back end: what it makes, grows, refuses, and finds out about the file system."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from iscsid_backends import file, linux
from iscsid_backends.claims import lock

from iscsid.block.guard import Guarded
from iscsid.errors import PluginError
from iscsid.plugin import BlockError, Fault, Mode, Support
from iscsid.plugin.manager import Plugins

MIB = 1 << 20


def options(path: Path, **more: Any) -> dict[str, Any]:
    return {"path": str(path), **more}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.img"


def prepare_and_release(plugins: Plugins, given: dict[str, Any]) -> None:
    plugins.release("file", plugins.prepare("file", given))


# Making and growing.


def test_missing_file_with_size_is_made_sparse_and_private(plugins: Plugins, path: Path) -> None:
    prepare_and_release(plugins, options(path, size="64 MiB"))
    facts = path.stat()
    assert facts.st_size == 64 * MIB
    assert facts.st_blocks == 0
    assert stat.S_IMODE(facts.st_mode) == 0o600


def test_missing_file_without_size_is_an_error(plugins: Plugins, path: Path) -> None:
    assert plugins.validate("file", options(path)) == [f"path: {path} does not exist; size would make it"]
    with pytest.raises(PluginError, match="No such file"):
        plugins.prepare("file", options(path))
    assert not path.exists()


def test_smaller_file_is_grown_and_keeps_its_data(plugins: Plugins, path: Path) -> None:
    path.write_bytes(b"x" * 4096)
    assert plugins.validate("file", options(path, size=MIB)) == []
    prepare_and_release(plugins, options(path, size=MIB))
    assert path.read_bytes() == b"x" * 4096 + bytes(MIB - 4096)


def test_larger_file_is_never_cut(plugins: Plugins, path: Path) -> None:
    path.write_bytes(b"x" * 8192)
    given = options(path, size=4096)
    assert plugins.validate("file", given) == [f"size: {path} has 8192 bytes, more than 4096: it is never cut"]
    with pytest.raises(PluginError, match="never cut"):
        plugins.prepare("file", given)
    assert path.stat().st_size == 8192


def test_file_of_its_size_is_left_alone(plugins: Plugins, path: Path) -> None:
    path.write_bytes(b"x" * 4096)
    before = path.stat().st_mtime_ns
    prepare_and_release(plugins, options(path, size=4096))
    prepare_and_release(plugins, options(path))
    assert path.stat().st_mtime_ns == before


def test_create_makes_the_file(plugins: Plugins, path: Path) -> None:
    plugins.create("file", options(path, size=MIB))
    assert path.stat().st_size == MIB


def test_failed_prepare_leaks_no_descriptor(plugins: Plugins, path: Path) -> None:
    path.write_bytes(b"x" * 8192)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(PluginError):
        plugins.prepare("file", options(path, size=4096))
    with pytest.raises(PluginError):
        plugins.open("file", options(path.parent))
    assert os.listdir("/proc/self/fd") == before


# Refusing.


def test_validate_creates_nothing(plugins: Plugins, path: Path) -> None:
    assert plugins.validate("file", options(path, size=MIB)) == []
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("none/disk.img", {"size": 4096}, "there is no folder"),
        (".", {}, "is not a regular file"),
        ("/dev/null", {}, "is not a regular file"),
        ("x" * 300, {"size": 4096}, "File name too long"),
    ],
)
def test_path_that_is_no_file_is_refused(
    plugins: Plugins, tmp_path: Path, name: str, more: dict[str, Any], words: str
) -> None:
    problems = plugins.validate("file", options(tmp_path / name, **more))
    assert len(problems) == 1
    assert problems[0].startswith("path: ")
    assert words in problems[0]
    with pytest.raises(PluginError):
        plugins.prepare("file", options(tmp_path / name, **more))


def test_empty_file_without_size_is_refused(plugins: Plugins, path: Path) -> None:
    path.touch()
    assert "not even one block" in plugins.validate("file", options(path))[0]


def test_block_device_is_sent_to_its_back_end() -> None:
    facts = os.stat_result((stat.S_IFBLK | 0o600, *range(9)))
    with pytest.raises(BlockError, match="use the back end block"):
        file._must_be_regular("/dev/sda", facts)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "path: missing"),
        ({"path": ""}, "not a path"),
        ({"path": "x", "size": 100}, "below 512"),
        ({"path": "x", "size": "huge"}, "not a size"),
        ({"path": "x", "direct": "yes"}, "neither true nor false"),
        ({"path": "x", "sise": 1}, 'did you mean "size"?'),
    ],
)
def test_options_are_checked(plugins: Plugins, given: dict[str, Any], words: str) -> None:
    assert any(words in problem for problem in plugins.validate("file", given))


def test_missing_file_is_named_at_open(plugins: Plugins, path: Path) -> None:
    with pytest.raises(PluginError, match=f"plugin file: {path}: No such file"):
        plugins.open("file", options(path))


# Opening.


def test_workers_open_what_the_supervisor_opened(plugins: Plugins, path: Path) -> None:
    """A worker that is replaced after somebody moved the file must not serve another one."""
    prepared = plugins.prepare("file", options(path, size=MIB))
    first = Guarded(plugins.open("file", prepared))
    first.write(memoryview(b"x" * 512), 0)
    path.rename(path.with_suffix(".moved"))
    path.write_bytes(bytes(MIB))
    second = Guarded(plugins.open("file", prepared))
    buffer = bytearray(512)
    second.read_into(memoryview(buffer), 0)
    assert buffer == b"x" * 512
    first.close()
    second.close()
    plugins.release("file", prepared)


def test_readonly_role_opens_without_the_right_to_write(plugins: Plugins, path: Path) -> None:
    path.write_bytes(bytes(4096))
    device: Any = plugins.open("file", options(path), "readonly")
    assert device.readonly
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(device._fd, b"x", 0)
    device.close()


def test_file_that_may_not_be_written_is_prepared_for_reading(
    plugins: Plugins, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(bytes(4096))
    real = os.open

    def refuse(name: str, flags: int, *mode: int) -> int:
        if flags & os.O_RDWR:
            raise OSError(errno.EROFS, "Read-only file system", name)
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    prepared = plugins.prepare("file", options(path, size=4096))
    plugins.open("file", prepared, "readonly").close()
    with pytest.raises(PluginError, match="Read-only file system"):
        plugins.open("file", prepared)
    plugins.release("file", prepared)


def test_tail_of_an_odd_file_is_out_of_reach(plugins: Plugins, path: Path) -> None:
    path.write_bytes(b"x" * 5000)
    guard = Guarded(plugins.open("file", options(path)))
    assert guard.size == 4608
    guard.close()


def test_opening_changes_nothing(plugins: Plugins, path: Path) -> None:
    path.write_bytes(b"x" * 5000)
    before = path.stat().st_blocks
    plugins.open("file", options(path)).close()
    assert (path.stat().st_size, path.stat().st_blocks) == (5000, before)


# What the file system can do.


def test_file_on_tmpfs_is_memory(plugins: Plugins, shm_path: Path) -> None:
    shm_path.write_bytes(bytes(4096))
    device = plugins.open("file", options(shm_path))
    assert device.mode is Mode.INLINE
    assert device.capabilities().flush is Support.NONE
    device.close()


def test_file_on_a_disk_is_not(plugins: Plugins, disk_path: Path) -> None:
    disk_path.write_bytes(bytes(4096))
    device = plugins.open("file", options(disk_path))
    assert device.mode is Mode.BLOCKING
    assert device.capabilities().flush is Support.NATIVE
    device.close()


def test_file_system_without_holes_has_no_discard(
    plugins: Plugins, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(linux, "punch_hole", refuse)
    monkeypatch.setattr(linux, "zero_range", refuse)
    path.write_bytes(b"x" * 8192)
    guard = Guarded(plugins.open("file", options(path)))
    assert guard.can.discard is Support.NONE
    assert not guard.discard_zeroes
    guard.write_zeroes(512, 1024, may_unmap=True)
    assert path.read_bytes() == b"x" * 512 + bytes(1024) + b"x" * 6656
    guard.close()


def test_zeroes_that_must_stay_allocated_punch_nothing(
    plugins: Plugins, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(b"x" * 8192)
    guard = Guarded(plugins.open("file", options(path)))
    monkeypatch.delattr(linux, "punch_hole")
    guard.write_zeroes(0, 4096)
    assert path.read_bytes() == bytes(4096) + b"x" * 4096
    guard.close()


def test_discard_gives_the_space_back(plugins: Plugins, disk_path: Path) -> None:
    disk_path.write_bytes(b"x" * MIB)
    guard = Guarded(plugins.open("file", options(disk_path)))
    guard.flush()
    before = disk_path.stat().st_blocks
    guard.discard(0, MIB)
    guard.flush()
    assert disk_path.stat().st_blocks < before
    guard.close()


def test_fuse_file_is_flushed_for_fua(plugins: Plugins, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "file_system", lambda fd: linux.FUSE_SUPER_MAGIC)
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    path.write_bytes(bytes(4096))
    guard = Guarded(plugins.open("file", options(path)))
    guard.write(memoryview(b"x" * 512), 0, fua=True)
    assert len(synced) == 1
    guard.close()


@pytest.mark.parametrize("block_size", [512, 4096])
def test_physical_block_is_the_logical_one_and_the_file_systems_block_a_hint(
    plugins: Plugins, path: Path, block_size: int
) -> None:
    path.write_bytes(bytes(65536))
    device = plugins.open("file", options(path))
    guard = Guarded(device, block_size=block_size)
    assert guard.physical_block_size == block_size
    assert guard.minimum_io == guard.discard_granularity == os.stat(path).st_blksize
    device.close()
    device = plugins.open("file", options(path, physical_block_size=8192))
    assert Guarded(device, block_size=block_size).physical_block_size == 8192
    device.close()


def test_direct_file_tells_its_alignment(plugins: Plugins, disk_path: Path) -> None:
    disk_path.write_bytes(bytes(65536))
    device = plugins.open("file", options(disk_path, direct=True))
    assert device.block_size == device.alignment
    assert device.alignment in (512, 4096)
    device.close()


@pytest.mark.parametrize(("code", "answer"), [(errno.EINVAL, 4096), (errno.EIO, None)])
def test_direct_alignment_is_a_page_where_sectors_are_refused(
    monkeypatch: pytest.MonkeyPatch, code: int, answer: int | None
) -> None:
    def preadv(*arguments: Any) -> int:
        raise OSError(code, "refused")

    monkeypatch.setattr(os, "preadv", preadv)
    if answer:
        assert file.direct_alignment(3) == answer
    else:
        with pytest.raises(OSError, match="refused"):
            file.direct_alignment(3)


# Who has it.


def other_has(path: Path, *, writes: bool) -> int:
    """A descriptor with the locks of another program."""
    fd = os.open(path, os.O_RDWR)
    lock(fd, str(path), writes=writes)
    return fd


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("role", ["worker", "readonly"])
def test_file_that_another_program_has_is_refused_unless_both_only_read(
    plugins: Plugins, path: Path, role: str, writes: bool
) -> None:
    path.write_bytes(bytes(MIB))
    fd = other_has(path, writes=writes)
    try:
        if writes or role == "worker":
            with pytest.raises(PluginError, match="is in use by another") as caught:
                plugins.prepare("file", options(path), role)
            assert isinstance(caught.value.__cause__, BlockError)
            assert caught.value.__cause__.fault is Fault.BUSY
        else:
            plugins.release("file", plugins.prepare("file", options(path), role))
    finally:
        os.close(fd)
    prepare_and_release(plugins, options(path))


def test_file_is_held_from_prepare_to_release(plugins: Plugins, path: Path) -> None:
    prepared = plugins.prepare("file", options(path, size=MIB))
    with pytest.raises(BlockError, match="is in use"):
        other_has(path, writes=False)
    plugins.open("file", prepared).close()
    with pytest.raises(BlockError, match="is in use"):
        other_has(path, writes=False)
    plugins.release("file", prepared)
    os.close(other_has(path, writes=True))


def test_file_that_is_shared_is_held_against_those_only_who_do_not(plugins: Plugins, path: Path) -> None:
    prepared = plugins.prepare("file", options(path, size=MIB, share=True))
    with pytest.raises(BlockError, match="is in use"):
        other_has(path, writes=True)
    fd = os.open(path, os.O_RDWR)
    lock(fd, str(path), writes=True, share=True)
    plugins.release("file", prepared)
    os.close(fd)


def test_second_claim_of_a_server_grows_what_the_first_has(plugins: Plugins, path: Path) -> None:
    path.write_bytes(bytes(4096))
    first = plugins.prepare("file", options(path), "readonly")
    second = plugins.prepare("file", options(path, size=MIB))
    assert path.stat().st_size == MIB
    plugins.release("file", first)
    with pytest.raises(BlockError, match="is in use"):
        other_has(path, writes=False)
    plugins.release("file", second)


def test_file_that_nobody_has_prepared_is_held_while_it_is_open(plugins: Plugins, path: Path) -> None:
    path.write_bytes(bytes(MIB))
    one, two = plugins.open("file", options(path)), plugins.open("file", options(path))
    one.close()
    with pytest.raises(BlockError, match="is in use"):
        other_has(path, writes=False)
    two.close()
    fd = other_has(path, writes=True)
    with pytest.raises(PluginError, match="is in use"):
        plugins.open("file", options(path))
    os.close(fd)


def test_file_that_was_cut_tells_its_size(plugins: Plugins, path: Path) -> None:
    prepared = plugins.prepare("file", options(path, size=MIB))
    device = plugins.open("file", prepared)
    os.truncate(path, 4096)
    assert (device.size, device.current_size()) == (MIB, 4096)
    device.close()
    plugins.release("file", prepared)
