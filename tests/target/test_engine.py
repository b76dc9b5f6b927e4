"""target.engine: the life of every kind of command, in the loop and in the pool, until the session's end."""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable
from typing import Any

import pytest
from helpers import ISID, TARGET_NAME
from hypothesis import given, settings
from hypothesis import strategies as st
from target_rig import (
    BLOCK,
    CHECK_CONDITION,
    DEVICES,
    GOOD,
    Inline,
    Memory,
    Nowait,
    Session,
    Volatile,
    pattern,
    raw_lun,
    rw_cdb,
)

from iscsid.block.device import Threading
from iscsid.errors import RejectError, RemoteProtocolError, ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.lu import LogicalUnit
from iscsid.scsi.plan import Ask
from iscsid.scsi.sanitize import Sanitize
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId
from iscsid.target.data_in import MAX_PIECES, QUEUE_LIMIT
from iscsid.target.engine import INLINE_COST
from iscsid.text.codec import build, parse
from iscsid.text.keys import KEYS
from iscsid.wire.const import FINAL, READ, WRITE, LogoutReason, RejectReason, TmfFunction, TmfResponse
from iscsid.wire.pdu import (
    LogoutRequest,
    LogoutResponse,
    NopOut,
    Reject,
    ScsiCommand,
    ScsiDataOut,
    ScsiResponse,
    TaskManagementRequest,
    TextRequest,
    decode,
)

TEST_UNIT_READY = bytes(16)
INQUIRY = bytes((0x12, 0, 0, 0, 255, 0)).ljust(16, b"\0")
SYNCHRONIZE_CACHE = bytes((0x35,)).ljust(16, b"\0")
BOTH = READ | WRITE
ANNOUNCING = int(WRITE)
KIB, MIB = 1 << 10, 1 << 20


