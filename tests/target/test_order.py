"""target.order: what the task attributes of one session's commands make wait, and for what."""

from __future__ import annotations

import pytest
from target_rig import CHECK_CONDITION, GOOD, Inline, Memory, Session, pattern, raw_lun, rw_cdb

from iscsid.block.guard import Guarded
from iscsid.scsi.const import Status
from iscsid.scsi.lu import LogicalUnit
from iscsid.scsi.sense import Reason
from iscsid.target import order
from iscsid.target.task import IMMEDIATE_LIMIT
from iscsid.wire.const import FINAL, READ, WRITE, TaskAttribute, TmfFunction, TmfResponse
from iscsid.wire.pdu import ScsiDataOut, TaskManagementRequest, TaskManagementResponse

UNTAGGED, SIMPLE, ORDERED, HEAD, ACA = 0, 1, 2, 3, 4
BLOCK = 512


def read(session: Session, tag: int, attribute: int, lba: int = 0, **more: int) -> None:
    session.command(
        rw_cdb(0x28, lba, 1),
        tag=tag,
        flags=FINAL | READ | attribute,
        expected_data_transfer_length=BLOCK,
        **more,
    )


def write(session: Session, tag: int, attribute: int, data: bytes, lba: int = 0, *, immediate: int = 0) -> None:
    """A write of ``data``; what is not immediate is announced as unsolicited where the session allows that."""
    session.data_out[tag] = data
    session.command(
        rw_cdb(0x2A, lba, len(data) // BLOCK),
        tag=tag,
        flags=WRITE | attribute | (FINAL if immediate else 0),
        expected_data_transfer_length=len(data),
        data=data[:immediate],
    )


def begun(session: Session) -> list[int]:
    """The blocks of the reads that are in the pool, and are run now, in their order."""
    assert isinstance(session.device, Memory)
    session.device.calls.clear()
    for _ in range(len(session.pool.calls)):
        session.pool.finish()
    session.hear()
    return [offset // BLOCK for _, offset, _ in session.device.calls]


def test_attribute_bits_are_those_of_the_wire() -> None:
    assert order.NOT_SIMPLE == 6
    assert [int(attribute) for attribute in TaskAttribute] == [UNTAGGED, SIMPLE, ORDERED, HEAD, ACA]


@pytest.mark.parametrize("attribute", [UNTAGGED, SIMPLE])
def test_simple_commands_wait_for_nothing(attribute: int) -> None:
    session = Session(Memory())
    for tag in range(4):
        read(session, tag, attribute, lba=tag)
    assert not session.engine._order.lines
    assert begun(session) == [0, 1, 2, 3]
    session.assert_idle()


def test_ordered_command_waits_for_all_before_it_and_keeps_back_all_after_it() -> None:
    session = Session(Memory())
    for tag, attribute in enumerate((SIMPLE, UNTAGGED, ORDERED, SIMPLE, SIMPLE)):
        read(session, tag, attribute, lba=tag)
    assert len(session.pool.calls) == 2
    session.pool.finish(1)
    assert len(session.pool.calls) == 1
    session.pool.finish(0)
    assert begun(session) == [2]
    assert begun(session) == [3, 4]
    assert [session.outcomes[tag].status for tag in range(5)] == [GOOD] * 5
    assert list(session.outcomes) == [1, 0, 2, 3, 4]
    assert not session.engine._order.lines
    session.assert_idle()


def test_ordered_commands_come_one_after_the_other() -> None:
    session = Session(Memory())
    for tag in range(3):
        read(session, tag, ORDERED, lba=tag)
    assert [begun(session) for _ in range(3)] == [[0], [1], [2]]
    assert list(session.outcomes) == [0, 1, 2]
    session.assert_idle()


def test_head_of_queue_command_begins_before_what_waits_and_is_waited_for() -> None:
    session = Session(Memory())
    for tag, attribute in enumerate((SIMPLE, ORDERED, SIMPLE, HEAD, SIMPLE)):
        read(session, tag, attribute, lba=tag)
    assert len(session.pool.calls) == 2
    session.pool.finish(0)
    assert len(session.pool.calls) == 1, "the ordered one waits for the head of queue, too"
    assert [begun(session) for _ in range(3)] == [[3], [1], [2, 4]]
    session.assert_idle()


def test_simple_command_waits_for_a_head_of_queue_command_alone() -> None:
    session = Session(Memory())
    for tag, attribute in enumerate((HEAD, HEAD, SIMPLE)):
        read(session, tag, attribute, lba=tag)
    assert [begun(session) for _ in range(2)] == [[0, 1], [2]]
    session.assert_idle()


def test_order_counts_within_one_unit_only() -> None:
    session = Session(Memory(), more=[Memory()])
    read(session, 1, SIMPLE)
    read(session, 2, ORDERED, lun=raw_lun(1))
    read(session, 3, SIMPLE)
    assert len(session.pool.calls) == 3
    session.settle()
    session.assert_idle()


def test_commands_that_are_done_at_once_keep_nobody_back() -> None:
    session = Session(Inline())
    for tag, attribute in enumerate((ORDERED, HEAD, SIMPLE, ORDERED)):
        read(session, tag, attribute)
    session.hear()
    assert [session.outcomes[tag].status for tag in range(4)] == [GOOD] * 4
    assert not session.engine._order.lines
    session.assert_idle()


def test_ordered_write_waits_for_the_data_of_the_write_before_it() -> None:
    session = Session(Inline())
    session.write(1, 0, pattern(4096, 1))
    write(session, 2, ORDERED, pattern(4096, 2), immediate=4096)
    read(session, 3, SIMPLE)
    session.hear()
    assert session.outcomes == {}
    session.settle()
    assert list(session.outcomes) == [1, 2, 3]
    assert session.outcomes[3].data == pattern(4096, 2)[:BLOCK]
    session.assert_idle()


@pytest.mark.parametrize("device", [Inline, Memory])
def test_held_write_takes_its_unsolicited_data_with_it(device: type[Memory]) -> None:
    session = Session(device(), {"InitialR2T": "No"})
    session.write(1, 8, pattern(4096, 1))
    write(session, 2, ORDERED, pattern(8192, 2))
    session.unsolicited(2, 0, 8192, size=1000)
    session.hear()
    assert session.outcomes == {} and session.engine._order._held == 8192
    session.settle()
    assert [session.outcomes[tag].status for tag in (1, 2)] == [GOOD] * 2
    assert session.device.content[:8192] == pattern(8192, 2)
    assert session.engine._order._held == 0
    session.assert_idle()


def test_data_of_a_held_write_that_breaks_the_rules_fails_it_when_its_turn_has_come() -> None:
    session = Session(Memory(), {"InitialR2T": "No"})
    read(session, 1, SIMPLE)
    write(session, 2, ORDERED, pattern(4096))
    session.unsolicited(2, 1024, 4096)
    session.settle()
    assert session.outcomes[2].reason == Reason.DATA_PHASE_ERROR
    assert not any(session.device.content)
    session.assert_idle()


@pytest.mark.parametrize("attribute", [ACA, 5, 6, 7])
def test_attribute_that_is_not_there_is_refused(attribute: int) -> None:
    session = Session(Inline())
    read(session, 1, attribute)
    write(session, 2, attribute, pattern(4096))
    session.unsolicited(2, 0, 4096)
    session.hear()
    for tag in (1, 2):
        assert session.outcomes[tag].status == CHECK_CONDITION
        assert session.outcomes[tag].reason == Reason.INVALID_MESSAGE_ERROR
    assert not any(session.device.content)
    session.assert_idle()


def test_order_counts_for_no_unit_that_is_not_there() -> None:
    session = Session(Memory())
    read(session, 1, ORDERED, lun=raw_lun(7))
    assert session.outcome(1).reason == Reason.LOGICAL_UNIT_NOT_SUPPORTED


def test_held_command_can_be_asked_for_and_aborted() -> None:
    session = Session(Memory())
    for tag, attribute in enumerate((SIMPLE, ORDERED, SIMPLE)):
        read(session, tag, attribute, lba=tag)
    for function in (TmfFunction.QUERY_TASK, TmfFunction.ABORT_TASK):
        session.send(TaskManagementRequest(function=function, initiator_task_tag=900, referenced_task_tag=1))
    answers = [pdu.response for pdu in session.hear() if isinstance(pdu, TaskManagementResponse)]
    assert answers == [TmfResponse.FUNCTION_SUCCEEDED, TmfResponse.FUNCTION_COMPLETE]
    assert len(session.pool.calls) == 2, "nothing keeps the last one back any more"
    session.settle()
    assert sorted(session.outcomes) == [0, 2]
    session.assert_idle()


def test_aborted_command_is_waited_for_while_it_runs() -> None:
    session = Session(Memory())
    read(session, 1, ORDERED)
    read(session, 2, SIMPLE)
    session.send(TaskManagementRequest(function=TmfFunction.ABORT_TASK, initiator_task_tag=900, referenced_task_tag=1))
    assert len(session.pool.calls) == 1
    session.pool.finish()
    assert len(session.pool.calls) == 1
    assert session.outcome(2).status == GOOD
    session.assert_idle()


def test_reset_of_the_unit_ends_what_is_held() -> None:
    session = Session(Memory())
    for tag, attribute in enumerate((SIMPLE, ORDERED, SIMPLE)):
        read(session, tag, attribute)
    stopped: list[bool] = []
    unit = session.node.units[0]
    session.engine.update(unit, [], None, lambda: stopped.append(True))
    assert not stopped
    session.pool.finish()
    assert stopped == [True] and not session.pool.calls
    session.hear()
    assert session.outcomes == {} and not session.engine._order.lines
    session.assert_idle()


def test_session_that_ends_ends_what_is_held() -> None:
    session = Session(Memory())
    for tag, attribute in enumerate((SIMPLE, ORDERED)):
        read(session, tag, attribute)
    session.engine.close()
    session.pool.finish()
    assert not session.pool.calls and not session.engine._order.lines


def test_unit_attention_is_told_to_the_command_whose_turn_has_come() -> None:
    session = Session(Memory())
    read(session, 1, SIMPLE)
    read(session, 2, ORDERED)
    session.engine._seats[0][1].attentions.append(Reason.MODE_PARAMETERS_CHANGED)
    session.settle()
    assert session.outcomes[1].status == GOOD
    assert session.outcomes[2].reason == Reason.MODE_PARAMETERS_CHANGED
    session.assert_idle()


def test_command_with_more_data_than_may_be_held_is_answered_task_set_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "HELD_LIMIT", 8192)
    session = Session(Memory(), {"InitialR2T": "No"})
    read(session, 1, SIMPLE)
    for tag in (2, 3, 4):
        write(session, tag, ORDERED, pattern(4096), immediate=4096)
    write(session, 5, ORDERED, pattern(1024))
    session.unsolicited(5, 0, 1024)
    session.hear()
    assert {tag: outcome.status for tag, outcome in session.outcomes.items()} == {
        4: Status.TASK_SET_FULL,
        5: Status.TASK_SET_FULL,
    }
    session.settle()
    assert [session.outcomes[tag].status for tag in (1, 2, 3)] == [GOOD] * 3
    assert session.engine._order._held == 0
    session.assert_idle()


def test_one_command_may_be_held_whatever_it_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "HELD_LIMIT", 10)
    session = Session(Memory())
    read(session, 1, SIMPLE)
    write(session, 2, ORDERED, pattern(4096), immediate=4096)
    assert session.outcome(2).status == GOOD


