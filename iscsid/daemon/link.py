"""One connection in a worker: its socket on one side, its engine on the other, and the clocks between them.

A link receives once per wake-up, into one buffer, and the engine executes all of it; one send takes all the answers.
It reads no further while much is waiting to be sent, and it sends only so much before the other links have their turn.

Whatever goes wrong here that is not the peer's or the network's doing is a bug of ours: it is logged with its traceback
and costs this session, and no other.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import time
from collections.abc import Callable
from typing import Protocol

from iscsid.errors import RemoteProtocolError
from iscsid.shared.messages import Connect
from iscsid.specs import PortalSpec
from iscsid.target.engine import Engine
from iscsid.wire.outbox import CHUNK_SIZE

log = logging.getLogger(__name__)

SEND_ROUNDS = 8  # system calls that send for one link before the others have their turn
RECEIVE_BUFFER = 512 << 10  # of a link that has filled a smaller one; holds the longest PDU and most of the next one
OUTPUT_LIMIT = 8 << 20  # bytes waiting to be sent from which on nothing more is read
ENDING_SECONDS = 5.0  # how long a connection that is over may take to send its last answers
FAREWELL_SECONDS = 5.0  # how long the initiator may then take to close its side
FAREWELL_BYTES = 16 << 20  # what it may still send meanwhile: a window of writes that were under way

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
GONE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_SHORTAGE = (errno.ENOBUFS, errno.ENOMEM)  # of the kernel's, and it passes

_nowhere = bytearray(1 << 16)  # what is received to be thrown away


class Held(Exception):
    """The owner holds the link in the middle of what was received; ``release`` goes on with the rest of it."""


class Owner(Protocol):
    """Who has the links: the worker."""

    def watch(self, link: Link, mask: int) -> None:
        """``link`` waits for other events than before."""

    def forget(self, link: Link) -> None:
        """``link`` is about to give up its descriptor."""

    def linger(self, sock: socket.socket) -> None:
        """Everything is said on ``sock``, which is the owner's now: see ``Farewell``."""

    def over(self, link: Link, reason: str) -> None:
        """The session of ``link`` is over."""


