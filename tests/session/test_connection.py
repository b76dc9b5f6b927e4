"""session.connection, with a real initiator's parts at the other end (``helpers.Pair``, which checks StatSN, ExpCmdSN
and MaxCmdSN of every PDU). Invariants: the same in whole chunks and byte by byte, with any digests; whatever is sent
raises RemoteProtocolError or is answered.
"""

from __future__ import annotations

from typing import Any

import pytest
from helpers import DIGESTS, INITIATOR_NAME, TARGET_NAME, TSIH, Pair
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsid.errors import LoginError, RemoteProtocolError
from iscsid.session import connection as module
from iscsid.session.connection import LEND_FROM, NOP_DATA_LIMIT, Established, residual
from iscsid.session.transfer import DataInPlan, Grant, Segment
from iscsid.wire.const import (
    BHS_SIZE,
    FINAL,
    OVERFLOW,
    READ,
    RESERVED_TAG,
    STATUS,
    UNDERFLOW,
    WRITE,
    AsyncEvent,
    LoginStatus,
    RejectReason,
)
from iscsid.wire.framer import DamagedPdu
from iscsid.wire.pdu import (
    R2T,
    AsyncMessage,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    NopIn,
    NopOut,
    Reject,
    ScsiCommand,
    ScsiDataIn,
    ScsiDataOut,
    ScsiResponse,
    SnackRequest,
    TaskManagementRequest,
    TextRequest,
)

CDB = bytes(range(16))


@pytest.fixture(params=DIGESTS)
def digests(request: pytest.FixtureRequest) -> dict[str, str]:
    return DIGESTS[request.param]


@pytest.fixture(params=[0, 1, 37], ids=["whole", "bytewise", "chunks"])
def chunk(request: pytest.FixtureRequest) -> int:
    size: int = request.param
    return size


def command(tag: int = 1, **fields: Any) -> ScsiCommand:
    return ScsiCommand(**{"cdb": CDB, "initiator_task_tag": tag, "flags": FINAL | READ, **fields})


def numbered(cmd_sn: int, **fields: Any) -> ScsiCommand:
    """A command with a CmdSN of the test's own, which is its tag as well."""
    return command(cmd_sn, cmd_sn=cmd_sn, **fields)


def tags(events: list[Any]) -> list[int]:
    return [event.initiator_task_tag for event in events]


# --- the login ------------------------------------------------------------------------------------------------------


def test_login_settles_parameters_on_both_sides(digests: dict[str, str], chunk: int) -> None:
    pair = Pair(digests, chunk=chunk)
    ours, theirs = pair.connection.parameters, pair.parameters
    assert (ours.initiator_name, ours.target_name, ours.tsih) == (INITIATOR_NAME, TARGET_NAME, TSIH)
    assert ours.header_digest == theirs.header_digest == ("HeaderDigest" in digests)
    assert ours.data_digest == theirs.data_digest == ("DataDigest" in digests)
    assert pair.connection.data_digest == ours.data_digest
    assert pair.connection.login is None


@pytest.mark.parametrize("skip_security", [True, False])
@pytest.mark.parametrize("cmd_sn", [0, 1, 0xFFFFFFFF])
def test_numbers_go_on_where_the_login_left_them(skip_security: bool, cmd_sn: int) -> None:
    pair = Pair(cmd_sn=cmd_sn, skip_security=skip_security, stat_sn=0xFFFFFFFF, queue_depth=5)
    assert pair.connection.window.exp_cmd_sn == cmd_sn
    assert pair.connection.stat_sn == pair.exp_stat_sn
    assert pair.max_cmd_sn == (cmd_sn + 4) & 0xFFFFFFFF
    pair.send(command(7))
    assert tags(pair.take_events()) == [7]
    pair.connection.good(7)
    (response,) = pair.receive()
    assert response.max_cmd_sn == (cmd_sn + 5) & 0xFFFFFFFF


def test_command_in_the_same_chunk_as_the_last_login_request_is_taken(digests: dict[str, str]) -> None:
    pair = Pair(digests, login=False, skip_security=True)
    stream = pair.encode(pair.login.start())
    pair.header_digest, pair.data_digest = "HeaderDigest" in digests, "DataDigest" in digests
    stream += pair.encode(command(3, cmd_sn=pair.cmd_sn, data=b"data"))
    pair.feed(stream)
    established, taken = pair.take_events()
    assert isinstance(established, Established)
    assert (taken.initiator_task_tag, taken.data) == (3, b"data")


