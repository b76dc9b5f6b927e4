"""NBD servers that are killed and started again under load, seen from initiators: a delay, and every byte as written.

ISCSID_NBD_ROUNDS says how often each is killed.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from e2e_server import Server, wait_until

from iscsid.errors import InitiatorError
from iscsid.initiator import Disk, open_disk

sys.path.insert(0, str(Path(__file__).parent.parent / "backends"))

from nbd_kit import Process, nbdkit, qemu_nbd

StartServer = Callable[..., Server]
SIZE: Final = 4 << 20
ROUNDS: Final = int(os.environ.get("ISCSID_NBD_ROUNDS", "2"))
SESSIONS: Final = 4

SERVERS: Final[dict[str, tuple[Callable[[Path], Process], str, dict[str, Any]]]] = {
    "nbdkit": (lambda image: nbdkit("file", str(image)), "", {}),
    "nbdkit-shared": (lambda image: nbdkit("file", str(image)), "", {"shared": True}),
    "nbdkit-slow": (lambda image: nbdkit("--filter=delay", "file", str(image), "delay-write=3ms"), "", {}),
    "qemu-nbd": (qemu_nbd, "disk", {}),
    "qemu-nbd-connections": (qemu_nbd, "disk", {"connections": 3}),
}


class Load:
    """Initiators that write, read back, flush and discard, each a region of its own, until they are told to stop."""

    REGION = SIZE // SESSIONS

    def __init__(self, server: Server) -> None:
        self.failures: list[BaseException] = []
        self.done = [0] * SESSIONS
        self.model = bytearray(SIZE)
        self._stop = threading.Event()
        names = [f"iqn.2026-11.org.iscsid.e2e:load{number}" for number in range(SESSIONS)]
        self._disks = [open_disk(server.url(), initiator_name=name) for name in names]
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(SESSIONS)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        rng, disk = random.Random(number), self._disks[number]
        try:
            while not self._stop.is_set():
                self._step(rng, disk, number * self.REGION)
                self.done[number] += 1
        except BaseException as error:
            self.failures.append(error)

    def _step(self, rng: random.Random, disk: Disk, base: int) -> None:
        length = rng.choice((512, 4096, 65536))
        at = base + rng.randrange(self.REGION // length) * length
        kind = rng.random()
        if kind < 0.6:
            data = rng.randbytes(length)
            disk.write(at, data, fua=kind < 0.1)
            self.model[at : at + length] = data
        elif kind < 0.7:
            disk.write_zeroes(at, length)
            self.model[at : at + length] = bytes(length)
        elif kind < 0.75:
            disk.flush()
        else:
            assert disk.read(at, length) == self.model[at : at + length], f"{length} bytes at {at}"

    def goes_on(self, count: int = 20) -> None:
        """Wait until each session has done so much more."""
        goals = [done + count for done in self.done]

        def reached() -> bool:
            return bool(self.failures) or all(map(int.__ge__, self.done, goals))

        wait_until(reached, "the load goes on")
        assert not self.failures, self.failures

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        for disk in self._disks:
            disk.close()
        assert not any(thread.is_alive() for thread in self._threads)
        assert not self.failures, self.failures


@pytest.mark.judge("nbdkit", "qemu-nbd")
@pytest.mark.parametrize("kind", SERVERS)
def test_server_that_is_killed_under_load_costs_initiators_time_and_nothing_else(
    kind: str, start: StartServer, tmp_path: Path
) -> None:
    make, export, options = SERVERS[kind]
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    rng = random.Random(7)
    with make(image) as nbd:
        server = start([{"backend": "nbd", "uri": nbd.uri(export), **options}])
        load = Load(server)
        try:
            for _ in range(ROUNDS):
                load.goes_on()
                time.sleep(rng.random() / 20)  # at any moment
                nbd.kill()
                time.sleep(rng.random() / 5)
                nbd.start()
            load.goes_on()
        finally:
            load.stop()
        with open_disk(server.url()) as disk:
            assert disk.read(0, SIZE) == load.model
            disk.flush()
        nbd.kill()  # what was flushed needs no server
        assert image.read_bytes() == load.model


@pytest.mark.judge("nbdkit")
def test_errors_of_a_server_under_load_are_nobodys_where_they_pass(start: StartServer, tmp_path: Path) -> None:
    """nbdkit's error and delay filters, with the layer ``retry`` over them."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SIZE))
    filters = ("--filter=error", "--filter=delay")
    words = ("error=EIO", "error-rate=2%", "delay-read=1ms", "delay-write=1ms")
    with nbdkit(*filters, "file", str(image), *words) as nbd:
        retry = {"layer": "retry", "times": 20, "delay": 5}
        server = start([{"backend": "nbd", "uri": nbd.uri(), "layers": [retry]}])
        load = Load(server)
        try:
            load.goes_on(40 * ROUNDS)
        finally:
            load.stop()
        with open_disk(server.url()) as disk:
            assert disk.read(0, SIZE) == load.model
            disk.flush()


@pytest.mark.judge("nbdkit")
def test_errors_of_a_server_are_told_to_the_initiator_and_pass_with_it(start: StartServer, tmp_path: Path) -> None:
    trigger = tmp_path / "error"
    with nbdkit("--filter=error", "memory", str(SIZE), "error-rate=100%", f"error-file={trigger}") as nbd:
        server = start([{"backend": "nbd", "uri": nbd.uri()}])
        with open_disk(server.url()) as disk:
            disk.write(0, b"x" * 4096)
            trigger.touch()
            with pytest.raises(InitiatorError, match="MEDIUM ERROR"):
                disk.read(0, 4096)
            with pytest.raises(InitiatorError, match="MEDIUM ERROR"):
                disk.write(0, b"y" * 4096)
            with contextlib.suppress(FileNotFoundError):
                trigger.unlink()
            assert disk.read(0, 4096) == b"x" * 4096
            disk.write(0, b"z" * 4096)
            assert disk.read(0, 4096) == b"z" * 4096
            disk.flush()
