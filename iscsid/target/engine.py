"""What a session of a target does: iSCSI requests in, SCSI commands executed, answers out. Still without I/O.

``receive`` is called with bytes in the framer's buffer and executes everything that they hold; ``sent`` when the
socket has taken what waited in the outbox. A command whose data is at hand is finished inside ``receive``, the others
go to the pool through ``submit`` and are finished when it reports.

Nothing here knows a socket, a thread or a clock, and nothing outside joins ``session`` with ``scsi``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from iscsid.errors import BlockError, RejectError, ScsiError
from iscsid.scsi import attention
from iscsid.scsi.absent import AbsentUnit
from iscsid.scsi.lu import LogicalUnit
from iscsid.scsi.plan import Ask, Job, Read, Reply, Write
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId
from iscsid.session.connection import Established, TargetConnection
from iscsid.session.transfer import Segment
from iscsid.target.answers import Answers, expected_length
from iscsid.target.calls import NOTHING_HELD, Calls, Data, holds
from iscsid.target.data_in import QUEUE_LIMIT, DataInQueue, ReadTask
from iscsid.target.data_out import DataOutCollector, WriteTask, announces_data
from iscsid.target.logout import Logout
from iscsid.target.management import TaskManager
from iscsid.target.meter import Meter
from iscsid.target.node import Nexus, Seat, TargetNode, tell_renewed
from iscsid.target.order import NOT_SIMPLE, TaskOrder
from iscsid.target.task import Authority, HeldTask, Submit, Task, TaskSet, when_all_ended
from iscsid.target.textual import TextExchange
from iscsid.text.codec import Pair
from iscsid.wire.const import FINAL, READ, WRITE, RejectReason
from iscsid.wire.framer import DamagedPdu
from iscsid.wire.pdu import (
    LogoutRequest,
    ScsiCommand,
    ScsiDataOut,
    TaskManagementRequest,
    TextRequest,
)

AnswerText = Callable[["Engine", Sequence[Pair]], Sequence[Pair]]


PARAMETER_LIMIT = 64 << 10  # bytes of a parameter list that go to the authority (shared.messages.MAX_PARAMETERS)
JOB_PATIENCE = 10  # times the io_timeout of its device that a job may take: it is made of many calls
INLINE_COST = 1 << 18  # bytes of medium that a job may touch in the worker's loop
_DIRECTION = int(FINAL | READ | WRITE)
_WHOLE_READ = int(FINAL | READ)  # a read, and no unsolicited data
_WHOLE_WRITE = int(FINAL | WRITE)  # a write whose data is all in the command, if it is all there


class Engine:
    """One session.

    Args:
        connection: its connection, in the login phase.
        node_of: the target node for a name, asked once when the login is over; None for a discovery session.
        answer_text: what answers the pairs of a Text Request.
        submit: the pool.
        established: called once, when full feature phase begins.
        authority: where commands go that change what other workers must know of.

    Attributes:
        calls: those that are in the pool.
        node: the target, None in a discovery session and before the login is over.
        closed: the session is over; whatever the pool still reports is dropped.
        commands, read_bytes, written_bytes: what the session has done.
        write_commands, other_commands: WRITE commands, and those that are neither READ nor WRITE, or were refused.
    """

    def __init__(
        self,
        connection: TargetConnection,
        node_of: Callable[[str], TargetNode],
        answer_text: AnswerText,
        submit: Submit,
        established: Callable[[Engine], None],
        authority: Authority,
    ) -> None:
        self.connection = connection
        self.node: TargetNode | None = None
        self.closed = False
        self.read_bytes = 0
        self.written_bytes = 0
        self.commands = 0
        self.write_commands = 0
        self.other_commands = 0
        self._node_of = node_of
        self._text = TextExchange(connection, lambda pairs: answer_text(self, pairs))
        self._established = established
        self._authority = authority
        self.tasks = TaskSet(connection)
        self._answers = Answers(connection, lambda lun: self._seats.get(lun))  # noqa: PLW0108 - replaced at login
        self.meter = Meter(self)
        self._data_out = DataOutCollector(connection, self.tasks, self._answers)
        self.calls = Calls(submit, self._data_out, self._answers, lambda: self._order.advance())  # noqa: PLW0108
        self._data_in = DataInQueue(connection, self.tasks, self._answers, self.calls.submit)
        self._order = TaskOrder(
            self.tasks, self._answers, self._unit_of, self._on_command, self._refuse, self._data_out.data_out
        )
        self._management = TaskManager(connection, self.tasks, self.abort_all, lambda: self._seats, authority)
        self._seats: Mapping[int, Seat] = {}
        self._absent = AbsentUnit()
        self._nobody = Nexus()
        self._longest_read = 0  # what fits into one Data-In PDU
        self._longest_write = 0  # what may come as immediate data
        self._handlers: dict[type, Callable[[Any], None]] = {
            Established: self._on_established,
            ScsiDataOut: self._data_out.data_out,
            TaskManagementRequest: self._management.request,
            TextRequest: self._text.request,
            LogoutRequest: Logout(connection, self.tasks, self.abort_all, lambda: self._seats, authority).request,
            DamagedPdu: self._data_out.damaged,
        }
        self._starters: dict[type, Callable[[ScsiCommand, LogicalUnit, Any], None]] = {
            Write: self._write,
            Reply: self._reply,
            Job: self._job,
            Ask: self._ask,
        }

    # --- what the worker calls --------------------------------------------------------------------------------------

    def receive(self, count: int) -> None:
        """Execute what ``count`` more bytes in the framer's buffer complete.

        Raises RemoteProtocolError when the connection is to be closed after what is in the outbox was sent.
        """
        connection = self.connection
        connection.framer.received(count)
        handlers = self._handlers
        on_command = self._on_command
        order = self._order
        lines = order.lines
        for event in connection.events():
            try:
                if type(event) is ScsiCommand:
                    if event.flags & NOT_SIMPLE or lines:
                        order.take(event)
                    else:
                        on_command(event)
                else:
                    handlers[type(event)](event)
            except RejectError as error:
                if isinstance(event, Established):
                    raise
                connection.reject(error.reason, event.header if isinstance(event, DamagedPdu) else event.pack())
                if error.fatal:
                    raise
        if lines:
            order.advance()

    def sent(self) -> None:
        """The outbox has shrunk: go on with the reads that waited for that."""
        self._data_in.pump()
        self._order.advance()

    def close(self) -> None:
        """The session is over; nothing more is sent, and what runs in the pool ends unheard."""
        self.closed = True
        self.meter.settle()
        self._order.close()
        self._management.close()
        running = [task for task in self.tasks if task.running]
        for task in self.tasks:
            task.aborted = True
            if not task.running:
                task.ended()
            elif task.cancel is not None:
                task.cancel()
        self.connection.outbox.clear()
        self.calls.close(running)

    @property
    def busy(self) -> bool:
        """Commands are unfinished, or answers wait to be sent."""
        return bool(len(self.tasks) or self.connection.outbox.queued)

    def renegotiate(self, key: str, value: str) -> Sequence[Pair]:
        """Answer a key, other than SendTargets, of a Text Request."""
        answer = self.connection.renegotiate(key, value)
        self._take_lengths()
        return answer

    def abort(self, task: Task) -> None:
        """Stop a task: it is never answered, and it leaves the set when nothing of it runs any more."""
        task.aborted = True
        if task.withdraw is not None:
            task.withdraw()
            return
        if task.running:
            if task.cancel is not None:
                task.cancel()
            return
        if isinstance(task, WriteTask):
            self._data_out.end(task)
        elif isinstance(task, ReadTask):
            self._data_in.abort(task)
        elif isinstance(task, HeldTask):
            self._order.drop(task)

    def abort_all(self, tasks: Sequence[Task], then: Callable[[], None]) -> None:
        """Abort ``tasks``; call ``then`` when the last one has stopped: a write in the pool is still writing."""
        when_all_ended(tasks, then)
        # The youngest first: they wait for what the older ones hold, and need not get it any more.
        for task in reversed(tasks):
            self.abort(task)

    def update(
        self,
        unit: LogicalUnit,
        attentions: Collection[Attention],
        aborts: Collection[NexusId] | None,
        then: Callable[[], None],
        refusal: ScsiError | None = None,
    ) -> None:
        """The shared state of ``unit`` has changed; call ``then`` when what is to be aborted for it has stopped.

        ``aborts`` are the nexuses that lose their tasks on the unit; None: all of them. ``refusal``: what the new state
        refuses ends with it, also what has begun.
        """
        if self.closed:
            self.calls.when_idle(then)
            return
        nexuses = {id(nexus): nexus for other, nexus in self._seats.values() if other is unit}.values()
        for nexus in nexuses:
            nexus.restricted = unit.restricts(nexus.id)
            for raised in attentions:
                if raised.nexus == nexus.id:
                    attention.establish(nexus.attentions, raised.reason)
        if refusal is not None:
            self._terminate(unit, refusal, then)
            return
        if not any(aborts is None or nexus.id in aborts for nexus in nexuses):
            then()
            return
        tasks = [task for task in self.tasks if self._unit_of(task.command.lun) is unit]
        for task in tasks:
            task.withdraw = None  # the authority has seen to those that wait there
        self.abort_all(tasks, then)
        self._order.advance()

    def _terminate(self, unit: LogicalUnit, refusal: ScsiError, then: Callable[[], None]) -> None:
        """End the tasks of ``unit`` with CHECK CONDITION when they have stopped, for a sanitize operation begins or
        the medium goes: not those that are executed all the same, nor those of which the authority decides."""
        tasks = [
            task
            for task in self.tasks
            if self._unit_of(task.command.lun) is unit
            and task.withdraw is None
            and not unit.executes(task.command.cdb[0])
        ]
        for task in tasks:
            if not task.aborted:
                task.when_ended(partial(self._fail_late, task.command, refusal))
        self.abort_all(tasks, then)
        self._order.advance()

    def _fail_late(self, command: ScsiCommand, refusal: ScsiError) -> None:
        if not self.closed:
            self._answers.fail(command, refusal)

    def renew(
        self,
        replaced: Mapping[LogicalUnit, LogicalUnit],
        then: Callable[[], None],
        *,
        luns: bool,
        other: Collection[LogicalUnit] = (),
    ) -> None:
        """The node has other units: those of ``replaced`` stand for the same as the ones before, on those in ``other``
        of them are other data, and ``luns`` tells that some have come or gone. Call ``then`` when nothing runs any more
        on one that has gone or was replaced."""
        if self.closed:
            self.calls.when_idle(then)
            return
        assert self.node is not None
        before = self._seats
        parameters = self.connection.parameters
        self.meter.turn(None)
        seats = self.node.seats(parameters.initiator_name, parameters.isid, parameters.target_portal_group_tag)
        nexuses = {replaced.get(unit, unit): nexus for unit, nexus in before.values()}
        self._seats = {form: (unit, nexuses.get(unit, nexus)) for form, (unit, nexus) in seats.items()}
        there = {unit for unit, _ in self._seats.values()} | replaced.keys()
        successors = {unit: self._seats[form][0] for form, (unit, _) in before.items() if form in self._seats}
        self._order.renew({old: new for old, new in successors.items() if old not in there} | dict(replaced))
        self._nobody = Nexus(luns=self.node.luns)
        tell_renewed(self._seats, nexuses, self.node.luns, changed=luns)
        for old, new in replaced.items():
            if new in nexuses and new in other:
                attention.establish(nexuses[new].attentions, Reason.MEDIUM_MAY_HAVE_CHANGED)
            if new in nexuses and (old.blocks, old.block_size) != (new.blocks, new.block_size):
                attention.establish(nexuses[new].attentions, Reason.CAPACITY_DATA_HAS_CHANGED)
        self._withdraw_from(before, there)
        self.settled(then)

    def _withdraw_from(self, before: Mapping[int, Seat], there: Collection[LogicalUnit]) -> None:
        """End what is under way on the units of ``before`` that are not ``there`` any more; what has not begun there
        begins on the unit that the LUN leads to now."""
        gone = [task for task in self.tasks if (seat := before.get(task.command.lun)) and seat[0] not in there]
        begun = [task for task in gone if not isinstance(task, HeldTask) or task.command.lun not in self._seats]
        tasks = [task for task in begun if task.withdraw is None]
        for task in tasks:
            if not task.aborted:
                refusal = ScsiError(Reason.LOGICAL_UNIT_NOT_SUPPORTED)
                task.when_ended(partial(self._fail_late, task.command, refusal))
        self.abort_all(tasks, self._order.advance)

    def settled(self, then: Callable[[], None]) -> None:
        """Call ``then`` when what has begun by now has ended."""
        when_all_ended(self.tasks.begun(), then)

    def shut(self, units: Collection[LogicalUnit], then: Callable[[], None]) -> None:
        """Begin no command to ``units`` until they are opened: they wait, within the command window, and may be
        aborted. Call ``then`` when what has begun there has ended, and every copy, which may be from or to any unit."""
        if self.closed:
            self.calls.when_idle(then)
            return
        for unit in {unit for unit, _ in self._seats.values()}.intersection(units):
            self._order.shut(unit)
        waits = [task for task in self.tasks.begun() if task.copies or self._unit_of(task.command.lun) in units]
        when_all_ended(waits, then)

    def open(self, units: Collection[LogicalUnit]) -> None:
        """Begin what has waited since ``shut``."""
        for unit in units:
            self._order.open(unit)
        self._order.advance()

    @property
    def nexus(self) -> NexusId | None:
        """The I_T nexus; None in a discovery session and before the login is over."""
        return next((nexus.id for _, nexus in self._seats.values()), None)

    def greet(self, told: Collection[str]) -> None:
        """Establish the unit attention that a session begins with.

        ``told`` are the units, by serial number, of whose last reset this nexus has heard: for them it was lost and has
        come back. The others say POWER ON, RESET, OR BUS DEVICE RESET, the code for whichever of these it was.
        """
        for unit, nexus in self._seats.values():
            known = unit.identity.serial in told
            reason = Reason.I_T_NEXUS_LOSS if known else Reason.POWER_ON_RESET_OR_BUS_DEVICE_RESET
            attention.establish(nexus.attentions, reason)

    def told(self) -> frozenset[str]:
        """The units of whose last reset this nexus has heard, for ``greet`` of its next session."""
        seats = self._seats.values()
        return frozenset(unit.identity.serial for unit, nexus in seats if not attention.reset_waits(nexus.attentions))

    def _unit_of(self, lun: int) -> LogicalUnit | None:
        seat = self._seats.get(lun)
        return None if seat is None else seat[0]

    # --- events -----------------------------------------------------------------------------------------------------

    def _take_lengths(self) -> None:
        """Look up, once and not per command, how much one PDU may carry."""
        parameters = self.connection.parameters
        self._longest_read = min(parameters.peer_max_recv_data_segment_length, parameters.max_burst_length)
        self._longest_write = parameters.first_burst_length if parameters.immediate_data else 0

    def _on_established(self, _: Established) -> None:
        parameters = self.connection.parameters
        self._take_lengths()
        if not parameters.discovery:  # a discovery session may name a target as well, and gets none
            node = self.node = self._node_of(parameters.target_name)
            self._seats = node.seats(parameters.initiator_name, parameters.isid, parameters.target_portal_group_tag)
            self._nobody = Nexus(luns=node.luns)
        self._established(self)

    def _on_command(self, command: ScsiCommand) -> None:
        seat = self._seats.get(command.lun)
        if seat is not self.meter.seat:
            self.meter.turn(seat)
        self.commands += 1
        if seat is None:
            self._on_absent(command)
            return
        unit, nexus = seat
        try:
            plan = unit.plan(command.cdb, nexus)
        except (ScsiError, BlockError, OSError) as error:
            self.other_commands += 1
            self._refuse(command, error)
            return
        if type(plan) is Read:
            self._read(command, unit, plan)
        else:
            if type(plan) is Write:
                self.write_commands += 1
            else:
                self.other_commands += 1
            self._starters[type(plan)](command, unit, plan)

    def _on_absent(self, command: ScsiCommand) -> None:
        """A command to a LUN that there is not."""
        if self.node is None:
            raise RejectError(RejectReason.PROTOCOL_ERROR, "a SCSI command in a discovery session")
        try:
            plan = self._absent.plan(command.cdb, self._nobody)
        except ScsiError as error:
            self._refuse(command, error)
            return
        assert isinstance(plan, Reply)
        data = plan.data
        self._after_unsolicited(command, lambda: self._deliver(command, data))

    # --- plans ------------------------------------------------------------------------------------------------------

    def _read(self, command: ScsiCommand, unit: LogicalUnit, plan: Read) -> None:
        length = plan.length
        flags = command.flags
        connection = self.connection
        if (
            length == command.expected_data_transfer_length
            and length <= self._longest_read
            and flags & _DIRECTION == _WHOLE_READ
            and connection.outbox.queued < QUEUE_LIMIT
        ):
            device = unit.device
            try:
                if device.lends and not connection.data_digest:
                    connection.data_in_lend(command.initiator_task_tag, device.view(plan.offset, length))
                else:
                    device.read_now(connection.data_in_room(length), plan.offset)
                    connection.data_in_commit(command.initiator_task_tag, length)
                self.read_bytes += length
                return
            except BlockingIOError:
                pass
            except (BlockError, OSError) as error:
                self._answers.fail(command, error)
                return
        allowed = expected_length(command, READ)
        self.read_bytes += min(length, allowed)
        if not allowed:
            self._after_unsolicited(command, lambda: self._answers.good(command, length, READ))
        else:
            self._data_in.read(command, unit.device, plan.offset, length, allowed)

    def _write(self, command: ScsiCommand, unit: LogicalUnit, plan: Write) -> None:
        length = plan.length
        data = command.data
        flags = command.flags
        if (
            len(data) == length
            and length == command.expected_data_transfer_length
            and length <= self._longest_write
            and flags & _DIRECTION == _WHOLE_WRITE
            and not plan.fua
        ):
            try:
                # Data that is there is a slice of the receive buffer.
                unit.device.write_now(data, plan.offset)  # type: ignore[arg-type]
                self.connection.good(command.initiator_task_tag)
                self.written_bytes += length
                return
            except BlockingIOError:
                pass
            except (BlockError, OSError) as error:
                self._answers.fail(command, error, writes=True, sent=length)
                return
        self._write_later(command, unit, plan)

    def _write_later(self, command: ScsiCommand, unit: LogicalUnit, plan: Write) -> None:
        """A write that takes several PDUs, the pool, or has a residual."""
        device = unit.device
        allowed = expected_length(command, WRITE)
        # Blocks that are not whole are not written; the residual says so.
        wanted = min(plan.length, allowed - allowed % device.block_size)
        self.written_bytes += wanted

        def write(task: WriteTask, data: memoryview) -> bytes:
            if data:
                device.write(data, plan.offset + task.gathered_start, plan.fua)
            elif plan.fua and wanted:
                device.flush()
            return b""

        def good(_: Data) -> None:
            self._answers.good(command, plan.length, WRITE)

        def finish(task: WriteTask) -> None:
            gathered = memoryview(task.gathered)
            if (gathered or plan.fua) and not device.inline:
                self.calls.in_pool(task, device, lambda: write(task, gathered), good, writes=True)
            else:
                self.calls.conclude(task, lambda: write(task, gathered), good, writes=True)

        streams = device if not plan.fua else None
        self._data_out.collect(command, wanted, finish, streams, plan.offset)

    def _reply(self, command: ScsiCommand, _: LogicalUnit, plan: Reply) -> None:
        if plan.status:
            self._after_unsolicited(command, lambda: self._answers.status(command, plan.status))
        else:
            self._after_unsolicited(command, lambda: self._deliver(command, plan.data))

    def _job(self, command: ScsiCommand, unit: LogicalUnit, plan: Job) -> None:
        """Gather the parameters, then run the job here or in the pool."""
        allowed = expected_length(command, WRITE)
        if plan.exact and allowed != plan.parameter_length:
            self._refuse(command, ScsiError(Reason.INVALID_FIELD_IN_CDB))
            return
        device = unit.device
        here = device.inline and plan.cost <= INLINE_COST

        def good(result: Data) -> None:
            if plan.then is not None:
                command.flags |= FINAL  # whatever was announced with it has come
                if isinstance(plan.then, Read):
                    self._read(command, unit, plan.then)
                else:
                    self._ask(command, unit, plan.then)
            elif result:
                self._deliver(command, result)
            elif plan.status:
                self._answers.status(command, plan.status)
            else:
                self._answers.good(command, plan.parameter_length, WRITE)

        def finish(task: WriteTask) -> None:
            parameters = memoryview(task.gathered)

            def run() -> Data:
                return plan.run(parameters)

            with contextlib.ExitStack() as held:
                if here and holds(held, device, plan.exclusive):
                    self.calls.conclude(task, run, good, writes=plan.writes)
                    return
            task.cancel = plan.cancel
            lock = device.lock if plan.locks else NOTHING_HELD
            self.calls.in_pool(
                task, device, run, good, writes=plan.writes, exclusive=plan.exclusive, lock=lock, patience=JOB_PATIENCE
            )

        self._data_out.collect(command, min(plan.parameter_length, allowed), finish)

    def _ask(self, command: ScsiCommand, unit: LogicalUnit, plan: Ask) -> None:
        """Gather the parameters, then let the authority execute the command.

        An abort of the initiator's withdraws it, and waits for the authority's word on whether it has happened. One of
        the authority's does not wait: what waits there for a barrier may be what asked for the abort.
        """
        if plan.parameter_length > PARAMETER_LIMIT:
            self._refuse(command, ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR))
            return
        _, nexus = self._seats[command.lun]

        def finish(task: WriteTask) -> None:
            def done(error: ScsiError | None) -> None:
                task.withdraw = None
                if not self.closed and self.tasks.get(command.initiator_task_tag) is task:
                    self.calls.answer(task, b"", error, good, writes=True)
                    self._order.advance()

            parameters = bytes(task.gathered)
            task.withdraw = self._authority.ask(unit.identity.serial, nexus.id, command.cdb, parameters, done)

        def good(_: Data) -> None:
            self._answers.good(command, plan.parameter_length, WRITE)

        self._data_out.collect(command, min(plan.parameter_length, expected_length(command, WRITE)), finish)

    # --- ends -------------------------------------------------------------------------------------------------------

    def _deliver(self, command: ScsiCommand, data: Data) -> None:
        """GOOD with ``data``, cut to what the initiator expects."""
        expected = expected_length(command, READ)
        length = min(len(data), expected)
        if not length:
            self._answers.good(command, len(data), READ)
        elif length <= self._longest_read and self.connection.outbox.queued < QUEUE_LIMIT:
            segment = Segment(0, length, 0, final=True, last=True)
            self.connection.data_in(command.initiator_task_tag, segment, memoryview(data)[:length], expected, len(data))
        else:
            self._data_in.reply(command, data, length)

    def _refuse(self, command: ScsiCommand, error: Exception) -> None:
        """A command that fails before it moves data."""
        self._after_unsolicited(command, lambda: self._answers.fail(command, error))

    def _after_unsolicited(self, command: ScsiCommand, answer: Callable[[], None]) -> None:
        """Answer a command that wants no data-out; unsolicited data that it announced is awaited before."""
        if announces_data(command):
            self._data_out.collect(command, 0, lambda task: self._data_out.end(task, answer))
        else:
            answer()
