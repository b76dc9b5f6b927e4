"""Mode pages and MODE SENSE(6) and (10).

A page is constant but for a few bits, each a field of ``ModeState``: PAGES says which. MODE SENSE writes pages from a
state, MODE SELECT (``mode_select``) reads a state from pages, both by that table. One state counts for all I_T nexuses
of a unit; ``lu.mode_state`` holds it, and whoever keeps it for all workers puts a new one there.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from iscsid.errors import ScsiError
from iscsid.scsi.plan import Plan, Reply
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

DBD, LLBAA = 0x08, 0x10  # byte 1 of MODE SENSE: no block descriptors; long block descriptors are acceptable
CURRENT, CHANGEABLE, DEFAULT, SAVED = 0, 1, 2, 3  # PC, page control (SPC-4 6.11.1)
ALL_PAGES = 0x3F
ALL_SUBPAGES = 0xFF
_PAGE_MASK = 0x3F
_WP, _DPOFUA = 0x80, 0x10  # DEVICE-SPECIFIC PARAMETER (SBC-3 6.5.1)

HEADER_6 = struct.Struct(">BxBB")  # MODE DATA LENGTH, DEVICE-SPECIFIC PARAMETER, BLOCK DESCRIPTOR LENGTH
HEADER_10 = struct.Struct(">HxBBxH")  # the same, with LONGLBA before the last (SPC-4 7.5.5)
SHORT_DESCRIPTOR = struct.Struct(">II")  # SBC-3 6.5.2.2: NUMBER OF LOGICAL BLOCKS; reserved, LOGICAL BLOCK LENGTH
LONG_DESCRIPTOR = struct.Struct(">Q4xI")  # SBC-3 6.5.2.3
LONGLBA = 0x01


@dataclass(frozen=True, slots=True)
class ModeState:
    """What MODE SELECT can change of a logical unit.

    ``wce``: a completed write may still be in a volatile cache; without it every write is a forced one. ``swp``: the
    medium is write protected by software. ``d_sense``: sense data has descriptor format.
    """

    wce: bool = False
    swp: bool = False
    d_sense: bool = False

    def to_plain(self) -> dict[str, bool]:
        """Return the state as what JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> ModeState:
        """Return the state that ``to_plain`` gave; ValueError when it is none."""
        names = [field.name for field in dataclasses.fields(cls)]
        if plain.keys() != set(names) or not all(isinstance(value, bool) for value in plain.values()):
            raise ValueError(f"no mode state: {dict(plain)!r}")
        return cls(*(bool(plain[name]) for name in names))


class Field(NamedTuple):
    """A bit of a page: the field of ModeState that it shows, its byte in the payload, its mask."""

    name: str
    byte: int
    mask: int


@dataclass(frozen=True, slots=True)
class Page:
    """A mode page: its payload without the header is ``constant``, with 0 where there are ``fields``."""

    name: str
    clause: str
    constant: bytes
    fields: tuple[Field, ...] = ()

    def payload(self, state: ModeState) -> bytes:
        """Return the page as ``state`` makes it."""
        payload = bytearray(self.constant)
        for name, byte, mask in self.fields:
            if getattr(state, name):
                payload[byte] |= mask
        return bytes(payload)

    def changeable(self, volatile: bool) -> bytes:
        """Return the mask of what MODE SELECT may change; WCE only where the unit has a cache to switch."""
        mask = bytearray(len(self.constant))
        for field in self.fields:
            if volatile or field.name != "wce":
                mask[field.byte] |= field.mask
        return bytes(mask)


_TST_PER_NEXUS = 0b001 << 5  # one task set for each I_T nexus, which is what keeps task sets inside one worker
_UNRESTRICTED_REORDERING = 0x1 << 4  # QUEUE ALGORITHM MODIFIER: a slow read does not hold back the next
_DEXCPT = 0x08