def test_last_login_response_goes_out_without_digests() -> None:
    pair = Pair(DIGESTS["both"], login=False, skip_security=True)
    pair.send(pair.login.start(), numbered=False)
    assert pair.connection.login is None
    (response,) = pair.receive()  # its framer knows of no digests yet
    assert isinstance(response, LoginResponse)
    assert response.status == LoginStatus.SUCCESS


def test_discovery_session_is_established_without_a_target() -> None:
    pair = Pair(target_name=None)
    assert pair.connection.parameters.discovery
    assert pair.connection.parameters.target_name == ""


def test_login_that_fails_is_answered_and_ends_the_connection() -> None:
    pair = Pair(login=False, tsih=77)  # a session that there is not
    with pytest.raises(LoginError):
        pair.send(pair.login.start(), numbered=False)
    assert pair.connection.closing
    (response,) = pair.receive()
    assert response.status == LoginStatus.SESSION_DOES_NOT_EXIST


def test_nothing_is_heard_after_a_login_that_failed() -> None:
    pair = Pair(login=False, tsih=77)
    request = pair.login.start()
    with pytest.raises(LoginError):
        pair.send(request, numbered=False)
    pair.receive()
    pair.send(request, command(), numbered=False)
    assert pair.take_events() == []
    assert pair.receive() == []


@pytest.mark.parametrize(
    "pdu",
    [NopOut(), command(), ScsiDataOut(), TextRequest(), LogoutRequest(), TaskManagementRequest(), SnackRequest()],
    ids=lambda pdu: type(pdu).__name__,
)
def test_other_pdu_first_ends_the_connection_without_an_answer(pdu: Any) -> None:
    pair = Pair(login=False)
    with pytest.raises(RemoteProtocolError, match="Login Request"):
        pair.send(pdu)
    assert pair.connection.closing
    assert pair.receive() == []


@pytest.mark.parametrize("unknown", [False, True])
def test_other_pdu_in_the_login_is_answered_by_a_login_reject(unknown: bool) -> None:
    pair = Pair(login=False)
    pair.send(pair.login.start(), numbered=False)
    pair.receive()
    stream = bytearray(pair.encode(NopOut(initiator_task_tag=5)))
    if unknown:
        stream[0] = 0x1C
    with pytest.raises(RemoteProtocolError, match="Login Request"):
        pair.feed(bytes(stream))
    (response,) = pair.receive()
    assert isinstance(response, LoginResponse)
    assert response.status == LoginStatus.INVALID_DURING_LOGIN
    assert pair.connection.closing


def test_login_data_beyond_8_kib_ends_the_connection() -> None:
    pair = Pair(login=False)
    with pytest.raises(RemoteProtocolError):
        pair.send(LoginRequest(data=bytes(8193)), numbered=False)
    assert pair.receive() == []  # there is no Reject in a login


def test_login_request_in_full_feature_phase_is_rejected_and_ends_the_connection() -> None:
    pair = Pair()
    with pytest.raises(RemoteProtocolError, match="full feature phase"):
        pair.send(LoginRequest(isid=1, initiator_task_tag=9), numbered=False)
    (reject,) = pair.receive()
    assert reject.reason == RejectReason.PROTOCOL_ERROR
    assert LoginRequest.unpack(reject.data, 0, b"", b"").initiator_task_tag == 9


# --- commands and their order ---------------------------------------------------------------------------------------


def test_commands_come_out_as_they_were_sent(digests: dict[str, str], chunk: int) -> None:
    pair = Pair(digests, chunk=chunk)
    sent = [command(number, lun=number, data=bytes([number]) * number) for number in range(12)]
    pair.send(*sent)
    taken = pair.take_events()
    assert [(one.initiator_task_tag, one.lun, one.data) for one in taken] == [
        (number, number, bytes([number]) * number) for number in range(12)
    ]


def test_cmd_sn_wraps() -> None:
    pair = Pair(cmd_sn=0xFFFFFFFE)
    pair.send(*(command(number) for number in range(4)))
    assert tags(pair.take_events()) == [0, 1, 2, 3]
    assert pair.connection.window.exp_cmd_sn == 2


