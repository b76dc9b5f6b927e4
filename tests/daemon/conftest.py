"""A worker that needs no back end and speaks no iSCSI, and a server of such workers in a process of its own.

The fake worker answers a connection with one line of JSON (which worker, which Connect), keeps it until it ends, and
does what the name of the target says: ``crash``, ``hang``. A line of JSON that comes on it later is an order: ask the
authority (``cdb``, ``data``; or ``reset``), whose answer comes back as a line, or tell what updates there were.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.daemon import control
from iscsid.daemon.boot import WorkerBoot
from iscsid.daemon.channel import Channel
from iscsid.daemon.supervisor import Started, serve
from iscsid.plugin import BackendInfo, Sharing
from iscsid.shared.messages import (
    AskReset,
    AskUnit,
    Beat,
    BootFailed,
    Connect,
    Drop,
    Message,
    Poll,
    Ready,
    SessionClosed,
    SessionFigures,
    SessionInfo,
    SessionOpened,
    Stop,
    Stopped,
    UnitAnswer,
    UnitApplied,
    UpdateUnit,
)
from iscsid.specs import LunSpec, PortalSpec, ServerSpec, TargetSpec
from iscsid.wire.pdu import LoginRequest, padding

sys.path.insert(0, str(Path(__file__).parent))  # for worker_kit: a folder of tests is no package

WAIT = 20.0  # seconds after which a condition that should come soon has not


class FakeWorker:
    """One life of the fake worker."""

    def __init__(self, channel: Channel, boot: WorkerBoot) -> None:
        self.channel = channel
        self.boot = boot
        self.selector = selectors.DefaultSelector()
        self.selector.register(channel, selectors.EVENT_READ)
        self.sessions: dict[int, socket.socket] = {}
        self.stopping = False
        self.connects: dict[int, Connect] = {}
        self.asks: dict[int, int] = {}  # number -> TSIH
        self.number = 0
        self.updates: list[UpdateUnit] = []

    def run(self) -> int:
        logging.getLogger("fake").info("hello from worker %d, pid %d", self.boot.index, os.getpid())
        self.channel.send(Ready())
        while not self.stopping and not self.channel.eof:
            for key, _ in self.selector.select(0.1):
                if key.fileobj is self.channel:
                    for message, fd in self.channel.receive():
                        self.on_message(message, fd)
                else:
                    self.on_client(key.data)
            self.channel.send(Beat(connections=len(self.sessions)))
        for tsih in list(self.sessions):
            self.end(tsih, "stop")
        self.channel.send(Stopped())
        return 0

    def on_message(self, message: Message, fd: int | None) -> None:
        if isinstance(message, Connect):
            assert fd is not None
            self.on_connect(message, socket.socket(fileno=fd))
        elif isinstance(message, Drop):
            self.end(message.tsih, message.reason)
        elif isinstance(message, Stop):
            self.stopping = True
        elif isinstance(message, UpdateUnit):
            self.updates.append(message)
            self.channel.send(UnitApplied(message.unit, message.generation))
        elif isinstance(message, UnitAnswer):
            self.tell(self.asks.pop(message.ask), asdict(message))
        elif isinstance(message, Poll):
            for tsih in self.sessions:
                self.channel.send(SessionFigures(tsih, 3, 4096, 512))

    def on_connect(self, connect: Connect, sock: socket.socket) -> None:
        if connect.target == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if connect.target == "hang":
            signal.pause()
        first = sock.recv(8300)
        answer = {"worker": self.boot.index, "pid": os.getpid(), "first": len(first), **asdict(connect)}
        if not connect.tsih or connect.target == "refuse":
            sock.sendall(json.dumps({"refused": True, **answer}).encode() + b"\n")
            sock.close()
            if connect.tsih:
                self.channel.send(SessionClosed(connect.tsih, "refused"))
            return
        self.sessions[connect.tsih] = sock
        self.connects[connect.tsih] = connect
        self.selector.register(sock, selectors.EVENT_READ, connect.tsih)
        if connect.target != "pending":
            info = SessionInfo(connect.initiator, connect.isid, connect.target, connect.peer, connect.portal)
            self.channel.send(SessionOpened(connect.tsih, info))
        sock.sendall(json.dumps(answer).encode() + b"\n")

    def on_client(self, tsih: int) -> None:
        data = self.sessions[tsih].recv(1000)
        if not data:
            self.end(tsih, "closed by initiator")
            return
        order = json.loads(data)
        if "told" in order:
            self.tell(tsih, {"told": [asdict(update) for update in self.updates]})
            return
        self.number += 1
        self.asks[self.number] = tsih
        connect = self.connects[tsih]
        nexus = (connect.initiator, connect.isid, connect.target, 1)
        if "reset" in order:
            self.channel.send(AskReset(self.number, order.get("unit", "SERIAL"), *nexus, order["reset"]))
        else:
            self.channel.send(AskUnit(self.number, "SERIAL", *nexus, order["cdb"], order.get("data", "")))

    def tell(self, tsih: int, answer: dict[str, Any]) -> None:
        if tsih in self.sessions:
            self.sessions[tsih].sendall(json.dumps(answer).encode() + b"\n")

    def end(self, tsih: int, reason: str) -> None:
        sock = self.sessions.pop(tsih, None)
        if sock is not None:
            self.selector.unregister(sock)
            sock.close()
        self.channel.send(SessionClosed(tsih, reason))


def fake_run(channel: Channel, boot: WorkerBoot) -> int:
    return FakeWorker(channel, boot).run()


def failing_run(channel: Channel, boot: WorkerBoot) -> int:
    """The second worker cannot boot."""
    if boot.index == 1:
        channel.send(BootFailed("target x, lun 0: the medium is upside down"))
        return 3
    return fake_run(channel, boot)


def crashing_run(channel: Channel, boot: WorkerBoot) -> int:
    raise RuntimeError("planted")


def deaf_run(channel: Channel, boot: WorkerBoot) -> int:
    """Ready, and then neither a beat nor an ear."""
    channel.send(Ready())
    signal.pause()
    return 0


class FakePlugins(SimpleNamespace):
    """As much of Plugins as a supervisor uses; ``calls`` is what was asked of it."""

    def __init__(self, **failures: Exception) -> None:
        super().__init__(calls=[], failures=failures)
        self.backends = {
            "null": BackendInfo("null", ""),
            "lonely": BackendInfo("lonely", "", sharing=Sharing.EXCLUSIVE_OWNER),
        }

    def role_under(self, layers: Iterable[str], role: str) -> str:
        return role

    def prepare(self, backend: str, options: dict[str, Any], role: str) -> dict[str, Any]:
        if "prepare" in self.failures:
            raise self.failures["prepare"]
        self.calls.append(("prepare", backend))
        return {**options, "prepared": len(self.calls)}

    def sharing(self, backend: str, options: Mapping[str, Any], layers: Iterable[str] = ()) -> Sharing:
        return self.backends[backend].sharing

    arguments = None

    def prepare_layers(self, layers: Iterable[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
        return list(layers)

    def release_layers(self, layers: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        assert not list(layers)

    def release(self, backend: str, options: dict[str, Any]) -> None:
        self.calls.append(("release", options["prepared"]))


class Server:
    """A supervisor in a process of its own. ``portal``, ``pids`` are what it told when it had started."""

    def __init__(self, tmp_path: Path, run: Callable[..., int], plugins: Any, **changes: Any) -> None:
        self.runtime_dir = str(tmp_path / "run")
        self.log_path = tmp_path / "log"
        defaults: dict[str, Any] = {
            "portals": (PortalSpec("127.0.0.1", 0),),
            "targets": (
                TargetSpec("disk", (LunSpec(0, "null", serial="SERIAL"),)),
                TargetSpec("single", (LunSpec(0, "lonely", serial="LONELY"),)),
            ),
            "workers": 2,
            "runtime_dir": self.runtime_dir,
            "state_dir": str(tmp_path / "state"),
            "stop_timeout": 5.0,
        }
        self.spec = ServerSpec(**{**defaults, **changes})
        self.exit_code: int | None = None
        self.clients: list[socket.socket] = []
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            self._live(run, plugins, writer)
        os.close(writer)
        self.pidfd = os.pidfd_open(self.pid)
        with open(reader, encoding="utf-8") as told:
            line = told.readline()
        self.told: dict[str, Any] = json.loads(line) if line else {}

    def _live(self, run: Callable[..., int], plugins: Any, writer: int) -> None:
        code = 99
        try:
            root = logging.getLogger()
            root.handlers[:] = [logging.FileHandler(self.log_path)]
            root.handlers[0].setFormatter(logging.Formatter("%(processName)s %(levelname)s %(message)s"))

            def started(what: Started) -> None:
                told = {"portals": [[portal.host, portal.port] for portal in what.portals], "pids": what.pids}
                os.write(writer, json.dumps(told).encode() + b"\n")

            code = serve(self.spec, plugins, started=started, notify=self._notified, run=run)
        finally:
            os._exit(code)

    @staticmethod
    def _notified(line: str) -> None:
        logging.getLogger("notify").info("notify %s", line)

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.told["portals"][0]
        return host, port

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def connect(self) -> socket.socket:
        sock = socket.create_connection(self.address, timeout=WAIT)
        self.clients.append(sock)
        return sock

    def login(self, target: str = "disk", isid: int = 1, tsih: int = 0) -> socket.socket:
        """A connection with its first PDU sent."""
        sock = self.connect()
        text = f"InitiatorName=host\0TargetName={target}\0".encode()
        pdu = LoginRequest(isid=isid, tsih=tsih, transit=True, csg=1, nsg=3, data=text)
        sock.sendall(pdu.pack() + text + bytes(padding(len(text))))
        return sock

    def ask(self, command: str) -> dict[str, Any]:
        return control.ask(self.runtime_dir, command, timeout=WAIT)

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first status that fulfils ``condition``."""
        deadline = time.monotonic() + WAIT
        while True:
            status = self.ask("status")
            if condition(status):
                return status
            assert time.monotonic() < deadline, f"did not come: {status}\n{self.log}"
            select.select([self.pidfd], [], [], 0.02)

    def wait(self) -> int:
        """Wait for the end; the exit code."""
        assert select.select([self.pidfd], [], [], WAIT)[0], f"does not end\n{self.log}"
        self.exit_code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.exit_code

    def stop(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        for sock in self.clients:
            sock.close()
        if self.exit_code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.pidfd)


def answer_of(sock: socket.socket) -> dict[str, Any]:
    """The line that the fake worker sends."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = sock.recv(100_000)
        assert chunk, "closed without an answer"
        line += chunk
    answer: dict[str, Any] = json.loads(line)
    return answer


def order(sock: socket.socket, **what: Any) -> None:
    """Have the fake worker at the other end do something."""
    sock.sendall(json.dumps(what).encode())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server of fake workers; keyword arguments are fields of its ServerSpec."""
    servers: list[Server] = []

    def start(run: Callable[..., int] = fake_run, plugins: Any = None, **changes: Any) -> Server:
        server = Server(tmp_path, run, plugins or FakePlugins(), **changes)
        servers.append(server)
        return server

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [server.close() for server in servers])
        yield start


@pytest.fixture
def kit() -> SimpleNamespace:
    """What test modules of this folder share: a folder of tests is no package, so it comes as a fixture."""
    return SimpleNamespace(
        WAIT=WAIT,
        FakePlugins=FakePlugins,
        answer_of=answer_of,
        order=order,
        fake_run=fake_run,
        failing_run=failing_run,
        crashing_run=crashing_run,
        deaf_run=deaf_run,
    )
