"""An initiator that shares no line with the server, for what the foreign programs cannot do: hold, break, misbehave.

It does one thing at a time on a blocking socket, and says in plain struct formats what RFC 7143 section 11 draws.
"""

from __future__ import annotations

import itertools
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from e2e_server import TARGET

BHS = 48
NO_TAG = 0xFFFFFFFF
LOGIN, SCSI, NOP_OUT, LOGOUT = 0x03, 0x01, 0x00, 0x06
SCSI_RESPONSE, LOGIN_RESPONSE, DATA_IN, NOP_IN, LOGOUT_RESPONSE, ASYNC, REJECT = (
    0x21,
    0x23,
    0x25,
    0x20,
    0x26,
    0x32,
    0x3F,
)
TIMEOUT = 20.0
IMMEDIATE = 65536  # what a write sends with its command, at most
_isids = itertools.count(1)


class Refused(Exception):
    """The target answered a login with a status other than success: (class << 8) | detail."""

    def __init__(self, status: int) -> None:
        super().__init__(f"login status {status:#06x}")
        self.status = status


class Closed(Exception):
    """The target closed the connection."""


class Rejected(Exception):
    """The target answered with Reject; the reason code."""


def pdu(opcode: int, flags: int, fields: bytes, data: bytes = b"", *, lun: int = 0, tag: int = 0) -> bytes:
    """A PDU without AHS or digest. `fields` are the bytes from 20 on; `lun` is the whole 8-byte field."""
    head = struct.pack(">BBxxI", opcode, flags, len(data)) + struct.pack(">QI", lun, tag)
    return (head + fields).ljust(BHS, b"\0") + data + b"\0" * (-len(data) % 4)


def text(**pairs: str) -> bytes:
    return b"".join(f"{key}={value}\0".encode() for key, value in pairs.items())


