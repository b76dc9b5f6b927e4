"""Writing: in place, into new clusters, around what was there, zeros and discards; for every kind of image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from iscsid_backends.qcow2_format import COPIED, ZERO
from iscsid_backends.qcow2_write import discard, forget_range, in_place, nowait_writer, write_zeroes
from qcow2_kit import Workload, assert_same, assert_sound, content, make, opened, put, qemu_make

from iscsid.errors import BlockError, Fault

pytestmark = pytest.mark.judge("qemu-img")

KINDS = {
    "plain": "",
    "v2": "compat=0.10",
    "512": "cluster_size=512",
    "4k": "cluster_size=4096",
    "2M": "cluster_size=2M",
    "1bit": "refcount_bits=1",
    "2bit": "refcount_bits=2",
    "4bit": "refcount_bits=4",
    "8bit": "refcount_bits=8",
    "32bit": "refcount_bits=32",
    "64bit": "refcount_bits=64",
    "lazy": "lazy_refcounts=on",
    "subclusters": "extended_l2=on",
    "subclusters-16k": "extended_l2=on,cluster_size=16k,lazy_refcounts=on",
    "metadata": "preallocation=metadata",
    "full": "preallocation=full",
    "data-file": "data_file=data.raw",
    "raw-data-file": "data_file=data.raw,data_file_raw=on",
}


@pytest.mark.parametrize("kind", KINDS)
def test_random_operations_agree_with_a_model_and_with_qemu(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = qemu_make(tmp_path / "disk.qcow2", 6 << 20, KINDS[kind])
    image = opened(path)
    work = Workload(image, seed=len(kind))
    for _ in range(60):
        work.step()
    assert content(image) == work.model
    image.close()
    assert_sound(path)
    assert_same(path, bytes(work.model), tmp_path)
    if kind == "raw-data-file":
        assert (tmp_path / "data.raw").read_bytes() == work.model


@pytest.mark.parametrize("options", ["", "compat=0.10", "extended_l2=on", "cluster_size=512", "data_file=data.raw"])
@pytest.mark.parametrize("base", ["raw", "qcow2"])
def test_random_operations_over_a_backing_file_agree(
    base: str, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    below = bytes(range(251)) * 12000
    if base == "raw":
        (tmp_path / "base").write_bytes(below)
    else:
        lower = opened(make(tmp_path / "base", size=3 << 20))
        put(lower, below[: 3 << 20 & -512], 0)
        lower.close()
    path = qemu_make(tmp_path / "disk.qcow2", 4 << 20, options, "-b", "base", "-F", base)
    image = opened(path)
    work = Workload(image, seed=len(options))
    assert work.model[:1000] == below[:1000]
    for _ in range(60):
        work.step()
    assert content(image) == work.model
    image.close()
    assert_sound(path)
    assert_same(path, bytes(work.model), tmp_path)


def plain(tmp_path: Path, **given: Any) -> Any:
    return opened(make(tmp_path / "disk.qcow2", **given))


def test_write_into_an_allocated_cluster_is_in_place(tmp_path: Path) -> None:
    image = plain(tmp_path)
    assert in_place(image, 0, 512) == (0, 0)
    put(image, b"x" * 65536 * 3, 0)
    host = image.entry(0)[0] & ~COPIED
    assert in_place(image, 512, 1024) == (host + 512, 1024)
    assert in_place(image, 512, 65536 * 4) == (host + 512, 65536 * 3 - 512)
    image.close()


def test_partial_write_of_a_used_again_cluster_shows_nothing_old(tmp_path: Path) -> None:
    image = plain(tmp_path)
    put(image, b"s" * 65536, 0)
    image.checkpoint()
    discard(image, 0, 65536)
    image.checkpoint()
    put(image, b"new!" * 128, 65536 + 512)
    assert image.entry(1)[0] & ~COPIED < image.storage.size
    assert content(image)[: 65536 * 2] == bytes(65536 + 512) + b"new!" * 128 + bytes(65536 - 1024)
    image.close()


def test_zeroes_keep_what_is_allocated_unless_they_may_not(tmp_path: Path) -> None:
    image = plain(tmp_path)
    put(image, b"x" * 65536 * 2, 0)
    before = image.entry(0)[0]
    write_zeroes(image, 0, 65536, False)
    assert image.entry(0)[0] == before | ZERO
    put(image, b"y" * 512, 512)
    assert image.entry(0)[0] == before
    assert content(image)[:1536] == bytes(512) + b"y" * 512 + bytes(512)
    write_zeroes(image, 65536, 65536, True)
    assert image.entry(1)[0] == 0
    image.close()


def test_version_2_leaves_zeros_that_it_cannot_mark_to_the_guard(tmp_path: Path) -> None:
    image = plain(tmp_path, compat="0.10")
    with pytest.raises(BlockError) as caught:
        write_zeroes(image, 0, 65536, False)
    assert caught.value.fault is Fault.UNSUPPORTED
    image.close()


def test_discard_over_a_backing_file_does_not_show_it(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"b" * (1 << 20))
    for number, compat in enumerate(("0.10", "1.1")):
        path = make(
            tmp_path / f"{number}.qcow2", compat=compat, backing_file="base", backing_format="raw", size=1 << 20
        )
        image = opened(path)
        discard(image, 0, 100 * 1024)
        assert content(image) == bytes(100 * 1024) + b"b" * (924 * 1024)
        image.close()
        assert_sound(path)


def test_forgotten_range_shows_what_is_behind_and_its_tables_go(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"b" * (4 << 20))
    path = make(tmp_path / "disk.qcow2", backing_file="base", backing_format="raw", cluster_size=512)
    image = opened(path)
    put(image, b"x" * (2 << 20), 0)
    with image.alone():
        forget_range(image, 0, 1 << 20)
    assert content(image) == b"b" * (1 << 20) + b"x" * (1 << 20) + b"b" * (2 << 20)
    assert not image.mapping.l2_offset(0)
    image.close()
    assert_sound(path)


def test_write_without_waiting_is_in_place_or_refused(tmp_path: Path) -> None:
    image = plain(tmp_path)
    write = nowait_writer(image)
    with pytest.raises(BlockingIOError):
        write(memoryview(b"x" * 512), 0)
    put(image, b"a" * 65536 * 2, 0)
    write(memoryview(b"x" * 512), 512)
    write(memoryview(b"y" * 1024), 65536 - 512)
    with pytest.raises(BlockingIOError):
        write(memoryview(b"z" * 1024), 65536 * 2 - 512)
    expected = bytearray(b"a" * 65536 * 2)
    expected[512:1024] = b"x" * 512
    expected[65536 - 512 : 65536 + 512] = b"y" * 1024
    assert content(image)[: 65536 * 2 - 512] == expected[:-512]
    with image.gate.now, pytest.raises(BlockingIOError):
        write(memoryview(b"x" * 512), 512)
    image.close()


def test_cluster_behind_the_end_of_the_file_is_not_written(tmp_path: Path) -> None:
    image = plain(tmp_path)
    put(image, b"a" * 512, 0)
    image.mapping.slices[0][0] = COPIED | 1 << 40
    with pytest.raises(BlockingIOError):
        nowait_writer(image)(memoryview(bytes(512)), 0)
    with pytest.raises(BlockError, match="lies behind the end of the file"):
        put(image, bytes(512), 0)
    assert image.storage.size < 1 << 30
    image.close()


def test_image_that_is_open_for_reading_is_not_written(tmp_path: Path) -> None:
    image = opened(make(tmp_path / "disk.qcow2"), writing=False)
    for call in (lambda: put(image, bytes(512), 0), lambda: discard(image, 0, 512)):
        with pytest.raises(BlockError) as caught:
            call()
        assert caught.value.fault is Fault.READ_ONLY
    image.close()
