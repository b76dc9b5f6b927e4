"""Parameter lists of EXTENDED COPY, right and wrong; noise raises ScsiError and nothing else."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from copy_kit import b2b, cscd, lid1, lid4

from iscsid.errors import ScsiError
from iscsid.scsi.copy_list import (
    LID1_HEADER,
    LID4_HEADER,
    MAX_CSCDS,
    MAX_DESCRIPTORS_LENGTH,
    MAX_SEGMENTS,
    CopyList,
    Segment,
    pack_cscd,
    parse_lid1,
    parse_lid4,
)
from iscsid.scsi.sense import Reason


def refusal(parse: Callable[[memoryview], CopyList], data: bytes) -> ScsiError:
    with pytest.raises(ScsiError) as caught:
        parse(memoryview(data))
    return caught.value


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


@pytest.fixture
def good(unit) -> bytes:
    return lid1([cscd(unit)], [b2b(0, 0, 8, 0, 100)])


def test_headers_have_the_sizes_of_spc() -> None:
    assert (LID1_HEADER, LID4_HEADER) == (16, 48)


def test_lid1_list_byte_by_byte() -> None:
    data = bytes.fromhex(
        "05 10 0020 00000000 0000001c 00000000"  # list identifier 5, usage 10b, one CSCD, one segment
        "e4 00 0000 01 03 00 08 3111223344556677 000000000000000000000000 00000200"
        "02 02 0018 0000 ffff 0000 0010 0000000000000001 0000000000000002"
    )
    found = parse_lid1(memoryview(data))
    assert (found.list_identifier, found.remembered) == (5, True)
    assert found.cscds == (((1, 3, bytes.fromhex("3111223344556677")), 0, 512),)
    assert found.segments == (Segment(0, 0xFFFF, True, 16, 1, 2),)


def test_lid4_list_says_the_same(unit) -> None:
    arguments = ([cscd(unit)], [b2b(0, 0, 8, 0, 100), b2b(0, 0, 1, 2, 3, flags=2)])
    one, four = parse_lid1(memoryview(lid1(*arguments))), parse_lid4(memoryview(lid4(*arguments)))
    assert (one.cscds, one.segments) == (four.cscds, four.segments)
    assert four.list_identifier == 0x01020304


def test_cscd_that_is_packed_is_parsed(unit) -> None:
    assert pack_cscd((1, 3, b"12345678"), 512) == struct.pack(
        ">BBHBBBB8s12xI", 0xE4, 0, 0, 1, 3, 0, 8, b"12345678", 512
    )


@pytest.mark.parametrize("flags", [0x20, 0x40, 0x80, 0xC0])
def test_lu_id_type_and_nul_are_ignored(unit, flags: int) -> None:
    assert parse_lid1(memoryview(lid1([cscd(unit, flags=flags)], []))).cscds[0].device_type == 0


def test_usage_11b_has_no_list_identifier_and_is_not_remembered() -> None:
    assert not parse_lid1(memoryview(lid1([], [], identifier=0, usage=3))).remembered
    assert refusal(parse_lid1, lid1([], [], identifier=1, usage=3)).field == 0
    assert refusal(parse_lid4, lid4([], [], identifier=1, usage=3)).field == 20


@pytest.mark.parametrize(
    ("at", "new", "reason", "field"),
    [
        (1, "08", Reason.INVALID_FIELD_IN_PARAMETER_LIST, 1),  # LIST ID USAGE 01b is reserved
        (2, "0021", Reason.PARAMETER_LIST_LENGTH_ERROR, None),
        (2, "001f", Reason.INVALID_FIELD_IN_PARAMETER_LIST, 2),  # no whole CSCD descriptor
        (8, "ffffffff", Reason.PARAMETER_LIST_LENGTH_ERROR, None),
        (8, "0000001b", Reason.INVALID_FIELD_IN_PARAMETER_LIST, 8),  # no whole segment descriptor
        (12, "00000001", Reason.INLINE_DATA_LENGTH_EXCEEDED, 12),
        (16, "e0", Reason.UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE, 16),
        (21, "13", Reason.INVALID_FIELD_IN_PARAMETER_LIST, 21),  # ASSOCIATION: a port
        (23, "00", Reason.INVALID_FIELD_IN_PARAMETER_LIST, 23),
        (23, "15", Reason.INVALID_FIELD_IN_PARAMETER_LIST, 23),  # DESIGNATOR LENGTH: more than there is room for
        (48, "03", Reason.UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE, 48),
        (50, "0019", Reason.INVALID_FIELD_IN_PARAMETER_LIST, 50),
    ],
)
def test_wrong_field_of_lid1_is_pointed_at(good: bytes, at: int, new: str, reason: Reason, field: int | None) -> None:
    error = refusal(parse_lid1, changed(good, at, bytes.fromhex(new)))
    assert (error.reason, error.field) == (reason, field)
    assert field is None or error.in_data


@pytest.mark.parametrize(("at", "new"), [(0, "02"), (2, "0021"), (15, "02"), (16, "e4")])
def test_wrong_field_of_the_header_of_lid4_is_pointed_at(at: int, new: str) -> None:
    error = refusal(parse_lid4, changed(lid4([], []), at, bytes.fromhex(new)))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_PARAMETER_LIST, at)


def test_immed_is_ignored() -> None:
    assert parse_lid4(memoryview(changed(lid4([], []), 15, b"\x01"))).segments == ()


def test_limits_hold_and_one_more_is_refused(unit) -> None:
    one, segment = cscd(unit), b2b(0, 0, 1, 0, 1)
    found = parse_lid1(memoryview(lid1([one] * MAX_CSCDS, [segment] * MAX_SEGMENTS)))
    assert (len(found.cscds), len(found.segments)) == (MAX_CSCDS, MAX_SEGMENTS)
    many_cscds = refusal(parse_lid1, lid1([one] * (MAX_CSCDS + 1), [segment]))
    assert many_cscds.reason is Reason.TOO_MANY_TARGET_DESCRIPTORS
    many_segments = refusal(parse_lid1, lid1([one], [segment] * (MAX_SEGMENTS + 1)))
    assert many_segments.reason is Reason.TOO_MANY_SEGMENT_DESCRIPTORS
    both = refusal(parse_lid1, lid1([one] * (MAX_CSCDS + 1), [segment] * (MAX_SEGMENTS + 1)))
    assert both.reason is Reason.PARAMETER_LIST_LENGTH_ERROR
    assert len(one) * MAX_CSCDS + len(segment) * MAX_SEGMENTS == MAX_DESCRIPTORS_LENGTH


@pytest.mark.parametrize("parse", [parse_lid1, parse_lid4])
def test_every_cut_of_a_list_is_a_length_error(unit, parse: Callable[[memoryview], CopyList]) -> None:
    build = lid1 if parse is parse_lid1 else lid4
    data = build([cscd(unit)], [b2b(0, 0, 8, 0, 100)])
    for length in range(len(data)):
        assert refusal(parse, data[:length]).reason is Reason.PARAMETER_LIST_LENGTH_ERROR
    assert parse(memoryview(data + bytes(9))) == parse(memoryview(data))


@pytest.mark.parametrize("parse", [parse_lid1, parse_lid4])
def test_noise_raises_nothing_but_scsi_errors(unit, parse: Callable[[memoryview], CopyList]) -> None:
    build = lid1 if parse is parse_lid1 else lid4
    data = build([cscd(unit)] * 2, [b2b(0, 1, 8, 0, 100)] * 2)
    dice = random.Random(83)
    for _ in range(3000):
        noisy = bytearray(data)
        for _ in range(dice.randint(1, 6)):
            noisy[dice.randrange(len(noisy))] = dice.randrange(256)
        try:
            found = parse(memoryview(noisy))
        except ScsiError:
            continue
        assert len(found.cscds) <= MAX_CSCDS and len(found.segments) <= MAX_SEGMENTS