def test_data_out_pdus_of_a_held_command_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "HELD_PDUS", 3)
    session = Session(Memory(), {"InitialR2T": "No"})
    read(session, 1, SIMPLE)
    write(session, 2, ORDERED, pattern(4096))
    session.unsolicited(2, 0, 4096, size=512)
    session.hear()
    assert session.outcomes[2].status == Status.TASK_SET_FULL
    session.settle()
    session.assert_idle()


def test_held_commands_count_against_the_window() -> None:
    session = Session(Memory())
    window = session.connection.window
    read(session, 0, SIMPLE)
    for tag in range(1, 4):
        read(session, tag, ORDERED)
    assert window.active == 4
    session.settle()
    session.assert_idle()


def test_immediate_commands_that_are_held_are_bounded() -> None:
    session = Session(Memory())
    read(session, 0, SIMPLE)
    for tag in range(1, IMMEDIATE_LIMIT + 2):
        read(session, tag, ORDERED, immediate=True)
    assert len(session.engine.tasks) == IMMEDIATE_LIMIT + 1
    session.settle()
    session.assert_idle()


def test_data_out_for_a_command_in_the_pool_is_still_dropped() -> None:
    session = Session(Memory())
    read(session, 1, ORDERED)
    session.send(ScsiDataOut(flags=FINAL, initiator_task_tag=1, data=bytes(512)), numbered=False)
    assert session.outcome(1).status == GOOD
    session.assert_idle()


