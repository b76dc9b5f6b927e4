"""L1 and L2 tables in memory: loaded in slices, bounded, changed, taken for a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
from iscsid_backends.qcow2_chain import Rules, open_image
from iscsid_backends.qcow2_format import COPIED
from iscsid_backends.qcow2_image import Image, Limits
from iscsid_backends.qcow2_mapping import big_endian, read_table
from qcow2_kit import make, opened, put

from iscsid.errors import BlockError


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return opened(make(tmp_path / "disk.qcow2", size=64 << 20, cluster_size=4096))


def test_range_without_a_table_has_the_empty_slice(image: Image) -> None:
    mapping = image.mapping
    assert mapping.load(0) is mapping.load(1) is mapping.empty
    assert not any(mapping.empty)
    image.close()


def test_changed_slice_is_its_own_and_the_others_stay_empty(image: Image) -> None:
    mapping = image.mapping
    mapping.load(1)
    table = mapping.writable(0)
    table[3] = 5
    assert mapping.load(0) is table
    assert not any(mapping.empty)
    assert mapping.l1[0] & COPIED
    assert (mapping.dirty, mapping.dirty_l1) == ({0}, {0})
    mapping.dirty.clear()
    image.close()


def test_taken_slices_are_big_endian_and_stay_until_done(image: Image) -> None:
    mapping = image.mapping
    mapping.writable(0)[1] = 0x0102030405060708
    slices, l1 = mapping.take()
    assert [key for key, _, _ in slices] == [0]
    assert slices[0][2][8:16] == bytes(range(1, 9))
    assert slices[0][1] == mapping.l2_offset(0)
    assert l1[0][0] == image.header.l1_offset
    assert mapping.pinned == {0}
    mapping.done([0], [l1[0][0]], failed=True)
    assert (mapping.dirty, mapping.pinned) == ({0}, set())
    assert 0 in mapping.dirty_l1
    mapping.dirty.clear()
    mapping.dirty_l1.clear()
    image.writing = False
    image.close()


def test_slices_in_memory_are_bounded(tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2", size=64 << 20, cluster_size=512)
    image = open_image(str(path), Rules(Limits(l2_cache=8192)), writing=True)
    assert image.mapping.capacity == 16
    for key in range(300):
        image.mapping.load(key)
        assert len(image.mapping.slices) <= 16
    assert 299 in image.mapping.slices
    image.close()


@pytest.mark.parametrize("entry", [0x1, 0x1200, 1 << 62, COPIED | 0x80000001, 0x7F0000000000])
def test_l1_entry_that_makes_no_sense_is_refused(tmp_path: Path, entry: int) -> None:
    path = make(tmp_path / "disk.qcow2", cluster_size=4096)
    image = opened(path)
    put(image, b"x" * 512, 0)
    image.close()
    with open(path, "r+b") as file:
        file.seek(image.header.l1_offset)
        file.write(entry.to_bytes(8, "big"))
    image = opened(path)
    with pytest.raises(BlockError, match=r"disk\.qcow2 is corrupt: entry 0 of the L1 table"):
        image.entry(0)
    image.storage.close()


def test_dropped_table_is_given_back(image: Image) -> None:
    put(image, b"x" * 512, 0)
    image.checkpoint()
    offset = image.mapping.l2_offset(0)
    image.mapping.drop_table(0)
    assert not image.mapping.l2_offset(0)
    assert image._freed == [offset // 4096]
    assert image.entry(0) == (0, 0)
    image.close()


def test_big_endian_and_back(image: Image) -> None:
    put(image, b"x" * 512, 0)
    image.checkpoint()
    table = read_table(image.storage, image.header.l1_offset, 1)
    assert table == image.mapping.l1[:1]
    assert big_endian(table) == bytes(image.storage.read(image.header.l1_offset, 8))
    image.close()
