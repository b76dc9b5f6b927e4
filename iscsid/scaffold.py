"""What ``iscsid plugin new`` writes: a package with a working back end or layer, its tests, packaging, and a README."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import Final

from iscsid.plugin import API_VERSION

NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,30}")

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "iscsid-$name"
version = "0.1.0"
description = "The $kind $name for iscsid"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["iscsid"]

[project.optional-dependencies]
test = ["pytest>=8"]

# How iscsid finds it, once it is installed.
[project.entry-points.iscsid]
$name = "iscsid_$name"

[tool.setuptools]
py-modules = ["iscsid_$name"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""

_BACKEND = '''\
"""The back end $name: a disk in a file, made when it is missing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from iscsid.plugin import BackendInfo, BlockError, Device, Fault, Option, Threading, hookimpl


class Disk(Device):
    """What it does not override, it cannot do: the server emulates that, or offers it to nobody."""

    threading = Threading.PARALLEL  # any number of threads may be inside

    def __init__(self, path: str, readonly: bool) -> None:
        self.readonly = readonly
        self._failed: OSError | None = None
        self._fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        while buffer:
            done = os.preadv(self._fd, [buffer], offset)
            if not done:
                raise BlockError(Fault.READ_ERROR, "the file has become shorter")
            buffer, offset = buffer[done:], offset + done

    def write(self, data: memoryview, offset: int) -> None:
        while data:
            done = os.pwrite(self._fd, data, offset)
            data, offset = data[done:], offset + done

    def flush(self) -> None:
        if self._failed is not None:
            raise self._failed  # what was lost stays lost: no later flush may succeed
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._failed = error
            raise

    def close(self) -> None:
        os.close(self._fd)


@hookimpl
def iscsid_backend_info() -> BackendInfo:
    options = (
        Option("path", "path", required=True, doc="the file", medium=True),
        Option("size", "size", required=True, minimum=512, doc="of the disk"),
    )
    return BackendInfo("$name", "a disk in a file", options, api=$api)


@hookimpl
def iscsid_validate(options: Mapping[str, Any]) -> list[str]:
    folder = os.path.dirname(options["path"]) or "."
    return [] if os.path.isdir(folder) else [f"path: there is no folder {folder}"]


