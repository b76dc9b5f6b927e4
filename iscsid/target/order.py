"""In which order the commands of one session begin (SAM-5 8.6, task attributes).

Each I_T nexus has a task set of its own on each logical unit (TST 001b in the control mode page), so the commands of
other sessions are of no concern here. SIMPLE commands begin when they come, and that is all that an initiator usually
sends: the engine asks for nothing of this as long as ``lines`` is empty and the command is a SIMPLE one.

What has to wait is held as a task, which counts against the command window, can be aborted and asked for, and begins
as if it had just come. Only then its unit attention, its reservation and its range are looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

from iscsid.errors import ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.lu import LogicalUnit
from iscsid.scsi.sense import Reason
from iscsid.target.answers import Answers
from iscsid.target.task import HeldTask, Task, TaskSet
from iscsid.wire.const import ATTRIBUTES, TaskAttribute
from iscsid.wire.pdu import ScsiCommand, ScsiDataOut

HELD_LIMIT = 16 << 20  # bytes of data that came with the held commands of one session; beyond: TASK SET FULL
HELD_PDUS = 1024  # Data-Out PDUs of one held command: 64 KiB in pieces of 64 bytes

NOT_SIMPLE = int(ATTRIBUTES) & ~int(TaskAttribute.SIMPLE)
"""Bits of byte 1 of a command that no untagged and no SIMPLE one has; the reserved attributes have one of them."""

_ORDERED, _HEAD_OF_QUEUE = int(TaskAttribute.ORDERED), int(TaskAttribute.HEAD_OF_QUEUE)


class _Line:
    """The commands of one unit where order counts.

    ``waiting`` are held, oldest first. ``firsts`` have begun, and nothing may begin before they have ended: ORDERED and
    HEAD OF QUEUE commands. ``shut``: nothing begins at all, for the medium is being changed.
    """

    __slots__ = ("firsts", "shut", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[HeldTask] = deque()
        self.firsts: list[Task] = []
        self.shut = False


class TaskOrder:
    """The task attributes of one session.

    ``unit_of`` gives the logical unit of a raw LUN field. ``begin`` executes a command, ``refuse`` ends one that has
    not begun, ``data_out`` takes a Data-Out PDU of one that has.

    Attributes:
        lines: the units where a command waits, or where one has begun that others must wait for. Always this dict.
    """

    __slots__ = ("_answers", "_begin", "_data_out", "_held", "_refuse", "_tasks", "_unit_of", "lines")

    def __init__(
        self,
        tasks: TaskSet,
        answers: Answers,
        unit_of: Callable[[int], LogicalUnit | None],
        begin: Callable[[ScsiCommand], None],
        refuse: Callable[[ScsiCommand, Exception], None],
        data_out: Callable[[ScsiDataOut], None],
    ) -> None:
        self.lines: dict[LogicalUnit, _Line] = {}
        self._tasks = tasks
        self._answers = answers
        self._unit_of = unit_of
        self._begin = begin
        self._refuse = refuse
        self._data_out = data_out
        self._held = 0  # bytes

    def take(self, command: ScsiCommand) -> None:
        """Begin a command that has just come, or hold it until its turn comes. ``advance`` is to be called soon after.

        There is no ACA condition here ever, so none may have the ACA attribute (SAM-5 8.6.5), nor a reserved one.
        """
        attribute = command.attributes
        if attribute > _HEAD_OF_QUEUE:
            self._refuse(command, ScsiError(Reason.INVALID_MESSAGE_ERROR))
            return
        unit = self._unit_of(command.lun)
        if unit is None:
            self._begin(command)
            return
        line = self.lines.setdefault(unit, _Line())
        if attribute == _HEAD_OF_QUEUE or line.shut:
            waits = line.shut
        elif attribute == _ORDERED:
            waits = bool(line.waiting) or self._begun(unit)
        else:
            waits = bool(line.waiting) or self._unfinished(line)
        if waits:
            self._hold(line, command)
        else:
            self._start(line, command)

    def advance(self) -> None:
        """Begin what nothing stands before any more. To be called when tasks may have ended and are answered."""
        for unit, line in list(self.lines.items()):
            while line.waiting and not line.shut and not self._unfinished(line):
                first = line.waiting[0]
                if first.command.attributes == _ORDERED and self._begun(unit):
                    break
                self._resume(line, first)
            # Looked up again: the session may have been closed by what has begun.
            if not (line.waiting or line.shut or self._unfinished(line)) and self.lines.get(unit) is line:
                del self.lines[unit]

    def shut(self, unit: LogicalUnit) -> None:
        """Let no command to ``unit`` begin any more, whatever its attribute, until it is opened."""
        self.lines.setdefault(unit, _Line()).shut = True

    def open(self, unit: LogicalUnit) -> None:
        """Let the commands to ``unit`` begin again. ``advance`` is to be called soon after."""
        if (line := self.lines.get(unit)) is not None:
            line.shut = False

    def drop(self, task: HeldTask) -> None:
        """A held command is over without having begun."""
        for line in self.lines.values():
            if task in line.waiting:
                line.waiting.remove(task)
        self._forget(task)

    def renew(self, replaced: Mapping[LogicalUnit, LogicalUnit]) -> None:
        """Those of ``replaced`` stand for the units before: what waits and what runs there keeps its place in line."""
        for old, new in replaced.items():
            if (line := self.lines.pop(old, None)) is not None:
                self.lines[new] = line

    def close(self) -> None:
        """The session is over."""
        for line in self.lines.values():
            line.waiting.clear()
        self.lines.clear()

    # --- within -----------------------------------------------------------------------------------------------------

    def _unfinished(self, line: _Line) -> bool:
        """Whether a command that nothing may overtake has begun and not ended."""
        get = self._tasks.get
        line.firsts = [task for task in line.firsts if get(task.command.initiator_task_tag) is task]
        return bool(line.firsts)

    def _begun(self, unit: LogicalUnit) -> bool:
        """Whether any command to ``unit`` has begun and not ended."""
        return any(not isinstance(task, HeldTask) and self._unit_of(task.command.lun) is unit for task in self._tasks)

    def _start(self, line: _Line, command: ScsiCommand) -> None:
        self._begin(command)
        task = self._tasks.get(command.initiator_task_tag)
        if command.flags & NOT_SIMPLE and task is not None and task.command is command:
            line.firsts.append(task)

    def _hold(self, line: _Line, command: ScsiCommand) -> None:
        size = len(command.data)
        if not self._fits(size):
            self._refuse(command, ScsiError(Status.TASK_SET_FULL))
            return
        task = HeldTask(command, memoryview(bytes(command.data)), self._keep, self._fail)
        self._tasks.add(task)
        task.size = size
        self._held += size
        if command.attributes == _HEAD_OF_QUEUE:
            line.waiting.appendleft(task)
        else:
            line.waiting.append(task)

    def _fits(self, size: int) -> bool:
        """Whether ``size`` bytes more may be held; alone they always may."""
        return not self._held or self._held + size <= HELD_LIMIT

    def _resume(self, line: _Line, task: HeldTask) -> None:
        line.waiting.popleft()
        self._forget(task)
        command = task.command
        command.data = task.data
        self._start(line, command)
        for pdu in task.data_outs:
            self._data_out(pdu)

    def _forget(self, task: HeldTask) -> None:
        self._held -= task.size
        self._tasks.end(task)

    def _keep(self, task: HeldTask, pdu: ScsiDataOut) -> None:
        """Unsolicited data of a held command has come."""
        size = len(pdu.data)
        if not self._fits(size) or len(task.data_outs) == HELD_PDUS:
            self._fail(task, ScsiError(Status.TASK_SET_FULL))
            return
        pdu.data = bytes(pdu.data)
        task.data_outs.append(pdu)
        task.size += size
        self._held += size

    def _fail(self, task: HeldTask, error: Exception) -> None:
        """A held command ends, because of what became of its data."""
        self.drop(task)
        self._answers.fail(task.command, error)
