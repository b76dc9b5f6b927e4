"""How the logical units are, as far as all workers know: what ``iscsid status`` tells of it, and the log.

Pure: what workers say (``UnitHealth``), in which order, and the time make it. A LUN is well unless one of them says
otherwise. One whose calls have failed is taken for well again when they have not failed for ``FAILING_SECONDS``; how
many errors there were, and which was the last, is told for as long as the server lives.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

from iscsid.scsi.removable import Medium
from iscsid.shared.messages import UnitHealth

FAILING_SECONDS: Final = 60.0
THE_DEAD: Final = -1  # in the place of a worker: what those have said that are no more

Key = tuple[str, int]
"""A LUN: the name of its target, and its number."""

log = logging.getLogger(__name__)


class State(enum.Enum):
    """How a LUN is; the first that fits counts."""

    HANGING = "hanging"  # calls of its device are over their io_timeout
    NOT_READY = "not ready"  # the medium, or the way to it, is not there
    SHORT = "too short"  # the device has fewer bytes than initiators were promised
    FAILING = "failing"  # calls have failed within the last FAILING_SECONDS
    NO_MEDIUM = "no medium"  # it was ejected
    STOPPED = "stopped"  # by an initiator
    OK = "ok"


MEANT: Final = frozenset({State.NO_MEDIUM, State.STOPPED, State.OK})
"""The states that somebody wanted, and nobody need be told of."""


@dataclass(slots=True)
class _Entry:
    """What the log has been told of a LUN, and when."""

    state: State
    since: float


class Book:
    """Of one server."""

    def __init__(self) -> None:
        self._said: dict[Key, dict[int, UnitHealth]] = {}  # by LUN and worker
        self._told: dict[Key, _Entry] = {}

    def heard(self, worker: int, message: UnitHealth) -> None:
        """A worker says how a LUN is."""
        self._said.setdefault((message.target, message.lun), {})[worker] = message

    def died(self, worker: int) -> None:
        """Nothing hangs in a worker that is dead; the errors that it saw were errors."""
        for said in self._said.values():
            if (last := said.pop(worker, None)) is not None:
                said[THE_DEAD] = _added([last, *([said[THE_DEAD]] if THE_DEAD in said else [])])
                said[THE_DEAD] = dataclasses.replace(
                    said[THE_DEAD], hanging=0, waiting=0, since=0.0, ready=True, size=-1
                )

    def tick(self, there: Collection[Key], now: float) -> None:
        """Forget LUNs that are not ``there``, and log which are not as they were. To be called each second."""
        for key in self._said.keys() - set(there):
            del self._said[key]
            self._told.pop(key, None)
        for key, said in self._said.items():
            found = _added(said.values())
            state = _state(found, now)
            before = self._told.get(key)
            if before is None or before.state is not state:
                self._told[key] = _Entry(state, now)
                _log(key, before, state, found)

    def tell(self, key: Key, medium: Medium, now: float) -> dict[str, Any]:
        """How a LUN is, for ``iscsid status``; ``medium`` is what initiators have made of it."""
        found = _added(self._said.get(key, {}).values())
        state = _state(found, now)
        if state is State.OK:
            state = State.NO_MEDIUM if not medium.loaded else State.STOPPED if not medium.started else State.OK
        told = self._told.get(key)
        since = found.since if found.hanging else told.since if told is not None and told.state is state else now
        last = {"kind": found.kind, "reason": found.reason, "seconds_ago": round(now - found.at, 3)}
        return {
            "state": state.value,
            "well": state in MEANT,
            "seconds": round(now - since, 3),
            "hanging": found.hanging,
            "waiting": found.waiting,
            "errors": {"read": found.read_errors, "write": found.write_errors, "flush": found.flush_errors},
            "last_error": last if found.kind else None,
            "size": None if found.size < 0 else found.size,
            "promised": found.promised or None,
        }


def _state(found: UnitHealth, now: float) -> State:
    recent = bool(found.kind) and now - found.at < FAILING_SECONDS
    if found.hanging:
        return State.HANGING
    if not found.ready or (recent and found.absent):
        return State.NOT_READY
    if 0 <= found.size < found.promised:
        return State.SHORT
    return State.FAILING if recent else State.OK


def _added(said: Iterable[UnitHealth]) -> UnitHealth:
    """What several workers say of one LUN; the last error is the last of all."""
    listed = list(said)
    if len(listed) == 1:
        return listed[0]
    last = max(listed, key=lambda one: one.at, default=UnitHealth("", 0))
    return dataclasses.replace(
        last,
        hanging=sum(one.hanging for one in listed),
        waiting=sum(one.waiting for one in listed),
        since=min((one.since for one in listed if one.hanging), default=0.0),
        read_errors=sum(one.read_errors for one in listed),
        write_errors=sum(one.write_errors for one in listed),
        flush_errors=sum(one.flush_errors for one in listed),
        ready=all(one.ready for one in listed),
        size=min((one.size for one in listed if one.size >= 0), default=-1),
        promised=max((one.promised for one in listed), default=0),
    )


def _log(key: Key, before: _Entry | None, state: State, found: UnitHealth) -> None:
    """The pool of the worker tells of what hangs, and that it answers again: here is the rest."""
    if state is State.HANGING:
        return
    if state is State.OK:
        if before is not None and before.state is not State.HANGING:
            log.info("%s LUN %d: well again", *key)
        return
    words = f"{found.kind}: {found.reason}" if found.kind else "it cannot be opened again"
    if state is State.SHORT:
        words = f"it has {found.size} bytes, and {found.promised} were promised"
    log.error("%s LUN %d: %s: %s", *key, state.value, words)
