"""Commands that touch the medium: READ, WRITE, VERIFY, WRITE SAME, UNMAP, SYNCHRONIZE CACHE.

A handler decodes its CDB, checks the range and returns a plan; it touches no medium itself. The reserved bits were
checked before (``lu.plan``), so RDPROTECT, WRPROTECT, VRPROTECT, ANCHOR and GROUP NUMBER are 0 here: none is supported.

READ and WRITE are the hot path: one unpack, two comparisons, one object.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from iscsid.errors import ScsiError
from iscsid.scsi.plan import DONE, Job, Plan, Read, Write
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

FUA = 0x08  # byte 1 of READ and WRITE (SBC-3 5.8)
UNMAP_BIT, NDOB = 0x08, 0x01  # byte 1 of WRITE SAME (SBC-3 5.50, 5.51)
BYTCHK_SHIFT, BYTCHK_MASK = 1, 0x03  # byte 1 of VERIFY (SBC-3 5.29)

# flags, LOGICAL BLOCK ADDRESS, number of blocks
cdb_10 = struct.Struct(">xBIxH").unpack_from
cdb_12 = struct.Struct(">xBII").unpack_from
cdb_16 = struct.Struct(">xBQI").unpack_from

CHUNK = 1 << 20  # what VERIFY and WRITE SAME move at once


def test_unit_ready(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.47. What is neither ejected nor stopped (``removable``) is ready; a device that fails later says so in
    its answers to I/O."""
    return DONE


# -- READ and WRITE (SBC-3 5.7 - 5.10, 5.33 - 5.36) ------------------------------------------------------------------


