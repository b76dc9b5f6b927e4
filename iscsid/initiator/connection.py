"""The initiator's end of one iSCSI connection, without I/O (RFC 7143 sections 4 and 11).

This file owns the numbers (CmdSN, ExpStatSN, the window), the tags, the digests and the data transfers of one
connection, from its login to its end; what outlives the connection is the session's. Bytes come in through ``framer``
and leave through ``outbox``; requests are ``start``-ed, and are ended by ``receive``.

What is done once per command is written flat on purpose: ``start`` and ``receive``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from struct import Struct
from typing import Any, Final

from iscsid import serial
from iscsid.errors import CommandAborted, InitiatorError, RemoteProtocolError
from iscsid.initiator.task import Management, Task, TextExchange, Ticket
from iscsid.session.login_initiator import InitiatorLogin
from iscsid.session.params import Parameters
from iscsid.text.codec import build, parse
from iscsid.wire import ahs
from iscsid.wire.const import (
    BHS_SIZE,
    CDB_SIZE,
    FINAL,
    OPCODE_MASK,
    OVERFLOW,
    RESERVED_TAG,
    STATUS,
    UNDERFLOW,
    AsyncEvent,
    LogoutReason,
    RejectReason,
    TmfFunction,
    TmfResponse,
)
from iscsid.wire.digest import crc32c
from iscsid.wire.framer import DamagedPdu, Framer
from iscsid.wire.outbox import Outbox
from iscsid.wire.pdu import (
    INITIATOR_RECEIVES,
    R2T,
    AsyncMessage,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Pdu,
    Reject,
    ScsiCommand,
    ScsiDataIn,
    ScsiDataOut,
    ScsiResponse,
    TaskManagementRequest,
    TaskManagementResponse,
    TextRequest,
    TextResponse,
)

RECEIVE_BUFFER: Final = 1 << 20  # one system call takes many answers; more no longer fits the processor's cache
LEND_FROM: Final = 16384  # shorter data is copied into the outbox: an iovec costs more than the copy
TEXT_ANSWER_LIMIT: Final = 4 << 20  # bytes of one answer to SendTargets: some 20 000 targets
STRAYS: Final = 1024  # aborted tasks whose late answers are passed over: as many as may be in flight, and more
_PAIR_LIMIT: Final = 1 << 16

# SCSI Command without AHS: opcode and flags, data segment length, LUN, tag, EDTL, CmdSN, ExpStatSN, CDB
_PACK_COMMAND = Struct(">BB2xIQIIII16s").pack_into
_COMMAND = int(ScsiCommand.opcode)
_DIGEST = Struct("<I")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4
_HALF = serial.HALF
_MASK = serial.MASK
_TAG_MASK = 0x7FFFFFFF  # never the reserved tag

# Which tasks a function ends, seen from the nexus that asked for it (RFC 7143 section 11.5.1).
_OF_THE_UNIT = frozenset({TmfFunction.ABORT_TASK_SET, TmfFunction.CLEAR_TASK_SET, TmfFunction.LOGICAL_UNIT_RESET})
_OF_THE_TARGET = frozenset({TmfFunction.TARGET_WARM_RESET, TmfFunction.TARGET_COLD_RESET})
# Why a command is rejected that would do on the next connection (section 11.17.1).
_NO_FAULT_OF_THE_COMMAND = frozenset({RejectReason.DATA_DIGEST_ERROR, RejectReason.WAITING_FOR_LOGOUT})


class InitiatorConnection:
    """One connection.

    Args:
        login: the login phase, not started yet.
        ended: called with every request that is over, but for tasks that ended well: those are ended here.

    Attributes:
        framer, outbox: bytes in, bytes out.
        ready: the login is over; requests can be started.
        tasks: the commands that were sent and not answered, by tag, in the order in which they were sent.
        requests: the same of task management and text.
        pinged: a NOP-Out of ours waits for its answer.
        leave_within: seconds in which the target wants us to log out, None as long as it does not.
        reconnect_after: seconds to wait before the next connection, None as long as the target has not ended this one.
        attention: called with sense data that the target sent on its own account.
    """

    __slots__ = (
        "_aborted",
        "_data_digest",
        "_ended",
        "_handlers",
        "_header_digest",
        "_immediate_limit",
        "_login",
        "_plain",
        "_segment",
        "_tag",
        "_texts",
        "_unsolicited_limit",
        "attention",
        "cmd_sn",
        "exp_stat_sn",
        "framer",
        "leave_within",
        "max_cmd_sn",
        "outbox",
        "parameters",
        "pinged",
        "ready",
        "reconnect_after",
        "requests",
        "tasks",
    )

    def __init__(self, login: InitiatorLogin, ended: Callable[[Ticket], None]) -> None:
        self.framer = Framer(INITIATOR_RECEIVES)
        self.outbox = Outbox()
        self.parameters = Parameters()
        self.ready = False
        self.tasks: dict[int, Task] = {}
        self.requests: dict[int, Ticket] = {}
        self.cmd_sn = login.cmd_sn
        self.max_cmd_sn = login.cmd_sn
        self.exp_stat_sn = 0
        self.pinged = False
        self.leave_within: int | None = None
        self.reconnect_after: float | None = None
        self.attention: Callable[[bytes], None] = lambda sense: None
        self._login = login
        self._ended = ended
        self._tag = 0
        self._texts: dict[int, bytearray] = {}
        # Tags of aborted tasks, of which some targets still send an answer.
        self._aborted: deque[int] = deque(maxlen=STRAYS)
        self._plain = True  # no digests
        self._header_digest = self._data_digest = False
        self._segment = self._immediate_limit = self._unsolicited_limit = 0
        self._handlers: dict[type, Callable[[Any], None]] = {
            R2T: self._on_r2t,
            NopIn: self._on_nop_in,
            TaskManagementResponse: self._on_management,
            TextResponse: self._on_text,
            LogoutResponse: self._on_logout,
            AsyncMessage: self._on_async,
            Reject: self._on_reject,
            DamagedPdu: self._on_damaged,
            LoginResponse: self._on_stray_login,
        }
        self._emit(login.start())

    # --- input ------------------------------------------------------------------------------------------------------

    def receive(self) -> None:
        """Act on everything that the framer holds.

        Raises RemoteProtocolError (LoginFailed is one) when the connection is over.
        """
        pdus = self.framer.pdus()
        if not self.ready:
            self._log_in(pdus)
        tasks = self.tasks
        for pdu in pdus:
            if type(pdu) is not ScsiDataIn and type(pdu) is not ScsiResponse:
                self._handlers[type(pdu)](pdu)
                continue
            task = tasks.get(pdu.initiator_task_tag)
            if task is None:
                self._stray(pdu)
                continue
            if type(pdu) is ScsiDataIn:
                data = pdu.data
                start = task.received
                end = start + len(data)
                if pdu.buffer_offset != start or pdu.data_sn != task.data_sn or end > len(task.buffer):
                    raise RemoteProtocolError("a Data-In PDU out of its order or its bounds")
                task.buffer[start:end] = data
                task.received = end
                if not pdu.flags & STATUS:
                    task.data_sn = (pdu.data_sn + 1) & _MASK
                    continue
            elif type(pdu) is ScsiResponse and (pdu.response or pdu.data):
                self._take_response(task, pdu)
            del tasks[pdu.initiator_task_tag]
            self.exp_stat_sn = (pdu.stat_sn + 1) & _MASK
            if pdu.max_cmd_sn != self.max_cmd_sn:
                self._move_window(pdu.max_cmd_sn)
            task.status = status = pdu.status
            if status or pdu.flags & (OVERFLOW | UNDERFLOW) or task.received != len(task.buffer) or task.error:
                self._end_oddly(task, pdu)
            else:
                task.done = True
                if task.callback is not None:
                    task.callback(task)

    def _end_oddly(self, task: Task, pdu: ScsiDataIn | ScsiResponse) -> None:
        task.residual = pdu.residual_count if pdu.flags & UNDERFLOW else -pdu.residual_count
        self._ended(task)

    def _log_in(self, pdus: Iterator[Pdu | DamagedPdu]) -> None:
        login = self._login
        for response in pdus:
            if not isinstance(response, LoginResponse):
                raise RemoteProtocolError("something other than a Login Response before full feature phase")
            for request in login.receive(response):
                self._emit(request)
            if login.done:
                self._establish(login)
                return

    def _establish(self, login: InitiatorLogin) -> None:
        parameters = self.parameters = login.parameters
        self.cmd_sn, self.max_cmd_sn, self.exp_stat_sn = login.cmd_sn, login.max_cmd_sn, login.exp_stat_sn
        framer = self.framer
        framer.max_data_segment_length = parameters.max_recv_data_segment_length
        framer.resize(RECEIVE_BUFFER)
        framer.header_digest = self._header_digest = parameters.header_digest
        framer.data_digest = self._data_digest = parameters.data_digest
        self._plain = not (parameters.header_digest or parameters.data_digest)
        self._segment = parameters.peer_max_recv_data_segment_length
        first = parameters.first_burst_length
        self._immediate_limit = min(first, self._segment) if parameters.immediate_data else 0
        # Data that comes without R2T: all up to FirstBurstLength, or what is immediate (section 13.10).
        self._unsolicited_limit = self._immediate_limit if parameters.initial_r2t else first
        self.ready = True

    def _move_window(self, max_cmd_sn: int) -> None:
        """The window never closes from its far end: an older PDU may come later (section 4.2.2.1)."""
        if serial.less(self.max_cmd_sn, max_cmd_sn):
            self.max_cmd_sn = max_cmd_sn

    def _take_response(self, task: Task, pdu: ScsiResponse) -> None:
        task.sense = pdu.sense
        if pdu.response:
            task.error = InitiatorError(f"the target could not execute the command (response {pdu.response:#04x})")

    def _stray(self, pdu: ScsiDataIn | ScsiResponse | R2T) -> None:
        """What belongs to an aborted task is passed over; for anything else there is no good reason."""
        if pdu.initiator_task_tag not in self._aborted:
            raise RemoteProtocolError(f"{type(pdu).__name__} for a task that there is not")
        if isinstance(pdu, ScsiResponse) or (isinstance(pdu, ScsiDataIn) and pdu.has_status):
            self._numbered(pdu)

    def _numbered(self, pdu: Any) -> None:
        self.exp_stat_sn = serial.add(pdu.stat_sn, 1)
        self._move_window(pdu.max_cmd_sn)

    def _on_r2t(self, pdu: R2T) -> None:
        self._move_window(pdu.max_cmd_sn)
        task = self.tasks.get(pdu.initiator_task_tag)
        if task is None:
            self._stray(pdu)
            return
        start, length = pdu.buffer_offset, pdu.desired_data_transfer_length
        if not length or start + length > len(task.data_out):
            raise RemoteProtocolError(f"an R2T for {length} bytes at {start} of {len(task.data_out)}")
        task.asked += length  # at recovery level 0 nothing is asked for twice, so this bounds what is queued
        if task.asked > len(task.data_out):
            raise RemoteProtocolError("R2Ts for more data than there is")
        self._data_out(task, start, start + length, pdu.target_transfer_tag, pdu.lun)

    def _on_nop_in(self, pdu: NopIn) -> None:
        """Answer a ping, or note the answer to ours (section 11.19)."""
        self._move_window(pdu.max_cmd_sn)
        if pdu.initiator_task_tag != RESERVED_TAG:
            self.exp_stat_sn = serial.add(pdu.stat_sn, 1)
            self.pinged = False
        if pdu.target_transfer_tag != RESERVED_TAG:
            answer = NopOut(immediate=True, lun=pdu.lun, target_transfer_tag=pdu.target_transfer_tag)
            self._number(answer)

    def _on_management(self, pdu: TaskManagementResponse) -> None:
        self._numbered(pdu)
        request = self.requests.get(pdu.initiator_task_tag)
        if not isinstance(request, Management):
            raise RemoteProtocolError("an answer to a task management function that nobody asked for")
        del self.requests[request.tag]
        request.response = pdu.response
        if pdu.response == TmfResponse.FUNCTION_COMPLETE:
            for task in self._covered(request):
                if self.tasks.pop(task.tag, None) is not None:
                    self._aborted.append(task.tag)
                    task.error = CommandAborted(f"aborted by {TmfFunction(request.function).name.replace('_', ' ')}")
                    self._ended(task)
        self._ended(request)

    def _covered(self, request: Management) -> list[Task]:
        if request.function in _OF_THE_TARGET:
            return list(self.tasks.values())
        if request.function in _OF_THE_UNIT:
            return [task for task in self.tasks.values() if task.lun == request.lun]
        return [request.victim] if request.victim is not None else []

    def _on_text(self, pdu: TextResponse) -> None:
        self._numbered(pdu)
        request = self.requests.get(pdu.initiator_task_tag)
        if not isinstance(request, TextExchange):
            raise RemoteProtocolError("an answer to a text that nobody sent")
        text = self._texts.setdefault(request.tag, bytearray())
        text += pdu.data
        if len(text) > TEXT_ANSWER_LIMIT:
            raise RemoteProtocolError(f"text is longer than {TEXT_ANSWER_LIMIT} bytes")
        if pdu.continued or not pdu.final:
            following = TextRequest(
                initiator_task_tag=request.tag, lun=pdu.lun, target_transfer_tag=pdu.target_transfer_tag
            )
            self._number(following)
            return
        request.answer = parse(bytes(text), text_limit=TEXT_ANSWER_LIMIT, pair_limit=_PAIR_LIMIT)
        del self.requests[request.tag], self._texts[request.tag]
        self._ended(request)

    def _on_logout(self, pdu: LogoutResponse) -> None:
        self._numbered(pdu)
        self.reconnect_after = 0.0  # a session that was closed has nothing to wait for
        raise RemoteProtocolError("logged out")

    def _on_async(self, pdu: AsyncMessage) -> None:
        """Section 11.9. A request to negotiate anew (4) is not followed: what was settled serves us well."""
        self._numbered(pdu)
        if pdu.async_event == AsyncEvent.SCSI_EVENT:
            length = int.from_bytes(pdu.data[:2], "big")
            self.attention(bytes(pdu.data[2 : 2 + length]))
        elif pdu.async_event == AsyncEvent.LOGOUT_REQUEST:
            self.leave_within = pdu.parameter3
        elif pdu.async_event in (AsyncEvent.CONNECTION_DROPPED, AsyncEvent.ALL_CONNECTIONS_DROPPED):
            self.reconnect_after = float(pdu.parameter2)
            raise RemoteProtocolError("the target drops the connection")

    def _on_reject(self, pdu: Reject) -> None:
        """Fail what is rejected (section 11.17).

        The number of a rejected command may be missing at the target, and data that was damaged on the way comes again
        only with its command: but for immediate requests, a new connection is what recovery level 0 has.
        """
        self._numbered(pdu)
        header = bytes(pdu.data[:BHS_SIZE]).ljust(BHS_SIZE, b"\0")
        tag = int.from_bytes(header[16:20], "big")
        try:
            reason = RejectReason(pdu.reason).name.lower().replace("_", " ")
        except ValueError:
            reason = f"{pdu.reason:#04x}"
        request = self.requests.pop(tag, None)
        if request is not None and header[0] & OPCODE_MASK != TextRequest.opcode:
            request.error = InitiatorError(f"the target rejects the request: {reason}")
            self._ended(request)
            return
        if request is not None:
            request.error = InitiatorError(f"the target rejects the text: {reason}")
            self._ended(request)
        elif pdu.reason not in _NO_FAULT_OF_THE_COMMAND and (task := self.tasks.pop(tag, None)) is not None:
            task.error = InitiatorError(f"the target rejects the command: {reason}")
            self._ended(task)
        raise RemoteProtocolError(f"the target rejects a PDU of opcode {header[0] & OPCODE_MASK:#04x}: {reason}")

    def _on_damaged(self, pdu: DamagedPdu) -> None:
        raise RemoteProtocolError(pdu.message)  # recovery level 0: the data cannot be asked for again

    def _on_stray_login(self, pdu: LoginResponse) -> None:
        raise RemoteProtocolError("a Login Response in full feature phase")

    # --- output -----------------------------------------------------------------------------------------------------

    @property
    def window_open(self) -> bool:
        """Whether the target takes one more command (section 4.2.2.1)."""
        return (self.max_cmd_sn - self.cmd_sn) & _MASK < _HALF

    def start(self, task: Task) -> None:
        """Send a command; the window must be open. Its data-out follows as far as may be sent unasked."""
        tag = self._next_tag()
        task.tag = tag
        self.tasks[tag] = task
        task.cmd_sn = cmd_sn = self.cmd_sn
        self.cmd_sn = (cmd_sn + 1) & _MASK
        cdb = task.cdb
        data = task.data_out
        if self._plain and not len(data) and len(cdb) == CDB_SIZE:
            outbox = self.outbox
            position = outbox.room(BHS_SIZE)
            _PACK_COMMAND(
                outbox.buffer, position, _COMMAND, task.flags, 0, task.lun, tag, task.expected, cmd_sn,
                self.exp_stat_sn, cdb,
            )  # fmt: skip
            outbox.commit(BHS_SIZE)
            return
        length = len(data)
        immediate = min(length, self._immediate_limit)
        unsolicited = min(length, self._unsolicited_limit)
        command = ScsiCommand(
            flags=task.flags & ~FINAL if unsolicited > immediate else task.flags,
            lun=task.lun,
            initiator_task_tag=tag,
            expected_data_transfer_length=task.expected,
            cmd_sn=cmd_sn,
            exp_stat_sn=self.exp_stat_sn,
            cdb=cdb[:CDB_SIZE].ljust(CDB_SIZE, b"\0"),
            ahs=ahs.build(cdb) if len(cdb) > CDB_SIZE else b"",
            data=data[:immediate],
        )
        self._emit(command)
        if unsolicited > immediate:
            self._data_out(task, immediate, unsolicited, RESERVED_TAG, task.lun)

    def ask(self, request: Management | TextExchange) -> None:
        """Send a task management function, which does not wait for the window, or a text, which it must be open for."""
        tag = request.tag = self._next_tag()
        self.requests[tag] = request
        if isinstance(request, TextExchange):
            self._number(TextRequest(initiator_task_tag=tag, data=build(request.pairs)))
            return
        victim = request.victim
        pdu = TaskManagementRequest(immediate=True, function=request.function, lun=request.lun, initiator_task_tag=tag)
        if victim is not None:
            pdu.referenced_task_tag, pdu.ref_cmd_sn = victim.tag, victim.cmd_sn
        self._number(pdu)

    def forget(self, task: Task) -> None:
        """Pass over whatever still comes for a task that is over."""
        self._aborted.append(task.tag)

    def ping(self) -> None:
        """Ask whether the target is alive; ``pinged`` stays true until it answers."""
        self.pinged = True
        self._number(NopOut(immediate=True, initiator_task_tag=self._next_tag()))

    def log_out(self) -> None:
        """Ask for the end of the session; ``receive`` raises when it has come."""
        self._number(
            LogoutRequest(immediate=True, reason=LogoutReason.CLOSE_SESSION, initiator_task_tag=self._next_tag())
        )

    def _next_tag(self) -> int:
        tag = (self._tag + 1) & _TAG_MASK
        while tag in self.tasks or tag in self.requests:
            tag = (tag + 1) & _TAG_MASK
        self._tag = tag
        return tag

    def _number(self, pdu: NopOut | TaskManagementRequest | TextRequest | LogoutRequest) -> None:
        """Number and send; immediate requests carry CmdSN without using it up (section 4.2.2.1)."""
        pdu.cmd_sn = self.cmd_sn
        pdu.exp_stat_sn = self.exp_stat_sn
        if not pdu.immediate:
            self.cmd_sn = serial.add(self.cmd_sn, 1)
        self._emit(pdu)

    def _data_out(self, task: Task, start: int, end: int, transfer_tag: int, lun: int) -> None:
        """Send one sequence of Data-Out PDUs (section 11.7)."""
        data_sn = 0
        while start < end:
            stop = min(start + self._segment, end)
            pdu = ScsiDataOut(
                flags=FINAL if stop == end else 0,
                lun=lun,
                initiator_task_tag=task.tag,
                target_transfer_tag=transfer_tag,
                exp_stat_sn=self.exp_stat_sn,
                data_sn=data_sn,
                buffer_offset=start,
                data=task.data_out[start:stop],
            )
            self._emit(pdu)
            data_sn += 1
            start = stop

    def _emit(self, pdu: Pdu | LoginRequest) -> None:
        """Frame ``pdu``: header, its digest, data, padding, its digest. Long data is lent, not copied."""
        outbox = self.outbox
        header = pdu.pack()
        outbox.put(header)
        if self._header_digest:
            outbox.put(_DIGEST.pack(crc32c(header)))
        data = pdu.data
        length = len(data)
        if not length:
            return
        trailer = _PADDING[length & 3]
        if self._data_digest:
            trailer += _DIGEST.pack(crc32c(trailer, crc32c(data)))
        if isinstance(data, memoryview) and length > LEND_FROM:
            outbox.lend(data)
        else:
            outbox.put(data)
        outbox.put(trailer)
