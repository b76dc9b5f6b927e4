"""The lines say what happened; off is out of the way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from layer_kit import Recorder, read, write

from iscsid.block.guard import Guarded
from iscsid.errors import BlockError, Fault

Wrap = Callable[..., Any]


def fail(*_: Any) -> None:
    raise BlockError(Fault.READ_ERROR, "a scratch")


def test_each_call_has_its_line(below: Recorder, wrap: Wrap, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    guard = Guarded(wrap(below, "log", name="disk7", level="debug"))
    read(guard, 512, 1024)
    guard.flush()
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("disk7: read_into 512+1024: ")
    assert lines[1].startswith("disk7: flush 0+0: ")
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def test_failed_calls_say_why(below: Recorder, wrap: Wrap, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    guard = Guarded(wrap(below, "log", calls="failed"))
    write(guard, bytes(512))
    below.fail = fail
    with pytest.raises(BlockError):
        read(guard)
    (record,) = caplog.records
    assert "device: read_into 0+4096: a scratch after " in record.getMessage()


def test_lines_that_nobody_wants_are_not_made_until_somebody_does(
    below: Recorder, wrap: Wrap, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    device = wrap(below, "log", level="debug")
    read(device)
    assert not caplog.records
    caplog.set_level(logging.DEBUG)
    read(device)
    assert len(caplog.records) == 1


def test_kind_that_is_not_asked_for_is_the_call_below(below: Recorder, wrap: Wrap) -> None:
    device = wrap(below, "log", calls="write")
    assert device.read_into == below.read_into
    assert device.write != below.write


def test_off_is_no_layer(below: Recorder, wrap: Wrap) -> None:
    assert wrap(below, "log", level="off") is below
