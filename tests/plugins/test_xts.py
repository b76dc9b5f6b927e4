"""AES-XTS of sectors, by the vectors of IEEE 1619."""

from __future__ import annotations

import os

from iscsid_plugins.xts import Xts

# IEEE 1619-2007, annex B, vector 2: AES-128, one data unit of 32 bytes.
KEY = b"\x11" * 16 + b"\x22" * 16
CIPHERTEXT = bytes.fromhex("c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0")


def test_vector_of_the_standard_is_met() -> None:
    xts, out = Xts(KEY, 32, 0x3333333333), bytearray(32)
    xts.encrypt(memoryview(b"\x44" * 32), 0, memoryview(out))
    assert out == CIPHERTEXT
    xts.decrypt(memoryview(out), 0, memoryview(out))
    assert out == b"\x44" * 32


def test_sectors_are_numbered_in_units_of_512_bytes() -> None:
    key, data = os.urandom(64), memoryview(os.urandom(4096))
    whole, part = bytearray(8192), bytearray(4096)
    Xts(key, 4096).encrypt(memoryview(bytes(data) * 2), 0, memoryview(whole))
    Xts(key, 4096, tweak=8).encrypt(data, 0, memoryview(part))
    assert whole[4096:] == part != whole[:4096]
