"""TransportIDs of iSCSI are built as SPC-4 7.6.4.6 draws them, and hostile ones raise ScsiError alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.errors import ScsiError
from iscsid.scsi.sense import Reason
from iscsid.scsi.transport_id import MAX_LENGTH, MAX_NAME, TransportId, build, parse, parse_list

NAME = "iqn.2026-11.org.example:host"
INVALID, TOO_SHORT = Reason.INVALID_FIELD_IN_PARAMETER_LIST, Reason.PARAMETER_LIST_LENGTH_ERROR


def device_id(name: bytes, additional: int | None = None, first: int = 0x05) -> bytes:
    value = name + b"\0"
    value += bytes(max(20, len(value) + -len(value) % 4) - len(value))
    return bytes((first, 0)) + (len(value) if additional is None else additional).to_bytes(2, "big") + value


def test_build_is_the_layout_of_the_standard() -> None:
    assert build("iqn.2026-11.org.example:host", 0x23D000001) == (
        bytes.fromhex("45 00 0030")  # FORMAT CODE 01b, protocol 5h; ADDITIONAL LENGTH
        + b"iqn.2026-11.org.example:host,i,0x00023d000001\0\0\0"
    )


@pytest.mark.parametrize("length", range(5, 40))
def test_build_has_a_null_and_a_multiple_of_four(length: int) -> None:
    data = build("iqn." + "a" * (length - 4), 0)
    assert len(data) % 4 == 0 and data[-1] == 0 and int.from_bytes(data[2:4], "big") == len(data) - 4


def test_longest_name_takes_the_greatest_length() -> None:
    data = build("iqn." + "a" * (MAX_NAME - 4), 2**48 - 1)
    assert len(data) == MAX_LENGTH
    assert parse(memoryview(data), 0) == (TransportId("iqn." + "a" * (MAX_NAME - 4), 2**48 - 1), MAX_LENGTH)


@given(st.sampled_from(["iqn.2026-11.org.example:" + "x" * n for n in range(1, 40)]), st.integers(0, 2**48 - 1))
def test_what_is_built_is_parsed_again(name: str, isid: int) -> None:
    data = build(name, isid)
    assert parse(memoryview(data + b"rest"), 24) == (TransportId(name, isid), len(data))


def test_device_format_names_all_ports() -> None:
    data = device_id(NAME.encode())
    assert parse(memoryview(data), 0) == (TransportId(NAME, None), len(data))


@pytest.mark.parametrize("name", ["eui.02004567a425678d", "naa.52004567ba64678d", "iqn.2026-11.org.example:bücher"])
def test_every_form_of_name_is_taken(name: str) -> None:
    assert parse(memoryview(build(name, 7)), 0)[0] == TransportId(name, 7)


@pytest.mark.parametrize("digits", [b"1", b"AbCdEf", b"00023D000001"])
def test_isid_is_taken_in_any_spelling(digits: bytes) -> None:
    data = device_id(NAME.encode() + b",i,0x" + digits, first=0x45)
    assert parse(memoryview(data), 0)[0] == TransportId(NAME, int(digits, 16))


@pytest.mark.parametrize(
    ("data", "reason", "field"),
    [
        (b"", TOO_SHORT, None),
        (b"\x45\x00\x00", TOO_SHORT, None),
        (build(NAME, 1)[:-1], TOO_SHORT, None),
        (bytes((0x40,)) + build(NAME, 1)[1:], INVALID, 24),  # Fibre Channel
        (bytes((0x46,)) + build(NAME, 1)[1:], INVALID, 24),  # SAS
        (bytes((0x85,)) + build(NAME, 1)[1:], INVALID, 24),  # FORMAT CODE 10b is reserved
        (bytes((0xC5,)) + build(NAME, 1)[1:], INVALID, 24),
        (device_id(NAME.encode(), additional=16), INVALID, 26),  # below 20
        (device_id(NAME.encode(), additional=21), INVALID, 26),  # no multiple of four
        (device_id(NAME.encode(), additional=0xFFFC), INVALID, 26),
        (device_id(b"iqn." + b"a" * (MAX_NAME - 3)), INVALID, 28),
        (b"\x45\x00\x00\x14" + b"iqn.a,i,0x0123456789", INVALID, 28),  # no null
        (b"\x05\x00\x00\x14" + b"iqn.a\0bcdefghijklmno", INVALID, 28),  # something after it
        (device_id(NAME.encode(), first=0x45), INVALID, 28 + len(NAME)),  # no ISID
        (device_id(NAME.encode() + b",t,0x0001", first=0x45), INVALID, 28 + len(NAME) + len(",t,0x0001")),
        (device_id(NAME.encode() + b",i,0x", first=0x45), INVALID, 28 + len(NAME)),
        (device_id(NAME.encode() + b",i,0x1g", first=0x45), INVALID, 28 + len(NAME)),
        (device_id(NAME.encode() + b",i,0x0123456789abc", first=0x45), INVALID, 28 + len(NAME)),  # 13 digits
        (device_id(NAME.encode() + b",i,0x000000000001"), INVALID, 28),  # a port's name in the device format
        (device_id(b"iqn.\xff\xfe"), INVALID, 32),
        (device_id(b"host.example"), INVALID, 28),
        (device_id(b"iqn.a b"), INVALID, 28),
        (device_id(b"iqn."), INVALID, 28),
        (device_id(b""), INVALID, 28),
    ],
)
def test_what_is_wrong_is_refused_and_pointed_at(data: bytes, reason: Reason, field: int | None) -> None:
    with pytest.raises(ScsiError) as caught:
        parse(memoryview(data), 24)
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert caught.value.in_data is (field is not None)


def test_list_is_taken_whole() -> None:
    data = build(NAME, 1) + device_id(b"eui.02004567a425678d") + build(NAME, 2)
    assert parse_list(memoryview(data), 28, 3) == [
        TransportId(NAME, 1),
        TransportId("eui.02004567a425678d", None),
        TransportId(NAME, 2),
    ]


def test_list_may_be_empty() -> None:
    assert parse_list(memoryview(b""), 28, 3) == []


def test_list_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ScsiError) as caught:
        parse_list(memoryview(build(NAME, 1) * 4), 28, 3)
    assert caught.value.reason is Reason.INSUFFICIENT_REGISTRATION_RESOURCES


def test_list_points_into_its_second_member() -> None:
    first = build(NAME, 1)
    with pytest.raises(ScsiError) as caught:
        parse_list(memoryview(first + b"\x46" + first[1:]), 28, 3)
    assert caught.value.field == 28 + len(first)


def test_list_with_bytes_left_over_is_refused() -> None:
    with pytest.raises(ScsiError) as caught:
        parse_list(memoryview(build(NAME, 1) + b"\x45\0"), 28, 3)
    assert caught.value.reason is TOO_SHORT


@given(st.binary(max_size=80))
def test_noise_raises_scsi_error_alone(noise: bytes) -> None:
    for data in (noise, b"\x45\0\0\x18" + noise, b"\x45\0\0\x18iqn.a" + noise, b"\x05\0\0\x14" + noise):
        try:
            parse_list(memoryview(data), 28, 8)
        except ScsiError:
            continue
