"""Additional header segments (RFC 7143 section 11.2.2): what a SCSI Command has no room for in its 48 bytes.

On the wire each is AHSLength (2 bytes, counting all that follows AHSType but the padding), AHSType (1), an AHS-specific
byte that both known types reserve, and the rest, padded to a word. Only SCSI Command PDUs have any.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from iscsid.errors import LocalProtocolError, RejectError
from iscsid.wire.const import AHS_SIZE_LIMIT, CDB_SIZE, AhsType, RejectReason

_HEAD = struct.Struct(">HBx")
_READ_LENGTH = struct.Struct(">HBxI")
_READ_LENGTH_SIZE = 5  # section 11.2.2.4: the reserved byte and four of length


class Ahs(NamedTuple):
    """What the segments of one command say.

    ``extended_cdb`` is what follows the first 16 bytes of the CDB, with the padding that its AHSLength does not count
    taken off; ``read_length`` the Bidirectional Expected Read Data Length in bytes, None where it is not given.
    """

    extended_cdb: bytes = b""
    read_length: int | None = None


def parse(ahs: bytes) -> Ahs:
    """Read all segments of a PDU. Raises RejectError for a type that is unknown or comes twice and for bad lengths."""
    found: dict[int, bytes] = {}
    position = 0
    while position < len(ahs):
        if len(ahs) - position < _HEAD.size:
            raise _refuse(f"{len(ahs) - position} bytes left over")
        length, kind = _HEAD.unpack_from(ahs, position)
        start = position + _HEAD.size
        end = start + length - 1  # the AHS-specific byte is counted, and is part of the head here
        if length < 2 or end > len(ahs):
            raise _refuse(f"type {kind} of length {length} in {len(ahs) - position} bytes")
        if kind not in (AhsType.EXTENDED_CDB, AhsType.BIDIRECTIONAL_READ_LENGTH) or kind in found:
            raise _refuse(f"type {kind} is unknown or comes twice")
        found[kind] = ahs[start:end]
        position = start + (length - 1 + 3 & ~3)
    return Ahs(found.get(AhsType.EXTENDED_CDB, b""), _read_length(found.get(AhsType.BIDIRECTIONAL_READ_LENGTH)))


def _read_length(content: bytes | None) -> int | None:
    if content is None:
        return None
    if len(content) != _READ_LENGTH_SIZE - 1:
        raise _refuse(f"a bidirectional read length of {len(content)} bytes")
    return int.from_bytes(content, "big")


def _refuse(what: str) -> RejectError:
    return RejectError(RejectReason.INVALID_PDU_FIELD, f"additional header segment: {what}")


def full_cdb(cdb: bytes, ahs: bytes) -> bytes:
    """Return the whole CDB of a command from its two fields; raises what ``parse`` raises."""
    return cdb + parse(ahs).extended_cdb if ahs else cdb


def build(cdb: bytes = b"", read_length: int | None = None) -> bytes:
    """Return the segments for a CDB (those beyond its first 16 bytes) and a bidirectional read length, padded.

    Raises LocalProtocolError when the CDB is longer than all AHS together may be.
    """
    built = b""
    extended = cdb[CDB_SIZE:]
    if extended:
        built += _HEAD.pack(len(extended) + 1, AhsType.EXTENDED_CDB) + extended + bytes(-len(extended) & 3)
    if read_length is not None:
        built += _READ_LENGTH.pack(_READ_LENGTH_SIZE, AhsType.BIDIRECTIONAL_READ_LENGTH, read_length)
    if len(built) > AHS_SIZE_LIMIT:
        raise LocalProtocolError(f"a CDB of {len(cdb)} bytes does not fit into additional header segments")
    return built
