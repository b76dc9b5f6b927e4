"""Sockets with deadlines, TLS in memory, and the handshake over both."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from iscsid_backends import nbd_protocol as p
from iscsid_backends.nbd_client import examine
from iscsid_backends.nbd_transport import Receiver, Socket, connect, shake_hands
from iscsid_backends.nbd_uri import Address, parse
from nbd_kit import CONTEXT, FLAGS, SIZE, Peer, Process, Script, honest, nbdkit, open_device, reply, until

from iscsid.plugin import BlockError, Fault


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


@pytest.fixture
def pair() -> Iterator[tuple[Socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    transport = Socket(ours)
    yield transport, theirs
    transport.close()
    theirs.close()


def test_receiver_gives_exactly_what_is_asked(pair: tuple[Socket, socket.socket]) -> None:
    transport, theirs = pair
    said = bytes(range(256)) * 1200
    threading.Thread(target=theirs.sendall, args=(said,), daemon=True).start()
    receiver = Receiver(transport)
    found = receiver.exactly(16, soon()) + receiver.exactly(0, soon()) + receiver.exactly(65536, soon())
    buffer = bytearray(100_000)
    receiver.into(memoryview(buffer), soon())
    found += buffer + receiver.exactly(100_000, soon())
    found += receiver.exactly(len(said) - len(found), soon())
    assert found == said
    assert receiver.buffered == 0


def test_receiving_and_sending_end_at_the_deadline(pair: tuple[Socket, socket.socket]) -> None:
    transport, _ = pair
    with pytest.raises(TimeoutError):
        transport.receive(memoryview(bytearray(1)), soon(0.05))
    with pytest.raises(TimeoutError):
        transport.send(b"header", memoryview(bytes(64 << 20)), soon(0.05))
    with pytest.raises(TimeoutError):
        transport.receive(memoryview(bytearray(1)), soon(-1))


def test_other_side_that_has_closed_is_a_lost_connection(pair: tuple[Socket, socket.socket]) -> None:
    transport, theirs = pair
    theirs.close()
    with pytest.raises(ConnectionResetError):
        transport.receive(memoryview(bytearray(1)), soon())
    with pytest.raises(BrokenPipeError):
        transport.send(b"x", None, soon())


def test_shutdown_wakes_who_waits(pair: tuple[Socket, socket.socket]) -> None:
    transport, _ = pair
    failures: list[Exception] = []

    def wait() -> None:
        try:
            transport.receive(memoryview(bytearray(1)), soon(60))
        except ConnectionResetError as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    transport.shutdown()
    thread.join(10)
    assert failures


def test_host_whose_first_address_does_not_answer_is_reached_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        places = [closed.getsockname(), listener.getsockname()]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        connect(Address("twice.example", 1, "", b"", False, ""), soon()).close()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found[:1])
        with pytest.raises(ConnectionRefusedError):
            connect(Address("twice.example", 1, "", b"", False, ""), soon())


# The handshake.


def test_server_that_says_nothing_does_not_hold_up_the_handshake() -> None:
    gate = threading.Event()
    with Script(lambda peer: gate.wait() and None) as script:
        with pytest.raises(TimeoutError):
            shake_hands(script.settings().address, None, soon(0.1))
        gate.set()


def test_server_that_dribbles_does_not_hold_up_the_handshake() -> None:
    def dribble(peer: Peer) -> None:
        peer.greet()
        while True:
            peer.send(reply(p.OPT_STRUCTURED_REPLY, p.REP_ACK)[:1])
            threading.Event().wait(0.02)

    with Script(dribble) as script, pytest.raises((TimeoutError, p.Violation)):
        shake_hands(script.settings().address, None, soon(0.2))


@pytest.mark.parametrize("cut", [0, 7, 8, 17, 18])
def test_server_that_goes_within_the_handshake_is_not_ready(cut: int) -> None:
    with Script(lambda peer: peer.send((p.NBDMAGIC + p.IHAVEOPT + b"\0\3")[:cut])) as script:
        with pytest.raises(BlockError) as caught:
            examine(script.settings())
        assert caught.value.fault is Fault.NOT_READY


def test_nobody_who_listens_is_not_ready(tmp_path: Path) -> None:
    with pytest.raises(BlockError, match=r"s/disk: No such file") as caught:
        open_device(f"nbd+unix:///disk?socket={tmp_path / 's'}")
    assert caught.value.fault is Fault.NOT_READY


# TLS.


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as nbdkit wants it: an authority, and certificates of a server (localhost) and of a client."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("pki")
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        openssl(
            folder, *new, "-x509", "-days", "2", "-subj", f"/CN={name}", "-keyout", f"{name}-key.pem",
            "-out", f"{name}-cert.pem", "-addext", "keyUsage=critical,keyCertSign",
        )  # fmt: skip
    for name, use in (("server", "serverAuth"), ("client", "clientAuth")):
        openssl(folder, *new, "-subj", f"/CN={name}", "-keyout", f"{name}-key.pem", "-out", f"{name}.csr")
        (folder / "ext").write_text(
            f"subjectAltName=DNS:localhost\nextendedKeyUsage={use}\nkeyUsage=digitalSignature\n"
        )
        openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem",
            "-days", "2", "-extfile", "ext", "-out", f"{name}-cert.pem",
        )  # fmt: skip
    return folder


def tls_play(keys: Path, *, before: bytes = b"") -> object:
    """An honest server with TLS; ``before`` is what somebody slips in before TLS begins."""

    def play(peer: Peer) -> None:
        peer.greet()
        number, _ = peer.option()
        assert number == p.OPT_STARTTLS
        peer.send(reply(number, p.REP_ACK) + before)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(keys / "server-cert.pem", keys / "server-key.pem")
        peer.sock = context.wrap_socket(os_dup(peer.sock), server_side=True)
        with peer.sock:
            serve_options(peer)
            peer.serve()

    return play


def os_dup(sock: socket.socket) -> socket.socket:
    return socket.socket(fileno=os.dup(sock.fileno()))


def serve_options(peer: Peer) -> None:
    """The options behind the start of TLS."""
    while True:
        number, _ = peer.option()
        if number == p.OPT_STRUCTURED_REPLY:
            peer.structured = True
            peer.reply(number, p.REP_ACK)
        elif number == p.OPT_SET_META_CONTEXT:
            peer.reply(number, p.REP_META_CONTEXT, struct.pack(">I", CONTEXT) + p.ALLOCATION)
            peer.reply(number, p.REP_ACK)
        else:
            assert number == p.OPT_GO
            peer.reply(number, p.REP_INFO, struct.pack(">HQH", p.INFO_EXPORT, SIZE, FLAGS))
            peer.reply(number, p.REP_ACK)
            return


def secure(script: Script) -> str:
    return script.uri.replace("nbd+", "nbds+")


def test_data_passes_through_tls_both_ways_and_for_many_threads(keys: Path) -> None:
    with Script(tls_play(keys)) as script:  # type: ignore[arg-type]
        device = open_device(secure(script), ca=str(keys / "ca-cert.pem"))
        data = os.urandom(SIZE)
        device.write(memoryview(data), 0)
        assert script.memory == data
        failures: list[BaseException] = []

        def run(number: int) -> None:
            buffer = bytearray(65536)
            try:
                for turn in range(20):
                    at = (number + turn) % 16 * 65536
                    device.read_into(memoryview(buffer), at)
                    assert buffer == data[at : at + 65536]
                    device.write(memoryview(data)[at : at + 65536], at)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not failures
        device.close()


@pytest.mark.parametrize(
    ("ca", "query", "words"),
    [
        ("other-cert.pem", "", "certificate verify failed"),
        ("", "", "certificate verify failed"),
        ("ca-cert.pem", "&tls-hostname=elsewhere.example", "certificate is not valid for 'elsewhere.example'"),
    ],
)
def test_server_that_cannot_prove_who_it_is_is_refused(keys: Path, ca: str, query: str, words: str) -> None:
    with Script(tls_play(keys)) as script:  # type: ignore[arg-type]
        with pytest.raises(BlockError, match=words) as caught:
            open_device(secure(script) + query, ca=str(keys / ca) if ca else None)
        assert caught.value.fault is Fault.NOT_READY
        assert not script.requests


def test_server_without_tls_is_refused_where_tls_is_asked_for(keys: Path) -> None:
    with Script(honest) as script, pytest.raises(BlockError, match="refuses TLS"):
        open_device(secure(script), ca=str(keys / "ca-cert.pem"))


def test_bytes_slipped_in_before_tls_are_refused(keys: Path) -> None:
    injected = reply(p.OPT_STRUCTURED_REPLY, p.REP_ACK)
    with Script(tls_play(keys, before=injected)) as script, pytest.raises(BlockError):  # type: ignore[arg-type]
        open_device(secure(script), ca=str(keys / "ca-cert.pem"))


def test_garbage_in_the_place_of_tls_is_refused(keys: Path) -> None:
    def play(peer: Peer) -> None:
        peer.greet()
        number, _ = peer.option()
        peer.reply(number, p.REP_ACK)
        peer.recv(5)
        peer.send(b"no TLS at all, and never has been")

    with Script(play) as script, pytest.raises(BlockError, match=r"SSL|TLS|record|version"):
        open_device(secure(script), ca=str(keys / "ca-cert.pem"))


@pytest.mark.judge("nbdkit", "openssl")
def test_nbdkit_with_tls_serves_those_who_have_a_certificate(keys: Path) -> None:
    kit = nbdkit("--tls=require", "--tls-verify-peer", f"--tls-certificates={keys}", "memory", "8M")
    with kit:
        uri = kit.uri().replace("nbd+", "nbds+")
        ca = str(keys / "ca-cert.pem")
        own = {"cert": str(keys / "client-cert.pem"), "key": str(keys / "client-key.pem")}
        device = open_device(uri, ca=ca, **own)
        device.write(memoryview(b"secret  " * 512), 4096)
        buffer = bytearray(4096)
        device.read_into(memoryview(buffer), 4096)
        assert buffer == b"secret  " * 512
        device.close()
        with pytest.raises(BlockError, match="TLS"):
            open_device(kit.uri())


@pytest.mark.judge("nbdkit")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_nbdkit_by_tcp(host: str) -> None:
    kit = Process("nbdkit", "--foreground", "--exit-with-parent", "--ipaddr=127.0.0.1", "--port={port}", "memory", "8M")
    with kit:
        uri = f"nbd://{host}:{kit.port}/"
        until(lambda: parse(uri).port == kit.port, "the port")
        device = open_device(uri)
        assert device.size == 8 << 20
        device.close()
