"""Checking and repairing: we find what QEMU finds, and what we repair is sound for QEMU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from iscsid_backends.qcow2_check import MAX_WORDS, Counts, check, repair
from iscsid_backends.qcow2_format import COPIED
from qcow2_kit import Workload, assert_sound, content, make, opened, put, qemu, qemu_make

from iscsid.errors import BlockError, Fault

pytestmark = pytest.mark.judge("qemu-img")


def verdict_of_qemu(path: Path) -> dict[str, Any]:
    done = subprocess.run(
        ["qemu-img", "check", "--output=json", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = make(tmp_path / "disk.qcow2", cluster_size=4096)
    image = opened(path)
    put(image, b"x" * 65536, 8192)
    image.close()
    return path


def checked(path: Path) -> Any:
    image = opened(path, writing=False)
    report = check(image)
    image.close()
    return report


def mended(path: Path) -> None:
    image = opened(path)
    before = content(image)
    repair(image)
    assert content(image) == before
    image.close()
    assert_sound(path)


def patch(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("options", ["", "compat=0.10", "refcount_bits=1", "refcount_bits=64", "extended_l2=on"])
def test_sound_image_of_qemu_is_sound(tmp_path: Path, options: str) -> None:
    path = qemu_make(tmp_path / "disk.qcow2", 4 << 20, options)
    image = opened(path)
    work = Workload(image, 1)
    for _ in range(20):
        work.step()
    image.close()
    report = checked(path)
    assert report.sound
    assert not report.leaks
    assert report.clusters == verdict_of_qemu(path).get("allocated-clusters", 0)


def test_image_with_bitmaps_and_snapshots_has_no_leak(tmp_path: Path) -> None:
    path = qemu_make(tmp_path / "disk.qcow2", 4 << 20)
    qemu("bitmap", "--add", path, "b0")
    qemu("snapshot", "-c", "s", path)
    report = checked(path)
    assert report.sound
    assert not report.leaks


def test_leak_is_found_and_given_back(path: Path) -> None:
    image = opened(path)
    with image.lock:
        image.allocate(3)
    put(image, b"y" * 4096, 1 << 20)
    image.close()
    report = checked(path)
    assert (report.leaks, report.sound) == (3, True)
    assert verdict_of_qemu(path)["leaks"] == 3
    mended(path)


def test_count_that_is_too_low_is_found_and_mended(path: Path) -> None:
    image = opened(path, writing=False)
    cluster = (image.entry(2)[0] & ~COPIED) >> 12
    block = image.refs.table[0]
    image.close()
    patch(path, block + cluster * 2, b"\0\0")
    report = checked(path)
    assert (report.wrong_counts, report.wrong_flags, report.sound) == (1, 1, False)
    assert verdict_of_qemu(path)["corruptions"] > 0
    mended(path)


def test_flag_that_is_wrong_is_found_and_mended(path: Path) -> None:
    image = opened(path, writing=False)
    l2, l1 = image.mapping.l2_offset(0), image.header.l1_offset
    image.close()
    patch(path, l2 + 2 * 8, b"\0")
    patch(path, l1, b"\0")
    assert checked(path).wrong_flags == 2
    mended(path)


def test_refcount_block_that_is_missing_is_made(path: Path) -> None:
    image = opened(path, writing=False)
    table = image.header.reftable_offset
    image.close()
    patch(path, table, bytes(8))
    assert checked(path).wrong_counts > 10
    mended(path)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (1 << 63 | 0x1200, "makes no sense"),
        (1 << 63 | 1 << 40, "behind the end"),
        (3 << 62 | 0x1000, "marked as writable"),
        (1 << 62 | 1 << 50, "behind the end"),
        (1 << 60 | 0x3000, "makes no sense"),
    ],
)
def test_entry_that_makes_no_sense_is_told_and_not_mended(path: Path, entry: int, words: str) -> None:
    image = opened(path, writing=False)
    l2 = image.mapping.l2_offset(0)
    image.close()
    patch(path, l2 + 2 * 8, entry.to_bytes(8, "big"))
    report = checked(path)
    assert report.errors == 1
    assert words in report.words[0]
    image = opened(path)
    with pytest.raises(BlockError, match="not only in its reference counts"):
        repair(image)
    image.storage.close()


def test_l1_entry_that_makes_no_sense_is_told(path: Path) -> None:
    image = opened(path, writing=False)
    l1 = image.header.l1_offset
    image.close()
    patch(path, l1, b"\x81")
    assert checked(path).errors == 1


def test_words_are_bounded(path: Path) -> None:
    image = opened(path, writing=False)
    block = image.refs.table[0]
    image.close()
    patch(path, block, b"\0\7" * 500)
    report = checked(path)
    assert report.leaks == 500
    assert len(report.words) == MAX_WORDS
    mended(path)


def test_references_that_are_scattered_without_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iscsid_backends.qcow2_check.MAX_CHUNKS", 10)
    counts = Counts("x")
    with pytest.raises(BlockError, match="too scattered") as caught:
        for number in range(100):
            counts.add(number << 20)
    assert caught.value.fault is Fault.NO_RESOURCES
    assert counts.get(5 << 20) == 1
    assert counts.get(7) == 0
