"""What is protected is not written, by whatever call; the rest is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from layer_kit import SIZE, Recorder, read, write

from iscsid.block.device import Support
from iscsid.block.guard import Guarded
from iscsid.errors import BlockError, Fault, PluginError

Wrap = Callable[..., Any]


def test_whole_device_is_read_only(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "protect"))
    assert guard.readonly
    assert guard.can.write is Support.NONE
    read(guard)
    with pytest.raises(BlockError) as caught:
        write(guard, bytes(512))
    assert caught.value.fault is Fault.READ_ONLY


@pytest.mark.parametrize(
    ("offset", "length", "refused"),
    [(0, 4096, False), (0, 4608, True), (4096, 512, True), (8192 - 512, 1024, True), (8192, 512, False)],
)
def test_range_is_not_touched_by_any_call(below: Recorder, wrap: Wrap, offset: int, length: int, refused: bool) -> None:
    guard = Guarded(wrap(below, "protect", offset=4096, size=4096))
    data = memoryview(bytes(length))
    calls: list[Callable[[], Any]] = [
        lambda: guard.write(data, offset),
        lambda: guard.write(data, offset, True),
        lambda: guard.write_now(data, offset),
        lambda: guard.discard(offset, length),
        lambda: guard.write_zeroes(offset, length),
    ]
    for call in calls:
        if refused:
            with pytest.raises(BlockError) as caught:
                call()
            assert caught.value.fault is Fault.READ_ONLY
        else:
            call()
    assert len(below.calls) == (0 if refused else len(calls))
    read(guard, 0, 8192)
    guard.flush()


def test_range_that_is_not_there_is_refused(below: Recorder, wrap: Wrap) -> None:
    with pytest.raises(PluginError, match="the device has 1048576 bytes"):
        wrap(below, "protect", offset=SIZE)
