"""The media that the contract suite runs on. A new back end adds a maker here and a row to truth.EXPECTED."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from iscsid.contract import Medium
from iscsid.errors import PluginError
from iscsid.plugin.manager import BUILTIN, Plugins, load

sys.path.insert(0, str(Path(__file__).parent))

SIZE = 8 << 20
SHM = Path("/dev/shm")
TMPFS_MAGIC = 0x01021994


class LoopDevices:
    """Loop devices over sparse files, detached at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.attached: list[str] = []

    def attach(self, size: int = SIZE, *, sector: int = 512, readonly: bool = False) -> str:
        if os.geteuid() != 0:
            pytest.skip("needs root, to attach a loop device")
        path = self.folder / f"loop{len(self.attached)}.img"
        with open(path, "wb") as file:
            file.truncate(size)
        command = ["losetup", "--find", "--show", "--sector-size", str(sector), *(["--read-only"] if readonly else [])]
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"needs a loop device: {done.stderr.strip()}")
        self.attached.append(done.stdout.strip())
        return self.attached[-1]

    def detach(self) -> None:
        for device in self.attached:
            subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture(scope="session")
def plugins() -> Plugins:
    plugins = load()
    ours = {path.rpartition(".")[2] for path in BUILTIN}
    failures: list[PluginError] = [error for error in plugins.failures if error.plugin in ours]
    assert not failures
    return plugins


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[LoopDevices]:
    loops = LoopDevices(tmp_path)
    yield loops
    loops.detach()


@pytest.fixture
def shm_path(tmp_path: Path) -> Iterator[Path]:
    """A path for a file on tmpfs."""
    if not SHM.is_dir():
        pytest.skip("needs a tmpfs at /dev/shm")
    path = SHM / f"iscsid-test-{os.getpid()}-{tmp_path.name}.img"
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def disk_path(tmp_path: Path) -> Path:
    """A path for a file on a disk. Where /tmp is a tmpfs, the working folder may be none."""
    from iscsid_backends.linux import IN_MEMORY, file_system

    for folder in (tmp_path, Path.cwd()):
        fd = os.open(folder, os.O_RDONLY)
        try:
            if file_system(fd) not in IN_MEMORY:
                return folder / "disk.img"
        finally:
            os.close(fd)
    pytest.skip("needs a folder that is not on a tmpfs")


Maker = Callable[[pytest.FixtureRequest], tuple[str, dict[str, Any]]]


def _file(fixture: str, **options: Any) -> Maker:
    return lambda request: ("file", {"path": str(request.getfixturevalue(fixture)), "size": SIZE, **options})


def _block(sector: int, **options: Any) -> Maker:
    return lambda request: ("block", {"path": request.getfixturevalue("loops").attach(sector=sector), **options})


def _concat(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A part of a file, and a file: the second begins where no chunk does."""
    path = str(request.getfixturevalue("disk_path"))
    part = {"layer": "offset", "offset": 4096, "size": 3 << 20}
    members = [
        {"backend": "file", "path": path + ".0", "size": SIZE, "layers": [part]},
        {"backend": "file", "path": path + ".1", "size": SIZE - (3 << 20)},
    ]
    return "concat", {"members": members}


def _mirror(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    path = str(request.getfixturevalue("disk_path"))
    legs = [{"backend": "file", "path": f"{path}.{leg}", "size": SIZE} for leg in range(2)]
    return "mirror", {"members": legs, "state": path + ".state"}


def _qcow2(**arguments: Any) -> Maker:
    """An image of QEMU, made by ourselves."""

    def make(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
        options = {"path": str(request.getfixturevalue("disk_path"))}
        request.getfixturevalue("plugins").image("qcow2", options, "create", {"size": SIZE, **arguments})
        return "qcow2", options

    return make


def _nbdkit(**options: Any) -> Maker:
    """Memory that nbdkit exports."""

    def make(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
        from nbd_kit import nbdkit

        server = nbdkit("memory", str(SIZE))
        request.addfinalizer(server.close)
        return "nbd", {"uri": server.start().uri(), **options}

    return make


def _qemu_nbd(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """A file that qemu-nbd exports."""
    from nbd_kit import qemu_nbd

    path = request.getfixturevalue("disk_path")
    with open(path, "wb") as file:
        file.truncate(SIZE)
    server = qemu_nbd(path)
    request.addfinalizer(server.close)
    return "nbd", {"uri": server.start().uri("disk"), "connections": 2}


MAKERS: dict[str, Maker] = {
    "qcow2": _qcow2(),
    "qcow2-v2": _qcow2(compat="0.10", cluster_size=4096),
    "qcow2-subclusters": _qcow2(extended_l2=True, cluster_size=131072, lazy_refcounts=True),
    "null": lambda request: ("null", {"size": SIZE}),
    "ram": lambda request: ("ram", {"size": SIZE}),
    "file-tmpfs": _file("shm_path"),
    "file-disk": _file("disk_path"),
    "file-direct": _file("disk_path", direct=True),
    "block": _block(512),
    "block-4k": _block(4096),
    "block-direct": _block(512, direct=True),
    "concat": _concat,
    "mirror": _mirror,
    "nbd": _nbdkit(),
    "nbd-shared": _nbdkit(shared=True),
    "nbd-qemu": _qemu_nbd,
}
_NEEDS = {
    **{kind: "losetup" for kind in MAKERS if kind.startswith("block")},
    "nbd": "nbdkit",
    "nbd-shared": "nbdkit",
    "nbd-qemu": "qemu-nbd",
}


def _marks(kind: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.judge(_NEEDS[kind])] if kind in _NEEDS else []


@pytest.fixture(params=[pytest.param(kind, marks=_marks(kind)) for kind in MAKERS])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def medium(request: pytest.FixtureRequest, plugins: Plugins, kind: str) -> Iterator[Medium]:
    backend, options = MAKERS[kind](request)
    with Medium(plugins, backend, options, forgets=backend == "null") as medium:
        yield medium


@pytest.fixture
def stacked(request: pytest.FixtureRequest, plugins: Plugins) -> Iterator[Callable[..., Medium]]:
    """Makes a medium of a kind with layers over it."""
    made: list[Medium] = []

    def make(kind: str, layers: Sequence[tuple[str, dict[str, Any]]]) -> Medium:
        backend, options = MAKERS[kind](request)
        made.append(Medium(plugins, backend, options, layers))
        return made[-1]

    yield make
    for medium in made:
        medium.close()
