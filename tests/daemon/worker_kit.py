"""A worker in a thread, devices that can be held, and an initiator on a blocking socket."""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Self

from iscsid import serial
from iscsid.daemon.boot import WorkerBoot
from iscsid.daemon.channel import Channel
from iscsid.daemon.nodes import Nodes
from iscsid.daemon.worker import Worker
from iscsid.plugin import CredentialSource, Device, Mode, Threading
from iscsid.session.authentication import Authenticator
from iscsid.session.login import InitiatorLogin
from iscsid.shared.messages import Connect, Message, Stop
from iscsid.specs import LunSpec, ServerSpec, TargetSpec
from iscsid.text.keys import INITIATOR_OFFERS
from iscsid.wire.const import FINAL, READ, RESERVED_TAG, WRITE
from iscsid.wire.framer import Framer
from iscsid.wire.pdu import (
    INITIATOR_RECEIVES,
    LogoutRequest,
    NopIn,
    NopOut,
    Pdu,
    ScsiCommand,
    ScsiDataIn,
    ScsiResponse,
    padding,
)

WAIT = 20.0  # seconds after which a condition that should come soon has not
TARGET = "iqn.2026-11.org.iscsid:disk0"
NAME = "iqn.2010-11.org.example:host"
BLOCK = 512


class MemoryDevice(Device):
    """A disk in a bytearray that never waits. ``log`` has what was called, ``threads`` in which threads."""

    mode = Mode.INLINE
    threading = Threading.PARALLEL

    def __init__(self, size: int = 1 << 20) -> None:
        self.size = size
        self.memory = bytearray(size)
        self.log: list[str] = []
        self.threads: set[str] = set()

    def _note(self, what: str) -> None:
        self.log.append(what)
        self.threads.add(threading.current_thread().name)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._note(f"read {offset}")
        buffer[:] = self.memory[offset : offset + len(buffer)]

    def write(self, data: memoryview, offset: int) -> None:
        self._note(f"write {offset}")
        self.memory[offset : offset + len(data)] = data

    def close(self) -> None:
        self._note("close")


class SlowDevice(MemoryDevice):
    """A disk whose calls wait for ``gate``, which is open at first; ``entered`` counts those that have come so far."""

    mode = Mode.BLOCKING

    def __init__(self, size: int = 1 << 20) -> None:
        super().__init__(size)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def _wait(self) -> None:
        self.entered.release()
        assert self.gate.wait(WAIT), "nobody has opened the gate"

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._wait()
        super().read_into(buffer, offset)

    def write(self, data: memoryview, offset: int) -> None:
        self._wait()
        super().write(data, offset)

    def flush(self) -> None:
        self._wait()
        self._note("flush")


class CachedDevice(SlowDevice):
    """A disk that takes writes in the loop."""

    def write_nowait(self, data: memoryview, offset: int) -> None:
        self._note("write_nowait")
        self.memory[offset : offset + len(data)] = data


class Planted(SimpleNamespace):
    """As much of Plugins as Nodes uses: a LUN's option ``device`` is what is opened, or a callable that makes it; the
    option ``source`` of an AuthSpec is what authenticates."""

    def authenticate(self, source: str, options: Mapping[str, Any]) -> CredentialSource:
        found: CredentialSource = options["source"]
        return found

    def open(self, backend: str, options: Mapping[str, Any], role: str) -> Device:
        device = options["device"]
        return device if isinstance(device, Device) else device(role)

    def role_under(self, layers: Iterable[str], role: str) -> str:
        return role

    def wrap(self, device: Device, layer: str, options: Mapping[str, Any]) -> Device:
        wrapped: Device = options["wrap"](device)
        return wrapped


def lun_of(device: Any, number: int = 0, **fields: Any) -> LunSpec:
    return LunSpec(number, "planted", {"device": device}, **fields)


def boot_of(*luns: LunSpec, name: str = TARGET, guests: Mapping[str, Any] | None = None, **fields: Any) -> WorkerBoot:
    """A server with one target; ``guests``: the fields of its spec that say who may come. ``fields``: the server's."""
    spec = ServerSpec(targets=(TargetSpec(name, luns, **(guests or {})),), **fields)
    return WorkerBoot(0, spec, Planted())  # type: ignore[arg-type]


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection on this host."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), timeout=WAIT)
        theirs, _ = listener.accept()
    return ours, theirs


def until(condition: Callable[[], Any], what: str = "it") -> Any:
    """The first true value of ``condition``, which another thread brings about."""
    deadline = time.monotonic() + WAIT
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come"
        select.select([], [], [], 0.005)
    return value


