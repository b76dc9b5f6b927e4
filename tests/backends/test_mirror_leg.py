"""What a leg does by other means, and what it is called."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from iscsid_backends.mirror_leg import PIECE, Handle, Leg, name_of

from iscsid.block.device import Device, Threading
from iscsid.errors import BlockError, Fault
from iscsid.plugin.members import Member

SIZE = 4 << 20


class Plain(Device):
    """Only what every device has."""

    size = SIZE
    threading = Threading.PARALLEL

    def __init__(self) -> None:
        self.data = bytearray(b"x" * SIZE)
        self.calls: list[tuple[Any, ...]] = []
        self.refuses: Exception | None = None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = self.data[offset : offset + len(buffer)]

    def nothing(self, buffer: memoryview, offset: int) -> None:
        raise OSError(errno.EIO, "broken")

    def write(self, data: memoryview, offset: int) -> None:
        self.calls.append(("write", offset, len(data)))
        self.data[offset : offset + len(data)] = data


class Able(Plain):
    def flush(self) -> None:
        self.calls.append(("flush",))

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.calls.append(("zeroes", offset, length))

    def discard(self, offset: int, length: int) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.calls.append(("discard", offset, length))


class Zeroing(Able):
    discard_zeroes = True


def test_forced_write_is_flushed_where_there_is_something_to_flush() -> None:
    plain, able = Plain(), Able()
    for device in (plain, able):
        Handle(device).write_fua(memoryview(bytes(512)), 0)
    assert plain.calls == [("write", 0, 512)]
    assert able.calls == [("write", 0, 512), ("flush",)]
    Handle(plain).flush()


def test_what_cannot_be_read_is_neither_there_nor_something_else() -> None:
    device, there = Plain(), memoryview(bytearray(512))
    assert Handle(device).has(memoryview(b"x" * 512), there, 0) is True
    assert Handle(device).has(memoryview(b"y" * 512), there, 0) is False
    device.read_into = device.nothing  # type: ignore[method-assign]
    assert Handle(device).has(memoryview(b"x" * 512), there, 0) is None


@pytest.mark.parametrize("error", [None, BlockError(Fault.UNSUPPORTED), OSError(errno.EOPNOTSUPP, "no")])
def test_zeroes_that_the_device_does_not_have_are_written(error: Exception | None) -> None:
    device = Plain() if error is None else Able()
    device.refuses = error
    Handle(device).write_zeroes(512, 2 * PIECE + 512, False)
    assert device.calls == [("write", 512, PIECE), ("write", 512 + PIECE, PIECE), ("write", 512 + 2 * PIECE, 512)]
    assert device.data[:512] == b"x" * 512 and not any(device.data[512 : 1024 + 2 * PIECE])


def test_zeroes_that_fail_are_an_error() -> None:
    device = Able()
    device.refuses = OSError(errno.EIO, "broken")
    with pytest.raises(OSError, match="broken"):
        Handle(device).write_zeroes(0, 512, False)
    assert device.calls == []


@pytest.mark.parametrize(
    ("device", "zeroes", "calls"),
    [
        (Able(), False, [("discard", 0, PIECE + 512)]),
        (Zeroing(), True, [("discard", 0, PIECE + 512)]),
        (Able(), True, [("zeroes", 0, PIECE + 512)]),
        (Plain(), False, []),
        (Plain(), True, [("write", 0, PIECE), ("write", PIECE, 512)]),
    ],
    ids=["any", "zeroing", "not-zeroing", "nothing", "by-writing"],
)
def test_discard_is_done_by_what_the_device_has(device: Plain, zeroes: bool, calls: list[tuple[Any, ...]]) -> None:
    Handle(device).discard(0, PIECE + 512, zeroes)
    assert device.calls == calls


@pytest.mark.parametrize("error", [BlockError(Fault.UNSUPPORTED), OSError(errno.EOPNOTSUPP, "no")])
def test_discard_that_is_refused_for_its_range_is_done_by_writing(error: Exception) -> None:
    device = Zeroing()
    device.refuses = error
    Handle(device).discard(0, 4096, True)
    assert device.calls == [("write", 0, 4096)]
    assert not any(device.data[:4096])


def test_discard_that_fails_is_an_error() -> None:
    device = Zeroing()
    device.refuses = OSError(errno.EIO, "broken")
    with pytest.raises(OSError, match="broken"):
        Handle(device).discard(0, 4096, True)
    assert device.calls == []


def test_leg_that_is_opened_again_has_no_past() -> None:
    leg = Leg(1, Member("disk", {"path": "/b"}, opener=Plain))
    leg.doubts, leg.unread, leg.rests = {1}, {2}, 3.0
    handle = leg.open()
    assert leg.handle is None
    leg.take_up(handle)
    assert leg.handle is handle
    assert (leg.bit, leg.doubts, leg.unread, leg.rests) == (2, set(), set(), 0.0)


@pytest.mark.parametrize(
    ("member", "name"),
    [
        (Member("file", {"path": "/a"}), "file /a"),
        (Member("ram", {}), "ram"),
        (Member("file", {"path": "/a"}, (("offset", {"start": 1}), ("log", {}))), "file /a offset {'start': 1}"),
    ],
)
def test_name_tells_legs_apart(member: Member, name: str) -> None:
    assert name_of(member) == name
