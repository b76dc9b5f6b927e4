"""NBD servers for tests: one in this process that follows a script, however wrong; and real ones, ended by their id."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from iscsid_backends import nbd
from iscsid_backends import nbd_protocol as p
from iscsid_backends.nbd_client import Client, Settings
from iscsid_backends.nbd_uri import Address
from ports import free_port

from iscsid.plugin import Device

SIZE = 1 << 20
PATIENCE = 20.0
FLAGS = p.HAS_FLAGS | p.SEND_FLUSH | p.SEND_FUA | p.SEND_TRIM | p.SEND_WRITE_ZEROES | p.SEND_CACHE
GREETING = p.NBDMAGIC + p.IHAVEOPT + struct.pack(">H", p.FLAG_FIXED_NEWSTYLE | p.FLAG_NO_ZEROES)
CONTEXT = 7


class Asked(NamedTuple):
    """One request that came."""

    flags: int
    kind: int
    cookie: int
    offset: int
    length: int
    data: bytes


class Peer:
    """The server's end of one connection. Raises EOFError when the client has gone."""

    def __init__(self, sock: socket.socket, server: Script) -> None:
        self.sock = sock
        self.server = server
        self.structured = False

    def recv(self, length: int) -> bytes:
        found = b""
        while len(found) < length:
            piece = self.sock.recv(length - len(found))
            if not piece:
                raise EOFError
            found += piece
        return found

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def option(self) -> tuple[int, bytes]:
        magic, number, length = p.OPTION.unpack(self.recv(p.OPTION.size))
        assert magic == p.IHAVEOPT
        return number, self.recv(length)

    def reply(self, number: int, kind: int, data: bytes = b"") -> None:
        self.send(reply(number, kind, data))

    def greet(self) -> None:
        self.send(GREETING)
        self.recv(4)

    def shake(self, size: int = SIZE, flags: int = FLAGS, structured: bool = True, sizes: Sequence[int] = ()) -> None:
        """The whole of an honest handshake."""
        self.greet()
        while True:
            number, _ = self.option()
            if number == p.OPT_STRUCTURED_REPLY and structured:
                self.structured = True
                self.reply(number, p.REP_ACK)
            elif number == p.OPT_SET_META_CONTEXT and structured:
                self.reply(number, p.REP_META_CONTEXT, struct.pack(">I", CONTEXT) + p.ALLOCATION)
                self.reply(number, p.REP_ACK)
            elif number == p.OPT_GO:
                if sizes:
                    self.reply(number, p.REP_INFO, struct.pack(">HIII", p.INFO_BLOCK_SIZE, *sizes))
                self.reply(number, p.REP_INFO, struct.pack(">HQH", p.INFO_EXPORT, size, flags))
                self.reply(number, p.REP_ACK)
                return
            else:
                self.reply(number, p.REP_ERR_UNSUP)

    def asked(self) -> Asked:
        magic, flags, kind, cookie, offset, length = p.REQUEST.unpack(self.recv(p.REQUEST.size))
        assert magic == p.REQUEST_MAGIC
        if kind == p.CMD_DISC:
            raise EOFError
        data = self.recv(length) if kind == p.CMD_WRITE else b""
        request = Asked(flags, kind, cookie, offset, length, data)
        self.server.requests.append(request)
        return request

    def simple(self, cookie: int, error: int = 0, data: bytes = b"") -> None:
        self.send(p.SIMPLE_REPLY.pack(p.SIMPLE_REPLY_MAGIC, error, cookie) + data)

    def chunk(self, cookie: int, kind: int, data: bytes = b"", flags: int = p.FLAG_DONE) -> None:
        self.send(chunk(cookie, kind, data, flags))

    def answer(self, request: Asked, memory: bytearray) -> None:
        """Honestly."""
        end = request.offset + request.length
        if request.kind == p.CMD_READ:
            data = bytes(memory[request.offset : end])
            if self.structured:
                self.chunk(request.cookie, p.TYPE_OFFSET_DATA, struct.pack(">Q", request.offset) + data)
            else:
                self.simple(request.cookie, 0, data)
            return
        if request.kind == p.CMD_BLOCK_STATUS:
            self.chunk(request.cookie, p.TYPE_BLOCK_STATUS, struct.pack(">III", CONTEXT, request.length, 0))
            return
        if request.kind == p.CMD_WRITE:
            memory[request.offset : end] = request.data
        elif request.kind in (p.CMD_TRIM, p.CMD_WRITE_ZEROES):
            memory[request.offset : end] = bytes(request.length)
        self.simple(request.cookie)

    def serve(self, memory: bytearray | None = None) -> None:
        """Honestly, until the client goes."""
        memory = self.server.memory if memory is None else memory
        while True:
            self.answer(self.asked(), memory)


