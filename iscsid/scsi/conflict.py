"""Which commands a reservation, or the state of the target port, forbids to whom: the tables of SPC-4 5.13.1 and
5.15.2.4, SBC-3 4.17 and SPC-2 5.5.1, as data."""

from __future__ import annotations

from collections.abc import Iterable

from iscsid.errors import ScsiError
from iscsid.scsi.commands import Access, Command, Reservation
from iscsid.scsi.const import Status
from iscsid.scsi.ports import NOT_ACCESSIBLE, AccessState, PortGroup, state_of
from iscsid.scsi.reservation import Reservations, Restriction, restriction
from iscsid.scsi.state import NexusId

CONFLICTS: dict[Restriction, frozenset[Reservation]] = {
    Restriction.WRITE_EXCLUSIVE: frozenset({Reservation.WRITING}),
    Restriction.EXCLUSIVE_ACCESS: frozenset({Reservation.READING, Reservation.WRITING}),
    Restriction.SPC_2: frozenset({Reservation.STATE, Reservation.READING, Reservation.WRITING}),
}
"""For each restriction, the classes of commands that end in RESERVATION CONFLICT."""

_ALLOWED_IN: dict[AccessState, frozenset[Access]] = {
    AccessState.ACTIVE_OPTIMIZED: frozenset(Access),
    AccessState.ACTIVE_NON_OPTIMIZED: frozenset(Access),
    AccessState.STANDBY: frozenset({Access.STANDBY, Access.UNAVAILABLE, Access.ALWAYS}),
    AccessState.UNAVAILABLE: frozenset({Access.UNAVAILABLE, Access.ALWAYS}),
    AccessState.OFFLINE: frozenset({Access.ALWAYS}),
    AccessState.TRANSITIONING: frozenset({Access.ALWAYS}),
}

_START, _POWER_CONDITION = 0x01, 0xF0  # byte 4 of START STOP UNIT
_PREVENT = 0x03  # byte 4 of PREVENT ALLOW MEDIUM REMOVAL


def class_of(command: Command, cdb: bytes) -> Reservation:
    """Return the class of one CDB: that of its command, but for two whose CDB decides.

    START STOP UNIT may be sent by everybody to start the unit, with no power condition (SBC-3 table 13); PREVENT ALLOW
    MEDIUM REMOVAL to allow it (SPC-4 table 65).
    """
    if command.reservation is Reservation.STARTING:
        starts = cdb[4] & (_START | _POWER_CONDITION) == _START
        return Reservation.ALLOWED if starts else Reservation.WRITING
    if command.reservation is Reservation.PREVENTING:
        return Reservation.WRITING if cdb[4] & _PREVENT else Reservation.ALLOWED
    return command.reservation


def forbids(r: Reservations, nexus: NexusId, command: Command, cdb: bytes) -> bool:
    """Whether ``command``, sent by ``nexus`` as ``cdb``, ends in RESERVATION CONFLICT."""
    restricted = restriction(r, nexus)
    return restricted is not None and class_of(command, cdb) in CONFLICTS[restricted]


def check(r: Reservations, groups: Iterable[PortGroup], nexus: NexusId, command: Command, cdb: bytes) -> None:
    """Raise RESERVATION CONFLICT for a command that a reservation of another nexus forbids, and then (SAM-5 5.3.3) the
    NOT READY of one that the state of its target port, which is in one of ``groups``, forbids."""
    if forbids(r, nexus, command, cdb):
        raise ScsiError(Status.RESERVATION_CONFLICT)
    state = state_of(groups, nexus.portal_group_tag)
    if command.access not in _ALLOWED_IN[state]:
        raise ScsiError(NOT_ACCESSIBLE[state])
