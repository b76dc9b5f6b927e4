"""wire.outbox. Invariants: bytes out are bytes in, in order, however they were put in and taken out; memory stays
within a small multiple of what waits, also where something always waits.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsid.wire.outbox import CHUNK_SIZE, MAX_SEGMENTS, SPARE_SIZE, Outbox

CHUNK = 64  # small, so that chunks are filled often


def build(outbox: Outbox, data: bytes) -> None:
    """Write ``data`` in place, as a connection does."""
    position = outbox.room(len(data))
    outbox.buffer[position : position + len(data)] = data
    outbox.commit(len(data))


def put(outbox: Outbox, data: bytes) -> None:
    outbox.put(data)


def lend(outbox: Outbox, data: bytes) -> None:
    outbox.lend(memoryview(data))


def build_and_lend(outbox: Outbox, data: bytes) -> None:
    """The first half in place, the second lent, in one call."""
    half = len(data) // 2
    position = outbox.room(half)
    outbox.buffer[position : position + half] = data[:half]
    if half:
        outbox.commit_and_lend(half, memoryview(data)[half:])
    else:
        outbox.lend(memoryview(data))


def abandon(outbox: Outbox, data: bytes) -> None:
    """Ask for room and leave it: a device that had no data at hand."""
    position = outbox.room(len(data))
    outbox.buffer[position : position + len(data)] = b"\xee" * len(data)


WAYS: list[Callable[[Outbox, bytes], None]] = [build, put, lend, build_and_lend]


def drain(outbox: Outbox, limit: int = 1 << 30) -> bytes:
    """Take what is there, at most ``limit`` bytes a time, until nothing is left."""
    stream = bytearray()
    while segments := outbox.segments():
        joined = b"".join(segments)[:limit]
        assert joined
        outbox.sent(len(joined))
        stream += joined
    return bytes(stream)


def held(outbox: Outbox) -> int:
    """Bytes of chunks that the outbox has of its own."""
    return len(outbox.buffer) + sum(len(chunk) for _, chunk in outbox._sealed) + sum(map(len, outbox._spare))


# --- the simple cases -----------------------------------------------------------------------------------------------


def test_new_outbox_has_nothing_to_send_and_no_memory() -> None:
    outbox = Outbox()
    assert outbox.segments() == []
    assert outbox.queued == 0
    assert held(outbox) == 0


@pytest.mark.parametrize("way", WAYS)
def test_bytes_put_in_any_way_come_out(way: Callable[[Outbox, bytes], None]) -> None:
    outbox = Outbox(CHUNK)
    way(outbox, b"header and data")
    assert outbox.queued == 15
    assert b"".join(outbox.segments()) == b"header and data"
    outbox.sent(15)
    assert outbox.queued == 0
    assert outbox.segments() == []


@pytest.mark.parametrize("data", [b"bytes", bytearray(b"bytes"), memoryview(b"bytes")])
def test_put_takes_any_buffer(data: bytes | bytearray | memoryview) -> None:
    outbox = Outbox()
    outbox.put(data)
    assert drain(outbox) == b"bytes"


def test_room_without_commit_queues_nothing() -> None:
    outbox = Outbox(CHUNK)
    outbox.put(b"before")
    abandon(outbox, b"never sent")
    assert outbox.queued == 6
    outbox.put(b"after")
    assert drain(outbox) == b"beforeafter"


def test_room_longer_than_what_is_committed_leaves_no_gap() -> None:
    outbox = Outbox(CHUNK)
    position = outbox.room(40)
    outbox.buffer[position : position + 3] = b"abc"
    outbox.commit(3)
    outbox.put(b"def")
    assert drain(outbox) == b"abcdef"


def test_consecutive_bytes_go_out_as_one_segment() -> None:
    outbox = Outbox()
    for _ in range(100):
        build(outbox, b"48 bytes of header")
    assert len(outbox.segments()) == 1


def test_lent_memory_is_sent_itself_without_a_copy() -> None:
    outbox = Outbox(CHUNK)
    memory = bytearray(b"old data")
    outbox.lend(memoryview(memory))
    memory[:3] = b"new"
    (segment,) = outbox.segments()
    assert segment.obj is memory
    assert bytes(segment) == b"new data"


def test_put_memory_is_copied() -> None:
    outbox = Outbox(CHUNK)
    memory = bytearray(b"old data")
    outbox.put(memory)
    memory[:3] = b"new"
    assert drain(outbox) == b"old data"


def test_lending_nothing_leaves_nothing_to_send() -> None:
    outbox = Outbox(CHUNK)
    outbox.lend(memoryview(b""))
    assert outbox.segments() == []
    outbox.put(b"x")
    outbox.lend(memoryview(b""))
    assert len(outbox.segments()) == 1


def test_commit_and_lend_is_commit_then_lend() -> None:
    outbox, other = Outbox(CHUNK), Outbox(CHUNK)
    data = memoryview(b"data")
    for one in (outbox, other):
        one.put(b"before")
        position = one.room(6)
        one.buffer[position : position + 6] = b"header"
    outbox.commit_and_lend(6, data)
    other.commit(6)
    other.lend(data)
    assert outbox.queued == other.queued == 16
    assert outbox.segments() == other.segments()
    assert drain(outbox) == b"beforeheaderdata"


def test_more_than_a_chunk_gets_a_chunk_of_its_own() -> None:
    outbox = Outbox(CHUNK)
    long = bytes(range(256)) * 4
    outbox.put(b"short")
    outbox.put(long)
    outbox.put(b"short")
    assert outbox.queued == len(long) + 10
    assert drain(outbox) == b"short" + long + b"short"


# --- sending in parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7, 63, 64, 65, 1000])
@pytest.mark.parametrize("way", WAYS)
def test_stream_taken_in_parts_is_whole(way: Callable[[Outbox, bytes], None], limit: int) -> None:
    outbox = Outbox(CHUNK)
    pieces = [bytes([number]) * (number * 7 % 50 + 1) for number in range(40)]
    for piece in pieces:
        way(outbox, piece)
    assert drain(outbox, limit) == b"".join(pieces)


def test_segments_asked_twice_are_the_same() -> None:
    outbox = Outbox(CHUNK)
    outbox.put(b"one")
    outbox.lend(memoryview(b"two"))
    outbox.put(b"three")
    assert outbox.segments() == outbox.segments()
    assert outbox.queued == 11


def test_what_is_built_after_a_part_was_sent_follows_the_rest() -> None:
    outbox = Outbox(CHUNK)
    outbox.put(b"abc")
    outbox.lend(memoryview(b"def"))
    outbox.segments()
    outbox.sent(4)
    outbox.put(b"ghi")
    assert outbox.queued == 5
    assert drain(outbox) == b"efghi"


def test_sent_of_nothing_changes_nothing() -> None:
    outbox = Outbox(CHUNK)
    outbox.sent(0)
    outbox.put(b"abc")
    outbox.segments()
    outbox.sent(0)
    outbox.lend(memoryview(b"def"))
    outbox.segments()
    outbox.sent(0)
    assert drain(outbox) == b"abcdef"


def test_segments_stay_below_the_limit_of_one_call() -> None:
    outbox = Outbox()
    pieces = [bytes([number % 251]) * 3 for number in range(2 * MAX_SEGMENTS)]
    for piece in pieces:
        lend(outbox, piece)
    outbox.put(b"end")
    assert len(outbox.segments()) == MAX_SEGMENTS
    assert drain(outbox) == b"".join(pieces) + b"end"


def test_built_bytes_behind_a_full_list_wait_for_the_next_call() -> None:
    outbox = Outbox()
    for _ in range(MAX_SEGMENTS):
        lend(outbox, b"lent")
    outbox.put(b"built")
    segments = outbox.segments()
    assert len(segments) == MAX_SEGMENTS
    outbox.sent(sum(map(len, segments)))
    assert outbox.queued == 5
    assert drain(outbox) == b"built"


# --- memory ---------------------------------------------------------------------------------------------------------


def test_drained_chunk_is_used_again_from_its_start() -> None:
    outbox = Outbox(CHUNK)
    outbox.put(b"x" * 50)
    buffer = outbox.buffer
    drain(outbox)
    assert outbox.room(CHUNK) == 0
    assert outbox.buffer is buffer


def test_memory_is_bounded_where_something_always_waits() -> None:
    outbox = Outbox(CHUNK)
    outbox.put(b"x")
    for number in range(2000):
        outbox.put(bytes([number % 256]) * 30)
        (segment, *_) = outbox.segments()
        # Never the last byte: the outbox is not empty for one moment.
        outbox.sent(min(len(segment), outbox.queued - 1))
        assert outbox.queued < 4 * CHUNK
        assert len(outbox._sealed) < 8
    assert len(outbox._sealed) < 8


def test_memory_is_bounded_where_lent_bytes_always_wait() -> None:
    outbox = Outbox(CHUNK)
    memory = memoryview(bytes(100))
    for _ in range(2000):
        build_and_lend(outbox, b"header+data.")
        outbox.lend(memory)
        outbox.segments()
        outbox.sent(outbox.queued - 1)
    assert len(outbox._sealed) < 4
    assert outbox.queued == 1


def test_room_that_is_never_committed_costs_no_memory() -> None:
    outbox = Outbox(CHUNK)
    for length in (10, 100, 10, 100, 1000) * 100:
        abandon(outbox, bytes(length))
    outbox.put(b"x")
    drain(outbox)
    assert len(outbox._sealed) == 0
    assert held(outbox) <= SPARE_SIZE + 1000


def test_spare_chunks_are_few_and_used_again() -> None:
    outbox = Outbox(CHUNK_SIZE)
    for _ in range(6):
        outbox.put(bytes(CHUNK_SIZE))
    assert held(outbox) == 6 * CHUNK_SIZE
    drain(outbox)
    assert held(outbox) <= CHUNK_SIZE + SPARE_SIZE
    before = {id(outbox.buffer), *map(id, outbox._spare)}
    for _ in range(3):
        outbox.put(bytes(CHUNK_SIZE))
    assert {id(outbox.buffer), *(id(chunk) for _, chunk in outbox._sealed)} == before


def test_spare_chunk_too_short_for_a_long_room_is_left_alone() -> None:
    outbox = Outbox(CHUNK)
    for _ in range(3):
        outbox.put(bytes(CHUNK))
    drain(outbox)
    outbox.put(b"z" * 1000)
    assert len(outbox.buffer) == 1000
    assert drain(outbox) == b"z" * 1000


def test_clear_drops_everything_and_the_outbox_can_go_on() -> None:
    outbox = Outbox(CHUNK)
    memory = bytearray(b"lent")
    outbox.put(b"a" * 100)
    outbox.lend(memoryview(memory))
    outbox.put(b"b")
    outbox.clear()
    assert outbox.queued == 0
    assert outbox.segments() == []
    memory += b"grows: nothing holds it any more"
    outbox.put(b"again")
    assert drain(outbox) == b"again"


def test_sent_lent_memory_is_let_go() -> None:
    outbox = Outbox(CHUNK)
    memory = bytearray(b"lent")
    outbox.lend(memoryview(memory))
    drain(outbox)
    memory += b"grows: nothing holds it any more"


# --- any order of anything ------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([*WAYS, abandon]), st.binary(min_size=1, max_size=3 * CHUNK)),
        st.tuples(st.just("send"), st.integers(0, 5 * CHUNK)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_stream_is_whole_in_any_order_of_calls(steps: list[tuple[object, bytes | int]]) -> None:
    outbox = Outbox(CHUNK)
    put_in, taken_out = bytearray(), bytearray()
    for what, argument in steps:
        if isinstance(argument, int):
            sent = b"".join(outbox.segments())[:argument]
            outbox.sent(len(sent))
            taken_out += sent
        else:
            what(outbox, argument)  # type: ignore[operator]
            put_in += argument if what is not abandon else b""
        assert outbox.queued == len(put_in) - len(taken_out)
        # A chunk is left when something does not fit, so two neighbours are more than full; one more is the current.
        assert sum(len(chunk) for _, chunk in outbox._sealed) <= 2 * outbox.queued + 8 * CHUNK
    assert taken_out + drain(outbox) == put_in
    assert outbox.queued == 0
