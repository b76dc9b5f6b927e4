"""The tree that iscsi-initiator(8) shows under its mount point, and what file systems' calls do with it.

    /target0/storage                                        the disk
    /target0/{hostname,ip,targetname}                       symbolic links whose content is meant, not what is there
    /target0/{vendor,product,version,serial}                the same, from INQUIRY
    /target0/lun1/{storage,vendor,product,version,serial}   a further unit of the target

The original had LUN 0 alone, so that one keeps its place. Nothing here knows FUSE: :class:`Operations` has the methods
that mfusepy calls, with paths in and dictionaries out, and raises OSError.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from iscsid.compat.initiator_storage import Storage

STORAGE: Final = "storage"
DIRECTORY_MODE: Final = stat.S_IFDIR | 0o755
LINK_MODE: Final = stat.S_IFLNK | 0o644  # as the original showed it
STORAGE_KINDS: Final = {"b": stat.S_IFBLK, "c": stat.S_IFCHR, "f": stat.S_IFREG}
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE, _FALLOC_ZERO_RANGE = 0x01, 0x02, 0x10  # linux/falloc.h
_ZEROING: Final = (_FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, _FALLOC_ZERO_RANGE, _FALLOC_ZERO_RANGE | _FALLOC_KEEP_SIZE)
_STATFS_BLOCK: Final = 512
_COPIED: Final = ("st_uid", "st_gid", "st_atime_ns", "st_mtime_ns", "st_ctime_ns")


@dataclass(slots=True)
class Directory:
    entries: dict[str, Node] = field(default_factory=dict)
    inode: int = 0


@dataclass(slots=True)
class Link:
    content: str
    inode: int = 0


@dataclass(slots=True)
class StorageFile:
    storage: Storage
    inode: int = 0


Node = Directory | Link | StorageFile


@dataclass(frozen=True, slots=True)
class Unit:
    """One disk of a target. The texts are as INQUIRY has them, blanks included; ``serial`` "" where there is none."""

    lun: int
    storage: Storage
    vendor: str
    product: str
    version: str
    serial: str


@dataclass(frozen=True, slots=True)
class MountedTarget:
    """One target and its disks."""

    name: str
    hostname: str
    ip: str
    units: tuple[Unit, ...]


def short_name(name: str) -> str:
    """What follows the last colon of a target's name, or all of it; never what cannot be a file's name."""
    short = name.rpartition(":")[2].replace("/", "_")
    return name.replace("/", "_") if short in ("", ".", "..") else short


def directory_names(names: Iterable[str]) -> Iterator[str]:
    """A directory for each target: its short name; where two have the same, the later ones get a number."""
    taken: set[str] = set()
    for name in names:
        short = short_name(name)
        chosen = next(
            candidate
            for candidate in itertools.chain([short], (f"{short}.{number}" for number in itertools.count(2)))
            if candidate not in taken
        )
        taken.add(chosen)
        yield chosen


def build(targets: Iterable[MountedTarget]) -> Directory:
    """The tree."""
    targets = list(targets)
    root = Directory()
    for directory, target in zip(directory_names(target.name for target in targets), targets, strict=True):
        top = Directory()
        root.entries[directory] = top
        for unit in target.units:
            if unit.lun == 0:
                top.entries.update(_unit_entries(unit))
            else:
                top.entries[f"lun{unit.lun}"] = Directory(_unit_entries(unit))
        links = {"hostname": target.hostname, "ip": target.ip, "targetname": target.name}
        top.entries.update({name: Link(content) for name, content in links.items()})
    _number(root, itertools.count(1))
    return root


def _unit_entries(unit: Unit) -> dict[str, Node]:
    entries: dict[str, Node] = {STORAGE: StorageFile(unit.storage)}
    for name, text in (("vendor", unit.vendor), ("product", unit.product), ("version", unit.version)):
        entries[name] = Link(text)
    if unit.serial:
        entries["serial"] = Link(unit.serial)
    return entries


def _number(directory: Directory, numbers: Iterator[int]) -> None:
    directory.inode = next(numbers)
    for node in directory.entries.values():
        if isinstance(node, Directory):
            _number(node, numbers)
        else:
            node.inode = next(numbers)


class Operations:
    """What a file system has to answer. Paths begin with a slash; times are in nanoseconds.

    Args:
        root: the tree.
        kind: how ``storage`` is shown: "f" a regular file, "b" a block device, "c" a character device. Behind the
            latter two there is no driver, so they can be looked at, and not be opened.
    """

    use_ns = True  # for mfusepy: the times below are integers

    def __init__(self, root: Directory, kind: str = "f") -> None:
        self._root = root
        self._kind = STORAGE_KINDS[kind]
        here = os.stat(".")
        self._common = {name.removesuffix("_ns"): getattr(here, name) for name in _COPIED}

    def _find(self, path: str) -> Node:
        node: Node = self._root
        for part in path.split("/"):
            if not part:
                continue
            if not isinstance(node, Directory):
                _fail(errno.ENOTDIR)
            found = node.entries.get(part)
            if found is None:
                _fail(errno.ENOENT)
            node = found
        return node

    def _storage(self, path: str) -> Storage:
        node = self._find(path)
        if isinstance(node, Directory):
            _fail(errno.EISDIR)
        if not isinstance(node, StorageFile):
            _fail(errno.EINVAL)
        return node.storage

    # -- looking around ------------------------------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> Mapping[str, Any]:
        """What stat(2) says. A device has no size."""
        node = self._find(path)
        attributes = {**self._common, "st_ino": node.inode, "st_nlink": 1}
        match node:
            case Directory():
                attributes.update(st_mode=DIRECTORY_MODE, st_nlink=2, st_size=_STATFS_BLOCK)
            case Link():
                attributes.update(st_mode=LINK_MODE, st_size=len(os.fsencode(node.content)))
            case StorageFile():
                attributes.update(st_mode=self._kind | 0o644, st_blksize=max(4096, node.storage.block_size))
                if self._kind == stat.S_IFREG:
                    attributes.update(st_size=node.storage.size, st_blocks=node.storage.size // 512)
        return attributes

    def readdir(self, path: str, fh: int) -> list[str]:
        node = self._find(path)
        if not isinstance(node, Directory):
            _fail(errno.ENOTDIR)
        return [".", "..", *node.entries]

    def readlink(self, path: str) -> str:
        node = self._find(path)
        if not isinstance(node, Link):
            _fail(errno.EINVAL)
        return node.content

    def statfs(self, path: str) -> Mapping[str, int]:
        """All disks together are the file system, and there is nothing free on it."""
        total = sum(node.storage.size for node in _files(self._root))
        return {
            "f_bsize": _STATFS_BLOCK,
            "f_frsize": _STATFS_BLOCK,
            "f_blocks": total // _STATFS_BLOCK,
            "f_files": _count(self._root),
            "f_namemax": 255,
        }

    # -- the disk ------------------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        """For writing only where the disk may be written: EROFS is what lets losetup go on with reading."""
        storage = self._storage(path)
        storage.refresh()
        if flags & os.O_ACCMODE != os.O_RDONLY and not storage.writable():
            _fail(errno.EROFS)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return bytes(self._storage(path).read(offset, size))

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return self._storage(path).write(offset, data)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        """The medium has everything when this returns."""
        self._storage(path).flush()
        return 0

    def flush(self, path: str, fh: int) -> int:
        """The file is closed: its writer hears now what he would not hear later."""
        self._storage(path).flush(always=False)
        return 0

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        """A disk keeps its length: cutting off, O_TRUNC of a shell's ``>`` too, is passed over; more cannot be had."""
        if length > self._storage(path).size:
            _fail(errno.ENOSPC)
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        """Holes and zeros, for who discards: mkfs, and a loop device. All else is there already, or never will be."""
        storage = self._storage(path)
        if mode in _ZEROING:
            storage.zero(offset, size)
        elif mode & ~_FALLOC_KEEP_SIZE:
            _fail(errno.EOPNOTSUPP)
        elif offset + size > storage.size:
            _fail(errno.ENOSPC)
        return 0

    # -- what is passed over, so that cp, touch and mkfs do not stumble ------------------------------------------------

    def chmod(self, path: str, mode: int) -> int:
        self._find(path)
        _fail(errno.EPERM)

    def chown(self, path: str, uid: int, gid: int) -> int:
        self._find(path)
        _fail(errno.EPERM)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self._find(path)
        return 0

    def init(self, path: str) -> None:
        """The mount stands; see iscsi_initiator."""

    def destroy(self, path: str) -> None:
        """Flush all disks: what was written and not synced is on its medium when the mount is gone."""
        for node in _files(self._root):
            try:
                node.storage.flush(always=False)
            except OSError:
                continue  # a target that is gone; the writers' own fsync told them


def _files(directory: Directory) -> Iterator[StorageFile]:
    for node in directory.entries.values():
        if isinstance(node, Directory):
            yield from _files(node)
        elif isinstance(node, StorageFile):
            yield node


def _count(directory: Directory) -> int:
    return 1 + sum(_count(node) if isinstance(node, Directory) else 1 for node in directory.entries.values())


def _fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))
