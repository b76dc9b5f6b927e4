"""Copies through a whole session: in the pool, without the lock of the unit that was asked, and stopped by aborts."""

from __future__ import annotations

import struct

from target_rig import BLOCK, GOOD, Inline, Session

from iscsid.scsi.copy_move import PIECE, designations
from iscsid.scsi.copy_state import ALONE, Party
from iscsid.wire import lun as lun_field
from iscsid.wire.const import TmfFunction, TmfResponse
from iscsid.wire.pdu import TaskManagementRequest


def parameter_list(session: Session, blocks: int) -> bytes:
    """Copy ``blocks`` from the start of LUN 0 to the start of LUN 1."""
    cscds = b""
    for number in (0, 1):
        code_set, kind, designator = designations(session.node.units[lun_field.encode(number)])[0]
        cscds += struct.pack(">BBHBBBB20sI", 0xE4, 0, 0, code_set, kind, 0, len(designator), designator, BLOCK)
    segment = struct.pack(">BBHHHxxHQQ", 2, 0, 0x18, 0, 1, blocks, 0, 0)
    return struct.pack(">BBH4xII", 1, 0, len(cscds), len(segment), 0) + cscds + segment


def copying() -> Session:
    session = Session(Inline(), more=[Inline()])
    session.device.content[:] = bytes(range(256)) * (len(session.device.content) // 256)
    other, nexus = session.node.seats("iqn.2026-11.org.example:other", 1)[lun_field.encode(1)]
    for seat in session.engine._seats.values():
        seat[1].attentions.clear()
        seat[1].copies.services = ALONE._replace(
            find=lambda designation, _: Party(other, nexus) if designation in designations(other) else None
        )
    return session


def start(session: Session, blocks: int) -> None:
    data = parameter_list(session, blocks)
    cdb = struct.pack(">BB8xIxx", 0x83, 0, len(data))
    session.data_out[1] = data
    session.command(cdb, tag=1, write=len(data), data=data)


def test_copy_runs_in_the_pool_and_is_answered_when_it_is_over() -> None:
    session = copying()
    start(session, 2048)
    assert len(session.pool.calls) == 1 and 1 not in session.outcomes
    session.settle()
    assert session.outcome(1).status == GOOD
    other = list(session.node.devices())[1]
    copied = bytearray(2048 * BLOCK)
    other.read_into(memoryview(copied), 0)
    assert copied == session.device.content[: 2048 * BLOCK]
    session.assert_idle()


def test_aborted_copy_stops_and_is_not_answered() -> None:
    session = copying()
    start(session, 4 * PIECE // BLOCK)
    session.send(TaskManagementRequest(function=TmfFunction.ABORT_TASK, initiator_task_tag=900, referenced_task_tag=1))
    assert not session.hear()
    session.pool.finish()
    [response] = session.hear()
    assert response.response == TmfResponse.FUNCTION_COMPLETE
    assert 1 not in session.outcomes
    assert not any(call[0] == "read" for call in session.device.calls)


def test_copy_of_a_session_that_ends_stops() -> None:
    session = copying()
    start(session, 4 * PIECE // BLOCK)
    session.engine.close()
    session.pool.finish()
    assert not any(call[0] == "read" for call in session.device.calls)


def test_copy_takes_the_locks_itself() -> None:
    session = copying()
    held: list[int] = []

    class Lock:
        def __enter__(self) -> None:
            assert not held
            held.append(1)

        def __exit__(self, *_: object) -> None:
            held.pop()

    for device in session.node.devices():
        device.lock = Lock()
    start(session, 8)
    session.settle()
    assert session.outcome(1).status == GOOD
