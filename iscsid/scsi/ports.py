"""Target ports, their groups and the state of the access through them: ALUA (SPC-4 5.15.2), as data and pure functions.

An iSCSI target port is the target name and a portal group tag (RFC 7143 section 4.4.1), so each tag is one relative
port and one target port group of the same number. A logical unit holds its groups in ``lu.port_groups``; whoever keeps
them for all workers puts a new tuple there. All targets of one unit, by their names, are an ``Access``.

The states live as long as the server: hard reset, logical unit reset and the loss of a nexus leave them as they are,
and a power on may begin with any (SPC-4 5.15.2.9), which is what the configuration says.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iscsid.errors import ScsiError
from iscsid.scsi.plan import Ask, Plan, Reply
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId, Outcome

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

Access = Mapping[str, tuple[PortGroup, ...]]
"""Target name -> the groups of its ports. A target that is not named has ONE_GROUP."""

STATE_NAMES: dict[AccessState, str] = {
    AccessState.ACTIVE_OPTIMIZED: "active/optimized",
    AccessState.ACTIVE_NON_OPTIMIZED: "active/non-optimized",
    AccessState.STANDBY: "standby",
    AccessState.UNAVAILABLE: "unavailable",
    AccessState.OFFLINE: "offline",
    AccessState.TRANSITIONING: "transitioning",
}
"""What people call the states."""
STATES: dict[str, AccessState] = {name: state for state, name in STATE_NAMES.items()}

ACTIVE = frozenset({AccessState.ACTIVE_OPTIMIZED, AccessState.ACTIVE_NON_OPTIMIZED})
"""The states in which every command is executed."""

NOT_ACCESSIBLE: dict[AccessState, Reason] = {
    AccessState.STANDBY: Reason.TARGET_PORT_IN_STANDBY_STATE,
    AccessState.UNAVAILABLE: Reason.TARGET_PORT_IN_UNAVAILABLE_STATE,
    AccessState.OFFLINE: Reason.LOGICAL_UNIT_OFFLINE,
    AccessState.TRANSITIONING: Reason.ASYMMETRIC_ACCESS_STATE_TRANSITION,
}
"""What a command ends in that the state does not allow (SPC-4 5.15.2.4); which it allows is in the opcode table."""


def state_of(groups: Iterable[PortGroup], tag: int) -> AccessState:
    """Return the state of the group ``tag``; one that there is not restricts nothing."""
    return next((group.state for group in groups if group.tag == tag), AccessState.ACTIVE_OPTIMIZED)


def to_plain(access: Access) -> dict[str, Any]:
    """Return JSON values: for each target, a list of [tag, state, preferred, status code]."""
    return {target: [dataclasses.astuple(group) for group in groups] for target, groups in access.items()}


def from_plain(plain: Mapping[str, Any]) -> Access:
    """Return what ``to_plain`` was given."""
    return {
        target: tuple(
            PortGroup(tag, AccessState(state), preferred, StateChange(change))
            for tag, state, preferred, change in groups
        )
        for target, groups in plain.items()
    }


def port_name(target: str, tag: int) -> str:
    """Return the SCSI name of a target port: RFC 7143 section 4.2.7.1 and SPC-4 7.6.4.6."""
    return f"{target},t,0x{tag:04x}"


# -- REPORT TARGET PORT GROUPS (SPC-4 6.37) --------------------------------------------------------------------------

_LENGTH_ONLY, _EXTENDED = 0b000, 0b001  # PARAMETER DATA FORMAT
_EXTENDED_HEADER = struct.Struct(">BBxx")  # FORMAT TYPE; IMPLICIT TRANSITION TIME, 0: not specified
_GROUP = struct.Struct(">BBHxBxB")  # PREF and state, states supported, TARGET PORT GROUP, STATUS CODE, number of ports
_PORT = struct.Struct(">xxH")  # RELATIVE TARGET PORT IDENTIFIER
_PREF = 0x80

SUPPORTED_STATES: dict[AccessState, int] = {
    AccessState.ACTIVE_OPTIMIZED: 0x01,
    AccessState.ACTIVE_NON_OPTIMIZED: 0x02,
    AccessState.STANDBY: 0x04,
    AccessState.UNAVAILABLE: 0x08,
    AccessState.OFFLINE: 0x40,
    AccessState.TRANSITIONING: 0x80,
}
"""The states that a group can be in, with their bits in byte 1 of a descriptor."""


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

SETTABLE = (
    AccessState.ACTIVE_OPTIMIZED,
    AccessState.ACTIVE_NON_OPTIMIZED,
    AccessState.STANDBY,
    AccessState.UNAVAILABLE,
)
"""What an initiator may ask for. The other two are the administrator's: no initiator brings a group out of them."""


