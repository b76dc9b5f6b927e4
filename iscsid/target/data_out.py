"""Data from the initiator that does not come whole with its command (RFC 7143 4.2.5.2, 11.7, 11.8).

A WRITE to a device that takes data in the worker's loop is written as it comes, straight from the receive buffer.
Whatever else wants data-out (a write for the pool, a parameter list) has it gathered first; how much a session may have
granted by R2T to be gathered is bounded, the rest of its commands waits without memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from iscsid.block.guard import Guarded
from iscsid.errors import BlockError, ScsiError
from iscsid.scsi.sense import Reason
from iscsid.session.connection import TargetConnection
from iscsid.session.transfer import TransferError, WriteTransfer
from iscsid.target.answers import Answers
from iscsid.target.task import HeldTask, Task, TaskSet
from iscsid.wire.const import FINAL, RESERVED_TAG, WRITE
from iscsid.wire.framer import DamagedPdu
from iscsid.wire.pdu import ScsiCommand, ScsiDataOut

GATHER_LIMIT = 64 << 20  # bytes of data-out that one session may have asked for and not yet used
_ANNOUNCES = int(FINAL | WRITE)


class WriteTask(Task):
    """A command that waits for data-out.

    ``device`` and ``offset`` are where the data goes while it comes; without a device it stays in ``gathered``, which
    holds what came from ``gathered_start`` on. ``finish`` is called with the task when everything is there.
    ``reserved`` bytes of the session's limit are taken; ``waiting`` are those for which there was no room in it.
    """

    __slots__ = ("device", "error", "finish", "gathered", "gathered_start", "offset", "reserved", "transfer", "waiting")

    def __init__(
        self,
        command: ScsiCommand,
        transfer: WriteTransfer,
        finish: Callable[[WriteTask], None],
        device: Guarded | None = None,
        offset: int = 0,
    ) -> None:
        super().__init__(command)
        self.transfer = transfer
        self.finish = finish
        self.device = device
        self.offset = offset
        self.gathered = bytearray()  # grows as the data comes, which is in order
        self.gathered_start = 0
        self.reserved = 0
        self.waiting = False
        self.error: Exception | None = None


class DataOutCollector:
    """The commands of one session that wait for data-out."""

    __slots__ = ("_answers", "_connection", "_gathering", "_tags", "_tasks", "_waiting")

    def __init__(self, connection: TargetConnection, tasks: TaskSet, answers: Answers) -> None:
        self._connection = connection
        self._tasks = tasks
        self._answers = answers
        self._tags: Iterator[int] = _transfer_tags()
        self._gathering = 0
        self._waiting: deque[WriteTask] = deque()

    def collect(
        self,
        command: ScsiCommand,
        wanted: int,
        finish: Callable[[WriteTask], None],
        device: Guarded | None = None,
        offset: int = 0,
    ) -> None:
        """Collect ``wanted`` bytes of data-out, then call ``finish``, which has to end the task.

        The immediate data in ``command`` is taken; unsolicited data that was announced is awaited even where nothing is
        wanted. With a ``device`` the data is written at ``offset`` as it comes.
        """
        data = command.data
        parameters = self._connection.parameters
        limit = min(parameters.first_burst_length, command.expected_data_transfer_length)
        transfer = WriteTransfer(parameters, wanted, len(data), announces_data(command), limit)
        task = WriteTask(command, transfer, finish, device, offset)
        self._tasks.add(task)
        immediate_limit = limit if parameters.immediate_data else 0
        if len(data) > immediate_limit or (transfer.unsolicited and parameters.initial_r2t):
            self._abandon(task, ScsiError(Reason.UNEXPECTED_UNSOLICITED_DATA))
            return
        if data:
            self._store(task, 0, data)
        self._go_on(task)

    def data_out(self, pdu: ScsiDataOut) -> None:
        """Take one Data-Out PDU. What comes for a task that is over, or never was, is dropped: it may be on its way
        when its task ends."""
        task = self._tasks.get(pdu.initiator_task_tag)
        if not isinstance(task, WriteTask) or task.running:
            if isinstance(task, HeldTask):
                task.keep(task, pdu)
            return
        data = pdu.data
        offset = pdu.buffer_offset
        try:
            task.transfer.accept(pdu.target_transfer_tag, pdu.data_sn, offset, len(data), pdu.final)
        except TransferError:
            self._abandon(task, ScsiError(Reason.DATA_PHASE_ERROR))
            return
        self._store(task, offset, data)
        self._go_on(task)

    def damaged(self, damage: DamagedPdu) -> None:
        """A PDU came with a wrong data digest and was rejected; the task that lost data by it fails (section 7.8).

        Nothing is to be done for a command that lost its immediate data: the initiator sends all of it again.
        """
        if isinstance(damage.pdu, ScsiDataOut):
            task = self._tasks.get(damage.pdu.initiator_task_tag)
            if isinstance(task, WriteTask) and not task.running:
                self._abandon(task, ScsiError(Reason.PROTOCOL_SERVICE_CRC_ERROR))
            elif isinstance(task, HeldTask):
                task.fail(task, ScsiError(Reason.PROTOCOL_SERVICE_CRC_ERROR))

    def _go_on(self, task: WriteTask) -> None:
        transfer = task.transfer
        if transfer.complete:
            self._finish(task)
        elif transfer.unsolicited or task.waiting:
            return
        elif task.reserved or (task.device is not None and task.device.inline) or self._reserve(task):
            # A device that is not inline may refuse at any time, and everything has to be gathered from there on.
            self._grant(task)

    def _grant(self, task: WriteTask) -> None:
        for grant in task.transfer.grants(self._tags):
            self._connection.ready_to_transfer(task.command, grant)

    def _reserve(self, task: WriteTask) -> bool:
        """Let ``task`` ask for what it gathers, now or when others have finished."""
        if self._waiting or not self._fits(task):
            task.waiting = True
            self._waiting.append(task)
            return False
        task.reserved = task.transfer.wanted
        self._gathering += task.reserved
        return True

    def _fits(self, task: WriteTask) -> bool:
        """Whether there is room for ``task``; for one alone there always is."""
        return not self._gathering or self._gathering + task.transfer.wanted <= GATHER_LIMIT

    def _release(self, task: WriteTask) -> None:
        self._gathering -= task.reserved
        task.reserved = 0
        while self._waiting and self._fits(self._waiting[0]):
            first = self._waiting.popleft()
            first.waiting = False
            first.reserved = first.transfer.wanted
            self._gathering += first.reserved
            self._grant(first)

    def _store(self, task: WriteTask, offset: int, data: bytes | memoryview) -> None:
        """Put data where it belongs; what is more than the command wants is dropped (it is reported as residual)."""
        room = task.transfer.wanted - offset
        if len(data) > room:
            data = data[: max(room, 0)]
        if not data or task.error is not None:
            return
        device = task.device
        if device is None:
            task.gathered += data
        else:
            self._write_through(task, device, data)

    def _write_through(self, task: WriteTask, device: Guarded, data: bytes | memoryview) -> None:
        """Write the whole blocks that are there; an initiator may cut its data anywhere, so a part of one may be left.

        ``gathered`` is made anew where it changes: what the device raised may still hold a view of the old one.
        """
        if task.gathered:
            data = bytes(task.gathered) + data
        whole = len(data) - len(data) % device.block_size
        try:
            if whole:
                device.write_now(memoryview(data)[:whole], task.offset + task.gathered_start)
        except BlockingIOError:
            # The device would have to wait: gather this and what is still to come, for the pool.
            task.device = None
            whole = 0
        except (BlockError, OSError) as error:
            task.error = error
            task.transfer.stop()
            return
        task.gathered_start += whole
        if task.gathered or whole < len(data):
            task.gathered = bytearray(data[whole:])

    def _finish(self, task: WriteTask) -> None:
        error = task.error
        if error is None:
            task.finish(task)
            return
        sent = task.transfer.received
        self.end(task, lambda: self._answers.fail(task.command, error, writes=True, sent=sent))

    def _abandon(self, task: WriteTask, error: ScsiError) -> None:
        """The initiator broke the rules of the transfer: the task fails at once, whatever still comes is dropped."""
        self.end(task, lambda: self._answers.fail(task.command, error, sent=task.transfer.received))

    def end(self, task: WriteTask, answer: Callable[[], None] | None = None) -> None:
        """The task is over and ``answer`` answers it; then what it held goes to those that wait.

        In this order: an answer that has to queue counts against the window again, and an R2T in between would tell of
        a MaxCmdSN that is taken back.
        """
        if task.waiting:
            self._waiting.remove(task)
        self._tasks.end(task)
        if answer is not None:
            answer()
        self._release(task)


def announces_data(command: ScsiCommand) -> bool:
    """Whether unsolicited Data-Out PDUs follow a command; without W the F bit says nothing (section 11.3.1)."""
    return command.flags & _ANNOUNCES == WRITE


def _transfer_tags() -> Iterator[int]:
    """Yield Target Transfer Tags for ever (itertools.cycle would keep every one of them)."""
    while True:
        yield from range(RESERVED_TAG)