class Running:
    """A worker in a thread, and the supervisor's end of its channel."""

    def __init__(self, boot: WorkerBoot) -> None:
        self.channel, theirs = Channel.pair()
        self.nodes = Nodes(boot)
        self.worker = Worker(theirs, boot, self.nodes)
        self.code: int | None = None
        self.trouble: BaseException | None = None
        self.said: list[Message] = []  # by the worker, and not yet waited for
        self.initiators: list[Initiator] = []
        self._theirs = theirs
        self.thread = threading.Thread(target=self._live, name="worker", daemon=True)
        self.thread.start()

    def _live(self) -> None:
        try:
            self.code = self.worker.run()
        except BaseException as exc:
            self.trouble = exc
        finally:
            self.worker.close()

    def hear(self, timeout: float = WAIT) -> bool:
        """Take what the worker says into ``said``; False when it says nothing."""
        if self.channel.eof or not select.select([self.channel], [], [], timeout)[0]:
            return False
        self.said += [message for message, _ in self.channel.receive()]
        return True

    def wait_for(self, kind: type[Any], **fields: Any) -> Any:
        """The next message of this kind and with these fields; it is taken out of ``said``."""
        while True:
            for message in self.said:
                if isinstance(message, kind) and all(getattr(message, key) == fields[key] for key in fields):
                    self.said.remove(message)
                    return message
            assert self.hear(), f"no {kind.__name__} {fields} among {self.said}"

    def connect(self, tsih: int = 1, *, send: bytes = b"", **options: Any) -> Initiator:
        """An initiator whose connection was given to the worker; ``send`` is there before the worker looks."""
        ours, theirs = connected()
        initiator = Initiator(ours, **options)
        self.initiators.append(initiator)
        if send:
            ours.sendall(send)
        host, port = ours.getsockname()
        portal = "{}:{}".format(*theirs.getsockname())
        self.channel.send(Connect(tsih, NAME, initiator.isid, TARGET, f"{host}:{port}", portal), theirs.detach())
        return initiator

    def log_in(self, tsih: int = 1, *, greeted: bool = True, **options: Any) -> Initiator:
        """An initiator in full feature phase; see ``Initiator.log_in``."""
        initiator = self.connect(tsih, **options)
        initiator.log_in(greeted=greeted)
        return initiator

    def link_of(self, initiator: Initiator) -> Any:
        """The worker's link of a connection."""
        name = "{}:{}".format(*initiator.sock.getsockname())
        return until(lambda: [link for link in list(self.worker._links.values()) if link.connect.peer == name])[0]

    def ended(self) -> int | None:
        """Wait for the end of the worker; its exit code."""
        self.thread.join(WAIT)
        assert not self.thread.is_alive(), "the worker does not end"
        assert self.trouble is None, repr(self.trouble)
        while self.hear(0):
            pass
        return self.code

    def stop(self, seconds: float = WAIT) -> int | None:
        self.channel.send(Stop(seconds))
        return self.ended()

    def close(self) -> None:
        for initiator in self.initiators:
            initiator.close()
        if self.thread.is_alive():
            self.channel.send(Stop(0.0))
            self.thread.join(WAIT)
        self.channel.close()
        self._theirs.close()
        assert self.trouble is None, repr(self.trouble)


@contextmanager
def running(*luns: LunSpec, **fields: Any) -> Iterator[Running]:
    """A worker that serves ``luns`` as one target, until the block ends."""
    worker = Running(boot_of(*luns, **fields))
    try:
        yield worker
    finally:
        for lun in luns:
            getattr(lun.options["device"], "gate", threading.Event()).set()
        worker.close()


