"""A whole conversation without a socket: our initiator's parts against the target's connection, or a whole engine.

pair = Pair({"HeaderDigest": "CRC32C"}, chunk=1)             # logged in, byte by byte
pair.send(ScsiCommand(flags=FINAL | READ, cdb=…, …))         # numbered, packed, digested, fed to the target
(command,) = pair.take_events()                              # what TargetConnection.events() yielded
(answer,) = pair.receive()                                   # decoded; StatSN and the window are checked

pair = Pair(engine=lambda connection: Engine(connection, …)) # an engine takes the events instead
pair.command(cdb, tag=7, read=512)
answers = pair.receive()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from iscsid import serial
from iscsid.session.connection import Established, Event, TargetConnection
from iscsid.session.login import Admission, InitiatorLogin, TargetLogin
from iscsid.text.keys import INITIATOR_OFFERS, TARGET_OFFERS
from iscsid.wire.const import FINAL, READ, RESERVED_TAG, WRITE
from iscsid.wire.digest import digest
from iscsid.wire.framer import DamagedPdu, Framer
from iscsid.wire.pdu import (
    INITIATOR_RECEIVES,
    R2T,
    LoginResponse,
    NopIn,
    Pdu,
    ScsiCommand,
    ScsiDataIn,
    ScsiDataOut,
    padding,
)

INITIATOR_NAME = "iqn.2010-11.org.example:host"
TARGET_NAME = "iqn.2026-11.org.iscsid:disk0"
ISID = 0x80_1234_56_0001
TSIH = 9
DIGESTS: dict[str, dict[str, str]] = {  # for parametrize: offers by what is digested
    "none": {},
    "header": {"HeaderDigest": "CRC32C"},
    "data": {"DataDigest": "CRC32C"},
    "both": {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"},
}


class Pair:
    """An initiator and a target that are connected.

    Args:
        offers: what the initiator offers beside ``INITIATOR_OFFERS`` (or instead of it, key by key).
        target_offers: the same of the target.
        target_name: None for a discovery session.
        chunk: how many bytes travel at a time, either way; 0: everything at once.
        queue_depth: the command window.
        engine: makes what takes the events: something with ``receive(count)`` and ``sent()``, such as an Engine.
        login: whether to log in at once.
        **login_options: of the InitiatorLogin: cmd_sn, skip_security, …

    Attributes:
        connection, engine: the target's side; ``engine`` is None without one.
        events: what the connection has yielded, with data of its own, without an engine.
        cmd_sn: the number of the next command.
        exp_stat_sn, exp_cmd_sn, max_cmd_sn: what the initiator knows.
        parameters: the initiator's, after the login.
    """

    def __init__(
        self,
        offers: Mapping[str, str] | None = None,
        *,
        target_offers: Mapping[str, str] | None = None,
        target_name: str | None = TARGET_NAME,
        chunk: int = 0,
        queue_depth: int = 32,
        receive_buffer: int = 1 << 20,
        engine: Callable[[TargetConnection], Any] | None = None,
        login: bool = True,
        stat_sn: int = 1,
        **login_options: Any,
    ) -> None:
        self.chunk = chunk
        self.events: list[Event] = []
        target_login = TargetLogin(
            lambda *_: Admission(offers={**TARGET_OFFERS, **(target_offers or {})}),
            tsih=TSIH,
            stat_sn=stat_sn,
            command_window=queue_depth,
        )
        self.connection = TargetConnection(target_login, queue_depth, receive_buffer)
        self.engine = engine(self.connection) if engine is not None else None
        self.login = InitiatorLogin(
            INITIATOR_NAME,
            target_name,
            isid=ISID,
            offers={**INITIATOR_OFFERS, **(offers or {})},
            **login_options,
        )
        self.framer = Framer(INITIATOR_RECEIVES, 1 << 20)
        self.header_digest = self.data_digest = False
        self.cmd_sn = self.exp_cmd_sn = self.max_cmd_sn = self.login.cmd_sn
        self.exp_stat_sn = 0
        if login:
            self.log_in()

    # --- the login --------------------------------------------------------------------------------------------------

    def log_in(self) -> None:
        """Bring both sides to full feature phase."""
        requests = [self.login.start()]
        while requests:
            self.send(*requests, numbered=False)
            requests = []
            for response in self.receive():
                assert isinstance(response, LoginResponse), response
                requests += self.login.receive(response)
        assert self.login.done
        self.parameters = self.login.parameters
        self.framer.max_data_segment_length = self.parameters.max_recv_data_segment_length
        self.framer.header_digest = self.header_digest = self.parameters.header_digest
        self.framer.data_digest = self.data_digest = self.parameters.data_digest
        self.exp_stat_sn = self.login.exp_stat_sn
        self.exp_cmd_sn, self.max_cmd_sn = self.login.exp_cmd_sn, self.login.max_cmd_sn
        if self.engine is None:
            assert [type(event) for event in self.take_events()] == [Established]

    # --- to the target ----------------------------------------------------------------------------------------------

    def send(self, *pdus: Pdu, numbered: bool = True) -> None:
        """Send ``pdus`` in one go. ``numbered`` gives those that have them CmdSN and ExpStatSN.

        Raises what the target's side raises.
        """
        if numbered:
            for pdu in pdus:
                self.number(pdu)
        self.feed(b"".join(self.encode(pdu) for pdu in pdus))

    def number(self, pdu: Pdu) -> None:
        """Give ``pdu`` the next CmdSN, which an immediate one does not use up, and the ExpStatSN."""
        if hasattr(pdu, "exp_stat_sn"):
            pdu.exp_stat_sn = self.exp_stat_sn
        if hasattr(pdu, "cmd_sn"):
            pdu.cmd_sn = self.cmd_sn
            if not pdu.immediate:
                self.cmd_sn = serial.add(self.cmd_sn, 1)

    def encode(self, pdu: Pdu) -> bytes:
        """Return ``pdu`` as it is on the wire, with padding and the digests that are in force."""
        header = pdu.pack()
        if self.header_digest:
            header += digest(header)
        data = bytes(pdu.data) + bytes(padding(len(pdu.data)))
        return header + data + (digest(data) if data and self.data_digest else b"")

    def feed(self, stream: bytes) -> None:
        """Let the target receive ``stream``, by the chunk."""
        while stream:
            room = self.connection.framer.writable()
            count = min(len(room), self.chunk or len(stream), len(stream))
            room[:count] = stream[:count]
            room.release()
            stream = stream[count:]
            if self.engine is not None:
                self.engine.receive(count)
            else:
                self.connection.framer.received(count)
                for event in self.connection.events():
                    if isinstance(event, Pdu):
                        event.data = bytes(event.data)
                    self.events.append(event)

    def take_events(self) -> list[Any]:
        """Return what the target's connection has yielded since the last call."""
        events, self.events = self.events, []
        return events

    def command(
        self, cdb: bytes, *, tag: int, lun: int = 0, read: int = 0, write: int = 0, data: bytes = b"", **fields: Any
    ) -> None:
        """Send one SCSI command that expects to read, or to write, so many bytes; ``data`` is immediate data."""
        flags = FINAL | (READ if read else 0) | (WRITE if write else 0)
        fields = {"flags": flags, "expected_data_transfer_length": read or write, **fields}
        self.send(ScsiCommand(cdb=cdb.ljust(16, b"\0"), initiator_task_tag=tag, lun=lun, data=data, **fields))

    def answer_r2t(self, r2t: R2T, data: bytes, *, size: int = 0) -> None:
        """Send what ``r2t`` asks for out of ``data``, the command's whole data, in PDUs of at most ``size`` bytes."""
        size = size or self.parameters.peer_max_recv_data_segment_length
        end = r2t.buffer_offset + r2t.desired_data_transfer_length
        starts = range(r2t.buffer_offset, end, size)
        self.send(
            *(
                ScsiDataOut(
                    flags=FINAL if start + size >= end else 0,
                    lun=r2t.lun,
                    initiator_task_tag=r2t.initiator_task_tag,
                    target_transfer_tag=r2t.target_transfer_tag,
                    data_sn=data_sn,
                    buffer_offset=start,
                    data=data[start : min(start + size, end)],
                )
                for data_sn, start in enumerate(starts)
            )
        )

    # --- from the target --------------------------------------------------------------------------------------------

    def receive(self) -> list[Any]:
        """Return the PDUs that the target has sent; its numbers are checked on the way."""
        outbox = self.connection.outbox
        pdus: list[Any] = []
        while segments := outbox.segments():
            stream = b"".join(segments)[: self.chunk or None]
            segments.clear()
            outbox.sent(len(stream))
            if self.engine is not None:
                self.engine.sent()
            self._hear(stream, pdus)
        assert not self.framer.pending, "a PDU is cut short"
        return pdus

    def _hear(self, stream: bytes, pdus: list[Any]) -> None:
        while stream:
            room = self.framer.writable()
            count = min(len(room), len(stream))
            room[:count] = stream[:count]
            room.release()
            stream = stream[count:]
            self.framer.received(count)
            for pdu in self.framer.pdus():
                assert not isinstance(pdu, DamagedPdu), pdu
                pdu.data = bytes(pdu.data)
                if self.login.done:
                    self._check_numbers(pdu)
                pdus.append(pdu)

    def _check_numbers(self, pdu: Any) -> None:
        """StatSN counts what it has to count, and the window never moves back (RFC 7143 4.2.2.1 and 4.2.2.2)."""
        has_status = not isinstance(pdu, ScsiDataIn) or pdu.has_status
        if has_status:
            assert pdu.stat_sn == self.exp_stat_sn, pdu
        ping = isinstance(pdu, NopIn) and pdu.initiator_task_tag == RESERVED_TAG
        if has_status and not ping and not isinstance(pdu, R2T):
            self.exp_stat_sn = serial.add(self.exp_stat_sn, 1)
        assert not serial.less(pdu.exp_cmd_sn, self.exp_cmd_sn), pdu
        assert not serial.less(pdu.max_cmd_sn, self.max_cmd_sn), pdu
        self.exp_cmd_sn, self.max_cmd_sn = pdu.exp_cmd_sn, pdu.max_cmd_sn
