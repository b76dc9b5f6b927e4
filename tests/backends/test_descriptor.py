"""Devices behind a descriptor, with system calls that fail, stop short, or would wait."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from iscsid_backends import descriptor
from iscsid_backends.descriptor import DescriptorDevice, can_read_nowait, reopen

from iscsid.plugin import BlockError, Fault, Mode, Support

SIZE = 65536


@pytest.fixture
def make(disk_path: Path) -> Iterator[Callable[..., DescriptorDevice]]:
    made: list[DescriptorDevice] = []

    def make(**arguments: Any) -> DescriptorDevice:
        fd = os.open(disk_path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, SIZE)
        device = DescriptorDevice(fd, "disk", **{"waits": True, "direct": False, **arguments})
        device.size = SIZE
        made.append(device)
        return device

    yield make
    for device in made:
        device.close()


Make = Callable[..., DescriptorDevice]
BOTH = pytest.mark.parametrize("waits", [True, False])


def read(device: DescriptorDevice, offset: int, length: int) -> bytes:
    buffer = memoryview(bytearray(length))
    device.read_into(buffer, offset)
    return bytes(buffer)


@BOTH
def test_short_reads_are_continued(make: Make, monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset, *flags: real(fd, (views[0][:1000],), offset, *flags))
    device = make(waits=waits)
    data = os.urandom(8192)
    device.write(memoryview(data), 4096)
    assert read(device, 4096, 8192) == data


@BOTH
def test_short_writes_are_continued(make: Make, monkeypatch: pytest.MonkeyPatch, waits: bool) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:1000], offset))
    device = make(waits=waits)
    data = os.urandom(8192)
    device.write(memoryview(data), 4096)
    assert read(device, 4096, 8192) == data
    device.write_nowait(memoryview(data[::-1]), 8192)
    assert read(device, 8192, 8192) == data[::-1]


def test_short_fua_writes_are_continued(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    real, flags_seen = os.pwritev, set()

    def pwritev(fd: int, views: Any, offset: int, flags: int) -> int:
        flags_seen.add(flags)
        return real(fd, (views[0][:1000],), offset, flags)

    monkeypatch.setattr(os, "pwritev", pwritev)
    device = make()
    data = os.urandom(8192)
    device.write_fua(memoryview(data), 4096)
    assert read(device, 4096, 8192) == data
    assert flags_seen == {os.RWF_DSYNC}


def test_write_that_makes_no_progress_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: 0)
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset, flags: 0)
    device = make()
    for write in (device.write, device.write_fua):
        with pytest.raises(BlockError) as caught:
            write(memoryview(bytes(512)), 0)
        assert caught.value.fault is Fault.WRITE_ERROR


@BOTH
def test_read_of_a_file_that_was_cut_is_a_read_error(make: Make, disk_path: Path, waits: bool) -> None:
    device = make(waits=waits)
    os.truncate(disk_path, 1000)
    for offset in (512, 32768):
        with pytest.raises(BlockError) as caught:
            read(device, offset, 1024)
        assert caught.value.fault is Fault.READ_ERROR
        assert "disk ends at" in str(caught.value)


def test_nowait_read_of_a_file_that_was_cut_is_left_to_the_pool(make: Make, disk_path: Path) -> None:
    device = make()
    if device.capabilities().read_nowait is Support.NONE:
        pytest.skip("needs a file system with RWF_NOWAIT")
    os.truncate(disk_path, 512)
    with pytest.raises(BlockingIOError):
        device.read_nowait(memoryview(bytearray(1024)), 0)


def test_nowait_read_of_data_that_is_not_cached_would_block(make: Make, disk_path: Path) -> None:
    device = make()
    if device.capabilities().read_nowait is Support.NONE:
        pytest.skip("needs a file system with RWF_NOWAIT")
    data = os.urandom(SIZE)
    device.write(memoryview(data), 0)
    device.flush()
    fd = os.open(disk_path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, SIZE, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    buffer = memoryview(bytearray(4096))
    try:
        device.read_nowait(buffer, 32768)
    except BlockingIOError:
        device.read_into(buffer, 32768)
        device.read_nowait(buffer, 32768)  # now it is
    assert buffer == data[32768 : 32768 + 4096]


@pytest.mark.parametrize(("code", "answer"), [(errno.EAGAIN, True), (errno.EOPNOTSUPP, False), (errno.EINVAL, False)])
def test_nowait_support_is_seen_in_the_answer(monkeypatch: pytest.MonkeyPatch, code: int, answer: bool) -> None:
    def preadv(*arguments: Any) -> int:
        raise OSError(code, "no")

    monkeypatch.setattr(os, "preadv", preadv)
    assert can_read_nowait(3) is answer


def test_file_system_without_nowait_has_no_nowait_read(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptor, "can_read_nowait", lambda fd: False)
    device = make()
    assert device.capabilities().read_nowait is Support.NONE
    assert device.capabilities().write_nowait is Support.NATIVE
    with pytest.raises(BlockingIOError):
        device.read_nowait(memoryview(bytearray(512)), 0)


def test_direct_device_never_answers_at_once(make: Make) -> None:
    device = make(direct=True)
    assert device.mode is Mode.BLOCKING
    can = device.capabilities()
    assert {can.read_nowait, can.write_nowait, can.prefetch} == {Support.NONE}
    with pytest.raises(BlockingIOError):
        device.write_nowait(memoryview(bytes(512)), 0)


def test_device_in_memory_is_inline_and_needs_no_flush(make: Make) -> None:
    device = make(waits=False)
    assert device.mode is Mode.INLINE
    assert (device.capabilities().flush, device.capabilities().fua) == (Support.NONE, Support.NONE)


# Durability.


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_fua_without_dsync_is_a_write_and_a_flush(make: Make, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    tried, synced = [], []

    def pwritev(*arguments: Any) -> int:
        tried.append(arguments)
        raise OSError(code, "no")

    monkeypatch.setattr(os, "pwritev", pwritev)
    monkeypatch.setattr(os, "fdatasync", synced.append)
    device = make()
    for _ in range(2):
        device.write_fua(memoryview(b"x" * 512), 512)
    assert read(device, 512, 512) == b"x" * 512
    assert len(tried) == 1
    assert len(synced) == 2


def test_fua_is_not_by_dsync_where_it_is_not_honoured(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    monkeypatch.delattr(os, "pwritev")
    make(dsync=False).write_fua(memoryview(b"x" * 512), 512)
    assert len(synced) == 1


def failing_dsync(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> int:
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(os, "pwritev", fail)


def test_fua_that_has_heard_of_a_failed_write_back_fails_and_so_does_every_flush(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has told this open file now, and would not tell the flush again that what came before is lost."""
    device = make()
    failing_dsync(monkeypatch)
    with pytest.raises(OSError, match="bad sector"):
        device.write_fua(memoryview(b"x" * 512), 0)
    for _ in range(2):
        with pytest.raises(BlockError, match="an earlier flush failed"):
            device.flush()


