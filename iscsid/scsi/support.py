"""The support matrix, made from the tables that the server runs by.

``python -m iscsid.scsi.support > docs/support.md`` writes it. What a row says is true of every logical unit that has
the feature named in it; nothing is listed by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from iscsid.scsi import inquiry, log, mode, report
from iscsid.scsi.commands import COMMANDS, Access, Attention, Command, Direction, Feature, Reservation
from iscsid.scsi.plan import Reply

_HEAD = """\
# What is supported

This page is made from the tables that the server itself runs by: `python -m iscsid.scsi.support > docs/support.md`
writes it, and a test holds it to them. What an initiator can ask for is told by REPORT SUPPORTED OPERATION CODES and
INQUIRY; both answer from the same tables.
"""
_COMMANDS = """\
## Commands

The bits of the CDB are those of SPC-4 6.35.3: a bit that is 0 here is refused with INVALID FIELD IN CDB and a pointer
to it. A bit in brackets is there with the feature. *Reserved by another* is what the command meets while another I_T
nexus holds a reservation of the logical unit. *Also executed in* names the asymmetric access states of the port, beside
the active ones, in which it is executed; in the others it ends in NOT READY.
"""
_VPD_PAGES = """\
## Vital product data pages

Page 00h lists them in this order.
"""
_MODE_PAGES = """\
## Mode pages

MODE SENSE answers with current, changeable and default values. What can be changed is changeable where there is a MODE
SELECT in the table of commands.
"""
_LOG_PAGES = """\
## Log pages

Pages 00h and 00h/FFh list them. The figures are sums over all workers since the server was started.
"""
_FUNCTIONS = """\
## Task management functions

As REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS tells them.
"""

_FEATURES = {
    Feature.DISK: "",
    Feature.THIN: "thin provisioning",
    Feature.ERASE: "thin provisioning, allocation map",
    Feature.ATOMIC: "a medium in memory",
    Feature.LOGGED: "figures of all workers",
}
_DIRECTIONS = {Direction.NONE: "", Direction.IN: "in", Direction.OUT: "out", Direction.OPTIONAL_OUT: "none or out"}
_RESERVATIONS = {
    Reservation.ALLOWED: "allowed",
    Reservation.STATE: "allowed",
    Reservation.READING: "allowed if write exclusive",
    Reservation.WRITING: "conflict",
    Reservation.STARTING: "conflict, but for a start",
    Reservation.PREVENTING: "conflict, but to allow",
    Reservation.DECIDED: "as its clause says",
}
_ACCESS = {
    Access.ACTIVE: "",
    Access.STANDBY: "standby",
    Access.UNAVAILABLE: "standby, unavailable",
    Access.ALWAYS: "all",
}
_ATTENTIONS = {Attention.REPORTED: "reported", Attention.EXEMPT: "stays", Attention.TAKEN: "is the answer"}
_CLAUSE = re.compile(r"\((S[BP]C-\d [\d.]+)\)")
_TASK_MANAGEMENT = (  # byte and mask in the answer (SPC-4 6.36, table 270)
    ("ABORT TASK", 0, 0x80),
    ("ABORT TASK SET", 0, 0x40),
    ("CLEAR ACA", 0, 0x20),
    ("CLEAR TASK SET", 0, 0x10),
    ("LOGICAL UNIT RESET", 0, 0x08),
    ("QUERY TASK", 0, 0x04),
    ("TARGET RESET", 0, 0x02),
    ("QUERY ASYNCHRONOUS EVENT", 1, 0x04),
    ("QUERY TASK SET", 1, 0x02),
    ("I_T NEXUS RESET", 1, 0x01),
)


def matrix() -> str:
    """Return the whole page."""
    parts = (
        _HEAD,
        _COMMANDS,
        _table(
            ("code", "command", "CDB", "data", "needs", "reserved by another", "also executed in", "unit attention"),
            _commands(),
        ),
        _VPD_PAGES,
        _table(("page", "name", "clause"), _vpd_pages()),
        _MODE_PAGES,
        _table(("page", "name", "clause", "changeable"), _mode_pages()),
        _LOG_PAGES,
        _table(("page", "name", "clause", "parameters"), _log_pages()),
        _FUNCTIONS,
        _table(("function", "supported"), _task_management()),
    )
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _commands() -> Iterable[Sequence[str]]:
    for command in COMMANDS:
        code = f"{command.opcode:02X}h"
        if command.service_action is not None:
            code += f"/{command.service_action:02X}h"
        yield (
            code,
            _words(command.name).upper(),
            f"`{_usage(command)}`",
            _DIRECTIONS[command.direction],
            _FEATURES.get(command.needs, _words(command.needs.name)),
            _RESERVATIONS.get(command.reservation, _words(command.reservation.name)),
            _ACCESS[command.access],
            _ATTENTIONS[command.attention],
        )


def _usage(command: Command) -> str:
    optional = {byte: mask for _feature, byte, mask in command.optional}
    return " ".join(
        f"{bits:02x}[{optional[byte]:02x}]" if byte in optional else f"{bits:02x}"
        for byte, bits in enumerate(command.usage)
    )


def _vpd_pages() -> Iterable[Sequence[str]]:
    for code, build in sorted(inquiry.PAGES.items()):
        yield f"{code:02X}h", _words(build.__name__).replace("scsi", "SCSI"), _clause(build)


def _clause(build: Callable[..., bytes]) -> str:
    """Return the clause that the docstring of a page names."""
    found = _CLAUSE.search(build.__doc__ or "")
    return found.group(1) if found else ""


def _mode_pages() -> Iterable[Sequence[str]]:
    for (code, subpage), page in sorted(mode.PAGES.items()):
        number = f"{code:02X}h/{subpage:02X}h" if subpage else f"{code:02X}h"
        yield number, page.name, page.clause, ", ".join(field.name.upper() for field in page.fields)


def _log_pages() -> Iterable[Sequence[str]]:
    for code, page in sorted(log.PAGES.items()):
        parameters = ", ".join(f"{parameter.code:04X}h {parameter.name}" for parameter in page.parameters)
        yield f"{code:02X}h", page.name, page.clause, parameters


def _task_management() -> Iterable[Sequence[str]]:
    cdb = bytes((0xA3, 0x0D)) + (4).to_bytes(8, "big") + bytes(6)
    answer = report.report_supported_task_management_functions(None, cdb, None)  # type: ignore[arg-type]
    assert isinstance(answer, Reply)
    for name, byte, mask in _TASK_MANAGEMENT:
        yield name, "yes" if answer.data[byte] & mask else "no"


def _words(name: str) -> str:
    return name.lower().replace("_", " ")


if __name__ == "__main__":
    print(matrix(), end="")
