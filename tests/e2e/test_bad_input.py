"""Strangers and broken initiators: a clear answer or a closed connection, bounded memory, and a good client served."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from e2e_initiator import Closed, Initiator, Refused, Rejected, pdu, steady, text
from e2e_server import Server, wait_until

StartServer = Callable[..., Server]

GROWTH = 64 << 20  # bytes that the server's processes may grow by, all together, whatever comes
STRANGER = "127.0.0.2"  # bad guests come from elsewhere, as they do
BAD = "iqn.2026-11.org.iscsid.e2e:bad"


@contextmanager
def watched(server: Server) -> Iterator[None]:
    """A good client is served all the while, no worker dies and memory stays bounded."""
    workers = server.workers()
    with steady(server.address):
        before = server.memory()
        yield
        growth = server.memory() - before
    assert server.workers() == workers, f"a worker died:\n{server.tail()}"
    assert growth < GROWTH, f"the server grew by {growth >> 20} MiB"


def stranger(server: Server, **options: Any) -> Initiator:
    return Initiator(server.address, BAD, source=STRANGER, **options)


@pytest.fixture
def server(start: StartServer, ram: list[dict[str, Any]]) -> Server:
    return start(ram, workers=2, login_timeout=2.0)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n" + b"x" * 64,
        b"\0" * 4096,
        b"\xff" * 4096,
        bytes(range(256)) * 4,
        b"\x16\x03\x01" + b"\x01" * 512,
    ],
    ids=["http", "zeros", "ones", "ramp", "tls"],
)
def test_garbage_is_sent_away(server: Server, data: bytes) -> None:
    with watched(server), stranger(server, login=False) as guest:
        guest.send(data)
        assert len(guest.wait_closed()) <= 4096


def test_random_garbage_from_many_connections_is_sent_away(server: Server) -> None:
    with watched(server):
        for _ in range(100):
            with stranger(server, login=False) as guest:
                guest.send(os.urandom(1000))
                guest.wait_closed()


@pytest.mark.parametrize("length", [1, 47, 48, 60])
def test_half_a_login_is_closed_when_its_time_is_up(server: Server, length: int) -> None:
    with watched(server), stranger(server, login=False) as guest:
        guest.send(guest.login_pdu()[:length])
        assert guest.wait_closed() == b""


def test_login_one_byte_at_a_time_is_served(server: Server) -> None:
    with watched(server), stranger(server, login=False) as guest:
        request = guest.login_pdu()
        for position in range(len(request)):
            guest.send(request[position : position + 1])
        head, _ = guest.receive()
        assert head[36:38] == b"\0\0"


def test_half_a_command_harms_nobody(server: Server) -> None:
    with watched(server):
        for length in (1, 47, 48, 4000):
            with stranger(server) as guest:
                guest.send(guest.command_pdu(b"\x2a" + b"\0" * 7 + b"\x08", b"\xee" * 4096)[:length])
    with stranger(server) as guest:
        assert guest.read(0, 8) == b"\0" * 4096, "half a write was done"


def test_endless_login_comes_to_an_end(server: Server) -> None:
    """C bit set, and never the last part: what is collected is bounded, in PDUs and in bytes."""
    with watched(server), stranger(server, login=False) as guest:
        sent = 0
        with pytest.raises((Closed, Refused)):
            guest.send(guest.login_pdu(0x44, text(InitiatorName=BAD, SessionType="Discovery") + b"X-part="))
            while sent < 64 << 20:
                head, _ = guest.receive()
                if status := int.from_bytes(head[36:38], "big"):
                    raise Refused(status)
                part = b"y" * 8192
                guest.send(guest.login_pdu(0x44, part))
                sent += len(part)
        assert sent < 1 << 20


def test_login_that_never_leaves_its_stage_comes_to_an_end(server: Server) -> None:
    with watched(server), stranger(server, login=False) as guest:
        rounds = 0
        with pytest.raises((Closed, Refused, Rejected)):
            guest.send(guest.login_pdu(0x04, text(InitiatorName=BAD, SessionType="Discovery")))
            while rounds < 100_000:
                head, _ = guest.receive()
                if status := int.from_bytes(head[36:38], "big"):
                    raise Refused(status)
                guest.send(guest.login_pdu(0x04, b""))
                rounds += 1
        assert rounds < 10_000


def test_500_idle_connections_from_one_host_leave_room_for_others(server: Server) -> None:
    with watched(server):
        guests = [stranger(server, login=False) for _ in range(500)]
        try:
            with Initiator(server.address) as friend:
                assert len(friend.read(0, 8)) == 4096
            with stranger(server) as neighbour:
                assert len(neighbour.read(0, 8)) == 4096
            assert server.status()["callers"] <= 256
            for guest in guests:
                guest.wait_closed()
        finally:
            for guest in guests:
                guest.close()
    wait_until(lambda: server.status()["callers"] == 0, "all idle connections are gone")


def test_500_idle_connections_from_many_hosts_leave_room_for_others(server: Server) -> None:
    with watched(server):
        guests = []
        try:
            for number in range(500):
                source = f"127.0.1.{number % 50 + 1}"
                guests.append(Initiator(server.address, BAD, source=source, login=False))
            with Initiator(server.address) as friend:
                assert len(friend.read(0, 8)) == 4096
            for guest in guests:
                guest.wait_closed()
        finally:
            for guest in guests:
                guest.close()


def test_500_idle_sessions_cost_little(server: Server) -> None:
    """Logged in and silent: that is allowed, and must be cheap."""
    guests: list[Initiator] = []
    with watched(server):
        try:
            for number in range(500):
                guests.append(Initiator(server.address, f"{BAD}{number}", source=f"127.0.1.{number % 50 + 1}"))
            assert all(len(guest.read(0, 1)) == 512 for guest in guests[::50])
        finally:
            for guest in guests:
                guest.close()
    wait_until(lambda: len(server.sessions()) == 0, "all sessions are over")


def test_login_with_16_mib_of_text_is_sent_away(server: Server) -> None:
    with watched(server), stranger(server, login=False) as guest:
        head = bytearray(guest.login_pdu()[:48])
        head[5:8] = b"\xff\xff\xff"
        guest.send(bytes(head))
        with pytest.raises(Closed):
            for _ in range(16):
                guest.send(b"\0" * (1 << 20))
            guest.receive()


def test_data_segment_that_is_too_long_is_rejected_before_the_connection_ends(server: Server) -> None:
    with watched(server), stranger(server) as guest:
        head = bytearray(pdu(0x01, 0xA0, struct.pack(">III", 4, guest.cmd_sn, guest.exp_stat_sn), tag=7))
        head[5:8] = b"\xff\xff\xfc"
        guest.send(bytes(head))
        with pytest.raises(Rejected):
            guest.receive()
        guest.wait_closed()


@pytest.mark.parametrize("opcode", [0x01, 0x05, 0x00, 0x04], ids=["command", "data-out", "nop-out", "text"])
def test_data_segment_of_16_mib_is_sent_away(server: Server, opcode: int) -> None:
    """Longer than the MaxRecvDataSegmentLength that we have declared: the connection cannot go on."""
    with watched(server), stranger(server) as guest:
        head = bytearray(pdu(opcode, 0xA0, struct.pack(">III", 0xFFFFFC, guest.cmd_sn, guest.exp_stat_sn), tag=7))
        head[5:8] = b"\xff\xff\xfc"
        with pytest.raises((Closed, Rejected)):
            guest.send(bytes(head))
            for _ in range(16):
                guest.send(b"\xab" * (1 << 20))
            guest.receive()


@pytest.mark.parametrize("opcode", [0x07, 0x1C, 0x21, 0x25, 0x3F])
def test_opcode_that_no_initiator_sends_is_rejected_or_closed(server: Server, opcode: int) -> None:
    with watched(server), stranger(server) as guest:
        guest.send(pdu(opcode, 0x80, struct.pack(">III", 0, guest.cmd_sn, guest.exp_stat_sn), tag=9))
        with pytest.raises((Closed, Rejected)):
            guest.receive()


def test_command_outside_the_window_is_not_done(server: Server) -> None:
    """RFC 7143 4.2.2.1: silently ignored."""
    with watched(server), stranger(server) as guest:
        guest.cmd_sn += 100_000
        guest.send(guest.command_pdu(b"\x2a" + b"\0" * 7 + b"\x08", b"\xdd" * 4096))
        guest.cmd_sn -= 100_001
        assert guest.read(0, 8) == b"\0" * 4096


def test_reader_that_never_reads_holds_back_only_itself(server: Server) -> None:
    """128 reads of 8 MiB, a GiB of answers that nobody takes: they wait on the disk, not in our memory."""
    with watched(server), stranger(server) as guest:
        guest.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        cdb = struct.pack(">BBQIBB", 0x88, 0, 0, 16384, 0, 0)
        for _ in range(100):
            guest.send(guest.command_pdu(cdb, expect=8 << 20))
        with Initiator(server.address) as friend:
            for _ in range(50):
                assert len(friend.read(0, 128)) == 65536


def test_pings_that_nobody_reads_the_answers_of_are_bounded(server: Server) -> None:
    with watched(server), stranger(server) as guest:
        guest.sock.settimeout(1.0)
        fields = struct.pack(">III", 0xFFFFFFFF, guest.cmd_sn, guest.exp_stat_sn)
        ping = pdu(0x40, 0x80, fields, b"p" * 65536, tag=5)
        with pytest.raises((Closed, TimeoutError)):  # held back, or thrown out
            for _ in range(4096):
                guest.send(ping)


def test_writes_that_never_send_their_data_are_bounded(server: Server) -> None:
    """Commands that ask for R2Ts and then say nothing."""
    with watched(server), stranger(server) as guest:
        for number in range(1000):
            fields = struct.pack(">III", 16 << 20, guest.cmd_sn, guest.exp_stat_sn)
            cdb = struct.pack(">BBQIBB", 0x8A, 0, 0, 32768, 0, 0)
            guest.cmd_sn += 1
            guest.send(pdu(0x01, 0xA1, fields + cdb, tag=100 + number))
        with Initiator(server.address) as friend:
            assert len(friend.read(0, 8)) == 4096


def test_connections_that_come_and_go_leave_nothing(server: Server) -> None:
    with watched(server):
        for _ in range(300):
            stranger(server, login=False).close()
        for _ in range(100):
            stranger(server).close()
    wait_until(lambda: server.status()["callers"] == 0 and not server.sessions(), "nothing is left")
