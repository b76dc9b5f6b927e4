"""Reasons become bytes, and what a device raises becomes a reason."""

from __future__ import annotations

import errno

import pytest

from iscsid.errors import BlockError, Fault, ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.sense import ERRNOS, FAULTS, REASONS, Reason, Sense, build_sense, parse_sense, reason_of, sense_of


def test_every_reason_has_its_row() -> None:
    assert set(REASONS) == set(Reason)


def test_rows_are_different_but_for_nothing() -> None:
    assert len(set(REASONS.values())) == len(REASONS)


@pytest.mark.parametrize(
    ("reason", "triple"),
    [
        (Reason.NO_SENSE, (0x0, 0x00, 0x00)),
        (Reason.NOT_READY, (0x2, 0x04, 0x00)),
        (Reason.MEDIUM_NOT_PRESENT, (0x2, 0x3A, 0x00)),
        (Reason.UNRECOVERED_READ_ERROR, (0x3, 0x11, 0x00)),
        (Reason.WRITE_ERROR, (0x3, 0x0C, 0x00)),
        (Reason.INTERNAL_TARGET_FAILURE, (0x4, 0x44, 0x00)),
        (Reason.PARAMETER_LIST_LENGTH_ERROR, (0x5, 0x1A, 0x00)),
        (Reason.INVALID_COMMAND_OPERATION_CODE, (0x5, 0x20, 0x00)),
        (Reason.LBA_OUT_OF_RANGE, (0x5, 0x21, 0x00)),
        (Reason.INVALID_FIELD_IN_CDB, (0x5, 0x24, 0x00)),
        (Reason.LOGICAL_UNIT_NOT_SUPPORTED, (0x5, 0x25, 0x00)),
        (Reason.INVALID_FIELD_IN_PARAMETER_LIST, (0x5, 0x26, 0x00)),
        (Reason.SAVING_PARAMETERS_NOT_SUPPORTED, (0x5, 0x39, 0x00)),
        (Reason.CAPACITY_DATA_HAS_CHANGED, (0x6, 0x2A, 0x09)),
        (Reason.REPORTED_LUNS_DATA_HAS_CHANGED, (0x6, 0x3F, 0x0E)),
        (Reason.WRITE_PROTECTED, (0x7, 0x27, 0x00)),
        (Reason.SPACE_ALLOCATION_FAILED, (0x7, 0x27, 0x07)),
        (Reason.UNEXPECTED_UNSOLICITED_DATA, (0xB, 0x0C, 0x0C)),
        (Reason.NOT_ENOUGH_UNSOLICITED_DATA, (0xB, 0x0C, 0x0D)),
        (Reason.PROTOCOL_SERVICE_CRC_ERROR, (0xB, 0x47, 0x05)),
        (Reason.MISCOMPARE_DURING_VERIFY, (0xE, 0x1D, 0x00)),
        (Reason.OPERATION_IN_PROGRESS, (0x5, 0x00, 0x16)),
        (Reason.TOKEN_UNKNOWN, (0x5, 0x23, 0x04)),
        (Reason.TOO_MANY_SEGMENT_DESCRIPTORS, (0x5, 0x26, 0x08)),
        (Reason.UNREACHABLE_COPY_TARGET, (0xA, 0x08, 0x04)),
        (Reason.THIRD_PARTY_DEVICE_FAILURE, (0xA, 0x0D, 0x01)),
        (Reason.UNEXPECTED_INEXACT_SEGMENT, (0xA, 0x26, 0x0A)),
    ],
)
def test_reason_is_the_code_of_spc(reason: Reason, triple: tuple[int, int, int]) -> None:
    assert sense_of(reason) == triple


# -- fixed format: SPC-4 4.5.3, table 48 ------------------------------------------------------------------------------


def test_fixed_sense_of_a_plain_reason() -> None:
    assert build_sense(ScsiError(Reason.LBA_OUT_OF_RANGE)) == bytes.fromhex(
        "70"  # VALID 0, current
        "00 05"  # obsolete; ILLEGAL REQUEST
        "00000000"  # INFORMATION
        "0a"  # ADDITIONAL SENSE LENGTH: 18 bytes in all
        "00000000"  # COMMAND-SPECIFIC INFORMATION
        "21 00 00"  # ASC, ASCQ, FRU
        "000000"  # SKSV 0
    )


