"""Why a command fails, and the sense data that says so.

Code raises a *reason*; REASONS alone turns it into key and code, ``build_sense`` alone into bytes, and ``reason_of``
alone turns what a device raises into a reason. Sense data is built per failed command, never on the hot path.
"""

from __future__ import annotations

import enum
import errno
import struct
from typing import NamedTuple

from iscsid.errors import BlockError, Fault, ScsiError
from iscsid.scsi.const import SenseKey, Status


class Sense(NamedTuple):
    """Sense key, additional sense code and its qualifier."""

    key: int
    asc: int
    ascq: int


class Reason(enum.Enum):
    """Why a command ends in CHECK CONDITION."""

    NO_SENSE = enum.auto()
    NOT_READY = enum.auto()
    ASYMMETRIC_ACCESS_STATE_TRANSITION = enum.auto()
    TARGET_PORT_IN_STANDBY_STATE = enum.auto()
    TARGET_PORT_IN_UNAVAILABLE_STATE = enum.auto()
    LOGICAL_UNIT_OFFLINE = enum.auto()
    MEDIUM_NOT_PRESENT = enum.auto()
    UNRECOVERED_READ_ERROR = enum.auto()
    WRITE_ERROR = enum.auto()
    INTERNAL_TARGET_FAILURE = enum.auto()
    SET_TARGET_PORT_GROUPS_COMMAND_FAILED = enum.auto()
    PARAMETER_LIST_LENGTH_ERROR = enum.auto()
    COMMAND_TIMEOUT_DURING_PROCESSING = enum.auto()
    INVALID_COMMAND_OPERATION_CODE = enum.auto()
    LBA_OUT_OF_RANGE = enum.auto()
    INVALID_FIELD_IN_CDB = enum.auto()
    LOGICAL_UNIT_NOT_SUPPORTED = enum.auto()
    INVALID_FIELD_IN_PARAMETER_LIST = enum.auto()
    SAVING_PARAMETERS_NOT_SUPPORTED = enum.auto()
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION = enum.auto()
    INSUFFICIENT_REGISTRATION_RESOURCES = enum.auto()
    MEDIUM_MAY_HAVE_CHANGED = enum.auto()
    POWER_ON_RESET_OR_BUS_DEVICE_RESET = enum.auto()
    BUS_DEVICE_RESET_FUNCTION = enum.auto()
    I_T_NEXUS_LOSS = enum.auto()
    MODE_PARAMETERS_CHANGED = enum.auto()
    RESERVATIONS_PREEMPTED = enum.auto()
    RESERVATIONS_RELEASED = enum.auto()
    REGISTRATIONS_PREEMPTED = enum.auto()
    ASYMMETRIC_ACCESS_STATE_CHANGED = enum.auto()
    CAPACITY_DATA_HAS_CHANGED = enum.auto()
    COMMANDS_CLEARED_BY_ANOTHER_INITIATOR = enum.auto()
    INQUIRY_DATA_HAS_CHANGED = enum.auto()
    REPORTED_LUNS_DATA_HAS_CHANGED = enum.auto()
    THIN_PROVISIONING_SOFT_THRESHOLD_REACHED = enum.auto()
    WRITE_PROTECTED = enum.auto()
    SPACE_ALLOCATION_FAILED = enum.auto()
    PROTOCOL_SERVICE_CRC_ERROR = enum.auto()
    NOT_ENOUGH_UNSOLICITED_DATA = enum.auto()
    UNEXPECTED_UNSOLICITED_DATA = enum.auto()
    DATA_PHASE_ERROR = enum.auto()
    INVALID_MESSAGE_ERROR = enum.auto()
    OVERLAPPED_COMMANDS = enum.auto()
    MISCOMPARE_DURING_VERIFY = enum.auto()
    SANITIZE_IN_PROGRESS = enum.auto()
    SANITIZE_COMMAND_FAILED = enum.auto()
    INITIALIZING_COMMAND_REQUIRED = enum.auto()
    MEDIUM_REMOVAL_PREVENTED = enum.auto()
    OPERATION_IN_PROGRESS = enum.auto()
    INVALID_TOKEN_OPERATION = enum.auto()
    UNSUPPORTED_TOKEN_TYPE = enum.auto()
    TOKEN_UNKNOWN = enum.auto()
    TOKEN_CORRUPT = enum.auto()
    TOKEN_EXPIRED = enum.auto()
    INVALID_TOKEN_LENGTH = enum.auto()
    TOO_MANY_TARGET_DESCRIPTORS = enum.auto()
    UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE = enum.auto()
    TOO_MANY_SEGMENT_DESCRIPTORS = enum.auto()
    UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE = enum.auto()
    INLINE_DATA_LENGTH_EXCEEDED = enum.auto()
    COPY_OPERATION_ABORTED = enum.auto()
    UNREACHABLE_COPY_TARGET = enum.auto()
    THIRD_PARTY_DEVICE_FAILURE = enum.auto()
    COPY_TARGET_DEVICE_NOT_REACHABLE = enum.auto()
    INCORRECT_COPY_TARGET_DEVICE_TYPE = enum.auto()
    INVALID_COPY_PARAMETER = enum.auto()
    UNEXPECTED_INEXACT_SEGMENT = enum.auto()


