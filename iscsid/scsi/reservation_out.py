"""PERSISTENT RESERVE OUT (SPC-4 5.13, 6.14): one pure function from the reservations there were to those there are."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from iscsid.errors import ScsiError
from iscsid.scsi import transport_id
from iscsid.scsi.const import PersistentReserveOut as Action
from iscsid.scsi.plan import Ask, Plan
from iscsid.scsi.reservation import (
    ALL_REGISTRANTS,
    LU_SCOPE,
    MAX_REGISTRATIONS,
    REGISTRANTS_ONLY,
    Reservations,
    Type,
    attentions,
    conflict,
)
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId, Outcome

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

MIN_PARAMETER_LENGTH = 24
# REGISTER with a TransportID for every registration that there is room for; more cannot succeed.
MAX_PARAMETER_LENGTH = 28 + MAX_REGISTRATIONS * transport_id.MAX_LENGTH

_KEYS = struct.Struct(">QQ")  # RESERVATION KEY, SERVICE ACTION RESERVATION KEY
_SPEC_I_PT, _ALL_TG_PT, _APTPL = 0x08, 0x04, 0x01
_FLAGS, _FLAGS_RESERVED = 20, 0xF2
_MOVE = struct.Struct(">BHI")  # UNREG and APTPL, RELATIVE TARGET PORT IDENTIFIER, TRANSPORTID PARAMETER DATA LENGTH
_MOVE_FLAGS, _UNREG, _MOVE_RESERVED = 17, 0x02, 0xFC
_RELATIVE_PORT = 18
_SERVICE_ACTION_KEY = 8  # its place in the parameter list, for field pointers

Port = tuple[str, int]
"""A target port: target name and portal group tag. The tag is the relative target port identifier, too."""


@dataclass(frozen=True, slots=True)
class _Request:
    """The command as it came: CDB and parameter list taken apart, and what the unit knows of its ports.

    ``named`` are its TransportIDs; ``relative_port`` and ``unreg`` belong to REGISTER AND MOVE alone.
    """

    nexus: NexusId
    action: Action
    scope: int
    type: int
    key: int
    service_action_key: int
    aptpl: bool = False
    all_tg_pt: bool = False
    spec_i_pt: bool = False
    unreg: bool = False
    relative_port: int = 0
    named: tuple[transport_id.TransportId, ...] = ()
    known: Collection[NexusId] = ()
    ports: Collection[Port] = ()


def persistent_reserve_out(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.14: the parameter list goes to where the reservations are kept, unless it is longer than any may be."""
    length = int.from_bytes(cdb[5:9], "big")
    if length > MAX_PARAMETER_LENGTH:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    return Ask(length)


def pr_out(
    r: Reservations,
    nexus: NexusId,
    cdb: bytes,
    data: bytes | memoryview,
    known: Collection[NexusId] = (),
    ports: Collection[Port] = (),
) -> Outcome:
    """Execute the command ``cdb`` with the parameter list ``data``, sent by ``nexus``.

    ``known``: the nexuses that are logged in, for TransportIDs that name all ports of an initiator. ``ports``: the
    target ports of the unit, for ALL_TG_PT and REGISTER AND MOVE; those seen in ``known`` are taken for granted.
    Whatever is wrong with the command is the error of the outcome; nothing is raised.
    """
    try:
        if r.spc2_holder is not None:
            raise conflict()  # SPC-2 5.5.1: from everybody, the holder included
        request = _parse(nexus, cdb, memoryview(data), known, ports)
        outcome = _ACTIONS[request.action](r, request)
    except ScsiError as error:
        return Outcome(r, error=error)
    after: Reservations = outcome.state
    return replace(outcome, persist=(after.aptpl or r.aptpl) and after != r)


# -- the parameter list ----------------------------------------------------------------------------------------------


