"""target.task: the set counts every task once, in and out."""

from __future__ import annotations

import pytest
from helpers import Pair

from iscsid.errors import RejectError
from iscsid.session.connection import TargetConnection
from iscsid.target.task import IMMEDIATE_LIMIT, Task, TaskSet
from iscsid.wire.const import RejectReason
from iscsid.wire.pdu import ScsiCommand


@pytest.fixture
def connection() -> TargetConnection:
    return Pair().connection


def task(tag: int, *, immediate: bool = False) -> Task:
    return Task(ScsiCommand(initiator_task_tag=tag, immediate=immediate, data=b"data"))


def test_task_counts_against_the_window_until_its_end(connection: TargetConnection) -> None:
    tasks = TaskSet(connection)
    one = task(1)
    tasks.add(one)
    assert (connection.window.active, len(tasks), tasks.get(1)) == (1, 1, one)
    tasks.end(one)
    assert (connection.window.active, len(tasks), tasks.get(1)) == (0, 0, None)


def test_data_segment_of_a_task_is_not_kept(connection: TargetConnection) -> None:
    one = task(1)
    TaskSet(connection).add(one)
    assert one.command.data == b""


def test_tag_in_use_is_refused_and_the_refused_command_keeps_its_data(connection: TargetConnection) -> None:
    tasks = TaskSet(connection)
    first, second = task(1), task(1)
    tasks.add(first)
    with pytest.raises(RejectError) as caught:
        tasks.add(second)
    assert caught.value.reason == RejectReason.TASK_IN_PROGRESS
    assert (connection.window.active, tasks.get(1), second.command.data) == (1, first, b"data")


def test_immediate_commands_have_a_limit_of_their_own(connection: TargetConnection) -> None:
    tasks = TaskSet(connection)
    held = [task(tag, immediate=True) for tag in range(IMMEDIATE_LIMIT)]
    for one in held:
        tasks.add(one)
    with pytest.raises(RejectError) as caught:
        tasks.add(task(1000, immediate=True))
    assert caught.value.reason == RejectReason.IMMEDIATE_COMMAND_REJECT
    assert (connection.window.active, len(tasks)) == (0, IMMEDIATE_LIMIT)
    tasks.add(task(1001))
    tasks.end(held[0])
    tasks.add(task(1000, immediate=True))
    assert connection.window.active == 1


def test_iteration_allows_for_tasks_that_end_on_the_way(connection: TargetConnection) -> None:
    tasks = TaskSet(connection)
    for tag in range(3):
        tasks.add(task(tag))
    for one in tasks:
        tasks.end(one)
    assert len(tasks) == 0


def test_end_calls_back_once_and_after_the_task_has_left(connection: TargetConnection) -> None:
    tasks = TaskSet(connection)
    one = task(1)
    seen: list[tuple[str, int]] = []
    one.when_ended(lambda: seen.append(("first", len(tasks))))
    one.when_ended(lambda: seen.append(("second", connection.window.active)))
    tasks.add(one)
    assert seen == []
    tasks.end(one)
    assert seen == [("first", 0), ("second", 0)]
    one.ended()
    assert len(seen) == 2


def test_new_task_neither_runs_nor_is_aborted() -> None:
    one = task(1)
    assert (one.running, one.aborted) == (False, False)


def test_ending_a_task_twice_is_a_bug(connection: TargetConnection) -> None:
    tasks = TaskSet(connection)
    one = task(1)
    tasks.add(one)
    tasks.end(one)
    with pytest.raises(KeyError):
        tasks.end(one)
    assert connection.window.active == 0
