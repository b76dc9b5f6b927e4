"""Checkpoints: whatever a crash leaves on the disk is sound for QEMU, and has what was flushed."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
from iscsid_backends.qcow2_chain import Rules, open_image
from iscsid_backends.qcow2_format import CORRUPT, DIRTY
from iscsid_backends.qcow2_image import Limits, joined, spans
from qcow2_kit import (
    SECTOR,
    Workload,
    assert_same,
    assert_sound,
    content,
    make,
    opened,
    put,
    recorded,
)

from iscsid.errors import BlockError, Fault

CRASHES = int(os.environ.get("ISCSID_QCOW2_CRASHES", "25"))  # of each image
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"cluster_size": 4096},
    "small": {"cluster_size": 512},
    "v2": {"compat": "0.10", "cluster_size": 1024},
    "lazy": {"lazy_refcounts": True, "cluster_size": 4096},
    "subclusters": {"extended_l2": True, "cluster_size": 16384},
    "bits": {"refcount_bits": 2, "cluster_size": 4096},
}


class Watched(Workload):
    """A workload that marks in the log what was begun, and what was flushed."""

    def __init__(self, image: Any, recorder: Any, seed: int) -> None:
        self.recorder = recorder
        super().__init__(image, seed, lambda offset, data: recorder.log.append(("begun", offset, data)))

    def flush(self) -> None:
        model = bytes(self.model)
        super().flush()
        self.recorder.log.append(("flushed", model))

    def assert_flushed(self, at: int, disk: bytes) -> None:
        """Each sector of ``disk`` is what was last flushed before ``log[at]``, or what was begun later."""
        last, model = -1, bytes(len(disk))
        for index, entry in enumerate(self.recorder.log[:at]):
            if entry[0] == "flushed":
                last, model = index, entry[1]
        later: dict[int, set[bytes]] = {}
        begun_before: list[tuple[Any, ...]] = []
        for entry in self.recorder.log[last + 1 : at]:
            if entry[0] == "begun":
                begun_before.append(entry)
        for _, offset, data in begun_before:
            for start in range(0, len(data), SECTOR):
                later.setdefault(offset + start, set()).add(data[start : start + SECTOR])
        for start in range(0, len(model), SECTOR):
            found = disk[start : start + SECTOR]
            if found != model[start : start + SECTOR]:
                assert found in later.get(start, ()), f"sector {start // SECTOR} has neither old nor new data"


@pytest.mark.judge("qemu-img")
@pytest.mark.parametrize("kind", KINDS)
def test_crash_at_any_moment_is_never_corruption_and_keeps_what_was_flushed(kind: str, tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", size=1 << 20, **KINDS[kind])
    image, recorder = recorded(path)
    work = Watched(image, recorder, seed=len(kind))
    for _ in range(60):
        work.step()
    work.flush()
    rng = random.Random(kind)
    crashed = tmp_path / "crashed.qcow2"
    for at in sorted(rng.randrange(1, len(recorder.log) + 1) for _ in range(CRASHES)):
        crashed.write_bytes(recorder.crashed(at, rng))
        again = open_image(str(crashed), Rules(), writing=True)  # repairs what is marked as dirty
        work.assert_flushed(at, content(again))
        again.storage.close()
        crashed.write_bytes(recorder.crashed(at, rng))
        if not image.header.lazy:
            assert_sound(crashed, leaks=True)
    image.close()


@pytest.mark.judge("qemu-img")
@pytest.mark.parametrize("kind", ["plain", "lazy", "subclusters"])
def test_crash_within_snapshots_and_resizes_is_repaired_at_the_next_start(kind: str, tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", size=1 << 20, **KINDS[kind])
    image, recorder = recorded(path)
    work = Watched(image, recorder, seed=3)
    marks = [0]
    for _ in range(8):
        for _ in range(6):
            work.step("wwwdzu")
        work.flush()
        work.step(work.rng.choice("SSADR"))
        marks.append(len(recorder.log))
    rng = random.Random(kind)
    crashed = tmp_path / "crashed.qcow2"
    for at in sorted(rng.randrange(1, len(recorder.log) + 1) for _ in range(CRASHES)):
        crashed.write_bytes(recorder.crashed(at, rng))
        again = open_image(str(crashed), Rules(), writing=True)
        put(again, bytes(512), 0)
        again.close()
        assert_sound(crashed, leaks=True)
    image.close()


@pytest.mark.judge("qemu-img")
def test_tables_that_do_not_fit_the_caches_are_written_and_read(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", size=16 << 20, cluster_size=512)
    image = open_image(str(path), Rules(Limits(l2_cache=8192, refcount_cache=4096)), writing=True)
    work = Workload(image, 5)
    for _ in range(80):
        work.step("wwwwwdzu")
    assert len(image.mapping.slices) <= 2 * image.mapping.capacity + 200
    assert len(image.refs._blocks) <= 2 * image.refs.capacity + 32
    assert content(image) == work.model
    image.close()
    assert_sound(path)
    assert_same(path, bytes(work.model), tmp_path)


def test_write_that_was_not_flushed_is_not_on_the_disk_yet_and_its_cluster_is_not_used(tmp_path: Path) -> None:
    image, recorder = recorded(make(tmp_path / "disk.qcow2"))
    put(image, b"x" * 65536, 0)
    other = opened_copy(recorder, tmp_path)
    assert content(other) == bytes(other.size)
    other.close()
    image.checkpoint()
    other = opened_copy(recorder, tmp_path)
    assert content(other)[:65536] == b"x" * 65536
    other.close()
    image.close()


def opened_copy(recorder: Any, tmp_path: Path) -> Any:
    copy = tmp_path / "copy.qcow2"
    copy.write_bytes(bytes(recorder.read(0, recorder.size)))
    return opened(copy, writing=False)


def test_cluster_that_was_given_back_is_not_used_again_before_a_checkpoint(tmp_path: Path) -> None:
    from iscsid_backends.qcow2_write import discard

    image = opened(make(tmp_path / "disk.qcow2"))
    put(image, b"x" * 65536, 0)
    image.checkpoint()
    host = image.entry(0)[0]
    discard(image, 0, 65536)
    put(image, b"y" * 65536, 65536)
    assert image.entry(1)[0] != host
    image.checkpoint()
    put(image, b"z" * 65536, 131072)
    assert image.entry(2)[0] == host
    image.close()


def test_cluster_that_an_operation_may_still_touch_is_not_used_again(tmp_path: Path) -> None:
    from iscsid_backends.qcow2_write import discard

    image = opened(make(tmp_path / "disk.qcow2"))
    put(image, b"x" * 65536, 0)
    host = image.entry(0)[0]
    age = image.gate.enter()
    discard(image, 0, 65536)
    image.checkpoint()
    put(image, b"y" * 65536, 65536)
    assert image.entry(1)[0] != host
    image.gate.leave(age)
    image.checkpoint()
    put(image, b"z" * 65536, 131072)
    assert image.entry(2)[0] == host
    image.close()


def test_failed_checkpoint_is_made_up_for_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "disk.qcow2", cluster_size=4096)
    image = opened(path)
    put(image, b"x" * 8192, 4096)
    with monkeypatch.context() as patch:
        patch.setattr(image.storage, "write", failing)
        with pytest.raises(OSError, match="no space"):
            image.checkpoint()
    image.checkpoint()
    image.close()
    again = opened(path, writing=False)
    assert content(again)[4096:12288] == b"x" * 8192
    again.close()
    assert_sound(path)


def failing(data: bytes, offset: int) -> None:
    raise OSError(28, "no space")


def test_lazy_image_is_dirty_while_it_is_written_and_clean_when_closed(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", lazy_refcounts=True)
    image = opened(path)
    assert not image.header.incompatible & DIRTY
    put(image, b"x" * 512, 0)
    assert image.header.incompatible & DIRTY
    image.close()
    again = opened(path, writing=False)
    assert not again.header.incompatible & DIRTY
    again.close()


def test_contradiction_marks_the_image_as_corrupt_and_stops_writes(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    image = opened(path)
    with pytest.raises(BlockError, match=r"disk.qcow2 is corrupt: the L2 entry"):
        image.host_of(0x1200)
    with pytest.raises(BlockError) as caught:
        put(image, bytes(512), 0)
    assert caught.value.fault is Fault.READ_ONLY
    image.close()
    with pytest.raises(BlockError, match="marked as corrupt"):
        opened(path)
    again = opened(path, writing=False)
    assert again.header.incompatible & CORRUPT
    again.close()


@pytest.mark.parametrize("table", ["l1", "refcounts"])
def test_table_that_makes_no_sense_marks_the_image_as_corrupt(table: str, tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    image = opened(path)
    (image.mapping.l1 if table == "l1" else image.refs.table)[0] |= 1 << 60
    image.refs._blocks.clear()
    with pytest.raises(BlockError, match=r"disk.qcow2 is corrupt: entry 0 of the .* makes no sense") as caught:
        put(image, bytes(512), 0)
    assert caught.value.fault is Fault.READ_ERROR
    image.close()
    again = opened(path, writing=False)
    assert again.header.incompatible & CORRUPT
    again.close()


@pytest.mark.parametrize("table", ["an L2 table", "a refcount block"])
def test_table_that_is_counted_as_free_is_not_overwritten(table: str, tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    image = opened(path)
    put(image, b"x" * 65536, 0)
    place = image.mapping.l2_offset(0) if table == "an L2 table" else image.refs.table[0]
    block = image.refs.table[0]
    image.close()
    sound = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(block + (place >> 16) * 2)
        file.write(bytes(2))
    image = opened(path)
    with pytest.raises(BlockError, match="counted as free, but holds metadata"):
        for offset in range(1 << 20, 3 << 20, 65536):
            put(image, b"y" * 65536, offset)
    image.close()
    assert path.read_bytes()[place : place + 2048] == sound[place : place + 2048] or table == "a refcount block"
    again = opened(path, writing=False)
    assert again.header.incompatible & CORRUPT
    again.close()


def test_flushes_and_writes_of_many_threads_do_not_lose_anything(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", cluster_size=4096)
    image = opened(path)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        try:
            for turn in range(40):
                age = image.gate.enter()
                try:
                    from iscsid_backends.qcow2_write import discard, write

                    offset = number * 262144 + rng.randrange(60) * 4096
                    if turn % 5 == 4:
                        discard(image, offset, 8192)
                    write(image, memoryview(bytes([number + 1]) * 4096), offset)
                finally:
                    image.gate.leave(age)
                if turn % 8 == 7:
                    image.checkpoint()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    found = content(image)
    for number in range(6):
        assert set(found[number * 262144 : (number + 1) * 262144]) <= {0, number + 1}
    image.close()
    assert_sound(path)


def test_spans_are_rows_of_neighbours() -> None:
    assert list(spans([5, 1, 2, 7, 6])) == [(1, 2), (5, 3)]
    assert list(spans([])) == []


def test_joined_pieces_follow_each_other() -> None:
    assert list(joined([(0, b"ab"), (2, b"c"), (9, b"d")])) == [(0, b"abc"), (9, b"d")]
    assert list(joined([])) == []
