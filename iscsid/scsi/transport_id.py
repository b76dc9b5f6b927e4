"""The TransportIDs of iSCSI (SPC-4 7.6.4.6): how the parameter data of reservations names an initiator port.

Format 01b names a port, by the initiator's name and its ISID; format 00b names the initiator device, all its ports.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from iscsid.errors import ScsiError
from iscsid.scsi.const import PROTOCOL_ISCSI
from iscsid.scsi.sense import Reason

MAX_NAME = 223  # bytes of UTF-8 (RFC 7143 section 4.2.7.2)
_HEADER = struct.Struct(">BxH")  # FORMAT CODE and PROTOCOL IDENTIFIER; ADDITIONAL LENGTH
_PORT, _DEVICE = 0b01 << 6, 0b00
_SEPARATOR = b",i,0x"
_MIN_ADDITIONAL = 20
_ISID_DIGITS = 12
# Name, separator, ISID and null, filled to a multiple of four.
_MAX_ADDITIONAL = MAX_NAME + len(_SEPARATOR) + _ISID_DIGITS + 4 & ~3
MAX_LENGTH = _HEADER.size + _MAX_ADDITIONAL

_ISID = re.compile(rb"[0-9A-Fa-f]{1,12}")
_NAME = re.compile(r"(?:iqn|eui|naa)\.[^\x00-\x20\x7f,]+")


class TransportId(NamedTuple):
    """An initiator port, or all ports of the initiator where ``isid`` is None."""

    initiator: str
    isid: int | None


def build(initiator: str, isid: int) -> bytes:
    """Return the TransportID of an initiator port; a multiple of four bytes long, 24 at the least."""
    value = initiator.encode() + _SEPARATOR + f"{isid:012x}".encode() + b"\0"
    value += bytes(-len(value) % 4)
    return _HEADER.pack(_PORT | PROTOCOL_ISCSI, len(value)) + value


def parse(data: memoryview, field: int) -> tuple[TransportId, int]:
    """Return the TransportID at the start of ``data`` and the bytes that it takes there.

    ``field`` is where ``data`` lies in the parameter list. Raises ScsiError (INVALID FIELD IN PARAMETER LIST, and
    PARAMETER LIST LENGTH ERROR for one that is cut off), which points at the byte that is wrong.
    """
    if len(data) < _HEADER.size:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    head, additional = _HEADER.unpack_from(data)
    kind = head & 0xC0
    if head & 0x3F != PROTOCOL_ISCSI or kind not in (_PORT, _DEVICE):
        raise _wrong(field)
    if additional % 4 or not _MIN_ADDITIONAL <= additional <= _MAX_ADDITIONAL:
        raise _wrong(field + 2)
    length = _HEADER.size + additional
    if len(data) < length:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    text, null, rest = bytes(data[_HEADER.size : length]).partition(b"\0")
    if not null or rest.strip(b"\0"):
        raise _wrong(field + _HEADER.size)
    return _parse_text(text, kind, field + _HEADER.size), length


def _parse_text(text: bytes, kind: int, field: int) -> TransportId:
    isid = None
    if kind == _PORT:
        text, separator, digits = text.partition(_SEPARATOR)
        if not separator or _ISID.fullmatch(digits) is None:
            raise _wrong(field + len(text))
        isid = int(digits, 16)
    try:
        name = text.decode()
    except UnicodeDecodeError as exc:
        raise _wrong(field + exc.start) from exc
    if len(text) > MAX_NAME or _NAME.fullmatch(name) is None:
        raise _wrong(field)
    return TransportId(name, isid)


def parse_list(data: memoryview, field: int, limit: int) -> list[TransportId]:
    """Return the TransportIDs that fill ``data``, at most ``limit``; raises ScsiError as ``parse`` does.

    More than ``limit`` are INSUFFICIENT REGISTRATION RESOURCES: there is no room to register them.
    """
    found: list[TransportId] = []
    while len(data):
        if len(found) == limit:
            raise ScsiError(Reason.INSUFFICIENT_REGISTRATION_RESOURCES)
        transport_id, length = parse(data, field)
        found.append(transport_id)
        data, field = data[length:], field + length
    return found


def _wrong(field: int) -> ScsiError:
    return ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=field, in_data=True)
