"""The basic header segment: what every PDU of RFC 7143 section 11 has in common, and the two families that share more.

Rules of this file and of ``requests`` and ``responses`` beside it:

* A PDU knows its own layout and nothing else: no state, no role, no digest. Every class packs and unpacks, so either
  role, and every test, has both directions.
* What a receiver ignores is ignored: reserved bits, and the constant 1 in bit 7 of byte 1. A sender packs them as the
  RFC draws them.
* Fields are plain ints, bools and bytes with the RFC's names. A value that does not fit its field raises
  LocalProtocolError in ``pack``; none is cut.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, Self

from iscsid.errors import LocalProtocolError
from iscsid.wire.const import AHS_SIZE_LIMIT, BHS_SIZE, CONTINUE, DATA_SIZE_LIMIT, FINAL, IMMEDIATE, RESERVED_TAG

Buffer = bytes | bytearray | memoryview
Data = bytes | memoryview

_LENGTHS = struct.Struct(">4xI")
_LENGTH_MASK = 0xFFFFFF


class Layout:
    """Where the fields of one PDU lie in its basic header segment.

    ``specific`` is the struct format of bytes 1 .. 3 and ``rest`` that of bytes 8 .. 47; ``names`` are the attributes
    that the values of both fill, in order. Bytes 0 and 4 .. 7 are the same in every PDU.
    """

    __slots__ = ("names", "packer", "unpacker", "values")

    def __init__(self, specific: str, rest: str, names: str) -> None:
        self.names = tuple(names.split())
        self.packer = struct.Struct(f">B{specific}I{rest}")
        self.unpacker = struct.Struct(f">x{specific}4x{rest}")
        assert self.packer.size == self.unpacker.size == BHS_SIZE, names
        here = len(struct.unpack(f">{specific}", bytes(3)))
        self.values: Callable[[Pdu], tuple[Any, ...]] = attrgetter(
            "byte_0", *self.names[:here], "lengths", *self.names[here:]
        )


@dataclass(slots=True, kw_only=True)
class Pdu:
    """What every PDU has (section 11.2).

    ``immediate`` is the I bit, which only requests carry. ``ahs`` holds all additional header segments as they are on
    the wire (see ``wire.ahs``), a multiple of four bytes.
    """

    opcode: ClassVar[int]
    layout: ClassVar[Layout]

    immediate: bool = False
    ahs: bytes = b""
    data: Data = b""

    @property
    def byte_0(self) -> int:
        return self.opcode | IMMEDIATE if self.immediate else self.opcode

    @property
    def byte_1(self) -> int:
        """Byte 1 where the RFC draws nothing but a constant 1 in bit 7."""
        return FINAL

    @byte_1.setter
    def byte_1(self, value: int) -> None:
        pass  # reserved: a receiver ignores it

    @property
    def lengths(self) -> int:
        """TotalAHSLength (in words) << 24 | DataSegmentLength."""
        ahs, data = len(self.ahs), len(self.data)
        if ahs % 4 or ahs > AHS_SIZE_LIMIT or data > DATA_SIZE_LIMIT:
            raise LocalProtocolError(f"{type(self).__name__}: {ahs} bytes of AHS and {data} bytes of data do not fit")
        return ahs << 22 | data

    def pack(self) -> bytes:
        """Return the header: BHS and AHS, with both lengths filled in. Data, padding and digests are the sender's."""
        layout = self.layout
        try:
            return layout.packer.pack(*layout.values(self)) + self.ahs
        except struct.error as exc:
            raise LocalProtocolError(f"{type(self).__name__}: {exc}") from exc

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int, ahs: bytes, data: Data) -> Self:
        """Read the BHS at ``offset``; the caller has seen to it that 48 bytes are there and that the opcode fits."""
        pdu = object.__new__(cls)
        for name, value in zip(cls.layout.names, cls.layout.unpacker.unpack_from(buffer, offset), strict=True):
            setattr(pdu, name, value)
        pdu.immediate = buffer[offset] & IMMEDIATE != 0
        pdu.ahs = ahs
        pdu.data = data
        return pdu


def bits(name: str, value: int, mask: int) -> int:
    """Return ``value``, which shares a byte with others, after a check that it keeps to its own bits."""
    if value & ~mask:
        raise LocalProtocolError(f"{name} out of range: {value}")
    return value


@dataclass(slots=True, kw_only=True)
class Login(Pdu):
    """What Login Request and Login Response share: the T and C bits, the stages, ISID and TSIH."""

    transit: bool = False
    continued: bool = False
    csg: int = 0
    nsg: int = 0
    version_max: int = 0
    isid: int = 0
    tsih: int = 0
    initiator_task_tag: int = 0

    @property
    def byte_1(self) -> int:
        stages = bits("csg", self.csg, 3) << 2 | bits("nsg", self.nsg, 3)
        return self.transit << 7 | self.continued << 6 | stages

    @byte_1.setter
    def byte_1(self, value: int) -> None:
        self.transit = value & FINAL != 0
        self.continued = value & CONTINUE != 0
        self.csg = value >> 2 & 3
        self.nsg = value & 3

    @property
    def isid_and_tsih(self) -> int:
        """Bytes 8 .. 15: a session's name for itself, and the target's name for it."""
        return self.isid << 16 | bits("tsih", self.tsih, 0xFFFF)

    @isid_and_tsih.setter
    def isid_and_tsih(self, value: int) -> None:
        self.isid = value >> 16
        self.tsih = value & 0xFFFF


@dataclass(slots=True, kw_only=True)
class Text(Pdu):
    """What Text Request and Text Response share: the F and C bits and both tags."""

    final: bool = True
    continued: bool = False
    lun: int = 0
    initiator_task_tag: int = 0
    target_transfer_tag: int = RESERVED_TAG

    @property
    def byte_1(self) -> int:
        return self.final << 7 | self.continued << 6

    @byte_1.setter
    def byte_1(self, value: int) -> None:
        self.final = value & FINAL != 0
        self.continued = value & CONTINUE != 0


def segment_lengths(buffer: Buffer, offset: int = 0) -> tuple[int, int]:
    """Return the lengths of AHS and data segment in bytes, from a BHS of which at least 8 bytes are there."""
    (lengths,) = _LENGTHS.unpack_from(buffer, offset)
    return lengths >> 24 << 2, lengths & _LENGTH_MASK


def padding(length: int) -> int:
    """Return how many bytes (0 .. 3) pad a segment of ``length`` bytes to a word."""
    return -length & 3
