"""One connection in a worker: its socket on one side, its engine on the other, and the clocks between them.

A link receives once per wake-up, into one buffer, and the engine executes all of it; one send takes all the answers.
It reads no further while much is waiting to be sent, and it sends only so much before the other links have their turn.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections.abc import Callable

from iscsid.errors import RemoteProtocolError
from iscsid.shared.messages import Connect
from iscsid.specs import PortalSpec
from iscsid.target.engine import Engine

log = logging.getLogger(__name__)

SEND_ROUNDS = 8  # system calls that send for one link before the others have their turn
OUTPUT_LIMIT = 8 << 20  # bytes waiting to be sent from which on nothing more is read
LINGER_SECONDS = 5.0  # how long a connection that is over may take to send its last answers

READ = select.EPOLLIN
WRITE = select.EPOLLOUT


class Link:
    """A connection.

    Attributes:
        established: when full feature phase began (monotonic seconds), None before.
        claimed: the supervisor waits for SessionClosed of this TSIH.
        idle_since: when the initiator was last heard of.
    """

    __slots__ = (
        "_changed",
        "_fd",
        "_held",
        "_mask",
        "_on_close",
        "_pinged_at",
        "_socket",
        "_writing",
        "accepted",
        "claimed",
        "connect",
        "ending_since",
        "engine",
        "established",
        "heard",
        "idle_since",
    )

    def __init__(
        self,
        sock: socket.socket,
        connect: Connect,
        now: float,
        changed: Callable[[Link, int], None],
        on_close: Callable[[Link, str], None],
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._fd = sock.fileno()
        self._changed = changed
        self._on_close = on_close
        self._mask = READ
        self._writing = False
        self._held = False
        self._pinged_at = 0.0
        self.connect = connect
        self.claimed = True
        self.accepted = now
        self.established: float | None = None
        self.ending_since: float | None = None
        self.idle_since = now
        self.heard = False
        self.engine: Engine

    def fileno(self) -> int:
        return self._fd

    @property
    def address(self) -> str:
        """The local address that the initiator has reached, as TargetAddress has it."""
        host, port = self._socket.getsockname()[:2]
        return str(PortalSpec(host, port))

    @property
    def alive(self) -> bool:
        return self._fd >= 0

    # --- the loop's calls -------------------------------------------------------------------------------------------

    def on_event(self, mask: int) -> None:
        """The socket is ready for what ``mask`` says, or in error."""
        if mask & WRITE:
            self.flush()
        if mask & ~WRITE and self.alive:
            self._receive()

    def _receive(self) -> None:
        engine = self.engine
        connection = engine.connection
        try:
            count = self._socket.recv_into(connection.framer.writable())
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"connection lost: {error.strerror}")
            return
        if not count:
            self.close("connection closed by the initiator")
            return
        if connection.closing:
            return  # what comes after a logout or a failed login is not looked at
        self.heard = True
        try:
            engine.receive(count)
        except RemoteProtocolError as error:
            log.warning("%s: %s", self.connect.peer, error)
            connection.closing = True
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it and the other links can wait."""
        if not self.alive:
            return
        connection = self.engine.connection
        outbox = connection.outbox
        try:
            for _ in range(SEND_ROUNDS):
                segments = outbox.segments()
                if not segments:
                    break
                single = len(segments) == 1
                outbox.sent(self._socket.send(segments[0]) if single else self._socket.sendmsg(segments))
                self.engine.sent()
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(f"connection lost: {error.strerror}")
            return
        queued = outbox.queued
        if queued or self._mask != READ:
            self._arm(queued)
        if connection.closing:
            self._end(queued)

    def _arm(self, queued: int) -> None:
        """Ask the loop for what is needed next."""
        mask = WRITE if queued else 0
        if queued < OUTPUT_LIMIT and not self._held:
            mask |= READ
        if mask != self._mask:
            self._mask = mask
            self._changed(self, mask)

    def _end(self, queued: int) -> None:
        if not queued:
            self.close("logged out" if self.established else "login failed")
        elif self.ending_since is None:
            self.ending_since = time.monotonic()

    def hold(self) -> None:
        """Read nothing until ``release``."""
        self._held = True
        self._arm(self.engine.connection.outbox.queued)

    def release(self) -> None:
        """End of ``hold``."""
        self._held = False
        if self.alive:
            self._arm(self.engine.connection.outbox.queued)

    def close(self, reason: str) -> None:
        """End the connection and its session, now."""
        if not self.alive:
            return
        self._changed(self, 0)
        self._fd = -1
        self.engine.close()
        self._socket.close()
        self._on_close(self, reason)

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self, now: float, login_timeout: float, nop_interval: float, nop_timeout: float) -> None:
        """Look at the clocks; called about once a second."""
        if self.heard:
            self.heard = False
            self.idle_since = now
        connection = self.engine.connection
        if self.ending_since is not None:
            if now - self.ending_since > LINGER_SECONDS:
                self.close("last answers not taken")
        elif self.established is None:
            if now - self.accepted > login_timeout:
                self.close("login took too long")
        elif connection.pinged:
            if now - self._pinged_at > nop_timeout:
                self.close("initiator does not answer")
        elif nop_interval and now - self.idle_since > nop_interval:
            self._pinged_at = now
            connection.ping()
            self.flush()
