"""Images made from snapshots of an image that somebody has: equal to the snapshot, or not there."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from iscsid_backends import qcow2_clone
from iscsid_backends import qcow2_snapshots as snapshots
from iscsid_backends.qcow2_chain import Rules
from iscsid_backends.qcow2_manage import resize
from qcow2_kit import assert_same, assert_sound, content, opened, put, qemu, qemu_make

from iscsid.errors import BlockError

pytestmark = pytest.mark.judge("qemu-img")
SIZE = (2 << 20) + 512


def clone(path: Path, name: str, to: Path, kind: str = "qcow2") -> Mapping[str, Any]:
    return qcow2_clone.clone(str(path), Rules(), {"name": name, "to": str(to), "format": kind})


def assert_clone(to: Path, kind: str, model: bytes, folder: Path) -> None:
    if kind == "raw":
        assert to.read_bytes() == model
    else:
        assert_sound(to)
        assert_same(to, model, folder)


@pytest.mark.parametrize("kind", ["qcow2", "raw"])
@pytest.mark.parametrize("options", ["", "compat=0.10", "cluster_size=512", "extended_l2=on", "lazy_refcounts=on"])
def test_clone_is_the_state_of_then_while_its_owner_writes(options: str, kind: str, tmp_path: Path) -> None:
    path, to = qemu_make(tmp_path / "disk.qcow2", SIZE, options or "cluster_size=64k"), tmp_path / "new"
    image, rng = opened(path), random.Random(3)
    for _ in range(40):
        put(image, rng.randbytes(rng.randrange(1, 30) * 512), rng.randrange(SIZE // 512 - 30) * 512)
    model = content(image)
    snapshots.create(image, "then")
    end = threading.Event()
    changes: list[int] = []

    def change() -> None:
        while not end.is_set():
            put(image, rng.randbytes(4096), rng.randrange(SIZE // 4096) * 4096)
            if len(changes) % 10 == 0:
                image.checkpoint()
            if len(changes) % 25 == 0:
                snapshots.create(image, f"s{len(changes)}")
                snapshots.delete(image, f"s{len(changes)}")
            changes.append(1)

    owner = threading.Thread(target=change)
    owner.start()
    try:
        answer = clone(path, "then", to, kind)
    finally:
        end.set()
        owner.join()
    assert (answer["size"], answer["snapshot"], answer["format"]) == (SIZE, "then", kind)
    assert_clone(to, kind, model, tmp_path)
    image.close()
    assert_sound(path)


def test_clone_has_the_size_of_then(tmp_path: Path) -> None:
    path = qemu_make(tmp_path / "disk.qcow2", SIZE, "cluster_size=4k")
    image = opened(path)
    put(image, b"a" * 4096, 0)
    snapshots.create(image, "small")
    resize(image, 4 * SIZE)
    snapshots.create(image, "large")
    image.close()
    for name, size in (("small", SIZE), ("large", 4 * SIZE)):
        clone(path, name, tmp_path / name)
        assert_clone(tmp_path / name, "qcow2", (b"a" * 4096).ljust(size, b"\0"), tmp_path)


def test_clone_of_compressed_clusters_over_a_backing_file_stands_alone(tmp_path: Path) -> None:
    base, raw, path = tmp_path / "base.raw", tmp_path / "raw", tmp_path / "disk.qcow2"
    base.write_bytes(b"base" * (1 << 18))
    model = bytearray(base.read_bytes())
    model[1 << 16 : 1 << 17] = b"x" * (1 << 16)
    raw.write_bytes(model)
    qemu("convert", "-c", "-f", "raw", "-O", "qcow2", "-B", base, "-F", "raw", raw, path)
    image = opened(path)
    snapshots.create(image, "then")
    image.close()
    clone(path, "then", tmp_path / "new")
    base.unlink()
    assert_clone(tmp_path / "new", "qcow2", bytes(model), tmp_path)


def test_clone_of_nothing_takes_no_space(tmp_path: Path) -> None:
    path = qemu_make(tmp_path / "disk.qcow2", 64 << 20, "cluster_size=64k")
    image = opened(path)
    put(image, bytes(1 << 20), 0)
    snapshots.create(image, "empty")
    image.close()
    assert clone(path, "empty", tmp_path / "new")["written"] == 0
    assert clone(path, "empty", tmp_path / "raw", "raw")["written"] == 0
    assert (tmp_path / "raw").stat().st_size == 64 << 20 and (tmp_path / "raw").stat().st_blocks == 0


@pytest.mark.parametrize("what", ["deleted", "another of the same name"])
def test_snapshot_that_goes_meanwhile_leaves_no_clone(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, to = qemu_make(tmp_path / "disk.qcow2", SIZE, "cluster_size=4k"), tmp_path / "new"
    image = opened(path)
    put(image, b"a" * 8192, 0)
    snapshots.create(image, "then")
    copy = qcow2_clone._copy

    def meddled(*arguments: Any) -> int:
        snapshots.delete(image, "then")
        if what != "deleted":
            put(image, b"b" * 8192, 0)
            snapshots.create(image, "then")
        image.checkpoint()
        return copy(*arguments)

    monkeypatch.setattr(qcow2_clone, "_copy", meddled)
    with pytest.raises(BlockError, match=r"went meanwhile|another one by now"):
        clone(path, "then", to)
    assert not to.exists()
    image.close()


def test_file_that_is_there_is_left_alone_and_snapshot_that_is_not_is_named(tmp_path: Path) -> None:
    path, to = qemu_make(tmp_path / "disk.qcow2", SIZE, "cluster_size=4k"), tmp_path / "new"
    with pytest.raises(BlockError, match="has no snapshot 'then'"):
        clone(path, "then", to)
    assert not to.exists()
    image = opened(path)
    snapshots.create(image, "then")
    image.close()
    to.write_text("mine")
    with pytest.raises(FileExistsError):
        clone(path, "then", to)
    assert to.read_text() == "mine"