def test_data_of_an_event_lies_in_the_receive_buffer() -> None:
    pair = Pair()
    stream = pair.encode(numbered(1, data=b"in place"))
    pair.connection.framer.writable()[: len(stream)] = stream
    pair.connection.framer.received(len(stream))
    (event,) = pair.connection.events()
    assert isinstance(event, ScsiCommand)
    assert isinstance(event.data, memoryview)


def test_commands_out_of_order_come_out_in_order() -> None:
    pair = Pair()
    pair.send(*(numbered(cmd_sn, data=bytes([cmd_sn])) for cmd_sn in (3, 4, 1, 5, 2)), numbered=False)
    taken = pair.take_events()
    assert tags(taken) == [1, 2, 3, 4, 5]
    assert [one.data for one in taken] == [b"\1", b"\2", b"\3", b"\4", b"\5"]


def test_held_command_keeps_its_data_when_the_buffer_is_used_again() -> None:
    pair = Pair()
    pair.send(numbered(2, data=b"kept"), numbered=False)
    pair.send(*(NopOut(immediate=True, data=b"over it again") for _ in range(9)), numbered=False)
    pair.send(numbered(1), numbered=False)
    assert [one.data for one in pair.take_events()] == [b"", b"kept"]


def test_other_requests_wait_for_their_turn_too() -> None:
    pair = Pair()
    pair.send(
        NopOut(initiator_task_tag=2, cmd_sn=2, data=b"second"),
        TaskManagementRequest(initiator_task_tag=3, cmd_sn=3),
        TextRequest(initiator_task_tag=4, cmd_sn=4, data=b"text"),
        numbered=False,
    )
    assert pair.take_events() == []
    assert pair.receive() == []
    pair.send(numbered(1), numbered=False)
    assert tags(pair.take_events()) == [1, 3, 4]
    (ping,) = pair.receive()
    assert (ping.initiator_task_tag, ping.data) == (2, b"second")


@pytest.mark.parametrize("cmd_sn", [0, 0xFFFFFFFF, 33, 34, 0x80000000])
def test_command_outside_the_window_is_ignored_silently(cmd_sn: int) -> None:
    pair = Pair(queue_depth=32)  # 1 .. 32
    pair.send(numbered(cmd_sn), numbered=False)
    pair.send(numbered(1), numbered=False)
    assert tags(pair.take_events()) == [1]
    assert pair.receive() == []


def test_command_that_comes_twice_is_executed_once() -> None:
    pair = Pair()
    pair.send(numbered(1), numbered(1), numbered(3), numbered(3), numbered(2), numbered(2), numbered=False)
    assert tags(pair.take_events()) == [1, 2, 3]


def test_initiator_that_ignores_max_cmd_sn_is_not_heard() -> None:
    pair = Pair(queue_depth=4)
    stream = b"".join(pair.encode(numbered(cmd_sn)) for cmd_sn in range(1, 20))
    pair.connection.framer.writable()[: len(stream)] = stream
    pair.connection.framer.received(len(stream))
    taken = 0
    for _ in pair.connection.events():
        pair.connection.window.began()  # none of them is finished
        taken += 1
    assert taken == 4
    assert pair.connection.window.max_cmd_sn == 4


def test_immediate_command_is_taken_at_once_whatever_the_window(chunk: int) -> None:
    pair = Pair(chunk=chunk, queue_depth=1)
    pair.connection.window.began()
    pair.send(command(1), command(2, immediate=True))
    assert tags(pair.take_events()) == [2]
    assert pair.connection.window.exp_cmd_sn == 1
    assert not pair.connection.window.held


def test_data_out_is_handed_on_without_cmd_sn(digests: dict[str, str], chunk: int) -> None:
    pair = Pair(digests, chunk=chunk)
    pair.send(command(1), ScsiDataOut(initiator_task_tag=1, data=b"odd", data_sn=2, buffer_offset=4), command(2))
    first, data_out, second = pair.take_events()
    assert (data_out.data, data_out.data_sn, data_out.buffer_offset) == (b"odd", 2, 4)
    assert (first.initiator_task_tag, second.initiator_task_tag) == (1, 2)


