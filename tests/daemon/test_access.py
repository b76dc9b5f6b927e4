"""The command ``alua``: what it lists, what it changes in every worker, what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.daemon.access import AccessControl, port_groups
from iscsid.errors import ScsiError
from iscsid.scsi.ports import AccessState, PortGroup
from iscsid.scsi.sense import Reason
from iscsid.shared.rules import AccessChange, UnitState
from iscsid.specs import AccessSpec, LunSpec, PortalSpec, ServerSpec, TargetSpec

DISK, BARE = "iqn.2026-11.org.example:disk", "iqn.2026-11.org.example:bare"
SPEC = ServerSpec(
    portals=(PortalSpec("192.0.2.1"), PortalSpec("192.0.2.2", 3260, 2)),
    targets=(
        TargetSpec(DISK, (LunSpec(0, "null", serial="S"),), portal_groups=(AccessSpec(2, "standby", True),)),
        TargetSpec(BARE),
    ),
)
CHANGE = {"command": "alua", "target": DISK, "tag": 2, "state": "active/optimized"}


class Rig:
    """An arbiter that remembers, and a control socket that collects answers."""

    def __init__(self) -> None:
        self.changes: list[tuple[AccessChange, Callable[[ScsiError | None], None]]] = []
        self.answers: list[Any] = []
        state = UnitState(access={DISK: port_groups(SPEC, SPEC.targets[0])})
        arbiter = SimpleNamespace(
            authority=SimpleNamespace(state=lambda _serial: state),
            change_access=lambda change, done, _now: self.changes.append((change, done)),
        )
        self.access = AccessControl(SimpleNamespace(spec=SPEC, arbiter=arbiter))  # type: ignore[arg-type]
        self.control: Any = SimpleNamespace(answer=lambda _client, answer: self.answers.append(answer))

    def ask(self, **request: Any) -> Any:
        client: Any = None
        return self.access.alua(self.control, client, request, 0.0)


def test_port_groups_begin_as_the_configuration_says() -> None:
    assert port_groups(SPEC, SPEC.targets[0]) == (PortGroup(2, AccessState.STANDBY, True),)
    assert port_groups(SPEC, SPEC.targets[1]) == (PortGroup(1), PortGroup(2))


def test_list_tells_every_unit_and_group() -> None:
    group = {"tag": 2, "state": "standby", "preferred": True, "set_by": "configuration"}
    assert Rig().ask(command="alua") == {"ok": True, "units": [{"target": DISK, "lun": 0, "groups": [group]}]}


def test_change_is_answered_when_it_is_applied() -> None:
    rig = Rig()
    assert rig.ask(**CHANGE) is None
    ((change, done),) = rig.changes
    assert change == (DISK, 2, AccessState.ACTIVE_OPTIMIZED, None)
    assert rig.answers == []
    done(None)
    assert rig.answers[0]["ok"] and rig.answers[0]["units"]


def test_change_that_fails_is_answered_with_the_reason() -> None:
    rig = Rig()
    rig.ask(**CHANGE, preferred=False)
    change, done = rig.changes[0]
    assert change.preferred is False
    done(ScsiError(Reason.INTERNAL_TARGET_FAILURE))
    assert rig.answers[0]["ok"] is False and "could not be changed" in rig.answers[0]["error"]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"target": "nobody"}, "there is no target 'nobody'"),
        ({"target": BARE}, "no logical unit"),
        ({"tag": 1}, "has no portal group 1; it has 2"),
        ({"tag": True}, "has no portal group True"),
        ({"state": "idle"}, "state must be one of active/optimized"),
        ({"state": ["standby"]}, "state must be one of"),
        ({"preferred": 1}, "preferred must be true or false"),
        ({"more": 1}, "unknown: more"),
    ],
)
def test_change_that_makes_no_sense_is_refused(wrong: dict[str, Any], reason: str) -> None:
    rig = Rig()
    answer = rig.ask(**{**CHANGE, **wrong})
    assert answer["ok"] is False and reason in answer["error"]
    assert rig.changes == []


def test_changes_under_way_are_bounded() -> None:
    rig = Rig()
    for _ in range(256):
        assert rig.ask(**CHANGE) is None
    assert rig.ask(**CHANGE)["error"] == "too many changes are under way"
    rig.changes[0][1](None)
    assert rig.ask(**CHANGE) is None
