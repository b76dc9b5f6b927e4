"""32-bit serial number arithmetic (RFC 1982 with SERIAL_BITS = 32, as RFC 7143 section 4.2.2.1 asks).

CmdSN, StatSN and the numbers derived from them wrap at 2**32. They are plain ints in 0 .. 2**32 - 1; only the
functions here may compare them.
"""

MASK = 0xFFFFFFFF
HALF = 0x80000000


def add(number: int, step: int) -> int:
    """Return ``number + step`` modulo 2**32; ``step`` may be negative."""
    return (number + step) & MASK


def less(left: int, right: int) -> bool:
    """Tell whether ``left`` comes before ``right``.

    RFC 1982 leaves a pair that lies exactly 2**31 apart undefined; here neither of the two is less.
    """
    return 0 < ((right - left) & MASK) < HALF


def distance(start: int, end: int) -> int:
    """Return how many steps lead from ``start`` forward to ``end``, 0 .. 2**32 - 1."""
    return (end - start) & MASK