PAGES: dict[int, Page] = {
    # No reassignment, no recovery of ours: the medium below does its own.
    0x01: Page("read-write error recovery", "SBC-3 6.5.8", bytes(10)),
    # No limits beyond those that login negotiated.
    0x02: Page("disconnect-reconnect", "SPC-4 7.5.10", bytes(14)),
    # WCE is the truth: 1 exactly when a completed write may be lost without a flush.
    0x08: Page("caching", "SBC-3 6.5.5", bytes(18), (Field("wce", 0, 0x04),)),
    # QERR 00b, TAS 0, UA_INTLCK_CTRL 00b.
    0x0A: Page(
        "control",
        "SPC-4 7.5.8",
        bytes((_TST_PER_NEXUS, _UNRESTRICTED_REORDERING)) + bytes(8),
        (Field("d_sense", 0, 0x04), Field("swp", 2, 0x08)),
    ),
    # No failure prediction, so it is disabled.
    0x1C: Page("informational exceptions control", "SPC-4 7.5.11", bytes((_DEXCPT,)) + bytes(9)),
}

MODE_SELECT = frozenset({0x15, 0x55})
"""Operation codes of MODE SELECT(6) and (10): a unit without them has nothing changeable."""


def mode_sense_6(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.11."""
    pages = _pages(lu, cdb)
    descriptor = b"" if cdb[1] & DBD else _short_descriptor(lu)
    length = HEADER_6.size - 1 + len(descriptor) + len(pages)
    header = HEADER_6.pack(length, _device_specific(lu), len(descriptor))
    return Reply((header + descriptor + pages)[: cdb[4]])


def mode_sense_10(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.12."""
    pages = _pages(lu, cdb)
    long = bool(cdb[1] & LLBAA) and not cdb[1] & DBD
    if cdb[1] & DBD:
        descriptor = b""
    elif long:
        descriptor = LONG_DESCRIPTOR.pack(lu.blocks, lu.block_size)
    else:
        descriptor = _short_descriptor(lu)
    length = HEADER_10.size - 2 + len(descriptor) + len(pages)
    header = HEADER_10.pack(length, _device_specific(lu), LONGLBA if long else 0, len(descriptor))
    return Reply((header + descriptor + pages)[: int.from_bytes(cdb[7:9], "big")])


def _short_descriptor(lu: LogicalUnit) -> bytes:
    """More blocks than 32 bits can tell are told as FFFFFFFFh (SBC-3 6.5.2.2)."""
    return SHORT_DESCRIPTOR.pack(min(lu.blocks, 0xFFFFFFFF), lu.block_size)


def _device_specific(lu: LogicalUnit) -> int:
    """DPO and FUA are always taken; WP tells of a device that may not be written, or of software write protection."""
    return _DPOFUA | (_WP if lu.readonly or lu.mode_state.swp else 0)


def _pages(lu: LogicalUnit, cdb: bytes) -> bytes:
    """Return the pages that PAGE CODE and SUBPAGE CODE ask for (SPC-4 table 168), as PAGE CONTROL asks for them."""
    control, page, subpage = cdb[2] >> 6, cdb[2] & _PAGE_MASK, cdb[3]
    if control == SAVED and lu.saved_mode_state is None:
        raise ScsiError(Reason.SAVING_PARAMETERS_NOT_SUPPORTED)
    if page != ALL_PAGES and page not in PAGES:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2, bit=5)
    if subpage not in (0, ALL_SUBPAGES):
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=3)
    wanted = sorted(PAGES) if page == ALL_PAGES else (page,)
    return b"".join(_page(lu, code, control) for code in wanted)


_PS = 0x80


def _page(lu: LogicalUnit, code: int, control: int) -> bytes:
    """Return one page with its header; PS is set where MODE SELECT can save something of it (SPC-4 7.5.7)."""
    page = PAGES[code]
    savable = _PS if page.fields and lu.saved_mode_state is not None else 0
    payload = page.changeable(lu.volatile) if control == CHANGEABLE else page.payload(_state(lu, control))
    if control == CHANGEABLE and not any(command.opcode in MODE_SELECT for command in lu.commands):
        payload = bytes(len(payload))
    return bytes((savable | code, len(payload))) + payload


def _state(lu: LogicalUnit, control: int) -> ModeState:
    if control == DEFAULT:
        return lu.default_mode_state
    return lu.saved_mode_state if control == SAVED and lu.saved_mode_state is not None else lu.mode_state
