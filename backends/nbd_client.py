"""A client of one export: connections that come back, requests that are sent again.

When a connection is lost, all are ended, the first caller who needs one connects anew (with a growing pause after each
failure), does once more what was answered but not flushed (``nbd_journal``), and lets the others in. A request without
an answer is sent again then; it fails with NOT_READY when there is no server for ``reconnect`` seconds. A server that
is there but does not answer a request within ``timeout`` seconds loses its connection, and that request fails.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from typing import Final, NamedTuple

from iscsid.plugin import BlockError, Fault

from . import nbd_protocol as protocol
from .nbd_connection import Connection, Lost, Request, Unanswered
from .nbd_journal import Journal
from .nbd_transport import shake_hands
from .nbd_uri import Address, Credentials

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.05  # seconds
LAST_PAUSE: Final = 5.0
_LEAVING: Final = "the server is shutting down"
_FAILURES: Final = (OSError, Lost, Unanswered, BlockError, protocol.Refused, protocol.Violation)


class Settings(NamedTuple):
    """How to be a client; times in seconds. ``journal``: bytes to keep for a lost server, or None for no journal."""

    address: Address
    credentials: Credentials = Credentials()
    connections: int = 1
    timeout: float = 30.0
    reconnect: float = 30.0
    journal: int | None = None


class Client:
    """``facts`` are those that ``examine`` gave: nothing is connected before the first request."""

    def __init__(self, settings: Settings, facts: protocol.Facts) -> None:
        self.facts = facts
        self._settings = settings
        self._tls = settings.credentials.context() if settings.address.tls else None
        self._journal = None if settings.journal is None else Journal(settings.journal)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._settling = threading.Lock()
        self._connections: list[Connection] = []
        self._reviving = False
        self._retry_at = 0.0
        self._pause = FIRST_PAUSE
        self._revived_at = 0.0
        self._reason = "there is no connection yet"
        self._damage = ""
        self._flushed = -1  # the mark of the journal at the last flush
        self._closed = False

    def call(self, request: Request) -> Connection:
        """Have it done; the connection that did. Raises BlockError, and OSError with what the server told of."""
        give_up = 0.0
        while True:
            connection = self._connection(give_up or time.monotonic() + self._settings.reconnect)
            try:
                connection.perform(request, time.monotonic() + self._settings.timeout)
            except Lost as lost:
                self._lose(connection, str(lost))
            except Unanswered as late:
                self._lose(connection, str(late))
                raise BlockError(Fault.NOT_READY, f"{self._settings.address}: {late}") from None
            except BlockError as error:
                self._lose(connection, str(error))
                raise BlockError(error.fault, f"{self._settings.address}: {error}") from None
            else:
                if not request.error:
                    return connection
                number = protocol.error_number(request.error)
                if number != protocol.SHUTTING_DOWN:
                    raise self._error(request, number)
                self._lose(connection, _LEAVING)
            request.reset()
            now = time.monotonic()
            give_up = give_up or now + self._settings.reconnect
            if now >= give_up:
                raise BlockError(Fault.NOT_READY, f"{self._settings.address}: {self._reason}")

    def change(self, request: Request) -> None:
        """As ``call``, for what must be there after the next flush."""
        journal = self._journal
        if journal is None:
            self.call(request)
            return
        if journal.full:
            self._settle(journal)
        data = request.data if request.kind == protocol.CMD_WRITE else None
        while True:
            connection = self.call(request)
            journal.add(request.kind, request.offset, request.length, request.flags, data)
            if connection in self._connections:
                return
            request.reset()  # lost since the answer, and the journal done once more perhaps without this

    def _settle(self, journal: Journal) -> None:
        """Make room by a flush, of ours or of another caller who is at it."""
        if not self._settling.acquire(timeout=self._settings.timeout + self._settings.reconnect):
            words = "what is kept for a lost server is full, and cannot be flushed"
            raise BlockError(Fault.NOT_READY, f"{self._settings.address}: {words}")
        try:
            if journal.full:
                self.flush()
        finally:
            self._settling.release()

    def flush(self) -> None:
        """Have all that was answered put on the medium. Once that has failed, something may be lost, and it fails for
        ever: the next one would succeed, as fsync does, whatever had become of the data.

        Who has the export to himself, and has changed nothing since the last flush, needs no server for it. The first
        flush is for what another process, which had it before, may have left.
        """
        mark = 0 if self._journal is None else self._journal.mark()
        if self._journal is not None and mark == self._flushed and not self._damage:
            return
        try:
            self.call(Request(protocol.CMD_FLUSH))
        except OSError as error:
            self._damage = self._damage or f"an earlier flush failed ({error}); what was written before may be lost"
            raise
        finally:
            if self._journal is not None and self._damage:
                self._journal.forget(mark)
        if self._damage:
            raise BlockError(Fault.WRITE_ERROR, self._damage)
        if self._journal is not None:
            self._journal.forget(mark)
            self._flushed = mark

    def close(self) -> None:
        """End it; calls that are under way fail with NOT_READY."""
        with self._lock:
            self._closed = True
            self._reason = "the device is closed"
            connections, self._connections = self._connections, []
            self._changed.notify_all()
        for connection in connections:
            connection.disconnect()

    # Connections.

    def _connection(self, give_up: float) -> Connection:
        """The one with the least to do; makes one when there is none. Raises BlockError(NOT_READY)."""
        while True:
            with self._lock:
                if not self._await_turn(give_up):
                    return min(self._connections, key=_load)
                self._reviving = True
            try:
                self._revive()
            finally:
                with self._lock:
                    self._reviving = False
                    self._changed.notify_all()

    def _await_turn(self, give_up: float) -> bool:
        """Wait until there are connections (False) or it is the caller who has to make them (True).

        Who came with no time to wait has one attempt all the same, be it somebody else's.
        """
        patient = time.monotonic() < give_up
        while True:
            if self._closed:
                raise BlockError(Fault.NOT_READY, "the device is closed")
            if self._connections:
                return False
            now = time.monotonic()
            resting = not self._reviving and now < self._retry_at
            if now >= give_up and (patient or resting):
                raise BlockError(Fault.NOT_READY, f"{self._settings.address}: {self._reason}")
            if not self._reviving and not resting:
                return True
            self._changed.wait(min(give_up, self._retry_at) - now if resting else give_up - now if patient else None)

    def _revive(self) -> None:
        """One attempt. What it fails with is the reason that others are told."""
        connection: Connection | None = None
        try:
            connection = self._connect()
            self._redo(connection)
            more = self._more()
        except _FAILURES as error:
            if connection is not None:
                connection.end(Lost("not used"))
            with self._lock:
                self._reason = str(error)
                self._put_off(time.monotonic())
            return
        with self._lock:
            self._revived_at = time.monotonic()
            connections = [connection, *more]
            if not self._closed:
                self._connections = connections
                return
        for each in connections:
            each.disconnect()

    def _connect(self) -> Connection:
        connection = connect(self._settings, self._tls)
        try:
            _must_be_same(self.facts, connection.facts)
        except protocol.Refused as error:
            connection.end(error)
            raise
        return connection

    def _put_off(self, now: float) -> None:
        self._retry_at = now + self._pause
        self._pause = min(2 * self._pause, LAST_PAUSE)

    def _redo(self, connection: Connection) -> None:
        """What was answered but not flushed. An error of the server's means that data is lost, and is not repeated."""
        if self._journal is None:
            return
        for entry in self._journal.entries():
            data = memoryview(entry.data) if entry.kind == protocol.CMD_WRITE else None
            request = Request(entry.kind, entry.offset, entry.length, data, entry.flags)
            connection.perform(request, time.monotonic() + self._settings.timeout)
            if not request.error:
                continue
            number = protocol.error_number(request.error)
            if number == protocol.SHUTTING_DOWN:
                raise Lost(_LEAVING)  # to the one who comes after it, it is told again from the beginning
            self._damage = f"{self._settings.address}: what the server lost could not be written again"
            log.error("%s: %s", self._damage, self._error(request, number))

    def _more(self) -> list[Connection]:
        """The other connections, where the server says that they are as good as one; as many as it takes."""
        found: list[Connection] = []
        if self.facts.flags & protocol.CAN_MULTI_CONN:
            try:
                while len(found) < self._settings.connections - 1:
                    found.append(self._connect())
            except _FAILURES as error:
                log.warning("%s: %d connections, no more: %s", self._settings.address, len(found), error)
        return found

    def _lose(self, connection: Connection, reason: str) -> None:
        """One is lost: end all. With the server may be gone what it had not flushed, whichever way it came."""
        with self._lock:
            if connection not in self._connections:
                return  # another caller was first
            connections, self._connections = self._connections, []
            self._reason = reason
            now = time.monotonic()
            if now - self._revived_at > self._pause:  # it was worth it
                self._pause, self._retry_at = FIRST_PAUSE, now
            else:
                self._put_off(now)
        log.warning("%s: the connection is lost: %s", self._settings.address, reason)
        for each in connections:
            each.end(Lost(reason))

    def _error(self, request: Request, number: int) -> OSError:
        words = f"{self._settings.address}: the server fails the {request}"
        return OSError(number, f"{words}: {request.message}" if request.message else words)


