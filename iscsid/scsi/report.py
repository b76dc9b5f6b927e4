"""What a unit tells of itself: READ CAPACITY, GET LBA STATUS, REPORT LUNS, REPORT SUPPORTED OPERATION CODES and task
management functions."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from iscsid.block.device import Content, Extent
from iscsid.errors import ScsiError
from iscsid.scsi.plan import Job, Plan, Reply
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.commands import Command
    from iscsid.scsi.lu import LogicalUnit, Nexus

# -- READ CAPACITY (SBC-3 5.16, 5.17) --------------------------------------------------------------------------------

_CAPACITY_10 = struct.Struct(">II")
_CAPACITY_16 = struct.Struct(">QIBBH16x")  # last LBA, block length, protection, exponents, LBPME LBPRZ LOWEST ALIGNED
_LBPME, _LBPRZ = 0x8000, 0x4000


def read_capacity_10(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-3 5.16: FFFFFFFFh sends the initiator to READ CAPACITY(16)."""
    return Reply(_CAPACITY_10.pack(min(lu.blocks - 1, 0xFFFFFFFF), lu.block_size))


def read_capacity_16(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-3 5.17.2: no protection information; block 0 is aligned."""
    exponent = max(0, (lu.device.physical_block_size >> lu.shift).bit_length() - 1)
    provisioning = 0
    if lu.thin:
        provisioning = _LBPME | (_LBPRZ if lu.device.discard_zeroes else 0)
    data = _CAPACITY_16.pack(lu.blocks - 1, lu.block_size, 0, exponent & 0x0F, provisioning)
    return Reply(data[: int.from_bytes(cdb[10:14], "big")])


# -- GET LBA STATUS (SBC-3 5.6) --------------------------------------------------------------------------------------

_LBA_STATUS_HEADER, _LBA_STATUS = struct.Struct(">I4x"), struct.Struct(">QIB3x")
_MAPPED, _DEALLOCATED = 0, 1
_MAX_LBA_STATUS = 1024  # descriptors in one answer: what an initiator does with an endless map is to ask again


def get_lba_status(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-3 5.6: which blocks from an LBA on are allocated, by the medium's own map."""
    lba, allocation_length = int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")
    if lba >= lu.blocks:
        raise ScsiError(Reason.LBA_OUT_OF_RANGE, information=lba)
    # At least one descriptor, cut off or not: there is nothing shorter to say.
    room = (allocation_length - _LBA_STATUS_HEADER.size) // _LBA_STATUS.size
    count = min(max(room, 1), _MAX_LBA_STATUS)
    return Job(partial(_lba_status, lu, lba, count, allocation_length))


def _lba_status(lu: LogicalUnit, lba: int, count: int, allocation_length: int, _data: memoryview) -> bytes:
    offset = lba << lu.shift
    extents = lu.device.block_status(offset, (lu.blocks << lu.shift) - offset)
    descriptors = b"".join(
        _LBA_STATUS.pack(
            extent.offset >> lu.shift,
            min(extent.length >> lu.shift, 0xFFFFFFFF),
            _DEALLOCATED if extent.content & Content.HOLE else _MAPPED,
        )
        for extent in islice(_contiguous(extents, lu.shift), count)
    )
    # PARAMETER DATA LENGTH does not count itself.
    return (_LBA_STATUS_HEADER.pack(len(descriptors) + 4) + descriptors)[:allocation_length]


def _contiguous(extents: Iterable[Extent], shift: int) -> Iterator[Extent]:
    """The extents up to the first that one descriptor cannot hold: the next descriptor must begin where it ends."""
    for extent in extents:
        yield extent
        if extent.length >> shift > 0xFFFFFFFF:
            return


# -- REPORT LUNS (SPC-4 6.33) ----------------------------------------------------------------------------------------

MINIMUM_ALLOCATION = 16
_ALL_BUT_WELL_KNOWN, _WELL_KNOWN, _ALL = 0x00, 0x01, 0x02
_FLAT_SPACE = 0b01 << 14


def report_luns(lu: object, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.33; ``lu`` is not looked at, for the answer is the target's."""
    allocation_length = int.from_bytes(cdb[6:10], "big")
    if allocation_length < MINIMUM_ALLOCATION:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=6)
    if cdb[2] not in (_ALL_BUT_WELL_KNOWN, _WELL_KNOWN, _ALL):
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2)
    luns: Sequence[int] = () if cdb[2] == _WELL_KNOWN else nexus.luns
    listed = b"".join(map(lun_field, luns))
    return Reply((struct.pack(">I4x", len(listed)) + listed)[:allocation_length])