class Link:
    """A connection. Its owner sets ``engine`` before anything else happens to it.

    Attributes:
        established: when full feature phase began (monotonic seconds), None before.
        claimed: the supervisor waits for SessionClosed of this TSIH.
        idle_since: when the initiator was last heard of.
        heard: it was heard of since the last tick.
    """

    __slots__ = (
        "_fd",
        "_held",
        "_mask",
        "_owner",
        "_pinged_at",
        "_reason",
        "_socket",
        "accepted",
        "claimed",
        "connect",
        "ending_since",
        "engine",
        "established",
        "heard",
        "idle_since",
    )

    def __init__(self, sock: socket.socket, connect: Connect, now: float, owner: Owner) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._fd = sock.fileno()
        self._owner = owner
        self._mask = READ
        self._held = 0
        self._pinged_at = 0.0
        self._reason = ""
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

    @property
    def held(self) -> bool:
        return bool(self._held)

    # --- the loop's calls -------------------------------------------------------------------------------------------

    def on_event(self, mask: int) -> None:
        """The socket is ready for what ``mask`` says, or in error."""
        try:
            if mask & WRITE:
                self.heard = True  # it takes what we send, however little it says
                self._flush()
            if mask & ~WRITE and self._fd >= 0:
                if self._mask & READ:
                    self._receive()
                elif mask & GONE:
                    self.close("connection closed by the initiator")
        except Exception:
            self.fail()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it and the other links can wait."""
        try:
            self._flush()
        except Exception:
            self.fail()

    def _receive(self) -> None:
        framer = self.engine.connection.framer
        room = framer.writable()
        try:
            count = self._socket.recv_into(room)
        except BlockingIOError:
            return
        except OSError as error:
            self.close(f"connection lost: {error.strerror}")
            return
        if not count:
            self.close("connection closed by the initiator")
            return
        self.heard = True
        if count == len(room):
            framer.resize(RECEIVE_BUFFER)
        self._execute(count)

    def _execute(self, count: int) -> None:
        try:
            self.engine.receive(count)
        except Held:
            pass
        except RemoteProtocolError as error:
            log.warning("%s: %s", self.connect.peer, error)
            self._reason = str(error)
            self.engine.connection.closing = True
        self._flush()

    def _flush(self) -> None:
        if self._fd < 0:
            return
        engine = self.engine
        connection = engine.connection
        outbox = connection.outbox
        for _ in range(SEND_ROUNDS):
            segments = outbox.segments()
            if not segments:
                break
            try:
                if len(segments) == 1:
                    count = self._socket.send(segments[0])
                else:
                    outbox.chunk_size = CHUNK_SIZE  # this link has much to say
                    count = self._socket.sendmsg(segments)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _SHORTAGE:
                    break
                self.close(f"connection lost: {error.strerror}")
                return
            outbox.sent(count)
            engine.sent()
        queued = outbox.queued
        if connection.closing:
            self._end(queued)
        elif queued or self._mask != READ:
            self._arm(queued)

    def _arm(self, queued: int) -> None:
        """Ask the loop for what is needed next."""
        mask = WRITE if queued else 0
        if self._held:
            mask |= select.EPOLLRDHUP  # nothing is read that could tell that the initiator has gone
        elif queued < OUTPUT_LIMIT and not self.engine.connection.closing:
            mask |= READ
        if mask != self._mask:
            self._mask = mask
            self._owner.watch(self, mask)

    def _end(self, queued: int) -> None:
        """Nothing is read any more; close when everything is sent."""
        if not queued:
            self.close(self._reason or "logged out", said=True)
            return
        if self.ending_since is None:
            self.ending_since = time.monotonic()
        self._arm(queued)

    def hold(self) -> None:
        """Read and execute nothing until ``release`` was called as often as this. To be followed by Held when it comes
        from within ``receive``."""
        self._held += 1
        self._arm(self.engine.connection.outbox.queued)

    def release(self) -> None:
        """End one ``hold``; after the last, go on with what was received."""
        self._held -= 1
        if self._held or self._fd < 0:
            return
        try:
            self._arm(self.engine.connection.outbox.queued)
            self._execute(0)
        except Exception:
            self.fail()

    def fail(self) -> None:
        """End the session for the exception that is being handled, which is a bug of ours."""
        log.exception("%s: session %d ends by an error of this server", self.connect.peer, self.connect.tsih)
        self.close("internal error")

    def close(self, reason: str, *, said: bool = False) -> None:
        """End the connection and its session, now; with ``said`` so that the initiator gets what was sent last."""
        if self._fd < 0:
            return
        self._owner.forget(self)
        self._fd = -1
        try:
            self.engine.close()
        except Exception:
            log.exception("%s: session %d does not end well", self.connect.peer, self.connect.tsih)
        if said:
            self._owner.linger(self._socket)
        else:
            self._socket.close()
        self._owner.over(self, reason)

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self, now: float, login_timeout: float, nop_interval: float, nop_timeout: float) -> None:
        """Look at the clocks; called about once a second."""
        if self.heard:
            self.heard = False
            self.idle_since = now
        connection = self.engine.connection
        if self.ending_since is not None:
            if now - self.ending_since > ENDING_SECONDS:
                self.close("last answers not taken")
        elif self.established is None:
            if now - self.accepted > login_timeout:
                self.close("login took too long")
        elif self._held:
            pass  # an answer would not be read
        elif connection.pinged:
            # Whoever sends or takes data lives, even where the answer waits behind it.
            if now - max(self._pinged_at, self.idle_since) > nop_timeout:
                self.close("initiator does not answer")
        elif nop_interval and now - self.idle_since > nop_interval:
            self._pinged_at = now
            connection.ping()
            self.flush()


class Farewell:
    """A socket on which everything is said, until the initiator has closed its side too.

    Closing at once would reset the connection if anything that the initiator has sent is unread, and a reset takes the
    last answers with it: the Login Response, Logout Response or Reject that says why.
    """

    __slots__ = ("_bytes", "_done", "_socket", "deadline")

    def __init__(self, sock: socket.socket, now: float, done: Callable[[Farewell], None]) -> None:
        """Raises OSError when there is nobody left to part from; ``sock`` is then still the caller's."""
        sock.shutdown(socket.SHUT_WR)
        self._socket = sock
        self._bytes = 0
        self._done = done
        self.deadline = now + FAREWELL_SECONDS

    def fileno(self) -> int:
        return self._socket.fileno()

    def on_event(self, _mask: int) -> None:
        """Throw away what has come; close at the end of it."""
        try:
            count = self._socket.recv_into(_nowhere)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        self._bytes += count
        if not count or self._bytes > FAREWELL_BYTES:
            self.close()

    def close(self) -> None:
        """Close the socket, whatever is unread."""
        self._done(self)
        self._socket.close()
