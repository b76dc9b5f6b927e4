"""COMPARE AND WRITE from several hosts at once, each in a worker of its own: not one step is lost."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e_initiator import Initiator
from e2e_server import Server

StartServer = Callable[..., Server]

HOSTS = 4
ROUNDS = {"ram": 10_000, "file": 2_000}  # of each host; ISCSID_STRESS_ROUNDS is for a longer run
PATIENCE = 110.0
BLOCK, COUNTER = 512, 77  # the counter's block
COMPARE_AND_WRITE = struct.pack(">BBQ3xBxx", 0x89, 0, COUNTER, 1)
GOOD, CHECK_CONDITION, MISCOMPARE = 0x00, 0x02, 0x0E


class Host(threading.Thread):
    """Adds one to the counter so many times; ``lost`` counts how often another host was faster."""

    def __init__(self, initiator: Initiator, rounds: int) -> None:
        super().__init__(daemon=True)
        self.initiator = initiator
        self.rounds = rounds
        self.lost = 0
        self.trouble: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in range(self.rounds):
                while not self.step():
                    self.lost += 1
        except BaseException as exc:
            self.trouble = exc

    def step(self) -> bool:
        old = self.initiator.read(COUNTER, 1)
        new = (int.from_bytes(old[:8], "big") + 1).to_bytes(8, "big") * (BLOCK // 8)
        status, data = self.initiator.command(COMPARE_AND_WRITE, data_out=old + new)
        if status == CHECK_CONDITION:
            sense = data[2:]
            assert sense[2] & 0x0F == MISCOMPARE and sense[12:14] == b"\x1d\x00", sense.hex()
        else:
            assert status == GOOD, f"status {status:#x}"
        return status == GOOD


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ROUNDS)
def test_counter_of_four_hosts_in_four_workers_is_exact(start: StartServer, tmp_path: Path, backend: str) -> None:
    lun: dict[str, Any] = {"backend": backend, "size": "1 MiB"}
    if backend == "file":
        lun["path"] = tmp_path / "disk.img"
    server = start([lun], workers=HOSTS)
    names = [f"iqn.2026-11.org.iscsid.e2e:host{number}" for number in range(HOSTS)]
    rounds = int(os.environ.get("ISCSID_STRESS_ROUNDS", ROUNDS[backend]))
    hosts = [Host(Initiator(server.address, name), rounds) for name in names]
    assert len({server.worker_of(name) for name in names}) == HOSTS
    for host in hosts:
        host.start()
    for host in hosts:
        host.join(PATIENCE + rounds / 20)
    assert [host.trouble for host in hosts] == [None] * HOSTS
    assert not any(host.is_alive() for host in hosts), "not done in time"
    block = hosts[0].initiator.read(COUNTER, 1)
    # Every eighth byte: a write that was torn would show.
    assert block == (HOSTS * rounds).to_bytes(8, "big") * (BLOCK // 8)
    assert sum(host.lost for host in hosts) > 0, "they never met"
    for host in hosts:
        host.initiator.close()
