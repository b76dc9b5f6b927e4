"""A link between a real socket and an engine that does as it is told, under a clock that stands still."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from worker_kit import Initiator, connected, until

from iscsid.daemon import link as module
from iscsid.daemon.link import (
    ENDING_SECONDS,
    FAREWELL_SECONDS,
    GONE,
    OUTPUT_LIMIT,
    READ,
    RECEIVE_BUFFER,
    WRITE,
    Farewell,
    Held,
    Link,
)
from iscsid.errors import RemoteProtocolError
from iscsid.shared.messages import Connect
from iscsid.wire.framer import Framer
from iscsid.wire.outbox import CHUNK_SIZE, Outbox
from iscsid.wire.pdu import TARGET_RECEIVES

CLOCKS = {"login_timeout": 15.0, "nop_interval": 30.0, "nop_timeout": 20.0}


class FakeEngine:
    """Takes what comes into ``received``; ``then`` is called with itself for what a test wants to happen on that."""

    def __init__(self) -> None:
        self.connection: Any = SimpleNamespace(
            framer=Framer(TARGET_RECEIVES, 4096),
            outbox=Outbox(4096),
            closing=False,
            pinged=False,
            ping=self.ping,
        )
        self.received = bytearray()
        self.then: Callable[[FakeEngine], None] = lambda _: None
        self.on_sent: Callable[[], None] = lambda: None
        self.closed = False

    def receive(self, count: int) -> None:
        framer = self.connection.framer
        framer.received(count)
        self.received += framer._view[framer._start : framer._end]
        framer._start = framer._end
        self.then(self)

    def sent(self) -> None:
        self.on_sent()

    def ping(self) -> None:
        self.connection.pinged = True
        self.connection.outbox.put(b"ping")

    def close(self) -> None:
        self.closed = True
        self.connection.outbox.clear()


class Desk:
    """The owner: an epoll with one link in it. ``reasons`` has why its session was over."""

    def __init__(self) -> None:
        self.peer, sock = connected()
        self.sock = sock
        self.epoll = select.epoll()
        self.masks: list[int] = []
        self.reasons: list[str] = []
        self.lingering: list[socket.socket] = []
        self.forgotten = False
        self.link = Link(sock, Connect(5, "name", 1, "target", "peer:1", "portal:1"), 100.0, self)
        self.engine = FakeEngine()
        self.link.engine = self.engine  # type: ignore[assignment]
        self.epoll.register(sock, READ)

    def watch(self, link: Link, mask: int) -> None:
        assert mask, "nothing would ever wake the link up"
        self.masks.append(mask)
        self.epoll.modify(link.fileno(), mask)

    def forget(self, link: Link) -> None:
        assert not self.forgotten
        self.forgotten = True
        self.epoll.unregister(link.fileno())

    def linger(self, sock: socket.socket) -> None:
        self.lingering.append(sock)

    def over(self, _link: Link, reason: str) -> None:
        assert self.forgotten
        self.reasons.append(reason)

    def turn(self, timeout: float = 20.0) -> int:
        """Let the link have the next event; its mask."""
        events = self.epoll.poll(timeout)
        assert events, "no event"
        self.link.on_event(events[0][1])
        return events[0][1]

    def quiet(self) -> bool:
        return not self.epoll.poll(0)

    def fill(self, byte: bytes = b"x") -> int:
        """Queue and send so much that the socket takes no more; how much is left."""
        outbox = self.engine.connection.outbox
        self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        while self.link._mask & WRITE == 0 or not self.quiet():
            outbox.put(byte * (1 << 20))
            self.link.flush()
        assert outbox.queued
        return int(outbox.queued)

    def tick(self, now: float, **changes: float) -> None:
        self.link.tick(now, **{**CLOCKS, **changes})

    def close(self) -> None:
        self.link.close("test is over")
        self.peer.close()
        for sock in self.lingering:
            sock.close()
        self.epoll.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.close()


def outbox_of(desk: Desk) -> Outbox:
    outbox: Outbox = desk.engine.connection.outbox
    return outbox


def read_all(sock: socket.socket) -> bytes:
    said = bytearray()
    while part := sock.recv(1 << 16):
        said += part
    return bytes(said)


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_what_comes_is_executed_and_the_answer_sent_at_once(desk: Desk) -> None:
    desk.engine.then = lambda engine: engine.connection.outbox.put(b"answer")
    desk.peer.sendall(b"question")
    desk.turn()
    assert desk.engine.received == b"question"
    assert desk.peer.recv(100) == b"answer"
    assert desk.masks == [], "nothing had to be asked of the loop"


def test_event_without_anything_to_read_is_harmless(desk: Desk) -> None:
    desk.link.on_event(READ)  # that of a closed connection which had the same descriptor
    desk.link.on_event(READ | WRITE)
    assert not desk.reasons


def test_lent_memory_goes_out_between_what_was_built(desk: Desk) -> None:
    outbox = outbox_of(desk)
    outbox.put(b"head")
    outbox.lend(memoryview(b"body"))
    outbox.put(b"tail")
    desk.link.flush()
    assert desk.peer.recv(100) == b"headbodytail"


def test_full_buffer_grows_and_a_small_talker_keeps_a_small_one(desk: Desk) -> None:
    framer = desk.engine.connection.framer
    desk.peer.sendall(b"x" * 100)
    desk.turn()
    desk.engine.connection.framer.writable()
    assert framer.buffer_size == 4096
    desk.peer.sendall(b"x" * 100_000)
    until(lambda: len(desk.engine.received) == 100_100 or (desk.turn() and False))
    framer.writable()
    assert framer.buffer_size == RECEIVE_BUFFER


def test_much_output_makes_the_chunks_grow(desk: Desk) -> None:
    outbox = outbox_of(desk)
    assert outbox.chunk_size == 4096
    outbox.put(b"x" * 3000)
    outbox.put(b"y" * 3000)
    desk.link.flush()
    assert outbox.chunk_size == CHUNK_SIZE


def test_slow_reader_gets_everything_in_the_end(desk: Desk) -> None:
    desk.fill()
    total = 0
    desk.peer.settimeout(20.0)
    while outbox_of(desk).queued:
        total += len(desk.peer.recv(1 << 20))
        if not desk.quiet():
            desk.turn()
    assert desk.masks[0] == READ | WRITE
    assert desk.masks[-1] == READ, "back to waiting for the initiator alone"


def test_peer_that_never_reads_is_not_listened_to_beyond_the_limit(desk: Desk) -> None:
    desk.fill()
    outbox_of(desk).put(b"x" * (2 * OUTPUT_LIMIT))  # more than the kernel could take of it
    desk.link.flush()
    assert desk.masks[-1] == WRITE
    desk.peer.sendall(b"more")
    assert not [mask for _, mask in desk.epoll.poll(0) if mask & READ]
    desk.peer.settimeout(20.0)
    while desk.engine.received != b"more":
        desk.peer.recv(1 << 20)
        if not desk.quiet():
            desk.turn()
    assert outbox_of(desk).queued < OUTPUT_LIMIT


def test_one_turn_sends_only_so_much(desk: Desk) -> None:
    calls = []

    def more() -> None:
        calls.append(1)
        outbox_of(desk).put(b"x" * 10)

    outbox_of(desk).put(b"x" * 10)
    desk.engine.on_sent = more
    desk.link.flush()
    assert len(calls) == module.SEND_ROUNDS
    assert desk.masks == [READ | WRITE], "the rest is for the next turn"


def test_shortage_in_the_kernel_is_waited_out(desk: Desk) -> None:
    class Short:
        def send(self, _data: memoryview) -> int:
            raise OSError(errno.ENOBUFS, "No buffer space available")

    outbox_of(desk).put(b"data")
    real, desk.link._socket = desk.link._socket, Short()  # type: ignore[assignment]
    desk.link.flush()
    assert desk.link.alive
    assert desk.masks == [READ | WRITE]
    desk.link._socket = real
    desk.turn()
    assert desk.peer.recv(100) == b"data"


# --- ends -------------------------------------------------------------------------------------------------------------


def test_end_of_stream_closes_the_session(desk: Desk) -> None:
    desk.peer.shutdown(socket.SHUT_WR)
    desk.turn()
    assert desk.reasons == ["connection closed by the initiator"]
    assert desk.engine.closed
    assert desk.peer.recv(1) == b""


def test_reset_closes_the_session(desk: Desk) -> None:
    Initiator(desk.peer).reset()
    mask = desk.turn()
    assert mask & select.EPOLLERR
    assert desk.reasons == ["connection lost: Connection reset by peer"]


def test_send_to_a_closed_peer_closes_the_session(desk: Desk) -> None:
    Initiator(desk.peer).reset()
    until(lambda: not desk.quiet())
    outbox_of(desk).put(b"answer")
    desk.link.flush()
    assert desk.reasons[0].startswith("connection lost: ")


def test_close_closes_once_and_everything_after_is_harmless(desk: Desk) -> None:
    desk.link.close("first")
    desk.link.close("second")
    desk.link.flush()
    desk.link.on_event(READ | WRITE | GONE)
    desk.link.release()
    assert desk.reasons == ["first"]
    assert not desk.link.alive


def test_peer_that_breaks_the_protocol_gets_its_answer_and_a_farewell(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(engine: FakeEngine) -> None:
        engine.connection.outbox.put(b"reject")
        raise RemoteProtocolError("that is no PDU")

    desk.engine.then = broken
    desk.peer.sendall(b"rubbish")
    desk.turn()
    assert desk.peer.recv(100) == b"reject"
    assert desk.reasons == ["that is no PDU"]
    assert desk.lingering, "closing now could reset the connection"
    assert "peer:1: that is no PDU" in caplog.text
    assert "Traceback" not in caplog.text


def test_closing_connection_reads_nothing_more_and_goes_when_all_is_sent(desk: Desk) -> None:
    desk.fill()
    desk.engine.connection.closing = True
    desk.link.flush()
    assert desk.masks[-1] == WRITE
    desk.peer.settimeout(20.0)
    desk.peer.sendall(b"x" * 200_000)  # which nobody looks at, and which fills no buffer of ours
    while desk.link.alive:
        desk.peer.recv(1 << 20)
        if not desk.quiet():
            desk.turn()
    assert not desk.engine.received
    assert desk.reasons == ["logged out"]
    assert len(desk.lingering) == 1


def test_closing_connection_whose_peer_is_reset_goes_at_once(desk: Desk) -> None:
    desk.fill()
    desk.engine.connection.closing = True
    desk.link.flush()
    Initiator(desk.peer).reset()
    while desk.link.alive:
        desk.turn()
    assert desk.reasons[0].startswith("connection lost")


# --- bugs of ours -----------------------------------------------------------------------------------------------------


def planted(_: Any = None) -> None:
    raise ZeroDivisionError("planted")


@pytest.mark.parametrize("where", ["receive", "sent", "flush", "release", "tick"])
def test_bug_costs_the_session_and_is_logged_with_its_traceback(
    desk: Desk, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    if where == "receive":
        desk.engine.then = planted
        desk.peer.sendall(b"x")
        desk.turn()
    elif where == "release":
        desk.link.hold()
        desk.engine.then = planted
        desk.link.release()
    else:
        desk.engine.on_sent = planted
        outbox_of(desk).put(b"x")
        if where == "sent":
            desk.link.on_event(WRITE)
        elif where == "flush":
            desk.link.flush()
        else:
            desk.link.established = 100.0
            desk.tick(140.0)
    assert desk.reasons == ["internal error"]
    assert desk.engine.closed
    assert "peer:1: session 5 ends by an error of this server" in caplog.text
    assert "ZeroDivisionError: planted" in caplog.text


def test_full_framer_is_a_bug_of_ours_too(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    framer = desk.engine.connection.framer
    framer.received(len(framer.writable()))
    desk.peer.sendall(b"x")
    desk.turn()
    assert desk.reasons == ["internal error"]
    assert "LocalProtocolError" in caplog.text


def test_bug_in_closing_still_closes(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(desk.engine, "close", planted)
    desk.link.close("dropped")
    assert desk.reasons == ["dropped"]
    assert desk.peer.recv(1) == b""
    assert "does not end well" in caplog.text


# --- held -------------------------------------------------------------------------------------------------------------


def test_held_link_executes_nothing_until_it_is_released(desk: Desk) -> None:
    desk.link.hold()
    desk.peer.sendall(b"command")
    assert desk.quiet()
    assert not desk.forgotten
    desk.link.release()
    desk.turn()
    assert desk.engine.received == b"command"


def test_held_twice_needs_two_releases(desk: Desk) -> None:
    desk.link.hold()
    desk.link.hold()
    desk.peer.sendall(b"command")
    desk.link.release()
    assert desk.link.held
    assert desk.quiet()
    desk.link.release()
    assert not desk.link.held
    desk.turn()


def test_held_from_within_sends_what_there_is_and_goes_on_with_the_rest_later(desk: Desk) -> None:
    def establish(engine: FakeEngine) -> None:
        engine.connection.outbox.put(b"login response")
        desk.link.hold()
        raise Held

    desk.engine.then = establish
    desk.peer.sendall(b"login")
    desk.turn()
    assert desk.peer.recv(100) == b"login response"
    desk.engine.then = lambda engine: engine.connection.outbox.put(b"answer")
    desk.link.release()
    assert desk.peer.recv(100) == b"answer"
    assert desk.link.alive


def test_held_link_still_sends(desk: Desk) -> None:
    desk.link.hold()
    left = desk.fill()
    desk.peer.settimeout(20.0)
    while outbox_of(desk).queued:
        assert desk.peer.recv(1 << 20)
        if not desk.quiet():
            desk.turn()
    assert left
    assert desk.masks[-1] == select.EPOLLRDHUP


@pytest.mark.parametrize("part", [lambda peer: peer.shutdown(socket.SHUT_WR), lambda peer: Initiator(peer).reset()])
def test_held_link_notices_that_its_peer_goes(desk: Desk, part: Callable[[socket.socket], None]) -> None:
    desk.link.hold()
    part(desk.peer)
    desk.turn()
    assert desk.reasons == ["connection closed by the initiator"]
    desk.link.release()


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_login_that_takes_too_long_is_ended_however_much_is_said(desk: Desk) -> None:
    desk.link.heard = True
    desk.tick(115.0)
    assert desk.link.alive
    desk.link.heard = True
    desk.tick(115.1)
    assert desk.reasons == ["login took too long"]


def test_silent_initiator_is_pinged_and_then_given_up(desk: Desk) -> None:
    desk.link.established = 100.0
    desk.tick(130.0)
    assert not desk.engine.connection.pinged
    desk.tick(131.0)
    assert desk.engine.connection.pinged
    assert desk.peer.recv(100) == b"ping"
    desk.tick(151.0)
    assert desk.link.alive
    desk.tick(151.1)
    assert desk.reasons == ["initiator does not answer"]


def test_initiator_that_answers_is_pinged_again_after_the_interval(desk: Desk) -> None:
    desk.link.established = 100.0
    desk.tick(131.0)
    desk.engine.connection.pinged = False
    desk.link.heard = True
    desk.tick(132.0)
    desk.tick(162.0)
    assert not desk.engine.connection.pinged
    desk.tick(162.1)
    assert desk.engine.connection.pinged


def test_initiator_that_says_anything_is_not_pinged(desk: Desk) -> None:
    desk.link.established = 100.0
    for now in range(101, 200):
        desk.peer.sendall(b"x")
        desk.turn()
        desk.tick(now)
    assert not desk.engine.connection.pinged


def test_initiator_that_takes_data_lives_even_if_the_answer_waits_behind_it(desk: Desk) -> None:
    desk.link.established = 100.0
    desk.tick(131.0)
    assert desk.engine.connection.pinged
    desk.tick(150.0)
    desk.link.on_event(WRITE)
    desk.tick(151.5)
    desk.tick(170.0)
    assert desk.link.alive
    desk.tick(171.6)
    assert desk.reasons == ["initiator does not answer"]


def test_no_interval_means_no_pings(desk: Desk) -> None:
    desk.link.established = 100.0
    desk.tick(1e6, nop_interval=0.0)
    assert desk.link.alive
    assert not desk.engine.connection.pinged


def test_held_link_is_not_pinged_for_nobody_would_read_the_answer(desk: Desk) -> None:
    desk.link.established = 100.0
    desk.link.hold()
    desk.tick(1e6)
    assert desk.link.alive
    assert not desk.engine.connection.pinged


def test_last_answers_that_are_not_taken_are_given_up(desk: Desk) -> None:
    desk.fill()
    desk.engine.connection.closing = True
    desk.link.flush()
    since = desk.link.ending_since
    assert since is not None
    desk.tick(since + ENDING_SECONDS)
    assert desk.link.alive
    desk.tick(since + ENDING_SECONDS + 0.1)
    assert desk.reasons == ["last answers not taken"]
    assert not desk.lingering


# --- addresses --------------------------------------------------------------------------------------------------------


def test_address_is_where_the_initiator_has_come_to(desk: Desk) -> None:
    host, port = desk.peer.getpeername()
    assert desk.link.address == f"{host}:{port}"


def test_socket_sends_small_answers_at_once(desk: Desk) -> None:
    assert desk.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert not os.get_blocking(desk.sock.fileno())


# --- farewells --------------------------------------------------------------------------------------------------------


class Parting:
    """A farewell, and how often it was done."""

    def __init__(self) -> None:
        self.peer, self.sock = connected()
        self.sock.setblocking(False)
        self.done = 0
        self.farewell = Farewell(self.sock, 100.0, self._done)

    def _done(self, farewell: Farewell) -> None:
        assert farewell.fileno() >= 0, "its descriptor is needed to forget it"
        self.done += 1

    def turn(self) -> None:
        assert select.select([self.sock], [], [], 20.0)[0]
        self.farewell.on_event(READ)

    def close(self) -> None:
        self.peer.close()
        self.sock.close()


@pytest.fixture
def parting() -> Iterator[Parting]:
    parting = Parting()
    yield parting
    parting.close()


def test_farewell_ends_when_the_peer_closes_and_nothing_is_lost(parting: Parting) -> None:
    assert read_all(parting.peer) == b"", "the peer sees an orderly end"
    parting.peer.sendall(b"what was under way")
    parting.turn()
    assert not parting.done
    parting.peer.close()
    parting.turn()
    assert parting.done == 1
    assert parting.sock.fileno() < 0


def test_farewell_without_anything_to_read_waits(parting: Parting) -> None:
    parting.farewell.on_event(READ)
    assert not parting.done
    assert parting.farewell.deadline == 100.0 + FAREWELL_SECONDS


def test_farewell_from_a_peer_that_resets_ends(parting: Parting) -> None:
    Initiator(parting.peer).reset()
    parting.turn()
    assert parting.done == 1


def test_farewell_from_a_peer_that_sends_for_ever_ends(parting: Parting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAREWELL_BYTES", 1000)
    parting.peer.sendall(b"x" * 1000)
    while not parting.done and parting.farewell._bytes < 1000:
        parting.turn()
    assert not parting.done
    parting.peer.sendall(b"x")
    parting.turn()
    assert parting.done == 1


def test_farewell_to_a_peer_that_is_gone_is_refused() -> None:
    peer, sock = connected()
    Initiator(peer).reset()
    assert select.select([sock], [], [], 20.0)[0]
    with sock, pytest.raises(OSError, match="not connected"):
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        Farewell(sock, 100.0, lambda _: None)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
