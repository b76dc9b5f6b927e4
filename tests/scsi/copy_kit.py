"""Parameter lists of copies, built field by field, and units that find each other."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from iscsid.scsi.copy_move import designations
from iscsid.scsi.copy_state import Copies, CopyServices, Party

KEY = b"k" * 32
B2B = struct.Struct(">BBHHH2xHQQ")


def cscd(unit: Any, *, kind: int = 0xE4, flags: int = 0, which: int = 0, block_length: int = 512) -> bytes:
    """An identification CSCD descriptor (SPC-4 6.4.5.2) of the unit, by its designation number ``which``."""
    code_set, designator_type, designator = designations(unit.lu)[which]
    head = struct.pack(">BBHBBBB", kind, flags, 0, code_set, designator_type, 0, len(designator))
    return head + designator.ljust(20, b"\0") + struct.pack(">I", block_length)


def b2b(source: int, destination: int, blocks: int, start: int, at: int, *, flags: int = 0, kind: int = 2) -> bytes:
    """A block to block segment descriptor (SPC-4 6.4.6.3)."""
    return B2B.pack(kind, flags, 0x18, source, destination, blocks, start, at)


def lid1(
    cscds: Sequence[bytes], segments: Sequence[bytes], *, identifier: int = 1, usage: int = 0, inline: int = 0
) -> bytes:
    """A parameter list of EXTENDED COPY(LID1) (SPC-4 6.4.1)."""
    first, second = b"".join(cscds), b"".join(segments)
    return struct.pack(">BBH4xII", identifier, usage << 3, len(first), len(second), inline) + first + second


def lid4(cscds: Sequence[bytes], segments: Sequence[bytes], *, identifier: int = 0x01020304, usage: int = 0) -> bytes:
    """A parameter list of EXTENDED COPY(LID4) (SPC-4 6.3.1)."""
    first, second = b"".join(cscds), b"".join(segments)
    head = struct.pack(">BBH11xBB3xI18xHHH", 1, usage << 3, 0x20, 0, 0xFF, identifier, len(first), len(second), 0)
    return head + first + second


def extended_copy(unit: Any, data: bytes, action: int = 0) -> bytes:
    return unit.run(f"83 {action:02x} 0000000000000000 {len(data):08x} 00 00", data)


def refused(unit: Any, data: bytes, action: int = 0) -> Any:
    return unit.refusal(f"83 {action:02x} 0000000000000000 {len(data):08x} 00 00", data)


def acquaint(*units: Any, now: int = 1000) -> list[int]:
    """Let every unit be found by the others; return the clock, a list of one number."""
    clock = [now]

    def find(designation: Any, nexus: Any) -> Party | None:
        for unit in units:
            if designation in designations(unit.lu):
                return Party(unit.lu, unit.nexus)
        return None

    for unit in units:
        unit.nexus.copies = Copies(CopyServices(find, KEY, lambda: clock[0]))
    return clock
