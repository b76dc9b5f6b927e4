"""The LUN field: encode and decode are each other's inverse, and everything else names no unit."""

from __future__ import annotations

import pytest

from iscsid.errors import LocalProtocolError
from iscsid.wire import lun


def field(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text), "big")


# LUN, the eight bytes on the wire.
ENCODED = [
    (0, "0000 0000 0000 0000"),
    (1, "0001 0000 0000 0000"),
    (255, "00ff 0000 0000 0000"),
    (256, "4100 0000 0000 0000"),
    (0x1234, "5234 0000 0000 0000"),
    (16383, "7fff 0000 0000 0000"),
]


@pytest.mark.parametrize(("number", "wire"), ENCODED)
def test_lun_in_range_encodes_as_sam_draws_it(number: int, wire: str) -> None:
    assert lun.encode(number) == field(wire)
    assert lun.decode(field(wire)) == number


def test_lun_every_field_decodes_to_its_number() -> None:
    for number in range(lun.MAX_LUN + 1):
        assert {lun.decode(key) for key in lun.fields(number)} == {number}
        assert lun.encode(number) in lun.fields(number)


def test_lun_fields_are_distinct_over_all_numbers() -> None:
    keys = [key for number in range(lun.MAX_LUN + 1) for key in lun.fields(number)]
    assert len(keys) == len(set(keys)) == lun.MAX_LUN + 1 + 256


@pytest.mark.parametrize("number", [0, 5, 255])
def test_lun_small_number_in_flat_space_is_the_same_unit(number: int) -> None:
    flat = 0x4000 | number
    assert lun.decode(flat << 48) == number
    assert lun.fields(number) == (number << 48, flat << 48)


def test_lun_big_number_has_one_field() -> None:
    assert lun.fields(256) == (lun.encode(256),)


@pytest.mark.parametrize("number", [-1, 16384, 1 << 40])
def test_lun_out_of_range_is_our_own_error(number: int) -> None:
    with pytest.raises(LocalProtocolError, match="LUN"):
        lun.encode(number)


@pytest.mark.parametrize(
    "wire",
    [
        "0100 0000 0000 0000",  # peripheral, bus 1
        "3f01 0000 0000 0000",  # peripheral, bus 63
        "8001 0000 0000 0000",  # logical unit addressing
        "c101 0000 0000 0000",  # REPORT LUNS well-known unit
        "d200 0001 0000 0000",  # extended flat space
        "ffff ffff ffff ffff",
        "0001 0001 0000 0000",  # a second level
        "4001 0000 0000 0001",  # the last level
        "0000 0000 0000 0001",  # a LUN in the wrong end of the field
    ],
)
def test_lun_field_of_another_kind_names_no_unit(wire: str) -> None:
    assert lun.decode(field(wire)) is None
