"""Our initiator against our target without a socket and with a clock that tests move.

world = World()                       # a target with LUN 0, not connected
world.connect()                       # bytes travel until nobody has anything to say
task = world.submit(world.unit.read(0, buffer))
world.run()
world.cut()                           # the connection breaks; world.connect() makes the next one
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from helpers import INITIATOR_NAME, ISID, TARGET_NAME, TSIH
from target_rig import FakeAuthority, FakePool, Inline, Memory

from iscsid.block.guard import Guarded
from iscsid.errors import RemoteProtocolError
from iscsid.initiator.commands import BlockLimits, parse_capacity_16
from iscsid.initiator.session import InitiatorSession, SessionOptions
from iscsid.initiator.task import Ticket
from iscsid.initiator.unit import Unit
from iscsid.initiator.url import Portal
from iscsid.scsi.lu import Identity, LogicalUnit
from iscsid.session.connection import TargetConnection
from iscsid.session.login import Admission, TargetLogin
from iscsid.target.discovery import DiscoveredTarget, send_targets
from iscsid.target.engine import Engine
from iscsid.target.node import TargetNode
from iscsid.text.chap import NONCE_LENGTH
from iscsid.text.keys import TARGET_OFFERS

PORTAL = Portal("192.0.2.1", 3260)
NONCE = bytes(range(NONCE_LENGTH))


class World:
    """A session, and a target that it can be connected to any number of times.

    Args:
        device: the content of LUN 0.
        chunk: how many bytes travel at a time towards the initiator; 0: all.
        admit: judges a login, in place of letting everybody in.
        **options: of the session.
    """

    def __init__(
        self,
        device: Memory | None = None,
        *,
        chunk: int = 0,
        target_offers: dict[str, str] | None = None,
        queue_depth: int = 32,
        admit: Callable[[str, str, str], int | Admission] | None = None,
        **options: Any,
    ) -> None:
        self.now = 1000.0
        self.device = device if device is not None else Inline()
        self.chunk = chunk
        self.pool = FakePool()
        self.authority = FakeAuthority()
        self.queue_depth = queue_depth
        self._offers = {**TARGET_OFFERS, **(target_offers or {})}
        self._admit = admit or (lambda *_: Admission(offers=self._offers))
        self.node = TargetNode(
            TARGET_NAME, {0: LogicalUnit(Guarded(self.device), Identity("serial0", f"{TARGET_NAME},L,0"))}
        )
        settings = {"initiator_name": INITIATOR_NAME, "target_name": TARGET_NAME, "isid": ISID, **options}
        self.session = InitiatorSession(SessionOptions(**settings), PORTAL, lambda: NONCE)
        self.connection: TargetConnection | None = None
        self.engine: Engine | None = None
        self.unit = Unit(0, self.session.options.timeout)
        self.unit.learn_limits(BlockLimits(max_unmap=1 << 20, max_unmap_descriptors=1, max_compare_and_write=255))

    # --- the connection -----------------------------------------------------------------------------------------------

    def connect(self, pool: bool = True) -> World:
        """Open, if nobody has, and log in; ``pool`` as ``run`` has it."""
        session = self.session
        if session.connect_at is None:
            session.open(self.now)
        assert session.connect_at is not None
        self.now = max(self.now, session.connect_at)
        self.connection, self.engine = self.seat()
        session.connected(self.now)
        self.run(pool)
        return self

    def seat(self) -> tuple[TargetConnection, Engine]:
        """The target's end of a new connection."""
        login = TargetLogin(self._admit, tsih=TSIH, stat_sn=7, command_window=self.queue_depth)
        connection = TargetConnection(login, self.queue_depth, 1 << 20)
        engine = Engine(
            connection,
            {TARGET_NAME: self.node}.__getitem__,
            lambda engine, pairs: send_targets(
                pairs[0][1], [DiscoveredTarget(TARGET_NAME, (("192.0.2.1:3260", 3), ("[2001:db8::1]:860", 3)))], ""
            ),
            self.pool.submit,
            lambda engine: None,
            self.authority,
        )
        return connection, engine

    def cut(self, error: Exception | None = None) -> None:
        """The connection breaks; what is on its way is lost."""
        if self.engine is not None:
            self.engine.close()
        self.connection = self.engine = None
        if self.session.connection is not None:
            self.session.lost(error or ConnectionResetError("reset by peer"), self.now)

    def know(self) -> World:
        """Connect and learn the size."""
        self.connect()
        self.unit.learn_capacity(parse_capacity_16(self.do(self.unit.read_capacity_16()).result.data))
        return self

    # --- bytes --------------------------------------------------------------------------------------------------------

    def run(self, pool: bool = True) -> None:
        """Let bytes travel until nothing moves; ``pool`` runs what the target's pool has to do."""
        moving = True
        while moving:
            moving = self.to_target() or self.to_initiator()
            if not moving and pool and self.pool.calls:
                self.pool.finish()
                moving = True

    def to_target(self) -> bool:
        ours = self.session.connection
        if ours is None or self.connection is None or not ours.outbox.queued:
            return False
        data = b"".join(ours.outbox.segments())
        ours.outbox.sent(len(data))
        assert self.engine is not None
        try:
            for start in range(0, len(data), 65536):
                piece = data[start : start + 65536]
                self.connection.framer.writable()[: len(piece)] = piece
                self.engine.receive(len(piece))
        except RemoteProtocolError:
            self.connection.closing = True
        return True

    def to_initiator(self) -> bool:
        if self.connection is None or not self.connection.outbox.queued:
            if self.connection is not None and self.connection.closing and self.session.connection is not None:
                self.cut()
                return True
            return False
        data = b"".join(self.connection.outbox.segments())
        self.connection.outbox.sent(len(data))
        assert self.engine is not None
        self.engine.sent()
        self.hear(data)
        return True

    def hear(self, data: bytes) -> None:
        """The initiator receives ``data``, whoever has sent it."""
        step = self.chunk or 65536
        for start in range(0, len(data), step):
            connection = self.session.connection
            if connection is None:
                return
            piece = data[start : start + step]
            connection.framer.writable()[: len(piece)] = piece
            self.session.received(len(piece), self.now)

    # --- requests -----------------------------------------------------------------------------------------------------

    def submit(self, *tickets: Any) -> Any:
        for ticket in tickets:
            if hasattr(ticket, "cdb"):
                self.session.submit(ticket, self.now)
            else:
                self.session.ask(ticket, self.now)
        return tickets[0]

    def do(self, ticket: Any) -> Any:
        """Submit, run to the end, raise what is to be raised."""
        self.submit(ticket)
        self.run()
        return result(ticket)

    def do_all(self, tickets: Sequence[Any]) -> None:
        for ticket in tickets:
            self.submit(ticket)
        self.run()
        for ticket in tickets:
            result(ticket)

    def later(self, seconds: float) -> None:
        """Time passes; the session looks at the clock."""
        self.now += seconds
        self.session.tick(self.now)