def _row(key: SenseKey, asc: int, ascq: int) -> Sense:
    return Sense(int(key), asc, ascq)


REASONS: dict[Reason, Sense] = {
    Reason.NO_SENSE: _row(SenseKey.NO_SENSE, 0x00, 0x00),
    Reason.NOT_READY: _row(SenseKey.NOT_READY, 0x04, 0x00),
    Reason.ASYMMETRIC_ACCESS_STATE_TRANSITION: _row(SenseKey.NOT_READY, 0x04, 0x0A),
    Reason.TARGET_PORT_IN_STANDBY_STATE: _row(SenseKey.NOT_READY, 0x04, 0x0B),
    Reason.TARGET_PORT_IN_UNAVAILABLE_STATE: _row(SenseKey.NOT_READY, 0x04, 0x0C),
    Reason.LOGICAL_UNIT_OFFLINE: _row(SenseKey.NOT_READY, 0x04, 0x12),
    Reason.INITIALIZING_COMMAND_REQUIRED: _row(SenseKey.NOT_READY, 0x04, 0x02),
    Reason.MEDIUM_NOT_PRESENT: _row(SenseKey.NOT_READY, 0x3A, 0x00),
    Reason.MEDIUM_REMOVAL_PREVENTED: _row(SenseKey.ILLEGAL_REQUEST, 0x53, 0x02),
    Reason.UNRECOVERED_READ_ERROR: _row(SenseKey.MEDIUM_ERROR, 0x11, 0x00),
    Reason.WRITE_ERROR: _row(SenseKey.MEDIUM_ERROR, 0x0C, 0x00),
    Reason.INTERNAL_TARGET_FAILURE: _row(SenseKey.HARDWARE_ERROR, 0x44, 0x00),
    Reason.SET_TARGET_PORT_GROUPS_COMMAND_FAILED: _row(SenseKey.HARDWARE_ERROR, 0x67, 0x0A),
    Reason.PARAMETER_LIST_LENGTH_ERROR: _row(SenseKey.ILLEGAL_REQUEST, 0x1A, 0x00),
    Reason.INVALID_COMMAND_OPERATION_CODE: _row(SenseKey.ILLEGAL_REQUEST, 0x20, 0x00),
    Reason.LBA_OUT_OF_RANGE: _row(SenseKey.ILLEGAL_REQUEST, 0x21, 0x00),
    Reason.INVALID_FIELD_IN_CDB: _row(SenseKey.ILLEGAL_REQUEST, 0x24, 0x00),
    Reason.LOGICAL_UNIT_NOT_SUPPORTED: _row(SenseKey.ILLEGAL_REQUEST, 0x25, 0x00),
    Reason.INVALID_FIELD_IN_PARAMETER_LIST: _row(SenseKey.ILLEGAL_REQUEST, 0x26, 0x00),
    Reason.SAVING_PARAMETERS_NOT_SUPPORTED: _row(SenseKey.ILLEGAL_REQUEST, 0x39, 0x00),
    Reason.INVALID_RELEASE_OF_PERSISTENT_RESERVATION: _row(SenseKey.ILLEGAL_REQUEST, 0x26, 0x04),
    Reason.INSUFFICIENT_REGISTRATION_RESOURCES: _row(SenseKey.ILLEGAL_REQUEST, 0x55, 0x04),
    Reason.MEDIUM_MAY_HAVE_CHANGED: _row(SenseKey.UNIT_ATTENTION, 0x28, 0x00),
    Reason.POWER_ON_RESET_OR_BUS_DEVICE_RESET: _row(SenseKey.UNIT_ATTENTION, 0x29, 0x00),
    Reason.BUS_DEVICE_RESET_FUNCTION: _row(SenseKey.UNIT_ATTENTION, 0x29, 0x03),
    Reason.I_T_NEXUS_LOSS: _row(SenseKey.UNIT_ATTENTION, 0x29, 0x07),
    Reason.MODE_PARAMETERS_CHANGED: _row(SenseKey.UNIT_ATTENTION, 0x2A, 0x01),
    Reason.RESERVATIONS_PREEMPTED: _row(SenseKey.UNIT_ATTENTION, 0x2A, 0x03),
    Reason.RESERVATIONS_RELEASED: _row(SenseKey.UNIT_ATTENTION, 0x2A, 0x04),
    Reason.REGISTRATIONS_PREEMPTED: _row(SenseKey.UNIT_ATTENTION, 0x2A, 0x05),
    Reason.ASYMMETRIC_ACCESS_STATE_CHANGED: _row(SenseKey.UNIT_ATTENTION, 0x2A, 0x06),
    Reason.CAPACITY_DATA_HAS_CHANGED: _row(SenseKey.UNIT_ATTENTION, 0x2A, 0x09),
    Reason.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR: _row(SenseKey.UNIT_ATTENTION, 0x2F, 0x00),
    Reason.INQUIRY_DATA_HAS_CHANGED: _row(SenseKey.UNIT_ATTENTION, 0x3F, 0x03),
    Reason.REPORTED_LUNS_DATA_HAS_CHANGED: _row(SenseKey.UNIT_ATTENTION, 0x3F, 0x0E),
    Reason.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED: _row(SenseKey.UNIT_ATTENTION, 0x38, 0x07),
    Reason.WRITE_PROTECTED: _row(SenseKey.DATA_PROTECT, 0x27, 0x00),
    Reason.SPACE_ALLOCATION_FAILED: _row(SenseKey.DATA_PROTECT, 0x27, 0x07),
    # The three conditions that RFC 7143 section 11.4.7.2 maps from iSCSI to sense data.
    Reason.PROTOCOL_SERVICE_CRC_ERROR: _row(SenseKey.ABORTED_COMMAND, 0x47, 0x05),
    Reason.NOT_ENOUGH_UNSOLICITED_DATA: _row(SenseKey.ABORTED_COMMAND, 0x0C, 0x0D),
    Reason.UNEXPECTED_UNSOLICITED_DATA: _row(SenseKey.ABORTED_COMMAND, 0x0C, 0x0C),
    Reason.DATA_PHASE_ERROR: _row(SenseKey.ABORTED_COMMAND, 0x4B, 0x00),
    Reason.INVALID_MESSAGE_ERROR: _row(SenseKey.ILLEGAL_REQUEST, 0x49, 0x00),  # a task attribute there is not
    Reason.COMMAND_TIMEOUT_DURING_PROCESSING: _row(SenseKey.ABORTED_COMMAND, 0x2E, 0x02),
    Reason.OVERLAPPED_COMMANDS: _row(SenseKey.ABORTED_COMMAND, 0x4E, 0x00),
    Reason.MISCOMPARE_DURING_VERIFY: _row(SenseKey.MISCOMPARE, 0x1D, 0x00),
    Reason.SANITIZE_IN_PROGRESS: _row(SenseKey.NOT_READY, 0x04, 0x1B),
    Reason.SANITIZE_COMMAND_FAILED: _row(SenseKey.MEDIUM_ERROR, 0x31, 0x03),
    # Third-party copies (SPC-4 5.17.7, 6.4): before a segment is processed, and at one.
    Reason.OPERATION_IN_PROGRESS: _row(SenseKey.ILLEGAL_REQUEST, 0x00, 0x16),
    Reason.INVALID_TOKEN_OPERATION: _row(SenseKey.ILLEGAL_REQUEST, 0x23, 0x00),
    Reason.UNSUPPORTED_TOKEN_TYPE: _row(SenseKey.ILLEGAL_REQUEST, 0x23, 0x01),
    Reason.TOKEN_UNKNOWN: _row(SenseKey.ILLEGAL_REQUEST, 0x23, 0x04),
    Reason.TOKEN_CORRUPT: _row(SenseKey.ILLEGAL_REQUEST, 0x23, 0x05),
    Reason.TOKEN_EXPIRED: _row(SenseKey.ILLEGAL_REQUEST, 0x23, 0x07),
    Reason.INVALID_TOKEN_LENGTH: _row(SenseKey.ILLEGAL_REQUEST, 0x23, 0x0A),
    Reason.TOO_MANY_TARGET_DESCRIPTORS: _row(SenseKey.ILLEGAL_REQUEST, 0x26, 0x06),
    Reason.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE: _row(SenseKey.ILLEGAL_REQUEST, 0x26, 0x07),
    Reason.TOO_MANY_SEGMENT_DESCRIPTORS: _row(SenseKey.ILLEGAL_REQUEST, 0x26, 0x08),
    Reason.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE: _row(SenseKey.ILLEGAL_REQUEST, 0x26, 0x09),
    Reason.INLINE_DATA_LENGTH_EXCEEDED: _row(SenseKey.ILLEGAL_REQUEST, 0x26, 0x0B),
    Reason.COPY_OPERATION_ABORTED: _row(SenseKey.COPY_ABORTED, 0x00, 0x00),
    Reason.UNREACHABLE_COPY_TARGET: _row(SenseKey.COPY_ABORTED, 0x08, 0x04),
    Reason.THIRD_PARTY_DEVICE_FAILURE: _row(SenseKey.COPY_ABORTED, 0x0D, 0x01),
    Reason.COPY_TARGET_DEVICE_NOT_REACHABLE: _row(SenseKey.COPY_ABORTED, 0x0D, 0x02),
    Reason.INCORRECT_COPY_TARGET_DEVICE_TYPE: _row(SenseKey.COPY_ABORTED, 0x0D, 0x03),
    Reason.INVALID_COPY_PARAMETER: _row(SenseKey.COPY_ABORTED, 0x26, 0x00),
    Reason.UNEXPECTED_INEXACT_SEGMENT: _row(SenseKey.COPY_ABORTED, 0x26, 0x0A),
}

