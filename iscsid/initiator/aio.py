"""The same for asyncio: the session of ``initiator.session`` on the running loop, without a thread.

disk = await open_disk("iscsi://192.0.2.1/iqn.2026-11.org.example:disk0/0")
async with disk:
    first, second = await asyncio.gather(disk.read(0, 4096), disk.read(1 << 20, 4096))
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, Self, TypeVar

from iscsid.errors import ConnectionFailed, InitiatorError, ManagementFailed, SenseError
from iscsid.initiator import commands
from iscsid.initiator.client import (
    CONNECT_TIMEOUT,
    UNREACHED,
    Place,
    place_of,
    prepare,
    random_nonce,
    send_queued,
    unreached,
)
from iscsid.initiator.commands import BlockStatus, Capacity, Inquiry, Registrations, Reservation
from iscsid.initiator.discovery import TargetRecord, parse_targets
from iscsid.initiator.disk import BLOCK_LIMITS, Buffer, management_text, no_block_status
from iscsid.initiator.session import InitiatorSession
from iscsid.initiator.task import Management, Result, Task, TextExchange, Ticket
from iscsid.initiator.unit import Unit
from iscsid.initiator.url import Credentials
from iscsid.scsi.const import PersistentReserveIn, PersistentReserveOut, SenseKey
from iscsid.scsi.reservation import Type as ReservationType
from iscsid.wire.const import TmfFunction, TmfResponse

RECEIVES_AT_ONCE: Final = 16  # reads of the socket in one turn of the loop, which others share

Answer = TypeVar("Answer", bound=Ticket)


class AsyncClient:
    """One session on the running event loop. ``open`` first; ``close`` logs out."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.options = place.options
        self.session = InitiatorSession(place.options, place.portal, random_nonce)
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._writing = False
        self._send_soon = False
        self._changed = asyncio.Event()  # the session's state, for who waits for more than a ticket

    async def open(self) -> Self:
        """Connect and log in; raises InitiatorError when that fails."""
        session = self.session
        session.open(self._loop.time())
        self._turn()
        try:
            await self._until(lambda: session.ready or session.failure is not None)
        except asyncio.CancelledError:
            session.close(self._loop.time())
            self._finish()
            raise
        if session.failure is not None:
            self._finish()
            raise session.failure
        return self

    async def close(self) -> None:
        """Log out, and let go of the connection."""
        session = self.session
        if not session.closed:
            session.close(self._loop.time())
            self._turn()
            await self._until(lambda: session.closed)
        self._finish()

    async def run(self, ticket: Answer) -> Answer:
        """Do a command, a task management function or a text; raises its error.

        Who gives up waiting (cancellation, ``asyncio.timeout``) has the command aborted, and waits for that: nothing
        is done of it, and nobody is in its buffer, when this has raised. That takes ``abort_timeout`` at most.
        """
        future: asyncio.Future[None] = self._loop.create_future()

        def ended(_: Ticket) -> None:
            if not future.done():
                future.set_result(None)

        ticket.callback = ended
        if isinstance(ticket, Task):
            self.session.submit(ticket, self._loop.time())
        elif isinstance(ticket, Management | TextExchange):
            self.session.ask(ticket, self._loop.time())
        if not self._send_soon:
            # At the end of this turn of the loop, so that what others submit in it goes with it.
            self._send_soon = True
            self._loop.call_soon(self._turn)
        try:
            await future
        except asyncio.CancelledError:
            if isinstance(ticket, Task):
                await self._abort(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error
        return ticket

    async def _abort(self, task: Task) -> None:
        over = asyncio.Event()
        task.callback = lambda _: over.set()
        if not task.done:
            self.session.abort(task, self._loop.time())
            self._turn()
        while not task.done:
            with contextlib.suppress(asyncio.CancelledError):  # the first one is what our caller hears of
                await over.wait()

    async def _until(self, over: Any) -> None:
        while not over():
            self._changed.clear()
            await self._changed.wait()

    # --- the loop's callbacks -----------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Send, connect or stop as the session wants it, and set the clock."""
        self._send_soon = False
        session = self.session
        if session.connection is None and self._sock is not None:
            self._drop_socket()
        if self._sock is not None:
            try:
                sent = send_queued(self._sock, session)
            except OSError as error:
                self._lost(error)
                return
            self._watch_room(not sent)
        now = self._loop.time()
        due = session.connection is None and session.connect_at is not None and session.connect_at <= now
        if due and self._connecting is None:
            self._connecting = self._loop.create_task(self._connect())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not session.closed and self._connecting is None:
            self._timer = self._loop.call_later(session.next_tick(now), self._tick)
        self._changed.set()

    def _watch_room(self, wanted: bool) -> None:
        if wanted != self._writing and self._sock is not None:
            self._writing = wanted
            if wanted:
                self._loop.add_writer(self._sock, self._turn)
            else:
                self._loop.remove_writer(self._sock)

    def _tick(self) -> None:
        self._timer = None
        self.session.tick(self._loop.time())
        self._turn()

    def _readable(self) -> None:
        sock, session = self._sock, self.session
        for _ in range(RECEIVES_AT_ONCE):
            if sock is None or session.connection is None:
                break
            try:
                count = sock.recv_into(session.connection.framer.writable())
            except BlockingIOError:
                break
            except OSError as error:
                self._lost(error)
                return
            if not count:
                self._lost(ConnectionFailed("the target closed the connection"))
                return
            session.received(count, self._loop.time())
        self._turn()

    async def _connect(self) -> None:
        session, loop = self.session, self._loop
        portal = session.portal
        sock = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                sock = await self._connected(portal.host, portal.port)
        except UNREACHED as error:
            self._connecting = None
            session.lost(unreached(portal, error), loop.time())
            self._turn()
            return
        self._connecting = None
        if session.closed:
            sock.close()
            return
        self._sock = sock
        self._writing = False
        session.connected(loop.time())
        loop.add_reader(sock, self._readable)
        self._turn()

    async def _connected(self, host: str, port: int) -> socket.socket:
        """Try each address of ``host`` in turn."""
        trouble: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, kind, protocol)
            try:
                prepare(sock)
                await self._loop.sock_connect(sock, address)
            except OSError as error:
                sock.close()
                trouble = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
        raise trouble

    def _lost(self, error: Exception) -> None:
        self._drop_socket()
        self.session.lost(error, self._loop.time())
        self._turn()

    def _drop_socket(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)
            sock.close()

    def _finish(self) -> None:
        self._drop_socket()
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()