def lun_field(lun: int) -> bytes:
    """Return the eight bytes of a logical unit number: peripheral addressing up to 255, then flat (SAM-5 4.7.7)."""
    return struct.pack(">H6x", lun if lun < 256 else _FLAT_SPACE | lun)


# -- REPORT SUPPORTED OPERATION CODES (SPC-4 6.35) -------------------------------------------------------------------

_RCTD = 0x80
_ALL_COMMANDS, _BY_OPCODE, _BY_SERVICE_ACTION, _BY_EITHER = 0, 1, 2, 3
_NOT_SUPPORTED, _SUPPORTED = 0b001, 0b011
_CTDP_ALL, _SERVACTV = 0x02, 0x01  # byte 5 of a command descriptor
_CTDP_ONE = 0x80  # byte 1 of one_command parameter data
_COMMAND_DESCRIPTOR = struct.Struct(">BxHxBH")
_TIMEOUTS_DESCRIPTOR = struct.Struct(">HxBII")  # length, command specific, nominal processing, recommended timeout
_TIMEOUTS_LENGTH = 0x0A


def report_supported_operation_codes(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.35: the table that dispatches the commands, told as it stands for this unit."""
    rctd, option, opcode = bool(cdb[2] & _RCTD), cdb[2] & 0x07, cdb[3]
    service_action, allocation_length = struct.unpack_from(">HI", cdb, 4)
    if option == _ALL_COMMANDS:
        data = _all_commands(lu.commands, rctd)
    elif option in (_BY_OPCODE, _BY_SERVICE_ACTION, _BY_EITHER):
        data = _one_command(_find(lu.commands, option, opcode, service_action), rctd)
    else:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2, bit=2)
    return Reply(data[:allocation_length])


def _all_commands(commands: Sequence[Command], rctd: bool) -> bytes:
    descriptors = []
    for command in commands:
        flags = (_CTDP_ALL if rctd else 0) | (0 if command.service_action is None else _SERVACTV)
        descriptors.append(
            _COMMAND_DESCRIPTOR.pack(command.opcode, command.service_action or 0, flags, len(command.usage))
        )
        if rctd:
            descriptors.append(_timeouts(command))
    listed = b"".join(descriptors)
    return struct.pack(">I", len(listed)) + listed


def _find(commands: Sequence[Command], option: int, opcode: int, service_action: int) -> Command | None:
    """Return the command that is asked for, or None; refuse the option that does not fit it (SPC-4 table 265)."""
    rows = [command for command in commands if command.opcode == opcode]
    if not rows:
        return None
    has_actions = rows[0].service_action is not None
    if option == _BY_OPCODE and has_actions:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2, bit=2)
    if option == _BY_SERVICE_ACTION and not has_actions:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2, bit=2)
    if not has_actions:
        return rows[0] if option == _BY_OPCODE or not service_action else None
    return next((row for row in rows if row.service_action == service_action), None)


def _one_command(command: Command | None, rctd: bool) -> bytes:
    """Parameter data of one command (SPC-4 6.35.3); nothing after SUPPORT counts for one that is not supported."""
    if command is None:
        return bytes((0, _NOT_SUPPORTED, 0, 0))
    head = struct.pack(">xBH", _SUPPORTED | (_CTDP_ONE if rctd else 0), len(command.usage))
    return head + command.usage + (_timeouts(command) if rctd else b"")


def _timeouts(command: Command) -> bytes:
    """SPC-4 6.35.4; a NOMINAL COMMAND PROCESSING TIMEOUT of 0 says that none is known."""
    return _TIMEOUTS_DESCRIPTOR.pack(_TIMEOUTS_LENGTH, 0, 0, command.timeout)


# -- REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 6.36) ---------------------------------------------------------

_REPD = 0x80
# Byte 0: ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET, QUERY TASK, TARGET RESET.
# Byte 1: QUERY ASYNCHRONOUS EVENT, QUERY TASK SET, I_T NEXUS RESET.
_FUNCTIONS = bytes((0x80 | 0x40 | 0x10 | 0x08 | 0x04 | 0x02, 0x04 | 0x02 | 0x01))
_EXTENDED_LENGTH = 0x0C


def report_supported_task_management_functions(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.36: what the session layer does. With REPD, the extended form, which adds timeouts that are not known."""
    allocation_length = int.from_bytes(cdb[6:10], "big")
    if allocation_length < 4:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=6)
    rest = struct.pack(">xB12x", _EXTENDED_LENGTH) if cdb[2] & _REPD else bytes(2)
    return Reply((_FUNCTIONS + rest)[:allocation_length])