def write_same(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB6x", 0x41, 0, lba, 0, blocks, 0)


def verify(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB6x", 0x2F, 0x02, lba, 0, blocks, 0)


# Reads and writes that are done at once.


def test_short_read_and_write_never_become_tasks() -> None:
    session = Session()
    session.write(1, 8, pattern(4096), immediate=4096)
    session.read(2, 8, 8)
    assert len(session.engine.tasks) == 0
    session.hear()
    assert (session.outcomes[1].status, session.outcomes[2].status) == (GOOD, GOOD)
    assert session.outcomes[2].data == pattern(4096)
    engine = session.engine
    assert (engine.commands, engine.read_bytes, engine.written_bytes) == (2, 4096, 4096)


@pytest.mark.parametrize("kind", ["inline", "lending"])
def test_answers_keep_the_order_of_the_commands(kind: str) -> None:
    session = Session(DEVICES[kind](), chunk=0)
    commands = [
        ScsiCommand(
            flags=FINAL | READ,
            initiator_task_tag=tag,
            expected_data_transfer_length=4096,
            cdb=rw_cdb(0x28, tag * 8, 8),
        )
        for tag in range(20)
    ]
    session.send(*commands)
    assert [pdu.initiator_task_tag for pdu in session.receive()] == list(range(20))


def test_counters_count_what_was_moved() -> None:
    session = Session(Memory())
    session.write(1, 0, pattern(4096), expected=1000)
    session.read(2, 0, 8, 1000)
    session.read(3, 0, 8, 0)
    session.settle()
    assert (session.engine.written_bytes, session.engine.read_bytes) == (512, 1000)


# Residuals: every combination of direction bits, EDTL and length.


@pytest.mark.parametrize("kind", ["inline", "blocking", "volatile"])
@pytest.mark.parametrize("flags", [0, READ, WRITE, BOTH])
@pytest.mark.parametrize("expected", [0, 512, 1024, 2048])
def test_read_moves_data_only_where_it_is_expected(kind: str, flags: int, expected: int) -> None:
    session = Session(DEVICES[kind]())
    session.device.content[:] = pattern(session.device.size)
    session.command(rw_cdb(0x28, 0, 2), tag=1, flags=FINAL | flags, expected_data_transfer_length=expected)
    outcome = session.outcome(1)
    moved = min(expected, 1024) if flags == READ else 0
    assert (outcome.status, outcome.data) == (GOOD, session.device.content[:moved])
    assert (outcome.overflow, outcome.underflow) == residual(flags, expected, 1024, READ)
    session.assert_idle()


@pytest.mark.parametrize("kind", ["inline", "blocking", "volatile"])
@pytest.mark.parametrize("fua", [False, True])
@pytest.mark.parametrize("flags", [0, READ, WRITE, BOTH])
@pytest.mark.parametrize("expected", [0, 512, 1000, 1024, 2048])
def test_write_moves_data_only_where_it_is_expected(kind: str, fua: bool, flags: int, expected: int) -> None:
    session = Session(DEVICES[kind]())
    session.data_out[1] = pattern(4096)
    session.command(rw_cdb(0x2A, 0, 2, fua=fua), tag=1, flags=FINAL | flags, expected_data_transfer_length=expected)
    outcome = session.outcome(1)
    moved = min(expected // BLOCK * BLOCK, 1024) if flags & WRITE else 0
    assert outcome.status == GOOD
    assert session.device.content[:4096] == pattern(moved).ljust(4096, b"\0")
    assert (outcome.overflow, outcome.underflow) == residual(flags, expected, 1024, WRITE)
    session.assert_idle()


def residual(flags: int, expected: int, length: int, direction: int) -> tuple[int, int]:
    """What a command has to tell that had ``length`` bytes to move in ``direction``."""
    right = flags & WRITE if direction == WRITE else flags == READ
    if not flags:
        return length, 0
    if right or not expected:
        return max(length - expected, 0), max(expected - length, 0)
    return 0, expected


@pytest.mark.parametrize("flags", [0, READ, WRITE, BOTH])
@pytest.mark.parametrize("expected", [0, 20, 255])
def test_parameter_data_goes_out_only_where_it_is_expected(flags: int, expected: int) -> None:
    session = Session()
    session.command(INQUIRY, tag=1, flags=FINAL | flags, expected_data_transfer_length=expected)
    whole = session.engine._seats[0][0].plan(INQUIRY, session.engine._seats[0][1]).data
    outcome = session.outcome(1)
    assert outcome.data == (whole[:expected] if flags == READ else b"")
    assert (outcome.overflow, outcome.underflow) == residual(flags, expected, len(whole), READ)
    session.assert_idle()


@pytest.mark.parametrize(("flags", "expected", "underflow"), [(0, 0, 0), (READ, 100, 100), (WRITE, 512, 512)])
def test_command_without_data_underflows_by_all_that_is_expected(flags: int, expected: int, underflow: int) -> None:
    session = Session()
    session.command(TEST_UNIT_READY, tag=1, flags=FINAL | flags, expected_data_transfer_length=expected)
    outcome = session.outcome(1)
    assert (outcome.status, outcome.underflow, outcome.overflow) == (GOOD, underflow, 0)


def test_read_without_final_bit_is_a_read() -> None:
    session = Session(offers={"InitialR2T": "Yes"})
    session.read(1, 0, 8, flags=int(READ))
    assert (session.outcome(1).status, len(session.engine.tasks)) == (GOOD, 0)


# Writes: how they fall back.


def test_write_that_would_block_is_written_by_the_pool() -> None:
    device = Nowait()
    device.at_hand = lambda offset: False
    session = Session(device)
    session.write(1, 0, pattern(4096), immediate=4096)
    assert session.hear() == [] and not session.outcomes
    assert len(session.pool.calls) == 1
    assert session.outcome(1).status == GOOD
    assert device.content[:4096] == pattern(4096)
    session.assert_idle()


@pytest.mark.parametrize("kind", ["volatile", "nowait"])
def test_forced_write_is_flushed_before_it_is_good(kind: str) -> None:
    session = Session(DEVICES[kind]())
    session.write(1, 0, pattern(4096), immediate=4096, fua=True)
    assert session.hear() == [] and not session.outcomes and session.device.calls == []
    assert session.outcome(1).status == GOOD
    assert session.device.calls == [("write", 0, 4096), ("flush", 0, 0)]


def test_forced_read_flushes_first() -> None:
    session = Session(Volatile())
    session.device.content[:4096] = pattern(4096)
    session.read(1, 0, 8, fua=True)
    outcome = session.outcome(1)
    assert (outcome.status, outcome.data) == (GOOD, pattern(4096))
    assert [name for name, _, _ in session.device.calls] == ["flush", "read"]
    session.assert_idle()


@pytest.mark.parametrize("length", [1, 3 * MIB // BLOCK])
def test_long_forced_read_comes_whole_and_cut_as_asked(length: int) -> None:
    session = Session(Volatile())
    session.device.content[:] = pattern(session.device.size)
    session.read(1, 8, length, length * BLOCK - 100, fua=True)
    outcome = session.outcome(1)
    assert (outcome.status, outcome.overflow) == (GOOD, 100)
    assert outcome.data == session.device.content[4096 : 4096 + length * BLOCK - 100]
    session.assert_idle()


def test_long_forced_reads_take_no_more_memory_than_others() -> None:
    session = Session(Volatile(), queue_depth=64)
    for tag in range(40):
        session.read(tag, 0, 2048, fua=True)
    while session.pool.calls:
        session.pool.finish()
    assert session.engine._data_in._pieces == MAX_PIECES
    session.settle()
    assert [session.outcomes[tag].status for tag in range(40)] == [GOOD] * 40
    session.assert_idle()


def test_forced_read_whose_flush_fails_reads_nothing() -> None:
    class Broken(Volatile):
        def flush(self) -> None:
            raise OSError(5, "EIO")

    session = Session(Broken())
    session.read(1, 0, 8, fua=True)
    assert session.outcome(1).reason is Reason.WRITE_ERROR
    assert session.device.calls == []
    session.assert_idle()


def test_forced_read_that_announces_data_is_answered_after_it() -> None:
    session = Session(Volatile())
    session.data_out[1] = pattern(4096)
    session.command(rw_cdb(0x28, 0, 8, fua=True), tag=1, flags=ANNOUNCING, expected_data_transfer_length=4096)
    session.unsolicited(1, 0, 4096)
    outcome = session.outcome(1)
    assert (outcome.status, outcome.underflow) == (GOOD, 4096)
    session.assert_idle()


@pytest.mark.parametrize("kind", DEVICES)
@pytest.mark.parametrize("immediate", [0, 512, 4096])
def test_write_error_fails_the_write(kind: str, immediate: int) -> None:
    session = Session(DEVICES[kind]())
    session.device.bad = 100
    session.write(1, 0, pattern(4096), immediate=immediate)
    outcome = session.outcome(1)
    assert (outcome.status, outcome.reason) == (CHECK_CONDITION, Reason.WRITE_ERROR)
    # What goes straight to the device fails with its first piece, and no more is asked for.
    gathered = kind in ("blocking", "volatile") or immediate != 512
    assert outcome.underflow == (0 if gathered else 4096 - 512)
    session.assert_idle()


# Jobs.


@pytest.mark.parametrize("kind", DEVICES)
def test_write_same_gathers_its_block(kind: str) -> None:
    session = Session(DEVICES[kind]())
    session.data_out[1] = pattern(BLOCK)
    session.command(write_same(4, 8), tag=1, write=BLOCK)
    assert session.outcome(1).status == GOOD
    assert session.device.content[: 20 * BLOCK] == bytes(4 * BLOCK) + pattern(BLOCK) * 8 + bytes(8 * BLOCK)
    session.assert_idle()


def test_short_job_of_an_inline_device_runs_in_the_loop_and_a_long_one_in_the_pool() -> None:
    session = Session()
    session.data_out[1] = session.data_out[2] = pattern(BLOCK)
    session.command(write_same(0, 8), tag=1, write=BLOCK, data=pattern(BLOCK))
    assert not session.pool.calls
    session.command(write_same(0, INLINE_COST // BLOCK + 1), tag=2, write=BLOCK, data=pattern(BLOCK))
    assert len(session.pool.calls) == 1
    session.settle()
    assert [session.outcomes[tag].status for tag in (1, 2)] == [GOOD, GOOD]
    session.assert_idle()


def test_job_that_wants_an_exact_length_refuses_others() -> None:
    session = Session()
    session.command(write_same(0, 8), tag=1, write=1024, data=pattern(1024))
    assert session.outcome(1).reason is Reason.INVALID_FIELD_IN_CDB
    assert not any(session.device.content)
    session.assert_idle()


@pytest.mark.parametrize("kind", ["inline", "blocking"])
def test_verify_of_other_data_miscompares(kind: str) -> None:
    session = Session(DEVICES[kind]())
    for tag, content in ((1, bytes(1024)), (2, pattern(1024))):
        session.data_out[tag] = content
        session.command(verify(0, 2), tag=tag, write=1024)
    session.settle()
    assert session.outcomes[1].status == GOOD
    assert session.outcomes[2].reason is Reason.MISCOMPARE_DURING_VERIFY
    session.assert_idle()


def test_flush_that_fails_is_a_write_error() -> None:
    class Broken(Volatile):
        def flush(self) -> None:
            raise OSError(5, "EIO")

    session = Session(Broken())
    session.command(SYNCHRONIZE_CACHE, tag=1)
    assert session.outcome(1).reason is Reason.WRITE_ERROR
    session.assert_idle()


def test_lock_of_a_serial_device_is_held_around_every_call() -> None:
    class Serial(Volatile):
        threading = Threading.SERIAL

    class Lock(contextlib.AbstractContextManager[None]):
        held = False

        def __enter__(self) -> None:
            assert not self.held
            self.held = True

        def __exit__(self, *_: object) -> None:
            self.held = False

    lock = Lock()
    session = Session(Serial())
    session.node.units[0].device.lock = lock
    seen: list[bool] = []
    plain = session.device._called
    session.device._called = lambda *call: (seen.append(lock.held), plain(*call))[1]  # type: ignore[method-assign]
    session.write(1, 0, pattern(4096), immediate=4096)
    session.read(2, 0, 8)
    session.write(3, 0, pattern(4096), fua=True)
    session.settle()
    assert seen == [True, True, True] and not lock.held


# Commands that fail, and what was announced with them.


def refusing(lba: int = 0xFFFFFF00) -> bytes:
    return rw_cdb(0x2A, lba, 8)


@pytest.mark.parametrize("lun", [0, 5])
def test_command_that_fails_is_answered_when_its_unsolicited_data_is_over(lun: int) -> None:
    session = Session()
    session.data_out[1] = pattern(4096)
    session.command(
        refusing(), tag=1, lun=raw_lun(lun), flags=ANNOUNCING, expected_data_transfer_length=4096, data=pattern(100)
    )
    assert session.hear() == [] and not session.outcomes and session.connection.window.active == 1
    session.unsolicited(1, 100, 4096, size=1000)
    outcome = session.outcome(1)
    assert outcome.reason is (Reason.LOGICAL_UNIT_NOT_SUPPORTED if lun else Reason.LBA_OUT_OF_RANGE)
    assert outcome.underflow == 4096
    session.assert_idle()


def test_command_that_fails_is_answered_at_once_where_nothing_follows() -> None:
    session = Session()
    session.command(refusing(), tag=1, write=4096, data=pattern(4096))
    assert session.outcome(1).reason is Reason.LBA_OUT_OF_RANGE


def test_good_command_without_data_out_waits_for_what_was_announced() -> None:
    session = Session()
    session.data_out[1] = pattern(4096)
    session.command(TEST_UNIT_READY, tag=1, flags=ANNOUNCING, expected_data_transfer_length=4096)
    assert session.hear() == [] and not session.outcomes
    session.unsolicited(1, 0, 4096)
    outcome = session.outcome(1)
    assert (outcome.status, outcome.underflow) == (GOOD, 4096)
    session.assert_idle()


# Units that are not there, and sessions without any.


def test_absent_unit_answers_what_initiators_look_for() -> None:
    session = Session()
    session.command(INQUIRY, tag=1, lun=raw_lun(9), read=255)
    session.command(TEST_UNIT_READY, tag=2, lun=raw_lun(9))
    session.settle()
    assert session.outcomes[1].data[0] == 0x7F
    assert session.outcomes[2].reason is Reason.LOGICAL_UNIT_NOT_SUPPORTED


def test_flat_space_addressing_reaches_the_same_unit() -> None:
    session = Session(more=[Inline()])
    session.command(rw_cdb(0x28, 0, 8), tag=1, lun=0x4001 << 48, read=4096)
    assert session.outcome(1).status == GOOD


def test_discovery_session_has_no_scsi_commands() -> None:
    session = Session(target_name=None)
    assert session.engine.node is None and session.established == [session.engine]
    session.command(INQUIRY, tag=1, read=255)
    session.command(TEST_UNIT_READY, tag=2)
    rejects = session.hear()
    assert [(type(reject), reject.reason) for reject in rejects] == [(Reject, RejectReason.PROTOCOL_ERROR)] * 2
    assert decode(rejects[0].data[:48]).cdb == INQUIRY  # type: ignore[attr-defined]
    session.assert_idle()


def test_discovery_session_that_names_a_target_gets_none() -> None:
    session = Session(target_name=None, login=False)
    start = session.login.start()
    start.data = bytes(start.data) + build([("TargetName", "iqn.2026-11.org.iscsid:not-here")])
    requests = [start]
    while requests:
        session.send(*requests, numbered=False)
        requests = [request for response in session.receive() for request in session.login.receive(response)]
    assert session.established == [session.engine] and session.engine.node is None


def test_nexus_is_that_of_the_login() -> None:
    nexus = Session().engine._seats[0][1]
    assert (nexus.target_name, nexus.id.isid, nexus.luns) == (TARGET_NAME, ISID, (0,))


# Rejects.


def test_tag_in_use_is_rejected_with_the_header_as_it_came() -> None:
    session = Session(Memory())
    session.read(1, 0, 8)
    session.command(rw_cdb(0x2A, 0, 8), tag=1, write=4096, data=pattern(4096))
    (reject,) = session.hear()
    assert reject.reason == RejectReason.TASK_IN_PROGRESS
    assert reject.data[5:8] == (4096).to_bytes(3, "big")  # DataSegmentLength
    assert session.outcome(1).status == GOOD
    assert not any(session.device.content)
    session.assert_idle()


def test_rejected_command_leaves_the_others_of_its_batch_alone() -> None:
    session = Session(Memory())
    session.send(
        *(
            ScsiCommand(
                flags=FINAL | READ, initiator_task_tag=tag, expected_data_transfer_length=512, cdb=rw_cdb(0x28, 0, 1)
            )
            for tag in (1, 1, 2)
        )
    )
    others = session.settle()
    assert [type(pdu) for pdu in others] == [Reject]
    assert [session.outcomes[tag].status for tag in (1, 2)] == [GOOD, GOOD]
    session.assert_idle()


def test_immediate_commands_are_bounded() -> None:
    session = Session(Memory())
    for tag in range(70):
        session.read(tag, 0, 1, immediate=True)
    rejects = session.hear()
    assert [reject.reason for reject in rejects] == [RejectReason.IMMEDIATE_COMMAND_REJECT] * 6
    session.settle()
    assert len(session.outcomes) == 64
    session.assert_idle()


def test_commands_beyond_the_window_are_not_heard() -> None:
    session = Session(Memory(), queue_depth=4)
    for tag in range(20):
        session.write(tag, 0, pattern(4096))
    assert session.connection.window.active == 4 and len(session.engine.tasks) == 4


def test_text_request_of_no_exchange_is_rejected_and_the_session_goes_on() -> None:
    session = Session()
    session.send(TextRequest(initiator_task_tag=3, target_transfer_tag=77))
    (reject,) = session.hear()
    assert reject.reason == RejectReason.INVALID_PDU_FIELD
    session.read(1, 0, 8)
    assert session.outcome(1).status == GOOD


# Text.


def test_text_is_answered_by_the_worker_and_the_negotiation() -> None:
    session = Session(answer_text=lambda engine, pairs: engine.renegotiate(*pairs[0]))
    session.send(TextRequest(initiator_task_tag=3, data=build([("X-org.example.key", "1")])))
    (answer,) = session.hear()
    assert parse(answer.data) == [("X-org.example.key", "NotUnderstood")]


def test_shorter_segments_declared_in_mid_session_hold_for_the_next_read() -> None:
    session = Session(answer_text=lambda engine, pairs: engine.renegotiate(*pairs[0]))
    session.send(TextRequest(initiator_task_tag=3, data=build([("MaxRecvDataSegmentLength", "1024")])))
    session.hear()
    session.read(1, 0, 8)
    assert [len(pdu.data) for pdu in session.outcome(1).pdus] == [1024] * 4


def test_shorter_segments_declared_in_mid_session_hold_for_the_reads_under_way() -> None:
    session = Session(Memory(), answer_text=lambda engine, pairs: engine.renegotiate(*pairs[0]))
    session.device.content[:] = pattern(session.device.size)
    session.read(1, 0, 2048)
    session.send(TextRequest(initiator_task_tag=3, data=build([("MaxRecvDataSegmentLength", "1024")])))
    session.hear()
    outcome = session.outcome(1)
    assert {len(pdu.data) for pdu in outcome.pdus} == {1024}
    assert outcome.data == session.device.content[:MIB]
    session.assert_idle()


@pytest.mark.parametrize("key", [*sorted(KEYS), "X-new"])
@pytest.mark.parametrize("value", ["", "Yes", "1", "512", "NotUnderstood", "x" * 300])
def test_renegotiation_of_any_key_is_answered_or_a_protocol_error(key: str, value: str) -> None:
    session = Session()
    if key == "SendTargets":
        return  # is for the caller to answer
    with contextlib.suppress(RemoteProtocolError):
        session.engine.renegotiate(key, value)


# The end.


def test_close_drops_the_output_and_what_the_pool_still_says() -> None:
    session = Session(Memory())
    session.write(1, 0, pattern(4096), immediate=4096)
    session.read(2, 0, 8)
    session.send(NopOut(initiator_task_tag=3))
    engine = session.engine
    idle: list[str] = []
    engine.close()
    engine.calls.when_idle(lambda: idle.append("idle"))
    assert engine.closed and not session.connection.outbox.queued
    session.pool.finish()
    assert idle == []
    session.pool.finish()
    assert idle == ["idle"] and session.receive() == []
    assert session.device.content[:4096] == pattern(4096)


def test_idle_session_says_so_at_once() -> None:
    session = Session()
    idle: list[str] = []
    session.engine.close()
    session.engine.calls.when_idle(lambda: idle.append("idle"))
    assert idle == ["idle"]


def test_busy_tells_of_tasks_and_of_answers_that_wait() -> None:
    session = Session(Memory())
    assert not session.engine.busy
    session.read(1, 0, 8)
    assert session.engine.busy
    session.pool.finish()
    assert session.engine.busy and not len(session.engine.tasks)
    session.hear()
    assert not session.engine.busy


# Bounds.


def test_output_of_reads_is_bounded_however_many_are_asked_for() -> None:
    session = Session(queue_depth=128)
    for tag in range(128):
        session.read(tag, 0, 512)
    assert session.connection.outbox.queued < QUEUE_LIMIT + 512 * KIB
    session.settle()
    assert len(session.outcomes) == 128
    session.assert_idle()


# Anything at all.


@st.composite
def pdus(draw: st.DrawFn) -> list[object]:
    tag = st.integers(0, 4)
    length = st.sampled_from([0, 1, 100, 512, 1000, 4096, 70000])
    cdb = st.one_of(
        st.builds(rw_cdb, st.sampled_from([0x28, 0x2A]), st.integers(0, 64), st.integers(0, 200), fua=st.booleans()),
        st.sampled_from([INQUIRY, TEST_UNIT_READY, SYNCHRONIZE_CACHE, write_same(0, 8), verify(0, 4)]),
        st.binary(min_size=16, max_size=16),
    )
    data = length.map(lambda size: bytes(min(size, 5000)))
    one = st.one_of(
        st.builds(
            ScsiCommand,
            immediate=st.booleans(),
            flags=st.integers(0, 255),
            lun=st.sampled_from([0, 0, 0, 1 << 48]),
            initiator_task_tag=tag,
            expected_data_transfer_length=length,
            cdb=cdb,
            data=data,
        ),
        st.builds(
            ScsiDataOut,
            flags=st.sampled_from([0, 0x80]),
            initiator_task_tag=tag,
            target_transfer_tag=st.sampled_from([0, 1, 2, 0xFFFFFFFF]),
            data_sn=st.integers(0, 2),
            buffer_offset=st.sampled_from([0, 0, 100, 512, 4096]),
            data=data,
        ),
        st.builds(TaskManagementRequest, function=st.integers(0, 9), initiator_task_tag=tag, referenced_task_tag=tag),
        st.builds(
            TextRequest,
            final=st.booleans(),
            continued=st.booleans(),
            initiator_task_tag=tag,
            target_transfer_tag=st.sampled_from([0, 1, 2, 0xFFFFFFFF]),
            data=st.sampled_from([b"", b"X-a=1\0", b"MaxRecvDataSegmentLength=512\0"]),
        ),
        st.builds(NopOut, initiator_task_tag=tag),
        st.integers(0, 3),  # the pool ends a call
        st.just("send"),
    )
    return draw(st.lists(one, max_size=30))


@settings(max_examples=150, deadline=None)
@given(steps=pdus(), kind=st.sampled_from(sorted(DEVICES)), initial_r2t=st.booleans())
def test_whatever_an_initiator_sends_nothing_is_lost_or_left_over(
    steps: list[object], kind: str, initial_r2t: bool
) -> None:
    offers = {"InitialR2T": "Yes" if initial_r2t else "No", "MaxBurstLength": "4096", "FirstBurstLength": "4096"}
    session = Session(
        DEVICES[kind](MIB),
        offers,
        answer_text=lambda engine, pairs: [pair for key in pairs for pair in engine.renegotiate(*key)],
    )
    for step in steps:
        if isinstance(step, int):
            if session.pool.calls:
                session.pool.finish(step % len(session.pool.calls))
        elif step == "send":
            session.receive()
        else:
            session.send(step)  # type: ignore[arg-type]
    # Abort what still waits for data: nothing of any command may stay.
    session.receive()
    session.engine.abort_all(list(session.engine.tasks), lambda: None)
    for _ in range(200):
        if session.pool.calls:
            session.pool.finish()
        session.receive()
    session.assert_idle()
    session.read(9, 0, 1, immediate=True)
    session.settle()
    assert session.outcomes[9].status == GOOD


def test_fatal_reject_leaves_receive() -> None:
    session = Session()
    header = bytearray(ScsiCommand(initiator_task_tag=1).pack())
    header[5:8] = (0xFFFFFF).to_bytes(3, "big")
    with pytest.raises(RejectError):
        session.feed(bytes(header))


def test_response_of_every_status_has_the_response_code_of_a_completed_command() -> None:
    session = Session()
    session.command(refusing(), tag=1, write=4096, data=pattern(4096))
    (response,) = session.receive()
    assert isinstance(response, ScsiResponse) and response.response == 0


# --- what goes to the authority --------------------------------------------------------------------------------------


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    """A session whose TEST UNIT READY wants to change shared state, with a parameter list of ``length`` bytes."""

    def build(length: int = 0, **options: Any) -> Session:
        session = Session(**options)
        unit = session.engine._seats[0][0]
        plan = type(unit).plan

        def planned(self: LogicalUnit, cdb: bytes, nexus: Any) -> Any:
            return Ask(length) if cdb[0] == 0x00 else plan(self, cdb, nexus)

        monkeypatch.setattr(LogicalUnit, "plan", planned)
        return session

    return build


TEST_UNIT_READY = bytes(16)


def test_command_that_changes_shared_state_goes_to_the_authority_whole(asking: Callable[..., Session]) -> None:
    session = asking(24)
    session.command(TEST_UNIT_READY, tag=1, write=24, data=bytes(range(24)))
    [(serial, nexus, cdb, data, _)] = session.authority.asked
    assert (serial, nexus) == ("serial0", session.engine._seats[0][1].id)
    assert (cdb, data) == (TEST_UNIT_READY, bytes(range(24)))
    assert not session.hear()
    session.authority.answer()
    assert session.outcome(1).status == GOOD
    session.assert_idle()


@pytest.mark.parametrize(
    ("error", "status"),
    [(ScsiError(Status.RESERVATION_CONFLICT), 0x18), (ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2), 0x02)],
)
def test_authoritys_refusal_is_the_answer(asking: Callable[..., Session], error: ScsiError, status: int) -> None:
    session = asking()
    session.command(TEST_UNIT_READY, tag=1)
    session.authority.answer(error)
    assert session.outcome(1).status == status
    session.assert_idle()


@pytest.mark.parametrize("error", [None, ScsiError(Status.TASK_ABORTED)], ids=["it happened", "it did not"])
def test_abort_of_a_command_that_waits_for_the_authority_is_answered_after_it(
    asking: Callable[..., Session], error: ScsiError | None
) -> None:
    session = asking()
    session.command(TEST_UNIT_READY, tag=1)
    session.send(TaskManagementRequest(function=TmfFunction.ABORT_TASK, initiator_task_tag=900, referenced_task_tag=1))
    assert not session.hear()
    assert len(session.authority.withdrawn) == 1
    session.authority.answer(error)
    [response] = session.hear()
    assert response.response == TmfResponse.FUNCTION_COMPLETE
    session.assert_idle()


def test_authoritys_own_abort_does_not_wait_for_its_answer(asking: Callable[..., Session]) -> None:
    """What the authority waits for may be this abort."""
    session = asking()
    session.command(TEST_UNIT_READY, tag=1)
    assert _update(session, aborts=None) == [True]
    assert session.authority.withdrawn == []
    session.authority.answer()
    assert not session.hear()
    session.assert_idle()


def test_logout_waits_until_what_was_asked_is_withdrawn(asking: Callable[..., Session]) -> None:
    session = asking()
    session.command(TEST_UNIT_READY, tag=1)
    session.send(LogoutRequest(reason=LogoutReason.CLOSE_SESSION, initiator_task_tag=2))
    assert not session.hear()
    session.authority.answer(ScsiError(Status.TASK_ABORTED))
    [response] = session.hear()
    assert isinstance(response, LogoutResponse)


def test_answer_to_a_session_that_is_over_is_dropped(asking: Callable[..., Session]) -> None:
    session = asking()
    session.command(TEST_UNIT_READY, tag=1)
    session.engine.close()
    session.authority.answer()
    assert not session.hear()


# --- changes of shared state -----------------------------------------------------------------------------------------

OTHER = NexusId("iqn.2026-11.org.example:other", 7, TARGET_NAME, 1)


def _update(session: Session, unit: int = 0, attentions: Any = (), aborts: Any = ()) -> list[bool]:
    stopped: list[bool] = []
    engine = session.engine
    disk, nexus = engine._seats[raw_lun(unit)]
    raised = [Attention(nexus.id if mine else OTHER, reason) for mine, reason in attentions]
    engine.update(disk, raised, aborts, lambda: stopped.append(True))
    return stopped


def test_attention_of_this_nexus_waits_for_it_on_that_unit_only() -> None:
    session = Session(more=[Inline()])
    raised = [(True, Reason.MODE_PARAMETERS_CHANGED), (False, Reason.CAPACITY_DATA_HAS_CHANGED)]
    assert _update(session, 1, raised) == [True]
    assert session.engine._seats[0][1].attentions == []
    assert session.engine._seats[raw_lun(1)][1].attentions == [Reason.MODE_PARAMETERS_CHANGED]


def test_change_that_aborts_everything_waits_for_what_is_in_the_pool() -> None:
    session = Session(Memory())
    session.read(1, 0, 8)
    session.read(2, 8, 8)
    stopped = _update(session, aborts=None)
    assert stopped == []
    session.pool.finish()
    assert stopped == []
    session.pool.finish()
    assert stopped == [True]
    assert not session.hear()
    session.assert_idle()


def test_change_aborts_only_tasks_of_the_nexuses_it_names_and_of_its_unit() -> None:
    session = Session(Memory(), more=[Memory()])
    session.read(1, 0, 8)
    session.read(2, 0, 8, lun=raw_lun(1))
    assert _update(session, aborts={OTHER}) == [True]
    stopped = _update(session, 1, aborts={session.engine._seats[0][1].id})
    session.pool.finish(1)
    assert stopped == [True]
    session.pool.finish()
    assert session.outcome(1).status == GOOD
    assert 2 not in session.outcomes
    session.assert_idle()


def test_change_waits_for_the_pool_calls_of_a_session_that_is_over() -> None:
    session = Session(Memory())
    session.read(1, 0, 8)
    session.engine.close()
    stopped = _update(session, aborts=None)
    assert stopped == []
    session.pool.finish()
    assert stopped == [True]


def test_session_that_ends_while_a_change_waits_for_its_pool_calls_still_lets_it_go_on() -> None:
    session = Session(Memory())
    session.read(1, 0, 8)
    stopped = _update(session, aborts=None)
    session.engine.close()
    assert stopped == []
    session.pool.finish()
    assert stopped == [True]


REFUSAL = ScsiError(Reason.SANITIZE_IN_PROGRESS)


def _refuse(session: Session) -> list[bool]:
    """A sanitize operation of the first unit begins."""
    stopped: list[bool] = []
    disk, _ = session.engine._seats[0]
    disk.sanitize = Sanitize(False, False)
    session.engine.update(disk, (), (), lambda: stopped.append(True), REFUSAL)
    return stopped


def test_commands_that_the_new_state_refuses_end_with_it_when_they_have_stopped() -> None:
    session = Session(Memory(), more=[Memory()])
    session.read(1, 0, 8)
    session.read(2, 0, 8, lun=raw_lun(1))
    stopped = _refuse(session)
    assert stopped == []
    session.pool.finish()
    assert stopped == [True]
    outcome = session.outcome(1)
    assert outcome.status == 0x02
    assert outcome.reason is Reason.SANITIZE_IN_PROGRESS
    assert session.outcome(2).status == GOOD
    session.assert_idle()


def test_command_that_waits_for_its_data_ends_at_once_with_what_the_new_state_says() -> None:
    session = Session(offers={"InitialR2T": "Yes"})
    session.write(1, 0, bytes(8192), immediate=0)
    assert _refuse(session) == [True]
    assert session.outcome(1).status == 0x02
    session.assert_idle()


def test_command_that_waits_for_the_authority_is_left_to_it(asking: Callable[..., Session]) -> None:
    session = asking()
    session.command(TEST_UNIT_READY, tag=1)
    assert _refuse(session) == [True]
    assert not session.hear()
    session.authority.answer(REFUSAL)
    assert session.outcome(1).status == 0x02


def test_session_that_ends_meanwhile_is_told_nothing() -> None:
    session = Session(Memory())
    session.read(1, 0, 8)
    stopped = _refuse(session)
    session.engine.close()
    session.pool.finish()
    assert stopped == [True]
    assert not session.engine.connection.outbox.queued


# --- what a unit has moved --------------------------------------------------------------------------------------------


def moved(session: Session, number: int) -> tuple[int, int]:
    tally = session.node.units[raw_lun(number)].tally
    return tally.read_bytes, tally.written_bytes


def test_bytes_are_told_of_the_unit_that_they_went_to() -> None:
    session = Session(more=[Inline()])
    session.read(1, 0, 1)
    session.read(2, 0, 2, lun=raw_lun(1))
    session.write(3, 0, bytes(1024), immediate=1024, lun=raw_lun(1))
    session.read(4, 0, 4)
    session.engine.meter.settle()
    assert (moved(session, 0), moved(session, 1)) == ((5 * 512, 0), (1024, 1024))


def test_settling_twice_counts_nothing_twice() -> None:
    session = Session()
    session.read(1, 0, 3)
    session.engine.meter.settle()
    session.engine.meter.settle()
    assert moved(session, 0) == (1536, 0)
    session.write(2, 0, bytes(512), immediate=512)
    session.engine.close()
    assert moved(session, 0) == (1536, 512)


def test_commands_to_units_that_are_not_there_are_told_of_none() -> None:
    session = Session()
    session.read(1, 0, 1)
    session.command(INQUIRY, tag=2, lun=raw_lun(9), read=255)
    session.read(3, 0, 1, lun=raw_lun(9))
    session.engine.meter.settle()
    assert moved(session, 0) == (512, 0)
    assert session.engine.read_bytes == 512


class Damaged(Inline):
    """A disk that cannot be read."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        raise OSError(errno.EIO, "the medium is damaged")


def test_error_of_the_medium_is_told_of_its_unit() -> None:
    session = Session(more=[Damaged()])
    session.read(1, 0, 1, lun=raw_lun(1))
    tallies = [session.node.units[raw_lun(number)].tally for number in (0, 1)]
    assert [tally.read_errors for tally in tallies] == [0, 1]
