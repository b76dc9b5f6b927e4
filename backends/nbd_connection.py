"""One connection to a server, after its handshake: requests of many threads in, answers in any order out.

There is no thread of its own here. Of the threads that wait for an answer one leads: it receives, for all of them,
until its own answer is there, and hands the lead to another that waits. So a single caller has no thread to change to,
and sixteen share one stream. Whatever goes wrong with the stream ends the connection, and everybody who waits.
"""

from __future__ import annotations

import contextlib
import threading
import time
from bisect import bisect_left
from typing import Final

from iscsid.plugin import BlockError, Extent, Fault

from . import nbd_protocol as protocol
from .nbd_transport import Receiver

MAX_CHUNKS: Final = 64  # for each answer; a read may have one more for each 512 bytes


class Lost(Exception):
    """The connection ended before the answer came: whether the server did it, nobody knows."""


class Unanswered(Exception):
    """The server had its time for this request. It may still do it."""


class Request:
    """One request and, after ``Connection.perform``, what became of it.

    ``data`` is what is written, or the buffer that is read into. ``error`` is the first that the server told of, 0 for
    none; ``status`` what a block status said.
    """

    __slots__ = (
        "_pieces",
        "chunks",
        "cookie",
        "data",
        "done",
        "error",
        "failure",
        "flags",
        "gate",
        "kind",
        "length",
        "message",
        "offset",
        "open",
        "seen",
        "status",
        "waits",
    )

    def __init__(
        self, kind: int, offset: int = 0, length: int = 0, data: memoryview | None = None, flags: int = 0
    ) -> None:
        self.kind = kind
        self.offset = offset
        self.length = length if data is None else len(data)
        self.data = data
        self.flags = flags
        self.reset()

    def reset(self) -> None:
        """As if it had never been sent."""
        self.cookie = 0
        self.done = False  # nobody touches ``data`` any more
        self.failure: Exception | None = None  # what ended the connection
        self.error = 0
        self.message = ""
        self.status: list[Extent] | None = None
        self.chunks = 0
        self.seen = 0  # bytes of a read
        self._pieces: list[tuple[int, int]] = []  # from, to: what is read, in order, neighbours joined
        self.gate = threading.Lock()
        self.gate.acquire()
        self.open = False  # the gate
        self.waits = False  # for the gate

    def place(self, offset: int, length: int) -> memoryview:
        """Where a chunk of a read goes. Raises Violation where it is not inside, or partly there already."""
        start = offset - self.offset
        end = start + length
        if self.kind != protocol.CMD_READ or self.data is None or start < 0 or length <= 0 or end > self.length:
            raise protocol.Violation(f"a chunk of {length} bytes at {offset}, for {self}")
        if self.seen or length < self.length:
            self._note(start, end)
        self.seen += length
        return self.data[start:end]

    def _note(self, start: int, end: int) -> None:
        pieces = self._pieces
        at = bisect_left(pieces, (start, end))
        before = at and pieces[at - 1][1]
        behind = pieces[at][0] if at < len(pieces) else self.length
        if (self.seen and not pieces) or before > start or behind < end:
            raise protocol.Violation(f"a chunk from {start} to {end} is there already, of {self}")
        join_before = at > 0 and before == start
        join_behind = at < len(pieces) and behind == end
        first = pieces[at - 1][0] if join_before else start
        last = pieces[at][1] if join_behind else end
        pieces[at - join_before : at + join_behind] = [(first, last)]

    def check(self) -> None:
        """At the end of the answer: whether it is whole. Raises Violation."""
        if self.error:
            return
        if self.kind == protocol.CMD_READ and self.seen != self.length:
            raise protocol.Violation(f"{self.seen} of {self.length} bytes, for {self}")
        if self.kind == protocol.CMD_BLOCK_STATUS and not self.status:
            raise protocol.Violation(f"an answer without a status, for {self}")

    def __str__(self) -> str:
        return f"{protocol.NAMES[self.kind]} of {self.length} bytes at {self.offset}"


