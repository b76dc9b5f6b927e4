"""MODE SELECT(6) and (10) as a function: every list that is taken, every list that is refused and where it points."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest

from iscsid.errors import ScsiError
from iscsid.scsi.mode import ModeState, pages_of
from iscsid.scsi.mode_select import UnitFacts, apply, parameter_list_length, saves
from iscsid.scsi.sense import Reason

FACTS = UnitFacts(blocks=2048, block_size=512, volatile=True)
START = ModeState(wce=True)

HEADER_6 = bytes.fromhex("00 00 00 00")  # SPC-4 7.5.5: reserved, MEDIUM TYPE, reserved, BLOCK DESCRIPTOR LENGTH
HEADER_10 = bytes.fromhex("0000 00 00 00 00 0000")
SHORT = bytes.fromhex("00000800 00 000200")
LONG = bytes.fromhex("0000000000000800 00000000 00000200")
RECOVERY = bytes.fromhex("01 0a") + bytes(10)
CACHING = bytes.fromhex("08 12 04") + bytes(17)
NO_CACHE = bytes.fromhex("08 12 00") + bytes(17)
CONTROL = bytes.fromhex("0a 0a 20 10") + bytes(8)
SWP = bytes.fromhex("0a 0a 20 10 08") + bytes(7)
D_SENSE = bytes.fromhex("0a 0a 24 10 00") + bytes(7)


FULL = UnitFacts(blocks=2048, block_size=512, volatile=True, metered=True)
THRESHOLD = bytes.fromhex("5c 02 0014" + "00" * 12 + "80 01 0000 00000100")


def with_header(key: tuple[int, int], payload: bytes) -> bytes:
    code, subpage = key
    return bytes((0x40 | code, subpage, 0, len(payload)) if subpage else (code, len(payload))) + payload


def select_6(data: bytes, flags: int = 0x10) -> bytes:
    return bytes((0x15, flags, 0, 0, len(data), 0)).ljust(16, b"\0")


def select_10(data: bytes, flags: int = 0x10) -> bytes:
    return (bytes((0x55, flags, 0, 0, 0, 0, 0)) + len(data).to_bytes(2, "big")).ljust(16, b"\0")


def selected(pages: bytes, state: ModeState = START, facts: UnitFacts = FACTS) -> ModeState:
    """Select ``pages`` by both commands, which must agree."""
    short, long = HEADER_6 + pages, HEADER_10 + pages
    after = apply(state, select_6(short), short, facts)
    assert apply(state, select_10(long), memoryview(long), facts) == after
    return after


def refused(cdb: bytes, data: bytes, facts: UnitFacts = FACTS) -> ScsiError:
    with pytest.raises(ScsiError) as caught:
        apply(START, cdb, data, facts)
    return caught.value


def refused_pages(pages: bytes, facts: UnitFacts = FACTS) -> tuple:
    """Return reason, pointer relative to the first page, and bit; both commands must agree."""
    short = refused(select_6(HEADER_6 + pages), HEADER_6 + pages, facts)
    long = refused(select_10(HEADER_10 + pages), HEADER_10 + pages, facts)
    assert (short.reason, short.bit, short.in_data) == (long.reason, long.bit, long.in_data)
    if short.field is None or long.field is None:
        return short.reason, None, short.bit
    assert short.in_data and short.field - 4 == long.field - 8
    return short.reason, short.field - 4, short.bit


# -- what can be changed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pages", "after"),
    [
        (NO_CACHE, ModeState(wce=False)),
        (CACHING, ModeState(wce=True)),
        (SWP, ModeState(wce=True, swp=True)),
        (D_SENSE, ModeState(wce=True, d_sense=True)),
        (CONTROL, START),
        (NO_CACHE + SWP, ModeState(swp=True)),
        (SWP + CONTROL, START),  # the last one counts
        (RECOVERY + NO_CACHE, ModeState()),
        (b"", START),  # a header alone
    ],
)
def test_pages_make_the_state_that_they_show(pages: bytes, after: ModeState) -> None:
    assert selected(pages) == after


@pytest.mark.parametrize("before", [ModeState(*bits) for bits in itertools.product((False, True), repeat=5)][::5])
@pytest.mark.parametrize("after", [ModeState(*bits) for bits in itertools.product((False, True), repeat=5)][::3])
def test_what_mode_sense_writes_mode_select_reads(before: ModeState, after: ModeState) -> None:
    after = dataclasses.replace(after, threshold_count=0x12345678)
    pages = b"".join(with_header(key, page.payload(after)) for key, page in pages_of(FULL).items())
    assert selected(pages, before, FULL) == after


def test_threshold_is_set_where_there_is_one() -> None:
    after = selected(THRESHOLD + bytes.fromhex("01 0a 00 00 00 00 00 80 00 00 00 00"), START, FULL)
    assert after == dataclasses.replace(START, lbpere=True, threshold_enabled=True, threshold_count=0x100)
    assert refused_pages(THRESHOLD) == (Reason.INVALID_FIELD_IN_PARAMETER_LIST, 1, None)


def test_state_of_another_device_does_not_stand_in_the_way() -> None:
    facts = dataclasses.replace(FACTS, volatile=False)
    assert selected(NO_CACHE, ModeState(wce=True, lbpere=True), facts) == ModeState()


def test_page_leaves_alone_what_it_does_not_show() -> None:
    state = ModeState(wce=True, swp=True, d_sense=True)
    assert selected(NO_CACHE, state) == dataclasses.replace(state, wce=False)
    assert selected(CONTROL, state) == ModeState(wce=True)


def test_answer_of_mode_sense_can_be_sent_back_as_it_is(unit) -> None:
    facts = UnitFacts.of(unit.lu)
    short = unit.run("1a 00 3f 00 ff 00")
    assert apply(START, select_6(short), short, facts) == START
    for llbaa in ("00", "10"):
        long = unit.run(f"5a {llbaa} 3f 00 000000 ffff 00")
        assert apply(START, select_10(long), long, facts) == START


def test_ps_is_reserved_and_not_looked_at() -> None:
    assert selected(bytes((0x88,)) + NO_CACHE[1:]) == ModeState()


def test_data_beyond_the_list_is_not_looked_at() -> None:
    data = HEADER_6 + SWP
    assert apply(START, select_6(data), data + b"\xff" * 9, FACTS) == ModeState(wce=True, swp=True)


@pytest.mark.parametrize("flags", [0x00, 0x10])
def test_empty_list_is_no_error(flags: int) -> None:
    assert apply(START, select_6(b"", flags), b"", FACTS) == apply(START, select_10(b"", flags), b"", FACTS) == START


def test_facts_are_those_of_the_unit(make_unit: Callable) -> None:
    lu = make_unit(64, 4096, lacks=("flush",)).lu
    assert UnitFacts.of(lu) == UnitFacts(64, 4096, volatile=False, saving=False)
    lu.saved_mode_state = ModeState()
    assert UnitFacts.of(lu).saving


# -- block descriptors: SBC-3 6.5.2 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", ["00000800", "00000000", "ffffffff"])
def test_short_descriptor_that_keeps_the_capacity_is_taken(blocks: str) -> None:
    descriptor = bytes.fromhex(blocks + "00 000200")
    short = bytes.fromhex("00 00 00 08") + descriptor + SWP
    long = bytes.fromhex("0000 00 00 00 00 0008") + descriptor + SWP
    assert apply(START, select_6(short), short, FACTS).swp and apply(START, select_10(long), long, FACTS).swp


@pytest.mark.parametrize("blocks", ["0000000000000800", "0000000000000000", "ffffffffffffffff"])
def test_long_descriptor_that_keeps_the_capacity_is_taken(blocks: str) -> None:
    data = bytes.fromhex("0000 00 00 01 00 0010" + blocks + "00000000 00000200") + SWP
    assert apply(START, select_10(data), data, FACTS).swp


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ("00 00 00 08 00000801 00 000200", 4),  # another number of blocks
        ("00 00 00 08 00000800 00 001000", 9),  # another block length
        ("00 00 00 08 00000800 00 000000", 9),
        ("00 00 00 10 00000800 00 000200 00000800 00 000200", 3),  # two descriptors
        ("00 00 00 07 00000800 00 0002", 3),
        ("00 05 00 00", 1),  # MEDIUM TYPE
    ],
)
def test_header_or_descriptor_of_mode_select_6_is_pointed_at(data: str, field: int) -> None:
    error = refused(select_6(bytes.fromhex(data)), bytes.fromhex(data))
    assert (error.reason, error.field, error.in_data) == (Reason.INVALID_FIELD_IN_PARAMETER_LIST, field, True)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ("0000 00 00 00 00 0008 00000801 00 000200", 8),
        ("0000 00 00 00 00 0008 00000800 00 001000", 13),
        ("0000 00 00 01 00 0010 0000000000000900 00000000 00000200", 8),
        ("0000 00 00 01 00 0010 0000000000000800 00000000 00001000", 20),
        ("0000 00 00 00 00 0010 0000000000000800 00000000 00000200", 6),  # a long one without LONGLBA
        ("0000 00 00 01 00 0008 00000800 00 000200", 6),  # a short one with it
        ("0000 05 00 00 00 0000", 2),
    ],
)
def test_header_or_descriptor_of_mode_select_10_is_pointed_at(data: str, field: int) -> None:
    error = refused(select_10(bytes.fromhex(data)), bytes.fromhex(data))
    assert (error.reason, error.field, error.in_data) == (Reason.INVALID_FIELD_IN_PARAMETER_LIST, field, True)


# -- pages that are refused -------------------------------------------------------------------------------------------

INVALID, LENGTH = Reason.INVALID_FIELD_IN_PARAMETER_LIST, Reason.PARAMETER_LIST_LENGTH_ERROR


@pytest.mark.parametrize(
    ("pages", "field", "bit"),
    [
        ("08 12 01" + "00" * 17, 2, 0),  # RCD
        ("08 12 84" + "00" * 17, 2, 7),  # IC
        ("08 12 04 00 0001" + "00" * 14, 5, 0),  # DISABLE PREFETCH TRANSFER LENGTH
        ("0a 0a 00 10" + "00" * 8, 2, 5),  # TST stays 001b
        ("0a 0a 60 10" + "00" * 8, 2, 6),
        ("0a 0a 20 00" + "00" * 8, 3, 4),  # QUEUE ALGORITHM MODIFIER
        ("0a 0a 20 12" + "00" * 8, 3, 1),  # QERR stays 00b
        ("0a 0a 20 10 30" + "00" * 7, 4, 5),  # UA_INTLCK_CTRL
        ("0a 0a 20 10 00 40" + "00" * 6, 5, 6),  # TAS
        ("0a 0a 22 10" + "00" * 8, 2, 1),  # GLTSD
        ("1c 0a 00" + "00" * 9, 2, 3),  # DEXCPT
        ("01 0a 80" + "00" * 9, 2, 7),  # AWRE
        ("02 0e 01" + "00" * 13, 2, 0),
        ("08 0a 04" + "00" * 9, 1, None),  # PAGE LENGTH
        ("0a 0c 20 10" + "00" * 10, 1, None),
        ("11 0a" + "00" * 10, 0, 5),  # no such page
        ("3f 0a" + "00" * 10, 0, 5),
        ("4a 02 0000" + "00" * 8, 1, None),  # SPF: no such subpage
        ("4a 00 0000" + "00" * 8, 1, None),
        ("48 01 0000" + "00" * 8, 1, None),
        ("4a 01 001b 01" + "00" * 26, 2, None),  # PAGE LENGTH
        ("4a 01 001c 00" + "00" * 27, 4, 0),  # IALUAE
        ("5c 02 0014" + "00" * 12 + "00 01 0000 00000000", 1, None),  # without what tells how full the medium is
        ("08 12 00" + "00" * 17 + "0a 0a 00 10" + "00" * 8, 22, 5),  # the second page, after one that is right
    ],
)
def test_what_cannot_be_changed_is_pointed_at(pages: str, field: int, bit: int | None) -> None:
    assert refused_pages(bytes.fromhex(pages)) == (INVALID, field, bit)


@pytest.mark.parametrize("key", sorted(pages_of(FULL)))
def test_every_bit_that_is_not_changeable_is_refused(key: tuple[int, int]) -> None:
    page = pages_of(FULL)[key]
    present, mask = page.payload(START), page.changeable(FULL)
    head = 4 if key[1] else 2
    for byte, bit in itertools.product(range(len(present)), range(8)):
        wanted = bytearray(present)
        wanted[byte] ^= 1 << bit
        pages = with_header(key, bytes(wanted))
        if mask[byte] >> bit & 1:
            assert selected(pages, START, FULL) != START
        else:
            assert refused_pages(pages, FULL) == (INVALID, head + byte, bit)


def test_wce_cannot_be_set_where_there_is_no_cache() -> None:
    facts = dataclasses.replace(FACTS, volatile=False)
    assert apply(ModeState(), select_6(HEADER_6 + NO_CACHE), HEADER_6 + NO_CACHE, facts) == ModeState()
    with pytest.raises(ScsiError) as caught:
        apply(ModeState(), select_6(HEADER_6 + CACHING), HEADER_6 + CACHING, facts)
    assert (caught.value.reason, caught.value.field, caught.value.bit) == (INVALID, 6, 2)


@pytest.mark.parametrize("cut", range(1, len(NO_CACHE)))
def test_list_that_ends_within_a_page_is_refused(cut: int) -> None:
    assert refused_pages(SWP + NO_CACHE[:cut]) == (LENGTH, None, None)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_list_that_ends_within_the_header_is_refused(cut: int) -> None:
    assert refused(select_6(HEADER_6[:cut]), HEADER_6[:cut]).reason is LENGTH
    assert refused(select_10(HEADER_10[: cut + 4]), HEADER_10[: cut + 4]).reason is LENGTH


def test_list_that_ends_within_a_descriptor_is_refused() -> None:
    short, long = bytes.fromhex("00 00 00 08") + SHORT[:7], bytes.fromhex("0000 00 00 01 00 0010") + LONG[:15]
    assert refused(select_6(short), short).reason is LENGTH
    assert refused(select_10(long), long).reason is LENGTH


def test_less_data_than_the_cdb_tells_of_is_refused() -> None:
    data = HEADER_6 + SWP
    assert refused(select_6(data), data[:-1]).reason is LENGTH


# -- the CDB ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [select_6, select_10])
def test_saving_is_refused_where_nothing_can_be_saved(build: Callable[[bytes, int], bytes]) -> None:
    header = HEADER_6 if build is select_6 else HEADER_10
    for data in (b"", header + SWP):
        error = refused(build(data, 0x11), data)
        assert (error.reason, error.field, error.bit, error.in_data) == (Reason.INVALID_FIELD_IN_CDB, 1, 0, False)
    facts = dataclasses.replace(FACTS, saving=True)
    assert apply(START, build(header + SWP, 0x11), header + SWP, facts).swp


@pytest.mark.parametrize(("build", "header"), [(select_6, HEADER_6), (select_10, HEADER_10)])
def test_list_without_page_format_is_refused(build: Callable[[bytes, int], bytes], header: bytes) -> None:
    error = refused(build(header + SWP, 0x00), header + SWP)
    assert (error.reason, error.field, error.bit, error.in_data) == (Reason.INVALID_FIELD_IN_CDB, 1, 4, False)


def test_length_and_sp_are_read_from_either_cdb() -> None:
    assert parameter_list_length(select_6(bytes(24))) == parameter_list_length(select_10(bytes(24))) == 24
    assert parameter_list_length(select_10(bytes(0x1234))) == 0x1234
    assert [saves(select_6(b"", flags)) for flags in (0x10, 0x11)] == [False, True]
