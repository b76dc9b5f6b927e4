"""What the workers share about one logical unit, and the pure functions of ``scsi`` that change it.

``UnitState`` is the value, APPLY and RESETS are the tables: a new kind of shared state is a field here, a new command
that changes it one row. In what order changes happen, and who has to know of them, is the authority's; here is what
they come to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from iscsid.errors import ScsiError
from iscsid.scsi import conflict, mode_select, ports, removable, reservation, reservation_out, sanitize
from iscsid.scsi.commands import COMMANDS
from iscsid.scsi.mode import ModeState
from iscsid.scsi.mode_select import UnitFacts
from iscsid.scsi.ports import Access, AccessState
from iscsid.scsi.removable import FIXED, Medium
from iscsid.scsi.reservation import Reservations
from iscsid.scsi.sanitize import SERVICE_ACTION, Sanitize
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId, Outcome


@dataclass(frozen=True, slots=True)
class UnitState:
    """All of it. ``mode`` is None until a MODE SELECT was seen: the defaults are the workers' to know. ``access``
    are the target port groups of each target that has the unit, and their states."""

    reservations: Reservations = reservation.EMPTY
    mode: ModeState | None = None
    saved_mode: ModeState | None = None
    access: Access = field(default_factory=dict)
    sanitize: Sanitize | None = None
    medium: Medium = FIXED


@dataclass(frozen=True, slots=True)
class Request:
    """A command that wants to change the state.

    ``known`` are the nexuses that are logged in to the unit now, ``ports`` its target ports (target name and portal
    group tag), ``facts`` what the worker has told with the command (AskUnit).
    """

    nexus: NexusId
    cdb: bytes
    data: bytes = b""
    known: Collection[NexusId] = ()
    ports: Collection[tuple[str, int]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


Apply = Callable[[UnitState, Request], Outcome]


# -- persistent and SPC-2 reservations ---------------------------------------------------------------------------------


def _persistent_reserve_out(state: UnitState, request: Request) -> Outcome:
    outcome = reservation_out.pr_out(state.reservations, *_arguments(request), request.known, request.ports)
    return _with_reservations(state, outcome)


def _reserve(state: UnitState, request: Request) -> Outcome:
    return _with_reservations(state, reservation.reserve(state.reservations, *_arguments(request)))


def _release(state: UnitState, request: Request) -> Outcome:
    return _with_reservations(state, reservation.release(state.reservations, *_arguments(request)))


def _arguments(request: Request) -> tuple[NexusId, bytes, bytes]:
    """What every function of ``scsi`` is given after the state."""
    return request.nexus, request.cdb, request.data


def _with_reservations(state: UnitState, outcome: Outcome) -> Outcome:
    return replace(outcome, state=replace(state, reservations=outcome.state))


# -- mode pages --------------------------------------------------------------------------------------------------------


def _mode_select(state: UnitState, request: Request) -> Outcome:
    """MODE SELECT; ``facts`` holds the fields of ``UnitFacts``, and as "default" the mode state that the unit has when
    nobody has changed it."""
    facts = dict(request.facts)
    default = ModeState.from_plain(facts.pop("default"))
    before = state.mode or default
    after = mode_select.apply(before, request.cdb, request.data, UnitFacts(**facts))
    saved = after if mode_select.saves(request.cdb) else state.saved_mode
    raised = _for_others(request, Reason.MODE_PARAMETERS_CHANGED) if after != before else ()
    return Outcome(replace(state, mode=after, saved_mode=saved), attentions=raised)


def mode_undone(state: UnitState, before: UnitState, request: Request) -> Outcome:
    """What MODE SELECT has changed is as it was ``before``: the cache that it switched off could not be flushed."""
    raised = _for_others(request, Reason.MODE_PARAMETERS_CHANGED)
    return Outcome(replace(state, mode=before.mode, saved_mode=before.saved_mode), attentions=raised)


def _for_others(request: Request, reason: Reason) -> tuple[Attention, ...]:
    """``reason`` for every nexus but the one that sent the command."""
    return tuple(Attention(nexus, reason) for nexus in request.known if nexus != request.nexus)


# -- the medium --------------------------------------------------------------------------------------------------------


def _start_stop(state: UnitState, request: Request) -> Outcome:
    after = removable.start_stop(state.medium, request.cdb)
    loads = after.loaded and not state.medium.loaded
    raised = _for_others(request, Reason.MEDIUM_MAY_HAVE_CHANGED) if loads else ()
    return Outcome(replace(state, medium=after), attentions=raised)


def _prevent_allow(state: UnitState, request: Request) -> Outcome:
    return Outcome(replace(state, medium=removable.prevent_allow(state.medium, request.nexus, request.cdb)))


class MediumChange(NamedTuple):
    """What the administrator wants of the medium: to ``load`` it, or to eject it; ``force``: even where an initiator
    prevents that."""

    load: bool
    force: bool = False


def change_medium(state: UnitState, change: MediumChange, known: Collection[NexusId]) -> Outcome:
    """Load or eject; ``known`` are the nexuses that are logged in to the unit now. A sanitize operation that is under
    way keeps its medium."""
    if sanitizing(state) and state.sanitize is not None and not change.load:
        return Outcome(state, error=sanitize.refusal(state.sanitize))
    try:
        after = removable.administer(state.medium, *change)
    except ScsiError as error:
        return Outcome(state, error=error)
    loads = after.loaded and not state.medium.loaded
    raised = tuple(Attention(nexus, Reason.MEDIUM_MAY_HAVE_CHANGED) for nexus in known) if loads else ()
    return Outcome(replace(state, medium=after), attentions=raised)


def capacity_changed(known: Collection[NexusId]) -> tuple[Attention, ...]:
    """What the nexuses that are logged in are told of when the unit has another number of blocks (SBC-3 4.10)."""
    return tuple(Attention(nexus, Reason.CAPACITY_DATA_HAS_CHANGED) for nexus in known)


def reconfigured(state: UnitState, access: Access, medium: Medium | None) -> UnitState:
    """The configuration has ``access`` for the targets that have the unit now; what they have already, they keep.
    ``medium`` None leaves that as it is."""
    kept = {target: state.access.get(target, groups) for target, groups in access.items()}
    return replace(state, access=kept, medium=medium or state.medium)


# -- asymmetric access -------------------------------------------------------------------------------------------------


class AccessChange(NamedTuple):
    """What the administrator wants of the target port group ``tag``; ``preferred`` None leaves that as it is."""

    target: str
    tag: int
    state: AccessState
    preferred: bool | None = None


def change_access(state: UnitState, change: AccessChange, known: Collection[NexusId]) -> Outcome:
    """Implicit asymmetric access: ``known`` are the nexuses that are logged in to the unit now."""
    return _with_access(state, ports.by_administrator(state.access, *change, known))


def _set_target_port_groups(state: UnitState, request: Request) -> Outcome:
    return _with_access(state, ports.by_command(state.access, request.nexus, request.data, request.known))


def _with_access(state: UnitState, outcome: Outcome) -> Outcome:
    return replace(outcome, state=replace(state, access=outcome.state))


# -- sanitize ----------------------------------------------------------------------------------------------------------


def _sanitize(state: UnitState, request: Request) -> Outcome:
    """SANITIZE; ``facts`` holds "block_size"."""
    after = sanitize.apply(state.sanitize, request.cdb, request.data, request.facts["block_size"])
    return Outcome(replace(state, sanitize=after))


def sanitizing(state: UnitState) -> bool:
    """Whether a sanitize operation is under way, so that some worker has to be at it."""
    return state.sanitize is not None and not state.sanitize.failed


def sanitized(state: UnitState, ok: bool) -> UnitState:
    """The operation that was under way has completed, or it has not and never will."""
    if state.sanitize is None or ok:
        return replace(state, sanitize=None)
    return replace(state, sanitize=replace(state.sanitize, failed=True))


APPLY: Final[dict[int, Apply]] = {
    0x15: _mode_select,  # MODE SELECT(6), SPC-4 6.9
    0x16: _reserve,  # RESERVE(6), SPC-2 7.21
    0x17: _release,  # RELEASE(6), SPC-2 7.17
    0x1B: _start_stop,  # START STOP UNIT, SBC-3 5.25
    0x1E: _prevent_allow,  # PREVENT ALLOW MEDIUM REMOVAL, SBC-3 5.15
    0x48: _sanitize,  # SANITIZE, SBC-3 5.24: all service actions
    0x55: _mode_select,  # MODE SELECT(10), SPC-4 6.10
    0x56: _reserve,  # RESERVE(10), SPC-2 7.22
    0x57: _release,  # RELEASE(10), SPC-2 7.18
    0x5F: _persistent_reserve_out,  # PERSISTENT RESERVE OUT, SPC-4 6.14: all service actions
    0xA4: _set_target_port_groups,  # MAINTENANCE OUT: SET TARGET PORT GROUPS alone, SPC-4 6.45
}
"""Operation code -> what it does to the state."""


def apply(state: UnitState, request: Request) -> Outcome:
    """Execute a command; what it raises as ScsiError is the outcome's error."""
    function = APPLY.get(request.cdb[0]) if request.cdb else None
    if function is None:
        return Outcome(state, error=ScsiError(Reason.INVALID_COMMAND_OPERATION_CODE))
    try:
        _check(state, request.nexus, request.cdb)
        return function(state, request)
    except ScsiError as error:
        return Outcome(state, error=error)


