"""qcow2 through the whole server: the owner is killed again and again, QEMU judges what is left."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import psutil
import pytest
from e2e_initiator import Initiator
from e2e_qcow2 import KINDS, SECTOR, SIZE, assert_same, assert_sound, make_image
from e2e_server import TARGET, Server, run_judge, run_qemu_io, wait_until

from iscsid.daemon.control import ask
from iscsid.initiator import open_disk
from iscsid.plugin.manager import load

StartServer = Callable[..., Server]
NAME = "iqn.2010-11.org.example:killer"
KILLS = int(os.environ.get("ISCSID_QCOW2_KILLS", "3"))  # 200 before a release
PER_SERVER = 3  # kills of one worker; then its supervisor would wait longer and longer before it replaces it
MAX_BLOCKS = 128  # of a command
FLUSH = b"\x35".ljust(10, b"\0")

pytestmark = [pytest.mark.judge("qemu-img"), pytest.mark.timeout(120 + 10 * KILLS)]


class Known:
    """What each sector of a disk may hold: what was last flushed, or what was written since."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind, self.path = kind, path
        self.latest = make_image(KINDS[kind], path)
        self.flushed = bytearray(self.latest)
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
                assert sector in maybe.get(at, ()), f"{self.kind}: sector {at // SECTOR} has lost what was flushed"
        self.latest = bytearray(found)
        self.flush()


class Load:
    """What an initiator does to all disks at once."""

    def __init__(self, initiator: Initiator, disks: list[Known], rng: random.Random) -> None:
        self.initiator, self.disks, self.rng = initiator, disks, rng

    def change(self, lun: int) -> bytes:
        """The PDU of some write, of zeros or of UNMAP; the disk may hold what it writes from now on."""
        rng = self.rng
        blocks = rng.choice((1, 8, rng.randrange(1, MAX_BLOCKS)))
        lba = rng.randrange(SIZE // SECTOR - blocks)
        what = rng.random()
        if what < 0.7:
            data = rng.randbytes(blocks * SECTOR)
            pdu = self.initiator.command_pdu(struct.pack(">BBQIBB", 0x8A, 0, lba, blocks, 0, 0), data, lun=lun)
        elif what < 0.85:
            data = bytes(blocks * SECTOR)
            cdb = struct.pack(">BBQIBB", 0x93, rng.choice((0, 8)), lba, blocks, 0, 0)
            pdu = self.initiator.command_pdu(cdb, bytes(SECTOR), lun=lun)
        else:
            data = bytes(blocks * SECTOR)
            ranges = struct.pack(">HHxxxxQIxxxx", 22, 16, lba, blocks)
            pdu = self.initiator.command_pdu(bytes.fromhex("42 00 00000000 00 0018 00"), ranges, lun=lun)
        self.disks[lun].wrote(lba * SECTOR, data)
        return pdu

    def flush(self, luns: Iterable[int]) -> None:
        luns = list(luns)
        for lun in luns:
            self.initiator.send(self.initiator.command_pdu(FLUSH, lun=lun))
        self.answers(len(luns))
        for lun in luns:
            self.disks[lun].flush()

    def answers(self, count: int) -> None:
        """Wait for as many, each of them GOOD."""
        for _ in range(count):
            head, data = self.initiator.receive()
            assert head[0] & 0x3F == 0x21 and not head[3], (head.hex(), data.hex())
            self.initiator.exp_stat_sn = int.from_bytes(head[24:28], "big") + 1

    def run(self) -> None:
        """Writes that are answered and flushes among them, and then as many that are under way."""
        for _ in range(self.rng.randrange(1, 5)):
            for lun in range(len(self.disks)):  # one each, since those that overlap may be done in any order
                self.initiator.send(self.change(lun))
            self.answers(len(self.disks))
            self.flush(lun for lun in range(len(self.disks)) if self.rng.random() < 0.3)
        for _ in range(pending := self.rng.randrange(64)):
            lun = self.rng.randrange(len(self.disks))
            self.initiator.send(self.change(lun))
            if self.rng.random() < 0.2:
                self.initiator.send(self.initiator.command_pdu(FLUSH, lun=lun))
        self.answers(self.rng.randrange(pending + 1))


def use_and_kill(server: Server, rng: random.Random, disks: list[Known]) -> None:
    """Kill the owner of all disks under load, have QEMU judge what is left, and look again when it is replaced."""
    with Initiator(server.address, NAME, luns=range(len(disks))) as initiator:
        index = server.worker_of(NAME)
        pid = server.workers()[index]
        assert pid is not None
        Load(initiator, disks, rng).run()
        server.remember_children()
        os.kill(server.pid, signal.SIGSTOP)  # nobody opens the images again, and repairs them, before they are judged
        try:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: is_dead(pid), "it is dead")
            for disk in disks:
                if "lazy" not in KINDS[disk.kind].options:  # whose reference counts are only right when it is closed
                    assert_sound(disk.path, leaks=True)
        finally:
            os.kill(server.pid, signal.SIGCONT)
    wait_until(lambda: server.workers()[index] not in (None, pid), "the owner is replaced")
    wait_until(lambda: server.status()["workers"][index]["state"] == "ready", "it is ready")
    with Initiator(server.address, NAME, luns=range(len(disks))) as initiator:
        for lun, disk in enumerate(disks):
            disk.settle(whole(initiator, lun))
        Load(initiator, disks, rng).flush(range(len(disks)))


