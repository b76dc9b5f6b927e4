"""Where an export is: NBD URIs, as doc/uri.md of the NBD project has them.

nbd://host[:port]/export      nbd+unix:///export?socket=/run/nbd.sock
nbds://host[:port]/export     nbds+unix:///export?socket=/run/nbd.sock&tls-hostname=storage.example
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from . import nbd_protocol as protocol

SCHEMES = {"nbd": (False, False), "nbds": (False, True), "nbd+unix": (True, False), "nbds+unix": (True, True)}
"""Scheme: (by a Unix socket, with TLS)."""
MAX_SOCKET_PATH = 107  # bytes, by unix(7)


class Address(NamedTuple):
    """An export: ``socket`` is the path of a Unix socket, or "" where ``host`` and ``port`` count.

    ``server_name`` is what the server's certificate has to be for, with ``tls``.
    """

    host: str
    port: int
    socket: str
    export: bytes
    tls: bool
    server_name: str

    def __str__(self) -> str:
        where = self.socket or f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        return f"{where}/{protocol.printable(self.export)}"


def parse(uri: str) -> Address:
    """The address that ``uri`` says. Raises ValueError with what is wrong."""
    parts = urlsplit(uri)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{uri!r} is none of {', '.join(f'{scheme}://' for scheme in SCHEMES)}")
    unix, tls = SCHEMES[parts.scheme]
    if parts.username is not None or parts.fragment:
        raise ValueError(f"{uri!r}: a user name and a #fragment mean nothing here")
    query = _query(parts.query, uri, (*(["socket"] if unix else []), *(["tls-hostname"] if tls else [])))
    export = unquote_to_bytes(parts.path.removeprefix("/"))
    if len(export) > protocol.MAX_NAME:
        raise ValueError(f"the name of the export has {len(export)} bytes, more than {protocol.MAX_NAME}")
    if b"\0" in export:
        raise ValueError("the name of the export has a NUL")
    if unix:
        return Address("", 0, _socket(parts.netloc, query, uri), export, tls, query.get("tls-hostname", "localhost"))
    host = parts.hostname or ""
    port = protocol.PORT if parts.port is None else parts.port
    if not host or not port:
        raise ValueError(f"{uri!r} has no host, or a port of 0")
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ValueError(f"{host!r} is no name of a host: {error}") from error
    return Address(host, port, "", export, tls, query.get("tls-hostname", host))


def _query(text: str, uri: str, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), max_num_fields=16):
        if key not in known or key in found:
            allowed = ", ".join(known) or "none is known"
            raise ValueError(f"{uri!r}: the parameter {key} is unknown or given twice ({allowed})")
        found[key] = value
    return found


def _socket(netloc: str, query: dict[str, str], uri: str) -> str:
    path = query.get("socket", "")
    if netloc or not path:
        raise ValueError(f"{uri!r} is not of the form nbd+unix:///export?socket=/path")
    if "\0" in path or len(path.encode()) > MAX_SOCKET_PATH:
        raise ValueError(f"the path of the socket has a NUL, or more than {MAX_SOCKET_PATH} bytes")
    return path


class Credentials(NamedTuple):
    """Files in PEM, or "": ``ca`` has who may vouch for the server, ``cert`` and ``key`` are our own."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    def context(self) -> ssl.SSLContext:
        """What to make TLS with. Always checks the server's certificate and name. Raises OSError with the file."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        if self.ca:
            with _naming(self.ca):
                context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=self.ca)
        if self.cert:
            with _naming(self.cert):
                # A key with a passphrase would ask for it at a terminal that a server does not have.
                context.load_cert_chain(self.cert, self.key or None, password=_no_passphrase)
        return context


def _no_passphrase() -> str:
    raise OSError("the key has a passphrase, which nobody can enter here")


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Say which file it was: messages of OpenSSL do not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), path) from error
