"""Resets while writes are under way in two workers: what they stop is stopped, everywhere, before they are answered."""

from __future__ import annotations

import itertools
import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from e2e_initiator import NO_TAG, SCSI_RESPONSE, Closed, Initiator, pdu
from e2e_server import Server

StartServer = Callable[..., Server]

LOGICAL_UNIT_RESET, TARGET_WARM_RESET, TARGET_COLD_RESET = 5, 6, 7
REGISTER, RESERVE, RELEASE, PREEMPT_AND_ABORT = 0x00, 0x01, 0x02, 0x05
GOOD, CONFLICT = 0x00, 0x18
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


@pytest.fixture
def server(start: StartServer, tmp_path: Path) -> Server:
    """One disk that is slow to write, ``slow.img``, and two workers."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "slow.py").write_text(SLOW)
    path = tmp_path / "slow.img"
    path.write_bytes(bytes(1 << 20))
    return start([{"backend": "slow", "path": path}], workers=2, plugin_dirs=[str(plugins)])


@pytest.fixture
def hosts(server: Server) -> Iterator[list[Host]]:
    """Two hosts, each in a worker of its own and with a half of the disk."""
    names = [f"iqn.2026-11.org.iscsid.e2e:reset-{number}" for number in range(2)]
    with ExitStack() as stack:
        opened = [stack.enter_context(Initiator(server.address, name)) for name in names]
        assert {server.worker_of(name) for name in names} == {0, 1}
        yield [Host(initiator, number * 1024) for number, initiator in enumerate(opened)]


@pytest.mark.parametrize("function", [LOGICAL_UNIT_RESET, TARGET_WARM_RESET])
def test_reset_ends_the_writes_of_both_workers_before_its_answer(
    hosts: list[Host], tmp_path: Path, function: int
) -> None:
    path = tmp_path / "slow.img"
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


def test_cold_reset_ends_the_sessions_of_both_workers_and_lets_them_log_in_again(
    server: Server, hosts: list[Host], tmp_path: Path
) -> None:
    path = tmp_path / "slow.img"
    for seed, host in enumerate(hosts, 1):
        host.start(seed)
    tag = hosts[0].reset(TARGET_COLD_RESET)
    while hosts[0].hear() != (TMF_RESPONSE, tag):
        pass
    before = _image(path, hosts)
    for host in hosts:
        with pytest.raises(Closed):
            while True:
                host.hear()
    assert all(there for host, tag, there in before if tag in host.answered), "GOOD, and not on the medium"
    assert _image(path, hosts) == before, "a write came after the answer to the reset"
    for host in hosts:
        with Initiator(server.address, host.initiator.name) as again:
            assert again.read(0, 1)


def test_preempt_and_abort_ends_the_writes_of_the_other_worker_before_its_answer(
    hosts: list[Host], tmp_path: Path
) -> None:
    """SPC-4 5.13.11.2.6; what the preempted host sends from then on is a conflict."""
    path, (holder, preempted) = tmp_path / "slow.img", hosts
    assert [_pr_out(host, REGISTER, 0, key) for host, key in ((holder, 0xA), (preempted, 0xB))] == [GOOD, GOOD]
    stopped = 0
    for seed in range(1, 7):
        preempted.start(seed)
        assert _pr_out(holder, PREEMPT_AND_ABORT, 0xA, 0xB) == GOOD
        preempted.drain()
        before = _image(path, [preempted])
        assert all(there for _, tag, there in before if tag in preempted.answered), "GOOD, and not on the medium"
        stopped += sum(tag not in preempted.answered for _, tag, _ in before)
        assert preempted.initiator.sock not in select.select([preempted.initiator.sock], [], [], SETTLED)[0]
        assert _image(path, [preempted]) == before, "a write came after the answer"
        assert _pr_out(holder, RESERVE, 0xA) == GOOD
        sense = preempted.initiator.command(bytes(6))[1]
        assert sense[14:16].hex() == "2a05"  # REGISTRATIONS PREEMPTED
        assert preempted.initiator.command(bytes.fromhex("2a 00 00000000 00 0001 00"), bytes(512))[0] == CONFLICT
        assert _pr_out(holder, RELEASE, 0xA) == GOOD
        assert _pr_out(preempted, REGISTER, 0, 0xB) == GOOD
    assert stopped > WRITES, "many of the writes were still under way"


def _pr_out(host: Host, action: int, key: int, new: int = 0) -> int:
    """PERSISTENT RESERVE OUT, of the type write exclusive."""
    data = struct.pack(">QQ8x", key, new)
    return host.initiator.command(struct.pack(">BBBxxIx", 0x5F, action, 0x01, len(data)), data)[0]


def test_reset_leaves_the_unit_to_be_written(start: StartServer, tmp_path: Path) -> None:
    with Initiator(start([{"backend": "ram", "size": "1 MiB"}], workers=2).address) as initiator:
        host = Host(initiator, 0)
        tag = host.reset(LOGICAL_UNIT_RESET)
        assert host.hear() == (TMF_RESPONSE, tag)
        host.attend()
        data = os.urandom(BYTES)
        initiator.write(0, data)
        assert initiator.read(0, BYTES // 512) == data