def _parse(
    nexus: NexusId, cdb: bytes, data: memoryview, known: Collection[NexusId], ports: Collection[Port]
) -> _Request:
    try:
        action = Action(cdb[1] & 0x1F)
    except ValueError as exc:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, bit=4) from exc
    length = int.from_bytes(cdb[5:9], "big")
    if not MIN_PARAMETER_LENGTH <= length <= min(len(data), MAX_PARAMETER_LENGTH):
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    data = data[:length]
    scope, type_ = cdb[2] >> 4, cdb[2] & 0x0F
    ports = _ports(nexus, known, ports)
    key, new = _KEYS.unpack_from(data)
    request = _Request(nexus, action, scope, type_, key, new, known=known, ports=ports)
    return _parse_move(request, data) if action is Action.REGISTER_AND_MOVE else _parse_basic(request, data)


def _parse_basic(request: _Request, data: memoryview) -> _Request:
    """SPC-4 6.14.3, table 225."""
    flags = data[_FLAGS]
    if flags & _FLAGS_RESERVED:
        raise _wrong(_FLAGS, (flags & _FLAGS_RESERVED).bit_length() - 1)
    spec_i_pt = bool(flags & _SPEC_I_PT)
    return replace(
        request,
        aptpl=bool(flags & _APTPL),
        all_tg_pt=bool(flags & _ALL_TG_PT),
        spec_i_pt=spec_i_pt,
        named=_named(request.action, data, spec_i_pt),
    )


def _parse_move(request: _Request, data: memoryview) -> _Request:
    """SPC-4 6.14.4, table 226: one TransportID, whose length the list gives once more."""
    flags, relative_port, length = _MOVE.unpack_from(data, _MOVE_FLAGS)
    if flags & _MOVE_RESERVED:
        raise _wrong(_MOVE_FLAGS, (flags & _MOVE_RESERVED).bit_length() - 1)
    rest = data[MIN_PARAMETER_LENGTH:]
    if length != len(rest) or not length:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    name, size = transport_id.parse(rest, MIN_PARAMETER_LENGTH)
    if size != length:
        raise _wrong(MIN_PARAMETER_LENGTH + size)
    return replace(
        request,
        aptpl=bool(flags & _APTPL),
        unreg=bool(flags & _UNREG),
        relative_port=relative_port,
        named=(name,),
    )


def _named(action: Action, data: memoryview, spec_i_pt: bool) -> tuple[transport_id.TransportId, ...]:
    """Return the TransportIDs behind the basic parameter list (SPC-4 6.14.3, table 229): SPEC_I_PT announces them."""
    if not spec_i_pt:
        if len(data) != MIN_PARAMETER_LENGTH:
            raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
        return ()
    if action is not Action.REGISTER:
        raise _wrong(_FLAGS, 3)
    start = MIN_PARAMETER_LENGTH + 4
    if len(data) < start or int.from_bytes(data[MIN_PARAMETER_LENGTH:start], "big") != len(data) - start:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    return tuple(transport_id.parse_list(data[start:], start, MAX_REGISTRATIONS))


def _ports(nexus: NexusId, known: Collection[NexusId], ports: Collection[Port]) -> tuple[Port, ...]:
    """Return the target ports of the unit, that of the sender first, each once."""
    seen = [(nexus.target, nexus.portal_group_tag), *ports, *((k.target, k.portal_group_tag) for k in known)]
    return tuple(dict.fromkeys(seen))


def _wrong(field: int, bit: int | None = None) -> ScsiError:
    return ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=field, bit=bit, in_data=True)


# -- registering (SPC-4 5.13.7, tables 48 and 49) --------------------------------------------------------------------


def _register(r: Reservations, q: _Request) -> Outcome:
    own = r.registrations.get(q.nexus)
    through = _through_all_ports(q, q.nexus) if q.all_tg_pt else [q.nexus]
    if q.action is Action.REGISTER:
        if q.key != (own or 0):
            raise conflict()
        # As if the command had come by each port: a port where another key is registered would refuse it.
        if any(r.registrations.get(nexus, own) != own for nexus in through):
            raise conflict()
    if own is None and not q.service_action_key:
        return Outcome(r)
    if own is not None and q.spec_i_pt:
        raise _wrong(_FLAGS, 3)
    if not q.service_action_key:
        return _unregister(r, q, through)
    wanted = [*through, *_spec_i_pt(r, q)]
    registrations = {**r.registrations, **dict.fromkeys(wanted, q.service_action_key)}
    if len(registrations) > MAX_REGISTRATIONS:
        raise ScsiError(Reason.INSUFFICIENT_REGISTRATION_RESOURCES)
    return Outcome(replace(r, registrations=registrations, pr_generation=r.next_generation(), aptpl=q.aptpl))


