"""Target port groups: what is reported of them, byte by byte, and what a SET TARGET PORT GROUPS makes of them."""

from __future__ import annotations

import json

import pytest

from iscsid.errors import ScsiError
from iscsid.scsi.commands import COMMANDS, Command
from iscsid.scsi.const import Status
from iscsid.scsi.lu import SharedState
from iscsid.scsi.plan import Ask
from iscsid.scsi.ports import (
    ACTIVE,
    NOT_ACCESSIBLE,
    ONE_GROUP,
    AccessState,
    PortGroup,
    StateChange,
    by_administrator,
    by_command,
    from_plain,
    port_name,
    set_port_groups,
    to_plain,
)
from iscsid.scsi.reservation import Reservations
from iscsid.scsi.sense import REASONS, Reason, Sense
from iscsid.scsi.state import NexusId

OPTIMIZED, NON_OPTIMIZED, STANDBY = AccessState.ACTIVE_OPTIMIZED, AccessState.ACTIVE_NON_OPTIMIZED, AccessState.STANDBY
TWO_GROUPS = (PortGroup(1), PortGroup(2))


def report(unit, *, data_format: int = 0, length: int = 0xFFFF) -> bytes:
    return unit.run(f"a3 {data_format << 5 | 0x0A:02x} 00000000 {length:08x} 00 00")


def test_name_of_a_port_is_target_and_tag() -> None:
    assert port_name("iqn.2026-11.org.iscsid:a", 0x1F) == "iqn.2026-11.org.iscsid:a,t,0x001f"  # SPC-4 7.6.4.6


def test_a_unit_has_one_group_unless_it_is_told_others(unit) -> None:
    assert unit.lu.port_groups == ONE_GROUP == (PortGroup(1, OPTIMIZED, False, StateChange.NONE),)


# -- REPORT TARGET PORT GROUPS: SPC-4 6.37, tables 303 and 304 --------------------------------------------------------


def test_one_group_byte_by_byte(unit) -> None:
    assert report(unit) == bytes.fromhex(
        "0000000c"  # RETURN DATA LENGTH
        "00"  # PREF 0; ASYMMETRIC ACCESS STATE: active/optimized
        "cf"  # T_SUP, O_SUP 1, LBD_SUP 0, U_SUP, S_SUP, AN_SUP, AO_SUP 1
        "0001"  # TARGET PORT GROUP
        "00"  # reserved
        "00"  # STATUS CODE: no status available
        "00"  # vendor specific
        "01"  # TARGET PORT COUNT
        "0000 0001"  # reserved; RELATIVE TARGET PORT IDENTIFIER
    )


def test_extended_header_byte_by_byte(unit) -> None:
    assert report(unit, data_format=1) == bytes.fromhex(
        "00000010"  # RETURN DATA LENGTH
        "10"  # FORMAT TYPE 001b
        "00"  # IMPLICIT TRANSITION TIME: not specified
        "0000"
        "00 cf 0001 00 00 00 01 0000 0001"
    )


def test_every_group_has_its_descriptor(unit) -> None:
    unit.lu.port_groups = (
        PortGroup(1, OPTIMIZED, preferred=True),
        PortGroup(0x102, STANDBY, change=StateChange.IMPLICIT),
    )
    assert report(unit) == bytes.fromhex(
        "00000018"
        "80 cf 0001 00 00 00 01 0000 0001"  # PREF 1
        "02 cf 0102 00 02 00 01 0000 0102"  # standby, by implicit ALUA
    )


@pytest.mark.parametrize("length", [0, 3, 4, 5, 15, 16, 17])
def test_report_is_cut_to_the_allocation_length(unit, length: int) -> None:
    assert report(unit, length=length) == report(unit)[:length]


@pytest.mark.parametrize("data_format", range(2, 8))
def test_format_that_is_not_there_is_refused(unit, data_format: int) -> None:
    error = unit.refusal(f"a3 {data_format << 5 | 0x0A:02x} 00000000 0000ffff 00 00")
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, 1, 7)


# -- SET TARGET PORT GROUPS: SPC-4 6.45, tables 325 and 326 -----------------------------------------------------------


def wanted(*descriptors: str) -> bytes:
    return bytes(4) + b"".join(map(bytes.fromhex, descriptors))


def test_named_groups_change_and_the_others_stay() -> None:
    groups = set_port_groups(TWO_GROUPS, wanted("02 00 0002"), [OPTIMIZED, STANDBY])
    assert groups == (PortGroup(1), PortGroup(2, STANDBY, change=StateChange.BY_COMMAND))
    back = set_port_groups(groups, wanted("00 00 0002", "01 00 0001"), [OPTIMIZED, NON_OPTIMIZED])
    assert [(group.tag, group.state) for group in back] == [(1, NON_OPTIMIZED), (2, OPTIMIZED)]


def test_preference_stays_the_administrators() -> None:
    (group,) = set_port_groups([PortGroup(1, preferred=True)], wanted("01 00 0001"), [NON_OPTIMIZED])
    assert group.preferred


