"""Opening an image with all that it refers to: its data file, and the chain of backing files.

The names in an image are as untrusted as the rest of it: who may give us an image must not be able to have us serve
any file of the host. So a file that an image names has to lie in the image's own folder or below, or below the folder
that the configuration allows (``backing_dir``). The format of a backing file has to be recorded in the image; it is
never guessed, since a guest that once wrote to a raw backing file could have written a header into it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from iscsid.plugin import BlockError, Content, Device, Extent, Fault

from . import linux
from .qcow2_check import repair
from .qcow2_format import CORRUPT, DIRTY, Header, cluster_bits_of, parse, refuse
from .qcow2_image import Image, Limits
from .qcow2_read import block_status, nowait_reader, read
from .qcow2_storage import Storage, open_storage

MAX_DEPTH = 64
_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_HEADER_BYTES = 4096


@dataclass(slots=True)
class Rules:
    """How to open: what memory may be taken, where files that an image names may lie, whether to hold them."""

    limits: Limits = field(default_factory=Limits)
    backing_dir: str = ""  # empty: the image's own folder
    lock: bool = True
    follow: bool = True  # whether to open backing files


class RawLayer(Device):
    """A raw backing file."""

    readonly = True

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.size = storage.size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._storage.read_into(buffer, offset)

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        nowait = self._storage.nowait
        if nowait is None or os.preadv(self._storage.fd, (buffer,), offset, nowait) != len(buffer):
            raise BlockingIOError

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        if self._storage.regular:
            return linux.extents(self._storage.fd, offset, length)
        return (Extent(offset, length, Content.DATA),)

    def close(self) -> None:
        self._storage.close()


class ImageLayer(Device):
    """A qcow2 backing file, open for reading."""

    readonly = True

    def __init__(self, image: Image) -> None:
        self._image = image
        self.size = image.size
        self._nowait = nowait_reader(image)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        read(self._image, buffer, offset)

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        self._nowait(buffer, offset)

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        return block_status(self._image, offset, length)

    def close(self) -> None:
        self._image.close()


def read_header(storage: Storage) -> Header:
    """The header of an image, read and checked."""
    size = storage.size
    start = bytes(storage.read(0, min(_HEADER_BYTES, size)))
    bits = cluster_bits_of(start, storage.name)
    if 1 << bits > len(start):
        start = bytes(storage.read(0, min(1 << bits, size)))
    return parse(start[: 1 << bits], storage.name, size)


def open_image(path: str, rules: Rules, *, writing: bool) -> Image:
    """Open the image ``path`` and all that it refers to.

    Raises BlockError with the file and the reason, or OSError with the file. For writing, an image that was not closed
    is repaired first, and one that is marked as corrupt is refused.
    """
    return _open(path, rules, writing, [])


def _open(path: str, rules: Rules, writing: bool, above: list[tuple[int, int]]) -> Image:
    storage = open_storage(path, writing=writing, lock=rules.lock)
    opened: list[Storage | Device] = [storage]
    try:
        header = read_header(storage)
        if writing and header.incompatible & CORRUPT:
            words = "is marked as corrupt: it can be served read-only, and repaired by `qemu-img check -r all`"
            refuse(path, words, Fault.READ_ONLY)
        data = backing = None
        if header.external:
            name = resolve(path, header.data_file, rules, "data file")
            data = open_storage(name, writing=writing, lock=rules.lock)
            opened.append(data)
        if header.backing and rules.follow:
            backing = open_backing(path, header, rules, [*above, identity(storage)])
            opened.append(backing)
        image = Image(header, storage, data, backing, writing=writing, limits=rules.limits)
        if writing:
            _make_ready(image)
        return image
    except BaseException:
        for part in opened:
            part.close()
        raise


def _make_ready(image: Image) -> None:
    image.prepare_writing()
    if image.header.incompatible & DIRTY:
        repair(image)


def identity(storage: Storage) -> tuple[int, int]:
    """What tells a file from every other, by whichever name it was opened."""
    facts = os.fstat(storage.fd)
    return facts.st_dev, facts.st_ino


def open_backing(path: str, header: Header, rules: Rules, chain: list[tuple[int, int]]) -> Device:
    """The backing file that the header of the image ``path`` names; ``chain`` are those above it, of which it is none.
    Raises BlockError and OSError."""
    if len(chain) > MAX_DEPTH:
        refuse(path, f"the chain of backing files is longer than {MAX_DEPTH}")
    name = resolve(path, header.backing, rules, "backing file")
    kind = header.backing_format
    if not kind:
        words = "does not record the format of its backing file, which is never guessed; record it by"
        refuse(path, f"{words} `qemu-img rebase -u -b {header.backing} -F FORMAT {path}`")
    if kind not in ("raw", "qcow2"):
        refuse(path, f"its backing file has the format {kind!r}; raw and qcow2 are known", Fault.UNSUPPORTED)
    facts = os.stat(name)
    if (facts.st_dev, facts.st_ino) in chain:
        refuse(path, f"its backing file {name} is an image of the same chain: a loop")
    if kind == "raw":
        return RawLayer(open_storage(name, writing=False, lock=rules.lock))
    return ImageLayer(_open(name, rules, False, chain))


def resolve(path: str, name: str, rules: Rules, what: str) -> str:
    """The path of a file that the image ``path`` names; refused where it may not lie there."""
    name = name.removeprefix("file:")
    if _PROTOCOL.match(name):
        refuse(path, f"its {what} {name!r} is no plain file name", Fault.UNSUPPORTED)
    folder = os.path.dirname(os.path.realpath(path))
    found = os.path.realpath(os.path.join(folder, name))
    allowed = os.path.realpath(rules.backing_dir) if rules.backing_dir else folder
    if os.path.commonpath((found, allowed)) != allowed:
        words = f"its {what} {found} is not in {allowed}; name a folder with it in backing_dir, if it may be used"
        raise BlockError(Fault.INVALID, f"{path}: {words}")
    return found
