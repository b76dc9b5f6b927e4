"""The numbers of iSCSI, each written once, with the clause of RFC 7143 that assigns it.

Nothing but numbers lives here. The enums are for reading, printing and tests. Code that runs for every command compares
with the plain ints at the end (masks and single values), because an IntEnum member compares several times slower.
"""

from __future__ import annotations

import enum
from typing import Final


class Opcode(enum.IntEnum):
    """RFC 7143 section 11.2.1.2; the six low bits of byte 0."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    SCSI_DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10

    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    SCSI_DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


class TaskAttribute(enum.IntEnum):
    """RFC 7143 section 11.3.1, ATTR."""

    UNTAGGED = 0
    SIMPLE = 1
    ORDERED = 2
    HEAD_OF_QUEUE = 3
    ACA = 4


class AhsType(enum.IntEnum):
    """RFC 7143 section 11.2.2.1."""

    EXTENDED_CDB = 1
    BIDIRECTIONAL_READ_LENGTH = 2


class ScsiResponseCode(enum.IntEnum):
    """RFC 7143 section 11.4.3; 0x80 .. 0xff are the vendor's."""

    COMMAND_COMPLETED = 0x00
    TARGET_FAILURE = 0x01


class TmfFunction(enum.IntEnum):
    """RFC 7143 section 11.5.1; 9 .. 12 come from RFC 7144 and need iSCSIProtocolLevel 2."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8
    QUERY_TASK = 9
    QUERY_TASK_SET = 10
    I_T_NEXUS_RESET = 11
    QUERY_ASYNCHRONOUS_EVENT = 12


class TmfResponse(enum.IntEnum):
    """RFC 7143 section 11.6.1; 7 comes from RFC 7144."""

    FUNCTION_COMPLETE = 0
    TASK_DOES_NOT_EXIST = 1
    LUN_DOES_NOT_EXIST = 2
    TASK_STILL_ALLEGIANT = 3
    TASK_ALLEGIANCE_REASSIGNMENT_NOT_SUPPORTED = 4
    FUNCTION_NOT_SUPPORTED = 5
    FUNCTION_AUTHORIZATION_FAILED = 6
    FUNCTION_SUCCEEDED = 7
    FUNCTION_REJECTED = 255


class AsyncEvent(enum.IntEnum):
    """RFC 7143 section 11.9.1; 248 .. 255 are the vendor's."""

    SCSI_EVENT = 0
    LOGOUT_REQUEST = 1
    CONNECTION_DROPPED = 2
    ALL_CONNECTIONS_DROPPED = 3
    NEGOTIATION_REQUEST = 4
    TASKS_TERMINATED = 5


class Stage(enum.IntEnum):
    """CSG and NSG, RFC 7143 section 11.12.3; 2 is reserved."""

    SECURITY_NEGOTIATION = 0
    LOGIN_OPERATIONAL_NEGOTIATION = 1
    FULL_FEATURE_PHASE = 3


class LoginStatus(enum.IntEnum):
    """RFC 7143 section 11.13.5, as Status-Class << 8 | Status-Detail."""

    SUCCESS = 0x0000

    TARGET_MOVED_TEMPORARILY = 0x0101
    TARGET_MOVED_PERMANENTLY = 0x0102

    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILURE = 0x0201
    AUTHORIZATION_FAILURE = 0x0202
    NOT_FOUND = 0x0203
    TARGET_REMOVED = 0x0204
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    CANNOT_INCLUDE_IN_SESSION = 0x0208
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    SESSION_DOES_NOT_EXIST = 0x020A
    INVALID_DURING_LOGIN = 0x020B

    TARGET_ERROR = 0x0300
    SERVICE_UNAVAILABLE = 0x0301
    OUT_OF_RESOURCES = 0x0302


class LogoutReason(enum.IntEnum):
    """RFC 7143 section 11.14.1."""

    CLOSE_SESSION = 0
    CLOSE_CONNECTION = 1
    REMOVE_CONNECTION_FOR_RECOVERY = 2


class LogoutResponseCode(enum.IntEnum):
    """RFC 7143 section 11.15.1."""

    CLOSED = 0
    CID_NOT_FOUND = 1
    RECOVERY_NOT_SUPPORTED = 2
    CLEANUP_FAILED = 3


class SnackType(enum.IntEnum):
    """RFC 7143 section 11.16.1."""

    DATA_OR_R2T = 0
    STATUS = 1
    DATA_ACK = 2
    R_DATA = 3


class RejectReason(enum.IntEnum):
    """RFC 7143 section 11.17.1."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    IMMEDIATE_COMMAND_REJECT = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    LONG_OPERATION_REJECT = 0x0A
    WAITING_FOR_LOGOUT = 0x0C


BHS_SIZE: Final = 48  # basic header segment, section 11.2
AHS_SIZE_LIMIT: Final = 255 * 4  # TotalAHSLength is one byte and counts words, section 11.2.1.5
DATA_SIZE_LIMIT: Final = 0xFFFFFF  # DataSegmentLength has three bytes, section 11.2.1.6
DIGEST_SIZE: Final = 4
CDB_SIZE: Final = 16  # what the SCSI Command PDU holds without an AHS, section 11.3.5
RESERVED_TAG: Final = 0xFFFFFFFF  # "no task", "no transfer": Initiator Task Tag and Target Transfer Tag
PROTOCOL_VERSION: Final = 0x00  # Version-max, -min and -active, section 11.12.4
LOGIN_DATA_LIMIT: Final = 8192  # MaxRecvDataSegmentLength before it is negotiated, section 13.12

# Byte 0.
IMMEDIATE: Final = 0x40
OPCODE_MASK: Final = 0x3F

# Byte 1.
FINAL: Final = 0x80
READ: Final = 0x40  # SCSI Command
WRITE: Final = 0x20
ATTRIBUTES: Final = 0x07
ACKNOWLEDGE: Final = 0x40  # SCSI Data-In
OVERFLOW: Final = 0x04  # SCSI Response and SCSI Data-In
UNDERFLOW: Final = 0x02
STATUS: Final = 0x01  # SCSI Data-In
BIDIRECTIONAL_OVERFLOW: Final = 0x10  # SCSI Response
BIDIRECTIONAL_UNDERFLOW: Final = 0x08
CONTINUE: Final = 0x40  # Login and Text; the bit that is T in a Login PDU is FINAL
