"""target.logout: what a logout closes, and when it is answered."""

from __future__ import annotations

import pytest
from target_rig import GOOD, TARGET_NAME, Inline, Memory, Session, pattern, raw_lun, rw_cdb

from iscsid.scsi.lu import SharedState
from iscsid.scsi.reservation import Reservations
from iscsid.scsi.state import NexusId
from iscsid.wire.const import FINAL, WRITE, LogoutResponseCode, RejectReason
from iscsid.wire.pdu import LogoutRequest, LogoutResponse, ScsiCommand


def log_out(session: Session, **fields: int) -> list[LogoutResponse]:
    session.send(LogoutRequest(initiator_task_tag=800, **fields))
    return [pdu for pdu in session.hear() if isinstance(pdu, LogoutResponse)]


def test_logout_of_an_idle_session_closes_it() -> None:
    session = Session()
    (response,) = log_out(session)
    assert (response.response, response.initiator_task_tag) == (LogoutResponseCode.CLOSED, 800)
    assert session.connection.closing


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"reason": 1, "cid": 7}, LogoutResponseCode.CID_NOT_FOUND),
        ({"reason": 2}, LogoutResponseCode.RECOVERY_NOT_SUPPORTED),
    ],
)
def test_logout_that_does_not_apply_leaves_the_session_open(fields: dict[str, int], code: int) -> None:
    session = Session()
    assert [response.response for response in log_out(session, **fields)] == [code]
    assert not session.connection.closing
    session.read(1, 0, 8)
    assert session.outcome(1).status == GOOD


def test_logout_ends_what_waits_and_is_answered_when_the_pool_is_done() -> None:
    session = Session(Memory(), more=[Inline()])
    session.write(1, 0, pattern(4096), immediate=4096)  # in the pool
    session.write(2, 8, pattern(4096))  # waits for data
    session.read(3, 0, 8)  # in the pool
    session.read(4, 0, 8192, lun=raw_lun(1))  # waits for the outbox
    assert log_out(session) == [] and not session.connection.closing
    assert len(session.engine.tasks) == 2
    session.pool.finish(1)
    assert session.hear() == []
    session.pool.finish()
    (response,) = session.hear()
    assert isinstance(response, LogoutResponse) and session.connection.closing
    assert session.device.content[:4096] == pattern(4096)
    assert all(outcome.status == -1 for outcome in session.outcomes.values())
    session.assert_idle()


def test_logout_is_answered_when_no_worker_holds_the_reservation_any_more() -> None:
    session = Session(more=[Inline(), Inline()])
    other = NexusId("iqn.2010-11.org.example:other", 1, TARGET_NAME, 1)
    for number, holder in enumerate((session.engine.nexus, other, session.engine.nexus)):
        session.node.numbered[number].state = SharedState(Reservations(spc2_holder=holder))
    assert log_out(session) == []
    assert [(unit, cdb[0]) for unit, _, cdb, *_ in session.authority.asked] == [("serial0", 0x17), ("serial2", 0x17)]
    session.authority.answer()
    assert session.hear() == [] and not session.connection.closing
    session.authority.answer()
    assert [type(pdu) for pdu in session.hear()] == [LogoutResponse]
    assert session.connection.closing


def test_second_logout_is_rejected() -> None:
    session = Session(Memory())
    session.read(1, 0, 8)
    assert log_out(session) == []
    session.send(LogoutRequest(initiator_task_tag=801))
    (reject,) = session.hear()
    assert reject.reason == RejectReason.PROTOCOL_ERROR
    session.pool.finish()
    assert [type(pdu) for pdu in session.hear()] == [LogoutResponse]


def test_nothing_is_executed_after_a_logout() -> None:
    session = Session()
    session.write(1, 0, pattern(512), immediate=512)
    session.hear()
    write = ScsiCommand(
        flags=FINAL | WRITE,
        initiator_task_tag=2,
        expected_data_transfer_length=512,
        cdb=rw_cdb(0x2A, 0, 1),
        data=bytes(512),
    )
    session.send(LogoutRequest(initiator_task_tag=800), write)
    session.hear()
    assert session.device.content[:512] == pattern(512) and 2 not in session.outcomes
