"""One end of the channel between the supervisor and one worker: whole messages, and descriptors with them.

A channel is an AF_UNIX SOCK_SEQPACKET socket pair: the kernel keeps message boundaries, passes a descriptor with its
message (SCM_RIGHTS), and says end-of-file when the other process is gone, however it went. Nothing here waits.

When the other side does not read, messages queue up to MAX_QUEUED and then ``send`` raises ChannelFull: a worker that
is that far behind is to be killed, a supervisor that is that far behind is gone.
"""

from __future__ import annotations

import errno
import os
import socket
from array import array
from collections import deque
from typing import Self

from iscsid.errors import IscsidError
from iscsid.shared import messages
from iscsid.shared.messages import Message

MAX_QUEUED = 4096  # figures of 1,024 sessions, twice over, with room for what happens meanwhile
SEND_BUFFER = 2 * messages.MAX_MESSAGE  # bytes; the kernel counts its own per message in
MAX_BATCH = 256  # messages taken per call of receive(), so that one worker cannot hold the loop

_FD_SIZE = array("i").itemsize
_ANCILLARY = socket.CMSG_SPACE(_FD_SIZE)
_WOULD_BLOCK = (errno.EAGAIN, errno.ENOBUFS)
_GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


class ChannelFull(IscsidError):
    """The other side has not read for MAX_QUEUED messages."""


class Channel:
    """One end. ``eof`` tells that the other side is gone and that everything it had sent was received."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._queue: deque[tuple[bytes, int | None]] = deque()
        self._stalled = False
        self._deaf = False
        self.eof = False

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Two connected ends; descriptors are closed on exec."""
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (left, right):
            # A message is taken whole or not at all, so that the longest one has to fit whatever the host's default is.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return cls(left), cls(right)

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Something is queued, and the socket's becoming writable is what it waits for."""
        return bool(self._queue) and not self._stalled

    @property
    def queued(self) -> int:
        """Messages that the kernel has not yet taken."""
        return len(self._queue)

    def send(self, message: Message, fd: int | None = None) -> None:
        """Send ``message``, with ``fd``, which this channel owns from now on and closes when it is sent or lost.

        Raises ChannelFull. To a side that is gone nothing is sent and nothing is raised: ``receive`` will say so.
        """
        data = messages.encode(message)
        if self._deaf or len(self._queue) >= MAX_QUEUED:
            _close(fd)
            if self._deaf:
                return
            raise ChannelFull(f"{MAX_QUEUED} messages wait to be read")
        self._queue.append((data, fd))
        if len(self._queue) == 1:
            self.flush()

    def flush(self) -> None:
        """Send what is queued as far as the kernel takes it. To be called when the socket is writable, and each
        second: with too many descriptors in flight (ETOOMANYREFS) a socket counts as writable and yet is not."""
        self._stalled = False
        while self._queue:
            data, fd = self._queue[0]
            try:
                self._send_one(data, fd)
            except OSError as exc:
                if exc.errno in _WOULD_BLOCK:
                    return
                if exc.errno == errno.ETOOMANYREFS:
                    self._stalled = True
                    return
                if exc.errno not in _GONE:
                    raise
                self._deaf = True
                self._discard_queue()
                return
            self._queue.popleft()
            _close(fd)

    def receive(self) -> list[tuple[Message, int | None]]:
        """What has come, up to MAX_BATCH messages; each with its descriptor, which is the caller's to close.

        A descriptor that did not fit into this process (RLIMIT_NOFILE) is lost: a Connect may come without one.
        Raises LocalProtocolError for what is not a message.
        """
        received: list[tuple[Message, int | None]] = []
        while len(received) < MAX_BATCH and not self.eof:
            try:
                data, ancillary, _flags, _ = self._socket.recvmsg(
                    messages.MAX_MESSAGE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                break
            except ConnectionResetError:
                # The other side died with messages of ours unread. Said once, before what it had sent itself.
                self._deaf = True
                continue
            fd = _descriptor(ancillary)
            if not data:
                self.eof = True
                _close(fd)
                break
            received.append((self._decode(data, fd), fd))
        return received

    def close(self) -> None:
        """Close this end, and every descriptor that still waited to be sent."""
        self._discard_queue()
        self._socket.close()

    def _send_one(self, data: bytes, fd: int | None) -> None:
        if fd is None:
            self._socket.send(data)
        else:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))
            self._socket.sendmsg([data], [rights])

    @staticmethod
    def _decode(data: bytes, fd: int | None) -> Message:
        try:
            return messages.decode(data)
        except IscsidError:
            _close(fd)
            raise

    def _discard_queue(self) -> None:
        while self._queue:
            _close(self._queue.popleft()[1])


def _descriptor(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= _FD_SIZE:
            return array("i", data[:_FD_SIZE])[0]
    return None


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
