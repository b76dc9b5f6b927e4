"""The LUN field (RFC 7143 section 11.2.1.7): eight bytes by the rules of SAM-5 4.7, here one big-endian int.

A logical unit number is 0 .. 16383. Targets of this kind have one level, so the field is one two-byte address and six
zero bytes: peripheral device addressing (SAM-5 4.7.6.5) below 256, flat space addressing (4.7.6.4) from there on. An
initiator may use flat space addressing for small numbers too. Everything else names no unit of ours: buses, further
levels, logical unit addressing, extended addressing with the well-known units in it.

A field is the key under which a session finds its unit, so ``decode`` need not run per command.
"""

from __future__ import annotations

from iscsid.errors import LocalProtocolError

MAX_LUN = 0x3FFF
_PERIPHERAL_LIMIT = 0x100
_FLAT_SPACE = 0x4000  # address method 01b in the two highest bits
_LEVEL_SHIFT = 48  # the first level is the two highest bytes


def encode(lun: int) -> int:
    """Return the field for a logical unit number; raises LocalProtocolError beyond ``MAX_LUN``."""
    if not 0 <= lun <= MAX_LUN:
        raise LocalProtocolError(f"LUN {lun} is not in 0 .. {MAX_LUN}")
    return (lun if lun < _PERIPHERAL_LIMIT else _FLAT_SPACE | lun) << _LEVEL_SHIFT


def decode(field: int) -> int | None:
    """Return the logical unit number that a field names, None where it names none that ``encode`` knows."""
    address, further_levels = divmod(field, 1 << _LEVEL_SHIFT)
    if further_levels:
        return None
    if address < _PERIPHERAL_LIMIT:
        return address
    if address & ~MAX_LUN == _FLAT_SPACE:
        return address & MAX_LUN
    return None


def fields(lun: int) -> tuple[int, ...]:
    """Return every field that ``decode`` reads as this number: the keys of a session's table of units."""
    flat = (_FLAT_SPACE | lun) << _LEVEL_SHIFT
    own = encode(lun)
    return (own,) if own == flat else (own, flat)
