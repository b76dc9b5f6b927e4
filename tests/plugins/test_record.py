"""What is recorded, in which order, and how the file behaves when it is cut, full or somebody else's."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from iscsid_plugins.record import DISCARD, DURABLE, FAILED, FLUSH, READS_ZEROES, WRITE, ZEROES, Entry, entries
from layer_kit import Recorder, read, write
from turns import leaves

from iscsid.block.device import Sharing, Support
from iscsid.block.guard import Guarded
from iscsid.block.turn import pause
from iscsid.errors import BlockError, Fault, PluginError
from iscsid.plugin.manager import Plugins

Wrap = Callable[..., Any]
HEADER, HEAD = 64, 32


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "record")


def found(path: str) -> list[Entry]:
    return list(entries(memoryview(Path(path).read_bytes()), path))


def calls(path: str) -> list[tuple[int, int, int, int]]:
    return [(entry.kind, entry.flags, entry.offset, entry.length) for entry in found(path)]


def test_changes_and_flushes_are_recorded_in_order(below: Recorder, wrap: Wrap, path: str) -> None:
    guard = Guarded(wrap(below, "record", path=path))
    write(guard, b"a" * 1024, 512)
    guard.write(memoryview(b"b" * 512), 4096, fua=True)
    guard.write_zeroes(8192, 4096)
    guard.discard(16384, 4096)
    guard.flush()
    assert read(guard, 512, 512) == b"a" * 512
    assert calls(path) == [
        (WRITE, 0, 512, 1024),
        (WRITE, DURABLE, 4096, 512),
        (ZEROES, 0, 8192, 4096),
        (DISCARD, READS_ZEROES, 16384, 4096),
        (FLUSH, 0, 0, 0),
    ]
    assert [bytes(entry.data) for entry in found(path)] == [b"a" * 1024, b"b" * 512, b"", b"", b""]
    assert below.names() == ["write", "write_fua", "write_zeroes", "discard", "flush", "read_into"]
    guard.close()


def test_entry_tells_where_the_record_was_when_its_call_began(below: Recorder, wrap: Wrap, path: str) -> None:
    device = wrap(below, "record", path=path)

    def another(name: str, _offset: int, _length: int) -> None:
        if name == "flush":  # a write that is answered while the flush is under way is not promised by it
            write(device, b"b" * 512, 512)

    below.fail = another
    write(device, b"a" * 512)
    device.flush()
    first, second, flush = found(path)
    assert (first.begun, first.end) == (HEADER, HEADER + HEAD + 512)
    assert (second.begun, second.offset) == (first.end, 512)
    assert (flush.kind, flush.begun, flush.end) == (FLUSH, first.end, second.end + HEAD)
    device.close()


def test_writes_are_durable_where_nothing_is_volatile(wrap: Wrap, path: str, all_plugins: Plugins) -> None:
    ram = all_plugins.open("ram", all_plugins.prepare("ram", {"size": 1 << 20}))
    guard = Guarded(wrap(ram, "record", path=path))
    write(guard, bytes(512))
    guard.flush()
    assert calls(path) == [(WRITE, DURABLE, 0, 512)]
    guard.close()


def test_failed_write_may_have_been_done_and_failed_flush_promises_nothing(
    below: Recorder, wrap: Wrap, path: str
) -> None:
    def fail(name: str, _offset: int, _length: int) -> None:
        raise BlockError(Fault.WRITE_ERROR)

    device = wrap(below, "record", path=path)
    below.fail = fail
    for call in (lambda: device.write_fua(memoryview(bytes(512)), 0), device.flush):
        with pytest.raises(BlockError):
            call()
    assert calls(path) == [(WRITE, FAILED, 0, 512)]
    device.close()


def test_no_write_goes_around_the_record(below: Recorder, wrap: Wrap, path: str) -> None:
    device = wrap(below, "record", path=path)
    assert device.capabilities().write_nowait is Support.NONE
    assert device.capabilities().read_nowait is Support.NATIVE
    assert not Guarded(device).inline
    device.close()


def test_record_goes_on_behind_the_last_whole_entry(wrap: Wrap, path: str) -> None:
    device = wrap(Recorder(), "record", path=path)
    write(device, b"a" * 512)
    device.flush()
    write(device, b"b" * 4096)
    device.close()
    os.truncate(path, os.stat(path).st_size - 1)  # as a worker leaves it that is killed
    assert calls(path) == [(WRITE, 0, 0, 512), (FLUSH, 0, 0, 0)]
    device = wrap(Recorder(), "record", path=path)
    write(device, b"c" * 512)
    device.close()
    assert calls(path) == [(WRITE, 0, 0, 512), (FLUSH, 0, 0, 0), (WRITE, 0, 0, 512)]
    assert found(path)[2].begun == found(path)[1].end


def test_call_that_cannot_be_recorded_fails_and_the_record_stays_whole(
    below: Recorder, wrap: Wrap, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = wrap(below, "record", path=path)
    write(device, b"a" * 512)
    length = os.stat(path).st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length + 100, limits[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match="too large"):
            write(device, b"b" * 512)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.stat(path).st_size == length
    write(device, b"c" * 512)
    assert [bytes(entry.data[:1]) for entry in found(path)] == [b"a", b"c"]
    device.close()


def test_file_that_is_something_else_or_taken_is_refused(below: Recorder, wrap: Wrap, path: str) -> None:
    Path(path).write_bytes(b"precious" * 10)
    with pytest.raises(PluginError, match="not a record"):
        wrap(below, "record", path=path)
    assert Path(path).read_bytes() == b"precious" * 10
    os.unlink(path)
    device = wrap(below, "record", path=path)
    with pytest.raises(PluginError, match="somebody else records there"):
        wrap(Recorder(), "record", path=path)
    device.close()
    smaller = Recorder()
    smaller.size = 4096
    with pytest.raises(PluginError, match="the record of a device of 1048576 bytes"):
        wrap(smaller, "record", path=path)


def test_damaged_entry_is_told_with_its_place(below: Recorder, wrap: Wrap, path: str) -> None:
    device = wrap(below, "record", path=path)
    write(device, b"a" * 512)
    device.close()
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"b")
    with pytest.raises(BlockError, match="the entry at 64 is damaged"):
        found(path)
    with pytest.raises(BlockError, match="not a record"):
        list(entries(memoryview(b"iscsid record 2\0" + bytes(48)), "other"))


def test_one_worker_has_it(all_plugins: Plugins) -> None:
    assert all_plugins.layers["record"].sharing is Sharing.EXCLUSIVE_OWNER


def test_write_that_pauses_half_way_is_recorded_although_it_is_never_begun_again(
    below: Recorder, wrap: Wrap, path: str
) -> None:
    guard = Guarded(wrap(below, "record", path=path))
    below.fail = lambda _name, _offset, _length: pause("layer", lambda: 1.0, lambda _seconds: None)
    assert leaves(lambda: write(guard, b"a" * 512), most=1) == 0
    assert calls(path) == [(WRITE, 0, 0, 512)]
    guard.close()
