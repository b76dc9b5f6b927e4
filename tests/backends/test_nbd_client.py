"""A client over connections that come and go: nothing that was promised may be lost with them."""

from __future__ import annotations

import errno
import struct
import threading
import time
from collections.abc import Callable

import pytest
from iscsid_backends import nbd_client
from iscsid_backends import nbd_protocol as p
from iscsid_backends.nbd_client import Client, examine
from iscsid_backends.nbd_connection import Request
from nbd_kit import FACTS, FLAGS, SIZE, Peer, Play, Script, honest, until

from iscsid.plugin import BlockError, Fault, fault_of


def write(offset: int, data: bytes, flags: int = 0) -> Request:
    return Request(p.CMD_WRITE, offset, data=memoryview(data), flags=flags)


def read(client: Client, offset: int, length: int) -> bytes:
    buffer = bytearray(b"\xa5" * length)
    client.call(Request(p.CMD_READ, offset, data=memoryview(buffer)))
    return bytes(buffer)


def leaving(after: int, answered: bool = True, memory: bytearray | None = None) -> Play:
    """An honest server that goes with its request number ``after``, which it has answered or not. With ``memory``,
    what it is told is never seen again."""

    def play(peer: Peer) -> None:
        peer.shake()
        for _ in range(after - 1):
            peer.answer(peer.asked(), peer.server.memory if memory is None else memory)
        request = peer.asked()
        if answered:
            peer.answer(request, peer.server.memory if memory is None else memory)

    return play


def fault(error: Exception) -> Fault:
    return fault_of(error, writing=True)


# Connections.


def test_nothing_is_connected_before_the_first_request() -> None:
    with Script() as script:
        client = script.client()
        assert not script.connections
        assert read(client, 0, 512) == bytes(512)
        assert read(client, 0, 512) == bytes(512)
        assert script.connections == 1
        client.close()


def test_request_without_an_answer_is_sent_again() -> None:
    with Script(leaving(2, answered=False), honest) as script:
        client = script.client()
        client.change(write(0, b"a" * 512))
        client.change(write(512, b"b" * 512))
        assert script.memory[:1024] == b"a" * 512 + b"b" * 512
        assert script.kinds() == ["write"] * 3
        client.close()


def test_server_that_is_shutting_down_is_one_that_is_lost() -> None:
    def leaving_politely(peer: Peer) -> None:
        peer.shake()
        peer.simple(peer.asked().cookie, errno.ESHUTDOWN)
        peer.recv(1)

    with Script(leaving_politely, honest) as script:
        client = script.client()
        client.change(write(0, b"a" * 512))
        assert script.memory[:512] == b"a" * 512
        client.close()


def test_server_that_is_away_for_a_while_is_waited_for() -> None:
    def away(peer: Peer) -> None:
        del peer

    with Script(away, away, away, honest) as script:
        client = script.client()
        assert read(client, 0, 512) == bytes(512)
        assert script.connections == 4
        client.close()


def test_server_that_stays_away_is_not_ready_after_the_time_for_it() -> None:
    with Script(lambda peer: None) as script:
        client = script.client(reconnect=0.3)
        start = time.monotonic()
        with pytest.raises(BlockError) as caught:
            read(client, 0, 512)
        assert caught.value.fault is Fault.NOT_READY
        assert 0.2 < time.monotonic() - start < 5
        assert script.connections < 20
        client.close()


def test_pauses_grow_and_a_server_that_leaves_at_once_is_not_hammered() -> None:
    with Script(leaving(1, answered=False)) as script:
        client = script.client(reconnect=1.0)
        with pytest.raises(BlockError):
            read(client, 0, 512)
        assert 2 <= script.connections <= 6
        client.close()


def test_without_patience_a_lost_request_fails_at_once_and_the_next_connects() -> None:
    with Script(leaving(2, answered=False), honest) as script:
        client = script.client(reconnect=0)
        assert read(client, 0, 512) == bytes(512)
        with pytest.raises(BlockError, match="closed the connection") as caught:
            read(client, 0, 512)
        assert caught.value.fault is Fault.NOT_READY
        until(lambda: time.monotonic() > client._retry_at, "the pause is over")
        assert read(client, 0, 512) == bytes(512)
        client.close()


