"""The target's end of one iSCSI connection, without I/O (RFC 7143 sections 4 and 11).

This file owns the numbers (StatSN, ExpCmdSN, MaxCmdSN, DataSN), the phase and the digests of a connection, and knows
nothing of SCSI: a CDB is bytes that it hands on, data-in is bytes that it frames. Bytes come in through ``framer``,
leave through ``outbox``; ``events`` yields what the caller has to act on.

What is done once per command is written flat on purpose: ``events``, ``data_in_room``, ``data_in_commit``,
``data_in_lend`` and ``good``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct

from iscsid import serial
from iscsid.errors import LoginError, RejectError, RemoteProtocolError
from iscsid.session.login_target import TargetLogin
from iscsid.session.params import Parameters
from iscsid.session.transfer import Grant, Segment
from iscsid.session.window import CommandWindow
from iscsid.text.codec import Pair
from iscsid.text.keys import Phase
from iscsid.text.negotiate import Negotiator
from iscsid.wire.const import (
    BHS_SIZE,
    DIGEST_SIZE,
    FINAL,
    OVERFLOW,
    RESERVED_TAG,
    STATUS,
    UNDERFLOW,
    AsyncEvent,
    LoginStatus,
    RejectReason,
)
from iscsid.wire.digest import crc32c
from iscsid.wire.framer import DamagedPdu, Framer
from iscsid.wire.outbox import Outbox
from iscsid.wire.pdu import (
    R2T,
    TARGET_RECEIVES,
    AsyncMessage,
    LoginRequest,
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
    SnackRequest,
    TaskManagementRequest,
    TaskManagementResponse,
    TextRequest,
    TextResponse,
)

# ScsiDataIn and ScsiResponse as they go out in their thousands, all that is constant in one field: the first word; the
# lengths; the task tag; the target transfer tag of a Data-In; StatSN, ExpCmdSN, MaxCmdSN. Pad bytes are packed as 0.
_PACK_DATA_IN = Struct(">4sI8xIIIII12x").pack_into
_PACK_RESPONSE = Struct(">4s12xI4xIII12x").pack_into
_DATA_IN_GOOD = bytes((ScsiDataIn.opcode, FINAL | STATUS, 0, 0))
_RESPONSE_GOOD = bytes((ScsiResponse.opcode, FINAL, 0, 0))
_DIGEST = Struct("<I")  # section 13.1 and RFC 3720 appendix B.4: the CRC goes out least significant byte first
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")  # by length modulo 4

LEND_FROM = 16384  # shorter data is copied into the outbox: an iovec costs more than the copy
NOP_DATA_LIMIT = 4096  # ping data that is echoed; 11.19 lets a target answer with less than it was sent
# Bytes waiting to be sent from which on only plain commands are heard. Whoever owns the socket stops reading long
# before; this is for requests that came in one piece and whose answers are many times their size.
OUTPUT_LIMIT = 32 << 20
_DATA_DIGEST_ERROR = int(RejectReason.DATA_DIGEST_ERROR)

Request = NopOut | ScsiCommand | TaskManagementRequest | TextRequest | LogoutRequest
Answer = NopIn | ScsiResponse | TaskManagementResponse | TextResponse | LogoutResponse | AsyncMessage | Reject | R2T


class Established:
    """Event: the login is over and full feature phase begins; see the connection's ``parameters``."""


Event = Established | ScsiCommand | ScsiDataOut | TaskManagementRequest | TextRequest | LogoutRequest | DamagedPdu