@pytest.mark.parametrize("data", [b"", bytes(4)])
def test_list_that_names_nothing_changes_nothing(data: bytes) -> None:
    assert set_port_groups(TWO_GROUPS, data, [OPTIMIZED]) == TWO_GROUPS


@pytest.mark.parametrize("length", [1, 3, 5, 6, 7, 9, 11])
def test_list_that_ends_within_a_descriptor_is_refused(length: int) -> None:
    with pytest.raises(ScsiError) as caught:
        set_port_groups(TWO_GROUPS, wanted("00 00 0001", "00 00 0002")[:length], [OPTIMIZED])
    assert caught.value.reason is Reason.PARAMETER_LIST_LENGTH_ERROR


@pytest.mark.parametrize(
    ("descriptors", "field", "bit"),
    [
        (["00 00 0003"], 6, None),  # there is no such group
        (["00 00 0001", "00 00 0000"], 10, None),
        (["00 00 0001", "01 00 0001"], 10, None),  # named twice
        (["02 00 0001"], 4, 3),  # a state that may not be set
        (["0f 00 0001"], 4, 3),  # transitioning is never asked for
        (["05 00 0001"], 4, 3),  # reserved
        (["00 00 0001", "40 00 0002"], 8, 6),  # reserved bit
    ],
)
def test_descriptor_that_cannot_be_is_pointed_at(descriptors: list[str], field: int, bit: int | None) -> None:
    with pytest.raises(ScsiError) as caught:
        set_port_groups(TWO_GROUPS, wanted(*descriptors), [OPTIMIZED, NON_OPTIMIZED])
    error = caught.value
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_PARAMETER_LIST, field, bit)
    assert error.in_data


# -- what a command meets in each state: SPC-4 5.15.2.4 ---------------------------------------------------------------

EVERYWHERE = frozenset({"INQUIRY", "REPORT_LUNS", "REQUEST_SENSE", "REPORT_TARGET_PORT_GROUPS"})
UNAVAILABLE_TOO = EVERYWHERE | {"SET_TARGET_PORT_GROUPS"}
STANDBY_TOO = UNAVAILABLE_TOO | {
    *("LOG_SELECT", "LOG_SENSE", "MODE_SELECT_6", "MODE_SELECT_10", "MODE_SENSE_6", "MODE_SENSE_10"),
    *("READ_CAPACITY_10", "READ_CAPACITY_16"),  # what follows is not on the standard's list, which may be longer
    *("REPORT_SUPPORTED_OPERATION_CODES", "REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS"),
}
EXECUTED = {
    AccessState.STANDBY: STANDBY_TOO,
    AccessState.UNAVAILABLE: UNAVAILABLE_TOO,
    AccessState.OFFLINE: EVERYWHERE,
    AccessState.TRANSITIONING: EVERYWHERE,
}
SENSE = {
    AccessState.STANDBY: Sense(2, 0x04, 0x0B),
    AccessState.UNAVAILABLE: Sense(2, 0x04, 0x0C),
    AccessState.OFFLINE: Sense(2, 0x04, 0x12),
    AccessState.TRANSITIONING: Sense(2, 0x04, 0x0A),
}
PERSISTENT_RESERVATIONS = (0x5E, 0x5F)


def refusal_of(unit, command: Command) -> ScsiError | None:
    """What the command ends in, with a CDB of nothing but its code; None when it is executed."""
    cdb = bytes((command.opcode, command.service_action or 0)).ljust(16, b"\0")
    try:
        unit.lu.plan(cdb, unit.nexus)
    except ScsiError as error:
        return error
    return None


@pytest.mark.parametrize("state", AccessState, ids=lambda state: state.name)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_command_through_a_port_in_a_state(unit, command: Command, state: AccessState) -> None:
    unit.lu.commands = COMMANDS  # those that need a feature of another unit, too
    unit.lu.port_groups = (PortGroup(1, state), PortGroup(2))
    unit.nexus.restricted = unit.lu.restricts(unit.nexus.id)
    assert unit.nexus.restricted is (state not in ACTIVE)
    executed = EXECUTED.get(state)
    error = refusal_of(unit, command)
    allowed = executed is None or command.name in executed
    allowed |= state is AccessState.STANDBY and command.opcode in PERSISTENT_RESERVATIONS
    if allowed:
        assert error is None or error.reason not in NOT_ACCESSIBLE.values()
    else:
        assert error is not None and REASONS[error.reason] == SENSE[state]


def test_port_of_another_group_is_not_restricted(unit) -> None:
    unit.lu.port_groups = (PortGroup(1), PortGroup(2, STANDBY))
    assert not unit.lu.restricts(unit.nexus.id)
    assert unit.lu.restricts(unit.nexus.id._replace(portal_group_tag=2))


