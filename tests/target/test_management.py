"""target.management: what may be aborted, when the answer comes, and what is refused."""

from __future__ import annotations

import pytest
from target_rig import GOOD, Inline, Memory, Session, pattern, raw_lun

from iscsid import serial
from iscsid.scsi.sense import Reason
from iscsid.target.management import PENDING_LIMIT
from iscsid.wire.const import TmfFunction, TmfResponse
from iscsid.wire.pdu import NopOut, TaskManagementRequest, TaskManagementResponse


def ask(session: Session, function: int, *, tag: int = 900, **more: int) -> None:
    session.send(TaskManagementRequest(function=function, initiator_task_tag=tag, **more))


def abort(session: Session, task: int, **more: int) -> None:
    ask(session, TmfFunction.ABORT_TASK, referenced_task_tag=task, **more)


def heard(session: Session) -> list[tuple[int, int]]:
    answers = session.hear()
    assert all(isinstance(answer, TaskManagementResponse) for answer in answers)
    return [(answer.initiator_task_tag, answer.response) for answer in answers]


@pytest.mark.parametrize(
    ("function", "response"),
    [
        (TmfFunction.CLEAR_ACA, TmfResponse.FUNCTION_NOT_SUPPORTED),
        (TmfFunction.TASK_REASSIGN, TmfResponse.TASK_ALLEGIANCE_REASSIGNMENT_NOT_SUPPORTED),
        (0, TmfResponse.FUNCTION_NOT_SUPPORTED),
        (0x7F, TmfResponse.FUNCTION_NOT_SUPPORTED),
    ],
)
def test_function_that_is_not_there_is_refused_and_aborts_nothing(function: int, response: int) -> None:
    session = Session(Memory())
    session.read(1, 0, 8)
    ask(session, function)
    assert heard(session) == [(900, response)]
    assert session.outcome(1).status == GOOD


@pytest.mark.parametrize("immediate", [False, True])
def test_abort_of_a_write_that_waits_for_data_is_answered_at_once(immediate: bool) -> None:
    session = Session()
    session.write(1, 0, pattern(4096))
    session.hear()
    session.send(
        TaskManagementRequest(
            function=TmfFunction.ABORT_TASK, immediate=immediate, initiator_task_tag=900, referenced_task_tag=1
        )
    )
    assert heard(session) == [(900, TmfResponse.FUNCTION_COMPLETE)]
    session.settle()  # the data that was asked for comes all the same
    assert session.outcomes == {} and not any(session.device.content)
    session.assert_idle()


def test_abort_of_a_write_in_the_pool_waits_until_it_is_written() -> None:
    session = Session(Memory())
    session.write(1, 0, pattern(4096), immediate=4096)
    abort(session, 1)
    assert heard(session) == []
    session.pool.finish()
    assert session.device.content[:4096] == pattern(4096)
    assert heard(session) == [(900, TmfResponse.FUNCTION_COMPLETE)]
    assert session.outcomes == {}
    session.assert_idle()


def test_two_aborts_of_one_task_are_both_answered() -> None:
    session = Session(Memory())
    session.read(1, 0, 8)
    for tag in (900, 901):
        abort(session, 1, tag=tag)
    session.pool.finish()
    assert heard(session) == [(900, TmfResponse.FUNCTION_COMPLETE), (901, TmfResponse.FUNCTION_COMPLETE)]
    session.assert_idle()


# Commands that have not come, for their data was damaged, and those that wait for them (RFC 7143 11.6.1).


def lose(session: Session) -> int:
    """A command that the target never sees; its CmdSN."""
    lost = session.cmd_sn
    session.cmd_sn = serial.add(lost, 1)
    return lost


@pytest.mark.parametrize("cmd_sn", [1, 0xFFFFFFFF])
def test_abort_of_a_command_that_never_came_lets_those_behind_it_go_on(cmd_sn: int) -> None:
    session = Session(cmd_sn=cmd_sn)
    lost = lose(session)
    session.read(2, 0, 8)
    assert session.hear() == [] and not session.outcomes
    abort(session, 1, ref_cmd_sn=lost, immediate=True)
    assert heard(session) == [(900, TmfResponse.FUNCTION_COMPLETE)]
    assert session.outcome(2).status == GOOD
    session.send(NopOut(initiator_task_tag=7, cmd_sn=lost), numbered=False)  # too late: it counts as received
    session.read(3, 0, 8)
    assert session.outcome(3).status == GOOD
    session.assert_idle()


def test_abort_of_a_command_that_waits_for_a_lost_one_keeps_it_from_being_executed() -> None:
    session = Session()
    lost = lose(session)
    waiting = session.cmd_sn
    session.write(2, 0, pattern(4096), immediate=4096)
    session.read(3, 0, 8)
    abort(session, 2, ref_cmd_sn=waiting, immediate=True)
    assert heard(session) == [(900, TmfResponse.FUNCTION_COMPLETE)]
    abort(session, 1, ref_cmd_sn=lost, immediate=True)
    assert heard(session) == [(900, TmfResponse.FUNCTION_COMPLETE)]
    assert session.outcome(3).data == bytes(4096)
    assert not session.outcomes
    session.assert_idle()


