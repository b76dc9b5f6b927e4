"""Real sockets on loopback, one selector, no process: who is placed, who is sent away, and that nothing is consumed."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Iterator

import pytest

from iscsid.daemon.doorman import Caller, DoorLimits, Doorman, join, source
from iscsid.daemon.firstpdu import LoginHint
from iscsid.daemon.listener import Listener
from iscsid.wire.pdu import LoginRequest, padding

TEXT = b"InitiatorName=iqn.x:host\0TargetName=iqn.x:disk\0"
LOGIN = LoginRequest(isid=1, transit=True, csg=1, nsg=3, data=TEXT).pack() + TEXT + bytes(padding(len(TEXT)))
HINT = LoginHint(0, 1, "iqn.x:host", "iqn.x:disk")


class Door:
    """A doorman with a real listener; ``ready`` says whether there is a worker to place callers with."""

    def __init__(self, in_all: int = 8, per_host: int = 4) -> None:
        self.ready = True
        self.placed: list[tuple[Caller, LoginHint]] = []
        self.selector = selectors.DefaultSelector()
        self.listener = Listener(socket.AF_INET, ("127.0.0.1", 0))
        self.listener.open()
        self.doorman = Doorman(self.selector, DoorLimits(in_all, per_host, 10.0), self.place)
        self.clients: list[socket.socket] = []

    def place(self, caller: Caller, hint: LoginHint) -> bool:
        if self.ready:
            self.placed.append((caller, hint))
        return self.ready

    def connect(self, now: float = 0.0, address: str | None = None) -> socket.socket:
        """A client whose connection the doorman has; ``address`` replaces the one it comes from."""
        client = socket.create_connection(self.listener.sock.getsockname())
        self.clients.append(client)
        accepted = self.listener.accept()
        assert accepted is not None
        sock, peer, portal = accepted
        self.doorman.admit(sock, peer if address is None else (address, 1), portal, now)
        return client

    def run(self, timeout: float = 1.0) -> int:
        """One round of the loop; how many events there were."""
        events = self.selector.select(timeout)
        for key, mask in events:
            key.data(mask, 0.0)
        return len(events)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for caller, _ in self.placed:
            caller.sock.close()
        self.doorman.close()
        self.listener.close()
        self.selector.close()


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


def test_login_is_placed_and_not_consumed(door: Door) -> None:
    client = door.connect()
    client.sendall(LOGIN + b"next")
    door.run()
    ((caller, hint),) = door.placed
    assert hint == HINT
    assert caller.peer == join(client.getsockname())
    assert caller.portal == join(client.getpeername())
    assert caller.sock.recv(1000) == LOGIN + b"next"
    assert caller.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
    assert len(door.doorman) == 0


def test_login_in_pieces_wakes_three_times_at_most(door: Door) -> None:
    client = door.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wakes = 0
    for position in range(len(LOGIN)):
        client.sendall(LOGIN[position : position + 1])
        wakes += door.run(0.001 if position not in (0, 47, len(LOGIN) - 1) else 1.0)
    assert [hint for _, hint in door.placed] == [HINT]
    assert wakes == 3, "first byte, whole header, whole PDU"
    assert door.placed[0][0].sock.recv(1000) == LOGIN


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\0", bytes(10000), b"\x43" + b"\xff" * 47])
def test_garbage_is_closed_at_once(door: Door, garbage: bytes) -> None:
    client = door.connect()
    client.sendall(garbage)
    while door.doorman:
        door.run()
    with pytest.raises(ConnectionResetError):  # data was left unread
        while client.recv(100):
            pass
        raise ConnectionResetError
    assert door.doorman.refused == {"no login": 1}
    assert not door.placed


@pytest.mark.parametrize("sent", [0, 1, 20, 48, len(LOGIN) - 1])
def test_peer_that_closes_halfway_is_noticed_without_spinning(door: Door, sent: int) -> None:
    client = door.connect()
    client.sendall(LOGIN[:sent])
    client.close()
    rounds = 0
    while door.doorman:
        door.run()
        rounds += 1
    assert rounds <= 4
    assert door.doorman.refused == {"closed by peer": 1}


def test_peer_that_resets_is_noticed(door: Door) -> None:
    client = door.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    door.run()
    assert door.doorman.refused == {"closed by peer": 1}


def test_login_followed_by_a_half_close_is_still_placed(door: Door) -> None:
    client = door.connect()
    client.sendall(LOGIN)
    client.shutdown(socket.SHUT_WR)
    door.run()
    assert [hint for _, hint in door.placed] == [HINT]


def test_half_a_login_wakes_nobody(door: Door) -> None:
    client = door.connect()
    client.sendall(LOGIN[:60])
    while door.run(0.05):
        pass
    client.sendall(LOGIN[60:70])
    assert door.run(0.05) == 0


def test_deadline_closes_those_whose_time_is_over_only(door: Door) -> None:
    early = door.connect(now=0.0)
    late = door.connect(now=5.0)
    assert door.doorman.deadline() == 10.0
    door.doorman.expire(9.9)
    assert len(door.doorman) == 2
    door.doorman.expire(10.0)
    assert early.recv(1) == b""
    assert door.doorman.refused == {"timeout": 1}
    assert door.doorman.deadline() == 15.0
    late.sendall(LOGIN)
    door.run()
    assert len(door.placed) == 1
    assert door.doorman.deadline() is None


def test_oldest_of_a_host_gives_way_at_its_cap(door: Door) -> None:
    idle = [door.connect() for _ in range(4)]
    other = door.connect(address="10.0.0.9")
    client = door.connect()
    assert idle[0].recv(1) == b""
    assert len(door.doorman) == 5
    assert door.doorman.refused == {"too many from one host": 1}
    client.sendall(LOGIN)
    other.sendall(LOGIN)
    while len(door.placed) < 2:
        door.run()


def test_oldest_of_the_busiest_host_gives_way_at_the_cap_in_all() -> None:
    door = Door(in_all=4, per_host=3)
    try:
        lone = door.connect(address="10.0.0.1")
        crowd = [door.connect(address="10.0.0.2") for _ in range(3)]
        door.connect(address="10.0.0.3")
        assert crowd[0].recv(1) == b""
        assert door.doorman.refused == {"too many": 1}
        lone.sendall(LOGIN)
        door.run()
        assert len(door.placed) == 1
    finally:
        door.close()


def test_flood_from_one_host_is_bounded_and_a_login_still_gets_in(door: Door) -> None:
    for _ in range(200):
        door.connect()
        assert len(door.doorman) <= 4
    door.connect().sendall(LOGIN)
    door.run()
    assert len(door.placed) == 1


def test_event_of_a_caller_that_gave_way_in_the_same_round_is_ignored(door: Door) -> None:
    client = door.connect()
    client.sendall(LOGIN)
    events = door.selector.select(1.0)
    for _ in range(4):
        door.connect()
    for key, mask in events:
        key.data(mask, 0.0)
    assert not door.placed


def test_caller_waits_for_its_worker_and_is_placed_by_retry(door: Door) -> None:
    door.ready = False
    client = door.connect()
    client.sendall(LOGIN)
    door.run()
    assert len(door.doorman) == 1
    assert door.run(0.01) == 0, "a caller that waits for a worker must not wake the loop"
    door.doorman.retry()
    assert len(door.doorman) == 1
    door.ready = True
    door.doorman.retry()
    ((caller, hint),) = door.placed
    assert hint == HINT
    assert caller.sock.recv(1000) == LOGIN
    assert len(door.doorman) == 0


def test_caller_whose_worker_does_not_come_is_closed_at_its_deadline(door: Door) -> None:
    door.ready = False
    client = door.connect()
    client.sendall(LOGIN)
    door.run()
    door.doorman.expire(10.0)
    assert door.doorman.refused == {"no worker": 1}
    assert len(door.doorman) == 0


def test_close_leaves_no_descriptor_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    door = Door()
    door.connect()
    door.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nonsense", "nonsense"),
    ],
)
def test_source_of_an_address(host: str, expected: str) -> None:
    assert source(host) == expected


def test_join_puts_ipv6_in_brackets() -> None:
    assert join(("::1", 3260, 0, 0)) == "[::1]:3260"
    assert join(("127.0.0.1", 1)) == "127.0.0.1:1"
