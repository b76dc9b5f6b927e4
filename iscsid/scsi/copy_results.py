"""RECEIVE COPY RESULTS: what became of the copies of this nexus, and what the copy manager can do (SPC-4 6.18 - 6.24).

No data is ever held for RECEIVE COPY DATA, which is refused as a service action that there is not. An operation is told
of until another with its list identifier begins, or many others have.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from iscsid.errors import ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.copy_list import (
    BLOCK_TO_BLOCK,
    IDENTIFICATION_CSCD,
    MAX_CSCDS,
    MAX_DESCRIPTORS_LENGTH,
    MAX_SEGMENT_LENGTH,
    MAX_SEGMENTS,
)
from iscsid.scsi.copy_state import MAX_OPERATIONS, Operation
from iscsid.scsi.plan import Plan, Reply
from iscsid.scsi.sense import Reason, build_sense

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

# COPY OPERATION STATUS (SPC-4 tables 246, 253)
_IN_PROGRESS_LID1, _COMPLETED, _FAILED, _IN_PROGRESS, _TERMINATED = 0x00, 0x01, 0x02, 0x11, 0x60
_BYTES, _KIBIBYTES = 0x00, 0x01  # TRANSFER COUNT UNITS
_NO_ESTIMATE = 0xFFFFFFFF

_STATUS_LID1 = struct.Struct(">BHBI")
# RESPONSE TO SERVICE ACTION, COPY OPERATION STATUS, OPERATION COUNTER, ESTIMATED STATUS UPDATE DELAY, EXTENDED COPY
# COMPLETION STATUS, LENGTH OF THE SENSE DATA FIELD, SENSE DATA LENGTH, TRANSFER COUNT UNITS, TRANSFER COUNT, SEGMENTS
_STATUS_LID4 = struct.Struct(">BBHIBBBBQH6x")
# SNLID, the maxima of descriptors, HELD DATA LIMIT, stream devices, concurrent copies, granularities, type codes
_PARAMETERS = struct.Struct(">B3xHHIIIII2xHBBBB3xB")
_FAILURE = struct.Struct(">52xBxH")
_SNLID = 0x01  # LIST ID USAGE 11b is understood

TYPE_CODES = bytes((BLOCK_TO_BLOCK, IDENTIFICATION_CSCD))  # ascending, as both lists of them want it


def receive_copy_status_lid1(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.23."""
    operation = _operation(nexus, cdb[2])
    status = _IN_PROGRESS_LID1 if operation.running else _FAILED if operation.error else _COMPLETED
    units, count = _BYTES, operation.transferred
    if count > 0xFFFFFFFF:
        units, count = _KIBIBYTES, count >> 10
    return _reply(cdb, _STATUS_LID1.pack(status, operation.segments, units, count))


def receive_copy_failure_details_lid1(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.20; nothing but AVAILABLE DATA 0 of a copy that did not fail."""
    operation = _operation(nexus, cdb[2])
    if operation.running:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2)
    if operation.error is None:
        return _reply(cdb, b"")
    sense = build_sense(operation.error)
    return _reply(cdb, _FAILURE.pack(Status.CHECK_CONDITION, len(sense)) + sense)


def receive_copy_status_lid4(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.22."""
    return _reply(cdb, status_lid4(_operation(nexus, int.from_bytes(cdb[2:6], "big"))))


def receive_rod_token_information(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.24: as RECEIVE COPY STATUS(LID4), and the token that POPULATE TOKEN made."""
    operation = _operation(nexus, int.from_bytes(cdb[2:6], "big"))
    token = operation.token if not operation.running else b""
    descriptors = bytes(2) + token if token else b""
    return _reply(cdb, status_lid4(operation) + struct.pack(">I", len(descriptors)) + descriptors)


def receive_copy_operating_parameters(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.21."""
    data = _PARAMETERS.pack(
        _SNLID,
        MAX_CSCDS,
        MAX_SEGMENTS,
        MAX_DESCRIPTORS_LENGTH,
        MAX_SEGMENT_LENGTH,
        0,  # inline data
        0,  # held data
        0,  # no stream devices
        MAX_OPERATIONS,
        MAX_OPERATIONS,
        lu.shift,  # DATA SEGMENT GRANULARITY: whole blocks
        0,
        0,
        len(TYPE_CODES),
    )
    return _reply(cdb, data + TYPE_CODES)


def status_lid4(operation: Operation) -> bytes:
    """Return the fields that follow AVAILABLE DATA in SPC-4 tables 252 and 258, sense data included."""
    status, completion, sense = _IN_PROGRESS, Status.GOOD, b""
    if not operation.running:
        status = _COMPLETED
        if operation.error is not None:
            status = _TERMINATED if operation.error.reason is Reason.COPY_OPERATION_ABORTED else _FAILED
            completion, sense = Status.CHECK_CONDITION, build_sense(operation.error)
    head = _STATUS_LID4.pack(
        operation.service_action,
        status,
        min(operation.segments, 0xFFFF),
        _NO_ESTIMATE,
        completion,
        len(sense),
        len(sense),
        _BYTES,
        operation.transferred,
        min(operation.segments, 0xFFFF),
    )
    return head + sense


def _operation(nexus: Nexus, list_identifier: int) -> Operation:
    operation = nexus.copies.get(list_identifier)
    if operation is None:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2)
    return operation


def _reply(cdb: bytes, data: bytes) -> Reply:
    """AVAILABLE DATA, which counts what follows it, and that."""
    return Reply((struct.pack(">I", len(data)) + data)[: int.from_bytes(cdb[10:14], "big")])
