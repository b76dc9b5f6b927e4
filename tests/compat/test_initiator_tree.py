"""The tree under the mount point: names, modes, contents, and what a file system's calls answer. No kernel needed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import cast

import pytest

from iscsid.compat.initiator_storage import Storage
from iscsid.compat.initiator_tree import MountedTarget, Operations, Unit, build, directory_names, short_name

NAME = "iqn.1994-04.org.netbsd.iscsi-target:target0"


class FakeStorage:
    """What Operations asks of a Storage."""

    block_size = 512

    def __init__(self, size: int = 1 << 20) -> None:
        self.size = size
        self.content = bytearray(size)
        self.calls: list[object] = []
        self.may_write = True
        self.gone = False
        self.grown_to = 0

    def refresh(self) -> None:
        if self.gone:
            raise OSError(errno.EIO, "gone")
        self.size = self.grown_to or self.size

    def writable(self) -> bool:
        return self.may_write

    def read(self, offset: int, length: int) -> memoryview:
        return memoryview(self.content)[offset : offset + length]

    def write(self, offset: int, data: bytes) -> int:
        self.content[offset : offset + len(data)] = data
        return len(data)

    def zero(self, offset: int, length: int) -> None:
        self.calls.append(("zero", offset, length))

    def flush(self, *, always: bool = True) -> None:
        if self.gone:
            raise OSError(errno.EIO, "gone")
        self.calls.append("fsync" if always else "flush")


def unit(storage: FakeStorage, lun: int = 0, serial: str = "") -> Unit:
    return Unit(lun, cast(Storage, storage), "NetBSD  ", "NetBSD iSCSI    ", "0   ", serial)


@pytest.fixture
def disk() -> FakeStorage:
    return FakeStorage()


@pytest.fixture
def second() -> FakeStorage:
    return FakeStorage(1 << 12)


@pytest.fixture
def tree(disk: FakeStorage, second: FakeStorage) -> Operations:
    units = (unit(disk), unit(second, 7, "S123"))
    return Operations(build([MountedTarget(NAME, "store.example", "192.0.2.1", units)]))


def raises(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as raised:
        call()
    assert raised.value.errno == number


def test_short_name_is_what_follows_the_last_colon() -> None:
    assert short_name(NAME) == "target0"
    assert short_name("iqn.2026-11.org.example:a:b") == "b"
    assert short_name("eui.0123456789abcdef") == "eui.0123456789abcdef"
    assert short_name("iqn.2026-11.org.example:") == "iqn.2026-11.org.example:"
    assert short_name("iqn.2026-11.org.example:..") == "iqn.2026-11.org.example:.."
    assert short_name("iqn.2026-11.org.example:a/b") == "a_b"


def test_targets_with_the_same_short_name_are_all_there() -> None:
    names = ["iqn.a:disk", "iqn.b:disk", "iqn.c:disk.2", "iqn.d:disk", "iqn.e:other"]
    assert list(directory_names(names)) == ["disk", "disk.2", "disk.2.2", "disk.3", "other"]
    storage = FakeStorage()
    root = build(MountedTarget(name, "h", "i", (unit(storage),)) for name in names)
    tree = Operations(root)
    assert tree.readlink("/disk.3/targetname") == "iqn.d:disk"


def test_directories_have_what_the_man_page_lists(tree: Operations) -> None:
    assert tree.readdir("/", 0) == [".", "..", "target0"]
    listed = {".", "..", "storage", "hostname", "ip", "targetname", "vendor", "product", "version"}
    assert set(tree.readdir("/target0", 0)) == listed | {"lun7"}
    assert set(tree.readdir("/target0/lun7", 0)) == {".", "..", "storage", "vendor", "product", "version", "serial"}


def test_links_have_the_text_with_its_blanks(tree: Operations) -> None:
    contents = {
        "hostname": "store.example",
        "ip": "192.0.2.1",
        "targetname": NAME,
        "vendor": "NetBSD  ",
        "product": "NetBSD iSCSI    ",
        "version": "0   ",
        "lun7/serial": "S123",
    }
    for name, content in contents.items():
        assert tree.readlink(f"/target0/{name}") == content
        attributes = tree.getattr(f"/target0/{name}")
        assert attributes["st_mode"] == stat.S_IFLNK | 0o644
        assert attributes["st_size"] == len(content)
        assert attributes["st_nlink"] == 1


def test_modes_sizes_and_owner_are_the_original_s(tree: Operations) -> None:
    here = os.stat(".")
    for path in ("/", "/target0", "/target0/lun7"):
        attributes = tree.getattr(path)
        assert (attributes["st_mode"], attributes["st_nlink"]) == (stat.S_IFDIR | 0o755, 2)
        assert (attributes["st_uid"], attributes["st_mtime"]) == (here.st_uid, here.st_mtime_ns)
    attributes = tree.getattr("/target0/storage")
    assert (attributes["st_mode"], attributes["st_size"]) == (stat.S_IFREG | 0o644, 1 << 20)
    assert attributes["st_blocks"] == 2048
    inodes = [tree.getattr(path)["st_ino"] for path in ("/", "/target0", "/target0/storage", "/target0/lun7/storage")]
    assert len(set(inodes)) == 4


@pytest.mark.parametrize(("kind", "mode"), [("b", stat.S_IFBLK), ("c", stat.S_IFCHR), ("f", stat.S_IFREG)])
def test_storage_is_shown_as_it_is_asked_for(disk: FakeStorage, kind: str, mode: int) -> None:
    tree = Operations(build([MountedTarget(NAME, "h", "i", (unit(disk),))]), kind)
    attributes = tree.getattr("/target0/storage")
    assert attributes["st_mode"] == mode | 0o644
    assert attributes.get("st_size", 0) == (disk.size if kind == "f" else 0)


def test_reads_and_writes_go_to_the_unit_of_the_path(tree: Operations, disk: FakeStorage, second: FakeStorage) -> None:
    assert tree.write("/target0/storage", b"one", 5, 0) == 3
    assert tree.write("/target0/lun7/storage", b"two", 6, 0) == 3
    assert tree.read("/target0/storage", 3, 5, 0) == b"one"
    assert disk.content[5:8] == b"one"
    assert second.content[6:9] == b"two"


def test_fsync_and_close_reach_the_medium(tree: Operations, disk: FakeStorage, second: FakeStorage) -> None:
    assert tree.fsync("/target0/storage", 1, 0) == 0
    assert tree.flush("/target0/storage", 0) == 0
    assert disk.calls == ["fsync", "flush"]
    second.gone = True
    raises(errno.EIO, lambda: tree.fsync("/target0/lun7/storage", 0, 0))


def test_unmounting_flushes_every_disk_and_gets_over_those_that_are_gone(
    tree: Operations, disk: FakeStorage, second: FakeStorage
) -> None:
    disk.gone = True
    tree.destroy("/")
    assert second.calls == ["flush"]


def test_a_disk_keeps_its_length(tree: Operations, disk: FakeStorage) -> None:
    for length in (disk.size, 0, 100):
        assert tree.truncate("/target0/storage", length) == 0
    raises(errno.ENOSPC, lambda: tree.truncate("/target0/storage", disk.size + 1))
    assert tree.getattr("/target0/storage")["st_size"] == 1 << 20


def test_holes_and_zeros_are_written_and_space_is_there_already(tree: Operations, disk: FakeStorage) -> None:
    for mode in (0x03, 0x10, 0x11):
        assert tree.fallocate("/target0/storage", mode, 512, 1024, 0) == 0
    assert disk.calls == [("zero", 512, 1024)] * 3
    assert tree.fallocate("/target0/storage", 0, 0, disk.size, 0) == 0
    raises(errno.ENOSPC, lambda: tree.fallocate("/target0/storage", 0, 1, disk.size, 0))
    raises(errno.EOPNOTSUPP, lambda: tree.fallocate("/target0/storage", 0x08, 0, 512, 0))


def test_open_for_writing_needs_a_disk_that_may_be_written(tree: Operations, disk: FakeStorage) -> None:
    assert tree.open("/target0/storage", os.O_RDWR) == 0
    disk.may_write = False
    assert tree.open("/target0/storage", os.O_RDONLY) == 0
    for flags in (os.O_RDWR, os.O_WRONLY):
        raises(errno.EROFS, lambda flags=flags: tree.open("/target0/storage", flags))  # type: ignore[misc]


def test_open_finds_a_disk_that_has_grown_or_gone(tree: Operations, disk: FakeStorage) -> None:
    disk.grown_to = 1 << 21
    assert tree.open("/target0/storage", os.O_RDONLY) == 0
    assert tree.getattr("/target0/storage")["st_size"] == 1 << 21
    disk.gone = True
    raises(errno.EIO, lambda: tree.open("/target0/storage", os.O_RDONLY))


def test_statfs_tells_of_all_disks_and_nothing_free(tree: Operations, disk: FakeStorage, second: FakeStorage) -> None:
    facts = tree.statfs("/")
    assert facts["f_blocks"] * facts["f_frsize"] == disk.size + second.size
    assert facts.get("f_bavail", 0) == 0
    assert facts["f_files"] == 15


def test_wrong_paths_have_the_errno_that_they_have_everywhere(tree: Operations) -> None:
    raises(errno.ENOENT, lambda: tree.getattr("/nothing"))
    raises(errno.ENOENT, lambda: tree.open("/target0/nothing", os.O_RDONLY))
    raises(errno.ENOTDIR, lambda: tree.getattr("/target0/storage/x"))
    raises(errno.ENOTDIR, lambda: tree.readdir("/target0/storage", 0))
    raises(errno.EISDIR, lambda: tree.open("/target0", os.O_RDONLY))
    raises(errno.EINVAL, lambda: tree.readlink("/target0/storage"))
    raises(errno.EINVAL, lambda: tree.read("/target0/ip", 1, 0, 0))
    for call in (lambda: tree.chmod("/target0/storage", 0o600), lambda: tree.chown("/target0/storage", 1, 1)):
        raises(errno.EPERM, call)
    assert tree.utimens("/target0/storage") == 0
