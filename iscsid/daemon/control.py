"""The control socket: a unix stream in the runtime directory, for the user that the server runs as (mode 0600).

One request is one line of JSON, ``{"command": "status"}``; its answer is one line too, ``{"ok": true, ...}`` or
``{"ok": false, "error": "..."}``. A client may ask again on the same connection once it has its answer. Lines, clients,
answers and the time that a client may take are all bounded, so that no client costs the server anything.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from iscsid.daemon.errors import StartError
from iscsid.errors import IscsidError

SOCKET_NAME: Final = "control.sock"
MAX_CLIENTS: Final = 16
MAX_REQUEST: Final = 4096  # bytes of one line
MAX_ANSWER: Final = 16 << 20  # bytes: 65,535 sessions, each of less than 256
CLIENT_TIMEOUT: Final = 10.0  # seconds between two requests, and for an answer to be read
_MAX_PATH: Final = 107  # sun_path, less its NUL (unix(7))


class ControlError(IscsidError):
    """The server could not be asked."""


class RequestRefused(IscsidError):
    """The server was asked, and did not do it; the text is its reason."""


@dataclass(eq=False, slots=True)
class Client:
    """One connection. While ``waiting`` its request is being answered and no other is read."""

    sock: socket.socket
    deadline: float
    received: bytearray = field(default_factory=bytearray)
    answer: bytes = b""
    waiting: bool = False
    gone: bool = False


Handler = Callable[[Client, Mapping[str, Any], float], Mapping[str, Any] | None]


class Control:
    """The server's side. A handler returns the answer, or None and calls :meth:`answer` later."""

    def __init__(self, runtime_dir: str, selector: selectors.BaseSelector, commands: Mapping[str, Handler]) -> None:
        """Bind. The caller holds the pid file's lock, so whatever socket is there is a dead server's.

        Raises StartError.
        """
        self.path = os.path.join(runtime_dir, SOCKET_NAME)
        self._selector = selector
        self._commands = commands
        self._clients: dict[Client, None] = {}  # oldest first
        if len(os.fsencode(self.path)) > _MAX_PATH:
            raise StartError(f"{self.path}: longer than the {_MAX_PATH} bytes that a socket's path may have")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind()
        except OSError as exc:
            self._sock.close()
            raise StartError(f"{self.path}: {exc.strerror or exc}") from exc
        selector.register(self._sock, selectors.EVENT_READ, self._acceptable)

    def __len__(self) -> int:
        return len(self._clients)

    def answer(self, client: Client, answer: Mapping[str, Any]) -> None:
        """Answer the request that ``client`` waits for, if it still does."""
        if client.gone or not client.waiting:
            return
        data = json.dumps(answer, separators=(",", ":")).encode("ascii") + b"\n"
        if len(data) > MAX_ANSWER:
            data = b'{"ok":false,"error":"the answer is too long"}\n'
        client.waiting = False
        client.answer = data
        self._write(client)

    def expire(self, now: float) -> None:
        """Close clients that take too long."""
        for client in [client for client in self._clients if client.deadline <= now]:
            self._close(client)

    def close(self) -> None:
        """Close everything and remove the socket's file."""
        for client in list(self._clients):
            self._close(client)
        self._selector.unregister(self._sock)
        self._sock.close()
        os.unlink(self.path)

    def leave(self) -> None:
        """In a worker just forked: close its copies, and keep off the selector, which is the supervisor's still."""
        for client in self._clients:
            client.sock.close()
        self._sock.close()

    # -- within ------------------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        if os.path.lexists(self.path):
            os.unlink(self.path)
        mask = os.umask(0o177)  # so that there is no moment at which others may connect
        try:
            self._sock.bind(self.path)
        finally:
            os.umask(mask)
        self._sock.setblocking(False)
        self._sock.listen(MAX_CLIENTS)

    def _acceptable(self, _mask: int, now: float) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError:
            return
        sock.setblocking(False)
        if len(self._clients) >= MAX_CLIENTS:
            self._close(next(iter(self._clients)))
        client = Client(sock, now + CLIENT_TIMEOUT)
        self._clients[client] = None
        self._selector.register(sock, selectors.EVENT_READ, partial(self._ready, client))

    def _ready(self, client: Client, mask: int, now: float) -> None:
        if client.gone:
            return
        if mask & selectors.EVENT_WRITE:
            self._write(client)
        if mask & selectors.EVENT_READ and not client.gone:
            self._read(client, now)

    def _read(self, client: Client, now: float) -> None:
        try:
            data = client.sock.recv(MAX_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.received += data
        line, newline, rest = client.received.partition(b"\n")
        if not data or len(client.received) > MAX_REQUEST or client.waiting or rest:
            self._close(client)  # gone, or it does not keep to one request at a time
            return
        if not newline:
            return
        client.received.clear()
        client.deadline = now + CLIENT_TIMEOUT
        client.waiting = True
        answer = self._execute(client, bytes(line), now)
        if answer is not None:
            self.answer(client, answer)

    def _execute(self, client: Client, line: bytes, now: float) -> Mapping[str, Any] | None:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _error("not JSON")
        if not isinstance(request, dict):
            return _error("not an object")
        command = request.get("command")
        handler = self._commands.get(command) if isinstance(command, str) else None
        if handler is None:
            return _error(f"no such command; there are: {', '.join(self._commands)}")
        return handler(client, request, now)

    def _write(self, client: Client) -> None:
        try:
            sent = client.sock.send(client.answer)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(client)
            return
        client.answer = client.answer[sent:]
        events = selectors.EVENT_WRITE if client.answer else selectors.EVENT_READ
        self._selector.modify(client.sock, events, partial(self._ready, client))

    def _close(self, client: Client) -> None:
        client.gone = True
        del self._clients[client]
        self._selector.unregister(client.sock)
        client.sock.close()


def _error(reason: str) -> dict[str, Any]:
    return {"ok": False, "error": reason}


def ask(runtime_dir: str, command: str, *, timeout: float = 5.0, **arguments: Any) -> dict[str, Any]:
    """Ask the server of ``runtime_dir``; for commands, not for the server itself. Waits up to ``timeout`` seconds.

    Returns the answer without its "ok". Raises ControlError, or RequestRefused, whose texts are for the user.
    """
    path = os.path.join(runtime_dir, SOCKET_NAME)
    deadline = time.monotonic() + timeout
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(path)
            sock.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            line = _read_line(sock, deadline)
    except FileNotFoundError:
        raise ControlError(f"no server is running here: there is no {path}") from None
    except ConnectionRefusedError:
        raise ControlError(f"no server is running here: nobody listens at {path}") from None
    except TimeoutError:
        raise ControlError(f"{path}: no answer within {timeout:g} seconds") from None
    except OSError as exc:
        raise ControlError(f"{path}: {exc.strerror or exc}") from exc
    try:
        answer = json.loads(line)
        ok = answer.pop("ok")
    except (ValueError, TypeError, AttributeError, KeyError):
        raise ControlError(f"{path}: the answer makes no sense") from None
    if not ok:
        raise RequestRefused(str(answer.get("error", "refused")))
    return dict(answer)


def _read_line(sock: socket.socket, deadline: float) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        sock.settimeout(left)
        chunk = sock.recv(1 << 16)
        if not chunk or len(data) > MAX_ANSWER:
            break
        data += chunk
    return bytes(data)
