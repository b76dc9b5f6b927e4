"""The back end ``nbd``: what it makes of an export, its options, and servers that are killed while they are used."""

from __future__ import annotations

import errno
import itertools
import os
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from iscsid_backends import nbd
from iscsid_backends import nbd_protocol as p
from iscsid_backends.nbd_uri import parse
from nbd_kit import FLAGS, SIZE, Peer, Play, Process, Script, honest, nbdkit, open_device, options, qemu_nbd, until

from iscsid.block.guard import Guarded
from iscsid.errors import PluginError
from iscsid.plugin import BlockError, Content, Extent, Fault, Sharing, Support, fault_of
from iscsid.plugin.manager import Plugins

MULTI = FLAGS | p.CAN_MULTI_CONN


def shaken(**facts: Any) -> Play:
    def play(peer: Peer) -> None:
        peer.shake(**facts)
        peer.serve()

    return play


# Facts.


def test_facts_are_those_that_the_server_tells() -> None:
    with Script(shaken(flags=FLAGS | p.ROTATIONAL, sizes=(4096, 16384, 1 << 20))) as script:
        device = open_device(script.uri)
        assert (device.size, device.block_size, device.physical_block_size) == (SIZE, 4096, 16384)
        assert (device.minimum_io, device.discard_granularity) == (16384, 16384)
        assert device.rotational
        assert not device.readonly
        assert not device.discard_zeroes
        device.close()


def test_server_without_block_sizes_has_those_of_the_specification() -> None:
    with Script(shaken(size=SIZE + 100)) as script:
        guard = Guarded(open_device(script.uri))
        assert (guard.size, guard.block_size, guard.physical_block_size) == (SIZE, 512, 4096)
        assert not guard.rotational
        guard.close()


@pytest.mark.parametrize("preferred", [1 << 17, 1 << 30])
def test_physical_block_that_nobody_could_be_told_is_bounded(preferred: int) -> None:
    with Script(shaken(sizes=(1, preferred, 1 << 30))) as script:
        guard = Guarded(open_device(script.uri))
        assert guard.physical_block_size == 65536
        guard.close()


@pytest.mark.parametrize(
    ("flag", "capability"),
    [
        (p.SEND_FLUSH, "flush"),
        (p.SEND_FUA, "fua"),
        (p.SEND_TRIM, "discard"),
        (p.SEND_WRITE_ZEROES, "write_zeroes"),
        (p.SEND_CACHE, "prefetch"),
    ],
)
def test_capability_is_there_exactly_if_the_server_has_it(flag: int, capability: str) -> None:
    for flags, support in ((FLAGS, Support.NATIVE), (FLAGS & ~flag, Support.NONE)):
        with Script(shaken(flags=flags)) as script:
            device = open_device(script.uri)
            assert getattr(device.capabilities(), capability) is support
            device.close()


def test_server_without_structured_replies_has_no_block_status_and_is_read() -> None:
    with Script(shaken(structured=False)) as script:
        script.memory[:4] = b"data"
        guard = Guarded(open_device(script.uri))
        assert guard.can.block_status is Support.EMULATE
        buffer = bytearray(512)
        guard.read_into(memoryview(buffer), 0)
        assert buffer[:4] == b"data"
        guard.close()


def test_readonly_export_is_a_readonly_device() -> None:
    with Script(shaken(flags=FLAGS | p.READ_ONLY)) as script:
        device = open_device(script.uri)
        able = device.capabilities()
        assert device.readonly
        assert {able.write, able.fua, able.discard, able.write_zeroes} == {Support.NONE}
        device.close()


# Requests.


def requests(script: Script) -> list[tuple[int, int, int, int]]:
    return [(request.kind, request.offset, request.length, request.flags) for request in script.requests]


