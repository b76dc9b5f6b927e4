"""The calls of the Linux kernel that the ``os`` module does not have: fallocate with a mode, file system types, holes,
and the ioctls and sysfs entries of block devices. Errors are OSError with the kernel's errno."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from iscsid.plugin import Content, Extent, Space

_libc = ctypes.CDLL(None, use_errno=True)  # calls release the GIL

# fallocate(2), linux/falloc.h
FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

# statfs(2), linux/magic.h
TMPFS_MAGIC = 0x01021994
RAMFS_MAGIC = 0x858458F6
HUGETLBFS_MAGIC = 0x958458F6
FUSE_SUPER_MAGIC = 0x65735546
#: File systems whose files are memory: no call waits for a disk, and a flush has nothing to do.
IN_MEMORY = frozenset({TMPFS_MAGIC, RAMFS_MAGIC, HUGETLBFS_MAGIC})

# linux/fs.h, in the encoding of the generic ABI (x86, arm, riscv, s390, loongarch).
BLKROGET = 0x125E
BLKSSZGET = 0x1268
BLKDISCARD = 0x1277
BLKIOMIN = 0x1278
BLKIOOPT = 0x1279
BLKPBSZGET = 0x127B
BLKROTATIONAL = 0x127E
BLKZEROOUT = 0x127F
BLKGETSIZE64 = 0x80081272

_INT = struct.Struct("i")
_SHORT = struct.Struct("H")
_U64 = struct.Struct("Q")
_RANGE = struct.Struct("QQ")


def _fallocate_function() -> Any:
    """The one with 64-bit offsets, which 32-bit libraries call fallocate64."""
    function = getattr(_libc, "fallocate64", None) or _libc.fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return function


_fallocate = _fallocate_function()
_statfs_buffer = ctypes.c_char * 256  # struct statfs has 120 bytes on 64-bit machines


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). A call that a signal interrupts is made again: both modes used here can be repeated."""
    while _fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Deallocate the range; it reads as zeros, at the byte. The size of the file stays."""
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> None:
    """Make the range read as zeros and keep it allocated."""
    fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length)


def file_system(fd: int) -> int:
    """The magic number of the file system that ``fd`` is on (``f_type`` of statfs(2))."""
    buffer = _statfs_buffer()
    if _libc.fstatfs(fd, buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF


def extents(fd: int, offset: int, length: int) -> Iterator[Extent]:
    """Data and holes of the range, by SEEK_DATA and SEEK_HOLE.

    Moves the file position, which nobody here uses; the answer of lseek itself is atomic. What lies behind the end of
    the file is a hole.
    """
    end = offset + length
    while offset < end:
        try:
            data = min(os.lseek(fd, offset, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data behind offset
                raise
            data = end
        if data > offset:
            yield Extent(offset, data - offset, Content.HOLE | Content.ZERO)
        if data == end:
            return
        # A writer may have closed the hole, or a discard opened one, between the two calls: never go backwards.
        try:
            offset = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        except OSError as error:
            if error.errno != errno.ENXIO:  # the file was cut
                raise
            offset = end
        if offset > data:
            yield Extent(data, offset - data, Content.DATA)


_UNIT = 512  # of st_blocks, whatever the file system's block is


def file_space(fd: int) -> Space:
    """What the file takes of its file system, and what is left there for one who is not root."""
    system = os.fstatvfs(fd)
    return Space(os.fstat(fd).st_blocks * _UNIT, system.f_bavail * system.f_frsize)


def memory_space(fd: int, size: int, meminfo: str = "/proc/meminfo") -> Space:
    """What a memfd of ``size`` bytes takes of the memory, and how much more of it can be had."""
    used = os.fstat(fd).st_blocks * _UNIT
    for line in Path(meminfo).read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return Space(used, min(max(size - used, 0), int(line.split()[1]) << 10))
    raise OSError(errno.ENODATA, f"{meminfo} does not tell what memory is available")


# Block devices.


class BlockGeometry(NamedTuple):
    """What the ioctls of a block device tell; lengths in bytes."""

    size: int
    logical_block_size: int
    physical_block_size: int
    minimum_io: int
    optimal_io: int
    rotational: bool
    readonly: bool


def _ask(fd: int, request: int, layout: struct.Struct) -> int:
    buffer = bytearray(layout.size)
    fcntl.ioctl(fd, request, buffer)
    value: int = layout.unpack(buffer)[0]
    return value


def block_geometry(fd: int) -> BlockGeometry:
    """Facts of the block device open at ``fd``."""
    return BlockGeometry(
        size=_ask(fd, BLKGETSIZE64, _U64),
        logical_block_size=_ask(fd, BLKSSZGET, _INT),
        physical_block_size=_ask(fd, BLKPBSZGET, _INT),
        minimum_io=_ask(fd, BLKIOMIN, _INT),
        optimal_io=_ask(fd, BLKIOOPT, _INT),
        rotational=bool(_ask(fd, BLKROTATIONAL, _SHORT)),
        readonly=bool(_ask(fd, BLKROGET, _INT)),
    )


def block_discard(fd: int, offset: int, length: int) -> None:
    """BLKDISCARD: what the range holds afterwards is the device's choice."""
    fcntl.ioctl(fd, BLKDISCARD, _RANGE.pack(offset, length))


