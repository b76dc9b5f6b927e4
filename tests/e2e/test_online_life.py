"""Media that one process has to itself, changed while they are served: resized, kept in snapshots, taken back.

A host writes and reads all the while. Commands wait while the medium is closed and opened again, and none is lost.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from e2e_initiator import Closed, Initiator
from e2e_qcow2 import assert_sound, run
from e2e_server import TARGET, Server, run_qemu_io, wait_until

from iscsid.daemon.control import ask

StartServer = Callable[..., Server]
NAME = "iqn.2026-11.org.iscsid.e2e:writer"
SIZE, SLOT = 8 << 20, 8192  # of the disk; the host writes whole slots
MEDIUM, CAPACITY = (0x06, 0x28, 0x00), (0x06, 0x2A, 0x09)
CHANGE_SECONDS = 180.0

pytestmark = [pytest.mark.judge("qemu-img"), pytest.mark.timeout(240)]


def lun(server: Server, verb: str, number: int = 0, **keys: Any) -> dict[str, Any]:
    """``iscsid lun``, as its command asks for it; the answer."""
    return ask(server.runtime_dir, "lun", timeout=CHANGE_SECONDS, verb=verb, target=TARGET, lun=number, **keys)


def done(server: Server, verb: str, number: int = 0, **keys: Any) -> dict[str, Any]:
    answer = lun(server, verb, number, **keys)
    assert not answer["problems"], (verb, keys, answer, server.tail())
    return answer


class Host:
    """One session; ``attentions`` are those that it was told. A command that brings one is sent again."""

    def __init__(self, server: Server, name: str = NAME, number: int = 0) -> None:
        self.initiator = Initiator(server.address, name, luns=(number,))
        self.lun = number
        self.attentions: list[tuple[int, int, int]] = []
        while self._sense(bytes(6)):
            pass
        self.attentions.clear()

    def _sense(self, cdb: bytes) -> tuple[int, int, int] | None:
        status, data = self.initiator.command(cdb, lun=self.lun)
        return None if status == 0 else (data[4] & 0x0F, data[14], data[15])

    def do(self, cdb: bytes, data: bytes = b"", expect: int = 0) -> bytes:
        while True:
            status, answer = self.initiator.command(cdb, data, expect=expect, lun=self.lun)
            if status == 0:
                return answer
            self.attentions.append((answer[4] & 0x0F, answer[14], answer[15]))
            assert self.attentions[-1][0] == 0x06, answer.hex()

    def write(self, offset: int, data: bytes) -> None:
        self.do(struct.pack(">BBQIBB", 0x8A, 0, offset // 512, len(data) // 512, 0, 0), data)

    def read(self, offset: int, length: int) -> bytes:
        return self.do(struct.pack(">BBQIBB", 0x88, 0, offset // 512, length // 512, 0, 0), expect=length)

    def size(self) -> int:
        data = self.do(bytes.fromhex("9e 10") + bytes(8) + (32).to_bytes(4, "big") + bytes(2), expect=32)
        return (int.from_bytes(data[:8], "big") + 1) * 512

    def all(self) -> bytes:
        size = self.size()
        return b"".join(self.read(at, min(1 << 20, size - at)) for at in range(0, size, 1 << 20))


Connect = Callable[..., Host]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Log a host in: ``connect(server, name, lun)``."""
    hosts: list[Host] = []

    def one(*where: Any) -> Host:
        hosts.append(Host(*where))
        return hosts[-1]

    yield one
    for host in hosts:
        host.initiator.close()


