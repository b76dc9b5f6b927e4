"""Mode pages and MODE SENSE(6) and (10).

A page is constant but for a few fields, each of them one of ``ModeState``: PAGES says which. MODE SENSE writes pages
from a state, MODE SELECT (``mode_select``) reads a state from pages, both by that table. One state counts for all I_T
nexuses of a unit; ``lu.mode_state`` holds it, and whoever keeps it for all workers puts a new one there.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

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
    medium is write protected by software. ``d_sense``: sense data has descriptor format. ``lbpere`` and
    ``threshold_enabled``: a unit attention tells when no more than ``threshold_count`` threshold sets are available.
    """

    wce: bool = False
    swp: bool = False
    d_sense: bool = False
    lbpere: bool = False
    threshold_enabled: bool = False
    threshold_count: int = 0

    def to_plain(self) -> dict[str, int]:
        """Return the state as what JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, object]) -> ModeState:
        """Return the state that ``to_plain`` gave; ValueError when it is none."""
        types = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        if plain.keys() != types.keys() or any(type(value) is not types[name] for name, value in plain.items()):
            raise ValueError(f"no mode state: {dict(plain)!r}")
        values: dict[str, Any] = dict(plain)
        if values["threshold_count"] >> 32:
            raise ValueError(f"no mode state: {values!r}")
        return cls(**values)


class Facts(Protocol):
    """What of a unit decides which pages it has, and what of them can be changed."""

    @property
    def volatile(self) -> bool:
        """Whether there is a write cache."""

    @property
    def metered(self) -> bool:
        """Whether the device tells how full its medium is."""


class Field(NamedTuple):
    """A field of a page: that of ModeState which it shows, its first byte in the payload, the mask over its ``width``
    bytes, and the fact of ``Facts`` without which it is 0."""

    name: str
    byte: int
    mask: int
    width: int = 1
    needs: str = ""

    def there(self, facts: Facts) -> bool:
        """Whether it can be anything but 0."""
        return not self.needs or bool(getattr(facts, self.needs))

    def of(self, payload: bytes) -> int:
        """Return what the field holds: a truth value, or a number where it has several bytes."""
        value = int.from_bytes(payload[self.byte : self.byte + self.width], "big") & self.mask
        return value if self.width > 1 else bool(value)


@dataclass(frozen=True, slots=True)
class Page:
    """A mode page: its payload without the header is ``constant``, with 0 where there are ``fields``.

    ``needs``: the fact of ``Facts`` without which there is no such page.
    """

    name: str
    clause: str
    constant: bytes
    fields: tuple[Field, ...] = ()
    needs: str = ""

    def payload(self, state: ModeState) -> bytes:
        """Return the page as ``state`` makes it."""
        payload = bytearray(self.constant)
        for field in self.fields:
            value = getattr(state, field.name)
            _merge(payload, field, value if field.width > 1 else field.mask * value)
        return bytes(payload)

    def changeable(self, facts: Facts) -> bytes:
        """Return the mask of what MODE SELECT may change: WCE, for one, only where the unit has a cache to switch."""
        mask = bytearray(len(self.constant))
        for field in self.fields:
            if field.there(facts):
                _merge(mask, field, field.mask)
        return bytes(mask)


def _merge(payload: bytearray, field: Field, value: int) -> None:
    for at, byte in enumerate(value.to_bytes(field.width, "big"), field.byte):
        payload[at] |= byte


_TST_PER_NEXUS = 0b001 << 5  # one task set for each I_T nexus, which is what keeps task sets inside one worker
_UNRESTRICTED_REORDERING = 0x1 << 4  # QUEUE ALGORITHM MODIFIER: a slow read does not hold back the next
_DEXCPT = 0x08
_IALUAE = 0x01  # the administrator may change asymmetric access states at any time
# One threshold descriptor, of type 000b: THRESHOLD RESOURCE 01h, the LBA mapping resources that are available;
# THRESHOLD ARMING 000b, armed while they decrease. SITUA is 0: every nexus is told.
_AVAILABLE_DECREASING = bytes((0x00, 0x01)) + bytes(6)

PAGES: dict[tuple[int, int], Page] = {
    # No reassignment, no recovery of ours: the medium below does its own.
    (0x01, 0): Page(
        "read-write error recovery", "SBC-3 6.5.8", bytes(10), (Field("lbpere", 5, 0x80, needs="metered"),)
    ),
    # No limits beyond those that login negotiated.
    (0x02, 0): Page("disconnect-reconnect", "SPC-4 7.5.10", bytes(14)),
    # WCE is the truth: 1 exactly when a completed write may be lost without a flush.
    (0x08, 0): Page("caching", "SBC-3 6.5.5", bytes(18), (Field("wce", 0, 0x04, needs="volatile"),)),
    # QERR 00b, TAS 0, UA_INTLCK_CTRL 00b.
    (0x0A, 0): Page(
        "control",
        "SPC-4 7.5.8",
        bytes((_TST_PER_NEXUS, _UNRESTRICTED_REORDERING)) + bytes(8),
        (Field("d_sense", 0, 0x04), Field("swp", 2, 0x08)),
    ),
    # No timestamp to change (TCMOS, SCSIP 0), no priorities; MAXIMUM SENSE DATA LENGTH 0: no limit is told.
    (0x0A, 1): Page("control extension", "SPC-4 7.5.9", bytes((_IALUAE,)) + bytes(27)),
    # No failure prediction, so it is disabled.
    (0x1C, 0): Page("informational exceptions control", "SPC-4 7.5.11", bytes((_DEXCPT,)) + bytes(9)),
    (0x1C, 2): Page(
        "logical block provisioning",
        "SBC-3 6.5.7",
        bytes(12) + _AVAILABLE_DECREASING,
        (Field("threshold_enabled", 12, 0x80), Field("threshold_count", 16, 0xFFFFFFFF, width=4)),
        needs="metered",
    ),
}
"""By PAGE CODE and SUBPAGE CODE. There is no power condition page: START STOP UNIT knows no power conditions."""


def pages_of(facts: Facts) -> dict[tuple[int, int], Page]:
    """Return the pages that a unit has, in ascending order."""
    return {key: page for key, page in PAGES.items() if not page.needs or getattr(facts, page.needs)}


def fitted(state: ModeState, facts: Facts) -> ModeState:
    """Return ``state`` without what the unit has no use for: it may have been saved when there was another device."""
    useless: dict[str, Any] = {
        field.name: False if field.width == 1 else 0
        for key, page in PAGES.items()
        for field in page.fields
        if key not in pages_of(facts) or not field.there(facts)
    }
    return dataclasses.replace(state, **useless) if useless else state


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
    control, code, subpage = cdb[2] >> 6, cdb[2] & _PAGE_MASK, cdb[3]
    if control == SAVED and lu.saved_mode_state is None:
        raise ScsiError(Reason.SAVING_PARAMETERS_NOT_SUPPORTED)
    pages = {key: page for key, page in pages_of(lu).items() if code in (ALL_PAGES, key[0])}
    if not pages:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2, bit=5)
    wanted = [key for key in pages if subpage == ALL_SUBPAGES or key[1] == subpage]
    if not wanted or (code == ALL_PAGES and subpage not in (0, ALL_SUBPAGES)):
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=3)
    return b"".join(_page(lu, key, pages[key], control) for key in wanted)


_PS, SPF = 0x80, 0x40
SUBPAGE_HEADER = struct.Struct(">BBH")  # PS, SPF and PAGE CODE; SUBPAGE CODE; PAGE LENGTH (SPC-4 table 418)


def _page(lu: LogicalUnit, key: tuple[int, int], page: Page, control: int) -> bytes:
    """Return one page with its header; PS is set where MODE SELECT can save something of it (SPC-4 7.5.7)."""
    code, subpage = key
    payload = page.changeable(lu) if control == CHANGEABLE else page.payload(_state(lu, control))
    if control == CHANGEABLE and not any(command.opcode in MODE_SELECT for command in lu.commands):
        payload = bytes(len(payload))
    first = code | (_PS if lu.saved_mode_state is not None and any(page.changeable(lu)) else 0)
    if subpage:
        return SUBPAGE_HEADER.pack(first | SPF, subpage, len(payload)) + payload
    return bytes((first, len(payload))) + payload


def _state(lu: LogicalUnit, control: int) -> ModeState:
    if control == DEFAULT:
        return lu.default_mode_state
    return lu.saved_mode_state if control == SAVED and lu.saved_mode_state is not None else lu.mode_state