def test_abort_of_a_number_of_another_task_or_outside_the_window_finds_no_task() -> None:
    session = Session(queue_depth=8)
    taken = session.cmd_sn
    session.read(1, 0, 8)
    assert session.outcome(1).status == GOOD
    lost = lose(session)
    waiting = session.cmd_sn
    session.read(2, 0, 8)
    for ref_cmd_sn in (taken, waiting, session.cmd_sn, serial.add(session.cmd_sn, 100)):
        abort(session, 77, ref_cmd_sn=ref_cmd_sn, immediate=True)
        assert heard(session) == [(900, TmfResponse.TASK_DOES_NOT_EXIST)]
    assert not session.outcomes
    session.send(NopOut(initiator_task_tag=7, cmd_sn=lost), numbered=False)
    assert session.outcome(2).status == GOOD


@pytest.mark.parametrize(
    ("function", "executed"),
    [
        (TmfFunction.ABORT_TASK_SET, {3, 4}),
        (TmfFunction.CLEAR_TASK_SET, {3, 4}),
        (TmfFunction.LOGICAL_UNIT_RESET, {3, 4}),
        (TmfFunction.TARGET_WARM_RESET, {4}),
        (TmfFunction.QUERY_TASK_SET, {2, 3, 4}),
    ],
)
def test_commands_that_wait_for_a_lost_one_are_aborted_with_the_others(function: int, executed: set[int]) -> None:
    session = Session(more=[Inline()])
    lost = lose(session)
    session.read(2, 0, 8)
    session.read(3, 0, 8, lun=raw_lun(1))
    ask(session, function, immediate=True)
    session.hear()
    session.read(4, 0, 8)  # behind it
    session.send(NopOut(initiator_task_tag=7, cmd_sn=lost), numbered=False)
    session.settle()
    assert set(session.outcomes) == executed


def test_task_that_is_done_or_of_another_unit_does_not_exist() -> None:
    session = Session(Memory(), more=[Inline()])
    session.read(1, 0, 8)
    abort(session, 1, lun=raw_lun(1))
    abort(session, 2)
    assert heard(session) == [(900, TmfResponse.TASK_DOES_NOT_EXIST)] * 2
    assert session.outcome(1).status == GOOD
    abort(session, 1)
    assert heard(session) == [(900, TmfResponse.TASK_DOES_NOT_EXIST)]


@pytest.mark.parametrize("function", [TmfFunction.ABORT_TASK_SET, TmfFunction.CLEAR_TASK_SET])
def test_end_of_a_task_set_stops_the_tasks_of_one_unit(function: int) -> None:
    session = Session(Memory(), more=[Memory()])
    session.read(1, 0, 8)
    session.write(2, 0, pattern(4096))
    session.write(3, 8, pattern(4096), immediate=4096)
    session.read(4, 0, 8, lun=raw_lun(1))
    ask(session, function)
    assert heard(session) == [] and len(session.engine.tasks) == 3
    session.pool.finish(1)
    assert heard(session) == []
    session.pool.finish(0)
    assert heard(session) == [(900, TmfResponse.FUNCTION_COMPLETE)]
    session.r2ts.clear()
    assert session.outcome(4).status == GOOD and session.outcomes == {}
    session.assert_idle()


def test_abort_task_set_without_tasks_is_complete_at_once() -> None:
    session = Session()
    ask(session, TmfFunction.ABORT_TASK_SET)
    assert heard(session) == [(900, TmfResponse.FUNCTION_COMPLETE)]


def test_abort_task_set_of_no_unit_says_so() -> None:
    session = Session()
    ask(session, TmfFunction.ABORT_TASK_SET, lun=raw_lun(9))
    assert heard(session) == [(900, TmfResponse.LUN_DOES_NOT_EXIST)]


def test_tag_of_an_aborted_task_is_free_when_the_answer_is_out() -> None:
    session = Session(Memory())
    session.read(1, 0, 8)
    abort(session, 1)
    session.pool.finish()
    assert heard(session) == [(900, TmfResponse.FUNCTION_COMPLETE)]
    session.read(1, 0, 8)
    assert session.outcome(1).status == GOOD


def test_requests_that_wait_are_bounded() -> None:
    session = Session(Memory())
    session.read(1, 0, 8)
    for tag in range(PENDING_LIMIT):
        abort(session, 1, tag=1000 + tag)
    assert heard(session) == []
    abort(session, 1, tag=2000)
    assert heard(session) == [(2000, TmfResponse.FUNCTION_REJECTED)]
    session.pool.finish()
    assert [tag for tag, _ in heard(session)] == list(range(1000, 1000 + PENDING_LIMIT))
    abort(session, 1)
    assert heard(session) == [(900, TmfResponse.TASK_DOES_NOT_EXIST)]


