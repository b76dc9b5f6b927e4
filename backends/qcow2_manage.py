"""Making, describing, resizing and committing images: what the command ``iscsid image`` asks of this back end."""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Mapping
from functools import partial
from typing import Any

from iscsid.plugin import BlockError, Fault

from .qcow2_chain import ImageLayer, RawLayer, Rules, open_image, read_header, resolve
from .qcow2_format import (
    COMPRESSION_TYPE,
    COMPRESSIONS,
    CORRUPT,
    DIRTY,
    EXTENDED_L2,
    EXTERNAL_DATA,
    FULL_LENGTH,
    LAZY_REFCOUNTS,
    MAX_L1_BYTES,
    RAW_DATA,
    V2_LENGTH,
    ZSTD,
    Header,
    l1_entries,
    pack,
    refuse,
)
from .qcow2_image import Image
from .qcow2_read import Kind, runs
from .qcow2_refcounts import Refcounts
from .qcow2_storage import Storage, open_storage
from .qcow2_write import check_writable, forget_range, write, write_zeroes

PIECE = 1 << 20


# Create.


def create(path: str, rules: Rules, given: Mapping[str, Any]) -> None:
    """Make the image ``path``, which must not be there yet. ``given`` is checked as the verb's options say."""
    header = _new_header(path, rules, given)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    storage = Storage(fd, path)
    try:
        storage.lock(writing=True)
        _lay_out(storage, header, header.size)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        storage.close()


def fill(path: str, size: int) -> None:
    """Make the empty file ``path`` an image of ``size`` bytes, of the usual kind."""
    header = Header()
    header.size = size
    if l1_entries(header, size) * 8 > MAX_L1_BYTES or not size:
        raise BlockError(Fault.INVALID, f"{path}: a size of {size} bytes is not possible")
    storage = open_storage(path, writing=True)
    try:
        _lay_out(storage, header, size)
    finally:
        storage.close()


def _new_header(path: str, rules: Rules, given: Mapping[str, Any]) -> Header:
    header = Header(version=2 if given["compat"] == "0.10" else 3)
    header.cluster_bits = given["cluster_size"].bit_length() - 1
    header.refcount_order = given["refcount_bits"].bit_length() - 1
    if header.cluster_size != given["cluster_size"] or header.refcount_bits != given["refcount_bits"]:
        raise BlockError(Fault.INVALID, "cluster_size and refcount_bits are powers of two")
    header.header_length = V2_LENGTH if header.version == 2 else FULL_LENGTH
    _set_features(header, given)
    if given["backing_file"]:
        header.backing, header.backing_format = given["backing_file"], given["backing_format"] or ""
    header.size = _size(path, rules, header, given["size"])
    if l1_entries(header, header.size) * 8 > MAX_L1_BYTES:
        raise BlockError(Fault.INVALID, f"{header.size} bytes need larger clusters than {header.cluster_size} bytes")
    if header.external:
        _make_data_file(resolve(path, header.data_file, rules, "data file"), header.size)
    return header


def _set_features(header: Header, given: Mapping[str, Any]) -> None:
    """Feature bits, and what excludes what."""
    new = ("lazy_refcounts", "extended_l2", "data_file", "data_file_raw")
    if header.version == 2 and (any(given[name] for name in new) or header.refcount_order != 4):
        raise BlockError(Fault.INVALID, f'compat = "0.10" has neither {", ".join(new)} nor other refcount_bits than 16')
    if given["compression_type"] == "zstd":
        if header.version == 2:
            raise BlockError(Fault.INVALID, 'compat = "0.10" knows no other compression than zlib')
        header.compression = ZSTD
        header.incompatible |= COMPRESSION_TYPE
    if given["lazy_refcounts"]:
        header.compatible |= LAZY_REFCOUNTS
    if given["extended_l2"]:
        if header.cluster_bits < 14:
            raise BlockError(Fault.INVALID, "extended_l2 needs clusters of 16 KiB or more")
        header.incompatible |= EXTENDED_L2
    if given["data_file_raw"] and (not given["data_file"] or given["backing_file"]):
        raise BlockError(Fault.INVALID, "data_file_raw needs a data_file, and no backing_file")
    if given["data_file"]:
        header.data_file = given["data_file"]
        header.incompatible |= EXTERNAL_DATA
        header.autoclear |= RAW_DATA if given["data_file_raw"] else 0


