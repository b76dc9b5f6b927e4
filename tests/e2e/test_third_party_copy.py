"""Copies that the target does itself: between the units of one target, and by a token that another worker made."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_initiator import Initiator
from e2e_server import Server

StartServer = Callable[..., Server]

ONE, TWO = "iqn.2026-11.org.iscsid.e2e:one", "iqn.2026-11.org.iscsid.e2e:two"
GOOD, CHECK_CONDITION = 0x00, 0x02


@pytest.fixture
def server(start: StartServer, tmp_path: Path) -> Server:
    luns: list[dict[str, Any]] = [
        {"backend": "ram", "size": "16 MiB"},
        {"backend": "file", "size": "16 MiB", "path": tmp_path / "disk.img"},
    ]
    return start(luns, workers=2)


def greet(initiator: Initiator) -> None:
    """Take the unit attentions of a new session."""
    for lun in (0, 1):
        while initiator.command(bytes(6), lun=lun)[0] != GOOD:
            pass


def identification_cscd(initiator: Initiator, lun: int) -> bytes:
    """The CSCD descriptor (SPC-4 6.4.5.2) of a unit, by the first designator of its VPD page 83h."""
    status, page = initiator.command(bytes.fromhex("12 01 83 00ff 00"), expect=255, lun=lun)
    assert status == GOOD
    code_set, kind, length = page[4] & 0x0F, page[5], page[7]
    return struct.pack(">BxxxBBxB20sI", 0xE4, code_set, kind, length, page[8 : 8 + length], 512)


def read(initiator: Initiator, lun: int, lba: int, blocks: int) -> bytes:
    status, data = initiator.command(struct.pack(">BBQIBB", 0x88, 0, lba, blocks, 0, 0), expect=blocks * 512, lun=lun)
    assert status == GOOD
    return data


def send(initiator: Initiator, action: int, data: bytes, *, identifier: int = 0, lun: int = 0) -> tuple[int, bytes]:
    """One command of operation code 83h."""
    return initiator.command(struct.pack(">BBxxxxIIxx", 0x83, action, identifier, len(data)), data, lun=lun)


def test_extended_copy_goes_from_unit_to_unit_and_back(server: Server) -> None:
    with Initiator(server.address, ONE) as one:
        greet(one)
        content = os.urandom(64 * 512)
        one.write(100, content)
        cscds = identification_cscd(one, 0) + identification_cscd(one, 1)
        segments = struct.pack(">BBHHHxxHQQ", 2, 0, 0x18, 0, 1, 64, 100, 5000)
        segments += struct.pack(">BBHHHxxHQQ", 2, 0, 0x18, 1, 0, 64, 5000, 9000)
        data = struct.pack(">BBH4xII", 7, 0, len(cscds), len(segments), 0) + cscds + segments
        assert send(one, 0x00, data) == (GOOD, b"")
        assert read(one, 1, 5000, 64) == read(one, 0, 9000, 64) == content
        status, answer = one.command(bytes.fromhex("84 00 07 00000000000000 000000ff 0000"), expect=255)
        assert (status, answer) == (GOOD, bytes.fromhex("00000008 01 0002 00") + struct.pack(">I", 128 * 512))


CLOSED = f"""
[[target]]
name = "iqn.2026-11.org.iscsid.e2e:closed"
initiators = ["{TWO}"]
[[target.lun]]
lun = 0
backend = "ram"
size = "1 MiB"
serial = "CLOSED"