def test_fixed_sense_points_at_the_bit_of_the_cdb() -> None:
    sense = build_sense(ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, bit=7))
    assert sense[15:18] == bytes.fromhex("cf 0001")  # SKSV, C/D, BPV, bit 7; FIELD POINTER 1


def test_fixed_sense_points_at_a_byte_of_the_cdb() -> None:
    sense = build_sense(ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2))
    assert sense[15:18] == bytes.fromhex("c0 0002")  # BPV 0


def test_fixed_sense_of_a_copy_that_was_aborted_at_a_segment() -> None:
    sense = build_sense(ScsiError(Reason.INVALID_COPY_PARAMETER, field=12, bit=1, segment=3))
    assert sense[2] == 0xA
    assert sense[8:12] == bytes.fromhex("0000 0003")  # COMMAND-SPECIFIC INFORMATION: the segment (SPC-4 5.17.7.4)
    assert sense[15:18] == bytes.fromhex("a9 000c")  # SKSV, SD, BPV; FIELD POINTER in the descriptor (4.5.2.4.5)


def test_descriptor_sense_of_a_copy_that_was_aborted_at_a_segment() -> None:
    sense = build_sense(ScsiError(Reason.THIRD_PARTY_DEVICE_FAILURE, segment=2), descriptor=True)
    assert sense == bytes.fromhex("72 0a 0d 01 000000 0c01 0a 0000 0000000000000002")


def test_fixed_sense_points_into_the_parameter_list() -> None:
    sense = build_sense(ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=300, bit=0, in_data=True))
    assert sense[15:18] == bytes.fromhex("88 012c")  # C/D 0


def test_fixed_sense_carries_information() -> None:
    sense = build_sense(ScsiError(Reason.MISCOMPARE_DURING_VERIFY, information=0x12345678))
    assert sense[0] == 0xF0 and sense[3:7] == bytes.fromhex("12345678")


@pytest.mark.parametrize(("information", "code"), [(0xFFFFFFFF, 0xF0), (0x100000000, 0x70)])
def test_fixed_sense_says_when_information_does_not_fit(information: int, code: int) -> None:
    sense = build_sense(ScsiError(Reason.UNRECOVERED_READ_ERROR, information=information))
    assert sense[0] == code
    assert sense[3:7] == (bytes(4) if code == 0x70 else b"\xff" * 4)


# -- descriptor format: SPC-4 4.5.2, table 27 -------------------------------------------------------------------------


def test_descriptor_sense_of_a_plain_reason() -> None:
    assert build_sense(ScsiError(Reason.WRITE_PROTECTED), descriptor=True) == bytes.fromhex("72 07 27 00 000000 00")


def test_descriptor_sense_with_information_and_pointer() -> None:
    error = ScsiError(Reason.INVALID_FIELD_IN_CDB, field=10, bit=3, information=1 << 40)
    assert build_sense(error, descriptor=True) == bytes.fromhex(
        "72 05 24 00 000000 14"
        "00 0a 80 00 0000010000000000"  # information descriptor, VALID (4.5.2.2)
        "02 06 0000 cb000a 00"  # sense key specific descriptor, field pointer (4.5.2.4)
    )


@pytest.mark.parametrize("reason", list(Reason))
@pytest.mark.parametrize("descriptor", [False, True])
def test_built_sense_parses_to_its_row(reason: Reason, descriptor: bool) -> None:
    assert parse_sense(build_sense(ScsiError(reason), descriptor)) == REASONS[reason]


@pytest.mark.parametrize("tail", [b"", b"\0", b"\0" * 64])
def test_parse_takes_longer_sense_and_memoryview(tail: bytes) -> None:
    data = build_sense(ScsiError(Reason.BUS_DEVICE_RESET_FUNCTION)) + tail
    assert parse_sense(memoryview(data)) == Sense(6, 0x29, 3)


@pytest.mark.parametrize("code", ["70", "71", "f0", "f1"])
def test_parse_takes_current_and_deferred_with_and_without_valid(code: str) -> None:
    assert parse_sense(bytes.fromhex(code + "0003 00000000 0a 00000000 1100")) == Sense(3, 0x11, 0)


