"""Task management (RFC 7143 11.5, 11.6; SAM-5 7) as far as it concerns one nexus.

ABORT TASK and ABORT TASK SET touch only tasks of this session, which this worker has. What reaches over sessions
(resets, CLEAR TASK SET) is answered as not supported until every worker can be made to obey it.
"""

from __future__ import annotations

from collections.abc import Callable

from iscsid.session.connection import TargetConnection
from iscsid.target.task import Task, TaskSet
from iscsid.wire.const import TmfFunction, TmfResponse
from iscsid.wire.pdu import TaskManagementRequest, TaskManagementResponse


class TaskManager:
    """The task management of one session; ``abort`` stops a task."""

    __slots__ = ("_abort", "_connection", "_functions", "_tasks")

    def __init__(self, connection: TargetConnection, tasks: TaskSet, abort: Callable[[Task], None]) -> None:
        self._connection = connection
        self._tasks = tasks
        self._abort = abort
        self._functions: dict[int, Callable[[TaskManagementRequest], None]] = {
            TmfFunction.ABORT_TASK: self._abort_task,
            TmfFunction.ABORT_TASK_SET: self._abort_task_set,
        }

    def request(self, request: TaskManagementRequest) -> None:
        """Do what is asked; the answer goes out when it is done, which may be later."""
        function = self._functions.get(request.function)
        if function is None:
            self._respond(request, TmfResponse.FUNCTION_NOT_SUPPORTED)
        else:
            function(request)

    def _abort_task(self, request: TaskManagementRequest) -> None:
        task = self._tasks.get(request.referenced_task_tag)
        if task is None or task.command.lun != request.lun:
            self._respond(request, TmfResponse.TASK_DOES_NOT_EXIST)
        else:
            self._abort_all(request, [task])

    def _abort_task_set(self, request: TaskManagementRequest) -> None:
        self._abort_all(request, [task for task in self._tasks if task.command.lun == request.lun])

    def _abort_all(self, request: TaskManagementRequest, tasks: list[Task]) -> None:
        """Abort ``tasks`` and answer when the last one has stopped: a write in the pool is still writing."""
        left = len(tasks)

        def ended() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._respond(request, TmfResponse.FUNCTION_COMPLETE)

        if not tasks:
            self._respond(request, TmfResponse.FUNCTION_COMPLETE)
        for task in tasks:
            task.when_ended(ended)
        for task in tasks:
            self._abort(task)

    def _respond(self, request: TaskManagementRequest, response: int) -> None:
        self._connection.send(
            TaskManagementResponse(response=int(response), initiator_task_tag=request.initiator_task_tag)
        )