def test_without_patience_all_wait_for_the_attempt_that_one_makes() -> None:
    gate = threading.Event()

    def slow(peer: Peer) -> None:
        gate.wait()
        honest(peer)

    with Script(slow) as script:
        client = script.client(reconnect=0)
        found: list[bytes] = []
        threads = [threading.Thread(target=lambda: found.append(read(client, 0, 512))) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(client._changed._waiters) == 3, "three wait")  # type: ignore[attr-defined]
        gate.set()
        for thread in threads:
            thread.join(10)
        assert found == [bytes(512)] * 4
        client.close()


def test_server_that_comes_back_and_goes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_client, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(nbd_client, "LAST_PAUSE", 0.0)
    with Script(leaving(1, answered=False)) as script:
        client = script.client(reconnect=0.2)
        with pytest.raises(BlockError) as caught:
            read(client, 0, 512)
        assert caught.value.fault is Fault.NOT_READY
        client.close()


def test_late_server_loses_its_connection_and_the_next_request_finds_another() -> None:
    def deaf(peer: Peer) -> None:
        peer.shake()
        peer.asked()
        peer.recv(1)

    with Script(deaf, honest) as script:
        client = script.client(timeout=0.2)
        with pytest.raises(BlockError, match="no answer in time") as caught:
            read(client, 0, 512)
        assert caught.value.fault is Fault.NOT_READY
        assert read(client, 0, 512) == bytes(512)
        client.close()


def test_broken_protocol_fails_the_request_and_the_next_finds_another_connection() -> None:
    def broken(peer: Peer) -> None:
        peer.shake()
        peer.asked()
        peer.send(bytes(64))

    with Script(broken, honest) as script:
        client = script.client()
        with pytest.raises(BlockError, match="s/disk: the server broke the protocol: a reply begins with 0x0"):
            read(client, 0, 512)
        assert read(client, 0, 512) == bytes(512)
        client.close()


@pytest.mark.parametrize(
    ("play", "words"),
    [
        (lambda peer: peer.shake(size=SIZE + 512), "has changed: it was 1048576 bytes .* is 1049088 bytes"),
        (lambda peer: peer.shake(flags=FLAGS | p.READ_ONLY), "has changed"),
        (lambda peer: peer.shake(flags=FLAGS & ~p.SEND_FLUSH), "has changed"),
        (lambda peer: peer.shake(structured=False), "has changed"),
        (lambda peer: peer.shake(sizes=(4096, 4096, 65536)), "has changed"),
    ],
)
def test_export_that_comes_back_different_is_not_taken(play: Play, words: str) -> None:
    with Script(leaving(1), play) as script:
        client = script.client(reconnect=0.3)
        client.change(write(0, b"a" * 512))
        with pytest.raises(BlockError, match=words) as caught:
            read(client, 0, 512)
        assert caught.value.fault is Fault.NOT_READY
        assert script.kinds() == ["write"]
        client.close()


def test_export_that_is_itself_again_is_taken() -> None:
    with Script(leaving(1), lambda peer: peer.shake(size=512), honest) as script:
        client = script.client()
        read(client, 0, 512)
        assert read(client, 0, 512) == bytes(512)
        client.close()


def test_close_frees_those_who_wait_for_an_answer_and_for_a_server() -> None:
    def deaf(peer: Peer) -> None:
        peer.shake()
        peer.recv(1 << 20)
        peer.recv(1)

    for play, asked in ((deaf, True), (lambda peer: None, False)):
        with Script(play) as script:
            client = script.client(timeout=60.0, reconnect=60.0)
            failures: list[Fault] = []

            def run(client: Client = client, failures: list[Fault] = failures) -> None:
                try:
                    read(client, 0, 512)
                except BlockError as error:
                    failures.append(error.fault)

            threads = [threading.Thread(target=run) for _ in range(4)]
            for thread in threads:
                thread.start()
            if asked:
                until(lambda: client._connections and client._connections[0].load == 4, "all ask")  # noqa: B023
            client.close()
            for thread in threads:
                thread.join(10)
            assert failures == [Fault.NOT_READY] * 4
            with pytest.raises(BlockError, match="closed"):
                read(client, 0, 512)