def is_dead(pid: int) -> bool:
    """Whether nothing of a process is left but what its parent has not asked for: no thread, so no file either."""
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE and len(os.listdir(f"/proc/{pid}/task")) == 1


def whole(initiator: Initiator, lun: int) -> bytes:
    """All of a disk."""
    found = bytearray()
    for lba in range(0, SIZE // SECTOR, 512):
        blocks = min(512, SIZE // SECTOR - lba)
        cdb = struct.pack(">BBQIBB", 0x88, 0, lba, blocks, 0, 0)
        status, data = initiator.command(cdb, expect=blocks * SECTOR, lun=lun)
        assert status == 0, data.hex()
        found += data
    return bytes(found)


def test_killed_owner_never_corrupts_an_image_and_keeps_what_was_flushed(start: StartServer, tmp_path: Path) -> None:
    """One worker owns an image of each kind."""
    rng, plugins = random.Random(KILLS), load()
    disks = [Known(kind, tmp_path / f"{kind}.qcow2") for kind in KINDS]
    luns = [{"backend": "qcow2", "path": str(disk.path)} for disk in disks]
    for begun in range(0, KILLS, PER_SERVER):
        server = start(luns, workers=2)
        for _ in range(min(PER_SERVER, KILLS - begun)):
            use_and_kill(server, rng, disks)
        server.stop()
        for disk in disks:
            assert_sound(disk.path, leaks=True)
            assert_same(disk.path, disk.latest)
    for disk in disks:
        mended = plugins.image("qcow2", {"path": str(disk.path)}, "check", {"repair": True})
        assert mended["sound"], mended
        assert_sound(disk.path)
        assert_same(disk.path, disk.latest)


class Changed:
    """A disk that an administrator changes, and its snapshots: what it may hold when that was interrupted."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind, self.path = kind, path
        self.model = bytes(make_image(KINDS[kind], path))
        self.snapshots: dict[str, bytes] = {}

    def choose(self, rng: random.Random) -> tuple[dict[str, Any], bytes, dict[str, bytes]]:
        """A change, and disk and snapshots after it."""
        model, snapshots = self.model, self.snapshots
        name = rng.choice(sorted(snapshots)) if snapshots else ""
        what = rng.choice(("resize", "create", "apply", "delete") if name else ("resize", "create"))
        if what == "resize" or not KINDS[self.kind].snapshots:
            size = rng.randrange(1, 2 * SIZE // SECTOR) * SECTOR
            return {"verb": "resize", "size": size, "shrink": True}, model[:size].ljust(size, b"\0"), snapshots
        if what == "create" and len(snapshots) < 3:
            name = f"s{rng.randrange(1 << 30)}"
            return {"verb": "snapshot", "action": "create", "name": name}, model, {**snapshots, name: model}
        if what == "apply":
            return {"verb": "snapshot", "action": "apply", "name": name}, snapshots[name], snapshots
        left = {other: held for other, held in snapshots.items() if other != name}
        return {"verb": "snapshot", "action": "delete", "name": name}, model, left


def change_and_kill(server: Server, rng: random.Random, disks: list[Changed]) -> None:
    """Kill the owner while it changes a disk, which is as before or as after when there is another owner."""
    lun = rng.randrange(len(disks))
    disk = disks[lun]
    with Initiator(server.address, NAME, luns=(lun,)) as initiator:
        index = server.worker_of(NAME)
        pid = server.workers()[index]
        assert pid is not None
        data = rng.randbytes(SECTOR * min(64, len(disk.model) // SECTOR))
        initiator.command(struct.pack(">BBQIBB", 0x8A, 0, 0, len(data) // SECTOR, 0, 0), data, lun=lun)
        assert initiator.command(FLUSH, lun=lun)[0] == 0
        disk.model = data + disk.model[len(data) :]
        request, model, snapshots = disk.choose(rng)
        server.remember_children()
        with ThreadPoolExecutor(1) as pool:
            asked = {"target": TARGET, "lun": lun, "timeout": 60, **request}
            answer = pool.submit(ask, server.runtime_dir, "lun", **asked)
            wait([answer], rng.random() * 0.06)  # somewhere within
            os.kill(pid, signal.SIGKILL)
            answer.result()
    wait_until(lambda: server.workers()[index] not in (None, pid), "the owner is replaced")
    wait_until(lambda: server.status()["workers"][index]["state"] == "ready", "it is ready")
    listed = ask(server.runtime_dir, "lun", verb="snapshot", target=TARGET, lun=lun, action="list", timeout=60)
    names = {one["name"] for one in listed.get("snapshots", [])}
    assert names in (disk.snapshots.keys(), snapshots.keys()), (disk.kind, request)
    if names == snapshots.keys():
        disk.snapshots = snapshots
    with open_disk(server.url(lun)) as found:
        held = bytes(found.read(0, found.size))
    assert held in (disk.model, model), (disk.kind, request)
    disk.model = held


def test_owner_that_is_killed_while_it_changes_an_image_has_done_it_or_not(start: StartServer, tmp_path: Path) -> None:
    """Version 2 has no dirty bit, by which the counts are made right when a snapshot was interrupted."""
    rng, plugins = random.Random(KILLS), load()
    kinds = [kind for kind in KINDS if "0.10" not in KINDS[kind].options]
    disks = [Changed(kind, tmp_path / f"{kind}.qcow2") for kind in kinds]
    luns = [{"backend": "qcow2", "path": str(disk.path)} for disk in disks]
    for begun in range(0, KILLS, PER_SERVER):
        server = start(luns, workers=2)
        for _ in range(min(PER_SERVER, KILLS - begun)):
            change_and_kill(server, rng, disks)
        server.stop()
        for disk in disks:
            assert_sound(disk.path, leaks=True)
    for disk in disks:
        assert plugins.image("qcow2", {"path": str(disk.path)}, "check", {"repair": True})["sound"]
        assert_sound(disk.path)
        assert_same(disk.path, disk.model)
        for name, held in disk.snapshots.items():
            plugins.image("qcow2", {"path": str(disk.path)}, "snapshot", {"action": "apply", "name": name})
            assert_same(disk.path, held)


def make(path: Path) -> Path:
    argv = [sys.executable, "-m", "iscsid", "image", "create", str(path), "--size", "4 MiB"]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return path


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
