"""The servers that are compared: each is started on 127.0.0.1 with a free port and ended by its own process id.

All file-backed servers get the same image on tmpfs, so that no disk is measured. What a server needs to know (ports,
control socket, configuration) lies in a folder of its own; nothing of the host's own tgt or istgt is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
START_SECONDS = 20.0
STOP_SECONDS = 15.0
TARGET_NAME = "iqn.2026-11.org.iscsid.bench:disk0"
DIGESTS = {"HeaderDigest": "None,CRC32C", "DataDigest": "None,CRC32C"}
ACCOUNT, OWN = ("joe", "secretsecret1"), ("disk", "othersecret12")  # what initiators prove, and the target to them


class Unavailable(Exception):
    """This server cannot be run here; the text says why."""


class StartError(Exception):
    """The server ended or stayed silent instead of listening; the text holds the end of its output."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A started server: the URL of its disk and the root of its process tree."""

    name: str
    url: str
    pid: int


def which(program: str) -> str | None:
    """Path of a program; also where Debian puts daemons."""
    return shutil.which(program, path=SEARCH_PATH)


def need(program: str) -> str:
    path = which(program)
    if path is None:
        raise Unavailable(f"{program} is not installed")
    return path


@contextmanager
def spawned(argv: Sequence[str], folder: Path, port: int, env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server, hand it over once its port answers, and end it: SIGTERM, then SIGKILL when it stays."""
    output = folder / "output.log"
    with output.open("wb") as sink:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, cwd=ROOT, env={**os.environ, **env}
        )
    try:
        wait_for_port(process, port, output)
        yield process
    finally:
        end(process)


def wait_for_port(process: subprocess.Popen[bytes], port: int, output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    tail = output.read_text(errors="replace")[-2000:]
    raise StartError(f"{process.args!r} does not listen on port {port}:\n{tail}")


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# -- iscsid ---------------------------------------------------------------------------------------------------------

ISCSID_TOML = """\
[server]
portals = ["127.0.0.1:{port}"]
workers = "auto"
runtime_dir = "{folder}/run"
state_dir = "{folder}/state"

[[target]]
name = "{target}"

[[target.lun]]
lun = 0
{lun}
"""


@contextmanager
def _iscsid(name: str, folder: Path, lun: str) -> Iterator[Peer]:
    port = free_port()
    config = folder / "bench.toml"
    config.write_text(ISCSID_TOML.format(port=port, folder=folder, target=TARGET_NAME, lun=lun))
    argv = [sys.executable, "-m", "iscsid", "serve", "-c", str(config)]
    with spawned(argv, folder, port, {}) as process:
        yield Peer(name, f"iscsi://127.0.0.1:{port}/{TARGET_NAME}/0", process.pid)


@contextmanager
def iscsid_file(folder: Path, image: Path) -> Iterator[Peer]:
    """Our server over the same tmpfs file as everybody else."""
    with _iscsid("iscsid file", folder, f'backend = "file"\npath = "{image}"') as peer:
        yield peer


@contextmanager
def iscsid_ram(folder: Path, image: Path) -> Iterator[Peer]:
    """Our server over its RAM back end, of the size of the image."""
    with _iscsid("iscsid ram", folder, f'backend = "ram"\nsize = {image.stat().st_size}') as peer:
        yield peer


@contextmanager
def iscsid_block(folder: Path, image: Path) -> Iterator[Peer]:
    """Our server over a loop device, whose file is on tmpfs too."""
    if os.geteuid() != 0:
        raise Unavailable("a loop device needs root")
    losetup, medium = need("losetup"), folder / "medium.img"
    with medium.open("wb") as file:
        file.truncate(image.stat().st_size)
    found = subprocess.run([losetup, "--find", "--show", str(medium)], capture_output=True, text=True, check=False)
    if found.returncode:
        raise Unavailable(f"no loop device: {found.stderr.strip()}")
    device = found.stdout.strip()
    try:
        with _iscsid("iscsid block", folder, f'backend = "block"\npath = "{device}"') as peer:
            yield peer
    finally:
        subprocess.run([losetup, "--detach", device], check=True, timeout=STOP_SECONDS)


@contextmanager
def iscsid_qcow2(folder: Path, image: Path) -> Iterator[Peer]:
    """Our server over a qcow2 image as QEMU makes them. All of it is allocated once the disk is filled."""
    medium = folder / "medium.qcow2"
    argv = [need("qemu-img"), "create", "-q", "-f", "qcow2", str(medium), str(image.stat().st_size)]
    subprocess.run(argv, check=True, timeout=START_SECONDS)
    with _iscsid("iscsid qcow2", folder, f'backend = "qcow2"\npath = "{medium}"') as peer:
        yield peer


# -- tgt ------------------------------------------------------------------------------------------------------------


@contextmanager
def tgt(
    folder: Path, image: Path, *, chap: bool = False, parameters: Mapping[str, str] | None = None
) -> Iterator[Peer]:
    """Debian's tgtd. It takes no notice of SIGTERM, so it is asked to end through its own control socket.

    ``chap``: ACCOUNT has to be proved, and OWN is what it proves itself. ``parameters`` are those of the target that
    tgtadm changes, such as DIGESTS, which tgt refuses by default.
    """
    tgtd, tgtadm = need("tgtd"), need("tgtadm")
    if os.geteuid() != 0:
        raise Unavailable("tgtd runs as root only")
    port = free_port()
    control = str(port % 10000)  # a number of this instance, not a TCP port
    env = {"TGT_IPC_SOCKET": str(folder / "control")}

    def admin(*words: str, check: bool = True) -> None:
        argv = [tgtadm, "-C", control, "--lld", "iscsi", *words]
        subprocess.run(argv, env={**os.environ, **env}, check=check, capture_output=True, timeout=START_SECONDS)

    with spawned([tgtd, "-f", "-C", control, "--iscsi", f"portal=127.0.0.1:{port}"], folder, port, env) as process:
        admin("--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET_NAME)
        admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", str(image))
        for name, value in (parameters or {}).items():
            admin("--op", "update", "--mode", "target", "--tid", "1", "--name", name, "--value", value)
        for (user, secret), words in ((ACCOUNT, ()), (OWN, ("--outgoing",))) if chap else ():
            admin("--op", "new", "--mode", "account", "--user", user, "--password", secret)
            admin("--op", "bind", "--mode", "account", "--tid", "1", "--user", user, *words)
        admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
        try:
            yield Peer("tgt", f"iscsi://127.0.0.1:{port}/{TARGET_NAME}/1", process.pid)
        finally:
            admin("--op", "delete", "--mode", "target", "--force", "--tid", "1", check=False)
            admin("--op", "delete", "--mode", "system", check=False)


# -- istgt ----------------------------------------------------------------------------------------------------------

# InitialR2T=No is refused by istgt, and without [UnitControl] it does not start.
ISTGT_CONF = """\
[Global]
  NodeBase "iqn.2026-11.org.iscsid.bench"
  PidFile {folder}/pid
  AuthFile {folder}/auth.conf
  LogFacility "local7"
  DiscoveryAuthMethod None
  MaxSessions 16
  MaxConnections 4
  MaxR2T 32
  MaxOutstandingR2T 16
  FirstBurstLength 262144
  MaxBurstLength 1048576
  MaxRecvDataSegmentLength 262144
  InitialR2T Yes
  ImmediateData Yes
[UnitControl]
  AuthMethod None
  Portal UC1 127.0.0.1:{control}
  Netmask 127.0.0.1
[PortalGroup1]
  Portal DA1 127.0.0.1:{port}
[InitiatorGroup1]
  InitiatorName "ALL"
  Netmask 127.0.0.1
[LogicalUnit1]
  TargetName disk0
  Mapping PortalGroup1 InitiatorGroup1
  AuthMethod {method}
  AuthGroup AuthGroup1
  UseDigest Auto
  UnitType Disk
  QueueDepth 64
  LUN0 Storage {image} Auto
"""


@contextmanager
def istgt(folder: Path, image: Path, *, chap: str = "None") -> Iterator[Peer]:
    """Debian's istgt. ``chap``: "CHAP" or "CHAP Mutual": as for tgt; the latter is then a duty of the initiator."""
    program = need("istgt")
    port, control = free_port(), free_port()
    config = folder / "istgt.conf"
    config.write_text(ISTGT_CONF.format(folder=folder, image=image, port=port, control=control, method=chap))
    (folder / "auth.conf").write_text("[AuthGroup1]\n  Auth {} {} {} {}\n".format(*ACCOUNT, *OWN))
    (folder / "auth.conf").chmod(0o600)
    with spawned([program, "-D", "-c", str(config)], folder, port, {}) as process:
        yield Peer("istgt", f"iscsi://127.0.0.1:{port}/{TARGET_NAME}/0", process.pid)


# -- the limit ------------------------------------------------------------------------------------------------------


@contextmanager
def limit(folder: Path, image: Path) -> Iterator[Peer]:
    """The least that must be done for an answer, in one C thread: receive, parse, pread, send, all in batches."""
    compiler = need("gcc")
    program = folder / "limit"
    source = Path(__file__).with_name("limit.c")
    subprocess.run([compiler, "-O2", "-Wall", "-pthread", "-o", str(program), str(source)], check=True)
    port = free_port()
    with spawned([str(program), str(port), str(image)], folder, port, {}) as process:
        yield Peer("limit", f"iscsi://127.0.0.1:{port}/{TARGET_NAME}/0", process.pid)


SERVERS = {
    "iscsid-file": iscsid_file,
    "iscsid-ram": iscsid_ram,
    "iscsid-block": iscsid_block,
    "iscsid-qcow2": iscsid_qcow2,
    "tgt": tgt,
    "istgt": istgt,
    "limit": limit,
}