def _through_all_ports(q: _Request, nexus: NexusId) -> list[NexusId]:
    return [nexus._replace(target=target, portal_group_tag=tag) for target, tag in q.ports]


def _spec_i_pt(r: Reservations, q: _Request) -> list[NexusId]:
    """Return the nexuses that the TransportIDs name, by the sender's target port, or by all of them (ALL_TG_PT)."""
    found: list[NexusId] = []
    for name in q.named:
        if name.isid is not None:
            isids = {name.isid}
        else:
            isids = {n.isid for n in (*q.known, *r.registrations) if n.initiator == name.initiator}
        if not isids:
            raise _wrong(MIN_PARAMETER_LENGTH + 4)  # SPC-4 7.6.4.6: all ports that are known, and none is
        for isid in sorted(isids):
            nexus = q.nexus._replace(initiator=name.initiator, isid=isid)
            found.extend(_through_all_ports(q, nexus) if q.all_tg_pt else [nexus])
    if any(nexus in r.registrations for nexus in found):
        raise _wrong(MIN_PARAMETER_LENGTH + 4)
    return found


def _unregister(r: Reservations, q: _Request, through: Collection[NexusId]) -> Outcome:
    """SPC-4 5.13.11.2.2: those who shared a registrants only reservation are told that it is gone."""
    after = replace(r.without(through), pr_generation=r.next_generation(), aptpl=q.aptpl)
    told = after.registrations if r.type in REGISTRANTS_ONLY and after.type is None else ()
    return Outcome(after, attentions=attentions(told, q.nexus, Reason.RESERVATIONS_RELEASED))


def _register_and_move(r: Reservations, q: _Request) -> Outcome:
    """SPC-4 5.13.8: the holder hands the reservation to a port that it names, and registers it where need be."""
    _check_registered(r, q)
    if r.type is None:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, bit=4)
    if not r.is_holder(q.nexus) or r.type in ALL_REGISTRANTS:
        raise conflict()
    if not q.service_action_key:
        raise _wrong(_SERVICE_ACTION_KEY)
    name = q.named[0]
    if name.isid is None:  # a device is no port
        raise _wrong(MIN_PARAMETER_LENGTH)
    if (q.nexus.target, q.relative_port) not in q.ports:
        raise _wrong(_RELATIVE_PORT)
    holder = NexusId(name.initiator, name.isid, q.nexus.target, q.relative_port)
    if holder == q.nexus:
        raise _wrong(MIN_PARAMETER_LENGTH)
    registrations = {**r.registrations, holder: q.service_action_key}
    if q.unreg:
        del registrations[q.nexus]
    if len(registrations) > MAX_REGISTRATIONS:
        raise ScsiError(Reason.INSUFFICIENT_REGISTRATION_RESOURCES)
    generation = r.next_generation()
    return Outcome(replace(r, registrations=registrations, holder=holder, pr_generation=generation, aptpl=q.aptpl))


# -- reserving, releasing, clearing (SPC-4 5.13.9, 5.13.11) ----------------------------------------------------------


def _check_registered(r: Reservations, q: _Request) -> None:
    """Every service action but registration needs a registered nexus and its key (SPC-4 5.13.5)."""
    if q.nexus not in r.registrations or r.registrations[q.nexus] != q.key:
        raise conflict()


def _wanted_type(q: _Request) -> Type:
    if q.scope != LU_SCOPE:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2, bit=7)
    try:
        return Type(q.type)
    except ValueError as exc:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2, bit=3) from exc


def _established(r: Reservations, nexus: NexusId, wanted: Type) -> Reservations:
    return replace(r, type=wanted, holder=None if wanted in ALL_REGISTRANTS else nexus)


