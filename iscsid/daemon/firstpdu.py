"""What the first PDU of a connection says, read from bytes that stay in the socket.

Pure. Only what placement needs is read; whether the login is a good one is for the worker, which answers it. So text
that makes no sense gives a hint that says nothing, and only what is no Login Request at all is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from iscsid.errors import RemoteProtocolError
from iscsid.text import codec, names
from iscsid.wire.const import BHS_SIZE, LOGIN_DATA_LIMIT, OPCODE_MASK, Opcode
from iscsid.wire.pdu import LoginRequest, padding, segment_lengths

#: The longest first PDU: a login has no AHS, and declared no MaxRecvDataSegmentLength of ours yet.
MAX_FIRST_PDU: Final = BHS_SIZE + LOGIN_DATA_LIMIT

_LOGIN: Final = int(Opcode.LOGIN_REQUEST)


@dataclass(frozen=True, slots=True)
class LoginHint:
    """What a first Login Request says of itself. ``initiator`` and ``target`` are "" when it does not say.

    ``isid`` is the 6-byte field as a big-endian int; ``target`` is "" for a discovery session too.
    """

    tsih: int
    isid: int
    initiator: str
    target: str


def needed(data: bytes) -> int:
    """How many bytes must be there to know more than ``data``, the beginning of a connection, tells.

    Once that many are there, it is the whole PDU. Raises RemoteProtocolError as soon as it can be no Login Request.
    """
    if not data:
        return 1
    if data[0] & OPCODE_MASK != _LOGIN:
        raise RemoteProtocolError(f"begins with byte {data[0]:#04x}, not with a Login Request")
    if len(data) < BHS_SIZE:
        return BHS_SIZE
    ahs_length, data_length = segment_lengths(data)
    if ahs_length or data_length > LOGIN_DATA_LIMIT:
        raise RemoteProtocolError(f"login with {ahs_length} bytes of AHS and {data_length} bytes of data")
    return BHS_SIZE + data_length + padding(data_length)


def read(data: bytes) -> LoginHint:
    """The hint of a whole first PDU (see :func:`needed`)."""
    _, length = segment_lengths(data)
    pdu = LoginRequest.unpack(data, 0, b"", memoryview(data)[BHS_SIZE : BHS_SIZE + length])
    text = bytes(pdu.data)
    if pdu.continued:
        text = text[: text.rfind(b"\0") + 1]  # a pair may be cut anywhere; the whole ones count
    try:
        pairs = dict(codec.parse(text))
    except RemoteProtocolError:
        pairs = {}
    discovery = pairs.get("SessionType") == "Discovery"
    target = "" if discovery else _name(pairs.get("TargetName", ""))
    return LoginHint(pdu.tsih, pdu.isid, _name(pairs.get("InitiatorName", "")), target)


def _name(text: str) -> str:
    """A name that is not longer than names are; the login refuses any other."""
    return text if len(text.encode()) <= names.MAX_LENGTH else ""