class AsyncDisk:
    """One logical unit, as ``iscsid.initiator.Disk`` but awaited. ``load`` first, which ``open_disk`` does."""

    def __init__(self, client: AsyncClient, lun: int, *, owned: bool = False) -> None:
        self.client = client
        self._owned = owned
        self._unit = Unit(lun, client.options.timeout)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session, if this disk has it for itself. Nothing is flushed."""
        if self._owned:
            await self.client.close()

    async def load(self) -> Self:
        """Ask the facts that all else rests on: size and limits."""
        await self.capacity()
        try:
            self._unit.learn_limits(commands.parse_block_limits(await self.vpd(BLOCK_LIMITS)))
        except SenseError as error:
            if error.key != SenseKey.ILLEGAL_REQUEST:
                raise
        return self

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    def lun(self) -> int:
        return self._unit.lun

    @property
    def block_size(self) -> int:
        return self._unit.block_size

    @property
    def size(self) -> int:
        return self._unit.size

    @property
    def limits(self) -> commands.BlockLimits:
        return self._unit.limits

    @property
    def max_transfer(self) -> int:
        return self._unit.max_transfer

    @property
    def attentions(self) -> deque[bytes]:
        return self.client.session.attentions

    async def test_unit_ready(self) -> None:
        await self.client.run(self._unit.test_unit_ready())

    async def capacity(self) -> Capacity:
        unit = self._unit
        try:
            capacity = commands.parse_capacity_16(await self._data(unit.read_capacity_16()))
        except SenseError as error:
            if error.key != SenseKey.ILLEGAL_REQUEST:
                raise
            capacity = commands.parse_capacity_10(await self._data(unit.read_capacity_10()))
        unit.learn_capacity(capacity)
        return capacity

    async def inquiry(self) -> Inquiry:
        return commands.parse_inquiry(await self._data(self._unit.inquiry()))

    async def vpd(self, page: int) -> bytes:
        return commands.parse_vpd(page, await self._data(self._unit.vpd(page)))

    async def report_luns(self) -> list[int]:
        return commands.parse_luns(await self._data(self._unit.report_luns()))

    async def block_status(self, offset: int = 0, length: int | None = None) -> AsyncIterator[BlockStatus]:
        end = self.size if length is None else offset + length
        while offset < end:
            try:
                data = await self._data(self._unit.lba_status(offset))
            except SenseError as error:
                raise no_block_status(error) from error
            for extent in self._unit.extents(data, offset, end):
                yield extent
                offset = extent.offset + extent.length

    # --- data ---------------------------------------------------------------------------------------------------------

    async def read(self, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        await self.readinto(offset, data)
        return data

    async def readinto(self, offset: int, buffer: bytearray | memoryview) -> None:
        await self._run_all(self._unit.reads(offset, memoryview(buffer).cast("B")))

    async def write(self, offset: int, data: Buffer, *, fua: bool = False) -> None:
        await self._run_all(self._unit.writes(offset, memoryview(data).cast("B"), fua))

    async def flush(self) -> None:
        await self.client.run(self._unit.flush())

    async def discard(self, offset: int, length: int) -> None:
        await self._run_all(self._unit.discards(offset, length))

    async def write_zeroes(self, offset: int, length: int, *, may_unmap: bool = True) -> None:
        await self._run_all(self._unit.zeroes(offset, length, may_unmap))

    async def compare_and_write(self, offset: int, compare: Buffer, data: Buffer) -> None:
        task = self._unit.compare_and_write(offset, memoryview(compare).cast("B"), memoryview(data).cast("B"))
        await self.client.run(task)

    async def _run_all(self, tasks: Iterable[Task]) -> None:
        """Do all, half the session's depth at a time so that others have a share; waits for all also when one fails."""
        plan = list(tasks)
        if len(plan) == 1:
            await self.client.run(plan[0])
            return
        places = asyncio.Semaphore(max(1, self.client.options.depth // 2))

        async def one(task: Task) -> None:
            async with places:
                await self.client.run(task)

        for outcome in await asyncio.gather(*map(one, plan), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    # --- persistent reservations --------------------------------------------------------------------------------------

    async def read_keys(self) -> Registrations:
        return commands.parse_keys(await self._data(self._unit.reserve_in(PersistentReserveIn.READ_KEYS)))

    async def read_reservation(self) -> Reservation | None:
        return commands.parse_reservation(await self._data(self._unit.reserve_in(PersistentReserveIn.READ_RESERVATION)))

    async def register(self, key: int, *, old_key: int = 0, ignore_existing: bool = False, aptpl: bool = False) -> None:
        ignoring = PersistentReserveOut.REGISTER_AND_IGNORE_EXISTING_KEY
        action = ignoring if ignore_existing else PersistentReserveOut.REGISTER
        await self.client.run(self._unit.reserve_out(action, 0 if ignore_existing else old_key, key, aptpl=aptpl))

    async def reserve(self, key: int, kind: ReservationType = ReservationType.WRITE_EXCLUSIVE) -> None:
        await self.client.run(self._unit.reserve_out(PersistentReserveOut.RESERVE, key, kind=kind))

    async def release(self, key: int, kind: ReservationType = ReservationType.WRITE_EXCLUSIVE) -> None:
        await self.client.run(self._unit.reserve_out(PersistentReserveOut.RELEASE, key, kind=kind))

    async def preempt(
        self,
        key: int,
        victim: int,
        kind: ReservationType = ReservationType.WRITE_EXCLUSIVE,
        *,
        abort: bool = False,
    ) -> None:
        action = PersistentReserveOut.PREEMPT_AND_ABORT if abort else PersistentReserveOut.PREEMPT
        await self.client.run(self._unit.reserve_out(action, key, victim, kind))

    async def clear(self, key: int) -> None:
        await self.client.run(self._unit.reserve_out(PersistentReserveOut.CLEAR, key))

    # --- task management, and anything --------------------------------------------------------------------------------

    async def lun_reset(self) -> None:
        await self._manage(TmfFunction.LOGICAL_UNIT_RESET)

    async def target_warm_reset(self) -> None:
        await self._manage(TmfFunction.TARGET_WARM_RESET)

    async def target_cold_reset(self) -> None:
        await self._manage(TmfFunction.TARGET_COLD_RESET)

    async def clear_task_set(self) -> None:
        await self._manage(TmfFunction.CLEAR_TASK_SET)

    async def abort_task_set(self) -> None:
        await self._manage(TmfFunction.ABORT_TASK_SET)

    async def _manage(self, function: TmfFunction) -> None:
        request = await self.client.run(self._unit.management(function))
        if request.response != TmfResponse.FUNCTION_COMPLETE:
            raise ManagementFailed(request.response, management_text(function, request.response))

    async def command(
        self,
        cdb: bytes,
        data_out: Buffer = b"",
        data_in_length: int = 0,
        *,
        timeout: float | None = None,
        replay: bool = False,
    ) -> Result:
        task = self._unit.command(cdb, data_out, memoryview(bytearray(data_in_length)), timeout, replay)
        return (await self.client.run(task)).result

    async def _data(self, task: Task) -> memoryview:
        return (await self.client.run(task)).result.data


async def open_disk(url: str, lun: int | None = None, **options: Any) -> AsyncDisk:
    """As ``iscsid.initiator.open_disk``."""
    place = place_of(url, **options)
    number = place.lun if lun is None else lun
    if number is None:
        raise InitiatorError("the URL names no LUN: iscsi://host[:port]/target-name/lun")
    client = await AsyncClient(place).open()
    try:
        return await AsyncDisk(client, number, owned=True).load()
    except BaseException:
        await client.close()
        raise


async def discover(
    portal: str, *, initiator_name: str = "", credentials: Credentials | None = None, **options: Any
) -> list[TargetRecord]:
    """As ``iscsid.initiator.discover``."""
    place = place_of(portal, initiator_name=initiator_name, credentials=credentials, discovery=True, **options)
    client = await AsyncClient(place).open()
    try:
        exchange = await client.run(TextExchange([("SendTargets", "All")], timeout=client.options.timeout))
        return parse_targets(exchange.answer, place.portal)
    finally:
        await client.close()
