"""What silence of a device means: its facts have safe defaults, and what it does not override is absent."""

from __future__ import annotations

import dataclasses

import pytest

from iscsid.block.device import Capabilities, Content, Device, Extent, Mode, Support, Threading

METHODS = {
    "flush": "flush",
    "fua": "write_fua",
    "discard": "discard",
    "write_zeroes": "write_zeroes",
    "block_status": "block_status",
    "prefetch": "prefetch",
    "space": "space",
    "view": "view",
    "read_nowait": "read_nowait",
    "write_nowait": "write_nowait",
}


class Smallest(Device):
    size = 1 << 20

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = bytes(len(buffer))

    def write(self, data: memoryview, offset: int) -> None:
        pass


def test_smallest_device_can_write_and_no_more() -> None:
    assert Smallest().capabilities() == Capabilities(write=Support.NATIVE)


def test_device_without_write_can_nothing() -> None:
    class Reader(Device):
        size = 512

    assert Reader().capabilities() == Capabilities()


def test_readonly_device_does_not_write() -> None:
    device = Smallest()
    device.readonly = True
    assert device.capabilities().write is Support.NONE


@pytest.mark.parametrize(("capability", "method"), METHODS.items())
def test_overridden_method_is_a_capability(capability: str, method: str) -> None:
    kind = type("Able", (Smallest,), {method: lambda self, *arguments: None})
    expected = dataclasses.replace(Capabilities(write=Support.NATIVE), **{capability: Support.NATIVE})
    assert kind().capabilities() == expected


def test_every_capability_has_a_method() -> None:
    assert {field.name for field in dataclasses.fields(Capabilities)} == {*METHODS, "write"}


@pytest.mark.parametrize("method", ["read_into", "write", "write_fua", "read_nowait", "write_nowait"])
def test_absent_transfer_is_not_implemented(method: str) -> None:
    with pytest.raises(NotImplementedError):
        getattr(Device(), method)(memoryview(bytearray(512)), 0)


def test_absent_calls_are_not_implemented() -> None:
    device = Device()
    calls = (
        device.flush,
        lambda: device.discard(0, 512),
        lambda: device.write_zeroes(0, 512, True),
        lambda: device.block_status(0, 512),
        lambda: device.prefetch(0, 512),
        device.space,
        lambda: device.view(0, 512),
    )
    for call in calls:
        with pytest.raises(NotImplementedError):
            call()


def test_close_of_a_device_that_holds_nothing_is_allowed() -> None:
    Smallest().close()


def test_defaults_are_the_safe_ones() -> None:
    device = Smallest()
    assert (device.mode, device.threading) == (Mode.BLOCKING, Threading.SERIAL)
    assert (device.block_size, device.alignment) == (512, 1)
    assert not (device.readonly or device.removable or device.rotational or device.discard_zeroes)


def test_extent_is_a_tuple_of_offset_length_content() -> None:
    offset, length, content = Extent(512, 1024, Content.HOLE | Content.ZERO)
    assert (offset, length) == (512, 1024)
    assert content & Content.ZERO
    assert not Content.DATA & Content.HOLE
