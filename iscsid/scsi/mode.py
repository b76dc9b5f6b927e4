"""MODE SENSE(6) and (10): a table of pages, each a function of the unit.

No page can be changed or saved, so current and default values are the same and the changeable mask is zero.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from iscsid.errors import ScsiError
from iscsid.scsi.plan import Plan, Reply
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

DBD, LLBAA = 0x08, 0x10  # byte 1 of MODE SENSE: no block descriptors; long block descriptors are acceptable
CHANGEABLE, SAVED = 1, 3  # PC, page control (SPC-4 6.11.1)
ALL_PAGES = 0x3F
ALL_SUBPAGES = 0xFF
_PAGE_MASK = 0x3F
_WP, _DPOFUA = 0x80, 0x10  # DEVICE-SPECIFIC PARAMETER (SBC-3 6.5.1)

_HEADER_6 = struct.Struct(">BxBB")  # MODE DATA LENGTH, DEVICE-SPECIFIC PARAMETER, BLOCK DESCRIPTOR LENGTH
_HEADER_10 = struct.Struct(">HxBBxH")  # the same, with LONGLBA before the last (SPC-4 7.5.5)
_SHORT_DESCRIPTOR = struct.Struct(">II")  # SBC-3 6.5.2.2: NUMBER OF LOGICAL BLOCKS; reserved, LOGICAL BLOCK LENGTH
_LONG_DESCRIPTOR = struct.Struct(">Q4xI")  # SBC-3 6.5.2.3
_LONGLBA = 0x01


def mode_sense_6(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.11."""
    pages = _pages(lu, cdb)
    descriptor = b"" if cdb[1] & DBD else _short_descriptor(lu)
    length = _HEADER_6.size - 1 + len(descriptor) + len(pages)
    header = _HEADER_6.pack(length, _device_specific(lu), len(descriptor))
    return Reply((header + descriptor + pages)[: cdb[4]])


def mode_sense_10(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.12."""
    pages = _pages(lu, cdb)
    long = bool(cdb[1] & LLBAA) and not cdb[1] & DBD
    if cdb[1] & DBD:
        descriptor = b""
    elif long:
        descriptor = _LONG_DESCRIPTOR.pack(lu.blocks, lu.block_size)
    else:
        descriptor = _short_descriptor(lu)
    length = _HEADER_10.size - 2 + len(descriptor) + len(pages)
    header = _HEADER_10.pack(length, _device_specific(lu), _LONGLBA if long else 0, len(descriptor))
    return Reply((header + descriptor + pages)[: int.from_bytes(cdb[7:9], "big")])


def _short_descriptor(lu: LogicalUnit) -> bytes:
    """More blocks than 32 bits can tell are told as FFFFFFFFh (SBC-3 6.5.2.2)."""
    return _SHORT_DESCRIPTOR.pack(min(lu.blocks, 0xFFFFFFFF), lu.block_size)


def _device_specific(lu: LogicalUnit) -> int:
    """DPO and FUA are always taken; WP tells of a device that may not be written."""
    return _DPOFUA | (_WP if lu.readonly else 0)


def _pages(lu: LogicalUnit, cdb: bytes) -> bytes:
    """Return the pages that PAGE CODE and SUBPAGE CODE ask for (SPC-4 table 168), as PAGE CONTROL asks for them."""
    control, page, subpage = cdb[2] >> 6, cdb[2] & _PAGE_MASK, cdb[3]
    if control == SAVED:
        raise ScsiError(Reason.SAVING_PARAMETERS_NOT_SUPPORTED)
    if page != ALL_PAGES and page not in PAGES:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2, bit=5)
    if subpage not in (0, ALL_SUBPAGES):
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=3)
    wanted = sorted(PAGES) if page == ALL_PAGES else (page,)
    return b"".join(_page(lu, code, control) for code in wanted)


def _page(lu: LogicalUnit, code: int, control: int) -> bytes:
    """Return one page with its header; PS is 0, for nothing can be saved (SPC-4 7.5.8)."""
    payload = PAGES[code](lu)
    return bytes((code, len(payload))) + (bytes(len(payload)) if control == CHANGEABLE else payload)


def read_write_error_recovery(lu: LogicalUnit) -> bytes:
    """Page 01h (SBC-3 6.5.8): no reassignment, no recovery of ours; the medium below does its own."""
    return bytes(10)


def disconnect_reconnect(lu: LogicalUnit) -> bytes:
    """Page 02h (SPC-4 7.5.9): no limits beyond those that login negotiated."""
    return bytes(14)


_WCE = 0x04


def caching(lu: LogicalUnit) -> bytes:
    """Page 08h (SBC-3 6.5.5). WCE is the truth: 1 exactly when a completed write may be lost without a flush."""
    return struct.pack(">B17x", _WCE if lu.volatile else 0)


_TST_PER_NEXUS = 0b001 << 5  # one task set for each I_T nexus, which is what keeps task sets inside one worker
_UNRESTRICTED_REORDERING = 0x1 << 4  # QUEUE ALGORITHM MODIFIER: a slow read does not hold back the next


def control(lu: LogicalUnit) -> bytes:
    """Page 0Ah (SPC-4 7.5.8): fixed format sense data, QERR 00b, TAS 0, SWP 0."""
    return struct.pack(">BB8x", _TST_PER_NEXUS, _UNRESTRICTED_REORDERING)


_DEXCPT = 0x08


def informational_exceptions(lu: LogicalUnit) -> bytes:
    """Page 1Ch (SPC-4 7.5.11): no failure prediction, so it is disabled."""
    return struct.pack(">B9x", _DEXCPT)


PAGES: dict[int, Callable[[LogicalUnit], bytes]] = {
    0x01: read_write_error_recovery,
    0x02: disconnect_reconnect,
    0x08: caching,
    0x0A: control,
    0x1C: informational_exceptions,
}
