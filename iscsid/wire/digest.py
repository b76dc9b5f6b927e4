"""CRC32C, the digest of iSCSI (RFC 7143 section 13.1): polynomial 0x1edc6f41, reflected, all ones in and out.

``crc32c`` is google_crc32c where its C part is there, and the tables below where it is not. Both take bytes, bytearray
and memoryview. Measured on a 2-core machine: the C library 27 GB/s; it takes bytes only, and the copy that a memoryview
needs first brings that to 17 GB/s. The tables do 16 MB/s: enough to be correct, not to serve disks.

On the wire a digest is little-endian: 32 zero bytes have the CRC 0x8a9136aa, sent as aa 36 91 8a (appendix A.4).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from iscsid.wire.bhs import Buffer

_POLYNOMIAL = 0x82F63B78  # bit-reversed

# A memoryview is copied by the piece: a data segment may have 16 MiB, and a piece stays in the CPU's cache.
_PIECE = 256 * 1024


def _make_tables() -> tuple[list[int], ...]:
    """Return four tables of 256: the CRC of a byte that 0, 1, 2 or 3 zero bytes follow."""
    first = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0)
        first.append(crc)
    tables = [first]
    for _ in range(3):
        tables.append([crc >> 8 ^ first[crc & 0xFF] for crc in tables[-1]])
    return tuple(tables)


_TABLES = _make_tables()
_WORD = struct.Struct("<I")


def crc32c_python(data: Buffer, crc: int = 0) -> int:
    """Return the CRC32C of ``data``, going on from the ``crc`` of what came before it. Pure Python, word by word."""
    zero, one, two, three = _TABLES
    crc ^= 0xFFFFFFFF
    words = len(data) & ~3
    for (word,) in _WORD.iter_unpack(data[:words]):
        crc ^= word
        crc = three[crc & 0xFF] ^ two[crc >> 8 & 0xFF] ^ one[crc >> 16 & 0xFF] ^ zero[crc >> 24]
    for byte in data[words:]:
        crc = crc >> 8 ^ zero[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def _from_c(extend: Callable[[int, bytes], int]) -> Callable[[Buffer, int], int]:
    """Wrap the library's ``extend(crc, bytes)`` so that it takes any buffer."""

    def crc32c(data: Buffer, crc: int = 0) -> int:
        if type(data) is bytes:
            return extend(crc, data)
        if len(data) <= _PIECE:
            return extend(crc, bytes(data))
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            crc = extend(crc, bytes(view[start : start + _PIECE]))
        return crc

    return crc32c


def _choose() -> Callable[..., int]:
    try:
        import google_crc32c
    except ImportError:
        return crc32c_python
    # Without its C part the library falls back to Python code that is slower than ours.
    return _from_c(google_crc32c.extend) if google_crc32c.implementation == "c" else crc32c_python


crc32c: Callable[..., int] = _choose()


def digest(data: Buffer, crc: int = 0) -> bytes:
    """Return the four bytes that follow a header or a data segment on the wire; ``crc`` as in ``crc32c``."""
    return _WORD.pack(crc32c(data, crc))
