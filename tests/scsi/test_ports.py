"""Target port groups: what is reported of them, byte by byte, and what a SET TARGET PORT GROUPS makes of them."""

from __future__ import annotations

import pytest

from iscsid.errors import ScsiError
from iscsid.scsi.ports import (
    ONE_GROUP,
    AccessState,
    PortGroup,
    StateChange,
    port_name,
    set_port_groups,
)
from iscsid.scsi.sense import Reason

OPTIMIZED, NON_OPTIMIZED, STANDBY = AccessState.ACTIVE_OPTIMIZED, AccessState.ACTIVE_NON_OPTIMIZED, AccessState.STANDBY
TWO_GROUPS = (PortGroup(1), PortGroup(2))


def report(unit, *, data_format: int = 0, length: int = 0xFFFF) -> bytes:
    return unit.run(f"a3 {data_format << 5 | 0x0A:02x} 00000000 {length:08x} 00 00")


def test_name_of_a_port_is_target_and_tag() -> None:
    assert port_name("iqn.2026-11.org.iscsid:a", 0x1F) == "iqn.2026-11.org.iscsid:a,t,0x001f"  # SPC-4 7.6.4.6


def test_a_unit_has_one_group_unless_it_is_told_others(unit) -> None:
    assert unit.lu.port_groups == ONE_GROUP == (PortGroup(1, OPTIMIZED, False, StateChange.NONE),)


# -- REPORT TARGET PORT GROUPS: SPC-4 6.37, tables 303 and 304 --------------------------------------------------------


def test_one_group_byte_by_byte(unit) -> None:
    assert report(unit) == bytes.fromhex(
        "0000000c"  # RETURN DATA LENGTH
        "00"  # PREF 0; ASYMMETRIC ACCESS STATE: active/optimized
        "01"  # T_SUP, O_SUP, LBD_SUP, U_SUP, S_SUP, AN_SUP 0; AO_SUP 1
        "0001"  # TARGET PORT GROUP
        "00"  # reserved
        "00"  # STATUS CODE: no status available
        "00"  # vendor specific
        "01"  # TARGET PORT COUNT
        "0000 0001"  # reserved; RELATIVE TARGET PORT IDENTIFIER
    )


def test_extended_header_byte_by_byte(unit) -> None:
    assert report(unit, data_format=1) == bytes.fromhex(
        "00000010"  # RETURN DATA LENGTH
        "10"  # FORMAT TYPE 001b
        "00"  # IMPLICIT TRANSITION TIME: not specified
        "0000"
        "00 01 0001 00 00 00 01 0000 0001"
    )


def test_every_group_has_its_descriptor(unit) -> None:
    unit.lu.port_groups = (
        PortGroup(1, OPTIMIZED, preferred=True),
        PortGroup(0x102, STANDBY, change=StateChange.IMPLICIT),
    )
    assert report(unit) == bytes.fromhex(
        "00000018"
        "80 01 0001 00 00 00 01 0000 0001"  # PREF 1
        "02 01 0102 00 02 00 01 0000 0102"  # standby, by implicit ALUA
    )


@pytest.mark.parametrize("length", [0, 3, 4, 5, 15, 16, 17])
def test_report_is_cut_to_the_allocation_length(unit, length: int) -> None:
    assert report(unit, length=length) == report(unit)[:length]


@pytest.mark.parametrize("data_format", range(2, 8))
def test_format_that_is_not_there_is_refused(unit, data_format: int) -> None:
    error = unit.refusal(f"a3 {data_format << 5 | 0x0A:02x} 00000000 0000ffff 00 00")
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, 1, 7)


# -- SET TARGET PORT GROUPS: SPC-4 6.45, tables 325 and 326 -----------------------------------------------------------


def wanted(*descriptors: str) -> bytes:
    return bytes(4) + b"".join(map(bytes.fromhex, descriptors))


def test_named_groups_change_and_the_others_stay() -> None:
    groups = set_port_groups(TWO_GROUPS, wanted("02 00 0002"), [OPTIMIZED, STANDBY])
    assert groups == (PortGroup(1), PortGroup(2, STANDBY, change=StateChange.BY_COMMAND))
    back = set_port_groups(groups, wanted("00 00 0002", "01 00 0001"), [OPTIMIZED, NON_OPTIMIZED])
    assert [(group.tag, group.state) for group in back] == [(1, NON_OPTIMIZED), (2, OPTIMIZED)]


def test_preference_stays_the_administrators() -> None:
    (group,) = set_port_groups([PortGroup(1, preferred=True)], wanted("01 00 0001"), [NON_OPTIMIZED])
    assert group.preferred


@pytest.mark.parametrize("data", [b"", bytes(4)])
def test_list_that_names_nothing_changes_nothing(data: bytes) -> None:
    assert set_port_groups(TWO_GROUPS, data, [OPTIMIZED]) == TWO_GROUPS


@pytest.mark.parametrize("length", [1, 3, 5, 6, 7, 9, 11])
def test_list_that_ends_within_a_descriptor_is_refused(length: int) -> None:
    with pytest.raises(ScsiError) as caught:
        set_port_groups(TWO_GROUPS, wanted("00 00 0001", "00 00 0002")[:length], [OPTIMIZED])
    assert caught.value.reason is Reason.PARAMETER_LIST_LENGTH_ERROR


@pytest.mark.parametrize(
    ("descriptors", "field", "bit"),
    [
        (["00 00 0003"], 6, None),  # there is no such group
        (["00 00 0001", "00 00 0000"], 10, None),
        (["00 00 0001", "01 00 0001"], 10, None),  # named twice
        (["02 00 0001"], 4, 3),  # a state that may not be set
        (["0f 00 0001"], 4, 3),  # transitioning is never asked for
        (["05 00 0001"], 4, 3),  # reserved
        (["00 00 0001", "40 00 0002"], 8, 6),  # reserved bit
    ],
)
def test_descriptor_that_cannot_be_is_pointed_at(descriptors: list[str], field: int, bit: int | None) -> None:
    with pytest.raises(ScsiError) as caught:
        set_port_groups(TWO_GROUPS, wanted(*descriptors), [OPTIMIZED, NON_OPTIMIZED])
    error = caught.value
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_PARAMETER_LIST, field, bit)
    assert error.in_data
