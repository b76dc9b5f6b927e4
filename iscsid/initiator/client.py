"""The blocking front end: a socket, a clock, and callers that wait.

No thread does the I/O: whoever waits for an answer receives, for all callers at once, and wakes the others. A thread of
its own only keeps an idle session alive (NOPs, logout requests), so it has nothing to do with any command.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import select
import socket
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from iscsid.errors import ConnectionFailed, InitiatorError
from iscsid.initiator.session import InitiatorSession, SessionOptions
from iscsid.initiator.task import Management, Task, TextExchange, Ticket
from iscsid.initiator.url import Credentials, DiskUrl, Portal, parse_portal, parse_url
from iscsid.text.chap import NONCE_LENGTH
from iscsid.text.names import normalize

CONNECT_TIMEOUT: Final = 10.0
QUEUE_FACTOR: Final = 2  # tickets that may wait, in depths, before ``submit`` waits as well
SEND_FROM: Final = 1 << 20  # bytes that wait to be sent from which on ``submit`` sends
KEEPER_SECONDS: Final = 1.0
UNREACHED: Final = (OSError, UnicodeError)  # the latter for what cannot be the name of a host: a target may say so
_RANDOM_ISID: Final = 0x80 << 40  # section 11.12.5: the type "random", and 24 + 16 bits that are

Answer = TypeVar("Answer", bound=Ticket)


def default_initiator_name() -> str:
    """The name of this host, for who gives none."""
    host = re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower()).strip(".-")[:100]
    return f"iqn.2026-11.org.iscsid:{host or 'host'}"


def random_isid() -> int:
    """An ISID that no other session of this host has (RFC 7143 section 11.12.5)."""
    return _RANDOM_ISID | secrets.randbits(40)


def random_nonce() -> bytes:
    """What a login with CHAP needs of chance."""
    return os.urandom(NONCE_LENGTH)


@dataclass(frozen=True, slots=True)
class Place:
    """Which target, where, and with which options: what every front end is opened with."""

    portal: Portal
    lun: int | None
    options: SessionOptions


def place_of(
    url: str,
    *,
    initiator_name: str = "",
    credentials: Credentials | None = None,
    header_digest: bool | None = None,
    data_digest: bool | None = None,
    discovery: bool = False,
    **options: Any,
) -> Place:
    """Join a URL and keyword options, of which the latter count. ``options`` are those of ``SessionOptions``."""
    parsed = parse_url(url) if url.startswith("iscsi://") else DiskUrl(parse_portal(url))
    if not discovery and not parsed.target:
        raise InitiatorError("the URL names no target: iscsi://host[:port]/target-name/lun")
    try:
        name = normalize(initiator_name) if initiator_name else default_initiator_name()
    except ValueError as error:
        raise InitiatorError(f"{initiator_name!r} is not an initiator name: {error}") from error
    settings = {"isid": random_isid(), **options}
    return Place(
        parsed.portal,
        parsed.lun,
        SessionOptions(
            initiator_name=name,
            target_name=None if discovery else parsed.target,
            credentials=parsed.credentials if credentials is None else credentials,
            header_digest=parsed.header_digest if header_digest is None else header_digest,
            data_digest=parsed.data_digest if data_digest is None else data_digest,
            **settings,
        ),
    )


def prepare(sock: socket.socket) -> None:
    """What every connection of ours has: no delay, no blocking, room for a few large transfers."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def send_queued(sock: socket.socket, session: InitiatorSession) -> bool:
    """Send what is queued; return whether all of it went. Raises OSError."""
    connection = session.connection
    if connection is None:
        return True
    outbox = connection.outbox
    while outbox.queued:
        segments = outbox.segments()
        try:
            outbox.sent(sock.send(segments[0]) if len(segments) == 1 else sock.sendmsg(segments))
        except BlockingIOError:
            return False
    return True


def unreached(portal: Portal, error: Exception) -> ConnectionFailed:
    """What to tell the session when connecting has failed."""
    return ConnectionFailed(f"{portal}: {getattr(error, 'strerror', None) or str(error) or 'no answer'}")


