"""Every PDU of RFC 7143 section 11 by name and by opcode: the one place from which other rooms import them.

One class per PDU: the 48-byte header as fields with the RFC's names, and what follows it. ``data`` is the data segment
without its padding. Unpacked PDUs hold whatever the framer hands them, usually a memoryview of the receive buffer: who
keeps it longer than the framer promises copies it. ``lun`` is the 8-byte field as one big-endian int (``wire.lun``
reads it), ``isid`` the 6-byte field likewise.
"""

from __future__ import annotations

from collections.abc import Mapping

from iscsid.errors import RejectError, RemoteProtocolError
from iscsid.wire.bhs import Buffer, Data, Layout, Pdu, padding, segment_lengths
from iscsid.wire.const import BHS_SIZE, OPCODE_MASK, RejectReason
from iscsid.wire.requests import (
    LoginRequest,
    LogoutRequest,
    NopOut,
    ScsiCommand,
    ScsiDataOut,
    SnackRequest,
    TaskManagementRequest,
    TextRequest,
)
from iscsid.wire.responses import (
    R2T,
    AsyncMessage,
    LoginResponse,
    LogoutResponse,
    NopIn,
    Reject,
    ScsiDataIn,
    ScsiResponse,
    TaskManagementResponse,
    TextResponse,
    pack_sense,
    unpack_sense,
)

__all__ = [
    "INITIATOR_RECEIVES",
    "PDU_BY_OPCODE",
    "R2T",
    "TARGET_RECEIVES",
    "AsyncMessage",
    "Buffer",
    "Data",
    "Layout",
    "LoginRequest",
    "LoginResponse",
    "LogoutRequest",
    "LogoutResponse",
    "NopIn",
    "NopOut",
    "Pdu",
    "Reject",
    "ScsiCommand",
    "ScsiDataIn",
    "ScsiDataOut",
    "ScsiResponse",
    "SnackRequest",
    "TaskManagementRequest",
    "TaskManagementResponse",
    "TextRequest",
    "TextResponse",
    "decode",
    "pack_sense",
    "padding",
    "segment_lengths",
    "unexpected",
    "unpack_sense",
]


def _by_opcode(*classes: type[Pdu]) -> Mapping[int, type[Pdu]]:
    return {cls.opcode: cls for cls in classes}


# What each role accepts. The vendor's opcodes (0x1c .. 0x1e, 0x3c .. 0x3e) are in neither.
TARGET_RECEIVES = _by_opcode(
    NopOut,
    ScsiCommand,
    TaskManagementRequest,
    LoginRequest,
    TextRequest,
    ScsiDataOut,
    LogoutRequest,
    SnackRequest,
)
INITIATOR_RECEIVES = _by_opcode(
    NopIn,
    ScsiResponse,
    TaskManagementResponse,
    LoginResponse,
    TextResponse,
    ScsiDataIn,
    LogoutResponse,
    R2T,
    AsyncMessage,
    Reject,
)
PDU_BY_OPCODE: Mapping[int, type[Pdu]] = {**TARGET_RECEIVES, **INITIATOR_RECEIVES}


def unexpected(opcode: int) -> RejectError:
    """Return the error for an opcode that this role does not receive: known to the RFC (the other role's), or not."""
    if opcode in PDU_BY_OPCODE:
        return RejectError(RejectReason.PROTOCOL_ERROR, f"{PDU_BY_OPCODE[opcode].__name__} in the wrong direction")
    return RejectError(RejectReason.COMMAND_NOT_SUPPORTED, f"unknown opcode 0x{opcode:02x}")


def decode(buffer: Buffer, receives: Mapping[int, type[Pdu]] = PDU_BY_OPCODE) -> Pdu:
    """Decode a buffer that holds one PDU without digests, padded or not, and nothing else.

    For who has a PDU at hand outside a stream: a peeked Login Request, the PDUs of a test. Raises RemoteProtocolError
    when it is cut short or something is left over, RejectError for an opcode that ``receives`` does not have.
    """
    if len(buffer) < BHS_SIZE:
        raise RemoteProtocolError(f"a header of {len(buffer)} bytes is cut short")
    ahs_length, data_length = segment_lengths(buffer)
    start = BHS_SIZE + ahs_length
    end = start + data_length
    if len(buffer) not in (end, end + padding(data_length)):
        raise RemoteProtocolError(f"a PDU of {end} bytes in {len(buffer)} bytes")
    cls = receives.get(buffer[0] & OPCODE_MASK)
    if cls is None:
        raise unexpected(buffer[0] & OPCODE_MASK)
    return cls.unpack(buffer, 0, bytes(buffer[BHS_SIZE:start]), memoryview(buffer)[start:end])
