"""A write cache that an initiator switches off, over the wire: what was cached is on the medium, or it says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from e2e_initiator import Initiator
from e2e_server import Server, wait_until

StartServer = Callable[..., Server]

NAMES = [f"iqn.2026-11.org.iscsid.e2e:{who}" for who in ("one", "other")]
READY, SENSE_CACHING = bytes(6), bytes.fromhex("1a080800ff00")  # without a block descriptor


def sense(host: Initiator, cdb: bytes, data: bytes = b"") -> tuple[int, int, int] | None:
    """Key and code that the command ends in; None where it is GOOD."""
    status, answer = host.command(cdb, data)
    return None if status == 0 else (answer[4] & 0x0F, answer[14], answer[15])


def settle(host: Initiator) -> None:
    """Take the unit attentions that there are."""
    while (found := sense(host, READY)) and found[0] == 0x06:
        pass


def select(host: Initiator, wce: bool) -> tuple[int, int, int] | None:
    page = bytes(4) + bytes((0x08, 0x12, 0x04 if wce else 0)) + bytes(17)
    return sense(host, bytes((0x15, 0x10, 0, 0, len(page), 0)), page)


def cached(host: Initiator) -> bool:
    status, data = host.command(SENSE_CACHING, expect=255)
    assert status == 0
    return bool(data[4 + 2] & 0x04)


def test_mode_select_whose_flush_fails_fails_and_leaves_the_cache_on(start: StartServer, tmp_path: Path) -> None:
    broken = {"layer": "fault", "calls": "flush", "count": 1}
    layers = [{"layer": "cache", "mode": "back"}, broken]
    server = start([{"backend": "file", "path": tmp_path / "disk.img", "size": "16 MiB", "layers": layers}], workers=2)
    with Initiator(server.address, NAMES[0]) as one, Initiator(server.address, NAMES[1]) as other:
        settle(one)
        settle(other)
        one.write(7, b"x" * 512)
        assert cached(one) and cached(other)
        assert select(one, False) == (0x03, 0x0C, 0x00)  # WRITE ERROR
        assert cached(one)
        wait_until(lambda: sense(other, READY) == (0x06, 0x2A, 0x01), "the other is told")
        settle(other)
        assert cached(other)
        assert select(one, False) is None
        settle(other)
        assert not cached(one) and not cached(other)
        assert (tmp_path / "disk.img").read_bytes()[7 * 512 : 8 * 512] == b"x" * 512