class Connection:
    """``receiver`` and ``facts`` are what the handshake gave; the connection owns the transport."""

    def __init__(self, receiver: Receiver, facts: protocol.Facts) -> None:
        self.facts = facts
        self._receiver = receiver
        self._transport = receiver.transport
        self._sending = threading.Lock()
        self._lock = threading.Lock()  # of everything below
        self._pending: dict[int, Request] = {}
        self._next = 1
        self._leader: Request | None = None
        self._inside = 0  # threads in ``perform``
        self._failure: Exception | None = None
        self._closed = False

    @property
    def load(self) -> int:
        """How many requests are under way."""
        return self._inside

    def perform(self, request: Request, deadline: float) -> None:
        """Send it, and wait for its answer until ``deadline``.

        Raises Lost, Unanswered, and BlockError where the server breaks the protocol. An error that the server tells of
        is in the request.
        """
        self._enter(request)
        try:
            self._send(request, deadline)
            self._wait(request, deadline)
        finally:
            self._leave(request)
        if request.failure is not None:
            if isinstance(request.failure, Lost) and time.monotonic() >= deadline:
                raise Unanswered(f"no answer in time to {request}")
            raise _told(request.failure)

    def end(self, failure: Exception) -> None:
        """No more of it: everybody who waits fails with ``failure``, now."""
        with self._lock:
            if self._failure is None:
                self._failure = failure
                self._transport.shutdown()
            if self._leader is None:  # otherwise it is the leader who does it, when it is out of everybody's buffers
                self._fail_all()
            self._close_if_left()

    def disconnect(self) -> None:
        """Say goodbye, without waiting for anything, and end it."""
        if not self._inside and self._failure is None:
            with contextlib.suppress(OSError):  # it need not hear
                self._transport.send(_packed(Request(protocol.CMD_DISC)), None, time.monotonic())
        self.end(Lost("the device is closed"))

    # In and out.

    def _enter(self, request: Request) -> None:
        with self._lock:
            if self._failure is not None:
                raise _told(self._failure)
            request.cookie = self._next
            self._next += 1
            self._pending[request.cookie] = request
            self._inside += 1

    def _leave(self, request: Request) -> None:
        with self._lock:
            self._pending.pop(request.cookie, None)
            self._inside -= 1
            self._close_if_left()

    def _close_if_left(self) -> None:
        """The descriptor goes when no thread can be in it: its number may be somebody else's at once."""
        if self._failure is not None and not self._inside and not self._closed:
            self._closed = True
            self._transport.close()

    def _fail_all(self) -> None:
        for request in self._pending.values():
            if not request.done:
                request.failure = self._failure
                request.done = True
                self._signal(request)

    def _signal(self, request: Request) -> None:
        if not request.open:
            request.open = True
            request.gate.release()

    def _send(self, request: Request, deadline: float) -> None:
        data = request.data if request.kind == protocol.CMD_WRITE else None
        left = deadline - time.monotonic()
        if not self._sending.acquire(timeout=max(0.0, left)):
            return self.end(Lost("the server takes no more requests"))
        try:
            if self._failure is None:
                self._transport.send(_packed(request), data, deadline)
        except OSError as error:
            self.end(_ended(error))
        finally:
            self._sending.release()
        return None

    def _wait(self, request: Request, deadline: float) -> None:
        while True:
            with self._lock:
                if request.done:
                    return
                leading = self._leader is None
                if leading:
                    self._leader = request
                request.waits = not leading
            if leading:
                self._lead(request, deadline)
                continue
            if not request.gate.acquire(timeout=max(0.0, deadline - time.monotonic())):
                self.end(Lost(f"no answer in time to {request}"))
                request.gate.acquire()  # at once: the leader, which may be in our buffer, is on its way out
            with self._lock:
                request.open = False

    def _lead(self, request: Request, deadline: float) -> None:
        """Receive until the answer to ``request`` is there, then let another one lead."""
        failure: Exception | None = None
        try:
            while not request.done:
                self._receive(deadline)
        except OSError as error:
            failure = _ended(error)
        except protocol.Violation as error:
            failure = error
        except BaseException as error:  # whatever it is, nobody may wait for ever
            failure = Lost(f"{type(error).__name__}: {error}")
            raise
        finally:
            self._hand_over(failure)

    def _hand_over(self, failure: Exception | None) -> None:
        with self._lock:
            self._leader = None
            if failure is not None and self._failure is None:
                self._failure = failure
                self._transport.shutdown()
            if self._failure is not None:
                return self._fail_all()
            # Not to one that is still sending: the server may take its request only when we take what it answered.
            for request in self._pending.values():
                if request.waits and not request.done:
                    return self._signal(request)
        return None

    # Answers. Only the leader is here.

    def _receive(self, deadline: float) -> None:
        """Take one simple reply, or one chunk of a structured one."""
        start = self._receiver.exactly(protocol.SIMPLE_REPLY.size, deadline)
        magic, first, last = protocol.SIMPLE_REPLY.unpack(start)
        if magic == protocol.SIMPLE_REPLY_MAGIC:
            request = self._asked(last)
            self._simple(request, first, deadline)
            return self._finish(request)
        if magic != protocol.STRUCTURED_REPLY_MAGIC:
            raise protocol.Violation(f"a reply begins with {magic:#x}")
        if not self.facts.structured:
            raise protocol.Violation("a structured reply that was not agreed on")
        start += self._receiver.exactly(protocol.STRUCTURED_REPLY.size - len(start), deadline)
        _, flags, kind, cookie, length = protocol.STRUCTURED_REPLY.unpack(start)
        request = self._asked(cookie)
        request.chunks += 1
        if request.chunks > MAX_CHUNKS + request.length // 512:
            raise protocol.Violation(f"more than {request.chunks - 1} chunks, for {request}")
        self._chunk(request, kind, length, deadline)
        if kind == protocol.TYPE_NONE and not flags & protocol.FLAG_DONE:
            raise protocol.Violation("a chunk without a content that is not the last")
        return self._finish(request) if flags & protocol.FLAG_DONE else None

    def _asked(self, cookie: int) -> Request:
        request = self._pending.get(cookie)
        if request is None or request.done:
            raise protocol.Violation(f"an answer to {cookie:#x}, which nobody asked")
        return request

    def _finish(self, request: Request) -> None:
        request.check()
        with self._lock:
            request.done = True
            if request is not self._leader:
                self._signal(request)

    def _simple(self, request: Request, error: int, deadline: float) -> None:
        if request.chunks:
            raise protocol.Violation(f"a simple reply after chunks, for {request}")
        if error:
            request.error = error
        elif request.kind == protocol.CMD_READ:
            if self.facts.structured:
                raise protocol.Violation("a simple reply to a read, where structured ones are agreed on")
            self._receiver.into(request.place(request.offset, request.length), deadline)

    def _chunk(self, request: Request, kind: int, length: int, deadline: float) -> None:
        receiver = self._receiver
        if kind == protocol.TYPE_OFFSET_DATA:
            _must_hold(8 < length <= 8 + request.length, length, request)
            offset = int.from_bytes(receiver.exactly(8, deadline), "big")
            receiver.into(request.place(offset, length - 8), deadline)
        elif kind == protocol.TYPE_OFFSET_HOLE:
            _must_hold(length == protocol.HOLE.size, length, request)
            target = request.place(*protocol.HOLE.unpack(receiver.exactly(length, deadline)))
            target[:] = bytes(len(target))
        elif kind == protocol.TYPE_BLOCK_STATUS:
            _must_hold(length <= protocol.MAX_STATUS, length, request)
            if request.kind != protocol.CMD_BLOCK_STATUS or request.status or self.facts.context is None:
                raise protocol.Violation(f"a block status, for {request}")
            data = receiver.exactly(length, deadline)
            request.status = protocol.extents(self.facts.context, data, request.offset, request.length)
        elif kind & 1 << 15:
            _must_hold(length <= protocol.MAX_ERROR, length, request)
            code, message = protocol.error_chunk(kind, receiver.exactly(length, deadline))
            if not request.error:
                request.error, request.message = code, message
        elif kind != protocol.TYPE_NONE or length:
            raise protocol.Violation(f"a chunk of type {kind} with {length} bytes, for {request}")


def _must_hold(right: bool, length: int, request: Request) -> None:
    if not right:
        raise protocol.Violation(f"a chunk of {length} bytes, for {request}")


def _packed(request: Request) -> bytes:
    return protocol.REQUEST.pack(
        protocol.REQUEST_MAGIC, request.flags, request.kind, request.cookie, request.offset, request.length
    )


def _ended(error: OSError) -> Lost:
    return Lost(error.strerror or str(error) or type(error).__name__)


def _told(failure: Exception) -> Exception:
    """A new exception for each who has to hear: one object raised by many threads would collect their tracebacks."""
    if isinstance(failure, protocol.Violation):
        return BlockError(Fault.INTERNAL, f"the server broke the protocol: {failure}")
    return type(failure)(*failure.args)
