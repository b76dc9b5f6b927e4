"""The reservations of one logical unit as a pure value: persistent ones (SPC-4 5.13) and those of SPC-2.

``Reservations`` is what the authority owns and every worker holds a copy of. What changes it are pure functions:
PERSISTENT RESERVE OUT in ``reservation_out``; here RESERVE and RELEASE, the loss of a nexus, a reset, a power cycle.
Which commands a reservation forbids to whom is the table in ``conflict``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from iscsid.errors import ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.plan import Ask, Plan
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId, Outcome

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

MAX_REGISTRATIONS = 128  # more nexuses than the largest clusters have, few enough to be told in one message
_MAX_KEY = 2**64 - 1
_MAX_GENERATION = 2**32 - 1


class Type(enum.IntEnum):
    """Persistent reservation types (SPC-4 6.13.3.4, table 211); all are offered."""

    WRITE_EXCLUSIVE = 0x1
    EXCLUSIVE_ACCESS = 0x3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x8


REGISTRANTS_ONLY = frozenset({Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY})
ALL_REGISTRANTS = frozenset({Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS})
WRITE_EXCLUSIVE = frozenset(
    {Type.WRITE_EXCLUSIVE, Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS}
)
LU_SCOPE = 0x0  # the only scope there is (SPC-4 6.13.3.3)


class Restriction(enum.Enum):
    """What the reservations of other nexuses leave to one nexus: a column of the conflict table."""

    WRITE_EXCLUSIVE = enum.auto()
    EXCLUSIVE_ACCESS = enum.auto()
    SPC_2 = enum.auto()


@dataclass(frozen=True, slots=True)
class Reservations:
    """Who is registered with which key, who holds what, and whether it outlives a loss of power.

    ``registrations`` are in the order in which they came. ``type`` is None while there is no persistent reservation.
    ``holder`` is None then, and with the all registrants types, which every registrant holds. An SPC-2 reservation and
    registrations are never there together.
    """

    registrations: Mapping[NexusId, int] = field(default_factory=dict)
    pr_generation: int = 0
    holder: NexusId | None = None
    type: Type | None = None
    aptpl: bool = False
    spc2_holder: NexusId | None = None

    def is_holder(self, nexus: NexusId) -> bool:
        """Whether ``nexus`` is the persistent reservation holder, or one of them (SPC-4 5.13.10)."""
        if self.type in ALL_REGISTRANTS:
            return nexus in self.registrations
        return self.type is not None and nexus == self.holder

    def shares(self, nexus: NexusId) -> bool:
        """Whether the persistent reservation restricts ``nexus`` in nothing: it holds it, or is one of the registrants
        that the type lets in."""
        return self.is_holder(nexus) or (self.type in REGISTRANTS_ONLY and nexus in self.registrations)

    def without(self, gone: Iterable[NexusId]) -> Reservations:
        """Return the state after the nexuses ``gone`` lost their registrations.

        The reservation goes with its holder, or with the last registrant where all hold it (SPC-4 5.13.11.2.2).
        """
        leaving = frozenset(gone)
        left = {nexus: key for nexus, key in self.registrations.items() if nexus not in leaving}
        if self.type is not None and (self.holder in leaving if self.holder is not None else not left):
            return replace(self, registrations=left, holder=None, type=None)
        return replace(self, registrations=left)

    def next_generation(self) -> int:
        """Return PRGENERATION after one more change of the registrations: a 32-bit counter that wraps."""
        return (self.pr_generation + 1) & _MAX_GENERATION


EMPTY = Reservations()


def restriction(r: Reservations, nexus: NexusId) -> Restriction | None:
    """Return what ``nexus`` is restricted by now; None when it may send everything."""
    if r.spc2_holder is not None:
        return None if nexus == r.spc2_holder else Restriction.SPC_2
    if r.type is None or r.shares(nexus):
        return None
    return Restriction.WRITE_EXCLUSIVE if r.type in WRITE_EXCLUSIVE else Restriction.EXCLUSIVE_ACCESS


def conflict() -> ScsiError:
    """Return the error of a command that a reservation forbids."""
    return ScsiError(Status.RESERVATION_CONFLICT)


def attentions(nexuses: Iterable[NexusId], sender: NexusId, reason: Reason) -> tuple[Attention, ...]:
    """Return a unit attention for each of ``nexuses`` but the sender of the command that caused it."""
    return tuple(Attention(nexus, reason) for nexus in nexuses if nexus != sender)


# -- RESERVE and RELEASE (SPC-2 7.17, 7.18, 7.21, 7.22) ---------------------------------------------------------------


def reserve_unit(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """RESERVE and RELEASE, (6) and (10): they have parameters for extents and third parties only, which are refused."""
    return Ask()


def reserve(r: Reservations, nexus: NexusId, cdb: bytes = b"", data: bytes = b"") -> Outcome:
    """RESERVE(6) and (10) of the whole unit; third party and extents do not pass the opcode table.

    Whom a persistent reservation lets in gets GOOD and nothing comes of it (SPC-4 5.13.3, CRH); any other registration
    is a conflict (SPC-2 5.5.1).
    """
    if r.shares(nexus):
        return Outcome(r)
    if r.registrations or r.spc2_holder not in (None, nexus):
        return Outcome(r, error=conflict())
    return Outcome(replace(r, spc2_holder=nexus))


def release(r: Reservations, nexus: NexusId, cdb: bytes = b"", data: bytes = b"") -> Outcome:
    """RELEASE(6) and (10): from who does not hold the reservation, GOOD without effect (SPC-2 7.17.2)."""
    if r.shares(nexus):
        return Outcome(r)
    if r.registrations:
        return Outcome(r, error=conflict())
    return Outcome(replace(r, spc2_holder=None) if r.spc2_holder == nexus else r)


# -- what happens to reservations without a command of theirs ---------------------------------------------------------


def nexus_lost(r: Reservations, nexus: NexusId) -> Outcome:
    """An SPC-2 reservation goes with its nexus; persistent reservations stay (SPC-4 5.13.1)."""
    return Outcome(replace(r, spc2_holder=None) if r.spc2_holder == nexus else r)


def reset(r: Reservations) -> Reservations:
    """A logical unit reset, or a reset that includes one, takes SPC-2 reservations only (SPC-2 5.5.1)."""
    return replace(r, spc2_holder=None)


def power_loss(r: Reservations) -> Reservations:
    """What is left when everything stopped and came back: all that is persistent, with APTPL, else nothing.

    PRGENERATION starts from 0 either way (SPC-4 6.13.2).
    """
    return replace(r, pr_generation=0, spc2_holder=None) if r.aptpl else EMPTY


# -- as plain values, for messages between processes and for the disk -------------------------------------------------


def to_plain(r: Reservations) -> dict[str, Any]:
    """Return ``r`` as values that JSON knows."""
    return {
        "registrations": [[*nexus, key] for nexus, key in r.registrations.items()],
        "pr_generation": r.pr_generation,
        "holder": None if r.holder is None else list(r.holder),
        "type": None if r.type is None else int(r.type),
        "aptpl": r.aptpl,
        "spc2_holder": None if r.spc2_holder is None else list(r.spc2_holder),
    }


def from_plain(plain: object) -> Reservations:
    """Return what ``to_plain`` was given; ValueError on anything that it cannot have made."""
    if not isinstance(plain, dict) or plain.keys() != to_plain(EMPTY).keys():
        raise ValueError("not the members of reservations")
    rows, code, aptpl = plain["registrations"], plain["type"], plain["aptpl"]
    if not isinstance(rows, list) or not isinstance(aptpl, bool):
        raise ValueError("registrations are a list, aptpl is true or false")
    registrations = dict(map(_registration, rows))
    if len(registrations) != len(rows) or len(rows) > MAX_REGISTRATIONS:
        raise ValueError(f"{len(rows)} registrations: more than {MAX_REGISTRATIONS}, or one twice")
    r = Reservations(
        registrations,
        _number(plain["pr_generation"], 0, _MAX_GENERATION),
        None if plain["holder"] is None else _nexus(plain["holder"]),
        None if code is None else Type(_number(code, 0, 0xF)),
        aptpl,
        None if plain["spc2_holder"] is None else _nexus(plain["spc2_holder"]),
    )
    _check(r)
    return r


def _check(r: Reservations) -> None:
    """Raise ValueError where ``r`` says what cannot be."""
    if r.type is None or r.type in ALL_REGISTRANTS:
        if r.holder is not None:
            raise ValueError("a single holder of a reservation that has none")
        if r.type is not None and not r.registrations:
            raise ValueError("a reservation of all registrants without any")
    elif r.holder not in r.registrations:
        raise ValueError("the holder of the reservation is not registered")
    if r.spc2_holder is not None and r.registrations:
        raise ValueError("an SPC-2 reservation beside registrations")


def _registration(row: object) -> tuple[NexusId, int]:
    if not isinstance(row, list) or len(row) != 5:
        raise ValueError(f"not a registration: {row!r}")
    return _nexus(row[:4]), _number(row[4], 1, _MAX_KEY)


def _nexus(value: object) -> NexusId:
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"not a nexus: {value!r}")
    initiator, isid, target, tag = value
    if not isinstance(initiator, str) or not isinstance(target, str):
        raise ValueError(f"not the names of ports: {value!r}")
    return NexusId(initiator, _number(isid, 0, 2**48 - 1), target, _number(tag, 0, 0xFFFF))


def _number(value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{value!r} is no number between {low} and {high}")
    return value