def _size(path: str, rules: Rules, header: Header, size: int | None) -> int:
    """The size that is asked for, or that of the backing file, which has to be there in either case."""
    if not header.backing:
        if not size:
            raise BlockError(Fault.INVALID, "size: missing; only a backing_file gives one")
        return size
    if header.backing_format not in ("raw", "qcow2"):
        raise BlockError(Fault.INVALID, "backing_format: raw or qcow2, as it is recorded and never guessed")
    base = _open_base(resolve(path, header.backing, rules, "backing file"), header.backing_format, rules, False)
    try:
        return size or base.size
    finally:
        base.close()


def _make_data_file(path: str, size: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
    finally:
        os.close(fd)


def _lay_out(storage: Storage, header: Header, size: int) -> None:
    """Header, refcount table and one refcount block; the rest by the ways that an open image has."""
    data_file = storage if header.external else None
    header.size = 0
    header.reftable_offset, header.reftable_clusters = header.cluster_size, 1
    head = pack(header, storage.name)
    storage.write(head, 0)
    storage.truncate(3 * header.cluster_size)
    refs = Refcounts(
        storage, header, 2, lambda offset, clusters: None, lambda cluster: False, partial(refuse, storage.name)
    )
    refs.add_block_at(0, 2)
    for cluster in range(3):
        refs.set(cluster, 1)
    for _, offset, content in refs.take():
        storage.write(content, offset)
    storage.write(refs.table_bytes(), header.reftable_offset)
    image = Image(header, storage, data_file, writing=True)
    with image.alone():
        image.switch_l1(array("Q", bytes(8 * l1_entries(header, size))), size)
    image.checkpoint()
    if header.lazy:
        image.set_dirty(False)


# Info.


def info(path: str, rules: Rules) -> dict[str, Any]:
    """What the header says, and what the file takes. Opens nothing but the image, which may be in use."""
    storage = open_storage(path, writing=False, lock=False)
    try:
        header = read_header(storage)
        facts = os.fstat(storage.fd)
        image = Image(header, storage)
        return {
            "format": "qcow2",
            "compat": "0.10" if header.version == 2 else "1.1",
            "size": header.size,
            "disk_size": facts.st_blocks * 512,
            "cluster_size": header.cluster_size,
            "refcount_bits": header.refcount_bits,
            "compression_type": COMPRESSIONS[header.compression],
            "lazy_refcounts": header.lazy,
            "extended_l2": header.extended,
            "dirty": bool(header.incompatible & DIRTY),
            "corrupt": bool(header.incompatible & CORRUPT),
            "backing_file": header.backing or None,
            "backing_format": header.backing_format or None,
            "data_file": header.data_file or None,
            "data_file_raw": header.raw_data,
            "snapshots": snapshot_list(image),
        }
    finally:
        storage.close()


def snapshot_list(image: Image) -> list[dict[str, Any]]:
    """The snapshots of an image, in the order of its table."""
    return [
        {
            "id": snapshot.id,
            "name": snapshot.name,
            "size": snapshot.disk_size,
            "vm_state_size": snapshot.vm_state_size,
            "seconds": snapshot.seconds,
        }
        for snapshot in image.snapshots
    ]


# Resize.


def resize(image: Image, size: int) -> None:
    """Make the disk ``size`` bytes. What is cut off is lost; what comes to it reads as zeros."""
    check_writable(image)
    if image.snapshots and image.header.version == 2:
        raise BlockError(Fault.UNSUPPORTED, f"{image.name}: version 2 with snapshots, whose sizes it does not record")
    if l1_entries(image.header, size) * 8 > MAX_L1_BYTES or not size:
        raise BlockError(Fault.INVALID, f"{image.name}: a size of {size} bytes is not possible")
    with image.alone():
        if size < image.size:
            _shrink(image, size)
        else:
            _grow(image, size)


def _shrink(image: Image, size: int) -> None:
    end = min(-(-size // image.cluster_size) * image.cluster_size, image.size)
    if end > size:
        _zeroes(image, size, end - size)  # or it would be back after the next growth
    if image.size > end:
        if image.header.raw_data:
            image.data.zero(end, image.size - end)  # which is where the disk has it, whatever the tables say
        forget_range(image, end, image.size - end)
    image.checkpoint()
    _set_size(image, size)
    if image.header.raw_data:
        image.data.truncate(size)


def _grow(image: Image, size: int) -> None:
    old, needed = image.size, l1_entries(image.header, size)
    if needed > len(image.mapping.l1):
        image.switch_l1(array("Q", [*image.mapping.l1, *[0] * (needed - len(image.mapping.l1))]), old)
    if image.external:
        if image.data.regular and image.data.size < size:
            image.data.truncate(size)
        image.note_limit(size)
    shown = 0 if image.backing is None else min(image.backing.size, size)
    if shown > old:
        _zeroes(image, old, shown - old)  # the backing file is longer, and does not show
    image.checkpoint()
    _set_size(image, size)


def _zeroes(image: Image, offset: int, length: int) -> None:
    """Zeros, also behind the end of the disk and in version 2."""
    while length:
        piece = min(length, PIECE)
        try:
            write_zeroes(image, offset, piece, True)
        except BlockError as error:
            if error.fault is not Fault.UNSUPPORTED:
                raise
            with memoryview(bytes(piece)) as view:
                write(image, view, offset)
        offset += piece
        length -= piece


def _set_size(image: Image, size: int) -> None:
    image.header.size = image.size = size
    image.write_header()


# Commit.


def commit(path: str, rules: Rules) -> int:
    """Write what the image holds into its backing file, and make the image empty. How many bytes were written."""
    top = open_image(path, Rules(rules.limits, rules.backing_dir, rules.lock, follow=False), writing=True)
    try:
        if not top.header.backing:
            raise BlockError(Fault.INVALID, f"{path} has no backing file")
        name = resolve(path, top.header.backing, rules, "backing file")
        base = _open_base(name, top.header.backing_format, rules, True)
        try:
            done = _commit(top, base)
        finally:
            base.close()
        with top.alone():
            forget_range(top, 0, top.size)
        return done
    finally:
        top.close()


def _open_base(path: str, kind: str, rules: Rules, writing: bool) -> _Base:
    if kind == "raw":
        return _RawBase(open_storage(path, writing=writing, lock=rules.lock))
    if kind == "qcow2":
        return _ImageBase(open_image(path, rules, writing=writing))
    raise BlockError(Fault.UNSUPPORTED, f"{path}: a backing file of the format {kind!r}; raw and qcow2 are known")


class _RawBase(RawLayer):
    """A raw backing file that is written."""

    def write(self, data: memoryview, offset: int) -> None:
        self._storage.write(data, offset)

    def zero(self, offset: int, length: int) -> None:
        self._storage.zero(offset, length)

    def grow(self, size: int) -> None:
        if not self._storage.regular:
            raise BlockError(Fault.NO_SPACE, f"{self._storage.name} has {self.size} bytes, not {size}")
        self._storage.truncate(size)
        self.size = size

    def flush(self) -> None:
        self._storage.sync()


class _ImageBase(ImageLayer):
    """A qcow2 backing file that is written."""

    def write(self, data: memoryview, offset: int) -> None:
        write(self._image, data, offset)
        self._image.relieve()

    def zero(self, offset: int, length: int) -> None:
        _zeroes(self._image, offset, length)

    def grow(self, size: int) -> None:
        resize(self._image, size)
        self.size = size

    def flush(self) -> None:
        self._image.checkpoint()


_Base = _RawBase | _ImageBase


def _commit(top: Image, base: _Base) -> int:
    if base.size < top.size:
        base.grow(top.size)
    done, source = 0, ImageLayer(top)
    for start in range(0, top.size, PIECE):
        for piece in runs(top, start, min(PIECE, top.size - start)):
            if piece.kind is Kind.BACKING:
                continue
            if piece.kind is Kind.ZERO:
                base.zero(piece.offset, piece.length)
            else:
                buffer = memoryview(bytearray(piece.length))
                source.read_into(buffer, piece.offset)
                base.write(buffer, piece.offset)
            done += piece.length
    base.flush()
    return done
