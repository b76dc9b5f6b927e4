"""Task management (RFC 7143 11.5, 11.6; RFC 7144; SAM-5 7).

ABORT TASK, ABORT TASK SET and the queries concern only tasks of this session, which this worker has. Resets and CLEAR
TASK SET reach over sessions and workers: the authority has them performed everywhere before they are answered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iscsid.session.connection import TargetConnection
from iscsid.target.task import Task, TaskSet
from iscsid.wire.const import TmfFunction, TmfResponse
from iscsid.wire.pdu import TaskManagementRequest, TaskManagementResponse

AbortAll = Callable[[Sequence[Task], Callable[[], None]], None]
Reset = Callable[[int | None, int, Callable[[bool], None]], bool]

PENDING_LIMIT = 64  # requests that are not answered yet; they count against no window, so nothing else bounds them


class TaskManager:
    """The task management of one session.

    ``abort_all`` stops tasks and calls back when the last one has stopped. ``reset(lun, function, done)`` has a
    function performed on a unit (LUN field; None: on the whole target) in every worker, and returns False where there
    is no such unit. ``attention_waits(lun)`` tells of a pending unit attention, None where there is no such unit.
    """

    __slots__ = ("_abort_all", "_attention_waits", "_connection", "_functions", "_pending", "_reset", "_tasks")

    def __init__(
        self,
        connection: TargetConnection,
        tasks: TaskSet,
        abort_all: AbortAll,
        reset: Reset,
        attention_waits: Callable[[int], bool | None],
    ) -> None:
        self._connection = connection
        self._tasks = tasks
        self._abort_all = abort_all
        self._reset = reset
        self._attention_waits = attention_waits
        self._pending = 0
        self._functions: dict[int, Callable[[TaskManagementRequest], None]] = {
            TmfFunction.ABORT_TASK: self._abort_task,
            TmfFunction.ABORT_TASK_SET: self._abort_task_set,
            TmfFunction.CLEAR_TASK_SET: self._reset_unit,
            TmfFunction.LOGICAL_UNIT_RESET: self._reset_unit,
            TmfFunction.TARGET_WARM_RESET: self._reset_target,
            TmfFunction.TARGET_COLD_RESET: self._reset_target,
            TmfFunction.TASK_REASSIGN: self._task_reassign,
            TmfFunction.QUERY_TASK: self._query_task,
            TmfFunction.QUERY_TASK_SET: self._query_task_set,
            TmfFunction.QUERY_ASYNCHRONOUS_EVENT: self._query_asynchronous_event,
        }

    def request(self, request: TaskManagementRequest) -> None:
        """Do what is asked; the answer goes out when it is done, which may be later."""
        function = self._functions.get(request.function)
        if function is None:
            self._respond(request, TmfResponse.FUNCTION_NOT_SUPPORTED)
        elif self._pending == PENDING_LIMIT:
            self._respond(request, TmfResponse.FUNCTION_REJECTED)
        else:
            function(request)

    def _abort_task(self, request: TaskManagementRequest) -> None:
        task = self._tasks.get(request.referenced_task_tag)
        if task is None or task.command.lun != request.lun:
            self._respond(request, TmfResponse.TASK_DOES_NOT_EXIST)
        else:
            self._abort(request, [task])

    def _abort_task_set(self, request: TaskManagementRequest) -> None:
        if self._attention_waits(request.lun) is None:
            self._respond(request, TmfResponse.LUN_DOES_NOT_EXIST)
        else:
            self._abort(request, [task for task in self._tasks if task.command.lun == request.lun])

    def _reset_unit(self, request: TaskManagementRequest) -> None:
        self._everywhere(request, request.lun)

    def _reset_target(self, request: TaskManagementRequest) -> None:
        self._everywhere(request, None)

    def _everywhere(self, request: TaskManagementRequest, lun: int | None) -> None:
        def done(complete: bool) -> None:
            self._pending -= 1
            self._respond(request, TmfResponse.FUNCTION_COMPLETE if complete else TmfResponse.FUNCTION_REJECTED)

        self._pending += 1
        if not self._reset(lun, request.function, done):
            self._pending -= 1
            self._respond(request, TmfResponse.LUN_DOES_NOT_EXIST)

    def _query_task(self, request: TaskManagementRequest) -> None:
        task = self._tasks.get(request.referenced_task_tag)
        self._answer_query(request, task is not None and task.command.lun == request.lun)

    def _query_task_set(self, request: TaskManagementRequest) -> None:
        self._answer_query(request, any(task.command.lun == request.lun for task in self._tasks))

    def _query_asynchronous_event(self, request: TaskManagementRequest) -> None:
        self._answer_query(request, bool(self._attention_waits(request.lun)))

    def _answer_query(self, request: TaskManagementRequest, found: bool) -> None:
        """RFC 7144 4.3.1: succeeded says yes, complete says no."""
        self._respond(request, TmfResponse.FUNCTION_SUCCEEDED if found else TmfResponse.FUNCTION_COMPLETE)

    def _task_reassign(self, request: TaskManagementRequest) -> None:
        """Recovery level 0 has no second connection that could take a task over."""
        self._respond(request, TmfResponse.TASK_ALLEGIANCE_REASSIGNMENT_NOT_SUPPORTED)

    def _abort(self, request: TaskManagementRequest, tasks: Sequence[Task]) -> None:
        def done() -> None:
            self._pending -= 1
            self._respond(request, TmfResponse.FUNCTION_COMPLETE)

        self._pending += 1
        self._abort_all(tasks, done)

    def _respond(self, request: TaskManagementRequest, response: int) -> None:
        self._connection.send(
            TaskManagementResponse(response=int(response), initiator_task_tag=request.initiator_task_tag)
        )
