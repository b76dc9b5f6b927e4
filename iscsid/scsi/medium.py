"""Commands that care about where the data is: WRITE AND VERIFY."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from iscsid.scsi.plan import DONE, Job, Plan
from iscsid.scsi.rw import cdb_10, cdb_12, cdb_16, check_range, miscompare, pieces

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

BYTCHK = 0x02  # byte 1 of WRITE AND VERIFY: compare; 10b and 11b of the field are reserved (SBC-3 5.38)


# -- WRITE AND VERIFY (SBC-3 5.38 - 5.40) ----------------------------------------------------------------------------


def write_and_verify_10(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _write_and_verify(lu, *cdb_10(cdb))


def write_and_verify_12(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _write_and_verify(lu, *cdb_12(cdb))


def write_and_verify_16(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _write_and_verify(lu, *cdb_16(cdb))


def _write_and_verify(lu: LogicalUnit, flags: int, lba: int, blocks: int) -> Plan:
    check_range(lu, lba, blocks)
    if not blocks:
        return DONE
    length = blocks << lu.shift
    run = partial(_run_write_and_verify, lu, bool(flags & BYTCHK), lba << lu.shift)
    return Job(run, length, 2 * length, writes=True)


def _run_write_and_verify(lu: LogicalUnit, compare: bool, offset: int, data: memoryview) -> bytes:
    """Write the whole blocks that there are, onto the medium, and read them back: with BYTCHK they must be the same."""
    whole = data[: len(data) - len(data) % lu.block_size]
    if not whole:
        return b""
    lu.device.write(whole, offset, lu.volatile)
    for start, size in pieces(len(whole)):
        found = bytearray(size)
        lu.device.read_into(memoryview(found), offset + start)
        if compare and found != whole[start : start + size]:
            raise miscompare(start, found, whole[start : start + size])
    return b""
