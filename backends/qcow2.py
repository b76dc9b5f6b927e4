"""The back end ``qcow2``: disk images in QEMU's format, versions 2 and 3, read and written.

One process has an image (its tables are in memory), held by the locks that QEMU looks at. What is cached is read and
written in the worker's loop; everything else, and whatever changes the tables, in the pool. The parts: qcow2_format
(the bytes), qcow2_storage (the file), qcow2_mapping and qcow2_refcounts (the tables), qcow2_image (checkpoints, where
crash safety is explained), qcow2_read and qcow2_write, qcow2_chain (opening), qcow2_check, qcow2_snapshots,
qcow2_manage.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from iscsid.plugin import (
    BackendInfo,
    BlockError,
    Capabilities,
    Device,
    Extent,
    Fault,
    Option,
    Sharing,
    Space,
    Support,
    Threading,
    Verb,
    hookimpl,
)

from . import linux
from . import qcow2_manage as manage
from . import qcow2_snapshots as snapshots
from .qcow2_chain import Rules, open_image, read_header
from .qcow2_check import check, repair
from .qcow2_clone import clone
from .qcow2_format import MAGIC
from .qcow2_image import L2_CACHE, REFCOUNT_CACHE, Image, Limits
from .qcow2_read import block_status, nowait_reader, read
from .qcow2_storage import open_storage
from .qcow2_write import discard, nowait_writer, write, write_zeroes

OPTIONS = (
    Option("path", "path", required=True, doc="the image; `iscsid image create` makes one", medium=True),
    Option("backing_dir", "path", doc="where files that the image names may lie; by default its own folder and below"),
    Option("l2_cache", "size", default=L2_CACHE, minimum=1 << 16, doc="memory for L2 tables"),
    Option("refcount_cache", "size", default=REFCOUNT_CACHE, minimum=1 << 16, doc="memory for reference counts"),
)
VERBS = (
    Verb(
        "create",
        "make an image",
        (
            Option("size", "size", minimum=512, doc="of the disk; by default that of the backing file"),
            Option("compat", "str", default="1.1", choices=("1.1", "0.10"), doc="version 3 or 2 of the format"),
            Option("cluster_size", "size", default=65536, minimum=512, maximum=2 << 20, doc="unit of allocation"),
            Option("refcount_bits", "int", default=16, minimum=1, maximum=64, doc="width of the reference counts"),
            Option("lazy_refcounts", "bool", default=False, doc="write reference counts at the end only"),
            Option("extended_l2", "bool", default=False, doc="32 subclusters to a cluster"),
            Option("compression_type", "str", default="zlib", choices=("zlib", "zstd"), doc="of compressed clusters"),
            Option("backing_file", "path", doc="what shows where the image holds nothing"),
            Option("backing_format", "str", choices=("raw", "qcow2"), doc="of the backing file"),
            Option("data_file", "path", doc="keep the data in this file"),
            Option("data_file_raw", "bool", default=False, doc="and that file readable as a raw image"),
        ),
    ),
    Verb("info", "tell what an image is"),
    Verb("check", "tell whether an image is sound", (Option("repair", "bool", default=False, doc="and mend it"),)),
    Verb(
        "resize",
        "change the size of the disk",
        (
            Option("size", "size", required=True, minimum=512, doc="of the disk"),
            Option("shrink", "bool", default=False, doc="cut off, and lose, what is behind a smaller size"),
        ),
    ),
    Verb("commit", "write the image into its backing file, and empty it"),
    Verb(
        "snapshot",
        "keep states of the disk, and go back to them",
        (
            Option("action", "str", default="list", choices=("list", "create", "apply", "delete"), doc="what to do"),
            Option("name", "str", doc="of the snapshot"),
        ),
    ),
    Verb(
        "clone",
        "write a snapshot into a new image; the image may be in use",
        (
            Option("name", "str", required=True, doc="of the snapshot"),
            Option("to", "path", required=True, doc="the new file"),
            Option("format", "str", default="qcow2", choices=("qcow2", "raw"), doc="of the new file"),
        ),
    ),
)


class Qcow2Device(Device):
    """An open image."""

    threading = Threading.PARALLEL
    physical_block_size = 4096
    discard_zeroes = True

    def __init__(self, image: Image) -> None:
        self.image = image
        self.size = image.size
        self.readonly = not image.writing
        self.discard_granularity = self.optimal_io = image.cluster_size
        self._gate = image.gate
        if image.data.nowait is not None:
            self.read_nowait = nowait_reader(image)  # type: ignore[method-assign, assignment]
        if image.writing:
            self.write_nowait = nowait_writer(image)  # type: ignore[method-assign, assignment]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        age = self._gate.enter()
        try:
            read(self.image, buffer, offset)
        finally:
            self._gate.leave(age)

    def write(self, data: memoryview, offset: int) -> None:
        self._change(write, data, offset)

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        raise BlockingIOError  # a file system that cannot say whether it would wait; else a closure is in its place

    def write_nowait(self, data: memoryview, offset: int) -> None:
        raise BlockingIOError  # as above, of an image that is read only

    def flush(self) -> None:
        """A checkpoint. Of an image that was found damaged, what was written before may not be reachable: an error."""
        if self.image.writing:
            self.image.checkpoint()
        elif not self.readonly:
            raise BlockError(Fault.WRITE_ERROR, f"{self.image.name} is corrupt; what was not flushed is lost")

    def discard(self, offset: int, length: int) -> None:
        self._change(discard, offset, length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self._change(write_zeroes, offset, length, may_unmap)

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        age = self._gate.enter()
        try:
            yield from block_status(self.image, offset, length)
        finally:
            self._gate.leave(age)

    def prefetch(self, offset: int, length: int) -> None:
        """Bring the tables into memory and have the kernel read the data."""
        age = self._gate.enter()
        try:
            end = offset + length
            while offset < end:
                entry, _ = self.image.entry(offset >> self.image.header.cluster_bits)
                host = entry & 0x00FF_FFFF_FFFF_FE00
                step = min(self.image.cluster_size - (offset & (self.image.cluster_size - 1)), end - offset)
                if host:
                    os.posix_fadvise(self.image.data.fd, host, self.image.cluster_size, os.POSIX_FADV_WILLNEED)
                offset += step
        finally:
            self._gate.leave(age)

    def space(self) -> Space:
        """Clusters that were given back count as free, although the file system gets them at the next flush."""
        space = linux.file_space(self.image.data.fd)
        waiting = min(self.image.given_back, space.used)
        return Space(space.used - waiting, space.available + waiting)

    def close(self) -> None:
        self.image.close()

    def capabilities(self) -> Capabilities:
        answer = super().capabilities()
        if self.image.data.nowait is None:
            answer = dataclasses.replace(answer, read_nowait=Support.NONE)
        return answer

    def _change(self, change: Callable[..., None], *arguments: Any) -> None:
        age = self._gate.enter()
        try:
            change(self.image, *arguments)
        finally:
            self._gate.leave(age)
        if self.image.pressed:
            self.image.relieve()


def _rules(options: Mapping[str, Any]) -> Rules:
    limits = Limits(options["l2_cache"], options["refcount_cache"])
    return Rules(limits, options["backing_dir"] or "")


@hookimpl
def iscsid_backend_info() -> BackendInfo:
    return BackendInfo("qcow2", "a disk image of QEMU", OPTIONS, Sharing.EXCLUSIVE_OWNER, verbs=VERBS)


@hookimpl
def iscsid_probe(uri: str) -> int:
    try:
        storage = open_storage(uri, writing=False, lock=False)
    except (OSError, BlockError):
        return 0
    try:
        return 100 if storage.read(0, 4) == MAGIC else 0
    finally:
        storage.close()


@hookimpl
def iscsid_validate(options: Mapping[str, Any]) -> list[str]:
    path = options["path"]
    try:
        storage = open_storage(path, writing=False, lock=False)
    except FileNotFoundError:
        return [f"path: {path} does not exist; `iscsid image create` makes one"]
    except OSError as error:
        return [f"path: {path}: {error.strerror}"]
    except BlockError as error:
        return [f"path: {error}"]
    try:
        header = read_header(storage)
    except BlockError as error:
        return [f"path: {error}"]
    finally:
        storage.close()
    return [] if header.size >= 512 else [f"path: {path} has {header.size} bytes, not even one block"]


@hookimpl
def iscsid_open(options: Mapping[str, Any], role: str) -> Qcow2Device:
    image = open_image(options["path"], _rules(options), writing=role != "readonly")
    try:
        if image.size < 512:
            raise BlockError(Fault.INVALID, f"{image.name} has {image.size} bytes, not even one block")
        return Qcow2Device(image)
    except BaseException:
        image.close()
        raise


# Management.


@hookimpl
def iscsid_image(options: Mapping[str, Any], verb: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    return _ACTIONS[verb](options["path"], _rules(options), arguments)


def _create(path: str, rules: Rules, given: Mapping[str, Any]) -> dict[str, Any]:
    manage.create(path, rules, given)
    return manage.info(path, rules)


def _info(path: str, rules: Rules, given: Mapping[str, Any]) -> dict[str, Any]:
    return manage.info(path, rules)


def _check(path: str, rules: Rules, given: Mapping[str, Any]) -> dict[str, Any]:
    mend = given["repair"]
    header_only = Rules(rules.limits, rules.backing_dir, follow=False)
    image = open_image(path, header_only, writing=mend)
    try:
        report = repair(image) if mend else check(image)
    finally:
        image.close()
    answer = dataclasses.asdict(report)
    answer["problems"] = answer.pop("words")
    return {**answer, "sound": report.sound, "repaired": mend}


def _resize(path: str, rules: Rules, given: Mapping[str, Any]) -> dict[str, Any]:
    image = open_image(path, rules, writing=True)
    try:
        if given["size"] < image.size and not given["shrink"]:
            words = f"{path} has {image.size} bytes: what is behind {given['size']} would be lost; say shrink to do it"
            raise BlockError(Fault.INVALID, words)
        old = image.size
        manage.resize(image, given["size"])
    finally:
        image.close()
    return {"old_size": old, "size": given["size"]}


def _clone(path: str, rules: Rules, given: Mapping[str, Any]) -> dict[str, Any]:
    return clone(path, rules, given)


def _commit(path: str, rules: Rules, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"committed": manage.commit(path, rules)}


def _snapshot(path: str, rules: Rules, given: Mapping[str, Any]) -> dict[str, Any]:
    action = given["action"]
    if action == "list":
        return {"snapshots": manage.info(path, rules)["snapshots"]}
    if not given["name"]:
        raise BlockError(Fault.INVALID, "name: missing")
    image = open_image(path, rules, writing=True)
    try:
        _SNAPSHOT_ACTIONS[action](image, given["name"])
        return {"snapshots": manage.snapshot_list(image)}
    finally:
        image.close()


_SNAPSHOT_ACTIONS: dict[str, Callable[[Image, str], object]] = {
    "create": snapshots.create,
    "apply": snapshots.apply,
    "delete": snapshots.delete,
}
_ACTIONS: dict[str, Callable[[str, Rules, Mapping[str, Any]], dict[str, Any]]] = {
    "create": _create,
    "info": _info,
    "check": _check,
    "resize": _resize,
    "commit": _commit,
    "snapshot": _snapshot,
    "clone": _clone,
}
