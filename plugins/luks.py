"""The headers of LUKS1 and LUKS2: where the data lies and, for whoever knows a passphrase, the key to it.

LUKS1 as in the "LUKS1 On-Disk Format Specification" 1.2.3, LUKS2 as in that of LUKS2 1.1.1. Only aes-xts-plain64 is
known, and one segment. A header is what a stranger may have written: all of it is checked, and what it asks for in
memory and work has a bound.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mmap
import os
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.primitives.kdf.argon2 import Argon2i, Argon2id

from iscsid.plugin import BlockError, Device, Fault

from .xts import KEY_SIZES, Xts

MAGIC: Final = b"LUKS\xba\xbe"
SECOND_MAGIC: Final = b"SKUL\xba\xbe"
CIPHER: Final = "aes-xts-plain64"
HASHES: Final = ("sha1", "sha256", "sha512")
STRIPES: Final = 4000
SECTOR: Final = 512
SECTORS: Final = (512, 1024, 2048, 4096)
#: Sizes of a header, and so places of the second one (LUKS2 specification, section 2.1).
HEADER_SIZES: Final = tuple(16384 << shift for shift in range(9))
MAX_KEYSLOTS: Final = 32
MAX_DIGESTS: Final = 8
MAX_ITERATIONS: Final = 1 << 27
MAX_MEMORY: Final = 4 << 20  # KiB
MAX_TIME: Final = 64
MAX_LANES: Final = 16
DATA_OFFSET: Final = 16 << 20
DIGEST_ITERATIONS: Final = 100_000  # of a key that is random: nobody guesses it
FIRST_SLOT: Final = 4096  # of LUKS1; the header is before it
_APART: Final = "the data lies in its header, which was made for another device"
_HEADER = struct.Struct(">6sHQQ48s32s64s40s48sQ184s64s")  # of LUKS2; the rest of the 4096 bytes is padding
_HEADER1 = struct.Struct(">6sH32s32s32sII20s32sI40s")
_KEYSLOT1 = struct.Struct(">II32sII")
_ACTIVE1 = 0x00AC71F3


@dataclass(frozen=True)
class Volume:
    """Where the encrypted data lies, in bytes, and how to read it. ``size`` None: all that is left."""

    offset: int
    size: int | None
    sector: int
    tweak: int
    key: bytes = field(repr=False)


def read(device: Device, offset: int, length: int) -> bytes:
    """Any range of the device, b"" where it is not within. In a buffer that O_DIRECT takes."""
    first = offset - offset % device.block_size
    whole = -(-(offset + length - first) // device.block_size) * device.block_size
    if offset < 0 or length <= 0 or first + whole > device.size:
        return b""
    buffer = memoryview(mmap.mmap(-1, whole))
    device.read_into(buffer, first)
    return bytes(buffer[offset - first : offset - first + length])


def write(device: Device, offset: int, data: bytes) -> None:
    """Whole blocks."""
    buffer = memoryview(mmap.mmap(-1, len(data)))
    buffer[:] = data
    device.write(buffer, offset)


def unlock(device: Device, passphrase: bytes) -> Volume:
    """The volume of ``device``. Raises BlockError(INVALID): no header, one that is not understood, wrong passphrase."""
    start = read(device, 0, _HEADER1.size)
    try:
        if start.startswith(MAGIC + b"\0\1"):
            return _unlock1(device, passphrase)
        header = newest(device)
        if header is None:
            raise BlockError(Fault.INVALID, "there is no LUKS header, or it is damaged")
        return _unlock2(device, header, passphrase)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BlockError(Fault.INVALID, f"the LUKS header is not understood: {error}") from error


# Anti-forensic stripes (LUKS1 specification, section 2.4).


def _diffuse(data: bytes, name: str) -> bytes:
    size = hashlib.new(name).digest_size
    parts = (data[at : at + size] for at in range(0, len(data), size))
    hashed = (hashlib.new(name, struct.pack(">I", number) + part).digest() for number, part in enumerate(parts))
    return b"".join(hashed)[: len(data)]


def _xor(one: bytes, two: bytes) -> bytes:
    return (int.from_bytes(one, "big") ^ int.from_bytes(two, "big")).to_bytes(len(one), "big")


def split(key: bytes, name: str) -> bytes:
    """The key as STRIPES parts, all of which it takes to have it back."""
    stripes, mixed = [], bytes(len(key))
    for _ in range(STRIPES - 1):
        stripes.append(os.urandom(len(key)))
        mixed = _diffuse(_xor(mixed, stripes[-1]), name)
    return b"".join([*stripes, _xor(mixed, key)])


def merge(stripes: bytes, length: int, name: str) -> bytes:
    mixed = bytes(length)
    for at in range(0, length * (STRIPES - 1), length):
        mixed = _diffuse(_xor(mixed, stripes[at : at + length]), name)
    return _xor(mixed, stripes[length * (STRIPES - 1) :])


# LUKS1.


def _unlock1(device: Device, passphrase: bytes) -> Volume:
    raw = read(device, 0, 1024)
    _, _, cipher, mode, name, payload, length, digest, salt, iterations, _ = _HEADER1.unpack_from(raw)
    hash_name = _text(name)
    _require(f"{_text(cipher)}-{_text(mode)}" == CIPHER, f"the cipher is {_text(cipher)}-{_text(mode)}, not {CIPHER}")
    _require(hash_name in HASHES and length in KEY_SIZES and 0 < iterations <= MAX_ITERATIONS, "its values are no good")
    _require(payload * SECTOR >= FIRST_SLOT, _APART)
    for index in range(8):
        active, rounds, its_salt, at, stripes = _KEYSLOT1.unpack_from(raw, _HEADER1.size + index * _KEYSLOT1.size)
        if active != _ACTIVE1:
            continue
        _require(0 < rounds <= MAX_ITERATIONS and stripes == STRIPES, "its values are no good")
        derived = hashlib.pbkdf2_hmac(hash_name, passphrase, its_salt, rounds, length)
        key = _open_slot(device, derived, at * SECTOR, length, hash_name)
        if hashlib.pbkdf2_hmac(hash_name, key, salt, iterations, 20) == digest:
            return Volume(payload * SECTOR, None, SECTOR, 0, key)
    raise BlockError(Fault.INVALID, "no key slot opens with this passphrase")


def _open_slot(device: Device, derived: bytes, offset: int, length: int, name: str) -> bytes:
    area = bytearray(read(device, offset, length * STRIPES))
    _require(len(area) == length * STRIPES, "a key slot is not on the device")
    Xts(derived, SECTOR).decrypt(memoryview(area), 0, memoryview(area))
    return merge(bytes(area), length, name)


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("ascii", "replace")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise BlockError(Fault.INVALID, f"LUKS: {reason}")


# LUKS2.


@dataclass(frozen=True)
class Header:
    """One of the two headers of LUKS2: ``size`` bytes, the JSON of which is ``content``."""

    sequence: int
    size: int
    content: Mapping[str, Any]


def newest(device: Device) -> Header | None:
    """The newer of the two headers that is sound.

    Where the second one is, the first one tells; only where that is lost it may be in any of its places: a device that
    was formatted before, in another way, may have an old one in each of them.
    """
    first = _header_at(device, 0)
    places = HEADER_SIZES if first is None else (first.size,)
    found = [one for place in places if (one := _header_at(device, place)) is not None]
    return max([first, *found] if first is not None else found, key=lambda one: one.sequence, default=None)


def _header_at(device: Device, place: int) -> Header | None:
    raw = read(device, place, 4096)
    if not raw.startswith(SECOND_MAGIC if place else MAGIC):
        return None
    _, version, size, sequence, _, algorithm, _, _, _, own, _, checksum = _HEADER.unpack_from(raw)
    if version != 2 or size not in HEADER_SIZES or own != place or _text(algorithm) not in HASHES:
        return None
    if place not in (0, size):
        return None
    whole = read(device, place, size)
    if _checksum(whole, _text(algorithm)) != checksum[: hashlib.new(_text(algorithm)).digest_size]:
        return None
    content = json.loads(whole[4096:].split(b"\0")[0])
    return Header(sequence, size, content) if isinstance(content, dict) else None


def _checksum(header: bytes, name: str) -> bytes:
    at = _HEADER.size - 64
    return hashlib.new(name, header[:at] + bytes(64) + header[at + 64 :]).digest()


def _number(text: Any) -> int:
    """A 64-bit number, which JSON has as a string."""
    if not isinstance(text, str) or not text.isdecimal() or len(text) > 20 or int(text) >= 1 << 63:
        raise ValueError(f"{text!r} is not a number")
    return int(text)


def _unlock2(device: Device, found: Header, passphrase: bytes) -> Volume:
    header = found.content
    needs = header["config"].get("requirements", {}).get("mandatory", [])
    _require(not needs, f"it requires {', '.join(map(str, needs))}")
    _require(len(header["segments"]) == 1, "it has not one segment, as while it is being encrypted anew")
    (name, segment), *_ = header["segments"].items()
    _require(segment["type"] == "crypt" and segment["encryption"] == CIPHER, f"the data is not {CIPHER}")
    _require("integrity" not in segment, "integrity is not supported")
    _require(segment["sector_size"] in SECTORS, "the sector size is no good")
    size = None if segment["size"] == "dynamic" else _number(segment["size"])
    offset, tweak = _number(segment["offset"]), _number(segment["iv_tweak"])
    _require(offset >= 2 * found.size, _APART)
    slots = header["keyslots"]
    # Each digest may have every slot tried: slow on purpose, and a header is not to be trusted.
    _require(len(header["digests"]) <= MAX_DIGESTS, "it has too many digests")
    for digest in header["digests"].values():
        if digest["type"] != "pbkdf2" or name not in digest["segments"]:
            continue
        for slot in list(dict.fromkeys(digest["keyslots"]))[:MAX_KEYSLOTS]:
            key = _open_slot2(device, slots[slot], passphrase)
            if key is not None and _pbkdf2(key, digest, 0) == base64.b64decode(digest["digest"]):
                return Volume(offset, size, segment["sector_size"], tweak, key)
    raise BlockError(Fault.INVALID, "no key slot opens with this passphrase")


def _open_slot2(device: Device, slot: Mapping[str, Any], passphrase: bytes) -> bytes | None:
    """The key in the slot, right or wrong; None for a slot of another kind."""
    area, anti_forensic, length = slot["area"], slot["af"], slot["key_size"]
    if slot["type"] != "luks2" or area["type"] != "raw" or area["encryption"] != CIPHER or length not in KEY_SIZES:
        return None
    _require(anti_forensic["stripes"] == STRIPES and anti_forensic["hash"] in HASHES, "its stripes are no good")
    _require(area["key_size"] in KEY_SIZES, "the key size of a slot is no good")
    derived = _derive(passphrase, slot["kdf"], area["key_size"])
    return _open_slot(device, derived, _number(area["offset"]), length, anti_forensic["hash"])


def _derive(passphrase: bytes, kdf: Mapping[str, Any], length: int) -> bytes:
    if kdf["type"] == "pbkdf2":
        return _pbkdf2(passphrase, kdf, length)
    kinds: dict[str, type[Argon2i | Argon2id]] = {"argon2i": Argon2i, "argon2id": Argon2id}
    _require(kdf["type"] in kinds, f"a key slot is made by {kdf['type']}")
    time, memory, lanes = kdf["time"], kdf["memory"], kdf["cpus"]
    sound = 0 < time <= MAX_TIME and 0 < memory <= MAX_MEMORY and 0 < lanes <= MAX_LANES
    _require(sound, "a key slot asks for too much memory or work")
    salt = base64.b64decode(kdf["salt"])
    made = kinds[kdf["type"]](salt=salt, length=length, iterations=time, lanes=lanes, memory_cost=memory)
    return bytes(made.derive(passphrase))


def _pbkdf2(secret: bytes, said: Mapping[str, Any], length: int) -> bytes:
    """``length`` 0: that of the digest."""
    _require(said["hash"] in HASHES and 0 < said["iterations"] <= MAX_ITERATIONS, "a hash asks for too much work")
    wanted = length or len(base64.b64decode(said["digest"]))
    return hashlib.pbkdf2_hmac(said["hash"], secret, base64.b64decode(said["salt"]), said["iterations"], wanted)


# Making a header.


def create(device: Device, passphrase: bytes, *, sector: int, memory: int = 131072, time: int = 4) -> str:
    """Put a new LUKS2 header on the device, with one key slot (argon2id); its UUID. ``memory`` in KiB.

    The key slot is on the medium before the headers are. Raises BlockError(NO_SPACE) where it does not fit.
    """
    if device.size < DATA_OFFSET + (1 << 20):
        raise BlockError(Fault.NO_SPACE, f"a device of {device.size} bytes has no room for a header and data")
    key, area_size = os.urandom(64), -(-64 * STRIPES // 4096) * 4096
    kdf = {"type": "argon2id", "time": time, "memory": memory, "cpus": 4, "salt": _base64(os.urandom(32))}
    area = bytearray(split(key, "sha256").ljust(area_size, b"\0"))
    Xts(_derive(passphrase, kdf, 64), SECTOR).encrypt(memoryview(area), 0, memoryview(area))
    salt = os.urandom(32)
    said = {"hash": "sha256", "iterations": DIGEST_ITERATIONS, "salt": _base64(salt)}
    digest = hashlib.pbkdf2_hmac("sha256", key, salt, DIGEST_ITERATIONS, 32)
    content = {
        "keyslots": {"0": _slot(kdf, area_size)},
        "tokens": {},
        "segments": {"0": _segment(sector)},
        "digests": {
            "0": {"type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], **said, "digest": _base64(digest)},
        },
        "config": {"json_size": "12288", "keyslots_size": str(DATA_OFFSET - 32768)},
    }
    name = str(uuid.uuid4())
    write(device, 32768, bytes(area))
    flush(device)
    for place in (16384, 0):
        write(device, place, _binary(content, place, name))
    flush(device)
    return name


def flush(device: Device) -> None:
    if device.capabilities().flush:
        device.flush()


def _slot(kdf: Mapping[str, Any], area_size: int) -> dict[str, Any]:
    area = {"type": "raw", "offset": "32768", "size": str(area_size), "encryption": CIPHER, "key_size": 64}
    stripes = {"type": "luks1", "stripes": STRIPES, "hash": "sha256"}
    return {"type": "luks2", "key_size": 64, "af": stripes, "area": area, "kdf": kdf}


def _segment(sector: int) -> dict[str, Any]:
    said = {"type": "crypt", "offset": str(DATA_OFFSET), "size": "dynamic", "iv_tweak": "0"}
    return {**said, "encryption": CIPHER, "sector_size": sector}


def _binary(content: Mapping[str, Any], place: int, name: str) -> bytes:
    magic = SECOND_MAGIC if place else MAGIC
    text = json.dumps(content, separators=(",", ":")).encode().ljust(12288, b"\0")
    fields = (magic, 2, 16384, 1, b"", b"sha256", os.urandom(64), name.encode(), b"", place, b"", bytes(64))
    header = bytearray(_HEADER.pack(*fields).ljust(4096, b"\0") + text)
    at = _HEADER.size - 64
    header[at : at + 32] = _checksum(bytes(header), "sha256")
    return bytes(header)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
