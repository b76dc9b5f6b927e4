"""Target ports, their groups and the state of the access through them: ALUA (SPC-4 5.15.2), as data and pure functions.

An iSCSI target port is the target name and a portal group tag (RFC 7143 section 4.4.1), so each tag is one relative
port and one target port group of the same number. A logical unit holds its groups in ``lu.port_groups``; whoever keeps
them for all workers puts a new tuple there.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iscsid.errors import ScsiError
from iscsid.scsi.plan import Plan, Reply
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus


class AccessState(enum.IntEnum):
    """Asymmetric access states (SPC-4 6.37, table 305)."""

    ACTIVE_OPTIMIZED = 0x0
    ACTIVE_NON_OPTIMIZED = 0x1
    STANDBY = 0x2
    UNAVAILABLE = 0x3
    OFFLINE = 0xE
    TRANSITIONING = 0xF


class StateChange(enum.IntEnum):
    """Why a group is in its state: the STATUS CODE (SPC-4 6.37, table 306)."""

    NONE = 0x00
    BY_COMMAND = 0x01  # SET TARGET PORT GROUPS
    IMPLICIT = 0x02  # the administrator, or we ourselves


@dataclass(frozen=True, slots=True)
class PortGroup:
    """The target port group of one portal group tag, from 1 to 65535."""

    tag: int
    state: AccessState = AccessState.ACTIVE_OPTIMIZED
    preferred: bool = False
    change: StateChange = StateChange.NONE


ONE_GROUP = (PortGroup(1),)
"""The groups of a target all of whose portals are in one portal group: what a target has unless it is told others."""


def port_name(target: str, tag: int) -> str:
    """Return the SCSI name of a target port: RFC 7143 section 4.2.7.1 and SPC-4 7.6.4.6."""
    return f"{target},t,0x{tag:04x}"


# -- REPORT TARGET PORT GROUPS (SPC-4 6.37) --------------------------------------------------------------------------

_LENGTH_ONLY, _EXTENDED = 0b000, 0b001  # PARAMETER DATA FORMAT
_EXTENDED_HEADER = struct.Struct(">BBxx")  # FORMAT TYPE; IMPLICIT TRANSITION TIME, 0: not specified
_GROUP = struct.Struct(">BBHxBxB")  # PREF and state, states supported, TARGET PORT GROUP, STATUS CODE, number of ports
_PORT = struct.Struct(">xxH")  # RELATIVE TARGET PORT IDENTIFIER
_PREF = 0x80

SUPPORTED_STATES: dict[AccessState, int] = {AccessState.ACTIVE_OPTIMIZED: 0x01}
"""The states that a group can be in, with their bits in byte 1 of a descriptor (AO_SUP alone)."""


def report_target_port_groups(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.37: the same answer through every port."""
    data_format, allocation_length = cdb[1] >> 5, int.from_bytes(cdb[6:10], "big")
    if data_format not in (_LENGTH_ONLY, _EXTENDED):
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, bit=7)
    head = _EXTENDED_HEADER.pack(_EXTENDED << 4, 0) if data_format == _EXTENDED else b""
    data = head + b"".join(map(_group_descriptor, lu.port_groups))
    # RETURN DATA LENGTH does not count itself.
    return Reply((struct.pack(">I", len(data)) + data)[:allocation_length])


def _group_descriptor(group: PortGroup) -> bytes:
    state = group.state | (_PREF if group.preferred else 0)
    supported = sum(SUPPORTED_STATES.values())
    return _GROUP.pack(state, supported, group.tag, group.change, 1) + _PORT.pack(group.tag)


# -- SET TARGET PORT GROUPS (SPC-4 6.45) -----------------------------------------------------------------------------

_SET_HEADER = 4
_SET_DESCRIPTOR = struct.Struct(">BxH")
_STATE_MASK = 0x0F


def set_port_groups(
    current: Sequence[PortGroup], data: bytes | memoryview, settable: Iterable[AccessState]
) -> tuple[PortGroup, ...]:
    """Return the groups as SET TARGET PORT GROUPS with the parameter list ``data`` wants them.

    Groups that the list does not name stay as they are; nothing is changed unless the whole list is right. ``settable``
    are the states that an initiator may ask for; a state that is none of them, a group that there is not, and a group
    that is named twice raise ScsiError with a pointer into the list (SPC-4 6.45). A list that ends within a descriptor
    is PARAMETER LIST LENGTH ERROR; an empty one changes nothing.
    """
    if not len(data):
        return tuple(current)
    descriptors = memoryview(data)[_SET_HEADER:]
    if len(data) < _SET_HEADER or len(descriptors) % _SET_DESCRIPTOR.size:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    allowed = frozenset(settable)
    groups = {group.tag: group for group in current}
    named: set[int] = set()
    for number, (first, tag) in enumerate(_SET_DESCRIPTOR.iter_unpack(descriptors)):
        at = _SET_HEADER + number * _SET_DESCRIPTOR.size
        state = first & _STATE_MASK
        if reserved := first & ~_STATE_MASK:
            raise ScsiError(
                Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=at, bit=reserved.bit_length() - 1, in_data=True
            )
        if state not in allowed:
            raise ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=at, bit=3, in_data=True)
        if tag not in groups or tag in named:
            raise ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=at + 2, in_data=True)
        named.add(tag)
        groups[tag] = dataclasses.replace(groups[tag], state=AccessState(state), change=StateChange.BY_COMMAND)
    return tuple(groups[group.tag] for group in current)
