"""LOG SENSE: what a logical unit has done since the server was started.

A unit is reached through every worker, and what it tells is the sum over all of them, or it tells nothing: without
``lu.figures`` there is no LOG SENSE. Only figures that somebody keeps are log parameters; there is no page of errors
that were corrected, for the medium below corrects its own and does not say so.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from iscsid.errors import ScsiError
from iscsid.scsi.plan import Plan, Reply
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus


@dataclass(slots=True)
class Figures:
    """Totals: bytes that READ and WRITE commands moved, and commands that ended in an error of the medium."""

    read_bytes: int = 0
    written_bytes: int = 0
    read_errors: int = 0
    write_errors: int = 0

    def count(self, error: ScsiError) -> None:
        """Count ``error`` if it is one of the medium."""
        if error.reason is Reason.UNRECOVERED_READ_ERROR:
            self.read_errors += 1
        elif error.reason is Reason.WRITE_ERROR:
            self.write_errors += 1


class Parameter(NamedTuple):
    """A log parameter: its PARAMETER CODE, what it is called, and the field of ``Figures`` that it shows."""

    code: int
    name: str
    figure: str


@dataclass(frozen=True, slots=True)
class LogPage:
    """A log page and its parameters in ascending order of their codes."""

    name: str
    clause: str
    parameters: tuple[Parameter, ...]


SUPPORTED_PAGES = 0x00
ALL_SUBPAGES = 0xFF

PAGES: dict[int, LogPage] = {
    0x02: LogPage(
        "write error counters",
        "SPC-4 7.3.23",
        (
            Parameter(0x0005, "total bytes processed", "written_bytes"),
            Parameter(0x0006, "total uncorrected errors", "write_errors"),
        ),
    ),
    0x03: LogPage(
        "read error counters",
        "SPC-4 7.3.14",
        (
            Parameter(0x0005, "total bytes processed", "read_bytes"),
            Parameter(0x0006, "total uncorrected errors", "read_errors"),
        ),
    ),
}

_CUMULATIVE_VALUES, _DEFAULT_CUMULATIVE_VALUES = 0b01, 0b11  # PC (SPC-4 6.7); the others are thresholds
_PAGE_MASK, _SPF = 0x3F, 0x40
_DS = 0x80
_HEADER = struct.Struct(">BBH")  # DS, SPF and PAGE CODE; SUBPAGE CODE; PAGE LENGTH (SPC-4 7.3.2.1)
_PARAMETER = struct.Struct(">HBB")  # PARAMETER CODE, control byte, PARAMETER LENGTH
_COUNTER = struct.Struct(">Q")
_TSD = 0x20  # nothing is saved; DU 0, ETC 0, FORMAT AND LINKING 00b: a bounded data counter (SPC-4 7.3.2.2)
_LARGEST = 0xFFFFFFFFFFFFFFFF  # a bounded counter stays at its largest value


def log_sense(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.7. SP is refused as a bit that must be 0: nothing can be saved. Figures are up to a second old."""
    control, code, subpage = cdb[2] >> 6, cdb[2] & _PAGE_MASK, cdb[3]
    pointer, allocation_length = int.from_bytes(cdb[5:7], "big"), int.from_bytes(cdb[7:9], "big")
    if code == SUPPORTED_PAGES and subpage in (0, ALL_SUBPAGES):
        if pointer:
            raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=5)
        data = supported_pages(subpage)
    elif code in PAGES and not subpage:
        data = _page(code, _values(lu, control), pointer)
    elif code in PAGES or code == SUPPORTED_PAGES:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=3)
    else:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2, bit=5)
    return Reply(data[:allocation_length])


def supported_pages(subpage: int) -> bytes:
    """Return page 00h, and with subpage FFh the list of pages and subpages (SPC-4 7.3.18, 7.3.19)."""
    codes = [SUPPORTED_PAGES, *sorted(PAGES)]
    if not subpage:
        return _HEADER.pack(SUPPORTED_PAGES, 0, len(codes)) + bytes(codes)
    pairs = [(SUPPORTED_PAGES, 0), (SUPPORTED_PAGES, ALL_SUBPAGES), *((code, 0) for code in codes[1:])]
    listed = b"".join(map(bytes, pairs))
    return _HEADER.pack(_SPF | SUPPORTED_PAGES, ALL_SUBPAGES, len(listed)) + listed


def _values(lu: LogicalUnit, control: int) -> Callable[[Parameter], int]:
    """Return what PC asks for: cumulative values, or threshold values, which nothing ever reaches.

    Default cumulative values are 0, where every count starts; default threshold values are the threshold values.
    """
    if control == _CUMULATIVE_VALUES:
        assert lu.figures is not None  # without it the unit has no LOG SENSE
        figures = lu.figures()
        return lambda parameter: min(getattr(figures, parameter.figure), _LARGEST)
    value = 0 if control == _DEFAULT_CUMULATIVE_VALUES else _LARGEST
    return lambda parameter: value


def _page(code: int, value: Callable[[Parameter], int], pointer: int) -> bytes:
    """Return a page from the first parameter on whose code is at least PARAMETER POINTER; DS is 1: nothing is saved."""
    parameters = [parameter for parameter in PAGES[code].parameters if parameter.code >= pointer]
    if not parameters:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=5)
    listed = b"".join(
        _PARAMETER.pack(parameter.code, _TSD, _COUNTER.size) + _COUNTER.pack(value(parameter))
        for parameter in parameters
    )
    return _HEADER.pack(_DS | code, 0, len(listed)) + listed