def connect(settings: Settings, tls: ssl.SSLContext | None) -> Connection:
    """One connection. Raises OSError, protocol.Refused and protocol.Violation."""
    return Connection(*shake_hands(settings.address, tls, time.monotonic() + settings.timeout))


def examine(settings: Settings) -> protocol.Facts:
    """What the server tells of the export: connect, look, and go. Raises BlockError, and OSError for files of TLS."""
    tls = settings.credentials.context() if settings.address.tls else None
    try:
        connection = connect(settings, tls)
    except (protocol.Refused, protocol.Violation) as error:
        raise BlockError(Fault.NOT_READY, f"{settings.address}: {error}") from error
    except OSError as error:
        raise BlockError(Fault.NOT_READY, f"{settings.address}: {error.strerror or error}") from error
    connection.disconnect()
    return connection.facts


def _load(connection: Connection) -> int:
    return connection.load


def _must_be_same(before: protocol.Facts, now: protocol.Facts) -> None:
    """Initiators were told the size and the rest. The number of the context is each connection's own."""
    if (before.context is None) != (now.context is None) or before._replace(context=now.context) != now:
        raise protocol.Refused(f"the export has changed: it was {_said(before)}, and is {_said(now)}")


def _said(facts: protocol.Facts) -> str:
    sizes = f"blocks of {facts.minimum}, {facts.preferred}, {facts.maximum}"
    return f"{facts.size} bytes with flags {facts.flags:#x} and {sizes}"