def test_nothing_is_heard_after_a_logout() -> None:
    pair = Pair()
    stream = b"".join(
        map(pair.encode, [numbered(3), LogoutRequest(initiator_task_tag=1, cmd_sn=1), numbered(2), numbered(4)])
    )
    pair.connection.framer.writable()[: len(stream)] = stream
    pair.connection.framer.received(len(stream))
    for event in pair.connection.events():
        assert isinstance(event, LogoutRequest)
        pair.connection.closing = True
    assert list(pair.connection.events()) == []


def test_held_command_is_not_executed_after_a_held_logout() -> None:
    pair = Pair()
    stream = b"".join(
        map(pair.encode, [LogoutRequest(initiator_task_tag=2, cmd_sn=2), numbered(3), numbered(1)]),
    )
    pair.connection.framer.writable()[: len(stream)] = stream
    pair.connection.framer.received(len(stream))
    seen = []
    for event in pair.connection.events():
        seen.append(type(event))
        pair.connection.closing = isinstance(event, LogoutRequest)
    assert seen == [ScsiCommand, LogoutRequest]


# --- what is refused ------------------------------------------------------------------------------------------------


def test_snack_is_rejected() -> None:
    pair = Pair()
    pair.send(SnackRequest(initiator_task_tag=4, beg_run=1))
    (reject,) = pair.receive()
    assert reject.reason == RejectReason.SNACK_REJECT
    assert SnackRequest.unpack(reject.data, 0, b"", b"").initiator_task_tag == 4
    assert pair.take_events() == []


def test_unknown_opcode_is_rejected_with_its_header_and_told(digests: dict[str, str], chunk: int) -> None:
    pair = Pair(digests, chunk=chunk)
    odd = NopOut(initiator_task_tag=6, data=b"x")
    type_of = type("Odd", (NopOut,), {"opcode": 0x1D})
    pair.send(type_of(initiator_task_tag=6, data=b"x"), command(1))
    (reject,) = pair.receive()
    assert reject.reason == RejectReason.COMMAND_NOT_SUPPORTED
    assert reject.data[1:] == odd.pack()[1:24] + (1).to_bytes(4, "big") + reject.data[28:]
    assert reject.data[0] == 0x1D
    assert reject.initiator_task_tag == RESERVED_TAG
    damage, *_ = pair.take_events()
    assert isinstance(damage, DamagedPdu)


def test_pdu_of_the_targets_is_rejected() -> None:
    pair = Pair()
    pair.feed(pair.encode(NopIn()))
    (reject,) = pair.receive()
    assert reject.reason == RejectReason.PROTOCOL_ERROR


def test_command_with_a_bad_ahs_is_rejected_and_the_next_one_is_taken() -> None:
    pair = Pair()
    pair.send(command(1, ahs=b"\0\5\x7f\0abcd"), command(2))
    (reject,) = pair.receive()
    assert isinstance(reject, Reject)
    assert len(reject.data) == 48
    damage, taken = pair.take_events()
    assert isinstance(damage, DamagedPdu)
    assert taken.initiator_task_tag == 2
    assert pair.exp_cmd_sn == 2


def damaged(pair: Pair, pdu: Any) -> bytes:
    pair.number(pdu)
    stream = bytearray(pair.encode(pdu))
    stream[-1] ^= 1
    return bytes(stream)


@pytest.mark.parametrize("digests", ["data", "both"])
def test_command_with_a_wrong_data_digest_may_come_again(digests: str, chunk: int) -> None:
    pair = Pair(DIGESTS[digests], chunk=chunk)
    lost = command(1, data=b"data")
    pair.feed(damaged(pair, lost))
    pair.send(command(2))
    damage, *rest = pair.take_events()
    assert isinstance(damage, DamagedPdu)
    assert rest == []  # its turn has not come
    (reject,) = pair.receive()
    assert reject.reason == RejectReason.DATA_DIGEST_ERROR
    pair.send(lost, numbered=False)
    assert tags(pair.take_events()) == [1, 2]


def test_data_out_with_a_wrong_data_digest_is_rejected_and_names_its_task() -> None:
    pair = Pair(DIGESTS["data"])
    pair.feed(damaged(pair, ScsiDataOut(initiator_task_tag=8, data=b"data")))
    (reject,) = pair.receive()
    assert reject.reason == RejectReason.DATA_DIGEST_ERROR
    (damage,) = pair.take_events()
    assert damage.pdu.initiator_task_tag == 8


