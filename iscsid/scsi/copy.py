"""EXTENDED COPY, LID1 and LID4 (SPC-4 6.3, 6.4), and COPY OPERATION ABORT (6.2), between disks.

Supported are identification CSCD descriptors (E4h), the unit itself (FFFFh) and block to block segments (02h): what
VMware, Linux and the copy tools send. Others are refused as the type codes that they are. Units of other targets are
found as well, where the initiator may use them and this worker serves them.

A copy is one job in the pool. It is bounded (``copy_list``), answered when it is over, and ends before its next piece
when it is aborted. What goes wrong with a segment ends it with COPY ABORTED and the number of the segment
(SPC-4 5.17.7.4); what the segments before it have copied stays copied.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from iscsid.errors import BlockError, ScsiError
from iscsid.scsi.const import DIRECT_ACCESS_BLOCK_DEVICE, Status
from iscsid.scsi.copy_list import (
    LID1_HEADER,
    LID4_HEADER,
    MAX_DESCRIPTORS_LENGTH,
    MAX_SEGMENT_LENGTH,
    THIS_UNIT,
    CopyList,
    Segment,
    parse_lid1,
    parse_lid4,
)
from iscsid.scsi.copy_move import SourceError, check, find, move, quiet
from iscsid.scsi.copy_state import Operation, Party
from iscsid.scsi.plan import DONE, Job, Plan
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

ANY_COST = 1 << 62  # never in the worker's loop

_SOURCE_FIELD, _DESTINATION_FIELD, _BLOCKS_FIELD = 4, 6, 10  # of a segment descriptor


def extended_copy_lid1(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.4."""
    return _extended_copy(lu, cdb, nexus, parse_lid1, LID1_HEADER)


def extended_copy_lid4(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.3."""
    return _extended_copy(lu, cdb, nexus, parse_lid4, LID4_HEADER)


def _extended_copy(
    lu: LogicalUnit, cdb: bytes, nexus: Nexus, parse: Callable[[memoryview], CopyList], header: int
) -> Plan:
    length = int.from_bytes(cdb[10:14], "big")
    if not length:
        return DONE  # SPC-4 6.3.1: not an error
    if not header <= length <= header + MAX_DESCRIPTORS_LENGTH:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    # The list identifier is known only when the list is here; what aborts the task may come before that.
    operation = Operation(0, cdb[1] & 0x1F)
    run = partial(_run, parse, quiet(Party(lu, nexus)), operation, length)
    return Job(run, length, ANY_COST, writes=True, locks=False, cancel=operation.cancel)


def _run(
    parse: Callable[[memoryview], CopyList], own: Party, operation: Operation, length: int, data: memoryview
) -> bytes:
    if len(data) < length:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    copy_list = parse(data)
    operation.list_identifier = copy_list.list_identifier
    if copy_list.remembered:
        own.nexus.copies.begin(operation)
    with running(operation):
        for number, segment in enumerate(copy_list.segments):
            _copy_segment(operation, own, copy_list, number, segment)
            operation.segments += 1
    return b""


@contextlib.contextmanager
def running(operation: Operation) -> Iterator[None]:
    """A context in which an operation is under way, and notes how that ends."""
    try:
        yield
    except ScsiError as error:
        told = not isinstance(error.reason, Status)
        operation.error = error if told else ScsiError(Reason.THIRD_PARTY_DEVICE_FAILURE)
        raise
    except Exception:
        operation.error = ScsiError(Reason.THIRD_PARTY_DEVICE_FAILURE)
        raise
    finally:
        operation.running = False


def _copy_segment(operation: Operation, own: Party, copy_list: CopyList, number: int, segment: Segment) -> None:
    """Copy one segment. Raises ScsiError, with its number unless the status is another than CHECK CONDITION."""
    try:
        source = _party(own, copy_list, segment.source, _SOURCE_FIELD)
        destination = _party(own, copy_list, segment.destination, _DESTINATION_FIELD)
        _check_and_move(operation, source, destination, segment)
    except ScsiError as error:
        if not isinstance(error.reason, Status):
            error.segment = number
        raise


def _party(own: Party, copy_list: CopyList, identifier: int, field: int) -> Party:
    """Return the unit that a CSCD descriptor ID of a segment leads to (SPC-4 6.4.4, 6.4.5.6)."""
    if identifier == THIS_UNIT:
        return own
    if identifier >= len(copy_list.cscds):
        raise ScsiError(Reason.UNREACHABLE_COPY_TARGET, field=field)
    cscd = copy_list.cscds[identifier]
    party = find(cscd.designation, own)
    if party is None:
        raise ScsiError(Reason.COPY_TARGET_DEVICE_NOT_REACHABLE, field=field)
    if cscd.device_type != DIRECT_ACCESS_BLOCK_DEVICE:
        raise ScsiError(Reason.INCORRECT_COPY_TARGET_DEVICE_TYPE, field=field)
    if cscd.block_length not in (0, party.unit.block_size):
        # Its lengths are meant in other blocks: doing it would copy something else.
        raise ScsiError(Reason.INVALID_COPY_PARAMETER, field=field)
    return party


def _check_and_move(operation: Operation, source: Party, destination: Party, segment: Segment) -> None:
    counted = destination.unit if segment.by_destination else source.unit
    length = segment.blocks << counted.shift
    if length > MAX_SEGMENT_LENGTH:
        raise ScsiError(Reason.INVALID_COPY_PARAMETER, field=_BLOCKS_FIELD)
    if length % source.unit.block_size or length % destination.unit.block_size:
        # Neither CAT nor PAD makes it exact: nothing is kept from segment to segment, nothing filled up.
        raise ScsiError(Reason.UNEXPECTED_INEXACT_SEGMENT, field=_BLOCKS_FIELD)
    start, at = segment.source_lba << source.unit.shift, segment.destination_lba << destination.unit.shift
    try:
        check(source, start, length, writes=False)
        check(destination, at, length, writes=True)
        move(operation, source, start, destination, at, length)
    except (SourceError, ScsiError, BlockError, OSError) as error:
        raise _aborted(error) from error


def _aborted(error: Exception) -> ScsiError:
    """What a failure of source or destination ends the copy with.

    A conflict with a reservation stays what it is (SPC-4 5.17.7.4), and so does COPY ABORTED.
    """
    cause = error.__cause__ if isinstance(error, SourceError) else error
    if isinstance(cause, ScsiError):
        if isinstance(cause.reason, Status) or cause.reason is Reason.COPY_OPERATION_ABORTED:
            return cause
        if cause.reason is Reason.LBA_OUT_OF_RANGE:
            # As other copy managers tell it: there is no such place.
            return ScsiError(Reason.COPY_TARGET_DEVICE_NOT_REACHABLE)
    return ScsiError(Reason.THIRD_PARTY_DEVICE_FAILURE)


def copy_operation_abort(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.2: the copy ends before its next piece; RECEIVE COPY STATUS tells when it has."""
    operation = nexus.copies.get(int.from_bytes(cdb[2:6], "big"))
    if operation is None:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2)
    operation.cancel()
    return DONE
