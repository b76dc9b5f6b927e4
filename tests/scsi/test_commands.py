"""The opcode table is well-formed, and what it says of each command is what the standards say."""

from __future__ import annotations

import dataclasses

import pytest

from iscsid.scsi.commands import COMMANDS, Attention, Command, Direction, Feature, Reservation
from iscsid.scsi.const import SERVICE_ACTIONS, Opcode

BY_NAME = {command.name: command for command in COMMANDS}
each = pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)


def test_no_command_is_there_twice() -> None:
    keys = [(command.opcode, command.service_action) for command in COMMANDS]
    assert len(set(keys)) == len(keys)


def test_rows_are_in_the_order_of_their_codes() -> None:
    keys = [(command.opcode, command.service_action or 0) for command in COMMANDS]
    assert keys == sorted(keys)


def test_every_opcode_that_has_a_name_has_a_row() -> None:
    assert {command.opcode for command in COMMANDS} == set(Opcode)
    actions = {(action.name, int(action)) for actions in SERVICE_ACTIONS for action in actions}
    assert {(row.name, row.service_action) for row in COMMANDS if row.service_action is not None} == actions


def test_an_opcode_has_service_actions_in_all_its_rows_or_in_none() -> None:
    for opcode in Opcode:
        kinds = {command.service_action is None for command in COMMANDS if command.opcode == opcode}
        assert len(kinds) == 1


def test_no_field_of_a_record_has_a_default() -> None:
    for field in dataclasses.fields(Command):
        assert field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@each
def test_usage_begins_with_the_operation_code(command: Command) -> None:
    assert command.usage[0] == command.opcode


@each
def test_usage_shows_the_service_action(command: Command) -> None:
    if command.service_action is not None:
        assert command.usage[1] & 0x1F == command.service_action


# SPC-4 4.2.5.1: the group, the top three bits of the operation code, says how long the CDB is.
@each
def test_usage_has_the_length_of_the_group(command: Command) -> None:
    assert len(command.usage) == {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}[command.opcode >> 5]


@each
def test_control_byte_allows_nothing(command: Command) -> None:
    assert command.usage[-1] == 0  # NACA is not supported (SAM-5 5.2)


@each
def test_optional_bits_lie_in_the_cdb_and_are_not_allowed_anyway(command: Command) -> None:
    for feature, byte, mask in command.optional:
        assert feature is not Feature.DISK
        assert 0 < byte < len(command.usage) and command.usage[byte] & mask == 0


@each
def test_timeout_is_told(command: Command) -> None:
    long = command.opcode == Opcode.SANITIZE  # writes all of the medium
    assert 0 < command.timeout <= (86400 if long else 600)


@each
def test_commands_that_write_take_data_or_none_and_conflict_with_reservations(command: Command) -> None:
    if command.writes:
        erases = command.name == "SANITIZE_BLOCK_ERASE"
        assert command.direction in (Direction.OUT, Direction.OPTIONAL_OUT) or erases
        assert command.reservation is Reservation.WRITING


# SAM-5 5.14: the commands that a unit attention does not stop.
def test_only_three_commands_pass_a_unit_attention() -> None:
    passing = {command.name: command.attention for command in COMMANDS if command.attention is not Attention.REPORTED}
    assert passing == {
        "INQUIRY": Attention.EXEMPT,
        "REPORT_LUNS": Attention.EXEMPT,
        "REQUEST_SENSE": Attention.TAKEN,
    }


# SBC-3 table 13 and SPC-4 table 66, the columns "from any I_T nexus" of the two exclusive types.
@pytest.mark.parametrize(
    ("reservation", "names"),
    [
        (
            Reservation.ALLOWED,
            "INQUIRY LOG_SENSE READ_CAPACITY_10 READ_CAPACITY_16 REPORT_LUNS REPORT_REFERRALS "
            "REPORT_TARGET_PORT_GROUPS REQUEST_SENSE",
        ),
        (
            Reservation.STATE,
            "TEST_UNIT_READY READ_KEYS READ_RESERVATION REPORT_CAPABILITIES READ_FULL_STATUS",
        ),
        (
            Reservation.DECIDED,
            "RESERVE_6 RESERVE_10 RELEASE_6 RELEASE_10 REGISTER RESERVE RELEASE CLEAR PREEMPT PREEMPT_AND_ABORT "
            "REGISTER_AND_IGNORE_EXISTING_KEY REGISTER_AND_MOVE",
        ),
        (Reservation.STARTING, "START_STOP_UNIT"),
        (
            Reservation.READING,
            "READ_6 READ_10 READ_12 READ_16 VERIFY_10 VERIFY_12 VERIFY_16 GET_LBA_STATUS MODE_SENSE_6 MODE_SENSE_10 "
            "PRE_FETCH_10 PRE_FETCH_16 READ_DEFECT_DATA_10 READ_DEFECT_DATA_12 "
            "REPORT_SUPPORTED_OPERATION_CODES REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS",
        ),
    ],
)
def test_reservation_class_of_what_others_may_send(reservation: Reservation, names: str) -> None:
    assert {command.name for command in COMMANDS if command.reservation is reservation} == set(names.split())


# Bits that must be 0, as (command, byte, mask): protection information, groups and obsolete bits are not supported.
@pytest.mark.parametrize(
    ("name", "byte", "mask"),
    [
        ("READ_10", 1, 0xE7),  # RDPROTECT, RARC, FUA_NV (SBC-3 5.8)
        ("READ_10", 6, 0xFF),  # GROUP NUMBER
        ("READ_16", 14, 0xFF),
        ("WRITE_10", 1, 0xE7),  # WRPROTECT
        ("VERIFY_10", 1, 0xE9),  # VRPROTECT
        ("WRITE_SAME_10", 1, 0xFF),  # WRPROTECT, ANCHOR, UNMAP, obsolete PBDATA and LBDATA; no NDOB here
        ("WRITE_SAME_16", 1, 0xFE),
        ("UNMAP", 1, 0xFF),  # ANCHOR among them
        ("INQUIRY", 1, 0xFE),  # CMDDT is obsolete
        ("SYNCHRONIZE_CACHE_10", 1, 0xFD),  # SYNC_NV is obsolete
        ("START_STOP_UNIT", 4, 0xFA),  # POWER CONDITION, LOEJ
        ("READ_CAPACITY_10", 8, 0xFF),  # PMI is obsolete
        ("REPORT_SUPPORTED_OPERATION_CODES", 2, 0x78),
        ("REPORT_SUPPORTED_OPERATION_CODES", 1, 0xE0),
    ],
)
def test_bits_that_must_be_zero(name: str, byte: int, mask: int) -> None:
    assert BY_NAME[name].forbidden() >> 8 * byte & 0xFF == mask


@each
def test_operation_code_and_bytes_behind_the_cdb_are_never_forbidden(command: Command) -> None:
    forbidden = command.forbidden()
    assert forbidden & 0xFF == 0
    assert forbidden >> 8 * len(command.usage) == 0


def test_what_needs_provisioning() -> None:
    assert [command.name for command in COMMANDS if command.needs is Feature.THIN] == ["UNMAP", "GET_LBA_STATUS"]


def test_what_needs_memory() -> None:
    assert [command.name for command in COMMANDS if command.needs is Feature.ATOMIC] == ["WRITE_ATOMIC_16"]
