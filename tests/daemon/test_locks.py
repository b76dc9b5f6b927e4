"""Ranges held against threads, processes and the dead."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from iscsid.daemon.locks import UNIT, RangeLock, lock_path
from iscsid.errors import BlockError, Fault

WAIT = 20.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return lock_path(str(tmp_path), "SERIAL")


@contextmanager
def child(work: Callable[[int], None]) -> Iterator[int]:
    """A process that does ``work`` and is killed in the end; it tells by one byte in a pipe how far it is."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(read_end)
            work(write_end)
        finally:
            os._exit(1)
    os.close(write_end)
    try:
        assert os.read(read_end, 1) == b"!"
        yield pid
    finally:
        os.close(read_end)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def hold_for_ever(path: str, offset: int, length: int) -> Callable[[int], None]:
    def work(pipe: int) -> None:
        with RangeLock(path).exclusive(offset, length):
            os.write(pipe, b"!")
            signal.pause()

    return work


def is_free(lock: RangeLock, offset: int, length: int) -> bool:
    try:
        with lock.exclusive(offset, length, False):
            return True
    except BlockingIOError:
        return False


# --- the file ---------------------------------------------------------------------------------------------------------


def test_lock_file_is_named_by_the_serial_number_alone(tmp_path: Path) -> None:
    one, same, other = (lock_path(str(tmp_path), serial) for serial in ("A", "A", "../../etc/B"))
    assert one == same != other
    assert Path(other).parent == tmp_path


def test_lock_file_is_made_when_it_is_needed_for_nobody_else_to_open(path: str) -> None:
    lock = RangeLock(path)
    assert not os.path.exists(path)
    with lock.exclusive(0, 512):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    lock.close()
    assert os.path.exists(path), "others may hold it"


def test_lock_file_that_cannot_be_made_is_an_internal_fault_and_leaves_nothing_held(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    lock = RangeLock(lock_path(str(folder), "A"))
    for wait in (True, False):
        with pytest.raises(BlockError, match=r"lu-.*No such file") as caught, lock.exclusive(0, 512, wait):
            pass
        assert caught.value.fault is Fault.INTERNAL
    folder.mkdir()
    assert is_free(lock, 0, 512)
    lock.close()


def test_link_in_the_place_of_the_lock_file_is_not_followed(path: str, tmp_path: Path) -> None:
    os.symlink(tmp_path / "victim", path)
    with pytest.raises(BlockError), RangeLock(path).exclusive(0, 512):
        pass
    assert not (tmp_path / "victim").exists()


def test_removed_lock_file_is_made_again_and_shared(path: str) -> None:
    lock, other = RangeLock(path), RangeLock(path)
    assert is_free(lock, 0, 512)
    os.unlink(path)
    with other.exclusive(0, 512):
        assert not is_free(lock, 0, 512)
    assert is_free(lock, 0, 512)
    lock.close()
    other.close()


def test_lock_that_was_closed_opens_again_and_closing_twice_is_harmless(path: str) -> None:
    lock = RangeLock(path)
    assert is_free(lock, 0, 512)
    lock.close()
    lock.close()
    assert is_free(lock, 0, 512)
    lock.close()


# --- between workers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length", "free"),
    [
        (4096, 512, False),
        (4096 - 512, 512, True),
        (4096 - 512, 1024, False),
        (4096 + 1024, 512, True),
        (4096 + 512, 4096, False),
        (0, 1 << 40, False),
        (1 << 63, 512, True),
    ],
)
def test_other_process_holds_its_range_and_no_more(path: str, offset: int, length: int, free: bool) -> None:
    lock = RangeLock(path)
    with child(hold_for_ever(path, 4096, 1024)):
        assert is_free(lock, offset, length) is free
    lock.close()


def test_end_of_the_largest_device_can_be_held(path: str) -> None:
    lock, other = RangeLock(path), RangeLock(path)
    last = (1 << 64) - UNIT
    with lock.exclusive(last, UNIT):
        assert not is_free(other, last, UNIT)
        assert is_free(other, last - UNIT, UNIT)
    lock.close()
    other.close()


def test_killed_holder_frees_its_range_for_one_who_waits(path: str) -> None:
    lock = RangeLock(path)
    held = threading.Event()

    def wait_for_it() -> None:
        with lock.exclusive(4096, 512):
            held.set()

    with child(hold_for_ever(path, 4096, 512)) as pid:
        waiter = threading.Thread(target=wait_for_it, daemon=True)
        waiter.start()
        assert not is_free(lock, 4096, 512)
        assert not held.is_set()
        os.kill(pid, signal.SIGKILL)
        assert held.wait(WAIT)
        waiter.join(WAIT)
    lock.close()


def test_processes_that_contend_lose_no_step(path: str, tmp_path: Path) -> None:
    """Read, add one, write: two processes and two threads in this one, each under the lock."""
    counter = tmp_path / "counter"
    counter.write_bytes((0).to_bytes(8, "big"))
    rounds = 300

    def count(lock: RangeLock) -> None:
        fd = os.open(counter, os.O_RDWR)
        for _ in range(rounds):
            with lock.exclusive(0, 8):
                value = int.from_bytes(os.pread(fd, 8, 0), "big")
                os.pwrite(fd, (value + 1).to_bytes(8, "big"), 0)
        os.close(fd)

    def work() -> int:
        pid = os.fork()
        if not pid:
            try:
                count(RangeLock(path))
                os._exit(0)
            finally:
                os._exit(1)
        return pid

    lock = RangeLock(path)
    threads = [threading.Thread(target=count, args=(lock,), daemon=True) for _ in range(2)]
    children = [work(), work()]
    for thread in threads:
        thread.start()
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    for thread in threads:
        thread.join(WAIT)
    assert int.from_bytes(counter.read_bytes(), "big") == 4 * rounds
    lock.close()


# --- in one worker ----------------------------------------------------------------------------------------------------


def test_other_thread_of_the_worker_has_to_wait_wherever_its_range_lies(path: str) -> None:
    lock = RangeLock(path)
    done = threading.Event()

    def next_one() -> None:
        with lock.exclusive(8192, 512):
            done.set()

    with lock.exclusive(0, 512):
        assert not is_free(lock, 8192, 512)
        waiter = threading.Thread(target=next_one, daemon=True)
        waiter.start()
        assert not done.is_set()
    assert done.wait(WAIT)
    waiter.join(WAIT)
    lock.close()


def test_range_is_free_after_a_failure_under_it(path: str) -> None:
    lock, other = RangeLock(path), RangeLock(path)
    with pytest.raises(ZeroDivisionError), lock.exclusive(0, 512):
        raise ZeroDivisionError
    assert is_free(lock, 0, 512)
    assert is_free(other, 0, 512)
    lock.close()
    other.close()


def test_two_units_of_one_serial_number_in_one_worker_share_the_range(path: str) -> None:
    lock, other = RangeLock(path), RangeLock(path)
    with lock.exclusive(0, 512):
        assert not is_free(other, 0, 512)
    assert is_free(other, 0, 512)
    lock.close()
    other.close()
