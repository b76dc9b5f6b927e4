"""Internal snapshots: made, applied, deleted; sound for QEMU after each step, and read by it."""

from __future__ import annotations

from pathlib import Path

import pytest
from iscsid_backends import qcow2_snapshots as snapshots
from iscsid_backends.qcow2_manage import resize
from qcow2_kit import Workload, assert_same, assert_sound, content, make, opened, put, qemu, qemu_make

from iscsid.errors import BlockError, Fault

pytestmark = pytest.mark.judge("qemu-img")


@pytest.mark.parametrize(
    "options",
    ["cluster_size=4096", "compat=0.10", "extended_l2=on", "refcount_bits=4", "lazy_refcounts=on", "refcount_bits=64"],
)
def test_snapshots_among_random_operations_agree(options: str, tmp_path: Path) -> None:
    path = qemu_make(tmp_path / "disk.qcow2", 2 << 20, options)
    kept: dict[str, bytes] = {}
    for round_ in range(3):
        image = opened(path)
        work = Workload(image, seed=round_)
        work.snapshots = kept
        for _ in range(30):
            work.step("wwwwwdzufSSADR")
        model = bytes(work.model)
        assert content(image) == model
        image.close()
        assert_sound(path)
        assert_same(path, model, tmp_path)
    for name, state in kept.items():
        qemu("snapshot", "-a", name, path)
        assert_same(path, state, tmp_path)


def test_snapshot_of_compressed_clusters_is_kept(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "disk.qcow2"
    raw.write_bytes(b"abcdefgh" * (1 << 17))
    qemu("convert", "-f", "raw", "-O", "qcow2", "-c", raw, path)
    image = opened(path)
    snapshots.create(image, "packed")
    put(image, b"x" * 200000 + bytes(480), 4096)
    image.close()
    assert_sound(path)
    image = opened(path)
    snapshots.apply(image, "packed")
    assert content(image) == raw.read_bytes()
    snapshots.delete(image, "packed")
    image.close()
    assert_sound(path)


def test_deleted_snapshot_gives_its_space_back(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    image = opened(path)
    put(image, b"a" * (1 << 20), 0)
    snapshots.create(image, "one")
    put(image, b"b" * (1 << 20), 0)
    image.checkpoint()
    before = image.storage.regular and path.stat().st_blocks
    snapshots.delete(image, "one")
    image.close()
    assert path.stat().st_blocks <= before - (1 << 20) // 512
    assert_sound(path)


def test_applied_snapshot_has_its_size(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", size=1 << 20, cluster_size=512)
    image = opened(path)
    put(image, b"a" * 4096, (1 << 20) - 4096)
    snapshots.create(image, "small")
    resize(image, 8 << 20)
    put(image, b"b" * 4096, 7 << 20)
    snapshots.create(image, "large")
    snapshots.apply(image, "small")
    assert image.size == 1 << 20
    assert content(image)[-4096:] == b"a" * 4096
    snapshots.apply(image, "2")
    assert image.size == 8 << 20
    image.close()
    assert_sound(path)


def test_snapshot_that_the_counts_cannot_hold_changes_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", refcount_bits=1)
    image = opened(path)
    put(image, b"a" * 65536, 0)
    with pytest.raises(BlockError, match="allow no further snapshot") as caught:
        snapshots.create(image, "one")
    assert caught.value.fault is Fault.UNSUPPORTED
    put(image, b"b" * 65536, 0)
    image.close()
    assert_sound(path)
    assert not opened(path, writing=False).snapshots


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "ü" * 128])
def test_bad_name_is_refused(tmp_path: Path, name: str) -> None:
    image = opened(make(tmp_path / "disk.qcow2"))
    with pytest.raises(BlockError, match="needs a name"):
        snapshots.create(image, name)
    image.close()


def test_name_that_is_taken_or_unknown_is_refused(tmp_path: Path) -> None:
    image = opened(make(tmp_path / "disk.qcow2"))
    snapshots.create(image, "one")
    with pytest.raises(BlockError, match="already"):
        snapshots.create(image, "one")
    for call in (snapshots.apply, snapshots.delete):
        with pytest.raises(BlockError, match="no snapshot 'two'"):
            call(image, "two")
    image.close()


def test_image_with_a_data_file_has_no_snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = opened(qemu_make(tmp_path / "disk.qcow2", 1 << 20, "data_file=d.raw"))
    with pytest.raises(BlockError, match="external data file"):
        snapshots.create(image, "one")
    image.close()


def test_image_that_is_open_for_reading_gets_no_snapshot(tmp_path: Path) -> None:
    image = opened(make(tmp_path / "disk.qcow2"), writing=False)
    with pytest.raises(BlockError) as caught:
        snapshots.create(image, "one")
    assert caught.value.fault is Fault.READ_ONLY
    image.close()
