"""A worker's line to the authority: what its sessions ask, what comes back, and what changes because of others.

A change of a unit's state is applied here between two commands, to the unit and to every session that sees it, and is
acknowledged when the tasks that it aborts have stopped. So when the authority answers, no worker can still be executing
what the change forbids.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import count
from typing import Any

from iscsid.daemon.errands import Errands
from iscsid.daemon.sanitizer import Sanitizer
from iscsid.errors import ScsiError
from iscsid.scsi import ports, reservation, sanitize
from iscsid.scsi.const import Opcode
from iscsid.scsi.lu import LogicalUnit, SharedState
from iscsid.scsi.mode import ModeState, fitted
from iscsid.scsi.mode_select import UnitFacts
from iscsid.scsi.removable import Medium
from iscsid.scsi.sanitize import METHODS, SERVICE_ACTION, Sanitize
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId
from iscsid.shared.messages import (
    AskReset,
    AskUnit,
    Message,
    SanitizeOver,
    UnitAnswer,
    UnitApplied,
    UpdateUnit,
    Withdraw,
    error_of,
    failure_text,
)
from iscsid.target.engine import Engine
from iscsid.target.task import Submit

log = logging.getLogger(__name__)

Done = Callable[[ScsiError | None], None]


def _mode_facts(unit: LogicalUnit) -> dict[str, Any]:
    """See ``shared.rules`` of MODE SELECT."""
    return {**asdict(UnitFacts.of(unit)), "default": unit.default_mode_state.to_plain()}


# Commands whose effect depends on what only who has opened the device knows.
FACTS: Mapping[int, Callable[[LogicalUnit], dict[str, Any]]] = {
    Opcode.MODE_SELECT_6: _mode_facts,
    Opcode.MODE_SELECT_10: _mode_facts,
    Opcode.SANITIZE: lambda unit: {"block_size": unit.block_size},
}


class Conduit:
    """One worker's end.

    Args:
        units: the logical units of this worker by serial number; several where one medium has several LUNs.
        sessions: the engines of the sessions that are open now.
        send: sends a message to the supervisor.
        submit: the pool.
        errands: what uses devices beside the sessions.
    """

    def __init__(
        self,
        units: Mapping[str, Sequence[LogicalUnit]],
        sessions: Callable[[], Iterable[Engine]],
        send: Callable[[Message], None],
        submit: Submit,
        errands: Errands,
    ) -> None:
        self._units = {serial: list(here) for serial, here in units.items()}
        self._sessions = sessions
        self._send = send
        self._errands = errands
        self._asks: dict[int, Done] = {}  # bounded by the windows and limits of the sessions that ask
        self._numbers = count(1)
        self._sanitizer = Sanitizer(submit, self._sanitize_over)

    # --- target.task.Authority -------------------------------------------------------------------------------------

    def ask(self, unit: str, nexus: NexusId, cdb: bytes, data: bytes, done: Done) -> Callable[[], None]:
        """See ``target.task.Authority``."""
        number = next(self._numbers)
        self._asks[number] = done
        if cdb[0] == Opcode.SANITIZE and cdb[1] & SERVICE_ACTION in METHODS:
            self._asks[number] = partial(self._may_sanitize, number, unit, cdb, data, done)
        facts = FACTS.get(cdb[0])
        here = self._units.get(unit)  # none: a reload has taken it away, and the authority refuses it
        told = json.dumps(facts(here[0])) if facts and here else ""
        self._send(AskUnit(number, unit, *nexus, cdb.hex(), data.hex(), told))
        return partial(self._withdraw, number)

    def reset(self, unit: str, nexus: NexusId, function: int, done: Callable[[bool], None]) -> None:
        """See ``target.task.Authority``."""
        number = self._remember(lambda error: done(error is None))
        self._send(AskReset(number, unit, *nexus, function))

    def stage(self, units: Iterable[LogicalUnit]) -> None:
        """Units that no initiator sees yet hear of changes from now on; what other LUNs of theirs have heard, they
        have."""
        for unit in units:
            known = self._units.setdefault(unit.identity.serial, [])
            if known:
                _copy_state(known[0], unit)
            known.append(unit)

    def renew(self, units: Mapping[str, Sequence[LogicalUnit]]) -> None:
        """These are the units from now on."""
        self._units = {serial: list(here) for serial, here in units.items()}

    def stop(self) -> None:
        """The worker is about to end: what it does for units without being asked by a session ends soon."""
        self._sanitizer.stop()

    def _withdraw(self, number: int) -> None:
        if number in self._asks:
            self._send(Withdraw(number))
        else:
            self._sanitizer.abandon(number)

    def _may_sanitize(
        self, number: int, unit: str, cdb: bytes, data: bytes, done: Done, error: ScsiError | None
    ) -> None:
        if error is None:
            self._sanitizer.begin(number, unit, self._units[unit][0], cdb, data, done)
        else:
            done(error)

    def _sanitize_over(self, unit: str, ok: bool, done: Done) -> None:
        self._send(SanitizeOver(self._remember(done), unit, ok))

    def _remember(self, done: Done) -> int:
        number = next(self._numbers)
        self._asks[number] = done
        return number

    # --- what the supervisor says -----------------------------------------------------------------------------------

    def answered(self, answer: UnitAnswer) -> None:
        """The authority has executed what was asked, and every worker has applied it."""
        done = self._asks.pop(answer.ask, None)
        if done is not None:
            done(error_of(answer))

    def update(self, update: UpdateUnit) -> None:
        """Apply a change, and acknowledge it when everything that it aborts has stopped."""
        units = self._units.get(update.unit, ())
        plain = json.loads(update.state)
        goes = _medium_goes(units, plain)
        parting = [unit for unit in units if unit.volatile] if goes else []
        refusal = _sanitize_begins(units, plain) or goes
        uncached = [unit for unit in units if _take_state(unit, plain)]
        attentions = [Attention(NexusId(*nexus), Reason[name]) for nexus, name in json.loads(update.attentions)]
        aborts = json.loads(update.aborts)
        nexuses = None if aborts == "all" else {NexusId(*nexus) for nexus in aborts}
        left, failures = 1, [""]

        def applied() -> None:
            self._send(UnitApplied(update.unit, update.generation, failures[-1]))

        def stopped() -> None:
            nonlocal left
            left -= 1
            if not left:
                self._part(parting, failures, applied)

        for unit in uncached:
            left += 1
            self._errands.submit(unit.device, partial(_flush, unit), partial(_flushed, unit, failures, stopped))
        for engine in list(self._sessions()):
            for unit in units:
                left += 1
                engine.update(unit, attentions, nexuses, _once(stopped), refusal)
        stopped()

    def _part(self, units: Sequence[LogicalUnit], failures: list[str], then: Callable[[], None]) -> None:
        """Put on their media, which go, what was written until now; call ``then`` when that is done."""
        if not units:
            then()
            return
        unit, *others = units
        told = partial(_flushed, unit, failures, lambda: self._part(others, failures, then))
        self._errands.submit(unit.device, partial(_flush, unit), told)


def _medium_goes(units: Sequence[LogicalUnit], plain: Mapping[str, Any]) -> ScsiError | None:
    """What the commands that are not done yet end with, if the state tells that the medium has gone, or stops."""
    reason = Medium.from_plain(plain["medium"]).hindrance
    goes = reason is not None and any(unit.medium.hindrance is None for unit in units)
    return ScsiError(reason) if reason is not None and goes else None


def _sanitize_begins(units: Sequence[LogicalUnit], plain: Mapping[str, Any]) -> ScsiError | None:
    """What the commands that are not done yet end with, if the state tells of a sanitize operation that begins."""
    state = plain["sanitize"] and Sanitize.from_plain(plain["sanitize"])
    begins = state and not state.failed and any(unit.sanitize != state for unit in units)
    return sanitize.refusal(state) if begins else None


def _take_state(unit: LogicalUnit, plain: Mapping[str, Any]) -> bool:
    """Give ``unit`` the state that ``shared.rules.to_plain`` wrote; return whether its write cache was switched off."""
    cached = unit.mode_state.wce
    mode, saved = plain["mode"], plain["saved_mode"]
    unit.port_groups = ports.from_plain(plain["access"]).get(unit.identity.target, unit.port_groups)
    unit.state = SharedState(reservation.from_plain(plain["reservations"]))
    unit.mode_state = unit.default_mode_state if mode is None else ModeState.from_plain(mode)
    unit.sanitize = plain["sanitize"] and Sanitize.from_plain(plain["sanitize"])
    unit.medium = Medium.from_plain(plain["medium"])
    if unit.saved_mode_state is not None:
        unit.saved_mode_state = unit.default_mode_state if saved is None else fitted(ModeState.from_plain(saved), unit)
    return cached and not unit.mode_state.wce


def _copy_state(known: LogicalUnit, unit: LogicalUnit) -> None:
    """Give ``unit`` what is shared and was said of ``known``, another LUN of the same unit."""
    if known.identity.target == unit.identity.target:
        unit.port_groups = known.port_groups
    unit.state = known.state
    if known.mode_state != known.default_mode_state:
        unit.mode_state = known.mode_state
    if unit.saved_mode_state is not None and known.saved_mode_state != known.default_mode_state:
        unit.saved_mode_state = known.saved_mode_state
    unit.sanitize = known.sanitize
    unit.medium = known.medium


def _flush(unit: LogicalUnit) -> None:
    with unit.device.lock:
        unit.device.flush()


def _flushed(
    unit: LogicalUnit, failures: list[str], then: Callable[[], None], _: object, error: Exception | None
) -> None:
    """What was written before is on the medium, or the acknowledgement tells that it may not be."""
    if error is not None:
        failures.append(failure_text(error))
        log.error(
            "%s: flush failed when its write cache was switched off or its medium went: %s", unit.identity.name, error
        )
    then()


def _once(call: Callable[[], None]) -> Callable[[], None]:
    """``call``, for the first time that it is called."""
    calls = [call]

    def once() -> None:
        if calls:
            calls.pop()()

    return once