@pytest.mark.parametrize(("maximum", "piece"), [(1 << 16, 1 << 16), (100_000, 99_840), (512, 512), (1 << 30, SIZE)])
def test_transfer_is_split_to_what_the_server_takes(maximum: int, piece: int) -> None:
    data = os.urandom(SIZE // 4)
    with Script(shaken(sizes=(512, 512, maximum))) as script:
        device = open_device(script.uri)
        device.write(memoryview(data), 4096)
        buffer = bytearray(len(data))
        device.read_into(memoryview(buffer), 4096)
        assert buffer == data
        assert {request.length for request in script.requests[:-1]} <= {piece, len(data) % piece, len(data)}
        assert max(request.length for request in script.requests) <= maximum
        device.close()


def test_flags_of_requests_are_those_that_the_call_means() -> None:
    with Script(shaken()) as script:
        device = open_device(script.uri)
        data = memoryview(bytes(512))
        device.write(data, 0)
        device.write_fua(data, 512)
        device.write_zeroes(0, 4096, True)
        device.write_zeroes(0, 4096, False)
        device.discard(0, 8192)
        device.prefetch(0, 512)
        device.flush()
        assert requests(script) == [
            (p.CMD_WRITE, 0, 512, 0),
            (p.CMD_WRITE, 512, 512, p.CMD_FLAG_FUA),
            (p.CMD_WRITE_ZEROES, 0, 4096, 0),
            (p.CMD_WRITE_ZEROES, 0, 4096, p.CMD_FLAG_NO_HOLE),
            (p.CMD_TRIM, 0, 8192, 0),
            (p.CMD_CACHE, 0, 512, 0),
            (p.CMD_FLUSH, 0, 0, 0),
        ]
        device.close()


def test_range_of_many_gibibytes_goes_in_pieces() -> None:
    def play(peer: Peer) -> None:
        peer.shake(size=1 << 40)
        while True:
            peer.simple(peer.asked().cookie)

    with Script(play) as script:
        device = open_device(script.uri)
        device.discard(512, 5 << 30)
        found = [(request.offset, request.length) for request in script.requests]
        assert found[0][0] == 512
        assert sum(length for _, length in found) == 5 << 30
        assert all(one[0] + one[1] == two[0] for one, two in itertools.pairwise(found))
        device.close()


def test_block_status_asks_on_where_the_server_stopped() -> None:
    def play(peer: Peer) -> None:
        peer.shake()
        for extents in ((512, 3, 1024, 0), (512, 2), (1 << 20, 3)):
            asked = peer.asked()
            words = (7, *extents)
            data = b"".join(word.to_bytes(4, "big") for word in words)
            peer.chunk(asked.cookie, p.TYPE_BLOCK_STATUS, data)
        peer.asked()

    with Script(play) as script:
        device = open_device(script.uri)
        hole, zero = Content.HOLE, Content.ZERO
        assert list(device.block_status(512, 4096)) == [
            Extent(512, 512, hole | zero),
            Extent(1024, 1024, Content.DATA),
            Extent(2048, 512, zero),
            Extent(2560, 2048, hole | zero),
        ]
        device.close()


# Options.


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"uri": "nbd://h/a"}, None),
        ({"uri": "http://h/a"}, "uri: 'http://h/a' is none of nbd://"),
        ({"uri": "nbd://h/a", "ca": "/etc/hosts"}, "ca: is for TLS"),
        ({"uri": "nbds://h/a", "ca": "/no/such/file"}, "ca: /no/such/file cannot be read"),
        ({"uri": "nbds://h/a", "key": "/etc/hosts"}, "key: has no cert"),
        ({"uri": "nbds://h/a", "cert": "/etc/hosts", "key": "/etc/hosts"}, None),
        ({}, "uri: missing"),
        ({"uri": "nbd://h/a", "connections": 17}, "connections: 17 is above 16"),
        ({"uri": "nbd://h/a", "timeout": 0}, "timeout: 0 is below 1"),
        ({"uri": "nbd://h/a", "keep": "2 GiB"}, "keep: '2 GiB' is above"),
        ({"uri": "nbd://h/a", "shard": True}, "shard: unknown option"),
    ],
)
def test_options_are_checked_without_asking_the_server(plugins: Plugins, given: dict[str, Any], words: str) -> None:
    problems = plugins.validate("nbd", given)
    assert not problems if words is None else problems[0].startswith(words)


def test_probe_knows_its_uris(plugins: Plugins) -> None:
    assert plugins.probe("nbd+unix:///a?socket=/s") == [(100, "nbd")]
    assert all(name != "nbd" for _, name in plugins.probe("/srv/nbd.img"))


def test_one_process_has_an_export_that_is_not_shared(plugins: Plugins) -> None:
    assert plugins.sharing("nbd", {"uri": "nbd://h/a"}) is Sharing.EXCLUSIVE_OWNER
    assert plugins.sharing("nbd", {"uri": "nbd://h/a", "shared": True}) is Sharing.SHARED
    members = [{"backend": "nbd", "uri": "nbd://h/a", "shared": True}]
    assert plugins.sharing("concat", {"members": members}) is Sharing.SHARED


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (FLAGS, "does not allow several connections"),
        (MULTI & ~p.SEND_FUA, "needs a server with FUA"),
        (MULTI, None),
        (MULTI & ~p.SEND_FUA & ~p.SEND_FLUSH, None),
        (FLAGS | p.READ_ONLY, None),
    ],
)
def test_export_is_shared_only_if_its_server_makes_that_safe(plugins: Plugins, flags: int, words: str | None) -> None:
    with Script(shaken(flags=flags)) as script:
        if words is None:
            plugins.prepare("nbd", options(script.uri, shared=True))
            return
        with pytest.raises(PluginError, match=words):
            plugins.prepare("nbd", options(script.uri, shared=True))


