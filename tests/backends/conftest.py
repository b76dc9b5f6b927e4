"""The media that the contract suite runs on, and what they are made with. media_kit.py has the makers."""

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

from media_kit import MAKERS, SIZE, marks

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


@pytest.fixture(params=[pytest.param(kind, marks=marks(kind)) for kind in MAKERS])
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
        forgets = backend == "null" and not any(layer == "cow" for layer, _ in layers)
        made.append(Medium(plugins, backend, options, layers, forgets=forgets))
        return made[-1]

    yield make
    for medium in made:
        medium.close()