def read_6(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    lba = int.from_bytes(cdb[1:4], "big")
    return _read(lu, 0, lba, cdb[4] or 256)


def read_10(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    flags, lba, blocks = cdb_10(cdb)
    if lba + blocks > lu.blocks or not 0 < blocks <= lu.max_blocks or flags & FUA:
        return _read(lu, flags, lba, blocks)
    shift = lu.shift
    return Read(lba << shift, blocks << shift)


def read_12(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _read(lu, *cdb_12(cdb))


def read_16(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    flags, lba, blocks = cdb_16(cdb)
    if lba + blocks > lu.blocks or not 0 < blocks <= lu.max_blocks or flags & FUA:
        return _read(lu, flags, lba, blocks)
    shift = lu.shift
    return Read(lba << shift, blocks << shift)


def _read(lu: LogicalUnit, flags: int, lba: int, blocks: int) -> Plan:
    """Plan any READ. DPO is a hint about caching that nothing here could use better than the page cache does."""
    check_range(lu, lba, blocks)
    if not blocks:
        return DONE
    offset, length = lba << lu.shift, blocks << lu.shift
    if flags & FUA and lu.volatile:
        # What the cache holds of the range goes to the medium first, then both agree (SBC-3 5.8).
        return Job(partial(_run_flush, lu), writes=True, then=Read(offset, length))
    return Read(offset, length)


def write_6(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    lba = int.from_bytes(cdb[1:4], "big")
    return _write(lu, 0, lba, cdb[4] or 256)


def write_10(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    flags, lba, blocks = cdb_10(cdb)
    if lba + blocks > lu.blocks or not 0 < blocks <= lu.max_blocks or flags & FUA:
        return _write(lu, flags, lba, blocks)
    shift = lu.shift
    return Write(lba << shift, blocks << shift, False)


def write_12(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _write(lu, *cdb_12(cdb))


def write_16(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    flags, lba, blocks = cdb_16(cdb)
    if lba + blocks > lu.blocks or not 0 < blocks <= lu.max_blocks or flags & FUA:
        return _write(lu, flags, lba, blocks)
    shift = lu.shift
    return Write(lba << shift, blocks << shift, False)


def _write(lu: LogicalUnit, flags: int, lba: int, blocks: int) -> Plan:
    """Plan any WRITE. Where nothing is volatile every write is a forced one, and FUA asks for nothing more."""
    check_range(lu, lba, blocks)
    if not blocks:
        return DONE
    return Write(lba << lu.shift, blocks << lu.shift, bool(flags & FUA) and lu.volatile)


def check_range(lu: LogicalUnit, lba: int, blocks: int) -> None:
    """Refuse what lies beyond the last block (also with 0 blocks), and more than MAXIMUM TRANSFER LENGTH at once."""
    check_end(lu, lba, blocks)
    if blocks > lu.max_blocks:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB)  # SBC-3 6.6.4, MAXIMUM TRANSFER LENGTH


def check_end(lu: LogicalUnit, lba: int, blocks: int) -> None:
    """Refuse what lies beyond the last block."""
    if lba + blocks > lu.blocks:
        raise ScsiError(Reason.LBA_OUT_OF_RANGE)


# -- VERIFY (SBC-3 5.29 - 5.31) --------------------------------------------------------------------------------------


def verify_10(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _verify(lu, *cdb_10(cdb))


def verify_12(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _verify(lu, *cdb_12(cdb))


def verify_16(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    return _verify(lu, *cdb_16(cdb))


def _verify(lu: LogicalUnit, flags: int, lba: int, blocks: int) -> Plan:
    check = flags >> BYTCHK_SHIFT & BYTCHK_MASK
    if check == 0b10:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, bit=2)  # reserved
    check_range(lu, lba, blocks)
    if not blocks:
        return DONE
    offset, length = lba << lu.shift, blocks << lu.shift
    parameter_length = (0, length, 0, lu.block_size)[check]
    return Job(partial(_run_verify, lu, check, offset, length), parameter_length, length)


def _run_verify(lu: LogicalUnit, check: int, offset: int, length: int, data: memoryview) -> bytes:
    """Read the range from the medium; compare it with ``data`` (BYTCHK 01b) or each block with it (11b)."""
    device = lu.device
    check_data_out(data, (0, length, 0, lu.block_size)[check])
    if lu.volatile:
        device.flush()  # SBC-3 5.29: cached blocks are written before they are verified
    expected = bytes(data) * (min(CHUNK, length) // lu.block_size) if check == 0b11 else b""
    for start, size in pieces(length):
        found = bytearray(size)
        device.read_into(memoryview(found), offset + start)
        if check == 0b01 and found != data[start : start + size]:
            raise miscompare(start, found, data[start : start + size])
        if check == 0b11 and found != memoryview(expected)[:size]:
            raise miscompare(start, found, memoryview(expected)[:size])
    return b""


def miscompare(start: int, found: bytearray | memoryview, expected: memoryview) -> ScsiError:
    """MISCOMPARE; INFORMATION is the offset of the first byte that differs, as SBC-3 5.2 has it for compares."""
    low, high = 0, len(found)
    while high - low > 1:  # halve, so that each step is one memcmp
        middle = (low + high) // 2
        if found[low:middle] == expected[low:middle]:
            low = middle
        else:
            high = middle
    return ScsiError(Reason.MISCOMPARE_DURING_VERIFY, information=start + low)


def check_data_out(data: memoryview, length: int) -> None:
    """Refuse less data than the CDB tells of: an initiator may have announced less to the transport."""
    if len(data) < length:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB)


def pieces(length: int) -> Iterator[tuple[int, int]]:
    """Split ``length`` bytes into (start, size), each of at most CHUNK."""
    for start in range(0, length, CHUNK):
        yield start, min(CHUNK, length - start)


# -- SYNCHRONIZE CACHE (SBC-3 5.21, 5.22) ----------------------------------------------------------------------------


def synchronize_cache_10(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    _flags, lba, blocks = cdb_10(cdb)
    return _synchronize_cache(lu, lba, blocks)


def synchronize_cache_16(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    _flags, lba, blocks = cdb_16(cdb)
    return _synchronize_cache(lu, lba, blocks)


def _synchronize_cache(lu: LogicalUnit, lba: int, blocks: int) -> Plan:
    """Flush everything: more than the range that was asked for, which SBC-3 5.21 allows.

    IMMED is answered after the flush as well: GOOD that comes later and promises more harms nobody, while an early one
    could not tell of a failure.
    """
    check_end(lu, lba, blocks)
    return _flush(lu)


def _flush(lu: LogicalUnit) -> Plan:
    return Job(partial(_run_flush, lu), writes=True) if lu.volatile else DONE


def _run_flush(lu: LogicalUnit, _data: memoryview) -> bytes:
    lu.device.flush()
    return b""


# -- WRITE SAME (SBC-3 5.50, 5.51) -----------------------------------------------------------------------------------


def write_same_10(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    flags, lba, blocks = cdb_10(cdb)
    return _write_same(lu, flags, lba, blocks, lu.block_size, 7)


def write_same_16(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    flags, lba, blocks = cdb_16(cdb)
    return _write_same(lu, flags, lba, blocks, 0 if flags & NDOB else lu.block_size, 10)


def _write_same(lu: LogicalUnit, flags: int, lba: int, blocks: int, parameter_length: int, field: int) -> Plan:
    """0 blocks are refused, as WSNZ tells (SBC-3 6.6.4).

    Without WSNZ they would mean all blocks up to the end, which nobody sends on purpose and which no disk of size fits
    into MAXIMUM WRITE SAME LENGTH.
    """
    check_end(lu, lba, blocks)
    if not 0 < blocks <= lu.max_write_same_blocks:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=field)
    offset, length = lba << lu.shift, blocks << lu.shift
    run = partial(_run_write_same, lu, offset, length, bool(flags & UNMAP_BIT), parameter_length)
    return Job(run, parameter_length, length, writes=True, exact=True)


def _run_write_same(
    lu: LogicalUnit, offset: int, length: int, may_unmap: bool, parameter_length: int, data: memoryview
) -> bytes:
    """Write ``data``, one block or none for zeros, all over the range.

    Only zeros may be unmapped: a block that was unmapped must read as what WRITE SAME carried (SBC-3 4.7.3.5), and the
    guard makes sure that zeros read as zeros whatever the device does.
    """
    check_data_out(data, parameter_length)
    block = bytes(data)
    if not any(block):
        lu.device.write_zeroes(offset, length, may_unmap=may_unmap)
        return b""
    pattern = memoryview(block * (min(CHUNK, length) // lu.block_size))
    for start, size in pieces(length):
        lu.device.write(pattern[:size], offset + start)
    return b""


# -- UNMAP (SBC-3 5.28) ----------------------------------------------------------------------------------------------

_UNMAP_HEADER = struct.Struct(">HH4x")  # UNMAP DATA LENGTH, UNMAP BLOCK DESCRIPTOR DATA LENGTH
_UNMAP_DESCRIPTOR = struct.Struct(">QI4x")  # UNMAP LOGICAL BLOCK ADDRESS, NUMBER OF LOGICAL BLOCKS


def unmap(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    parameter_length = int.from_bytes(cdb[7:9], "big")
    if not parameter_length:
        return DONE  # SBC-3 5.28.1: not an error
    if parameter_length < _UNMAP_HEADER.size:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    # How much will be unmapped is known only when the list is here, so the cost is what the limits allow.
    cost = lu.max_unmap_blocks << lu.shift
    return Job(partial(_run_unmap, lu, parameter_length), parameter_length, cost, writes=True)


def _run_unmap(lu: LogicalUnit, parameter_length: int, data: memoryview) -> bytes:
    if len(data) < parameter_length:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    for lba, blocks in parse_unmap(lu, data):
        lu.device.discard(lba << lu.shift, blocks << lu.shift)
    return b""


def parse_unmap(lu: LogicalUnit, data: memoryview) -> list[tuple[int, int]]:
    """Return (LBA, blocks) of each descriptor that unmaps something; nothing is unmapped unless all are right.

    An incomplete last descriptor is ignored, and so is what lies beyond the list (SBC-3 5.28.2).
    """
    _length, descriptors_length = _UNMAP_HEADER.unpack_from(data)
    room = min(descriptors_length, len(data) - _UNMAP_HEADER.size)
    count = room // _UNMAP_DESCRIPTOR.size
    if count > lu.max_unmap_descriptors:
        raise ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=2, in_data=True)
    end = _UNMAP_HEADER.size + count * _UNMAP_DESCRIPTOR.size
    ranges = list(_UNMAP_DESCRIPTOR.iter_unpack(data[_UNMAP_HEADER.size : end]))
    for lba, blocks in ranges:
        check_end(lu, lba, blocks)
    if sum(blocks for _lba, blocks in ranges) > lu.max_unmap_blocks:
        raise ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=2, in_data=True)
    return [(lba, blocks) for lba, blocks in ranges if blocks]
