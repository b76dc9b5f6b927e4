"""Compressed clusters: decoded within bounds, kept a while, refused when damaged."""

from __future__ import annotations

import random
import zlib

import pytest
import zstandard
from iscsid_backends.qcow2_compress import Decompressor, inflate, unzstd
from iscsid_backends.qcow2_format import DEFLATE, ZSTD

from iscsid.errors import BlockError, Fault

SIZE = 65536


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-12)
    return packer.compress(data) + packer.flush()


ENCODERS = {DEFLATE: deflated, ZSTD: lambda data: zstandard.ZstdCompressor().compress(data)}


@pytest.mark.parametrize("kind", ENCODERS)
def test_cluster_comes_back_whatever_follows_it(kind: int) -> None:
    data = random.Random(1).randbytes(100) * 656
    packed = ENCODERS[kind](data[:SIZE].ljust(SIZE, b"x")) + b"rubbish" * 20
    assert Decompressor("x", kind, SIZE).cluster(1, lambda: packed) == data[:SIZE].ljust(SIZE, b"x")


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, "short"])
def test_damaged_cluster_is_a_read_error(kind: int, damage: bytes | str) -> None:
    packed = ENCODERS[kind](b"short") if isinstance(damage, str) else damage
    with pytest.raises(BlockError, match="x: a compressed cluster") as caught:
        Decompressor("x", kind, SIZE).cluster(1, lambda: packed)
    assert caught.value.fault is Fault.READ_ERROR


@pytest.mark.parametrize(("kind", "decode"), [(DEFLATE, inflate), (ZSTD, unzstd)])
def test_bomb_gives_no_more_than_a_cluster(kind: int, decode: object) -> None:
    packed = ENCODERS[kind](bytes(64 << 20))
    assert decode(packed, SIZE) == bytes(SIZE)  # type: ignore[operator]


def test_last_clusters_are_kept_and_forgotten() -> None:
    decompressor = Decompressor("x", DEFLATE, SIZE)
    fetched = []

    def fetch(key: int) -> bytes:
        def get() -> bytes:
            fetched.append(key)
            return deflated(bytes([key]) * SIZE)

        return decompressor.cluster(key, get)

    for key in range(16):
        fetch(key)
    fetch(15)
    fetch(0)
    assert fetched == list(range(16))
    fetch(16)
    fetch(1)
    assert fetched[-2:] == [16, 1]
    decompressor.forget()
    fetch(16)
    assert fetched[-1] == 16