def block_zero_out(fd: int, offset: int, length: int) -> None:
    """BLKZEROOUT: zeros, by a command of the device where it has one, else written by the kernel; never unmapped."""
    fcntl.ioctl(fd, BLKZEROOUT, _RANGE.pack(offset, length))


class QueueFacts(NamedTuple):
    """What sysfs tells of the request queue of a block device (Documentation/ABI/stable/sysfs-block)."""

    discard_max: int  # bytes; 0: no discard
    discard_granularity: int
    discard_alignment: int
    write_cache: bool  # a volatile one, or not known


def queue_facts(rdev: int, root: str = "/sys") -> QueueFacts:
    """Facts of the device number ``rdev``. What cannot be read counts as: no discard, and a volatile write cache."""
    folder = Path(root, "dev", "block", f"{os.major(rdev)}:{os.minor(rdev)}")
    disk = folder if (folder / "queue").is_dir() else folder.resolve().parent  # the queue of a partition is its disk's

    def number(path: Path) -> int:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            return 0

    try:
        write_cache = (disk / "queue" / "write_cache").read_text().strip() != "write through"
    except OSError:
        write_cache = True
    return QueueFacts(
        discard_max=number(disk / "queue" / "discard_max_bytes"),
        discard_granularity=number(disk / "queue" / "discard_granularity"),
        discard_alignment=number(folder / "discard_alignment"),
        write_cache=write_cache,
    )


def users_of(rdev: int, root: str = "/") -> list[str]:
    """Who uses the block device ``rdev``, a partition of it, or the disk that it is a partition of, as far as the
    kernel says: where it is mounted, what is built of it, and whether it is swapped to."""
    folder = Path(root, "sys", "dev", "block", f"{os.major(rdev)}:{os.minor(rdev)}").resolve()
    family = [folder, *(entry.parent for entry in folder.glob("*/partition"))]
    if (folder / "partition").exists():
        family.append(folder.parent)
    numbers = {number: member.name for member in family if (number := _text(member / "dev"))}
    users = []
    for line in _text(Path(root, "proc", "self", "mountinfo")).splitlines():
        # proc_pid_mountinfo(5): the source is the second word behind the " - "; btrfs has no device of its own there
        words, _, origin = line.partition(" - ")
        source = origin.split()[1:2]
        number = words.split()[2]
        name = numbers.get(number) or (numbers.get(_number(source[0])) if source else None)
        if name is not None:
            users.append(f"/dev/{name} is mounted on {_unescaped(words.split()[4])}")
    for member in family:
        users += [f"/dev/{member.name} is a part of {holder.name}" for holder in sorted(member.glob("holders/*"))]
    for line in _text(Path(root, "proc", "swaps")).splitlines()[1:]:
        if (name := numbers.get(_number(line.split()[0]))) is not None:
            users.append(f"/dev/{name} is swapped to")
    return users


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: str) -> str:
    """The device number of the block device at ``path``, as sysfs writes it; "" where there is none."""
    try:
        facts = os.stat(path)
    except OSError:
        return ""
    return f"{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}" if stat.S_ISBLK(facts.st_mode) else ""


def _unescaped(word: str) -> str:
    """A word of mountinfo, in which blanks, tabs, newlines and backslashes are octal."""
    for character in " \t\n\\":
        word = word.replace(f"\\{ord(character):03o}", character)
    return word
