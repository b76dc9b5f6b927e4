"""A worker process: one loop that turns bytes into commands and commands into bytes.

The loop waits for sockets, for the pool and for the supervisor, in one epoll. Everything that a session does happens
in it, except the calls that wait for a medium. It beats the heart itself, so a loop that hangs is found out.

A session that is over is kept in ``_leaving`` while calls of it are in the pool: only then the supervisor hears of its
end, and only then the next session of the same nexus executes anything. A write that was under way when the connection
broke can so never land on top of what the initiator, on its next connection, has written in its place.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from iscsid.daemon import reviser
from iscsid.daemon.boot import ExitCode, WorkerBoot
from iscsid.daemon.channel import Channel, ChannelFull
from iscsid.daemon.conduit import Conduit
from iscsid.daemon.errands import Errands
from iscsid.daemon.gate import Guest
from iscsid.daemon.link import READ, Farewell, Held, Link
from iscsid.daemon.lookout import Lookout
from iscsid.daemon.nodes import CLOSE_SECONDS, NodeError, Nodes
from iscsid.daemon.pool import JOIN_SECONDS, Pool
from iscsid.daemon.thresholds import Thresholds
from iscsid.scsi.state import NexusId
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
    UnitAnswer,
    UpdateUnit,
)
from iscsid.specs import ServerSpec
from iscsid.target.discovery import DiscoveredTarget, reachable, send_targets
from iscsid.target.engine import Engine
from iscsid.target.task import Done, Run
from iscsid.text.codec import Pair
from iscsid.text.keys import DISCOVERY
from iscsid.text.names import normalize
from iscsid.wire.const import LoginStatus
from iscsid.wire.pdu import LoginRequest

log = logging.getLogger(__name__)

QUEUE_DEPTH = 128  # commands that one session may have unfinished
FIRST_BUFFER = 64 << 10  # bytes to receive into, and to send from, for a link that has little to say;
FIRST_CHUNK = 16 << 10  # one that has more gets more (see link.py), so that many idle sessions cost little
TICK_SECONDS = 1.0
AWAY_SECONDS = 1.0  # a tick that is late by more
# How often the loop looks again before it sleeps, some 10 us in all: the next command of a session that has just been
# answered is often that near, and a wake-up costs both sides more than that.
EAGER_POLLS = 20
STALL_SECONDS = 0.05  # a turn of the loop that took longer has waited for a medium,
STALL_SHARE = 0.005  # or has had many events to see to, for each of which this much is no wonder
LOGOUT_SECONDS = 2.0  # of a graceful stop: what idle sessions get to log out by themselves
MAX_REMEMBERED = 1024  # I_T nexuses without a session, for what to say to them when they come back
MAX_FAREWELLS = 256  # connections that are over and wait for the initiator to close; others are just closed
REASON_LIMIT = 2000  # characters of BootFailed, whatever a plugin has to say
TOLD_SECONDS = 1.0  # how long the last messages may wait for the supervisor to read


def run(channel: Channel, boot: WorkerBoot) -> int:
    """Live as worker ``boot.index`` until told to stop; return the exit code. Called in the child, after the fork."""
    try:
        nodes = Nodes(boot)
    except NodeError as error:
        channel.send(BootFailed(str(error)[:REASON_LIMIT]))
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
        self._guests: dict[Link, Guest] = {}  # who is at the other end of each
        self._farewells: set[Farewell] = set()
        self._leaving: set[Engine] = set()  # closed, with calls in the pool
        self._told: dict[NexusId, frozenset[str]] = {}  # see ``Engine.told``; the nexus that left last is the last
        errands = Errands(self._pool.submit)
        self._conduit = Conduit(nodes.by_serial(), self._engines, self._send, self._pool.submit, errands)
        units = [unit for units in nodes.by_serial().values() for unit in units]
        self._thresholds = Thresholds(units, self._engines, errands)
        self._reviser = reviser.Reviser(self, nodes, self._conduit, self._thresholds, errands, self._pool, self._send)
        self._lookout = Lookout(nodes.by_name.values, self._pool, errands, self._send)
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
        self._closed = False

    def run(self) -> int:
        """Go round until there is nothing left to do, and close."""
        self._channel.send(Ready())
        monotonic = time.monotonic
        poll = self._epoll.poll
        eager = 0
        away = False
        handlers = self._handlers
        now = monotonic()
        self._last_beat = now
        self._next_tick = now + TICK_SECONDS
        while True:
            if eager:
                eager -= 1
                ready = poll(0)
                if not ready:
                    continue
            else:
                ready = poll(max(0.0, self._next_tick - now))
            eager = EAGER_POLLS if ready else 0
            started = monotonic()
            for fd, mask in ready:
                handler = handlers.get(fd)
                if handler is not None:  # closed by an event before it, otherwise
                    handler(mask)
            now = monotonic()
            self._busy += now - started
            if now - started > STALL_SECONDS:
                self._stalled(now, now - started, len(ready))
            if now >= self._next_tick:
                # Late by that much, the loop has been away: what came meanwhile is heard before anybody is given up.
                away = not away and now - self._next_tick > AWAY_SECONDS
                if not away:
                    self._tick(now)
            if self._stop_at is not None and self._may_stop(now):
                self.close()
                self._tell_last(Stopped())
                return ExitCode.OK

    def close(self) -> None:
        """Give everything back, within a bounded time: what was written goes to the media first."""
        if self._closed:
            return
        self._closed = True
        for link in list(self._links.values()):
            link.close("server stopped")
        for farewell in list(self._farewells):
            farewell.close()
        ended = self._pool.wait(JOIN_SECONDS) and self._pool.close()
        if ended:
            self._reviser.stop()
        else:
            log.error("%d calls hang in their media", self._pool.outstanding)
        self._nodes.close(CLOSE_SECONDS, release=ended)
        self._epoll.close()

    def _tell_last(self, message: Message) -> None:
        self._send(message)
        deadline = time.monotonic() + TOLD_SECONDS
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLOUT)
        while self._channel.wants_write and (left := deadline - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self._channel.flush()

    def _stalled(self, now: float, seconds: float, events: int) -> None:
        if seconds > STALL_SECONDS + STALL_SHARE * events:
            self._nodes.stalled(now)

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
        if self._closed:
            return
        fd = self._channel.fileno()
        if self._channel.eof:
            if self._handlers.pop(fd, None):
                self._epoll.unregister(fd)
        else:
            self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if self._channel.wants_write else 0))

    def _send(self, message: Message) -> None:
        try:
            self._channel.send(message)
        except ChannelFull as error:
            # Nothing is lost that it would have read: it has been hanging for long, or is gone.
            log.error("the supervisor does not read: %s", error)
            self._stop_at = time.monotonic()
            return
        if self._channel.wants_write:
            self._watch_channel()

    def _on_message(self, message: Message, fd: int | None) -> None:
        if isinstance(message, Connect):
            self._connect(message, fd)
        elif isinstance(message, Drop):
            for link in self._of_session(message.tsih):
                link.close(message.reason)
        elif isinstance(message, UpdateUnit):
            self._conduit.update(message)
            self._flush_all()
        elif isinstance(message, UnitAnswer):
            self._conduit.answered(message)
            self._flush_all()
        elif isinstance(message, reviser.MESSAGES):
            self._reviser.on_message(message, fd)
        elif isinstance(message, Poll):
            self._report()
        elif isinstance(message, Stop):
            self._stop(message.deadline_seconds)

    def guests(self) -> Mapping[Link, Guest]:
        """See ``reviser.Host``."""
        return self._guests

    def leaving(self) -> Iterable[Engine]:
        """See ``reviser.Host``."""
        return self._leaving

    def revised(self, spec: ServerSpec) -> None:
        """See ``reviser.Host``."""
        self._spec = spec

    # --- connections ------------------------------------------------------------------------------------------------

    def _connect(self, connect: Connect, fd: int | None) -> None:
        claimed = bool(connect.tsih) and not any(self._of_session(connect.tsih))
        if fd is None or self._stop_at is not None:
            if fd is not None:
                os.close(fd)
            taken = False
        else:
            taken = self._adopt(connect, fd, claimed)
        if claimed and not taken:
            self._send(SessionClosed(connect.tsih, "the worker could not take the connection"))

    def _adopt(self, connect: Connect, fd: int, claimed: bool) -> bool:
        """Make a link of a descriptor, which is closed if that fails."""
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            log.error("%s: not a socket: %s", connect.peer, error)
            os.close(fd)
            return False
        try:
            link = Link(sock, connect, time.monotonic(), self)
            link.claimed = claimed
            self._epoll.register(fd, READ)
            link.engine = self._engine_for(link)
        except OSError as error:
            log.warning("%s: the connection cannot be taken: %s", connect.peer, error)
            sock.close()
            return False
        self._links[fd] = link
        self._handlers[fd] = link.on_event
        return True

    def _engine_for(self, link: Link) -> Engine:
        connect = link.connect
        guest = self._guests[link] = self._nodes.gate.guest(connect)
        login = TargetLogin(
            lambda target, initiator, kind: self._authorize(connect, guest, target, initiator, kind),
            tsih=connect.tsih or 1,
            rejoin=lambda request: self._rejoin(link, request),
            command_window=QUEUE_DEPTH,
        )
        connection = TargetConnection(login, QUEUE_DEPTH, FIRST_BUFFER)
        connection.outbox.chunk_size = FIRST_CHUNK
        return Engine(
            connection,
            lambda name: self._nodes.by_name[normalize(name)],
            lambda engine, pairs: self._answer_text(link, engine, pairs),
            lambda run, done: self._submit(link, run, done),
            lambda engine: self._established(link, engine),
            self._conduit,
        )

    def _engines(self) -> Iterator[Engine]:
        """Every session that may still touch a medium."""
        yield from self._leaving
        for link in list(self._links.values()):
            yield link.engine

    def _flush_all(self) -> None:
        for link in list(self._links.values()):
            link.flush()

    def _of_session(self, tsih: int) -> Iterator[Link]:
        """The links of a session that is open."""
        return (link for link in list(self._links.values()) if tsih and link.claimed and link.connect.tsih == tsih)

    def watch(self, link: Link, mask: int) -> None:
        """See ``link.Owner``."""
        self._epoll.modify(link.fileno(), mask)

    def forget(self, link: Link) -> None:
        """See ``link.Owner``."""
        fd = link.fileno()
        del self._links[fd], self._handlers[fd]
        self._epoll.unregister(fd)

    def over(self, link: Link, reason: str) -> None:
        """See ``link.Owner``."""
        engine = link.engine
        self._commands += engine.commands
        self._read_bytes += engine.read_bytes
        self._written_bytes += engine.written_bytes
        log.info("%s: %s", link.connect.peer, reason)
        guest = self._guests.pop(link)
        if engine.nexus is not None:
            self._nodes.gate.leave(engine.nexus, guest)
            self._told.pop(engine.nexus, None)
            self._told[engine.nexus] = engine.told()
            if len(self._told) > MAX_REMEMBERED:
                del self._told[next(iter(self._told))]

        def left() -> None:
            self._leaving.discard(engine)
            if link.claimed:
                self._send(SessionClosed(link.connect.tsih, reason))

        self._leaving.add(engine)
        engine.calls.when_idle(left)

    def linger(self, sock: socket.socket) -> None:
        """See ``link.Owner``."""
        try:
            if len(self._farewells) >= MAX_FAREWELLS or self._closed:
                sock.close()
                return
            farewell = Farewell(sock, time.monotonic(), self._parted)
            self._epoll.register(farewell.fileno(), READ)
        except OSError:  # the initiator has closed before us
            sock.close()
            return
        self._farewells.add(farewell)
        self._handlers[farewell.fileno()] = farewell.on_event

    def _parted(self, farewell: Farewell) -> None:
        self._farewells.discard(farewell)
        del self._handlers[farewell.fileno()]
        self._epoll.unregister(farewell.fileno())

    def _submit(self, link: Link, run: Run, done: Done) -> None:
        """Hand a call to the pool; what it answers is sent with the answers of the others that finish with it."""

        def finished(result: Any, error: Exception | None) -> None:
            try:
                done(result, error)
            except Exception:
                link.fail()
            self._answered.add(link)

        self._pool.submit(run, finished)

    def _collect(self, _mask: int) -> None:
        """Calls in the pool have finished."""
        self._pool.collect()
        answered, self._answered = self._answered, set()
        for link in answered:
            link.flush()

    # --- what sessions ask ------------------------------------------------------------------------------------------

    def _authorize(self, connect: Connect, guest: Guest, target: str, initiator: str, kind: str) -> int | Admission:
        """Who may log in to what (``session.login_target.Authority``)."""
        if not connect.tsih:
            return LoginStatus.OUT_OF_RESOURCES
        if kind == DISCOVERY:
            return Admission(authenticator=guest.challenge("", initiator))
        node = self._nodes.by_name.get(_normalized(target))
        if node is None:
            return LoginStatus.NOT_FOUND
        if connect.portal_group_tag not in node.portal_group_tags:
            return LoginStatus.NOT_FOUND  # RFC 7143 11.13.5: it is not at this address
        return Admission(
            offers=node.offers,
            alias=node.alias,
            portal_group_tag=connect.portal_group_tag,
            authenticator=guest.challenge(node.name, initiator),
        )

    def _rejoin(self, link: Link, request: LoginRequest) -> int:
        """A second connection for a session: MaxConnections is 1."""
        # The TSIH is another connection's, even if its session has ended while this one was on its way.
        link.claimed = False
        known = any(self._of_session(request.tsih))
        return LoginStatus.TOO_MANY_CONNECTIONS if known else LoginStatus.SESSION_DOES_NOT_EXIST

    def _established(self, link: Link, engine: Engine) -> None:
        """A login is over: its session takes the place of an older one of the same nexus (RFC 7143 6.3.5)."""
        now = time.monotonic()
        link.established = link.idle_since = now
        parameters = engine.connection.parameters
        if engine.node is not None:
            self._succeed(link, engine)
            if engine.nexus is not None:
                engine.greet(self._told.pop(engine.nexus, ()))
                self._reviser.joined(engine)
                self._nodes.gate.enter(engine.nexus, self._guests[link])
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
            portal_group_tag=link.connect.portal_group_tag,
        )
        user = self._guests[link].user
        proved = f" as user {user}" if user else ""
        log.info("%s: %s logged in to %s%s", info.peer, info.initiator, info.target or "discovery", proved)
        if link.claimed:
            self._send(SessionOpened(link.connect.tsih, info))

        if link.held:
            raise Held

    def _succeed(self, link: Link, engine: Engine) -> None:
        """Close the sessions of the same nexus, and wait for what they, and those before them, have in the pool."""
        for other in list(self._links.values()):
            if other is not link and _same_nexus(other.engine, engine):
                other.close("the initiator has logged in again")
        for predecessor in self._leaving:
            if _same_nexus(predecessor, engine):
                link.hold()
                predecessor.calls.when_idle(link.release)

    def _answer_text(self, link: Link, engine: Engine, pairs: Sequence[Pair]) -> Sequence[Pair]:
        """Answer a text in full feature phase: SendTargets; nothing else is up for negotiation."""
        answer: list[Pair] = []
        for key, value in pairs:
            if key == "SendTargets":
                answer += send_targets(value, self._discovered(link, engine), engine.node.name if engine.node else "")
            else:
                answer += engine.renegotiate(key, value)
        return answer

    def _discovered(self, link: Link, engine: Engine) -> list[DiscoveredTarget]:
        """Every target that the initiator may use, at every address that it may reach it at."""
        spec = self._spec
        guest, initiator = self._guests[link], engine.connection.parameters.initiator_name
        addresses = reachable(spec.portals, link.address, link.connect.portal_group_tag)
        tags = {target.name: {group.tag for group in spec.access(target)} for target in spec.targets}
        return [
            DiscoveredTarget(target.name, tuple(place for place in addresses if place[1] in tags[target.name]))
            for target in spec.targets
            if guest.sees(target.name, initiator)
        ]

    # --- time -------------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        self._next_tick = now + TICK_SECONDS
        spec = self._spec
        for link in list(self._links.values()):
            link.tick(now, spec.login_timeout, spec.nop_interval, spec.nop_timeout)
        for farewell in [farewell for farewell in self._farewells if now > farewell.deadline]:
            farewell.close()
        for link in self._links.values():
            link.engine.meter.settle()
        self._pool.expire(now)
        self._collect(0)
        self._nodes.tick(now)
        self._thresholds.tick()
        self._lookout.tick(now)
        self._reviser.tick(now)
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
        self._conduit.stop()
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
        return late or not (self._links or self._pool.outstanding or (patient and self._farewells))


def _same_nexus(one: Engine, other: Engine) -> bool:
    """Whether two sessions are of one initiator port and one target port (RFC 7143 4.4.3.1)."""
    mine, yours = one.connection.parameters, other.connection.parameters
    return (
        one.node is other.node
        and mine.isid == yours.isid
        and mine.initiator_name == yours.initiator_name
        and mine.target_portal_group_tag == yours.target_portal_group_tag
    )


def _normalized(name: str) -> str:
    """The name as the configuration has it, or as it came where it is none."""
    try:
        return normalize(name)
    except ValueError:
        return name
