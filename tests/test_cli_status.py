"""What ``iscsid status`` shows of LUNs: one calm line, or which is not well, how, since when and why."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from iscsid.cli_status import print_health

WELL: dict[str, Any] = {
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
LAST = {"kind": "read", "reason": "bad\x1b[31m sector", "seconds_ago": 125.0}


def shown(*healths: dict[str, Any]) -> list[str]:
    console = Console(width=240, force_terminal=False, highlight=False)
    luns = [{"lun": lun, "health": {**WELL, **health}} for lun, health in enumerate(healths)]
    with console.capture() as capture:
        print_health(console, {"targets": [{"name": "disk0", "luns": luns}, {"name": "empty", "luns": []}]})
    return capture.get().splitlines()


def test_server_without_a_lun_has_nothing_to_say() -> None:
    assert shown() == []


def test_luns_that_are_well_are_one_calm_line() -> None:
    assert shown({}, {}) == ["LUNs       well"]


def test_lun_that_hangs_is_told_with_what_waits_for_it() -> None:
    health = {"state": "hanging", "well": False, "seconds": 41.0, "hanging": 3, "waiting": 12}
    assert shown({}, health) == [
        "LUNs       1 of 2 LUNs is not well",
        "  disk0 LUN 1: hanging for 41s: 3 calls hang, 12 wait for them",
    ]


def test_lun_that_fails_is_told_with_its_errors_and_nothing_that_steers_a_terminal() -> None:
    health = {"state": "failing", "well": False, "seconds": 60.0, "last_error": LAST}
    errors = {"errors": {"read": 2, "write": 0, "flush": 1}}
    assert shown({**health, **errors}, {"state": "not ready", "well": False, "seconds": 1.0}) == [
        "LUNs       2 of 2 LUNs are not well",
        "  disk0 LUN 0: failing for 1m 0s: errors: 2 read, 1 flush; the last 2m 5s ago, read: bad\\x1b[31m sector",
        "  disk0 LUN 1: not ready for 1s",
    ]


def test_lun_that_is_too_short_is_told_with_both_sizes() -> None:
    assert shown({"state": "too short", "well": False, "seconds": 3.0, "size": 512, "promised": 1 << 20})[1] == (
        "  disk0 LUN 0: too short for 3s: has 512 bytes of 1,048,576"
    )


def test_lun_that_is_well_again_and_one_without_a_medium_are_told_calmly() -> None:
    past = {"last_error": LAST, "errors": {"read": 1, "write": 0, "flush": 0}}
    assert shown(past, {"state": "no medium", "seconds": 5.0}) == [
        "LUNs       well",
        "  disk0 LUN 0: ok: errors: 1 read; the last 2m 5s ago, read: bad\\x1b[31m sector",
        "  disk0 LUN 1: no medium for 5s",
    ]
