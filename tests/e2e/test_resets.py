"""Resets while writes are under way in two workers: what they stop is stopped, everywhere, before they are answered."""

from __future__ import annotations

import itertools
import os
import select
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_initiator import NO_TAG, SCSI_RESPONSE, Initiator, pdu
from e2e_server import Server, wait_until

StartServer = Callable[..., Server]

LOGICAL_UNIT_RESET, TARGET_WARM_RESET = 5, 6
TMF, TMF_RESPONSE = 0x02, 0x22
ROUNDS = 12
WRITES = 32  # of each session
BYTES = 4096
SETTLED = 0.15  # seconds, several times what a write takes: one that was not stopped would be on the medium by then

SLOW = '''
"""A file whose writes take their time."""

import os
import time

from iscsid.plugin import BackendInfo, Device, Mode, Option, Threading, hookimpl


class SlowFile(Device):
    mode = Mode.BLOCKING
    threading = Threading.PARALLEL

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR)
        self.size = os.fstat(self.fd).st_size

    def read_into(self, buffer, offset):
        os.preadv(self.fd, [buffer], offset)

    def write(self, data, offset):
        time.sleep(0.002 + offset // 4096 % 5 * 0.004)
        os.pwritev(self.fd, [data], offset)

    def close(self):
        os.close(self.fd)


@hookimpl
def iscsid_backend_info():
    return BackendInfo("slow", "a file with slow writes", (Option("path", "path", required=True),))


@hookimpl
def iscsid_open(options, role):
    return SlowFile(options["path"])
'''


class Host:
    """One session, and which of its writes were answered."""

    def __init__(self, initiator: Initiator, first_lba: int) -> None:
        self.initiator = initiator
        self.first_lba = first_lba
        self.writes: dict[int, tuple[int, bytes]] = {}  # tag -> offset, data
        self.answered: set[int] = set()

    def start(self, seed: int) -> None:
        """Send WRITES writes, each to a place of its own, and wait for no answer."""
        self.writes, self.answered = {}, set()
        out = b""
        for number in range(WRITES):
            lba = self.first_lba + number * BYTES // 512
            data = struct.pack(">II", seed, number) * (BYTES // 8)
            sent = self.initiator.command_pdu(struct.pack(">BBQIBB", 0x8A, 0, lba, BYTES // 512, 0, 0), data)
            self.writes[int.from_bytes(sent[16:20], "big")] = (lba * 512, data)
            out += sent
        self.initiator.send(out)

    def reset(self, function: int) -> int:
        """Send the request; its tag."""
        tag = next(self.initiator.tags)
        fields = struct.pack(">III", NO_TAG, self.initiator.cmd_sn, self.initiator.exp_stat_sn)
        self.initiator.send(pdu(TMF | 0x40, 0x80 | function, fields, tag=tag))
        return tag

    def hear(self) -> tuple[int, int]:
        """The opcode and the tag of the next answer."""
        head, data = self.initiator.receive()
        tag = int.from_bytes(head[16:20], "big")
        self.initiator.exp_stat_sn = int.from_bytes(head[24:28], "big") + 1
        if tag in self.writes:
            assert (head[0] & 0x3F, head[3]) == (SCSI_RESPONSE, 0), data.hex()
            self.answered.add(tag)
        elif head[0] & 0x3F == TMF_RESPONSE:
            assert head[2] == 0, "function complete"
        return head[0] & 0x3F, tag

    def drain(self) -> None:
        """Take what has arrived."""
        while select.select([self.initiator.sock], [], [], 0)[0]:
            self.hear()

    def attend(self) -> None:
        """Hear of the reset, and of nothing else."""
        answered = set(self.answered)
        status, sense = self.initiator.command(bytes(6))
        assert (status, sense[14:16].hex()) == (2, "2903")
        assert self.initiator.command(bytes(6))[0] == 0
        assert self.answered == answered


def _image(path: Path, hosts: list[Host]) -> list[tuple[Host, int, bool]]:
    """Which writes are on the medium."""
    content = path.read_bytes()
    return [
        (host, tag, content[offset : offset + BYTES] == data)
        for host in hosts
        for tag, (offset, data) in host.writes.items()
    ]


@pytest.mark.parametrize("function", [LOGICAL_UNIT_RESET, TARGET_WARM_RESET])
def test_reset_ends_the_writes_of_both_workers_before_its_answer(
    start: StartServer, tmp_path: Path, function: int
) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "slow.py").write_text(SLOW)
    path = tmp_path / "slow.img"
    path.write_bytes(bytes(1 << 20))
    server = start([{"backend": "slow", "path": path}], workers=2, plugin_dirs=[str(plugins)])
    names = [f"iqn.2026-11.org.iscsid.e2e:reset-{number}" for number in range(2)]
    hosts = [Host(Initiator(server.address, name), number * 1024) for number, name in enumerate(names)]
    assert len({wait_until(lambda name=name: [server.worker_of(name)], "a worker")[0] for name in names}) == 2
    seeds = itertools.count(1)
    stopped = 0
    for turn in range(ROUNDS):
        sender, other = hosts[turn % 2], hosts[1 - turn % 2]
        for host in hosts:
            host.start(next(seeds))
        if turn % 3:
            other.hear()  # some of it has been done by now
        tag = sender.reset(function)
        while sender.hear() != (TMF_RESPONSE, tag):
            pass
        other.drain()
        before = _image(path, hosts)
        assert all(there for host, tag, there in before if tag in host.answered), "GOOD, and not on the medium"
        stopped += sum(tag not in host.answered for host, tag, _ in before)
        until = time.monotonic() + SETTLED
        while time.monotonic() < until:
            assert _image(path, hosts) == before, "a write came after the answer to the reset"
            for host in hosts:
                assert not select.select([host.initiator.sock], [], [], 0.01)[0], "an answer came after the reset's"
        for host in hosts:
            host.attend()
    assert stopped > ROUNDS * WRITES // 8, "many of the writes were still under way"  # most, where nothing else runs
    for host in hosts:
        host.initiator.logout()
        host.initiator.close()


def test_reset_leaves_the_unit_to_be_written(start: StartServer, tmp_path: Path) -> None:
    with Initiator(start([{"backend": "ram", "size": "1 MiB"}], workers=2).address) as initiator:
        host = Host(initiator, 0)
        tag = host.reset(LOGICAL_UNIT_RESET)
        assert host.hear() == (TMF_RESPONSE, tag)
        host.attend()
        data = os.urandom(BYTES)
        initiator.write(0, data)
        assert initiator.read(0, BYTES // 512) == data
