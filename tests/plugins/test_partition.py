"""Partitions as sfdisk writes them, damaged tables, and tables that lead nowhere."""

from __future__ import annotations

import contextlib
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from iscsid_plugins.partition import Partition, partitions
from layer_kit import Recorder, read

from iscsid.errors import BlockError, PluginError
from iscsid.plugin.manager import Plugins

Wrap = Callable[..., Any]
SECTORS = (1 << 20) // 512
GPT = 'label: gpt\nfirst-lba: 34\nstart=64, size=100, name="boot"\nstart=200, size=300, name="dätä"\n'
MBR = "label: dos\nstart=64, size=100, type=83\nstart=200, size=1000, type=5\nstart=300, size=50\nstart=400, size=60\n"


@pytest.fixture
def sfdisk(tmp_path: Path, below: Recorder, judge: Callable[[str], str]) -> Callable[[str], Recorder]:
    def written(script: str) -> Recorder:
        path = tmp_path / "disk"
        path.write_bytes(bytes(below.size))
        subprocess.run([judge("sfdisk"), "-q", "-f", str(path)], input=script.encode(), check=True, capture_output=True)
        below.memory[:] = path.read_bytes()
        return below

    return written


@pytest.mark.judge("sfdisk")
def test_gpt_of_sfdisk_is_read(sfdisk: Callable[[str], Recorder]) -> None:
    expected = [Partition(1, 64 * 512, 51200, "boot"), Partition(2, 200 * 512, 153600, "dätä")]
    assert partitions(sfdisk(GPT)) == expected


@pytest.mark.judge("sfdisk")
def test_backup_of_a_damaged_gpt_is_read(sfdisk: Callable[[str], Recorder]) -> None:
    disk = sfdisk(GPT)
    disk.memory[520] ^= 1
    assert [part.label for part in partitions(disk)] == ["boot", "dätä"]
    disk.memory[-500] ^= 1
    with pytest.raises(BlockError, match="no partition table, or it is damaged"):
        partitions(disk)


@pytest.mark.judge("sfdisk")
def test_mbr_of_sfdisk_is_read_with_its_logical_partitions(sfdisk: Callable[[str], Recorder]) -> None:
    found = [(part.number, part.start // 512, part.size // 512) for part in partitions(sfdisk(MBR))]
    assert found == [(1, 64, 100), (5, 300, 50), (6, 400, 60)]


@pytest.mark.judge("sfdisk")
def test_partition_is_the_part_of_the_device(sfdisk: Callable[[str], Recorder], wrap: Wrap) -> None:
    disk = sfdisk(GPT)
    disk.memory[200 * 512 : 200 * 512 + 4] = b"data"
    device = wrap(disk, "partition", label="dätä")
    assert (device.size, read(device, 0, 512)[:4]) == (153600, b"data")
    assert wrap(disk, "partition", number=1).size == 51200
    with pytest.raises(PluginError, match="no partition with number 3; there are: 1 'boot', 2 'dätä'"):
        wrap(disk, "partition", number=3)


def _mbr_entry(kind: int, start: int, count: int) -> bytes:
    return struct.pack("<B3xB3xII", 0, kind, start, count)


def test_chain_that_bites_its_tail_ends(below: Recorder) -> None:
    below.memory[446:462] = _mbr_entry(5, 10, 1000)
    below.memory[510:512] = b"\x55\xaa"
    below.memory[10 * 512 + 446 : 10 * 512 + 478] = _mbr_entry(0x83, 1, 5) + _mbr_entry(5, 0, 100)
    below.memory[10 * 512 + 510 : 10 * 512 + 512] = b"\x55\xaa"
    assert partitions(below) == [Partition(5, 11 * 512, 5 * 512)]


def test_partition_that_leaves_the_device_is_refused(below: Recorder, wrap: Wrap) -> None:
    below.memory[446:462] = _mbr_entry(0x83, 10, SECTORS)
    below.memory[510:512] = b"\x55\xaa"
    with pytest.raises(PluginError, match="there is not"):
        wrap(below, "partition", number=1)


def test_partition_without_a_name_or_number_is_refused(all_plugins: Plugins) -> None:
    assert all_plugins.validate_layer("partition", {}) == ["needs number or label"]


@pytest.mark.parametrize("seed", range(50))
def test_random_bytes_never_make_more_than_an_error(below: Recorder, seed: int) -> None:
    import random

    rng = random.Random(seed)
    below.memory[:] = rng.randbytes(below.size)
    below.memory[510:512] = b"\x55\xaa"
    with contextlib.suppress(BlockError):
        assert all(part.size for part in partitions(below))
