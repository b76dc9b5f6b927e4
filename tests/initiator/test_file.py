"""initiator.file: a file of any offset on a disk of whole blocks, held against io.BytesIO."""

from __future__ import annotations

import errno
import io
import os
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from initiator_pair import InMemoryClient, World
from target_rig import DEVICES, SIZE

from iscsid.errors import InitiatorError
from iscsid.initiator.disk import Disk
from iscsid.initiator.file import DiskFile, open_file


def disk_of(world: World) -> Disk:
    return Disk(InMemoryClient(world), 0)  # type: ignore[arg-type]  # all that a disk wants of it


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("rws"), st.integers(0, 5000), st.integers(0, 3000)), max_size=12),
    st.booleans(),
)
def test_file_does_what_a_file_in_memory_does(steps: list[tuple[str, int, int]], buffered: bool) -> None:
    model = io.BytesIO(bytes(SIZE))
    raw = DiskFile(disk_of(World()))
    file = io.BufferedRandom(raw, 1024) if buffered else raw
    for number, (what, offset, length) in enumerate(steps):
        if what == "s":
            assert file.seek(offset) == model.seek(offset)
        elif what == "w":
            data = bytes([number % 251 + 1]) * length
            assert file.write(data) == model.write(data)
        else:
            assert file.read(length) == model.read(length)
        assert file.tell() == model.tell()
    file.close()


def test_flush_reaches_the_medium_once() -> None:
    world = World(DEVICES["volatile"]())
    with open_file(disk_of(world)) as file:
        file.write(b"abc")
        file.flush()
        flushes = world.device.calls.count(("flush", 0, 0))
        file.flush()
        assert flushes == world.device.calls.count(("flush", 0, 0)) == 1
        assert world.device.content[:3] == b"abc"


def test_what_is_written_during_a_flush_is_flushed_by_the_next() -> None:
    world = World(DEVICES["volatile"]())
    disk = disk_of(world)
    file = DiskFile(disk)
    file.write(b"abc")
    flush = disk.flush

    def flush_slowly() -> None:
        flush()
        disk.flush = flush  # type: ignore[method-assign]
        file.write(b"def")

    disk.flush = flush_slowly  # type: ignore[method-assign]
    file.flush()
    assert world.device.calls.count(("flush", 0, 0)) == 1
    file.flush()
    assert world.device.calls.count(("flush", 0, 0)) == 2


def test_write_that_ends_after_a_flush_began_is_flushed_by_the_next() -> None:
    world = World(DEVICES["volatile"]())
    disk = disk_of(world)
    file = DiskFile(disk)
    write = disk.write

    def write_slowly(offset: int, data: Any, **options: Any) -> None:
        file.flush()  # another thread's, which cannot cover this write
        write(offset, data, **options)

    disk.write = write_slowly  # type: ignore[method-assign]
    file.write(bytes(512))
    before = world.device.calls.count(("flush", 0, 0))
    file.flush()
    assert world.device.calls.count(("flush", 0, 0)) == before + 1


def test_flush_that_fails_is_not_forgotten() -> None:
    world = World(DEVICES["volatile"]())
    disk = disk_of(world)
    file = DiskFile(disk)
    file.write(b"abc")

    def fail() -> None:
        raise InitiatorError("no")

    disk.flush = fail  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(InitiatorError):
            file.flush()
    del disk.flush  # type: ignore[method-assign]
    file.close()


def test_end_of_the_disk_is_the_end_of_the_file() -> None:
    file = DiskFile(disk_of(World()))
    assert file.seek(-2, os.SEEK_END) == SIZE - 2
    assert file.write(b"abc") == 2
    with pytest.raises(OSError, match="end of the disk") as caught:
        file.write(b"c")
    assert caught.value.errno == errno.ENOSPC
    assert file.read(5) == b""
    file.seek(-2, os.SEEK_CUR)
    assert file.read(5) == b"ab"


def test_what_a_disk_cannot_is_refused() -> None:
    file = DiskFile(disk_of(World()), writable=False)
    assert (file.readable(), file.writable(), file.seekable()) == (True, False, True)
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"x")
    with pytest.raises(io.UnsupportedOperation):
        file.truncate(5)
    with pytest.raises(ValueError, match="whence"):
        file.seek(0, 9)
    with pytest.raises(ValueError, match="no position"):
        file.seek(-1)
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)
