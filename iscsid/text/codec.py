"""key=value text: bytes to pairs and back, and the encodings of single values (RFC 7143 section 6.1).

This file knows no key and no role. What the peer sent raises RemoteProtocolError; a value that is not of the wanted
kind raises ValueError, because only the caller knows what that means for its key (Reject, or the end of the login).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Final

from iscsid.errors import LocalProtocolError, RemoteProtocolError

Pair = tuple[str, str]
Buffer = bytes | bytearray | memoryview

KEY_LIMIT: Final = 63  # bytes, section 6.1 "standard-label"
VALUE_LIMIT: Final = 255  # bytes of a simple value, unless its key says otherwise, section 6.1
TEXT_LIMIT: Final = 65536  # one negotiation sequence; 8 KiB must be taken, 64 KiB for long authentication items
PAIR_LIMIT: Final = 256  # the RFC has some 40 keys; each unknown one costs us an answer that is longer than itself

# A standard-label, widened by what the RFC itself uses: "iSCSIProtocolLevel" starts small, "X#NodeArchitecture" has #.
_KEY = re.compile(r"[A-Za-z][A-Za-z0-9.\-+@_#]{0,62}\Z")
_DECIMAL = re.compile(r"[0-9]{1,20}\Z")
_HEX = re.compile(r"0[xX][0-9A-Fa-f]+\Z")


def parse(text: Buffer, *, text_limit: int = TEXT_LIMIT, pair_limit: int = PAIR_LIMIT) -> list[Pair]:
    """Cut a whole text (all PDUs of a C-bit sequence joined) into pairs, in the order they came.

    Duplicates are kept: which key may come twice is for the caller to know. Empty pieces are passed over, because
    initiators exist that count the padding in; so is a missing last NUL, which no target of note insists on.

    An initiator that reads the answer to SendTargets sets its own limits: it may be long.
    """
    if len(text) > text_limit:
        raise RemoteProtocolError(f"text of {len(text)} bytes is longer than {text_limit}")
    try:
        whole = str(text, "utf-8")
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"text is not UTF-8: {error.reason} at byte {error.start}") from error
    pairs = []
    for piece in whole.split("\0"):
        if not piece:
            continue
        key, separator, value = piece.partition("=")
        if not separator:
            raise RemoteProtocolError(f"no '=' in {piece[:80]!r}")
        if not _KEY.match(key):
            raise RemoteProtocolError(f"{key[:80]!r} cannot be the name of a key")
        pairs.append((key, value))
    if len(pairs) > pair_limit:
        raise RemoteProtocolError(f"{len(pairs)} keys in one text are more than {pair_limit}")
    return pairs


def build(pairs: Iterable[Pair]) -> bytes:
    """Return the text for ``pairs``, each ended by its NUL."""
    pieces = []
    for key, value in pairs:
        if not _KEY.match(key) or "\0" in value:
            raise LocalProtocolError(f"{key!r}={value!r} cannot be sent as text")
        pieces.append(f"{key}={value}\0")
    return "".join(pieces).encode()


def split(text: bytes, limit: int) -> list[bytes]:
    """Cut ``text`` into data segments of at most ``limit`` bytes; all but the last are sent with the C bit.

    At least one segment comes back, empty for an empty text. A pair may be cut anywhere (section 6.2).
    """
    if limit <= 0:
        raise LocalProtocolError(f"a text cannot be cut in pieces of {limit} bytes")
    return [text[start : start + limit] for start in range(0, len(text), limit)] or [b""]


class Collector:
    """Joins the data segments of a C-bit sequence, up to ``limit`` bytes."""

    __slots__ = ("_limit", "_parts")

    def __init__(self, limit: int = TEXT_LIMIT) -> None:
        self._limit = limit
        self._parts = bytearray()

    @property
    def pending(self) -> bool:
        """Whether a sequence has begun and not ended."""
        return bool(self._parts)

    def add(self, data: Buffer, *, more: bool) -> bytes | None:
        """Take one data segment, copying it; return the whole text once ``more`` (the C bit) is off."""
        if len(self._parts) + len(data) > self._limit:
            raise RemoteProtocolError(f"text is longer than {self._limit} bytes")
        self._parts += data
        if more:
            return None
        whole = bytes(self._parts)
        self._parts.clear()
        return whole


def parse_number(text: str) -> int:
    """Return a numerical-value: decimal or hexadecimal, below 2**64."""
    if _DECIMAL.match(text):
        number = int(text)
    elif _HEX.match(text) and len(text) <= 18:
        number = int(text, 16)
    else:
        raise ValueError(f"{text[:40]!r} is not a number")
    if number >= 1 << 64:
        raise ValueError(f"{text} is not below 2**64")
    return number


def parse_boolean(text: str) -> bool:
    """Return a boolean-value. Small letters are taken too: NetBSD's utilities send and accept them."""
    if text in ("Yes", "yes"):
        return True
    if text in ("No", "no"):
        return False
    raise ValueError(f"{text[:40]!r} is neither Yes nor No")


def format_boolean(value: bool) -> str:
    """Return ``Yes`` or ``No``."""
    return "Yes" if value else "No"


def parse_list(text: str) -> tuple[str, ...]:
    """Return the members of a list-of-values in order of preference; an empty member is not legal."""
    members = tuple(text.split(","))
    if not all(members):
        raise ValueError(f"{text[:40]!r} has an empty member")
    return members


def parse_binary(text: str, limit: int) -> bytes:
    """Return a binary-value in its hexadecimal (0x) or base64 (0b) form, of at most ``limit`` bytes.

    An odd number of hexadecimal digits has a zero before the first one understood.
    """
    form, digits = text[:2].lower(), text[2:]
    try:
        if form == "0x" and _HEX.match(text):
            data = bytes.fromhex(digits if len(digits) % 2 == 0 else "0" + digits)
        elif form == "0b" and digits:
            data = base64.b64decode(digits, validate=True)
        else:
            raise ValueError(f"{text[:40]!r} is not a binary value")
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    if len(data) > limit:
        raise ValueError(f"binary value of {len(data)} bytes is longer than {limit}")
    return data


def format_binary(data: bytes) -> str:
    """Return ``data`` as a hexadecimal constant, the form that every initiator reads."""
    if not data:
        raise LocalProtocolError("an empty binary value has no form")
    return "0x" + data.hex()
