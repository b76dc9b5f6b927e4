"""What layers around calls have in common: every capability stays, and waiting ones leave the loop."""

from __future__ import annotations

from typing import Any

import pytest
from iscsid_plugins.around import KINDS, Around, Call, extent_of
from layer_kit import Recorder, read, write

from iscsid.block.device import Device, Mode, Support
from iscsid.block.guard import Guarded


class Named(Around):
    def __init__(self, below: Recorder, seen: list[tuple[str, str, tuple[int, int]]]) -> None:
        self.seen = seen
        super().__init__(below)

    def around(self, name: str, kind: str, call: Call) -> Call:
        extent = extent_of(name)

        def noted(*arguments: Any) -> Any:
            self.seen.append((name, kind, extent(*arguments)))
            return call(*arguments)

        return noted


class Waiting(Named):
    waits = True


def test_each_call_goes_through_the_layer_with_its_extent(below: Recorder) -> None:
    seen: list[tuple[str, str, tuple[int, int]]] = []
    guard = Guarded(Named(below, seen))
    write(guard, b"x" * 512, 512)
    guard.write(memoryview(bytes(1024)), 0, True)
    read(guard, 0, 4096)
    guard.read_now(memoryview(bytearray(512)), 1024)
    guard.write_now(memoryview(bytes(512)), 2048)
    guard.discard(4096, 8192)
    guard.write_zeroes(0, 512, True)
    guard.flush()
    assert seen == [
        ("write", "write", (512, 512)),
        ("write_fua", "write", (0, 1024)),
        ("read_into", "read", (0, 4096)),
        ("read_nowait", "read", (1024, 512)),
        ("write_nowait", "write", (2048, 512)),
        ("discard", "discard", (4096, 8192)),
        ("write_zeroes", "write", (0, 512)),
        ("flush", "flush", (0, 0)),
    ]


@pytest.mark.parametrize("layer", [Named, Waiting])
def test_capabilities_are_those_of_the_device_below(below: Recorder, layer: type[Named]) -> None:
    assert Guarded(layer(below, [])).can == Guarded(below).can


def test_layer_that_waits_over_an_inline_device_is_tried_in_the_loop() -> None:
    class Inline(Recorder):
        mode = Mode.INLINE
        read_nowait = Device.read_nowait
        write_nowait = Device.write_nowait

    below, seen = Inline(), list[tuple[str, str, tuple[int, int]]]()
    guard = Guarded(Waiting(below, seen))
    assert not guard.inline
    assert guard.can.read_nowait is guard.can.write_nowait is Support.NATIVE
    guard.read_now(memoryview(bytearray(512)), 512)
    assert (seen[-1][0], below.names()) == ("read_nowait", ["read_into"])


def test_every_kind_is_one_of_four() -> None:
    assert set(KINDS.values()) == {"read", "write", "discard", "flush"}
