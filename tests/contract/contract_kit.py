"""Devices for the tests of the contract: a good one, and a medium of any."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from iscsid.block.device import Device, Threading
from iscsid.contract import Medium
from iscsid.plugin import BackendInfo, hookimpl
from iscsid.plugin.manager import load

SIZE = 4 << 20


class Good(Device):
    """Memory that all handles share."""

    threading = Threading.PARALLEL
    discard_zeroes = True

    def __init__(self, memory: bytearray) -> None:
        self.size = len(memory)
        self.memory = memory

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = memoryview(self.memory)[offset : offset + len(buffer)]

    def write(self, data: memoryview, offset: int) -> None:
        memoryview(self.memory)[offset : offset + len(data)] = data

    def discard(self, offset: int, length: int) -> None:
        memoryview(self.memory)[offset : offset + length] = bytes(length)


class ShortRead(Good):
    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:-1] = memoryview(self.memory)[offset : offset + len(buffer) - 1]


def medium_of(kind: type[Device]) -> Medium:
    memory = bytearray(SIZE)
    plugin = ModuleType("planted")

    @hookimpl
    def iscsid_backend_info() -> BackendInfo:
        return BackendInfo("planted", "for a test", ())

    @hookimpl
    def iscsid_open(options: Mapping[str, Any], role: str) -> Device:
        return kind(memory)  # type: ignore[call-arg]

    plugin.__dict__.update(iscsid_backend_info=iscsid_backend_info, iscsid_open=iscsid_open)
    plugins = load([])
    assert plugins.add("planted", lambda: plugin)
    return Medium(plugins, "planted", {})
