"""libiscsi's test suite, family by family: what fails and what is skipped is read out of its report.

A skip is not a pass: each family names what it may skip, and why that is right. Each family runs by itself: some tests
bend the tool's own CDBs and do not unbend them when they are skipped, and all that comes after them is then nonsense.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from e2e_server import Server, run_judge

StartServer = Callable[..., Server]

FAMILIES = (
    "CompareAndWrite",
    "GetLBAStatus",
    "Inquiry",
    "Mandatory",
    "MultipathIO",
    "ModeSense6",
    "NoMedia",
    "OrWrite",
    "Prefetch10",
    "Prefetch16",
    "PreventAllow",
    "Read6",
    "Read10",
    "Read12",
    "Read16",
    "ReadCapacity10",
    "ReadCapacity16",
    "ReadDefectData10",
    "ReadDefectData12",
    "ReadOnly",
    "ReportSupportedOpcodes",
    "Sanitize",
    "StartStopUnit",
    "TestUnitReady",
    "Unmap",
    "Verify10",
    "Verify12",
    "Verify16",
    "Write10",
    "Write12",
    "Write16",
    "WriteAtomic16",
    "WriteSame10",
    "WriteSame16",
    "WriteVerify10",
    "WriteVerify12",
    "WriteVerify16",
    "iSCSIResiduals",
    "iSCSIcmdsn",
    "iSCSIdatasn",
)
DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"


def documented_skips() -> list[str]:
    """The first column of the table in the document: how each line begins that may be skipped."""
    return re.findall(r"^\| `([^`]+)` \| [A-Z]", DOCUMENT.read_text().partition("## What is skipped")[2], re.MULTILINE)


@dataclass(slots=True)
class Report:
    """What iscsi-test-cu printed, taken apart."""

    total: int = 0
    ran: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    skips: list[str] = field(default_factory=list)


def parse_report(output: str) -> Report:
    """Read CUnit's summary, the failures above it and the lines that the tests print when they skip something.

    A line with [FAILED] alone is none: iSCSIdatasn prints it when a command fails, which is what it wants.
    """
    report = Report()
    found = re.search(r"^\s+tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s*$", output, re.MULTILINE)
    assert found, f"no summary in:\n{output[-3000:]}"
    report.total, report.ran, _, report.failed, _ = map(int, found.groups())
    report.failures = re.findall(r"^\s*\d+\. (test_\S+ .*)$", output, re.MULTILINE)
    report.skips = [line.strip() for line in re.findall(r"\[SKIPPED\](.*)", output)]
    return report


def run_family(url: str, family: str, *words: str) -> Report:
    command = ("iscsi-test-cu", "--dataloss", "--allow-sanitize", "--verbose", f"--test=ALL.{family}", *words, url)
    return parse_report(run_judge(*command, timeout=100, check=False))


def test_parse_report_reads_totals_failures_and_skips() -> None:
    output = (
        "Suite: Read6\n  Test: Simple ...passed    [SKIPPED] PERSISTENT RESERVE IN is not implemented.\n"
        "Test: BeyondEol ...FAILED\n    1. test_read6_beyond_eol.c:42  - CU_ASSERT_EQUAL(ret,0)\n"
        "    [FAILED] READ6 should have failed\n"
        "Run Summary:    Type  Total    Ran Passed Failed Inactive\n"
        "              suites      1      1    n/a      0        0\n"
        "               tests      3      2      1      1        0\n"
    )
    report = parse_report(output)
    assert (report.total, report.ran, report.failed) == (3, 2, 1)
    assert report.failures == ["test_read6_beyond_eol.c:42  - CU_ASSERT_EQUAL(ret,0)"]
    assert report.skips == ["PERSISTENT RESERVE IN is not implemented."]


BACKENDS: dict[str, dict[str, Any]] = {"ram": {}, "file": {"physical_block_size": 512}}


def a_lun(backend: str, folder: Path, **options: Any) -> dict[str, Any]:
    place = {"path": folder / "disk.img"} if backend == "file" else {}
    return {"backend": backend, "size": "256 MiB", **place, **BACKENDS[backend], **options}


SKIPPED: set[str] = set()  # lines of the table that some run has printed
CHECKED: set[str] = set()  # families and back ends whose runs were looked at


def check_report(report: Report) -> None:
    skips = documented_skips()
    SKIPPED.update(line for line in skips if any(skip.startswith(line) for skip in report.skips))
    assert report.total > 0
    assert (report.failed, report.failures) == (0, [])
    assert report.ran == report.total
    assert [skip for skip in report.skips if not any(skip.startswith(line) for line in skips)] == []


@pytest.mark.judge("iscsi-test-cu")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_family_passes_and_skips_nothing_undocumented(
    start: StartServer, tmp_path: Path, family: str, backend: str
) -> None:
    check_report(run_family(start([a_lun(backend, tmp_path)]).url(), family))
    CHECKED.add(f"{family} {backend}")


@pytest.mark.judge("iscsi-test-cu")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["NoMedia", "PreventAllow"])
def test_family_for_removable_media_skips_nothing(
    start: StartServer, tmp_path: Path, family: str, backend: str
) -> None:
    report = run_family(start([a_lun(backend, tmp_path, removable=True)]).url(), family)
    check_report(report)
    assert [skip for skip in report.skips if "not implemented yet" not in skip] == []


@pytest.mark.judge("iscsi-test-cu")
def test_family_for_protected_media_runs(start: StartServer, tmp_path: Path) -> None:
    report = run_family(start([a_lun("ram", tmp_path, readonly=True)]).url(), "ReadOnly")
    check_report(report)
    assert set(report.skips) == {"UNMAP is not implemented."}


def test_every_documented_skip_is_one_of_some_run() -> None:
    if len(CHECKED) < len(FAMILIES) * len(BACKENDS):
        pytest.skip("not every family has run and passed here")
    assert set(documented_skips()) - SKIPPED == set()


def test_every_documented_skip_has_its_reason_once() -> None:
    skips = documented_skips()
    assert len(skips) == len(set(skips)) > 0
