"""What the administrator may change while the server runs, over the control socket: ``reload`` and ``lun``.

``reload`` makes the server what its configuration says now. ``lun`` takes ``{"verb", "target", "lun"}`` and, by verb,
``"force"`` (eject), ``"size"`` in bytes (resize; without it the size of the medium is looked up) and ``"shrink"``,
``"action"`` (snapshot: create, apply, delete or list) and ``"name"``, or ``"destination"`` (clone), an absolute path.
Both answer when it is done, everywhere: ``{"ok": true, "rows": [[what, how], ...]}``, or ``"problems"``, a list, with
which nothing has changed. ``snapshot`` adds ``"snapshots"``, all that there are then; ``clone`` may have nothing done,
and ``"medium"`` instead: see ``Reloader.clone``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from iscsid.daemon.control import Client, Control
from iscsid.daemon.plans import Refused, lun_of
from iscsid.daemon.reloader import Answer
from iscsid.errors import ScsiError
from iscsid.scsi.sense import Reason
from iscsid.shared.rules import MediumChange

if TYPE_CHECKING:
    from iscsid.daemon.supervisor import Supervisor

PATIENCE: Final = 180.0  # seconds that a client may wait: for those before it, for media, and for sessions to end
KEYS: Final = {
    "eject": {"force"},
    "load": {"force"},
    "resize": {"size", "shrink"},
    "snapshot": {"action", "name"},
    "clone": {"destination"},
}
"""The verbs, and the keys that each may have beside "target" and "lun"."""

ACTIONS: Final = ("list", "create", "apply", "delete")
"""What can be done with snapshots; all but "list" need a name."""

_WORDS: Final = {
    Reason.INVALID_FIELD_IN_CDB: "its medium is not removable (removable = true in the configuration)",
    Reason.MEDIUM_REMOVAL_PREVENTED: "an initiator prevents the removal of its medium; --force does it all the same",
    Reason.LOGICAL_UNIT_NOT_SUPPORTED: "it has gone meanwhile",
}


class Administration:
    """The two commands; each is a ``control.Handler``, for ``control``."""

    def __init__(self, server: Supervisor) -> None:
        self._server = server

    def reload(self, control: Control, client: Client, request: Mapping[str, Any], now: float) -> dict[str, Any] | None:
        """Read the configuration again and do what it says."""
        if not request.keys() <= {"command"}:
            return _refusal(f"unknown: {', '.join(sorted(request.keys() - {'command'}))}")
        client.deadline = now + PATIENCE
        self._server.reloader.reload(partial(_answer, control, client), now)
        return None

    def lun(self, control: Control, client: Client, request: Mapping[str, Any], now: float) -> dict[str, Any] | None:
        """Change one LUN."""
        try:
            verb, target, lun = self._read(request)
            serial = lun_of(self._server.spec, target, lun).serial
        except (ValueError, Refused) as error:
            return _refusal(str(error))
        client.deadline = now + PATIENCE
        done = partial(_answer, control, client)
        reloader = self._server.reloader
        if verb == "resize":
            reloader.reopen(target, lun, done, now, request.get("size"), bool(request.get("shrink")))
            return None
        if verb == "snapshot":
            reloader.snapshot(target, lun, request["action"], request.get("name", ""), done, now)
            return None
        if verb == "clone":
            reloader.clone(target, lun, request["destination"], done, now)
            return None
        what = f"target {target} lun {lun}"
        change = MediumChange(verb == "load", bool(request.get("force")))

        def changed(error: ScsiError | None) -> None:
            words = error and (_WORDS.get(error.reason) if isinstance(error.reason, Reason) else None)
            if error is not None:
                done(Answer(problems=(f"{what}: {words or error}",)))
            else:
                done(Answer(((what, "loaded" if change.load else "ejected"),)))

        def reopened(answer: Answer) -> None:
            if answer.problems:
                done(answer)
            else:
                self._server.arbiter.change_medium(serial, change, changed, now)

        medium = self._server.arbiter.authority.state(serial).medium
        if change.load and medium.removable and not medium.loaded:
            self._server.reloader.look(serial, reopened, now)  # another medium may be there now
        else:
            self._server.arbiter.change_medium(serial, change, changed, now)
        return None

    @staticmethod
    def _read(request: Mapping[str, Any]) -> tuple[str, str, int]:
        """Verb, target and LUN. Raises ValueError, whose text is for the user."""
        verb, target, lun = request.get("verb"), request.get("target"), request.get("lun")
        if not isinstance(verb, str) or verb not in KEYS:
            raise ValueError(f"verb must be one of {', '.join(KEYS)}, not {verb!r}")
        unknown = request.keys() - {"command", "verb", "target", "lun"} - KEYS[verb]
        if unknown:
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        if not isinstance(target, str) or type(lun) is not int:
            raise ValueError("target must be a name, and lun a number")
        for key in ("force", "shrink"):
            if type(request.get(key, False)) is not bool:
                raise ValueError(f"{key} must be true or false")
        if verb == "snapshot":
            _check_snapshot(request)
        destination = request.get("destination")
        if verb == "clone" and not (
            isinstance(destination, str) and destination.startswith("/") and "\0" not in destination
        ):
            raise ValueError(f"destination must be an absolute path, not {destination!r}")
        size = request.get("size")
        if size is not None and (type(size) is not int or size <= 0):
            raise ValueError(f"size must be a number of bytes, not {size!r}")
        return verb, target.lower(), lun


def _check_snapshot(request: Mapping[str, Any]) -> None:
    action, name = request.get("action"), request.get("name")
    if action not in ACTIONS:
        raise ValueError(f"action must be one of {', '.join(ACTIONS)}, not {action!r}")
    if (action == "list") != (name is None) or not isinstance(name, str | None) or name == "":
        raise ValueError("name must be that of a snapshot, with create, apply and delete, and only with these")


def _answer(control: Control, client: Client, answer: Answer) -> None:
    rows = [list(row) for row in answer.rows]
    control.answer(client, {"ok": True, "rows": rows, "problems": list(answer.problems), **answer.facts})


def _refusal(reason: str) -> dict[str, Any]:
    return {"ok": True, "rows": [], "problems": [reason]}
