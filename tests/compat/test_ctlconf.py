"""FreeBSD's ctl.conf: what of it becomes a configuration, and what is told."""

from __future__ import annotations

from pathlib import Path

from iscsid.compat import ctlconf
from iscsid.compat.draft import Draft

SAMPLE = """\
pidfile "/var/run/ctld.pid"
auth-group ag0 {
	chap "user" "a secret of 18 by"
	chap-mutual "other" "another secret" "target" "the target's own"
	initiator-portal [2001:db8::]/32
}
portal-group pg0 {
	discovery-auth-group no-authentication
	listen 0.0.0.0
	listen [::]:3261
}
lun example { path %s/b; size 1M; option vendor "ACME"; option foo bar }
target iqn.2012-06.com.example:target0 {
	alias "Example # target"
	auth-group ag0
	portal-group pg0
	lun 0 { path %s/a
		size 4M
		blocksize 4096
		serial S1
	}
	lun 1 example
	lun 2 { backend ramdisk; size 1G }
	lun 3 nowhere
}
target iqn.2012-06.com.example:closed { lun 0 { path /a } }
target iqn.2012-06.com.example:open { auth-group no-authentication; redirect 1.2.3.4 }
"""


def test_sample_becomes_targets(tmp_path: Path) -> None:
    draft = ctlconf.read(SAMPLE % (tmp_path, tmp_path))
    first, last = draft.targets
    assert draft.server == {"portals": ["0.0.0.0:3260", "[::]:3261"]}
    assert first["alias"] == "Example # target"
    assert first["networks"] == ["2001:db8::/32"]
    assert [account["user"] for account in first["auth"]["chap"]] == ["user", "other"]
    assert first["auth"]["mutual"] == {"user": "target", "secret": "the target's own"}
    assert first["lun"] == [
        {"lun": 0, "backend": "file", "path": f"{tmp_path}/a", "size": 4 << 20, "block_size": 4096, "serial": "S1"},
        {"lun": 1, "backend": "file", "path": f"{tmp_path}/b", "size": 1 << 20, "vendor": "ACME"},
        {"lun": 2, "backend": "ram", "size": 1 << 30},
    ]
    assert last == {"name": "iqn.2012-06.com.example:open"}
    told = {note.number: note.text for note in draft.notes}
    assert told == {
        12: "option foo is not translated",
        24: "lun 3 nowhere: there is no such lun",
        26: "iqn.2012-06.com.example:closed: nobody may use it: left out",
        27: "redirect is not translated",
    }


def test_braces_that_do_not_match_are_told() -> None:
    draft = Draft()
    ctlconf.parse("}\ntarget x {\n", draft)
    assert [(note.number, note.text) for note in draft.notes] == [
        (1, "a } that does not belong there"),
        (2, "target x is not closed"),
    ]
