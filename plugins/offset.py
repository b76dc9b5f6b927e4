"""The layer ``offset``: a part of the device below, as if it were all of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from iscsid.plugin import BlockError, Device, Extent, Fault, Filter, LayerInfo, Option, hookimpl

OPTIONS = (
    Option("offset", "size", default=0, doc="where the part begins, a multiple of the block size"),
    Option("size", "size", minimum=512, doc="how long it is; without it, up to the end"),
)


class Offset(Filter):
    """``size`` bytes from ``start`` on; None: all that is left."""

    def __init__(self, below: Device, start: int, size: int | None) -> None:
        super().__init__(below)
        if start % below.block_size:
            raise BlockError(Fault.INVALID, f"offset {start} is no multiple of the block size, {below.block_size}")
        left = below.size - start
        if left <= 0 or (size is not None and size > left):
            wanted = "anything" if size is None else f"{size} bytes"
            raise BlockError(Fault.INVALID, f"there is not {wanted} from offset {start} on: {below.size} bytes in all")
        self._start = start
        self.size = left if size is None else size
        if self.discard_granularity:
            self.discard_alignment = (below.discard_alignment - start) % self.discard_granularity

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.below.read_into(buffer, offset + self._start)

    def write(self, data: memoryview, offset: int) -> None:
        self.below.write(data, offset + self._start)

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        self.below.read_nowait(buffer, offset + self._start)

    def write_nowait(self, data: memoryview, offset: int) -> None:
        self.below.write_nowait(data, offset + self._start)

    def write_fua(self, data: memoryview, offset: int) -> None:
        self.below.write_fua(data, offset + self._start)

    def discard(self, offset: int, length: int) -> None:
        self.below.discard(offset + self._start, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self.below.write_zeroes(offset + self._start, length, may_unmap)

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        for extent in self.below.block_status(offset + self._start, length):
            yield Extent(extent.offset - self._start, extent.length, extent.content)

    def prefetch(self, offset: int, length: int) -> None:
        self.below.prefetch(offset + self._start, length)

    def view(self, offset: int, length: int) -> memoryview:
        return self.below.view(offset + self._start, length)


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    return LayerInfo("offset", "a part of the device below", OPTIONS, part=True)


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Offset:
    return Offset(device, options["offset"], options["size"])
