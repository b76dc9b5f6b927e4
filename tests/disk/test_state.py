"""The state of a copy: kept in one step, read with care."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from disk_kit import MemoryEnd

from iscsid.disk import state as states
from iscsid.disk.ends import EndError
from iscsid.disk.state import CopyState


def test_state_comes_back_as_it_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state"
    state = CopyState({"path": "/a", "size": 5}, {"url": "iscsi://h/t/0"}, 3)
    states.save(path, state)
    assert states.load(path) == state
    assert [found.name for found in path.parent.iterdir()] == ["state"]
    states.forget(path)
    assert states.load(path) is None
    states.forget(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b'{"version": 2, "source": {}, "destination": {}, "position": 0}',
        b'{"version": 1, "source": {}, "position": 0}',
        b'{"version": 1, "source": {}, "destination": {}, "position": -1}',
        b'{"version": 1, "source": {}, "destination": {}, "position": "0"}',
        b'{"version": 1, "source": [], "destination": {}, "position": 0}',
        b'{"version": 1, "source": {}, "destination": {}, "position": 0, "more": 1}',
        b"\xff\xfe",
        b" " * states.MAX_STATE + b"{}",
    ],
)
def test_what_is_no_state_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    with pytest.raises(EndError, match="is not the state of a copy"):
        states.load(path)


def test_state_that_cannot_be_kept_or_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EndError, match="cannot be kept"):
        states.save(tmp_path / "file" / "state", CopyState({}, {}))
    with pytest.raises(EndError, match="directory"):
        states.load(tmp_path)


@pytest.mark.parametrize(("which", "message"), [(0, "the source one is not"), (1, "the destination two is not")])
def test_state_of_another_copy_is_refused(which: int, message: str) -> None:
    ends = [MemoryEnd(b"abc", name="one"), MemoryEnd(b"abc", name="two")]
    state = CopyState.of(*ends)
    state.check(*ends)
    ends[which].identity["size"] = 4
    with pytest.raises(EndError, match=message + ".*: another size;"):
        state.check(*ends)


def test_state_lies_beside_a_file_and_in_the_users_folder_for_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert states.state_path("/srv/x.img", None) == Path("/srv/x.img.iscsid-copy")
    one, other = (states.state_path("", f"iscsi://h/t/{lun}") for lun in (0, 1))
    assert one != other
    assert one.parent == other.parent == tmp_path / "iscsid-copy"
    assert states.state_path("/dev/sdx", None).parent == tmp_path / "iscsid-copy"


def test_state_says_which_version_it_is(tmp_path: Path) -> None:
    states.save(tmp_path / "state", CopyState({}, {}))
    assert json.loads((tmp_path / "state").read_text())["version"] == states.VERSION