def test_shared_export_has_every_change_on_the_medium_when_it_is_answered() -> None:
    with Script(shaken(flags=MULTI)) as script:
        device = open_device(script.uri, shared=True)
        assert device.capabilities().flush is Support.NONE
        device.write(memoryview(bytes(512)), 0)
        device.discard(0, 512)
        device.write_zeroes(0, 512, True)
        assert {request.flags for request in script.requests} == {p.CMD_FLAG_FUA}
        device.close()


# Workers.


def test_worker_that_starts_while_the_server_is_away_has_the_disk_and_finds_the_server_later(
    plugins: Plugins, tmp_path: Path
) -> None:
    del tmp_path
    with Script(honest, lambda peer: None, honest) as script:
        prepared = plugins.prepare("nbd", options(script.uri, reconnect=0))
        guard = Guarded(plugins.open("nbd", prepared, "owner"))
        assert guard.size == SIZE
        buffer = memoryview(bytearray(512))
        with pytest.raises(BlockError) as caught:
            _read_once(guard, buffer)
        assert caught.value.fault is Fault.NOT_READY
        guard.close()
        guard = Guarded(plugins.open("nbd", {**prepared, "reconnect": 5}, "owner"))
        guard.read_into(buffer, 0)
        guard.close()
        plugins.release("nbd", prepared)


def _read_once(guard: Guarded, buffer: memoryview) -> None:
    guard.read_into(buffer, 0)


def test_server_that_is_away_at_the_start_is_told_of(plugins: Plugins) -> None:
    with pytest.raises(PluginError, match=r"127\.0\.0\.1:1/disk: Connection refused"):
        plugins.prepare("nbd", options("nbd://127.0.0.1:1/disk"))


def test_journal_is_for_who_has_the_export_to_himself_and_can_flush() -> None:
    for flags, given, role, kept in (
        (FLAGS, {}, "worker", True),
        (FLAGS, {}, "readonly", False),
        (FLAGS & ~p.SEND_FLUSH, {}, "worker", False),
        (MULTI, {"shared": True}, "worker", False),
        (FLAGS | p.READ_ONLY, {}, "worker", False),
    ):
        with Script(shaken(flags=flags)) as script:
            device = open_device(script.uri, role, **given)
            assert isinstance(device, nbd.NbdDevice)
            assert (device._client._journal is not None) is kept
            device.close()


# Real servers.


@pytest.mark.judge("nbdkit")
def test_errors_of_nbdkit_are_errors_of_the_device(tmp_path: Path) -> None:
    switch = tmp_path / "switch"
    words = ("--filter=error", "memory", "8M", "error=EIO", "error-rate=100%", f"error-file={switch}")
    with nbdkit(*words) as kit:
        guard = Guarded(open_device(kit.uri()))
        buffer = memoryview(bytearray(4096))
        guard.write(buffer, 0)
        switch.touch()
        for call, fault in ((guard.read_into, Fault.READ_ERROR), (guard.write, Fault.WRITE_ERROR)):
            with pytest.raises(OSError) as caught:
                call(buffer, 0)
            assert caught.value.errno == errno.EIO
            assert fault_of(caught.value, call == guard.write) is fault
        switch.unlink()
        guard.read_into(buffer, 0)
        guard.close()


@pytest.mark.judge("nbdkit")
def test_full_medium_of_nbdkit_is_no_space(tmp_path: Path) -> None:
    with nbdkit("--filter=error", "memory", "8M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%") as kit:
        guard = Guarded(open_device(kit.uri()))
        with pytest.raises(OSError) as caught:
            guard.write(memoryview(bytes(512)), 0)
        assert fault_of(caught.value, writing=True) is Fault.NO_SPACE
        guard.close()


@pytest.mark.judge("nbdkit")
def test_slow_requests_to_nbdkit_overlap() -> None:
    """Sixteen reads of half a second each take half a second, over one connection, and not eight."""
    with nbdkit("--filter=delay", "memory", "8M", "rdelay=500ms") as kit:
        device = open_device(kit.uri())
        threads = [
            threading.Thread(target=device.read_into, args=(memoryview(bytearray(512)), 512 * number))
            for number in range(16)
        ]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert time.monotonic() - start < 6
        device.close()


