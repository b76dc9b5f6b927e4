"""libiscsi's test suite, family by family: what fails and what is skipped is read out of its report.

A skip is not a pass: the document names what may be skipped, and why that is right. Each family runs by itself, so that
a test that leaves the tool in disorder spoils no other family.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from e2e_server import Server, run_judge

StartServer = Callable[..., Server]

FAMILIES = (
    "CompareAndWrite",
    "ExtendedCopy",
    "GetLBAStatus",
    "Inquiry",
    "Mandatory",
    "ModeSense6",
    "MultipathIO",
    "NoMedia",
    "OrWrite",
    "Prefetch10",
    "Prefetch16",
    "PreventAllow",
    "PrinReadKeys",
    "PrinReportCapabilities",
    "PrinServiceactionRange",
    "ProutClear",
    "ProutPreempt",
    "ProutRegister",
    "ProutReserve",
    "Read10",
    "Read12",
    "Read16",
    "Read6",
    "ReadCapacity10",
    "ReadCapacity16",
    "ReadDefectData10",
    "ReadDefectData12",
    "ReadOnly",
    "ReceiveCopyResults",
    "ReportSupportedOpcodes",
    "Reserve6",
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
    "iSCSITMF",
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


def run_family(url: str, tests: str) -> Report:
    """Run a family, or those of its tests that a pattern of the shell chooses: ``Family.Pattern``."""
    # Without -V some skips are not printed.
    command = ("iscsi-test-cu", "--dataloss", "--allow-sanitize", "-V", f"--test=ALL.{tests}", url)
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


BACKENDS = ("ram", "file", "block")
SIZE = 256 << 20
NO_LOOP_DEVICE = "a loop device needs root and losetup"


@dataclass(frozen=True, slots=True)
class Disks:
    """A server of disks, told nothing but where they are, and the LUN of each back end that can be had here."""

    server: Server
    luns: dict[str, int]

    def url(self, backend: str) -> str:
        if backend not in self.luns:
            pytest.skip(NO_LOOP_DEVICE)
        return self.server.url(self.luns[backend])


@contextlib.contextmanager
def loop_device(folder: Path) -> Iterator[str | None]:
    backing = folder / "loop.img"
    with backing.open("wb") as file:
        file.truncate(SIZE)
    if os.geteuid() != 0:
        yield None
        return
    try:
        name = run_judge("losetup", "--find", "--show", "--sector-size", "512", backing).strip()
    except (AssertionError, OSError):
        yield None
        return
    try:
        yield name
    finally:
        run_judge("losetup", "--detach", name)


@contextlib.contextmanager
def served(folder: Path, **options: Any) -> Iterator[Disks]:
    """A disk of each back end, with ``options``."""
    with loop_device(folder) as block:
        places: dict[str, dict[str, Any]] = {
            "ram": {"size": SIZE},
            "file": {"size": SIZE, "path": folder / "disk.img"},
            "block": {"path": block},
        }
        here = {backend: place for backend, place in places.items() if block or backend != "block"}
        server = Server(folder, [{"backend": backend, **place, **options} for backend, place in here.items()])
        try:
            yield Disks(server.start(), {backend: lun for lun, backend in enumerate(here)})
        finally:
            server.finish()


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    with served(tmp_path_factory.mktemp("disks")) as disks:
        yield disks


@pytest.fixture(scope="module")
def removable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disks]:
    with served(tmp_path_factory.mktemp("removable"), removable=True) as disks:
        yield disks


# Its SANITIZE must still be under way after more than four seconds; if it is the tool looks again a minute later.
SLOW_TEST, SLOW_ITEM = "Sanitize.Reset", "test_sanitize_goes_on_through_resets_on_a_slow_disk"
SLOW_LAYER = {"layer": "rate", "bytes_per_second": "40 MiB", "direction": "write"}
CHOSEN = {"Sanitize": "Sanitize.*[!t]"}  # all but that


@pytest.fixture(scope="module")
def slow_run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Future[Report] | None]:
    """SLOW_TEST on a disk that is as slow as it wants one, while the families run; None where it is not asked for."""
    if not any(item.name == SLOW_ITEM for item in request.session.items):
        yield None
        return
    server = Server(tmp_path_factory.mktemp("slow"), [{"backend": "ram", "size": SIZE, "layers": [SLOW_LAYER]}])
    try:
        server.start()
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(run_family, server.url(), SLOW_TEST)
    finally:
        server.finish()


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
    slow_run: Future[Report] | None, disks: Disks, family: str, backend: str
) -> None:
    check_report(run_family(disks.url(backend), CHOSEN.get(family, family)))
    CHECKED.add(f"{family} {backend}")


@pytest.mark.judge("iscsi-test-cu")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["NoMedia", "PreventAllow"])
def test_family_for_removable_media_skips_nothing(removable: Disks, family: str, backend: str) -> None:
    report = run_family(removable.url(backend), family)
    check_report(report)
    assert [skip for skip in report.skips if "not implemented yet" not in skip] == []


@pytest.mark.judge("iscsi-test-cu")
def test_family_for_protected_media_runs(start: StartServer) -> None:
    report = run_family(start([{"backend": "ram", "size": SIZE, "readonly": True}]).url(), "ReadOnly")
    check_report(report)
    assert set(report.skips) == {"UNMAP is not implemented."}


@pytest.mark.judge("iscsi-test-cu")
def test_sanitize_goes_on_through_resets_on_a_slow_disk(slow_run: Future[Report] | None) -> None:
    assert slow_run is not None
    check_report(slow_run.result())


def test_every_documented_skip_is_one_of_some_run() -> None:
    missing = {f"{family} {backend}" for family in FAMILIES for backend in BACKENDS} - CHECKED
    if missing:
        pytest.skip(f"{len(missing)} families have not run and passed here")
    assert set(documented_skips()) - SKIPPED == set()


def test_every_documented_skip_has_its_reason_once() -> None:
    skips = documented_skips()
    assert len(skips) == len(set(skips)) > 0