def test_line_of_a_unit_that_is_replaced_goes_on_with_its_successor() -> None:
    session = Session(Memory())
    read(session, 0, SIMPLE)
    read(session, 1, ORDERED, lba=1)
    (old,) = session.node.numbered.values()
    new = LogicalUnit(Guarded(session.device), old.identity)
    session.node.renew({0: new})
    settled: list[bool] = []
    session.engine.renew({old: new}, lambda: settled.append(True), luns=False)
    read(session, 2, SIMPLE, lba=2)
    session.engine.sent()
    assert len(session.pool.calls) == 1  # the first one still runs
    assert begun(session) == [0] and settled == [True]
    assert begun(session) == [1]
    assert begun(session) == [2]
    session.assert_idle()


# A unit whose medium is being changed.


def shut(session: Session, told: list[str]) -> LogicalUnit:
    (unit,) = session.node.numbered.values()
    session.engine.shut([unit], lambda: told.append("quiet"))
    return unit


def test_nothing_begins_on_a_unit_that_is_shut_and_the_order_is_kept() -> None:
    session = Session(Memory())
    told: list[str] = []
    read(session, 0, SIMPLE)
    unit = shut(session, told)
    for tag, attribute in enumerate((SIMPLE, ORDERED, HEAD, SIMPLE), 1):
        read(session, tag, attribute, lba=tag)
    session.engine.sent()
    assert not told and begun(session) == [0]
    assert told == ["quiet"]
    session.engine.sent()
    assert not session.pool.calls
    session.engine.open([unit])
    assert [begun(session) for _ in range(4)] == [[3], [1], [2], [4]]
    assert not session.engine._order.lines
    session.assert_idle()


