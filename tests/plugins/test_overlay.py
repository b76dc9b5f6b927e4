"""What a crash leaves of an overlay: everything that was synced, and nothing that was never written."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from iscsid_plugins import overlay
from iscsid_plugins.overlay import PAGE, Overlay, open_file
from layer_kit import Disk

from iscsid.errors import BlockError, Fault

SIZE = 40 * PAGE + 512


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "overlay")


@pytest.fixture
def opened(path: str) -> Iterator[Callable[..., Overlay]]:
    made: list[Overlay] = []

    def make(bits: int | None = None, size: int = SIZE, cluster: int = PAGE) -> Overlay:
        own = os.memfd_create("bits") if bits is None else os.dup(bits)
        fd = open_file(path)
        try:
            made.append(Overlay(fd, own, size, cluster, durable=True, name=path))
        except BaseException:
            os.close(fd)
            os.close(own)
            raise
        return made[-1]

    yield make
    for each in made:
        try:
            each.close()
        except (OSError, ValueError):
            continue  # the test has closed it


def fill(into: Overlay, index: int, byte: bytes) -> None:
    into.write(memoryview(byte * PAGE), index * PAGE)
    into.mark(index, index + 1)


def content(of: Overlay, index: int) -> bytes:
    buffer = bytearray(PAGE)
    of.read_into(memoryview(buffer), index * PAGE)
    return bytes(buffer[:1]) if len(set(buffer)) == 1 else b"torn"


def test_synced_clusters_are_there_after_a_crash_and_others_are_not(opened: Any, path: str) -> None:
    first = opened()
    fill(first, 3, b"a")
    first.sync()
    fill(first, 5, b"b")
    first.close()  # without a sync, and without its memory
    second = opened()
    assert [index for index in range(second.count) if second.has(index)] == [3]
    assert content(second, 3) == b"a"


def test_memory_of_the_supervisor_outlives_the_worker(opened: Any) -> None:
    bits = os.memfd_create("bits")
    first = opened(bits)
    fill(first, 5, b"b")
    first.close()
    second = opened(bits)
    assert second.has(5)
    second.sync()  # which saves what the first had not
    second.close()
    assert opened().has(5)
    os.close(bits)


@pytest.mark.parametrize("how", ["emptied", "replaced"])
def test_memory_of_the_supervisor_is_not_that_of_a_file_that_was_emptied_or_replaced(
    opened: Any, path: str, how: str
) -> None:
    """By a tool, for instance, while no worker had it open."""
    bits = os.memfd_create("bits")
    first = opened(bits)
    fill(first, 5, b"b")
    first.sync()
    first.close()
    if how == "emptied":
        tool = opened()
        tool.clear()
        tool.close()
    else:
        Path(path).unlink()
        opened().close()
    second = opened(bits)
    assert not any(second.has(index) for index in range(second.count))
    fill(second, 6, b"c")
    second.close()
    assert opened(bits).has(6)
    os.close(bits)


def test_bitmap_has_its_place_on_the_medium(opened: Any, path: str) -> None:
    opened()
    assert os.stat(path).st_blocks * 512 >= 2 * PAGE


def test_runs_cut_a_range_at_every_change(opened: Any) -> None:
    over = opened()
    over.mark(1, 3)
    assert list(over.runs(512, 5 * PAGE)) == [
        (512, PAGE - 512, False),
        (PAGE, 2 * PAGE, True),
        (3 * PAGE, 2 * PAGE + 512, False),
    ]


def test_cleared_overlay_is_empty_on_the_medium(opened: Any, path: str) -> None:
    over = opened()
    fill(over, 3, b"a")
    over.sync()
    over.clear()
    assert not over.has(3)
    over.close()
    again = opened()
    assert not any(again.has(index) for index in range(again.count))
    assert os.stat(path).st_blocks * 512 < 10 * PAGE


def test_cluster_size_is_that_of_the_file(opened: Any) -> None:
    opened(cluster=4 * PAGE).close()
    assert opened(cluster=PAGE).cluster == 4 * PAGE


def test_file_of_another_device_or_kind_is_refused(opened: Any, path: str) -> None:
    opened().close()
    with pytest.raises(BlockError, match="belongs to a device of 164352 bytes, not 512"):
        opened(size=512)
    Path(path).write_bytes(b'{"magic": "iscsid cow 1", "size": 164352, "cluster": 4096, "id": "00"}'.ljust(PAGE))
    with pytest.raises(BlockError, match="not an overlay"):
        opened()
    Path(path).write_bytes(b"precious" * 1000)
    with pytest.raises(BlockError, match="not an overlay"):
        opened()
    assert Path(path).read_bytes() == b"precious" * 1000


def test_file_in_use_is_refused(opened: Any, path: str) -> None:
    opened()
    with pytest.raises(BlockError) as caught:
        opened()
    assert caught.value.fault is Fault.BUSY


def test_sync_that_failed_goes_on_failing(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    over = opened()
    fill(over, 1, b"a")

    def fail(_fd: int) -> None:
        raise OSError(5, "a scratch")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fail)
        with pytest.raises(OSError, match="a scratch"):
            over.sync()
    with pytest.raises(BlockError, match="an earlier flush failed"):
        over.sync()


@pytest.mark.parametrize("seed", range(4))
def test_crash_at_any_write_loses_nothing_synced(
    opened: Any, path: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng, over, disk = random.Random(seed), opened(), Disk(path)
    disk.durable[:] = Path(path).read_bytes()
    monkeypatch.setattr(overlay, "os", disk)
    history: list[dict[int, bytes]] = [{}]  # contents after each step
    steps: list[int] = []  # the step under way at each image
    for step in range(1, 40):
        before = len(disk.images)
        history.append(dict(history[-1]))
        if rng.random() < 0.3:
            over.sync()
            disk.synced = step
        else:
            index, byte = rng.randrange(30), bytes([rng.randrange(1, 256)])
            history[-1][index] = byte
            fill(over, index, byte)
        steps += [step] * (len(disk.images) - before)
    monkeypatch.undo()
    over.close()
    for (durable, pending, synced), step in rng.sample(list(zip(disk.images, steps, strict=True)), 40):
        image = bytearray(durable)
        for data, offset in pending:
            if rng.random() < 0.5:
                image[offset : offset + len(data)] = data
        Path(path).write_bytes(image)
        found = opened()
        least = history[max(synced, 0)]
        for index in range(30):
            later = {state.get(index) for state in history[max(synced, 0) : step + 1]}
            if found.has(index):
                assert content(found, index) in later
            else:
                assert index not in least
        found.close()
