"""Portals are bound or the start is refused with a reason; before ``open`` nobody can connect."""

from __future__ import annotations

import errno
import socket

import pytest

from iscsid.daemon import listener as module
from iscsid.daemon.errors import StartError
from iscsid.daemon.listener import Listener, bind
from iscsid.specs import PortalSpec


def connect(listener: Listener) -> socket.socket:
    return socket.create_connection((listener.portal.host, listener.portal.port), timeout=5)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connection_is_accepted_with_both_addresses(host: str) -> None:
    (listener,) = bind([PortalSpec(host, 0)])
    listener.open()
    with connect(listener) as client:
        accepted = listener.accept()
        assert accepted is not None
        sock, peer, portal = accepted
        with sock:
            assert peer[:2] == client.getsockname()[:2]
            assert portal == str(listener.portal)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert listener.accept() is None
    listener.close()


def test_bound_portal_refuses_until_it_is_opened() -> None:
    (listener,) = bind([PortalSpec("127.0.0.1", 0)])
    with pytest.raises(ConnectionRefusedError):
        connect(listener)
    listener.open()
    connect(listener).close()
    listener.close()


def test_same_port_on_both_families_is_two_portals() -> None:
    (four,) = bind([PortalSpec("0.0.0.0", 0)])
    (six,) = bind([PortalSpec("::", four.portal.port)])
    four.close()
    six.close()


def test_address_in_use_refuses_the_start_and_leaves_nothing_bound() -> None:
    (taken,) = bind([PortalSpec("127.0.0.1", 0)])
    taken.open()
    (free,) = bind([PortalSpec("127.0.0.1", 0)])
    free.close()
    with pytest.raises(StartError, match=f"portal 127.0.0.1:{taken.portal.port}: Address already in use"):
        bind([free.portal, taken.portal])
    bind([free.portal])[0].close()
    taken.close()


def test_address_of_another_host_refuses_the_start() -> None:
    with pytest.raises(StartError, match=r"portal 192\.0\.2\.1:3260"):
        bind([PortalSpec("192.0.2.1")])


def test_unknown_host_refuses_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_args: object, **_kwargs: object) -> list[object]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(module.socket, "getaddrinfo", unknown)
    with pytest.raises(StartError, match="Name or service not known"):
        bind([PortalSpec("no.such.host")])


def test_no_portal_refuses_the_start() -> None:
    with pytest.raises(StartError, match="no portal"):
        bind([])


def test_host_without_ipv6_serves_the_other_portals(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: Listener, family: int, address: tuple[object, ...], tag: int) -> None:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported")
        real(self, family, address, tag)

    real = Listener.__init__
    monkeypatch.setattr(Listener, "__init__", init)
    (listener,) = bind([PortalSpec("127.0.0.1", 0), PortalSpec("::", 0)])
    listener.close()
    with pytest.raises(StartError, match="::1"):
        bind([PortalSpec("127.0.0.1", 0), PortalSpec("::1", 0)])


class FakeSocket:
    """A listening socket whose accept() fails with each of ``errors`` in turn."""

    def __init__(self, *errors: int) -> None:
        self.errors = list(errors)

    def accept(self) -> None:
        number = self.errors.pop(0)
        raise OSError(number, "") if number != errno.EAGAIN else BlockingIOError


def test_connection_that_died_in_the_backlog_is_passed_over() -> None:
    listener = object.__new__(Listener)
    listener.sock = FakeSocket(errno.ECONNABORTED, errno.EPROTO, errno.EAGAIN)
    assert listener.accept() is None


@pytest.mark.parametrize("number", module.NO_ROOM)
def test_no_room_is_told_to_the_caller(number: int) -> None:
    listener = object.__new__(Listener)
    listener.sock = FakeSocket(number)
    with pytest.raises(OSError):
        listener.accept()