[[target]]
name = "iqn.2026-11.org.iscsid.e2e:locked"
[target.auth]
chap = [{{ user = "joe", secret = "secretsecret1" }}]
[[target.lun]]
lun = 0
backend = "ram"
size = "1 MiB"
serial = "LOCKED"
"""


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Server]:
    """Beside the target that everybody may use: one that TWO alone may, and one that asks for a proof."""
    server = Server(tmp_path, [{"backend": "ram", "size": "1 MiB", "serial": "OPEN"}], workers=2)
    server.config.write_text(server.config.read_text() + CLOSED)
    server.start()
    try:
        yield server
    finally:
        server.finish()


def vendor_cscd(serial: str) -> bytes:
    """The CSCD descriptor of a unit by its T10 vendor ID based designator, which who knows its serial number knows."""
    name = b"ISCSID  " + serial.encode()
    return struct.pack(">BxxxBBxB20sI", 0xE4, 0x2, 0x1, len(name), name, 512)


def copy_one_block(initiator: Initiator, source: str, destination: str) -> tuple[int, bytes]:
    cscds = vendor_cscd(source) + vendor_cscd(destination)
    segment = struct.pack(">BBHHHxxHQQ", 2, 0, 0x18, 0, 1, 1, 0, 0)
    data = struct.pack(">BBH4xII", 7, 0, len(cscds), len(segment), 0) + cscds + segment
    return send(initiator, 0x00, data)


@pytest.mark.parametrize(("one", "two"), [("OPEN", "CLOSED"), ("CLOSED", "OPEN")])
def test_copy_reaches_no_target_that_its_initiator_may_not_log_in_to(closed: Server, one: str, two: str) -> None:
    with Initiator(closed.address, ONE) as stranger, Initiator(closed.address, TWO) as guest:
        guest.write(0, b"guest..." * 64)
        assert copy_one_block(guest, "OPEN", "CLOSED") == (GOOD, b"")
        stranger.write(0, b"stranger" * 64)
        status, answer = copy_one_block(stranger, one, two)
        assert status == CHECK_CONDITION
        sense = answer[2:]
        assert (sense[2] & 0x0F, sense[12:14].hex()) == (0x0A, "0d02")  # COPY TARGET DEVICE NOT REACHABLE
        assert stranger.read(0, 1) == b"stranger" * 64, "nothing came out of the closed target"
        assert copy_one_block(guest, "CLOSED", "OPEN") == (GOOD, b"")
        assert guest.read(0, 1) == b"guest..." * 64, "and nothing went in"


@pytest.mark.parametrize(("one", "two"), [("OPEN", "LOCKED"), ("LOCKED", "OPEN")])
def test_copy_reaches_no_target_that_asks_for_a_proof_that_was_not_given(closed: Server, one: str, two: str) -> None:
    with Initiator(closed.address, TWO) as guest:
        guest.write(0, b"guest..." * 64)
        status, answer = copy_one_block(guest, one, two)
        assert (status, answer[14:16].hex()) == (CHECK_CONDITION, "0d02")
        assert guest.read(0, 1) == b"guest..." * 64


def test_token_of_one_worker_is_good_in_another_and_a_changed_one_is_not(server: Server) -> None:
    with Initiator(server.address, ONE) as one, Initiator(server.address, TWO) as two:
        assert {server.worker_of(name) for name in (ONE, TWO)} == {0, 1}
        greet(one)
        greet(two)
        content = os.urandom(64 * 512)
        one.write(100, content)
        ranges = struct.pack(">QI4x", 100, 64)
        data = struct.pack(">HBxII2xH", 14 + len(ranges), 0, 0, 0, len(ranges)) + ranges
        assert send(one, 0x10, data, identifier=5)[0] == GOOD
        status, answer = one.command(bytes.fromhex("84 07 00000005 00000000 00000400 0000"), expect=1024)
        assert status == GOOD
        token = answer[38:]
        assert len(token) == 512
        for presented, outcome in ((token, GOOD), (token[:300] + b"x" + token[301:], CHECK_CONDITION)):
            ranges = struct.pack(">QI4x", 5000, 64)
            data = struct.pack(">HB5xQ512s6xH", 534 + len(ranges), 0, 0, presented, len(ranges)) + ranges
            assert send(two, 0x11, data, identifier=6, lun=1)[0] == outcome
        assert read(two, 1, 5000, 64) == read(one, 1, 5000, 64) == content
