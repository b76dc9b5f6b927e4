"""What is in the memory of a cache, and what of it outlives a worker."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from iscsid_plugins.slots import Slots

UNIT = 4096


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("slots")
    yield fd
    os.close(fd)


def data(byte: bytes) -> memoryview:
    return memoryview(byte * UNIT)


def test_clean_blocks_make_room_the_one_used_longest_ago_first(memory: int) -> None:
    slots = Slots(os.dup(memory), UNIT, 3)
    for block in range(3):
        assert slots.put(block, data(b"a"), dirty=False)
    slots.get(0)
    slots.put(3, data(b"b"), dirty=False)
    assert [block for block in range(4) if block in slots] == [0, 2, 3]
    slots.close()


def test_dirty_blocks_do_not_make_room(memory: int) -> None:
    slots = Slots(os.dup(memory), UNIT, 2)
    assert slots.put(0, data(b"a"), dirty=True)
    assert slots.room(1)
    assert slots.put(1, data(b"a"), dirty=True)
    assert not slots.room(1)
    assert not slots.put(2, data(b"a"), dirty=False)
    slots.close()


def test_block_written_meanwhile_stays_dirty(memory: int) -> None:
    slots = Slots(os.dup(memory), UNIT, 2)
    slots.put(0, data(b"a"), dirty=True)
    stamp = slots.stamp(0)
    slots.patch(0, memoryview(b"b"), 7)
    slots.cleaned(0, stamp)
    assert slots.dirty == {0}
    slots.cleaned(0, slots.stamp(0))
    assert slots.dirty == set()
    slots.close()


def test_dirty_blocks_outlive_their_worker_and_clean_ones_do_not(memory: int) -> None:
    slots = Slots(os.dup(memory), UNIT, 4)
    slots.put(7, data(b"a"), dirty=True)
    slots.put(8, data(b"b"), dirty=False)
    slots.put(9, data(b"c"), dirty=True)
    slots.cleaned(9, slots.stamp(9))
    slots.close()
    again = Slots(os.dup(memory), UNIT, 4)
    assert (again.dirty, len(again)) == ({7}, 1)
    assert again.get(7) == data(b"a")
    again.drop(7)
    again.close()
    assert len(Slots(os.dup(memory), UNIT, 4)) == 0


def test_blocks_within_a_range_are_found(memory: int) -> None:
    slots = Slots(os.dup(memory), UNIT, 4)
    for block in (1, 5, 9):
        slots.put(block, data(b"a"), dirty=False)
    assert slots.within(2, 9) == [5, 9]
    slots.close()
