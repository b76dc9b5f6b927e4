"""target.data_out: data that comes in every legal cut, what breaks the rules, and memory that is bounded."""

from __future__ import annotations

import itertools

import pytest
from target_rig import BLOCK, CHECK_CONDITION, DEVICES, GOOD, Inline, Memory, Nowait, Session, Volatile, pattern

from iscsid.scsi.sense import Reason
from iscsid.target import data_out
from iscsid.wire.const import FINAL, WRITE, RejectReason
from iscsid.wire.pdu import R2T, Reject, ScsiDataOut, TaskManagementRequest

ANNOUNCING = int(WRITE)  # no F bit: unsolicited Data-Out follows
KIB = 1024


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("fua", [False, True])
@pytest.mark.parametrize("size", [1000, 4096, 65536])
def test_write_in_pieces_of_any_size_is_written_whole(kind: str, fua: bool, size: int) -> None:
    session = Session(DEVICES[kind](), {"MaxBurstLength": "70000", "FirstBurstLength": "10001"})
    data = pattern(300 * BLOCK)
    session.write(7, 5, data, immediate=1001, fua=fua, flags=ANNOUNCING)
    session.unsolicited(7, 1001, 10001, size=size)
    assert session.outcome(7, size).status == GOOD
    assert session.device.content[5 * BLOCK : 305 * BLOCK] == data
    assert not any(session.device.content[: 5 * BLOCK]) and not any(session.device.content[305 * BLOCK :])
    session.assert_idle()


def test_inline_write_goes_to_the_device_as_it_comes() -> None:
    session = Session(offers={"ImmediateData": "No", "InitialR2T": "Yes"})
    session.write(1, 0, pattern(64 * KIB))
    session.hear()
    session.answer_r2t(session.r2ts.pop(), session.data_out[1], size=16 * KIB)
    assert session.device.calls == [("write", start, 16 * KIB) for start in range(0, 64 * KIB, 16 * KIB)]
    assert session.outcome(1).status == GOOD


def test_blocking_write_is_gathered_and_written_in_one_call_of_the_pool() -> None:
    session = Session(Memory())
    session.write(1, 0, pattern(64 * KIB), immediate=4096)
    session.hear()
    session.answer_r2t(session.r2ts.pop(), session.data_out[1], size=4096)
    assert session.device.calls == [] and len(session.pool.calls) == 1
    assert session.outcome(1).status == GOOD
    assert session.device.calls == [("write", 0, 64 * KIB)]


@pytest.mark.parametrize("size", [1000, 4096])
def test_device_that_begins_to_wait_in_the_middle_gets_the_rest_from_the_pool(size: int) -> None:
    device = Nowait()
    device.at_hand = lambda offset: offset < 16 * KIB
    session = Session(device, {"ImmediateData": "No", "InitialR2T": "Yes"})
    data = pattern(64 * KIB)
    session.write(1, 0, data)
    assert session.outcome(1, size).status == GOOD
    assert device.content[: 64 * KIB] == data
    assert len([call for call in device.calls if call[1] + call[2] > 16 * KIB + 4096]) == 1
    session.assert_idle()


def test_tail_of_a_block_waits_for_the_rest_of_it() -> None:
    session = Session(offers={"MaxBurstLength": "700", "FirstBurstLength": "700"})
    session.write(1, 0, pattern(2048), immediate=100)
    assert session.outcome(1).status == GOOD
    assert session.device.content[:2048] == pattern(2048)
    assert all(length % BLOCK == 0 for _, _, length in session.device.calls)


# R2Ts.


def test_r2ts_keep_to_max_outstanding_and_max_burst() -> None:
    session = Session(offers={"MaxBurstLength": "4096", "FirstBurstLength": "4096", "MaxOutstandingR2T": "3"})
    session.write(1, 0, pattern(40 * KIB))
    session.hear()
    assert [(r2t.r2t_sn, r2t.buffer_offset, r2t.desired_data_transfer_length) for r2t in session.r2ts] == [
        (0, 0, 4096),
        (1, 4096, 4096),
        (2, 8192, 4096),
    ]
    session.answer_r2t(session.r2ts.pop(0), session.data_out[1])
    session.hear()
    assert [r2t.r2t_sn for r2t in session.r2ts] == [1, 2, 3]
    assert session.outcome(1).status == GOOD


def test_transfer_tags_are_never_the_reserved_one_and_are_not_remembered() -> None:
    tags = data_out._transfer_tags()
    assert list(itertools.islice(tags, 3)) == [0, 1, 2]
    assert not isinstance(tags, itertools.cycle)


