"""Making, resizing and committing images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from iscsid_backends.qcow2_chain import Rules
from iscsid_backends.qcow2_manage import commit, info, resize
from qcow2_kit import assert_same, assert_sound, content, make, opened, put, qemu

from iscsid.errors import BlockError

pytestmark = pytest.mark.judge("qemu-img")


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"compat": "0.10"},
        *({"cluster_size": 1 << bits} for bits in range(9, 22, 4)),
        *({"refcount_bits": 1 << order, "cluster_size": 1024} for order in range(7)),
        {"lazy_refcounts": True, "compression_type": "zstd"},
        {"extended_l2": True},
        {"size": 1 << 40},
        {"size": 1 << 30, "cluster_size": 512, "refcount_bits": 64},
        {"data_file": "data.raw", "data_file_raw": True},
    ],
)
def test_made_image_is_what_was_asked_and_sound(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "disk.qcow2", **given)
    assert_sound(path)
    told = info(str(path), Rules())
    assert {name: told[name] for name in given} == given
    assert f"({given.get('size', 4 << 20)} bytes)" in qemu("info", path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cluster_size": 3000}, "powers of two"),
        ({"refcount_bits": 3}, "powers of two"),
        ({"compat": "0.10", "refcount_bits": 8}, "compat"),
        ({"compat": "0.10", "extended_l2": True}, "compat"),
        ({"compat": "0.10", "compression_type": "zstd"}, "compat"),
        ({"extended_l2": True, "cluster_size": 4096}, "16 KiB"),
        ({"size": 1 << 50, "cluster_size": 512}, "larger clusters"),
        ({"size": None}, "size: missing"),
        ({"data_file_raw": True}, "needs a data_file"),
        ({"backing_file": "base"}, "backing_format"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_no_file(given: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BlockError, match=words):
        make(tmp_path / "disk.qcow2", **given)
    assert not (tmp_path / "disk.qcow2").exists()


def test_file_that_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        make(tmp_path / "disk.qcow2")
    assert (tmp_path / "disk.qcow2").read_bytes() == b"mine"


def test_overlay_has_the_size_of_its_backing_file(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"b" * (1 << 20))
    path = make(tmp_path / "disk.qcow2", size=None, backing_file="base", backing_format="raw")
    assert_same(path, b"b" * (1 << 20), tmp_path)


@pytest.mark.parametrize("given", [{}, {"cluster_size": 512}, {"extended_l2": True}, {"compat": "0.10"}])
def test_resize_keeps_what_stays_and_zeroes_what_comes(given: dict[str, Any], tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", **given)
    model = b"x" * (4 << 20)
    image = opened(path)
    put(image, model, 0)
    for size in (9 << 20, 2 << 20, (1 << 20) + 512, 64 << 20, 12 << 20):
        resize(image, size)
        model = model[:size].ljust(size, b"\0")
        assert content(image) == model
    image.close()
    assert_sound(path)
    assert_same(path, model, tmp_path)


def test_growth_does_not_show_a_longer_backing_file(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(b"b" * (3 << 20))
    for compat in ("0.10", "1.1"):
        path = make(tmp_path / compat, size=1 << 20, compat=compat, backing_file="base", backing_format="raw")
        image = opened(path)
        resize(image, 4 << 20)
        assert content(image) == (b"b" * (1 << 20)).ljust(4 << 20, b"\0")
        image.close()
        assert_sound(path)


def test_raw_data_file_is_cut_off_and_has_zeros_where_the_disk_grows_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, data = make(tmp_path / "disk.qcow2", data_file="data.raw", data_file_raw=True), tmp_path / "data.raw"
    image = opened(path)
    put(image, b"x" * (1 << 20), 0)
    resize(image, 512)
    assert data.read_bytes() == b"x" * 512
    resize(image, 1 << 20)
    assert content(image) == b"x" * 512 + bytes((1 << 20) - 512)
    image.close()
    assert data.read_bytes() == b"x" * 512 + bytes((1 << 20) - 512)
    assert_sound(path)


@pytest.mark.parametrize("size", [0, 1 << 62])
def test_impossible_size_is_refused(tmp_path: Path, size: int) -> None:
    image = opened(make(tmp_path / "disk.qcow2"))
    with pytest.raises(BlockError, match="not possible"):
        resize(image, size)
    image.close()


@pytest.mark.parametrize("base", ["raw", "qcow2"])
def test_commit_writes_into_the_backing_file_and_empties_the_image(base: str, tmp_path: Path) -> None:
    model = bytearray((b"b" * (1 << 20)).ljust(2 << 20, b"\0"))
    if base == "raw":
        (tmp_path / "base").write_bytes(b"b" * (1 << 20))
    else:
        lower = opened(make(tmp_path / "base", size=1 << 20))
        put(lower, b"b" * (1 << 20), 0)
        lower.close()
    path = make(tmp_path / "top", size=2 << 20, backing_file="base", backing_format=base)
    image = opened(path)
    from iscsid_backends.qcow2_write import write_zeroes

    for start, letter in ((4096, b"x"), (1 << 20, b"y")):
        put(image, letter * 100352, start)
        model[start : start + 100352] = letter * 100352
    write_zeroes(image, 524288, 65536, True)
    model[524288 : 524288 + 65536] = bytes(65536)
    image.close()
    assert commit(str(path), Rules()) > 200000
    for each in (path, tmp_path / "base") if base == "qcow2" else (path,):
        assert_sound(each)
        assert_same(each, bytes(model), tmp_path)
    image = opened(path, writing=False)
    assert not any(image.mapping.l1)
    image.close()


def test_commit_without_a_backing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BlockError, match="no backing file"):
        commit(str(make(tmp_path / "disk.qcow2")), Rules())


def test_info_is_told_of_an_image_in_use(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    image = opened(path)
    assert info(str(path), Rules())["size"] == 4 << 20
    image.close()
