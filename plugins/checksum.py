"""The layer ``checksum``: silent corruption becomes MEDIUM ERROR.

Each unit of the device has a CRC32C in a side file (``plugins/sums.py``). A read compares; a unit that differs is an
error, logged with its place, and never data. What was written before the layer was there, and what was never written,
has no sum and is not compared until it is written.

A crash may come between data and sum. Regions that were being written are marked on the medium before; when the device
is opened again, their units are read, and those that differ get a new sum, with a line in the log: for them the layer
cannot tell an interrupted write from corruption. Everything else goes on being compared. A flush puts the data on the
medium, then the sums. One worker has the device, and one call at a time goes through it.

``iscsid layer verify`` reads everything and tells what differs.
"""

from __future__ import annotations

import logging
import mmap
from array import array
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from iscsid.plugin import (
    BlockError,
    Capabilities,
    Device,
    Fault,
    Filter,
    LayerInfo,
    Mode,
    Option,
    Sharing,
    Support,
    Threading,
    Verb,
    hookimpl,
    stay,
)

from .sums import MAX_MARKED, REGION, UNKNOWN, Sums, sum_of

log = logging.getLogger(__name__)

OPTIONS = (
    Option("path", "path", required=True, doc="the file of the sums, made if it is missing", medium=True),
    Option("unit", "size", default=4096, choices=tuple(1 << shift for shift in range(9, 17)), doc="of a new file"),
)
PIECE = 1 << 20