def _reserve(r: Reservations, q: _Request) -> Outcome:
    """SPC-4 5.13.9: a holder may repeat what it has; anything else while there is a reservation is a conflict."""
    _check_registered(r, q)
    wanted = _wanted_type(q)
    if r.type is None:
        return Outcome(_established(r, q.nexus, wanted))
    if r.type is not wanted or not r.is_holder(q.nexus):
        raise conflict()
    return Outcome(r)


def _release(r: Reservations, q: _Request) -> Outcome:
    """SPC-4 5.13.11.2.1: from a registrant that does not hold it, GOOD without effect."""
    _check_registered(r, q)
    if not r.is_holder(q.nexus):
        return Outcome(r)
    if q.scope != LU_SCOPE or q.type != r.type:
        raise ScsiError(Reason.INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
    told = r.registrations if r.type in REGISTRANTS_ONLY | ALL_REGISTRANTS else ()
    return Outcome(
        replace(r, type=None, holder=None), attentions=attentions(told, q.nexus, Reason.RESERVATIONS_RELEASED)
    )


def _clear(r: Reservations, q: _Request) -> Outcome:
    """SPC-4 5.13.11.2.7: nobody is registered any more."""
    _check_registered(r, q)
    after = replace(r, registrations={}, type=None, holder=None, pr_generation=r.next_generation())
    return Outcome(after, attentions=attentions(r.registrations, q.nexus, Reason.RESERVATIONS_PREEMPTED))


# -- preempting (SPC-4 5.13.11.2.3 to 5.13.11.2.6) -------------------------------------------------------------------


def _preempt(r: Reservations, q: _Request) -> Outcome:
    """Take registrations from who has a key, and the reservation as well where that key is its holder's.

    Key 0 stands for everybody while all registrants hold the reservation, and for nobody otherwise.
    """
    _check_registered(r, q)
    if not q.service_action_key:
        if r.type not in ALL_REGISTRANTS:
            raise _wrong(_SERVICE_ACTION_KEY)
        return _preempt_reservation(r, q, tuple(r.registrations))
    matching = tuple(nexus for nexus, key in r.registrations.items() if key == q.service_action_key)
    if not matching:
        raise conflict()
    if r.holder in matching:
        return _preempt_reservation(r, q, matching)
    after = replace(r.without(matching), pr_generation=r.next_generation())
    return Outcome(
        after,
        attentions=attentions(matching, q.nexus, Reason.REGISTRATIONS_PREEMPTED),
        aborts=_aborts(q, matching),
    )


def _preempt_reservation(r: Reservations, q: _Request, matching: tuple[NexusId, ...]) -> Outcome:
    """SPC-4 5.13.11.2.4: the sender stays registered and gets the reservation, of the type that it asks for."""
    wanted = _wanted_type(q)
    gone = tuple(nexus for nexus in matching if nexus != q.nexus)
    left = replace(r.without(gone), pr_generation=r.next_generation())
    told = attentions(gone, q.nexus, Reason.REGISTRATIONS_PREEMPTED)
    if wanted is not r.type:
        told += attentions(left.registrations, q.nexus, Reason.RESERVATIONS_RELEASED)
    return Outcome(_established(left, q.nexus, wanted), attentions=told, aborts=_aborts(q, gone))


def _aborts(q: _Request, preempted: Collection[NexusId]) -> tuple[NexusId, ...]:
    """Whose tasks PREEMPT AND ABORT ends. A sender that preempts itself keeps its own: this command is among them."""
    if q.action is not Action.PREEMPT_AND_ABORT:
        return ()
    return tuple(nexus for nexus in preempted if nexus != q.nexus)


_ACTIONS: dict[Action, Callable[[Reservations, _Request], Outcome]] = {
    Action.REGISTER: _register,
    Action.RESERVE: _reserve,
    Action.RELEASE: _release,
    Action.CLEAR: _clear,
    Action.PREEMPT: _preempt,
    Action.PREEMPT_AND_ABORT: _preempt,
    Action.REGISTER_AND_IGNORE_EXISTING_KEY: _register,
    Action.REGISTER_AND_MOVE: _register_and_move,
}
