"""Numbers of SAM-5, SPC-4 and SBC-3, once. Code on the hot path keeps the plain ints it needs beside itself."""

from __future__ import annotations

import enum


class Status(enum.IntEnum):
    """SAM-5 5.3.1, table 29."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class SenseKey(enum.IntEnum):
    """SPC-4 4.5.6, table 50."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE
    COMPLETED = 0xF


class Opcode(enum.IntEnum):
    """Operation codes of direct access block devices (SBC-3 table 31)."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    RESERVE_6 = 0x16
    RELEASE_6 = 0x17
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1E
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    WRITE_AND_VERIFY_10 = 0x2E
    VERIFY_10 = 0x2F
    PRE_FETCH_10 = 0x34
    SYNCHRONIZE_CACHE_10 = 0x35
    READ_DEFECT_DATA_10 = 0x37
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    SANITIZE = 0x48
    LOG_SENSE = 0x4D
    MODE_SELECT_10 = 0x55
    RESERVE_10 = 0x56
    RELEASE_10 = 0x57
    MODE_SENSE_10 = 0x5A
    PERSISTENT_RESERVE_IN = 0x5E
    PERSISTENT_RESERVE_OUT = 0x5F
    THIRD_PARTY_COPY_OUT = 0x83
    THIRD_PARTY_COPY_IN = 0x84
    READ_16 = 0x88
    COMPARE_AND_WRITE = 0x89
    WRITE_16 = 0x8A
    ORWRITE_16 = 0x8B
    WRITE_AND_VERIFY_16 = 0x8E
    VERIFY_16 = 0x8F
    PRE_FETCH_16 = 0x90
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    WRITE_ATOMIC_16 = 0x9C
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    MAINTENANCE_IN = 0xA3
    MAINTENANCE_OUT = 0xA4
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    WRITE_AND_VERIFY_12 = 0xAE
    VERIFY_12 = 0xAF
    READ_DEFECT_DATA_12 = 0xB7


class ServiceAction(enum.IntEnum):
    """Service actions, each of the operation code named in its comment.

    Those of an operation code that has numbers in common with one of these are an enumeration of their own.
    """

    SANITIZE_OVERWRITE = 0x01  # SANITIZE, SBC-3 5.24
    SANITIZE_BLOCK_ERASE = 0x02  # SANITIZE
    REPORT_TARGET_PORT_GROUPS = 0x0A  # MAINTENANCE IN, SPC-4 6.37
    REPORT_SUPPORTED_OPERATION_CODES = 0x0C  # MAINTENANCE IN, SPC-4 6.35
    REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS = 0x0D  # MAINTENANCE IN, SPC-4 6.36
    READ_CAPACITY_16 = 0x10  # SERVICE ACTION IN(16), SBC-3 5.17
    GET_LBA_STATUS = 0x12  # SERVICE ACTION IN(16), SBC-3 5.6
    SANITIZE_EXIT_FAILURE_MODE = 0x1F  # SANITIZE
    REPORT_REFERRALS = 0x13  # SERVICE ACTION IN(16), SBC-3 5.24


class MaintenanceOut(enum.IntEnum):
    """Service actions of MAINTENANCE OUT."""

    SET_TARGET_PORT_GROUPS = 0x0A  # SPC-4 6.45


class PersistentReserveIn(enum.IntEnum):
    """Service actions of PERSISTENT RESERVE IN (SPC-4 6.13.1, table 206)."""

    READ_KEYS = 0x00
    READ_RESERVATION = 0x01
    REPORT_CAPABILITIES = 0x02
    READ_FULL_STATUS = 0x03


class PersistentReserveOut(enum.IntEnum):
    """Service actions of PERSISTENT RESERVE OUT (SPC-4 6.14.2, table 224)."""

    REGISTER = 0x00
    RESERVE = 0x01
    RELEASE = 0x02
    CLEAR = 0x03
    PREEMPT = 0x04
    PREEMPT_AND_ABORT = 0x05
    REGISTER_AND_IGNORE_EXISTING_KEY = 0x06
    REGISTER_AND_MOVE = 0x07


class ThirdPartyCopyOut(enum.IntEnum):
    """Service actions of operation code 83h (SPC-4 table 116)."""

    EXTENDED_COPY_LID1 = 0x00
    EXTENDED_COPY_LID4 = 0x01
    POPULATE_TOKEN = 0x10
    WRITE_USING_TOKEN = 0x11
    COPY_OPERATION_ABORT = 0x1C


class ThirdPartyCopyIn(enum.IntEnum):
    """Service actions of operation code 84h (SPC-4 table 240)."""

    RECEIVE_COPY_STATUS_LID1 = 0x00
    RECEIVE_COPY_OPERATING_PARAMETERS = 0x03
    RECEIVE_COPY_FAILURE_DETAILS_LID1 = 0x04
    RECEIVE_COPY_STATUS_LID4 = 0x05
    RECEIVE_ROD_TOKEN_INFORMATION = 0x07


SERVICE_ACTIONS: tuple[type[enum.IntEnum], ...] = (
    ServiceAction,
    MaintenanceOut,
    ThirdPartyCopyOut,
    ThirdPartyCopyIn,
    PersistentReserveIn,
    PersistentReserveOut,
)
"""Every enumeration of service actions that has rows in the opcode table."""


class Association(enum.IntEnum):
    """What a designation descriptor names (SPC-4 7.8.6.1, table 594)."""

    LOGICAL_UNIT = 0
    TARGET_PORT = 1
    TARGET_DEVICE = 2


class Designator(enum.IntEnum):
    """Designator types (SPC-4 7.8.6.1, table 595)."""

    VENDOR_SPECIFIC = 0x0
    T10_VENDOR_ID = 0x1
    EUI_64 = 0x2
    NAA = 0x3
    RELATIVE_TARGET_PORT = 0x4
    TARGET_PORT_GROUP = 0x5
    LOGICAL_UNIT_GROUP = 0x6
    MD5_LOGICAL_UNIT = 0x7
    SCSI_NAME_STRING = 0x8


class CodeSet(enum.IntEnum):
    """SPC-4 7.8.6.1, table 593."""

    BINARY = 1
    ASCII = 2
    UTF_8 = 3


DIRECT_ACCESS_BLOCK_DEVICE = 0x00  # peripheral qualifier 000b, device type 00h (SPC-4 6.6.2)
NO_LOGICAL_UNIT = 0x7F  # peripheral qualifier 011b, device type 1Fh: nothing can be here (SPC-4 6.6.2)
PROTOCOL_ISCSI = 0x5  # SPC-4 7.6.1, table 491