# What breaks the rules.


def failing(session: Session, tag: int = 1) -> Reason | None:
    outcome = session.outcome(tag)
    assert outcome.status == CHECK_CONDITION
    session.assert_idle()
    return outcome.reason


def test_unsolicited_data_with_initial_r2t_fails() -> None:
    session = Session(offers={"InitialR2T": "Yes"})
    session.write(1, 0, pattern(4096), flags=ANNOUNCING)
    assert failing(session) is Reason.UNEXPECTED_UNSOLICITED_DATA
    session.unsolicited(1, 0, 4096)  # still on its way
    assert session.receive() == []


@pytest.mark.parametrize("kind", ["inline", "blocking"])
def test_immediate_data_where_none_was_agreed_fails(kind: str) -> None:
    session = Session(DEVICES[kind](), {"ImmediateData": "No"})
    session.write(1, 0, pattern(4096), immediate=4096)
    assert failing(session) is Reason.UNEXPECTED_UNSOLICITED_DATA
    assert not any(session.device.content)


@pytest.mark.parametrize("kind", ["inline", "blocking"])
def test_immediate_data_beyond_the_first_burst_fails(kind: str) -> None:
    session = Session(DEVICES[kind](), {"FirstBurstLength": "4096"})
    session.write(1, 0, pattern(8192), immediate=8192)
    assert failing(session) is Reason.UNEXPECTED_UNSOLICITED_DATA


@pytest.mark.parametrize(
    "wrong",
    [
        {"buffer_offset": 4096},
        {"data_sn": 1},
        {"target_transfer_tag": 77},
        {"data": bytes(8193)},
        {"data": bytes(4096), "flags": FINAL},
        {"data": bytes(8192), "flags": 0},
    ],
)
def test_data_out_that_breaks_the_sequence_fails_the_command(wrong: dict[str, object]) -> None:
    session = Session()
    session.write(1, 0, pattern(8192))
    session.hear()
    (r2t,) = session.r2ts
    right = {"target_transfer_tag": r2t.target_transfer_tag, "flags": FINAL, "data": bytes(8192)}
    session.r2ts.clear()
    session.send(ScsiDataOut(initiator_task_tag=1, **{**right, **wrong}))  # type: ignore[arg-type]
    assert failing(session) is Reason.DATA_PHASE_ERROR


def test_unsolicited_data_beyond_what_is_expected_fails() -> None:
    session = Session()
    session.write(1, 0, pattern(1024), flags=ANNOUNCING)
    session.send(ScsiDataOut(flags=FINAL, initiator_task_tag=1, data=bytes(1028)))
    assert failing(session) is Reason.DATA_PHASE_ERROR


def test_data_out_for_no_task_or_a_read_is_dropped() -> None:
    session = Session(Memory())
    session.read(1, 0, 8)
    session.send(ScsiDataOut(flags=FINAL, initiator_task_tag=1, data=bytes(512)))
    session.send(ScsiDataOut(flags=FINAL, initiator_task_tag=99, data=bytes(512)))
    assert session.outcome(1).status == GOOD
    session.assert_idle()


def test_data_out_while_the_pool_writes_is_dropped() -> None:
    session = Session(Memory())
    session.write(1, 0, pattern(4096), immediate=4096)
    session.send(ScsiDataOut(flags=FINAL, initiator_task_tag=1, data=bytes(512)))
    assert session.outcome(1).status == GOOD
    assert session.device.content[:4096] == pattern(4096)


def test_data_out_with_a_wrong_digest_fails_its_command() -> None:
    session = Session(offers={"DataDigest": "CRC32C"})
    session.write(1, 0, pattern(4096))
    session.hear()
    (r2t,) = session.r2ts
    session.r2ts.clear()
    pdu = ScsiDataOut(
        flags=FINAL, initiator_task_tag=1, target_transfer_tag=r2t.target_transfer_tag, data=pattern(4096)
    )
    raw = bytearray(session.encode(pdu))
    raw[100] ^= 1
    session.feed(bytes(raw))
    (reject,) = session.hear()
    assert isinstance(reject, Reject) and reject.reason == RejectReason.DATA_DIGEST_ERROR
    assert failing(session) is Reason.PROTOCOL_SERVICE_CRC_ERROR


