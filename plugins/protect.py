"""The layer ``protect``: no write to the whole device, or to one range of it. Several ranges are several layers.

A whole device is read-only to initiators (WP of the mode parameter header). Of a range they only learn by trying: a
command that touches it fails as WRITE PROTECTED before anything of it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from iscsid.plugin import BlockError, Device, Fault, Filter, LayerInfo, Option, hookimpl

from .around import TRANSFERS, Around, Call

OPTIONS = (
    Option("offset", "size", default=0, doc="where the protected range begins"),
    Option("size", "size", minimum=1, doc="how long it is; without it, up to the end"),
)


class Whole(Filter):
    """Nothing is written."""

    readonly = True


class Range(Around):
    """Nothing is written from ``start`` to ``end``."""

    def __init__(self, below: Device, start: int, end: int) -> None:
        self._start, self._end = start, end
        super().__init__(below)

    def around(self, name: str, kind: str, call: Call) -> Call:
        if kind not in ("write", "discard"):
            return call
        start, end = self._start, self._end

        def refuse() -> NoReturn:
            raise BlockError(Fault.READ_ONLY, f"bytes {start} to {end} are protected")

        def transfer(data: memoryview, offset: int) -> None:
            if offset < end and offset + len(data) > start:
                refuse()
            call(data, offset)

        def change(offset: int, length: int, *rest: Any) -> None:
            if offset < end and offset + length > start:
                refuse()
            call(offset, length, *rest)

        return transfer if name in TRANSFERS else change


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    return LayerInfo("protect", "no writes, to all or to a range", OPTIONS)


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Filter:
    start, size = options["offset"], options["size"]
    if start >= device.size:
        raise BlockError(Fault.INVALID, f"offset {start}: the device has {device.size} bytes")
    end = device.size if size is None else start + size
    return Whole(device) if not start and end >= device.size else Range(device, start, end)