@pytest.mark.judge("nbdkit")
def test_nbdkit_that_is_too_slow_is_not_ready() -> None:
    with nbdkit("--filter=delay", "memory", "8M", "rdelay=10") as kit:
        device = open_device(kit.uri(), timeout=1)
        with pytest.raises(BlockError, match="no answer in time"):
            device.read_into(memoryview(bytearray(512)), 0)
        device.close()


@pytest.mark.judge("nbdkit")
def test_nbdkit_in_its_plainest_form_is_served() -> None:
    """No structured replies, no holes, no zeroes: what is missing is emulated."""
    with nbdkit("--filter=nozero", "--filter=noextents", "--no-sr", "memory", "8M") as kit:
        guard = Guarded(open_device(kit.uri()))
        assert guard.can.block_status is Support.EMULATE
        assert guard.can.write_zeroes is Support.EMULATE
        guard.write(memoryview(b"x" * 8192), 0, fua=True)
        guard.write_zeroes(512, 1024, True)
        buffer = bytearray(8192)
        guard.read_into(memoryview(buffer), 0)
        assert buffer == b"x" * 512 + bytes(1024) + b"x" * 6656
        guard.close()


class Load:
    """Threads that write, read back and flush, each in a region of its own, until they are told to stop."""

    REGION = 256 << 10

    def __init__(self, guard: Guarded, workers: int = 4) -> None:
        self.guard = guard
        self.failures: list[BaseException] = []
        self.done = 0
        self.model = bytearray(workers * self.REGION)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(workers)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        try:
            while not self._stop.is_set():
                at = number * self.REGION + rng.randrange(self.REGION // 4096) * 4096
                kind = rng.random()
                if kind < 0.6:
                    data = rng.randbytes(4096)
                    self.guard.write(memoryview(data), at, fua=kind < 0.1)
                    self.model[at : at + 4096] = data
                elif kind < 0.7:
                    self.guard.write_zeroes(at, 4096, True)
                    self.model[at : at + 4096] = bytes(4096)
                elif kind < 0.75:
                    self.guard.flush()
                else:
                    buffer = bytearray(4096)
                    self.guard.read_into(memoryview(buffer), at)
                    assert buffer == self.model[at : at + 4096]
                self.done += 1
        except BaseException as error:
            self.failures.append(error)

    def goes_on(self, count: int = 100) -> None:
        goal = self.done + count
        until(lambda: self.done >= goal or self.failures, "the load goes on")
        assert not self.failures

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self.failures


def killed_under_load(server: Process, uri: str, **given: Any) -> bytearray:
    """Kill the server and start it again, five times, under load; the content that must be there."""
    with server:
        guard = Guarded(open_device(uri, reconnect=30, timeout=30, **given))
        load = Load(guard)
        for _ in range(5):
            load.goes_on()
            server.kill()
            server.start()
        load.goes_on()
        load.stop()
        buffer = bytearray(len(load.model))
        guard.read_into(memoryview(buffer), 0)
        assert buffer == load.model
        guard.flush()
        guard.close()
        return load.model


@pytest.mark.judge("nbdkit")
@pytest.mark.parametrize("shared", [False, True])
def test_nbdkit_that_is_killed_under_load_costs_time_and_nothing_else(tmp_path: Path, shared: bool) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 << 20))
    kit = nbdkit("file", str(image))
    content = killed_under_load(kit, kit.uri(), shared=shared)
    assert image.read_bytes()[: len(content)] == content


@pytest.mark.judge("qemu-nbd")
@pytest.mark.parametrize("connections", [1, 3])
def test_qemu_nbd_that_is_killed_under_load_costs_time_and_nothing_else(tmp_path: Path, connections: int) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 << 20))
    server = qemu_nbd(image)
    content = killed_under_load(server, server.uri("disk"), connections=connections)
    assert image.read_bytes()[: len(content)] == content


@pytest.mark.judge("nbdkit")
def test_memory_of_nbdkit_that_dies_with_it_is_written_again() -> None:
    """The worst of servers: all that it had is gone. What was never flushed is there again all the same."""
    kit = nbdkit("memory", "8M")
    with kit:
        guard = Guarded(open_device(kit.uri()))
        data = os.urandom(1 << 20)
        guard.write(memoryview(data), 4096)
        guard.write_zeroes(8192, 4096, False)
        kit.kill()
        kit.start()
        buffer = bytearray(1 << 20)
        guard.read_into(memoryview(buffer), 4096)
        assert buffer == data[:4096] + bytes(4096) + data[8192:]
        guard.close()


def test_uri_of_the_manual_is_one() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "backends.md").read_text()
    (uri,) = [line.split('"')[1] for line in text.splitlines() if line.startswith('uri = "nbd')]
    assert parse(uri).tls
