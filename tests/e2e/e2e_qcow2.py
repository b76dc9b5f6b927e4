"""What the tests of served qcow2 images share: each kind of image as QEMU makes it, QEMU's verdict, and a server whose
disk is another one whenever a test wants it."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e_server import Server, toml_value

from iscsid.daemon.control import ask
from iscsid.initiator import open_disk
from iscsid.initiator.disk import Disk

SECTOR = 512
SIZE = (3 << 20) + 7 * SECTOR  # of a disk: it ends within a cluster
BASE_SIZE = 2 << 20  # of a backing file, which is shorter
TARGET = "iqn.2026-11.org.iscsid.e2e:image"
CHANGE_SECONDS = 180.0


@dataclass(frozen=True)
class Kind:
    """``options`` of qemu-img; whether the first data is ``compressed``; the format of the backing file ``base``."""

    options: str = ""
    compressed: bool = False
    base: str = ""

    @property
    def external(self) -> bool:
        return "data_file" in self.options

    @property
    def narrow(self) -> bool:
        """Whether clusters that snapshots share may be counted out; an image that has none yet can be kept."""
        return not {"refcount_bits=1", "refcount_bits=2"}.isdisjoint(self.options.split(","))

    @property
    def snapshots(self) -> bool:
        """Whether there can be any: the clusters lie in the image, and may be counted more than once."""
        return not self.external and "refcount_bits=1" not in self.options.split(",")


KINDS = {
    "plain": Kind(),
    "v2": Kind("compat=0.10"),
    "512": Kind("cluster_size=512"),
    "4k": Kind("cluster_size=4k"),
    "2M": Kind("cluster_size=2M"),
    "lazy": Kind("lazy_refcounts=on"),
    "subclusters": Kind("extended_l2=on"),
    "subclusters-lazy": Kind("extended_l2=on,cluster_size=16k,lazy_refcounts=on"),
    "1bit": Kind("refcount_bits=1"),
    "2bit": Kind("refcount_bits=2,cluster_size=1k"),
    "4bit": Kind("refcount_bits=4,cluster_size=4k"),
    "8bit": Kind("refcount_bits=8"),
    "32bit": Kind("refcount_bits=32,cluster_size=2k"),
    "64bit": Kind("refcount_bits=64,cluster_size=512"),
    "zlib-over-raw": Kind("", True, "raw"),
    "zstd-over-qcow2": Kind("compression_type=zstd", True, "qcow2"),
    "v2-zlib-over-qcow2": Kind("compat=0.10,cluster_size=4k", True, "qcow2"),
    "subclusters-zstd-over-raw": Kind("extended_l2=on,compression_type=zstd", True, "raw"),
    "metadata": Kind("preallocation=metadata"),
    "full": Kind("preallocation=full"),
    "data-file": Kind("data_file={path}.data"),
    "raw-data-file": Kind("data_file={path}.data,data_file_raw=on,lazy_refcounts=on"),
}


def run(*words: object, good: tuple[int, ...] = (0,)) -> str:
    """Run qemu-img; what it said."""
    done = subprocess.run(["qemu-img", *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in good, f"qemu-img {words}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def assert_sound(path: Path, *, leaks: bool = False) -> None:
    """QEMU finds no error, and no leak unless ``leaks``."""
    run("check", "-f", "qcow2", path, good=(0, 3) if leaks else (0,))


def assert_same(path: Path, model: bytes | bytearray) -> None:
    """QEMU reads ``model`` in the image."""
    twin = path.with_suffix(".twin")
    twin.write_bytes(model)
    run("compare", "-f", "qcow2", "-F", "raw", path, twin)
    twin.unlink()


def content(size: int, seed: int) -> bytes:
    """What can be compressed, what cannot, and zeros, in pieces that begin and end anywhere."""
    rng = random.Random(seed)
    parts: list[bytes] = []
    while sum(map(len, parts)) < size:
        length = rng.randrange(1, 150_000)
        kinds = (bytes(length), bytes([rng.randrange(1, 256)]) * length, rng.randbytes(64) * (length // 64))
        parts.append(rng.choice((*kinds, rng.randbytes(length))))
    return b"".join(parts)[:size]


def make_image(kind: Kind, path: Path, size: int = SIZE, *, filled: bool = False) -> bytearray:
    """Have QEMU make an image; what its disk holds. ``filled``: it has data of its own, if not compressed."""
    options = kind.options.format(path=path)
    words = ["-o", options] if options else []
    model = bytearray((content(BASE_SIZE, 1) if kind.base else b"").ljust(size, b"\0")[:size])
    raw, base = path.with_suffix(".raw"), path.with_suffix(".base")
    if kind.base:
        raw.write_bytes(content(BASE_SIZE, 1))
        run("convert", "-f", "raw", "-O", kind.base, raw, base)
        raw.unlink()
    if not (kind.compressed or filled):
        below = ["-b", base, "-F", kind.base] if kind.base else []
        run("create", "-q", "-f", "qcow2", *words, *below, path, size)
        return model
    for number in range(4):
        at, length = number * size // 4, size // 7
        model[at : at + length] = content(length, number + 2)
    raw.write_bytes(model)
    below = ["-B", base, "-F", kind.base] if kind.base else []
    run("convert", *(["-c"] if kind.compressed else []), "-f", "raw", "-O", "qcow2", *words, *below, raw, path)
    raw.unlink()
    return model


def forget_image(path: Path) -> None:
    """Remove an image and what was made with it."""
    for name in path.parent.glob(f"{path.stem}.*"):
        name.unlink()


class Served:
    """A server with two workers. ``serve`` gives it one qcow2 disk, as LUN 0 of TARGET, and ``drop`` takes it away."""

    def __init__(self, folder: Path) -> None:
        self.server = Server(folder, [{"backend": "ram", "size": "1 MiB"}], workers=2)
        self._plain = self.server.config.read_text()

    def reload(self, *tables: dict[str, Any]) -> list[str]:
        """Serve LUNs of ``tables`` under TARGET; the problems, with which nothing has changed."""
        text = self._plain
        if tables:
            text += f'\n[[target]]\nname = "{TARGET}"\n'
        for number, table in enumerate(tables):
            keys = {"lun": number, "backend": "qcow2", **table}
            text += "\n[[target.lun]]\n" + "".join(f"{key} = {toml_value(value)}\n" for key, value in keys.items())
        self.server.config.write_text(text)
        return [str(line) for line in self.ask("reload")["problems"]]

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        return ask(self.server.runtime_dir, command, timeout=CHANGE_SECONDS, **arguments)

    def url(self, lun: int = 0) -> str:
        return f"iscsi://{self.server.portal()}/{TARGET}/{lun}"

    def disk(self, who: str = "host", lun: int = 0, **options: Any) -> Disk:
        return open_disk(self.url(lun), initiator_name=f"iqn.2026-11.org.iscsid.e2e:{who}", **options)

    def serve(self, *paths: Path, **keys: Any) -> None:
        problems = self.reload(*({"path": path, **keys} for path in paths))
        assert not problems, problems

    def drop(self) -> None:
        """Close the images, whose sessions end."""
        assert not self.reload()


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    made = Served(folder)
    try:
        made.server.start()
        yield made
    finally:
        made.server.finish()


def lun_change(where: Served, verb: str, lun: int = 0, **keys: Any) -> list[str]:
    """An online change of a LUN; the problems, with which nothing has changed."""
    return [str(line) for line in where.ask("lun", verb=verb, target=TARGET, lun=lun, **keys)["problems"]]
