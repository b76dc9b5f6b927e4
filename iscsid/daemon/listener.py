"""The portals: bound early, so that an address that cannot be had stops the start, and opened last."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable
from typing import Any, Final

from iscsid.daemon.doorman import join
from iscsid.daemon.errors import StartError
from iscsid.specs import PortalSpec

BACKLOG: Final = 1024  # as much as the kernel's somaxconn lets through
ACCEPT_BATCH: Final = 64  # connections taken per wake-up, so that a flood cannot hold the loop

_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
#: What accept() fails with when this process or the host has no room; the connection stays in the backlog.
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

log = logging.getLogger(__name__)


class Listener:
    """One address. ``portal`` has the port that the kernel gave where 0 was asked for."""

    def __init__(self, family: int, address: tuple[Any, ...], portal_group_tag: int = 1) -> None:
        """Bind. Raises OSError."""
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit these two: answers leave when they are sent, dead peers are found in the end.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if family == socket.AF_INET6:
                self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self.sock.bind(address)
        except OSError:
            self.sock.close()
            raise
        self.sock.setblocking(False)
        host, port = self.sock.getsockname()[:2]
        self.portal = PortalSpec(host, port, portal_group_tag)

    def fileno(self) -> int:
        return self.sock.fileno()

    def open(self) -> None:
        """Let connections come."""
        self.sock.listen(BACKLOG)

    def accept(self) -> tuple[socket.socket, tuple[Any, ...], str] | None:
        """The next connection, its peer's address and the address that it came to; None when there is none.

        Raises OSError with an errno of NO_ROOM.
        """
        while True:
            try:
                sock, address = self.sock.accept()
            except BlockingIOError:
                return None
            except OSError as exc:
                if exc.errno in NO_ROOM:
                    raise
                continue  # that connection died in the backlog (accept(2), "Error handling")
            try:
                return sock, address, join(sock.getsockname())
            except OSError:
                sock.close()

    def close(self) -> None:
        self.sock.close()


def bind(portals: Iterable[PortalSpec]) -> list[Listener]:
    """A listener per address of each portal. Raises StartError, with nothing left bound.

    A host without IPv6 serves "::" by not serving it, if there is another portal.
    """
    listeners: list[Listener] = []
    try:
        for portal in portals:
            for family, address in _resolve(portal):
                try:
                    listeners.append(Listener(family, address, portal.portal_group_tag))
                except OSError as exc:
                    if portal.host != "::" or exc.errno not in _NO_SUCH_FAMILY:
                        raise StartError(f"portal {portal}: {exc.strerror or exc}") from exc
                    log.warning("portal %s: this host has no IPv6", portal)
        if not listeners:
            raise StartError("no portal to listen on")
    except StartError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _resolve(portal: PortalSpec) -> list[tuple[int, tuple[Any, ...]]]:
    try:
        found = socket.getaddrinfo(portal.host, portal.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise StartError(f"portal {portal}: {exc.strerror or exc}") from exc
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))
