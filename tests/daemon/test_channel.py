"""Messages arrive whole, in order and with their descriptors, or the channel says why not; no descriptor leaks."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from iscsid.daemon import channel as module
from iscsid.daemon.channel import Channel, ChannelFull
from iscsid.errors import LocalProtocolError
from iscsid.shared import messages
from iscsid.shared.messages import Beat, Connect, Drop, Message, Poll, Ready


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    left, right = Channel.pair()
    yield left, right
    left.close()
    right.close()


def connect(tsih: int = 1) -> Connect:
    return Connect(tsih, "iqn.x:host", 1, "iqn.x:disk", "127.0.0.1:1", "127.0.0.1:2")


def test_messages_arrive_in_order(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    sent: list[Message] = [Ready(), Drop(3, "because"), Beat(1, 2, 3, 4, 0.5)]
    for message in sent:
        left.send(message)
    assert right.receive() == [(message, None) for message in sent]
    assert right.receive() == []


def test_both_directions_are_apart(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    left.send(Poll())
    right.send(Ready())
    assert left.receive() == [(Ready(), None)]
    assert right.receive() == [(Poll(), None)]


def test_descriptor_travels_with_its_message_and_is_closed_here(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    mine, theirs = socket.socketpair()
    left.send(Ready())
    left.send(connect(), theirs.detach())
    (_, none), (message, fd) = right.receive()
    assert none is None
    assert message == connect()
    assert fd is not None
    assert not os.get_inheritable(fd)
    with mine, socket.socket(fileno=fd) as got:
        mine.sendall(b"hello")
        assert got.recv(5) == b"hello"
        got.close()
        assert mine.recv(1) == b"", "a copy of the descriptor stayed open"


def test_peer_closed_is_end_of_file_after_its_last_message(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    left.send(Ready())
    left.close()
    assert right.receive() == [(Ready(), None)]
    assert right.eof
    assert right.receive() == []


def test_peer_that_died_with_unread_messages_still_delivers_its_own(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    left.send(Ready())
    right.send(Poll())
    left.close()
    assert right.receive() == [(Ready(), None)]
    assert right.eof


def test_send_to_a_dead_peer_drops_the_message_and_its_descriptor(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    right.close()
    before = open_descriptors()
    left.send(connect(), os.dup(0))
    left.send(connect(), os.dup(0))
    assert open_descriptors() == before
    assert left.receive() == []
    assert left.eof
    assert not left.wants_write


def fill(channel: Channel) -> int:
    """Send until the kernel takes no more; the number of messages sent, the queued one included."""
    count = 0
    while not channel.wants_write:
        channel.send(Drop(count, "x" * 1000))
        count += 1
    return count


def test_full_socket_queues_and_flush_goes_on(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    count = fill(left)
    left.send(connect(count), os.dup(0))
    assert left.queued == 2
    got: list[tuple[Message, int | None]] = []
    while batch := right.receive():
        got += batch
        left.flush()
    assert not left.wants_write
    assert [message.tsih for message, _ in got if isinstance(message, Drop | Connect)] == list(range(count + 1))
    assert got[-1][1] is not None
    os.close(got[-1][1])


def test_queue_beyond_its_limit_raises_and_closes_the_descriptor(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 2)
    left, _right = ends
    fill(left)
    left.send(Poll())
    before = open_descriptors()
    with pytest.raises(ChannelFull):
        left.send(connect(), os.dup(0))
    assert open_descriptors() == before


def test_close_closes_queued_descriptors(ends: tuple[Channel, Channel]) -> None:
    left, _right = ends
    fill(left)
    before = open_descriptors()
    left.send(connect(), os.dup(0))
    left.send(connect(), os.dup(0))
    assert len(open_descriptors()) == len(before) + 2
    left.close()
    assert len(open_descriptors()) == len(before) - 1, "the socket and both descriptors are closed"


def test_peer_dying_while_messages_are_queued_empties_the_queue(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    fill(left)
    left.send(connect(), os.dup(0))
    before = open_descriptors()
    right.close()
    left.flush()
    assert left.queued == 0
    assert len(open_descriptors()) == len(before) - 2, "the peer's socket and the queued descriptor"


def test_batch_is_bounded_and_the_rest_comes_next(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BATCH", 2)
    left, right = ends
    for _ in range(3):
        left.send(Ready())
    assert len(right.receive()) == 2
    assert len(right.receive()) == 1


def test_too_many_descriptors_in_flight_stalls_until_the_next_flush(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right = ends

    def refuse(data: bytes, fd: int | None) -> None:
        raise OSError(module.errno.ETOOMANYREFS, "too many references")

    with monkeypatch.context() as patch:
        patch.setattr(left, "_send_one", refuse)
        left.send(connect(), os.dup(0))
        assert left.queued == 1
        assert not left.wants_write, "waiting for writability would spin"
    left.flush()
    ((message, fd),) = right.receive()
    assert message == connect()
    assert fd is not None
    os.close(fd)


def test_descriptor_that_does_not_fit_is_lost_and_the_message_arrives(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    left, right = ends
    left.send(connect(), os.dup(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        received = right.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert received == [(connect(), None)]


def test_garbage_raises_and_closes_its_descriptor() -> None:
    raw, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    end = Channel(other)
    before = open_descriptors()
    spare = os.dup(0)
    socket.send_fds(raw, [b"garbage"], [spare])
    os.close(spare)
    with pytest.raises(LocalProtocolError):
        end.receive()
    assert open_descriptors() == before
    raw.close()
    end.close()


def test_longest_message_passes_whole(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    long = Drop(1, "")
    long.reason = "x" * (messages.MAX_MESSAGE - len(messages.encode(long)))
    for _ in range(3):
        left.send(long)
    got = []
    while len(got) < 3:
        got += [message for message, _ in right.receive()]
        left.flush()
    assert got == [long] * 3