def test_wrong_header_digest_ends_the_connection(chunk: int) -> None:
    pair = Pair(DIGESTS["header"], chunk=chunk)
    with pytest.raises(RemoteProtocolError, match="header digest"):
        pair.feed(damaged(pair, command(1)))
    assert pair.take_events() == []


def test_data_segment_longer_than_declared_is_rejected_and_ends_the_connection(
    digests: dict[str, str], chunk: int
) -> None:
    """RFC 7143 section 11.17.1, protocol error; the header is answered as soon as it is there."""
    pair = Pair(digests, target_offers={"MaxRecvDataSegmentLength": "1024"}, chunk=chunk)
    pair.send(command(1, data=bytes(1024)))
    oversized = command(2, data=bytes(1025))
    pair.number(oversized)
    length = BHS_SIZE + (4 if pair.header_digest else 0)
    with pytest.raises(RemoteProtocolError, match="1025 bytes, 1024 are allowed"):
        pair.feed(pair.encode(oversized)[:length])
    assert pair.connection.closing
    (reject,) = pair.receive()
    assert (reject.reason, reject.data) == (RejectReason.PROTOCOL_ERROR, oversized.pack())
    pair.feed(pair.encode(command(3)))
    assert pair.receive() == []
    assert tags(pair.take_events()) == [1]


def test_data_segment_too_long_in_a_header_with_a_wrong_digest_is_not_answered() -> None:
    pair = Pair(DIGESTS["header"], target_offers={"MaxRecvDataSegmentLength": "1024"})
    stream = bytearray(pair.encode(command(1, data=bytes(2048)))[:52])
    stream[-1] ^= 1
    with pytest.raises(RemoteProtocolError, match="header digest"):
        pair.feed(bytes(stream))
    assert pair.receive() == []


def test_requests_whose_answers_nobody_takes_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTPUT_LIMIT", 10_000)
    pair = Pair()
    with pytest.raises(RemoteProtocolError, match="not taken"):
        for number in range(10):
            pair.send(NopOut(initiator_task_tag=number, data=bytes(4096)))
    assert pair.connection.outbox.queued < 20_000


# --- NOP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("immediate", [True, False])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 511])
def test_ping_is_echoed(digests: dict[str, str], chunk: int, immediate: bool, length: int) -> None:
    pair = Pair(digests, chunk=chunk)
    data = bytes(range(256))[:length]
    pair.send(NopOut(initiator_task_tag=3, lun=1 << 48, immediate=immediate, data=data))
    (answer,) = pair.receive()
    assert isinstance(answer, NopIn)
    assert (answer.initiator_task_tag, answer.target_transfer_tag) == (3, RESERVED_TAG)
    assert (answer.data, answer.lun) == (data, 0)
    assert answer.exp_cmd_sn == (1 if immediate else 2)
    assert pair.take_events() == []


def test_long_ping_is_cut() -> None:
    pair = Pair()
    pair.send(NopOut(initiator_task_tag=3, data=bytes(10_000)))
    assert len(pair.receive()[0].data) == NOP_DATA_LIMIT


def test_ping_is_cut_to_what_the_initiator_takes() -> None:
    pair = Pair({"MaxRecvDataSegmentLength": "512"})
    pair.send(NopOut(initiator_task_tag=3, data=bytes(1000)))
    assert len(pair.receive()[0].data) == 512


def test_nop_out_without_a_tag_is_not_answered() -> None:
    pair = Pair()
    pair.send(NopOut(immediate=True), NopOut())
    assert pair.receive() == []
    assert pair.connection.window.exp_cmd_sn == 2


def test_our_ping_waits_for_its_answer_and_uses_up_no_stat_sn() -> None:
    pair = Pair()
    for turn in range(3):
        pair.connection.ping()
        assert pair.connection.pinged
        (ping,) = pair.receive()
        assert (ping.initiator_task_tag, ping.target_transfer_tag) == (RESERVED_TAG, turn + 1)
        pair.send(NopOut(immediate=True))  # nothing to do with it
        assert pair.connection.pinged
        pair.send(NopOut(immediate=True, target_transfer_tag=ping.target_transfer_tag, lun=ping.lun))
        assert not pair.connection.pinged
        assert pair.receive() == []


# --- answers --------------------------------------------------------------------------------------------------------


