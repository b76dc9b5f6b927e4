"""Standard INQUIRY data, every VPD page and REQUEST SENSE, byte by byte."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import pytest

from iscsid.scsi.inquiry import PAGES, STANDARD, naa_locally_assigned, name_string, padded
from iscsid.scsi.lu import Identity
from iscsid.scsi.ports import PortGroup
from iscsid.scsi.sense import Reason

TARGET = "iqn.2026-11.org.iscsid:disk0"


def page(unit, code: int, allocation_length: int = 0xFFFF) -> bytes:
    return unit.run(f"12 01 {code:02x} {allocation_length:04x} 00")


# -- standard data: SPC-4 6.6.2, table 177 ----------------------------------------------------------------------------


def test_standard_data_byte_by_byte(unit) -> None:
    expected = bytes.fromhex(
        "00"  # PERIPHERAL QUALIFIER 000b, direct access block device
        "00"  # RMB 0
        "06"  # SPC-4
        "12"  # NORMACA 0, HISUP 1, RESPONSE DATA FORMAT 2h
        "5b"  # ADDITIONAL LENGTH: 96 bytes in all
        "38"  # SCCS 0, ACC 0, TPGS 11b (implicit and explicit), 3PC 1, PROTECT 0
        "00"  # ENCSERV, MULTIP
        "02"  # CMDQUE 1
    )
    expected += b"ISCSID  " + b"VIRTUAL-DISK    " + b"0001" + bytes(22)
    expected += bytes.fromhex("00a0 0960 0460 04c0")  # SAM-5, iSCSI, SPC-4, SBC-3 (6.6.5)
    assert unit.run("12 00 00 ffff 00") == expected.ljust(96, b"\0")


@pytest.mark.parametrize("length", [0, 1, 5, 35, 36, 95, 96, 97, 255, 65535])
def test_standard_data_is_cut_to_the_allocation_length(unit, length: int) -> None:
    whole = unit.run("12 00 00 ffff 00")
    data = unit.run(f"12 00 00 {length:04x} 00")
    assert data == whole[:length]
    assert len(data) < 5 or data[4] == 0x5B  # SPC-4 4.2.5.6: ADDITIONAL LENGTH is not changed by the cut


def test_page_code_without_evpd_is_refused(unit) -> None:
    error = unit.refusal("12 00 80 00ff 00")
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 2)


def test_removable_device_is_no_removable_medium(make_unit: Callable) -> None:
    assert make_unit(removable=True).run("12 00 00 0060 00")[1] == 0


def test_multip_tells_of_several_ports(unit) -> None:
    unit.lu.port_groups = (PortGroup(1), PortGroup(2))
    assert unit.run("12 00 00 0060 00")[5:7] == bytes.fromhex("38 10")


def test_identity_is_filled_with_spaces_and_cut(make_unit: Callable) -> None:
    identity = Identity("S", "N", vendor="A-VENDOR-TOO-LONG", product="P", revision="1.2.3")
    data = make_unit(identity=identity).run("12 00 00 0060 00")
    assert data[8:36] == b"A-VENDOR" + b"P".ljust(16) + b"1.2."


@pytest.mark.parametrize(
    ("text", "expected"), [("abc", b"abc "), ("", b"    "), ("\tü~x", b"??~x"), ("12345", b"1234")]
)
def test_padded_is_printable_ascii(text: str, expected: bytes) -> None:
    assert padded(text, 4) == expected


def test_layout_has_96_bytes() -> None:
    assert STANDARD.size == 96


# -- vital product data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(PAGES))
def test_page_has_its_header_and_its_length(unit, code: int) -> None:
    data = page(unit, code)
    assert data[:2] == bytes((0x00, code))  # SPC-4 7.8.1
    assert int.from_bytes(data[2:4], "big") == len(data) - 4


@pytest.mark.parametrize("code", sorted(PAGES))
@pytest.mark.parametrize("length", [0, 3, 4, 6])
def test_page_is_cut_to_the_allocation_length(unit, code: int, length: int) -> None:
    assert page(unit, code, length) == page(unit, code)[:length]


@pytest.mark.parametrize("code", [code for code in range(256) if code not in PAGES])
def test_page_that_is_not_there_is_refused(unit, code: int) -> None:
    error = unit.refusal(f"12 01 {code:02x} 00ff 00")
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 2)


def test_supported_pages_are_listed_in_ascending_order(unit) -> None:
    assert page(unit, 0x00) == bytes.fromhex("0000 000c 00 80 83 85 86 87 88 8f b0 b1 b2 b3")  # SPC-4 7.8.16


def test_serial_number_page(unit) -> None:
    assert page(unit, 0x80) == bytes.fromhex("0080 0007") + b"SER0001"  # SPC-4 7.8.18


def designators(data: bytes) -> list[tuple[int, int, int, int, int, bytes]]:
    """Return (protocol, code set, PIV, association, type, value) of each (SPC-4 7.8.6.1, table 591)."""
    found, at = [], 4
    while at < len(data):
        value = data[at + 4 : at + 4 + data[at + 3]]
        assert len(value) == data[at + 3]
        head, kind = data[at], data[at + 1]
        found.append((head >> 4, head & 0xF, kind >> 7, kind >> 4 & 3, kind & 0xF, value))
        at += 4 + len(value)
    return found


def test_device_identification_names_unit_port_and_target(unit) -> None:
    naa = hashlib.sha256(b"SER0001").digest()[:8]
    assert designators(page(unit, 0x83)) == [
        (0, 1, 0, 0, 0x3, bytes((0x30 | naa[0] & 0xF,)) + naa[1:]),
        (0, 2, 0, 0, 0x1, b"ISCSID  SER0001"),
        (0, 3, 0, 0, 0x8, name_string(f"{TARGET},L,0x0000000000000000")),
        (5, 3, 1, 1, 0x8, name_string(f"{TARGET},t,0x0001")),
        (5, 1, 1, 1, 0x4, bytes.fromhex("00000001")),
        (5, 1, 1, 1, 0x5, bytes.fromhex("00000001")),
        (5, 3, 1, 2, 0x8, name_string(TARGET)),
    ]


def test_device_identification_tells_the_port_of_the_nexus(unit) -> None:
    unit.nexus.portal_group_tag = 0x1234
    values = [value for *_, value in designators(page(unit, 0x83))]
    assert name_string(f"{TARGET},t,0x1234") in values and values.count(bytes.fromhex("00001234")) == 2


def test_names_of_the_unit_do_not_depend_on_the_nexus(unit) -> None:
    def of_unit() -> list[tuple]:
        return [designator for designator in designators(page(unit, 0x83)) if designator[3] == 0]

    before = of_unit()
    unit.nexus.portal_group_tag, unit.nexus.target_name = 7, "iqn.2026-11.org.iscsid:other"
    assert of_unit() == before and len(before) == 3


def test_naa_depends_on_the_serial_alone_and_is_locally_assigned() -> None:
    assert naa_locally_assigned("a") == naa_locally_assigned("a") != naa_locally_assigned("b")
    assert all(len(naa_locally_assigned(serial)) == 8 for serial in ("", "a", "ü"))
    assert all(naa_locally_assigned(str(serial))[0] >> 4 == 3 for serial in range(50))


@pytest.mark.parametrize(("name", "value"), [("abc", b"abc\0"), ("abcd", b"abcd\0\0\0\0"), ("", bytes(4))])
def test_name_string_is_ended_and_filled_to_four(name: str, value: bytes) -> None:
    assert name_string(name) == value  # SPC-4 7.8.6.11


def test_no_management_network_address_is_told(unit) -> None:
    assert page(unit, 0x85) == bytes.fromhex("0085 0000")  # SPC-4 7.8.8


@pytest.mark.parametrize(("lacks", "v_sup"), [((), "01"), (("flush",), "00")])
def test_extended_inquiry_data_byte_by_byte(make_unit: Callable, lacks: tuple, v_sup: str) -> None:
    expected = bytes.fromhex(
        "0086 003c"  # SPC-4 7.8.7
        "00"  # ACTIVATE MICROCODE, SPT, GRD_CHK, APP_CHK, REF_CHK
        "07"  # UASK_SUP, GROUP_SUP, PRIOR_SUP 0; HEADSUP, ORDSUP, SIMPSUP 1
        + v_sup  # WU_SUP, CRD_SUP, NV_SUP 0; V_SUP: a volatile cache
        + "01"  # P_I_I_SUP 0; LUICLR 1
        "10"  # R_SUP 1, CBCS 0
        "00"  # MULTI I_T NEXUS MICROCODE DOWNLOAD
        "0000"  # EXTENDED SELF-TEST COMPLETION MINUTES
        "00"  # POA_SUP, HRA_SUP, VSA_SUP
        "00"  # MAXIMUM SUPPORTED SENSE DATA LENGTH: not reported
    )
    assert page(make_unit(lacks=lacks), 0x86) == expected.ljust(64, b"\0")


def test_mode_pages_are_shared_by_all_nexuses(unit) -> None:
    assert page(unit, 0x87) == bytes.fromhex(
        "0087 0004"  # SPC-4 7.8.9
        "3f ff"  # POLICY PAGE CODE and POLICY SUBPAGE CODE: all that no other descriptor names
        "00"  # MLUS 0, MODE PAGE POLICY 00b: shared
        "00"
    )


def test_scsi_ports_of_one_portal_group(unit) -> None:
    name = name_string(f"{TARGET},t,0x0001")
    head = bytes.fromhex(
        "0088 0038"  # SPC-4 7.8.14
        "0000 0001"  # reserved, RELATIVE PORT IDENTIFIER
        "0000 0000"  # reserved, INITIATOR PORT TRANSPORTID LENGTH
        "0000 002c"  # reserved, TARGET PORT DESCRIPTORS LENGTH
        "53 98 00 28"  # iSCSI, UTF-8; PIV, target port, SCSI name string; length
    )
    assert page(unit, 0x88) == head + name and len(name) == 0x28


def test_scsi_ports_names_every_group_of_the_unit_through_any_port(unit) -> None:
    unit.lu.port_groups = (PortGroup(1), PortGroup(0x20))
    unit.nexus.portal_group_tag = 0x20
    data = page(unit, 0x88)
    first, second = data[4:60], data[60:]
    assert (first[2:4], second[2:4]) == (b"\0\x01", b"\0\x20")
    assert first[16:] == name_string(f"{TARGET},t,0x0001") and second[16:] == name_string(f"{TARGET},t,0x0020")


# -- Block Limits: SBC-3 6.6.4, table 204 -----------------------------------------------------------------------------


def test_block_limits_byte_by_byte(make_unit: Callable) -> None:
    unit = make_unit(
        65536,
        minimum_io=4096,
        optimal_io=1 << 20,
        discard_granularity=65536,
        discard_alignment=4096,
        discard_zeroes=True,
    )
    assert page(unit, 0xB0) == bytes.fromhex(
        "00 b0 003c"
        "01"  # WSNZ 1
        "ff"  # MAXIMUM COMPARE AND WRITE LENGTH
        "0008"  # OPTIMAL TRANSFER LENGTH GRANULARITY: 4 KiB
        "00010000"  # MAXIMUM TRANSFER LENGTH: 32 MiB
        "00000800"  # OPTIMAL TRANSFER LENGTH: 1 MiB
        "00000000"  # MAXIMUM PREFETCH LENGTH
        "00100000"  # MAXIMUM UNMAP LBA COUNT
        "00000100"  # MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT
        "00000080"  # OPTIMAL UNMAP GRANULARITY: 64 KiB
        "80000008"  # UGAVALID, UNMAP GRANULARITY ALIGNMENT: 4 KiB
        "0000000000040000"  # MAXIMUM WRITE SAME LENGTH: 128 MiB
    ) + bytes(20)


def test_block_limits_of_a_device_that_cannot_discard_tell_no_unmap(make_unit: Callable) -> None:
    data = page(make_unit(lacks=["discard"], discard_granularity=4096), 0xB0)
    assert data[20:36] == bytes(16)
    assert data[36:44] == (0x40000).to_bytes(8, "big")  # WRITE SAME is always there


def test_block_limits_count_in_blocks_of_the_unit(make_unit: Callable) -> None:
    data = page(make_unit(64, 4096, minimum_io=4096, optimal_io=65536, discard_granularity=8192), 0xB0)
    assert struct.unpack(">HII", data[6:16]) == (1, 8192, 16)
    assert struct.unpack(">II", data[28:36]) == (2, 0x80000000)


@pytest.mark.parametrize("optimal_io", [0, 64 << 20, 1000])
def test_optimal_transfer_length_that_makes_no_sense_is_not_reported(make_unit: Callable, optimal_io: int) -> None:
    assert page(make_unit(optimal_io=optimal_io), 0xB0)[12:16] == bytes(4)


def test_unmap_alignment_is_told_only_with_a_granularity(make_unit: Callable) -> None:
    assert page(make_unit(discard_alignment=4096), 0xB0)[28:36] == bytes(8)


def test_unmap_granularity_of_one_block_is_not_told(make_unit: Callable) -> None:
    assert page(make_unit(64, 4096, discard_granularity=4096), 0xB0)[28:36] == bytes(8)


def test_limits_that_are_told_are_those_that_hold(unit) -> None:
    data = page(unit, 0xB0)
    maximum, unmap_blocks, unmap_descriptors = (int.from_bytes(data[at : at + 4], "big") for at in (8, 20, 24))
    assert maximum == unit.lu.max_blocks
    assert (unmap_blocks, unmap_descriptors) == (unit.lu.max_unmap_blocks, unit.lu.max_unmap_descriptors)
    assert int.from_bytes(data[36:44], "big") == unit.lu.max_write_same_blocks


# -- Block Device Characteristics (SBC-3 6.6.3) and Logical Block Provisioning (6.6.5) --------------------------------


@pytest.mark.parametrize(("rotational", "rate"), [(False, "0001"), (True, "0000")])
def test_block_device_characteristics(make_unit: Callable, rotational: bool, rate: str) -> None:
    expected = bytes.fromhex("00 b1 003c" + rate + "00 40") + bytes(56)  # WABEREQ 01b
    assert page(make_unit(rotational=rotational), 0xB1) == expected


@pytest.mark.parametrize(
    ("lacks", "zeroes", "payload"),
    [
        ((), True, "00 e4 02 00"),  # LBPU, LBPWS, LBPWS10, LBPRZ; thin provisioned
        ((), False, "00 e0 02 00"),
        (("discard",), True, "00 00 00 00"),
        (("discard",), False, "00 00 00 00"),
    ],
)
def test_logical_block_provisioning(make_unit: Callable, lacks: tuple, zeroes: bool, payload: str) -> None:
    unit = make_unit(lacks=lacks, discard_zeroes=zeroes)
    assert page(unit, 0xB2) == bytes.fromhex("00 b2 0004" + payload)


@pytest.mark.parametrize("lacks", [(), ("discard",)])
@pytest.mark.parametrize("zeroes", [False, True])
def test_pages_and_read_capacity_agree_on_provisioning(make_unit: Callable, lacks: tuple, zeroes: bool) -> None:
    unit = make_unit(lacks=lacks, discard_zeroes=zeroes)
    flags, capacity = page(unit, 0xB2)[5], unit.run("9e 10 0000000000000000 00000020 00 00")[14]
    assert bool(flags & 0x80) == bool(capacity & 0x80)  # LBPU, LBPME
    assert bool(flags & 0x04) == bool(capacity & 0x40)  # LBPRZ in both


# -- REQUEST SENSE: SPC-4 6.39 ----------------------------------------------------------------------------------------


def test_request_sense_has_nothing_to_tell(unit) -> None:
    assert unit.run("03 00 0000 ff 00") == bytes.fromhex("70 00 00 00000000 0a 00000000 00 00 00 000000")


def test_request_sense_in_descriptor_format(unit) -> None:
    assert unit.run("03 01 0000 ff 00") == bytes.fromhex("72 00 00 00 000000 00")


@pytest.mark.parametrize("length", [0, 1, 8, 17, 18])
def test_request_sense_is_cut_to_the_allocation_length(unit, length: int) -> None:
    assert len(unit.run(f"03 00 0000 {length:02x} 00")) == length


def test_request_sense_takes_one_unit_attention(unit) -> None:
    unit.nexus.attentions = [Reason.CAPACITY_DATA_HAS_CHANGED, Reason.I_T_NEXUS_LOSS]
    data = unit.run("03 00 0000 ff 00")
    assert (data[2], data[12], data[13]) == (6, 0x2A, 0x09)
    assert unit.nexus.attentions == [Reason.I_T_NEXUS_LOSS]