def reply(number: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", p.OPTION_REPLY, number, kind, len(data)) + data


def chunk(cookie: int, kind: int, data: bytes = b"", flags: int = p.FLAG_DONE) -> bytes:
    return p.STRUCTURED_REPLY.pack(p.STRUCTURED_REPLY_MAGIC, flags, kind, cookie, len(data)) + data


Play = Callable[[Peer], None]


def honest(peer: Peer) -> None:
    peer.shake()
    peer.serve()


class Script:
    """A server on a Unix socket: connection n plays ``plays[n]``, and all further ones the last. ``failures`` are the
    assertions that a play has broken."""

    def __init__(self, *plays: Play) -> None:
        self.plays = plays or (honest,)
        self.memory = bytearray(SIZE)
        self.requests: list[Asked] = []
        self.failures: list[BaseException] = []
        self.connections = 0
        self._folder = tempfile.TemporaryDirectory(prefix="iscsid-nbd-")
        self.path = os.path.join(self._folder.name, "s")
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(32)
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def __enter__(self) -> Script:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
        assert not self.failures, self.failures

    @property
    def uri(self) -> str:
        return f"nbd+unix:///disk?socket={self.path}"

    def settings(self, **changes: Any) -> Settings:
        """How to be its client: in a test nobody waits for long."""
        return Settings(Address("", 0, self.path, b"disk", False, ""), timeout=5.0, reconnect=5.0)._replace(**changes)

    def client(self, facts: p.Facts | None = None, **changes: Any) -> Client:
        return Client(self.settings(**changes), facts or FACTS)

    def kinds(self) -> list[str]:
        return [p.NAMES[request.kind] for request in self.requests]

    def hang_up(self) -> None:
        """Close every connection."""
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(PATIENCE)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(PATIENCE)
        for sock in self._socks:
            sock.close()
        self._folder.cleanup()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            play = self.plays[min(self.connections, len(self.plays) - 1)]
            self.connections += 1
            self._socks.append(sock)
            self._threads.append(threading.Thread(target=self._play, args=(play, sock), daemon=True))
            self._threads[-1].start()

    def _play(self, play: Play, sock: socket.socket) -> None:
        try:
            play(Peer(sock, self))
        except (EOFError, OSError):
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


FACTS = p.Facts(SIZE, FLAGS, structured=True, context=CONTEXT)


class Process:
    """A real server: ``argv`` may have ``{socket}``, or ``{port}`` of 127.0.0.1."""

    def __init__(self, *argv: str, socket_path: str = "", port: int = 0) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="iscsid-nbd-")
        self.socket = socket_path or os.path.join(self._folder.name, "s")
        self.port = port or free_port()
        program = shutil.which(argv[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        assert program, argv[0]
        self.argv = [program, *(word.format(socket=self.socket, port=self.port) for word in argv[1:])]
        self._by_port = any("{port}" in word for word in argv)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Process:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(self.argv, stdin=null, stdout=null, stderr=null)
        until(self._listens, f"{self.argv[0]} listens")
        return self

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.argv} ended with {self.process.returncode}"
        if not self._by_port:
            with open("/proc/net/unix") as table:  # a socket is there from its bind on; only then it listens
                return any(line.split()[3] == "00010000" and line.rstrip().endswith(self.socket) for line in table)
        with open("/proc/net/tcp") as table:  # a connection would be a client
            return any(f":{self.port:04X} " in line and " 0A " in line for line in table)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._folder.cleanup()

    def __enter__(self) -> Process:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *failure: object) -> None:
        self.close()

    def uri(self, export: str = "") -> str:
        return (
            f"nbd://127.0.0.1:{self.port}/{export}" if self._by_port else f"nbd+unix:///{export}?socket={self.socket}"
        )


def nbdkit(*words: str) -> Process:
    """nbdkit with a plugin, on a Unix socket."""
    return Process("nbdkit", "--foreground", "--exit-with-parent", "--unix", "{socket}", *words)


def qemu_nbd(image: Path, *words: str) -> Process:
    """qemu-nbd with a raw image and the export "disk", on a Unix socket."""
    base = ("qemu-nbd", "--persistent", "--shared=8", "--format=raw", "--discard=unmap", "--export-name=disk")
    return Process(*base, "--socket={socket}", *words, str(image))


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.005)


def options(uri: str, **given: Any) -> dict[str, Any]:
    """Options as the manager completes them."""
    defaults = {option.name: option.default for option in nbd.OPTIONS}
    return {**defaults, "timeout": 5, "reconnect": 5, "uri": uri, **given}


def open_device(uri: str, role: str = "worker", **given: Any) -> Device:
    return nbd.iscsid_open(options(uri, **given), role)