@hookimpl
def iscsid_prepare(options: Mapping[str, Any]) -> None:
    """Once, before the workers start: make the file, or make it larger. It is never cut."""
    fd = os.open(options["path"], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size < options["size"]:
            os.ftruncate(fd, options["size"])
    finally:
        os.close(fd)


@hookimpl
def iscsid_open(options: Mapping[str, Any], role: str) -> Device:
    return Disk(options["path"], role == "readonly")
'''

_LAYER = '''\
"""The layer $name: every byte is kept with some of its bits turned over. It hides nothing from anybody."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from iscsid.plugin import Capabilities, Device, Filter, LayerInfo, Mode, Option, Support, hookimpl


class Turned(Filter):
    """What it does not override is the call of the device below. Since it has a read and a write of its own, the other
    ways to the data are closed: no lent view, no discard, no write_zeroes of the device below goes around it."""

    mode = Mode.BLOCKING  # this is work: it is done in a thread, and not in the worker's loop

    def __init__(self, below: Device, mask: int) -> None:
        super().__init__(below)
        self._table = bytes(byte ^ mask for byte in range(256))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.below.read_into(buffer, offset)
        buffer[:] = bytes(buffer).translate(self._table)

    def write(self, data: memoryview, offset: int) -> None:
        self.below.write(memoryview(bytes(data).translate(self._table)), offset)

    def capabilities(self) -> Capabilities:
        """A hole of the device below is no zeros here, so we tell of none."""
        return dataclasses.replace(super().capabilities(), block_status=Support.NONE)


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    mask = Option("mask", "int", default=255, minimum=0, maximum=255, doc="the bits that are turned over")
    return LayerInfo("$name", "bytes with bits turned over", (mask,), api=$api)


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Device:
    return Turned(device, options["mask"])
'''

_TEST_HEAD = '''\
"""The $kind keeps the contract of iscsid, and does what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
from iscsid.contract import CHECKS, Medium, load_file, name_of

PLUGIN = Path(__file__).resolve().parent.parent / "iscsid_$name.py"
SIZE = 8 << 20


'''
_TEST_BACKEND = """\
def medium(folder: Path, size: int = SIZE) -> Medium:
    return Medium(load_file(PLUGIN), "$name", {"path": str(folder / "disk.img"), "size": size})


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_contract(check, tmp_path: Path) -> None:
    with medium(tmp_path) as made:
        check(made)


def test_disk_is_the_file(tmp_path: Path) -> None:
    with medium(tmp_path) as made:
        made.open().write(memoryview(b"a" * 512), 512)
    assert (tmp_path / "disk.img").read_bytes()[:1536] == bytes(512) + b"a" * 512 + bytes(512)


def test_file_is_never_cut(tmp_path: Path) -> None:
    with medium(tmp_path), medium(tmp_path, 4096) as made:
        assert made.open().size == SIZE


def test_missing_folder_is_told(tmp_path: Path) -> None:
    problems = load_file(PLUGIN).validate("$name", {"path": str(tmp_path / "no" / "disk.img"), "size": SIZE})
    assert problems == [f"path: there is no folder {tmp_path / 'no'}"]
"""
_TEST_LAYER = """\
def medium(**options) -> Medium:
    return Medium(load_file(PLUGIN), "ram", {"size": SIZE}, [("$name", options)])


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_contract(check) -> None:
    with medium() as made:
        check(made)


def test_bits_are_turned_over() -> None:
    with medium(mask=0x0F) as made:
        made.open().write(memoryview(b"\\x55" * 512), 0)
        below = bytearray(512)
        made.plugins.open("ram", made.options).read_into(memoryview(below), 0)
        assert below == b"\\x5a" * 512


def test_mask_is_a_byte() -> None:
    assert load_file(PLUGIN).validate_layer("$name", {"mask": 256}) == ["mask: 256 is above 255"]
"""

_README = """\
# iscsid-$name

The $kind `$name` for iscsid.

    python -m pytest                        the contract of iscsid, and what this $kind is for
    iscsid plugin check iscsid_$name.py $check
    pip install .                           and iscsid finds it

Without installing it, a folder is enough: `plugin_dirs = ["$here"]` in the table `server`. A LUN has it by

$use

docs/backends.md of iscsid tells what a device may do; docs/hooks.md has all hooks.
"""
_USE_BACKEND = '    backend = "$name"\n    path = "/srv/$name.img"\n    size = "10 GiB"'
_USE_LAYER = '    layers = [{ layer = "$name", mask = 255 }]'


def write_package(name: str, folder: Path, *, layer: bool) -> list[Path]:
    """Make the package in ``folder``/iscsid-``name``; the files that were written. An empty folder may be there.

    Raises ValueError for a name that is none, and OSError.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name: small letters, digits and _, with a letter first, at most 31")
    root = (folder / f"iscsid-{name}").absolute()
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} is there already")
    words = {
        "name": name,
        "kind": "layer" if layer else "back end",
        "here": str(root),
        "api": str(API_VERSION),
        "check": "" if layer else '-o path=/tmp/check.img -o size="8 MiB"',
    }
    words["use"] = Template(_USE_LAYER if layer else _USE_BACKEND).substitute(words)
    files = {
        "pyproject.toml": _PYPROJECT,
        "README.md": _README,
        f"iscsid_{name}.py": _LAYER if layer else _BACKEND,
        f"tests/test_{name}.py": _TEST_HEAD + (_TEST_LAYER if layer else _TEST_BACKEND),
    }
    written = []
    for place, text in files.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(text).substitute(words).replace(" \n", "\n"))
        written.append(path)
    return written