class Initiator:
    """One session on a blocking socket; ``offers`` are beside INITIATOR_OFFERS, ``names`` is the TSIH of the login."""

    def __init__(
        self,
        sock: socket.socket,
        *,
        target: str | None = TARGET,
        names: int = 0,
        name: str = NAME,
        isid: int = 0x80_1234_56_0001,
        offers: Mapping[str, str] | None = None,
        authenticator: Authenticator | None = None,
    ) -> None:
        sock.settimeout(WAIT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.isid = isid
        self.login = InitiatorLogin(
            name,
            target,
            isid=isid,
            tsih=names,
            offers={**INITIATOR_OFFERS, **(offers or {})},
            authenticator=authenticator,
            skip_security=authenticator is None,
        )
        self.framer = Framer(INITIATOR_RECEIVES, 1 << 18)
        self.cmd_sn = self.login.cmd_sn
        self.exp_stat_sn = 0
        self.tag = 0
        self.answers_pings = True
        self.pings = 0
        self.greeting: tuple[int, bytes] | None = None  # the answer to the first command
        self._pdus: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close by RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    # --- PDUs -------------------------------------------------------------------------------------------------------

    def encode(self, *pdus: Pdu) -> bytes:
        return b"".join(pdu.pack() + bytes(pdu.data) + bytes(padding(len(pdu.data))) for pdu in pdus)

    def send(self, *pdus: Pdu) -> None:
        self.sock.sendall(self.encode(*pdus))

    def receive(self) -> Any:
        """The next PDU, with data of its own; None at the end. Pings are answered on the way."""
        while True:
            while not self._pdus:
                count = self.sock.recv_into(self.framer.writable())
                if not count:
                    return None
                self.framer.received(count)
                for pdu in self.framer.pdus():
                    pdu.data = bytes(pdu.data)  # type: ignore[union-attr]
                    self._pdus.append(pdu)
            pdu = self._pdus.pop(0)
            if not isinstance(pdu, NopIn) or pdu.target_transfer_tag == RESERVED_TAG:
                return pdu
            self.pings += 1
            if self.answers_pings:
                self.answer_ping(pdu)

    def next_ping(self) -> NopIn:
        """The next PDU, which must be a ping; it is for the caller to answer."""
        while not self._pdus:
            self.framer.received(self.sock.recv_into(self.framer.writable()))
            self._pdus += self.framer.pdus()
        ping = self._pdus.pop(0)
        assert isinstance(ping, NopIn) and ping.target_transfer_tag != RESERVED_TAG, ping
        return ping

    def answer_ping(self, ping: NopIn) -> None:
        answer = NopOut(immediate=True, initiator_task_tag=RESERVED_TAG, cmd_sn=self.cmd_sn)
        answer.target_transfer_tag = ping.target_transfer_tag
        self.send(answer)

    def expect(self, kind: type[Any]) -> Any:
        """The next PDU, which must be of this kind."""
        pdu = self.receive()
        assert isinstance(pdu, kind), f"{pdu!r} is no {kind.__name__}"
        return pdu

    def at_end(self) -> bool:
        """Whether the target closes next, orderly or not."""
        try:
            return self.receive() is None
        except ConnectionError:
            return True

    # --- the session ------------------------------------------------------------------------------------------------

    def log_in(self, *, greeted: bool = True) -> None:
        """Go to full feature phase, and have the unit attention of LUN 0 behind it. Raises LoginFailed.

        Not ``greeted``: without the latter, where nothing is executed yet.
        """
        requests = [self.login.start()]
        while requests:
            self.send(*requests)
            requests = self.login.receive(self.receive())
        self.establish()
        if greeted and not self.login.parameters.discovery:
            self.send(self.command(bytes(6)))
            self.greeting = self.status()

    def establish(self) -> None:
        """The login is done: go on with its numbers."""
        assert self.login.done
        self.exp_stat_sn = self.login.exp_stat_sn
        self.framer.max_data_segment_length = self.login.parameters.max_recv_data_segment_length

    def command(self, cdb: bytes, *, data: bytes = b"", read: int = 0, lun: int = 0) -> ScsiCommand:
        """A SCSI Command with its data, numbered."""
        self.tag += 1
        pdu = ScsiCommand(
            flags=FINAL | (READ if read else 0) | (WRITE if data else 0),
            lun=lun << 48,
            initiator_task_tag=self.tag,
            expected_data_transfer_length=read or len(data),
            cmd_sn=self.cmd_sn,
            exp_stat_sn=self.exp_stat_sn,
            cdb=cdb.ljust(16, b"\0"),
            data=data,
        )
        self.cmd_sn = serial.add(self.cmd_sn, 1)
        return pdu

    def read_command(self, lba: int, blocks: int = 1) -> ScsiCommand:
        return self.command(struct.pack(">BBQIBB", 0x88, 0, lba, blocks, 0, 0), read=blocks * BLOCK)

    def write_command(self, lba: int, data: bytes) -> ScsiCommand:
        return self.command(struct.pack(">BBQIBB", 0x8A, 0, lba, len(data) // BLOCK, 0, 0), data=data)

    def status(self) -> tuple[int, bytes]:
        """Status and data-in of the command that is answered next."""
        data = b""
        while True:
            pdu = self.receive()
            assert isinstance(pdu, ScsiDataIn | ScsiResponse), repr(pdu)
            if isinstance(pdu, ScsiResponse):
                return pdu.status, bytes(pdu.data) or data
            data += pdu.data
            if pdu.has_status:
                return pdu.status, data

    def read(self, lba: int, blocks: int = 1) -> bytes:
        self.send(self.read_command(lba, blocks))
        status, data = self.status()
        assert status == 0, data.hex()
        return data

    def write(self, lba: int, data: bytes) -> None:
        self.send(self.write_command(lba, data))
        status, sense = self.status()
        assert status == 0, sense.hex()

    def logout_request(self) -> LogoutRequest:
        self.tag += 1
        return LogoutRequest(reason=0, initiator_task_tag=self.tag, cmd_sn=self.cmd_sn, exp_stat_sn=self.exp_stat_sn)
