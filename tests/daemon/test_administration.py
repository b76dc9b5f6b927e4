"""The commands ``reload`` and ``lun``: what they ask for, what they refuse, and when they answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.daemon.administration import Administration
from iscsid.daemon.reloader import Answer
from iscsid.errors import ScsiError
from iscsid.scsi.removable import Medium
from iscsid.scsi.sense import Reason
from iscsid.shared.rules import MediumChange, UnitState
from iscsid.specs import LunSpec, ServerSpec, TargetSpec

SPEC = ServerSpec(targets=(TargetSpec("disk", (LunSpec(0, "file", serial="S"),)),))
LUN = {"command": "lun", "target": "disk", "lun": 0}
DONE = {"ok": True, "rows": [], "problems": []}


class Rig:
    def __init__(self, medium: Medium) -> None:
        self.asked: list[Any] = []
        self.answers: list[Any] = []
        reloader = SimpleNamespace(
            reload=lambda done, now: self.asked.append(("reload", done)),
            reopen=lambda target, lun, done, now, size, cut: self.asked.append(("reopen", target, lun, size, cut)),
            clone=lambda target, lun, *what: self.asked.append(("clone", target, lun, *what)),
            snapshot=lambda target, lun, *what: self.asked.append(("snapshot", target, lun, *what)),
            look=lambda serial, done, now: self.asked.append(("look", serial, done)),
        )
        arbiter = SimpleNamespace(
            authority=SimpleNamespace(state=lambda _: UnitState(medium=medium)),
            change_medium=lambda serial, change, done, now: self.asked.append(("medium", serial, change, done)),
        )
        self.commands = Administration(SimpleNamespace(spec=SPEC, reloader=reloader, arbiter=arbiter))  # type: ignore[arg-type]
        self.client: Any = SimpleNamespace(deadline=5.0)
        self.control: Any = SimpleNamespace(answer=lambda _client, answer: self.answers.append(answer))

    def lun(self, **keys: Any) -> Any:
        return self.commands.lun(self.control, self.client, {**LUN, **keys}, 0.0)


OUT, IN = Medium(removable=True, loaded=False), Medium(removable=True)


def test_reload_is_answered_when_it_is_done_and_the_client_may_wait() -> None:
    rig = Rig(IN)
    assert rig.commands.reload(rig.control, rig.client, {"command": "reload"}, 0.0) is None
    assert rig.client.deadline > 60
    ((_, done),) = rig.asked
    done(Answer((("x", "added"),)))
    assert rig.answers == [{**DONE, "rows": [["x", "added"]]}]


def test_eject_is_asked_of_the_authority() -> None:
    rig = Rig(IN)
    assert rig.lun(verb="eject", force=True) is None
    ((_, serial, change, done),) = rig.asked
    assert (serial, change) == ("S", MediumChange(False, True))
    done(None)
    assert rig.answers[0]["rows"] == [["target disk lun 0", "ejected"]]


def test_load_looks_for_another_medium_first() -> None:
    rig = Rig(OUT)
    rig.lun(verb="load")
    ((what, _, looked),) = rig.asked
    assert what == "look"
    looked(Answer())
    assert rig.asked[1][2] == MediumChange(True)


def test_medium_that_cannot_be_opened_is_not_loaded() -> None:
    rig = Rig(OUT)
    rig.lun(verb="load")
    rig.asked[0][2](Answer(problems=("planted",)))
    assert rig.answers == [{**DONE, "problems": ["planted"]}]
    assert len(rig.asked) == 1


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (Reason.INVALID_FIELD_IN_CDB, "not removable"),
        (Reason.MEDIUM_REMOVAL_PREVENTED, "--force"),
        (Reason.LOGICAL_UNIT_NOT_SUPPORTED, "gone meanwhile"),
    ],
)
def test_refusal_of_the_authority_is_told_in_words(reason: Reason, words: str) -> None:
    rig = Rig(IN)
    rig.lun(verb="eject")
    rig.asked[0][3](ScsiError(reason))
    assert words in rig.answers[0]["problems"][0]


def test_resize_asks_for_the_size() -> None:
    rig = Rig(IN)
    rig.lun(verb="resize", size=1024)
    rig.lun(verb="resize")
    rig.lun(verb="resize", size=512, shrink=True)
    found = [call[3:] for call in rig.asked]
    assert found == [(1024, False), (None, False), (512, True)]


def test_clone_asks_for_the_file() -> None:
    rig = Rig(IN)
    rig.lun(verb="clone", destination="/new")
    assert rig.asked[0][:4] == ("clone", "disk", 0, "/new")


def test_snapshot_asks_for_what_is_to_be_done_and_tells_all_that_there_are() -> None:
    rig = Rig(IN)
    rig.lun(verb="snapshot", action="create", name="x")
    rig.lun(verb="snapshot", action="list")
    assert [call[:5] for call in rig.asked] == [
        ("snapshot", "disk", 0, "create", "x"),
        ("snapshot", "disk", 0, "list", ""),
    ]
    rig.asked[1][5](Answer(facts={"snapshots": []}))
    assert rig.answers == [{**DONE, "snapshots": []}]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"verb": "explode"}, "verb must be one of eject, load, resize"),
        ({}, "verb must be one of"),
        ({"verb": "eject", "size": 5}, "unknown: size"),
        ({"verb": "eject", "force": 1}, "force must be"),
        ({"verb": "resize", "size": True}, "size must be"),
        ({"verb": "resize", "size": -1}, "size must be"),
        ({"verb": "resize", "size": 512, "shrink": "yes"}, "shrink must be"),
        ({"verb": "snapshot", "action": "explode", "name": "x"}, "action must be one of list, create"),
        ({"verb": "snapshot", "action": "create"}, "name must be that of a snapshot"),
        ({"verb": "snapshot", "action": "apply", "name": ""}, "name must be"),
        ({"verb": "snapshot", "action": "apply", "name": 7}, "name must be"),
        ({"verb": "snapshot", "action": "list", "name": "x"}, "name must be"),
        ({"verb": "clone"}, "destination must be an absolute path"),
        ({"verb": "clone", "destination": "here"}, "destination must be an absolute path"),
        ({"verb": "load", "lun": "0"}, "lun a number"),
        ({"verb": "load", "target": 7}, "target must be a name"),
        ({"verb": "load", "lun": 9}, "no LUN 9"),
        ({"verb": "load", "target": "x"}, "no target x"),
    ],
)
def test_nonsense_is_refused(keys: dict[str, Any], words: str) -> None:
    rig = Rig(IN)
    answer = rig.lun(**keys)
    assert words in answer["problems"][0]
    assert not rig.asked


def test_reload_takes_nothing() -> None:
    rig = Rig(IN)
    answer = rig.commands.reload(rig.control, rig.client, {"command": "reload", "file": "x"}, 0.0)
    assert answer is not None and answer["problems"] == ["unknown: file"]
