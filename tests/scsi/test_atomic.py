"""Commands that read and write as one step: what they compare, what they write, and the range that they hold."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from turns import leaves

from iscsid.block.device import Mode, Threading
from iscsid.block.turn import pause
from iscsid.errors import ScsiError
from iscsid.scsi.plan import DONE, Job
from iscsid.scsi.sense import Reason, build_sense

BLOCKS = 2048  # of the unit that the fixture makes
LAST = BLOCKS - 1
OLD, NEW = bytes(range(256)) * 2, bytes(reversed(range(256))) * 2
FUA, DPO = 0x08, 0x10


def compare_and_write(lba: int, blocks: int, flags: int = 0) -> str:
    return struct.pack(">BBQ3xBxx", 0x89, flags, lba, blocks).hex()  # SBC-3 table 33


def job(unit, cdb: str) -> Job:
    plan = unit.plan(cdb)
    assert isinstance(plan, Job)
    return plan


# -- COMPARE AND WRITE ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lba", "blocks"), [(0, 1), (3, 2), (LAST, 1), (0, 255), (BLOCKS - 255, 255)])
def test_compare_and_write_writes_where_it_finds_what_it_expects(unit, lba: int, blocks: int) -> None:
    unit.memory.medium[lba * 512 : (lba + blocks) * 512] = OLD * blocks
    before = bytes(unit.memory.medium)
    assert unit.run(compare_and_write(lba, blocks), OLD * blocks + NEW * blocks) == b""
    assert unit.memory.medium == before[: lba * 512] + NEW * blocks + before[(lba + blocks) * 512 :]
    assert unit.memory.calls == [("read", lba * 512, blocks * 512), ("write", lba * 512, blocks * 512)]


@pytest.mark.parametrize("at", [0, 1, 511, 512, 1023])
def test_compare_and_write_tells_where_the_first_difference_is_and_writes_nothing(unit, at: int) -> None:
    unit.memory.medium[1024:2048] = OLD * 2
    expected = bytearray(OLD * 2)
    expected[at] ^= 1
    expected[1023] ^= 0x80
    error = unit.refusal(compare_and_write(2, 2), bytes(expected) + NEW * 2)
    assert (error.reason, error.information) == (Reason.MISCOMPARE_DURING_VERIFY, at)
    assert build_sense(error)[:8] == bytes((0xF0, 0, 0x0E)) + struct.pack(">IB", at, 10)  # VALID, MISCOMPARE
    assert build_sense(error)[12:14] == b"\x1d\x00"
    assert unit.memory.medium[1024:2048] == OLD * 2
    assert unit.memory.calls == [("read", 1024, 1024)]


@pytest.mark.parametrize(("flags", "flushed"), [(0, False), (DPO, False), (FUA, True), (FUA | DPO, True)])
def test_compare_and_write_with_fua_puts_it_on_the_medium(unit, flags: int, flushed: bool) -> None:
    unit.run(compare_and_write(0, 1, flags), bytes(512) + NEW)
    assert (("flush",) in unit.memory.calls) is flushed
    assert unit.memory.medium[:512] == NEW


def test_compare_and_write_with_fua_flushes_nothing_where_nothing_is_volatile(make_unit: Callable) -> None:
    unit = make_unit(lacks=["flush"])
    unit.run(compare_and_write(0, 1, FUA), bytes(512) + NEW)
    assert unit.memory.calls == [("read", 0, 512), ("write", 0, 512)]


def test_compare_and_write_wants_both_instances_exactly_and_holds_its_range(unit) -> None:
    plan = job(unit, compare_and_write(4, 3))
    assert (plan.parameter_length, plan.exact, plan.writes, plan.cost) == (3072, True, True, 3072)
    assert plan.exclusive == (2048, 1536)


@pytest.mark.parametrize("length", [0, 512, 1023])
def test_compare_and_write_with_less_data_is_refused_and_does_nothing(unit, length: int) -> None:
    with pytest.raises(ScsiError) as caught:
        job(unit, compare_and_write(0, 1)).run(memoryview(bytes(length)))
    assert caught.value.reason is Reason.INVALID_FIELD_IN_CDB
    assert unit.memory.calls == []


@pytest.mark.parametrize("lba", [0, LAST, BLOCKS])
def test_compare_and_write_of_0_blocks_is_good_and_does_nothing(unit, lba: int) -> None:
    plan = job(unit, compare_and_write(lba, 0))
    assert (plan.parameter_length, plan.exact, plan.exclusive) == (0, True, None)
    assert plan.run(memoryview(b"")) == b""
    assert unit.memory.calls == []


@pytest.mark.parametrize(
    ("lba", "blocks"), [(BLOCKS, 1), (LAST, 2), (BLOCKS + 1, 0), (1 << 63, 1), ((1 << 64) - 1, 255)]
)
def test_compare_and_write_beyond_the_end_is_refused(unit, lba: int, blocks: int) -> None:
    assert unit.refusal(compare_and_write(lba, blocks)).reason is Reason.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("flags", [0x01, 0x02, 0x04, 0x20, 0x40, 0x80])
def test_compare_and_write_with_protection_or_reserved_bits_is_refused(unit, flags: int) -> None:
    error = unit.refusal(compare_and_write(0, 1, flags))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 1)


@pytest.mark.parametrize("field", [10, 11, 12])
def test_compare_and_write_has_one_byte_for_its_blocks(unit, field: int) -> None:
    cdb = bytearray.fromhex(compare_and_write(0, 1))
    cdb[field] = 1
    error = unit.refusal(cdb.hex())
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, field)


def test_compare_and_write_of_a_write_protected_unit_is_refused(make_unit: Callable) -> None:
    assert make_unit(readonly=True).refusal(compare_and_write(0, 1)).reason is Reason.WRITE_PROTECTED


# -- ORWRITE ----------------------------------------------------------------------------------------------------------


def orwrite(lba: int, blocks: int, flags: int = 0) -> str:
    return struct.pack(">BBQIxx", 0x8B, flags, lba, blocks).hex()  # SBC-3 table 44


@pytest.mark.parametrize(("lba", "blocks"), [(0, 1), (3, 2), (LAST, 1), (0, BLOCKS)])
def test_orwrite_sets_bits_and_clears_none(unit, lba: int, blocks: int) -> None:
    unit.memory.medium[:] = OLD * BLOCKS
    before = bytes(unit.memory.medium)
    assert unit.run(orwrite(lba, blocks), b"\x0f\x80" * 256 * blocks) == b""
    after = bytes(old | new for old, new in zip(OLD, b"\x0f\x80" * 256, strict=True))
    assert unit.memory.medium == before[: lba * 512] + after * blocks + before[(lba + blocks) * 512 :]


def test_orwrite_works_through_a_long_range_in_pieces_that_are_one_step(make_unit: Callable) -> None:
    unit = make_unit(4097)
    plan = job(unit, orwrite(0, 4097))
    assert plan.exclusive == (0, 4097 * 512)
    plan.run(memoryview(b"\x11" * 4097 * 512))
    sizes = [(0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 512)]
    assert unit.memory.calls == [(name, *size) for size in sizes for name in ("read", "write")]
    assert unit.memory.medium == b"\x11" * 4097 * 512


@pytest.mark.parametrize(("flags", "flushed"), [(0, False), (DPO, False), (FUA, True), (FUA | DPO, True)])
def test_orwrite_with_fua_puts_it_on_the_medium(unit, flags: int, flushed: bool) -> None:
    unit.run(orwrite(0, 1, flags), NEW)
    assert (("flush",) in unit.memory.calls) is flushed


def test_orwrite_is_planned_as_a_read_and_a_write(unit) -> None:
    plan = job(unit, orwrite(4, 3))
    assert (plan.parameter_length, plan.cost, plan.writes, plan.exclusive) == (1536, 3072, True, (2048, 1536))


@pytest.mark.parametrize("length", [0, 512, 1023])
def test_orwrite_with_less_data_is_refused_and_does_nothing(unit, length: int) -> None:
    with pytest.raises(ScsiError) as caught:
        job(unit, orwrite(0, 2)).run(memoryview(bytes(length)))
    assert caught.value.reason is Reason.INVALID_FIELD_IN_CDB
    assert unit.memory.calls == []


@pytest.mark.parametrize("lba", [0, LAST, BLOCKS])
def test_orwrite_of_0_blocks_is_good_and_does_nothing(unit, lba: int) -> None:
    assert unit.plan(orwrite(lba, 0)) is DONE


@pytest.mark.parametrize(("lba", "blocks"), [(BLOCKS, 1), (LAST, 2), (BLOCKS + 1, 0), ((1 << 64) - 1, 0xFFFFFFFF)])
def test_orwrite_beyond_the_end_is_refused(unit, lba: int, blocks: int) -> None:
    assert unit.refusal(orwrite(lba, blocks)).reason is Reason.LBA_OUT_OF_RANGE


def test_orwrite_of_more_than_the_maximum_transfer_length_is_refused(unit) -> None:
    unit.lu.max_blocks = 8
    assert unit.refusal(orwrite(0, 9)).reason is Reason.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("flags", [0x01, 0x02, 0x04, 0x20, 0x40, 0x80])
def test_orwrite_with_protection_or_reserved_bits_is_refused(unit, flags: int) -> None:
    error = unit.refusal(orwrite(0, 1, flags))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 1)


def test_orwrite_of_a_write_protected_unit_is_refused(make_unit: Callable) -> None:
    assert make_unit(readonly=True).refusal(orwrite(0, 1)).reason is Reason.WRITE_PROTECTED


# -- WRITE ATOMIC -----------------------------------------------------------------------------------------------------


def write_atomic(lba: int, blocks: int, flags: int = 0, boundary: int = 0) -> str:
    return struct.pack(">BBQHHxx", 0x9C, flags, lba, boundary, blocks).hex()  # SBC-4 5.48


@pytest.fixture
def memory(make_unit: Callable):
    """A unit over memory, which alone has atomic writes."""
    return make_unit(lacks=["flush"], threading=Threading.PARALLEL)


@pytest.mark.parametrize(("lba", "blocks"), [(0, 1), (3, 2), (LAST, 1), (0, BLOCKS)])
@pytest.mark.parametrize("flags", [0, FUA, DPO])
def test_write_atomic_writes_all_in_one_call_under_its_range(memory, lba: int, blocks: int, flags: int) -> None:
    plan = job(memory, write_atomic(lba, blocks, flags))
    assert (plan.parameter_length, plan.writes, plan.exclusive) == (blocks * 512, True, (lba * 512, blocks * 512))
    assert plan.run(memoryview(NEW * blocks)) == b""
    assert memory.memory.calls == [("write", lba * 512, blocks * 512)]
    assert memory.memory.medium[lba * 512 : (lba + blocks) * 512] == NEW * blocks


def test_write_atomic_of_part_of_its_data_writes_nothing(memory) -> None:
    with pytest.raises(ScsiError) as caught:
        job(memory, write_atomic(0, 2)).run(memoryview(NEW))
    assert caught.value.reason is Reason.INVALID_FIELD_IN_CDB
    assert memory.memory.calls == []


def test_write_atomic_of_0_blocks_is_good_and_does_nothing(memory) -> None:
    assert memory.plan(write_atomic(LAST, 0)) is DONE


@pytest.mark.parametrize(("lba", "blocks"), [(BLOCKS, 1), (LAST, 2), (BLOCKS + 1, 0), ((1 << 64) - 1, 0xFFFF)])
def test_write_atomic_beyond_the_end_is_refused(memory, lba: int, blocks: int) -> None:
    assert memory.refusal(write_atomic(lba, blocks)).reason is Reason.LBA_OUT_OF_RANGE


def test_write_atomic_of_more_than_its_maximum_is_refused(memory) -> None:
    memory.lu.max_atomic_blocks = 8
    error = memory.refusal(write_atomic(0, 9))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 12)


def test_write_atomic_with_a_boundary_is_refused(memory) -> None:
    error = memory.refusal(write_atomic(0, 2, boundary=1))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 11)


@pytest.mark.parametrize("flags", [0x01, 0x02, 0x04, 0x20, 0x40, 0x80])
def test_write_atomic_with_protection_or_reserved_bits_is_refused(memory, flags: int) -> None:
    error = memory.refusal(write_atomic(0, 1, flags))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 1)


@pytest.mark.parametrize(
    "facts", [{}, {"lacks": ["flush"]}, {"threading": Threading.PARALLEL}, {"lacks": ["flush"], "mode": Mode.BLOCKING}]
)
def test_write_atomic_is_no_command_where_a_loss_of_power_may_tear_it(make_unit: Callable, facts: dict) -> None:
    unit = make_unit(**facts)
    assert unit.refusal(write_atomic(0, 1)).reason is Reason.INVALID_COMMAND_OPERATION_CODE
    assert unit.lu.max_atomic_blocks == 0


@pytest.mark.parametrize(("block_size", "blocks"), [(512, 65535), (4096, 8192)])
def test_block_limits_tell_how_much_is_written_atomically(make_unit: Callable, block_size: int, blocks: int) -> None:
    unit = make_unit(64, block_size, lacks=["flush"], threading=Threading.PARALLEL)
    assert unit.run("12 01 b0 00ff 00")[44:64] == struct.pack(">I16x", blocks)


def test_compare_and_write_that_pauses_after_a_part_of_its_write_does_not_compare_again(unit) -> None:
    medium = unit.memory.medium

    def torn(data: memoryview, offset: int) -> None:
        medium[offset : offset + 256] = data[:256]  # as a layer does it that tries again what has failed
        pause("retry", lambda: 1.0, lambda _seconds: None)
        medium[offset : offset + len(data)] = data

    unit.lu.device._write = torn
    assert leaves(lambda: unit.run(compare_and_write(0, 1), bytes(512) + NEW)) == 0
    assert medium[:512] == NEW
