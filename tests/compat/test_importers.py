"""Formats are told apart, and each comes out as a configuration that is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from iscsid import config
from iscsid.compat import auths, importers
from iscsid.compat.importers import FORMATS

SAMPLES = {
    "lio": json.dumps(
        {
            "storage_objects": [{"plugin": "fileio", "name": "d", "dev": "@/d", "size": 1 << 20}],
            "targets": [
                {
                    "fabric": "iscsi",
                    "wwn": "iqn.2003-01.org.linux-iscsi.host:sn.1",
                    "tpgs": [
                        {
                            "attributes": {"generate_node_acls": 1},
                            "luns": [{"index": 0, "storage_object": "/backstores/fileio/d"}],
                        }
                    ],
                }
            ],
        }
    ),
    "tgt": "# a file\n<target iqn.2001-04.com.example:one>\n backing-store @/there\n</target>\n",
    "ctl": "target iqn.2012-06.com.example:x {\n auth-group no-authentication\n lun 0 {\n path @/f\n size 1M\n }\n}\n",
    "targets": (
        "extent0 @/a 0 1MB\nextent1 @/b 0 1MB\nextent2 @/a 1048576 1MB\ndevice0 RAID1 extent0 extent1\n"
        "device1 RAID0 device0 extent2\ntarget0 rw device1 10.4/16\nlun1 ro extent3 any\n"
    ),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_sample_is_recognised_and_its_toml_accepted(tmp_path: Path, name: str) -> None:
    (tmp_path / "there").write_bytes(bytes(4096))
    (tmp_path / "mirrors").mkdir()
    text = SAMPLES[name].replace("@", str(tmp_path))
    found = importers.detect(text)
    assert found is not None
    assert found.name == name
    draft = importers.from_targets(text, state_dir=str(tmp_path)) if name == "targets" else found.read(text)
    spec, _ = config.parse(draft.toml("the file"))
    assert len(spec.targets) == 1
    assert len(spec.targets[0].luns) == 1


def test_what_looks_like_nothing_is_nothing() -> None:
    assert importers.detect("hello world\n[server]\n") is None
    assert importers.detect("") is None


def test_names_of_formats_are_unique() -> None:
    assert len({found.name for found in FORMATS}) == len(FORMATS)


def test_accounts_of_an_auths_file_come_with_its_targets(tmp_path: Path) -> None:
    accounts = auths.parse("me:CHAP:short\nnulltest:none:\n")
    draft = importers.from_targets(f"extent0 {tmp_path}/a 0 1MB\ntarget0 rw extent0 any\n", accounts, str(tmp_path))
    spec, _ = config.parse(draft.toml("f"))
    assert spec.targets[0].auth is not None
