"""The conflict table, as the standards print it: one row per command, one column per kind of sender and reservation.

The columns of SPC-4 table 65 and SBC-3 table 13, which hold for a nexus that is not the holder:

1. Write Exclusive, from any nexus;
2. Exclusive Access, from any nexus;
3. one of the registrants only or all registrants types, from a registered nexus;
4. Write Exclusive - Registrants Only or All Registrants, from one that is not;
5. Exclusive Access - Registrants Only or All Registrants, from one that is not.

And 6, of SPC-2 table 10 and its like: an SPC-2 reservation of another nexus.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from iscsid.scsi.commands import COMMANDS, Command, Reservation
from iscsid.scsi.conflict import CONFLICTS, class_of, forbids
from iscsid.scsi.reservation import ALL_REGISTRANTS, EMPTY, REGISTRANTS_ONLY, Reservations, Restriction, Type
from iscsid.scsi.state import NexusId

HOLDER = NexusId("iqn.2026-11.org.example:a", 1, "iqn.2026-11.org.iscsid:disk0", 1)
REGISTRANT = HOLDER._replace(initiator="iqn.2026-11.org.example:b")
STRANGER = HOLDER._replace(initiator="iqn.2026-11.org.example:c")

BY_NAME = {command.name: command for command in COMMANDS}

# Allowed or Conflict in the six columns. START STOP UNIT has two rows in SBC-3 table 13.
ROWS = """
TEST_UNIT_READY                              A A A A A C
REQUEST_SENSE                                A A A A A A
READ_6                                       A C A A C C
WRITE_6                                      C C A C C C
INQUIRY                                      A A A A A A
MODE_SENSE_6                                 A C A A C C
READ_CAPACITY_10                             A A A A A A
READ_10                                      A C A A C C
WRITE_10                                     C C A C C C
VERIFY_10                                    A C A A C C
SYNCHRONIZE_CACHE_10                         C C A C C C
WRITE_SAME_10                                C C A C C C
UNMAP                                        C C A C C C
SANITIZE_OVERWRITE                           C C A C C C
SANITIZE_BLOCK_ERASE                         C C A C C C
SANITIZE_EXIT_FAILURE_MODE                   C C A C C C
MODE_SENSE_10                                A C A A C C
READ_16                                      A C A A C C
COMPARE_AND_WRITE                            C C A C C C
WRITE_16                                     C C A C C C
ORWRITE_16                                   C C A C C C
VERIFY_16                                    A C A A C C
SYNCHRONIZE_CACHE_16                         C C A C C C
WRITE_SAME_16                                C C A C C C
READ_CAPACITY_16                             A A A A A A
GET_LBA_STATUS                               A C A A C C
REPORT_REFERRALS                             A A A A A A
REPORT_LUNS                                  A A A A A A
REPORT_TARGET_PORT_GROUPS                    A A A A A A
REPORT_SUPPORTED_OPERATION_CODES             A C A A C C
REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS   A C A A C C
READ_12                                      A C A A C C
WRITE_12                                     C C A C C C
VERIFY_12                                    A C A A C C
READ_KEYS                                    A A A A A C
READ_RESERVATION                             A A A A A C
REPORT_CAPABILITIES                          A A A A A C
READ_FULL_STATUS                             A A A A A C
LOG_SELECT                                   C C A C C C
LOG_SENSE                                    A A A A A A
MODE_SELECT_6                                C C A C C C
MODE_SELECT_10                               C C A C C C
PRE_FETCH_10                                 A C A A C C
PRE_FETCH_16                                 A C A A C C
READ_DEFECT_DATA_10                          A C A A C C
READ_DEFECT_DATA_12                          A C A A C C
WRITE_AND_VERIFY_10                          C C A C C C
WRITE_AND_VERIFY_12                          C C A C C C
WRITE_AND_VERIFY_16                          C C A C C C
WRITE_ATOMIC_16                              C C A C C C
SET_TARGET_PORT_GROUPS                       C C A C C C
EXTENDED_COPY_LID1                           C C A C C C
EXTENDED_COPY_LID4                           C C A C C C
POPULATE_TOKEN                               C C A C C C
WRITE_USING_TOKEN                            C C A C C C
COPY_OPERATION_ABORT                         C C A C C C
RECEIVE_COPY_STATUS_LID1                     C C A C C C
RECEIVE_COPY_OPERATING_PARAMETERS            C C A C C C
RECEIVE_COPY_FAILURE_DETAILS_LID1            C C A C C C
RECEIVE_COPY_STATUS_LID4                     C C A C C C
RECEIVE_ROD_TOKEN_INFORMATION                C C A C C C
"""
TABLE = {name: tuple(columns) for name, *columns in map(str.split, ROWS.strip().splitlines())}

# SBC-3 table 13 and SPC-4 table 65: what byte 4 of the CDB makes of these two.
BY_CDB = [
    (Reservation.STARTING, 0x01, "A A A A A A"),  # START
    (Reservation.STARTING, 0x03, "A A A A A A"),  # START and LOEJ
    (Reservation.STARTING, 0x00, "C C A C C C"),  # stop
    (Reservation.STARTING, 0x02, "C C A C C C"),  # eject
    (Reservation.STARTING, 0x11, "C C A C C C"),  # a power condition
    (Reservation.STARTING, 0xF1, "C C A C C C"),
    (Reservation.PREVENTING, 0x00, "A A A A A A"),
    (Reservation.PREVENTING, 0x01, "C C A C C C"),
    (Reservation.PREVENTING, 0x03, "C C A C C C"),
    (Reservation.DECIDED, 0x00, "A A A A A A"),
]


def column(kind: Type | None, sender: NexusId) -> int | None:
    """The column of the table that holds for ``sender``; None where nothing is restricted for it."""
    if kind is None:
        return 5
    writing = kind.name.startswith("WRITE_EXCLUSIVE")
    if kind in (Type.WRITE_EXCLUSIVE, Type.EXCLUSIVE_ACCESS):
        return 0 if writing else 1
    return 2 if sender != STRANGER else 3 if writing else 4


def reserved(kind: Type) -> Reservations:
    registrations = {HOLDER: 0xA, REGISTRANT: 0xB}
    return Reservations(registrations, 2, None if kind in ALL_REGISTRANTS else HOLDER, kind)


def a_command(reservation: Reservation) -> Command:
    return dataclasses.replace(COMMANDS[0], reservation=reservation)


@pytest.mark.parametrize("sender", [REGISTRANT, STRANGER], ids=["registrant", "stranger"])
@pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_command_under_a_persistent_reservation_of_another(command: Command, kind: Type, sender: NexusId) -> None:
    if command.reservation in (Reservation.STARTING, Reservation.PREVENTING, Reservation.DECIDED):
        assert command.name not in TABLE
        return
    expected = TABLE[command.name][column(kind, sender) or 0]
    assert forbids(reserved(kind), sender, command, bytes(16)) is (expected == "C")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_command_under_an_spc2_reservation_of_another(command: Command) -> None:
    if command.name in TABLE:
        r = Reservations(spc2_holder=HOLDER)
        assert forbids(r, STRANGER, command, bytes(16)) is (TABLE[command.name][5] == "C")


@pytest.mark.parametrize("sender", [REGISTRANT, STRANGER], ids=["registrant", "stranger"])
@pytest.mark.parametrize("kind", [*Type, None], ids=str)
@pytest.mark.parametrize(("reservation", "byte_4", "columns"), BY_CDB)
def test_command_whose_cdb_decides(
    reservation: Reservation, byte_4: int, columns: str, kind: Type | None, sender: NexusId
) -> None:
    r = Reservations(spc2_holder=HOLDER) if kind is None else reserved(kind)
    expected = columns.split()[column(kind, sender) or 0]
    cdb = bytes((0, 0, 0, 0, byte_4)) + bytes(11)
    assert forbids(r, sender, a_command(reservation), cdb) is (expected == "C")


@pytest.mark.parametrize("reservation", Reservation)
@pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name)
def test_holder_may_send_everything(kind: Type, reservation: Reservation) -> None:
    assert not forbids(reserved(kind), HOLDER, a_command(reservation), bytes(16))
    assert not forbids(Reservations(spc2_holder=HOLDER), HOLDER, a_command(reservation), bytes(16))


@pytest.mark.parametrize("reservation", Reservation)
@pytest.mark.parametrize("kind", sorted(REGISTRANTS_ONLY | ALL_REGISTRANTS), ids=lambda kind: kind.name)
def test_registrant_may_send_everything_under_the_types_for_registrants(kind: Type, reservation: Reservation) -> None:
    assert not forbids(reserved(kind), REGISTRANT, a_command(reservation), bytes(16))


@pytest.mark.parametrize("reservation", Reservation)
@pytest.mark.parametrize("r", [EMPTY, Reservations({HOLDER: 1})], ids=["nothing", "a registration"])
def test_without_a_reservation_everybody_may_send_everything(r: Reservations, reservation: Reservation) -> None:
    assert not forbids(r, STRANGER, a_command(reservation), bytes(16))


def test_every_command_has_a_row_or_is_decided_by_its_cdb() -> None:
    conditional = {Reservation.STARTING, Reservation.PREVENTING, Reservation.DECIDED}
    assert {command.name for command in COMMANDS if command.reservation not in conditional} <= set(TABLE)


def test_class_of_a_cdb_is_one_that_the_table_knows() -> None:
    final: set[Any] = set()
    for reservation in Reservation:
        final |= {class_of(a_command(reservation), bytes((0, 0, 0, 0, byte)) + bytes(11)) for byte in range(256)}
    assert not final & {Reservation.STARTING, Reservation.PREVENTING}
    assert set().union(*CONFLICTS.values()) <= final


def test_every_restriction_has_its_column() -> None:
    assert set(CONFLICTS) == set(Restriction)
