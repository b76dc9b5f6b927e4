"""Parameter lists of EXTENDED COPY (SPC-4 6.3, 6.4): bytes in, descriptors out, or the ScsiError that refuses them.
And the limits of all third-party copies, which VPD page 8Fh tells.

What is wrong with the list as such is found here, before anything is copied, and is ILLEGAL REQUEST; what a segment
asks for and cannot be done is COPY ABORTED and found when the segment's turn comes.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from iscsid.errors import ScsiError
from iscsid.scsi.const import DIRECT_ACCESS_BLOCK_DEVICE, Association
from iscsid.scsi.copy_state import Designation
from iscsid.scsi.sense import Reason

IDENTIFICATION_CSCD = 0xE4
BLOCK_TO_BLOCK = 0x02
CSCD_SIZE = 32
SEGMENT_SIZE = 28
THIS_UNIT = 0xFFFF  # CSCD descriptor ID of the unit that was asked (SPC-4 6.4.4)

MAX_CSCDS = 16
MAX_SEGMENTS = 16
MAX_DESCRIPTORS_LENGTH = MAX_CSCDS * CSCD_SIZE + MAX_SEGMENTS * SEGMENT_SIZE
MAX_SEGMENT_LENGTH = 256 << 20  # bytes: what 65535 blocks of 4 KiB need; all segments together end within seconds

ACCESS_UPON_REFERENCE, BLOCK_ZERO = 0x00010000, 0xFFFF0001  # ROD types (SPC-4 table 113); ``copy_token`` says why these
MAX_RANGES = 15  # as many as fit into a token
MAX_TRANSFER = 256 << 20  # bytes of one WRITE USING TOKEN, which is answered when it is over
OPTIMAL_TRANSFER = 64 << 20
DEFAULT_TIMEOUT, MAX_TIMEOUT = 60, 600  # seconds that a token lives

# LIST IDENTIFIER, STR LIST ID USAGE PRIORITY, CSCD and SEGMENT DESCRIPTOR LIST LENGTH, INLINE DATA LENGTH
_LID1 = struct.Struct(">BBH4xII")
# PARAMETER LIST FORMAT, as above, HEADER CSCD DESCRIPTOR LIST LENGTH, IMMED G_SENSE, HEADER CSCD DESCRIPTOR TYPE CODE,
# LIST IDENTIFIER, and the three lengths
_LID4 = struct.Struct(">BBH11xBB3xI18xHHH")
LID1_HEADER, LID4_HEADER = _LID1.size, _LID4.size
_FORMAT_LID4, _HEADER_CSCD_LENGTH, _HEADER_CSCD_TYPE = 0x01, 0x20, 0xFF
_G_SENSE = 0x02
_USAGE_SHIFT, _USAGE_RESERVED, _USAGE_NONE = 3, 0b01, 0b11

# type code, PERIPHERAL DEVICE TYPE, code set, association and designator type, DESIGNATOR LENGTH, DESIGNATOR, PAD and
# DISK BLOCK LENGTH. LU ID TYPE is for other type codes, and NUL obsolete (SPC-4 6.4.5.1, 6.4.5.2).
_CSCD = struct.Struct(">BB2xBBxB20sI")
_DEVICE_TYPE = 0x1F
_MAX_DESIGNATOR = 20
# type code, DC CAT, length, SOURCE and DESTINATION CSCD DESCRIPTOR ID, blocks, SOURCE and DESTINATION LBA
_SEGMENT = struct.Struct(">BBHHHxxHQQ")
_DC = 0x02


class Cscd(NamedTuple):
    """A copy source or destination. ``block_length`` 0: not told."""

    designation: Designation
    device_type: int
    block_length: int


class Segment(NamedTuple):
    """Copy ``blocks`` of the source's size, or the destination's where ``by_destination``."""

    source: int
    destination: int
    by_destination: bool
    blocks: int
    source_lba: int
    destination_lba: int


class CopyList(NamedTuple):
    """A parameter list. ``remembered``: RECEIVE COPY RESULTS may ask for the operation by ``list_identifier``."""

    list_identifier: int
    remembered: bool
    cscds: tuple[Cscd, ...]
    segments: tuple[Segment, ...]


def _invalid(field: int, bit: int | None = None) -> ScsiError:
    return ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=field, bit=bit, in_data=True)


def parse_lid1(data: memoryview) -> CopyList:
    """EXTENDED COPY(LID1), SPC-4 6.4.1."""
    if len(data) < LID1_HEADER:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    list_identifier, flags, cscds, segments, inline = _LID1.unpack_from(data)
    remembered = _usage(flags, list_identifier, 0)
    return CopyList(list_identifier, remembered, *_descriptors(data, LID1_HEADER, cscds, segments, inline, (2, 8, 12)))


def parse_lid4(data: memoryview) -> CopyList:
    """EXTENDED COPY(LID4), SPC-4 6.3.1. IMMED may be ignored: what is answered later has been done, not only begun."""
    if len(data) < LID4_HEADER:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    form, flags, header_length, more, header_type, list_identifier, cscds, segments, inline = _LID4.unpack_from(data)
    if form != _FORMAT_LID4:
        raise _invalid(0)
    if header_length != _HEADER_CSCD_LENGTH:
        raise _invalid(2)
    if more & _G_SENSE:
        raise _invalid(15, 1)  # sense data with GOOD is optional
    if header_type != _HEADER_CSCD_TYPE:
        raise _invalid(16)
    remembered = _usage(flags, list_identifier, 20)
    return CopyList(
        list_identifier, remembered, *_descriptors(data, LID4_HEADER, cscds, segments, inline, (42, 44, 46))
    )


def _usage(flags: int, list_identifier: int, field: int) -> bool:
    """LIST ID USAGE (SPC-4 table 127): whether the operation is remembered."""
    usage = flags >> _USAGE_SHIFT & 0b11
    if usage == _USAGE_RESERVED:
        raise _invalid(1, 4)
    if usage == _USAGE_NONE and list_identifier:
        raise _invalid(field)
    return usage != _USAGE_NONE


def _descriptors(
    data: memoryview, start: int, cscds: int, segments: int, inline: int, fields: tuple[int, int, int]
) -> tuple[tuple[Cscd, ...], tuple[Segment, ...]]:
    """Parse both lists of descriptors; ``fields`` is where their lengths stand. Bytes behind them count for nothing."""
    if inline:
        raise ScsiError(Reason.INLINE_DATA_LENGTH_EXCEEDED, field=fields[2], in_data=True)
    if cscds + segments > min(len(data) - start, MAX_DESCRIPTORS_LENGTH):
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    if cscds % CSCD_SIZE:
        raise _invalid(fields[0])
    if cscds // CSCD_SIZE > MAX_CSCDS:
        raise ScsiError(Reason.TOO_MANY_TARGET_DESCRIPTORS, field=fields[0], in_data=True)
    middle = start + cscds
    return (
        tuple(_cscd(data, at) for at in range(start, middle, CSCD_SIZE)),
        _segments(data, middle, middle + segments, fields[1]),
    )


def _cscd(data: memoryview, at: int) -> Cscd:
    kind, flags, code_set, designator_type, length, designator, parameters = _CSCD.unpack_from(data, at)
    if kind != IDENTIFICATION_CSCD:
        raise ScsiError(Reason.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE, field=at, in_data=True)
    if designator_type >> 4 & 0b11 != Association.LOGICAL_UNIT:
        raise _invalid(at + 5, 5)
    if not 0 < length <= _MAX_DESIGNATOR:
        raise _invalid(at + 7)
    designation = (code_set & 0x0F, designator_type & 0x0F, designator[:length])
    return Cscd(designation, flags & _DEVICE_TYPE, parameters & 0xFFFFFF)


def pack_cscd(designation: Designation, block_length: int) -> bytes:
    """Return the CSCD descriptor of a disk."""
    code_set, kind, designator = designation
    return _CSCD.pack(
        IDENTIFICATION_CSCD, DIRECT_ACCESS_BLOCK_DEVICE, code_set, kind, len(designator), designator, block_length
    )


def _segments(data: memoryview, at: int, end: int, length_field: int) -> tuple[Segment, ...]:
    found: list[Segment] = []
    while at < end:
        if len(found) == MAX_SEGMENTS:
            raise ScsiError(Reason.TOO_MANY_SEGMENT_DESCRIPTORS, field=length_field, in_data=True)
        if data[at] != BLOCK_TO_BLOCK:
            raise ScsiError(Reason.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE, field=at, in_data=True)
        if end - at < SEGMENT_SIZE:
            raise _invalid(length_field)
        _kind, flags, length, source, destination, blocks, source_lba, destination_lba = _SEGMENT.unpack_from(data, at)
        if length != SEGMENT_SIZE - 4:
            raise _invalid(at + 2)
        found.append(Segment(source, destination, bool(flags & _DC), blocks, source_lba, destination_lba))
        at += SEGMENT_SIZE
    return tuple(found)
