"""The support matrix says what the tables say, and the page in docs/ is current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from iscsid.scsi import inquiry, log, mode
from iscsid.scsi.commands import COMMANDS
from iscsid.scsi.support import matrix

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs/support.md"
COMMAND = "python -m iscsid.scsi.support > docs/support.md"


def tables() -> list[list[list[str]]]:
    """Return the rows of each table of the page, without its head."""
    found: list[list[list[str]]] = []
    inside = False
    for line in matrix().splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        if not inside:
            found.append([])
        inside = True
        found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return [rows[2:] for rows in found]


def test_page_in_docs_is_current() -> None:
    assert PAGE.read_text() == matrix(), f"docs/support.md is not what the tables say: {COMMAND}"


def test_page_is_written_by_the_command_that_it_names() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "iscsid.scsi.support"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == matrix()
    assert COMMAND in matrix()


def test_readme_links_the_page() -> None:
    assert "(docs/support.md)" in (ROOT / "README.md").read_text()


def test_every_table_has_as_many_cells_in_each_row() -> None:
    for line in matrix().splitlines():
        assert not line.startswith("|") or line.endswith("|")
    for rows in tables():
        assert len({len(row) for row in rows}) == 1


def test_every_command_has_its_row() -> None:
    commands = tables()[0]
    assert [row[1] for row in commands] == [command.name.replace("_", " ") for command in COMMANDS]
    assert len({row[0] for row in commands}) == len(COMMANDS)


@pytest.mark.parametrize(
    "row",
    [
        "28h|READ 10|`28 18 ff ff ff ff 00 ff ff 00`|in||allowed if write exclusive||reported",
        "42h|UNMAP|`42 00 00 00 00 00 00 ff ff 00`|out|thin provisioning|conflict||reported",
        "41h|WRITE SAME 10|`41 00[08] ff ff ff ff 00 ff ff 00`|out||conflict||reported",
        "A3h/0Ah|REPORT TARGET PORT GROUPS|`a3 ea 00 00 00 00 ff ff ff ff 00 00`|in||allowed|all|reported",
        "03h|REQUEST SENSE|`03 01 00 00 ff 00`|in||allowed|all|is the answer",
        "12h|INQUIRY|`12 01 ff ff ff 00`|in||allowed|all|stays",
    ],
)
def test_row_of_a_command(row: str) -> None:
    assert row.split("|") in tables()[0]


def test_every_page_has_its_row_with_name_and_clause() -> None:
    _, vpd, modes, logs, _ = tables()
    assert [int(row[0].rstrip("h"), 16) for row in vpd] == sorted(inquiry.PAGES)
    assert [row[0] for row in modes if "/" not in row[0]] == [
        f"{code:02X}h" for code, sub in sorted(mode.PAGES) if not sub
    ]
    assert [row[0] for row in modes if "/" in row[0]] == ["0Ah/01h", "1Ch/02h"]
    assert [int(row[0].rstrip("h"), 16) for row in logs] == sorted(log.PAGES)
    assert all(row[1] and row[2] for row in (*vpd, *modes, *logs))
    assert ["88h", "SCSI ports", "SPC-4 7.8.14"] in vpd
    assert ["0Ah", "control", "SPC-4 7.5.8", "D_SENSE, SWP"] in modes
    assert ["02h", "disconnect-reconnect", "SPC-4 7.5.10", ""] in modes


def test_task_management_functions_are_those_that_the_unit_reports(unit) -> None:
    answer = unit.run("a3 0d 00 000000 00000004 00 00")
    functions = {row[0]: row[1] for row in tables()[-1]}
    assert functions["ABORT TASK"] == ("yes" if answer[0] & 0x80 else "no")
    assert functions["LOGICAL UNIT RESET"] == ("yes" if answer[0] & 0x08 else "no")
    assert functions["QUERY TASK SET"] == ("yes" if answer[1] & 0x02 else "no")
    assert set(functions.values()) <= {"yes", "no"}
