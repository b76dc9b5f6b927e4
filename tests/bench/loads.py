"""The loads, and how the figure is got out of the two programs that make them.

libiscsi's iscsi-perf reads; it cannot write, so writes come from ``qemu-img bench -w`` (QEMU's iscsi block driver, in
Debian's qemu-block-extra). Both talk to the server through libiscsi, one session a process.

Two sessions are two processes with initiator names of their own, and their rate is all their operations by the time
from the first start to the last end: istgt lets one busy session wait until the other one is done, and the sum of what
the two say of themselves would then be twice what was served.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from cpu import Meter
from peers import Peer

SLACK_SECONDS = 30.0  # what a run may take beyond its time before it counts as hung
PILOT_OPERATIONS = {4096: 4000, 1 << 20: 100}  # qemu-img wants a count, so a short run finds out how many fill the time


@dataclass(frozen=True, slots=True)
class Load:
    """One shape of load: block size in bytes, commands in flight per session, number of sessions."""

    name: str
    write: bool
    block: int
    depth: int
    random: bool = False
    sessions: int = 1

    @property
    def unit(self) -> str:
        return "MB/s" if self.block >= 1 << 20 else "k/s"

    def shown(self, rate: float) -> float:
        """A rate in I/O per second as the table shows it."""
        return rate * self.block / 1e6 if self.unit == "MB/s" else rate / 1e3


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: I/O per second over all sessions, and the server's CPU seconds per I/O."""

    rate: float
    cpu: float


LOADS = (
    Load("randread-4k-d1", False, 4096, 1, random=True),
    Load("seqread-4k-d1", False, 4096, 1),
    Load("randread-4k-d32", False, 4096, 32, random=True),
    Load("seqread-4k-d32", False, 4096, 32),
    Load("read-1m-d8", False, 1 << 20, 8),
    Load("write-4k-d32", True, 4096, 32),
    Load("write-1m-d8", True, 1 << 20, 8),
    Load("randread-4k-d32-2s", False, 4096, 32, random=True, sessions=2),
    Load("read-1m-d8-2s", False, 1 << 20, 8, sessions=2),
    Load("write-4k-d32-2s", True, 4096, 32, sessions=2),
    Load("write-1m-d8-2s", True, 1 << 20, 8, sessions=2),
)

BY_NAME = {load.name: load for load in LOADS}


class LoadError(Exception):
    """A load program failed, hung or said nothing that can be read; the text holds its output."""


def missing_programs() -> list[str]:
    return [program for program in ("iscsi-perf", "qemu-img") if shutil.which(program) is None]


def initiator_name(session: int) -> str:
    return f"iqn.2026-11.org.iscsid.bench:initiator{session}"


def perf_command(load: Load, url: str, seconds: int, session: int = 0, block_size: int = 512) -> list[str]:
    argv = ["iscsi-perf", "-i", initiator_name(session), "-m", str(load.depth), "-b", str(load.block // block_size)]
    return [*argv, "-t", str(seconds), *(["-r"] if load.random else []), url]


def qemu_command(load: Load, url: str, operations: int, session: int = 0) -> list[str]:
    portal, target, lun = url.removeprefix("iscsi://").split("/")
    image = f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={portal},file.target={target},file.lun={lun}"
    argv = ["qemu-img", "bench", "--image-opts", "-t", "none", "-d", str(load.depth), "-c", str(operations)]
    return [
        *argv,
        *("-s", str(load.block)),
        *(["-w"] if load.write else []),
        f"{image},file.initiator-name={initiator_name(session)}",
    ]


def perf_rate(output: str) -> float:
    """I/O per second: the last average that iscsi-perf printed. It says "finished." only when nothing failed."""
    found = re.findall(r"iops average (\d+)", output)
    if not found or "finished." not in output:
        raise LoadError(f"iscsi-perf gave no result:\n{output[-2000:]}")
    return float(found[-1])


def qemu_seconds(output: str) -> float:
    """Seconds that ``qemu-img bench`` took for its operations, login not included."""
    found = re.search(r"Run completed in ([\d.]+) seconds", output)
    if not found:
        raise LoadError(f"qemu-img bench gave no result:\n{output[-2000:]}")
    return max(float(found[1]), 1e-3)


def run_together(commands: Sequence[Sequence[str]], seconds: float) -> list[str]:
    """Run the commands at the same time and return what each printed; none may fail or outlast its time."""
    running = [
        subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for argv in commands
    ]
    outputs = []
    try:
        for process in running:
            output, _ = process.communicate(timeout=seconds + SLACK_SECONDS)
            if process.returncode != 0:
                raise LoadError(f"{process.args!r} ended with {process.returncode}:\n{output[-2000:]}")
            outputs.append(output)
    except subprocess.TimeoutExpired as exc:
        raise LoadError(f"{exc.cmd!r} hangs") from None
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return outputs


def measure(load: Load, peer: Peer, seconds: int) -> Sample:
    """Put one load on one server for about `seconds`."""
    return (measure_by_qemu if load.write else measure_by_perf)(load, peer, seconds)


def measure_by_perf(load: Load, peer: Peer, seconds: int) -> Sample:
    commands = [perf_command(load, peer.url, seconds, session) for session in range(load.sessions)]
    with Meter(peer.pid) as meter:
        outputs = run_together(commands, seconds * load.sessions)
    operations = sum(map(perf_rate, outputs)) * seconds
    elapsed = seconds if load.sessions == 1 else meter.elapsed
    return Sample(operations / elapsed, meter.seconds / operations)


def measure_by_qemu(load: Load, peer: Peer, seconds: int) -> Sample:
    def commands(operations: int) -> list[list[str]]:
        return [qemu_command(load, peer.url, operations, session) for session in range(load.sessions)]

    pilot = PILOT_OPERATIONS[load.block]
    outputs = run_together(commands(pilot), seconds)
    each = max(pilot, int(pilot * seconds / max(map(qemu_seconds, outputs))))
    with Meter(peer.pid) as meter:
        outputs = run_together(commands(each), 4 * seconds * load.sessions)
    operations = each * load.sessions
    elapsed = qemu_seconds(outputs[0]) if load.sessions == 1 else meter.elapsed
    return Sample(operations / elapsed, meter.seconds / operations)


def fill(peer: Peer, size: int) -> None:
    """Write the whole disk once, so that no server is measured on holes."""
    run_together([qemu_command(Load("fill", True, 1 << 20, 8), peer.url, size >> 20)], SLACK_SECONDS)
