"""The control socket answers its user and is not moved by anybody else."""

from __future__ import annotations

import json
import os
import selectors
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from iscsid.daemon import control as module
from iscsid.daemon.control import MAX_CLIENTS, Client, Control, ControlError, RequestRefused, ask
from iscsid.daemon.errors import StartError


class Host:
    """A control socket with three commands, and the loop that it needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.selector = selectors.DefaultSelector()
        self.waiting: list[Client] = []
        self.control = Control(str(folder), self.selector, {"echo": self.echo, "later": self.later, "long": self.long})
        self.clients: list[socket.socket] = []

    def echo(self, _client: Client, request: Mapping[str, Any], now: float) -> dict[str, Any]:
        return {"ok": True, "request": dict(request), "now": now}

    def later(self, client: Client, _request: Mapping[str, Any], _now: float) -> None:
        self.waiting.append(client)

    def long(self, _client: Client, _request: Mapping[str, Any], _now: float) -> dict[str, Any]:
        return {"ok": True, "data": "x" * (4 << 20)}

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.control.path)
        sock.settimeout(5)
        self.clients.append(sock)
        self.run()
        return sock

    def run(self, now: float = 0.0, rounds: int = 3) -> None:
        for _ in range(rounds):
            for key, mask in self.selector.select(0.01):
                key.data(mask, now)

    def close(self) -> None:
        for sock in self.clients:
            sock.close()
        self.control.close()
        self.selector.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.close()


def answer(sock: socket.socket) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(sock.recv(65536))
    return answer


def is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(65536) == b""
    except ConnectionResetError:
        return True


def test_request_is_answered_and_another_may_follow(host: Host) -> None:
    sock = host.connect()
    for number in range(3):
        sock.sendall(json.dumps({"command": "echo", "number": number}).encode() + b"\n")
        host.run(now=7.0)
        assert answer(sock) == {"ok": True, "request": {"command": "echo", "number": number}, "now": 7.0}


def test_request_in_pieces_is_answered_once_it_is_whole(host: Host) -> None:
    sock = host.connect()
    for byte in b'{"command":"echo"}\n':
        sock.sendall(bytes([byte]))
        host.run(rounds=1)
    assert answer(sock)["ok"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"hello", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[" * 4000, "not JSON"),
        (b"[]", "not an object"),
        (b"{}", "no such command; there are: echo, later, long"),
        (b'{"command":"none"}', "no such command"),
        (b'{"command":["echo"]}', "no such command"),
    ],
)
def test_nonsense_is_answered_with_the_reason(host: Host, line: bytes, error: str) -> None:
    sock = host.connect()
    sock.sendall(line + b"\n")
    host.run()
    got = answer(sock)
    assert got["ok"] is False
    assert error in got["error"]
    sock.sendall(b'{"command":"echo"}\n')
    host.run()
    assert answer(sock)["ok"]


def test_answer_may_come_later_and_others_are_served_meanwhile(host: Host) -> None:
    sock, other = host.connect(), host.connect()
    sock.sendall(b'{"command":"later"}\n')
    other.sendall(b'{"command":"echo"}\n')
    host.run()
    assert answer(other)["ok"]
    host.control.answer(host.waiting[0], {"ok": True, "late": 1})
    host.control.answer(host.waiting[0], {"ok": True, "twice": 1})
    host.run()
    assert answer(sock) == {"ok": True, "late": 1}


def test_answer_to_a_client_that_is_gone_is_dropped(host: Host) -> None:
    sock = host.connect()
    sock.sendall(b'{"command":"later"}\n')
    host.run()
    sock.close()
    host.run()
    assert len(host.control) == 0
    host.control.answer(host.waiting[0], {"ok": True})


@pytest.mark.parametrize("data", [b"x" * (module.MAX_REQUEST + 1), b"{}\n{}\n", b"{}\n{"])
def test_client_that_sends_more_than_one_request_at_a_time_is_closed(host: Host, data: bytes) -> None:
    sock = host.connect()
    sock.sendall(data)
    host.run()
    assert is_closed(sock)
    assert len(host.control) == 0


def test_client_that_goes_on_talking_while_it_waits_is_closed(host: Host) -> None:
    sock = host.connect()
    sock.sendall(b'{"command":"later"}\n')
    host.run()
    sock.sendall(b'{"command":"echo"}\n')
    host.run()
    assert is_closed(sock)


def test_long_answer_to_a_slow_reader_goes_on_when_it_reads(host: Host) -> None:
    sock = host.connect()
    sock.sendall(b'{"command":"long"}\n')
    host.run()
    got = bytearray()
    while not got.endswith(b"\n"):
        got += sock.recv(1 << 20)
        host.run(rounds=1)
    assert len(json.loads(got)["data"]) == 4 << 20


def test_answer_beyond_the_limit_is_an_error(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER", 1000)
    sock = host.connect()
    sock.sendall(b'{"command":"long"}\n')
    host.run()
    assert answer(sock) == {"ok": False, "error": "the answer is too long"}


def test_clients_are_bounded_and_the_oldest_gives_way(host: Host) -> None:
    socks = [host.connect() for _ in range(MAX_CLIENTS + 3)]
    assert len(host.control) == MAX_CLIENTS
    assert all(is_closed(sock) for sock in socks[:3])
    socks[-1].sendall(b'{"command":"echo"}\n')
    host.run()
    assert answer(socks[-1])["ok"]


def test_silent_client_is_closed_at_its_deadline(host: Host) -> None:
    sock = host.connect()
    host.control.expire(module.CLIENT_TIMEOUT - 0.1)
    assert len(host.control) == 1
    host.control.expire(module.CLIENT_TIMEOUT)
    assert is_closed(sock)


def test_socket_is_for_its_user_only_and_goes_with_the_server(tmp_path: Path) -> None:
    host = Host(tmp_path)
    path = tmp_path / "control.sock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    host.close()
    assert not path.exists()


def test_umask_is_what_it_was(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    Host(tmp_path).close()
    assert os.umask(mask) == 0o022


@pytest.mark.parametrize("kind", ["socket", "file", "dangling link"])
def test_leftover_of_a_dead_server_is_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "control.sock"
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    elif kind == "file":
        path.write_text("")
    else:
        path.symlink_to(tmp_path / "nowhere")
    host = Host(tmp_path)
    host.connect()
    host.close()


def test_path_that_is_too_long_refuses_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="longer than the 107 bytes"):
        Host(tmp_path / ("x" * 100))


def test_folder_that_is_not_there_refuses_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file"):
        Host(tmp_path / "none")


# -- the asking side ---------------------------------------------------------------------------------------------------


def test_ask_returns_the_answer_without_its_ok(host: Host) -> None:
    thread, got = asking(host, "echo", more=5)
    while thread.is_alive():
        host.run(rounds=1)
    assert got == [{"request": {"command": "echo", "more": 5}, "now": 0.0}]


def test_ask_for_an_unknown_command_raises_the_servers_reason(host: Host) -> None:
    thread, got = asking(host, "none")
    while thread.is_alive():
        host.run(rounds=1)
    assert "no such command" in str(got[0])


def test_ask_gives_up_after_its_timeout(host: Host) -> None:
    thread, got = asking(host, "later", timeout=0.05)
    while thread.is_alive():
        host.run(rounds=1)
    assert "no answer within 0.05 seconds" in str(got[0])


def asking(host: Host, command: str, **arguments: Any) -> tuple[threading.Thread, list[Any]]:
    """``ask`` in a thread, so that the loop can run in this one; its result, or what it raised."""
    got: list[Any] = []

    def run() -> None:
        try:
            got.append(ask(str(host.folder), command, **arguments))
        except (ControlError, RequestRefused) as exc:
            got.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, got


def test_ask_where_no_server_is_says_so(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no server is running here: there is no"):
        ask(str(tmp_path), "status")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "control.sock"))
    with pytest.raises(ControlError, match="nobody listens"):
        ask(str(tmp_path), "status")


@pytest.mark.parametrize("reply", [b"", b"nonsense\n", b"[]\n", b"{}\n"])
def test_ask_does_not_believe_nonsense(tmp_path: Path, reply: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "control.sock"))
        server.listen()

        def serve() -> None:
            sock, _ = server.accept()
            with sock:
                sock.recv(1000)
                sock.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ControlError, match="makes no sense"):
            ask(str(tmp_path), "status")
        thread.join()
