"""AES-XTS by sectors, as dm-crypt has it under the name aes-xts-plain64."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

IV_UNIT = 512  # what sectors are numbered in, however long they are: dm-crypt without iv_large_sectors
KEY_SIZES = (32, 64)  # bytes: two keys of AES-128 or of AES-256


class Xts:
    """``sector`` bytes are encrypted at once; ``tweak`` is added to the number of each. Any number of threads."""

    def __init__(self, key: bytes, sector: int, tweak: int = 0) -> None:
        self.sector, self._tweak = sector, tweak
        self._aes = algorithms.AES(key)  # which takes the two keys of XTS as one

    def encrypt(self, data: memoryview, offset: int, into: memoryview) -> None:
        """Whole sectors, which lie at ``offset``; ``into`` may be ``data``."""
        self._crypt(data, offset, into, decrypt=False)

    def decrypt(self, data: memoryview, offset: int, into: memoryview) -> None:
        self._crypt(data, offset, into, decrypt=True)

    def _crypt(self, data: memoryview, offset: int, into: memoryview, *, decrypt: bool) -> None:
        sector, aes = self.sector, self._aes
        number, step = offset // IV_UNIT + self._tweak, sector // IV_UNIT
        for at in range(0, len(data), sector):
            cipher = Cipher(aes, modes.XTS(number.to_bytes(16, "little")))
            context = cipher.decryptor() if decrypt else cipher.encryptor()
            into[at : at + sector] = context.update(data[at : at + sector])
            number += step
