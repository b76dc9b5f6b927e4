"""Reference counts of every width: set, searched, allocated, and a table that grows."""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path

import pytest
from iscsid_backends.qcow2_format import Header, refuse
from iscsid_backends.qcow2_refcounts import Refcounts
from iscsid_backends.qcow2_storage import Storage
from qcow2_kit import assert_sound, content, make, opened, put

from iscsid.errors import BlockError, Fault

WIDTHS = [1, 2, 4, 8, 16, 32, 64]


def counts(tmp_path: Path, bits: int, cluster_bits: int = 9, capacity: int = 16) -> Refcounts:
    """Counts of a file with a header, a refcount table of one cluster, and one block."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    storage = Storage(fd, "file")
    size = 1 << cluster_bits
    header = Header(
        cluster_bits=cluster_bits, refcount_order=bits.bit_length() - 1, reftable_offset=size, reftable_clusters=1
    )
    storage.truncate(3 * size)
    damaged = partial(refuse, "file")
    refs = Refcounts(storage, header, capacity, lambda offset, clusters: None, lambda cluster: cluster == 0, damaged)

    def switch(offset: int, clusters: int) -> None:
        header.reftable_offset, header.reftable_clusters = offset, clusters

    refs._switch = switch
    refs.add_block_at(0, 2)
    for cluster in range(3):
        refs.set(cluster, 1)
    return refs


@pytest.mark.parametrize("bits", WIDTHS)
def test_counts_of_every_width_do_not_touch_each_other(tmp_path: Path, bits: int) -> None:
    refs = counts(tmp_path, bits)
    rng = random.Random(bits)
    model = {cluster: rng.randint(0, refs.maximum) for cluster in range(3, refs.per_block)}
    for cluster, value in model.items():
        refs.set(cluster, value)
    assert all(refs.get(cluster) == value for cluster, value in model.items())
    assert refs.get(0) == 1


@pytest.mark.parametrize("bits", WIDTHS)
def test_first_free_cluster_is_found(tmp_path: Path, bits: int) -> None:
    refs = counts(tmp_path, bits)
    last = refs.per_block - 1
    for cluster in range(3, refs.per_block):
        refs.set(cluster, min(refs.maximum, 256) if cluster % 3 else 1)
    for cluster in (last, 17, 5):
        refs.set(cluster, 0)
        assert refs._next_free(3) == cluster
        assert refs._next_free(cluster) == cluster
    assert refs._next_free(18) == last


@pytest.mark.parametrize("bits", WIDTHS)
def test_allocation_gives_rows_and_never_the_same_cluster_twice(tmp_path: Path, bits: int) -> None:
    refs = counts(tmp_path, bits)
    rng, taken = random.Random(bits), {0, 1, 2}
    for _ in range(120):
        first, got = refs.allocate(rng.randint(1, 20), whole=rng.random() < 0.3)
        row = set(range(first, first + got))
        assert row
        assert not row & taken
        taken |= row
        if rng.random() < 0.3:
            freed = rng.choice(sorted(row))
            assert refs.lower(freed)
            taken.discard(freed)
    assert all(refs.get(cluster) == 1 for cluster in taken)


def test_whole_row_is_found_over_the_border_of_blocks(tmp_path: Path) -> None:
    refs = counts(tmp_path, 64)
    first, got = refs.allocate(200, whole=True)
    assert got == 200
    assert all(refs.get(cluster) == 1 for cluster in range(first, first + 200))
    assert refs.allocate(1)[0] == 3


def test_count_that_is_full_is_not_raised(tmp_path: Path) -> None:
    refs = counts(tmp_path, 2)
    refs.set(5, 2)
    refs.raise_(5)
    with pytest.raises(BlockError, match="the most that 2 bits hold") as caught:
        refs.raise_(5)
    assert caught.value.fault is Fault.UNSUPPORTED


def test_count_below_zero_stays_zero(tmp_path: Path) -> None:
    refs = counts(tmp_path, 16)
    assert not refs.lower(50)
    assert refs.get(50) == 0


def test_cluster_that_holds_metadata_is_never_given_out(tmp_path: Path) -> None:
    refs = counts(tmp_path, 16)
    refs.set(0, 0)
    refs.hint = 0
    with pytest.raises(BlockError, match="counted as free, but holds metadata"):
        refs.allocate(1)


def test_table_that_is_counted_as_free_is_given_out_only_when_it_was_given_back(tmp_path: Path) -> None:
    refs = counts(tmp_path, 16)
    refs.set(3, 1)
    refs.guard([3])
    block = refs.block(0)
    assert block is not None
    block[6:8] = bytes(2)  # behind its back
    refs.hint = 3
    with pytest.raises(BlockError, match="counted as free, but holds metadata"):
        refs.allocate(1)
    block[7] = 1
    assert refs.lower(3)
    assert refs.allocate(1) == (3, 1)


def test_guarded_tables_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iscsid_backends.qcow2_refcounts.MAX_GUARDED", 10)
    refs = counts(tmp_path, 16)
    refs.guard(range(100, 200))
    refs.guard([300])
    assert len(refs._guarded) == 10


def test_blocks_in_memory_are_bounded_but_changed_ones_stay(tmp_path: Path) -> None:
    refs = counts(tmp_path, 64, capacity=2)
    refs.allocate(600, whole=True)
    refs.done(refs.pinned)
    taken = refs.take()
    assert {index for index, _, _ in taken} == refs.pinned
    for _, offset, data in taken:
        refs._storage.write(data, offset)
    refs.done([index for index, _, _ in taken])
    assert len(refs._blocks) <= 2
    assert refs.get(300) == 1


def test_failed_checkpoint_leaves_its_blocks_changed(tmp_path: Path) -> None:
    refs = counts(tmp_path, 16)
    refs.allocate(3)
    taken = refs.take()
    assert not refs.dirty
    refs.done([index for index, _, _ in taken], failed=True)
    assert refs.dirty == {0}


@pytest.mark.parametrize("entry", [0x201, 0x300, 1 << 60, 0x7FFFFE00])
def test_entry_of_the_table_that_makes_no_sense_is_refused(tmp_path: Path, entry: int) -> None:
    refs = counts(tmp_path, 16, cluster_bits=10)
    refs.table[1] = entry
    with pytest.raises(BlockError, match="file: "):
        refs.get(refs.per_block)


@pytest.mark.judge("qemu-img")
@pytest.mark.parametrize("bits", [1, 16, 64])
def test_image_whose_table_has_grown_is_sound(tmp_path: Path, bits: int) -> None:
    path = make(tmp_path / "disk.qcow2", size=24 << 20, cluster_size=512, refcount_bits=bits)
    image = opened(path)
    before = image.header.reftable_clusters
    for start in range(0, 20 << 20, 1 << 20):
        put(image, b"x" * (1 << 20), start)
    assert image.header.reftable_clusters > before or bits == 1
    image.close()
    assert_sound(path)
    again = opened(path)
    assert content(again) == (b"x" * (20 << 20)).ljust(24 << 20, b"\0")
    again.close()