def test_fua_that_is_refused_before_the_medium_leaves_the_flush_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    device = make()
    monkeypatch.setattr(os, "pwritev", full)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="full"):
        device.write_fua(memoryview(b"x" * 512), 0)
    device.flush()


def test_flush_reaches_the_disk(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    device = make()
    device.flush()
    assert synced == [device._fd]


def test_flush_after_a_failed_one_fails_too(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel reports a failed write-back once; after that, fdatasync lies."""
    answers = [OSError(errno.EIO, "write-back failed"), None]

    def fdatasync(fd: int) -> None:
        answer = answers.pop(0)
        if answer:
            raise answer

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    device = make()
    with pytest.raises(OSError, match="write-back failed"):
        device.flush()
    with pytest.raises(BlockError, match="write-back failed") as caught:
        device.flush()
    assert caught.value.fault is Fault.WRITE_ERROR
    assert len(answers) == 1


# Opening and closing.


def test_reopened_file_is_the_claimed_one_whatever_its_name(disk_path: Path) -> None:
    disk_path.write_bytes(b"first")
    claim = os.open(disk_path, os.O_RDONLY)
    disk_path.rename(disk_path.with_suffix(".old"))
    disk_path.write_bytes(b"other")
    fd = reopen(claim, str(disk_path), os.O_RDWR)
    assert os.pread(fd, 100, 0) == b"first"
    assert os.pwrite(fd, b"F", 0) == 1
    os.close(fd)
    os.close(claim)
    fd = reopen(None, str(disk_path), os.O_RDONLY)
    assert os.pread(fd, 100, 0) == b"other"
    os.close(fd)
    disk_path.with_suffix(".old").unlink()


def test_reopened_file_is_an_open_file_of_its_own(disk_path: Path) -> None:
    disk_path.write_bytes(b"0123456789")
    claim = os.open(disk_path, os.O_RDONLY)
    fd = reopen(claim, str(disk_path), os.O_RDONLY)
    os.lseek(claim, 5, os.SEEK_SET)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 0
    os.close(fd)
    os.close(claim)


def test_closed_twice_closes_no_stranger(make: Make) -> None:
    device = make()
    number = device._fd
    device.close()
    other = os.open("/dev/null", os.O_RDONLY)
    assert other == number
    device.close()
    os.close(other)
