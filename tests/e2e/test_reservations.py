"""Reservations of hosts whose sessions live in different workers, and over the death of the whole server."""

from __future__ import annotations

import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from e2e_initiator import Initiator
from e2e_server import Server

StartServer = Callable[..., Server]

GOOD, CHECK_CONDITION, CONFLICT = 0x00, 0x02, 0x18
REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT = 0x00, 0x01, 0x02, 0x03, 0x04
NAMES = [f"iqn.2026-11.org.iscsid.e2e:{who}" for who in ("holder", "registrant", "stranger")]
TYPES = [0x1, 0x3, 0x5, 0x6, 0x7, 0x8]
BLOCK = bytes(512)
TEST_UNIT_READY = bytes(6)
START = "1b 00 00 00 01 00"

# A command of each class, and its columns of SPC-4 table 65 and SBC-3 table 13, as in tests/scsi/test_conflict.py.
COMMANDS: dict[str, tuple[str, bytes, int, str]] = {
    "TEST UNIT READY": ("00 00 00 00 00 00", b"", 0, "AAAAAC"),
    "INQUIRY": ("12 00 00 00 24 00", b"", 36, "AAAAAA"),
    "START UNIT": (START, b"", 0, "AAAAAA"),
    "STOP UNIT": ("1b 00 00 00 00 00", b"", 0, "CCACCC"),
    "MODE SENSE": ("1a 00 3f 00 ff 00", b"", 255, "ACAACC"),
    "READ": ("28 00 00000007 00 0001 00", b"", 512, "ACAACC"),
    "WRITE": ("2a 00 00000007 00 0001 00", BLOCK, 0, "CCACCC"),
    "SYNCHRONIZE CACHE": ("35 00 00000000 00 0000 00", b"", 0, "CCACCC"),
    "COMPARE AND WRITE": ("89 00 0000000000000007 000000 01 00 00", BLOCK * 2, 0, "CCACCC"),
    "READ KEYS": ("5e 00 0000000000 0008 00", b"", 8, "AAAAAC"),
}


def column(kind: int, registered: bool) -> int:
    if kind in (0x1, 0x3):
        return 0 if kind == 0x1 else 1
    return 2 if registered else 3 if kind in (0x5, 0x7) else 4


def ask(host: Initiator, cdb: bytes, data: bytes = b"", expect: int = 0) -> tuple[int, bytes]:
    """Do a command; unit attentions that are in the way are taken first."""
    for _ in range(8):
        status, answer = host.command(cdb, data, expect)
        if status != CHECK_CONDITION or answer[2:][2] & 0x0F != 0x06:
            return status, answer
    raise AssertionError("no end of unit attentions")


def pr_out(host: Initiator, action: int, key: int, new: int = 0, kind: int = 0, aptpl: bool = False) -> int:
    data = struct.pack(">QQ4xB3x", key, new, aptpl)
    return ask(host, struct.pack(">BBBxxIx", 0x5F, action, kind, len(data)), data)[0]


def read_keys(host: Initiator) -> list[int]:
    status, data = ask(host, bytes.fromhex("5e 00 0000000000 00ff 00"), expect=255)
    assert status == GOOD
    return [key for (key,) in struct.iter_unpack(">Q", data[8:])]


def attention(host: Initiator) -> tuple[int, int] | None:
    """The code of the unit attention that waits; None when none does."""
    status, answer = host.command(TEST_UNIT_READY)
    return None if status != CHECK_CONDITION else (answer[2:][12], answer[2:][13])


@pytest.fixture
def hosts(start: StartServer, ram: list[dict[str, Any]]) -> Iterator[list[Initiator]]:
    """Three hosts, each in a worker of its own, without a unit attention."""
    server = start(ram, workers=3)
    with ExitStack() as stack:
        opened = [stack.enter_context(Initiator(server.address, name)) for name in NAMES]
        assert len({server.worker_of(name) for name in NAMES}) == 3
        for host in opened:
            assert ask(host, TEST_UNIT_READY)[0] == GOOD
        yield opened


def told(host: Initiator, name: str) -> str:
    cdb, data, expect, _ = COMMANDS[name]
    status, answer = ask(host, bytes.fromhex(cdb), data, expect)
    assert status in (GOOD, CONFLICT), f"{name}: status {status:#x}, {answer.hex()}"
    if status == GOOD and name == "STOP UNIT":
        assert ask(host, bytes.fromhex(START))[0] == GOOD
    return "A" if status == GOOD else "C"


