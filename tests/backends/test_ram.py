"""The RAM disk: one memory for all workers, which outlives each of them and takes only what is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from iscsid.block.guard import Guarded
from iscsid.errors import PluginError
from iscsid.plugin import Content, Mode, Support
from iscsid.plugin.manager import Plugins

MIB = 1 << 20


@pytest.fixture
def prepared(plugins: Plugins) -> Iterator[dict[str, Any]]:
    prepared = plugins.prepare("ram", {"size": "16 MiB"})
    yield prepared
    plugins.release("ram", prepared)


def read(guard: Guarded, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    guard.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def test_memory_is_taken_as_it_is_written(plugins: Plugins, prepared: dict[str, Any]) -> None:
    guard = Guarded(plugins.open("ram", prepared))
    assert guard.size == 16 * MIB
    assert os.fstat(prepared["memfd"]).st_blocks == 0
    guard.write(memoryview(b"x" * MIB), 0)
    assert os.fstat(prepared["memfd"]).st_blocks * 512 == MIB
    guard.discard(0, MIB)
    assert os.fstat(prepared["memfd"]).st_blocks == 0
    guard.close()


def test_memory_cannot_be_cut(plugins: Plugins, prepared: dict[str, Any]) -> None:
    """Touching a mapping behind the end of its file kills the process."""
    with pytest.raises(PermissionError):
        os.ftruncate(prepared["memfd"], 4096)
    with pytest.raises(PluginError, match="would be lost"):
        plugins.resize("ram", prepared, 4096)


def test_disk_that_is_cut_has_lost_what_was_behind(plugins: Plugins, prepared: dict[str, Any]) -> None:
    device = Guarded(plugins.open("ram", prepared))
    size = device.size
    device.write_now(memoryview(b"x" * size), 0)
    device.close()
    cut = plugins.resize("ram", prepared, 4608, shrink=True)
    device = Guarded(plugins.open("ram", cut))
    assert device.size == 4608 and bytes(device.view(0, 4608)) == b"x" * 4608
    device.close()
    device = Guarded(plugins.open("ram", plugins.resize("ram", cut, size)))
    assert bytes(device.view(0, size)) == b"x" * 4608 + bytes(size - 4608)
    device.close()


def test_memory_that_grew_has_its_data_and_zeros_behind_it(plugins: Plugins, prepared: dict[str, Any]) -> None:
    old = Guarded(plugins.open("ram", prepared))
    old.write_now(memoryview(b"x" * 512), old.size - 512)
    new = Guarded(plugins.open("ram", plugins.resize("ram", prepared, old.size * 2)))
    assert new.size == old.size * 2
    assert bytes(new.view(old.size - 512, 1024)) == b"x" * 512 + bytes(512)
    old.close()
    new.close()


def test_data_outlives_the_worker_that_wrote_it(plugins: Plugins, prepared: dict[str, Any]) -> None:
    child = os.fork()
    if not child:
        try:
            guard = Guarded(plugins.open("ram", prepared))
            guard.write_now(memoryview(b"x" * 4096), 4096)
        finally:
            os.kill(os.getpid(), 9)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == 9
    guard = Guarded(plugins.open("ram", prepared))
    assert read(guard, 4096, 4096) == b"x" * 4096
    guard.close()


def test_view_is_the_memory_itself(plugins: Plugins, prepared: dict[str, Any]) -> None:
    guard = Guarded(plugins.open("ram", prepared))
    lent = guard.view(4096, 512)
    guard.write_now(memoryview(b"y" * 512), 4096)
    assert lent == b"y" * 512
    assert os.pread(prepared["memfd"], 512, 4096) == b"y" * 512
    guard.close()
    assert lent == b"y" * 512


def test_readonly_mapping_lends_what_cannot_be_written(plugins: Plugins, prepared: dict[str, Any]) -> None:
    guard = Guarded(plugins.open("ram", prepared, "readonly"))
    assert guard.readonly
    assert guard.view(0, 512).readonly
    guard.close()


def test_nothing_waits_and_nothing_is_volatile(plugins: Plugins, prepared: dict[str, Any]) -> None:
    device = plugins.open("ram", prepared)
    assert device.mode is Mode.INLINE
    assert device.capabilities().flush is Support.NONE
    device.close()


def test_zeroes_that_must_stay_allocated_are_written(plugins: Plugins, prepared: dict[str, Any]) -> None:
    guard = Guarded(plugins.open("ram", prepared))
    guard.write_zeroes(0, MIB)
    assert os.fstat(prepared["memfd"]).st_blocks * 512 == MIB
    guard.write_zeroes(0, MIB, may_unmap=True)
    assert os.fstat(prepared["memfd"]).st_blocks == 0
    guard.close()


def test_open_without_prepare_is_refused(plugins: Plugins) -> None:
    with pytest.raises(PluginError, match="made by prepare"):
        plugins.open("ram", {"size": MIB})


@pytest.mark.parametrize(
    ("options", "words"), [({}, "size: missing"), ({"size": 100}, "below 512"), ({"size": MIB, "path": "x"}, "unknown")]
)
def test_options_are_checked(plugins: Plugins, options: dict[str, Any], words: str) -> None:
    assert any(words in problem for problem in plugins.validate("ram", options))


def test_size_that_cannot_be_mapped_leaks_no_descriptor(plugins: Plugins) -> None:
    before = os.listdir("/proc/self/fd")
    prepared = plugins.prepare("ram", {"size": 1 << 60})  # more than an address space
    with pytest.raises(PluginError):
        plugins.open("ram", prepared)
    plugins.release("ram", prepared)
    assert os.listdir("/proc/self/fd") == before


def test_two_disks_are_two_memories(plugins: Plugins, prepared: dict[str, Any]) -> None:
    other = plugins.prepare("ram", {"size": MIB})
    one, two = Guarded(plugins.open("ram", prepared)), Guarded(plugins.open("ram", other))
    one.write(memoryview(b"x" * 512), 0)
    assert read(two, 0, 512) == bytes(512)
    one.close()
    two.close()
    plugins.release("ram", other)


def test_hole_that_was_read_through_the_mapping_is_a_hole_still(plugins: Plugins, prepared: dict[str, Any]) -> None:
    guard = Guarded(plugins.open("ram", prepared))
    guard.write_now(memoryview(b"x" * MIB), 4 * MIB)
    assert bytes(guard.view(0, 3 * MIB)) == bytes(3 * MIB)
    assert read(guard, 8 * MIB, MIB) == bytes(MIB)
    assert os.fstat(prepared["memfd"]).st_blocks * 512 > MIB  # what reading has taken
    hole = Content.HOLE | Content.ZERO
    assert [(extent.offset, extent.length, extent.content) for extent in guard.block_status(0, guard.size)] == [
        (0, 4 * MIB, hole),
        (4 * MIB, MIB, Content.DATA),
        (5 * MIB, 11 * MIB, hole),
    ]
    guard.close()