class Writer(threading.Thread):
    """Writes the slots in turn, each time with a number that tells when, reads one back, and knows what it wrote.

    ``written``: for each slot the numbers of the writes to it that were answered, the last one last.
    """

    def __init__(self, host: Host, slots: int = SIZE // SLOT // 2) -> None:
        super().__init__(daemon=True)
        self.host, self.slots = host, slots
        self.count = 0
        self.written: list[int] = [0] * slots
        self.trouble: BaseException | None = None
        self._halt = threading.Event()

    def __enter__(self) -> Writer:
        self.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        if self.trouble is None:
            self.go_on()
        self._halt.set()
        self.join(30)
        assert self.trouble is None, self.trouble

    def go_on(self, rounds: int = 3) -> None:
        before = self.count
        wait_until(lambda: self.count > before + rounds or self.trouble, "the host goes on")

    def run(self) -> None:
        try:
            while not self._halt.is_set():
                number = self.count + 1
                slot = number % self.slots
                self.host.write(slot * SLOT, number.to_bytes(8, "big") * (SLOT // 8))
                self.written[slot] = number
                self.count = number
                other = random.randrange(self.slots)
                self.seen(other, self.host.read(other * SLOT, SLOT))
        except BaseException as error:
            self.trouble = error

    def seen(self, slot: int, data: bytes) -> None:
        assert data == self.written[slot].to_bytes(8, "big") * (SLOT // 8), f"slot {slot}"


def image(folder: Path, options: str = "") -> Path:
    path = folder / "disk.qcow2"
    run("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), path, SIZE)
    return path


def numbers(data: bytes) -> list[int]:
    """What is in each slot, which was written as a whole or not at all."""
    found = []
    for at in range(0, len(data) // 2 // SLOT * SLOT, SLOT):
        number = data[at : at + 8]
        assert data[at : at + SLOT] == number * (SLOT // 8), f"slot {at // SLOT} is torn"
        found.append(int.from_bytes(number, "big"))
    return found


STACKS: dict[str, list[dict[str, Any]]] = {
    "bare": [],
    "write-back": [{"layer": "cache", "size": "2 MiB", "mode": "back"}],
}


@pytest.mark.parametrize("stack", STACKS)
def test_image_is_resized_and_its_host_goes_on(
    start: StartServer, connect: Connect, tmp_path: Path, stack: str
) -> None:
    path = image(tmp_path)
    server = start([{"backend": "qcow2", "path": path, "layers": STACKS[stack]}])
    host = connect(server)
    with Writer(host) as writer:
        assert done(server, "resize", size=2 * SIZE, shrink=False)["rows"] == [[f"target {TARGET} lun 0", "resized"]]
        wait_until(lambda: CAPACITY in host.attentions or writer.trouble, "the host is told")
        writer.go_on()
        refused = lun(server, "resize", size=SIZE)
        assert "would be lost" in refused["problems"][0] and not refused["rows"]
        writer.go_on()
        host.attentions.clear()
        done(server, "resize", size=SIZE, shrink=True)
        wait_until(lambda: CAPACITY in host.attentions or writer.trouble, "the host is told")
    assert host.size() == SIZE
    assert numbers(host.all()) == writer.written
    assert server.stop() == 0
    assert_sound(path)
    assert json.loads(run("info", "--output=json", path))["virtual-size"] == SIZE


@pytest.mark.parametrize("stack", STACKS)
def test_twenty_snapshots_hold_what_was_there(start: StartServer, connect: Connect, tmp_path: Path, stack: str) -> None:
    """Each is a state between two writes of the one that was writing, and nothing that was answered lacks in it."""
    path = image(tmp_path)
    server = start([{"backend": "qcow2", "path": path, "layers": STACKS[stack]}])
    host = connect(server)
    between: dict[str, tuple[int, int]] = {}
    with Writer(host) as writer:
        for number in range(20):
            before = writer.count
            answer = done(server, "snapshot", action="create", name=f"s{number}")
            between[f"s{number}"] = (before, writer.count + 1)
            assert [each["name"] for each in answer["snapshots"]][-1] == f"s{number}"
            if number % 4 == 3:
                done(server, "snapshot", action="delete", name=f"s{number - 2}")
                del between[f"s{number - 2}"]
    assert not host.attentions
    listed = done(server, "snapshot", action="list")
    assert [each["name"] for each in listed["snapshots"]] == list(between) and not listed["rows"]
    for name, (first, last) in between.items():
        done(server, "snapshot", action="apply", name=name)
        found = numbers(host.all())
        assert host.attentions == [MEDIUM]
        host.attentions.clear()
        newest = max(found)
        assert first <= newest <= last
        slots = writer.slots
        assert found == [max((newest - slot) // slots * slots + slot, 0) for slot in range(slots)]
        done(server, "snapshot", action="delete", name=name)
    assert not done(server, "snapshot", action="list")["snapshots"]
    assert server.stop() == 0
    assert_sound(path)


def test_qemu_writes_on_while_its_disk_grows_and_snapshots_come_and_go(start: StartServer, tmp_path: Path) -> None:
    path = image(tmp_path)
    server = start([{"backend": "qcow2", "path": path, "layers": STACKS["write-back"]}])
    options = ["-f", "raw", "-w", "--pattern=90", "-c", "20000", "-d", "16", "-s", "4096", "-S", "4096"]
    bench = subprocess.Popen(
        ["qemu-img", "bench", *options, server.url()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        rounds = 0
        wait_until(server.sessions, "QEMU has logged in")
        while bench.poll() is None and rounds < 20:
            done(server, "snapshot", action="create", name="x")
            done(server, "snapshot", action="delete", name="x")
            if rounds == 1:
                done(server, "resize", size=2 * SIZE)
            rounds += 1
        said, _ = bench.communicate(timeout=120)
    finally:
        bench.kill()
        bench.wait()
    assert bench.returncode == 0, said.decode()
    assert rounds > 1
    run_qemu_io(server.url(), f"read -P 90 0 {SIZE}")
    assert server.stop() == 0
    assert_sound(path)


def test_mirror_is_resized_and_its_host_goes_on(start: StartServer, connect: Connect, tmp_path: Path) -> None:
    legs = [{"backend": "file", "path": tmp_path / "one", "size": SIZE}, {"backend": "qcow2", "path": image(tmp_path)}]
    server = start([{"backend": "mirror", "members": legs, "state": tmp_path / "state"}])
    host = connect(server)
    with Writer(host) as writer:
        assert "would be lost" in lun(server, "resize", size=SIZE // 2)["problems"][0]
        for size, shrink in ((2 * SIZE, False), (SIZE, True)):
            host.attentions.clear()
            done(server, "resize", size=size, shrink=shrink)
            wait_until(lambda: CAPACITY in host.attentions or writer.trouble, "the host is told")
            writer.go_on()
    assert host.size() == SIZE and (tmp_path / "one").stat().st_size == SIZE
    assert numbers(host.all()) == writer.written
    refused = lun(server, "snapshot", action="create", name="x")
    assert refused["problems"] == [f"target {TARGET} lun 0: the back end mirror has no snapshots"]
    assert server.stop() == 0
    run("compare", "-f", "raw", "-F", "qcow2", tmp_path / "one", tmp_path / "disk.qcow2")


def test_disk_that_goes_back_has_its_size_of_then(start: StartServer, connect: Connect, tmp_path: Path) -> None:
    path = image(tmp_path)
    server = start([{"backend": "qcow2", "path": path}])
    one, other = connect(server), connect(server, NAME + ".other")
    one.write(0, b"then" * 128)
    done(server, "snapshot", action="create", name="then")
    done(server, "resize", size=2 * SIZE)
    assert [host.size() for host in (one, other)] == [2 * SIZE] * 2
    one.write(0, b"now." * 128)
    done(server, "snapshot", action="apply", name="then")
    for host in (one, other):
        host.attentions.clear()
        assert (host.size(), host.read(0, 512)) == (SIZE, b"then" * 128)
        assert host.attentions == [MEDIUM, CAPACITY]


def test_clone_is_made_of_a_disk_in_use(start: StartServer, connect: Connect, tmp_path: Path) -> None:
    path = image(tmp_path)
    disk = tmp_path / "file.img"
    server = start([{"backend": "qcow2", "path": path}, {"backend": "file", "path": disk, "size": "1 MiB"}])
    host = connect(server)
    with Writer(host) as writer:
        writer.go_on(50)
        first = writer.count
        said = server.ask_command("lun", "clone", TARGET, "0", str(tmp_path / "new"), "--format", "raw")
        assert said.returncode == 0, said.stderr
        last = writer.count + 1
    newest = max(found := numbers((tmp_path / "new").read_bytes()))
    assert first <= newest <= last
    slots = writer.slots
    assert found == [max((newest - slot) // slots * slots + slot, 0) for slot in range(slots)]
    assert not done(server, "snapshot", action="list")["snapshots"] and not host.attentions
    said = server.ask_command("lun", "clone", TARGET, "1", str(tmp_path / "other"))
    if said.returncode:  # not every file system can
        assert "iscsid disk copy" in said.stderr and not (tmp_path / "other").exists()
    else:
        assert (tmp_path / "other").read_bytes() == disk.read_bytes()
    assert connect(server, NAME, 1).size() == 1 << 20
    assert server.stop() == 0
    assert_sound(path)


def test_layers_that_keep_data_and_those_that_do_not(start: StartServer, connect: Connect, tmp_path: Path) -> None:
    """An overlay in memory outlives a snapshot of what lies below; other data below it are refused."""
    below = tmp_path / "below.qcow2"
    run("create", "-q", "-f", "qcow2", below, SIZE)
    path = image(tmp_path)
    offset = {"layer": "offset", "offset": 1 << 20, "size": 4 << 20}
    cow = {"backend": "qcow2", "path": below, "layers": [{"layer": "cow"}]}
    server = start([cow, {"backend": "qcow2", "path": path, "layers": [offset, {"layer": "cache"}]}])
    over, part = connect(server), connect(server, NAME, 1)
    over.write(0, b"over" * 128)
    done(server, "snapshot", action="create", name="then")
    assert over.read(0, 512) == b"over" * 128 and not over.attentions
    for verb, keys in (("snapshot", {"action": "apply", "name": "then"}), ("resize", {"size": 2 * SIZE})):
        assert "its layer cow keeps" in lun(server, verb, **keys)["problems"][0]
    assert over.read(0, 512) == b"over" * 128 and not over.attentions
    refused = lun(server, "resize", 1, size=4 << 20, shrink=True)
    assert "offset" in refused["problems"][0] and part.size() == 4 << 20
    done(server, "resize", 1, size=5 << 20, shrink=True)
    part.write(0, b"then" * 128)
    done(server, "snapshot", 1, action="create", name="then")
    part.write(0, b"now." * 128)
    assert part.read(0, 512) == b"now." * 128
    done(server, "snapshot", 1, action="apply", name="then")
    assert part.read(0, 512) == b"then" * 128
    assert part.attentions == [MEDIUM] and part.size() == 4 << 20


def test_reload_puts_another_stack_over_an_image_in_use(start: StartServer, connect: Connect, tmp_path: Path) -> None:
    """What a write-back cache held is on the image by then, and the host finds a unit with its data."""
    path = image(tmp_path)
    server = start([{"backend": "qcow2", "path": path, "layers": STACKS["write-back"]}])
    host = connect(server)
    host.write(SIZE - 512, b"data" * 128)
    text = server.config.read_text()
    server.config.write_text("\n".join(line for line in text.splitlines() if not line.startswith("layers")) + "\n")
    said = server.ask_command("reload")
    assert said.returncode == 0 and "changed" in said.stdout, said.stderr
    assert host.read(SIZE - 512, 512) == b"data" * 128
    assert (0x06, 0x29, 0x00) in host.attentions
    server.config.write_text(text)
    with Writer(host) as writer:
        assert server.ask_command("reload").returncode == 0
        writer.go_on()
    assert numbers(host.all()) == writer.written
    moved = text.replace("lun = 0", "lun = 5")
    server.config.write_text(moved)
    assert server.ask_command("reload").returncode == 0
    assert numbers(connect(server, NAME + ".other", 5).all()) == writer.written
    assert server.stop() == 0
    assert_sound(path)


def test_another_image_is_loaded(start: StartServer, connect: Connect, tmp_path: Path) -> None:
    path, new = image(tmp_path), tmp_path / "new.qcow2"
    server = start([{"backend": "qcow2", "path": path, "removable": True}])
    host = connect(server)
    host.write(0, b"old." * 128)
    done(server, "eject")
    run("create", "-q", "-f", "qcow2", new, 2 * SIZE)
    os.replace(new, path)
    done(server, "load")
    assert (host.read(0, 512), host.size()) == (bytes(512), 2 * SIZE)
    assert sorted(host.attentions) == [MEDIUM, CAPACITY]
    assert done(server, "resize")["rows"] == [[f"target {TARGET} lun 0", "loaded"]]


def test_commands_of_the_shell_do_the_same(start: StartServer, connect: Connect, tmp_path: Path) -> None:
    path = image(tmp_path)
    server = start([{"backend": "qcow2", "path": path}, {"backend": "ram", "size": "1 MiB"}])
    said = server.ask_command("lun", "snapshot", "create", TARGET, "0", "first")
    assert said.returncode == 0 and "snapshot first created" in said.stdout, said.stderr
    said = server.ask_command("lun", "snapshot", "list", TARGET, "0")
    assert said.returncode == 0 and "first" in said.stdout and "8 MiB" in said.stdout
    said = server.ask_command("lun", "snapshot", "create", TARGET, "0", "first")
    assert said.returncode == 1 and "has a snapshot 'first' already" in said.stderr
    said = server.ask_command("lun", "snapshot", "apply", TARGET, "1", "first")
    assert said.returncode == 1 and "the back end ram has no snapshots" in said.stderr
    said = server.ask_command("lun", "resize", TARGET, "0", "16 MiB")
    assert said.returncode == 0 and "resized" in said.stdout
    said = server.ask_command("lun", "resize", TARGET, "1", "512 KiB", "--shrink")
    assert said.returncode == 0, said.stderr
    assert (connect(server).size(), connect(server, NAME, 1).size()) == (16 << 20, 512 << 10)


@pytest.mark.parametrize("stack", STACKS)
def test_worker_that_is_killed_among_snapshots_leaves_a_sound_image(
    start: StartServer, connect: Connect, tmp_path: Path, stack: str
) -> None:
    """At any moment of making them, going back to them and deleting them. What was said to be there is there."""
    path = image(tmp_path)
    server = start([{"backend": "qcow2", "path": path, "layers": STACKS[stack]}])
    rng = random.Random(4711)
    kept: set[str] = set()
    for round_ in range(4):
        host = connect(server)
        for slot in range(64):
            host.write(slot * SLOT, os.urandom(SLOT))
        pid = server.workers()[server.worker_of(NAME)]
        assert pid is not None
        timer = threading.Timer(rng.uniform(0.02, 0.5), psutil.Process(pid).send_signal, [signal.SIGKILL])
        timer.start()
        for number in range(1000):
            name = f"{round_}.{number}"
            if lun(server, "snapshot", action="create", name=name)["problems"]:
                break
            kept.add(name)
            host_write(host, rng)
            if lun(server, "snapshot", action="apply", name=name)["problems"]:
                break
            victim = rng.choice(sorted(kept))
            kept.discard(victim)
            if lun(server, "snapshot", action="delete", name=victim)["problems"]:
                break
        timer.join()
        answer = wait_until(lambda: usable(server), "the disk is served again")
        assert kept <= {each["name"] for each in answer["snapshots"]}
    assert server.stop() == 0
    assert_sound(path, leaks=True)


def host_write(host: Host, rng: random.Random) -> None:
    """A write, which the death of the worker may prevent."""
    try:
        host.write(rng.randrange(64) * SLOT, rng.randbytes(SLOT))
    except (Closed, OSError):
        return


def usable(server: Server) -> dict[str, Any] | None:
    answer = lun(server, "snapshot", action="list")
    return None if answer["problems"] else answer
