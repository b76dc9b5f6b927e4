"""Calls that no session asked for: none is in a device that is closed."""

from __future__ import annotations

from typing import Any

import pytest

from iscsid.daemon.errands import Errands


class Rig:
    """A pool whose calls the test runs."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any]] = []
        self.log: list[Any] = []
        self.errands = Errands(lambda run, done: self.calls.append((run, done)))
        self.one: Any = object()
        self.other: Any = object()

    def submit(self, device: Any, what: str) -> None:
        self.errands.submit(device, lambda: what, lambda result, error: self.log.append((result, error)))

    def shut(self, *devices: Any) -> None:
        self.errands.shut(devices, lambda: self.log.append("shut"))

    def end(self, error: Exception | None = None) -> None:
        run, done = self.calls.pop(0)
        done(None if error else run(), error)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_idle_device_is_shut_at_once(rig: Rig) -> None:
    rig.submit(rig.other, "other")
    rig.shut(rig.one)
    assert rig.log == ["shut"]


def test_device_is_shut_when_the_last_call_in_it_has_ended(rig: Rig) -> None:
    rig.submit(rig.one, "first")
    rig.submit(rig.one, "second")
    rig.shut(rig.one, rig.other)
    rig.end()
    assert rig.log == [("first", None)]
    error = OSError(5, "planted")
    rig.end(error)
    assert rig.log == [("first", None), (None, error), "shut"]


def test_call_that_comes_while_others_are_waited_for_is_made(rig: Rig) -> None:
    rig.submit(rig.one, "first")
    rig.shut(rig.one)
    rig.submit(rig.one, "second")
    rig.end()
    assert rig.log == [("first", None)]
    rig.end()
    assert rig.log[1:] == [("second", None), "shut"]


def test_nothing_is_called_in_a_device_that_is_shut(rig: Rig) -> None:
    rig.shut(rig.one)
    rig.submit(rig.one, "never")
    rig.submit(rig.other, "other")
    rig.end()
    rig.end()
    assert rig.log == ["shut", (None, None), ("other", None)]
    rig.errands.open([rig.one])
    rig.submit(rig.one, "again")
    rig.end()
    assert rig.log[-1] == ("again", None)


def test_who_waits_is_not_told_when_the_devices_stay_open(rig: Rig) -> None:
    rig.submit(rig.one, "first")
    rig.shut(rig.one)
    rig.errands.open([rig.one])
    rig.end()
    assert rig.log == [("first", None)]


def test_end_that_raises_does_not_keep_the_device(rig: Rig) -> None:
    def raises(_result: object, _error: object) -> None:
        raise ValueError("planted")

    rig.errands.submit(rig.one, lambda: None, raises)
    rig.shut(rig.one)
    with pytest.raises(ValueError, match="planted"):
        rig.end()
    assert rig.log == ["shut"]