FIXED_LENGTH = 18
# SPC-4 4.5.3: response code, key, INFORMATION, additional length, COMMAND-SPECIFIC INFORMATION, ASC, ASCQ
_FIXED = struct.Struct(">BxBIBIBBx")
_FIXED_VALID = 0x80
_DESCRIPTOR = struct.Struct(">BBBB3xB")  # SPC-4 4.5.2.1
_INFORMATION_DESCRIPTOR = struct.Struct(">BBBxQ")  # SPC-4 4.5.2.2; VALID is the top bit of byte 2
_COMMAND_DESCRIPTOR = struct.Struct(">BB2xQ")  # SPC-4 4.5.2.3
_FIELD_POINTER_DESCRIPTOR = struct.Struct(">BB2x3sx")  # SPC-4 4.5.2.4
_FIELD_POINTER = struct.Struct(">BH")  # SPC-4 4.5.2.4.2: SKSV, C/D, BPV, BIT POINTER; FIELD POINTER
_SKSV, _CD, _SD, _BPV = 0x80, 0x40, 0x20, 0x08


def sense_of(reason: enum.Enum) -> Sense:
    """Return key and code of a reason."""
    return REASONS[reason]  # type: ignore[index]  # ScsiError lies below this room and knows no Reason


def build_sense(error: ScsiError, descriptor: bool = False) -> bytes:
    """Return the sense data of ``error``: fixed format (70h), or descriptor format (72h).

    An INFORMATION that needs more than 32 bits does not fit the fixed format, which then says that it is not valid
    (SPC-4 4.5.3).
    """
    sense = sense_of(error.reason)
    pointer = _field_pointer(error)
    if descriptor:
        return _build_descriptor_sense(sense, error, pointer)
    information = error.information
    code = 0x70
    if information is not None and information <= 0xFFFFFFFF:
        code |= _FIXED_VALID
    else:
        information = 0
    head = _FIXED.pack(code, sense.key, information, FIXED_LENGTH - 8, error.segment or 0, sense.asc, sense.ascq)
    return head + (pointer or bytes(3))


