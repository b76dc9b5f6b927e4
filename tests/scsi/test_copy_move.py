"""Bytes from unit to unit, through the plans of both."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from copy_kit import acquaint

from iscsid.errors import BlockError, ScsiError
from iscsid.scsi.copy_move import PIECE, SourceError, check, designations, find, move, quiet, read, write_zeroes
from iscsid.scsi.copy_state import Operation, Party
from iscsid.scsi.inquiry import PAGES
from iscsid.scsi.lu import Identity
from iscsid.scsi.sense import Reason

BLOCKS = 8192


@pytest.fixture
def two(make_unit: Callable) -> tuple:
    units = (make_unit(BLOCKS), make_unit(BLOCKS, identity=Identity("SER0002", "iqn.x,L,0x1")))
    acquaint(*units)
    for number, unit in enumerate(units):
        unit.memory.medium[:] = random.Random(number).randbytes(len(unit.memory.medium))
    return units


def party(unit) -> Party:
    return quiet(Party(unit.lu, unit.nexus))


def test_designations_are_those_of_the_identification_page(unit) -> None:
    page, found, at = PAGES[0x83](unit.lu, unit.nexus), [], 0
    while at < len(page):
        code_set, kind, length = page[at] & 0x0F, page[at + 1], page[at + 3]
        if kind >> 4 & 3 == 0:  # ASSOCIATION: the logical unit
            found.append((code_set, kind & 0x0F, page[at + 4 : at + 4 + length]))
        at += 4 + length
    assert tuple(found) == designations(unit.lu)


@pytest.mark.parametrize("length", [512, PIECE, PIECE + 512, 3 * PIECE])
def test_bytes_move_from_unit_to_unit(two: tuple, length: int) -> None:
    source, destination = two
    wanted = source.memory.medium[1024 : 1024 + length]
    before, after = destination.memory.medium[:4096], destination.memory.medium[4096 + length :]
    operation = Operation(1, 0)
    move(operation, party(source), 1024, party(destination), 4096, length)
    assert destination.memory.medium == before + wanted + after
    assert operation.transferred == length


@pytest.mark.parametrize("shift", [-512, 512, PIECE, -PIECE, PIECE + 512])
def test_range_is_moved_over_itself(two: tuple, shift: int) -> None:
    unit, start, length = two[0], 2 * PIECE - 512, PIECE + 1024
    wanted = bytes(unit.memory.medium[start : start + length])
    length = min(length, len(unit.memory.medium) - start - max(shift, 0))
    move(Operation(1, 0), party(unit), start, party(unit), start + shift, length)
    assert unit.memory.medium[start + shift : start + shift + length] == wanted[:length]


def test_cancelled_copy_ends_before_its_next_piece(two: tuple) -> None:
    operation = Operation(1, 0)
    operation.cancel()
    with pytest.raises(ScsiError) as caught:
        move(operation, party(two[0]), 0, party(two[1]), 0, 512)
    assert caught.value.reason is Reason.COPY_OPERATION_ABORTED
    assert not two[1].memory.calls


def test_failure_of_the_source_is_told_from_one_of_the_destination(two: tuple) -> None:
    source, destination = two

    def fail(buffer: memoryview, offset: int) -> None:
        raise OSError(5, "bad sector")

    source.lu.device._read = fail
    with pytest.raises(SourceError):
        move(Operation(1, 0), party(source), 0, party(destination), 0, 512)
    destination.lu.device._write = fail
    with pytest.raises((BlockError, OSError)):
        move(Operation(1, 0), party(destination), 0, party(destination), 1024, 512)


def test_copy_takes_no_unit_attention(two: tuple) -> None:
    unit = two[0]
    unit.nexus.attentions = [Reason.CAPACITY_DATA_HAS_CHANGED]
    read(party(unit), 0, memoryview(bytearray(512)))
    assert unit.nexus.attentions == [Reason.CAPACITY_DATA_HAS_CHANGED]


def test_locks_are_held_one_at_a_time(two: tuple) -> None:
    held: list[str] = []

    class Lock:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            assert not held
            held.append(self.name)

        def __exit__(self, *_: object) -> None:
            held.remove(self.name)

    for name, unit in zip("ab", two, strict=True):
        unit.lu.device.lock = Lock(name)
    move(Operation(1, 0), party(two[0]), 0, party(two[1]), 0, 2 * PIECE)
    assert not held


def test_zeroes_are_deallocated_where_the_unit_is_thin(two: tuple) -> None:
    write_zeroes(party(two[0]), 512, 1024)
    assert two[0].memory.calls == [("zero", 512, 1024, True)]
    assert two[0].memory.medium[512:1536] == bytes(1024)


@pytest.mark.parametrize(
    ("start", "length", "fits"), [(0, 0, True), (BLOCKS - 1, 1, True), (BLOCKS, 0, True), (BLOCKS, 1, False)]
)
def test_range_is_checked_against_the_end(two: tuple, start: int, length: int, fits: bool) -> None:
    if fits:
        check(party(two[0]), start << 9, length << 9, writes=True)
        return
    with pytest.raises(ScsiError) as caught:
        check(party(two[0]), start << 9, length << 9, writes=True)
    assert caught.value.reason is Reason.LBA_OUT_OF_RANGE


def test_write_protected_unit_can_only_be_read(make_unit: Callable) -> None:
    unit = make_unit(readonly=True)
    check(party(unit), 0, 512, writes=False)
    with pytest.raises(ScsiError) as caught:
        check(party(unit), 0, 512, writes=True)
    assert caught.value.reason is Reason.WRITE_PROTECTED


def test_unit_finds_itself_and_its_neighbours(two: tuple) -> None:
    own = party(two[0])
    assert find(designations(two[0].lu)[0], own) is own
    found = find(designations(two[1].lu)[1], own)
    assert found is not None and found.unit is two[1].lu
    assert find((1, 3, b"unknown!"), own) is None
