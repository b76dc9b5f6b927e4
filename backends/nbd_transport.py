"""Bytes to and from a server: a socket that never blocks longer than a deadline, plain or with TLS.

One thread may receive while another one sends. TLS is done in memory (``ssl.MemoryBIO``), with a lock around it, since
OpenSSL allows one thread in a session at a time: what waits, the socket, is outside of the lock. Times are those of
``time.monotonic``. Raises OSError: TimeoutError at the deadline, a ConnectionError when the other side has closed.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from typing import Final

from . import nbd_protocol as protocol
from .nbd_uri import Address

BUFFER: Final = 65536  # bytes; many short replies come with one call
RECORD: Final = 16384  # bytes of one record of TLS
#: A server that is gone without a word is noticed by an idle connection too: seconds idle, between probes, probes.
KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class Socket:
    """A connected socket without TLS."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(False)

    def send(self, header: bytes, data: memoryview | None, deadline: float) -> None:
        """Send all of both, in one packet where it fits."""
        pieces = [memoryview(header)] if data is None or not len(data) else [memoryview(header), data]
        while pieces:
            try:
                sent = self._sock.sendmsg(pieces)
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
                continue
            while pieces and sent >= len(pieces[0]):
                sent -= len(pieces.pop(0))
            if sent:
                pieces[0] = pieces[0][sent:]

    def receive(self, buffer: memoryview, deadline: float) -> int:
        """Fill the beginning of ``buffer``; at least one byte."""
        while True:
            try:
                count = self._sock.recv_into(buffer)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline)
                continue
            if not count:
                raise ConnectionResetError("the server has closed the connection")
            return count

    def shutdown(self) -> None:
        """Make every thread that waits here fail, at once."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Only when no thread is in here any more."""
        self._sock.close()

    def _wait(self, events: int, deadline: float) -> None:
        left = deadline - time.monotonic()
        poll = select.poll()
        poll.register(self._sock, events)
        if left <= 0 or not poll.poll(left * 1000 + 1):
            raise TimeoutError("the server does not answer")