def _build_descriptor_sense(sense: Sense, error: ScsiError, pointer: bytes | None) -> bytes:
    descriptors = b""
    if error.information is not None:
        descriptors += _INFORMATION_DESCRIPTOR.pack(0x00, 0x0A, 0x80, error.information)
    if error.segment is not None:
        # SPC-4 5.17.7.4: the number of the segment, in the third and fourth of four bytes
        descriptors += _COMMAND_DESCRIPTOR.pack(0x01, 0x0A, error.segment)
    if pointer is not None:
        descriptors += _FIELD_POINTER_DESCRIPTOR.pack(0x02, 0x06, pointer)
    return _DESCRIPTOR.pack(0x72, *sense, len(descriptors)) + descriptors


def _field_pointer(error: ScsiError) -> bytes | None:
    """The sense-key specific bytes: where the field is that is wrong, or how far an operation is."""
    if error.progress is not None:
        return _FIELD_POINTER.pack(_SKSV, error.progress)  # SPC-4 4.5.2.4.4
    if error.field is None:
        return None
    head = _SKSV
    if error.segment is not None:
        head |= _SD  # SPC-4 4.5.2.4.5
    elif not error.in_data:
        head |= _CD
    if error.bit is not None:
        head |= _BPV | error.bit
    return _FIELD_POINTER.pack(head, error.field)


