"""The commands that a disk is used by (SPC-4, SBC-3): CDBs out, parameter data in. Pure functions.

Every parser takes what a target sent, however short, and raises InitiatorError for what it cannot read.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from iscsid.errors import InitiatorError
from iscsid.scsi.const import Opcode, PersistentReserveIn, PersistentReserveOut, ServiceAction
from iscsid.scsi.reservation import Type as ReservationType
from iscsid.wire import lun as lun_field

Buffer = bytes | bytearray | memoryview

FUA: Final = 0x08
ALLOCATION: Final = 0xFFFF  # bytes asked for where the length has two bytes
LONG_ALLOCATION: Final = 1 << 16
_UNMAP_BIT: Final = 0x08

_RW_16 = struct.Struct(">BBQIBB")  # operation code, flags, LBA, TRANSFER LENGTH, group number, control
_COMPARE_AND_WRITE = struct.Struct(">BBQ3xBBB")
_SERVICE_IN_16 = struct.Struct(">BBQIBB")
_UNMAP_CDB = struct.Struct(">BB5xHB6x")
_UNMAP_HEADER, _UNMAP_DESCRIPTOR = struct.Struct(">HH4x"), struct.Struct(">QI4x")
_PR_IN, _PR_OUT = struct.Struct(">BB5xHB6x"), struct.Struct(">BBB2xIB6x")
_PR_OUT_DATA = struct.Struct(">QQ4xB3x")
_APTPL: Final = 0x01


def read_16(lba: int, blocks: int, flags: int = 0) -> bytes:
    return _RW_16.pack(0x88, flags, lba, blocks, 0, 0)


def write_16(lba: int, blocks: int, flags: int = 0) -> bytes:
    return _RW_16.pack(0x8A, flags, lba, blocks, 0, 0)


def synchronize_cache_16(lba: int = 0, blocks: int = 0) -> bytes:
    """SBC-3 5.24; 0 blocks: up to the last one."""
    return _RW_16.pack(Opcode.SYNCHRONIZE_CACHE_16, 0, lba, blocks, 0, 0)


def synchronize_cache_10() -> bytes:
    """SBC-3 5.23, of everything; older targets have this one only."""
    return bytes((Opcode.SYNCHRONIZE_CACHE_10,)).ljust(16, b"\0")


def write_same_16(lba: int, blocks: int, *, unmap: bool) -> bytes:
    """SBC-3 5.50: the one block of data-out to all ``blocks``."""
    return _RW_16.pack(Opcode.WRITE_SAME_16, _UNMAP_BIT if unmap else 0, lba, blocks, 0, 0)


def compare_and_write(lba: int, blocks: int, flags: int = 0) -> bytes:
    """SBC-3 5.2; the data-out is what must be there, then what is written."""
    return _COMPARE_AND_WRITE.pack(Opcode.COMPARE_AND_WRITE, flags, lba, blocks, 0, 0)


def unmap(extents: Sequence[tuple[int, int]]) -> tuple[bytes, bytes]:
    """SBC-3 5.28: CDB and parameter list for extents of (LBA, blocks)."""
    descriptors = b"".join(_UNMAP_DESCRIPTOR.pack(lba, blocks) for lba, blocks in extents)
    data = _UNMAP_HEADER.pack(len(descriptors) + 6, len(descriptors)) + descriptors
    return _UNMAP_CDB.pack(Opcode.UNMAP, 0, len(data), 0), data


def test_unit_ready() -> bytes:
    return bytes(16)


# -- INQUIRY (SPC-4 6.6) ---------------------------------------------------------------------------------------------


class Inquiry(NamedTuple):
    """Standard INQUIRY data. ``present``: there is a unit at this LUN."""

    device_type: int
    present: bool
    removable: bool
    vendor: str
    product: str
    revision: str
    data: bytes


def inquiry(page: int | None = None) -> bytes:
    """Standard data, or a vital product data page."""
    return struct.pack(">BBBHB10x", Opcode.INQUIRY, page is not None, page or 0, ALLOCATION, 0)


def parse_inquiry(data: Buffer) -> Inquiry:
    content = _at_least(data, 36, "INQUIRY data")
    vendor, product, revision = (
        str(content[a:b], "ascii", "replace").strip(" \0") for a, b in ((8, 16), (16, 32), (32, 36))
    )
    return Inquiry(content[0] & 0x1F, content[0] >> 5 == 0, content[1] & 0x80 != 0, vendor, product, revision, content)


def parse_vpd(page: int, data: Buffer) -> bytes:
    """Return the page, head included, cut to its PAGE LENGTH."""
    content = _at_least(data, 4, f"VPD page {page:#04x}")
    if content[1] != page:
        raise InitiatorError(f"VPD page {content[1]:#04x} came where {page:#04x} was asked for")
    return content[: 4 + int.from_bytes(content[2:4], "big")]


class BlockLimits(NamedTuple):
    """VPD page B0h (SBC-3 6.5.3), in blocks; 0: the target tells no limit, or does not do it."""

    max_compare_and_write: int = 0
    granularity: int = 0
    max_transfer: int = 0
    optimal_transfer: int = 0
    max_unmap: int = 0
    max_unmap_descriptors: int = 0
    unmap_granularity: int = 0
    max_write_same: int = 0


def parse_block_limits(data: Buffer) -> BlockLimits:
    content = parse_vpd(0xB0, data).ljust(64, b"\0")
    caw, granularity, transfer, optimal, unmap_blocks, descriptors, unmap_granularity, write_same = struct.unpack_from(
        ">xBHII4xIII4xQ", content, 4
    )
    return BlockLimits(caw, granularity, transfer, optimal, unmap_blocks, descriptors, unmap_granularity, write_same)


# -- READ CAPACITY (SBC-3 5.16, 5.17) ----------------------------------------------------------------------------------


class Capacity(NamedTuple):
    """``blocks`` of ``block_size`` bytes; ``physical_block_size`` bytes; ``thin``: discarded blocks are let go of, and
    ``zeroes`` whether they read as zeros then."""

    blocks: int
    block_size: int
    physical_block_size: int
    thin: bool
    zeroes: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.blocks * self.block_size


def read_capacity_16() -> bytes:
    return _SERVICE_IN_16.pack(Opcode.SERVICE_ACTION_IN_16, ServiceAction.READ_CAPACITY_16, 0, 32, 0, 0)


def read_capacity_10() -> bytes:
    return bytes((Opcode.READ_CAPACITY_10,)).ljust(16, b"\0")


def parse_capacity_16(data: Buffer) -> Capacity:
    last, block_size, exponent, provisioning = struct.unpack_from(
        ">QIxBH", _at_least(data, 12, "READ CAPACITY(16) data").ljust(32, b"\0")
    )
    _check_block_size(block_size)
    return Capacity(
        last + 1, block_size, block_size << (exponent & 0x0F), provisioning & 0x8000 != 0, provisioning & 0x4000 != 0
    )


def parse_capacity_10(data: Buffer) -> Capacity:
    last, block_size = struct.unpack_from(">II", _at_least(data, 8, "READ CAPACITY(10) data"))
    _check_block_size(block_size)
    return Capacity(last + 1, block_size, block_size, False, False)


def _check_block_size(block_size: int) -> None:
    if not 0 < block_size <= 1 << 20:
        raise InitiatorError(f"a disk with blocks of {block_size} bytes")


# -- GET LBA STATUS (SBC-3 5.6) ----------------------------------------------------------------------------------------


class Provisioning(enum.Enum):
    """PROVISIONING STATUS (SBC-3 table 41)."""

    MAPPED = 0
    DEALLOCATED = 1
    ANCHORED = 2


class BlockStatus(NamedTuple):
    """A stretch of the disk, in bytes."""

    offset: int
    length: int
    status: Provisioning


def get_lba_status(lba: int) -> bytes:
    return _SERVICE_IN_16.pack(Opcode.SERVICE_ACTION_IN_16, ServiceAction.GET_LBA_STATUS, lba, LONG_ALLOCATION, 0, 0)


def parse_lba_status(data: Buffer) -> list[tuple[int, int, Provisioning]]:
    """Return (LBA, blocks, status) of each descriptor that came whole."""
    content = _at_least(data, 8, "GET LBA STATUS data")
    end = min(len(content), 4 + int.from_bytes(content[:4], "big"))
    return [
        (lba, blocks, Provisioning(status & 0x0F if status & 0x0F < 3 else 0))
        for lba, blocks, status in struct.iter_unpack(">QIB3x", content[8 : 8 + (end - 8) // 16 * 16])
    ]


# -- REPORT LUNS (SPC-4 6.33) ------------------------------------------------------------------------------------------


def report_luns() -> bytes:
    return struct.pack(">B5xIBB4x", Opcode.REPORT_LUNS, LONG_ALLOCATION, 0, 0)


def parse_luns(data: Buffer) -> list[int]:
    """Return the numbers of the units; those addressed in other ways than ``wire.lun`` knows are left out."""
    content = _at_least(data, 8, "REPORT LUNS data")
    end = min(len(content), 8 + int.from_bytes(content[:4], "big"))
    fields = (field for (field,) in struct.iter_unpack(">Q", content[8 : 8 + (end - 8) // 8 * 8]))
    return sorted(number for number in map(lun_field.decode, fields) if number is not None)


# -- PERSISTENT RESERVE IN and OUT (SPC-4 6.13, 6.14) ------------------------------------------------------------------


class Reservation(NamedTuple):
    """Who holds the unit: the key of the holder (0 for all registrants types) and the type."""

    key: int
    type: ReservationType


class Registrations(NamedTuple):
    """PRGENERATION and the registered keys."""

    generation: int
    keys: tuple[int, ...]


def persistent_reserve_in(action: PersistentReserveIn) -> bytes:
    return _PR_IN.pack(Opcode.PERSISTENT_RESERVE_IN, action, ALLOCATION, 0)


def parse_keys(data: Buffer) -> Registrations:
    generation, content = _reserve_in(data)
    return Registrations(
        generation, tuple(key for (key,) in struct.iter_unpack(">Q", content[: len(content) // 8 * 8]))
    )


def parse_reservation(data: Buffer) -> Reservation | None:
    _, content = _reserve_in(data)
    if not content:
        return None
    content = _at_least(content, 14, "READ RESERVATION data")
    try:
        kind = ReservationType(content[13] & 0x0F)
    except ValueError:
        raise InitiatorError(f"a reservation of the unknown type {content[13] & 0x0F:X}h") from None
    return Reservation(int.from_bytes(content[:8], "big"), kind)


def _reserve_in(data: Buffer) -> tuple[int, bytes]:
    content = _at_least(data, 8, "PERSISTENT RESERVE IN data")
    generation, length = struct.unpack_from(">II", content)
    return generation, content[8 : 8 + length]


def persistent_reserve_out(
    action: PersistentReserveOut,
    *,
    key: int = 0,
    service_action_key: int = 0,
    kind: ReservationType | None = None,
    aptpl: bool = False,
) -> tuple[bytes, bytes]:
    """Return CDB and parameter list."""
    data = _PR_OUT_DATA.pack(key, service_action_key, _APTPL if aptpl else 0)
    return _PR_OUT.pack(Opcode.PERSISTENT_RESERVE_OUT, action, 0 if kind is None else kind, len(data), 0), data


# -- helpers -----------------------------------------------------------------------------------------------------------


def pieces(offset: int, length: int, longest: int) -> Iterator[tuple[int, int]]:
    """Cut a range into pieces of at most ``longest``: (offset, length) of each."""
    end = offset + length
    while offset < end:
        step = min(longest, end - offset)
        yield offset, step
        offset += step


def _at_least(data: Buffer, length: int, what: str) -> bytes:
    if len(data) < length:
        raise InitiatorError(f"{what} of {len(data)} bytes is cut short")
    return bytes(data)
