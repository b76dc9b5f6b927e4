"""PERSISTENT RESERVE IN (SPC-4 6.13): the reservations of a unit as parameter data."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from iscsid.errors import ScsiError
from iscsid.scsi import transport_id
from iscsid.scsi.const import PersistentReserveIn as Action
from iscsid.scsi.plan import Plan, Reply
from iscsid.scsi.reservation import LU_SCOPE, Reservations, Type, conflict
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

_HEADER = struct.Struct(">II")  # PRGENERATION, ADDITIONAL LENGTH
_RESERVATION = struct.Struct(">Q5xB2x")  # RESERVATION KEY, SCOPE and TYPE (table 209)
_CAPABILITIES = struct.Struct(">HBBH2x")  # LENGTH, two bytes of flags, PERSISTENT RESERVATION TYPE MASK (table 213)
_FULL_STATUS = struct.Struct(">Q4xBB4xHI")  # key, flags, SCOPE and TYPE, relative port, length (table 217)

_CRH, _SIP_C, _ATP_C, _PTPL_C = 0x10, 0x08, 0x04, 0x01
_TMV, _PTPL_A = 0x80, 0x01
# ALLOW COMMANDS 011b: TEST UNIT READY passes every reservation; MODE SENSE, REPORT SUPPORTED OPERATION CODES and their
# like pass write exclusive ones (SPC-4 table 215). The conflict table says the same.
_ALLOW_COMMANDS = 0b011 << 4
_TYPE_BITS: dict[Type, int] = {
    Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS: 0x8000,
    Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: 0x4000,
    Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY: 0x2000,
    Type.EXCLUSIVE_ACCESS: 0x0800,
    Type.WRITE_EXCLUSIVE: 0x0200,
    Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS: 0x0001,
}
_TYPE_MASK = sum(_TYPE_BITS.values())
_R_HOLDER = 0x01


def persistent_reserve_in(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.13, from this worker's copy: it is never older than the last PERSISTENT RESERVE OUT that was answered."""
    return Reply(pr_in(lu.state.reservations, nexus.id, cdb))


def pr_in(r: Reservations, nexus: NexusId, cdb: bytes) -> bytes:
    """Return the parameter data that ``cdb`` asks for, cut to its allocation length.

    Raises ScsiError: RESERVATION CONFLICT, to the holder as well, while there is an SPC-2 reservation (SPC-2 5.5.1).
    """
    if r.spc2_holder is not None:
        raise conflict()
    report = _REPORTS.get(cdb[1] & 0x1F)
    if report is None:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, bit=4)
    return report(r)[: int.from_bytes(cdb[7:9], "big")]


def _read_keys(r: Reservations) -> bytes:
    """SPC-4 6.13.2: the keys of all registrants, one that several share as often."""
    keys = struct.pack(f">{len(r.registrations)}Q", *r.registrations.values())
    return _HEADER.pack(r.pr_generation, len(keys)) + keys


def _read_reservation(r: Reservations) -> bytes:
    """SPC-4 6.13.3: nothing but a header while there is none; key 0 where all registrants hold it."""
    if r.type is None:
        return _HEADER.pack(r.pr_generation, 0)
    key = 0 if r.holder is None else r.registrations[r.holder]
    data = _RESERVATION.pack(key, LU_SCOPE << 4 | r.type)
    return _HEADER.pack(r.pr_generation, len(data)) + data


def _report_capabilities(r: Reservations) -> bytes:
    """SPC-4 6.13.4: everything is supported; PTPL_A tells whether it is active."""
    first = _CRH | _SIP_C | _ATP_C | _PTPL_C
    second = _TMV | _ALLOW_COMMANDS | (_PTPL_A if r.aptpl else 0)
    return _CAPABILITIES.pack(_CAPABILITIES.size, first, second, _TYPE_MASK)


def _read_full_status(r: Reservations) -> bytes:
    """SPC-4 6.13.5. Each registration is told with its own target port, so that ALL_TG_PT is 0 throughout."""
    descriptors = []
    for nexus, key in r.registrations.items():
        name = transport_id.build(nexus.initiator, nexus.isid)
        flags, scope_type = (_R_HOLDER, LU_SCOPE << 4 | (r.type or 0)) if r.is_holder(nexus) else (0, 0)
        descriptors.append(_FULL_STATUS.pack(key, flags, scope_type, nexus.portal_group_tag, len(name)) + name)
    data = b"".join(descriptors)
    return _HEADER.pack(r.pr_generation, len(data)) + data


_REPORTS: dict[int, Callable[[Reservations], bytes]] = {
    int(Action.READ_KEYS): _read_keys,
    int(Action.READ_RESERVATION): _read_reservation,
    int(Action.REPORT_CAPABILITIES): _report_capabilities,
    int(Action.READ_FULL_STATUS): _read_full_status,
}
