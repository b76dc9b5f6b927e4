"""The null device: the shortest legal one."""

from __future__ import annotations

from pathlib import Path

from iscsid_backends import null

from iscsid.block.guard import Guarded
from iscsid.plugin.manager import Plugins


def test_size_is_a_tebibyte_unless_said_otherwise(plugins: Plugins) -> None:
    assert plugins.open("null", {}).size == 1 << 40
    assert plugins.open("null", {"size": "1 GiB"}).size == 1 << 30


def test_reads_are_zeros_and_writes_are_forgotten(plugins: Plugins) -> None:
    guard = Guarded(plugins.open("null", {}))
    guard.write_now(memoryview(b"x" * 4096), 1 << 39)
    buffer = bytearray(b"x" * 4096)
    guard.read_now(memoryview(buffer), 1 << 39)
    assert buffer == bytes(4096)


def test_nothing_is_volatile_and_nothing_waits(plugins: Plugins) -> None:
    guard = Guarded(plugins.open("null", {}))
    assert guard.inline
    assert not guard.volatile
    assert not guard.serialised


def test_size_below_a_block_is_refused(plugins: Plugins) -> None:
    assert plugins.validate("null", {"size": 511}) == ["size: 511 is below 512"]


def test_model_to_copy_stays_short() -> None:
    assert len(Path(null.__file__).read_text().splitlines()) < 40
