"""The layer ``protect``: no write to the whole device, or to one range of it. Several ranges are several layers.

A whole device is read-only to initiators (WP of the mode parameter header). Of a range they only learn by trying: a
command that touches it fails as WRITE PROTECTED before anything of it is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iscsid.plugin import BlockError, Device, Fault, Filter, LayerInfo, Option, hookimpl

from .around import Around, Call, extent_of

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
        extent, start, end = extent_of(name), self._start, self._end

        def checked(*arguments: Any) -> Any:
            offset, length = extent(*arguments)
            if offset < end and offset + length > start:
                raise BlockError(Fault.READ_ONLY, f"bytes {start} to {end} are protected")
            return call(*arguments)

        return checked


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