def _check(state: UnitState, nexus: NexusId, cdb: bytes) -> None:
    """Refuse, as ``LogicalUnit.plan`` does and in its order, what has come to stand in the way since a worker planned
    the command: while it waited for its turn, another one's may have changed the state."""
    groups = state.access.get(nexus.target, ports.ONE_GROUP)
    action = cdb[1] & SERVICE_ACTION
    commands = [row for row in COMMANDS if row.opcode == cdb[0] and row.service_action in (None, action)]
    for command in commands:
        conflict.check(state.reservations, groups, nexus, command, cdb)
    sanitize.check(state.sanitize, cdb[0])
    hindrance, protected = state.medium.hindrance, state.mode is not None and state.mode.swp
    for command in commands:
        if hindrance is not None and not state.medium.executes(command.name):
            raise ScsiError(hindrance)
        if command.writes and protected:
            raise ScsiError(Reason.WRITE_PROTECTED)


# -- what changes the state without a command --------------------------------------------------------------------------


class Reset(NamedTuple):
    """A task management function that is more than the end of tasks (SAM-5 7; RFC 7143 section 11.5.1, RFC 7144).

    ``attention`` is established for every nexus that is reset: all of them, or with ``nexus_only`` that of the sender.
    ``ends_sessions``: those of all initiators, after the answer.
    """

    name: str
    attention: Reason
    nexus_only: bool = False
    ends_sessions: bool = False