class Initiator:
    """One connection, one session. `source` is the local address it comes from."""

    def __init__(
        self,
        address: tuple[str, int],
        name: str = "iqn.2026-11.org.iscsid.e2e:host",
        *,
        source: str | None = None,
        login: bool = True,
        luns: Sequence[int] = (0,),
    ) -> None:
        self.name = name
        self.luns = luns  # where to have the first unit attention behind after a login
        self.isid = struct.pack(">BHBH", 0x80, os.getpid() & 0xFFFF, 0, next(_isids))
        self.cmd_sn = 1
        self.exp_stat_sn = 0
        self.tags = itertools.count(1)
        self.sock = socket.create_connection(address, TIMEOUT, source_address=(source, 0) if source else None)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if login:
            try:
                self.login()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Initiator:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    # -- PDUs --------------------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except (ConnectionError, TimeoutError) as exc:
            raise Closed(str(exc)) from exc

    def receive(self) -> tuple[bytes, bytes]:
        """The next PDU that is not just a sign of life: BHS and data segment."""
        while True:
            head = self._exactly(BHS)
            length = int.from_bytes(head[5:8], "big")
            self._exactly(head[4] * 4)
            data = self._exactly(length + -length % 4)[:length]
            opcode = head[0] & 0x3F
            tag = head[20:24]
            if opcode == NOP_IN and tag != b"\xff\xff\xff\xff":  # a ping of the target
                fields = tag + struct.pack(">II", self.cmd_sn, self.exp_stat_sn)
                self.send(pdu(NOP_OUT | 0x40, 0x80, fields, lun=int.from_bytes(head[8:16], "big"), tag=NO_TAG))
            elif opcode == REJECT:
                raise Rejected(head[2])
            elif opcode != ASYNC:
                return head, data

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                part = self.sock.recv(length - len(data))
            except ConnectionError as exc:
                raise Closed(str(exc)) from exc
            if not part:
                raise Closed("end of stream")
            data += part
        return bytes(data)

    def wait_closed(self) -> bytes:
        """Read until the target closes; return what it said before. Raises TimeoutError when it does not."""
        said = bytearray()
        try:
            while part := self.sock.recv(65536):
                said += part
        except ConnectionError:
            pass
        return bytes(said)

    # -- the session -------------------------------------------------------------------------------------------------

    def login_pdu(self, flags: int = 0x87, data: bytes | None = None) -> bytes:
        """A Login Request: by default from the operational stage straight to full feature phase."""
        if data is None:
            data = text(
                InitiatorName=self.name,
                SessionType="Normal",
                TargetName=TARGET,
                HeaderDigest="None",
                DataDigest="None",
                InitialR2T="No",
                ImmediateData="Yes",
                MaxRecvDataSegmentLength="262144",
                FirstBurstLength="65536",
            )
        body = struct.pack(">HHII", 0, 0, self.cmd_sn, self.exp_stat_sn)
        head = struct.pack(">BBBBI", LOGIN | 0x40, flags, 0, 0, len(data)) + self.isid + struct.pack(">HI", 0, 0)
        return (head + body).ljust(BHS, b"\0") + data + b"\0" * (-len(data) % 4)

    def login(self) -> None:
        self.send(self.login_pdu())
        head, _ = self.receive()
        assert head[0] & 0x3F == LOGIN_RESPONSE
        if status := int.from_bytes(head[36:38], "big"):
            raise Refused(status)
        assert head[1] & 0x83 == 0x83, "one Login Request was enough"
        self.exp_stat_sn = int.from_bytes(head[24:28], "big") + 1
        for lun in self.luns:
            status, sense = self.command(bytes(6), lun=lun)
            assert status == 2 and sense[4] & 0xF == 6, "a session begins with a unit attention"

    def command_pdu(self, cdb: bytes, data_out: bytes = b"", expect: int = 0, lun: int = 0) -> bytes:
        """A SCSI Command with all its data-out immediate; takes a tag and a CmdSN."""
        flags = 0x81 | (0x40 if expect else 0) | (0x20 if data_out else 0)
        fields = struct.pack(">III", expect or len(data_out), self.cmd_sn, self.exp_stat_sn) + cdb.ljust(16, b"\0")
        self.cmd_sn += 1
        return pdu(SCSI, flags, fields, data_out, lun=lun << 48, tag=next(self.tags))

    def command(self, cdb: bytes, data_out: bytes = b"", expect: int = 0, lun: int = 0) -> tuple[int, bytes]:
        """Do one command; its status, and its data-in or sense data."""
        self.send(self.command_pdu(cdb, data_out, expect, lun))
        data_in = bytearray(expect)
        got = 0
        while True:
            head, data = self.receive()
            opcode = head[0] & 0x3F
            if opcode == DATA_IN:
                offset = int.from_bytes(head[40:44], "big")
                data_in[offset : offset + len(data)] = data
                got += len(data)
                if not head[1] & 1:
                    continue
            assert opcode in (DATA_IN, SCSI_RESPONSE), f"opcode {opcode:#x}"
            self.exp_stat_sn = int.from_bytes(head[24:28], "big") + 1
            return head[3], bytes(data_in[:got]) if opcode == DATA_IN or not data else data

    def read(self, lba: int, blocks: int, block_size: int = 512) -> bytes:
        status, data = self.command(struct.pack(">BBQIBB", 0x88, 0, lba, blocks, 0, 0), expect=blocks * block_size)
        assert status == 0, f"status {status:#x}, sense {data.hex()}"
        return data

    def write(self, lba: int, data: bytes, block_size: int = 512) -> None:
        assert len(data) <= IMMEDIATE
        cdb = struct.pack(">BBQIBB", 0x8A, 0, lba, len(data) // block_size, 0, 0)
        status, sense = self.command(cdb, data_out=data)
        assert status == 0, f"status {status:#x}, sense {sense.hex()}"

    def flush(self) -> None:
        assert self.command(b"\x35")[0] == 0

    def logout(self) -> None:
        fields = struct.pack(">HHII", 0, 0, self.cmd_sn, self.exp_stat_sn)
        self.send(pdu(LOGOUT | 0x40, 0x80, fields, tag=next(self.tags)))
        head, _ = self.receive()
        assert head[0] & 0x3F == LOGOUT_RESPONSE and head[2] == 0


class Steady(threading.Thread):
    """A well-behaved host that writes, reads back and compares all the while; `served` counts its rounds."""

    def __init__(self, initiator: Initiator, lba: int) -> None:
        super().__init__(daemon=True)
        self.initiator = initiator
        self.lba = lba
        self.served = 0
        self.trouble: BaseException | None = None
        self._halt = threading.Event()

    def run(self) -> None:
        try:
            while not self._halt.wait(0.005):
                data = os.urandom(4096)
                self.initiator.write(self.lba, data)
                if self.initiator.read(self.lba, 8) != data:
                    raise AssertionError("what was read is not what was written")
                self.served += 1
        except BaseException as exc:
            self.trouble = exc

    def halt(self) -> None:
        self._halt.set()
        self.join(TIMEOUT)


@contextmanager
def steady(
    address: tuple[str, int], lba: int = 4096, name: str = "iqn.2026-11.org.iscsid.e2e:steady"
) -> Iterator[Steady]:
    """Keep a good client going; at the end it must have been served throughout, and still be."""
    with Initiator(address, name) as initiator:
        client = Steady(initiator, lba)
        client.start()
        try:
            yield client
            before = client.served
            for _ in range(1000):
                if client.served > before + 2 or not client.is_alive():
                    break
                client.join(0.02)
        finally:
            client.halt()
        assert client.trouble is None, f"the good client had trouble: {client.trouble!r}"
        assert client.served > before + 2, "the good client was not served any more"
