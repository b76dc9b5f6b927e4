"""CHAP (RFC 1994) as iSCSI uses it (RFC 7143 sections 9.2.1 and 12.1.3): the arithmetic and the form of its keys.

Pure functions: random bytes and secrets are given. A value that a peer must not send raises ValueError; what that
means for the login is for ``session.chap`` to say.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from iscsid.text.codec import parse_binary, parse_list, parse_number
from iscsid.text.keys import KEYS

BINARY_LIMIT: Final = 1024  # bytes of a challenge or a response, section 12.1.3
MIN_SECRET: Final = 12  # bytes: 96 bits, below which a secret must not be used without IPsec (section 9.2.1)
MAX_SECRET: Final = 255  # bytes; 16 must be possible, other implementations stop between 16 and 256
NONCE_LENGTH: Final = 33  # random bytes that one side needs for one login: the identifier, and the longest challenge

_MEMBERS_LIMIT: Final = 32  # algorithms in one proposal; the registry has four


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A row of IANA's registry "PPP Authentication Algorithms".

    ``length`` is that of its responses, and of the challenges that we send for it, in bytes.
    """

    number: int
    name: str
    length: int
    constructor: str  # as hashlib has it


ALGORITHMS: Final = {
    row.number: row
    for row in (
        Algorithm(5, "MD5", 16, "md5"),
        Algorithm(6, "SHA1", 20, "sha1"),
        Algorithm(7, "SHA-256", 32, "sha256"),
        Algorithm(8, "SHA3-256", 32, "sha3_256"),
    )
}

# What an initiator proposes. SHA-256 stands behind MD5 because tgt calls SHA1 by SHA-256's number, and would choose
# it; who has SHA3-256 means what the registry means.
PREFERENCE: Final = (8, 5, 7, 6)


@dataclass(frozen=True, slots=True)
class Account:
    """A name and the secret that proves it; the secret is in no repr."""

    user: str
    secret: bytes = field(repr=False)


def digest(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """Return the response to ``challenge`` (RFC 1994 section 4.1: the hash over identifier, secret and challenge)."""
    constructor = ALGORITHMS[algorithm].constructor
    # Hosts that allow no MD5 for security (FIPS) still have to speak the one algorithm that the RFC demands.
    return hashlib.new(constructor, bytes([identifier]) + secret + challenge, usedforsecurity=False).digest()


def same(one: bytes, other: bytes) -> bool:
    """Compare in a time that tells nothing."""
    return hmac.compare_digest(one, other)


def check_secret(secret: bytes) -> None:
    """Raise ValueError for a secret that is too short to be safe, or longer than others can take."""
    if len(secret) < MIN_SECRET:
        raise ValueError(
            f"a secret has at least {MIN_SECRET} bytes (RFC 7143 section 9.2.1), this one has {len(secret)}"
        )
    if len(secret) > MAX_SECRET:
        raise ValueError(f"a secret has at most {MAX_SECRET} bytes, this one has {len(secret)}")


def format_algorithms(numbers: Sequence[int]) -> str:
    """Return the value of CHAP_A that proposes ``numbers``."""
    return ",".join(map(str, numbers))


def choose_algorithm(text: str, allowed: Sequence[int]) -> int | None:
    """Return the first member of the proposal ``text`` that is allowed; what has no number is passed over."""
    KEYS["CHAP_A"].rule.value(text)
    members = parse_list(text)
    if len(members) > _MEMBERS_LIMIT:
        raise ValueError(f"{len(members)} algorithms are more than {_MEMBERS_LIMIT}")
    for member in members:
        try:
            number = parse_number(member)
        except ValueError:
            continue
        if number in allowed and number in ALGORITHMS:
            return number
    return None


def parse_identifier(text: str) -> int:
    """Return CHAP_I, one byte."""
    return int(KEYS["CHAP_I"].rule.value(text))


def parse_name(text: str) -> str:
    """Return CHAP_N."""
    name = str(KEYS["CHAP_N"].rule.value(text))
    if not name or not name.isprintable():
        raise ValueError("not a name")
    return name


def parse_challenge(text: str) -> bytes:
    """Return CHAP_C, of 1 to 1024 bytes."""
    return _parse_bytes(text)


def parse_response(text: str, algorithm: int) -> bytes:
    """Return CHAP_R, as long as the algorithm makes it."""
    data = _parse_bytes(text)
    if len(data) != ALGORITHMS[algorithm].length:
        raise ValueError(f"a response of {len(data)} bytes is not {ALGORITHMS[algorithm].name}'s")
    return data


def _parse_bytes(text: str) -> bytes:
    if len(text) > 2 + 2 * BINARY_LIMIT:
        raise ValueError(f"a binary value of {len(text)} characters is longer than {BINARY_LIMIT} bytes")
    data = parse_binary(text, BINARY_LIMIT)
    if not data:
        raise ValueError("an empty binary value")
    return data
