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
    "ModeSense6",
    "OrWrite",
    "Prefetch10",
    "Prefetch16",
    "Read6",
    "Read10",
    "Read12",
    "Read16",
    "ReadCapacity10",
    "ReadCapacity16",
    "ReadDefectData10",
    "ReadDefectData12",
    "ReportSupportedOpcodes",
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
PREPARATION_SKIPS = ("PERSISTENT RESERVE IN is not implemented",)  # it looks for leftover reservations before each test
NO_ZERO_BLOCKS = "does not support 0-blocks."  # VPD B0 says WSNZ: a WRITE SAME names its number of blocks
NO_RESTRICTION = ("No alignment restrictions on this LUN", "No granularity restrictions on this LUN")
TEARS = "WRITEATOMIC16 is not implemented."  # by a file on a disk, which a loss of power leaves with half a write
ALLOWED_SKIPS: dict[str, tuple[str, ...]] = {
    "WriteAtomic16": (*NO_RESTRICTION, TEARS),
    "StartStopUnit": ("Media is not removable.",),  # ejecting is not for us
    "WriteSame10": (f"WRITESAME10 {NO_ZERO_BLOCKS}",),
    "WriteSame16": (f"WRITESAME16 {NO_ZERO_BLOCKS}",),
}


# GetLBAStatus.UnmapSingle asks for block i + 1 and wants the answer for the next physical block, so these must be one.
BLOCK_SIZES = {"GetLBAStatus": 4096}


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
    command = ("iscsi-test-cu", "--dataloss", "--verbose", f"--test=ALL.{family}", *words, url)
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


@pytest.mark.judge("iscsi-test-cu")
@pytest.mark.parametrize("backend", ["ram", "file"])
@pytest.mark.parametrize("family", FAMILIES)
def test_family_passes_and_skips_nothing_unforeseen(
    start: StartServer, tmp_path: Path, family: str, backend: str
) -> None:
    lun: dict[str, Any] = {"backend": backend, "size": "256 MiB", "block_size": BLOCK_SIZES.get(family, 512)}
    if backend == "file":
        lun["path"] = tmp_path / "disk.img"
    report = run_family(start([lun]).url(), family)
    allowed = PREPARATION_SKIPS + ALLOWED_SKIPS.get(family, ())
    unforeseen = [skip for skip in report.skips if not any(skip.startswith(prefix) for prefix in allowed)]
    assert report.total > 0
    assert (report.failed, report.failures) == (0, [])
    assert report.ran == report.total
    assert unforeseen == []
