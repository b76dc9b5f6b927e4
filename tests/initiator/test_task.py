"""initiator.task: tickets."""

from __future__ import annotations

from iscsid.errors import InitiatorError
from iscsid.initiator.task import NO_DATA, Management, Task, TextExchange
from iscsid.wire.const import FINAL, READ, WRITE


def test_direction_follows_the_data() -> None:
    reading = Task(0, bytes(16), memoryview(bytearray(8)))
    writing = Task(0, bytes(16), NO_DATA, memoryview(bytes(9)))
    neither = Task(0, bytes(16))
    assert [task.flags & (READ | WRITE) for task in (reading, writing, neither)] == [READ, WRITE, 0]
    assert [task.expected for task in (reading, writing, neither)] == [8, 9, 0]
    assert all(task.flags & FINAL for task in (reading, writing, neither))


def test_end_tells_the_callback_after_all_is_set() -> None:
    seen = []
    task = Task(0, bytes(16))
    task.callback = lambda ticket: seen.append((ticket.done, ticket.error))
    error = InitiatorError("x")
    task.end(error)
    assert seen == [(True, error)]


def test_result_holds_what_came() -> None:
    task = Task(0, bytes(16), memoryview(bytearray(b"abcdef")))
    task.received, task.status, task.residual = 4, 0, 2
    assert (task.result.status, bytes(task.result.data), task.result.residual) == (0, b"abcd", 2)
    task.reset()
    assert (task.received, task.status, task.residual) == (0, -1, 0)


def test_results_of_other_tickets_are_their_answers() -> None:
    management, text = Management(5, 0), TextExchange([("SendTargets", "All")])
    management.response = 1
    text.answer = [("TargetName", "x")]
    assert (management.result, text.result) == (1, [("TargetName", "x")])
