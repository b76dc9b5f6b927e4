"""The data mover of third-party copies: bytes from one unit to another, in pieces.

The copy manager is one more application client. Each piece is a READ(16) and a WRITE(16) that the units plan like any
other, so that whatever refuses a command to the initiator (a reservation, write protection, the end of the medium)
refuses the copy, whenever it comes up. It takes no unit attention from the initiator: the copy does not see them.

A piece holds the lock of one serialised device at a time, never of two: copies in both directions cannot wait for each
other. What is written is held (``Guarded.exclusive``) from the plan to the end of the write: a piece is no task of the
unit that it writes to, so this is how a sanitize operation there knows that none is under way.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from iscsid.errors import BlockError, ScsiError
from iscsid.scsi.const import CodeSet, Designator, Opcode
from iscsid.scsi.copy_state import Designation, Operation, Party
from iscsid.scsi.inquiry import naa_locally_assigned, name_string, padded
from iscsid.scsi.plan import Plan, Read, Write
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

PIECE = 1 << 20  # bytes: a multiple of every block size, and what a cancelled copy moves at most before it ends

_CDB = struct.Struct(">BxQI2x")
_READ, _WRITE = int(Opcode.READ_16), int(Opcode.WRITE_16)


class _Quiet:
    """A nexus whose unit attentions stay where they are, and that sees a reservation as soon as there is one."""

    __slots__ = ("_nexus", "_unit")

    attentions = None

    def __init__(self, unit: LogicalUnit, nexus: Nexus) -> None:
        self._unit = unit
        self._nexus = nexus

    @property
    def restricted(self) -> bool:
        return self._unit.restricts(self._nexus.id)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nexus, name)


def quiet(party: Party) -> Party:
    """Return the party as the copy manager meets it."""
    return Party(party.unit, _Quiet(*party))


def designations(lu: LogicalUnit) -> tuple[Designation, ...]:
    """What VPD page 83h calls the unit itself."""
    identity = lu.identity
    t10 = padded(identity.vendor, 8) + padded(identity.serial, len(identity.serial))
    return (
        (int(CodeSet.BINARY), int(Designator.NAA), naa_locally_assigned(identity.serial)),
        (int(CodeSet.ASCII), int(Designator.T10_VENDOR_ID), t10),
        (int(CodeSet.UTF_8), int(Designator.SCSI_NAME_STRING), name_string(identity.name)),
    )


def find(designation: Designation, own: Party) -> Party | None:
    """Return the unit with the designation: the one that was asked, or another that its initiator may use."""
    if designation in designations(own.unit):
        return own
    nexus = own.nexus
    found = nexus.copies.services.find(designation, nexus.id)
    return None if found is None else quiet(found)


def read(party: Party, offset: int, buffer: memoryview) -> None:
    """Fill ``buffer`` from byte ``offset``. Raises what a READ(16) would end with."""
    unit = party.unit
    plan = _plan(_READ, party, offset, len(buffer))
    assert isinstance(plan, Read)
    with unit.device.lock:
        unit.device.read_into(buffer, plan.offset)


def write(party: Party, offset: int, data: memoryview) -> None:
    """Write ``data`` at byte ``offset``. Raises what a WRITE(16) would end with."""
    unit = party.unit
    with unit.device.exclusive(offset, len(data)):
        plan = _plan(_WRITE, party, offset, len(data))
        assert isinstance(plan, Write)
        with unit.device.lock:
            unit.device.write(data, plan.offset, plan.fua)


def write_zeroes(party: Party, offset: int, length: int) -> None:
    """Make the range read as zeros, deallocated where the medium can do that."""
    unit = party.unit
    with unit.device.exclusive(offset, length):
        plan = _plan(_WRITE, party, offset, length)
        assert isinstance(plan, Write)
        with unit.device.lock:
            unit.device.write_zeroes(plan.offset, length, may_unmap=unit.thin, fua=plan.fua)


def check(party: Party, offset: int, length: int, *, writes: bool) -> None:
    """Raise what the unit refuses a range for, without touching the medium; the range may be empty."""
    unit = party.unit
    if offset + length > unit.blocks << unit.shift:
        raise ScsiError(Reason.LBA_OUT_OF_RANGE)
    if length:
        _plan(_WRITE if writes else _READ, party, offset, unit.block_size)


def _plan(opcode: int, party: Party, offset: int, length: int) -> Plan:
    unit = party.unit
    return unit.plan(_CDB.pack(opcode, offset >> unit.shift, length >> unit.shift), party.nexus)


def move(operation: Operation, source: Party, start: int, destination: Party, at: int, length: int) -> None:
    """Copy ``length`` bytes from ``start`` of the source to ``at`` of the destination.

    All three are multiples of both block sizes. Raises ScsiError, BlockError or OSError for the destination,
    ``SourceError`` with one of these as its cause for the source, COPY OPERATION ABORTED where it was cancelled.
    """
    buffer = memoryview(bytearray(min(length, PIECE)))
    backwards = source.unit.device is destination.unit.device and start < at < start + length
    for offset, size in _pieces(length, backwards):
        if operation.cancelled:
            raise ScsiError(Reason.COPY_OPERATION_ABORTED)
        piece = buffer[:size]
        try:
            read(source, start + offset, piece)
        except (ScsiError, BlockError, OSError) as error:
            raise SourceError from error
        write(destination, at + offset, piece)
        operation.transferred += size


class SourceError(Exception):
    """The copy source failed; the cause says how."""


def _pieces(length: int, backwards: bool) -> Iterator[tuple[int, int]]:
    """Offsets and sizes that cover the length; the last first where a range is copied over its own end."""
    offsets = range(0, length, PIECE)
    for offset in reversed(offsets) if backwards else offsets:
        yield offset, min(PIECE, length - offset)
