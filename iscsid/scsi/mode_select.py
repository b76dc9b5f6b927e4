"""MODE SELECT(6) and (10) as a pure function: the state before, the CDB and the parameter list give the state after.

Mode pages are shared by all I_T nexuses (VPD page 87h), so it is not for one worker to change them: whoever keeps the
state of the unit calls ``apply``, gives every worker the result, raises MODE PARAMETERS CHANGED for all other nexuses
where it is another one, and has the cache flushed where WCE has gone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iscsid.errors import ScsiError
from iscsid.scsi.mode import (
    HEADER_6,
    HEADER_10,
    LONG_DESCRIPTOR,
    LONGLBA,
    SHORT_DESCRIPTOR,
    SPF,
    SUBPAGE_HEADER,
    ModeState,
    fitted,
    pages_of,
)
from iscsid.scsi.plan import Ask, Plan
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

PF, SP = 0x10, 0x01  # byte 1: page format, save pages (SPC-4 6.9)
_MODE_SELECT_6 = 0x15
_PAGE_CODE = 0x3F  # in byte 0 of a page


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What of a unit decides what may be selected. ``saving``: the state can be kept over a restart; ``metered``: the
    device tells how full its medium is."""

    blocks: int
    block_size: int
    volatile: bool
    saving: bool = False
    metered: bool = False

    @classmethod
    def of(cls, lu: LogicalUnit) -> UnitFacts:
        """Return the facts of ``lu``."""
        return cls(lu.blocks, lu.block_size, lu.volatile, lu.saved_mode_state is not None, lu.metered)


def parameter_list_length(cdb: bytes) -> int:
    """Return the PARAMETER LIST LENGTH of either form."""
    return cdb[4] if cdb[0] == _MODE_SELECT_6 else int.from_bytes(cdb[7:9], "big")


def saves(cdb: bytes) -> bool:
    """Whether the result is to be saved as well (SP)."""
    return bool(cdb[1] & SP)


def mode_select(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.9, 6.10: for the authority, which calls ``apply``."""
    return Ask(parameter_list_length(cdb))


def apply(current: ModeState, cdb: bytes, data: bytes | memoryview, facts: UnitFacts) -> ModeState:
    """Return the state that a MODE SELECT (SPC-4 6.9, 6.10) with the parameter list ``data`` makes of ``current``.

    Nothing is changed unless everything can be. Raises ScsiError: INVALID FIELD IN CDB for SP where nothing can be
    saved and for a list that has no page format; PARAMETER LIST LENGTH ERROR where the list is cut off within a header,
    a descriptor or a page; INVALID FIELD IN PARAMETER LIST, with a pointer, for all that is not there or not
    changeable. An empty list changes nothing.
    """
    if saves(cdb) and not facts.saving:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, bit=0)
    length = parameter_list_length(cdb)
    if not length:
        return current
    if not cdb[1] & PF:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, bit=4)
    if len(data) < length:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    parameters = bytes(data[:length])
    at = _skip_header(cdb[0] == _MODE_SELECT_6, parameters, facts)
    state = fitted(current, facts)
    while at < length:
        state, at = _select_page(state, parameters, at, facts)
    return state


def _skip_header(short: bool, data: bytes, facts: UnitFacts) -> int:
    """Check the mode parameter header and the block descriptors; return where the pages begin.

    MODE DATA LENGTH and DEVICE-SPECIFIC PARAMETER are reserved here (SPC-4 7.5.5, SBC-3 6.5.1). They are not looked at:
    many initiators send back what MODE SENSE gave them.
    """
    header = HEADER_6 if short else HEADER_10
    if len(data) < header.size:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    medium_type_at = 1 if short else 2
    if data[medium_type_at]:
        raise _invalid(medium_type_at)
    if short:
        long, length = False, data[3]
    else:
        long, length = bool(data[4] & LONGLBA), int.from_bytes(data[6:8], "big")
    if length not in (0, LONG_DESCRIPTOR.size if long else SHORT_DESCRIPTOR.size):
        raise _invalid(3 if short else 6)
    end = header.size + length
    if len(data) < end:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    if length:
        _check_descriptor(long, data, header.size, facts)
    return end


def _check_descriptor(long: bool, data: bytes, at: int, facts: UnitFacts) -> None:
    """Refuse to change the capacity or the block length (SBC-3 6.5.2)."""
    layout = LONG_DESCRIPTOR if long else SHORT_DESCRIPTOR
    blocks, block_size = layout.unpack_from(data, at)
    limit = 0xFFFFFFFFFFFFFFFF if long else 0xFFFFFFFF
    if blocks not in (0, limit, facts.blocks):
        raise _invalid(at)
    if block_size != facts.block_size:
        raise _invalid(at + (12 if long else 5))


def _select_page(state: ModeState, data: bytes, at: int, facts: UnitFacts) -> tuple[ModeState, int]:
    """Return the state with the page at ``at``, and where the next one begins. PS is reserved here, and ignored."""
    code, spf = data[at] & _PAGE_CODE, data[at] & SPF
    header = SUBPAGE_HEADER.size if spf else 2
    if len(data) < at + header:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    length = int.from_bytes(data[at + header // 2 : at + header], "big")
    pages = pages_of(facts)
    if all(code != known for known, _ in pages):
        raise _invalid(at, 5)
    page = pages.get((code, data[at + 1] if spf else 0))
    if page is None or (spf and not data[at + 1]):
        raise _invalid(at + 1)
    if length != len(page.constant):
        raise _invalid(at + header // 2)
    start, end = at + header, at + header + length
    if len(data) < end:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    wanted, present, mask = data[start:end], page.payload(state), page.changeable(facts)
    for byte in range(len(wanted)):
        if wrong := (wanted[byte] ^ present[byte]) & ~mask[byte]:
            raise _invalid(start + byte, wrong.bit_length() - 1)
    values: dict[str, Any] = {field.name: field.of(wanted) for field in page.fields}
    return dataclasses.replace(state, **values), end


def _invalid(field: int, bit: int | None = None) -> ScsiError:
    return ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=field, bit=bit, in_data=True)
