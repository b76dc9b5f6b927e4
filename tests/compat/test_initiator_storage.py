"""The file of a disk: any offset, neighbours in a block, the end, and which errno."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from typing import cast

import pytest

from iscsid.compat.initiator_storage import Storage, errno_of
from iscsid.errors import (
    CommandFailed,
    CommandTimeout,
    ConnectionFailed,
    InitiatorError,
    LoginRefused,
    ReservationConflict,
    SenseError,
    Unsupported,
)
from iscsid.initiator import Disk, Result

SIZE = 16 * 512


class FakeDisk:
    """A disk in memory that takes whole blocks only, and can be told to fail or to wait."""

    block_size = 512

    def __init__(self, size: int = SIZE) -> None:
        self.content = bytearray(size)
        self.size = size
        self.calls: list[tuple[str, int, int]] = []
        self.failure: InitiatorError | None = None
        self.before_write: Callable[[], None] = lambda: None
        self.modes = [Result(0, memoryview(bytes(4)), b"", 0)]

    def _note(self, name: str, offset: int, length: int) -> None:
        assert offset % self.block_size == length % self.block_size == 0
        assert offset + length <= self.size
        self.calls.append((name, offset, length))
        if self.failure is not None:
            raise self.failure

    def read(self, offset: int, length: int) -> bytearray:
        self._note("read", offset, length)
        return self.content[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        self.before_write()
        self._note("write", offset, len(data))
        self.content[offset : offset + len(data)] = data

    def write_zeroes(self, offset: int, length: int) -> None:
        self._note("zero", offset, length)
        self.content[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self._note("flush", 0, 0)

    def capacity(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.size = len(self.content)

    def command(self, cdb: bytes, data_in_length: int, replay: bool) -> Result:
        if self.failure is not None:
            raise self.failure
        return self.modes.pop(0) if len(self.modes) > 1 else self.modes[0]


@pytest.fixture
def disk() -> FakeDisk:
    return FakeDisk()


@pytest.fixture
def storage(disk: FakeDisk) -> Storage:
    return Storage(cast(Disk, disk))


def test_whole_blocks_are_neither_read_first_nor_cut(disk: FakeDisk, storage: Storage) -> None:
    assert storage.write(512, b"x" * 1024) == 1024
    assert bytes(storage.read(512, 1024)) == b"x" * 1024
    assert disk.calls == [("write", 512, 1024), ("read", 512, 1024)]


@pytest.mark.parametrize(
    ("offset", "length", "calls"),
    [
        (10, 20, [("read", 0, 512), ("write", 0, 512)]),
        (0, 20, [("read", 0, 512), ("write", 0, 512)]),
        (500, 12, [("read", 0, 512), ("write", 0, 512)]),
        (500, 24, [("read", 0, 512), ("read", 512, 512), ("write", 0, 1024)]),
        (512, 600, [("read", 1024, 512), ("write", 512, 1024)]),
        (500, 1036, [("read", 0, 512), ("write", 0, 1536)]),
    ],
)
def test_part_of_a_block_is_read_changed_and_written(
    disk: FakeDisk, storage: Storage, offset: int, length: int, calls: list[tuple[str, int, int]]
) -> None:
    before = os.urandom(SIZE)
    disk.content[:] = before
    data = os.urandom(length)
    assert storage.write(offset, data) == length
    assert disk.content == before[:offset] + data + before[offset + length :]
    assert disk.calls == calls


def test_random_reads_writes_and_zeros_equal_a_file_in_memory(disk: FakeDisk, storage: Storage) -> None:
    chance = random.Random(7)
    expected = bytearray(SIZE)
    for _ in range(600):
        offset = chance.randrange(SIZE)
        length = chance.choice([1, 7, 512, 1000, 1024, 5000])
        end = min(SIZE, offset + length)
        match chance.randrange(3):
            case 0:
                data = chance.randbytes(length)
                assert storage.write(offset, data) == end - offset
                expected[offset:end] = data[: end - offset]
            case 1:
                storage.zero(offset, length)
                expected[offset:end] = bytes(end - offset)
            case _:
                assert bytes(storage.read(offset, length)) == expected[offset:end]
        assert disk.content == expected


def test_zeros_in_whole_blocks_are_one_command(disk: FakeDisk, storage: Storage) -> None:
    storage.zero(512, 2048)
    assert disk.calls == [("zero", 512, 2048)]
    disk.calls.clear()
    storage.zero(600, 2048)
    assert [call for call in disk.calls if call[0] == "zero"] == [("zero", 1024, 1536)]


def test_the_end_of_the_disk_is_the_end_of_the_file(storage: Storage) -> None:
    assert storage.write(SIZE - 10, b"x" * 100) == 10
    assert bytes(storage.read(SIZE - 5, 100)) == b"x" * 5
    assert bytes(storage.read(SIZE, 100)) == b""
    assert storage.write(SIZE + 5, b"") == 0
    for call in (lambda: storage.write(SIZE, b"x"), lambda: storage.zero(SIZE, 1)):
        with pytest.raises(OSError) as raised:
            call()
        assert raised.value.errno == errno.ENOSPC
    for call in (lambda: storage.write(-1, b"x"), lambda: storage.read(-1, 1)):
        with pytest.raises(OSError) as raised:
            call()
        assert raised.value.errno == errno.EINVAL


def test_two_writers_of_one_block_do_not_undo_each_other(disk: FakeDisk, storage: Storage) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def stop_once() -> None:
        disk.before_write = lambda: None
        entered.set()
        assert go_on.wait(10)

    disk.before_write = stop_once
    first = threading.Thread(target=storage.write, args=(0, b"a" * 100))
    first.start()
    assert entered.wait(10)
    # The whole block: nothing to be read first, but what the first writer has read would undo it.
    second = threading.Thread(target=storage.write, args=(0, b"b" * 512))
    second.start()
    apart = threading.Thread(target=storage.write, args=(512, b"c" * 100))
    apart.start()
    apart.join(10)
    assert not apart.is_alive()
    assert second.is_alive()
    go_on.set()
    first.join(10)
    second.join(10)
    assert disk.content[:612] == b"b" * 512 + b"c" * 100


def test_a_writer_that_fails_lets_the_next_one_go(disk: FakeDisk, storage: Storage) -> None:
    disk.failure = ConnectionFailed("gone")
    with pytest.raises(OSError):
        storage.write(0, b"x")
    disk.failure = None
    assert storage.write(0, b"x") == 1


def test_flush_reaches_the_medium_always_or_only_after_a_write(disk: FakeDisk, storage: Storage) -> None:
    storage.flush(always=False)
    assert disk.calls == []
    storage.flush()
    assert disk.calls == [("flush", 0, 0)]
    storage.write(0, b"x" * 512)
    disk.failure = ConnectionFailed("gone")
    with pytest.raises(OSError) as raised:
        storage.flush(always=False)
    assert raised.value.errno == errno.EIO
    disk.failure = None
    disk.calls.clear()
    storage.flush(always=False)
    storage.flush(always=False)
    assert disk.calls == [("flush", 0, 0)]


def test_read_of_a_disk_that_has_shrunk_is_no_lack_of_space(disk: FakeDisk, storage: Storage) -> None:
    disk.failure = SenseError(5, 0x21, 0, "LOGICAL BLOCK ADDRESS OUT OF RANGE")
    with pytest.raises(OSError) as caught:
        storage.read(0, 512)
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError) as caught:
        storage.write(0, bytes(512))
    assert caught.value.errno == errno.ENOSPC


def test_write_that_ends_after_a_flush_began_is_flushed_at_the_end(disk: FakeDisk, storage: Storage) -> None:
    disk.before_write = storage.flush  # another thread's fsync, which cannot cover this write
    storage.write(0, bytes(512))
    disk.calls.clear()
    storage.flush(always=False)
    assert disk.calls == [("flush", 0, 0)]


def test_close_while_another_flush_fails_does_not_succeed(disk: FakeDisk, storage: Storage) -> None:
    storage.write(0, bytes(512))
    outcomes: list[int] = []

    def fail() -> None:
        disk.flush = fail_again  # type: ignore[method-assign]
        with pytest.raises(OSError) as caught:
            storage.flush(always=False)
        outcomes.append(caught.value.errno)
        raise ConnectionFailed("gone")

    def fail_again() -> None:
        raise ConnectionFailed("gone")

    disk.flush = fail  # type: ignore[method-assign]
    with pytest.raises(OSError):
        storage.flush()
    assert outcomes == [errno.EIO]


def test_refresh_finds_a_disk_that_has_grown(disk: FakeDisk, storage: Storage) -> None:
    disk.content += bytes(512)
    assert storage.size == SIZE
    storage.refresh()
    assert storage.size == SIZE + 512
    disk.failure = SenseError(0x2, 0x3A, 0x00, "no medium")
    with pytest.raises(OSError) as raised:
        storage.refresh()
    assert raised.value.errno == errno.ENOMEDIUM


def test_write_protection_is_what_mode_sense_says(disk: FakeDisk, storage: Storage) -> None:
    assert storage.writable()
    attention = Result(2, memoryview(b""), b"", 0)
    disk.modes = [attention, Result(0, memoryview(b"\3\0\x90\0"), b"", 0)]
    assert not storage.writable()
    disk.modes = [attention]  # no such command
    assert storage.writable()
    disk.failure = ConnectionFailed("gone")
    with pytest.raises(OSError) as raised:
        storage.writable()
    assert raised.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (SenseError(0x7, 0x27, 0x00, "write protected"), errno.EROFS),
        (SenseError(0x7, 0x27, 0x07, "space allocation failed"), errno.ENOSPC),
        (SenseError(0x7, 0x00, 0x00, "data protect"), errno.EROFS),
        (SenseError(0xD, 0x00, 0x00, "volume overflow"), errno.ENOSPC),
        (SenseError(0x5, 0x21, 0x00, "out of range"), errno.ENOSPC),
        (SenseError(0x5, 0x25, 0x00, "no such unit"), errno.ENODEV),
        (SenseError(0x5, 0x20, 0x00, "no such command"), errno.EOPNOTSUPP),
        (SenseError(0x5, 0x24, 0x00, "invalid field"), errno.EIO),
        (SenseError(0x2, 0x3A, 0x01, "no medium"), errno.ENOMEDIUM),
        (SenseError(0x2, 0x04, 0x00, "not ready"), errno.EIO),
        (SenseError(0x3, 0x11, 0x00, "read error"), errno.EIO),
        (SenseError(0x4, 0x44, 0x00, "hardware"), errno.EIO),
        (SenseError(0xC, 0x00, 0x00, "a key that is none"), errno.EIO),
        (ReservationConflict(0x18, "reserved"), errno.EBUSY),
        (CommandFailed(0x08, "busy"), errno.EBUSY),
        (CommandFailed(0x99, "a status that is none"), errno.EIO),
        (LoginRefused(0x0201, "wrong secret"), errno.EACCES),
        (LoginRefused(0x0203, "not found"), errno.ENODEV),
        (LoginRefused(0x0301, "busy"), errno.EIO),
        (ConnectionFailed("gone"), errno.EIO),
        (CommandTimeout("late"), errno.EIO),
        (Unsupported("cannot"), errno.EOPNOTSUPP),
    ],
)
def test_errno_says_what_went_wrong(disk: FakeDisk, storage: Storage, error: InitiatorError, number: int) -> None:
    assert errno_of(error) == number
    disk.failure = error
    with pytest.raises(OSError) as raised:
        storage.write(0, bytes(512))
    assert raised.value.errno == number
    assert raised.value.__cause__ is error
