"""Who may import whom: a room imports only from the rooms that its row names, and a module of the outside world only
where it belongs. Read from the syntax tree, so that an import inside a function counts as well; what stands under
``if TYPE_CHECKING`` does not. A change of these tables is a commit of its own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PURE = ("errors", "serial", "wire", "block", "text", "scsi")
ALLOWED: dict[str, tuple[str, ...]] = {
    # floor 0
    "errors": (),
    "serial": (),
    "specs": (),
    # floor 1
    "wire": ("errors",),
    "block": ("errors",),
    # floor 2
    "text": ("errors",),
    "scsi": ("errors", "block"),
    "plugin": ("errors", "specs", "block"),
    "contract": ("errors", "block", "plugin"),
    # floor 3
    "session": ("errors", "serial", "wire", "text"),
    # floor 4
    "shared": ("errors", "scsi"),
    "initiator": (*PURE, "session"),
    # floor 5
    "target": (*PURE, "specs", "plugin", "session", "shared"),
    # floor 6
    "daemon": (*PURE, "specs", "plugin", "session", "shared", "target"),
    # floor 7
    "values": ("specs", "text", "plugin"),
    "config": ("errors", "specs", "text", "plugin", "values"),
    # floor 8
    "screen": (),
    "disk": ("errors", "scsi", "initiator", "screen"),
    "cli_disk": ("errors", "scsi", "initiator", "screen", "disk"),
    "cli_image": ("errors", "plugin"),
    "scaffold": ("plugin",),
    "cli_plugin": ("errors", "block", "plugin", "contract", "screen", "scaffold", "cli_image"),
    "cli_layer": ("errors", "specs", "block", "plugin", "config", "cli_image"),
    "cli_lun": ("plugin", "screen", "values"),
    "compat": (*PURE, "specs", "plugin", "values", "config", "daemon", "initiator"),
    "cli_import": ("errors", "config", "compat"),
    "cli_status": ("screen",),
    "cli": (
        *PURE,
        "screen",
        "cli_disk",
        "cli_image",
        "cli_layer",
        "cli_lun",
        "cli_plugin",
        "cli_import",
        "cli_status",
        "specs",
        "plugin",
        "values",
        "config",
        "daemon",
        "initiator",
    ),
    "testing": ("errors", "daemon", "initiator"),
    "pytest_plugin": ("testing",),
    "__main__": ("cli",),
    # outside the wall: as any stranger
    "backends": ("plugin",),
    "plugins": ("plugin",),
}

# Bytes and time are arguments below the daemon: nothing there opens a socket, asks a clock, rolls dice or starts
# anything. The exceptions are the two front ends of the initiator, blocking and for asyncio.
WORLD = frozenset(
    [
        "_socket",
        "_thread",
        "asyncio",
        "concurrent",
        "datetime",
        "multiprocessing",
        "random",
        "sched",
        "secrets",
        "select",
        "selectors",
        "signal",
        "socket",
        "socketserver",
        "ssl",
        "subprocess",
        "threading",
        "time",
    ]
)
BELOW_THE_DAEMON = frozenset(
    [
        "errors",
        "serial",
        "specs",
        "wire",
        "block",
        "text",
        "scsi",
        "plugin",
        "session",
        "shared",
        "initiator",
        "target",
        "config",
    ]
)
WORLDLY = ("iscsid/initiator/client.py", "iscsid/initiator/aio.py")

# What comes from elsewhere has one way in, so that it can be replaced or missed in one place.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "click": (
        "iscsid/cli.py",
        "iscsid/cli_disk.py",
        "iscsid/cli_image.py",
        "iscsid/cli_import.py",
        "iscsid/cli_layer.py",
        "iscsid/cli_lun.py",
        "iscsid/cli_plugin.py",
        "iscsid/compat/",
    ),
    "google_crc32c": ("iscsid/wire/digest.py", "plugins/sums.py"),
    "mfusepy": ("iscsid/compat/iscsi_initiator.py",),
    "multiprocessing_logging": ("iscsid/daemon/logs.py",),
    "pluggy": ("iscsid/plugin/",),
    "psutil": ("iscsid/daemon/stats.py",),
    "cairosvg": ("iscsid/disk/report.py",),
    "platformdirs": ("iscsid/disk/state.py",),
    "pygal": ("iscsid/disk/report.py",),
    "rich": (
        "iscsid/cli.py",
        "iscsid/cli_disk.py",
        "iscsid/cli_lun.py",
        "iscsid/cli_plugin.py",
        "iscsid/cli_status.py",
        "iscsid/disk/report.py",
        "iscsid/screen.py",
        "iscsid/compat/",
    ),
    "sdnotify": ("iscsid/cli.py",),
    "tomli": ("iscsid/config.py",),
    "tomli_w": ("iscsid/compat/draft.py",),
    "zstandard": ("backends/qcow2_compress.py",),
}


def imports_of(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield line and absolute name of everything imported, ``from x import y`` as ``x.y``.

    ``package`` is the package that a relative import starts from.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from imports_of(ast.Module([other], []), package)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, node.module] if node.module else base)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        else:
            yield from imports_of(node, package)


def offences(path: str, source: str) -> list[str]:
    """What is wrong with the imports of the file at ``path`` (relative to the root)."""
    parts = Path(path).with_suffix("").parts
    top = parts[0]
    room = parts[1] if top == "iscsid" and len(parts) > 1 else top
    if room == "__init__":
        room = "errors"  # iscsid/__init__.py imports nothing of ours
    package = ".".join([top if top == "iscsid" else f"iscsid_{top}", *parts[1:-1]])
    found = []
    for line, name in imports_of(ast.parse(source), package):
        if (reason := _offence(path, top, room, name)) is not None:
            found.append(f"{path}:{line}: {reason}")
    return found


def _offence(path: str, top: str, room: str, name: str) -> str | None:
    head, *rest = name.split(".")
    if head in ("backends", "plugins"):
        return f"{name}: a second copy of iscsid_{head}, with other classes"
    if head in ("iscsid_backends", "iscsid_plugins"):
        return None if head == f"iscsid_{top}" else f"{name}: found by the plugin manager, imported by nobody"
    if head == "iscsid":
        return _own_offence(top, room, rest)
    if head in ONLY_IN and not path.startswith(ONLY_IN[head]):
        return f"{name}: only in {' '.join(ONLY_IN[head])}"
    if head in WORLD and room in BELOW_THE_DAEMON and path not in WORLDLY:
        return f"{name}: below the daemon bytes and time are arguments"
    return None


def _own_offence(top: str, room: str, rest: list[str]) -> str | None:
    if not rest or rest[0] in ("__version__", room):  # iscsid itself holds the version only
        return None
    wanted = rest[0]
    if wanted not in ALLOWED.get(room, ()):
        return f"{room} may not import {wanted}"
    if top != "iscsid" and len(rest) > 2:
        return f"{'.'.join(rest[:2])}: a plugin imports from iscsid.plugin itself only"
    return None


def source_files() -> list[Path]:
    return [path for top in ("iscsid", "backends", "plugins") for path in sorted((ROOT / top).rglob("*.py"))]


def test_every_import_stays_within_its_floor() -> None:
    found = [
        offence for path in source_files() for offence in offences(path.relative_to(ROOT).as_posix(), path.read_text())
    ]
    assert not found, "\n".join(found)


def test_every_room_has_a_row() -> None:
    rooms = {
        path.stem for path in (ROOT / "iscsid").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} <= set(ALLOWED)


def test_rows_only_point_down() -> None:
    order = list(ALLOWED)
    for room, allowed in ALLOWED.items():
        assert all(order.index(other) < order.index(room) for other in allowed), room


def test_session_and_scsi_never_meet() -> None:
    assert "scsi" not in ALLOWED["session"]
    assert not {"session", "wire", "text"} & set(ALLOWED["scsi"])


def test_tests_never_import_a_second_copy_of_the_plugins() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for line, name in imports_of(ast.parse(path.read_text()), "tests")
        if name.split(".")[0] in ("backends", "plugins")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("iscsid/scsi/lu.py", "from iscsid.session import login", "scsi may not import session"),
        ("iscsid/scsi/lu.py", "from ..session.login import TargetLogin", "scsi may not import session"),
        ("iscsid/scsi/lu.py", "from .. import wire", "scsi may not import wire"),
        ("iscsid/wire/pdu.py", "import iscsid.daemon.worker", "wire may not import daemon"),
        ("iscsid/wire/pdu.py", "def f():\n    from iscsid.daemon import worker", "wire may not import daemon"),
        (
            "iscsid/wire/pdu.py",
            "try:\n    import iscsid.text\nexcept ImportError:\n    pass",
            "wire may not import text",
        ),
        ("iscsid/session/login.py", "import time", "bytes and time are arguments"),
        ("iscsid/session/login.py", "from time import monotonic", "bytes and time are arguments"),
        ("iscsid/session/login.py", "import concurrent.futures", "bytes and time are arguments"),
        ("iscsid/block/guard.py", "import threading", "bytes and time are arguments"),
        ("iscsid/target/engine.py", "import socket", "bytes and time are arguments"),
        ("iscsid/target/engine.py", "import random", "bytes and time are arguments"),
        ("iscsid/target/engine.py", "import pluggy", "only in iscsid/plugin/"),
        ("iscsid/target/engine.py", "from iscsid import config", "target may not import config"),
        ("iscsid/target/engine.py", "from iscsid.initiator import url", "target may not import initiator"),
        ("iscsid/initiator/disk.py", "import socket", "bytes and time are arguments"),
        ("iscsid/daemon/worker.py", "import psutil", "only in iscsid/daemon/stats.py"),
        ("iscsid/daemon/worker.py", "from multiprocessing_logging import x", "only in iscsid/daemon/logs.py"),
        ("iscsid/daemon/worker.py", "import tomli", "only in iscsid/config.py"),
        ("iscsid/daemon/worker.py", "from rich.table import Table", "only in iscsid/cli.py"),
        ("iscsid/daemon/worker.py", "import iscsid_backends.file", "imported by nobody"),
        ("iscsid/daemon/worker.py", "from backends import file", "a second copy of iscsid_backends"),
        ("iscsid/daemon/worker.py", "import plugins.rate", "a second copy of iscsid_plugins"),
        ("iscsid/specs.py", "from iscsid.errors import Problem", "specs may not import errors"),
        ("iscsid/errors.py", "import iscsid.wire.const", "errors may not import wire"),
        ("iscsid/__init__.py", "from iscsid import cli", "errors may not import cli"),
        ("backends/file.py", "from iscsid.block.device import Device", "backends may not import block"),
        ("backends/file.py", "from iscsid.plugin.manager import Plugins", "imports from iscsid.plugin itself only"),
        ("backends/file.py", "import iscsid_plugins.rate", "imported by nobody"),
        ("plugins/rate.py", "from iscsid.errors import BlockError", "plugins may not import errors"),
    ],
)
def test_planted_offence_is_found(path: str, source: str, reason: str) -> None:
    assert [offence for offence in offences(path, source) if reason in offence]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("iscsid/scsi/lu.py", "from iscsid.block.guard import Guarded\nfrom .sense import Reason\nimport struct"),
        ("iscsid/scsi/lu.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from iscsid.target import x"),
        ("iscsid/session/login.py", "from iscsid import serial\nfrom iscsid.wire.pdu import LoginRequest"),
        ("iscsid/daemon/worker.py", "import socket, time, threading"),
        ("iscsid/initiator/client.py", "import socket, time"),
        ("iscsid/daemon/reports.py", "import iscsid"),
        ("iscsid/wire/digest.py", "import google_crc32c"),
        ("iscsid/cli.py", "import click\nfrom iscsid import __version__\nfrom iscsid.daemon import supervisor"),
        ("iscsid/__main__.py", "from iscsid.cli import main"),
        ("backends/file.py", "import threading\nfrom iscsid.plugin import Device, hookimpl\nfrom .ram import RamDisk"),
        ("plugins/rate.py", "import time\nfrom iscsid.plugin import Device"),
    ],
)
def test_import_that_the_house_allows_passes(path: str, source: str) -> None:
    assert offences(path, source) == []


def test_import_hidden_in_the_else_of_type_checking_is_found() -> None:
    source = "if TYPE_CHECKING:\n    import socket\nelse:\n    import time"
    assert offences("iscsid/wire/pdu.py", source) == [
        "iscsid/wire/pdu.py:4: time: below the daemon bytes and time are arguments"
    ]