class TargetConnection:
    """One connection of one session, as the target sees it.

    Args:
        login: the login phase; it owns the numbers until full feature phase.
        queue_depth: how many commands the initiator may have unfinished (the MaxCmdSN window).
        receive_buffer: size in bytes of the framer's buffer in full feature phase.

    Attributes:
        framer: bytes in; the owner of the socket writes into ``framer.writable()``.
        outbox: bytes out.
        closing: nothing more is read; the connection ends when ``outbox`` is empty.
        data_digest: whether data goes out with a digest.
        pinged: a NOP-In of ours waits for its answer.
    """

    __slots__ = (
        "_header_digest",
        "_header_size",
        "_login_request",
        "_negotiator",
        "_ping_tag",
        "_plain",
        "_receive_buffer",
        "closing",
        "data_digest",
        "framer",
        "login",
        "outbox",
        "parameters",
        "pinged",
        "stat_sn",
        "window",
    )

    def __init__(self, login: TargetLogin, queue_depth: int, receive_buffer: int) -> None:
        self.login: TargetLogin | None = login
        self.framer = Framer(TARGET_RECEIVES)
        self.outbox = Outbox()
        self.parameters = Parameters()
        self._negotiator: Negotiator | None = None
        self._login_request: LoginRequest | None = None  # the last one, without data
        self.window: CommandWindow[Request] = CommandWindow(0, queue_depth)
        self.stat_sn = 0
        self.closing = False
        self.pinged = False
        self._receive_buffer = receive_buffer
        self._ping_tag = 0
        self._plain = True  # no digests
        self._header_digest = False
        self.data_digest = False
        self._header_size = BHS_SIZE

    # --- input ------------------------------------------------------------------------------------------------------

    def events(self) -> Iterator[Event]:
        """Decode everything the framer holds and yield what the caller has to act on, in CmdSN order.

        The data of an event lies in the receive buffer: it is valid until the next ``framer.writable()``. NOPs,
        rejects and the login are dealt with here. Raises RemoteProtocolError when the connection cannot go on; what
        is in ``outbox`` then (a Reject, a Login Response) is still to be sent.
        """
        pdus = iter(()) if self.closing else self.framer.pdus()
        while self.login is not None:
            request = next(pdus, None)
            if request is None:
                return
            if self._log_in(self.login, request):
                yield Established()
        window = self.window
        try:
            for pdu in pdus:
                if (
                    type(pdu) is ScsiCommand
                    and pdu.cmd_sn == window.exp_cmd_sn
                    and not pdu.immediate
                    and window.ahead >= 0
                ):
                    window.exp_cmd_sn = (pdu.cmd_sn + 1) & 0xFFFFFFFF
                    yield pdu
                elif type(pdu) is ScsiDataOut:
                    yield pdu
                    continue
                else:
                    yield from self._other(pdu)
                    if self.closing:
                        return
                if window.held:
                    yield from self._turns()
                    if self.closing:
                        return
        except RejectError as error:
            # The framer's, of a data segment that is too long: to be skipped it would have to be received.
            self.reject(error.reason, self.framer.head)
            self.closing = True
            raise

    def _log_in(self, login: TargetLogin, request: Pdu | DamagedPdu) -> bool:
        """Give one PDU to the login; return whether full feature phase begins."""
        if not isinstance(request, LoginRequest):
            if self._login_request is not None:
                # Section 6.3: a login that has begun is answered, one that has not is not.
                self._emit(login.failure(self._login_request, LoginStatus.INVALID_DURING_LOGIN))
            self.closing = True
            raise RemoteProtocolError("something other than a Login Request before full feature phase")
        try:
            for response in login.receive(request):
                self._emit(response)
        except LoginError as error:
            self._emit(login.failure(request, error.status))
            self.closing = True
            raise
        if not login.done:
            request.data = b""
            self._login_request = request
            return False
        self._establish(login)
        return True

    def _establish(self, login: TargetLogin) -> None:
        parameters = self.parameters = login.parameters
        self.window.exp_cmd_sn = login.exp_cmd_sn
        self.stat_sn = login.stat_sn
        self.login = self._login_request = None
        self._negotiator = login.negotiator
        framer = self.framer
        framer.max_data_segment_length = parameters.max_recv_data_segment_length
        framer.resize(self._receive_buffer)
        framer.header_digest = self._header_digest = parameters.header_digest
        framer.data_digest = self.data_digest = parameters.data_digest
        self._plain = not (parameters.header_digest or parameters.data_digest)
        self._header_size = BHS_SIZE + (DIGEST_SIZE if parameters.header_digest else 0)

    def _other(self, pdu: Pdu | DamagedPdu) -> Iterator[Event]:
        """Deal with what is not simply the next command."""
        if self.outbox.queued > OUTPUT_LIMIT:
            raise RemoteProtocolError("requests whose answers are not taken")
        if isinstance(pdu, DamagedPdu):
            refused = pdu.pdu
            if isinstance(refused, Request) and not refused.immediate and pdu.reason != _DATA_DIGEST_ERROR:
                # It may not be sent again (11.17.1), so nothing else will ever fill its place.
                self.window.skip(refused.cmd_sn)
            self.reject(pdu.reason, pdu.header)
            yield pdu
        elif isinstance(pdu, SnackRequest):
            # Error recovery level 0 keeps nothing that could be sent again (sections 7.3 and 11.16).
            self.reject(RejectReason.SNACK_REJECT, pdu.pack())
        elif isinstance(pdu, LoginRequest):
            self.reject(RejectReason.PROTOCOL_ERROR, pdu.pack())
            raise RemoteProtocolError("a Login Request in full feature phase")
        elif isinstance(pdu, Request) and (pdu.immediate or self.window.place(pdu)):
            yield from self._dispatch(pdu)

    def _turns(self) -> Iterator[Event]:
        """Deal with the requests that were held and whose turn has come; none after a logout."""
        while not self.closing and (held := self.window.next_held()) is not None:
            yield from self._dispatch(held)

    def _dispatch(self, pdu: Request) -> Iterator[Event]:
        if isinstance(pdu, NopOut):
            self._nop_out(pdu)
        else:
            yield pdu

    def _nop_out(self, pdu: NopOut) -> None:
        """Answer a ping, or note the answer to ours (section 11.18)."""
        if pdu.target_transfer_tag != RESERVED_TAG:
            self.pinged = False
        if pdu.initiator_task_tag != RESERVED_TAG:
            limit = min(NOP_DATA_LIMIT, self.parameters.peer_max_recv_data_segment_length)
            self.send(NopIn(initiator_task_tag=pdu.initiator_task_tag, data=bytes(pdu.data[:limit])))

    # --- output -----------------------------------------------------------------------------------------------------

    def send(self, pdu: Answer, *, numbered: bool = True) -> None:
        """Number and queue ``pdu``; not ``numbered`` are those that carry StatSN without using it up (11.8, 11.19)."""
        pdu.stat_sn = self.stat_sn
        pdu.exp_cmd_sn = self.window.exp_cmd_sn
        pdu.max_cmd_sn = self.window.max_cmd_sn
        if numbered:
            self.stat_sn = serial.add(self.stat_sn, 1)
        self._emit(pdu)

    def renegotiate(self, key: str, value: str) -> Sequence[Pair]:
        """Answer a key of a Text Request in full feature phase; only MaxRecvDataSegmentLength may change there (13.12).

        Raises RemoteProtocolError for what may not be said then.
        """
        assert self._negotiator is not None
        answer = self._negotiator.answer([(key, value)], Phase.FULL_FEATURE)
        self.parameters.declared_again(self._negotiator)
        return answer

    def reject(self, reason: int, header: bytes | memoryview) -> None:
        """Answer a PDU by a Reject that carries its header (section 11.17)."""
        self.send(Reject(reason=reason, data=bytes(header[:BHS_SIZE])))

    def ping(self) -> None:
        """Ask whether the initiator is alive; ``pinged`` stays true until it answers."""
        self._ping_tag = serial.add(self._ping_tag, 1) % RESERVED_TAG
        self.pinged = True
        self.send(NopIn(target_transfer_tag=self._ping_tag), numbered=False)

    def request_logout(self, seconds: int) -> None:
        """Ask the initiator to log out within ``seconds`` (section 11.9, event 1)."""
        self.send(AsyncMessage(async_event=AsyncEvent.LOGOUT_REQUEST, parameter3=seconds))

    def ready_to_transfer(self, command: ScsiCommand, grant: Grant) -> None:
        """Send one R2T for a command with data-out."""
        pdu = R2T(
            lun=command.lun,
            initiator_task_tag=command.initiator_task_tag,
            target_transfer_tag=grant.tag,
            r2t_sn=grant.r2t_sn,
            buffer_offset=grant.offset,
            desired_data_transfer_length=grant.length,
        )
        self.send(pdu, numbered=False)

    def data_in_room(self, length: int) -> memoryview:
        """Return memory of ``length`` bytes in the outbox to read data-in into; ``data_in_commit`` sends it.

        Nothing is queued before the commit: whoever cannot fill it just leaves it.
        """
        outbox = self.outbox
        start = outbox.room(length + 64) + self._header_size
        return outbox.view[start : start + length]

    def data_in_commit(self, tag: int, length: int) -> None:
        """Send the memory of the last ``data_in_room`` as the whole data-in of a command that ends with GOOD."""
        if self._plain and length and not length & 3:
            window = self.window
            exp_cmd_sn = window.exp_cmd_sn
            stat_sn = self.stat_sn
            self.stat_sn = (stat_sn + 1) & 0xFFFFFFFF
            outbox = self.outbox
            _PACK_DATA_IN(
                outbox.buffer, outbox.end, _DATA_IN_GOOD, length, tag, 0xFFFFFFFF,
                stat_sn, exp_cmd_sn, (exp_cmd_sn + window.ahead) & 0xFFFFFFFF,
            )  # fmt: skip
            outbox.commit(48 + length)
        elif length:
            self.data_in_commit_segment(tag, Segment(0, length, 0, True, True), 0, 0)
        else:
            self.good(tag)  # Data-In PDUs without data are to be avoided (section 11.7.7)

    def data_in_commit_segment(self, tag: int, segment: Segment, expected: int, length: int) -> None:
        """Send the memory of the last ``data_in_room`` as one Data-In PDU of several; as ``data_in`` otherwise."""
        outbox = self.outbox
        start = outbox.end + self._header_size
        end = start + segment.length
        data = outbox.view[start:end]
        header = self._data_in_header(tag, segment, data, expected, length).pack()
        if self._header_digest:
            header += _DIGEST.pack(crc32c(header))
        trailer = _PADDING[segment.length & 3]
        if self.data_digest:
            trailer += _DIGEST.pack(crc32c(trailer, crc32c(data)))
        outbox.buffer[outbox.end : start] = header
        outbox.buffer[end : end + len(trailer)] = trailer
        outbox.commit(len(header) + segment.length + len(trailer))

    def data_in_lend(self, tag: int, data: memoryview) -> None:
        """Send ``data`` where it lies as the whole data-in of a command that ends with GOOD."""
        length = len(data)
        if self._plain and length and not length & 3:
            window = self.window
            exp_cmd_sn = window.exp_cmd_sn
            stat_sn = self.stat_sn
            self.stat_sn = (stat_sn + 1) & 0xFFFFFFFF
            outbox = self.outbox
            position = outbox.end
            if position + 48 > outbox.size:
                position = outbox.room(48)
            _PACK_DATA_IN(
                outbox.buffer, position, _DATA_IN_GOOD, length, tag, 0xFFFFFFFF,
                stat_sn, exp_cmd_sn, (exp_cmd_sn + window.ahead) & 0xFFFFFFFF,
            )  # fmt: skip
            outbox.commit_and_lend(48, data)
        elif length:
            self.data_in(tag, Segment(0, length, 0, True, True), data, 0, 0)
        else:
            self.good(tag)

    def good(self, tag: int) -> None:
        """Answer a command without data-in, sense or residual by GOOD."""
        window = self.window
        exp_cmd_sn = window.exp_cmd_sn
        stat_sn = self.stat_sn
        self.stat_sn = (stat_sn + 1) & 0xFFFFFFFF
        outbox = self.outbox
        start = outbox.room(64)
        buffer = outbox.buffer
        _PACK_RESPONSE(
            buffer, start, _RESPONSE_GOOD, tag, stat_sn, exp_cmd_sn, (exp_cmd_sn + window.ahead) & 0xFFFFFFFF
        )
        if self._header_digest:
            _DIGEST.pack_into(buffer, start + BHS_SIZE, crc32c(outbox.view[start : start + BHS_SIZE]))
        outbox.commit(self._header_size)

    def data_in(self, tag: int, segment: Segment, data: memoryview, expected: int, length: int) -> None:
        """Send one Data-In PDU; the last one of a transfer carries GOOD and the residual.

        ``expected`` is the command's EDTL, ``length`` what the command had to deliver. Long ``data`` is lent to the
        outbox, but not under a data digest, which would not fit any more if the bytes changed before they are sent.
        """
        self._emit(self._data_in_header(tag, segment, data, expected, length), lend=True)

    def _data_in_header(self, tag: int, segment: Segment, data: memoryview, expected: int, length: int) -> ScsiDataIn:
        window = self.window
        pdu = ScsiDataIn(
            flags=FINAL if segment.final else 0,
            initiator_task_tag=tag,
            data_sn=segment.data_sn,
            buffer_offset=segment.offset,
            exp_cmd_sn=window.exp_cmd_sn,
            max_cmd_sn=window.max_cmd_sn,
            data=data,
        )
        if segment.last:
            flag, pdu.residual_count = residual(expected, length)
            pdu.flags |= STATUS | flag
            pdu.stat_sn = self.stat_sn
            self.stat_sn = serial.add(self.stat_sn, 1)
        return pdu

    def respond(self, tag: int, status: int, data: bytes, expected: int, length: int, exp_data_sn: int = 0) -> None:
        """Send a SCSI Response: ``data`` is its data segment (sense), the residual as in ``data_in``."""
        flag, count = residual(expected, length)
        self.send(
            ScsiResponse(
                flags=FINAL | flag,
                status=status,
                initiator_task_tag=tag,
                exp_data_sn=exp_data_sn,
                residual_count=count,
                data=data,
            )
        )

    def _emit(self, pdu: Pdu, *, lend: bool = False) -> None:
        """Frame ``pdu``: header, its digest, data, padding, its digest.

        ``lend`` lets long data go without a copy, where no digest is taken of it.
        """
        outbox = self.outbox
        header = pdu.pack()
        outbox.put(header)
        if self._header_digest:
            outbox.put(_DIGEST.pack(crc32c(header)))
        data = pdu.data
        length = len(data)
        if not length:
            return
        if lend and not self.data_digest and isinstance(data, memoryview) and length > LEND_FROM:
            outbox.lend(data)
        else:
            outbox.put(data)
        padding = _PADDING[length & 3]
        if self.data_digest:
            # Of the copy: memory that others write to may have changed since.
            copy = outbox.view[outbox.end - length : outbox.end]
            padding += _DIGEST.pack(crc32c(padding, crc32c(copy)))
        outbox.put(padding)


def residual(expected: int, length: int) -> tuple[int, int]:
    """Return the O or U flag and the Residual Count for ``length`` bytes where ``expected`` were (11.4.5)."""
    if length > expected:
        return OVERFLOW, length - expected
    if length < expected:
        return UNDERFLOW, expected - length
    return 0, 0
