"""Configurations of other servers, by their formats: told apart by what stands in them, and made drafts of ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from iscsid.compat import auths, convert, ctlconf, saveconfig, targets, tgtconf
from iscsid.compat.draft import Draft

STATE_DIR: Final = "/var/lib/iscsid-server"


@dataclass(frozen=True, slots=True)
class Format:
    """``looks`` tells whether a text is of this format; the first that says so is believed."""

    name: str
    doc: str
    looks: Callable[[str], object]
    read: Callable[[str], Draft]


def _line(pattern: str) -> Callable[[str], object]:
    return re.compile(rf"^\s*(?:{pattern})", re.MULTILINE).search


def from_targets(text: str, accounts: auths.Auths | None = None, state_dir: str = STATE_DIR) -> Draft:
    """Return the draft of a targets(5) file; ``accounts``: the auths file beside it."""
    file = targets.parse(text)
    draft = Draft(notes=list(file.messages))
    auth = convert.auth_table(accounts) if accounts is not None else None
    draft.targets = convert.target_tables(file, convert.Settings(state_dir, auth=auth))
    for target in file.targets.values():
        for extent in convert.extents(target.storage):
            if convert.medium_size(extent.path) is None and (target.readonly or not extent.length):
                draft.note(target.line, f"{extent.path} is not there, so `iscsid check` will refuse this until it is")
    if convert.has_mirror([target.storage for target in file.targets.values()]):
        folder = f"{state_dir}/{convert.MIRRORS}"
        draft.note(1, f"the mirrors remember in {folder} which leg misses what: make that folder")
    return draft


FORMATS: Final = (
    Format("lio", "saveconfig.json of Linux's targetcli", lambda text: text.lstrip().startswith("{"), saveconfig.read),
    Format("tgt", "targets.conf of Linux's tgt", _line(r"<\s*target\b|default-driver\b|include\s+/"), tgtconf.read),
    Format("ctl", "ctl.conf of FreeBSD", _line(r"(?:auth-group|portal-group|target|lun)\s[^\n{]*\{"), ctlconf.read),
    Format("targets", "targets(5) of NetBSD", _line(r"(?:extent|device|target|lun)\S*[ \t]+\S"), from_targets),
)


def detect(text: str) -> Format | None:
    """Return the format that a text looks like; None when it looks like none."""
    return next((found for found in FORMATS if found.looks(text)), None)
