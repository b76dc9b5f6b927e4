"""The kernel calls that ``os`` lacks, on real files, and sysfs on a made-up tree."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from iscsid_backends import linux

from iscsid.plugin import Content

DATA, HOLE = Content.DATA, Content.HOLE | Content.ZERO
MIB = 1 << 20


@pytest.fixture
def fd(disk_path: Path) -> Iterator[int]:
    fd = os.open(disk_path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 4 * MIB)
    yield fd
    os.close(fd)


def test_punched_hole_reads_as_zeros_and_frees_space(fd: int) -> None:
    os.pwrite(fd, b"x" * MIB, 0)
    os.fsync(fd)
    before = os.fstat(fd).st_blocks
    linux.punch_hole(fd, 4096, 512 << 10)
    assert os.pread(fd, MIB, 0) == b"x" * 4096 + bytes(512 << 10) + b"x" * (MIB - 4096 - (512 << 10))
    assert os.fstat(fd).st_blocks < before
    assert os.fstat(fd).st_size == 4 * MIB


def test_punched_hole_is_exact_to_the_byte(fd: int) -> None:
    os.pwrite(fd, b"x" * 16384, 0)
    linux.punch_hole(fd, 513, 8000)
    assert os.pread(fd, 16384, 0) == b"x" * 513 + bytes(8000) + b"x" * (16384 - 8513)


def test_zero_range_keeps_the_space(fd: int) -> None:
    os.pwrite(fd, b"x" * MIB, 0)
    os.fsync(fd)
    before = os.fstat(fd).st_blocks
    try:
        linux.zero_range(fd, 4096, 8192)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP
        pytest.skip("needs a file system with FALLOC_FL_ZERO_RANGE")
    assert os.pread(fd, 12288, 4096) == bytes(8192) + b"x" * 4096
    assert os.fstat(fd).st_blocks >= before


def test_fallocate_of_a_bad_descriptor_has_its_errno() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as caught:
        linux.punch_hole(-1, 0, 4096)
    assert caught.value.errno == errno.EBADF


def test_interrupted_fallocate_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [-1, -1, 0]
    monkeypatch.setattr(linux, "_fallocate", lambda *arguments: answers.pop(0))
    monkeypatch.setattr(linux.ctypes, "get_errno", lambda: errno.EINTR)
    linux.fallocate(3, 0, 0, 4096)
    assert not answers


def test_file_system_is_told(fd: int, shm_path: Path) -> None:
    assert linux.file_system(fd) not in linux.IN_MEMORY
    shm = os.open(shm_path, os.O_RDWR | os.O_CREAT)
    assert linux.file_system(shm) == linux.TMPFS_MAGIC
    os.close(shm)


def test_file_system_of_a_bad_descriptor_has_its_errno() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        linux.file_system(-1)


def test_extents_alternate(fd: int) -> None:
    os.pwrite(fd, b"x" * 65536, MIB)
    os.pwrite(fd, b"x" * 65536, 3 * MIB)
    assert [tuple(extent) for extent in linux.extents(fd, 0, 4 * MIB)] == [
        (0, MIB, HOLE),
        (MIB, 65536, DATA),
        (MIB + 65536, 2 * MIB - 65536, HOLE),
        (3 * MIB, 65536, DATA),
        (3 * MIB + 65536, MIB - 65536, HOLE),
    ]


def test_extents_stay_inside_the_range(fd: int) -> None:
    os.pwrite(fd, b"x" * 65536, MIB)
    assert list(linux.extents(fd, MIB + 4096, 8192)) == [(MIB + 4096, 8192, DATA)]
    assert list(linux.extents(fd, 2 * MIB, 8192)) == [(2 * MIB, 8192, HOLE)]


def test_extents_behind_the_end_are_a_hole(fd: int) -> None:
    assert list(linux.extents(fd, 8 * MIB, MIB)) == [(8 * MIB, MIB, HOLE)]


def test_extents_survive_a_file_that_is_cut_meanwhile(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def lseek(fd: int, offset: int, whence: int) -> int:
        if whence == os.SEEK_DATA:
            return offset
        raise OSError(errno.ENXIO, "cut")

    monkeypatch.setattr(linux.os, "lseek", lseek)
    assert list(linux.extents(fd, 0, MIB)) == [(0, MIB, DATA)]


@pytest.mark.parametrize("whence", [os.SEEK_DATA, os.SEEK_HOLE])
def test_extents_pass_a_read_error_on(fd: int, monkeypatch: pytest.MonkeyPatch, whence: int) -> None:
    def lseek(fd: int, offset: int, how: int) -> int:
        if how == whence:
            raise OSError(errno.EIO, "bad sector")
        return offset

    monkeypatch.setattr(linux.os, "lseek", lseek)
    with pytest.raises(OSError, match="bad sector"):
        list(linux.extents(fd, 0, MIB))


# sysfs.


def tree(root: Path, files: dict[str, str]) -> str:
    """A sysfs with disk 8:0 and its partition 8:1, as the kernel lays them out."""
    disk = root / "devices" / "sda"
    for name, text in files.items():
        path = disk / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (disk / "sda1").mkdir(parents=True, exist_ok=True)
    links = root / "dev" / "block"
    links.mkdir(parents=True)
    (links / "8:0").symlink_to(disk)
    (links / "8:1").symlink_to(disk / "sda1")
    return str(root)


QUEUE = {
    "queue/discard_max_bytes": "2147450880",
    "queue/discard_granularity": "4096",
    "queue/write_cache": "write through",
    "discard_alignment": "512",
    "sda1/discard_alignment": "1024",
}


def test_queue_facts_of_a_disk(tmp_path: Path) -> None:
    facts = linux.queue_facts(os.makedev(8, 0), tree(tmp_path, QUEUE))
    assert facts == linux.QueueFacts(2147450880, 4096, 512, False)


def test_queue_facts_of_a_partition_are_its_disks(tmp_path: Path) -> None:
    facts = linux.queue_facts(os.makedev(8, 1), tree(tmp_path, QUEUE))
    assert facts == linux.QueueFacts(2147450880, 4096, 1024, False)


@pytest.mark.parametrize("text", ["write back", "something new"])
def test_write_cache_that_is_not_written_through_is_volatile(tmp_path: Path, text: str) -> None:
    root = tree(tmp_path, {**QUEUE, "queue/write_cache": text})
    assert linux.queue_facts(os.makedev(8, 0), root).write_cache


def test_queue_that_cannot_be_read_promises_nothing(tmp_path: Path) -> None:
    assert linux.queue_facts(os.makedev(8, 0), str(tmp_path)) == linux.QueueFacts(0, 0, 0, True)


def test_queue_fact_that_is_no_number_promises_nothing(tmp_path: Path) -> None:
    root = tree(tmp_path, {**QUEUE, "queue/discard_max_bytes": "many"})
    assert linux.queue_facts(os.makedev(8, 0), root).discard_max == 0


# Who uses a device.

MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
31 27 8:1 /sub /srv/with\040blank rw shared:1 - ext4 /dev/sda1 rw
32 27 0:44 / /mnt rw - btrfs /nowhere/sda1 rw
""".lstrip()