# Several connections.


def several(peer: Peer) -> None:
    peer.shake(flags=FLAGS | p.CAN_MULTI_CONN)
    peer.serve()


MULTI = FACTS._replace(flags=FLAGS | p.CAN_MULTI_CONN)


def test_several_connections_are_made_only_where_the_server_allows_them() -> None:
    with Script() as script:
        client = script.client(connections=4)
        read(client, 0, 512)
        assert script.connections == 1
        client.close()
    with Script(several) as script:
        client = script.client(MULTI, connections=4)
        read(client, 0, 512)
        assert script.connections == 4
        client.close()


def test_server_that_takes_fewer_connections_than_asked_for_gets_fewer() -> None:
    with Script(several, several, lambda peer: peer.shake(size=512)) as script:
        client = script.client(MULTI, connections=4)
        read(client, 0, 512)
        assert len(client._connections) == 2
        client.close()


def test_requests_are_spread_over_the_connections() -> None:
    gate = threading.Event()
    held: list[int] = []

    def holding(peer: Peer) -> None:
        number = peer.server.connections
        peer.shake(flags=FLAGS | p.CAN_MULTI_CONN)
        while True:
            asked = peer.asked()
            held.append(number)
            gate.wait()
            peer.answer(asked, peer.server.memory)

    with Script(holding) as script:
        client = script.client(MULTI, connections=3)
        threads = [threading.Thread(target=read, args=(client, 0, 512)) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(held) == 3, "three requests")
        gate.set()
        for thread in threads:
            thread.join(10)
        client.close()


def test_loss_of_one_connection_ends_all() -> None:
    """What was answered on one and is not flushed may be gone with the other."""

    def one(peer: Peer) -> None:
        peer.shake(flags=FLAGS | p.CAN_MULTI_CONN)
        peer.answer(peer.asked(), bytearray(SIZE))
        peer.asked()

    def other(peer: Peer) -> None:
        peer.shake(flags=FLAGS | p.CAN_MULTI_CONN)
        peer.recv(1)

    with Script(one, other, several) as script:
        client = script.client(MULTI, connections=2, journal=1 << 20)
        client.change(write(0, b"a" * 512))
        client.change(write(512, b"b" * 512))
        assert script.connections == 4
        client.flush()
        assert script.memory[:1024] == b"a" * 512 + b"b" * 512
        client.close()


# What was answered and not flushed.


def test_server_that_forgets_what_was_not_flushed_is_told_again_in_order() -> None:
    with Script(leaving(6, memory=bytearray(SIZE)), honest) as script:
        client = script.client(journal=1 << 20)
        client.change(write(0, b"1" * 1024))
        client.change(write(512, b"2" * 1024, p.CMD_FLAG_FUA))
        client.change(Request(p.CMD_WRITE_ZEROES, 1024, 256, flags=p.CMD_FLAG_NO_HOLE))
        client.change(Request(p.CMD_TRIM, 4096, 512))
        client.change(write(0, b"3" * 512))
        client.call(Request(p.CMD_READ, 0, data=memoryview(bytearray(512))))
        client.flush()
        assert script.memory[:1536] == b"3" * 512 + b"2" * 512 + bytes(256) + b"2" * 256
        again = script.requests[6:]
        assert [(request.kind, request.offset, request.flags) for request in again] == [
            (p.CMD_WRITE, 0, 0),
            (p.CMD_WRITE, 512, p.CMD_FLAG_FUA),
            (p.CMD_WRITE_ZEROES, 1024, p.CMD_FLAG_NO_HOLE),
            (p.CMD_TRIM, 4096, 0),
            (p.CMD_WRITE, 0, 0),
            (p.CMD_FLUSH, 0, 0),
        ]
        client.close()


def test_what_was_flushed_is_not_told_again() -> None:
    with Script(leaving(3), honest) as script:
        client = script.client(journal=1 << 20)
        client.change(write(0, b"1" * 512))
        client.flush()
        client.change(write(512, b"2" * 512))
        read(client, 0, 512)
        assert script.kinds() == ["write", "flush", "write", "write", "read"]
        client.close()


