"""All checks on one medium: what came of each, and which media may not be touched."""

from __future__ import annotations

import threading

import pytest
from contract_kit import Good, ShortRead, medium_of

from iscsid.block.device import Support
from iscsid.contract import CHECKS, Medium
from iscsid.contract.report import Finding, Outcome, abilities, examine, why_not
from iscsid.plugin.manager import load

SIZE = 4 << 20


def outcomes(findings: list[Finding]) -> set[Outcome]:
    return {finding.outcome for finding in findings}


def test_every_check_is_run_and_told_once() -> None:
    told: list[Finding] = []
    with medium_of(Good) as medium:
        found = examine(medium, told.append)
    assert told == found
    assert len(found) == len(CHECKS)
    assert outcomes(found) == {Outcome.HOLDS, Outcome.LEFT_OUT}
    assert all(finding.about for finding in found)


def test_violation_is_found_with_its_words() -> None:
    with medium_of(ShortRead) as medium:
        found = examine(medium, lambda finding: None)
    (finding,) = [one for one in found if one.name == "first and last block are reached"]
    assert finding.outcome is Outcome.VIOLATED
    assert "byte 511 of 512 is 0xa5" in finding.words


def test_whatever_a_device_raises_is_a_violation() -> None:
    class Exits(Good):
        def write(self, data: memoryview, offset: int) -> None:
            raise SystemExit(3)

    with medium_of(Exits) as medium:
        found = examine(medium, lambda finding: None)
    assert any("SystemExit: 3" in finding.words for finding in found)


def test_check_that_hangs_is_the_last() -> None:
    gate = threading.Event()

    class Hangs(Good):
        def write(self, data: memoryview, offset: int) -> None:
            gate.wait()

    medium = medium_of(Hangs)
    found = examine(medium, lambda finding: None, 0.05)
    assert found[-1].outcome is Outcome.HANGS
    assert found[-1].words == "no answer in 0.05 seconds"
    assert len(found) < len(CHECKS)
    gate.set()


def test_medium_with_data_is_not_touched() -> None:
    with medium_of(Good) as medium:
        assert why_not(medium, overwrite=False) == ""
        medium.open().write(memoryview(b"a" * 512), SIZE - 512)
        assert "there is data on it" in why_not(medium, overwrite=False)
        assert why_not(medium, overwrite=True) == ""


@pytest.mark.parametrize(("size", "reason"), [(1 << 20, "the checks need"), (65 << 20, "too many to see")])
def test_medium_of_an_unfit_size_is_not_touched(size: int, reason: str) -> None:
    with Medium(load(["ram"]), "ram", {"size": size}) as medium:
        assert reason in why_not(medium, overwrite=False)


def test_abilities_are_sorted_by_who_does_them() -> None:
    with medium_of(Good) as medium:
        can = abilities(medium.open())
    assert list(can) == [Support.NATIVE, Support.EMULATE, Support.NONE]
    assert can[Support.NATIVE] == ["write", "discard"]
    assert "fua" in can[Support.EMULATE]
    assert "flush" in can[Support.NONE]
