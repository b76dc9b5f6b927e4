"""A whole copy, with files: when it begins again, when it goes on, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from iscsid.disk import state as states
from iscsid.disk.copy import Differs, Interrupted, Report
from iscsid.disk.ends import EndError
from iscsid.disk.job import Job

MIB = 1 << 20


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "source").write_bytes(os.urandom(5 * MIB + 7))
    return Job(str(tmp_path / "source"), str(tmp_path / "destination"))


def interrupt(job: Job) -> None:
    with pytest.raises(Interrupted):
        job.run(stop=lambda: True)


def test_copy_is_made_compared_and_forgotten(job: Job, tmp_path: Path) -> None:
    passes: list[tuple[str, int, int]] = []

    def begin(title: str, position: int, size: int) -> Report:
        passes.append((title, position, size))
        return lambda done: None

    dataclasses.replace(job, verify=True).run(begin)
    assert (tmp_path / "destination").read_bytes() == (tmp_path / "source").read_bytes()
    assert passes == [("copying", 0, 5 * MIB + 7), ("comparing", 0, 5 * MIB + 7)]
    assert not job.state_path.exists()


def test_interrupted_copy_is_resumed(job: Job, tmp_path: Path) -> None:
    interrupt(job)
    assert job.state_path == tmp_path / "destination.iscsid-copy"
    with pytest.raises(EndError, match="did not end; --resume goes on with it, --force begins again"):
        job.run()
    assert dataclasses.replace(job, resume=True).run().begin == MIB
    assert (tmp_path / "destination").read_bytes() == (tmp_path / "source").read_bytes()
    assert not job.state_path.exists()


def test_interrupted_copy_is_begun_again_by_force(job: Job, tmp_path: Path) -> None:
    interrupt(job)
    assert dataclasses.replace(job, force=True).run().begin == 0
    assert (tmp_path / "destination").read_bytes() == (tmp_path / "source").read_bytes()


def test_copy_killed_when_it_has_just_begun_again_is_not_resumed_from_the_old_place(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(job)
    with monkeypatch.context() as patch:

        def killed(path: Path, state: states.CopyState) -> None:
            raise SystemExit

        patch.setattr(states, "save", killed)
        with pytest.raises(SystemExit):
            dataclasses.replace(job, force=True).run()
    assert not any((tmp_path / "destination").read_bytes())
    assert dataclasses.replace(job, resume=True, force=True).run().begin == 0
    assert (tmp_path / "destination").read_bytes() == (tmp_path / "source").read_bytes()


def test_other_file_in_the_place_of_the_destination_is_not_resumed(job: Job, tmp_path: Path) -> None:
    interrupt(job)
    (tmp_path / "other").write_bytes(os.urandom(5 * MIB + 7))
    (tmp_path / "other").rename(tmp_path / "destination")
    with pytest.raises(EndError, match=r"the destination .* is not the one .*: another inode;"):
        dataclasses.replace(job, resume=True).run()


@pytest.mark.parametrize("size", [2 * MIB, 2 * MIB + 1, 9 * MIB])
def test_source_whose_size_changes_under_the_copy_is_an_error(job: Job, tmp_path: Path, size: int) -> None:
    def change() -> bool:
        os.truncate(tmp_path / "source", size)
        return False

    with pytest.raises(EndError, match=r"has become|has \d+ bytes now"):
        dataclasses.replace(job, depth=1).run(stop=change)


def test_resume_without_a_state_begins_at_the_beginning(job: Job) -> None:
    assert dataclasses.replace(job, resume=True).run().begin == 0
    with pytest.raises(EndError, match="exists"):
        dataclasses.replace(job, resume=True).run()


def test_source_that_changed_is_not_resumed(job: Job, tmp_path: Path) -> None:
    interrupt(job)
    os.utime(tmp_path / "source", (1, 1))
    with pytest.raises(EndError, match=r"the source .* is not the one .*: another mtime;"):
        dataclasses.replace(job, resume=True).run()
    assert job.state_path.exists()


def test_destination_that_is_gone_is_not_resumed(job: Job, tmp_path: Path) -> None:
    interrupt(job)
    (tmp_path / "destination").unlink()
    with pytest.raises(EndError, match="No such file"):
        dataclasses.replace(job, resume=True).run()


def test_copy_killed_while_it_compares_only_compares_again(job: Job) -> None:
    source = Path(job.source)
    calls: list[int] = []

    def begin(title: str, position: int, size: int) -> Report:
        if title == "comparing":
            raise KeyboardInterrupt
        return lambda done: None

    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(job, verify=True).run(begin)
    state = states.load(job.state_path)
    assert state is not None
    assert state.position == source.stat().st_size
    again = dataclasses.replace(job, verify=True, resume=True).run(stop=lambda: bool(calls))
    assert (again.begin, again.written) == (5 * MIB + 7, 0)


def test_difference_is_told_and_the_state_forgotten(job: Job, tmp_path: Path) -> None:
    def begin(title: str, position: int, size: int) -> Report:
        if title == "comparing":
            with (tmp_path / "destination").open("r+b") as file:
                file.seek(3 * MIB)
                file.write(b"0123456789abcdef")
        return lambda done: None

    with pytest.raises(Differs, match="at byte"):
        dataclasses.replace(job, verify=True).run(begin)
    assert not job.state_path.exists()


def test_message_about_a_disk_has_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    job = Job(str(tmp_path / "x"), "iscsi://me%hidden@192.0.2.1/iqn.2026-11.org.x:y/0")
    states.save(job.state_path, states.CopyState({}, {}))
    with pytest.raises(EndError, match=r"iscsi://192.0.2.1:3260/iqn.2026-11.org.x:y/0 did not end") as caught:
        job.run()
    assert "hidden" not in str(caught.value)
