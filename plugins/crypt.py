"""The layer ``crypt``: what reaches the device below is encrypted, by AES-XTS as dm-crypt does it.

``format = "luks"``: the device below has a LUKS header, of version 1 or 2, made by cryptsetup, QEMU or ``iscsid layer
format``; the content of ``key_file`` is the passphrase, every byte of it. ``format = "plain"``: it has none, the file
is the key, 32 or 64 bytes, and sectors are ``sector`` bytes. The file is read when a worker opens the device. Secrets
go neither into options nor into messages.

XTS hides what is written; it does not tell when somebody has changed it, or has put back what was there before. One
sector is encrypted at once, so a LUN has no smaller blocks. What a discard gives back would not read as zeros, and
would show where nothing is: none is offered.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import stat
from collections.abc import Callable, Mapping
from typing import Any

from iscsid.plugin import (
    BlockError,
    Capabilities,
    Device,
    Fault,
    Filter,
    LayerInfo,
    Mode,
    Option,
    Support,
    Threading,
    Verb,
    hookimpl,
)

from . import luks
from .xts import KEY_SIZES, Xts

OPTIONS = (
    Option("key_file", "path", required=True, doc="passphrase of a LUKS header, or the key itself"),
    Option("format", "str", default="luks", choices=("luks", "plain"), doc="of the device below"),
    Option(
        "sector", "size", default=512, choices=luks.SECTORS, doc="bytes encrypted at once; a LUKS header has its own"
    ),
)
MAX_KEY_FILE = 8 << 20  # as cryptsetup has it
IN_LOOP = 32 << 10  # bytes; longer ones take the loop's time from others
BLANK = 1 << 20  # bytes at the beginning that have to be zeros where a header is made


class Crypt(Filter):
    """``size`` bytes from ``start`` on, decrypted."""

    mode = Mode.BLOCKING
    discard_granularity = 0
    discard_alignment = 0
    discard_zeroes = False

    def __init__(self, below: Device, volume: luks.Volume) -> None:
        super().__init__(below)
        self.block_size = max(below.block_size, volume.sector)
        self._start = volume.offset
        left = below.size - volume.offset
        self.size = left if volume.size is None else volume.size
        self.size -= self.size % self.block_size
        if not 0 < self.size <= left or volume.offset % below.block_size:
            raise BlockError(Fault.INVALID, f"the encrypted data is not on a device of {below.size} bytes")
        self._xts = Xts(volume.key, volume.sector, volume.tweak)
        can = below.capabilities()
        inline = below.mode is Mode.INLINE and below.threading is Threading.PARALLEL
        self._now = (inline or can.read_nowait is Support.NATIVE, inline or can.write_nowait is Support.NATIVE)
        self._below_now = (below.read_into, below.write) if inline else (below.read_nowait, below.write_nowait)

    def capabilities(self) -> Capabilities:
        none = Support.NONE
        read, write = (Support.NATIVE if now else none for now in self._now)
        can = dataclasses.replace(self.below.capabilities(), view=none, block_status=none, discard=none)
        can = dataclasses.replace(can, write_zeroes=none, space=none, read_nowait=read, write_nowait=write)
        return dataclasses.replace(can, write=none, fua=none, write_nowait=none) if self.readonly else can

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.below.read_into(buffer, self._start + offset)
        self._xts.decrypt(buffer, offset, buffer)

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        if len(buffer) > IN_LOOP:
            raise BlockingIOError
        self._below_now[0](buffer, self._start + offset)
        self._xts.decrypt(buffer, offset, buffer)

    def write(self, data: memoryview, offset: int) -> None:
        self.below.write(self._encrypted(data, offset), self._start + offset)

    def write_nowait(self, data: memoryview, offset: int) -> None:
        if len(data) > IN_LOOP:
            raise BlockingIOError
        self._below_now[1](self._encrypted(data, offset), self._start + offset)

    def write_fua(self, data: memoryview, offset: int) -> None:
        self.below.write_fua(self._encrypted(data, offset), self._start + offset)

    def prefetch(self, offset: int, length: int) -> None:
        self.below.prefetch(self._start + offset, length)

    def _encrypted(self, data: memoryview, offset: int) -> memoryview:
        """In memory of its own: the caller's is sent or compared afterwards."""
        length = max(len(data), 1)
        into = memoryview(mmap.mmap(-1, length) if self.alignment > 1 else bytearray(length))[: len(data)]
        self._xts.encrypt(data, offset, into)
        return into


def read_key(path: str) -> bytes:
    """What is in the file. Raises BlockError(INVALID) where others can read it, and OSError."""
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISREG(mode) and mode & stat.S_IROTH:
            raise BlockError(Fault.INVALID, f"{path} can be read by everybody (chmod o-r it)")
        content = file.read(MAX_KEY_FILE + 1)
    if not 0 < len(content) <= MAX_KEY_FILE:
        raise BlockError(Fault.INVALID, f"{path} has no bytes, or more than {MAX_KEY_FILE}")
    return content


def _volume(device: Device, options: Mapping[str, Any]) -> luks.Volume:
    key = read_key(options["key_file"])
    if options["format"] == "luks":
        return luks.unlock(device, key)
    _check_plain(options["key_file"], key)
    return luks.Volume(0, None, options["sector"], 0, key)


def _check_plain(path: str, key: bytes) -> None:
    if len(key) not in KEY_SIZES or key[: len(key) // 2] == key[len(key) // 2 :]:
        sizes = " or ".join(map(str, KEY_SIZES))
        raise BlockError(Fault.INVALID, f"{path} must have {sizes} bytes, the two halves of which differ")


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    verbs = (Verb("format", "make the LUKS2 header of a blank device"),)
    return LayerInfo("crypt", "AES-XTS, with a LUKS header or a key", OPTIONS, verbs=verbs)


@hookimpl
def iscsid_layer_validate(name: str, options: Mapping[str, Any]) -> list[str]:
    try:
        key = read_key(options["key_file"])
        if options["format"] == "plain":
            _check_plain(options["key_file"], key)
    except (BlockError, OSError) as error:
        return [f"key_file: {error.strerror if isinstance(error, OSError) else error}"]
    return []


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Crypt:
    return Crypt(device, _volume(device, options))


@hookimpl
def iscsid_layer_verb(
    name: str, verb: str, options: Mapping[str, Any], below: Callable[[], Device]
) -> Mapping[str, Any]:
    if options["format"] != "luks":
        raise BlockError(Fault.INVALID, 'format = "plain" has no header')
    device = below()
    if any(luks.read(device, 0, min(BLANK, device.size // device.block_size * device.block_size))):
        raise BlockError(Fault.INVALID, "there is something at the beginning of the device; make it zeros first")
    sector = max(options["sector"], device.block_size)
    return {"uuid": luks.create(device, read_key(options["key_file"]), sector=sector)}
