"""LIO's saveconfig.json: what of it becomes a configuration, and what is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from iscsid.compat import saveconfig

NAME = "iqn.2003-01.org.linux-iscsi.host:sn.1"


def sample(folder: Path, **group: Any) -> dict[str, Any]:
    tpg = {
        "tag": 1,
        "enable": True,
        "attributes": {"authentication": 1, "generate_node_acls": 0},
        "parameters": {"InitialR2T": "Yes", "MaxBurstLength": "262144", "AuthMethod": "CHAP"},
        "luns": [
            {"index": 0, "storage_object": "/backstores/fileio/disk"},
            {"index": 1, "storage_object": "/backstores/ramdisk/mem"},
            {"index": 2, "storage_object": "/backstores/pscsi/tape"},
        ],
        "node_acls": [
            {
                "node_wwn": "iqn.1994-05.com.redhat:me",
                "chap_userid": "me",
                "chap_password": "a secret of mine",
                "chap_mutual_userid": "it",
                "chap_mutual_password": "a secret of its",
                "mapped_luns": [{"index": 0, "tpg_lun": 0, "write_protect": True}],
            }
        ],
        "portals": [{"ip_address": "0.0.0.0", "port": 3260}, {"ip_address": "::1", "port": 3261}],
        **group,
    }
    stores = [
        {"plugin": "fileio", "name": "disk", "dev": f"{folder}/d.img", "size": 1 << 20, "wwn": "0" * 36},
        {"plugin": "ramdisk", "name": "mem", "size": 1 << 20, "attributes": {"block_size": 4096}},
        {"plugin": "pscsi", "name": "tape", "dev": "/dev/st0"},
    ]
    return {"storage_objects": stores, "targets": [{"fabric": "iscsi", "wwn": NAME, "tpgs": [tpg]}]}


def test_sample_becomes_a_target(tmp_path: Path) -> None:
    draft = saveconfig.read(json.dumps(sample(tmp_path), indent=2))
    (target,) = draft.targets
    assert draft.server == {"portals": ["0.0.0.0:3260", "[::1]:3261"]}
    assert target["name"] == NAME
    assert target["initiators"] == ["iqn.1994-05.com.redhat:me"]
    assert target["parameters"] == {"InitialR2T": True, "MaxBurstLength": 262144}
    assert target["auth"] == {
        "chap": [{"user": "me", "secret": "a secret of mine"}],
        "mutual": {"user": "it", "secret": "a secret of its"},
    }
    path = f"{tmp_path}/d.img"
    assert target["lun"] == [
        {"lun": 0, "backend": "file", "path": path, "size": 1 << 20, "serial": "0" * 36, "readonly": True},
        {"lun": 1, "backend": "ram", "size": 1 << 20, "block_size": 4096},
    ]
    (note,) = draft.notes
    assert "pscsi" in note.text
    assert note.number > 1


@pytest.mark.parametrize(
    ("group", "word"),
    [
        ({"node_acls": []}, "no node_acls"),
        ({"enable": False}, "no portal group"),
        ({"node_acls": [{"node_wwn": "iqn.1994-05.com.redhat:me"}]}, "nobody has an account"),
    ],
)
def test_target_that_nobody_may_use_is_left_out_and_told(tmp_path: Path, group: dict[str, Any], word: str) -> None:
    draft = saveconfig.read(json.dumps(sample(tmp_path, **group)))
    assert draft.targets == []
    assert any(word in note.text for note in draft.notes)


def test_demo_mode_lets_all_in_and_protects(tmp_path: Path) -> None:
    attributes = {"authentication": 0, "generate_node_acls": 1}
    (target,) = saveconfig.read(json.dumps(sample(tmp_path, attributes=attributes, node_acls=[]))).targets
    assert "initiators" not in target
    assert "auth" not in target
    assert all(lun["readonly"] for lun in target["lun"])


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000])
def test_what_is_no_object_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        saveconfig.read(text)
