"""targets(5) and auths as tables of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from iscsid import config
from iscsid.compat import auths, convert, targets
from iscsid.compat.convert import Settings


def tables(text: str, folder: Path, **settings: Any) -> list[dict[str, Any]]:
    file = targets.parse(text.replace("@", str(folder)))
    assert file.messages == []
    found = convert.target_tables(file, Settings(str(folder), **settings))
    (folder / convert.MIRRORS).mkdir(exist_ok=True)
    config.read({"target": found})  # what is made is always accepted
    return found


def test_extent_that_is_missing_becomes_a_file_that_is_made(tmp_path: Path) -> None:
    (table,) = tables("extent0 @/a 0 100MB\ntarget0 rw extent0 0.0.0.0/0\n", tmp_path)
    assert table == {
        "name": "iqn.1994-04.org.netbsd.iscsi-target:target0",
        "lun": [
            {
                "lun": 0,
                "backend": "file",
                "path": f"{tmp_path}/a",
                "size": 100 << 20,
                "block_size": 512,
                "vendor": "NetBSD",
                "product": "NetBSD iSCSI",
            }
        ],
    }


def test_two_extents_of_one_file_are_parts_of_it(tmp_path: Path) -> None:
    text = "extent0 @/a 0 1MB\nextent1 @/a 1048576 2MB\ntarget0 rw extent0 any\ntarget1 rw extent1 any\n"
    first, second = (table["lun"][0] for table in tables(text, tmp_path))
    assert first["size"] == second["size"] == 3 << 20
    assert first["layers"] == [{"layer": "offset", "offset": 0, "size": 1 << 20}]
    assert second["layers"] == [{"layer": "offset", "offset": 1 << 20, "size": 2 << 20}]


def test_what_several_targets_have_is_one_disk_with_one_serial_number(tmp_path: Path) -> None:
    text = (
        "extent0 @/a 0 1MB\nextent1 @/a 0 1MB\nextent2 @/a 1048576 1MB\nextent3 @/b 0 1MB\n"
        "device0 RAID0 extent2 extent3\ntarget0 rw extent0 any\ntarget1 ro extent1 10/8\ntarget2 rw extent2 any\n"
    )
    first, second, third = (table["lun"][0] for table in tables(text, tmp_path))
    assert len(first["serial"]) == 16 and first["serial"] == second["serial"]
    assert "serial" not in third, "that of a target of its own stays as it was"
    again, *_ = tables(text, tmp_path)
    assert again["lun"][0]["serial"] == first["serial"]
    first, second = (table["lun"][0] for table in tables(text.partition("target0")[0] + DEVICES, tmp_path))
    assert first["backend"] == "concat" and first["serial"] == second["serial"]


DEVICES = "target0 rw device0 any\ntarget1 rw device0 any\n"


def test_part_of_a_larger_file_is_cut_by_a_layer_and_the_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    (table,) = tables("extent0 @/a 0 4k\ntarget0 rw extent0 any\n", tmp_path)
    assert "size" not in table["lun"][0]
    assert table["lun"][0]["layers"] == [{"layer": "offset", "offset": 0, "size": 4096}]


@pytest.mark.parametrize("offset", [0, 4096])
def test_whole_file_is_what_is_behind_the_offset(tmp_path: Path, offset: int) -> None:
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    file = targets.parse(f"extent0 {tmp_path}/a {offset} size\ntarget0 ro extent0 any\n")
    sized = convert.sized(file.targets["target0"].storage)
    assert isinstance(sized, targets.Extent)
    assert sized.length == (1 << 20) - offset
    (table,) = tables(f"extent0 @/a {offset} size\ntarget0 ro extent0 any\n", tmp_path)
    assert table["lun"][0].get("layers") == ([{"layer": "offset", "offset": offset}] if offset else None)
    assert table["lun"][0]["readonly"] is True


def test_devices_become_concat_and_mirror(tmp_path: Path) -> None:
    text = (
        "extent0 @/a 0 1MB\nextent1 @/b 0 1MB\nextent2 @/c 0 1MB\n"
        "device0 RAID1 extent0 extent1\ndevice1 RAID0 device0 extent2\ntarget0 rw device1 any\n"
    )
    lun = tables(text, tmp_path)[0]["lun"][0]
    assert lun["backend"] == "concat"
    mirror, last = lun["members"]
    assert mirror["backend"] == "mirror"
    assert [leg["path"] for leg in mirror["members"]] == [f"{tmp_path}/a", f"{tmp_path}/b"]
    assert mirror["state"].startswith(f"{tmp_path}/mirrors/device0-")
    assert last["path"] == f"{tmp_path}/c"
    again = tables("extent9 @/z 0 1MB\ntarget9 rw extent9 any\n" + text, tmp_path)[1]["lun"][0]
    assert again["members"][0]["state"] == mirror["state"]


@pytest.mark.parametrize(
    ("mask", "networks"),
    [
        ("any", None),
        ("0/0", None),
        ("10.4/16", ["10.4.0.0/16"]),
        ("10.1.2.3", ["10.1.2.3/32"]),
        ("none", ["0.0.0.0/32"]),
        ("2001:db8::/32", ["2001:db8::/32"]),
    ],
)
def test_masks_become_networks(tmp_path: Path, mask: str, networks: list[str] | None) -> None:
    (table,) = tables(f"extent0 @/a 0 1MB\ntarget0 rw extent0 {mask}\n", tmp_path)
    assert table.get("networks") == networks


def test_settings_reach_every_target(tmp_path: Path) -> None:
    auth = convert.auth_table(auths.parse("me:chap:secret\nME:chap:other\nnulltest:none:\n"))
    assert auth == {"chap": [{"user": "me", "secret": "secret"}], "ignore_case": True, "allow_short_secrets": True}
    text = "extent0 @/a 0 1MB\ntarget0 rw extent0 any\ntarget1=iqn.2001-01.org.example:x rw extent0 any\n"
    first, second = tables(text, tmp_path, iqn="iqn.2026-11.org.example", block_length=4096, auth=auth)
    assert [first["name"], second["name"]] == ["iqn.2026-11.org.example:target0", "iqn.2001-01.org.example:x"]
    assert first["lun"][0]["block_size"] == 4096
    assert first["auth"] == second["auth"] == auth


def test_auths_without_chap_users_ask_nobody() -> None:
    assert convert.auth_table(auths.parse("nulltest:none:\n# a:chap:b\n")) is None


def test_place_of_a_device_that_is_not_there_is_a_device() -> None:
    assert convert.is_device("/dev/no-such-disk")
    assert not convert.is_device("/no-such-folder/x")
    assert convert.medium_size("/no-such-folder/x") is None
