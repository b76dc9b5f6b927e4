"""A back end that hangs is answered for in time, its neighbour does not notice, and it recovers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsid.testing import TestTarget

PLUGIN = """
import os, time
from iscsid.plugin import BackendInfo, Device, Option, Threading, hookimpl

class Gated(Device):
    threading = Threading.PARALLEL
    size = 1 << 20
    def __init__(self, path):
        self.path, self.memory = path, bytearray(self.size)
    def wait(self):
        while os.path.exists(self.path):
            time.sleep(0.01)
    def read_into(self, buffer, offset):
        self.wait()
        buffer[:] = self.memory[offset:offset + len(buffer)]
    def write(self, data, offset):
        self.wait()
        self.memory[offset:offset + len(data)] = data

@hookimpl
def iscsid_backend_info():
    return BackendInfo("gated", "hangs while a file is there", (Option("gate", "path", required=True),))

@hookimpl
def iscsid_open(options, role):
    return Gated(options["gate"])
"""
BLOCK = b"x" * 512


@pytest.fixture
def target(tmp_path: Path) -> Iterator[TestTarget]:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "gated.py").write_text(PLUGIN)
    luns = [{"backend": "gated", "gate": str(tmp_path / f"gate{lun}"), "io_timeout": 1} for lun in range(2)]
    with TestTarget(tmp_path / "server", luns=luns, server={"plugin_dirs": [str(folder)]}) as target:
        yield target


def do(target: TestTarget, ended: list[int], *, write: bool) -> None:
    """One command to the device that hangs. Our initiator repeats what was aborted or met BUSY."""
    with target.disk(0) as disk:
        disk.write(0, BLOCK) if write else disk.read(0, 512)
    ended.append(1)


@pytest.mark.process
@pytest.mark.parametrize("write", [False, True])
def test_neighbour_of_a_device_that_hangs_does_not_notice(target: TestTarget, tmp_path: Path, write: bool) -> None:
    gate = tmp_path / "gate0"
    ended: list[int] = []
    slowest = 0.0
    with target.disk(1) as neighbour:
        neighbour.write(0, BLOCK)
        gate.touch()
        try:
            threads = [
                threading.Thread(target=do, args=(target, ended), kwargs={"write": write}, daemon=True)
                for _ in range(24)
            ]
            for thread in threads:
                thread.start()
            started = time.monotonic()
            while "LUN 0: a call hangs in the device" not in target.log or time.monotonic() < started + 3:
                begun = time.monotonic()
                assert neighbour.read(0, 512) == BLOCK
                slowest = max(slowest, time.monotonic() - begun)
                assert begun < started + 30
        finally:
            gate.unlink()
        for thread in threads:
            thread.join(40)
        assert len(ended) == 24  # they went on when the device came back
        assert slowest < 1.0
    assert "answers again" in target.log
