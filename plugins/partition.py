"""The layer ``partition``: one partition of the device below, by its number or its name.

GPT (UEFI specification 2.10, chapter 5), of which the backup is read where the primary is damaged, and MBR with logical
partitions. The table is what a guest wrote: everything in it is checked, and no chain is followed for ever. It is read
when the device is opened; a change of it counts from the next start on.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from iscsid.plugin import BlockError, Device, Fault, LayerInfo, Option, hookimpl

from .offset import Offset

OPTIONS = (
    Option("number", "int", minimum=1, maximum=1024, doc="as the kernel counts: sda3 is 3"),
    Option("label", "str", doc="the name of a GPT partition"),
)
MAX_ENTRIES = 1024
MAX_ENTRY = 4096
MAX_LOGICAL = 60  # partitions 5 to 64
_HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")  # UEFI 2.10 table 5.5
_ENTRY = struct.Struct("<16s16sQQQ72s")  # table 5.6
_MBR_ENTRY = struct.Struct("<B3xB3xII")
_SIGNATURE = b"EFI PART"
_PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)


class Partition(NamedTuple):
    """``start`` and ``size`` in bytes; ``label`` "" where there is none."""

    number: int
    start: int
    size: int
    label: str = ""


def partitions(device: Device) -> list[Partition]:
    """What the table of ``device`` says, GPT before MBR. Raises BlockError(INVALID) where there is no table."""
    sizes = [device.block_size, *(size for size in (512, 4096) if size > device.block_size)]
    for sector in sizes:
        for lba in (1, device.size // sector - 1):
            found = _gpt(device, sector, lba)
            if found is not None:
                return found
    found = list(_mbr(device))
    if not found:
        raise BlockError(Fault.INVALID, "there is no partition table, or it is damaged")
    return found


def _read(device: Device, offset: int, length: int) -> bytes:
    """Any range of the device, b"" where it is not within. In a buffer that O_DIRECT takes."""
    first = offset - offset % device.block_size
    whole = -(-(offset + length - first) // device.block_size) * device.block_size
    if offset < 0 or length <= 0 or first + whole > device.size:
        return b""
    buffer = memoryview(mmap.mmap(-1, whole))
    device.read_into(buffer, first)
    return bytes(buffer[offset - first : offset - first + length])


def _gpt(device: Device, sector: int, lba: int) -> list[Partition] | None:
    """None where no sound header is, or its entries are damaged."""
    raw = _read(device, lba * sector, sector)
    if len(raw) < _HEADER.size or not raw.startswith(_SIGNATURE):
        return None
    _, _, size, checksum, _, own_lba, _, _, _, _, table, count, entry_size, table_checksum = _HEADER.unpack_from(raw)
    if not _HEADER.size <= size <= sector or own_lba != lba:
        return None
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:size]) != checksum:
        return None
    if count > MAX_ENTRIES or not _ENTRY.size <= entry_size <= MAX_ENTRY or entry_size % 128:
        return None
    entries = _read(device, table * sector, count * entry_size)
    if len(entries) < count * entry_size or zlib.crc32(entries) != table_checksum:
        return None
    found = []
    for index in range(count):
        kind, _, first, last, _, name = _ENTRY.unpack_from(entries, index * entry_size)
        if kind != bytes(16) and last >= first:
            label = name.decode("utf-16-le", "replace").split("\0")[0]
            found.append(Partition(index + 1, first * sector, (last - first + 1) * sector, label))
    return found


def _mbr(device: Device) -> Iterator[Partition]:
    """Sectors are those of the device; a protective MBR whose GPT is damaged has none."""
    sector = device.block_size
    extended = None
    for index, (kind, start, count) in enumerate(_mbr_entries(device, 0)):
        if kind in _EXTENDED:
            extended = start
        elif kind not in (0, _PROTECTIVE) and count:
            yield Partition(index + 1, start * sector, count * sector)
    if extended is not None:
        yield from _logical(device, extended)


def _logical(device: Device, extended: int) -> Iterator[Partition]:
    at, seen = extended, set[int]()
    for number in range(5, 5 + MAX_LOGICAL):
        entries = _mbr_entries(device, at)
        if at in seen or len(entries) < 2:
            return
        seen.add(at)
        (_, start, count), (link, following, _) = entries[:2]
        if count:
            yield Partition(number, (at + start) * device.block_size, count * device.block_size)
        if link not in _EXTENDED:
            return
        at = extended + following


def _mbr_entries(device: Device, lba: int) -> list[tuple[int, int, int]]:
    """Type, first sector and count of each entry; nothing where there is no table."""
    raw = _read(device, lba * device.block_size, 512)
    if raw[510:512] != b"\x55\xaa":
        return []
    return [_MBR_ENTRY.unpack_from(raw, 446 + 16 * index)[1:] for index in range(4)]


def find(device: Device, number: int | None, label: str | None) -> Partition:
    """The one partition meant. Raises BlockError(INVALID), with what there is."""
    there = partitions(device)
    fitting = [part for part in there if number in (None, part.number) and label in (None, part.label)]
    if len(fitting) == 1:
        return fitting[0]
    wanted = " ".join([f"number {number}"] * (number is not None) + [f"label {label!r}"] * (label is not None))
    names = ", ".join(f"{part.number} {part.label!r}" if part.label else str(part.number) for part in there)
    how_many = "more than one partition is" if fitting else "there is no partition with"
    raise BlockError(Fault.INVALID, f"{how_many} {wanted}; there are: {names}")


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    return LayerInfo("partition", "a partition of the device below", OPTIONS, part=True)


@hookimpl
def iscsid_layer_validate(name: str, options: Mapping[str, Any]) -> list[str]:
    if options["number"] is None and options["label"] is None:
        return ["needs number or label"]
    return []


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Offset:
    part = find(device, options["number"], options["label"])
    return Offset(device, part.start, part.size)