def test_flush_of_what_is_flushed_needs_no_server() -> None:
    with Script() as script:
        client = script.client(journal=1 << 20)
        client.flush()  # of what another process may have left
        client.change(write(0, b"a" * 512))
        client.flush()
        script.hang_up()
        client.flush()
        assert script.kinds() == ["flush", "write", "flush"]
        assert script.connections == 1
        client.change(write(0, b"b" * 512))
        client.flush()
        assert script.kinds()[-2:] == ["write", "flush"]
        client.close()


def test_server_that_is_lost_while_it_is_told_again_is_told_again() -> None:
    forgetful = bytearray(SIZE)
    with Script(leaving(3, memory=forgetful), leaving(2, answered=False, memory=forgetful), honest) as script:
        client = script.client(journal=1 << 20)
        for number in range(3):
            client.change(write(512 * number, bytes([number + 1]) * 512))
        client.flush()
        assert script.memory[:1536] == b"\1" * 512 + b"\2" * 512 + b"\3" * 512
        client.close()


def test_server_that_shuts_down_while_it_is_told_again_is_one_that_is_lost() -> None:
    forgetful = bytearray(SIZE)

    def leaving_politely(peer: Peer) -> None:
        peer.shake()
        peer.answer(peer.asked(), forgetful)
        peer.simple(peer.asked().cookie, errno.ESHUTDOWN)

    with Script(leaving(2, memory=forgetful), leaving_politely, honest) as script:
        client = script.client(journal=1 << 20)
        for number in range(2):
            client.change(write(512 * number, bytes([number + 1]) * 512))
        client.flush()
        assert script.memory[:1024] == b"\1" * 512 + b"\2" * 512
        client.close()


def test_without_a_journal_nothing_is_told_again() -> None:
    with Script(leaving(1), honest) as script:
        client = script.client()
        client.change(write(0, b"1" * 512))
        read(client, 0, 512)
        assert script.kinds() == ["write", "read"]
        client.close()


def test_full_journal_is_flushed_before_the_next_write() -> None:
    with Script() as script:
        client = script.client(journal=1024)
        for number in range(5):
            client.change(write(512 * number, b"x" * 512))
        assert script.kinds() == ["write", "write", "flush", "write", "write", "flush", "write"]
        client.close()


def test_nobody_waits_longer_than_his_time_for_a_flush_of_a_full_journal() -> None:
    """While the server is away, each of those who wait would have its time after that of the one before."""
    with Script() as script:
        client = script.client(journal=512)
        client.change(write(0, b"x" * 512))
        patience = client._settings
        client._settings = patience._replace(timeout=0.1, reconnect=0.1)
        with client._settling, pytest.raises(BlockError, match="full") as caught:
            client.change(write(512, b"x" * 512))
        assert caught.value.fault is Fault.NOT_READY
        client._settings = patience
        client.change(write(512, b"x" * 512))
        assert script.kinds() == ["write", "flush", "write"]
        client.close()


def test_what_the_server_does_not_take_again_fails_every_flush() -> None:
    def refusing(peer: Peer) -> None:
        peer.shake()
        while True:
            asked = peer.asked()
            if asked.kind == p.CMD_WRITE and peer.server.memory:
                peer.simple(asked.cookie, errno.ENOSPC)
            else:
                peer.answer(asked, peer.server.memory)

    with Script(leaving(1, memory=bytearray(SIZE)), refusing) as script:
        client = script.client(journal=1 << 20)
        client.change(write(0, b"1" * 512))
        for _ in range(2):
            with pytest.raises(BlockError, match="what the server lost could not be written again") as caught:
                client.flush()
            assert caught.value.fault is Fault.WRITE_ERROR
        client.close()


def test_flush_that_the_server_fails_fails_every_later_one() -> None:
    """As of fsync: the server may have thrown away what it could not write, and the next flush would succeed."""

    def failing_once(peer: Peer) -> None:
        peer.shake()
        peer.answer(peer.asked(), peer.server.memory)
        peer.simple(peer.asked().cookie, errno.EIO)
        peer.serve()

    with Script(failing_once) as script:
        client = script.client(journal=1 << 20)
        client.change(write(0, b"1" * 512))
        with pytest.raises(OSError, match="fails the flush"):
            client.flush()
        with pytest.raises(BlockError, match="an earlier flush failed"):
            client.flush()
        assert read(client, 0, 512) == b"1" * 512
        client.close()


