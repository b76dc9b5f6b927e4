"""VPD page 8Fh byte by byte: SPC-4 7.8.17, SBC-3 6.6.6."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from iscsid.scsi.commands import COMMANDS
from iscsid.scsi.copy_vpd import third_party_copy

EXPECTED = {
    0x0000: "000000000000 000f 00000258 0000003c 0000000000080000 0000000000020000",
    0x0001: "0e 83 05 00 01 10 11 1c 84 05 00 03 04 05 07 00",
    0x0004: "00000000 0010 0010 000003c0 00000000" + "00" * 12,
    0x0008: "02 02 e4 00",
    0x000C: "0002 ffff",
    0x0106: "00" + "00" * 11 + "00000001 00000258 00000258" + "00" * 18 + "0030"
    "00 00 002c 0000 0000 0000000000000000 0000000004000000 0000000004000000 0000000004000000 0000000000000000",
    0x0108: "0000 0080" + "00010000 03 00 0000" + "00" * 56 + "ffff0001 02 00 0000" + "00" * 56,
    0x8001: "00000040 00000040 10000000 09 00" + "00" * 18,
}


def descriptors(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from(">HH", data, at)
        assert length % 4 == 0 and at + 4 + length <= len(data)
        yield kind, data[at + 4 : at + 4 + length]
        at += 4 + length


def test_page_is_these_descriptors_in_this_order(unit) -> None:
    found = list(descriptors(third_party_copy(unit.lu, unit.nexus)))
    wanted = []
    for kind, text in EXPECTED.items():
        data = bytes.fromhex(text)
        wanted.append((kind, data + bytes(-len(data) % 4)))
    assert found == wanted


def test_page_is_told_with_its_header(unit) -> None:
    payload = third_party_copy(unit.lu, unit.nexus)
    assert unit.run("12 01 8f ffff 00") == struct.pack(">BBH", 0, 0x8F, len(payload)) + payload


def test_lengths_are_in_the_blocks_of_the_unit(make_unit: Callable) -> None:
    unit = make_unit(256, 4096)
    found = dict(descriptors(third_party_copy(unit.lu, unit.nexus)))
    assert found[0x0000][16:] == struct.pack(">QQ", 65536, 16384)
    assert found[0x8001][12] == 12


def test_commands_are_those_of_the_table(unit) -> None:
    listed = dict(descriptors(third_party_copy(unit.lu, unit.nexus)))[0x0001]
    actions = [row.service_action for row in COMMANDS if row.opcode in (0x83, 0x84)]
    assert list(listed[3:8] + listed[10:15]) == actions