@pytest.fixture
def system(tmp_path: Path) -> str:
    """A disk 8:0 with the partitions 8:1, which is mounted, and 8:2, which is a part of a volume."""
    disk = tmp_path / "sys" / "devices" / "sda"
    links = tmp_path / "sys" / "dev" / "block"
    links.mkdir(parents=True)
    for number, folder in enumerate((disk, disk / "sda1", disk / "sda2")):
        (folder / "holders").mkdir(parents=True)
        (folder / "dev").write_text(f"8:{number}\n")
        (links / f"8:{number}").symlink_to(folder)
        if number:
            (folder / "partition").write_text(f"{number}\n")
    (disk / "sda2" / "holders" / "dm-0").mkdir()
    process = tmp_path / "proc" / "self"
    process.mkdir(parents=True)
    (process / "mountinfo").write_text(MOUNTS)
    (process.parent / "swaps").write_text("Filename Type Size Used Priority\n/nowhere/sda2 partition 1 0 -2\n")
    return str(tmp_path)


MOUNTED, HELD = "/dev/sda1 is mounted on /srv/with blank", "/dev/sda2 is a part of dm-0"


@pytest.mark.parametrize(("minor", "users"), [(0, [MOUNTED, HELD]), (1, [MOUNTED]), (2, [HELD]), (9, [])])
def test_users_of_a_device_are_those_of_its_partitions_too(system: str, minor: int, users: list[str]) -> None:
    assert linux.users_of(os.makedev(8, minor), system) == users


def test_users_are_found_by_the_source_of_a_mount_and_of_swap(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"/nowhere/sda1": "8:1", "/nowhere/sda2": "8:2"}
    monkeypatch.setattr(linux, "_number", lambda path: numbers.get(path, ""))
    users = linux.users_of(os.makedev(8, 0), system)
    assert users == [MOUNTED, "/dev/sda1 is mounted on /mnt", HELD, "/dev/sda2 is swapped to"]


def test_system_that_tells_nothing_has_no_users(tmp_path: Path) -> None:
    assert linux.users_of(os.makedev(8, 0), str(tmp_path)) == []


# Block devices.


@pytest.mark.judge("losetup")
@pytest.mark.parametrize("sector", [512, 4096])
def test_block_geometry_is_that_of_the_loop_device(loops: Any, sector: int) -> None:
    fd = os.open(loops.attach(4 * MIB, sector=sector), os.O_RDONLY)
    facts = linux.block_geometry(fd)
    os.close(fd)
    assert (facts.size, facts.logical_block_size, facts.readonly) == (4 * MIB, sector, False)
    assert facts.physical_block_size >= sector


@pytest.mark.judge("losetup")
def test_block_geometry_tells_write_protection(loops: Any) -> None:
    fd = os.open(loops.attach(MIB, readonly=True), os.O_RDONLY)
    assert linux.block_geometry(fd).readonly
    os.close(fd)


def test_block_geometry_of_a_file_has_an_errno(fd: int) -> None:
    with pytest.raises(OSError, match="Inappropriate ioctl"):
        linux.block_geometry(fd)


@pytest.mark.judge("losetup")
def test_block_zero_out_and_discard_zero_a_loop_device(loops: Any) -> None:
    fd = os.open(loops.attach(MIB), os.O_RDWR)
    for call in (linux.block_zero_out, linux.block_discard):
        os.pwrite(fd, b"x" * 65536, 0)
        os.fsync(fd)
        call(fd, 4096, 8192)
        assert os.pread(fd, 65536, 0) == b"x" * 4096 + bytes(8192) + b"x" * 53248
    os.close(fd)
