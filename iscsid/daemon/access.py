"""Asymmetric access, between the words of the configuration and of the control socket and what ``scsi`` knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from iscsid.daemon.control import Client, Control
from iscsid.errors import ScsiError
from iscsid.scsi.ports import ONE_GROUP, STATE_NAMES, STATES, PortGroup, StateChange
from iscsid.shared.rules import AccessChange
from iscsid.specs import ServerSpec, TargetSpec

if TYPE_CHECKING:
    from iscsid.daemon.supervisor import Supervisor

SET_BY: Final = {
    StateChange.NONE: "configuration",
    StateChange.BY_COMMAND: "initiator",
    StateChange.IMPLICIT: "administrator",
}
MAX_CHANGES: Final = 256  # of the administrator's, that are not answered yet


def port_groups(spec: ServerSpec, target: TargetSpec) -> tuple[PortGroup, ...]:
    """The target port groups of ``target``, in the states that the configuration gives them."""
    return tuple(PortGroup(group.tag, STATES[group.state], group.preferred) for group in spec.access(target))


class AccessControl:
    """The command ``alua`` of the control socket: ``{}`` lists, ``{"target", "tag", "state", "preferred"}`` changes.

    A change is answered when every worker has applied it: no command that comes after it meets the state of before.
    """

    def __init__(self, server: Supervisor) -> None:
        self._server = server
        self._waiting = 0

    def alua(self, control: Control, client: Client, request: Mapping[str, Any], now: float) -> dict[str, Any] | None:
        """A ``control.Handler``, for ``control``."""
        if request.keys() <= {"command"}:
            return {"ok": True, "units": self._units()}
        try:
            change = self._read(request)
        except ValueError as exc:
            return {"ok": False, "error": str(exc)}
        if self._waiting >= MAX_CHANGES:
            return {"ok": False, "error": "too many changes are under way"}
        self._waiting += 1

        def done(error: ScsiError | None) -> None:
            self._waiting -= 1
            if error is None:
                control.answer(client, {"ok": True, "units": self._units()})
            else:
                control.answer(client, {"ok": False, "error": f"the state could not be changed: {error}"})

        self._server.arbiter.change_access(change, done, now)
        return None

    def _read(self, request: Mapping[str, Any]) -> AccessChange:
        """Raises ValueError, whose text is for the user."""
        unknown = request.keys() - {"command", "target", "tag", "state", "preferred"}
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        name, tag, state = request.get("target"), request.get("tag"), request.get("state")
        preferred = request.get("preferred")
        target = next((target for target in self._server.spec.targets if target.name == name), None)
        if target is None:
            raise ValueError(f"there is no target {name!r}")
        if not target.luns:
            raise ValueError(f"{name} has no logical unit, and so nothing to have access to")
        tags = [group.tag for group in self._server.spec.access(target)]
        if type(tag) is not int or tag not in tags:
            raise ValueError(f"{name} has no portal group {tag!r}; it has {', '.join(map(str, tags))}")
        if not isinstance(state, str) or state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, not {state!r}")
        if preferred is not None and type(preferred) is not bool:
            raise ValueError(f"preferred must be true or false, not {preferred!r}")
        return AccessChange(target.name, tag, STATES[state], preferred)

    def _units(self) -> list[dict[str, Any]]:
        return [
            {
                "target": target.name,
                "lun": lun.lun,
                "groups": [
                    {
                        "tag": group.tag,
                        "state": STATE_NAMES[group.state],
                        "preferred": group.preferred,
                        "set_by": SET_BY[group.change],
                    }
                    for group in self._server.arbiter.authority.state(lun.serial).access.get(target.name, ONE_GROUP)
                ],
            }
            for target in self._server.spec.targets
            for lun in target.luns
        ]
