"""A logical unit number that leads nowhere answers three commands and refuses all others."""

from __future__ import annotations

import pytest

from iscsid.scsi.sense import Reason


def test_inquiry_says_that_nothing_can_be_here(absent) -> None:
    data = absent.run("12 00 00 00ff 00")
    assert data[:8] == bytes.fromhex("7f 00 06 02 5b 00 00 00")  # qualifier 011b, type 1Fh (SPC-4 6.6.2)
    assert data[8:36] == b" " * 28
    assert data[36:] == bytes(60)


@pytest.mark.parametrize("length", [0, 5, 36, 96])
def test_inquiry_is_cut_to_the_allocation_length(absent, length: int) -> None:
    assert len(absent.run(f"12 00 00 {length:04x} 00")) == length


def test_list_of_pages_has_only_itself(absent) -> None:
    assert absent.run("12 01 00 00ff 00") == bytes.fromhex("7f 00 0001 00")


@pytest.mark.parametrize("cdb", ["12 01 83 00ff 00", "12 01 80 00ff 00", "12 00 01 00ff 00"])
def test_any_other_page_is_refused(absent, cdb: str) -> None:
    error = absent.refusal(cdb)
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 2)


def test_report_luns_lists_what_is_there(absent) -> None:
    absent.nexus.luns = [1, 2]
    expected = bytes.fromhex("00000010 00000000 0001000000000000 0002000000000000")
    assert absent.run("a0 00 00 000000 00000100 00 00") == expected


def test_report_luns_refuses_a_short_allocation_length(absent) -> None:
    assert absent.refusal("a0 00 00 000000 0000000f 00 00").reason is Reason.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize(
    ("desc", "expected"),
    [("00", "70 00 05 00000000 0a 00000000 25 00 00 000000"), ("01", "72 05 25 00 000000 00")],
)
def test_request_sense_tells_that_there_is_no_unit(absent, desc: str, expected: str) -> None:
    assert absent.run(f"03 {desc} 0000 ff 00") == bytes.fromhex(expected)


def test_request_sense_is_cut_to_the_allocation_length(absent) -> None:
    assert len(absent.run("03 00 0000 08 00")) == 8


@pytest.mark.parametrize("opcode", [opcode for opcode in range(256) if opcode not in (0x03, 0x12, 0xA0)])
def test_every_other_command_is_refused(absent, opcode: int) -> None:
    assert absent.refusal(f"{opcode:02x}").reason is Reason.LOGICAL_UNIT_NOT_SUPPORTED
