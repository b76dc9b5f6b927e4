"""A layer that does nothing costs nothing and hides nothing, and no way to the data leads around one that does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest

from iscsid.block.device import Capabilities, Content, Device, Extent, Mode, Space, Support, Threading
from iscsid.block.filter import AROUND, CALLS, FACTS, Filter
from iscsid.block.guard import Guarded


class Able(Device):
    """Memory that has every call, and counts them by name."""

    size = 1 << 16
    block_size = 1024
    physical_block_size = 4096
    minimum_io = optimal_io = discard_granularity = 4096
    discard_alignment = 0
    discard_zeroes = True
    mode = Mode.INLINE
    threading = Threading.PARALLEL

    def __init__(self) -> None:
        self.data = bytearray(self.size)
        self.seen: list[str] = []
        self.closed = 0

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.seen.append("read_into")
        buffer[:] = self.data[offset : offset + len(buffer)]

    def write(self, data: memoryview, offset: int) -> None:
        self.seen.append("write")
        self.data[offset : offset + len(data)] = data

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        self.seen.append("read_nowait")

    def write_nowait(self, data: memoryview, offset: int) -> None:
        self.seen.append("write_nowait")

    def write_fua(self, data: memoryview, offset: int) -> None:
        self.seen.append("write_fua")

    def flush(self) -> None:
        self.seen.append("flush")

    def discard(self, offset: int, length: int) -> None:
        self.seen.append("discard")

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self.seen.append("write_zeroes")

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        self.seen.append("block_status")
        return [Extent(offset, length, Content.DATA)]

    def prefetch(self, offset: int, length: int) -> None:
        self.seen.append("prefetch")

    def space(self) -> Space:
        self.seen.append("space")
        return Space(0, 1)

    def view(self, offset: int, length: int) -> memoryview:
        self.seen.append("view")
        return memoryview(self.data)[offset : offset + length]

    def close(self) -> None:
        self.closed += 1


class Nothing(Filter):
    """A layer that changes nothing."""


class Xor(Filter):
    """A layer that changes what is read and what is written."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.below.read_into(buffer, offset)
        buffer[:] = bytes(byte ^ 0xFF for byte in buffer)

    def write(self, data: memoryview, offset: int) -> None:
        self.below.write(memoryview(bytes(byte ^ 0xFF for byte in data)), offset)


def test_every_call_of_a_device_is_passed_on_or_hidden() -> None:
    public = {name for name, value in vars(Device).items() if callable(value) and not name.startswith("_")}
    assert public == {*CALLS, "close", "capabilities", "current_size"}
    assert {capability for capability in CALLS.values() if capability} == {
        field.name for field in dataclasses.fields(Capabilities)
    }
    assert {way for ways in AROUND.values() for way in ways} <= set(CALLS)


def test_layer_is_as_much_too_short_as_the_device_below() -> None:
    class Part(Nothing):
        size = 512

    class Cut(Able):
        def __init__(self, left: int) -> None:
            super().__init__()
            self.left = left

        def current_size(self) -> int:
            return self.size - self.left

    for left, whole, part in ((0, 1 << 16, 512), (500, (1 << 16) - 500, 12), (1024, (1 << 16) - 1024, 0)):
        assert (Nothing(Cut(left)).current_size(), Part(Cut(left)).current_size()) == (whole, part)


def test_every_fact_of_a_device_is_known() -> None:
    assert set(FACTS) == set(Device.__annotations__)


@pytest.mark.parametrize("fact", FACTS)
def test_layer_has_the_facts_of_the_device_below(fact: str) -> None:
    device = Able()
    assert getattr(Nothing(device), fact) == getattr(device, fact)


def test_layer_that_gives_a_fact_keeps_it_even_when_it_is_the_default() -> None:
    class Waits(Filter):
        mode = Mode.BLOCKING

    assert Waits(Able()).mode is Mode.BLOCKING


def test_layer_that_changes_nothing_can_what_the_device_below_can() -> None:
    device = Able()
    assert Nothing(device).capabilities() == device.capabilities()


def test_layer_that_changes_nothing_is_not_in_the_way() -> None:
    device = Able()
    layer = Nothing(device)
    assert layer.read_into == device.read_into
    assert layer.view == device.view


def test_layers_over_layers_call_the_device_itself() -> None:
    device = Able()
    assert Nothing(Nothing(device)).write == device.write


def test_layer_that_changes_data_has_no_other_way_to_it() -> None:
    device = Able()
    able = Xor(device).capabilities()
    for ways in AROUND.values():
        for way in ways:
            assert getattr(able, CALLS[way]) is Support.NONE, way
    assert (able.write, able.flush, able.block_status) == (Support.NATIVE,) * 3


@pytest.mark.parametrize("way", [way for ways in AROUND.values() for way in ways])
def test_hidden_way_is_not_there_to_be_called(way: str) -> None:
    layer = Xor(Able())
    with pytest.raises(NotImplementedError):
        getattr(layer, way)(*((0, 512, True) if way == "write_zeroes" else (0, 512)))


def test_layer_that_changes_another_way_too_has_it() -> None:
    class Both(Xor):
        def write_fua(self, data: memoryview, offset: int) -> None:
            self.write(data, offset)
            self.below.flush()

    assert Both(Able()).capabilities().fua is Support.NATIVE


def test_data_under_the_guard_goes_through_every_layer() -> None:
    device = Able()
    guarded = Guarded(Xor(Nothing(Xor(Nothing(Xor(device))))))
    guarded.write(memoryview(b"\x0f" * 1024), 1024, fua=True)
    guarded.write_zeroes(2048, 1024, may_unmap=True)
    assert device.data[1024:2048] == b"\xf0" * 1024
    assert device.data[2048:3072] == b"\xff" * 1024
    buffer = bytearray(2048)
    guarded.read_into(memoryview(buffer), 1024)
    assert buffer == b"\x0f" * 1024 + bytes(1024)
    assert {"view", "write_zeroes", "write_fua", "read_nowait"}.isdisjoint(device.seen)


def test_guard_takes_the_calls_that_a_layer_passes_on() -> None:
    device = Able()
    guarded = Guarded(Nothing(device))
    guarded.flush()
    guarded.discard(0, 4096)
    assert bytes(guarded.view(0, 1024)) == bytes(1024)
    assert device.seen == ["flush", "discard", "view"]


def test_layer_that_protects_has_no_writes() -> None:
    class Protect(Filter):
        readonly = True

    guarded = Guarded(Protect(Able()))
    assert guarded.readonly
    assert guarded.can.write is Support.NONE


def test_close_of_a_layer_closes_the_device() -> None:
    device = Able()
    Nothing(Nothing(device)).close()
    assert device.closed == 1
