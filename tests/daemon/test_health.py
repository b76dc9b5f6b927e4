"""daemon.health: what several workers say of a LUN is one state, which is logged when it changes."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from iscsid.daemon.health import FAILING_SECONDS, Book
from iscsid.scsi.removable import Medium
from iscsid.shared.messages import UnitHealth

KEY = ("iqn.2026-11.org.iscsid:disk0", 3)
FIXED = Medium()
FAILED = UnitHealth(*KEY, read_errors=2, kind="read", reason="bad sector", at=100.0, promised=4096)
HANGING = UnitHealth(*KEY, hanging=1, waiting=4, since=90.0, promised=4096)


def told(book: Book, now: float, medium: Medium = FIXED) -> dict[str, Any]:
    return book.tell(KEY, medium, now)


def test_lun_that_nobody_speaks_of_is_well() -> None:
    assert told(Book(), 5.0) == {
        "state": "ok",
        "well": True,
        "seconds": 0.0,
        "hanging": 0,
        "waiting": 0,
        "errors": {"read": 0, "write": 0, "flush": 0},
        "last_error": None,
        "size": None,
        "promised": None,
    }


def test_errors_of_all_workers_are_added_and_the_last_of_all_is_told() -> None:
    book = Book()
    book.heard(0, FAILED)
    book.heard(1, UnitHealth(*KEY, write_errors=1, flush_errors=1, kind="flush", reason="lost", at=105.0))
    health = told(book, 110.0)
    assert health["errors"] == {"read": 2, "write": 1, "flush": 1}
    assert health["last_error"] == {"kind": "flush", "reason": "lost", "seconds_ago": 5.0}
    assert health["state"] == "failing"


def test_lun_that_has_not_failed_for_long_is_well_and_its_errors_are_told_still() -> None:
    book = Book()
    book.heard(0, FAILED)
    assert told(book, 100.0 + FAILING_SECONDS - 1)["state"] == "failing"
    health = told(book, 100.0 + FAILING_SECONDS)
    assert (health["state"], health["well"], health["errors"]["read"]) == ("ok", True, 2)


@pytest.mark.parametrize(
    ("message", "state"),
    [
        (HANGING, "hanging"),
        (replace(HANGING, ready=False), "hanging"),
        (replace(FAILED, absent=True), "not ready"),
        (UnitHealth(*KEY, ready=False), "not ready"),
        (replace(FAILED, size=2048), "too short"),
        (replace(FAILED, size=4096), "failing"),
        (UnitHealth(*KEY), "ok"),
    ],
)
def test_state_is_the_first_that_fits(message: UnitHealth, state: str) -> None:
    book = Book()
    book.heard(0, message)
    health = told(book, 101.0)
    assert (health["state"], health["well"]) == (state, state == "ok")


def test_hanging_is_since_the_oldest_call_of_all_workers() -> None:
    book = Book()
    book.heard(0, HANGING)
    book.heard(1, replace(HANGING, hanging=2, since=70.0))
    book.heard(2, UnitHealth(*KEY))
    health = told(book, 100.0)
    assert (health["hanging"], health["waiting"], health["seconds"]) == (3, 8, 30.0)


@pytest.mark.parametrize(
    ("medium", "state"), [(Medium(True, False), "no medium"), (Medium(started=False), "stopped"), (FIXED, "ok")]
)
def test_medium_that_was_taken_out_is_told_and_well(medium: Medium, state: str) -> None:
    health = told(Book(), 1.0, medium)
    assert (health["state"], health["well"]) == (state, True)


def test_death_of_a_worker_ends_what_hung_in_it_and_keeps_what_failed() -> None:
    book = Book()
    for worker in (0, 1):
        book.heard(worker, replace(FAILED, hanging=1, since=90.0, at=100.0 + worker, size=512, ready=False))
        book.died(worker)
    health = told(book, 102.0)
    assert (health["state"], health["hanging"], health["size"]) == ("failing", 0, None)
    assert health["errors"]["read"] == 4
    assert health["last_error"]["seconds_ago"] == 1.0
    book.heard(0, FAILED)
    assert told(book, 102.0)["errors"]["read"] == 6


def test_log_tells_once_how_a_lun_is_and_when_it_is_well_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    book = Book()
    book.heard(0, FAILED)
    for now in (100.0, 101.0, 130.0):
        book.tick([KEY], now)
    assert [record.message for record in caplog.records] == [f"{KEY[0]} LUN 3: failing: read: bad sector"]
    book.heard(0, replace(FAILED, size=512))
    book.tick([KEY], 131.0)
    assert caplog.records[-1].message == f"{KEY[0]} LUN 3: too short: it has 512 bytes, and 4096 were promised"
    assert told(book, 141.0)["seconds"] == 10.0
    book.heard(0, FAILED)
    book.tick([KEY], 1000.0)
    assert caplog.records[-1].message == f"{KEY[0]} LUN 3: well again"
    assert len(caplog.records) == 3


def test_log_leaves_what_hangs_to_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    book = Book()
    book.heard(0, HANGING)
    book.tick([KEY], 100.0)
    book.heard(0, UnitHealth(*KEY))
    book.tick([KEY], 101.0)
    assert not caplog.records


def test_lun_that_has_gone_is_forgotten() -> None:
    book = Book()
    book.heard(0, FAILED)
    book.tick([], 100.0)
    assert told(book, 101.0)["state"] == "ok"