# Errors.


@pytest.mark.parametrize(
    ("code", "reading", "writing"),
    [
        (errno.EPERM, Fault.NOT_READY, Fault.READ_ONLY),
        (errno.EIO, Fault.READ_ERROR, Fault.WRITE_ERROR),
        (errno.ENOMEM, Fault.NO_RESOURCES, Fault.NO_RESOURCES),
        (errno.EINVAL, Fault.INVALID, Fault.INVALID),
        (errno.ENOSPC, Fault.READ_ERROR, Fault.NO_SPACE),
        (errno.EOPNOTSUPP, Fault.UNSUPPORTED, Fault.UNSUPPORTED),
        (4711, Fault.INVALID, Fault.INVALID),
    ],
)
def test_error_of_the_server_is_the_fault_it_means(code: int, reading: Fault, writing: Fault) -> None:
    def play(peer: Peer) -> None:
        peer.shake()
        while True:
            peer.chunk(peer.asked().cookie, p.TYPE_ERROR, struct.pack(">IH", code, 7) + b"because")

    with Script(play) as script:
        client = script.client()
        for call, expected in (
            (lambda: read(client, 512, 512), reading),
            (lambda: client.call(write(0, b"")), writing),
        ):
            with pytest.raises(OSError, match=r"s/disk: the server fails the .*: because") as caught:
                call()
            assert fault_of(caught.value, writing=expected is writing) is expected
        assert script.connections == 1
        client.close()


def test_every_write_survives_a_server_that_is_lost_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection does a few requests of many threads, forgets what is not flushed, and goes."""
    rounds, slots = 30, 6
    durable = bytearray(SIZE)
    monkeypatch.setattr(nbd_client, "LAST_PAUSE", 0.05)

    def forgetful(peer: Peer) -> None:
        cache = bytearray(durable)
        peer.shake()
        for _ in range(40 + peer.server.connections % 7):
            asked = peer.asked()
            if asked.kind == p.CMD_FLUSH:
                durable[:] = cache
            peer.answer(asked, cache)
        peer.asked()

    with Script(forgetful) as script:
        client = script.client(journal=8192, reconnect=20.0)
        failures: list[BaseException] = []

        def run(slot: int) -> None:
            try:
                for turn in range(rounds):
                    data = bytes([slot * rounds + turn & 255]) * 512
                    client.change(write(slot * 512, data))
                    assert read(client, slot * 512, 512) == data
                    if turn % 4 == 3:
                        client.flush()
                        assert durable[slot * 512 : slot * 512 + 512] == data
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(slot,)) for slot in range(slots)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
            assert not thread.is_alive()
        assert script.connections > 5
        assert not failures
        client.flush()
        client.close()
        for slot in range(slots):
            assert durable[slot * 512 : slot * 512 + 512] == bytes([slot * rounds + rounds - 1 & 255]) * 512


def test_write_that_was_answered_just_before_the_loss_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its answer and its entry in the journal, the journal may have been done once more without it."""
    forgetful = bytearray(SIZE)
    with Script(leaving(1, memory=forgetful), honest) as script:
        client = script.client(journal=1 << 20)
        assert client._journal is not None
        add: Callable[..., None] = client._journal.add

        def late(*arguments: object) -> None:
            monkeypatch.setattr(client._journal, "add", add)
            assert read(client, 0, 512) == bytes(512)  # another caller notices the loss, and connects
            add(*arguments)

        monkeypatch.setattr(client._journal, "add", late)
        client.change(write(0, b"1" * 512))
        client.flush()
        assert script.memory[:512] == b"1" * 512
        client.close()


def test_examine_looks_and_goes() -> None:
    with Script() as script:
        facts = examine(script.settings())
        assert facts.size == SIZE
        assert facts == FACTS
        assert script.connections == 1
        assert not script.requests
