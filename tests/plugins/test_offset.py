"""A part of a device: where it lies, and what is no part."""

from __future__ import annotations

from typing import Any

import pytest
from iscsid_plugins.offset import Offset

from iscsid.block.device import Device
from iscsid.block.guard import Guarded
from iscsid.errors import BlockError
from iscsid.plugin.manager import load

SIZE = 1 << 20


@pytest.fixture
def below() -> Device:
    plugins = load(["ram"])
    return plugins.open("ram", plugins.prepare("ram", {"size": SIZE}))


def read(device: Device, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    device.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def test_part_is_read_and_written_where_it_lies(below: Device) -> None:
    guard = Guarded(Offset(below, 8192, 4096))
    assert guard.size == 4096
    guard.write(memoryview(b"a" * 512), 512)
    assert read(below, 8192 + 512, 512) == b"a" * 512
    assert bytes(guard.view(512, 512)) == b"a" * 512
    guard.write_zeroes(512, 512)
    assert read(below, 8192 + 512, 512) == bytes(512)
    guard.close()


def test_every_call_stays_within_the_part(below: Device) -> None:
    below.write(memoryview(b"\xff" * SIZE), 0)
    guard = Guarded(Offset(below, 65536, 65536))
    guard.discard(0, 65536)
    guard.write_zeroes(0, 65536, may_unmap=True)
    assert [tuple(extent)[:2] for extent in guard.block_status(0, 65536)] == [(0, 65536)]
    with pytest.raises(BlockError):
        guard.write(memoryview(bytes(512)), 65536)
    guard.close()


def test_bytes_around_the_part_are_untouched(below: Device) -> None:
    below.write(memoryview(b"\xff" * SIZE), 0)
    part = Offset(below, 65536, 65536)
    part.discard(0, 65536)
    assert read(below, 65536, 65536) == bytes(65536)
    assert read(below, 0, 65536) + read(below, 131072, SIZE - 131072) == b"\xff" * (SIZE - 65536)


def test_part_without_a_size_goes_to_the_end(below: Device) -> None:
    assert Offset(below, 4096, None).size == SIZE - 4096


def test_granularity_begins_elsewhere_in_the_part(below: Device) -> None:
    assert below.discard_granularity == 4096
    assert Offset(below, 512, None).discard_alignment == 3584


@pytest.mark.parametrize(
    ("start", "size", "reason"),
    [
        (100, None, "no multiple of the block size, 512"),
        (SIZE, None, "not anything from offset 1048576"),
        (SIZE + 512, 512, "not 512 bytes from offset"),
        (512, SIZE, "not 1048576 bytes from offset 512"),
    ],
)
def test_what_is_no_part_is_refused(below: Device, start: int, size: int | None, reason: str) -> None:
    with pytest.raises(BlockError, match=reason):
        Offset(below, start, size)


def test_layer_is_found_by_its_name(below: Device) -> None:
    plugins = load(["offset"])
    options: dict[str, Any] = {"offset": "512 KiB", "size": "4 KiB"}
    assert plugins.validate_layer("offset", options) == []
    assert plugins.wrap(below, "offset", options).size == 4096
