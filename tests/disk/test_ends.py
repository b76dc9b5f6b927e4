"""Files, and disks of a real target, as ends of a copy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from disk_kit import MemoryEnd

from iscsid.disk import ends
from iscsid.disk.ends import EndError, Extent, FileEnd, LunEnd, open_destination, open_source, plain_url
from iscsid.errors import InitiatorError, SenseError, Unsupported
from iscsid.initiator import BlockStatus, Provisioning
from iscsid.testing import TestTarget

MIB = 1 << 20
HUGE_GAP = 4 * MIB  # larger than the blocks of any file system


@pytest.fixture
def sparse_file(tmp_path: Path) -> Path:
    """Data, a hole, data, a hole."""
    path = tmp_path / "sparse.img"
    with path.open("wb") as file:
        file.write(b"a" * MIB)
        file.seek(HUGE_GAP)
        file.write(b"b" * MIB)
        file.truncate(2 * HUGE_GAP + 5)
    return path


def destination_file(path: Path, size: int, *, force: bool = False, resume: bool = False) -> FileEnd:
    end = open_destination(str(path), MemoryEnd(bytes(size)), force=force, resume=resume, depth=4)
    assert isinstance(end, FileEnd)
    return end


# -- files -------------------------------------------------------------------------------------------------------------


def test_extents_of_a_file_are_its_data_and_holes(sparse_file: Path) -> None:
    end = open_source(str(sparse_file), depth=1)
    assert list(end.extents()) == [
        Extent(0, MIB, data=True),
        Extent(MIB, HUGE_GAP - MIB, data=False),
        Extent(HUGE_GAP, MIB, data=True),
        Extent(HUGE_GAP + MIB, HUGE_GAP - MIB + 5, data=False),
    ]
    end.close()


def test_extents_are_all_data_where_the_kernel_does_not_tell(
    sparse_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = open_source(str(sparse_file), depth=1)

    def refuse(fd: int, offset: int, whence: int) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "lseek", refuse)
    assert list(end.extents()) == [Extent(0, end.size, data=True)]
    monkeypatch.undo()
    end.close()


def test_empty_file_has_no_extents(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    end = open_source(str(tmp_path / "empty"), depth=1)
    assert list(end.extents()) == []
    end.close()


def test_file_is_written_read_zeroed_and_flushed(tmp_path: Path) -> None:
    end = destination_file(tmp_path / "new", 2 * MIB)
    assert (end.size, end.fresh) == (2 * MIB, True)
    end.finish(end.start_write(5, memoryview(b"hello")))
    end.start_write(MIB, memoryview(b"x" * MIB))
    end.zero(MIB, MIB)
    end.flush()
    back = bytearray(MIB + 10)
    end.finish(end.start_read(0, memoryview(back)))
    assert back[:12] == b"\0" * 5 + b"hello\0\0"
    assert not any(back[10:])
    end.close()
    assert (tmp_path / "new").stat().st_size == 2 * MIB


def test_zeros_are_written_where_no_hole_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = destination_file(tmp_path / "new", 3 * MIB)
    end.start_write(0, memoryview(b"x" * (3 * MIB)))
    monkeypatch.setattr(ends, "_fallocate", lambda *_: -1)
    end.zero(3, 2 * MIB)
    end.close()
    assert (tmp_path / "new").read_bytes() == b"xxx" + bytes(2 * MIB) + b"x" * (MIB - 3)


def test_cache_of_a_file_is_dropped(sparse_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: asked.append(arguments))
    end = destination_file(sparse_file, 10, force=True)
    end.drop_cache()
    assert asked == [(end.fd, 0, 0, os.POSIX_FADV_DONTNEED)]
    end.close()


def test_file_that_becomes_shorter_is_told(sparse_file: Path) -> None:
    end = open_source(str(sparse_file), depth=1)
    os.truncate(sparse_file, 10)
    with pytest.raises(EndError, match="shorter"):
        end.start_read(0, memoryview(bytearray(20)))
    end.close()


def test_file_that_becomes_shorter_has_no_hole_at_its_end(sparse_file: Path) -> None:
    end = open_source(str(sparse_file), depth=1)
    extents = end.extents()
    assert next(extents).data
    os.truncate(sparse_file, MIB)
    with pytest.raises(EndError, match="bytes now"):
        list(extents)
    end.close()


def test_file_that_exists_is_overwritten_by_force_only(sparse_file: Path) -> None:
    with pytest.raises(EndError, match="exists; --force"):
        destination_file(sparse_file, 10)
    destination_file(sparse_file, 10, force=True).close()
    assert sparse_file.read_bytes() == bytes(10)


def test_resumed_file_keeps_its_content_and_must_have_its_size(sparse_file: Path) -> None:
    size = sparse_file.stat().st_size
    destination_file(sparse_file, size, resume=True).close()
    assert sparse_file.read_bytes()[:3] == b"aaa"
    with pytest.raises(EndError, match=f"has {size} bytes, not the 10"):
        destination_file(sparse_file, 10, resume=True)


def test_file_is_not_copied_to_itself(sparse_file: Path, tmp_path: Path) -> None:
    source = open_source(str(sparse_file), depth=1)
    (tmp_path / "link").symlink_to(sparse_file)
    for name in (sparse_file, tmp_path / "link"):
        with pytest.raises(EndError, match="to itself"):
            open_destination(str(name), source, force=True, resume=False, depth=1)
    assert sparse_file.read_bytes()[:3] == b"aaa"
    source.close()


@pytest.mark.parametrize(("name", "message"), [("nowhere/x", "No such file"), (".", "neither"), ("fifo", "neither")])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(EndError, match=message):
        open_source(str(tmp_path / name), depth=1)
    with pytest.raises(EndError, match=r"No such|irectory|neither|No such device|Invalid"):
        open_destination(str(tmp_path / name), MemoryEnd(b"abc"), force=True, resume=False, depth=1)


def test_change_of_a_source_changes_its_identity(sparse_file: Path) -> None:
    def identity() -> object:
        end = open_source(str(sparse_file), depth=1)
        end.close()
        return end.identity

    before = identity()
    assert identity() == before
    os.utime(sparse_file, (1, 1))
    assert identity() != before


@pytest.mark.parametrize("call", ["read", "write", "flush"])
def test_error_of_the_kernel_names_file_and_place(tmp_path: Path, call: str) -> None:
    end = destination_file(tmp_path / "new", 4096)
    os.close(end.fd)
    end.fd = os.open("/", os.O_RDONLY)
    with pytest.raises(
        EndError, match="new: cannot be flushed" if call == "flush" else f"new: cannot {call} at byte 7"
    ):
        if call == "flush":
            os.close(end.fd)
            end.fd = os.memfd_create("closed")
            os.close(end.fd)
            end.flush()
        elif call == "read":
            end.start_read(7, memoryview(bytearray(4)))
        else:
            end.start_write(7, memoryview(b"abcd"))


# -- disks of a target -------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.iscsid(size="8 MiB")
def test_disk_of_a_target_is_an_end(iscsid_target: TestTarget) -> None:
    end = open_destination(iscsid_target.url(), MemoryEnd(bytes(100)), force=False, resume=False, depth=4)
    assert isinstance(end, LunEnd)
    assert (end.fresh, end.size, end.block_size) == (True, 8 * MIB, 512)
    end.finish(end.start_write(MIB, memoryview(b"x" * 4096)))
    end.flush()
    assert list(end.extents()) == [
        Extent(0, MIB, data=False),
        Extent(MIB, 4096, data=True),
        Extent(MIB + 4096, 7 * MIB - 4096, data=False),
    ]
    end.look_if_fresh()
    assert not end.fresh
    buffer = bytearray(4096)
    end.finish(end.start_read(MIB, memoryview(buffer)))
    assert buffer == b"x" * 4096
    end.zero(MIB, 4096)
    assert not any(end.disk.read(MIB, 4096))
    end.close()
    with pytest.raises(EndError, match=r"too small: it has 8388608 bytes, and 8388609 are to be copied"):
        open_destination(iscsid_target.url(), MemoryEnd(bytes(8 * MIB + 1)), force=True, resume=False, depth=4)
    source = open_source(iscsid_target.url(), depth=4)
    with pytest.raises(EndError, match="to itself"):
        open_destination(iscsid_target.url(), source, force=True, resume=False, depth=4)
    source.close()


class FakeDisk:
    """What a LunEnd asks of a disk, without a target."""

    size = 1000
    block_size = 10
    max_transfer = 100

    def __init__(self, *, zeroes: bool = True, statuses: tuple[int, ...] = (), error: InitiatorError | None = None):
        self.zeroes = zeroes
        self.statuses = statuses
        self.error = error

    def capacity(self) -> FakeDisk:
        return self

    def vpd(self, page: int) -> bytes:
        raise SenseError(5, 0x24, 0, "no such page")

    def block_status(self) -> object:
        for number, status in enumerate(self.statuses):
            yield BlockStatus(100 * number, 100, Provisioning(status))
        raise self.error or Unsupported("no map")

    def flush(self) -> None:
        if self.error is not None:
            raise self.error


def fake_end(**facts: object) -> LunEnd:
    return LunEnd("iscsi://h/iqn.2026-11.org.x:y/0", FakeDisk(**facts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"zeroes": False, "statuses": (1,)}, [Extent(0, 1000, data=True)]),
        ({}, [Extent(0, 1000, data=True)]),
        (
            {"statuses": (0, 1, 2)},
            [
                Extent(0, 100, data=True),
                Extent(100, 100, data=False),
                Extent(200, 100, data=False),
                Extent(300, 700, data=True),
            ],
        ),
    ],
)
def test_what_a_target_does_not_tell_is_data(facts: dict[str, object], expected: list[Extent]) -> None:
    end = fake_end(**facts)
    assert list(end.extents()) == expected
    end.look_if_fresh()
    assert not end.fresh
    assert end.identity["serial"] == ""


def test_target_without_a_cache_needs_no_flush() -> None:
    fake_end(error=SenseError(5, 0x20, 0, "no such command")).flush()
    with pytest.raises(SenseError):
        fake_end(error=SenseError(4, 0x44, 0, "hardware")).flush()


def test_shown_url_has_no_secrets() -> None:
    url = "iscsi://me%secret@[::1]:99/iqn.2026-11.org.x:y/3?target_user=t&target_password=hidden"
    assert plain_url(url) == "iscsi://[::1]:99/iqn.2026-11.org.x:y/3"
    assert plain_url("iscsi://me%secret@h") == "iscsi://h:3260"


@pytest.fixture
def loop(tmp_path: Path, judge: Callable[[str], str]) -> object:
    import subprocess

    if os.geteuid() != 0:
        pytest.skip("a loop device needs root")
    (tmp_path / "loop.img").write_bytes(b"x" * MIB)
    argv = [judge("losetup"), "--find", "--show", str(tmp_path / "loop.img")]
    made = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    yield made
    subprocess.run([judge("losetup"), "--detach", made], check=True, timeout=30)


@pytest.mark.process
@pytest.mark.judge("losetup")
def test_block_device_is_a_destination_by_force(loop: str) -> None:
    with pytest.raises(EndError, match="exists"):
        open_destination(loop, MemoryEnd(b"abc"), force=False, resume=False, depth=1)
    with pytest.raises(EndError, match="too small"):
        open_destination(loop, MemoryEnd(bytes(MIB + 1)), force=True, resume=False, depth=1)
    end = open_destination(loop, MemoryEnd(b"abc"), force=True, resume=False, depth=1)
    assert (end.size, end.fresh) == (MIB, False)
    end.zero(4096, 4096)
    end.start_write(0, memoryview(b"abc"))
    end.flush()
    back = bytearray(12288)
    end.start_read(0, memoryview(back))
    assert back == b"abc" + b"x" * 4093 + bytes(4096) + b"x" * 4096
    end.close()
