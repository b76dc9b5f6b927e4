"""What the importers share."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from iscsid.compat.draft import Draft, auth, disk, number_of_bytes, portal


def test_notes_are_comments_in_front_whatever_is_in_them() -> None:
    draft = Draft(targets=[{"name": "iqn.2001-04.com.example:x"}])
    draft.note(3, "a\rb\x00\nsecond = 1")
    text = draft.toml("some file")
    assert "# - some file:3: a" in text
    assert tomli.loads(text) == {"target": [{"name": "iqn.2001-04.com.example:x"}]}


def test_secret_that_both_sides_have_is_not_kept_for_the_target() -> None:
    draft = Draft()
    table = auth(draft, 1, [("a", "the same secret"), ("a", "another")], ("t", "the same secret"))
    assert table == {"chap": [{"user": "a", "secret": "the same secret"}]}
    assert len(draft.notes) == 2
    assert not any("same secret" in note.text for note in draft.notes)


def test_file_larger_than_its_size_is_served_whole_and_told(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(bytes(4096))
    draft = Draft()
    assert disk(draft, 1, str(path), 1024) == {"backend": "file", "path": str(path)}
    assert "4096 bytes" in draft.notes[0].text


def test_disk_that_is_not_there_is_told() -> None:
    draft = Draft()
    assert disk(draft, 1, "/dev/no-such-disk") == {"backend": "block", "path": "/dev/no-such-disk"}
    assert "not there" in draft.notes[0].text


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512), ("4G", 4 << 30), ("10 MB", 10 << 20), ("x", None), ("1.5G", None)]
)
def test_sizes(text: str, size: int | None) -> None:
    assert number_of_bytes(text) == size


@pytest.mark.parametrize(
    ("host", "written"), [("::", "[::]:3260"), ("[::1]", "[::1]:3260"), ("192.0.2.1", "192.0.2.1:3260")]
)
def test_portals(host: str, written: str) -> None:
    assert portal(host) == written
