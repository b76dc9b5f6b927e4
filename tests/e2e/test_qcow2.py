"""qcow2 through the whole server: the owner is killed again and again, QEMU judges what is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e_initiator import Initiator
from e2e_server import Server, run_judge, run_qemu_io, wait_until

StartServer = Callable[..., Server]
NAME = "iqn.2010-11.org.example:killer"
KILLS = int(os.environ.get("ISCSID_QCOW2_KILLS", "4"))  # 200 before a release
PER_SERVER = 3  # kills of one worker; then its supervisor would wait longer and longer before it replaces it
SIZE = 4 << 20
SECTOR = 512

pytestmark = [pytest.mark.judge("qemu-img"), pytest.mark.timeout(120 + 6 * KILLS)]


def make(path: Path, *options: str) -> Path:
    words = [word for option in options for word in ("-o", option)]
    subprocess.run(
        [sys.executable, "-m", "iscsid", "image", "create", str(path), "--size", str(SIZE), *words],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return path


class Known:
    """What each sector may hold: what was last flushed, or what was written since."""

    def __init__(self) -> None:
        self.flushed = bytearray(SIZE)
        self.latest = bytearray(SIZE)
        self.since: list[tuple[int, bytes]] = []

    def wrote(self, offset: int, data: bytes) -> None:
        self.since.append((offset, data))
        self.latest[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.flushed = bytearray(self.latest)
        self.since.clear()

    def settle(self, found: bytes) -> None:
        """Compare with what is there after a crash, which is what holds from now on."""
        maybe: dict[int, set[bytes]] = {}
        for offset, data in self.since:
            for at in range(0, len(data), SECTOR):
                maybe.setdefault(offset + at, set()).add(data[at : at + SECTOR])
        for at in range(0, SIZE, SECTOR):
            sector = found[at : at + SECTOR]
            if sector != self.flushed[at : at + SECTOR]:
                assert sector in maybe.get(at, ()), f"sector {at // SECTOR} has lost what was flushed"
        self.latest = bytearray(found)
        self.flush()


def write_pdu(initiator: Initiator, lba: int, data: bytes) -> bytes:
    cdb = b"\x8a\0" + lba.to_bytes(8, "big") + (len(data) // SECTOR).to_bytes(4, "big") + bytes(2)
    return initiator.command_pdu(cdb, data)


def use_and_kill(server: Server, rng: random.Random, known: Known) -> None:
    """Write and flush, leave commands in flight, kill the owner, and look what there is when it is replaced."""
    with Initiator(server.address, NAME) as initiator:
        index = server.worker_of(NAME)
        pid = server.workers()[index]
        assert pid is not None
        for _ in range(rng.randrange(1, 12)):
            lba, data = rng.randrange(SIZE // SECTOR - 128), rng.randbytes(rng.randrange(1, 128) * SECTOR)
            initiator.write(lba, data)
            known.wrote(lba * SECTOR, data)
            if rng.random() < 0.3:
                initiator.flush()
                known.flush()
        for _ in range(rng.randrange(16)):  # commands in flight, whose answers nobody reads
            lba, data = rng.randrange(SIZE // SECTOR - 128), rng.randbytes(rng.randrange(1, 128) * SECTOR)
            known.wrote(lba * SECTOR, data)
            initiator.send(write_pdu(initiator, lba, data))
            if rng.random() < 0.3:
                initiator.send(initiator.command_pdu(b"\x35".ljust(10, b"\0")))
        server.remember_children()
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: server.workers()[index] not in (None, pid), "the owner is replaced")
    wait_until(lambda: server.status()["workers"][index]["state"] == "ready", "it is ready")
    with Initiator(server.address, NAME) as initiator:
        known.settle(b"".join(initiator.read(lba, 512) for lba in range(0, SIZE // SECTOR, 512)))
        initiator.flush()


@pytest.mark.parametrize("options", [("cluster_size=4096",), ("lazy_refcounts=true", "extended_l2=true")])
def test_killed_owner_never_corrupts_the_image_and_keeps_what_was_flushed(
    options: tuple[str, ...], start: StartServer, tmp_path: Path
) -> None:
    path = make(tmp_path / "disk.qcow2", *options)
    twin = tmp_path / "twin.raw"
    rng, known = random.Random(len(options)), Known()
    for begun in range(0, KILLS, PER_SERVER):
        server = start([{"backend": "qcow2", "path": str(path)}], workers=2)
        for _ in range(min(PER_SERVER, KILLS - begun)):
            use_and_kill(server, rng, known)
        server.stop()
        checked = subprocess.run(["qemu-img", "check", str(path)], capture_output=True, text=True, check=False)
        assert checked.returncode in (0, 3), checked.stdout + checked.stderr
        twin.write_bytes(known.latest)
        run_judge("qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, twin)
    mend = [sys.executable, "-m", "iscsid", "image", "check", str(path), "-o", "repair=true"]
    mended = subprocess.run(mend, check=False, capture_output=True, text=True, timeout=60)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    run_judge("qemu-img", "check", path)


@pytest.mark.judge("qemu-io")
def test_image_is_served_to_qemu_and_held_meanwhile(start: StartServer, tmp_path: Path) -> None:
    path = make(tmp_path / "disk.qcow2")
    server = start([{"backend": "qcow2", "path": str(path)}], workers=2)
    run_qemu_io(
        server.url(),
        "write -P 1 0 1M",
        "write -P 2 1234k 100k",
        "write -z 64k 64k",
        "discard 256k 128k",
        "flush",
        "read -P 1 0 64k",
        "read -P 0 64k 64k",
        "read -P 0 256k 128k",
        "read -P 2 1234k 100k",
    )
    refused = subprocess.run(["qemu-img", "info", str(path)], capture_output=True, text=True, check=False)
    assert "lock" in refused.stderr
    told: Any = subprocess.run(
        [sys.executable, "-m", "iscsid", "image", "resize", str(path), "--size", "1G"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1
    assert "in use" in told.stderr
    server.stop()
    assert "No errors were found" in run_judge("qemu-img", "check", path)