def test_good_is_a_response_without_anything(digests: dict[str, str], chunk: int) -> None:
    pair = Pair(digests, chunk=chunk)
    pair.send(command(1), command(2))
    for tag in (1, 2):
        pair.connection.good(tag)
    first, second = pair.receive()
    assert first == ScsiResponse(
        initiator_task_tag=1,
        stat_sn=first.stat_sn,
        exp_cmd_sn=3,
        max_cmd_sn=34,
    )
    assert (second.initiator_task_tag, second.stat_sn) == (2, first.stat_sn + 1)


def test_stat_sn_wraps_on_every_path() -> None:
    pair = Pair(stat_sn=0xFFFFFFFC, skip_security=True)
    connection = pair.connection
    connection.good(1)
    connection.respond(2, 0, b"", 0, 0)
    connection.data_in_room(4)[:] = b"data"
    connection.data_in_commit(3, 4)
    connection.data_in_lend(4, memoryview(b"data"))
    connection.data_in(5, Segment(0, 4, 0, True, True), memoryview(b"data"), 4, 4)
    connection.good(6)
    assert [answer.stat_sn for answer in pair.receive()] == [0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFF, 0, 1, 2]


@pytest.mark.parametrize(
    ("expected", "length", "flag", "count"),
    [
        (512, 512, 0, 0),
        (512, 0, UNDERFLOW, 512),
        (512, 100, UNDERFLOW, 412),
        (100, 512, OVERFLOW, 412),
        (0, 512, OVERFLOW, 512),
        (0xFFFFFFFF, 0, UNDERFLOW, 0xFFFFFFFF),
        (0, 0, 0, 0),
    ],
)
def test_residual_rides_on_a_response(expected: int, length: int, flag: int, count: int) -> None:
    assert residual(expected, length) == (flag, count)
    pair = Pair()
    pair.connection.respond(1, 0, b"", expected, length)
    (response,) = pair.receive()
    assert (response.flags, response.residual_count) == (FINAL | flag, count)


def test_sense_rides_on_a_response(digests: dict[str, str], chunk: int) -> None:
    pair = Pair(digests, chunk=chunk)
    pair.connection.respond(1, 2, b"\0\5sense", 512, 0, exp_data_sn=3)
    (response,) = pair.receive()
    assert (response.status, response.sense, response.exp_data_sn) == (2, b"sense", 3)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 512, 4096, LEND_FROM + 1, LEND_FROM + 4])