def result(ticket: Ticket) -> Any:
    assert ticket.done, "it is not done"
    if ticket.error is not None:
        raise ticket.error
    return ticket


class InMemoryClient:
    """What a Disk wants of a Client, over a World."""

    def __init__(self, world: World) -> None:
        self.world = world.connect()
        self.session = world.session
        self.options = world.session.options
        self.closed = False

    def submit(self, task: Any) -> None:
        self.world.submit(task)

    ask = submit

    def push(self) -> None:
        self.world.to_target()

    def wait(self, ticket: Any) -> Any:
        self.world.run()
        return result(ticket)

    def run(self, task: Any) -> Any:
        self.submit(task)
        return self.wait(task)

    def close(self) -> None:
        self.closed = True


class LoopbackTarget(threading.Thread):
    """A target on a port of 127.0.0.1 that serves one connection after the other; ``drop`` breaks the present one."""

    def __init__(self, size: int = 8 << 20, device: Memory | None = None) -> None:
        super().__init__(daemon=True)
        self.world = World(device if device is not None else Inline(size))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.portal = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.url = f"iscsi://{self.portal}/{TARGET_NAME}/0"
        self.accepted = 0
        self.drop_at: int | None = None  # the connection breaks after so many requests were received in pieces
        self.away = False  # connections are closed as soon as they are there
        self.mute = False  # what is said is passed over
        self._peer: socket.socket | None = None

    def __enter__(self) -> LoopbackTarget:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.drop()
        self.join(10)
        self.listener.close()

    def drop(self) -> None:
        """Break the connection."""
        if self._peer is not None:
            with contextlib.suppress(OSError):
                self._peer.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self._peer = peer
            self.accepted += 1
            if self.away:
                peer.close()
                continue
            with peer, contextlib.suppress(OSError, RemoteProtocolError):
                self.serve(peer)

    def serve(self, peer: socket.socket) -> None:
        connection, engine = self.world.seat()
        while count := peer.recv_into(connection.framer.writable()):
            if self.drop_at is not None:
                self.drop_at -= 1
                if not self.drop_at:
                    self.drop_at = None
                    return
            if self.mute:
                continue
            try:
                engine.receive(count)
            finally:
                while segments := connection.outbox.segments():
                    connection.outbox.sent(peer.sendmsg(segments))
                    engine.sent()
            if connection.closing:
                return
