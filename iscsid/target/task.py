"""One SCSI command that could not be finished in the call that brought it, and the set of them.

A command that is done at once never becomes a Task. Every Task counts against the command window until ``TaskSet.end``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol

from iscsid.block.guard import Guarded
from iscsid.errors import RejectError, ScsiError
from iscsid.scsi.const import Opcode
from iscsid.scsi.state import NexusId
from iscsid.session.connection import TargetConnection
from iscsid.wire.const import RejectReason
from iscsid.wire.pdu import ScsiCommand, ScsiDataOut

Run = Callable[[], Any]
Done = Callable[[Any, Exception | None], None]
Submit = Callable[[Run, Done], None]
"""``submit(run, done)``: call ``run`` in a thread of the pool, then ``done(result, error)`` in the worker's loop.

It never calls ``done`` before it returns.
"""


class Authority(Protocol):
    """Where the state is kept that several workers share; ``done`` is called later, in the worker's loop."""

    def ask(
        self, unit: str, nexus: NexusId, cdb: bytes, data: bytes, done: Callable[[ScsiError | None], None]
    ) -> Callable[[], None]:
        """Execute a command that changes the state of ``unit``, a serial number; see ``scsi.plan.Ask``.

        The function that is returned withdraws it: ``done`` is called soon, and what has not happened by then never
        does. It does not go before what aborts tasks of this nexus (``Engine.update``).
        """

    def reset(self, unit: str, nexus: NexusId, function: int, done: Callable[[bool], None]) -> None:
        """Perform a task management function that reaches over sessions; ``unit`` "": on all units of the target."""


class DeviceCall:
    """A ``run`` for the pool that is inside ``device``: the pool bounds how many there are, and how long each may take.

    ``writes``: what it leaves behind when it is given up is unknown. ``patience``: how many times ``io_timeout`` it may
    take, for jobs that are made of many calls.
    """

    __slots__ = ("_run", "device", "patience", "writes")

    def __init__(self, device: Guarded, run: Run, *, writes: bool, patience: int = 1) -> None:
        self.device = device
        self.writes = writes
        self.patience = patience
        self._run = run

    def __call__(self) -> Any:
        return self._run()


IMMEDIATE_LIMIT = 64  # unfinished immediate commands, which no window bounds (RFC 7143 4.2.2.1)


class Task:
    """What every unfinished command has.

    Attributes:
        command: its PDU; the data segment is not kept.
        running: a call for it is in the pool.
        aborted: nothing more is to be sent for it.
        cancel: asks what runs in the pool to end soon; None where it cannot be asked.
        withdraw: asks the authority, for whose answer the task waits, not to execute it; None where it waits for none.
        released: the command window does not count it any more.
    """

    __slots__ = ("_on_end", "aborted", "cancel", "command", "released", "running", "withdraw")

    def __init__(self, command: ScsiCommand) -> None:
        self.command = command
        self.running = False
        self.aborted = False
        self.cancel: Callable[[], None] | None = None
        self.withdraw: Callable[[], None] | None = None
        self.released = command.immediate
        self._on_end: list[Callable[[], None]] = []

    def when_ended(self, then: Callable[[], None]) -> None:
        """Call ``then`` when the task has left the set and nothing of it runs any more."""
        self._on_end.append(then)

    @property
    def copies(self) -> bool:
        """Whether it may be in the devices of other units than its own."""
        return self.command.cdb[0] == Opcode.THIRD_PARTY_COPY_OUT

    def ended(self) -> None:
        """The set's word that the task is over."""
        for then in self._on_end:
            then()
        self._on_end.clear()


def when_all_ended(tasks: Collection[Task], then: Callable[[], None]) -> None:
    """Call ``then``, at once or later, when each of ``tasks`` has ended."""
    left = len(tasks)

    def ended() -> None:
        nonlocal left
        left -= 1
        if not left:
            then()

    if not tasks:
        then()
    for task in tasks:
        task.when_ended(ended)


class HeldTask(Task):
    """A command that has not begun: it waits for its turn (``target.order``).

    ``data`` is the immediate data, ``data_outs`` the unsolicited PDUs that have come since, ``size`` their bytes.
    ``keep(task, pdu)`` takes one more of them, ``fail(task, error)`` ends the task.
    """

    __slots__ = ("data", "data_outs", "fail", "keep", "size")

    def __init__(
        self,
        command: ScsiCommand,
        data: memoryview,
        keep: Callable[[HeldTask, ScsiDataOut], None],
        fail: Callable[[HeldTask, Exception], None],
    ) -> None:
        super().__init__(command)
        self.data = data
        self.data_outs: list[ScsiDataOut] = []
        self.size = 0
        self.keep = keep
        self.fail = fail


class TaskSet:
    """The unfinished commands of one nexus, by Initiator Task Tag."""

    __slots__ = ("_connection", "_immediate", "_tasks")

    def __init__(self, connection: TargetConnection) -> None:
        self._connection = connection
        self._tasks: dict[int, Task] = {}
        self._immediate = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(list(self._tasks.values()))

    def begun(self) -> list[Task]:
        """Those that do not wait for their turn."""
        return [task for task in self._tasks.values() if not isinstance(task, HeldTask)]

    def get(self, tag: int) -> Task | None:
        return self._tasks.get(tag)

    def add(self, task: Task) -> None:
        """Take a task in; the data segment of its command is not kept.

        Raises RejectError for a tag that is in use, and for one immediate command too many. The others are bounded by
        the window: the connection drops what is beyond it.
        """
        command = task.command
        if command.initiator_task_tag in self._tasks:
            raise RejectError(RejectReason.TASK_IN_PROGRESS, f"task tag {command.initiator_task_tag:#x} is in use")
        if command.immediate:
            if self._immediate == IMMEDIATE_LIMIT:
                raise RejectError(RejectReason.IMMEDIATE_COMMAND_REJECT, "too many immediate commands")
            self._immediate += 1
        else:
            self._connection.window.began()
        command.data = b""
        self._tasks[command.initiator_task_tag] = task

    def release(self, task: Task) -> None:
        """The PDU with the status comes next, and the MaxCmdSN that it carries admits a command more."""
        if not task.released:
            task.released = True
            self._connection.window.ended()

    def end(self, task: Task) -> None:
        """The task is finished: its answer comes next, or has gone before, or was cut off by an abort."""
        del self._tasks[task.command.initiator_task_tag]
        if task.command.immediate:
            self._immediate -= 1
        self.release(task)
        task.ended()