@pytest.mark.parametrize("way", ["commit", "lend", "data_in", "segment"])
def test_whole_data_in_ends_with_good(digests: dict[str, str], length: int, way: str) -> None:
    pair = Pair(digests)
    connection = pair.connection
    data = bytes(range(251)) * (length // 251 + 1)
    data = data[:length]
    pair.send(command(5))
    if way == "lend":
        connection.data_in_lend(5, memoryview(data))
    elif way == "data_in":
        connection.data_in(5, Segment(0, length, 0, True, True), memoryview(data), length, length)
    else:
        connection.data_in_room(length)[:] = data
        if way == "commit":
            connection.data_in_commit(5, length)
        else:
            connection.data_in_commit_segment(5, Segment(0, length, 0, True, True), length, length)
    connection.good(6)
    answer, after = pair.receive()
    assert answer == ScsiDataIn(
        flags=FINAL | STATUS,
        initiator_task_tag=5,
        stat_sn=after.stat_sn - 1,
        exp_cmd_sn=2,
        max_cmd_sn=33,
        data=data,
    )


@pytest.mark.parametrize("way", ["commit", "lend"])
def test_data_in_of_nothing_is_a_response(digests: dict[str, str], way: str) -> None:
    pair = Pair(digests)
    if way == "lend":
        pair.connection.data_in_lend(5, memoryview(b""))
    else:
        pair.connection.data_in_room(0)
        pair.connection.data_in_commit(5, 0)
    (answer,) = pair.receive()
    assert isinstance(answer, ScsiResponse)
    assert answer.initiator_task_tag == 5


def test_data_in_bytewise_is_whole(digests: dict[str, str]) -> None:
    pair = Pair(digests, chunk=1)
    for tag in range(3):
        pair.connection.data_in_room(509)[:] = bytes([tag]) * 509
        pair.connection.data_in_commit(tag, 509)
        pair.connection.data_in_lend(tag, memoryview(bytes([tag]) * 512))
    assert [answer.data for answer in pair.receive()] == [
        bytes([tag]) * length for tag in range(3) for length in (509, 512)
    ]


@pytest.mark.parametrize("lent", [True, False])
@pytest.mark.parametrize(("expected", "flag", "count"), [(10_000, 0, 0), (12_000, UNDERFLOW, 2000)])
def test_transfer_in_many_pdus_has_status_on_the_last(
    digests: dict[str, str], lent: bool, expected: int, flag: int, count: int
) -> None:
    pair = Pair({"MaxRecvDataSegmentLength": "1024", "MaxBurstLength": "2560", **digests})
    connection = pair.connection
    data = bytes(range(250)) * 40
    plan = DataInPlan(connection.parameters, len(data))
    while length := plan.next_length():
        start = plan.offset
        if lent:
            connection.data_in(1, plan.take(length), memoryview(data)[start : start + length], expected, len(data))
        else:
            connection.data_in_room(length)[:] = data[start : start + length]
            connection.data_in_commit_segment(1, plan.take(length), expected, len(data))
    answers = pair.receive()
    assert b"".join(answer.data for answer in answers) == data
    assert [answer.data_sn for answer in answers] == list(range(len(answers)))
    *others, last = answers
    assert (last.flags, last.residual_count) == (FINAL | STATUS | flag, count)
    assert {answer.flags for answer in others} == {0, FINAL}
    assert [answer.buffer_offset + len(answer.data) for answer in others if answer.final] == [2560, 5120, 7680]


def test_room_that_was_not_filled_is_not_sent(digests: dict[str, str]) -> None:
    pair = Pair(digests)
    pair.connection.data_in_room(512)[:] = b"x" * 512
    pair.connection.good(2)
    (answer,) = pair.receive()
    assert isinstance(answer, ScsiResponse)


@pytest.mark.parametrize(("digests", "lent"), [({}, True), (DIGESTS["header"], True), (DIGESTS["data"], False)])
def test_long_data_is_lent_where_no_digest_is_taken_of_it(digests: dict[str, str], lent: bool) -> None:
    pair = Pair(digests)
    memory = bytearray(LEND_FROM + 4)
    segment = Segment(0, len(memory), 0, True, True)
    pair.connection.data_in(1, segment, memoryview(memory), len(memory), len(memory))
    memory[0] = 0xFF  # somebody writes before it is sent
    (answer,) = pair.receive()
    assert answer.data[0] == (0xFF if lent else 0)


def test_memory_that_changes_while_it_is_copied_does_not_break_the_digest() -> None:
    pair = Pair(DIGESTS["data"])
    memory = bytearray(512)  # another process writes to it
    put = pair.connection.outbox.put

    def put_then_change(data: bytes | memoryview) -> None:
        put(data)
        memory[0] = (memory[0] + 1) % 256

    pair.connection.outbox = Meddling(pair.connection.outbox, put_then_change)  # type: ignore[assignment]
    pair.connection.data_in_lend(1, memoryview(memory))
    (answer,) = pair.receive()
    assert len(answer.data) == 512


class Meddling:
    """An outbox with a ``put`` of the test's own."""

    def __init__(self, outbox: Any, put: Any) -> None:
        self._outbox = outbox
        self.put = put

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outbox, name)


def test_r2t_says_what_was_granted_and_uses_up_no_stat_sn(digests: dict[str, str], chunk: int) -> None:
    pair = Pair(digests, chunk=chunk)
    pair.send(command(4, lun=5 << 48, flags=FINAL | WRITE))
    (write,) = pair.take_events()
    pair.connection.ready_to_transfer(write, Grant(77, 1, 4096, 8192))
    pair.connection.good(4)
    r2t, response = pair.receive()
    assert isinstance(r2t, R2T)
    assert (r2t.lun, r2t.initiator_task_tag, r2t.target_transfer_tag) == (5 << 48, 4, 77)
    assert (r2t.r2t_sn, r2t.buffer_offset, r2t.desired_data_transfer_length) == (1, 4096, 8192)
    assert r2t.stat_sn == response.stat_sn


def test_request_for_logout_says_when() -> None:
    pair = Pair()
    pair.connection.request_logout(10)
    (message,) = pair.receive()
    assert isinstance(message, AsyncMessage)
    assert (message.async_event, message.parameter3) == (AsyncEvent.LOGOUT_REQUEST, 10)
    assert message.initiator_task_tag == RESERVED_TAG


