"""Task management (RFC 7143 11.5, 11.6; RFC 7144; SAM-5 7).

ABORT TASK, ABORT TASK SET and the queries concern only tasks of this session, which this worker has; so does CLEAR TASK
SET, for each I_T nexus has a task set of its own (TST 001b in the control mode page: RFC 7143 11.5.1, SAM-5 7.5).
Resets reach over sessions and workers: the authority has them performed everywhere before they are answered. The reset
of an I_T nexus goes the same way, because reservations go with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from iscsid.scsi.sense import REASONS
from iscsid.session.connection import Request, TargetConnection
from iscsid.target.node import Seat
from iscsid.target.task import Authority, Task, TaskSet
from iscsid.wire.const import TmfFunction, TmfResponse
from iscsid.wire.pdu import ScsiCommand, TaskManagementRequest, TaskManagementResponse

AbortAll = Callable[[Sequence[Task], Callable[[], None]], None]

_ONE, _SEVERAL = 0x10, 0x20  # UADE DEPTH in the answer to QUERY ASYNCHRONOUS EVENT (SAM-5 7.10)
_ON_ALL_UNITS = frozenset({TmfFunction.TARGET_WARM_RESET, TmfFunction.TARGET_COLD_RESET, TmfFunction.I_T_NEXUS_RESET})
_SWEEPING = _ON_ALL_UNITS | {
    TmfFunction.ABORT_TASK_SET,
    TmfFunction.CLEAR_TASK_SET,
    TmfFunction.LOGICAL_UNIT_RESET,
}
PENDING_LIMIT = 64  # requests that are not answered yet; they count against no window, so nothing else bounds them


class TaskManager:
    """The task management of one session.

    ``abort_all`` stops tasks and calls back when the last one has stopped. ``seats`` gives what the session finds
    behind each LUN field.
    """

    __slots__ = ("_abort_all", "_authority", "_closed", "_connection", "_functions", "_pending", "_seats", "_tasks")

    def __init__(
        self,
        connection: TargetConnection,
        tasks: TaskSet,
        abort_all: AbortAll,
        seats: Callable[[], Mapping[int, Seat]],
        authority: Authority,
    ) -> None:
        self._connection = connection
        self._tasks = tasks
        self._abort_all = abort_all
        self._seats = seats
        self._authority = authority
        self._closed = False
        self._pending = 0
        self._functions: dict[int, Callable[[TaskManagementRequest], None]] = {
            TmfFunction.ABORT_TASK: self._abort_task,
            TmfFunction.ABORT_TASK_SET: self._abort_task_set,
            TmfFunction.CLEAR_TASK_SET: self._abort_task_set,
            TmfFunction.LOGICAL_UNIT_RESET: self._reset_unit,
            TmfFunction.TARGET_WARM_RESET: self._reset_target,
            TmfFunction.TARGET_COLD_RESET: self._reset_target,
            TmfFunction.TASK_REASSIGN: self._task_reassign,
            TmfFunction.QUERY_TASK: self._query_task,
            TmfFunction.QUERY_TASK_SET: self._query_task_set,
            TmfFunction.I_T_NEXUS_RESET: self._reset_target,  # all units of the target, this nexus only
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
            if request.function in _SWEEPING:
                self._sweep(request)
            function(request)

    def _sweep(self, request: TaskManagementRequest) -> None:
        """Commands that have come before ``request``, and wait for one before them that was lost, are tasks as well."""
        everything = request.function in _ON_ALL_UNITS

        def reached(held: Request) -> bool:
            return isinstance(held, ScsiCommand) and (everything or held.lun == request.lun)

        self._connection.window.drop(request.cmd_sn, reached)

    def close(self) -> None:
        """The session is over: what is still under way ends unheard."""
        self._closed = True

    def _abort_task(self, request: TaskManagementRequest) -> None:
        """Abort a task; where there is none, RefCmdSN may be that of a command whose data was damaged, or that waits
        for such a one: it counts as received then, and those behind it go on (section 11.6.1)."""
        task = self._tasks.get(request.referenced_task_tag)

        def referenced(held: Request) -> bool:
            return held.initiator_task_tag == request.referenced_task_tag

        if task is not None and task.command.lun == request.lun:
            self._abort(request, [task])
        elif task is None and self._connection.window.give_up(request.ref_cmd_sn, request.cmd_sn, referenced):
            self._respond(request, TmfResponse.FUNCTION_COMPLETE)
        else:
            self._respond(request, TmfResponse.TASK_DOES_NOT_EXIST)

    def _abort_task_set(self, request: TaskManagementRequest) -> None:
        if request.lun not in self._seats():
            self._respond(request, TmfResponse.LUN_DOES_NOT_EXIST)
        else:
            self._abort(request, [task for task in self._tasks if task.command.lun == request.lun])

    def _reset_unit(self, request: TaskManagementRequest) -> None:
        self._everywhere(request, request.lun)

    def _reset_target(self, request: TaskManagementRequest) -> None:
        self._everywhere(request, None)

    def _everywhere(self, request: TaskManagementRequest, lun: int | None) -> None:
        """Have a function performed on the unit of ``lun``, None: on the target, in every worker."""
        seats = self._seats()
        seat = next(iter(seats.values()), None) if lun is None else seats.get(lun)
        if seat is None:
            self._respond(request, TmfResponse.LUN_DOES_NOT_EXIST)
            return

        def done(complete: bool) -> None:
            self._pending -= 1
            if not self._closed:
                self._respond(request, TmfResponse.FUNCTION_COMPLETE if complete else TmfResponse.FUNCTION_REJECTED)

        self._pending += 1
        unit, nexus = seat
        self._authority.reset("" if lun is None else unit.identity.serial, nexus.id, request.function, done)

    def _query_task(self, request: TaskManagementRequest) -> None:
        task = self._tasks.get(request.referenced_task_tag)
        self._answer_query(request, found=task is not None and task.command.lun == request.lun)

    def _query_task_set(self, request: TaskManagementRequest) -> None:
        self._answer_query(request, found=any(task.command.lun == request.lun for task in self._tasks))

    def _query_asynchronous_event(self, request: TaskManagementRequest) -> None:
        """Tell of the unit attention that is next, and leave it (SAM-5 7.10, RFC 7144 section 4.3)."""
        seat = self._seats().get(request.lun)
        attentions = seat[1].attentions if seat is not None else ()
        if not attentions:
            self._answer_query(request, found=False)
            return
        key, asc, ascq = REASONS[attentions[0]]
        information = bytes(((_ONE if len(attentions) == 1 else _SEVERAL) | key, asc, ascq))
        self._respond(request, TmfResponse.FUNCTION_SUCCEEDED, information)

    def _answer_query(self, request: TaskManagementRequest, *, found: bool) -> None:
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

    def _respond(self, request: TaskManagementRequest, response: int, information: bytes = bytes(3)) -> None:
        self._connection.send(
            TaskManagementResponse(
                response=int(response),
                additional_response_information=information,
                initiator_task_tag=request.initiator_task_tag,
            )
        )
