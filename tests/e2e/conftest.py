"""Real processes: each test starts the servers it needs, and they may not leave a trace."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from e2e_server import Server, run_judge

StartServer = Callable[..., Server]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.process)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    """Start a server: ``start(luns, workers=2, portals=[...], **server_options)``; ended and checked after the test."""
    servers: list[Server] = []

    def start_one(luns: list[dict[str, Any]], **options: Any) -> Server:
        server = Server(tmp_path / f"server{len(servers)}", luns, **options)
        servers.append(server)
        return server.start()

    yield start_one
    problems = []
    for server in servers:
        try:
            server.finish()
        except AssertionError as exc:
            problems.append(str(exc))
    assert not problems, "\n".join(problems)


@pytest.fixture
def ram() -> list[dict[str, Any]]:
    """The LUNs of the usual server: one RAM disk."""
    return [{"backend": "ram", "size": "64 MiB"}]


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Callable[[int, int], tuple[str, Path]]]:
    """``loop_device(size, sector_size)``: a block device of our own over a file, both returned."""
    made: list[str] = []

    def make(size: int, sector_size: int) -> tuple[str, Path]:
        if os.geteuid() != 0:
            pytest.skip("a loop device needs root")
        backing = tmp_path / f"loop{len(made)}.img"
        with backing.open("wb") as file:
            file.truncate(size)
        made.append(run_judge("losetup", "--find", "--show", "--sector-size", str(sector_size), backing).strip())
        return made[-1], backing

    yield make
    for device in made:
        run_judge("losetup", "--detach", device)