def test_window_of_answers_tells_of_unfinished_commands() -> None:
    pair = Pair(queue_depth=8)
    pair.send(command(1), command(2))
    pair.connection.window.began()
    pair.connection.good(2)
    (response,) = pair.receive()
    assert (response.exp_cmd_sn, response.max_cmd_sn) == (3, 9)  # two ahead of 1 .. 8, one still there
    pair.connection.window.ended()
    pair.connection.good(1)
    (response,) = pair.receive()
    assert (response.exp_cmd_sn, response.max_cmd_sn) == (3, 10)


# --- text in full feature phase -------------------------------------------------------------------------------------


def test_segment_length_may_be_declared_anew() -> None:
    pair = Pair()
    assert pair.connection.renegotiate("MaxRecvDataSegmentLength", "1024") == []
    assert pair.connection.parameters.peer_max_recv_data_segment_length == 1024
    assert pair.connection.parameters.max_recv_data_segment_length == 262144


@pytest.mark.parametrize(("key", "value"), [("MaxBurstLength", "512"), ("HeaderDigest", "None"), ("TargetName", "x")])
def test_what_belongs_to_the_login_may_not_be_said_again(key: str, value: str) -> None:
    pair = Pair()
    with pytest.raises(RemoteProtocolError):
        pair.connection.renegotiate(key, value)


def test_unknown_key_is_not_understood() -> None:
    assert Pair().connection.renegotiate("X-org.example.key", "1") == [("X-org.example.key", "NotUnderstood")]


# --- anything -------------------------------------------------------------------------------------------------------

REQUESTS = st.one_of(
    st.builds(NopOut, initiator_task_tag=st.sampled_from([1, RESERVED_TAG]), data=st.binary(max_size=40)),
    st.builds(command, st.integers(0, 5), immediate=st.booleans(), data=st.binary(max_size=40)),
    st.builds(ScsiDataOut, initiator_task_tag=st.integers(0, 5), data=st.binary(max_size=40)),
    st.builds(TextRequest, immediate=st.booleans(), data=st.binary(max_size=40)),
    st.builds(TaskManagementRequest, immediate=st.booleans()),
    st.builds(SnackRequest),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(REQUESTS, max_size=12),
    st.sampled_from(sorted(DIGESTS)),
    st.sampled_from([0, 1, 5, 48, 100]),
    st.integers(0, 0xFFFFFFFF),
)
def test_any_requests_come_out_once_and_in_order(requests: list[Any], kind: str, chunk: int, cmd_sn: int) -> None:
    pair = Pair(DIGESTS[kind], chunk=chunk, cmd_sn=cmd_sn)
    pair.send(*requests)
    events = [event for event in requests if not isinstance(event, NopOut | SnackRequest)]
    assert pair.take_events() == events
    answers = pair.receive()
    pings = [one for one in requests if isinstance(one, NopOut) and one.initiator_task_tag != RESERVED_TAG]
    assert [one.data for one in answers if isinstance(one, NopIn)] == [one.data for one in pings]
    assert len(answers) == len(pings) + sum(isinstance(one, SnackRequest) for one in requests)


def pdu_like(head: tuple[int, int], lengths: int, rest: bytes, data: bytes) -> bytes:
    return bytes([*head, 0, 0]) + lengths.to_bytes(4, "big") + rest + data


NOISE = st.one_of(
    st.binary(max_size=200),
    st.builds(
        pdu_like,
        st.tuples(
            st.sampled_from([0, 1, 2, 4, 5, 6, 0x10, 0x40, 0x41, 0x44, 0x46, 0x20, 0x3F]),
            st.integers(0, 255),
        ),
        st.integers(0, 60) | st.sampled_from([1 << 24, 2 << 24 | 4]),
        st.binary(min_size=40, max_size=40),
        st.binary(max_size=64),
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(NOISE, max_size=6), st.sampled_from(sorted(DIGESTS)), st.booleans())
def test_noise_raises_remote_protocol_error_and_nothing_else(pieces: list[bytes], kind: str, login: bool) -> None:
    pair = Pair(DIGESTS[kind], login=login)
    try:
        for piece in pieces:
            pair.feed(piece)
    except RemoteProtocolError:
        pass
    assert len(pair.connection.window.held) < 32
    assert pair.connection.outbox.queued < 10_000
