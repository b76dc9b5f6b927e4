"""Makers of the media that the contract suite runs on: a back end, and options with fresh storage behind them.

A new back end adds a maker here and a row to truth.EXPECTED.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from truth import SIZE

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


def marks(kind: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.judge(_NEEDS[kind])] if kind in _NEEDS else []
