"""Commands that care about where the data is: what reaches the medium, what is read back, and what is answered."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from types import MethodType

import pytest

from iscsid.block.device import Mode, Support, Threading
from iscsid.scsi.medium import MAX_PREFETCH
from iscsid.scsi.plan import DONE, Job, Reply
from iscsid.scsi.sense import Reason

BLOCKS = 2048  # of the unit that the fixture makes
LAST = BLOCKS - 1
DATA = bytes(range(256)) * 2
DPO, BYTCHK = 0x10, 0x02
BEYOND = [(BLOCKS, 1), (LAST, 2), (BLOCKS + 1, 0), (0xFFFFFFFF, 1), (0xFFFFFFFF, 0)]

WRITE_AND_VERIFY = {10: 0x2E, 12: 0xAE, 16: 0x8E}
sizes = pytest.mark.parametrize("size", [10, 12, 16])
two_sizes = pytest.mark.parametrize("size", [10, 16])


def cdb(opcodes: dict[int, int], size: int, lba: int, blocks: int, flags: int = 0, group: int = 0) -> str:
    layout = {10: ">BBIBHB", 12: ">BBIIBB", 16: ">BBQIBB"}[size]
    middle = (lba, group, blocks, 0) if size == 10 else (lba, blocks, group, 0)
    return struct.pack(layout, opcodes[size], flags, *middle).hex()


def job(unit, text: str) -> Job:
    plan = unit.plan(text)
    assert isinstance(plan, Job)
    return plan


# -- WRITE AND VERIFY -------------------------------------------------------------------------------------------------


@sizes
@pytest.mark.parametrize("flags", [0, DPO, BYTCHK, BYTCHK | DPO])
def test_write_and_verify_reads_from_the_medium_what_it_has_written(unit, size: int, flags: int) -> None:
    assert unit.run(cdb(WRITE_AND_VERIFY, size, 4, 2, flags), DATA * 2) == b""
    assert unit.memory.calls == [("write", 2048, 1024), ("flush",), ("read", 2048, 1024)]
    assert unit.memory.medium[: 8 * 512] == bytes(2048) + DATA * 2 + bytes(1024)


def test_write_and_verify_flushes_nothing_where_nothing_is_volatile(make_unit: Callable) -> None:
    unit = make_unit(lacks=["flush"])
    unit.run(cdb(WRITE_AND_VERIFY, 10, 0, 1), DATA)
    assert unit.memory.calls == [("write", 0, 512), ("read", 0, 512)]


def test_write_and_verify_reads_a_long_range_in_pieces(make_unit: Callable) -> None:
    unit = make_unit(4097, lacks=["flush"])
    unit.run(cdb(WRITE_AND_VERIFY, 16, 0, 4097, BYTCHK), DATA * 4097)
    assert [call for call in unit.memory.calls if call[0] == "read"] == [
        ("read", 0, 1 << 20),
        ("read", 1 << 20, 1 << 20),
        ("read", 2 << 20, 512),
    ]


def lose_a_bit(unit, at: int) -> None:
    """Let the medium change what is written."""
    write = type(unit.memory).write

    def bad(self, data: memoryview, offset: int) -> None:
        write(self, data, offset)
        self.medium[at] ^= 1

    unit.memory.write = MethodType(bad, unit.memory)
    unit.lu.device._write = unit.memory.write


@sizes
@pytest.mark.parametrize("at", [0, 700, 1023])
def test_write_and_verify_with_bytchk_finds_what_the_medium_has_lost(unit, size: int, at: int) -> None:
    lose_a_bit(unit, 2048 + at)
    error = unit.refusal(cdb(WRITE_AND_VERIFY, size, 4, 2, BYTCHK), DATA * 2)
    assert (error.reason, error.information) == (Reason.MISCOMPARE_DURING_VERIFY, at)


@sizes
def test_write_and_verify_without_bytchk_compares_nothing(unit, size: int) -> None:
    lose_a_bit(unit, 2048)
    assert unit.run(cdb(WRITE_AND_VERIFY, size, 4, 2), DATA * 2) == b""


@pytest.mark.parametrize(("length", "written"), [(0, 0), (511, 0), (512, 512), (1023, 512)])
def test_write_and_verify_with_less_data_takes_the_whole_blocks_of_it(unit, length: int, written: int) -> None:
    job(unit, cdb(WRITE_AND_VERIFY, 10, 0, 2, BYTCHK)).run(memoryview((DATA * 2)[:length]))
    assert unit.memory.medium[:1024] == (DATA * 2)[:written] + bytes(1024 - written)


@sizes
def test_write_and_verify_is_planned_as_a_write_and_a_read(unit, size: int) -> None:
    plan = job(unit, cdb(WRITE_AND_VERIFY, size, 4, 2))
    assert (plan.parameter_length, plan.cost, plan.writes, plan.exact) == (1024, 2048, True, False)


@sizes
@pytest.mark.parametrize("lba", [0, LAST, BLOCKS])
def test_write_and_verify_of_0_blocks_is_good_and_does_nothing(unit, size: int, lba: int) -> None:
    assert unit.plan(cdb(WRITE_AND_VERIFY, size, lba, 0)) is DONE


@sizes
@pytest.mark.parametrize(("lba", "blocks"), BEYOND)
def test_write_and_verify_beyond_the_end_is_refused(unit, size: int, lba: int, blocks: int) -> None:
    assert unit.refusal(cdb(WRITE_AND_VERIFY, size, lba, blocks)).reason is Reason.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("size", [12, 16])
def test_write_and_verify_of_more_than_the_maximum_transfer_length_is_refused(unit, size: int) -> None:
    unit.lu.max_blocks = 8
    assert unit.refusal(cdb(WRITE_AND_VERIFY, size, 0, 9)).reason is Reason.INVALID_FIELD_IN_CDB


@sizes
@pytest.mark.parametrize("flags", [0x01, 0x04, 0x06, 0x08, 0x20, 0x40, 0x80])
def test_write_and_verify_with_protection_or_reserved_bits_is_refused(unit, size: int, flags: int) -> None:
    error = unit.refusal(cdb(WRITE_AND_VERIFY, size, 0, 1, flags))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 1)


@sizes
def test_write_and_verify_of_a_write_protected_unit_is_refused(make_unit: Callable, size: int) -> None:
    assert make_unit(readonly=True).refusal(cdb(WRITE_AND_VERIFY, size, 0, 1)).reason is Reason.WRITE_PROTECTED


# -- PRE-FETCH --------------------------------------------------------------------------------------------------------

PRE_FETCH = {10: 0x34, 16: 0x90}
GOOD, CONDITION_MET = 0x00, 0x04
IMMED = 0x02
FITS = MAX_PREFETCH // 512


@pytest.fixture
def cached(make_unit: Callable):
    """A unit over a device that waits, and has a cache."""
    unit = make_unit(FITS + 64, mode=Mode.BLOCKING, threading=Threading.PARALLEL)
    device = unit.lu.device
    device.can = dataclasses.replace(device.can, prefetch=Support.NATIVE)
    unit.memory.prefetch = lambda offset, length: unit.memory.calls.append(("prefetch", offset, length))
    return unit


@two_sizes
def test_pre_fetch_with_immed_has_the_device_begin(cached, size: int) -> None:
    plan = job(cached, cdb(PRE_FETCH, size, 4, 8, IMMED))
    assert (plan.status, plan.parameter_length, plan.writes) == (CONDITION_MET, 0, False)
    assert plan.run(memoryview(b"")) == b""
    assert cached.memory.calls == [("prefetch", 2048, 4096)]


@two_sizes
def test_pre_fetch_without_immed_waits_until_all_is_there(cached, size: int) -> None:
    assert cached.run(cdb(PRE_FETCH, size, 4, 2056)) == b""
    assert cached.memory.calls == [
        ("prefetch", 2048, 2056 * 512),
        ("read", 2048, 1 << 20),
        ("read", 2048 + (1 << 20), 4096),
    ]


@pytest.mark.parametrize(("blocks", "status"), [(FITS, CONDITION_MET), (FITS + 1, GOOD), (FITS + 64, GOOD)])
def test_pre_fetch_of_more_than_fits_ends_in_good_and_brings_what_fits(cached, blocks: int, status: int) -> None:
    plan = job(cached, cdb(PRE_FETCH, 16, 0, blocks, IMMED))
    assert plan.status == status
    plan.run(memoryview(b""))
    assert cached.memory.calls == [("prefetch", 0, MAX_PREFETCH)]


@two_sizes
def test_pre_fetch_of_0_blocks_goes_up_to_the_end(cached, size: int) -> None:
    cached.run(cdb(PRE_FETCH, size, 100, 0, IMMED))
    assert cached.memory.calls == [("prefetch", 51200, (FITS - 36) * 512)]


@two_sizes
def test_pre_fetch_of_what_is_in_memory_does_nothing(make_unit: Callable, size: int) -> None:
    unit = make_unit(threading=Threading.PARALLEL)
    plan = unit.plan(cdb(PRE_FETCH, size, 4, 8))
    assert isinstance(plan, Reply) and (plan.status, plan.data) == (CONDITION_MET, b"")
    assert unit.memory.calls == []


def test_pre_fetch_where_there_is_no_cache_is_good_and_does_nothing(make_unit: Callable) -> None:
    assert make_unit(mode=Mode.BLOCKING).plan(cdb(PRE_FETCH, 10, 4, 8)) is DONE


@two_sizes
@pytest.mark.parametrize("group", [0x01, 0x1F])
def test_pre_fetch_may_belong_to_a_group(unit, size: int, group: int) -> None:
    assert isinstance(unit.plan(cdb(PRE_FETCH, size, 0, 1, IMMED, group)), Reply)


@two_sizes
@pytest.mark.parametrize("flags", [0x01, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80])
def test_pre_fetch_with_reserved_bits_is_refused(unit, size: int, flags: int) -> None:
    error = unit.refusal(cdb(PRE_FETCH, size, 0, 1, flags))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 1)


@two_sizes
@pytest.mark.parametrize(("lba", "blocks"), BEYOND)
def test_pre_fetch_beyond_the_end_is_refused(unit, size: int, lba: int, blocks: int) -> None:
    assert unit.refusal(cdb(PRE_FETCH, size, lba, min(blocks, 0xFFFF))).reason is Reason.LBA_OUT_OF_RANGE


# -- READ DEFECT DATA -------------------------------------------------------------------------------------------------


def defects_10(flags: int, allocation: int = 0xFFFF) -> str:
    return struct.pack(">BBB4xHB", 0x37, 0, flags, allocation, 0).hex()


def defects_12(flags: int, allocation: int = 0xFFFF, index: int = 0) -> str:
    return struct.pack(">BBIIBB", 0xB7, flags, index, allocation, 0, 0).hex()


@pytest.mark.parametrize("lists", [0x00, 0x08, 0x10, 0x18])
@pytest.mark.parametrize("list_format", range(7))
def test_read_defect_data_gives_the_lists_that_are_asked_for_and_they_are_empty(
    unit, lists: int, list_format: int
) -> None:
    flags = lists | list_format
    assert unit.run(defects_10(flags)) == bytes((0, flags, 0, 0))
    assert unit.run(defects_12(flags)) == bytes((0, flags, 0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("allocation", [0, 1, 4, 7, 8, 100])
def test_read_defect_data_is_cut_to_the_allocation_length(unit, allocation: int) -> None:
    assert unit.run(defects_10(0x18, allocation)) == bytes((0, 0x18, 0, 0))[:allocation]
    assert unit.run(defects_12(0x18, allocation)) == bytes((0, 0x18, 0, 0, 0, 0, 0, 0))[:allocation]


def test_read_defect_data_from_an_index_on_is_as_empty(unit) -> None:
    assert unit.run(defects_12(0x18, index=100)) == bytes((0, 0x18, 0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(("text", "field"), [(defects_10(0x1F), 2), (defects_12(0x1F), 1)])
def test_read_defect_data_in_a_reserved_format_is_refused(unit, text: str, field: int) -> None:
    error = unit.refusal(text)
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, field, 2)


@pytest.mark.parametrize("flags", [0x20, 0x40, 0x80])
def test_read_defect_data_with_reserved_bits_is_refused(unit, flags: int) -> None:
    assert unit.refusal(defects_10(flags)).reason is Reason.INVALID_FIELD_IN_CDB
    assert unit.refusal(defects_12(flags)).reason is Reason.INVALID_FIELD_IN_CDB