class TlsSocket:
    """TLS over a Socket."""

    def __init__(self, below: Socket, context: ssl.SSLContext, server_name: str) -> None:
        self._below = below
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._lock = threading.Lock()
        self._arrived = memoryview(bytearray(BUFFER))

    def handshake(self, deadline: float) -> None:
        """Make the session, and check the certificate. Raises ssl.SSLError, which is an OSError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._push(self._outgoing.read(), deadline)
                self._pull(deadline)
                continue
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # the alert that tells the server why
                    self._push(self._outgoing.read(), deadline)
                raise
            self._push(self._outgoing.read(), deadline)
            return

    def send(self, header: bytes, data: memoryview | None, deadline: float) -> None:
        """As Socket.send; the caller sees to it that one thread sends at a time."""
        if data is None or not len(data):
            return self._seal(memoryview(header), deadline)
        first = RECORD - len(header)
        self._seal(memoryview(b"".join((header, data[:first]))), deadline)
        for at in range(first, len(data), BUFFER):
            self._seal(data[at : at + BUFFER], deadline)
        return None

    def _seal(self, data: memoryview, deadline: float) -> None:
        with self._lock:
            self._tls.write(data)  # whole: a MemoryBIO takes as much as comes
            sealed = self._outgoing.read()
        self._push(sealed, deadline)

    def receive(self, buffer: memoryview, deadline: float) -> int:
        """As Socket.receive.

        What TLS itself wants to say (an update of keys) waits for the next ``send``, which it has to precede anyway.
        """
        while True:
            with self._lock:
                try:
                    count = int(self._tls.read(len(buffer), buffer))  # a number, whatever typeshed says
                except ssl.SSLWantReadError:
                    count = -1
                except ssl.SSLZeroReturnError as error:
                    raise ConnectionResetError("the server has closed the connection") from error
            if not count:
                raise ConnectionResetError("the server has closed the connection")
            if count > 0:
                return count
            self._pull(deadline)

    def _push(self, sealed: bytes, deadline: float) -> None:
        if sealed:
            self._below.send(sealed, None, deadline)

    def _pull(self, deadline: float) -> None:
        count = self._below.receive(self._arrived, deadline)
        with self._lock:
            self._incoming.write(self._arrived[:count])

    def shutdown(self) -> None:
        self._below.shutdown()

    def close(self) -> None:
        self._below.close()


class Receiver:
    """Reads exact numbers of bytes, with a buffer for what is short and past it for what is long."""

    def __init__(self, transport: Socket | TlsSocket) -> None:
        self.transport = transport
        self._buffer = memoryview(bytearray(BUFFER))
        self._start = self._end = 0

    @property
    def buffered(self) -> int:
        """Bytes that have come and are not asked for yet."""
        return self._end - self._start

    def exactly(self, length: int, deadline: float) -> bytes:
        """The next ``length`` bytes; the caller has bounded it."""
        if length > BUFFER:
            whole = bytearray(length)
            self.into(memoryview(whole), deadline)
            return bytes(whole)
        if self.buffered < length:
            self._fill(length, deadline)
        start = self._start
        self._start += length
        return bytes(self._buffer[start : start + length])

    def _fill(self, length: int, deadline: float) -> None:
        """Have at least ``length`` bytes, not more than the buffer holds."""
        have = self.buffered
        self._buffer[:have] = bytes(self._buffer[self._start : self._end])
        self._start, self._end = 0, have
        while self._end < length:
            self._end += self.transport.receive(self._buffer[self._end :], deadline)

    def into(self, target: memoryview, deadline: float) -> None:
        """The next bytes, as many as ``target`` has, into it."""
        done = min(self.buffered, len(target))
        target[:done] = self._buffer[self._start : self._start + done]
        self._start += done
        while done < len(target):
            done += self.transport.receive(target[done:], deadline)


def connect(address: Address, deadline: float) -> Socket:
    """Connect to the first address of the host that answers. Raises OSError."""
    if address.socket:
        return Socket(_connected(socket.AF_UNIX, address.socket, deadline))
    failure: OSError | None = None
    for family, _, _, _, where in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
        try:
            sock = _connected(family, where, deadline)
        except OSError as error:
            failure = error
            continue
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, name, value)
        return Socket(sock)
    raise failure or OSError(f"{address.host} has no address")


def _connected(family: int, where: object, deadline: float) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        sock.connect(where)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock


class Handshake(protocol.Stream):
    """The stream of a handshake: all of it within one deadline."""

    def __init__(self, receiver: Receiver, deadline: float) -> None:
        self._receiver = receiver
        self._deadline = deadline

    def send(self, data: bytes) -> None:
        self._receiver.transport.send(data, None, self._deadline)

    def exactly(self, length: int) -> bytes:
        return self._receiver.exactly(length, self._deadline)


def shake_hands(address: Address, context: ssl.SSLContext | None, deadline: float) -> tuple[Receiver, protocol.Facts]:
    """Connect, go over to TLS where there is a ``context``, choose the export.

    Raises OSError, protocol.Refused and protocol.Violation.
    """
    connected = connect(address, deadline)
    try:
        receiver = Receiver(connected)
        stream = Handshake(receiver, deadline)
        flags = protocol.greet(stream)
        if context is not None:
            protocol.start_tls(stream)
            if receiver.buffered:  # said in the clear, by whoever, to be taken for a part of what TLS protects
                raise protocol.Violation("there are bytes before the start of TLS")
            secure = TlsSocket(connected, context, address.server_name)
            secure.handshake(deadline)
            receiver = Receiver(secure)
            stream = Handshake(receiver, deadline)
        return receiver, protocol.negotiate(stream, address.export, flags)
    except BaseException:
        connected.close()
        raise