def parse_sense(data: bytes | memoryview) -> Sense:
    """Return what a peer's sense data says, in either format; ValueError when it is neither or cut short."""
    code = data[0] & 0x7F if len(data) else 0
    if code in (0x70, 0x71) and len(data) >= 8:
        asc, ascq = (data[12], data[13]) if len(data) >= 14 else (0, 0)
        return Sense(data[2] & 0x0F, asc, ascq)
    if code in (0x72, 0x73) and len(data) >= 4:
        return Sense(data[1] & 0x0F, data[2], data[3])
    raise ValueError(f"no sense data: {bytes(data[:18]).hex() or 'empty'}")


_STATUS_OR_REASON = Reason | Status
FAULTS: dict[Fault, _STATUS_OR_REASON] = {
    Fault.READ_ERROR: Reason.UNRECOVERED_READ_ERROR,
    Fault.WRITE_ERROR: Reason.WRITE_ERROR,
    Fault.OUT_OF_RANGE: Reason.LBA_OUT_OF_RANGE,
    Fault.NO_SPACE: Reason.SPACE_ALLOCATION_FAILED,
    Fault.READ_ONLY: Reason.WRITE_PROTECTED,
    Fault.NOT_READY: Reason.NOT_READY,
    Fault.NO_MEDIUM: Reason.MEDIUM_NOT_PRESENT,
    Fault.BUSY: Status.BUSY,
    Fault.NO_RESOURCES: Status.TASK_SET_FULL,
    Fault.UNSUPPORTED: Reason.INVALID_COMMAND_OPERATION_CODE,
    Fault.INVALID: Reason.INVALID_FIELD_IN_CDB,
    Fault.MISCOMPARE: Reason.MISCOMPARE_DURING_VERIFY,
    Fault.CANCELLED: Status.TASK_ABORTED,
    Fault.INTERNAL: Reason.INTERNAL_TARGET_FAILURE,
}
"""What each fault of a device is told the initiator as."""

