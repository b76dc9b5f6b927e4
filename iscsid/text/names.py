"""iSCSI names: their forms (RFC 7143 section 4.2.7) and their one normal spelling (RFC 3722).

Names are compared byte by byte on the wire, so whatever a human typed is normalised once, where it enters.
"""

from __future__ import annotations

import re
import stringprep
import unicodedata
from collections.abc import Callable

MAX_LENGTH = 223  # bytes of UTF-8 (RFC 7143 section 4.2.7.2)

_ALLOWED_ASCII = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-.:")  # RFC 3722 section 6.2

# RFC 3722 section 6.1: the tables of RFC 3454 whose characters a name may not hold.
_PROHIBITED_TABLES: tuple[Callable[[str], bool], ...] = (
    stringprep.in_table_c11_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)
_IDEOGRAPHIC_FULL_STOP = "\u3002"  # prohibited by name in RFC 3722 section 6.2

_DATE = re.compile(r"(\d{4})-(\d{2})")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1035 section 2.3.1, with RFC 1123's leading digits


def normalize(name: str) -> str:
    """Return ``name`` as it goes over the wire: folded to lower case and NFKC, its form checked.

    Raises ValueError, its text the reason, for what is not an iqn., eui. or naa. name.
    """
    mapped = "".join(
        "" if stringprep.in_table_b1(char) else stringprep.map_table_b2(char) for char in name
    )  # RFC 3722 section 4
    normal = unicodedata.normalize("NFKC", mapped)  # section 5
    _check_characters(normal)
    _check_direction(normal)
    if not normal:
        raise ValueError("an iSCSI name cannot be empty")
    if (length := len(normal.encode())) > MAX_LENGTH:
        raise ValueError(f"an iSCSI name has at most {MAX_LENGTH} bytes, this one has {length}")
    kind, dot, rest = normal.partition(".")
    if not dot or kind not in _FORMS:
        raise ValueError("an iSCSI name begins with iqn., eui. or naa.")
    _FORMS[kind](rest)
    return normal


def _check_characters(name: str) -> None:
    for char in name:
        if char.isascii():
            allowed = char in _ALLOWED_ASCII
        else:
            allowed = not (
                char == _IDEOGRAPHIC_FULL_STOP
                or stringprep.in_table_a1(char)  # section 8: unassigned code points
                or any(prohibited(char) for prohibited in _PROHIBITED_TABLES)
            )
        if not allowed:
            raise ValueError(f"{char!r} cannot stand in an iSCSI name: letters, digits, '-', '.' and ':' can")


def _check_direction(name: str) -> None:
    """RFC 3722 section 7, which is RFC 3454 section 6: no mix of writing directions."""
    if not any(stringprep.in_table_d1(char) for char in name):
        return
    if any(stringprep.in_table_d2(char) for char in name):
        raise ValueError("an iSCSI name cannot mix right-to-left and left-to-right letters")
    raise ValueError("an iSCSI name begins with iqn., eui. or naa., so it cannot be written right to left")


def _check_iqn(rest: str) -> None:
    """``yyyy-mm.reversed-domain[:anything]`` (RFC 7143 section 4.2.7.4)."""
    date, dot, tail = rest.partition(".")
    match = _DATE.fullmatch(date)
    if match is None or not 1 <= int(match[2]) <= 12:
        raise ValueError("after iqn. come the year and month of the domain, as in iqn.2026-11.org.example:disk0")
    authority, colon, own = tail.partition(":")
    if not dot or not all(_LABEL.fullmatch(label) for label in authority.split(".")):
        raise ValueError("after the date comes a reversed domain name, as in iqn.2026-11.org.example:disk0")
    if colon and not own:
        raise ValueError("nothing follows the ':'")


def _check_eui(rest: str) -> None:
    """EUI-64 in 16 hexadecimal digits (RFC 7143 section 4.2.7.5)."""
    if re.fullmatch(r"[0-9a-f]{16}", rest) is None:
        raise ValueError("after eui. come 16 hexadecimal digits")


def _check_naa(rest: str) -> None:
    """A 64- or 128-bit Network Address Authority identifier (RFC 7143 section 4.2.7.6)."""
    if re.fullmatch(r"[0-9a-f]{16}(?:[0-9a-f]{16})?", rest) is None:
        raise ValueError("after naa. come 16 or 32 hexadecimal digits")


_FORMS: dict[str, Callable[[str], None]] = {"iqn": _check_iqn, "eui": _check_eui, "naa": _check_naa}
