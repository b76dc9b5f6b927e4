"""RECEIVE COPY RESULTS byte by byte: SPC-4 6.18 - 6.24."""

from __future__ import annotations

import struct

import pytest
from copy_kit import b2b, cscd, extended_copy, lid1, lid4, refused

from iscsid.errors import ScsiError
from iscsid.scsi.copy_results import status_lid4
from iscsid.scsi.copy_state import Operation
from iscsid.scsi.sense import Reason, build_sense

STATUS_1 = "84 00 {:02x} 00000000000000 {:08x} 00 00"
FAILURE = "84 04 {:02x} 00000000000000 {:08x} 00 00"
STATUS_4 = "84 05 {:08x} 00000000 {:08x} 00 00"
ROD_TOKEN = "84 07 {:08x} 00000000 {:08x} 00 00"


def test_operating_parameters_byte_by_byte(unit) -> None:
    assert unit.run("84 03 0000000000000000 0000ffff 00 00") == bytes.fromhex(
        "0000002a"  # AVAILABLE DATA: what follows
        "01 000000"  # SNLID
        "0010 0010"  # MAXIMUM CSCD and SEGMENT DESCRIPTOR COUNT
        "000003c0"  # MAXIMUM DESCRIPTOR LIST LENGTH: 16 * 32 + 16 * 28
        "10000000"  # MAXIMUM SEGMENT LENGTH: 256 MiB
        "00000000 00000000 00000000"  # inline data, held data, stream devices
        "0000 0040 40"  # TOTAL CONCURRENT COPIES, MAXIMUM CONCURRENT COPIES
        "09 00 00"  # granularities: 512 bytes
        "000000 02 02 e4"  # two type codes
    )


def test_status_of_a_copy_that_succeeded(unit) -> None:
    extended_copy(unit, lid1([cscd(unit)], [b2b(0, 0, 4, 0, 8)], identifier=9))
    assert unit.run(STATUS_1.format(9, 255)) == bytes.fromhex("00000008 01 0001 00 00000800")
    assert unit.run(FAILURE.format(9, 255)) == bytes(4)
    assert unit.run(STATUS_4.format(9, 255)) == bytes.fromhex(
        "0000001c 00 01 0001 ffffffff 00 00 00 00 0000000000000800 0001 000000000000"
    )


def test_status_of_a_copy_that_was_aborted(unit) -> None:
    error = refused(unit, lid1([cscd(unit)], [b2b(0, 0, 4, 0, 8), b2b(5, 0, 1, 0, 0)], identifier=9))
    sense = build_sense(error)
    assert unit.run(STATUS_1.format(9, 255)) == bytes.fromhex("00000008 02 0001 00 00000800")
    details = unit.run(FAILURE.format(9, 255))
    assert details == struct.pack(">I52xBxH", 56 + len(sense), 2, len(sense)) + sense
    four = unit.run(STATUS_4.format(9, 255))
    assert four[4:6] == bytes.fromhex("00 02")
    assert four[12:15] == bytes((2, len(sense), len(sense))) and four[32:] == sense


@pytest.mark.parametrize("cdb", [STATUS_1, FAILURE, STATUS_4, ROD_TOKEN])
def test_unknown_list_identifier_is_an_invalid_field(unit, cdb: str) -> None:
    error = unit.refusal(cdb.format(1, 255))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 2)


@pytest.mark.parametrize("length", [0, 3, 4, 11, 12])
def test_answer_is_cut_to_the_allocation_length(unit, length: int) -> None:
    extended_copy(unit, lid1([cscd(unit)], [b2b(0, 0, 4, 0, 8)], identifier=9))
    assert unit.run(STATUS_1.format(9, length)) == unit.run(STATUS_1.format(9, 255))[:length]


def test_copy_under_way_is_in_progress_and_has_no_failure_details(unit) -> None:
    unit.nexus.copies.begin(Operation(9, 0))
    assert unit.run(STATUS_1.format(9, 255))[4] == 0x00
    assert unit.run(STATUS_4.format(9, 255))[5] == 0x11
    assert unit.refusal(FAILURE.format(9, 255)).reason is Reason.INVALID_FIELD_IN_CDB


def test_count_of_a_long_copy_is_told_in_kibibytes(unit) -> None:
    operation = Operation(9, 0)
    operation.transferred = 5 << 32
    unit.nexus.copies.begin(operation)
    assert unit.run(STATUS_1.format(9, 255))[7:] == struct.pack(">BI", 1, 5 << 22)


def test_cancelled_copy_is_told_as_terminated() -> None:
    operation = Operation(1, 1)
    operation.running = False
    operation.error = ScsiError(Reason.COPY_OPERATION_ABORTED)
    assert status_lid4(operation)[1] == 0x60


def test_lid4_operation_answers_by_its_whole_list_identifier(unit) -> None:
    extended_copy(unit, lid4([cscd(unit)], [b2b(0, 0, 4, 0, 8)]), 1)
    assert unit.run(STATUS_4.format(0x01020304, 255))[4:6] == bytes.fromhex("01 01")
    assert unit.refusal(STATUS_1.format(4, 255)).reason is Reason.INVALID_FIELD_IN_CDB


def test_rod_token_information_without_a_token_has_no_descriptors(unit) -> None:
    extended_copy(unit, lid4([cscd(unit)], [b2b(0, 0, 4, 0, 8)]), 1)
    assert unit.run(ROD_TOKEN.format(0x01020304, 255))[32:] == bytes(4)


def test_receive_data_is_no_service_action(unit) -> None:
    assert unit.refusal(f"84 01 {'00' * 14}").reason is Reason.INVALID_FIELD_IN_CDB