def test_reservation_conflict_comes_before_the_state(unit) -> None:  # SAM-5 5.3.3
    other = unit.nexus.id._replace(initiator="another")
    unit.lu.state = SharedState(Reservations(spc2_holder=other))
    unit.lu.port_groups = (PortGroup(1, STANDBY),)
    unit.nexus.restricted = unit.lu.restricts(unit.nexus.id)
    assert unit.refusal("00").reason is Status.RESERVATION_CONFLICT


def test_unknown_command_through_a_port_on_standby_is_refused_as_unknown(unit) -> None:
    unit.lu.port_groups = (PortGroup(1, STANDBY),)
    unit.nexus.restricted = True
    assert unit.refusal("ff").reason is Reason.INVALID_COMMAND_OPERATION_CODE


def test_set_target_port_groups_is_asked_where_the_state_is_kept(unit) -> None:
    plan = unit.plan("a4 0a 00000000 0000000c 00 00")
    assert isinstance(plan, Ask) and plan.parameter_length == 12


# -- who is told ------------------------------------------------------------------------------------------------------

T = "iqn.x:disk"
A, B, C = NexusId("a", 1, T, 1), NexusId("b", 2, T, 2), NexusId("c", 3, "iqn.x:other", 1)
ACCESS = {T: TWO_GROUPS, "iqn.x:other": TWO_GROUPS}


def test_explicit_change_tells_every_other_nexus_of_the_target() -> None:
    outcome = by_command(ACCESS, A, wanted("02 00 0002"), (A, B, C))
    assert [raised.nexus for raised in outcome.attentions] == [B]
    assert outcome.attentions[0].reason is Reason.ASYMMETRIC_ACCESS_STATE_CHANGED
    assert outcome.state == {**ACCESS, T: (PortGroup(1), PortGroup(2, STANDBY, change=StateChange.BY_COMMAND))}


def test_explicit_change_to_the_same_state_tells_nobody() -> None:
    assert by_command(ACCESS, A, wanted("00 00 0002"), (A, B, C)).attentions == ()


@pytest.mark.parametrize("state", [AccessState.OFFLINE, AccessState.TRANSITIONING])
def test_explicit_change_of_what_the_administrator_holds_back_fails(state: AccessState) -> None:
    access = {T: (PortGroup(1), PortGroup(2, state))}
    with pytest.raises(ScsiError) as caught:
        by_command(access, A, wanted("00 00 0002"), ())
    assert REASONS[caught.value.reason] == Sense(4, 0x67, 0x0A)  # SPC-4 5.15.2.7
    assert by_command(access, A, wanted("01 00 0001"), ()).state[T][1].state is state


def test_implicit_change_tells_every_nexus_of_the_target() -> None:
    outcome = by_administrator(ACCESS, T, 2, NON_OPTIMIZED, True, (A, B, C))
    assert [raised.nexus for raised in outcome.attentions] == [A, B]
    assert outcome.state[T] == (PortGroup(1), PortGroup(2, NON_OPTIMIZED, True, StateChange.IMPLICIT))
    assert outcome.state["iqn.x:other"] == TWO_GROUPS


def test_implicit_change_of_the_preference_alone_tells_nobody() -> None:
    outcome = by_administrator(ACCESS, T, 2, OPTIMIZED, True, (A, B))
    assert outcome.attentions == () and outcome.state[T][1] == PortGroup(2, preferred=True)


def test_access_survives_as_plain_values() -> None:
    access = {T: (PortGroup(1, STANDBY, True, StateChange.IMPLICIT), PortGroup(2))}
    assert from_plain(json.loads(json.dumps(to_plain(access)))) == access


# -- referrals: SBC-3 4.27 --------------------------------------------------------------------------------------------


def test_referrals_page_byte_by_byte(unit) -> None:
    assert unit.run("12 01 b3 00ff 00") == bytes.fromhex(
        "00b3 000c 00000000"  # SBC-3 6.6.6
        "00000000"  # USER DATA SEGMENT SIZE: as the descriptors say
        "00000000"  # USER DATA SEGMENT MULTIPLIER
    )


def test_referrals_are_one_segment_of_the_whole_unit(unit) -> None:
    unit.lu.port_groups = (PortGroup(1), PortGroup(0x102, STANDBY))
    answer = bytes.fromhex(
        "0000 001c"  # USER DATA SEGMENT REFERRAL DESCRIPTOR LENGTH
        "000000 02"  # NUMBER OF TARGET PORT GROUP DESCRIPTORS
        "0000000000000000"  # FIRST USER DATA SEGMENT LBA
        "00000000000007ff"  # LAST USER DATA SEGMENT LBA
        "00 00 0001"  # active/optimized
        "02 00 0102"  # standby
    )
    assert unit.run("9e 13 0000000000000000 000000ff 00 00") == answer
    assert unit.run("9e 13 00000000000007ff 00000010 01 00") == answer[:16]


def test_referrals_of_a_block_that_there_is_not(unit) -> None:
    assert unit.refusal("9e 13 0000000000000800 000000ff 00 00").reason is Reason.LBA_OUT_OF_RANGE
