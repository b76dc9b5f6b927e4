"""Logout (RFC 7143 11.14, 11.15): what it closes, and when that is said to be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from iscsid.errors import RejectError, ScsiError
from iscsid.scsi.const import Opcode
from iscsid.session.connection import TargetConnection
from iscsid.target.node import Seat
from iscsid.target.task import Authority, Task, TaskSet
from iscsid.wire.const import LogoutReason, LogoutResponseCode, RejectReason
from iscsid.wire.pdu import LogoutRequest, LogoutResponse

AbortAll = Callable[[Sequence[Task], Callable[[], None]], None]
_RELEASE = bytes((Opcode.RELEASE_6, 0, 0, 0, 0, 0))


class Logout:
    """The end of one session at its initiator's wish; the arguments are those of ``target.management``."""

    __slots__ = ("_abort_all", "_authority", "_begun", "_connection", "_seats", "_tasks")

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
        self._begun = False

    def request(self, request: LogoutRequest) -> None:
        """Close the session, which is also what closing its only connection does (section 11.14).

        The answer says that it is closed, so it waits for what of it is in the pool: the initiator may log in again
        and write in the same place. It waits until no worker restricts others for the sake of its SPC-2 reservations,
        too, which end with the nexus (SPC-2 5.5.1). Raises RejectError for a second one.
        """
        if self._begun:
            raise RejectError(RejectReason.PROTOCOL_ERROR, "a second logout")
        if request.reason == LogoutReason.REMOVE_CONNECTION_FOR_RECOVERY:
            self._respond(request, LogoutResponseCode.RECOVERY_NOT_SUPPORTED)
        elif request.reason == LogoutReason.CLOSE_CONNECTION and request.cid != self._connection.parameters.cid:
            self._respond(request, LogoutResponseCode.CID_NOT_FOUND)
        else:
            self._begun = True
            self._abort_all(list(self._tasks), lambda: self._release(request))

    def _release(self, request: LogoutRequest) -> None:
        held = {
            unit.identity.serial: nexus.id
            for unit, nexus in self._seats().values()
            if unit.state.reservations.spc2_holder == nexus.id
        }
        left = len(held)

        def done(_: ScsiError | None) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._close(request)

        for serial, nexus in held.items():
            self._authority.ask(serial, nexus, _RELEASE, b"", done)
        if not held:
            self._close(request)

    def _close(self, request: LogoutRequest) -> None:
        self._connection.closing = True
        self._respond(request, LogoutResponseCode.CLOSED)

    def _respond(self, request: LogoutRequest, code: LogoutResponseCode) -> None:
        self._connection.send(LogoutResponse(response=code, initiator_task_tag=request.initiator_task_tag))
