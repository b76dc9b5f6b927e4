"""One connection: many threads, answers in any order and in any pieces, and every way to break the protocol."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from iscsid_backends import nbd_protocol as p
from iscsid_backends.nbd_client import connect
from iscsid_backends.nbd_connection import Connection, Lost, Request, Unanswered
from nbd_kit import CONTEXT, SIZE, Asked, Peer, Play, Script, chunk, until

from iscsid.plugin import BlockError, Fault

SOON = 5.0


def deadline(seconds: float = SOON) -> float:
    return time.monotonic() + seconds


def connected(script: Script) -> Connection:
    return connect(script.settings(), None)


def read(offset: int, length: int) -> Request:
    return Request(p.CMD_READ, offset, data=memoryview(bytearray(b"\xa5" * length)))


def data_of(request: Request) -> bytes:
    assert request.data is not None
    return bytes(request.data)


def played(answer: Callable[[Peer, Asked], object], structured: bool = True) -> Play:
    """A server that answers one request in this way, and then listens until the client goes."""

    def play(peer: Peer) -> None:
        peer.shake(structured=structured)
        answer(peer, peer.asked())
        while True:
            peer.asked()

    return play


def data_at(offset: int, data: bytes) -> bytes:
    return struct.pack(">Q", offset) + data


# Answers in pieces.


def test_read_in_one_chunk_and_in_many_in_any_order() -> None:
    def scattered(peer: Peer, asked: Asked) -> None:
        peer.chunk(asked.cookie, p.TYPE_OFFSET_DATA, data_at(1536, b"d" * 512), 0)
        peer.chunk(asked.cookie, p.TYPE_OFFSET_HOLE, struct.pack(">QI", 1024, 512), 0)
        peer.chunk(asked.cookie, p.TYPE_OFFSET_DATA, data_at(512, b"b" * 512), 0)
        peer.chunk(asked.cookie, p.TYPE_OFFSET_DATA, data_at(2048, b"e" * 512), 0)
        peer.chunk(asked.cookie, p.TYPE_NONE)

    with Script(played(scattered)) as script:
        connection = connected(script)
        request = read(512, 2048)
        connection.perform(request, deadline())
        assert data_of(request) == b"b" * 512 + bytes(512) + b"d" * 512 + b"e" * 512
        connection.disconnect()


@pytest.mark.parametrize("structured", [False, True])
def test_read_larger_than_any_buffer_is_whole(structured: bool) -> None:
    def play(peer: Peer) -> None:
        peer.shake(structured=structured)
        peer.serve()

    with Script(play) as script:
        script.memory[:] = bytes(range(256)) * (SIZE // 256)
        connection = connected(script)
        for offset, length in ((0, SIZE), (512, 70000), (4096, 512)):
            request = read(offset, length)
            connection.perform(request, deadline())
            assert data_of(request) == script.memory[offset : offset + length]
        connection.disconnect()


def test_answer_that_comes_byte_by_byte_is_taken() -> None:
    def dribble(peer: Peer, asked: Asked) -> None:
        for byte in chunk(asked.cookie, p.TYPE_OFFSET_DATA, data_at(0, b"x" * 512)):
            peer.send(bytes([byte]))

    with Script(played(dribble)) as script:
        connection = connected(script)
        request = read(0, 512)
        connection.perform(request, deadline())
        assert data_of(request) == b"x" * 512
        connection.disconnect()


@pytest.mark.parametrize("structured", [False, True])
def test_error_of_the_server_is_in_the_request_and_the_connection_lives(structured: bool) -> None:
    def play(peer: Peer) -> None:
        peer.shake(structured=structured)
        asked = peer.asked()
        if structured:
            peer.chunk(asked.cookie, p.TYPE_OFFSET_DATA, data_at(0, b"x" * 100), 0)
            peer.chunk(asked.cookie, p.TYPE_ERROR_OFFSET, struct.pack(">IH", 5, 4) + b"gone" + bytes(8), 0)
            peer.chunk(asked.cookie, p.TYPE_ERROR, struct.pack(">IH", 28, 0))
        else:
            peer.simple(asked.cookie, 5)
        peer.serve()

    with Script(play) as script:
        connection = connected(script)
        request = read(0, 512)
        connection.perform(request, deadline())
        assert (request.error, request.message) == (5, "gone" if structured else "")
        request = read(0, 512)
        connection.perform(request, deadline())
        assert (request.error, data_of(request)) == (0, bytes(512))
        connection.disconnect()


def test_block_status_is_in_the_request() -> None:
    status = struct.pack(">IIIII", CONTEXT, 512, 3, 512, 0)
    with Script(played(lambda peer, asked: peer.chunk(asked.cookie, p.TYPE_BLOCK_STATUS, status))) as script:
        connection = connected(script)
        request = Request(p.CMD_BLOCK_STATUS, 0, 4096)
        connection.perform(request, deadline())
        assert [(extent.offset, extent.length, int(extent.content)) for extent in request.status or ()] == [
            (0, 512, 3),
            (512, 512, 0),
        ]
        connection.disconnect()


# A server that breaks the protocol.

_512 = b"x" * 512


def _all_chunks(peer: Peer, asked: Asked) -> None:
    for _ in range(10000):
        peer.chunk(asked.cookie, p.TYPE_ERROR, struct.pack(">IH", 5, 0), 0)


def _two(*payloads: tuple[int, bytes]) -> Callable[[Peer, Asked], None]:
    def answer(peer: Peer, asked: Asked) -> None:
        for kind, data in payloads:
            peer.chunk(asked.cookie, kind, data, 0)
        peer.chunk(asked.cookie, p.TYPE_NONE)

    return answer


def _head(kind: int, length: int) -> Callable[[Peer, Asked], None]:
    """A chunk that says that it has ``length`` bytes, and has none."""
    return lambda peer, asked: peer.send(
        p.STRUCTURED_REPLY.pack(p.STRUCTURED_REPLY_MAGIC, p.FLAG_DONE, kind, asked.cookie, length)
    )


DATA, HOLE, NONE, ERROR = p.TYPE_OFFSET_DATA, p.TYPE_OFFSET_HOLE, p.TYPE_NONE, p.TYPE_ERROR
BROKEN_READS: dict[str, Callable[[Peer, Asked], Any]] = {
    "wrong-magic": lambda peer, asked: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "unknown-cookie": lambda peer, asked: peer.chunk(asked.cookie + 1, DATA, data_at(0, _512)),
    "unknown-cookie-simple": lambda peer, asked: peer.simple(asked.cookie ^ 1 << 63),
    "simple-to-a-read": lambda peer, asked: peer.simple(asked.cookie, 0, _512),
    "nothing": lambda peer, asked: peer.chunk(asked.cookie, NONE),
    "none-with-data": lambda peer, asked: peer.chunk(asked.cookie, NONE, b"x"),
    "none-that-is-not-the-last": lambda peer, asked: peer.chunk(asked.cookie, NONE, b"", 0),
    "short": lambda peer, asked: peer.chunk(asked.cookie, DATA, data_at(0, _512[1:])),
    "long": lambda peer, asked: peer.chunk(asked.cookie, DATA, data_at(0, _512 + b"x")),
    "before": _two((DATA, data_at((1 << 64) - 512, _512))),
    "behind": _two((DATA, data_at(512, _512))),
    "partly-behind": _two((DATA, data_at(256, _512))),
    "empty-data": _two((DATA, data_at(0, b""))),
    "data-without-an-offset": _two((DATA, b"1234567")),
    "twice": _two((DATA, data_at(0, _512)), (DATA, data_at(0, _512))),
    "overlap": _two((DATA, data_at(0, b"x" * 300)), (DATA, data_at(299, b"x" * 213))),
    "overlap-from-before": _two((DATA, data_at(300, b"x" * 212)), (DATA, data_at(0, b"x" * 301))),
    "overlap-inside": _two((DATA, data_at(0, b"x" * 300)), (DATA, data_at(100, b"x"))),
    "gap": _two((DATA, data_at(0, b"x" * 300)), (DATA, data_at(301, b"x" * 211))),
    "hole-behind": _two((HOLE, struct.pack(">QI", 256, 512))),
    "hole-of-4-gib": _two((HOLE, struct.pack(">QI", 0, 0xFFFFFFFF))),
    "hole-of-nothing": _two((HOLE, struct.pack(">QI", 0, 0))),
    "short-hole": _two((HOLE, bytes(11))),
    "hole-over-data": _two((DATA, data_at(0, _512)), (HOLE, struct.pack(">QI", 0, 1))),
    "huge-data": _head(DATA, 0xFFFFFFFF),
    "huge-hole": _head(HOLE, 0xFFFFFFFF),
    "huge-error": _head(ERROR, 0xFFFFFFFF),
    "huge-none": _head(NONE, 0xFFFFFFFF),
    "huge-unknown": _head(99, 0xFFFFFFFF),
    "huge-unknown-error": _head(0xFFFF, 0xFFFFFFFF),
    "status-to-a-read": lambda peer, asked: peer.chunk(asked.cookie, p.TYPE_BLOCK_STATUS, struct.pack(">III", 7, 9, 0)),
    "error-without-an-error": lambda peer, asked: peer.chunk(asked.cookie, ERROR, bytes(6)),
    "endless-errors": _all_chunks,
    "simple-after-chunks": lambda peer, asked: (
        peer.chunk(asked.cookie, ERROR, struct.pack(">IH", 5, 0), 0),
        peer.simple(asked.cookie, 5),
    ),
}


@pytest.mark.parametrize("kind", BROKEN_READS)
def test_broken_answer_to_a_read_is_an_error_and_ends_the_connection(kind: str) -> None:
    with Script(played(BROKEN_READS[kind])) as script:
        connection = connected(script)
        with pytest.raises(BlockError, match="broke the protocol") as caught:
            connection.perform(read(0, 512), deadline())
        assert caught.value.fault is Fault.INTERNAL
        with pytest.raises(BlockError, match="broke the protocol"):
            connection.perform(read(0, 512), deadline())


def test_chunks_are_bounded_whatever_they_hold() -> None:
    def single_bytes(peer: Peer, asked: Asked) -> None:
        for at in range(0, asked.length, 2):
            peer.chunk(asked.cookie, DATA, data_at(at, b"x"), 0)

    with Script(played(single_bytes)) as script, pytest.raises(BlockError, match="more than 192 chunks"):
        connected(script).perform(read(0, 65536), deadline())


BROKEN_WRITES: dict[str, Callable[[Peer, Asked], Any]] = {
    "data": lambda peer, asked: peer.chunk(asked.cookie, DATA, data_at(0, _512)),
    "hole": lambda peer, asked: peer.chunk(asked.cookie, HOLE, struct.pack(">QI", 0, 512)),
    "status": lambda peer, asked: peer.chunk(asked.cookie, p.TYPE_BLOCK_STATUS, struct.pack(">III", 7, 9, 0)),
    "twice": lambda peer, asked: peer.send(2 * p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, 0, asked.cookie)),
}


@pytest.mark.parametrize("kind", BROKEN_WRITES)
def test_broken_answer_to_a_write_ends_the_connection(kind: str) -> None:
    with Script(played(BROKEN_WRITES[kind])) as script:
        connection = connected(script)
        with pytest.raises(BlockError, match="broke the protocol"):
            for _ in range(2):
                connection.perform(Request(p.CMD_WRITE, 0, data=memoryview(_512)), deadline())


@pytest.mark.parametrize(
    "answer",
    [
        lambda peer, asked: peer.simple(asked.cookie),
        lambda peer, asked: peer.chunk(asked.cookie, NONE),
        lambda peer, asked: peer.chunk(asked.cookie, p.TYPE_BLOCK_STATUS, struct.pack(">III", CONTEXT + 1, 512, 0)),
        lambda peer, asked: peer.chunk(asked.cookie, p.TYPE_BLOCK_STATUS, struct.pack(">I", CONTEXT)),
        _head(p.TYPE_BLOCK_STATUS, 0xFFFFFFFF),
        _two(*[(p.TYPE_BLOCK_STATUS, struct.pack(">III", CONTEXT, 512, 0))] * 2),
    ],
)
def test_broken_block_status_ends_the_connection(answer: Callable[[Peer, Asked], Any]) -> None:
    with Script(played(answer)) as script, pytest.raises(BlockError, match="broke the protocol"):
        connected(script).perform(Request(p.CMD_BLOCK_STATUS, 0, 512), deadline())


def test_structured_answer_that_was_not_agreed_on_ends_the_connection() -> None:
    def answer(peer: Peer, asked: Asked) -> None:
        peer.chunk(asked.cookie, DATA, data_at(0, _512))

    with Script(played(answer, structured=False)) as script, pytest.raises(BlockError, match="not agreed on"):
        connected(script).perform(read(0, 512), deadline())


@pytest.mark.parametrize("bit", [1, 16, 128])
def test_answer_with_one_wrong_bit_is_taken_or_ends_clearly(bit: int) -> None:
    """In any byte of its head, or of the offset: what is taken is taken to where it was asked for."""
    place = 0

    def play(peer: Peer) -> None:
        peer.shake()
        asked = peer.asked()
        answer = bytearray(chunk(asked.cookie, DATA, data_at(0, _512)))
        answer[place] ^= bit
        peer.send(bytes(answer))

    with Script(play) as script:
        for place in range(p.STRUCTURED_REPLY.size + 8):  # noqa: B007
            connection = connected(script)
            request = read(0, 512)
            try:
                connection.perform(request, deadline())
            except (BlockError, Lost):
                pass
            else:
                assert data_of(request) == _512
            connection.end(Lost("the next one"))


# A server that goes, or says nothing.


@pytest.mark.parametrize("said", [0, 1, 19, 20, 27, 28, 300])
def test_connection_that_ends_within_an_answer_is_lost(said: int) -> None:
    def play(peer: Peer) -> None:
        peer.shake()
        asked = peer.asked()
        peer.send(chunk(asked.cookie, DATA, data_at(0, _512))[:said])

    with Script(play) as script:
        connection = connected(script)
        with pytest.raises(Lost):
            connection.perform(read(0, 512), deadline())
        with pytest.raises(Lost):
            connection.perform(read(0, 512), deadline())


def test_server_that_says_nothing_has_its_time_and_no_more() -> None:
    with Script(played(lambda peer, asked: None)) as script:
        connection = connected(script)
        start = time.monotonic()
        with pytest.raises(Unanswered):
            connection.perform(read(0, 512), deadline(0.1))
        assert time.monotonic() - start < SOON
        with pytest.raises(Lost):
            connection.perform(read(0, 512), deadline())


def test_server_that_dribbles_has_its_time_and_no_more() -> None:
    def dribble(peer: Peer, asked: Asked) -> None:
        peer.send(chunk(asked.cookie, DATA, data_at(0, _512))[:28])
        while True:
            peer.send(b"x")
            threading.Event().wait(0.02)

    with Script(played(dribble)) as script, pytest.raises(Unanswered):
        connected(script).perform(Request(p.CMD_READ, 0, data=memoryview(bytearray(512))), deadline(0.2))


def test_server_that_takes_nothing_has_its_time_and_no_more() -> None:
    def play(peer: Peer) -> None:
        peer.shake()
        gate.wait()

    gate = threading.Event()
    with Script(play) as script:
        connection = connected(script)
        with pytest.raises(Unanswered):
            connection.perform(Request(p.CMD_WRITE, 0, data=memoryview(bytes(8 << 20))), deadline(0.2))
        gate.set()


# Several threads.


class Callers:
    """Threads, each with one request, and what became of it."""

    def __init__(self, connection: Connection, requests: list[Request], seconds: list[float]) -> None:
        self.outcomes: list[Exception | None] = [None] * len(requests)

        def run(number: int) -> None:
            try:
                connection.perform(requests[number], deadline(seconds[number]))
            except Exception as error:
                self.outcomes[number] = error

        self._threads = [threading.Thread(target=run, args=(number,)) for number in range(len(requests))]
        for thread in self._threads:
            thread.start()

    def join(self) -> list[str]:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        return [type(outcome).__name__ for outcome in self.outcomes]


def test_answers_in_any_order_find_who_asked() -> None:
    def play(peer: Peer) -> None:
        peer.shake()
        while True:
            asked = [peer.asked() for _ in range(8)]
            for request in reversed(asked):
                peer.answer(request, peer.server.memory)

    with Script(play) as script:
        script.memory[:] = b"".join(struct.pack(">Q", number) * 64 for number in range(SIZE // 512))
        connection = connected(script)
        for _ in range(50):
            requests = [read(number * 512, 512) for number in range(8)]
            assert Callers(connection, requests, [SOON] * 8).join() == ["NoneType"] * 8
            for number, request in enumerate(requests):
                assert data_of(request) == struct.pack(">Q", number) * 64
        connection.disconnect()


@pytest.mark.parametrize("broken", [False, True])
def test_end_of_a_connection_reaches_everybody_who_waits(broken: bool) -> None:
    def play(peer: Peer) -> None:
        peer.shake()
        for _ in range(6):
            peer.asked()
        if broken:
            peer.send(bytes(20))

    with Script(play) as script:
        connection = connected(script)
        outcomes = Callers(connection, [read(0, 512) for _ in range(6)], [SOON] * 6).join()
        assert outcomes == ["BlockError" if broken else "Lost"] * 6
        assert connection.load == 0


def test_one_late_answer_fails_one_and_loses_the_connection_for_the_others() -> None:
    with Script(played(lambda peer, asked: None)) as script:
        connection = connected(script)
        outcomes = Callers(connection, [read(0, 512) for _ in range(5)], [SOON] * 4 + [0.2]).join()
        assert outcomes == ["Lost"] * 4 + ["Unanswered"]


def test_end_from_outside_frees_everybody_at_once() -> None:
    with Script(played(lambda peer, asked: None)) as script:
        connection = connected(script)
        callers = Callers(connection, [read(0, 512) for _ in range(5)], [60.0] * 5)
        until(lambda: connection.load == 5, "all have asked")
        connection.disconnect()
        assert callers.join() == ["Lost"] * 5
        assert connection._closed


def test_large_writes_of_many_threads_against_a_server_that_answers_before_it_reads_on() -> None:
    """A sender may not keep those from receiving on whom the server waits."""

    def play(peer: Peer) -> None:
        peer.shake()
        peer.serve()

    with Script(play) as script:
        connection = connected(script)
        requests = [Request(p.CMD_WRITE, 0, data=memoryview(bytes(SIZE))) for _ in range(4)]
        requests += [read(0, SIZE) for _ in range(4)]
        assert Callers(connection, requests, [20.0] * 8).join() == ["NoneType"] * 8
        connection.disconnect()
