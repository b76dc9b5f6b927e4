"""MODE SENSE(6) and (10): headers, block descriptors and pages, byte by byte."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable

import pytest

from iscsid.block.device import Space
from iscsid.block.guard import Guarded
from iscsid.scsi.lu import LogicalUnit
from iscsid.scsi.mode import ModeState, fitted, pages_of
from iscsid.scsi.mode_select import UnitFacts
from iscsid.scsi.sense import Reason

RECOVERY = bytes.fromhex("01 0a") + bytes(10)  # SBC-3 6.5.8
DISCONNECT = bytes.fromhex("02 0e") + bytes(14)  # SPC-4 7.5.9
CACHING = bytes.fromhex("08 12 04") + bytes(17)  # SBC-3 6.5.5: WCE 1, RCD 0
CACHING_NOT_VOLATILE = bytes.fromhex("08 12 00") + bytes(17)
CONTROL = bytes.fromhex("0a 0a 20 10") + bytes(8)  # SPC-4 7.5.8: TST 001b, D_SENSE 0; QUEUE ALGORITHM MODIFIER 1h
EXCEPTIONS = bytes.fromhex("1c 0a 08") + bytes(9)  # SPC-4 7.5.11: DEXCPT
EXTENSION = bytes.fromhex("4a 01 001c 01") + bytes(27)  # SPC-4 7.5.9: TCMOS 0, SCSIP 0, IALUAE 1
ALL = RECOVERY + DISCONNECT + CACHING + CONTROL + EXCEPTIONS
ALL_WITH_SUBPAGES = RECOVERY + DISCONNECT + CACHING + CONTROL + EXTENSION + EXCEPTIONS
PLAIN_FACTS = UnitFacts(2048, 512, volatile=True)
CODES = sorted({code for code, _ in pages_of(PLAIN_FACTS)})
SHORT = bytes.fromhex("00000800 00 000200")  # 2048 blocks of 512 bytes (SBC-3 6.5.2.2)
LONG = bytes.fromhex("0000000000000800 00000000 00000200")  # SBC-3 6.5.2.3


def sense_6(code: int, *, flags: int = 0, subpage: int = 0, length: int = 0xFF) -> str:
    return f"1a {flags:02x} {code:02x} {subpage:02x} {length:02x} 00"


def sense_10(code: int, *, flags: int = 0, subpage: int = 0, length: int = 0xFFFF) -> str:
    return f"5a {flags:02x} {code:02x} {subpage:02x} 000000 {length:04x} 00"


# -- headers and block descriptors ------------------------------------------------------------------------------------


def test_mode_sense_6_of_all_pages_byte_by_byte(unit) -> None:
    header = bytes.fromhex("53 00 10 08")  # length without itself, medium type, DPOFUA, block descriptor length
    assert unit.run(sense_6(0x3F)) == header + SHORT + ALL
    assert 3 + 8 + len(ALL) == 0x53


def test_mode_sense_10_of_all_pages_byte_by_byte(unit) -> None:
    header = bytes.fromhex("0056 00 10 00 00 0008")  # LONGLBA 0
    assert unit.run(sense_10(0x3F)) == header + SHORT + ALL


def test_mode_sense_10_with_llbaa_has_a_long_descriptor(unit) -> None:
    header = bytes.fromhex("005e 00 10 01 00 0010")  # LONGLBA 1
    assert unit.run(sense_10(0x3F, flags=0x10)) == header + LONG + ALL


def test_dbd_leaves_out_the_block_descriptor(unit) -> None:
    assert unit.run(sense_6(0x08, flags=0x08)) == bytes.fromhex("17 00 10 00") + CACHING
    expected = bytes.fromhex("001a 00 10 00 00 0000") + CACHING
    assert unit.run(sense_10(0x08, flags=0x08)) == expected
    assert unit.run(sense_10(0x08, flags=0x18)) == expected  # LLBAA asks for nothing then


def test_mode_sense_6_knows_no_llbaa(unit) -> None:
    error = unit.refusal(sense_6(0x08, flags=0x10))
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, 1, 4)


def test_more_blocks_than_the_short_descriptor_can_tell(unit) -> None:
    unit.lu.blocks = 1 << 33
    assert unit.run(sense_6(0x08))[4:12] == bytes.fromhex("ffffffff 00000200")
    assert unit.run(sense_10(0x08, flags=0x10))[8:24] == bytes.fromhex("0000000200000000 00000000 00000200")


def test_block_length_of_the_unit_is_told(make_unit: Callable) -> None:
    assert make_unit(16, 4096).run(sense_6(0x08))[4:12] == bytes.fromhex("00000010 00001000")


@pytest.mark.parametrize("readonly", [False, True])
def test_wp_tells_of_write_protection(make_unit: Callable, readonly: bool) -> None:
    unit = make_unit(readonly=readonly)
    expected = 0x90 if readonly else 0x10  # SBC-3 6.5.1: WP, DPOFUA
    assert unit.run(sense_6(0x3F))[2] == unit.run(sense_10(0x3F))[3] == expected


@pytest.mark.parametrize("length", [0, 1, 4, 12, 83, 84, 85, 255])
def test_mode_sense_is_cut_to_the_allocation_length(unit, length: int) -> None:
    assert unit.run(sense_6(0x3F, length=length)) == unit.run(sense_6(0x3F))[:length]
    assert unit.run(sense_10(0x3F, length=length)) == unit.run(sense_10(0x3F))[:length]


# -- pages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ((0x01, 0x00), RECOVERY),
        ((0x02, 0x00), DISCONNECT),
        ((0x08, 0x00), CACHING),
        ((0x0A, 0x00), CONTROL),
        ((0x1C, 0x00), EXCEPTIONS),
        ((0x01, 0xFF), RECOVERY),
        ((0x0A, 0x01), EXTENSION),
        ((0x0A, 0xFF), CONTROL + EXTENSION),
        ((0x1C, 0xFF), EXCEPTIONS),
    ],
)
def test_one_page_alone(unit, key: tuple[int, int], expected: bytes) -> None:
    code, subpage = key
    assert unit.run(sense_6(code, subpage=subpage))[12:] == expected
    assert unit.run(sense_10(code, subpage=subpage))[16:] == expected


def test_all_pages_are_those_of_the_table(unit) -> None:
    assert unit.run(sense_6(0x3F, subpage=0xFF))[12:] == ALL_WITH_SUBPAGES
    assert [key for key, _ in split(ALL_WITH_SUBPAGES)] == sorted(pages_of(PLAIN_FACTS))


def split(pages: bytes) -> list[tuple[tuple[int, int], bytes]]:
    found, at = [], 0
    while at < len(pages):
        spf = pages[at] & 0x40
        head = 4 if spf else 2
        size = int.from_bytes(pages[at + head // 2 : at + head], "big")
        found.append(((pages[at] & 0x3F, pages[at + 1] if spf else 0), pages[at + head : at + head + size]))
        at += head + size
    return found


# Whoever believes a WCE of 0 sends no flush, so it must be the truth about what a power failure takes.
@pytest.mark.parametrize(("lacks", "expected"), [((), CACHING), (("flush",), CACHING_NOT_VOLATILE)])
def test_wce_is_set_exactly_where_a_flush_is_needed(make_unit: Callable, lacks: tuple, expected: bytes) -> None:
    assert make_unit(lacks=lacks).run(sense_6(0x08))[12:] == expected


# -- the state of the mode pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "caching", "control", "device_specific"),
    [
        (ModeState(), "00", "20 10 00", "10"),
        (ModeState(wce=True), "04", "20 10 00", "10"),
        (ModeState(d_sense=True), "00", "24 10 00", "10"),  # byte 2 bit 2
        (ModeState(swp=True), "00", "20 10 08", "90"),  # byte 4 bit 3; WP, SBC-3 6.5.1
        (ModeState(True, True, True), "04", "24 10 08", "90"),
    ],
)
def test_current_values_are_those_of_the_state(
    unit, state: ModeState, caching: str, control: str, device_specific: str
) -> None:
    unit.lu.mode_state = state
    assert unit.run(sense_6(0x08))[12:] == bytes.fromhex("08 12" + caching) + bytes(17)
    assert unit.run(sense_10(0x0A))[16:] == bytes.fromhex("0a 0a" + control) + bytes(7)
    assert unit.run(sense_6(0x0A))[2] == unit.run(sense_10(0x0A))[3] == int(device_specific, 16)


def test_default_values_stay_when_the_current_ones_change(unit) -> None:
    before = unit.run(sense_6(0xBF))[12:]
    unit.lu.mode_state = ModeState(wce=False, d_sense=True)
    assert unit.run(sense_6(0xBF))[12:] == before == ALL
    assert unit.run(sense_6(0x3F))[12:] != before


@pytest.mark.parametrize(("lacks", "wce"), [((), "04"), (("flush",), "00")])
def test_changeable_bits_are_told_where_there_is_mode_select(make_unit: Callable, lacks: tuple, wce: str) -> None:
    unit = make_unit(lacks=lacks)
    assert unit.run(sense_6(0x48))[12:] == bytes.fromhex("08 12" + wce) + bytes(17)
    assert unit.run(sense_6(0x4A))[12:] == bytes.fromhex("0a 0a 04 00 08") + bytes(7)  # D_SENSE, SWP
    for code in (0x01, 0x02, 0x1C):
        assert not any(unit.run(sense_6(0x40 | code))[14:])


def test_saved_values_are_told_where_they_can_be_saved(unit) -> None:
    unit.lu.saved_mode_state = ModeState(swp=True)
    assert unit.run(sense_6(0xC8))[12:] == bytes.fromhex("88 12 00") + bytes(17)  # PS 1
    assert unit.run(sense_6(0xCA))[12:] == bytes.fromhex("8a 0a 20 10 08") + bytes(7)
    assert unit.run(sense_6(0xC1))[12:] == RECOVERY  # PS 0: nothing of it can be changed
    assert unit.run(sense_6(0x08))[12:] == bytes.fromhex("88 12 04") + bytes(17)


@pytest.mark.parametrize("state", [ModeState(*bits) for bits in itertools.product((False, True), repeat=5)])
def test_state_survives_being_written_as_json(state: ModeState) -> None:
    assert ModeState.from_plain(json.loads(json.dumps(state.to_plain()))) == state
    counted = dataclasses.replace(state, threshold_count=0xFFFFFFFF)
    assert ModeState.from_plain(json.loads(json.dumps(counted.to_plain()))) == counted


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"wce": True},
        {**ModeState().to_plain(), "wce": 1},
        {**ModeState().to_plain(), "tas": True},
        {**ModeState().to_plain(), "threshold_count": True},
        {**ModeState().to_plain(), "threshold_count": -1},
        {**ModeState().to_plain(), "threshold_count": 1 << 32},
    ],
)
def test_what_is_no_state_is_refused(plain: dict) -> None:
    with pytest.raises(ValueError, match="no mode state"):
        ModeState.from_plain(plain)


@pytest.mark.parametrize("code", [0x3F, *CODES])
def test_nothing_can_be_changed_where_there_is_no_mode_select(unit, code: int) -> None:
    unit.lu.commands = tuple(command for command in unit.lu.commands if "MODE_SELECT" not in command.name)
    current, changeable = unit.run(sense_6(code))[12:], unit.run(sense_6(0x40 | code))[12:]
    assert [(page, len(payload)) for page, payload in split(changeable)] == [
        (page, len(payload)) for page, payload in split(current)
    ]
    assert not any(itertools.chain.from_iterable(payload for _, payload in split(changeable)))


@pytest.mark.parametrize("code", [0x3F, *CODES])
def test_default_values_are_the_current_ones(unit, code: int) -> None:
    assert unit.run(sense_6(0x80 | code)) == unit.run(sense_6(code))


@pytest.mark.parametrize("code", [0x3F, *CODES, 0x11])
def test_saved_values_do_not_exist(unit, code: int) -> None:
    for cdb in (sense_6(0xC0 | code), sense_10(0xC0 | code)):
        assert unit.refusal(cdb).reason is Reason.SAVING_PARAMETERS_NOT_SUPPORTED  # SPC-4 6.11.5


@pytest.mark.parametrize("code", [code for code in range(0x3F) if code not in CODES])
def test_page_that_is_not_there_is_refused(unit, code: int) -> None:
    for cdb in (sense_6(code), sense_10(code, subpage=0xFF)):
        error = unit.refusal(cdb)
        assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, 2, 5)


@pytest.mark.parametrize("subpage", [0x02, 0xFE])
@pytest.mark.parametrize("code", [0x0A, 0x1C, 0x3F])
def test_subpage_that_is_not_there_is_refused(unit, code: int, subpage: int) -> None:
    error = unit.refusal(sense_10(code, subpage=subpage))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 3)


# -- how full the medium is: SBC-3 4.7.3.7 ----------------------------------------------------------------------------


@pytest.fixture
def metered(unit):
    """A unit whose device tells how full its medium is."""

    class Metered(type(unit.memory)):
        def space(self) -> Space:
            return Space(0, 1 << 30)

    memory = Metered(2048, 512, (), {"discard_zeroes": True})
    unit.lu = LogicalUnit(Guarded(memory), unit.lu.identity)
    return unit


def test_threshold_page_byte_by_byte(metered) -> None:
    metered.lu.mode_state = ModeState(lbpere=True, threshold_enabled=True, threshold_count=0x01020304)
    page = metered.run(sense_6(0x1C, subpage=0x02))[12:]
    assert (
        page
        == bytes.fromhex(
            "5c 02 0014"  # SPF 1, PAGE CODE; SUBPAGE CODE; PAGE LENGTH
            "00" + "00" * 11 + "80"  # SITUA 0; reserved; ENABLED 1, THRESHOLD TYPE 000b, THRESHOLD ARMING 000b
            "01 0000"  # THRESHOLD RESOURCE: available; reserved
            "01020304"  # THRESHOLD COUNT
        )
    )
    assert metered.run(sense_6(0x01))[12:] == bytes.fromhex("01 0a 00 00 00 00 00 80 00 00 00 00")  # LBPERE
    changeable = metered.run(sense_6(0x5C, subpage=0x02))[12:]
    assert changeable == bytes.fromhex("5c 02 0014" + "00" * 12 + "80 00 0000 ffffffff")


def test_saved_threshold_has_ps(metered) -> None:
    metered.lu.saved_mode_state = ModeState(threshold_count=7)
    page = metered.run(sense_6(0xDC, subpage=0x02))[12:]
    assert page[0] == 0xDC and page[-4:] == bytes.fromhex("00000007")


def test_state_is_fitted_to_what_the_unit_has() -> None:
    everything = ModeState(True, True, True, True, True, 9)
    assert fitted(everything, UnitFacts(1, 512, volatile=True, metered=True)) == everything
    assert fitted(everything, UnitFacts(1, 512, volatile=False, metered=True)).wce is False
    assert fitted(everything, UnitFacts(1, 512, volatile=True)) == ModeState(True, True, True)
