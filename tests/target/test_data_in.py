"""target.data_in: how reads are cut, how they wait, what a slow reader and a failing medium cost."""

from __future__ import annotations

import pytest
from target_rig import BLOCK, CHECK_CONDITION, DEVICES, GOOD, Inline, Lending, Memory, Nowait, Session, pattern, raw_lun

from iscsid.errors import BlockError, Fault
from iscsid.scsi.sense import Reason
from iscsid.target import data_in
from iscsid.wire.const import FINAL
from iscsid.wire.pdu import ScsiDataIn, TaskManagementRequest

KIB = 1024
MIB = 1 << 20


def filled(kind: str, size: int = 8 * MIB, block_size: int = BLOCK) -> Memory:
    device = DEVICES[kind](size, block_size)
    device.content[:] = pattern(size)
    return device


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("segment", [512, 1000, 8192, 262144])
@pytest.mark.parametrize("digest", ["None", "CRC32C"])
def test_read_of_any_cut_delivers_the_medium(kind: str, segment: int, digest: str) -> None:
    offers = {
        "MaxRecvDataSegmentLength": str(segment),
        "MaxBurstLength": "20000",
        "FirstBurstLength": "512",
        "DataDigest": digest,
    }
    session = Session(filled(kind), offers)
    session.read(1, 3, 100)
    outcome = session.outcome(1)
    assert outcome.status == GOOD
    assert outcome.data == session.device.content[3 * BLOCK : 103 * BLOCK]
    assert max(len(pdu.data) for pdu in outcome.pdus) <= segment
    session.assert_idle()


def test_final_bit_ends_every_burst_and_status_only_the_last() -> None:
    offers = {"MaxRecvDataSegmentLength": "4096", "MaxBurstLength": "8192", "FirstBurstLength": "8192"}
    session = Session(Inline(), offers)
    session.read(1, 0, 40)
    pdus = session.outcome(1).pdus
    assert [(len(pdu.data), bool(pdu.flags & FINAL), pdu.has_status) for pdu in pdus] == [
        (4096, False, False),
        (4096, True, False),
        (4096, False, False),
        (4096, True, False),
        (4096, True, True),
    ]


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("expected", [100, 512, 1000, 4095])
def test_read_of_more_than_expected_is_cut_and_overflows(kind: str, expected: int) -> None:
    session = Session(filled(kind))
    session.read(1, 2, 8, expected)
    outcome = session.outcome(1)
    assert (outcome.status, outcome.overflow, outcome.underflow) == (GOOD, 4096 - expected, 0)
    assert outcome.data == session.device.content[1024 : 1024 + expected]
    session.assert_idle()


@pytest.mark.parametrize("kind", DEVICES)
def test_read_of_less_than_expected_underflows(kind: str) -> None:
    session = Session(filled(kind))
    session.read(1, 2, 8, 5000)
    outcome = session.outcome(1)
    assert (outcome.status, outcome.overflow, outcome.underflow) == (GOOD, 0, 904)
    assert outcome.data == session.device.content[1024:5120]
    session.assert_idle()


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize(("blocks", "expected"), [(1, 512), (40, 40 * BLOCK), (40, 10000), (40, 30000)])
def test_status_of_a_read_admits_the_next_command_where_the_window_is_one(
    kind: str, blocks: int, expected: int
) -> None:
    offers = {"MaxRecvDataSegmentLength": "4096", "MaxBurstLength": "8192", "FirstBurstLength": "8192"}
    session = Session(filled(kind), offers, queue_depth=1)
    window = session.connection.window
    for tag in (1, 2):
        session.read(tag, 0, blocks, expected)
        *others, last = session.outcome(tag).pdus
        assert last.has_status
        assert last.max_cmd_sn == last.exp_cmd_sn
        assert all(pdu.max_cmd_sn == pdu.exp_cmd_sn - 1 for pdu in others)
    assert (window.ahead, window.active) == (0, 0)


# Waiting.