def test_parse_takes_fixed_sense_without_additional_bytes() -> None:
    assert parse_sense(bytes.fromhex("7000020000000000")) == Sense(2, 0, 0)


@pytest.mark.parametrize("data", ["", "00", "70", "70000200000000", "720500", "7f00000000000000", "ff" * 18])
def test_parse_refuses_what_is_no_sense(data: str) -> None:
    with pytest.raises(ValueError, match="no sense data"):
        parse_sense(bytes.fromhex(data))


# -- what a device raises ---------------------------------------------------------------------------------------------


def test_every_fault_has_an_answer() -> None:
    assert set(FAULTS) == set(Fault)


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        (Fault.READ_ERROR, Reason.UNRECOVERED_READ_ERROR),
        (Fault.WRITE_ERROR, Reason.WRITE_ERROR),
        (Fault.OUT_OF_RANGE, Reason.LBA_OUT_OF_RANGE),
        (Fault.NO_SPACE, Reason.SPACE_ALLOCATION_FAILED),
        (Fault.READ_ONLY, Reason.WRITE_PROTECTED),
        (Fault.NO_MEDIUM, Reason.MEDIUM_NOT_PRESENT),
        (Fault.BUSY, Status.BUSY),
        (Fault.NO_RESOURCES, Status.TASK_SET_FULL),
        (Fault.CANCELLED, Status.TASK_ABORTED),
        (Fault.INTERNAL, Reason.INTERNAL_TARGET_FAILURE),
    ],
)
def test_fault_of_a_device_is_told(fault: Fault, answer: Reason | Status) -> None:
    assert told(reason_of(BlockError(fault), False)) is answer


def test_block_that_cannot_be_read_is_the_information() -> None:
    error = BlockError(Fault.READ_ERROR)
    error.block = 2052
    answer = reason_of(error, False)
    assert isinstance(answer, ScsiError)
    assert (answer.reason, answer.information) == (Reason.UNRECOVERED_READ_ERROR, 2052)


@pytest.mark.parametrize("number", sorted(ERRNOS))
def test_errno_is_told_the_same_for_both_directions(number: int) -> None:
    assert told(reason_of(OSError(number, ""), False)) is ERRNOS[number]
    assert told(reason_of(OSError(number, ""), True)) is ERRNOS[number]


@pytest.mark.parametrize(
    ("number", "is_write", "answer"),
    [
        (errno.EIO, False, Reason.UNRECOVERED_READ_ERROR),
        (errno.EIO, True, Reason.WRITE_ERROR),
        (errno.EILSEQ, True, Reason.WRITE_ERROR),
        (errno.ENOSPC, True, Reason.SPACE_ALLOCATION_FAILED),
        (errno.EDQUOT, True, Reason.SPACE_ALLOCATION_FAILED),
        (errno.EROFS, True, Reason.WRITE_PROTECTED),
        (errno.ENOMEM, False, Status.TASK_SET_FULL),
        (errno.ETIMEDOUT, False, Status.BUSY),
        (errno.EXDEV, False, Reason.INTERNAL_TARGET_FAILURE),
    ],
)
def test_errno_is_told_by_its_meaning(number: int, is_write: bool, answer: Reason | Status) -> None:
    assert told(reason_of(OSError(number, ""), is_write)) is answer


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ValueError("a bug"), Reason.INTERNAL_TARGET_FAILURE),
        (OSError("without a number"), Reason.INTERNAL_TARGET_FAILURE),
        (MemoryError(), Status.TASK_SET_FULL),
    ],
)
def test_anything_else_is_told_as_a_failure_of_ours(error: Exception, answer: Reason | Status) -> None:
    assert told(reason_of(error, False)) is answer


def test_a_scsi_error_is_told_as_it_is() -> None:
    error = ScsiError(Reason.MISCOMPARE_DURING_VERIFY, information=7)
    assert reason_of(error, False) is error


def test_a_scsi_error_that_is_a_status_is_told_as_that_status() -> None:
    assert reason_of(ScsiError(Status.RESERVATION_CONFLICT), True) is Status.RESERVATION_CONFLICT


def told(answer: ScsiError | Status) -> Reason | Status:
    if isinstance(answer, Status):
        return answer
    assert isinstance(answer.reason, Reason)
    return answer.reason