def test_every_type_holds_in_every_worker(hosts: list[Initiator]) -> None:
    holder, registrant, stranger = hosts
    for kind in TYPES:
        assert pr_out(holder, REGISTER, 0, 0xA) == GOOD
        assert pr_out(registrant, REGISTER, 0, 0xB) == GOOD
        assert pr_out(holder, RESERVE, 0xA, kind=kind) == GOOD
        for name, (*_, columns) in COMMANDS.items():
            expected = ["A", columns[column(kind, True)], columns[column(kind, False)]]
            assert [told(host, name) for host in hosts] == expected, f"{name} under type {kind}"
        assert pr_out(stranger, RESERVE, 0, kind=kind) == CONFLICT
        assert pr_out(stranger, CLEAR, 0xA) == CONFLICT
        assert pr_out(registrant, CLEAR, 0xB) == GOOD
        assert [told(host, "WRITE") for host in hosts] == ["A"] * 3


def test_spc2_reservation_holds_in_every_worker_and_ends_with_its_session(hosts: list[Initiator]) -> None:
    holder, *others = hosts
    assert ask(holder, bytes.fromhex("16 00 00 00 00 00"))[0] == GOOD
    for name, (*_, columns) in COMMANDS.items():
        if name != "READ KEYS":  # it conflicts for the holder as well
            assert told(holder, name) == "A"
        assert [told(host, name) for host in others] == [columns[5]] * 2, name
    assert ask(others[0], bytes.fromhex("16 00 00 00 00 00"))[0] == CONFLICT
    assert ask(others[0], bytes.fromhex("17 00 00 00 00 00"))[0] == GOOD  # without effect
    assert told(others[0], "READ") == "C"
    assert ask(holder, bytes.fromhex("17 00 00 00 00 00"))[0] == GOOD
    assert [told(host, "WRITE") for host in hosts] == ["A"] * 3


def test_preempted_host_is_told_and_shut_out_in_its_own_worker(hosts: list[Initiator]) -> None:
    holder, registrant, _ = hosts
    assert pr_out(holder, REGISTER, 0, 0xA) == GOOD
    assert pr_out(registrant, REGISTER, 0, 0xB) == GOOD
    assert pr_out(holder, RESERVE, 0xA, kind=0x5) == GOOD
    assert pr_out(registrant, PREEMPT, 0xB, 0xA, kind=0x5) == GOOD
    assert attention(holder) == (0x2A, 0x05)  # REGISTRATIONS PREEMPTED
    assert attention(holder) is None
    assert [told(host, "WRITE") for host in hosts] == ["C", "A", "C"]
    assert read_keys(holder) == [0xB]


def test_release_is_told_to_registrants_alone(hosts: list[Initiator]) -> None:
    holder, registrant, stranger = hosts
    assert pr_out(holder, REGISTER, 0, 0xA) == GOOD
    assert pr_out(registrant, REGISTER, 0, 0xB) == GOOD
    assert pr_out(holder, RESERVE, 0xA, kind=0x6) == GOOD
    assert pr_out(holder, RELEASE, 0xA, kind=0x6) == GOOD
    assert [attention(host) for host in (holder, registrant, stranger)] == [None, (0x2A, 0x04), None]


@pytest.mark.parametrize("aptpl", [True, False])
def test_reservation_with_aptpl_outlives_the_server(start: StartServer, ram: list[dict[str, Any]], aptpl: bool) -> None:
    server = start(ram, workers=2)
    holder = Initiator(server.address, NAMES[0])
    assert pr_out(holder, REGISTER, 0, 0xA, aptpl=aptpl) == GOOD
    assert pr_out(holder, RESERVE, 0xA, kind=0x3) == GOOD
    server.stop(signal.SIGKILL)
    server.start()
    again = Initiator(server.address, NAMES[0], login=False)
    again.isid = holder.isid  # the same initiator port
    again.login()
    stranger = Initiator(server.address, NAMES[2])
    assert read_keys(stranger) == ([0xA] if aptpl else [])
    assert told(again, "WRITE") == "A"
    assert told(stranger, "READ") == ("C" if aptpl else "A")
    for host in (holder, again, stranger):
        host.close()