def test_error_of_the_device_is_told_after_the_data_that_was_asked_for() -> None:
    session = Session(offers={"MaxBurstLength": "4096", "FirstBurstLength": "4096", "MaxOutstandingR2T": "2"})
    session.device.bad = 0
    session.write(1, 0, pattern(64 * KIB))
    session.hear()
    first, second = session.r2ts
    session.r2ts.clear()
    session.answer_r2t(first, session.data_out[1])
    assert session.hear() == [] and not session.outcomes and not session.r2ts
    session.answer_r2t(second, session.data_out[1])
    outcome = session.outcome(1)
    assert (outcome.status, outcome.reason) == (CHECK_CONDITION, Reason.WRITE_ERROR)
    assert outcome.underflow == 56 * KIB
    assert session.device.calls == [("write", 0, 4096)]
    session.assert_idle()


# Memory.


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_out, "GATHER_LIMIT", 16 * KIB)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("kind", ["blocking", "volatile", "nowait"])
@pytest.mark.parametrize("immediate", [0, 512])
def test_gathering_writes_wait_for_memory_and_all_come_to_their_turn(kind: str, immediate: int) -> None:
    session = Session(DEVICES[kind](), queue_depth=16)
    for tag in range(12):
        session.write(tag, tag * 16, pattern(8192, tag), immediate=immediate)
    session.hear()
    assert len(session.r2ts) == 2
    assert session.engine._data_out._gathering == 16 * KIB
    session.settle(1000)
    assert [session.outcomes[tag].status for tag in range(12)] == [GOOD] * 12
    assert session.device.content[: 12 * 8192] == b"".join(pattern(8192, tag) for tag in range(12))
    session.assert_idle()


@pytest.mark.usefixtures("small_limit")
def test_write_longer_than_the_limit_gets_all_memory_alone() -> None:
    session = Session(Memory())
    session.write(1, 0, pattern(64 * KIB))
    session.write(2, 512, pattern(512))
    session.hear()
    assert [r2t.initiator_task_tag for r2t in session.r2ts] == [1]
    session.settle()
    assert [session.outcomes[tag].status for tag in (1, 2)] == [GOOD, GOOD]
    session.assert_idle()


@pytest.mark.usefixtures("small_limit")
def test_inline_writes_need_no_memory() -> None:
    session = Session(Inline())
    for tag in range(8):
        session.write(tag, 0, pattern(8192, tag))
    session.hear()
    assert len(session.r2ts) == 8 and session.engine._data_out._gathering == 0


@pytest.mark.usefixtures("small_limit")
def test_data_for_a_write_that_waits_for_memory_fails_it() -> None:
    session = Session(Memory())
    session.write(1, 0, pattern(16 * KIB))
    session.write(2, 64, pattern(512))
    session.send(ScsiDataOut(flags=FINAL, initiator_task_tag=2))  # nobody has asked
    session.hear()
    assert session.outcomes.pop(2).reason is Reason.DATA_PHASE_ERROR
    assert session.outcome(1).status == GOOD
    session.assert_idle()


@pytest.mark.usefixtures("small_limit")
def test_aborting_what_waits_and_what_holds_memory_frees_both() -> None:
    session = Session(Memory())
    for tag in range(6):
        session.write(tag, tag * 32, pattern(16 * KIB, tag))
    session.hear()
    for tag in (3, 0):
        session.send(TaskManagementRequest(function=1, initiator_task_tag=50 + tag, referenced_task_tag=tag))
    session.hear()
    assert [r2t.initiator_task_tag for r2t in session.r2ts] == [0, 1]
    session.r2ts.pop(0)
    session.settle()
    assert sorted(session.outcomes) == [1, 2, 4, 5]
    session.assert_idle()


@pytest.mark.usefixtures("small_limit")
def test_failing_writes_hand_their_memory_on() -> None:
    session = Session(Volatile())
    session.device.bad = 0
    for tag in range(4):
        session.write(tag, 0, pattern(16 * KIB))
    session.settle()
    assert [session.outcomes[tag].reason for tag in range(4)] == [Reason.WRITE_ERROR] * 4
    session.assert_idle()


@pytest.mark.usefixtures("small_limit")
def test_memory_is_handed_on_after_the_answer_so_that_the_window_never_moves_back() -> None:
    """A VERIFY whose answer queues and an R2T that its memory allows: Pair checks MaxCmdSN of both."""
    session = Session(Memory(), queue_depth=4)
    for tag in range(4):
        session.write(tag, tag * 32, pattern(16 * KIB, tag))
    session.settle()
    assert all(outcome.status == GOOD for outcome in session.outcomes.values())
    session.assert_idle()


def test_r2t_names_the_lun_of_its_command() -> None:
    session = Session(more=[Inline()])
    session.write(1, 0, pattern(512), lun=1 << 48)
    (r2t,) = session.receive()
    assert isinstance(r2t, R2T) and r2t.lun == 1 << 48
