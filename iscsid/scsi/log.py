"""LOG SENSE: what a logical unit has done since the server was started, and how full its medium is.

A unit is reached through every worker, and what it tells is the sum over all of them, or it tells nothing: without
``lu.figures`` there is no LOG SENSE. Only figures that somebody keeps are log parameters; there is no page of errors
that were corrected, for the medium below corrects its own and does not say so. There is no LOG SELECT either: figures
are of all initiators, and one that sets them back takes them from all others.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from iscsid.errors import ScsiError
from iscsid.scsi.plan import Job, Plan, Reply
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus


@dataclass(slots=True)
class Figures:
    """Totals: bytes that READ and WRITE commands moved, commands that ended in an error of the medium, and how many
    READ and WRITE commands were executed."""

    read_bytes: int = 0
    written_bytes: int = 0
    read_errors: int = 0
    write_errors: int = 0
    read_commands: int = 0
    write_commands: int = 0

    def count(self, error: ScsiError) -> None:
        """Count ``error`` if it is one of the medium."""
        if error.reason is Reason.UNRECOVERED_READ_ERROR:
            self.read_errors += 1
        elif error.reason is Reason.WRITE_ERROR:
            self.write_errors += 1


class Parameter(NamedTuple):
    """A log parameter: its PARAMETER CODE, what it is called, and what it is worth.

    ``value`` is the name of a field of ``Figures``, for a bounded data counter, or a function that returns the value of
    a list parameter.
    """

    code: int
    name: str
    value: str | Callable[[LogicalUnit], bytes]


@dataclass(frozen=True, slots=True)
class LogPage:
    """A log page and its parameters in ascending order of their codes.

    ``metered``: it is there only where the device tells how full its medium is (``lu.metered``).
    """

    name: str
    clause: str
    parameters: tuple[Parameter, ...]
    metered: bool = False


# -- list parameters ---------------------------------------------------------------------------------------------------

_ACCESS = struct.Struct(">8Q")


def _general_access(lu: LogicalUnit) -> bytes:
    """SPC-4 7.3.8: commands, blocks received and transmitted; then intervals and weights, which nobody measures."""
    assert lu.figures is not None  # without it the unit has no LOG SENSE
    figures = lu.figures()
    received, transmitted = figures.written_bytes >> lu.shift, figures.read_bytes >> lu.shift
    return _ACCESS.pack(figures.read_commands, figures.write_commands, received, transmitted, 0, 0, 0, 0)


def _no_time(lu: LogicalUnit) -> bytes:
    """No idle intervals are counted, and the time interval, EXPONENT and INTEGER, is 0: nothing is measured in time."""
    return bytes(8)


_RESOURCE = struct.Struct(">IB3x")  # RESOURCE COUNT in threshold sets; SCOPE (SBC-3 6.4.4)
_DEDICATED, _NOT_DEDICATED = 0b01, 0b10


def _available(lu: LogicalUnit) -> bytes:
    return _RESOURCE.pack(threshold_sets(lu, lu.device.space().available), _NOT_DEDICATED)


def _used(lu: LogicalUnit) -> bytes:
    begun = lu.device.space().used + lu.threshold_set - 1
    return _RESOURCE.pack(threshold_sets(lu, begun), _DEDICATED)


def threshold_sets(lu: LogicalUnit, length: int) -> int:
    """Return how many whole threshold sets (SBC-3 4.7.3.7.1) ``length`` bytes are, as much as 32 bits can tell."""
    return min(length // lu.threshold_set, 0xFFFFFFFF)


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
    0x0C: LogPage(
        "logical block provisioning",
        "SBC-3 6.4.4",
        (
            Parameter(0x0001, "available LBA mapping resource count", _available),
            Parameter(0x0002, "used LBA mapping resource count", _used),
        ),
        metered=True,
    ),
    0x19: LogPage(
        "general statistics and performance",
        "SPC-4 7.3.8",
        (
            Parameter(0x0001, "general access statistics and performance", _general_access),
            Parameter(0x0002, "idle time", _no_time),
            Parameter(0x0003, "time interval", _no_time),
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
_BINARY_LIST = 0x03  # FORMAT AND LINKING 11b (SPC-4 7.3.2.2.2.5)
_LARGEST = 0xFFFFFFFFFFFFFFFF  # a bounded counter stays at its largest value


def log_sense(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.7. SP is refused as a bit that must be 0: nothing can be saved. Figures are up to a second old.

    What is asked of the device may have to wait for it, so that is a job.
    """
    control, code, subpage = cdb[2] >> 6, cdb[2] & _PAGE_MASK, cdb[3]
    pointer, allocation_length = int.from_bytes(cdb[5:7], "big"), int.from_bytes(cdb[7:9], "big")
    pages = pages_of(lu)
    if code == SUPPORTED_PAGES and subpage in (0, ALL_SUBPAGES):
        if pointer:
            raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=5)
        return Reply(supported_pages(pages, subpage)[:allocation_length])
    if code in pages and not subpage:
        page = pages[code]
        if not any(parameter.code >= pointer for parameter in page.parameters):
            raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=5)
        if page.metered:
            return Job(lambda _: _page(lu, code, control, pointer)[:allocation_length])
        return Reply(_page(lu, code, control, pointer)[:allocation_length])
    if code in pages or code == SUPPORTED_PAGES:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=3)
    raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2, bit=5)


