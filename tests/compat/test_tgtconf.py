"""tgt's targets.conf: what of it becomes a configuration, and what is told."""

from __future__ import annotations

from pathlib import Path

from iscsid.compat import tgtconf

SAMPLE = """\
default-driver iscsi
include /etc/tgt/conf.d/*.conf
incomingdiscoveryuser finder "secret of the finder"
<target iqn.2001-04.com.example:one>   # a comment
    backing-store {0}/a.img
    <backing-store {0}/b.img>
        vendor_id ACME
        product_id Disk of many words
        scsi_sn SN7
        lun 5
        readonly 1
        scsi_sn_nonsense 1
    </backing-store>
    <backing-store {0}/c.iso>
        device-type cd
    </backing-store>
    <backing-store pool/image>
        bs-type rbd
    </backing-store>
    incominguser alice "a secret of alice"
    outgoinguser target "secret of target"
    initiator-address 192.168.0.0/24
    initiator-address somewhere
    initiator-name iqn.2001-04.com.example:me
    MaxBurstLength 65536
    nop_interval 5
</target>
<target iqn.2001-04.com.example:two>
    initiator-address ALL
    incominguser bob short
</target>
"""


def test_sample_becomes_two_targets(tmp_path: Path) -> None:
    for name in ("a.img", "b.img", "c.iso"):
        (tmp_path / name).write_bytes(bytes(4096))
    draft = tgtconf.read(SAMPLE.format(tmp_path))
    one, two = draft.targets
    assert one["name"] == "iqn.2001-04.com.example:one"
    assert one["networks"] == ["192.168.0.0/24", "0.0.0.0/32"]
    assert one["initiators"] == ["iqn.2001-04.com.example:me"]
    assert one["parameters"] == {"MaxBurstLength": 65536}
    assert one["auth"]["chap"] == [{"user": "alice", "secret": "a secret of alice"}]
    assert one["auth"]["mutual"] == {"user": "target", "secret": "secret of target"}
    assert one["lun"] == [
        {"lun": 1, "backend": "file", "path": f"{tmp_path}/a.img"},
        {
            "lun": 5,
            "backend": "file",
            "path": f"{tmp_path}/b.img",
            "vendor": "ACME",
            "product": "Disk of many wor",
            "serial": "SN7",
            "readonly": True,
        },
        {"lun": 2, "backend": "file", "path": f"{tmp_path}/c.iso", "readonly": True, "removable": True},
    ]
    assert two == {
        "name": "iqn.2001-04.com.example:two",
        "auth": {"chap": [{"user": "bob", "secret": "short"}], "allow_short_secrets": True},
    }
    assert draft.discovery == {"chap": [{"user": "finder", "secret": "secret of the finder"}]}
    told = {note.number: note.text for note in draft.notes}
    assert set(told) == {2, 4, 12, 14, 17, 23, 26, 28}
    assert "rbd" in told[17]


def test_blocks_that_do_not_match_are_told() -> None:
    draft = tgtconf.read("</target>\n<target iqn.2001-04.com.example:x>\n")
    assert [(note.number, note.text) for note in draft.notes] == [
        (1, "</target> closes nothing"),
        (2, "<target> is not closed"),
    ]
