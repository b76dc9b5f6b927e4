"""Reading: what QEMU wrote, of every kind, compressed too; with and without waiting; and what is told of holes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from iscsid_backends.qcow2_read import Kind, block_status, nowait_reader, runs
from qcow2_kit import assert_same, assert_sound, content, make, opened, put, qemu, qemu_io, qemu_make

from iscsid.block.device import Content
from iscsid.errors import BlockError, Fault

judge = pytest.mark.judge("qemu-img")
OPTIONS = [
    "",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M",
    "refcount_bits=1",
    "refcount_bits=64,lazy_refcounts=on",
    "extended_l2=on",
    "compression_type=zstd",
    "compression_type=zstd,extended_l2=on,cluster_size=16k",
    "preallocation=metadata",
    "preallocation=falloc",
    "data_file=data.raw",
]


def pattern(size: int) -> bytes:
    """Data, zeros and what compresses well."""
    rng = random.Random(size)
    parts = [rng.randbytes(50000), bytes(150000), b"abcdefgh" * 20000, rng.randbytes(1000) * 70]
    return (b"".join(parts) * 8)[:size]


@judge
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("compressed", [False, True])
def test_what_qemu_converted_is_read_and_can_be_written(
    options: str, compressed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compressed and ("preallocation" in options or "data_file" in options):
        pytest.skip("QEMU does not compress these")
    monkeypatch.chdir(tmp_path)
    raw, path = tmp_path / "raw", tmp_path / "disk.qcow2"
    model = bytearray(pattern(2 << 20))
    raw.write_bytes(model)
    words = (["-c"] if compressed else []) + (["-o", options] if options else [])
    qemu("convert", "-f", "raw", "-O", "qcow2", *words, raw, path)
    image = opened(path)
    assert content(image) == model
    rng = random.Random(options)
    for _ in range(30):
        offset = rng.randrange(4000) * 512
        data = rng.randbytes(rng.choice([512, 4096, 70000 // 512 * 512]))[: len(model) - offset]
        put(image, data, offset)
        model[offset : offset + len(data)] = data
    assert content(image) == model
    image.close()
    assert_sound(path)
    assert_same(path, bytes(model), tmp_path)


@judge
@pytest.mark.parametrize("options", ["", "extended_l2=on", "compat=0.10", "cluster_size=4096"])
def test_what_qemu_wrote_in_pieces_is_read(options: str, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"b" * (1 << 20))
    path = qemu_make(tmp_path / "disk.qcow2", 2 << 20, options, "-b", "base", "-F", "raw")
    zeroes = ["write -z 300k 40k", "write -zu 700k 128k"] if "compat" not in options else []
    qemu_io(path, "write -P 1 5k 3k", "write -P 2 100k 200k", *zeroes, "discard 512k 64k", "write -P 3 1500k 1k")
    model = tmp_path / "model"
    qemu("convert", "-O", "raw", path, model)
    image = opened(path, writing=False)
    assert content(image) == model.read_bytes()
    image.close()


@judge
def test_snapshots_of_qemu_do_not_disturb_and_are_not_disturbed(tmp_path: Path) -> None:
    path = qemu_make(tmp_path / "disk.qcow2", 1 << 20)
    qemu_io(path, "write -P 1 0 1M")
    qemu("snapshot", "-c", "before", path)
    image = opened(path)
    assert content(image) == b"\1" * (1 << 20)
    put(image, b"\2" * 4096, 4096)
    image.close()
    assert_sound(path)
    assert_same(path, b"\1" * 4096 + b"\2" * 4096 + b"\1" * ((1 << 20) - 8192), tmp_path)
    qemu("snapshot", "-a", "before", path)
    assert_same(path, b"\1" * (1 << 20), tmp_path)


def test_runs_join_what_lies_together(tmp_path: Path) -> None:
    image = opened(make(tmp_path / "disk.qcow2", size=1 << 20))
    put(image, b"x" * 65536 * 3, 65536)
    found = list(runs(image, 512, (1 << 20) - 512))
    assert [(Kind(piece.kind).name, piece.offset, piece.length) for piece in found] == [
        ("BACKING", 512, 65024),
        ("DATA", 65536, 3 * 65536),
        ("BACKING", 4 * 65536, 12 * 65536),
    ]
    image.close()


def test_status_tells_holes_zeros_and_what_lies_behind(tmp_path: Path) -> None:
    from iscsid_backends.qcow2_write import write_zeroes

    with open(tmp_path / "base", "wb") as base:
        base.seek(256 << 10)
        base.write(b"b" * (256 << 10))
    path = make(tmp_path / "disk.qcow2", size=1 << 20, backing_file="base", backing_format="raw")
    image = opened(path)
    put(image, b"x" * 65536, 0)
    write_zeroes(image, 0, 65536, False)
    put(image, b"x" * 65536, 65536)
    write_zeroes(image, 320 << 10, 65536, True)
    hole = Content.HOLE | Content.ZERO
    assert [(e.offset >> 10, e.length >> 10, e.content) for e in block_status(image, 0, 1 << 20)] == [
        (0, 64, Content.ZERO),
        (64, 64, Content.DATA),
        (128, 128, hole),
        (256, 64, Content.DATA),
        (320, 64, hole),
        (384, 128, Content.DATA),
        (512, 512, hole),
    ]
    image.close()


def test_read_without_waiting_reads_what_is_cached_or_refuses(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"b" * (1 << 20))
    image = opened(make(tmp_path / "disk.qcow2", size=2 << 20, backing_file="base", backing_format="raw"))
    put(image, b"x" * 65536 * 2, 65536)
    image.checkpoint()
    read = nowait_reader(image)
    if image.data.nowait is None:
        pytest.skip("this file system cannot say whether a read waits")
    expected = content(image)
    for offset, length in ((65536, 4096), (65536 + 512, 65536 * 2 - 512), (0, 65536 * 4), (1 << 20, 65536), (0, 512)):
        buffer = bytearray(length)
        read(memoryview(buffer), offset)
        assert buffer == expected[offset : offset + length]
    image.mapping.forget()
    with pytest.raises(BlockingIOError):
        read(memoryview(bytearray(512)), 0)
    with image.gate.now, pytest.raises(BlockingIOError):
        read(memoryview(bytearray(512)), 65536)
    image.close()


@judge
@pytest.mark.parametrize("options", ["extended_l2=on", "data_file=data.raw"])
def test_read_without_waiting_of_other_kinds(options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = opened(qemu_make(tmp_path / "disk.qcow2", 1 << 20, options))
    put(image, b"x" * 5120, 3072)
    expected = content(image)
    buffer = bytearray(65536)
    nowait_reader(image)(memoryview(buffer), 0)
    assert buffer == expected[:65536]
    image.close()


@judge
def test_compressed_data_that_is_damaged_is_a_read_error_and_no_more(tmp_path: Path) -> None:
    raw, path = tmp_path / "raw", tmp_path / "disk.qcow2"
    raw.write_bytes(b"abc" * 100000)
    qemu("convert", "-f", "raw", "-O", "qcow2", "-c", raw, path)
    image = opened(path, writing=False)
    entry, _ = image.entry(0)
    host = entry & ((1 << 54) - 1)
    image.close()
    with open(path, "r+b") as file:
        file.seek(host)
        file.write(b"\xff" * 64)
    image = opened(path, writing=False)
    with pytest.raises(BlockError, match="compressed cluster") as caught:
        content(image)
    assert caught.value.fault is Fault.READ_ERROR
    image.close()
