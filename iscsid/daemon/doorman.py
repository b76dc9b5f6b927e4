"""Connections that nobody has placed yet: from accept until their first Login PDU is there, whole.

The PDU is looked at with MSG_PEEK and stays in the socket, so that the worker reads the connection from its first
byte. SO_RCVLOWAT keeps the poll quiet until enough has come; a stranger who sends one byte a second wakes nobody.

There is a deadline, and a cap in all and per source. When a source's cap is reached its *oldest* connection gives way:
a client sends its login at once, an idle flood does not, so the client gets in from the same address all the same.
When the cap in all is reached the oldest of the source with the most gives way.
"""

from __future__ import annotations

import ipaddress
import selectors
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from iscsid.daemon import firstpdu
from iscsid.daemon.firstpdu import LoginHint
from iscsid.errors import RemoteProtocolError

_ESTABLISHED: Final = 1  # tcp_states.h
MAX_NUDGES: Final = 64  # wake-ups that brought nothing (the kernel short of memory), before we stop believing in it


@dataclass(eq=False, slots=True)
class Caller:
    """One connection at the door. ``hint`` is there once its first PDU is; ``gone`` once it is not ours any more."""

    sock: socket.socket
    host: str
    peer: str
    portal: str
    deadline: float
    wanted: int = 1  # bytes: what SO_RCVLOWAT is set to
    nudges: int = 0
    hint: LoginHint | None = None
    gone: bool = False
    portal_group_tag: int = 1


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """How many callers there may be, and for how long (seconds)."""

    in_all: int
    per_host: int
    timeout: float


class Doorman:
    """Every caller. ``refused`` counts those that were sent away, by reason."""

    def __init__(
        self, selector: selectors.BaseSelector, limits: DoorLimits, place: Callable[[Caller, LoginHint], bool]
    ) -> None:
        """``place`` gets each caller whose login is there; it takes the socket and returns True, or returns False
        when the worker that it belongs to is not ready. The caller then waits for :meth:`retry` or its deadline."""
        self.limits = limits
        self.refused: Counter[str] = Counter()
        self._selector = selector
        self._place = place
        self._callers: dict[Caller, None] = {}  # oldest first
        self._by_host: dict[str, dict[Caller, None]] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def admit(
        self, sock: socket.socket, address: tuple[Any, ...], portal: str, now: float, portal_group_tag: int = 1
    ) -> None:
        """Take over a connection that was just accepted at ``portal``, of the portal group ``portal_group_tag``."""
        host = source(address[0])
        sock.setblocking(False)
        deadline = now + self.limits.timeout
        caller = Caller(sock, host, join(address), portal, deadline, portal_group_tag=portal_group_tag)
        self._make_room(host)
        self._callers[caller] = None
        self._by_host.setdefault(host, {})[caller] = None
        self._selector.register(sock, selectors.EVENT_READ, partial(self._readable, caller))

    def deadline(self) -> float | None:
        """When :meth:`expire` has something to do. All callers have the same time, so the oldest is the next."""
        return next((caller.deadline for caller in self._callers), None)

    def expire(self, now: float) -> None:
        """Send away whoever has been here too long."""
        for caller in list(self._callers):
            if caller.deadline > now:
                break
            self._refuse(caller, "timeout" if caller.hint is None else "no worker")

    def retry(self) -> None:
        """A worker has become ready: place who waits for one, oldest first."""
        for caller in list(self._callers):
            if caller.hint is not None:
                self._offer(caller, caller.hint)

    def close(self) -> None:
        """Send everybody away."""
        for caller in list(self._callers):
            self._forget(caller)
            caller.sock.close()

    def leave(self) -> None:
        """In a worker just forked: close its copies, and keep off the selector, which is the supervisor's still."""
        for caller in self._callers:
            caller.sock.close()

    # -- within ------------------------------------------------------------------------------------------------------

    def _readable(self, caller: Caller, _mask: int, _now: float) -> None:
        if caller.gone:
            return  # it gave way to another earlier in this round of events
        try:
            data = caller.sock.recv(firstpdu.MAX_FIRST_PDU, socket.MSG_PEEK)
            wanted = firstpdu.needed(data)
            if len(data) < wanted:
                self._wait_for(caller, wanted, closed=not data)
            else:
                hint = firstpdu.read(data)
                self._selector.unregister(caller.sock)
                caller.hint = hint
                caller.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
                self._offer(caller, hint)
        except BlockingIOError:
            return
        except RemoteProtocolError:
            self._refuse(caller, "no login")
        except OSError:
            self._refuse(caller, "closed by peer")

    def _wait_for(self, caller: Caller, wanted: int, *, closed: bool) -> None:
        """Sleep until ``wanted`` bytes are there. A wake-up with fewer than that means an end, or a false alarm."""
        if wanted != caller.wanted:
            caller.wanted = wanted
            caller.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wanted)
            return
        caller.nudges += 1
        if closed or caller.nudges > MAX_NUDGES or _tcp_state(caller.sock) != _ESTABLISHED:
            self._refuse(caller, "closed by peer")

    def _offer(self, caller: Caller, hint: LoginHint) -> None:
        if self._place(caller, hint):
            self._forget(caller)

    def _make_room(self, host: str) -> None:
        same_host = self._by_host.get(host, {})
        if len(same_host) >= self.limits.per_host:
            self._refuse(next(iter(same_host)), "too many from one host")
        elif len(self._callers) >= self.limits.in_all:
            busiest = max(self._by_host.values(), key=len)
            self._refuse(next(iter(busiest)), "too many")

    def _refuse(self, caller: Caller, reason: str) -> None:
        self.refused[reason] += 1
        self._forget(caller)
        caller.sock.close()

    def _forget(self, caller: Caller) -> None:
        if caller.hint is None:
            self._selector.unregister(caller.sock)
        caller.gone = True
        del self._callers[caller]
        same_host = self._by_host[caller.host]
        del same_host[caller]
        if not same_host:
            del self._by_host[caller.host]


def source(host: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 that one IPv6 host has to itself."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False))


def join(address: tuple[Any, ...]) -> str:
    """A socket address as "host:port", an IPv6 host in brackets."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tcp_state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
