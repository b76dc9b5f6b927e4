"""Commands that care about where the data is: WRITE AND VERIFY, PRE-FETCH, READ DEFECT DATA."""

from __future__ import annotations

import struct
from functools import partial
from typing import TYPE_CHECKING

from iscsid.block.device import Support
from iscsid.errors import ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.plan import DONE, Job, Plan, Reply
from iscsid.scsi.rw import CHUNK, cdb_10, cdb_12, cdb_16, check_end, check_range, miscompare, pieces
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

BYTCHK = 0x02  # byte 1 of WRITE AND VERIFY: compare; 10b and 11b of the field are reserved (SBC-3 5.38)
IMMED = 0x02  # byte 1 of PRE-FETCH (SBC-3 5.7)
MAX_PREFETCH = 32 << 20  # bytes that one PRE-FETCH brings into the cache: others need it, too


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


# -- PRE-FETCH (SBC-3 5.7, 5.8) --------------------------------------------------------------------------------------

_IN_CACHE = Reply(b"", int(Status.CONDITION_MET))


def pre_fetch_10(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _pre_fetch(lu, *cdb_10(cdb))


def pre_fetch_16(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _pre_fetch(lu, *cdb_16(cdb))


def _pre_fetch(lu: LogicalUnit, flags: int, lba: int, blocks: int) -> Plan:
    """CONDITION MET says that all of it fits into the cache, GOOD that it does not; 0 blocks are all up to the end."""
    check_end(lu, lba, blocks)
    offset, length = lba << lu.shift, (blocks or lu.blocks - lba) << lu.shift
    if lu.device.inline or not length:
        return _IN_CACHE  # it is in memory anyway
    if lu.device.can.prefetch is Support.NONE:
        return DONE  # there is no cache
    fits = length <= MAX_PREFETCH
    run = partial(_run_pre_fetch, lu, bool(flags & IMMED), offset, min(length, MAX_PREFETCH))
    return Job(run, status=int(Status.CONDITION_MET if fits else Status.GOOD))


def _run_pre_fetch(lu: LogicalUnit, immediate: bool, offset: int, length: int, _data: memoryview) -> bytes:
    """Have the device begin; without IMMED wait until it is all there, which reading it does."""
    lu.device.prefetch(offset, length)
    if not immediate:
        scratch = memoryview(bytearray(min(CHUNK, length)))
        for start, size in pieces(length):
            lu.device.read_into(scratch[:size], offset + start)
    return b""


# -- READ DEFECT DATA (SBC-3 5.18, 5.19) -----------------------------------------------------------------------------

_LISTS, _LIST_FORMAT = 0x18, 0x07  # REQ_PLIST and REQ_GLIST, which are PLISTV and GLISTV in the answer; the format
_RESERVED_FORMAT = 0b111


def read_defect_data_10(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _no_defects(cdb[2], 2, 2, int.from_bytes(cdb[7:9], "big"))


def read_defect_data_12(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _no_defects(cdb[1], 1, 6, int.from_bytes(cdb[6:10], "big"))


def _no_defects(flags: int, field: int, lengths: int, allocation_length: int) -> Plan:
    """A header and no descriptor, which is the same in every format: a medium below hides its own defects, or has none.

    ``lengths`` are the bytes of the header behind its flags, all 0: DEFECT LIST LENGTH and, in the long one, GENERATION
    CODE, of which 0 says that it is not supported.
    """
    if flags & _LIST_FORMAT == _RESERVED_FORMAT:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=field, bit=2)
    return Reply(struct.pack(f">xB{lengths}x", flags & (_LISTS | _LIST_FORMAT))[:allocation_length])
