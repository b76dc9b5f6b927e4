"""The order of checks that every command passes, and what a unit makes of its device."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from iscsid.block.device import Threading
from iscsid.scsi.commands import COMMANDS, Command, Feature
from iscsid.scsi.const import Status
from iscsid.scsi.lu import MAX_TRANSFER, MAX_UNMAP_BLOCKS, MAX_WRITE_SAME, Identity, LogicalUnit, SharedState
from iscsid.scsi.mode import ModeState
from iscsid.scsi.plan import DONE, Read, Reply, Write
from iscsid.scsi.reservation import EMPTY, reserve
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId

# -- what the unit makes of its device --------------------------------------------------------------------------------


@pytest.mark.parametrize(("block_size", "shift"), [(512, 9), (4096, 12), (65536, 16)])
def test_unit_counts_in_blocks_of_its_device(make_unit: Callable, block_size: int, shift: int) -> None:
    lu = make_unit(16, block_size).lu
    assert (lu.blocks, lu.block_size, lu.shift) == (16, block_size, shift)
    assert lu.max_blocks == MAX_TRANSFER // block_size
    assert lu.max_write_same_blocks == MAX_WRITE_SAME // block_size


def test_largest_transfer_of_the_short_commands_is_allowed(make_unit: Callable) -> None:
    assert make_unit(16, 512).lu.max_blocks >= 0xFFFF  # READ(10)
    assert make_unit(16, 65536).lu.max_blocks >= 256  # READ(6)


@pytest.mark.parametrize(("lacks", "volatile"), [((), True), (("flush",), False)])
def test_unit_is_volatile_exactly_where_the_device_needs_a_flush(
    make_unit: Callable, lacks: tuple, volatile: bool
) -> None:
    assert make_unit(lacks=lacks).lu.volatile is volatile


@pytest.mark.parametrize(
    ("lacks", "readonly", "thin"), [((), False, True), (("discard",), False, False), ((), True, False)]
)
def test_unit_is_thin_exactly_where_it_can_discard(
    make_unit: Callable, lacks: tuple, readonly: bool, thin: bool
) -> None:
    lu = make_unit(lacks=lacks, readonly=readonly).lu
    assert lu.thin is thin
    assert (Feature.THIN in lu.features) is thin
    assert ("UNMAP" in [command.name for command in lu.commands]) is thin


@pytest.mark.parametrize(("lacks", "usage"), [((), 0x08), (("discard",), 0x00)])
def test_optional_bits_are_resolved_by_the_features(make_unit: Callable, lacks: tuple, usage: int) -> None:
    (row,) = [command for command in make_unit(lacks=lacks).lu.commands if command.name == "WRITE_SAME_10"]
    assert row.usage[1] == usage and row.optional == ()


def test_unit_takes_the_capacity_without_a_partial_block() -> None:
    class Facts:  # only what a unit looks at when it is made
        from iscsid.block.device import Capabilities

        size, block_size, can, inline = 3 * 512 + 100, 512, Capabilities(), False

    lu = LogicalUnit(Facts(), Identity("S", "N"))
    assert lu.blocks == 3 and lu.readonly


# -- the order of checks ----------------------------------------------------------------------------------------------


def test_unit_attention_comes_first_and_once(unit) -> None:
    unit.nexus.attentions = [Reason.CAPACITY_DATA_HAS_CHANGED, Reason.MODE_PARAMETERS_CHANGED]
    assert unit.refusal("ff ff").reason is Reason.CAPACITY_DATA_HAS_CHANGED  # even for what nobody supports
    assert unit.refusal("28 e0").reason is Reason.MODE_PARAMETERS_CHANGED
    assert unit.plan("00") is DONE


@pytest.mark.parametrize("cdb", ["12 00 00 0060", "a0 00 00 000000 00000010"])
def test_unit_attention_stays_while_exempt_commands_pass(unit, cdb: str) -> None:
    unit.nexus.attentions = [Reason.I_T_NEXUS_LOSS]
    assert isinstance(unit.plan(cdb), Reply)
    assert unit.nexus.attentions == [Reason.I_T_NEXUS_LOSS]


@pytest.mark.parametrize("attentions", [None, []])
def test_no_unit_attention_stops_nothing(unit, attentions: list | None) -> None:
    unit.nexus.attentions = attentions
    assert unit.plan("00") is DONE


@pytest.mark.parametrize("opcode", ["01", "04", "14", "1e", "3b", "54", "7f", "c0", "ff"])
def test_unknown_operation_code_is_refused(unit, opcode: str) -> None:
    error = unit.refusal(opcode)
    assert error.reason is Reason.INVALID_COMMAND_OPERATION_CODE
    assert error.field == 0 and not error.in_data


@pytest.mark.parametrize("cdb", ["9e 00", "9e 14", "9e 1f", "a3 00", "a3 0b", "a3 0e"])
def test_unknown_service_action_is_refused_as_a_field(unit, cdb: str) -> None:
    error = unit.refusal(cdb)
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, 1, 4)


@pytest.mark.parametrize(
    ("cdb", "field", "bit"),
    [
        ("00 00 00 00 00 04", 5, 2),  # NACA
        ("00 00 00 00 00 c0", 5, 7),  # vendor specific bits of CONTROL
        ("00 01 80 00 00 00", 1, 0),  # the first wrong byte counts
        ("28 20 00000000 00 0001 00", 1, 5),  # RDPROTECT 001b
        ("28 e0 00000000 00 0001 00", 1, 7),  # RDPROTECT 111b: its highest bit
        ("2a 80 00000000 00 0001 00", 1, 7),  # WRPROTECT 100b
        ("28 02 00000000 00 0001 00", 1, 1),  # FUA_NV
        ("28 00 00000000 01 0001 00", 6, 0),  # GROUP NUMBER
        ("88 00 0000000000000000 00000001 3f 00", 14, 5),
        ("2f 20 00000000 00 0001 00", 1, 5),  # VRPROTECT
        ("41 10 00000000 00 0001 00", 1, 4),  # ANCHOR
        ("42 01 00000000 00 0018 00", 1, 0),  # ANCHOR
        ("1b 00 00 00 02 00", 4, 1),  # LOEJ
        ("1b 00 00 00 10 00", 4, 4),  # POWER CONDITION ACTIVE
        ("9e 30 0000000000000000 00000020 00 00", 1, 5),
        ("a3 2c 00 00 0000 00000100 00 00", 1, 5),
        ("a3 0c 08 00 0000 00000100 00 00", 2, 3),
    ],
)
def test_bit_that_must_be_zero_is_pointed_at(unit, cdb: str, field: int, bit: int) -> None:
    error = unit.refusal(cdb)
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, field, bit)


@pytest.mark.parametrize("cdb", ["00 00 00 00 00 00 ff ff ff", "28 00 00000000 00 0001 00 ff ff ff ff ff ff"])
def test_bytes_behind_the_cdb_do_not_matter(unit, cdb: str) -> None:
    unit.plan(cdb)


def test_cdb_longer_than_16_bytes_is_read_from_its_start(unit) -> None:
    plan = unit.lu.plan(bytes.fromhex("2800000000010000010000") + bytes(5) + b"\xff" * 16, unit.nexus)
    assert isinstance(plan, Read) and plan.offset == 512


WRITES = [
    "0a 000000 01 00",
    "2a 00 00000000 00 0001 00",
    "aa 00 00000000 00000001 00 00",
    "8a 00 0000000000000000 00000001 00 00",
    "41 00 00000000 00 0001 00",
    "93 00 0000000000000000 00000001 00 00",
]


@pytest.mark.parametrize("cdb", [*WRITES, "2a 00 ffffffff 00 0001 00", "2a 00 00000000 00 0000 00"])
def test_write_to_a_protected_unit_is_refused_whatever_it_asks(make_unit: Callable, cdb: str) -> None:
    unit = make_unit(readonly=True)
    assert unit.refusal(cdb).reason is Reason.WRITE_PROTECTED
    assert unit.memory.calls == []


def test_unmap_is_no_command_of_a_protected_unit(make_unit: Callable) -> None:
    error = make_unit(readonly=True).refusal("42 00 00000000 00 0018 00")
    assert error.reason is Reason.INVALID_COMMAND_OPERATION_CODE


def test_reserved_bits_come_before_write_protection(make_unit: Callable) -> None:
    assert make_unit(readonly=True).refusal("2a e0").reason is Reason.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("cdb", ["28 00 00000000 00 0001 00", "2f 00 00000000 00 0001 00", "35 00", "00"])
def test_what_does_not_write_works_on_a_protected_unit(make_unit: Callable, cdb: str) -> None:
    make_unit(readonly=True).run(cdb)


# -- what mode pages switch -------------------------------------------------------------------------------------------


def test_software_write_protection_refuses_every_write_until_it_is_lifted(unit) -> None:
    unit.lu.mode_state = ModeState(wce=True, swp=True)
    for cdb in [*WRITES, "42 00 00000000 00 0018 00"]:
        assert unit.refusal(cdb, bytes(512)).reason is Reason.WRITE_PROTECTED
    assert isinstance(unit.plan("28 00 00000000 00 0001 00"), Read)
    unit.lu.mode_state = ModeState(wce=True)
    assert isinstance(unit.plan(WRITES[1]), Write)


def test_protected_medium_stays_protected_whatever_swp_says(make_unit: Callable) -> None:
    unit = make_unit(readonly=True)
    unit.lu.mode_state = ModeState(swp=False)
    assert unit.refusal(WRITES[1]).reason is Reason.WRITE_PROTECTED


@pytest.mark.parametrize("cdb", WRITES[:4])
def test_write_is_forced_without_a_write_cache(unit, cdb: str) -> None:
    assert not unit.plan(cdb).fua
    unit.lu.mode_state = ModeState(wce=False)
    assert unit.plan(cdb).fua
    unit.lu.mode_state = unit.lu.default_mode_state
    assert not unit.plan(cdb).fua


@pytest.mark.parametrize(
    ("cdb", "data"),
    [
        (WRITES[4], bytes(512)),
        (WRITES[5], b"x" * 512),
        ("42 00 00000000 00 0018 00", bytes.fromhex("0016 0010 00000000 0000000000000000 00000001 00000000")),
    ],
)
def test_other_writes_are_flushed_without_a_write_cache(unit, cdb: str, data: bytes) -> None:
    unit.run(cdb, data)
    assert ("flush",) not in unit.memory.calls
    unit.lu.mode_state = ModeState(wce=False)
    unit.run(cdb, data)
    assert unit.memory.calls[-1] == ("flush",) and len(unit.memory.calls) > 2


@pytest.mark.parametrize("cdb", ["2a 00 00000000 00 0000 00", "42 00 00000000 00 0000 00"])
def test_write_of_nothing_flushes_nothing_without_a_write_cache(unit, cdb: str) -> None:
    unit.lu.mode_state = ModeState(wce=False)
    assert unit.plan(cdb) is DONE


def test_nothing_is_forced_where_nothing_is_volatile(make_unit: Callable) -> None:
    unit = make_unit(lacks=("flush",))
    assert unit.lu.mode_state == ModeState(wce=False)
    assert not unit.plan(WRITES[1]).fua


# -- the hot path -----------------------------------------------------------------------------------------------------


def test_read_and_write_are_planned_without_touching_the_device(unit) -> None:
    read, write = unit.plan("28 00 00000002 00 0003 00"), unit.plan("2a 00 00000002 00 0003 00")
    assert isinstance(read, Read) and (read.offset, read.length) == (1024, 1536)
    assert isinstance(write, Write) and (write.offset, write.length, write.fua) == (1024, 1536, False)
    assert unit.memory.calls == []


def test_limits_are_sane_for_the_page_that_tells_them() -> None:
    assert MAX_UNMAP_BLOCKS <= 1024 * 1024  # what libiscsi's Inquiry.BlockLimits calls sane


# -- reservations ----------------------------------------------------------------------------------------------------

HOLDER = NexusId("iqn.2026-11.org.example:other", 2, "iqn.2026-11.org.iscsid:disk0", 1)


def _reserved(unit, holder: NexusId):
    """Let ``holder`` have an SPC-2 reservation, as the worker learns of it."""
    unit.lu.state = SharedState(reserve(EMPTY, holder).state)
    unit.nexus.restricted = unit.lu.restricts(unit.nexus.id)
    return unit


def test_reservation_of_another_nexus_stops_what_it_forbids(unit) -> None:
    _reserved(unit, HOLDER)
    assert unit.refusal("28 00 00000000 00 0001 00").reason is Status.RESERVATION_CONFLICT
    assert unit.run("12 00 00 0024 00")


def test_reservation_of_another_nexus_leaves_unknown_commands_unknown(unit) -> None:
    _reserved(unit, HOLDER)
    assert unit.refusal("ff 00").reason is Reason.INVALID_COMMAND_OPERATION_CODE


def test_own_reservation_stops_nothing(unit) -> None:
    _reserved(unit, unit.nexus.id)
    assert not unit.nexus.restricted
    assert isinstance(unit.plan("28 00 00000000 00 0001 00"), Read)


def test_attention_comes_before_the_conflict(unit) -> None:
    _reserved(unit, HOLDER)
    unit.nexus.attentions = [Reason.MODE_PARAMETERS_CHANGED]
    assert unit.refusal("28 00 00000000 00 0001 00").reason is Reason.MODE_PARAMETERS_CHANGED


WRITING = [command for command in COMMANDS if command.writes]


@pytest.mark.parametrize("command", WRITING, ids=lambda command: command.name)
def test_command_that_writes_is_refused_on_a_protected_unit(make_unit: Callable, command: Command) -> None:
    unit = make_unit(lacks=["flush"], threading=Threading.PARALLEL)  # over memory, which alone has all of them
    unit.lu.mode_state = ModeState(wce=True, swp=True)
    cdb = bytearray(len(command.usage))
    cdb[:2] = command.opcode, command.service_action or 0
    assert unit.refusal(cdb.hex()).reason is Reason.WRITE_PROTECTED
    assert unit.memory.calls == []


def test_table_knows_which_commands_write() -> None:
    assert {command.name for command in WRITING} == {
        *("WRITE_6", "WRITE_10", "WRITE_12", "WRITE_16", "WRITE_ATOMIC_16", "COMPARE_AND_WRITE", "ORWRITE_16"),
        *("WRITE_AND_VERIFY_10", "WRITE_AND_VERIFY_12", "WRITE_AND_VERIFY_16", "WRITE_SAME_10", "WRITE_SAME_16"),
        *("UNMAP", "SANITIZE_OVERWRITE", "SANITIZE_BLOCK_ERASE"),
    }
