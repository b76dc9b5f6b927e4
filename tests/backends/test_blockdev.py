"""The block back end on loop devices, of which root can have as many as it likes."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from bad_disk import bad_disk
from iscsid_backends import blockdev, linux

from iscsid.block.guard import Guarded
from iscsid.errors import BlockError, Fault, PluginError
from iscsid.plugin import Support
from iscsid.plugin.manager import Plugins

pytestmark = pytest.mark.judge("losetup")
MIB = 1 << 20


def opened(plugins: Plugins, path: str, **more: Any) -> tuple[dict[str, Any], Guarded]:
    prepared = plugins.prepare("block", {"path": path, **more})
    return prepared, Guarded(plugins.open("block", prepared))


def closed(plugins: Plugins, prepared: dict[str, Any], *guards: Guarded) -> None:
    for guard in guards:
        guard.close()
    plugins.release("block", prepared)


@pytest.mark.parametrize("sector", [512, 4096])
def test_facts_are_those_of_the_device(plugins: Plugins, loops: Any, sector: int) -> None:
    prepared, guard = opened(plugins, loops.attach(8 * MIB, sector=sector))
    assert (guard.size, guard.block_size) == (8 * MIB, sector)
    assert guard.physical_block_size >= sector
    assert not guard.readonly
    closed(plugins, prepared, guard)


def test_smaller_block_than_the_sector_is_refused(plugins: Plugins, loops: Any) -> None:
    prepared, guard = opened(plugins, loops.attach(sector=4096))
    device = plugins.open("block", prepared)
    with pytest.raises(Exception, match="the device has blocks of 4096 bytes"):
        Guarded(device, block_size=512)
    device.close()
    closed(plugins, prepared, guard)


def test_write_protected_device_is_readonly(plugins: Plugins, loops: Any) -> None:
    prepared, guard = opened(plugins, loops.attach(readonly=True))
    assert guard.readonly
    assert guard.can.write is Support.NONE
    closed(plugins, prepared, guard)


def test_readonly_role_is_readonly(plugins: Plugins, loops: Any) -> None:
    path = loops.attach()
    device = plugins.open("block", {"path": path}, "readonly")
    assert device.readonly
    device.close()


# The claim.


def test_device_that_is_in_use_is_refused(plugins: Plugins, loops: Any) -> None:
    path = loops.attach()
    holder = os.open(path, os.O_RDWR | os.O_EXCL)
    with pytest.raises(PluginError, match="is in use: by another program that serves or changes it"):
        plugins.prepare("block", {"path": path})
    os.close(holder)
    plugins.release("block", plugins.prepare("block", {"path": path}))


def test_two_units_of_one_device_share_its_claim_until_the_last_is_released(plugins: Plugins, loops: Any) -> None:
    path = loops.attach()
    first, second = plugins.prepare("block", {"path": path}), plugins.prepare("block", {"path": path})
    for prepared in (first, second):
        with pytest.raises(OSError, match="busy"):
            os.open(path, os.O_RDWR | os.O_EXCL)
        plugins.release("block", prepared)
    os.close(os.open(path, os.O_RDWR | os.O_EXCL))


def test_served_device_cannot_be_taken_by_others(plugins: Plugins, loops: Any) -> None:
    path = loops.attach()
    prepared, guard = opened(plugins, path)
    with pytest.raises(OSError, match="busy"):
        os.open(path, os.O_RDWR | os.O_EXCL)
    closed(plugins, prepared, guard)
    os.close(os.open(path, os.O_RDWR | os.O_EXCL))


@pytest.mark.judge("mkfs.ext4", "mount")
def test_mounted_device_is_refused(plugins: Plugins, loops: Any, tmp_path: Path) -> None:
    path = loops.attach(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", path], check=True)
    point = tmp_path / "a mount point"
    point.mkdir()
    mounted = subprocess.run(["mount", path, str(point)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    try:
        words = f"{path} is in use: {path} is mounted on {point}"
        with pytest.raises(PluginError, match=re.escape(words)):
            plugins.prepare("block", {"path": path})
        assert plugins.validate("block", {"path": path}) == [f"path: {words}"]
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_validate_of_a_served_device_finds_nothing_wrong(plugins: Plugins, loops: Any) -> None:
    path = loops.attach()
    prepared, guard = opened(plugins, path)
    assert plugins.validate("block", {"path": path}) == []
    closed(plugins, prepared, guard)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/dev/null", "is not a block device"),
        ("/dev/no-such-disk", "No such file or directory"),
        ("/etc/passwd", "use the back end file"),
    ],
)
def test_path_that_is_no_block_device_is_refused(plugins: Plugins, path: str, words: str) -> None:
    problems = plugins.validate("block", {"path": path})
    assert len(problems) == 1
    assert words in problems[0]
    for call in (plugins.prepare, plugins.open):
        with pytest.raises(PluginError):
            call("block", {"path": path})


def test_failed_open_leaks_no_descriptor(plugins: Plugins) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(PluginError):
        plugins.open("block", {"path": "/etc/passwd"})
    assert os.listdir("/proc/self/fd") == before


# Zeros and discard behind dirty pages: EBUSY for everybody but the holder of the claim.


@pytest.mark.parametrize("call", ["discard", "write_zeroes", "unmap"])
def test_dirty_pages_do_not_keep_the_range_from_being_changed(plugins: Plugins, loops: Any, call: str) -> None:
    prepared, guard = opened(plugins, loops.attach())
    other = Guarded(plugins.open("block", prepared))
    for turn in range(20):
        other.write(memoryview(b"x" * 65536), 65536 * turn)
        if call == "discard":
            guard.discard(65536 * turn, 65536)
        else:
            guard.write_zeroes(65536 * turn, 65536, call == "unmap")
        buffer = bytearray(65536)
        other.read_into(memoryview(buffer), 65536 * turn)
        assert buffer == bytes(65536)  # a loop device over a sparse file reads zeros after a discard, too
    closed(plugins, prepared, guard, other)


def test_zeroes_without_an_unmapping_command_are_zeroed_out(
    plugins: Plugins, loops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    prepared, guard = opened(plugins, loops.attach())
    monkeypatch.setattr(linux, "punch_hole", refuse)
    guard.write(memoryview(b"x" * 4096), 0)
    guard.write_zeroes(512, 1024, may_unmap=True)
    buffer = bytearray(4096)
    guard.read_into(memoryview(buffer), 0)
    assert buffer == b"x" * 512 + bytes(1024) + b"x" * 2560
    closed(plugins, prepared, guard)


def test_unmapping_that_fails_is_not_tried_otherwise(
    plugins: Plugins, loops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(errno.EIO, "bad sector")

    prepared, guard = opened(plugins, loops.attach())
    monkeypatch.setattr(linux, "punch_hole", fail)
    monkeypatch.delattr(linux, "block_zero_out")
    with pytest.raises(OSError, match="bad sector"):
        guard.write_zeroes(0, 4096, may_unmap=True)
    closed(plugins, prepared, guard)


def test_zeroes_that_must_stay_allocated_are_not_unmapped(
    plugins: Plugins, loops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, guard = opened(plugins, loops.attach())
    monkeypatch.delattr(linux, "punch_hole")
    guard.write_zeroes(0, 4096)
    closed(plugins, prepared, guard)


# Facts from sysfs.

QUEUE = linux.QueueFacts(discard_max=MIB, discard_granularity=4096, discard_alignment=512, write_cache=True)


@pytest.mark.parametrize(
    ("queue", "direct", "discard", "flush"),
    [
        (QUEUE, False, Support.NATIVE, Support.NATIVE),
        (QUEUE._replace(discard_max=0), False, Support.NONE, Support.NATIVE),
        (QUEUE, True, Support.NATIVE, Support.NATIVE),
        (QUEUE._replace(write_cache=False), False, Support.NATIVE, Support.NATIVE),  # our page cache is one
        (QUEUE._replace(write_cache=False), True, Support.NATIVE, Support.NONE),
    ],
)
def test_queue_decides_what_can_be_done(
    plugins: Plugins,
    loops: Any,
    monkeypatch: pytest.MonkeyPatch,
    queue: linux.QueueFacts,
    direct: bool,
    discard: Support,
    flush: Support,
) -> None:
    monkeypatch.setattr(blockdev.linux, "queue_facts", lambda rdev: queue)
    prepared, guard = opened(plugins, loops.attach(), direct=direct)
    assert (guard.can.discard, guard.can.flush) == (discard, flush)
    assert guard.can.fua is (Support.NATIVE if flush is Support.NATIVE else Support.EMULATE)
    assert (guard.discard_granularity, guard.discard_alignment) == (4096, 512)
    assert not guard.discard_zeroes
    closed(plugins, prepared, guard)


# Data reaches the medium.


@pytest.mark.parametrize("direct", [False, True])
def test_flushed_data_is_in_the_file_below(plugins: Plugins, loops: Any, tmp_path: Path, direct: bool) -> None:
    prepared, guard = opened(plugins, loops.attach(), direct=direct)
    guard.write(memoryview(b"x" * 4096), 8192)
    guard.flush()
    guard.write(memoryview(b"y" * 4096), 16384, fua=True)
    below = (tmp_path / "loop0.img").read_bytes()
    assert below[8192:12288] == b"x" * 4096
    assert below[16384:20480] == b"y" * 4096
    closed(plugins, prepared, guard)


def test_direct_and_buffered_handles_agree(plugins: Plugins, loops: Any) -> None:
    prepared, buffered = opened(plugins, loops.attach())
    direct = Guarded(plugins.open("block", {**prepared, "direct": True}))
    buffered.write(memoryview(b"x" * 4096), 4096)
    buffered.flush()
    buffer = bytearray(4096)
    direct.read_into(memoryview(buffer), 4096)
    assert buffer == b"x" * 4096
    closed(plugins, prepared, buffered, direct)


# Bad sectors. The page cache makes a page of them, which is eight of these blocks.


def unread(guard: Guarded, offset: int, length: int) -> int | None:
    with pytest.raises(BlockError, match=f"byte {2052 * 512} cannot be read: Input/output error") as caught:
        guard.read_into(memoryview(bytearray(length)), offset)
    assert caught.value.fault is Fault.READ_ERROR
    return caught.value.block


@pytest.mark.parametrize("direct", [False, True])
def test_bad_sector_is_told_and_costs_its_neighbours_nothing(plugins: Plugins, tmp_path: Path, direct: bool) -> None:
    with bad_disk(tmp_path / "bad", 4 * MIB, 2052 * 512 + 100) as path:
        prepared, guard = opened(plugins, path, direct=direct)
        blocks = {block: bytes([block % 256]) * 512 for block in (2050, 2051, 2053)}
        for block, content in blocks.items():
            guard.write(memoryview(content), 512 * block)
        guard.flush()
        for offset, length in ((1024 * 512, MIB), (2048 * 512, 4096), (2052 * 512, 512)):
            assert unread(guard, offset, length) == 2052
        for block, content in blocks.items():
            found = bytearray(512)
            guard.read_into(memoryview(found), 512 * block)
            assert found == content
        before = os.listdir("/proc/self/fd")
        unread(guard, 2048 * 512, 4096)
        guard.write(memoryview(b"x" * 512), 512 * 2049)
        assert os.listdir("/proc/self/fd") == before
        closed(plugins, prepared, guard)


@pytest.mark.parametrize("fua", [False, True])
@pytest.mark.parametrize("now", [False, True])
def test_bad_sector_that_is_written_is_good_again(plugins: Plugins, tmp_path: Path, fua: bool, now: bool) -> None:
    with bad_disk(tmp_path / "bad", 4 * MIB, 2052 * 512 + 100) as path:
        prepared, guard = opened(plugins, path)
        assert unread(guard, 2048 * 512, 4096) == 2052
        content = bytes(range(256)) * 4
        if now:
            with pytest.raises(BlockingIOError):  # which is not for the loop to do
                guard.write_now(memoryview(content), 512 * 2052)
        guard.write(memoryview(content), 512 * 2052, fua=fua)
        guard.flush()
        found = bytearray(4096)
        guard.read_into(memoryview(found), 2048 * 512)
        assert found == bytes(2048) + content + bytes(1024)
        closed(plugins, prepared, guard)


# A device that becomes smaller, or goes.


def resized(loop: str, size: int) -> None:
    os.truncate(Path(f"/sys/block/{Path(loop).name}/loop/backing_file").read_text().strip(), size)
    subprocess.run(["losetup", "--set-capacity", loop], check=True)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(
    ("left", "fault", "words"),
    [(0, Fault.NOT_READY, "is gone"), (MIB, None, f"ends at {MIB}: it was cut while in use")],
)
def test_device_that_goes_or_is_cut_is_not_taken_for_a_full_one(
    plugins: Plugins, loops: Any, direct: bool, left: int, fault: Fault | None, words: str
) -> None:
    path = loops.attach(4 * MIB)
    prepared, guard = opened(plugins, path, direct=direct)
    resized(path, left)
    data = memoryview(bytearray(8192))
    if not direct:
        with pytest.raises(BlockingIOError):
            guard.write_now(data, MIB)
    calls = [
        (Fault.READ_ERROR, lambda: guard.read_into(data, MIB)),
        (Fault.WRITE_ERROR, lambda: guard.write(data, MIB)),
        (Fault.WRITE_ERROR, lambda: guard.write(data, MIB, fua=True)),
    ]
    for kind, call in calls:
        with pytest.raises(BlockError, match=words) as caught:
            call()
        assert caught.value.fault is (fault or kind)
    assert guard.current_size() == left
    resized(path, 4 * MIB)
    for _, call in calls:
        call()
    guard.flush()
    closed(plugins, prepared, guard)


def test_device_that_has_grown_is_opened_with_its_new_size(plugins: Plugins, loops: Any) -> None:
    path = loops.attach(4 * MIB)
    prepared, guard = opened(plugins, path)
    resized(path, 8 * MIB)
    assert (guard.size, guard.current_size()) == (4 * MIB, 8 * MIB)
    again = Guarded(plugins.open("block", prepared))
    assert again.size == 8 * MIB
    again.write(memoryview(b"x" * 4096), 8 * MIB - 4096)
    again.flush()
    closed(plugins, prepared, guard, again)


def test_other_error_than_that_of_a_sector_is_not_read_around(
    plugins: Plugins, loops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*arguments: Any) -> None:
        raise OSError(errno.ENODEV, "gone")

    prepared, guard = opened(plugins, loops.attach())
    monkeypatch.setattr(os, "preadv", gone)
    with pytest.raises(OSError, match="gone"):
        guard.read_into(memoryview(bytearray(4096)), 0)
    closed(plugins, prepared, guard)