def set_target_port_groups(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.45: what becomes of it is decided where the unit's state is kept."""
    return Ask(int.from_bytes(cdb[6:10], "big"))


def by_command(access: Access, nexus: NexusId, data: bytes, known: Collection[NexusId]) -> Outcome:
    """Execute SET TARGET PORT GROUPS of ``nexus`` with the parameter list ``data`` (explicit ALUA, SPC-4 5.15.2.7).

    A group that the administrator has put out of use stays so: SET TARGET PORT GROUPS COMMAND FAILED. The outcome's
    state is an ``Access``. Raises ScsiError.
    """
    current = access.get(nexus.target, ONE_GROUP)
    wanted = set_port_groups(current, data, SETTABLE)
    if any(old.state not in SETTABLE and old != new for old, new in zip(current, wanted, strict=True)):
        raise ScsiError(Reason.SET_TARGET_PORT_GROUPS_COMMAND_FAILED)
    return _outcome(access, nexus.target, wanted, [other for other in known if other != nexus])


def by_administrator(
    access: Access, target: str, tag: int, state: AccessState, preferred: bool | None, known: Collection[NexusId]
) -> Outcome:
    """Put the group ``tag`` of ``target`` into ``state`` (implicit ALUA, SPC-4 5.15.2.8); ``preferred`` None leaves
    that as it is. The outcome's state is an ``Access``."""
    wanted = tuple(
        dataclasses.replace(
            group,
            state=state,
            preferred=group.preferred if preferred is None else preferred,
            change=group.change if group.state == state else StateChange.IMPLICIT,
        )
        if group.tag == tag
        else group
        for group in access.get(target, ONE_GROUP)
    )
    return _outcome(access, target, wanted, known)


def _outcome(access: Access, target: str, groups: tuple[PortGroup, ...], told: Collection[NexusId]) -> Outcome:
    """Every nexus in ``told`` that goes to the target hears of a state that has changed (SPC-4 5.15.2.2)."""
    before = access.get(target, ONE_GROUP)
    changed = [group.state for group in before] != [group.state for group in groups]
    raised = tuple(
        Attention(nexus, Reason.ASYMMETRIC_ACCESS_STATE_CHANGED) for nexus in told if changed and nexus.target == target
    )
    return Outcome({**access, target: groups}, attentions=raised)


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


# -- referrals (SBC-3 4.27) ------------------------------------------------------------------------------------------

_REFERRALS_PAGE = struct.Struct(">4xII")  # USER DATA SEGMENT SIZE, 0: as the descriptors say; MULTIPLIER
_REFERRAL = struct.Struct(">3xBQQ")  # number of groups, FIRST and LAST USER DATA SEGMENT LBA
_REFERRED_GROUP = struct.Struct(">BxH")  # state, TARGET PORT GROUP


def referrals(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page B3h (SBC-3 6.6.6): the segments have no common size, for there is one, the whole unit."""
    return _REFERRALS_PAGE.pack(0, 0)


def report_referrals(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-3 5.24: one user data segment, which all groups lead to alike; ONE_SEG makes no difference."""
    lba, allocation_length = int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")
    if lba >= lu.blocks:
        raise ScsiError(Reason.LBA_OUT_OF_RANGE, field=2)
    groups = b"".join(_REFERRED_GROUP.pack(group.state, group.tag) for group in lu.port_groups)
    descriptor = _REFERRAL.pack(len(lu.port_groups), 0, lu.blocks - 1) + groups
    return Reply((struct.pack(">xxH", len(descriptor)) + descriptor)[:allocation_length])
