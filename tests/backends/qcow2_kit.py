"""What the tests of qcow2 share: images, QEMU's verdict on them, a model to compare with, and a disk that crashes."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iscsid_backends import qcow2_read, qcow2_snapshots, qcow2_write
from iscsid_backends.qcow2_chain import Rules, open_image, read_header
from iscsid_backends.qcow2_image import Image
from iscsid_backends.qcow2_manage import create, resize
from iscsid_backends.qcow2_storage import Storage

from iscsid.errors import BlockError, Fault

SECTOR = 512
DEFAULTS: dict[str, Any] = {
    "size": 4 << 20,
    "compat": "1.1",
    "cluster_size": 65536,
    "refcount_bits": 16,
    "lazy_refcounts": False,
    "extended_l2": False,
    "compression_type": "zlib",
    "backing_file": None,
    "backing_format": None,
    "data_file": None,
    "data_file_raw": False,
}


def make(path: Path, **given: Any) -> Path:
    """An image made by ourselves."""
    create(str(path), Rules(), {**DEFAULTS, **given})
    return path


def qemu_make(path: Path, size: int, options: str = "", *more: str) -> Path:
    """An image made by qemu-img."""
    words = ["-o", options] if options else []
    qemu("create", "-q", "-f", "qcow2", *words, *more, path, size)
    return path


def qemu(*words: object) -> str:
    """Run qemu-img, which must not fail."""
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"qemu-img {words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def qemu_io(path: Path, *commands: str) -> None:
    """Let QEMU write into an image."""
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", *words, str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout, done.stdout


def opened(path: Path, *, writing: bool = True, **rules: Any) -> Image:
    return open_image(str(path), Rules(**rules), writing=writing)


def content(image: Image) -> bytes:
    buffer = bytearray(image.size)
    qcow2_read.read(image, memoryview(buffer), 0)
    return bytes(buffer)


def put(image: Image, data: bytes, offset: int) -> None:
    qcow2_write.write(image, memoryview(data), offset)
    image.relieve()


def assert_sound(path: Path, *, leaks: bool = False) -> None:
    """QEMU finds no error, and no leak unless ``leaks``."""
    done = subprocess.run(["qemu-img", "check", str(path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in ((0, 3) if leaks else (0,)), done.stdout + done.stderr


def assert_same(path: Path, model: bytes, tmp_path: Path) -> None:
    """QEMU reads ``model`` in the image."""
    twin = tmp_path / "twin.raw"
    twin.write_bytes(model)
    qemu("compare", "-f", "qcow2", "-F", "raw", path, twin)


class Workload:
    """Random operations on an image and on a model of it. ``note(offset, data)`` is told of each change beforehand."""

    def __init__(self, image: Image, seed: int, note: Callable[[int, bytes], None] = lambda offset, data: None) -> None:
        self.image = image
        self.rng = random.Random(seed)
        self.model = bytearray(content(image))
        self.note = note
        self.snapshots: dict[str, bytes] = {}
        self.made = 0

    def step(self, operations: str = "wwwwwdzuf") -> None:
        rng, size = self.rng, len(self.model) // SECTOR * SECTOR
        offset = rng.randrange(size // SECTOR) * SECTOR
        length = min(size - offset, rng.choice([512, 4096, 65536, rng.randrange(1, 500) * SECTOR]))
        operation = rng.choice(operations)
        if operation == "w":
            self._put(offset, rng.randbytes(length))
        elif operation in "dzu":
            self._zero(operation, offset, length)
        elif operation == "f":
            self.flush()
        elif operation == "R":
            self._resize(rng.randrange(1, 16384) * SECTOR)
        else:
            self._snapshot(operation)
        self.image.relieve()

    def _put(self, offset: int, data: bytes) -> None:
        self.note(offset, data)
        qcow2_write.write(self.image, memoryview(data), offset)
        self.model[offset : offset + len(data)] = data

    def _zero(self, operation: str, offset: int, length: int) -> None:
        self.note(offset, bytes(length))
        try:
            if operation == "d":
                qcow2_write.discard(self.image, offset, length)
            else:
                qcow2_write.write_zeroes(self.image, offset, length, operation == "u")
        except BlockError as error:
            assert error.fault is Fault.UNSUPPORTED
            return
        self.model[offset : offset + length] = bytes(length)

    def flush(self) -> None:
        self.image.checkpoint()

    def _resize(self, size: int) -> None:
        try:
            resize(self.image, size)
        except BlockError as error:
            assert error.fault is Fault.UNSUPPORTED
            return
        self.model = self.model[:size] + bytearray(max(0, size - len(self.model)))

    def _snapshot(self, operation: str) -> None:
        names = list(self.snapshots)
        try:
            if operation == "S" and len(names) < 4:
                self.made += 1
                name = f"{id(self)}-{self.made}"
                qcow2_snapshots.create(self.image, name)
                self.snapshots[name] = bytes(self.model)
            elif operation == "A" and names:
                qcow2_snapshots.apply(self.image, name := self.rng.choice(names))
                self.model = bytearray(self.snapshots[name])
            elif operation == "D" and names:
                qcow2_snapshots.delete(self.image, name := self.rng.choice(names))
                del self.snapshots[name]
        except BlockError as error:
            assert error.fault is Fault.UNSUPPORTED  # counts too narrow, or an external data file


class Recorder(Storage):
    """A file whose changes are noted in ``log``, so that a crash at any moment can be looked at."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        self.nowait = None
        self.start = bytes(self.read(0, self.size))
        self.log: list[tuple[Any, ...]] = []

    def write(self, data: Any, offset: int) -> None:
        self.log.append(("write", offset, bytes(data)))
        super().write(data, offset)

    def zero(self, offset: int, length: int) -> None:
        self.log.append(("zero", offset, length))
        super().zero(offset, length)

    def truncate(self, size: int) -> None:
        self.log.append(("truncate", size))
        super().truncate(size)

    def sync(self) -> None:
        super().sync()
        self.log.append(("sync",))

    def crashed(self, at: int, rng: random.Random) -> bytes:
        """What may be on the disk after a crash before ``log[at]``: all up to the last sync, of the rest anything."""
        disk = bytearray(self.start)
        synced = max((index for index in range(at) if self.log[index][0] == "sync"), default=-1)
        for index, (what, *rest) in enumerate(self.log[:at]):
            if what in ("write", "zero"):
                data = rest[1] if what == "write" else bytes(max(0, min(rest[1], len(disk) - rest[0])))
                self._apply(disk, rest[0], data, None if index < synced else rng)
            elif what == "truncate" and (index < synced or rng.random() < 0.5):
                disk = disk[: rest[0]].ljust(rest[0], b"\0")
        return bytes(disk)

    @staticmethod
    def _apply(disk: bytearray, offset: int, data: bytes, rng: random.Random | None) -> None:
        """Write all, or where ``rng`` decides all, nothing, or some of the sectors."""
        luck = 1.0 if rng is None else rng.choice([0.0, 0.5, 1.0])
        for at in range(0, len(data), SECTOR):
            if rng is None or rng.random() < luck:
                piece = data[at : at + SECTOR]
                if len(disk) < offset + at + len(piece):
                    disk.extend(bytes(offset + at + len(piece) - len(disk)))
                disk[offset + at : offset + at + len(piece)] = piece


def recorded(path: Path) -> tuple[Image, Recorder]:
    """The image at ``path``, open for writing, over a file that notes what is done to it."""
    recorder = Recorder(os.open(path, os.O_RDWR), str(path))
    return Image(read_header(recorder), recorder, writing=True), recorder