class Checksum(Filter):
    """``sums`` are owned by the object.

    The guard lets one call at a time in (SERIAL), so a read never meets a write half-way to its sums.
    """

    mode = Mode.BLOCKING
    threading = Threading.SERIAL
    discard_granularity = 0
    discard_alignment = 0
    discard_zeroes = False

    def __init__(self, below: Device, sums: Sums) -> None:
        super().__init__(below)
        self._sums = sums
        self._unit = max(sums.unit, below.block_size)
        if sums.unit < below.block_size:
            reason = f"sums of {sums.unit} bytes, and blocks of {below.block_size}"
            raise BlockError(Fault.INVALID, f"{sums.path}: {reason}")

        self._rest = below.size // below.block_size * below.block_size
        self._flushes = below.capabilities().flush is Support.NATIVE
        self._recover()

    def capabilities(self) -> Capabilities:
        write = Support.NONE if self.readonly else Support.NATIVE
        return Capabilities(write=write, flush=Support.NATIVE)

    # Data. The last unit may be shorter than the others.

    def read_into(self, buffer: memoryview, offset: int) -> None:
        start, stop = self._whole(offset, len(buffer))
        if (start, stop) == (offset, offset + len(buffer)):
            self.below.read_into(buffer, offset)
            self._compare(buffer, offset)
            return
        for at, part in self._pieces(start, stop):
            self._compare(part, at)
            first, last = max(at, offset), min(at + len(part), offset + len(buffer))
            buffer[first - offset : last - offset] = part[first - at : last - at]

    def write(self, data: memoryview, offset: int) -> None:
        if not data:
            return
        start, stop = self._whole(offset, len(data))
        ends = {start, (stop - 1) // self._unit * self._unit}
        torn = [at for at in ends if at < offset or min(at + self._unit, self._rest) > offset + len(data)]
        around = {at: self._checked_unit(at) for at in torn}
        new = array("I")
        for at in range(start, stop, self._unit):
            end = min(at + self._unit, self._rest)
            if at in around:
                unit = around[at]
                first, last = max(at, offset), min(end, offset + len(data))
                unit[first - at : last - at] = data[first - offset : last - offset]
                new.append(sum_of(unit))
            else:
                new.append(sum_of(data[at - offset : end - offset]))
        self._mark(start, stop - start)
        stay()  # a write that is left half-way is neither what the sums say nor unknown
        try:
            self.below.write(data, offset)
        except Exception:  # nobody knows what lies there now
            self._sums.write(start // self._unit, array("I", [UNKNOWN]) * len(new))
            raise
        self._sums.write(start // self._unit, new)

    def flush(self) -> None:
        if self._flushes:
            self.below.flush()
        self._sums.sync()
        if len(self._sums.marked) > MAX_MARKED:
            self._sums.settle()

    def _mark(self, offset: int, length: int) -> None:
        if len(self._sums.marked) > 2 * MAX_MARKED:  # nobody flushes
            self.flush()
        self._sums.mark(offset, length)

    def _whole(self, offset: int, length: int) -> tuple[int, int]:
        """The units that a range touches, as start and end."""
        unit = self._unit
        return offset - offset % unit, min(-(-(offset + length) // unit) * unit, self._rest)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """Whole units from below in pieces of at most PIECE bytes; each is good until the next one."""
        buffer = memoryview(mmap.mmap(-1, min(PIECE, max(stop - start, 1))))  # as O_DIRECT takes it
        for at in range(start, stop, PIECE):
            part = buffer[: min(PIECE, stop - at)]
            self.below.read_into(part, at)
            yield at, part

    def _checked_unit(self, at: int) -> memoryview:
        _, part = next(self._pieces(at, min(at + self._unit, self._rest)))
        self._compare(part, at)
        return part

    def _compare(self, data: memoryview, offset: int) -> None:
        for at in self._different(data, offset):
            log.error("%s: the data at byte %d is not what was written", self._sums.path, at)
            raise BlockError(Fault.READ_ERROR, f"wrong checksum at byte {at}")

    def _different(self, data: memoryview, offset: int) -> Iterator[int]:
        """The offset of each unit of ``data`` that has another sum than it should have."""
        unit = self._unit
        known = self._sums.read(offset // unit, -(-len(data) // unit))
        for index, expected in enumerate(known):
            if expected != UNKNOWN and expected != sum_of(data[index * unit : (index + 1) * unit]):
                yield offset + index * unit

    # After a crash, and by hand.

    def _recover(self) -> None:
        """Take what lies in marked regions for what was written."""
        adopted = 0
        for region in sorted(self._sums.marked):
            for at, data in self._pieces(region * REGION, min((region + 1) * REGION, self._rest)):
                for wrong in list(self._different(data, at)):
                    unit = data[wrong - at : wrong - at + self._unit]
                    self._sums.write(wrong // self._unit, array("I", [sum_of(unit)]))
                    adopted += 1
        if adopted:
            words = "%s: %d units had been under way in a crash; their sums are new"
            log.warning(words, self._sums.path, adopted)
        if self._sums.marked:
            if self._flushes and not self.readonly:
                self.below.flush()
            self._sums.sync()
            self._sums.settle()

    def verify(self) -> dict[str, Any]:
        """Read all. How many bytes have a sum, and where the first thousand units are that differ."""
        covered, wrong = 0, list[int]()
        for at, data in self._pieces(0, self._rest):
            known = self._sums.read(at // self._unit, -(-len(data) // self._unit))
            covered += sum(1 for each in known if each != UNKNOWN) * self._unit
            wrong += self._different(data, at)
        return {"covered": covered, "sound": not wrong, "wrong_units": len(wrong), "offsets": wrong[:1000]}

    def close(self) -> None:
        try:
            if not self.readonly:
                self.flush()
                self._sums.settle()
        finally:
            self._sums.close()
            super().close()


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    verbs = (Verb("verify", "read everything and compare"),)
    doc = "checksums in a side file, so that wrong data is an error"
    return LayerInfo("checksum", doc, OPTIONS, sharing=Sharing.EXCLUSIVE_OWNER, verbs=verbs, keeps=True)


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Checksum:
    sums = Sums(options["path"], device.size, max(options["unit"], device.block_size))
    try:
        return Checksum(device, sums)
    except BaseException:
        sums.close()
        raise


@hookimpl
def iscsid_layer_verb(
    name: str, verb: str, options: Mapping[str, Any], below: Callable[[], Device]
) -> Mapping[str, Any]:
    device = below()
    sums = Sums(options["path"], device.size, max(options["unit"], device.block_size))
    try:
        return Checksum(device, sums).verify()
    finally:
        sums.close()