def test_other_units_go_on_while_one_is_shut() -> None:
    session = Session(Memory(), more=[Memory()])
    unit = session.node.numbered[0]
    session.engine.shut([unit], lambda: None)
    read(session, 1, SIMPLE)
    read(session, 2, SIMPLE, lun=raw_lun(1))
    assert session.outcome(2).status == GOOD and 1 not in session.outcomes
    session.engine.open([unit])
    assert session.outcome(1).status == GOOD
    session.assert_idle()


def test_idle_unit_that_is_shut_and_opened_leaves_nothing() -> None:
    session = Session(Inline())
    told: list[str] = []
    unit = shut(session, told)
    assert told == ["quiet"]
    session.engine.open([unit])
    assert not session.engine._order.lines


def test_write_whose_data_are_owed_has_begun_and_one_that_comes_has_not() -> None:
    session = Session(Inline())
    told: list[str] = []
    session.write(1, 0, pattern(4096, 1))
    unit = shut(session, told)
    session.write(2, 8, pattern(4096, 2))
    assert not told
    session.hear()
    session.settle()
    assert told == ["quiet"] and list(session.outcomes) == [1]
    session.engine.open([unit])
    session.settle()
    assert session.outcomes[2].status == GOOD
    assert session.device.content[:8192] == pattern(4096, 1) + pattern(4096, 2)
    session.assert_idle()


@pytest.mark.parametrize("when", ["shut", "opened"])
def test_command_that_is_aborted_on_a_unit_that_is_shut_never_runs(when: str) -> None:
    session = Session(Inline())
    unit = shut(session, [])
    write(session, 1, SIMPLE, pattern(512), immediate=512)
    abort = TaskManagementRequest(function=TmfFunction.ABORT_TASK, initiator_task_tag=900, referenced_task_tag=1)
    if when == "shut":
        session.send(abort)
        assert [pdu.response for pdu in session.hear()] == [TmfResponse.FUNCTION_COMPLETE]
    else:
        session.engine.update(unit, [], None, lambda: None)  # a reset
    session.engine.open([unit])
    session.settle()
    assert session.outcomes == {} and not any(session.device.content)
    session.assert_idle()


def test_session_that_ends_while_its_unit_is_shut_is_quiet_when_its_calls_have_ended() -> None:
    session = Session(Memory())
    told: list[str] = []
    read(session, 0, SIMPLE)
    unit = shut(session, told)
    read(session, 1, SIMPLE)
    session.engine.close()
    assert not told
    session.pool.finish()
    assert told == ["quiet"]
    session.engine.shut([unit], lambda: told.append("again"))
    assert told == ["quiet", "again"] and not session.pool.calls


def test_unit_with_other_data_is_told_of_to_the_first_command_that_waited() -> None:
    session = Session(Memory())
    old = shut(session, [])
    read(session, 1, SIMPLE)
    read(session, 2, SIMPLE)
    new = LogicalUnit(Guarded(Memory(session.device.size * 2)), old.identity)
    session.node.renew({0: new})
    session.engine.renew({old: new}, lambda: None, luns=False, other=[new])
    session.engine.open([old, new])
    session.settle()
    assert session.outcomes[1].reason == Reason.MEDIUM_MAY_HAVE_CHANGED
    assert session.outcomes[2].reason == Reason.CAPACITY_DATA_HAS_CHANGED
    session.assert_idle()


def test_command_that_waited_begins_on_the_unit_that_its_lun_leads_to_now() -> None:
    """Another unit has come in the place of the first one, and not for the same: it says so before it does anything."""
    session = Session(Memory(), more=[Memory()])
    old, other = session.node.numbered[0], session.node.numbered[1]
    session.engine.shut([old, other], lambda: None)
    read(session, 1, SIMPLE)
    read(session, 2, SIMPLE)
    read(session, 3, SIMPLE, lun=raw_lun(1))
    new = LogicalUnit(Guarded(session.device), old.identity)
    session.node.renew({0: new})
    session.engine.renew({}, lambda: None, luns=True)
    session.engine.open([old, new, other])
    session.settle()
    assert session.outcomes[1].reason == Reason.POWER_ON_RESET_OR_BUS_DEVICE_RESET
    assert session.outcomes[2].reason == Reason.REPORTED_LUNS_DATA_HAS_CHANGED
    assert 3 not in session.outcomes or session.outcomes[3].reason == Reason.LOGICAL_UNIT_NOT_SUPPORTED
    assert not session.engine._order.lines
    session.assert_idle()
