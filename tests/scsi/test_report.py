"""READ CAPACITY, REPORT LUNS, REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS, byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from iscsid.block.device import Content, Extent
from iscsid.scsi.report import lun_field
from iscsid.scsi.sense import Reason

READ_CAPACITY_10 = "25 00 00000000 0000 00 00"
READ_CAPACITY_16 = "9e 10 0000000000000000 000000ff 00 00"

# -- READ CAPACITY: SBC-3 5.16.2 and 5.17.2 ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "block_size", "expected"), [(2048, 512, "000007ff 00000200"), (1, 4096, "00000000 00001000")]
)
def test_read_capacity_10(make_unit: Callable, blocks: int, block_size: int, expected: str) -> None:
    assert make_unit(blocks, block_size).run(READ_CAPACITY_10) == bytes.fromhex(expected)


@pytest.mark.parametrize(
    ("blocks", "last"), [(1 << 32, 0xFFFFFFFF), ((1 << 32) - 1, 0xFFFFFFFE), (1 << 40, 0xFFFFFFFF)]
)
def test_read_capacity_10_of_a_large_unit_points_to_the_other(unit, blocks: int, last: int) -> None:
    unit.lu.blocks = blocks
    assert int.from_bytes(unit.run(READ_CAPACITY_10)[:4], "big") == last


def test_read_capacity_16_byte_by_byte(make_unit: Callable) -> None:
    unit = make_unit(physical_block_size=4096, discard_zeroes=True)
    assert unit.run(READ_CAPACITY_16) == bytes.fromhex(
        "00000000000007ff"  # RETURNED LOGICAL BLOCK ADDRESS
        "00000200"  # LOGICAL BLOCK LENGTH IN BYTES
        "00"  # P_TYPE, PROT_EN
        "03"  # P_I_EXPONENT 0; 2^3 logical blocks in a physical one
        "c000"  # LBPME, LBPRZ, LOWEST ALIGNED LOGICAL BLOCK ADDRESS
    ) + bytes(16)


@pytest.mark.parametrize(
    ("block_size", "physical", "exponent"),
    [(512, 0, 0), (512, 512, 0), (512, 4096, 3), (4096, 512, 0), (4096, 4096, 0)],
)
def test_physical_block_exponent(make_unit: Callable, block_size: int, physical: int, exponent: int) -> None:
    unit = make_unit(64, block_size, physical_block_size=physical)
    assert unit.run(READ_CAPACITY_16)[13] == exponent


@pytest.mark.parametrize(
    ("lacks", "zeroes", "flags"), [((), True, 0xC0), ((), False, 0x80), (("discard",), True, 0x00)]
)
def test_provisioning_of_read_capacity_16(make_unit: Callable, lacks: tuple, zeroes: bool, flags: int) -> None:
    assert make_unit(lacks=lacks, discard_zeroes=zeroes).run(READ_CAPACITY_16)[14] == flags


def test_read_capacity_16_has_64_bits(unit) -> None:
    unit.lu.blocks = 1 << 40
    assert unit.run(READ_CAPACITY_16)[:8] == bytes.fromhex("000000ffffffffff")


@pytest.mark.parametrize("length", [0, 1, 8, 12, 15, 31, 32, 33, 1000])
def test_read_capacity_16_is_cut_to_the_allocation_length(unit, length: int) -> None:
    data = unit.run(f"9e 10 0000000000000000 {length:08x} 00 00")
    assert data == unit.run(READ_CAPACITY_16)[:length]


@pytest.mark.parametrize("cdb", ["25 00 00000001 0000 00 00", "25 00 00000000 0000 01 00"])
def test_read_capacity_10_with_obsolete_fields_is_refused(unit, cdb: str) -> None:
    assert unit.refusal(cdb).reason is Reason.INVALID_FIELD_IN_CDB


# -- GET LBA STATUS: SBC-3 5.6.2 --------------------------------------------------------------------------------------


def _with_map(unit, *extents: Extent):
    """Let the medium have this allocation map."""

    def block_status(offset: int, length: int) -> list[Extent]:
        cut = [(max(start, offset), start + size, content) for start, size, content in extents]
        return [Extent(start, end - start, content) for start, end, content in cut if end > start]

    unit.memory.block_status = block_status
    return unit


HOLE, DATA = Content.HOLE | Content.ZERO, Content.DATA
MAP = (Extent(0, 4096, DATA), Extent(4096, 8192, HOLE), Extent(12288, 2048 * 512 - 12288, DATA))


def test_get_lba_status_byte_by_byte(unit) -> None:
    assert _with_map(unit, *MAP).run("9e 12 0000000000000000 000000ff 00 00") == bytes.fromhex(
        "00000034 00000000"  # PARAMETER DATA LENGTH: three descriptors and the four bytes after it
        "0000000000000000 00000008 00 000000"  # mapped
        "0000000000000008 00000010 01 000000"  # deallocated
        "0000000000000018 000007e8 00 000000"
    )


def test_get_lba_status_begins_at_the_block_that_is_asked_for(unit) -> None:
    data = _with_map(unit, *MAP).run("9e 12 000000000000000a 00000018 00 00")
    assert data == bytes.fromhex("00000014 00000000 000000000000000a 0000000e 01 000000")


@pytest.mark.parametrize("length", [0, 4, 8, 20, 24, 40, 55, 56, 100])
def test_get_lba_status_is_cut_to_the_allocation_length(unit, length: int) -> None:
    data = _with_map(unit, *MAP).run(f"9e 12 0000000000000000 {length:08x} 00 00")
    assert len(data) == min(length, 8 + 16 * min(3, max(1, (length - 8) // 16)))


def test_get_lba_status_beyond_the_end_is_refused(unit) -> None:
    assert unit.refusal("9e 12 0000000000000800 000000ff 00 00").reason is Reason.LBA_OUT_OF_RANGE


def test_get_lba_status_of_an_endless_map_has_an_end(make_unit: Callable) -> None:
    unit = make_unit(4096)
    _with_map(unit, *(Extent(block * 512, 512, (DATA, HOLE)[block & 1]) for block in range(4096)))
    assert len(unit.run("9e 12 0000000000000000 ffffffff 00 00")) == 8 + 16 * 1024


def test_get_lba_status_of_a_device_without_a_map_is_all_mapped(make_unit: Callable) -> None:
    data = make_unit(lacks=("block_status",)).run("9e 12 0000000000000000 000000ff 00 00")
    assert data == bytes.fromhex("00000014 00000000 0000000000000000 00000800 00 000000")


def test_get_lba_status_without_provisioning_is_not_there(make_unit: Callable) -> None:
    refusal = make_unit(lacks=("discard",)).refusal("9e 12 0000000000000000 000000ff 00 00")
    assert refusal.reason is Reason.INVALID_FIELD_IN_CDB


# -- REPORT LUNS: SPC-4 6.33 ------------------------------------------------------------------------------------------


def report_luns(select: int = 0, length: int = 0x1000) -> str:
    return f"a0 00 {select:02x} 000000 {length:08x} 00 00"


@pytest.mark.parametrize("select", [0x00, 0x02])
def test_report_luns_lists_them_in_order(unit, select: int) -> None:
    unit.nexus.luns = [0, 1, 255, 256, 16383]
    assert unit.run(report_luns(select)) == bytes.fromhex(
        "00000028 00000000"
        "0000000000000000 0001000000000000 00ff000000000000"  # peripheral device addressing (SAM-5 4.7.7.2)
        "4100000000000000 7fff000000000000"  # flat space addressing (SAM-5 4.7.7.3)
    )


def test_report_luns_knows_no_well_known_unit(unit) -> None:
    assert unit.run(report_luns(0x01)) == bytes(8)


def test_report_luns_of_a_target_without_units(unit) -> None:
    unit.nexus.luns = []
    assert unit.run(report_luns()) == bytes(8)


@pytest.mark.parametrize("length", [16, 17, 24, 31])
def test_report_luns_is_cut_and_its_length_stays(unit, length: int) -> None:
    unit.nexus.luns = [0, 1, 2]
    data = unit.run(report_luns(length=length))
    assert len(data) == length and data[:4] == bytes.fromhex("00000018")


@pytest.mark.parametrize("length", [0, 1, 15])
def test_report_luns_with_less_than_16_bytes_is_refused(unit, length: int) -> None:
    error = unit.refusal(report_luns(length=length))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 6)


@pytest.mark.parametrize("select", [0x03, 0x10, 0x12, 0xFF])
def test_report_luns_with_another_select_is_refused(unit, select: int) -> None:
    error = unit.refusal(report_luns(select))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 2)


def test_lun_fields_are_different() -> None:
    assert len({lun_field(lun) for lun in range(16384)}) == 16384


# -- REPORT SUPPORTED OPERATION CODES: SPC-4 6.35 ---------------------------------------------------------------------


def rsoc(option: int, opcode: int = 0, action: int = 0, length: int = 0xFFFF, *, rctd: bool = False) -> str:
    return f"a3 0c {option | (0x80 if rctd else 0):02x} {opcode:02x} {action:04x} {length:08x} 00 00"


def command_descriptors(data: bytes, rctd: bool) -> list[tuple[int, int, int, int, bytes]]:
    """Return (operation code, service action, flags, CDB length, timeouts) of each (SPC-4 6.35.2)."""
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    step = 20 if rctd else 8
    assert (len(data) - 4) % step == 0
    found = []
    for at in range(4, len(data), step):
        opcode, action, flags, length = struct.unpack_from(">BxHxBH", data, at)
        found.append((opcode, action, flags, length, data[at + 8 : at + step]))
    return found


@pytest.mark.parametrize("lacks", [(), ("discard",)])
def test_all_commands_are_those_that_are_dispatched(make_unit: Callable, lacks: tuple) -> None:
    unit = make_unit(lacks=lacks)
    told = {(opcode, action) for opcode, action, *_ in command_descriptors(unit.run(rsoc(0)), False)}
    assert told == {(command.opcode, command.service_action or 0) for command in unit.lu.commands}
    assert ((0x42, 0) in told) is (lacks == ())


def test_all_commands_byte_by_byte_at_its_ends(unit) -> None:
    data = unit.run(rsoc(0))
    assert data[4:12] == bytes.fromhex("00 00 0000 00 00 0006")  # TEST UNIT READY
    assert data[-8:] == bytes.fromhex("b7 00 0000 00 00 000c")  # READ DEFECT DATA(12)
    assert bytes.fromhex("9e 00 0010 00 01 0010") in data  # READ CAPACITY(16): SERVACTV


def test_all_commands_with_timeouts(unit) -> None:
    for opcode, _action, flags, _length, timeouts in command_descriptors(unit.run(rsoc(0, rctd=True)), True):
        assert flags & 0x02  # CTDP
        length, specific, nominal, recommended = struct.unpack(">HxBII", timeouts)  # SPC-4 6.35.4
        assert (length, specific, nominal) == (0x0A, 0, 0) and recommended > 0, hex(opcode)


def test_flags_say_what_is_there(unit) -> None:
    for opcode, action, flags, _length, _ in command_descriptors(unit.run(rsoc(0)), False):
        assert flags == (0x01 if opcode in (0x48, 0x5E, 0x5F, 0x83, 0x84, 0x9E, 0xA3, 0xA4) else 0x00)
        assert flags or not action


def test_one_command_byte_by_byte(unit) -> None:
    assert unit.run(rsoc(1, 0x28)) == bytes.fromhex(
        "00 03 000a"  # CTDP 0, SUPPORT 011b: as the standard says; CDB SIZE
        "28 18 ffffffff 00 ffff 00"  # DPO and FUA; no RDPROTECT, no GROUP NUMBER
    )


def test_one_command_with_timeouts(unit) -> None:
    data = unit.run(rsoc(1, 0x28, rctd=True))
    assert data[:4] == bytes.fromhex("00 83 000a")  # CTDP in bit 7
    assert data[14:] == bytes.fromhex("000a 00 00 00000000 0000001e")


def test_one_command_by_its_service_action(unit) -> None:
    assert unit.run(rsoc(2, 0x9E, 0x10))[:6] == bytes.fromhex("00 03 0010 9e 10")


@pytest.mark.parametrize("opcode", [0x04, 0x14, 0x7E, 0x7F, 0xFF])
@pytest.mark.parametrize("option", [1, 2, 3])
def test_command_that_is_not_supported_is_told_so(unit, option: int, opcode: int) -> None:
    assert unit.run(rsoc(option, opcode)) == bytes.fromhex("00 01 0000")


@pytest.mark.parametrize("option", [2, 3])
def test_service_action_that_is_not_supported_is_told_so(unit, option: int) -> None:
    assert unit.run(rsoc(option, 0x9E, 0x14))[1] == 0x01
    assert unit.run(rsoc(option, 0x9E, 0x100))[1] == 0x01


def test_option_that_does_not_fit_the_command_is_refused(unit) -> None:
    for cdb in (rsoc(1, 0x9E), rsoc(1, 0xA3), rsoc(2, 0x28), rsoc(2, 0x00)):
        error = unit.refusal(cdb)
        assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 2)


def test_option_three_fits_every_command(unit) -> None:
    assert unit.run(rsoc(3, 0x28))[1] == 0x03
    assert unit.run(rsoc(3, 0x28, 0x01))[1] == 0x01
    assert unit.run(rsoc(3, 0x9E, 0x10))[1] == 0x03


@pytest.mark.parametrize("option", [4, 5, 6, 7])
def test_reserved_option_is_refused(unit, option: int) -> None:
    error = unit.refusal(rsoc(option))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 2)


@pytest.mark.parametrize("length", [0, 1, 4, 13, 100])
def test_report_is_cut_to_the_allocation_length(unit, length: int) -> None:
    assert unit.run(rsoc(0, length=length)) == unit.run(rsoc(0))[:length]


def test_usage_and_dispatch_agree_for_every_bit_of_every_command(unit) -> None:
    """Set one bit at a time: those that the usage data lacks are refused as reserved, and no others."""
    for command in unit.lu.commands:
        for bit in range(8, 8 * len(command.usage)):
            byte, mask = bit // 8, 1 << bit % 8
            if command.service_action is not None and byte == 1 and mask & 0x1F:
                continue
            cdb = bytearray(16)
            cdb[0], cdb[1] = command.opcode, command.service_action or 0
            cdb[byte] |= mask
            if not command.usage[byte] & mask:
                error = unit.refusal(cdb.hex())
                assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, byte, bit % 8)


# -- REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: SPC-4 6.36 -----------------------------------------------------------


def test_supported_task_management_functions(unit) -> None:
    # ATS, ATSS, CTSS, LURS, QTS, TRS; QAES, QTSS, ITNRS
    assert unit.run("a3 0d 00 000000 00000004 00 00") == bytes.fromhex("de 07 00 00")


def test_supported_task_management_functions_extended(unit) -> None:
    data = unit.run("a3 0d 80 000000 00000010 00 00")
    assert data == bytes.fromhex("de 07 00 0c") + bytes(12)


def test_supported_task_management_functions_are_cut(unit) -> None:
    assert len(unit.run("a3 0d 80 000000 00000006 00 00")) == 6


@pytest.mark.parametrize("length", [0, 3])
def test_supported_task_management_functions_with_less_than_4_bytes_are_refused(unit, length: int) -> None:
    error = unit.refusal(f"a3 0d 00 000000 {length:08x} 00 00")
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 6)
