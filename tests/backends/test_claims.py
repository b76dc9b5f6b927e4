"""backends.claims: who has a file is seen by QEMU and by other servers, and in one process it is claimed once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from iscsid_backends.claims import Claims, lock

from iscsid.errors import BlockError, Fault

Judge = Callable[[str], str]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    return path


@pytest.fixture
def descriptors(image: Path) -> Iterator[list[int]]:
    """Open files of their own, as those of other processes are."""
    found = [os.open(image, os.O_RDWR) for _ in range(3)]
    yield found
    for fd in found:
        os.close(fd)


def busy(fd: int, *, writes: bool, share: bool = False) -> bool:
    try:
        lock(fd, "image", writes=writes, share=share)
    except BlockError as error:
        assert error.fault is Fault.BUSY
        assert "image is in use" in str(error)
        return True
    return False


@pytest.mark.parametrize(
    ("first", "second", "excluded"),
    [
        ((True, False), (True, False), True),
        ((True, False), (False, False), True),
        ((False, False), (True, False), True),
        ((False, False), (False, False), False),
        ((True, True), (True, True), False),
        ((True, True), (True, False), True),
        ((True, False), (True, True), True),
        ((True, True), (False, True), False),
        ((False, True), (True, False), False),
    ],
)
def test_writers_exclude_each_other_and_readers_writers_unless_both_share(
    descriptors: list[int], first: tuple[bool, bool], second: tuple[bool, bool], excluded: bool
) -> None:
    assert not busy(descriptors[0], writes=first[0], share=first[1])
    assert busy(descriptors[1], writes=second[0], share=second[1]) is excluded


def test_what_is_not_needed_any_more_is_given_back(descriptors: list[int]) -> None:
    one, two, _ = descriptors
    assert not busy(one, writes=True)
    assert not busy(one, writes=False)  # of the same open file
    assert not busy(two, writes=False)


def test_lock_ends_with_the_file(image: Path, descriptors: list[int]) -> None:
    fd = os.open(image, os.O_RDWR)
    assert not busy(fd, writes=True)
    other = os.dup(fd)
    os.close(fd)
    assert busy(descriptors[0], writes=True)
    os.close(other)
    assert not busy(descriptors[1], writes=True)


@pytest.mark.judge("qemu-img")
def test_qemu_sees_who_has_a_file(image: Path, descriptors: list[int], judge: Judge) -> None:
    read = [judge("qemu-img"), "compare", "-f", "raw", "-F", "raw", str(image), str(image)]
    write = [judge("qemu-img"), "resize", "-q", "-f", "raw", str(image), "2M"]

    def refused(argv: list[str]) -> bool:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert not done.returncode or "lock" in done.stderr
        return bool(done.returncode)

    assert not refused(read)
    lock(descriptors[0], "image", writes=False)
    assert (refused(read), refused(write)) == (False, True)
    lock(descriptors[0], "image", writes=True)
    assert (refused(read), refused(write)) == (False, True)  # of a raw image qemu-img reads what others write


def by_inode() -> Claims:
    return Claims(lambda facts: (facts.st_dev, facts.st_ino))


def opener(image: Path) -> partial[int]:
    return partial(os.open, image, os.O_RDONLY)


def test_second_claim_of_one_process_shares_the_open_file(image: Path, descriptors: list[int], tmp_path: Path) -> None:
    claims = by_inode()
    (tmp_path / "link").symlink_to(image)
    one = claims.take(str(image), opener(image), writes=True)
    two = claims.take(str(tmp_path / "link"), opener(image), writes=True)
    assert one != two
    claims.give(one)
    assert busy(descriptors[0], writes=False)
    claims.give(two)
    assert not busy(descriptors[1], writes=False)


def test_locks_are_what_all_claims_need(image: Path, descriptors: list[int]) -> None:
    claims = by_inode()
    reader = claims.take(str(image), opener(image), writes=False)
    writer = claims.take(str(image), opener(image), writes=True)
    assert busy(descriptors[0], writes=False)
    claims.give(writer)
    lock(descriptors[1], "image", writes=False)
    claims.give(reader)


def test_claim_that_is_refused_leaves_the_others_as_they_were(image: Path, descriptors: list[int]) -> None:
    claims = by_inode()
    reader = claims.take(str(image), opener(image), writes=False)
    assert not busy(descriptors[0], writes=False)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(BlockError, match="is in use"):
        claims.take(str(image), opener(image), writes=True)
    assert os.listdir("/proc/self/fd") == before
    assert not busy(descriptors[1], writes=False)
    assert busy(descriptors[2], writes=True)
    claims.give(reader)


def test_file_that_is_made_by_the_claim_is_claimed(tmp_path: Path) -> None:
    claims, path = by_inode(), tmp_path / "new"
    one = claims.take(str(path), partial(os.open, path, os.O_RDWR | os.O_CREAT), writes=True)
    two = claims.take(str(path), partial(os.open, path, os.O_RDWR), writes=True)
    claims.give(one)
    claims.give(two)


def test_claims_of_the_process_that_forked_us_are_not_ours(image: Path) -> None:
    claims = by_inode()
    one = claims.take(str(image), opener(image), writes=True)
    child = os.fork()
    if not child:
        try:
            claims.take(str(image), opener(image), writes=True)
        except BlockError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    claims.give(one)


def test_lock_ends_with_the_process(image: Path, descriptors: list[int]) -> None:
    code = (
        "import os, sys; from iscsid_backends.claims import lock;"
        f"lock(os.open({str(image)!r}, os.O_RDWR), 'image', writes=True);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        assert busy(descriptors[0], writes=True)
        other.kill()
        other.wait()
    assert not busy(descriptors[1], writes=True)
