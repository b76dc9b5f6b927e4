"""Compressed clusters: deflate and zstd, in memory that their own size bounds, and a few of them kept."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable

import zstandard

from iscsid.plugin import BlockError, Fault

from .qcow2_format import DEFLATE, ZSTD

#: The longest window that a zstd frame may ask for; QEMU's encoder takes 2 MiB at most.
MAX_WINDOW = 1 << 24
KEPT_BYTES = 1 << 20


def inflate(data: bytes | bytearray, size: int) -> bytes:
    """One cluster from a raw deflate stream with a window of 12 bits; what follows the stream is of no account."""
    return zlib.decompressobj(-12).decompress(data, size)


def unzstd(data: bytes | bytearray, size: int) -> bytes:
    """One cluster from a zstd frame; what follows the frame is of no account."""
    reader = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(bytes(data))
    parts, left = [], size
    while left and (part := reader.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


_DECODERS: dict[int, Callable[[bytes | bytearray, int], bytes]] = {DEFLATE: inflate, ZSTD: unzstd}


class Decompressor:
    """Decodes clusters of ``cluster_size`` bytes and keeps the last ones, by where they lie. Safe for threads."""

    def __init__(self, name: str, kind: int, cluster_size: int) -> None:
        self._name = name
        self._decode = _DECODERS[kind]
        self._size = cluster_size
        self._keep = max(1, KEPT_BYTES // cluster_size)
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def cluster(self, key: int, fetch: Callable[[], bytes | bytearray]) -> bytes:
        """The content of the compressed cluster whose L2 entry is ``key``; ``fetch`` reads its data.

        Raises BlockError(READ_ERROR) when the data is damaged.
        """
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                return found
        try:
            content = self._decode(fetch(), self._size)
        except (zlib.error, zstandard.ZstdError) as error:
            raise BlockError(Fault.READ_ERROR, f"{self._name}: a compressed cluster is damaged: {error}") from error
        if len(content) != self._size:
            words = f"a compressed cluster has {len(content)} bytes instead of {self._size}"
            raise BlockError(Fault.READ_ERROR, f"{self._name}: {words}")
        with self._lock:
            self._kept[key] = content
            while len(self._kept) > self._keep:
                self._kept.popitem(last=False)
        return content

    def forget(self) -> None:
        """Keep nothing: clusters have been given back and may hold something else soon."""
        with self._lock:
            self._kept.clear()
