"""The framer: golden streams in every chunking, digests, limits, the life of the buffer, and what damage leads to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from iscsid.errors import LocalProtocolError, RejectError, RemoteProtocolError
from iscsid.wire import ahs
from iscsid.wire.const import BHS_SIZE, LOGIN_DATA_LIMIT, RejectReason
from iscsid.wire.digest import digest
from iscsid.wire.framer import DAMAGED, DEFAULT_BUFFER_SIZE, DamagedPdu, Framer
from iscsid.wire.pdu import (
    INITIATOR_RECEIVES,
    TARGET_RECEIVES,
    LoginRequest,
    NopIn,
    NopOut,
    Pdu,
    ScsiCommand,
    ScsiDataOut,
    TextRequest,
)

CHUNKS = [1, 3, 47, 48, 49, 100, 4096, 1 << 20]


def make(
    *,
    receives: Mapping[int, type[Pdu]] = TARGET_RECEIVES,
    size: int = 4096,
    header_digest: bool = False,
    data_digest: bool = False,
) -> Framer:
    framer = Framer(receives, size)
    framer.header_digest = header_digest
    framer.data_digest = data_digest
    return framer


def wire(pdu: Pdu, *, header_digest: bool = False, data_digest: bool = False) -> bytes:
    """The bytes of one PDU as a stream carries them."""
    header = pdu.pack()
    sent = header + (digest(header) if header_digest else b"")
    if pdu.data:
        segment = bytes(pdu.data) + bytes(-len(pdu.data) % 4)
        sent += segment + (digest(segment) if data_digest else b"")
    return sent


def put(framer: Framer, data: bytes) -> None:
    """Receive all of ``data``; it must fit."""
    room = framer.writable()
    room[: len(data)] = data
    framer.received(len(data))


def feed(framer: Framer, data: bytes, chunk: int = 1 << 20) -> list[Any]:
    """Receive ``data`` in chunks, take everything, and keep copies."""
    taken = []
    position = 0
    while position < len(data):
        room = framer.writable()
        piece = data[position : position + min(chunk, len(room))]
        room[: len(piece)] = piece
        framer.received(len(piece))
        position += len(piece)
        for pdu in framer.pdus():
            if not isinstance(pdu, DamagedPdu):
                pdu.data = bytes(pdu.data)
            taken.append(pdu)
    return taken


# --- Golden streams -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("header_digest", [False, True])
@pytest.mark.parametrize("data_digest", [False, True])
def test_golden_stream_in_any_chunking_gives_its_pdus(
    all_requests: list[Any], all_responses: list[Any], chunk: int, header_digest: bool, data_digest: bool
) -> None:
    for receives, golden in ((TARGET_RECEIVES, all_requests), (INITIATOR_RECEIVES, all_responses)):
        framer = make(receives=receives, header_digest=header_digest, data_digest=data_digest)
        stream = b"".join(one.wire(header_digest=header_digest, data_digest=data_digest) for one in golden)
        assert feed(framer, stream, chunk) == [one.build() for one in golden]
        assert framer.pending == 0


def test_golden_pdu_is_not_yielded_before_its_last_byte(golden: Any) -> None:
    receives = TARGET_RECEIVES if golden.cls.opcode in TARGET_RECEIVES else INITIATOR_RECEIVES
    stream = golden.wire()
    framer = make(receives=receives)
    assert feed(framer, stream[:-1], 1) == []
    assert framer.pending == len(stream) - 1
    assert feed(framer, stream[-1:]) == [golden.build()]


@pytest.mark.parametrize("tail", [1, 7, 8, 47])
def test_golden_pdu_with_a_tail_leaves_the_tail_pending(golden: Any, tail: int) -> None:
    receives = TARGET_RECEIVES if golden.cls.opcode in TARGET_RECEIVES else INITIATOR_RECEIVES
    framer = make(receives=receives)
    following = golden.wire()
    assert feed(framer, golden.wire() + following[:tail]) == [golden.build()]
    assert framer.pending == tail
    assert feed(framer, following[tail:]) == [golden.build()]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 5, 8191, 8192])
def test_data_of_any_length_comes_without_its_padding(length: int) -> None:
    data = bytes(range(256)) * 32
    pdus = [NopOut(data=data[:length]), NopOut(cmd_sn=1)]
    assert feed(make(), b"".join(map(wire, pdus))) == pdus


def test_padding_is_not_looked_at() -> None:
    sent = wire(NopOut(data=b"a"))[:-3] + b"\xff\xff\xff"
    assert feed(make(), sent) == [NopOut(data=b"a")]


def test_command_decoded_in_the_loop_equals_the_unpacked_one() -> None:
    command = ScsiCommand(
        flags=0xE7,
        lun=1 << 63,
        initiator_task_tag=1,
        expected_data_transfer_length=2,
        cmd_sn=3,
        exp_stat_sn=4,
        cdb=bytes(range(16)),
        data=b"data",
    )
    (taken,) = feed(make(), wire(command))
    assert taken == command == ScsiCommand.unpack(command.pack(), 0, b"", b"data")
    assert type(taken.cdb) is bytes
    assert taken.immediate is False


def test_immediate_command_keeps_its_bit() -> None:
    (taken,) = feed(make(), wire(ScsiCommand(immediate=True, cmd_sn=5)))
    assert taken == ScsiCommand(immediate=True, cmd_sn=5)


def test_reserved_bit_of_byte_0_is_ignored() -> None:
    sent = bytearray(wire(ScsiCommand(cmd_sn=5)) + wire(NopOut()))
    sent[0] |= 0x80
    sent[48] |= 0x80
    assert feed(make(), bytes(sent)) == [ScsiCommand(cmd_sn=5), NopOut()]


# --- Taking PDUs ----------------------------------------------------------------------------------------------------


def test_pdus_left_in_the_middle_go_on_where_they_were_left() -> None:
    framer = make()
    put(framer, b"".join(wire(NopOut(cmd_sn=number)) for number in range(5)))
    for pdu in framer.pdus():
        if pdu.cmd_sn == 1:
            break
    assert framer.pending == 3 * BHS_SIZE
    assert [pdu.cmd_sn for pdu in framer.pdus()] == [2, 3, 4]
    assert list(framer.pdus()) == []


def test_data_is_a_slice_of_the_buffer() -> None:
    framer = make()
    put(framer, wire(ScsiDataOut(data=b"12345678")) + wire(ScsiCommand(data=b"abc")))
    first, second = framer.pdus()
    assert isinstance(first.data, memoryview)
    assert isinstance(second.data, memoryview)
    assert first.data.obj is second.data.obj
    assert (bytes(first.data), bytes(second.data)) == (b"12345678", b"abc")


def test_data_of_a_pdu_without_data_holds_no_buffer() -> None:
    framer = make()
    put(framer, wire(ScsiDataOut()) + wire(ScsiCommand()))
    assert [pdu.data for pdu in framer.pdus()] == [b"", b""]
    assert all(type(pdu.data) is bytes for pdu in framer.pdus())


# --- Switching in the middle ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("header_digest", [False, True])
@pytest.mark.parametrize("data_digest", [False, True])
def test_digests_switched_between_two_pdus_of_one_batch_hold_from_the_next(
    header_digest: bool, data_digest: bool
) -> None:
    command = ScsiCommand(data=b"12345")
    framer = make()
    sent = wire(LoginRequest(data=b"A=B\0")) + 2 * wire(command, header_digest=header_digest, data_digest=data_digest)
    put(framer, sent)
    taken: list[Any] = []
    for pdu in framer.pdus():
        taken.append(pdu)
        framer.header_digest = header_digest
        framer.data_digest = data_digest
    assert taken == [LoginRequest(data=b"A=B\0"), command, command]
    assert framer.pending == 0


def test_limit_raised_between_two_pdus_of_one_batch_holds_from_the_next() -> None:
    framer = make(size=65536)
    put(framer, wire(LoginRequest()) + wire(ScsiDataOut(data=bytes(20000))))
    taken = []
    for pdu in framer.pdus():
        taken.append(len(pdu.data))
        framer.max_data_segment_length = 20000
    assert taken == [0, 20000]


def test_resize_between_two_pdus_of_one_batch_keeps_the_batch() -> None:
    framer = make(size=1024)
    put(framer, wire(LoginRequest()) + wire(ScsiDataOut(data=b"data")) + b"\x01")
    taken = []
    for pdu in framer.pdus():
        framer.resize(1 << 20)
        taken.append(bytes(pdu.data))
    assert taken == [b"", b"data"]
    assert len(framer.writable()) == (1 << 20) - 1
    assert framer.pending == 1


# --- The buffer -----------------------------------------------------------------------------------------------------


def test_buffer_of_a_new_framer_has_the_size_asked_for() -> None:
    assert len(Framer(TARGET_RECEIVES).writable()) == DEFAULT_BUFFER_SIZE
    assert len(Framer(TARGET_RECEIVES, 100).writable()) == 100


def test_buffer_too_small_for_a_header_is_made_large_enough() -> None:
    assert feed(make(size=0), wire(NopOut())) == [NopOut()]


def test_buffer_is_used_from_the_front_when_everything_was_taken() -> None:
    framer = make(size=4096)
    for _ in range(1000):
        assert len(feed(framer, wire(NopOut()))) == 1
        assert len(framer.writable()) == 4096
    assert framer.buffer_size == 4096


@pytest.mark.parametrize("chunk", [48, 1000, 8000])
def test_buffer_moves_what_is_cut_short_and_does_not_grow(chunk: int) -> None:
    pdus = [ScsiDataOut(data_sn=number, data=bytes([number]) * (number * 37 % 8192)) for number in range(200)]
    framer = make(size=16384)
    assert feed(framer, b"".join(map(wire, pdus)), chunk) == pdus
    assert framer.buffer_size == 16384


@pytest.mark.parametrize("chunk", [1, 48, 1000, 1 << 20])
def test_buffer_grows_to_the_pdu_that_is_coming(chunk: int) -> None:
    pdu = ScsiDataOut(data=bytes(range(256)) * 31)
    framer = make(size=64)
    assert feed(framer, wire(pdu) * 3, chunk) == [pdu] * 3
    assert framer.buffer_size == 65536


def test_buffer_never_grows_beyond_the_largest_pdu_and_a_step() -> None:
    framer = make(size=64, header_digest=True, data_digest=True)
    framer.max_data_segment_length = 300001
    command = ScsiCommand(ahs=ahs.build(bytes(16 + 1016)), data=bytes(300001))
    assert feed(framer, wire(command, header_digest=True, data_digest=True)) == [command]
    assert framer.buffer_size <= 48 + 1020 + 4 + 300004 + 4 + 65536


def test_data_kept_too_long_does_not_stop_the_buffer_from_growing() -> None:
    framer = make(size=64)
    put(framer, wire(NopOut(data=b"1234")))
    (kept,) = framer.pdus()
    assert feed(framer, wire(NopOut(data=bytes(5000)))) == [NopOut(data=bytes(5000))]
    assert len(kept.data) == 4


def test_resize_to_less_changes_nothing() -> None:
    framer = make(size=4096)
    framer.resize(100)
    assert len(framer.writable()) == 4096


def test_writable_of_a_full_buffer_is_our_own_error() -> None:
    framer = make(size=96)
    put(framer, wire(NopOut()) * 2)
    with pytest.raises(LocalProtocolError, match="nobody took"):
        framer.writable()
    assert len(list(framer.pdus())) == 2
    assert len(framer.writable()) == 96


@pytest.mark.parametrize("count", [-1, 97])
def test_received_more_than_there_was_room_for_is_our_own_error(count: int) -> None:
    framer = make(size=96)
    framer.writable()
    with pytest.raises(LocalProtocolError, match="received into"):
        framer.received(count)


def test_received_nothing_changes_nothing() -> None:
    framer = make()
    framer.writable()
    framer.received(0)
    assert list(framer.pdus()) == []
    assert framer.pending == 0


# --- Limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pdu", [ScsiCommand(), ScsiDataOut(), LoginRequest(), TextRequest()], ids=repr)
@pytest.mark.parametrize("length", [LOGIN_DATA_LIMIT + 1, 0xFFFFFF])
def test_data_longer_than_declared_is_refused_with_its_header(pdu: Pdu, length: int) -> None:
    header = bytearray(pdu.pack())
    header[5:8] = length.to_bytes(3, "big")
    framer = make()
    assert feed(framer, bytes(header[:-1])) == []
    put(framer, bytes(header[-1:]))
    for _ in range(2):  # and again, when asked again
        with pytest.raises(RejectError, match="8192 are allowed") as caught:
            next(framer.pdus())
        assert caught.value.fatal
        assert caught.value.reason == RejectReason.PROTOCOL_ERROR
    framer.writable()
    assert framer.buffer_size == 4096


def test_pdus_before_the_one_that_is_refused_are_yielded() -> None:
    framer = make()
    framer.max_data_segment_length = 4
    put(framer, wire(NopOut(data=b"1234")) + wire(NopOut(data=b"12345")))
    taken: list[Any] = []
    with pytest.raises(RejectError):
        for pdu in framer.pdus():
            taken.append(bytes(pdu.data))
    assert taken == [b"1234"]


# --- Damage ---------------------------------------------------------------------------------------------------------


def flip(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 0x10]) + data[index + 1 :]


@pytest.mark.parametrize("index", [0, 4, 7, 20, 47, 48, 51])
def test_header_digest_that_is_wrong_ends_the_connection(index: int) -> None:
    framer = make(header_digest=True)
    sent = flip(wire(ScsiCommand(cmd_sn=1), header_digest=True), index) + bytes(1020)
    put(framer, sent)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError, match="header digest") as caught:
            next(framer.pdus())
        assert not isinstance(caught.value, RejectError)


def test_header_digest_is_checked_before_the_length_is_believed() -> None:
    framer = make(header_digest=True)
    put(framer, flip(wire(ScsiCommand(), header_digest=True), 5))  # 1 MiB of data, says a header that is damaged
    with pytest.raises(RemoteProtocolError, match="header digest"):
        next(framer.pdus())


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_header_with_ahs_and_too_much_data_gets_room_to_check_its_digest(chunk: int) -> None:
    header = bytearray(ScsiCommand(ahs=ahs.build(b"", 77)).pack())
    header[5:8] = b"\x01\x00\x00"
    sent = bytes(header) + digest(bytes(header))
    for damage, error in ((0, RejectError), (1, RemoteProtocolError)):
        framer = make(size=48, header_digest=True)
        assert feed(framer, sent[:-1], chunk) == []
        put(framer, bytes([sent[-1] ^ damage]))
        with pytest.raises(error, match=r"are allowed|header digest"):
            next(framer.pdus())


def test_header_digest_covers_the_ahs() -> None:
    command = ScsiCommand(ahs=ahs.build(b"", 77), data=b"data")
    sent = wire(command, header_digest=True)
    assert feed(make(header_digest=True), sent, 5) == [command]
    framer = make(header_digest=True)
    put(framer, flip(sent, 55))
    with pytest.raises(RemoteProtocolError, match="header digest"):
        next(framer.pdus())


@pytest.mark.parametrize("index", [48, 52, 53, 55, 56, 59])
@pytest.mark.parametrize("chunk", [1, 1000])
def test_data_digest_that_is_wrong_costs_one_pdu_and_tells_which(index: int, chunk: int) -> None:
    """Bytes 48 .. 52 are data, 53 .. 55 padding, 56 .. 59 the digest; each of them is covered."""
    damaged = ScsiDataOut(initiator_task_tag=7, buffer_offset=512, data=b"12345")
    sent = flip(wire(damaged, data_digest=True), index) + wire(NopOut(data=b"go on"), data_digest=True)
    first, second = feed(make(data_digest=True), sent, chunk)
    assert isinstance(first, DamagedPdu)
    assert first.reason == RejectReason.DATA_DIGEST_ERROR
    assert first.header == damaged.pack()
    assert first.pdu == ScsiDataOut(initiator_task_tag=7, buffer_offset=512)
    assert second == NopOut(data=b"go on")


def test_data_digest_of_a_pdu_without_data_is_not_there() -> None:
    assert feed(make(data_digest=True), wire(ScsiCommand()) + wire(NopOut())) == [ScsiCommand(), NopOut()]


@pytest.mark.parametrize("opcode", [0x07, 0x1C, 0x1F, 0x27, 0x30, 0x3E])
def test_unknown_opcode_is_skipped_with_its_data(opcode: int) -> None:
    unknown = bytearray(wire(NopOut(data=b"12345")))
    unknown[0] = opcode
    first, second = feed(make(), bytes(unknown) + wire(NopOut()))
    assert (first.reason, first.pdu) == (RejectReason.COMMAND_NOT_SUPPORTED, None)
    assert first.header == unknown[:48]
    assert second == NopOut()


@pytest.mark.parametrize(("receives", "wrong"), [(TARGET_RECEIVES, NopIn()), (INITIATOR_RECEIVES, ScsiCommand())])
def test_opcode_of_the_other_role_is_a_protocol_error(receives: Mapping[int, type[Pdu]], wrong: Pdu) -> None:
    (damaged,) = feed(make(receives=receives), wire(wrong))
    assert (damaged.reason, damaged.pdu) == (RejectReason.PROTOCOL_ERROR, None)
    assert "wrong direction" in damaged.message


def test_unknown_opcode_with_digests_and_ahs_is_skipped_whole() -> None:
    odd = NopOut(ahs=bytes(8), data=b"12345")
    unknown = bytearray(odd.pack())
    unknown[0] = 0x1D
    header = bytes(unknown)
    sent = header + digest(header) + b"12345\0\0\0" + digest(b"12345\0\0\0")
    following = wire(NopOut(cmd_sn=9), header_digest=True)
    first, second = feed(make(header_digest=True, data_digest=True), sent + following, 11)
    assert (first.reason, first.header) == (RejectReason.COMMAND_NOT_SUPPORTED, header)
    assert second == NopOut(cmd_sn=9)


@pytest.mark.parametrize(
    ("pdu", "what"),
    [
        (ScsiCommand(ahs=bytes(4), cmd_sn=3), "additional header segment"),
        (ScsiCommand(ahs=bytes.fromhex("0005030000000000"), cmd_sn=3, data=b"lost"), "unknown"),
        (NopOut(ahs=ahs.build(b"", 1), cmd_sn=3), "no SCSI Command"),
    ],
)
def test_ahs_that_makes_no_sense_costs_one_pdu(pdu: Pdu, what: str) -> None:
    first, second = feed(make(), wire(pdu) + wire(NopOut()))
    assert first.reason == RejectReason.INVALID_PDU_FIELD
    assert what in first.message
    assert first.header == pdu.pack()
    assert first.pdu.cmd_sn == 3
    assert first.pdu.data == b""
    assert second == NopOut()


def test_damaged_pdu_dispatches_beside_the_opcodes() -> None:
    assert DamagedPdu.opcode == DAMAGED
    assert all(opcode < DAMAGED for opcode in {**TARGET_RECEIVES, **INITIATOR_RECEIVES})


def test_initiator_that_sends_commands_to_an_initiator_gets_no_command_decoded() -> None:
    (damaged,) = feed(make(receives=INITIATOR_RECEIVES), wire(ScsiCommand()))
    assert isinstance(damaged, DamagedPdu)


def batches(pdus: Iterable[Pdu], size: int) -> list[bytes]:
    """Cut the stream of ``pdus`` into pieces of ``size`` bytes."""
    stream = b"".join(map(wire, pdus))
    return [stream[start : start + size] for start in range(0, len(stream), size)]


def test_stream_of_commands_cut_anywhere_is_complete_and_in_order() -> None:
    commands = [ScsiCommand(cmd_sn=number, data=bytes(number % 50)) for number in range(100)]
    for size in range(1, 200, 13):
        framer = make(size=256)
        taken = [pdu for piece in batches(commands, size) for pdu in feed(framer, piece)]
        assert taken == commands
