"""A medium that one host ejects, seen by another host whose session lives in another worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e_initiator import Initiator
from e2e_server import Server

StartServer = Callable[..., Server]

NAMES = [f"iqn.2026-11.org.iscsid.e2e:{who}" for who in ("one", "other")]
EJECT, LOAD = bytes.fromhex("1b0000000200"), bytes.fromhex("1b0000000300")
PREVENT, READY = bytes.fromhex("1e0000000100"), bytes(6)


def sense(host: Initiator, cdb: bytes) -> tuple[int, int, int] | None:
    """Key and code that the command ends in; None where it is GOOD."""
    status, data = host.command(cdb)
    return None if status == 0 else (data[4] & 0x0F, data[14], data[15])


def settle(host: Initiator) -> None:
    """Take the unit attentions that a new session begins with."""
    while (found := sense(host, READY)) and found[0] == 0x06:
        pass


@pytest.mark.parametrize("backend", ["ram", "file"])
def test_ejected_medium_is_gone_in_every_worker_and_comes_back(
    start: StartServer, tmp_path: Path, backend: str
) -> None:
    lun: dict[str, Any] = {"backend": backend, "size": "16 MiB", "removable": True}
    if backend == "file":
        lun["path"] = tmp_path / "disk.img"
    server = start([lun], workers=2)
    with Initiator(server.address, NAMES[0]) as one, Initiator(server.address, NAMES[1]) as other:
        assert server.worker_of(NAMES[0]) != server.worker_of(NAMES[1])
        settle(one)
        settle(other)
        other.write(7, b"x" * 512)
        assert sense(other, PREVENT) is None
        assert sense(one, EJECT) == (0x05, 0x53, 0x02)
        assert sense(other, bytes.fromhex("1e0000000000")) is None
        assert sense(one, EJECT) is None
        for host in (one, other):
            assert sense(host, READY) == (0x02, 0x3A, 0x00)
        assert sense(other, bytes.fromhex("2a 00 00000007 00 0001 00")) == (0x02, 0x3A, 0x00)
        assert sense(one, LOAD) is None
        assert sense(one, READY) is None
        assert sense(other, READY) == (0x06, 0x28, 0x00)
        assert other.read(7, 1) == b"x" * 512
