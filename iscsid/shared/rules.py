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
from iscsid.scsi import mode_select, reservation, reservation_out
from iscsid.scsi.mode import ModeState
from iscsid.scsi.mode_select import UnitFacts
from iscsid.scsi.reservation import Reservations
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId, Outcome


@dataclass(frozen=True, slots=True)
class UnitState:
    """All of it. ``mode`` is None until a MODE SELECT was seen: the defaults are the workers' to know."""

    reservations: Reservations = reservation.EMPTY
    mode: ModeState | None = None
    saved_mode: ModeState | None = None


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
    others = [nexus for nexus in request.known if nexus != request.nexus] if after != before else []
    raised = tuple(Attention(nexus, Reason.MODE_PARAMETERS_CHANGED) for nexus in others)
    return Outcome(replace(state, mode=after, saved_mode=saved), attentions=raised)


APPLY: Final[dict[int, Apply]] = {
    0x15: _mode_select,  # MODE SELECT(6), SPC-4 6.9
    0x16: _reserve,  # RESERVE(6), SPC-2 7.21
    0x17: _release,  # RELEASE(6), SPC-2 7.17
    0x55: _mode_select,  # MODE SELECT(10), SPC-4 6.10
    0x56: _reserve,  # RESERVE(10), SPC-2 7.22
    0x57: _release,  # RELEASE(10), SPC-2 7.18
    0x5F: _persistent_reserve_out,  # PERSISTENT RESERVE OUT, SPC-4 6.14: all service actions
}
"""Operation code -> what it does to the state."""


def apply(state: UnitState, request: Request) -> Outcome:
    """Execute a command; what it raises as ScsiError is the outcome's error."""
    function = APPLY.get(request.cdb[0]) if request.cdb else None
    if function is None:
        return Outcome(state, error=ScsiError(Reason.INVALID_COMMAND_OPERATION_CODE))
    try:
        return function(state, request)
    except ScsiError as error:
        return Outcome(state, error=error)


# -- what changes the state without a command --------------------------------------------------------------------------


class Reset(NamedTuple):
    """A task management function that reaches over sessions (SAM-5 7; RFC 7143 section 11.5.1).

    ``resets``: it is a logical unit reset to the unit, and not only the end of its tasks. ``attention`` is established
    for every nexus, that of the sender only if ``sender_too``. ``ends_sessions``: those of all initiators, after
    the answer.
    """

    name: str
    resets: bool
    attention: Reason
    sender_too: bool
    ends_sessions: bool


_DEVICE_RESET = Reason.BUS_DEVICE_RESET_FUNCTION
_CLEARED = Reason.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR
RESETS: Final[dict[int, Reset]] = {
    4: Reset("CLEAR TASK SET", False, _CLEARED, False, False),  # SAM-5 7.5
    5: Reset("LOGICAL UNIT RESET", True, _DEVICE_RESET, True, False),  # SAM-5 6.3.3, 7.7
    6: Reset("TARGET WARM RESET", True, _DEVICE_RESET, True, False),
    7: Reset("TARGET COLD RESET", True, _DEVICE_RESET, True, True),
}


def reset(state: UnitState) -> UnitState:
    """A logical unit reset: SPC-2 reservations go, and the mode pages are the saved or the default ones again."""
    return replace(state, reservations=reservation.reset(state.reservations), mode=state.saved_mode)


def nexus_lost(state: UnitState, nexus: NexusId) -> Outcome:
    """``nexus`` has no session any more."""
    return _with_reservations(state, reservation.nexus_lost(state.reservations, nexus))


# -- as plain values ---------------------------------------------------------------------------------------------------


def to_plain(state: UnitState) -> dict[str, Any]:
    """What ``UpdateUnit`` tells the workers: "reservations" as ``scsi.reservation.from_plain`` reads it; "mode" and
    "saved_mode" as ``ModeState.from_plain`` does, or None for the unit's own default."""
    return {
        "reservations": reservation.to_plain(state.reservations),
        "mode": state.mode and state.mode.to_plain(),
        "saved_mode": state.saved_mode and state.saved_mode.to_plain(),
    }


def kept(state: UnitState) -> dict[str, Any] | None:
    """What has to survive the server: registrations and reservation with APTPL, saved mode pages; None: nothing."""
    left = reservation.power_loss(state.reservations)
    if not left.aptpl and state.saved_mode is None:
        return None
    return to_plain(UnitState(left, None, state.saved_mode))


def restore(plain: Mapping[str, Any]) -> UnitState:
    """The state to start with, of what ``kept`` gave. Raises ValueError."""
    if plain.keys() != {"reservations", "mode", "saved_mode"} or plain["mode"] is not None:
        raise ValueError("not what is kept of a logical unit")
    saved = plain["saved_mode"]
    if saved is not None and not isinstance(saved, Mapping):
        raise ValueError("saved_mode is no table")
    saved_mode = None if saved is None else ModeState.from_plain(saved)
    return UnitState(reservation.from_plain(plain["reservations"]), saved_mode, saved_mode)