class Client:
    """One session with a target, for blocking callers; any number of threads.

    ``open`` first; ``close`` logs out. A context manager does both.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.options = place.options
        self.session = InitiatorSession(place.options, place.portal, random_nonce)
        self._clock: Callable[[], float] = time.monotonic
        self._turn = threading.Condition(threading.Lock())
        self._polling = False
        self._awaits_room = False  # who polls is told of room in the socket too
        self._sock: socket.socket | None = None
        self._poll = select.poll()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # wakes who polls: there is something to send
        weakref.finalize(self, os.close, self._bell)
        self._poll.register(self._bell, select.POLLIN)
        self._stop = threading.Event()

    def __enter__(self) -> Client:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- callers ------------------------------------------------------------------------------------------------------

    def open(self) -> Client:
        """Connect and log in; raises InitiatorError when that fails."""
        session = self.session
        with self._turn:
            session.open(self._clock())
            self._until(lambda: session.ready or session.failure is not None)
            if session.failure is not None:
                self._drop_socket()
                raise session.failure
        threading.Thread(target=_keep, args=(weakref.ref(self), self._stop), name="iscsid-keeper", daemon=True).start()
        return self

    def close(self) -> None:
        """Log out and let go of the connection. What is still unfinished ends with CommandAborted or its answer."""
        self._stop.set()
        session = self.session
        with self._turn:
            if not session.closed:
                session.close(self._clock())
                self._until(lambda: session.closed)
            self._drop_socket()

    def submit(self, task: Task) -> None:
        """Take a command. It is sent when somebody waits, or when there is enough to send; see ``push``.

        Waits only while more commands are queued than ``depth`` and half again are in flight.
        """
        session = self.session
        with self._turn:
            idle = not session.in_flight
            session.submit(task, self._clock())
            if idle or session.connection is None or session.connection.outbox.queued >= SEND_FROM:
                self._send()
            limit = QUEUE_FACTOR * self.options.depth
            if session.waiting > limit:
                self._until(lambda: session.waiting <= limit)

    def ask(self, request: Management | TextExchange) -> None:
        """Take a task management function or a text; it is sent at once."""
        with self._turn:
            self.session.ask(request, self._clock())
            self._send()

    def push(self) -> None:
        """Send what is queued, without waiting for anything."""
        with self._turn:
            self._send()

    def wait(self, ticket: Answer) -> Answer:
        """Wait until ``ticket`` is done; raises its error."""
        if not ticket.done:
            with self._turn:
                self._until(lambda: ticket.done)
        if ticket.error is not None:
            raise ticket.error
        return ticket

    def wait_until(self, over: Callable[[], bool]) -> None:
        """Wait until ``over``, which callbacks of tickets bring about; it is asked whenever something has happened.

        This is how to wait for whichever of many tickets is done first.
        """
        with self._turn:
            self._until(over)

    def run(self, task: Task) -> Task:
        """Submit and wait."""
        self.submit(task)
        return self.wait(task)

    # --- the loop, always with the turn held --------------------------------------------------------------------------

    def _until(self, over: Callable[[], bool]) -> None:
        """Do I/O, or let another thread do it, until ``over``."""
        while not over():
            if self._polling:
                if self._sock is not None:
                    self._send()  # who polls may do so for as long as his own command takes
                self._turn.wait()
            else:
                self._step()

    def _step(self, longest: float = 60.0) -> None:
        """Send, receive what is there, or sleep until something happens or is due."""
        session = self.session
        sent = self._send()
        if self._receive():
            return
        now = self._clock()
        pause = min(longest, session.next_tick(now))
        if session.connection is None and session.connect_at is not None and session.connect_at <= now:
            self._connect()
        else:
            self._sleep(pause, sent)
        session.tick(self._clock())
        self._settle()

    def _sleep(self, seconds: float, sent: bool) -> None:
        """Poll without the turn, so that others can submit in the meantime."""
        sock = self._sock
        if sock is not None:
            self._poll.modify(sock, select.POLLIN if sent else select.POLLIN | select.POLLOUT)
        self._awaits_room = not sent
        self._polling = True
        self._turn.release()
        try:
            self._poll.poll(seconds * 1000)
        finally:
            self._turn.acquire()
            self._polling = False
            self._turn.notify_all()
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)

    def _send(self) -> bool:
        """Send what is queued; whether all of it went."""
        sock = self._sock
        sent = True
        if sock is not None:
            try:
                sent = send_queued(sock, self.session)
            except OSError as error:
                self._lost(error)
        if self._polling and (self._sock is None or not (sent or self._awaits_room)):
            os.eventfd_write(self._bell, 1)
        return sent

    def _receive(self) -> bool:
        """Take what the socket has; whether that was anything."""
        sock, connection = self._sock, self.session.connection
        if sock is None or connection is None:
            return False
        try:
            count = sock.recv_into(connection.framer.writable())
        except BlockingIOError:
            return False
        except OSError as error:
            self._lost(error)
            return True
        if count:
            self.session.received(count, self._clock())
            self._settle()
        else:
            self._lost(ConnectionFailed("the target closed the connection"))
        return True

    def _connect(self) -> None:
        """One attempt, without the turn."""
        session = self.session
        portal = session.portal
        sock, failure = None, None
        self._polling = True
        self._turn.release()
        try:
            sock = socket.create_connection((portal.host, portal.port), CONNECT_TIMEOUT)
        except UNREACHED as error:
            failure = unreached(portal, error)
        finally:
            self._turn.acquire()
            self._polling = False
            self._turn.notify_all()
        if sock is None or session.closed:
            if sock is not None:
                sock.close()
            elif failure is not None and not session.closed:
                session.lost(failure, self._clock())
            return
        prepare(sock)
        self._sock = sock
        self._poll.register(sock, select.POLLIN)
        session.connected(self._clock())

    def _lost(self, error: Exception) -> None:
        self._drop_socket()
        self.session.lost(error, self._clock())

    def _settle(self) -> None:
        """Close the socket of a connection that the session has given up."""
        if self.session.connection is None:
            self._drop_socket()

    def _drop_socket(self) -> None:
        sock, self._sock = self._sock, None
        if sock is not None:
            self._poll.unregister(sock)
            sock.close()

    def keep(self) -> None:
        """Do what is due while nobody waits: answer pings, ping, leave when asked to."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            if self._polling or self.session.closed:
                return
            while self._receive():
                pass
            self.session.tick(self._clock())
            self._settle()
            self._send()
        finally:
            self._turn.release()


def _keep(reference: weakref.ref[Client], stop: threading.Event) -> None:
    """Keep a session alive until it is closed or forgotten."""
    while not stop.wait(KEEPER_SECONDS):
        client = reference()
        if client is None:
            return
        with contextlib.suppress(InitiatorError):
            client.keep()
        del client


def connect(url: str, **options: Any) -> Client:
    """Log in to the target of ``url``; ``Disk(client, lun)`` is a unit of it, any number of them on one session."""
    return Client(place_of(url, **options)).open()
