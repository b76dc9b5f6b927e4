"""The rules: what must be there after a crash, what may be, and that a state which is not whole is found."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from iscsid_plugins.record import (
    DISCARD,
    DURABLE,
    FAILED,
    FLUSH,
    READS_ZEROES,
    WRITE,
    ZEROES,
    Entry,
    Record,
    Recording,
)

sys.path.insert(0, str(Path(__file__).parent))

from replay import (
    CHOICES,
    SECTOR,
    Crashes,
    History,
    Version,
    Violation,
    contents_by_fsck,
    load_record,
    moments,
    run,
    tool,
    verify,
)

from iscsid.plugin.manager import load

BLANK = b"."


def entry(end: int, text: str, *, at: int = 0, begun: int = 0, kind: int = WRITE, flags: int = 0) -> Entry:
    """A write of one letter for each sector, from sector ``at`` on; or another kind, as long as the text."""
    data = b"".join(letter.encode() * SECTOR for letter in text)
    return Entry(kind, flags, begun or end - 1, end, at * SECTOR, len(data), memoryview(data))


def flush(end: int, begun: int = 0) -> Entry:
    return entry(end, "", kind=FLUSH, begun=begun)


def states(record: list[Entry], moment: int, choices: tuple[str, ...] = CHOICES, tries: int = 60) -> set[str]:
    """All states that are found, a letter for each of four sectors (of which each has to be of one piece)."""
    found = set()
    for seed in range(tries):
        for choice in choices:
            image = Crashes(record, bytearray(BLANK * 4 * SECTOR), seed).state(moment, choice)
            letters = [bytes(image[at : at + SECTOR]) for at in range(0, len(image), SECTOR)]
            assert all(letter == letter[:1] * SECTOR for letter in letters)
            found.add(b"".join(letter[:1] for letter in letters).decode().replace("\0", "0"))
    return found


def test_what_was_not_flushed_may_be_there_in_any_combination_of_sectors() -> None:
    assert states([entry(10, "ab")], 10) == {"....", "a...", ".b..", "ab.."}


def test_writes_are_taken_whole_where_that_is_the_choice() -> None:
    record = [entry(10, "ab"), entry(20, "c", at=3)]
    assert states(record, 20, ("writes",)) == {"....", "ab..", "...c", "ab.c"}
    assert states(record, 20, ("nothing",)) == {"...."}
    assert states(record, 20, ("all",)) == {"ab.c"}


def test_what_was_flushed_is_there() -> None:
    record = [entry(10, "ab"), flush(20), entry(30, "c", at=3)]
    assert states(record, 20) == {"ab.."}
    assert states(record, 30) == {"ab..", "ab.c"}


def test_flush_that_is_not_done_promises_nothing() -> None:
    assert states([entry(10, "a"), flush(20)], 19) == {"....", "a..."}


def test_write_that_was_answered_during_the_flush_is_not_promised() -> None:
    record = [entry(10, "a"), entry(20, "b", at=1), flush(30, begun=10)]
    assert states(record, 30) == {"a...", "ab.."}


def test_write_under_way_may_have_been_done_in_part() -> None:
    record = [entry(10, "a"), flush(20), entry(40, "bc", begun=20)]
    assert states(record, 20) == {"a..."}
    assert states(record, 30) == {"a...", "b...", "ac..", "bc.."}


def test_fua_is_there_and_what_was_written_before_it_need_not_be() -> None:
    record = [entry(10, "aa"), entry(20, "b", flags=DURABLE), entry(30, "c", at=3, flags=DURABLE)]
    assert states(record, 20) == {"b...", "ba.."}
    assert states(record, 30) == {"b..c", "ba.c"}


def test_later_write_may_be_there_without_the_earlier_one() -> None:
    assert states([entry(10, "a"), entry(20, "b")], 20) == {"....", "a...", "b..."}


def test_failed_write_is_open_over_a_flush() -> None:
    assert states([entry(10, "ab", flags=FAILED), flush(20)], 20, tries=200) == {"....", "a...", ".b..", "ab.."}


def test_zeros_and_discards_are_writes_and_a_vague_discard_is_open() -> None:
    record = [entry(10, "xx", kind=ZEROES), entry(20, "x", at=3, kind=DISCARD, flags=READS_ZEROES), flush(30)]
    assert states(record, 30) == {"00.0"}
    assert states([entry(10, "x", kind=DISCARD), flush(20)], 20) == {"....", "0..."}


def test_states_in_ascending_order_are_those_of_each_moment_alone() -> None:
    record = [entry(10, "ab"), flush(20), entry(30, "cd", at=1), flush(40), entry(50, "e", flags=DURABLE)]
    one = Crashes(record, bytearray(4 * SECTOR))
    for moment in (10, 20, 25, 30, 40, 50):
        alone = Crashes(record, bytearray(4 * SECTOR))
        assert one.state(moment, "all") == alone.state(moment, "all")
        assert one.state(moment, "nothing") == alone.state(moment, "nothing")


def test_name_may_hold_what_was_synced_last_or_what_came_later() -> None:
    versions = [Version("n", "1", 10, 20), Version("n", "2", 30, 40), Version("n", None, 50, 60)]
    history = History(0, versions)
    expected = {5: {}, 15: {"n": {None, "1"}}, 20: {"n": {"1"}}, 35: {"n": {"1", "2"}}, 60: {"n": {None}}}
    assert {moment: history.allowed(moment) for moment in expected} == expected


def test_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    history = History(7, [Version("n", "1", 10, 20), Version("n", None, 50, 60)])
    history.save(tmp_path / "history")
    assert History.load(tmp_path / "history") == history


def test_moments_are_in_order_within_the_workload_and_the_same_for_a_seed() -> None:
    record = [entry(end, "a") if end % 50 else flush(end) for end in range(10, 1000, 10)]
    chosen = moments(record, History(500, [Version("n", "1", 600, 610)]), 40, 1)
    assert len(chosen) == 40
    assert chosen == sorted(chosen)
    assert chosen == moments(record, History(500, [Version("n", "1", 600, 610)]), 40, 1)
    assert min(chosen)[0] >= 500
    assert {choice for _, choice in chosen} == set(CHOICES)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(4 << 20))
    tool("mkfs.ext4", "-q", "-F", "-b", "1024", path)
    (tmp_path / "content").write_bytes(b"content")
    tool("debugfs", "-w", "-R", f"write {tmp_path / 'content'} name", path)
    return path


def history_of(content: bytes) -> History:
    return History(0, [Version("name", hashlib.sha256(content).hexdigest(), 1, 2)])


@pytest.mark.judge("mkfs.ext4", "e2fsck", "debugfs")
def test_file_that_is_lost_or_differs_is_found(image: Path) -> None:
    verify(image, 2, history_of(b"content"))
    assert contents_by_fsck(image, ["name", "other"])["other"] is None
    with pytest.raises(Violation, match="not what was synced"):
        verify(image, 2, history_of(b"another"))
    tool("debugfs", "-w", "-R", "rm name", image)
    with pytest.raises(Violation, match="lost"):
        verify(image, 2, history_of(b"content"))
    verify(image, 1, history_of(b"content"))


@pytest.mark.judge("mkfs.ext4", "e2fsck", "debugfs")
def test_file_system_that_is_damaged_is_found(image: Path) -> None:
    tool("debugfs", "-w", "-R", "clri <2>", image)
    with pytest.raises(Violation, match="e2fsck"):
        verify(image, 2, history_of(b"content"))


@pytest.mark.judge("mkfs.ext4", "e2fsck", "debugfs")
def test_each_state_is_a_file_of_its_own_that_no_loop_device_can_still_have(image: Path, tmp_path: Path) -> None:
    record = [flush(10), flush(20), flush(30)]
    states = run(record, bytearray(image.read_bytes()), History(), tmp_path, points=2)
    next(states)
    with (tmp_path / "state.img").open("rb") as held:
        next(states)
        assert os.fstat(held.fileno()).st_ino != (tmp_path / "state.img").stat().st_ino


@pytest.mark.judge("mkfs.ext4", "e2fsck", "debugfs")
def test_command_checks_a_record_and_tells_what_is_not_whole(image: Path, tmp_path: Path) -> None:
    record = tmp_path / "record"
    with image.open("rb") as file:
        content = file.read()
    disk = tmp_path / "disk"
    disk.touch()
    plugins = load()
    below = plugins.open("file", plugins.prepare("file", {"path": str(disk), "size": len(content)}))
    device = plugins.wrap(below, "record", {"path": str(record)})
    assert isinstance(device, Recording)
    for at in range(0, len(content), 1 << 20):
        device.write(memoryview(content)[at : at + (1 << 20)], at)
    device.flush()
    synced = record.stat().st_size
    device.write(memoryview(bytes(4096)), 0)  # the superblock goes
    device.flush()
    device.close()
    History(synced, [Version("name", hashlib.sha256(b"content").hexdigest(), synced, synced)]).save(tmp_path / "good")
    argv = [sys.executable, str(Path(__file__).parent / "replay.py"), str(record), "--history", str(tmp_path / "good")]
    done = subprocess.run([*argv, "--points", "1"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 states, each whole\n", "")
    done = subprocess.run([*argv, "--points", "30"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "e2fsck" in done.stderr


def test_record_of_nothing_is_told(tmp_path: Path) -> None:
    record = Record(str(tmp_path / "record"), 4096, 512)
    record.close()
    with pytest.raises(Violation, match="is empty"):
        load_record(tmp_path / "record")
