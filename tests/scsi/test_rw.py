"""Every command that touches the medium: its range, its flags, what it does to the device and what it answers."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from iscsid.errors import ScsiError
from iscsid.scsi.plan import DONE, Ask, Job, Read, Write
from iscsid.scsi.sense import Reason

BLOCKS = 2048  # of the unit that the fixture makes
LAST = BLOCKS - 1

READ_OPCODE = {10: 0x28, 12: 0xA8, 16: 0x88}
WRITE_OPCODE = {10: 0x2A, 12: 0xAA, 16: 0x8A}
VERIFY_OPCODE = {10: 0x2F, 12: 0xAF, 16: 0x8F}
WRITE_SAME_OPCODE = {10: 0x41, 16: 0x93}
SYNCHRONIZE_OPCODE = {10: 0x35, 16: 0x91}

sizes = pytest.mark.parametrize("size", [10, 12, 16])
two_sizes = pytest.mark.parametrize("size", [10, 16])

BEYOND = [
    (BLOCKS, 1),
    (LAST, 2),
    (0, BLOCKS + 1),
    (1, BLOCKS),
    (BLOCKS + 1, 0),
    (0x80000000, 0),
    (0x80000000, 2),
    (0xFFFFFFFF, 0),
    (0xFFFFFFFF, 1),
]


def cdb(opcodes: dict[int, int], size: int, lba: int, blocks: int, flags: int = 0) -> str:
    """Build a CDB of the given size (SBC-3 tables 44 - 47): flags in byte 1, then address, then length."""
    layout = {10: ">BBIBHB", 12: ">BBIIBB", 16: ">BBQIBB"}[size]
    middle = (lba, 0, blocks, 0) if size == 10 else (lba, blocks, 0, 0)
    return struct.pack(layout, opcodes[size], flags, *middle).hex()


# -- READ -------------------------------------------------------------------------------------------------------------


@sizes
@pytest.mark.parametrize(("lba", "blocks"), [(0, 1), (1, 2), (LAST, 1), (0, BLOCKS), (1000, 1048)])
def test_read_gives_the_bytes_of_its_range(unit, size: int, lba: int, blocks: int) -> None:
    unit.memory.medium[:] = struct.pack(f">{BLOCKS * 128}I", *range(BLOCKS * 128))
    plan = unit.plan(cdb(READ_OPCODE, size, lba, blocks))
    assert isinstance(plan, Read) and (plan.offset, plan.length) == (lba * 512, blocks * 512)
    assert unit.run(cdb(READ_OPCODE, size, lba, blocks)) == unit.memory.medium[lba * 512 : (lba + blocks) * 512]


@pytest.mark.parametrize(("text", "lba", "blocks"), [("08 000000 01 00", 0, 1), ("08 0001ff 02 00", 511, 2)])
def test_read_6_has_21_bits_of_address(unit, text: str, lba: int, blocks: int) -> None:
    plan = unit.plan(text)
    assert isinstance(plan, Read) and (plan.offset, plan.length) == (lba * 512, blocks * 512)


def test_read_6_of_0_blocks_is_256_blocks(unit) -> None:
    plan = unit.plan("08 000000 00 00")  # SBC-3 5.7
    assert isinstance(plan, Read) and plan.length == 256 * 512


def test_write_6_of_0_blocks_is_256_blocks(unit) -> None:
    plan = unit.plan("0a 000000 00 00")  # SBC-3 5.33
    assert isinstance(plan, Write) and (plan.length, plan.fua) == (256 * 512, False)


@pytest.mark.parametrize("opcode", ["08", "0a"])
@pytest.mark.parametrize("rest", ["1fffff 01 00", "000800 01 00", "000701 00 00", "0007ff 02 00"])
def test_6_byte_command_beyond_the_end_is_refused(unit, opcode: str, rest: str) -> None:
    assert unit.refusal(f"{opcode} {rest}").reason is Reason.LBA_OUT_OF_RANGE


@sizes
@pytest.mark.parametrize("opcodes", [READ_OPCODE, WRITE_OPCODE, VERIFY_OPCODE], ids=["read", "write", "verify"])
@pytest.mark.parametrize(("lba", "blocks"), [(0, 0), (LAST, 0), (BLOCKS, 0)])
def test_0_blocks_up_to_the_end_is_good_and_does_nothing(unit, opcodes: dict, size: int, lba: int, blocks: int) -> None:
    assert unit.plan(cdb(opcodes, size, lba, blocks)) is DONE
    assert unit.memory.calls == []


@sizes
@pytest.mark.parametrize("opcodes", [READ_OPCODE, WRITE_OPCODE, VERIFY_OPCODE], ids=["read", "write", "verify"])
@pytest.mark.parametrize(
    ("lba", "blocks"),
    BEYOND,
)
def test_range_beyond_the_end_is_refused(unit, opcodes: dict, size: int, lba: int, blocks: int) -> None:
    assert unit.refusal(cdb(opcodes, size, lba, blocks)).reason is Reason.LBA_OUT_OF_RANGE
    assert unit.memory.calls == []


@pytest.mark.parametrize("opcodes", [READ_OPCODE, WRITE_OPCODE, VERIFY_OPCODE, WRITE_SAME_OPCODE, SYNCHRONIZE_OPCODE])
@pytest.mark.parametrize(("lba", "blocks"), [(2**64 - 1, 1), (2**64 - 1, 2), (2**63, 0), (2**64 - 1, 0)])
def test_address_that_would_wrap_is_refused(unit, opcodes: dict, lba: int, blocks: int) -> None:
    assert unit.refusal(cdb(opcodes, 16, lba, blocks)).reason is Reason.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("opcodes", [READ_OPCODE, WRITE_OPCODE, VERIFY_OPCODE], ids=["read", "write", "verify"])
@pytest.mark.parametrize("size", [12, 16])
def test_more_than_the_maximum_transfer_length_is_refused(unit, opcodes: dict, size: int) -> None:
    unit.lu.max_blocks = 8  # SBC-3 6.6.4
    assert unit.plan(cdb(opcodes, size, 0, 8)) is not DONE
    assert unit.refusal(cdb(opcodes, size, 0, 9)).reason is Reason.INVALID_FIELD_IN_CDB


@sizes
@pytest.mark.parametrize("flags", [0x10, 0x00])
def test_dpo_changes_nothing(unit, size: int, flags: int) -> None:
    assert isinstance(unit.plan(cdb(READ_OPCODE, size, 1, 1, flags)), Read)
    write = unit.plan(cdb(WRITE_OPCODE, size, 1, 1, flags))
    assert isinstance(write, Write) and not write.fua


@sizes
@pytest.mark.parametrize("flags", [0x08, 0x18])
def test_read_with_fua_flushes_a_volatile_device_first(unit, size: int, flags: int) -> None:
    plan = unit.plan(cdb(READ_OPCODE, size, 1, 1, flags))
    assert isinstance(plan, Job) and (plan.parameter_length, plan.cost, plan.writes) == (0, 0, True)
    assert plan.run(memoryview(b"")) == b""
    assert unit.memory.calls == [("flush",)]
    assert isinstance(plan.then, Read) and (plan.then.offset, plan.then.length) == (512, 512)


@sizes
def test_read_with_fua_is_a_plain_read_where_nothing_is_volatile(make_unit: Callable, size: int) -> None:
    assert isinstance(make_unit(lacks=["flush"]).plan(cdb(READ_OPCODE, size, 1, 1, 0x08)), Read)


@sizes
@pytest.mark.parametrize("flags", [0x08, 0x18])
@pytest.mark.parametrize(("lacks", "fua"), [((), True), (("flush",), False)])
def test_write_with_fua_is_forced_where_something_is_volatile(
    make_unit: Callable, size: int, flags: int, lacks: tuple, fua: bool
) -> None:
    plan = make_unit(lacks=lacks).plan(cdb(WRITE_OPCODE, size, 3, 2, flags))
    assert isinstance(plan, Write) and (plan.offset, plan.length, plan.fua) == (1536, 1024, fua)


@sizes
@pytest.mark.parametrize("opcodes", [READ_OPCODE, WRITE_OPCODE], ids=["read", "write"])
def test_fua_does_not_widen_the_range(unit, opcodes: dict, size: int) -> None:
    assert unit.refusal(cdb(opcodes, size, LAST, 2, 0x08)).reason is Reason.LBA_OUT_OF_RANGE
    assert unit.plan(cdb(opcodes, size, 0, 0, 0x08)) is DONE


@sizes
@pytest.mark.parametrize("protect", range(1, 8))
@pytest.mark.parametrize("opcodes", [READ_OPCODE, WRITE_OPCODE, VERIFY_OPCODE], ids=["read", "write", "verify"])
def test_protection_information_is_refused(unit, opcodes: dict, size: int, protect: int) -> None:
    error = unit.refusal(cdb(opcodes, size, 0, 1, protect << 5))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 1)


@sizes
def test_written_data_is_read_back(unit, size: int) -> None:
    data = bytes(range(256)) * 6
    unit.run(cdb(WRITE_OPCODE, size, 7, 3), data)
    assert unit.run(cdb(READ_OPCODE, size, 7, 3)) == data
    assert unit.memory.medium[7 * 512 : 10 * 512] == data


def test_larger_blocks_shift_farther(make_unit: Callable) -> None:
    plan = make_unit(16, 4096).plan(cdb(READ_OPCODE, 16, 2, 3))
    assert isinstance(plan, Read) and (plan.offset, plan.length) == (8192, 12288)


# -- TEST UNIT READY, SYNCHRONIZE CACHE, START STOP UNIT --------------------------------------------------------------


def test_unit_is_ready(unit) -> None:
    assert unit.plan("00 00 000000 00") is DONE


@two_sizes
@pytest.mark.parametrize("flags", [0, 0x02], ids=["", "immed"])
@pytest.mark.parametrize(("lba", "blocks"), [(0, 0), (5, 0), (0, BLOCKS), (LAST, 1), (BLOCKS, 0)])
def test_synchronize_cache_flushes_a_volatile_device(unit, size: int, flags: int, lba: int, blocks: int) -> None:
    plan = unit.plan(cdb(SYNCHRONIZE_OPCODE, size, lba, blocks, flags))
    assert isinstance(plan, Job) and plan.writes and plan.parameter_length == 0
    assert plan.run(memoryview(b"")) == b""
    assert unit.memory.calls == [("flush",)]


@two_sizes
def test_synchronize_cache_of_nothing_volatile_is_done(make_unit: Callable, size: int) -> None:
    assert make_unit(lacks=["flush"]).plan(cdb(SYNCHRONIZE_OPCODE, size, 0, 0)) is DONE


@two_sizes
@pytest.mark.parametrize(("lba", "blocks"), [(BLOCKS, 1), (BLOCKS + 1, 0), (0, BLOCKS + 1)])
def test_synchronize_cache_beyond_the_end_is_refused(unit, size: int, lba: int, blocks: int) -> None:
    assert unit.refusal(cdb(SYNCHRONIZE_OPCODE, size, lba, blocks)).reason is Reason.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("immed", ["00", "01"])
def test_stop_flushes(unit, immed: str) -> None:
    assert unit.run(f"1b {immed} 00 00 00 00") == b""
    assert unit.memory.calls == [("flush",)]


@pytest.mark.parametrize("byte", ["01", "04", "05"], ids=["start", "stop-no-flush", "start-no-flush"])
def test_start_and_no_flush_flush_nothing(unit, byte: str) -> None:
    assert isinstance(unit.plan(f"1b 00 00 00 {byte} 00"), Ask)


@pytest.mark.parametrize("byte", [*(f"{condition:x}1" for condition in range(1, 16)), "02", "03"])
def test_power_conditions_and_eject_are_refused(unit, byte: str) -> None:
    error = unit.refusal(f"1b 00 00 00 {byte} 00")
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 4)


# -- VERIFY -----------------------------------------------------------------------------------------------------------


@sizes
@pytest.mark.parametrize("dpo", [0x00, 0x10])
def test_verify_without_data_reads_the_medium(unit, size: int, dpo: int) -> None:
    plan = unit.plan(cdb(VERIFY_OPCODE, size, 4, 8, dpo))
    assert isinstance(plan, Job) and (plan.parameter_length, plan.cost, plan.writes) == (0, 4096, False)
    assert plan.run(memoryview(b"")) == b""
    assert unit.memory.calls == [("flush",), ("read", 2048, 4096)]


def test_verify_reads_a_long_range_in_pieces(make_unit: Callable) -> None:
    unit = make_unit(4097, lacks=["flush"])
    unit.run(cdb(VERIFY_OPCODE, 10, 0, 4097))
    assert unit.memory.calls == [("read", 0, 1 << 20), ("read", 1 << 20, 1 << 20), ("read", 2 << 20, 512)]


@sizes
def test_verify_compares_all_the_data(unit, size: int) -> None:
    data = bytes(range(256)) * 8
    unit.memory.medium[512:2560] = data
    command = cdb(VERIFY_OPCODE, size, 1, 4, 0x02)
    assert unit.run(command, data) == b""
    for at in (0, 1, 511, 512, 1000, 2047):
        wrong = bytearray(data)
        wrong[at] ^= 0x80
        error = unit.refusal(command, bytes(wrong))
        assert (error.reason, error.information) == (Reason.MISCOMPARE_DURING_VERIFY, at)


def test_verify_tells_the_first_of_several_differences(unit) -> None:
    error = unit.refusal(cdb(VERIFY_OPCODE, 10, 0, 2, 0x02), bytes(100) + b"\1" * 924)
    assert error.information == 100


def test_verify_finds_a_difference_behind_the_first_piece(make_unit: Callable) -> None:
    unit = make_unit(4096)
    data = bytes((1 << 20) + 512)
    unit.memory.medium[(1 << 20) + 3] = 1
    assert unit.refusal(cdb(VERIFY_OPCODE, 10, 0, 2049, 0x02), data).information == (1 << 20) + 3


@sizes
def test_verify_compares_one_block_with_each(unit, size: int) -> None:
    block = bytes(range(256)) * 2
    unit.memory.medium[1024 : 1024 + 5 * 512] = block * 5
    command = cdb(VERIFY_OPCODE, size, 2, 5, 0x06)
    plan = unit.plan(command)
    assert isinstance(plan, Job) and (plan.parameter_length, plan.cost) == (512, 2560)
    assert unit.run(command, block) == b""
    unit.memory.medium[1024 + 2000] ^= 1
    assert unit.refusal(command, block).information == 2000


def test_verify_of_one_block_with_each_goes_beyond_one_piece(make_unit: Callable) -> None:
    unit = make_unit(4096)
    block = b"\xa5" * 512
    unit.memory.medium[: 3000 * 512] = block * 3000
    unit.run(cdb(VERIFY_OPCODE, 10, 0, 3000, 0x06), block)
    assert unit.refusal(cdb(VERIFY_OPCODE, 10, 0, 3001, 0x06), block).information == 3000 * 512


@sizes
def test_verify_with_the_reserved_bytchk_is_refused(unit, size: int) -> None:
    error = unit.refusal(cdb(VERIFY_OPCODE, size, 0, 1, 0x04))
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, 1, 2)


# -- WRITE SAME -------------------------------------------------------------------------------------------------------


@two_sizes
def test_write_same_writes_the_block_all_over(unit, size: int) -> None:
    block = bytes(range(256)) * 2
    plan = unit.plan(cdb(WRITE_SAME_OPCODE, size, 3, 4))
    assert isinstance(plan, Job) and (plan.parameter_length, plan.cost, plan.writes) == (512, 2048, True)
    unit.run(cdb(WRITE_SAME_OPCODE, size, 3, 4), block)
    assert unit.memory.medium[: 8 * 512] == bytes(3 * 512) + block * 4 + bytes(512)
    assert unit.memory.calls == [("write", 1536, 2048)]


def test_write_same_writes_a_long_range_in_pieces(make_unit: Callable) -> None:
    unit = make_unit(4097)
    unit.run(cdb(WRITE_SAME_OPCODE, 16, 0, 4097), b"\1" * 512)
    assert unit.memory.calls == [("write", 0, 1 << 20), ("write", 1 << 20, 1 << 20), ("write", 2 << 20, 512)]
    assert unit.memory.medium == b"\1" * (4097 * 512)


@two_sizes
@pytest.mark.parametrize(("flags", "may_unmap"), [(0x00, False), (0x08, True)])
def test_write_same_of_zeros_lets_the_device_do_it(unit, size: int, flags: int, may_unmap: bool) -> None:
    unit.run(cdb(WRITE_SAME_OPCODE, size, 2, 6, flags), bytes(512))
    assert unit.memory.calls == [("zero", 1024, 3072, may_unmap)]


@two_sizes
def test_write_same_never_unmaps_what_would_not_read_as_written(unit, size: int) -> None:
    unit.run(cdb(WRITE_SAME_OPCODE, size, 2, 6, 0x08), b"\1" * 512)  # SBC-3 4.7.3.5
    assert unit.memory.calls == [("write", 1024, 3072)]


def test_write_same_of_zeros_is_written_where_the_device_cannot_zero(make_unit: Callable) -> None:
    unit = make_unit(lacks=["write_zeroes"])
    unit.memory.medium[:] = b"\xff" * len(unit.memory.medium)
    unit.run(cdb(WRITE_SAME_OPCODE, 10, 2, 6), bytes(512))
    assert unit.memory.calls == [("write", 1024, 3072)]
    assert unit.memory.medium[1024:4096] == bytes(3072)


@pytest.mark.parametrize(("flags", "may_unmap"), [(0x01, False), (0x09, True)])
def test_write_same_16_without_a_data_out_buffer_writes_zeros(unit, flags: int, may_unmap: bool) -> None:
    plan = unit.plan(cdb(WRITE_SAME_OPCODE, 16, 1, 1, flags))
    assert isinstance(plan, Job) and plan.parameter_length == 0
    plan.run(memoryview(b""))
    assert unit.memory.calls == [("zero", 512, 512, may_unmap)]


@two_sizes
@pytest.mark.parametrize("lba", [0, LAST, BLOCKS])
@pytest.mark.parametrize("flags", [0x00, 0x08])
def test_write_same_of_0_blocks_is_refused_as_wsnz_tells(unit, size: int, lba: int, flags: int) -> None:
    error = unit.refusal(cdb(WRITE_SAME_OPCODE, size, lba, 0, flags))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, {10: 7, 16: 10}[size])


@two_sizes
def test_write_same_takes_no_more_data_than_its_block(unit, size: int) -> None:
    plan = unit.plan(cdb(WRITE_SAME_OPCODE, size, 0, 1))
    assert isinstance(plan, Job) and plan.exact


@two_sizes
def test_write_same_of_more_than_its_maximum_is_refused(unit, size: int) -> None:
    unit.lu.max_write_same_blocks = 8
    error = unit.refusal(cdb(WRITE_SAME_OPCODE, size, 0, 9))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, {10: 7, 16: 10}[size])
    assert isinstance(unit.plan(cdb(WRITE_SAME_OPCODE, size, 0, 8)), Job)


@two_sizes
@pytest.mark.parametrize(("lba", "blocks"), [(BLOCKS, 1), (LAST, 2), (BLOCKS + 1, 0), (0x80000000, 1), (0xFFFFFFFF, 0)])
def test_write_same_beyond_the_end_is_refused(unit, size: int, lba: int, blocks: int) -> None:
    assert unit.refusal(cdb(WRITE_SAME_OPCODE, size, lba, blocks)).reason is Reason.LBA_OUT_OF_RANGE


@two_sizes
@pytest.mark.parametrize("flags", [0x20, 0xE0, 0x10, 0x18, 0x04, 0x02])
def test_write_same_with_protection_anchor_or_obsolete_bits_is_refused(unit, size: int, flags: int) -> None:
    assert unit.refusal(cdb(WRITE_SAME_OPCODE, size, 0, 1, flags)).reason is Reason.INVALID_FIELD_IN_CDB


def test_write_same_10_knows_no_ndob(unit) -> None:
    error = unit.refusal(cdb(WRITE_SAME_OPCODE, 10, 0, 1, 0x01))
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, 1, 0)


@two_sizes
def test_write_same_with_unmap_is_refused_where_nothing_can_be_unmapped(make_unit: Callable, size: int) -> None:
    error = make_unit(lacks=["discard"]).refusal(cdb(WRITE_SAME_OPCODE, size, 0, 1, 0x08))
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, 1, 3)


# -- UNMAP ------------------------------------------------------------------------------------------------------------


def unmap_list(*ranges: tuple[int, int], length: int | None = None, tail: bytes = b"") -> bytes:
    """Build the parameter list of UNMAP (SBC-3 tables 91 and 92)."""
    described = 16 * len(ranges) + len(tail) if length is None else length
    body = b"".join(struct.pack(">QI4x", *one) for one in ranges) + tail
    return struct.pack(">HH4x", described + 6, described) + body


def unmap_cdb(length: int, flags: int = 0) -> str:
    return struct.pack(">BBIBHB", 0x42, flags, 0, 0, length, 0).hex()


def unmap(unit, data: bytes) -> None:
    assert unit.run(unmap_cdb(len(data)), data) == b""


def test_unmap_discards_each_range(unit) -> None:
    unit.memory.medium[:] = b"\xff" * len(unit.memory.medium)
    unmap(unit, unmap_list((0, 1), (8, 4), (LAST, 1)))
    assert unit.memory.calls == [("discard", 0, 512), ("discard", 4096, 2048), ("discard", LAST * 512, 512)]
    assert unit.run(cdb(READ_OPCODE, 10, 8, 4)) == bytes(2048)


def test_unmap_is_planned_as_a_write_of_unknown_size(unit) -> None:
    plan = unit.plan(unmap_cdb(24))
    assert isinstance(plan, Job) and plan.writes and plan.parameter_length == 24
    assert plan.cost == unit.lu.max_unmap_blocks * 512


def test_unmap_without_a_list_is_good(unit) -> None:
    assert unit.plan(unmap_cdb(0)) is DONE  # SBC-3 5.28.1


@pytest.mark.parametrize("length", [1, 7])
def test_unmap_with_less_than_the_header_is_refused(unit, length: int) -> None:
    assert unit.refusal(unmap_cdb(length)).reason is Reason.PARAMETER_LIST_LENGTH_ERROR


@pytest.mark.parametrize(
    "data",
    [
        unmap_list(),  # no descriptor
        unmap_list((5, 0)),  # a descriptor of no block
        unmap_list((5, 1), length=15),  # an incomplete one, by its own length
        unmap_list((5, 1), length=0),  # what is not described is not there
        unmap_list(length=16),  # described, but not sent
        unmap_list(length=16, tail=struct.pack(">QI", 5, 1)),  # cut short
    ],
)
def test_unmap_of_nothing_is_good_and_does_nothing(unit, data: bytes) -> None:
    unmap(unit, data)
    assert unit.memory.calls == []


def test_unmap_ignores_an_incomplete_last_descriptor(unit) -> None:
    unmap(unit, unmap_list((5, 1), tail=bytes(15)))  # SBC-3 5.28.2
    assert unit.memory.calls == [("discard", 2560, 512)]


@pytest.mark.parametrize("wrong", [(BLOCKS, 1), (LAST, 2), (BLOCKS + 1, 0), (2**64 - 1, 2), (0, 2**32 - 1)])
def test_unmap_beyond_the_end_unmaps_nothing_at_all(unit, wrong: tuple[int, int]) -> None:
    data = unmap_list((0, 1), wrong)
    assert unit.refusal(unmap_cdb(len(data)), data).reason is Reason.LBA_OUT_OF_RANGE
    assert unit.memory.calls == []


def test_unmap_of_too_many_blocks_in_all_is_refused(unit) -> None:
    unit.lu.max_unmap_blocks = 8
    unmap(unit, unmap_list((0, 4), (0, 4)))
    data = unmap_list((0, 4), (0, 5))
    error = unit.refusal(unmap_cdb(len(data)), data)
    assert (error.reason, error.in_data) == (Reason.INVALID_FIELD_IN_PARAMETER_LIST, True)
    assert len(unit.memory.calls) == 2


def test_unmap_with_too_many_descriptors_is_refused(unit) -> None:
    most = [(number, 1) for number in range(unit.lu.max_unmap_descriptors)]
    unmap(unit, unmap_list(*most))
    assert len(unit.memory.calls) == unit.lu.max_unmap_descriptors
    data = unmap_list(*most, (0, 1))
    assert unit.refusal(unmap_cdb(len(data)), data).reason is Reason.INVALID_FIELD_IN_PARAMETER_LIST


def test_unmap_with_anchor_is_refused(unit) -> None:
    assert unit.refusal(unmap_cdb(24, flags=1)).reason is Reason.INVALID_FIELD_IN_CDB


def test_unmap_is_no_command_where_nothing_can_be_unmapped(make_unit: Callable) -> None:
    error = make_unit(lacks=["discard"]).refusal(unmap_cdb(24))
    assert error.reason is Reason.INVALID_COMMAND_OPERATION_CODE


# -- less data-out than the CDB tells of ------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 256, 511])
@pytest.mark.parametrize(
    "command",
    [
        cdb(WRITE_SAME_OPCODE, 10, 0, 8),
        cdb(WRITE_SAME_OPCODE, 16, 0, 8, 0x08),
        cdb(VERIFY_OPCODE, 10, 0, 1, 0x02),
        cdb(VERIFY_OPCODE, 16, 0, 8, 0x06),
    ],
)
def test_less_data_than_the_command_needs_is_refused_and_does_nothing(unit, command: str, length: int) -> None:
    plan = unit.plan(command)
    assert isinstance(plan, Job)
    with pytest.raises(ScsiError) as caught:
        plan.run(memoryview(bytes(length)))
    assert caught.value.reason is Reason.INVALID_FIELD_IN_CDB
    assert unit.memory.calls == []


@pytest.mark.parametrize("length", [0, 7, 8, 23])
def test_less_of_the_unmap_list_than_announced_is_refused_and_does_nothing(unit, length: int) -> None:
    plan = unit.plan(unmap_cdb(24))
    assert isinstance(plan, Job)
    with pytest.raises(ScsiError) as caught:
        plan.run(memoryview(unmap_list((0, 1))[:length]))
    assert caught.value.reason is Reason.PARAMETER_LIST_LENGTH_ERROR
    assert unit.memory.calls == []
