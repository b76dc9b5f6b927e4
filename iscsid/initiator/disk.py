"""A disk of a target, for blocking callers; and discovery.

    with open_disk("iscsi://192.0.2.1/iqn.2026-11.org.example:disk0/0") as disk:
        disk.write(0, data)
        disk.flush()

Every method may be called from any thread. What fails raises an exception under ``errors.InitiatorError``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Self

from iscsid.errors import InitiatorError, ManagementFailed, SenseError, Unsupported
from iscsid.initiator import commands
from iscsid.initiator.client import Client, place_of
from iscsid.initiator.commands import BlockStatus, Capacity, Inquiry, Registrations, Reservation
from iscsid.initiator.discovery import TargetRecord, parse_targets
from iscsid.initiator.task import Management, Result, Task, TextExchange
from iscsid.initiator.unit import Unit
from iscsid.initiator.url import Credentials
from iscsid.scsi.const import PersistentReserveIn, PersistentReserveOut, SenseKey
from iscsid.scsi.reservation import Type as ReservationType
from iscsid.wire.const import TmfFunction, TmfResponse

Buffer = bytes | bytearray | memoryview
BLOCK_LIMITS: Final = 0xB0


class Disk:
    """One logical unit.

    Args:
        client: the session, open.
        lun: which unit.
        owned: ``close`` closes the session too.

    Offsets and lengths are in bytes, on multiples of ``block_size``; ``iscsid.initiator.DiskFile`` takes any.
    """

    def __init__(self, client: Client, lun: int, *, owned: bool = False) -> None:
        self.client = client
        self._owned = owned
        self._unit = Unit(lun, client.options.timeout)
        self.capacity()
        self._learn_limits()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session, if this disk has it for itself. Nothing is flushed."""
        if self._owned:
            self.client.close()

    def _learn_limits(self) -> None:
        try:
            self._unit.learn_limits(commands.parse_block_limits(self.vpd(BLOCK_LIMITS)))
        except InitiatorError as error:
            if not isinstance(error, SenseError) or error.key != SenseKey.ILLEGAL_REQUEST:
                raise

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    def lun(self) -> int:
        return self._unit.lun

    @property
    def block_size(self) -> int:
        """Bytes."""
        return self._unit.block_size

    @property
    def size(self) -> int:
        """Bytes, as of the last ``capacity``."""
        return self._unit.size

    @property
    def limits(self) -> commands.BlockLimits:
        """What the target tells of the lengths it likes; zeros where it tells nothing."""
        return self._unit.limits

    @property
    def attentions(self) -> deque[bytes]:
        """Sense data of the last unit attentions, which do not fail a command but may be of interest."""
        return self.client.session.attentions

    def capacity(self) -> Capacity:
        """Ask for the size and the provisioning (READ CAPACITY)."""
        unit = self._unit
        try:
            capacity = commands.parse_capacity_16(self._data(unit.read_capacity_16()))
        except SenseError as error:
            if error.key != SenseKey.ILLEGAL_REQUEST:
                raise
            capacity = commands.parse_capacity_10(self._data(unit.read_capacity_10()))
        unit.learn_capacity(capacity)
        return capacity

    def inquiry(self) -> Inquiry:
        """Standard INQUIRY data."""
        return commands.parse_inquiry(self._data(self._unit.inquiry()))

    def vpd(self, page: int) -> bytes:
        """A vital product data page with its head of four bytes."""
        return commands.parse_vpd(page, self._data(self._unit.vpd(page)))

    def report_luns(self) -> list[int]:
        """The numbers of all units of the target."""
        return commands.parse_luns(self._data(self._unit.report_luns()))

    def test_unit_ready(self) -> None:
        """Return when the unit is ready; raises SenseError when it is not."""
        self.client.run(self._unit.test_unit_ready())

    def block_status(self, offset: int = 0, length: int | None = None) -> Iterator[BlockStatus]:
        """Yield which stretches are mapped, in order and without a gap; Unsupported without a map."""
        end = self.size if length is None else offset + length
        while offset < end:
            try:
                data = self._data(self._unit.lba_status(offset))
            except SenseError as error:
                raise no_block_status(error) from error
            for extent in self._unit.extents(data, offset, end):
                yield extent
                offset = extent.offset + extent.length

    # --- data ---------------------------------------------------------------------------------------------------------

    def read(self, offset: int, length: int) -> bytearray:
        """Return ``length`` bytes."""
        data = bytearray(length)
        self.readinto(offset, data)
        return data

    def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill ``buffer``."""
        self._run_all(self._unit.reads(offset, memoryview(buffer).cast("B")))

    def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        """Write; ``fua``: the medium has it when this returns."""
        self._run_all(self._unit.writes(offset, memoryview(data).cast("B"), fua))

    def flush(self) -> None:
        """Return when the medium has all that was written (SYNCHRONIZE CACHE)."""
        self.client.run(self._unit.flush())

    def discard(self, offset: int, length: int) -> None:
        """Tell that the content is not needed any more (UNMAP); raises Unsupported where the target cannot."""
        self._run_all(self._unit.discards(offset, length))

    def write_zeroes(self, offset: int, length: int, *, may_unmap: bool = True) -> None:
        """Write zeros (WRITE SAME; by plain writes where the target has no such command)."""
        try:
            self._run_all(self._unit.zeroes(offset, length, may_unmap))
        except SenseError as error:
            if error.key != SenseKey.ILLEGAL_REQUEST:
                raise
            zeros = memoryview(bytes(min(length, self._unit.max_transfer)))
            places = commands.pieces(offset, length, self._unit.max_transfer)
            self._run_all(self._unit.write(start, zeros[:count]) for start, count in places)

    def compare_and_write(self, offset: int, compare: Buffer, data: Buffer) -> None:
        """Replace ``compare`` by ``data`` in one step, or raise Miscompare with the offset of the first difference."""
        task = self._unit.compare_and_write(offset, memoryview(compare).cast("B"), memoryview(data).cast("B"))
        self.client.run(task)

    # --- many at a time -----------------------------------------------------------------------------------------------

    def submit_read(
        self, offset: int, buffer: bytearray | memoryview, *, callback: Callable[[Task], None] | None = None
    ) -> Task:
        """Ask for one READ into ``buffer``, of at most ``max_transfer`` bytes; ``wait`` for the ticket.

        ``callback`` is called with the ticket when it is done, from whatever thread receives the answer; it may not
        wait for anything, nor submit.
        """
        task = self._unit.read(offset, memoryview(buffer))
        task.callback = callback
        self.client.submit(task)
        return task

    def submit_write(
        self, offset: int, data: Buffer, *, fua: bool = False, callback: Callable[[Task], None] | None = None
    ) -> Task:
        """Ask for one WRITE of at most ``max_transfer`` bytes; ``data`` may not change until the ticket is done."""
        task = self._unit.write(offset, memoryview(data), fua)
        task.callback = callback
        self.client.submit(task)
        return task

    def submit_flush(self) -> Task:
        """Ask for a SYNCHRONIZE CACHE; it covers writes that are done."""
        task = self._unit.flush()
        self.client.submit(task)
        return task

    @property
    def max_transfer(self) -> int:
        """Bytes that one ticket may move."""
        return self._unit.max_transfer

    def wait(self, ticket: Task) -> Task:
        """Wait for a ticket; raises what went wrong. Answers to all other tickets are taken on the way."""
        return self.client.wait(ticket)

    def push(self) -> None:
        """Send what was submitted, for who does something else before he waits."""
        self.client.push()

    def _run_all(self, tasks: Iterable[Task]) -> None:
        """Do all, as many at a time as the session's depth allows; wait for all also when one fails."""
        client = self.client
        pending: deque[Task] = deque()
        error: InitiatorError | None = None
        for task in tasks:
            client.submit(task)
            pending.append(task)
            if len(pending) >= client.options.depth:
                error = self._finish(pending.popleft())
                if error is not None:
                    break
        while pending:
            error = self._finish(pending.popleft()) or error
        if error is not None:
            raise error

    def _finish(self, task: Task) -> InitiatorError | None:
        try:
            self.client.wait(task)
        except InitiatorError as error:
            return error
        return None

    # --- persistent reservations (SPC-4 5.13) -------------------------------------------------------------------------

    def read_keys(self) -> Registrations:
        """Who is registered."""
        return commands.parse_keys(self._data(self._unit.reserve_in(PersistentReserveIn.READ_KEYS)))

    def read_reservation(self) -> Reservation | None:
        """Who holds the unit."""
        return commands.parse_reservation(self._data(self._unit.reserve_in(PersistentReserveIn.READ_RESERVATION)))

    def register(self, key: int, *, old_key: int = 0, ignore_existing: bool = False, aptpl: bool = False) -> None:
        """Register ``key`` in place of ``old_key``; 0 takes that back. ``aptpl``: it outlives power loss."""
        ignoring = PersistentReserveOut.REGISTER_AND_IGNORE_EXISTING_KEY
        action = ignoring if ignore_existing else PersistentReserveOut.REGISTER
        self.client.run(self._unit.reserve_out(action, 0 if ignore_existing else old_key, key, aptpl=aptpl))

    def reserve(self, key: int, kind: ReservationType = ReservationType.WRITE_EXCLUSIVE) -> None:
        """Reserve the unit, for who is registered with ``key``; raises ReservationConflict."""
        self.client.run(self._unit.reserve_out(PersistentReserveOut.RESERVE, key, kind=kind))

    def release(self, key: int, kind: ReservationType = ReservationType.WRITE_EXCLUSIVE) -> None:
        """Give up a reservation of ours."""
        self.client.run(self._unit.reserve_out(PersistentReserveOut.RELEASE, key, kind=kind))

    def preempt(
        self,
        key: int,
        victim: int,
        kind: ReservationType = ReservationType.WRITE_EXCLUSIVE,
        *,
        abort: bool = False,
    ) -> None:
        """Take away registration and reservation of ``victim``, and with ``abort`` end its commands."""
        action = PersistentReserveOut.PREEMPT_AND_ABORT if abort else PersistentReserveOut.PREEMPT
        self.client.run(self._unit.reserve_out(action, key, victim, kind))

    def clear(self, key: int) -> None:
        """End all reservations and registrations."""
        self.client.run(self._unit.reserve_out(PersistentReserveOut.CLEAR, key))

    # --- task management (RFC 7143 section 11.5) ----------------------------------------------------------------------

    def abort_task(self, ticket: Task) -> bool:
        """Abort a command that was submitted; False when it was over before. ``wait`` raises CommandAborted then."""
        if ticket.done:
            return False
        response = self._manage(self._unit.management(TmfFunction.ABORT_TASK, ticket), TmfResponse.TASK_DOES_NOT_EXIST)
        return response == TmfResponse.FUNCTION_COMPLETE

    def abort_task_set(self) -> None:
        """Abort all commands of this session on the unit."""
        self._manage(self._unit.management(TmfFunction.ABORT_TASK_SET))

    def clear_task_set(self) -> None:
        """Abort all commands of all initiators on the unit."""
        self._manage(self._unit.management(TmfFunction.CLEAR_TASK_SET))

    def lun_reset(self) -> None:
        """Reset the unit."""
        self._manage(self._unit.management(TmfFunction.LOGICAL_UNIT_RESET))

    def target_warm_reset(self) -> None:
        """Reset all units of the target."""
        self._manage(self._unit.management(TmfFunction.TARGET_WARM_RESET))

    def target_cold_reset(self) -> None:
        """Reset the target as if by power; it drops all sessions, and ours comes back with the next command."""
        self._manage(self._unit.management(TmfFunction.TARGET_COLD_RESET))

    def _manage(self, request: Management, also: int = TmfResponse.FUNCTION_COMPLETE) -> int:
        self.client.ask(request)
        response = self.client.wait(request).response
        if response not in (TmfResponse.FUNCTION_COMPLETE, also):
            raise ManagementFailed(response, management_text(request.function, response))
        return response

    # --- anything -----------------------------------------------------------------------------------------------------

    def command(
        self,
        cdb: bytes,
        data_out: Buffer = b"",
        data_in_length: int = 0,
        *,
        timeout: float | None = None,
        replay: bool = False,
    ) -> Result:
        """Do any command, and return how it ended, whatever the status is.

        ``replay``: it may be done twice, so it is sent again when the connection breaks under it.
        """
        task = self._unit.command(cdb, data_out, memoryview(bytearray(data_in_length)), timeout, replay)
        return self.client.run(task).result

    def _data(self, task: Task) -> memoryview:
        return self.client.run(task).result.data