def test_slow_reader_makes_only_its_own_reads_wait() -> None:
    session = Session(filled("inline"))
    for tag in range(16):
        session.read(tag, 0, 2048)
    assert session.connection.outbox.queued < data_in.QUEUE_LIMIT + MIB
    assert len(session.engine.tasks) >= 14
    session.settle()
    assert [outcome.status for outcome in session.outcomes.values()] == [GOOD] * 16
    assert all(outcome.data == session.device.content[:MIB] for outcome in session.outcomes.values())
    session.assert_idle()


def test_blocking_reads_take_memory_for_a_bounded_number_of_pieces() -> None:
    session = Session(filled("blocking"), queue_depth=64)
    for tag in range(40):
        session.read(tag, tag * 8, 8)
    assert len(session.pool.calls) == data_in.MAX_PIECES
    assert len(session.engine._data_in._starved) == 40 - data_in.MAX_PIECES
    session.settle(choose=lambda count: count - 1)
    assert all(session.outcomes[tag].data == session.device.content[tag * 4096 :][:4096] for tag in range(40))
    session.assert_idle()


def test_long_blocking_read_is_fetched_piece_by_piece() -> None:
    session = Session(filled("blocking"))
    session.read(1, 0, 4100)
    outcome = session.outcome(1)
    assert outcome.data == session.device.content[: 4100 * BLOCK]
    assert session.device.calls == [("read", 0, MIB), ("read", MIB, MIB), ("read", 2 * MIB, 4100 * BLOCK - 2 * MIB)]
    session.assert_idle()


def test_pieces_that_nobody_takes_are_not_followed_by_others() -> None:
    session = Session(filled("blocking"), queue_depth=64)
    for tag in range(40):
        session.read(tag, 0, 2048)
    while session.pool.calls:
        session.pool.finish()
    assert session.engine._data_in._pieces == data_in.MAX_PIECES
    assert session.connection.outbox.queued < data_in.QUEUE_LIMIT + MIB
    session.settle()
    assert len(session.outcomes) == 40
    session.assert_idle()


def test_read_goes_on_inline_where_the_data_is_at_hand_again() -> None:
    device = Nowait()
    device.content[:] = pattern(device.size)
    device.at_hand = lambda offset: offset >= MIB
    session = Session(device)
    session.read(1, 0, 4096)
    assert len(session.pool.calls) == 1
    outcome = session.outcome(1)
    assert outcome.data == device.content[: 2 * MIB]
    assert device.calls[0] == ("read", 0, MIB)
    assert all(length == 262144 for _, _, length in device.calls[1:])
    session.assert_idle()


def test_lent_data_is_sent_where_it_lies_but_not_under_a_digest() -> None:
    session = Session(filled("lending"))
    session.read(1, 0, 1024)
    assert session.outcome(1).data == session.device.content[: 512 * KIB]
    assert {name for name, _, _ in session.device.calls} == {"view"}
    session = Session(filled("lending"), {"DataDigest": "CRC32C"})
    session.read(1, 0, 1024)
    assert session.outcome(1).data == session.device.content[: 512 * KIB]
    assert {name for name, _, _ in session.device.calls} == {"read"}


# Errors.


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("length", [8, 4096])
def test_error_in_the_first_byte_fails_without_data(kind: str, length: int) -> None:
    session = Session(filled(kind))
    session.device.bad = 0
    session.read(1, 0, length)
    outcome = session.outcome(1)
    assert (outcome.status, outcome.reason) == (CHECK_CONDITION, Reason.UNRECOVERED_READ_ERROR)
    assert (outcome.underflow, outcome.exp_data_sn, outcome.pdus) == (length * BLOCK, 0, [])
    session.assert_idle()


@pytest.mark.parametrize("kind", DEVICES)
def test_error_in_the_middle_tells_how_much_was_sent(kind: str) -> None:
    session = Session(filled(kind))
    session.device.bad = 3 * MIB
    session.read(1, 0, 8192)
    outcome = session.outcome(1)
    assert (outcome.status, outcome.reason) == (CHECK_CONDITION, Reason.UNRECOVERED_READ_ERROR)
    assert outcome.data == session.device.content[: len(outcome.data)] and len(outcome.data) == 3 * MIB
    assert outcome.underflow == 4 * MIB - len(outcome.data)
    assert outcome.exp_data_sn == len(outcome.pdus)
    session.assert_idle()


