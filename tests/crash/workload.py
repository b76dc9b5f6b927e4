"""An ext4 workload on a disk of ours, and the record of what arrived at its medium.

    python tests/crash/workload.py FOLDER {file,block,qcow2} {above,below} [--steps 60]

The disk is used as NetBSD's initiator gives it, by FUSE, and its file is mounted as ext4 by a loop device: needs root.
``above``: the layer ``record`` lies over the back end, and sees what the initiator wrote and flushed. ``below``: the
back end's medium is itself a disk of a second server, whose record shows what the back end wrote and flushed.
FOLDER gets ``record`` and ``history``, for ``tests/crash/replay.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from replay import History, Version, tool

from iscsid.plugin.manager import load
from iscsid.testing import TestTarget

MIB = 1 << 20
SIZE = 24 * MIB
SPACE = 40 * MIB  # of the medium of a qcow2 image
NAMES = tuple(f"file{number}" for number in range(12))
WAIT_SECONDS = 30.0


@contextlib.contextmanager
def loop_device(path: Path) -> Iterator[str]:
    device = tool("losetup", "--find", "--show", path).strip()
    try:
        yield device
    finally:
        tool("losetup", "--detach", device)


@contextlib.contextmanager
def storage(target: TestTarget, folder: Path) -> Iterator[Path]:
    """The file of the target's disk, by iscsi-initiator(8)."""
    at = folder / "mnt"
    at.mkdir()
    argv = [sys.executable, "-m", "iscsid.compat.iscsi_initiator", "-h", "localhost", "-p", str(target.port)]
    with (folder / "initiator.log").open("wb") as log:
        process = subprocess.Popen([*argv, str(at), "-f"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not os.path.ismount(at):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"no mount: {(folder / 'initiator.log').read_text()}")
            time.sleep(0.02)
        (disk,) = at.iterdir()
        yield disk / "storage"
    finally:
        tool("fusermount3", "-u", at, good=(0, 1))
        try:
            process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def mounted(path: Path, at: Path) -> Iterator[Path]:
    at.mkdir()
    tool("mount", "-t", "ext4", "-o", "loop,discard,commit=1", path, at)
    try:
        yield at
    finally:
        tool("umount", at)


@contextlib.contextmanager
def medium(folder: Path, backend: str, record: Path, below: bool) -> Iterator[dict[str, Any]]:
    """The table of a LUN, with the record above the back end or below it."""
    with contextlib.ExitStack() as stack:
        if below:
            path = stack.enter_context(recorded_file(folder / "below", record, SPACE if backend == "qcow2" else SIZE))
        else:
            path = folder / "medium"
            if backend != "qcow2":
                path.touch()
                os.truncate(path, SIZE)
        if backend == "block":
            path = Path(stack.enter_context(loop_device(path)))
        elif backend == "qcow2":
            image = folder / "made.qcow2" if below else path
            load().image("qcow2", {"path": str(image)}, "create", {"size": SIZE})
            if below:
                tool("dd", f"if={image}", f"of={path}", "bs=64k", "conv=notrunc,fsync")
        layers = [] if below else [{"layer": "record", "path": str(record)}]
        sized = {"size": SIZE} if backend == "file" else {}
        yield {"backend": backend, "path": str(path), "layers": layers, **sized}


@contextlib.contextmanager
def recorded_file(folder: Path, record: Path, size: int) -> Iterator[Path]:
    """A file that is the disk of a server of its own, over a record."""
    folder.mkdir()
    lun = {"backend": "file", "size": size, "layers": [{"layer": "record", "path": str(record)}]}
    with TestTarget(folder, luns=[lun]) as target, storage(target, folder) as path:
        yield path


class Workload:
    """Replaces, removes and appends, syncs, and notes how long the record was around each sync."""

    def __init__(self, at: Path, record: Path, seed: int) -> None:
        self._at, self._record, self._random = at, record, random.Random(seed)
        self.history = History()

    def position(self) -> int:
        return self._record.stat().st_size

    def run(self, steps: int) -> History:
        tool("sync", "-f", self._at)
        self.history.start = self.position()
        for number in range(steps):
            name = self._random.choice(NAMES)
            if (self._at / name).exists() and self._random.random() < 0.2:
                self._change(name, None)
            else:
                self._replace(name, self._random.randbytes(self._random.choice((1, 700, 4096, 50_000, 400_000))))
            with (self._at / f"noise{number % 5}").open("ab") as file:  # on its way at any time, and never synced
                file.write(bytes([number % 256]) * 5000)
        return self.history

    def _replace(self, name: str, content: bytes) -> None:
        with (self._at / f"{name}.new").open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self._change(name, content)

    def _change(self, name: str, content: bytes | None) -> None:
        begun = self.position()
        if content is None:
            (self._at / name).unlink()
        else:
            (self._at / f"{name}.new").rename(self._at / name)
        folder = os.open(self._at, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        digest = None if content is None else hashlib.sha256(content).hexdigest()
        self.history.versions.append(Version(name, digest, begun, self.position()))


def work(folder: Path, backend: str, below: bool, steps: int, seed: int = 0) -> tuple[Path, History]:
    """Make a file system on a disk of ``backend`` and use it: the path of the record, and what was done."""
    record = folder / "record"
    (folder / "served").mkdir()
    with (
        medium(folder, backend, record, below) as lun,
        TestTarget(folder / "served", luns=[lun]) as target,
        storage(target, folder / "served") as path,
    ):
        tool("mkfs.ext4", "-q", "-F", "-b", "1024", "-J", "size=2", path)
        with mounted(path, folder / "ext4") as at:
            history = Workload(at, record, seed).run(steps)
    return record, history


def main() -> None:
    parser = argparse.ArgumentParser(description="Record an ext4 workload.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("backend", choices=("file", "block", "qcow2"))
    parser.add_argument("where", choices=("above", "below"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    record, history = work(given.folder, given.backend, given.where == "below", given.steps, given.seed)
    history.save(given.folder / "history")
    print(f"{record}: {record.stat().st_size} bytes, {len(history.versions)} versions")


if __name__ == "__main__":
    main()