def pages_of(lu: LogicalUnit) -> dict[int, LogPage]:
    """Return the pages that ``lu`` has, beside those that list them."""
    return {code: page for code, page in sorted(PAGES.items()) if lu.metered or not page.metered}


def supported_pages(pages: dict[int, LogPage], subpage: int) -> bytes:
    """Return page 00h, and with subpage FFh the list of pages and subpages (SPC-4 7.3.18, 7.3.19)."""
    codes = [SUPPORTED_PAGES, *pages]
    if not subpage:
        return _HEADER.pack(SUPPORTED_PAGES, 0, len(codes)) + bytes(codes)
    pairs = [(SUPPORTED_PAGES, 0), (SUPPORTED_PAGES, ALL_SUBPAGES), *((code, 0) for code in codes[1:])]
    listed = b"".join(map(bytes, pairs))
    return _HEADER.pack(_SPF | SUPPORTED_PAGES, ALL_SUBPAGES, len(listed)) + listed


def _page(lu: LogicalUnit, code: int, control: int, pointer: int) -> bytes:
    """Return a page from the first parameter on whose code is at least PARAMETER POINTER; DS is 1: nothing is saved."""
    parameters = (parameter for parameter in PAGES[code].parameters if parameter.code >= pointer)
    listed = b"".join(_parameter(lu, parameter, control) for parameter in parameters)
    return _HEADER.pack(_DS | code, 0, len(listed)) + listed


def _parameter(lu: LogicalUnit, parameter: Parameter, control: int) -> bytes:
    """A list parameter has one value, whatever PC asks for (SPC-4 6.7)."""
    if callable(parameter.value):
        value = parameter.value(lu)
        return _PARAMETER.pack(parameter.code, _TSD | _BINARY_LIST, len(value)) + value
    count = _count(lu, parameter.value, control)
    return _PARAMETER.pack(parameter.code, _TSD, _COUNTER.size) + _COUNTER.pack(count)


def _count(lu: LogicalUnit, figure: str, control: int) -> int:
    """Return what PC asks for: cumulative values, or threshold values, which nothing ever reaches.

    Default cumulative values are 0, where every count starts; default threshold values are the threshold values.
    """
    if control != _CUMULATIVE_VALUES:
        return 0 if control == _DEFAULT_CUMULATIVE_VALUES else _LARGEST
    assert lu.figures is not None  # without it the unit has no LOG SENSE
    cumulative: int = getattr(lu.figures(), figure)
    return min(cumulative, _LARGEST)
