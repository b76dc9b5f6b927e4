"""A worker process: one loop that turns bytes into commands and commands into bytes.

The loop waits for sockets, for the pool and for the supervisor, in one epoll. Everything that a session does happens
in it, except the calls that wait for a medium. It beats the heart itself, so a loop that hangs is found out.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from iscsid.daemon.boot import ExitCode, WorkerBoot
from iscsid.daemon.channel import Channel
from iscsid.daemon.link import Link
from iscsid.daemon.nodes import NodeError, Nodes
from iscsid.daemon.pool import Pool
from iscsid.session.connection import TargetConnection
from iscsid.session.login_target import Admission, TargetLogin
from iscsid.shared.messages import (
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
)
from iscsid.target.discovery import DiscoveredTarget, send_targets
from iscsid.target.engine import Engine
from iscsid.target.node import TargetNode
from iscsid.target.task import Done, Run
from iscsid.text.codec import Pair
from iscsid.text.keys import DISCOVERY
from iscsid.text.names import normalize
from iscsid.wire.const import LoginStatus
from iscsid.wire.pdu import LoginRequest

log = logging.getLogger(__name__)

QUEUE_DEPTH = 128  # commands that one session may have unfinished
RECEIVE_BUFFER = 512 << 10  # holds the longest PDU and most of the next one; small enough to stay in the cache
TICK_SECONDS = 1.0
STALL_SECONDS = 0.05  # a turn of the loop that took longer has waited for a medium
LOGOUT_SECONDS = 2.0  # of a graceful stop: what idle sessions get to log out by themselves


def run(channel: Channel, boot: WorkerBoot) -> int:
    """Live as worker ``boot.index`` until told to stop; return the exit code. Called in the child, after the fork."""
    try:
        nodes = Nodes(boot)
    except NodeError as error:
        channel.send(BootFailed(str(error)))
        return ExitCode.BOOT_FAILED
    # What is alive now lives as long as the worker: keep the collector from walking it again and again.
    gc.collect()
    gc.freeze()
    worker = Worker(channel, boot, nodes)
    try:
        return worker.run()
    finally:
        worker.close()


class Worker:
    """The loop and what it owns."""

    def __init__(self, channel: Channel, boot: WorkerBoot, nodes: Nodes) -> None:
        self._channel = channel
        self._boot = boot
        self._spec = boot.spec
        self._nodes = nodes
        self._pool = Pool()
        self._links: dict[int, Link] = {}
        self._answered: set[Link] = set()  # by the calls that were just collected
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {
            channel.fileno(): self._on_channel,
            self._pool.fileno(): self._collect,
        }
        for fd in self._handlers:
            self._epoll.register(fd, select.EPOLLIN)
        self._stop_at: float | None = None
        self._stopping_since = 0.0
        self._next_tick = 0.0
        self._last_beat = 0.0
        self._busy = 0.0
        # What closed links have done.
        self._commands = 0
        self._read_bytes = 0
        self._written_bytes = 0

    def run(self) -> int:
        """Go round until there is nothing left to do."""
        self._channel.send(Ready())
        monotonic = time.monotonic
        handlers = self._handlers
        now = monotonic()
        self._last_beat = now
        self._next_tick = now + TICK_SECONDS
        while True:
            ready = self._epoll.poll(max(0.0, self._next_tick - now))
            started = monotonic()
            for fd, mask in ready:
                handler = handlers.get(fd)
                if handler is not None:  # closed by an event before it, otherwise
                    handler(mask)
            now = monotonic()
            self._busy += now - started
            if now - started > STALL_SECONDS:
                self._nodes.stalled(now)
            if now >= self._next_tick:
                self._tick(now)
            if self._stop_at is not None and self._may_stop(now):
                self._channel.send(Stopped())
                return ExitCode.OK

    def close(self) -> None:
        """Give everything back: what was written goes to the media first."""
        for link in list(self._links.values()):
            link.close("server stopped")
        self._pool.close()
        self._nodes.flush()
        self._nodes.close()
        self._channel.flush()
        self._epoll.close()

    # --- the supervisor ---------------------------------------------------------------------------------------------

    def _on_channel(self, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._channel.flush()
        for message, fd in self._channel.receive():
            self._on_message(message, fd)
        if self._channel.eof and self._stop_at is None:
            log.warning("the supervisor is gone")
            self._stop(0.0)
        self._watch_channel()

    def _watch_channel(self) -> None:
        fd = self._channel.fileno()
        if self._channel.eof:
            if self._handlers.pop(fd, None):
                self._epoll.unregister(fd)
        else:
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if self._channel.wants_write else 0))

    def _send(self, message: Message) -> None:
        self._channel.send(message)
        if self._channel.wants_write:
            self._watch_channel()

    def _on_message(self, message: Message, fd: int | None) -> None:
        if isinstance(message, Connect):
            self._connect(message, fd)
        elif isinstance(message, Drop):
            for link in self._of_session(message.tsih):
                link.close(message.reason)
        elif isinstance(message, Poll):
            self._report()
        elif isinstance(message, Stop):
            self._stop(message.deadline_seconds)

    # --- connections ------------------------------------------------------------------------------------------------

    def _connect(self, connect: Connect, fd: int | None) -> None:
        rejoins = any(self._of_session(connect.tsih))
        claimed = bool(connect.tsih) and not rejoins
        if fd is None or self._stop_at is not None:
            if fd is not None:
                os.close(fd)
            if claimed:
                self._send(SessionClosed(connect.tsih, "the worker could not take the connection"))
            return
        link = Link(socket.socket(fileno=fd), connect, time.monotonic(), self._changed, self._closed)
        link.claimed = claimed
        login = TargetLogin(
            lambda target, _initiator, kind: self._authorize(connect, target, kind),
            tsih=connect.tsih or 1,
            rejoin=self._rejoin,
            command_window=QUEUE_DEPTH,
        )
        link.engine = Engine(
            TargetConnection(login, QUEUE_DEPTH, RECEIVE_BUFFER),
            lambda name: self._nodes.by_name[normalize(name)],
            lambda engine, pairs: self._answer_text(link, engine, pairs),
            lambda run, done: self._submit(link, run, done),
            lambda engine: self._established(link, engine),
        )
        self._links[link.fileno()] = link
        self._handlers[link.fileno()] = link.on_event
        self._epoll.register(link.fileno(), select.EPOLLIN)

    def _of_session(self, tsih: int) -> Iterator[Link]:
        """The links of a session that is open."""
        return (link for link in list(self._links.values()) if tsih and link.claimed and link.connect.tsih == tsih)

    def _changed(self, link: Link, mask: int) -> None:
        """``link`` waits for something else than before; 0: for nothing, it is about to be closed."""
        if mask:
            self._epoll.modify(link.fileno(), mask)
        else:
            self._epoll.unregister(link.fileno())
            del self._links[link.fileno()]
            del self._handlers[link.fileno()]

    def _closed(self, link: Link, reason: str) -> None:
        engine = link.engine
        self._commands += engine.commands
        self._read_bytes += engine.read_bytes
        self._written_bytes += engine.written_bytes
        log.info("%s: %s", link.connect.peer, reason)
        if link.claimed:
            self._send(SessionClosed(link.connect.tsih, reason))

    def _submit(self, link: Link, run: Run, done: Done) -> None:
        """Hand a call to the pool; what it answers is sent with the answers of the others that finish with it."""

        def finished(result: Any, error: Exception | None) -> None:
            done(result, error)
            self._answered.add(link)

        self._pool.submit(run, finished)

    def _collect(self, _mask: int) -> None:
        """Calls in the pool have finished."""
        self._pool.collect()
        answered, self._answered = self._answered, set()
        for link in answered:
            link.flush()

    # --- what sessions ask ------------------------------------------------------------------------------------------

    def _authorize(self, connect: Connect, target: str, kind: str) -> int | Admission:
        """Who may log in to what (``session.login_target.Authority``)."""
        if not connect.tsih:
            return LoginStatus.OUT_OF_RESOURCES
        if kind == DISCOVERY:
            return 0
        node = self._nodes.by_name.get(_normalized(target))
        if node is None:
            return LoginStatus.NOT_FOUND
        return Admission(offers=node.offers, alias=node.alias, portal_group_tag=node.portal_group_tag)

    def _rejoin(self, request: LoginRequest) -> int:
        """A second connection for a session: MaxConnections is 1."""
        known = any(self._of_session(request.tsih))
        return LoginStatus.TOO_MANY_CONNECTIONS if known else LoginStatus.SESSION_DOES_NOT_EXIST

    def _established(self, link: Link, engine: Engine) -> None:
        """A login is over: its session takes the place of an older one of the same nexus (RFC 7143 6.3.5)."""
        now = time.monotonic()
        link.established = link.idle_since = now
        parameters = engine.connection.parameters
        if engine.node is not None:
            self._reinstate(link, engine, engine.node)
        info = SessionInfo(
            initiator=parameters.initiator_name,
            isid=parameters.isid,
            target=engine.node.name if engine.node else "",
            peer=link.connect.peer,
            portal=link.connect.portal,
            initiator_alias=parameters.initiator_alias,
            header_digest=parameters.header_digest,
            data_digest=parameters.data_digest,
            max_recv_data_segment_length=parameters.peer_max_recv_data_segment_length,
            max_burst_length=parameters.max_burst_length,
            first_burst_length=parameters.first_burst_length,
            error_recovery_level=parameters.error_recovery_level,
        )
        log.info("%s: %s logged in to %s", info.peer, info.initiator, info.target or "discovery")
        if link.claimed:
            self._send(SessionOpened(link.connect.tsih, info))

    def _reinstate(self, link: Link, engine: Engine, node: TargetNode) -> None:
        parameters = engine.connection.parameters
        for other in list(self._links.values()):
            old = other.engine
            if (
                other is not link
                and old.node is node
                and old.connection.parameters.isid == parameters.isid
                and old.connection.parameters.initiator_name == parameters.initiator_name
            ):
                other.close("the initiator has logged in again")
                link.hold()
                old.when_idle(link.release)

    def _answer_text(self, link: Link, engine: Engine, pairs: Sequence[Pair]) -> Sequence[Pair]:
        """Answer a text in full feature phase: SendTargets; nothing else is up for negotiation."""
        answer: list[Pair] = []
        for key, value in pairs:
            if key == "SendTargets":
                answer += send_targets(value, self._discovered(link), engine.node.name if engine.node else "")
            else:
                answer += engine.renegotiate(key, value)
        return answer

    def _discovered(self, link: Link) -> list[DiscoveredTarget]:
        """Every target of the server, at the address where the initiator has found us."""
        return [DiscoveredTarget(target.name, (link.address,)) for target in self._spec.targets]

    # --- time -------------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        self._next_tick = now + TICK_SECONDS
        spec = self._spec
        for link in list(self._links.values()):
            link.tick(now, spec.login_timeout, spec.nop_interval, spec.nop_timeout)
        self._nodes.tick(now)
        self._channel.flush()
        self._beat(now)

    def _beat(self, now: float) -> None:
        period = now - self._last_beat
        engines = [link.engine for link in self._links.values()]
        self._send(
            Beat(
                connections=len(engines),
                commands=self._commands + sum(engine.commands for engine in engines),
                read_bytes=self._read_bytes + sum(engine.read_bytes for engine in engines),
                written_bytes=self._written_bytes + sum(engine.written_bytes for engine in engines),
                busy=min(1.0, self._busy / period) if period > 0 else 0.0,
            )
        )
        if period >= TICK_SECONDS:
            self._last_beat = now
            self._busy = 0.0

    def _report(self) -> None:
        """Answer a Poll."""
        for link in self._links.values():
            if link.claimed and link.established is not None:
                engine = link.engine
                self._send(SessionFigures(link.connect.tsih, engine.commands, engine.read_bytes, engine.written_bytes))
        self._beat(time.monotonic())

    # --- the end ----------------------------------------------------------------------------------------------------

    def _stop(self, seconds: float) -> None:
        """Take no more connections, ask every initiator to log out, and end within ``seconds``."""
        if self._stop_at is not None:
            return
        now = self._stopping_since = time.monotonic()
        self._stop_at = now + seconds
        self._next_tick = now
        for link in list(self._links.values()):
            if link.established is None:
                link.close("server is stopping")
            else:
                link.engine.connection.request_logout(max(1, int(seconds)))
                link.flush()

    def _may_stop(self, now: float) -> bool:
        """Close the sessions that have nothing left to do, or all when the time is up; tell whether all is done."""
        assert self._stop_at is not None
        late = now >= self._stop_at
        patient = now < self._stopping_since + LOGOUT_SECONDS
        for link in list(self._links.values()):
            if late or not (patient or link.engine.busy):
                link.close("server is stopping")
        self._next_tick = min(self._next_tick, now + 0.1)
        return late or not (self._links or self._pool.outstanding)


def _normalized(name: str) -> str:
    """The name as the configuration has it, or as it came where it is none."""
    try:
        return normalize(name)
    except ValueError:
        return name
