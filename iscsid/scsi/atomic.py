"""Commands that are one step to all others of their kind: COMPARE AND WRITE, ORWRITE, WRITE ATOMIC.

Their jobs hold their range against every command of this kind on the unit, whichever worker runs it
(``plan.Job.exclusive``). A plain READ or WRITE holds nothing: whoever uses these commands to agree with others uses
them alone on those blocks.
"""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

from iscsid.block.turn import stay
from iscsid.errors import ScsiError
from iscsid.scsi.plan import DONE, Job, Plan
from iscsid.scsi.rw import FUA, cdb_16, check_data_out, check_end, check_range, miscompare, pieces
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

_write_atomic = struct.Struct(">xBQ2xH").unpack_from  # flags, LBA, ATOMIC BOUNDARY that is 0, TRANSFER LENGTH (SBC-4)
_compare_and_write = struct.Struct(">xBQ3xB").unpack_from  # flags, LBA, NUMBER OF LOGICAL BLOCKS (SBC-3 5.2)


def compare_and_write(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-3 5.2: the data-out is what the blocks must hold, and then what is written.

    The number of blocks has eight bits, and MAXIMUM COMPARE AND WRITE LENGTH is all of them. 0 blocks are nothing to
    do; data-out for them is refused, for it was meant for 256.
    """
    flags, lba, blocks = _compare_and_write(cdb)
    check_end(lu, lba, blocks)
    if not blocks:
        return Job(bytes, exact=True)
    offset, length = lba << lu.shift, blocks << lu.shift
    fua = bool(flags & FUA) and lu.volatile
    run = partial(_run_compare_and_write, lu, offset, length, fua)
    return Job(run, 2 * length, 2 * length, writes=True, exact=True, exclusive=(offset, length))


def _run_compare_and_write(lu: LogicalUnit, offset: int, length: int, fua: bool, data: memoryview) -> bytes:
    check_data_out(data, 2 * length)
    found = bytearray(length)
    lu.device.read_into(memoryview(found), offset)
    if found != data[:length]:
        raise miscompare(0, found, data[:length])
    stay()  # begun again after half of the write it would find what it has written itself
    lu.device.write(data[length:], offset, fua)
    return b""


def orwrite_16(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-3 5.6: the blocks become what they were, or-ed with the data-out."""
    flags, lba, blocks = cdb_16(cdb)
    check_range(lu, lba, blocks)
    if not blocks:
        return DONE
    offset, length = lba << lu.shift, blocks << lu.shift
    fua = bool(flags & FUA) and lu.volatile
    run = partial(_run_orwrite, lu, offset, length, fua)
    return Job(run, length, 2 * length, writes=True, exclusive=(offset, length))


def _run_orwrite(lu: LogicalUnit, offset: int, length: int, fua: bool, data: memoryview) -> bytes:
    check_data_out(data, length)
    for start, size in pieces(length):
        found = bytearray(size)
        lu.device.read_into(memoryview(found), offset + start)
        both = int.from_bytes(found, "little") | int.from_bytes(data[start : start + size], "little")
        lu.device.write(memoryview(both.to_bytes(size, "little")), offset + start)
    if fua:
        lu.device.flush()
    return b""


def write_atomic_16(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-4 5.48: all of it or nothing, also when the power fails.

    Only memory can promise that here: it keeps no half of a write. A disk behind a page cache tears what is longer than
    a sector of its own, and hosts leave out their own protection where they are told of atomic writes.
    """
    _flags, lba, blocks = _write_atomic(cdb)
    check_end(lu, lba, blocks)
    if blocks > lu.max_atomic_blocks:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=12)
    if not blocks:
        return DONE
    offset, length = lba << lu.shift, blocks << lu.shift
    run = partial(_run_write_atomic, lu, offset, length)
    return Job(run, length, length, writes=True, exclusive=(offset, length))


def _run_write_atomic(lu: LogicalUnit, offset: int, length: int, data: memoryview) -> bytes:
    check_data_out(data, length)
    lu.device.write(data, offset)
    return b""
