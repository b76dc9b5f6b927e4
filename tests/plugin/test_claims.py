"""plugin.claims: what a LUN claims, and which two claims cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from iscsid.plugin.claims import Claim, claims_of, file_at
from iscsid.plugin.info import check_options
from iscsid.plugin.manager import Plugins, load

ONE = Claim(("file", 1, 2), "/a", "path")


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load()


def claimed(
    plugins: Plugins, backend: str, options: Mapping[str, Any], *layers: tuple[str, Any], readonly: bool = False
) -> list[Claim]:
    values, problems = check_options(plugins.backends[backend].options, options)
    assert not problems
    return list(claims_of(plugins, backend, values, layers, readonly))


@pytest.mark.parametrize(
    ("one", "other", "excludes"),
    [
        ({}, {}, (True, False)),
        ({"reads": True}, {}, (True, False)),
        ({"reads": True}, {"reads": True}, (False, False)),
        ({"alone": True}, {}, (True, True)),
        ({"alone": True, "reads": True}, {"alone": True, "reads": True}, (False, False)),
        ({"alone": True, "shares": True}, {"shares": True}, (True, True)),
        ({"part": True}, {}, (True, False)),
        ({"part": True}, {"part": True}, (False, False)),
        ({"part": True, "alone": True}, {"part": True}, (True, True)),
        ({"shares": True}, {"shares": True}, (False, False)),
        ({"shares": True}, {}, (True, False)),
        ({"medium": "another"}, {}, (False, False)),
    ],
)
def test_claims_exclude_each_other_unless(
    one: Mapping[str, Any], other: Mapping[str, Any], excludes: tuple[bool, bool]
) -> None:
    """Of two units, and of one."""
    first, second = replace(ONE, **one), replace(ONE, **other)
    for here, there in ((first, second), (second, first)):
        assert (here.excludes(there, False), here.excludes(there, True)) == excludes


def test_one_file_is_one_whatever_it_is_called(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "symbolic").symlink_to(file)
    os.link(file, tmp_path / "hard")
    (tmp_path / "folder").symlink_to(tmp_path)
    names = [file, tmp_path / "symbolic", tmp_path / "hard", tmp_path / "folder/file", tmp_path / "x/../file"]
    (tmp_path / "x").mkdir()
    assert len({file_at(str(name)) for name in names}) == 1
    assert file_at(str(tmp_path / "other")) != file_at(str(file))


def test_file_that_is_yet_to_be_made_is_one_whatever_its_folder_is_called(tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    names = [tmp_path / "new", tmp_path / "folder/new", tmp_path / "dangling"]
    assert len({file_at(str(name)) for name in names}) == 1
    assert file_at("/nowhere/at/all") == file_at("/nowhere/at/./all")


def test_disk_is_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = os.stat_result((0o060660, 5, 6, 1, 0, 0, 0, 0, 0, 0), {"st_rdev": 0x701})
    monkeypatch.setattr(os, "stat", lambda path: facts)
    assert file_at("/dev/loop1") == ("disk", 0x701)


def test_back_end_claims_its_media_and_a_layer_its_files(plugins: Plugins) -> None:
    layers = (("checksum", {"path": "/sums"}), ("stats", {"path": "/stats"}), ("rate", {"iops": 5}))
    disk, sums, stats = claimed(plugins, "file", {"path": "/disk"}, *layers)
    assert (disk.name, disk.key, disk.layer, disk.reads, disk.alone) == ("/disk", "path", -1, False, True)
    assert (sums.name, sums.key, sums.layer, sums.alone) == ("/sums", "path", 0, True)
    assert (stats.name, stats.layer, stats.alone) == ("/stats", 1, False)
    assert claimed(plugins, "ram", {"size": 4096}) == []
    assert claimed(plugins, "file", {"path": "/disk"}, ("cow", {}))[0].name == "/disk"


def test_name_of_an_export_is_claimed_as_it_is(plugins: Plugins) -> None:
    (claim,) = claimed(plugins, "nbd", {"uri": "nbd://host/disk"})
    assert (claim.medium, claim.alone) == (("nbd", "nbd://host/disk"), True)
    (shared,) = claimed(plugins, "nbd", {"uri": "nbd://host/disk", "shared": True})
    assert not shared.alone


def test_what_is_below_an_overlay_is_only_read(plugins: Plugins) -> None:
    base, overlay = claimed(plugins, "file", {"path": "/disk"}, ("cow", {"path": "/cow"}))
    assert (base.reads, overlay.reads) == (True, False)


def test_readonly_unit_only_reads_and_its_layers_write_still(plugins: Plugins) -> None:
    disk, sums = claimed(plugins, "file", {"path": "/disk"}, ("checksum", {"path": "/sums"}), readonly=True)
    assert (disk.reads, sums.reads) == (True, False)


def test_part_and_share_are_told(plugins: Plugins) -> None:
    (part,) = claimed(plugins, "file", {"path": "/disk", "share": True}, ("offset", {"offset": 512}))
    assert (part.part, part.shares) == (True, True)


def test_members_claim_for_the_whole(plugins: Plugins) -> None:
    legs = [{"backend": "file", "path": "/a", "layers": [{"layer": "cow", "path": "/c"}]}, {"backend": "null"}]
    state, base, overlay = claimed(plugins, "mirror", {"members": legs, "state": "/state"})
    assert (state.name, state.key, state.alone, state.member) == ("/state", "state", True, "")
    assert (base.name, base.member, base.reads, base.alone) == ("/a", "members[0]: ", True, True)
    assert (overlay.name, overlay.member, overlay.layer, overlay.alone) == ("/c", "members[0]: ", -1, True)
