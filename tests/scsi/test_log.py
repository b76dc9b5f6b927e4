"""LOG SENSE: every page byte by byte, and that a unit without figures has none of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from iscsid.block.device import Space
from iscsid.block.guard import Guarded
from iscsid.errors import BlockError, Fault, ScsiError
from iscsid.scsi.commands import Feature
from iscsid.scsi.log import Figures
from iscsid.scsi.lu import LogicalUnit, _threshold_exponent
from iscsid.scsi.sense import Reason

FIGURES = Figures(
    read_bytes=0x123456789A,
    written_bytes=0x2000,
    read_errors=3,
    write_errors=1,
    read_commands=0x99,
    write_commands=0x55,
)
MOST = "ffffffffffffffff"


@pytest.fixture
def logged(unit):
    """The unit with figures; a test may replace ``unit.told``."""
    unit.told = FIGURES
    unit.lu = LogicalUnit(unit.lu.device, unit.lu.identity, figures=lambda: unit.told)
    return unit


def sense(code: int, *, subpage: int = 0, control: int = 1, pointer: int = 0, length: int = 0xFFFF, flags: int = 0):
    return f"4d {flags:02x} {control << 6 | code:02x} {subpage:02x} 00 {pointer:04x} {length:04x} 00"


# -- which pages there are: SPC-4 7.3.18, 7.3.19 ----------------------------------------------------------------------


def test_supported_pages_byte_by_byte(logged) -> None:
    assert logged.run(sense(0x00)) == bytes.fromhex(
        "00"  # DS 0, SPF 0, PAGE CODE
        "00"  # SUBPAGE CODE
        "0004"  # PAGE LENGTH
        "00 02 03 19"
    )


def test_supported_pages_and_subpages_byte_by_byte(logged) -> None:
    assert logged.run(sense(0x00, subpage=0xFF)) == bytes.fromhex(
        "40"  # DS 0, SPF 1, PAGE CODE
        "ff"  # SUBPAGE CODE
        "000a"  # PAGE LENGTH
        "00 00  00 ff  02 00  03 00  19 00"
    )


@pytest.mark.parametrize("control", range(4))
def test_list_of_pages_is_the_same_for_every_page_control(logged, control: int) -> None:
    assert logged.run(sense(0x00, control=control)) == bytes.fromhex("00 00 0004 00 02 03 19")


@pytest.mark.parametrize("code", [code for code in range(0x40) if code not in (0, 0x02, 0x03, 0x19)])
def test_page_that_is_not_there_is_refused(logged, code: int) -> None:
    error = logged.refusal(sense(code))
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, 2, 5)


@pytest.mark.parametrize(("code", "subpage"), [(0x00, 0x01), (0x00, 0xFE), (0x02, 0x01), (0x03, 0xFF)])
def test_subpage_that_is_not_there_is_refused(logged, code: int, subpage: int) -> None:
    error = logged.refusal(sense(code, subpage=subpage))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 3)


# -- error counters: SPC-4 7.3.14, 7.3.23 -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "total_bytes", "errors"),
    [(0x02, "0000000000002000", "0000000000000001"), (0x03, "000000123456789a", "0000000000000003")],
)
def test_error_counters_byte_by_byte(logged, code: int, total_bytes: str, errors: str) -> None:
    data = logged.run(sense(code))
    assert data[:4] == bytes.fromhex(f"{0x80 | code:02x} 00 0018")  # DS 1, SPF 0, PAGE CODE; SUBPAGE CODE; PAGE LENGTH
    # PARAMETER CODE; DU 0, TSD 1, ETC 0, TMC 00b, FORMAT AND LINKING 00b (bounded data counter); PARAMETER LENGTH
    assert data[4:16] == bytes.fromhex("0005 20 08" + total_bytes)  # total bytes processed
    assert data[16:] == bytes.fromhex("0006 20 08" + errors)  # total uncorrected errors


@pytest.mark.parametrize("code", [0x02, 0x03])
@pytest.mark.parametrize(("control", "value"), [(0, MOST), (2, MOST), (3, "0000000000000000")])
def test_thresholds_are_never_reached_and_counts_begin_at_zero(logged, code: int, control: int, value: str) -> None:
    data = logged.run(sense(code, control=control))
    assert data[8:16] == data[20:28] == bytes.fromhex(value)


def test_figures_are_asked_for_each_time(logged) -> None:
    before = logged.run(sense(0x03))
    logged.told = Figures(read_bytes=5)
    assert logged.run(sense(0x03)) != before
    assert logged.run(sense(0x03))[8:16] == (5).to_bytes(8, "big")


def test_counter_stays_at_its_largest_value(logged) -> None:
    logged.told = Figures(read_bytes=1 << 65)
    assert logged.run(sense(0x03))[8:16] == bytes.fromhex(MOST)


# -- general statistics and performance: SPC-4 7.3.8 ------------------------------------------------------------------


@pytest.mark.parametrize("control", range(4))
def test_general_statistics_byte_by_byte(logged, control: int) -> None:
    assert logged.run(sense(0x19, control=control)) == bytes.fromhex(
        "99 00 005c"  # DS 1, PAGE CODE; SUBPAGE CODE; PAGE LENGTH
        "0001 23 40"  # TSD 1, FORMAT AND LINKING 11b (binary list); PARAMETER LENGTH
        "0000000000000099"  # number of read commands
        "0000000000000055"  # number of write commands
        "0000000000000010"  # number of logical blocks received
        "00000000091a2b3c"  # number of logical blocks transmitted
    ) + bytes(32) + bytes.fromhex(  # processing intervals and weights: not measured
        "0002 23 08 0000000000000000"  # idle time intervals
        "0003 23 08 00000000 00000000"  # time interval: EXPONENT, INTEGER
    )


# -- logical block provisioning: SBC-3 6.4.4 --------------------------------------------------------------------------


@pytest.fixture
def metered(logged):
    """A unit whose device tells ``logged.space``, or raises it."""

    class Metered(type(logged.memory)):
        def space(self) -> Space:
            if isinstance(logged.space, Exception):
                raise logged.space
            return logged.space

    memory = Metered(1 << 20, 512, (), {"discard_zeroes": True})
    logged.lu = LogicalUnit(Guarded(memory), logged.lu.identity, figures=lambda: logged.told)
    logged.space = Space(used=(5 << 20) + 1, available=(7 << 20) - 1)
    return logged


@pytest.mark.parametrize("control", range(4))
def test_resource_counts_byte_by_byte(metered, control: int) -> None:
    assert metered.run("12 01 b2 0008 00")[4] == 11  # THRESHOLD EXPONENT: sets of 2048 blocks of 512 bytes
    assert metered.run(sense(0x0C, control=control)) == bytes.fromhex(
        "8c 00 0018"  # DS 1, PAGE CODE; SUBPAGE CODE; PAGE LENGTH
        "0001 23 08 00000006 02 000000"  # available, in whole threshold sets; SCOPE 10b: not dedicated
        "0002 23 08 00000006 01 000000"  # used, also the one that has just been begun; SCOPE 01b: of this unit
    )


def test_resource_count_has_thirty_two_bits(metered) -> None:
    metered.space = Space(0, 1 << 63)
    assert metered.run(sense(0x0C))[8:12] == b"\xff" * 4


def test_page_of_a_metered_unit_is_listed(metered) -> None:
    assert metered.run(sense(0x00)) == bytes.fromhex("00 00 0005 00 02 03 0c 19")


def test_device_that_cannot_tell_just_now_fails_the_command(metered) -> None:
    metered.space = BlockError(Fault.NOT_READY)
    with pytest.raises(BlockError):
        metered.run(sense(0x0C))


def test_device_that_cannot_tell_has_no_threshold_exponent(logged) -> None:
    assert logged.run("12 01 b2 0008 00")[4] == 0


@pytest.mark.parametrize(
    ("blocks", "shift", "exponent"),
    [(1, 9, 11), (1 << 30, 9, 11), (1 << 30, 12, 8), (1, 16, 4), (1 << 43, 9, 11), ((1 << 43) + 1, 9, 12)],
)
def test_threshold_sets_are_counted_in_thirty_two_bits(blocks: int, shift: int, exponent: int) -> None:
    assert _threshold_exponent(blocks, shift) == exponent
    assert blocks >> exponent <= 1 << 32


# -- the CDB: SPC-4 6.7 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pointer", "codes"), [(0, [5, 6]), (5, [5, 6]), (6, [6])])
def test_parameters_begin_at_the_pointer(logged, pointer: int, codes: list[int]) -> None:
    data = logged.run(sense(0x02, pointer=pointer))
    assert [data[at + 1] for at in range(4, len(data), 12)] == codes
    assert int.from_bytes(data[2:4], "big") == len(data) - 4 == 12 * len(codes)


@pytest.mark.parametrize(("code", "pointer"), [(0x02, 7), (0x03, 0xFFFF), (0x00, 1)])
def test_pointer_beyond_the_last_parameter_is_refused(logged, code: int, pointer: int) -> None:
    error = logged.refusal(sense(code, pointer=pointer))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 5)


@pytest.mark.parametrize("code", [0x00, 0x02, 0x03])
@pytest.mark.parametrize("length", [0, 3, 4, 7, 28, 29])
def test_page_is_cut_to_the_allocation_length(logged, code: int, length: int) -> None:
    assert logged.run(sense(code, length=length)) == logged.run(sense(code))[:length]


@pytest.mark.parametrize(("flags", "bit"), [(0x01, 0), (0x02, 1)])
def test_sp_and_ppc_are_refused(logged, flags: int, bit: int) -> None:
    error = logged.refusal(sense(0x02, flags=flags))
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, 1, bit)


def test_unit_without_figures_has_no_log_sense(make_unit: Callable) -> None:
    unit = make_unit()
    assert Feature.LOGGED not in unit.lu.features
    assert unit.refusal(sense(0x00)).reason is Reason.INVALID_COMMAND_OPERATION_CODE
    assert "LOG_SENSE" not in [command.name for command in unit.lu.commands]


# -- what is counted --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (Reason.UNRECOVERED_READ_ERROR, (1, 0)),
        (Reason.WRITE_ERROR, (0, 1)),
        (Reason.LBA_OUT_OF_RANGE, (0, 0)),
        (Reason.SPACE_ALLOCATION_FAILED, (0, 0)),
        (Reason.MISCOMPARE_DURING_VERIFY, (0, 0)),
    ],
)
def test_errors_of_the_medium_are_counted(reason: Reason, expected: tuple[int, int]) -> None:
    figures = Figures()
    figures.count(ScsiError(reason))
    assert (figures.read_errors, figures.write_errors) == expected
