"""The back end ``null``: reads zeros and forgets what is written. For measuring, and as a model to copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iscsid.plugin import BackendInfo, Device, Mode, Option, Threading, hookimpl


class NullDevice(Device):
    """Size, ``read_into`` and ``write`` are all that a device must have."""

    mode = Mode.INLINE  # no call ever waits; without this line calls go to a thread pool
    threading = Threading.PARALLEL  # any number of calls at once; without this line one at a time

    def __init__(self, size: int) -> None:
        self.size = size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = bytes(len(buffer))

    def write(self, data: memoryview, offset: int) -> None:
        pass


@hookimpl
def iscsid_backend_info() -> BackendInfo:
    return BackendInfo("null", "reads zeros, forgets writes", (Option("size", "size", default=1 << 40, minimum=512),))


@hookimpl
def iscsid_open(options: Mapping[str, Any], role: str) -> NullDevice:
    return NullDevice(options["size"])