def no_block_status(error: SenseError) -> InitiatorError:
    """What to raise where GET LBA STATUS failed: there may be no such command."""
    if error.key == SenseKey.ILLEGAL_REQUEST:
        return Unsupported("the target does not tell which blocks are mapped (GET LBA STATUS)")
    return error


def management_text(function: int, response: int) -> str:
    """How a task management function was refused, in words."""
    try:
        answer = TmfResponse(response).name.lower().replace("_", " ")
    except ValueError:
        answer = f"response {response:#04x}"
    return f"{TmfFunction(function).name.replace('_', ' ')}: {answer}"


def open_disk(url: str, lun: int | None = None, **options: Any) -> Disk:
    """Log in and open one disk, which has its session for itself.

    Args:
        url: ``iscsi://[user[%secret]@]host[:port]/target-name/lun``; see ``initiator.url``.
        lun: in place of the URL's.
        options: ``initiator_name``, ``credentials``, ``header_digest``, ``data_digest``, and the fields of
            ``initiator.session.SessionOptions``.

    Raises InitiatorError, ConnectionFailed and LoginRefused among it.
    """
    place = place_of(url, **options)
    number = place.lun if lun is None else lun
    if number is None:
        raise InitiatorError("the URL names no LUN: iscsi://host[:port]/target-name/lun")
    client = Client(place).open()
    try:
        return Disk(client, number, owned=True)
    except BaseException:
        client.close()
        raise


def discover(
    portal: str, *, initiator_name: str = "", credentials: Credentials | None = None, **options: Any
) -> list[TargetRecord]:
    """Ask the portal ``host[:port]``, or a URL without target, for its targets (SendTargets)."""
    place = place_of(portal, initiator_name=initiator_name, credentials=credentials, discovery=True, **options)
    with Client(place) as client:
        exchange = TextExchange([("SendTargets", "All")], timeout=client.options.timeout)
        client.ask(exchange)
        return parse_targets(client.wait(exchange).answer, place.portal)