_DEVICE_RESET = Reason.BUS_DEVICE_RESET_FUNCTION
RESETS: Final[dict[int, Reset]] = {
    5: Reset("LOGICAL UNIT RESET", _DEVICE_RESET),  # SAM-5 6.3.3, 7.7
    6: Reset("TARGET WARM RESET", _DEVICE_RESET),
    7: Reset("TARGET COLD RESET", _DEVICE_RESET, ends_sessions=True),
    11: Reset("I_T NEXUS RESET", Reason.I_T_NEXUS_LOSS, nexus_only=True),  # SAM-5 6.3.4, 7.6
}


def reset(state: UnitState) -> UnitState:
    """A logical unit reset: SPC-2 reservations go, the mode pages are the saved or the default ones again, the unit is
    started, and nobody prevents the removal of its medium any more."""
    reservations, medium = reservation.reset(state.reservations), removable.reset(state.medium)
    return replace(state, reservations=reservations, mode=state.saved_mode, medium=medium)


def nexus_reset(state: UnitState, nexus: NexusId, how: Reset) -> Outcome:
    """What the loss of ``nexus`` would bring, but its session goes on, and is told."""
    outcome = nexus_lost(state, nexus)
    raised = (*outcome.attentions, Attention(nexus, how.attention))
    return replace(outcome, attentions=raised, aborts=(*outcome.aborts, nexus))


def nexus_lost(state: UnitState, nexus: NexusId) -> Outcome:
    """``nexus`` has no session any more."""
    state = replace(state, medium=removable.nexus_lost(state.medium, nexus))
    return _with_reservations(state, reservation.nexus_lost(state.reservations, nexus))


# -- as plain values ---------------------------------------------------------------------------------------------------


def to_plain(state: UnitState) -> dict[str, Any]:
    """What ``UpdateUnit`` tells the workers: "reservations" as ``scsi.reservation.from_plain`` reads it; "mode" and
    "saved_mode" as ``ModeState.from_plain`` does, or None for the unit's own default; "access" as
    ``scsi.ports.from_plain`` does; "sanitize" as ``Sanitize.from_plain``, or None; "medium" as
    ``Medium.from_plain``."""
    return {
        "reservations": reservation.to_plain(state.reservations),
        "mode": state.mode and state.mode.to_plain(),
        "saved_mode": state.saved_mode and state.saved_mode.to_plain(),
        "access": ports.to_plain(state.access),
        "sanitize": state.sanitize and state.sanitize.to_plain(),
        "medium": state.medium.to_plain(),
    }


_KEPT: Final = ("reservations", "mode", "saved_mode")  # what a file of ``shared.store`` holds
_SANITIZE: Final = "sanitize"  # and this where an operation was under way, or has failed


def kept(state: UnitState) -> dict[str, Any] | None:
    """What has to survive the server: registrations and reservation with APTPL, saved mode pages, and a sanitize
    operation, as a failed one: nobody goes on with it. None: nothing."""
    left = reservation.power_loss(state.reservations)
    if not left.aptpl and state.saved_mode is None and state.sanitize is None:
        return None
    plain = to_plain(sanitized(UnitState(left, None, state.saved_mode, sanitize=state.sanitize), False))
    keys = _KEPT if state.sanitize is None else (*_KEPT, _SANITIZE)
    return {key: plain[key] for key in keys}


def restore(plain: Mapping[str, Any]) -> UnitState:
    """The state to start with, of what ``kept`` gave. Raises ValueError."""
    if plain.keys() - {_SANITIZE} != set(_KEPT) or plain["mode"] is not None:
        raise ValueError("not what is kept of a logical unit")
    saved = plain["saved_mode"]
    if saved is not None and not isinstance(saved, Mapping):
        raise ValueError("saved_mode is no table")
    saved_mode = None if saved is None else ModeState.from_plain(saved)
    state = UnitState(reservation.from_plain(plain["reservations"]), saved_mode, saved_mode)
    if _SANITIZE not in plain:
        return state
    return sanitized(replace(state, sanitize=Sanitize.from_plain(plain[_SANITIZE])), False)