def test_discovery_session_has_nothing_to_abort() -> None:
    session = Session(target_name=None)
    abort(session, 1)
    ask(session, TmfFunction.ABORT_TASK_SET)
    assert heard(session) == [(900, TmfResponse.TASK_DOES_NOT_EXIST), (900, TmfResponse.LUN_DOES_NOT_EXIST)]


@pytest.mark.parametrize(
    ("function", "unit"),
    [
        (TmfFunction.I_T_NEXUS_RESET, ""),
        (TmfFunction.LOGICAL_UNIT_RESET, "serial1"),
        (TmfFunction.TARGET_WARM_RESET, ""),
        (TmfFunction.TARGET_COLD_RESET, ""),
    ],
)
@pytest.mark.parametrize(
    ("complete", "response"), [(True, TmfResponse.FUNCTION_COMPLETE), (False, TmfResponse.FUNCTION_REJECTED)]
)
def test_reset_is_answered_when_it_was_performed_everywhere(
    function: int, unit: str, complete: bool, response: int
) -> None:
    session = Session(more=[Inline()])
    ask(session, function, lun=raw_lun(1))
    assert heard(session) == []
    [(serial, nexus, asked, _)] = session.authority.resets
    assert (serial, nexus, asked) == (unit, session.engine._seats[0][1].id, function)
    session.authority.performed(complete)
    assert heard(session) == [(900, response)]


def test_reset_of_a_unit_that_is_not_there_is_told_so() -> None:
    session = Session()
    ask(session, TmfFunction.LOGICAL_UNIT_RESET, lun=raw_lun(1))
    assert heard(session) == [(900, TmfResponse.LUN_DOES_NOT_EXIST)]
    assert not session.authority.resets


def test_reset_that_is_performed_after_the_session_has_ended_says_nothing() -> None:
    session = Session()
    ask(session, TmfFunction.LOGICAL_UNIT_RESET)
    session.engine.close()
    session.authority.performed()
    assert heard(session) == []


def test_resets_that_wait_are_bounded() -> None:
    session = Session()
    for tag in range(PENDING_LIMIT + 1):
        ask(session, TmfFunction.LOGICAL_UNIT_RESET, tag=tag)
    assert heard(session) == [(PENDING_LIMIT, TmfResponse.FUNCTION_REJECTED)]
    assert len(session.authority.resets) == PENDING_LIMIT


def test_query_task_tells_whether_the_task_is_there() -> None:
    session = Session()
    session.write(1, 0, pattern(4096))
    session.hear()
    for tag in (1, 2):
        ask(session, TmfFunction.QUERY_TASK, referenced_task_tag=tag)
        ask(session, TmfFunction.QUERY_TASK, referenced_task_tag=tag, lun=raw_lun(1))
    assert [response for _, response in heard(session)] == [
        TmfResponse.FUNCTION_SUCCEEDED,
        TmfResponse.FUNCTION_COMPLETE,
        TmfResponse.FUNCTION_COMPLETE,
        TmfResponse.FUNCTION_COMPLETE,
    ]


def test_query_task_set_tells_whether_the_unit_has_tasks_of_the_session() -> None:
    session = Session(more=[Inline()])
    session.write(1, 0, pattern(4096))
    session.hear()
    for lun in (0, 1):
        ask(session, TmfFunction.QUERY_TASK_SET, lun=raw_lun(lun))
    assert [response for _, response in heard(session)] == [
        TmfResponse.FUNCTION_SUCCEEDED,
        TmfResponse.FUNCTION_COMPLETE,
    ]


def test_query_asynchronous_event_tells_of_a_waiting_unit_attention_and_leaves_it() -> None:
    session = Session()
    ask(session, TmfFunction.QUERY_ASYNCHRONOUS_EVENT)
    attentions = session.engine._seats[0][1].attentions
    attentions.append(Reason.MODE_PARAMETERS_CHANGED)
    ask(session, TmfFunction.QUERY_ASYNCHRONOUS_EVENT)
    assert [response for _, response in heard(session)] == [
        TmfResponse.FUNCTION_COMPLETE,
        TmfResponse.FUNCTION_SUCCEEDED,
    ]
    assert attentions == [Reason.MODE_PARAMETERS_CHANGED]


@pytest.mark.parametrize(
    ("waiting", "information"),
    [
        ([], "000000"),
        ([Reason.MODE_PARAMETERS_CHANGED], "162a01"),
        ([Reason.I_T_NEXUS_LOSS, Reason.MODE_PARAMETERS_CHANGED], "262907"),
    ],
)
def test_query_asynchronous_event_tells_which_attention_is_next(waiting: list[Reason], information: str) -> None:
    session = Session()
    session.engine._seats[0][1].attentions.extend(waiting)
    ask(session, TmfFunction.QUERY_ASYNCHRONOUS_EVENT)
    [answer] = session.hear()
    assert answer.additional_response_information.hex() == information
