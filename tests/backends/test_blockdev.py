"""The block back end on loop devices, of which root can have as many as it likes."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from iscsid_backends import blockdev, linux

from iscsid.block.guard import Guarded
from iscsid.errors import PluginError
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
    with pytest.raises(PluginError, match="is in use: mounted, a part of another device, or served already"):
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
    point = tmp_path / "mnt"
    point.mkdir()
    mounted = subprocess.run(["mount", path, str(point)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount: {mounted.stderr.strip()}")
    try:
        with pytest.raises(PluginError, match="is in use"):
            plugins.prepare("block", {"path": path})
        assert plugins.validate("block", {"path": path}) == []  # which must not claim
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
