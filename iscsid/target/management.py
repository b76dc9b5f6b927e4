"""Task management (RFC 7143 11.5, 11.6; SAM-5 7) as far as it concerns one nexus.

ABORT TASK and ABORT TASK SET touch only tasks of this session, which this worker has. What reaches over sessions
(resets, CLEAR TASK SET) is answered as not supported until every worker can be made to obey it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from iscsid.session.connection import TargetConnection
from iscsid.target.task import Task, TaskSet
from iscsid.wire.const import TmfFunction, TmfResponse
from iscsid.wire.pdu import TaskManagementRequest, TaskManagementResponse

AbortAll = Callable[[Sequence[Task], Callable[[], None]], None]

PENDING_LIMIT = 64  # requests that wait for the pool; they count against no window, so nothing else bounds them


class TaskManager:
    """The task management of one session.

    ``abort_all`` stops tasks and calls back when the last one has stopped; ``has_unit`` tells whether a LUN field names
    a logical unit.
    """

    __slots__ = ("_abort_all", "_connection", "_functions", "_has_unit", "_pending", "_tasks")

    def __init__(
        self, connection: TargetConnection, tasks: TaskSet, abort_all: AbortAll, has_unit: Callable[[int], bool]
    ) -> None:
        self._connection = connection
        self._tasks = tasks
        self._abort_all = abort_all
        self._has_unit = has_unit
        self._pending = 0
        self._functions: dict[int, Callable[[TaskManagementRequest], None]] = {
            TmfFunction.ABORT_TASK: self._abort_task,
            TmfFunction.ABORT_TASK_SET: self._abort_task_set,
            TmfFunction.TASK_REASSIGN: self._task_reassign,
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
        if self._has_unit(request.lun):
            self._abort(request, [task for task in self._tasks if task.command.lun == request.lun])
        else:
            self._respond(request, TmfResponse.LUN_DOES_NOT_EXIST)

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
