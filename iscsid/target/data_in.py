"""Data for the initiator that does not go out in the call that asked for it.

A read comes here when it is longer than one PDU, when the outbox is full, or when its data is not at hand. Its PDUs are
made one at a time, and only while less than ``QUEUE_LIMIT`` bytes wait to be sent: so a slow reader holds back its own
reads, and a read of any length needs memory for one PDU, or for one piece from the pool.
"""

from __future__ import annotations

from collections import deque

from iscsid.block.guard import Guarded
from iscsid.errors import BlockError
from iscsid.session.connection import TargetConnection
from iscsid.session.transfer import DataInPlan, Segment
from iscsid.target.answers import Answers
from iscsid.target.task import DeviceCall, Submit, Task, TaskSet
from iscsid.wire.pdu import ScsiCommand

QUEUE_LIMIT = 1 << 20  # bytes in the outbox from which on reads wait
PIECE = 1 << 20  # what one call in the pool reads at most
MAX_PIECES = 16  # pieces of one session that are in the pool or wait to be sent


class ReadTask(Task):
    """A command with data-in under way.

    ``length`` is what the command delivers; ``plan`` has what the initiator takes of it. ``piece`` is memory that holds
    the data from ``piece_start`` on: all of it when there is no device to ask for more.
    """

    __slots__ = ("device", "length", "offset", "piece", "piece_start", "plan")

    def __init__(
        self, command: ScsiCommand, device: Guarded | None, offset: int, length: int, plan: DataInPlan
    ) -> None:
        super().__init__(command)
        self.device = device
        self.offset = offset
        self.length = length
        self.plan = plan
        self.piece: memoryview | None = None
        self.piece_start = 0


class DataInQueue:
    """The reads of one session that wait for room in the outbox or for the pool."""

    __slots__ = ("_answers", "_connection", "_pieces", "_ready", "_starved", "_submit", "_tasks")

    def __init__(self, connection: TargetConnection, tasks: TaskSet, answers: Answers, submit: Submit) -> None:
        self._connection = connection
        self._tasks = tasks
        self._answers = answers
        self._submit = submit
        self._ready: deque[ReadTask] = deque()
        self._starved: deque[ReadTask] = deque()  # need the pool, and MAX_PIECES are under way
        self._pieces = 0

    def read(self, command: ScsiCommand, device: Guarded, offset: int, length: int, allowed: int) -> None:
        """Begin to read ``length`` bytes, of which the initiator takes ``allowed`` (> 0)."""
        plan = DataInPlan(self._connection.parameters, min(length, allowed))
        self._start(ReadTask(command, device, offset, length, plan))

    def reply(self, command: ScsiCommand, data: bytes | bytearray, allowed: int) -> None:
        """Begin to send ``data``, of which the initiator takes ``allowed`` (> 0) bytes."""
        plan = DataInPlan(self._connection.parameters, min(len(data), allowed))
        task = ReadTask(command, None, 0, len(data), plan)
        task.piece = memoryview(data)
        self._start(task)

    def _start(self, task: ReadTask) -> None:
        self._tasks.add(task)
        self._ready.append(task)
        self.pump()

    def abort(self, task: ReadTask) -> None:
        """End a task that is not in the pool; what was sent of it stands, no status follows."""
        for queue in (self._ready, self._starved):
            if task in queue:
                queue.remove(task)
        self._end(task)

    def pump(self) -> None:
        """Make PDUs as long as there is room for them. To be called when the outbox has shrunk."""
        ready = self._ready
        outbox = self._connection.outbox
        while ready and outbox.queued < QUEUE_LIMIT:
            # Taken out first: at its end another may begin, and come here in the middle of it.
            task = ready.popleft()
            if self._advance(task):
                ready.appendleft(task)

    def _advance(self, task: ReadTask) -> bool:
        """Send one PDU of ``task``; return whether it has more to send now."""
        try:
            if task.piece is not None:
                self._send_piece(task, task.piece)
            elif task.device is not None:
                self._send_from_device(task, task.device)
        except BlockingIOError:
            self._starved.append(task)
            self._fetch_next()
            return False
        except (BlockError, OSError) as error:
            self._fail(task, error)
            return False
        if task.plan.offset == task.plan.length:
            self._end(task)
            return False
        return True

    def _send_piece(self, task: ReadTask, piece: memoryview) -> None:
        plan = task.plan
        start = plan.offset - task.piece_start
        segment = self._take(task, len(piece) - start)
        end = start + segment.length
        command = task.command
        self._connection.data_in(
            command.initiator_task_tag,
            segment,
            piece[start:end],
            command.expected_data_transfer_length,
            task.length,
        )
        if end == len(piece):
            self._drop_piece(task)

    def _send_from_device(self, task: ReadTask, device: Guarded) -> None:
        """Read the next PDU's data where it is sent from, or lend it; BlockingIOError when it is not at hand."""
        plan = task.plan
        connection = self._connection
        command = task.command
        expected = command.expected_data_transfer_length
        offset = task.offset + plan.offset
        # Devices move whole blocks; an initiator that expects half of one gets it cut from a piece.
        length = plan.next_length()
        if length % device.block_size:
            raise BlockingIOError
        if device.lends and not connection.data_digest:
            data = device.view(offset, length)
            connection.data_in(command.initiator_task_tag, self._take(task, length), data, expected, task.length)
        else:
            device.read_now(connection.data_in_room(length), offset)
            segment = self._take(task, length)
            connection.data_in_commit_segment(command.initiator_task_tag, segment, expected, task.length)

    def _take(self, task: ReadTask, length: int) -> Segment:
        """The next PDU, of ``length`` bytes at most, which goes out now."""
        segment = task.plan.take(length)
        if segment.last:
            self._tasks.release(task)
        return segment

    def _fetch_next(self) -> None:
        """Give the pool what it may have of the reads that wait for it."""
        while self._starved and self._pieces < MAX_PIECES:
            self._fetch(self._starved.popleft())

    def _fetch(self, task: ReadTask) -> None:
        device = task.device
        assert device is not None
        start = task.plan.offset
        # Up to the block that ends the transfer, however little of it is taken.
        length = min(PIECE, -(-task.plan.length // device.block_size) * device.block_size - start)
        piece = memoryview(bytearray(length))
        offset = task.offset + start

        def run() -> None:
            with device.lock:
                device.read_into(piece, offset)

        def done(_: object, error: Exception | None) -> None:
            task.running = False
            if error is None and not task.aborted:
                task.piece = piece
                task.piece_start = start
                self._ready.append(task)
            else:
                self._drop_piece(task)
                self._fail(task, error)
            self.pump()

        self._pieces += 1
        task.running = True
        self._submit(DeviceCall(device, run, writes=False), done)

    def _drop_piece(self, task: ReadTask) -> None:
        task.piece = None
        if task.device is not None:
            self._pieces -= 1
            self._fetch_next()

    def _fail(self, task: ReadTask, error: Exception | None) -> None:
        """End a task by an error, or quietly when it was aborted; what was sent of it stands."""
        self._end(task)
        if error is not None and not task.aborted:
            self._answers.fail(task.command, error, sent=task.plan.offset, exp_data_sn=task.plan.data_sn)

    def _end(self, task: ReadTask) -> None:
        if task.piece is not None:
            self._drop_piece(task)
        self._tasks.end(task)
