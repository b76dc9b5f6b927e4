"""The contract of a device (``iscsid.contract``) on every back end, and what is known of our media beyond it."""

from __future__ import annotations

from pathlib import Path

import pytest
import truth

from iscsid.block.device import Content, Support
from iscsid.contract import CHECKS, Medium
from iscsid.contract.checks import Check, extents_of, pattern
from iscsid.contract.expect import read, write

NONE, NATIVE = Support.NONE, Support.NATIVE
PAGE = Path(__file__).resolve().parents[2] / "docs" / "capabilities.md"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract_is_kept(medium: Medium, check: Check) -> None:
    check(medium)


def test_capabilities_are_those_of_the_truth_table(medium: Medium, kind: str) -> None:
    guard = medium.open()
    assert guard.can == truth.TRUTH[kind]
    assert guard.inline is (kind in truth.QUICK)


def test_readonly_medium_tells_its_holes_as_well(medium: Medium, kind: str) -> None:
    can = medium.open("readonly", readonly=True).can
    assert can.block_status == truth.TRUTH[kind].block_status


def test_size_is_what_was_asked_for(medium: Medium, kind: str) -> None:
    guard = medium.open()
    assert guard.size == truth.size(kind)
    assert not guard.readonly


def test_fresh_medium_reads_as_zeros(medium: Medium) -> None:
    assert read(medium.open(), 0, 1 << 20) == bytes(1 << 20)


def test_space_tells_what_is_written(medium: Medium) -> None:
    guard = medium.open()
    if guard.can.space is NONE:
        pytest.skip("this medium does not tell how full it is")
    before = guard.space()
    write(guard, pattern(1 << 20), 0)
    guard.flush()
    after = guard.space()
    assert before.used + (1 << 20) <= after.used <= before.used + (2 << 20)
    assert after.available > 0
    guard.discard(0, 1 << 20)
    assert guard.space().used < after.used


def test_block_status_finds_the_holes(medium: Medium) -> None:
    guard = medium.open()
    if guard.can.block_status is not NATIVE:
        assert extents_of(guard, 0, guard.size) == [(0, guard.size, Content.DATA)]
        return
    hole = Content.HOLE | Content.ZERO
    write(guard, pattern(1 << 20), 1 << 20)
    guard.flush()
    assert extents_of(guard, 0, 3 << 20) == [
        (0, 1 << 20, hole),
        (1 << 20, 1 << 20, Content.DATA),
        (2 << 20, 1 << 20, hole),
    ]
    guard.discard(1 << 20, 512 << 10)
    assert extents_of(guard, 1 << 20, 1 << 20) == [
        (1 << 20, 512 << 10, hole),
        ((1 << 20) + (512 << 10), 512 << 10, Content.DATA),
    ]


def test_page_of_capabilities_is_current() -> None:
    assert PAGE.read_text() == truth.page()
