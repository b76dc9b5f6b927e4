"""The invariant: any bytes, in any chunking, with any digests, give PDUs, DamagedPdu or a RemoteProtocolError.

Nothing else is ever raised, memory stays within the limit, what comes out does not depend on the chunking, and after
an error the framer says the same again.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsid.errors import RejectError, RemoteProtocolError
from iscsid.wire.const import AHS_SIZE_LIMIT, BHS_SIZE, DIGEST_SIZE, RejectReason
from iscsid.wire.framer import DamagedPdu, Framer
from iscsid.wire.pdu import INITIATOR_RECEIVES, PDU_BY_OPCODE, TARGET_RECEIVES, Pdu

LIMIT = 2000  # of a data segment: small, so that random lengths hit both sides of it
INITIAL_SIZE = 64
BOUND = BHS_SIZE + AHS_SIZE_LIMIT + LIMIT + 2 * DIGEST_SIZE + 64 * 1024

REASONS = {
    RejectReason.DATA_DIGEST_ERROR,
    RejectReason.PROTOCOL_ERROR,
    RejectReason.COMMAND_NOT_SUPPORTED,
    RejectReason.INVALID_PDU_FIELD,
}


def run(data: bytes, chunks: list[int], receives: Any, header_digest: bool, data_digest: bool) -> list[Any]:
    """Feed ``data`` and return what came out, as values; the last one is the error if there was one."""
    framer = Framer(receives, INITIAL_SIZE)
    framer.max_data_segment_length = LIMIT
    framer.header_digest = header_digest
    framer.data_digest = data_digest
    out: list[Any] = []
    position = turn = 0
    while position < len(data):
        room = framer.writable()
        assert framer.buffer_size <= BOUND
        assert len(room) > 0
        piece = data[position : position + min(chunks[turn % len(chunks)], len(room))]
        room[: len(piece)] = piece
        framer.received(len(piece))
        position += len(piece)
        turn += 1
        try:
            for pdu in framer.pdus():
                out.append(check(pdu))
        except RemoteProtocolError as exc:
            with pytest.raises(type(exc), match=r"digest|allowed"):
                list(framer.pdus())
            out.append((type(exc), getattr(exc, "reason", None)))
            return out
    assert framer.pending <= BOUND
    return out


def check(pdu: Pdu | DamagedPdu) -> Any:
    """Hold one result to its contract and return it as something that outlives the buffer."""
    if isinstance(pdu, DamagedPdu):
        assert pdu.reason in REASONS
        assert BHS_SIZE <= len(pdu.header) <= BHS_SIZE + AHS_SIZE_LIMIT
        assert pdu.message
        return pdu
    assert len(pdu.data) <= LIMIT
    assert len(pdu.ahs) <= AHS_SIZE_LIMIT
    pdu.data = bytes(pdu.data)
    pdu.pack()
    return pdu


def header(opcode: int, lengths: int, rest: bytes) -> bytes:
    return bytes([opcode]) + rest[:3] + lengths.to_bytes(4, "big") + rest[3:]


# Bytes that look like PDUs more often than noise does: a likely opcode, likely lengths, then whatever.
lengths = st.one_of(
    st.just(0),
    st.integers(0, 64),
    st.integers(LIMIT - 2, LIMIT + 2),
    st.builds(lambda words, data: words << 24 | data, st.integers(0, 3), st.integers(0, 40)),
    st.integers(0, 0xFFFFFFFF),
)
headers = st.builds(
    header,
    st.one_of(st.sampled_from(sorted(PDU_BY_OPCODE)), st.integers(0, 255)),
    lengths,
    st.binary(min_size=43, max_size=43),
)
streams = st.lists(st.one_of(headers, st.binary(max_size=100)), max_size=12).map(b"".join)
chunkings = st.lists(st.integers(1, 300), min_size=1, max_size=5)
roles = st.sampled_from([TARGET_RECEIVES, INITIATOR_RECEIVES])


@settings(deadline=None)
@given(streams, chunkings, roles, st.booleans(), st.booleans())
def test_any_bytes_in_any_chunking_give_the_same_answer(
    data: bytes, chunks: list[int], receives: Any, header_digest: bool, data_digest: bool
) -> None:
    whole = run(data, [len(data) or 1], receives, header_digest, data_digest)
    assert run(data, chunks, receives, header_digest, data_digest) == whole


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=400), roles, st.booleans(), st.booleans())
def test_noise_byte_by_byte_gives_the_same_as_at_once(
    data: bytes, receives: Any, header_digest: bool, data_digest: bool
) -> None:
    one = run(data, [1], receives, header_digest, data_digest)
    assert one == run(data, [len(data) or 1], receives, header_digest, data_digest)


@pytest.mark.parametrize("seed", range(20))
def test_golden_stream_with_bytes_changed_keeps_the_invariant(all_requests: list[Any], seed: int) -> None:
    """Damage to real streams gets deeper than noise does: most of what follows still parses."""
    chance = random.Random(seed)
    header_digest, data_digest = bool(seed & 1), bool(seed & 2)
    golden = [chance.choice(all_requests) for _ in range(20)]
    stream = bytearray(b"".join(one.wire(header_digest=header_digest, data_digest=data_digest) for one in golden))
    for _ in range(chance.randrange(1, 6)):
        stream[chance.randrange(len(stream))] = chance.randrange(256)
    chunks = [chance.randrange(1, 500) for _ in range(5)]
    out = run(bytes(stream), chunks, TARGET_RECEIVES, header_digest, data_digest)
    assert out == run(bytes(stream), [1 << 20], TARGET_RECEIVES, header_digest, data_digest)


@pytest.mark.parametrize("seed", range(10))
def test_golden_stream_with_data_damaged_loses_that_pdu_only(all_requests: list[Any], seed: int) -> None:
    chance = random.Random(seed)
    golden = [chance.choice(all_requests) for _ in range(20)] + [one for one in all_requests if one.data]
    sent = [bytearray(one.wire(header_digest=True, data_digest=True)) for one in golden]
    victim = chance.choice([index for index, one in enumerate(golden) if one.data])
    sent[victim][-chance.randrange(1, 5)] ^= 1 << chance.randrange(8)
    out = run(b"".join(sent), [chance.randrange(1, 500)], TARGET_RECEIVES, True, True)
    assert len(out) == len(golden)
    for index, (one, got) in enumerate(zip(golden, out, strict=True)):
        if index == victim:
            assert got.reason == RejectReason.DATA_DIGEST_ERROR
            assert got.header == one.header
        else:
            assert got == one.build()


def test_endless_header_of_the_largest_pdu_takes_no_more_than_the_bound() -> None:
    """The most that a peer may announce is announced again and again, and never sent whole."""
    framer = Framer(TARGET_RECEIVES, INITIAL_SIZE)
    framer.max_data_segment_length = LIMIT
    announced = header(0x05, LIMIT, bytes(43))
    for _ in range(100):
        room = framer.writable()
        room[:48] = announced
        framer.received(48)
        list(framer.pdus())
        assert framer.buffer_size <= BOUND


def test_largest_data_segment_of_all_is_refused_before_room_is_made() -> None:
    framer = Framer(TARGET_RECEIVES, INITIAL_SIZE)
    room = framer.writable()
    room[:48] = header(0x01, 0xFFFFFF, bytes(43))[:48]
    framer.received(48)
    with pytest.raises(RejectError, match="are allowed"):
        list(framer.pdus())
    assert framer.buffer_size == INITIAL_SIZE