ERRNOS: dict[int, _STATUS_OR_REASON] = {
    errno.ENOSPC: Reason.SPACE_ALLOCATION_FAILED,
    errno.EDQUOT: Reason.SPACE_ALLOCATION_FAILED,
    errno.EFBIG: Reason.SPACE_ALLOCATION_FAILED,
    errno.EROFS: Reason.WRITE_PROTECTED,
    errno.EPERM: Reason.WRITE_PROTECTED,
    errno.EACCES: Reason.WRITE_PROTECTED,
    errno.ENODEV: Reason.NOT_READY,
    errno.ENXIO: Reason.NOT_READY,
    errno.ESTALE: Reason.NOT_READY,
    errno.ENOMEDIUM: Reason.MEDIUM_NOT_PRESENT,
    errno.ENOMEM: Status.TASK_SET_FULL,
    errno.EMFILE: Status.TASK_SET_FULL,
    errno.ENFILE: Status.TASK_SET_FULL,
    errno.EAGAIN: Status.BUSY,
    errno.EBUSY: Status.BUSY,
    errno.ETIMEDOUT: Status.BUSY,
    errno.EOPNOTSUPP: Reason.INVALID_COMMAND_OPERATION_CODE,
    errno.EINVAL: Reason.INVALID_FIELD_IN_CDB,
    errno.ECANCELED: Status.TASK_ABORTED,
}
"""What each errno is told the initiator as; EIO and its kin depend on the direction, all others are our failure."""

_MEDIUM_ERRNOS = frozenset({errno.EIO, errno.EILSEQ, errno.EUCLEAN, errno.EREMOTEIO})


def reason_of(exc: BaseException, is_write: bool) -> ScsiError | Status:
    """Turn what a device raised into an error with sense data, or into a status that needs none.

    A ScsiError is told as it is; one whose reason is a status (RESERVATION CONFLICT) has no sense data, so it is that
    status. What is none of these is a bug: HARDWARE ERROR, INTERNAL TARGET FAILURE.
    """
    if isinstance(exc, ScsiError):
        return exc.reason if isinstance(exc.reason, Status) else exc
    answer: _STATUS_OR_REASON = Reason.INTERNAL_TARGET_FAILURE
    if isinstance(exc, BlockError):
        answer = FAULTS[exc.fault]
        if answer is Reason.UNRECOVERED_READ_ERROR:
            return ScsiError(answer, information=exc.block)
    elif isinstance(exc, OSError) and exc.errno is not None:
        if exc.errno in _MEDIUM_ERRNOS:
            answer = Reason.WRITE_ERROR if is_write else Reason.UNRECOVERED_READ_ERROR
        else:
            answer = ERRNOS.get(exc.errno, answer)
    elif isinstance(exc, MemoryError):
        answer = Status.TASK_SET_FULL
    return answer if isinstance(answer, Status) else ScsiError(answer)
