"""Devices one after the other: where a range falls, and what a mixture of members can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from iscsid_backends.concat import ConcatDevice, iscsid_open
from turns import leaves

from iscsid.block.device import Capabilities, Content, Device, Extent, Mode, Space, Support, Threading
from iscsid.block.turn import pause
from iscsid.errors import BlockError, Fault
from iscsid.plugin.members import Member


class Memory(Device):
    """A member that has all calls, and whose capabilities can be cut."""

    mode = Mode.INLINE
    threading = Threading.PARALLEL
    discard_zeroes = True

    def __init__(self, size: int, without: tuple[str, ...] = (), **facts: Any) -> None:
        self.size = size
        self.data = bytearray(size)
        self.without = without
        self.calls: list[str] = []
        self.closed = False
        for fact, value in facts.items():
            setattr(self, fact, value)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        assert 0 <= offset <= offset + len(buffer) <= self.size
        buffer[:] = self.data[offset : offset + len(buffer)]

    read_nowait = read_into

    def write(self, data: memoryview, offset: int) -> None:
        assert 0 <= offset <= offset + len(data) <= self.size
        self.calls.append("write")
        self.data[offset : offset + len(data)] = data

    write_nowait = write

    def write_fua(self, data: memoryview, offset: int) -> None:
        self.calls.append("write_fua")
        self.data[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.calls.append("flush")

    def discard(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self.data[offset : offset + length] = bytes(length)

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        yield Extent(offset, length, Content.HOLE | Content.ZERO)

    def prefetch(self, offset: int, length: int) -> None:
        self.calls.append(f"prefetch {offset} {length}")

    def space(self) -> Space:
        return Space(self.size, 10 * self.size)

    def capabilities(self) -> Capabilities:
        cut = dict.fromkeys(self.without, Support.NONE)
        return dataclasses.replace(super().capabilities(), **cut)

    def close(self) -> None:
        self.closed = True


def view(data: bytes) -> memoryview:
    return memoryview(data)


def get(device: Device, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    device.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def test_size_is_that_of_all_whole_blocks() -> None:
    assert ConcatDevice([Memory(1024), Memory(2560)]).size == 3584
    assert ConcatDevice([Memory(1536), Memory(4096, block_size=1024)]).size == 5120


def test_member_without_a_whole_block_is_refused() -> None:
    with pytest.raises(BlockError, match="member 0 has no block of 4096 bytes"):
        ConcatDevice([Memory(2048), Memory(8192, block_size=4096)])


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    where=st.tuples(st.integers(0, 29), st.integers(1, 30)),
    fua=st.booleans(),
)
def test_any_range_is_written_and_read_where_it_belongs(sizes: list[int], where: tuple[int, int], fua: bool) -> None:
    members = [Memory(512 * size) for size in sizes]
    device = ConcatDevice(members)
    offset = min(where[0] * 512, device.size - 512)
    length = min(where[1] * 512, device.size - offset)
    data = bytes((offset + index) % 251 for index in range(length))
    (device.write_fua if fua else device.write)(view(data), offset)
    model = bytearray(device.size)
    model[offset : offset + length] = data
    assert b"".join(member.data for member in members) == model
    assert get(device, offset, length) == data
    assert [(extent.offset, extent.length) for extent in device.block_status(offset, length)] == [
        (part[0], part[1]) for part in _split(sizes, offset, length)
    ]
    device.discard(offset, length)
    assert not any(any(member.data) for member in members)


def _split(sizes: list[int], offset: int, length: int) -> list[tuple[int, int]]:
    parts, base = [], 0
    for size in sizes:
        begin, end = max(base, offset), min(base + 512 * size, offset + length)
        if begin < end:
            parts.append((begin, end - begin))
        base += 512 * size
    return parts


def test_capabilities_are_what_all_can() -> None:
    whole = ConcatDevice([Memory(512), Memory(512)]).capabilities()
    assert whole == dataclasses.replace(Memory(512).capabilities(), view=Support.NONE)
    names = ("discard", "write_zeroes", "space", "read_nowait", "write_nowait", "write")
    cut = ConcatDevice([Memory(512), Memory(512, names)]).capabilities()
    assert {getattr(cut, name) for name in names} == {Support.NONE}


def test_member_that_cannot_tell_its_holes_has_data() -> None:
    device = ConcatDevice([Memory(512), Memory(512, ("block_status",))])
    assert [extent.content for extent in device.block_status(0, 1024)] == [Content.HOLE | Content.ZERO, Content.DATA]


def test_flush_reaches_the_members_that_have_something_to_flush() -> None:
    members = [Memory(512), Memory(512, ("flush", "fua"))]
    device = ConcatDevice(members)
    assert device.capabilities().flush is Support.NATIVE
    device.flush()
    assert [member.calls for member in members] == [["flush"], []]


def test_forced_write_to_a_member_with_nothing_to_flush_is_a_write() -> None:
    members = [Memory(512), Memory(512, ("flush", "fua"))]
    device = ConcatDevice(members)
    assert device.capabilities().fua is Support.NATIVE
    device.write_fua(view(bytes(1024)), 0)
    assert [member.calls for member in members] == [["write_fua"], ["write"]]


def test_forced_write_is_left_to_the_guard_where_a_member_needs_a_flush() -> None:
    assert ConcatDevice([Memory(512), Memory(512, ("fua",))]).capabilities().fua is Support.NONE


def test_flush_that_fails_on_one_member_is_tried_on_all_and_told() -> None:
    members = [Memory(512), Memory(512)]

    def fail() -> None:
        raise OSError(5, "no")

    members[0].flush = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="no"):
        ConcatDevice(members).flush()
    assert members[1].calls == ["flush"]


def test_prefetch_goes_to_the_members_of_the_range() -> None:
    members = [Memory(1024), Memory(1024), Memory(1024)]
    ConcatDevice(members).prefetch(512, 1024)
    assert [member.calls for member in members] == [["prefetch 512 512"], ["prefetch 0 512"], []]


def test_space_is_used_by_all_and_left_where_there_is_least() -> None:
    assert ConcatDevice([Memory(512), Memory(1024)]).space() == Space(1536, 5120)


@pytest.mark.parametrize(
    ("facts", "fact", "expected"),
    [
        ({"readonly": True}, "readonly", True),
        ({"mode": Mode.BLOCKING}, "mode", Mode.BLOCKING),
        ({"threading": Threading.SERIAL}, "threading", Threading.SERIAL),
        ({"discard_zeroes": False}, "discard_zeroes", False),
        ({"alignment": 512}, "alignment", 512),
        ({"rotational": True}, "rotational", True),
    ],
)
def test_one_member_decides_some_facts(facts: dict[str, Any], fact: str, expected: Any) -> None:
    assert getattr(ConcatDevice([Memory(512), Memory(512, **facts)]), fact) == expected


def test_close_closes_all() -> None:
    members = [Memory(512), Memory(512)]
    ConcatDevice(members).close()
    assert all(member.closed for member in members)


def test_member_that_does_not_open_closes_those_that_did() -> None:
    first = Memory(512)

    def fail() -> Device:
        raise BlockError(Fault.NOT_READY)

    with pytest.raises(BlockError):
        iscsid_open({"members": (Member("a", opener=lambda: first), Member("b", opener=fail))}, "worker")
    assert first.closed


class Pausing(Memory):
    """Every change pauses, as it does with the layer ``delay`` over the member."""

    def write(self, data: memoryview, offset: int) -> None:
        pause(self, lambda: 1.0, lambda _seconds: None)
        super().write(data, offset)

    def discard(self, offset: int, length: int) -> None:
        pause(self, lambda: 1.0, lambda _seconds: None)
        self.calls.append("discard")

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        pause(self, lambda: 1.0, lambda _seconds: None)
        self.calls.append("zeroes")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("write", lambda device: device.write(memoryview(bytes(2048)), 3072)),
        ("discard", lambda device: device.discard(3072, 2048)),
        ("zeroes", lambda device: device.write_zeroes(3072, 2048, True)),
    ],
)
def test_change_of_two_members_is_left_before_the_first_and_done_once(
    name: str, change: Callable[[Device], None]
) -> None:
    members = [Pausing(4096), Pausing(4096)]
    device = ConcatDevice(members)
    assert leaves(lambda: change(device)) == 1
    assert [member.calls for member in members] == [[name], [name]]