def test_busy_device_answers_busy() -> None:
    session = Session(filled("blocking"))
    session.device.bad, session.device.error = 0, BlockError(Fault.BUSY)
    session.read(1, 0, 8)
    assert session.outcome(1).status == 0x08
    session.assert_idle()


@pytest.mark.parametrize("kind", ["inline", "blocking"])
def test_bug_of_a_device_becomes_a_hardware_error(kind: str) -> None:
    session = Session(filled(kind))
    session.device.bad, session.device.error = 0, ZeroDivisionError()
    session.read(1, 0, 8)
    assert session.outcome(1).reason is Reason.INTERNAL_TARGET_FAILURE
    session.assert_idle()


# Aborts.


def abort(session: Session, tag: int) -> None:
    session.send(TaskManagementRequest(function=1, initiator_task_tag=1000 + tag, referenced_task_tag=tag))


def test_abort_of_a_read_in_the_pool_is_answered_when_the_pool_is() -> None:
    session = Session(filled("blocking"))
    session.read(1, 0, 8)
    abort(session, 1)
    assert session.receive() == []
    session.pool.finish()
    (answer,) = session.receive()
    assert (answer.initiator_task_tag, answer.response) == (1001, 0)
    session.assert_idle()


def test_abort_of_a_starved_read_leaves_the_others_alone() -> None:
    session = Session(filled("blocking"), queue_depth=64)
    for tag in range(20):
        session.read(tag, 0, 8)
    abort(session, 18)
    session.settle()
    assert sorted(session.outcomes) == [tag for tag in range(20) if tag != 18]
    session.assert_idle()


@pytest.mark.parametrize("kind", ["inline", "blocking"])
def test_abort_of_a_read_that_waits_for_the_outbox_stops_it(kind: str) -> None:
    session = Session(filled(kind))
    for tag in range(4):
        session.read(tag, 0, 4096)
    while session.pool.calls:
        session.pool.finish()
    for tag in (3, 1):
        abort(session, tag)
    session.settle()
    done = {tag for tag, outcome in session.outcomes.items() if outcome.status == GOOD}
    assert done == {0, 2}
    session.assert_idle()


def test_error_after_an_abort_is_not_told() -> None:
    session = Session(filled("blocking"))
    session.device.bad = 0
    session.read(1, 0, 8)
    abort(session, 1)
    session.pool.finish()
    (answer,) = session.receive()
    assert answer.initiator_task_tag == 1001
    session.assert_idle()


# Blocks.


@pytest.mark.parametrize("kind", DEVICES)
def test_blocks_longer_than_a_pdu_are_cut(kind: str) -> None:
    offers = {"MaxRecvDataSegmentLength": "1024", "MaxBurstLength": "3000", "FirstBurstLength": "512"}
    session = Session(filled(kind, 1 << 20, 4096), offers)
    session.read(1, 1, 3)
    outcome = session.outcome(1)
    assert outcome.data == session.device.content[4096 : 4 * 4096]
    assert all(isinstance(pdu, ScsiDataIn) and len(pdu.data) <= 1024 for pdu in outcome.pdus)
    session.assert_idle()


def test_device_that_fails_in_view_answers_like_others() -> None:
    session = Session(Lending())
    session.device.bad, session.device.error = 0, ValueError("closed")
    session.read(1, 0, 8)
    assert session.outcome(1).reason is Reason.INTERNAL_TARGET_FAILURE


@pytest.mark.parametrize("second", [0, 1])
def test_read_that_begins_when_another_ends_disturbs_nothing(second: int) -> None:
    """Who waits for the end of a task may let others begin, in the middle of sending."""
    session = Session(Memory(), more=[Inline()])
    session.read(1, 0, 8)
    task = session.engine.tasks.get(1)
    assert task is not None
    task.when_ended(lambda: session.read(2, 0, 1024, lun=raw_lun(second)))
    assert len(session.outcome(1).data) == 4096
    assert len(session.outcome(2).data) == 524288
    session.assert_idle()
