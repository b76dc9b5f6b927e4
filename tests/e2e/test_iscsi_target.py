"""iscsi-target(8) as a daemon, with the sample files of the original, judged by libiscsi and QEMU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from e2e_server import run_judge, run_qemu_io, wait_until

from iscsid.daemon.control import ask

NAME = "iqn.1994-04.org.netbsd.iscsi-target:target0"
# /etc/iscsi/targets and /etc/iscsi/auths as NetBSD has them; the former's disk is in /tmp, which is put elsewhere.
TARGETS = """\
#
# Structure of this file:
#

# extents
extent0\t\t/tmp/iscsi-target0\t0\t100MB

# target		flags	storage		netmask
target0\t\trw\textent0\t\t0.0.0.0/0
"""
AUTHS = """\
# user:auth-type:secret
nulltest:none:
#agc:chap:Rhode Island Red
#iqn.1991-05.com.microsoft\\:ws2:CHAP:1234567890123456
"""


class Daemon:
    """One iscsi-target that has gone into the background, or has not."""

    def __init__(self, folder: Path, targets: str, auths: str = AUTHS) -> None:
        self.folder = folder
        self._short = tempfile.TemporaryDirectory(prefix="iscsi-target-e2e-")
        self.runtime_dir, self.pid_file = self._short.name, folder / "pid"
        self.targets = folder / "targets"
        self.targets.write_text(targets)
        (folder / "auths").write_text(auths)
        self.family: list[psutil.Process] = []

    def start(self, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", "from iscsid.compat.iscsi_target import main; main()", "-4", "-p", "0"]
        argv += ["-f", str(self.targets), "--auths", str(self.folder / "auths"), "--pid-file", str(self.pid_file)]
        argv += ["--runtime-dir", self.runtime_dir, "--state-dir", str(self.folder / "state"), "--workers", "1", *words]
        # Both are pipes that are read to their end: a daemon that kept them open would hang this.
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode == 0:
            process = psutil.Process(self.pid)
            self.family = [process, *process.children(recursive=True)]
        return done

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    @property
    def portal(self) -> str:
        return "127.0.0.1:" + str(ask(self.runtime_dir, "status")["portals"][0]).rpartition(":")[2]

    def url(self, target: str = NAME, user: str = "") -> str:
        return f"iscsi://{user}{self.portal}/{target}/0"

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)
        gone, left = psutil.wait_procs(self.family, timeout=20)
        assert not left
        assert len(gone) == len(self.family)

    def finish(self) -> None:
        for process in self.family:
            if process.is_running():
                process.kill()
        psutil.wait_procs(self.family, timeout=10)
        self._short.cleanup()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    made: list[Daemon] = []

    def make(targets: str = TARGETS, auths: str = AUTHS) -> Daemon:
        made.append(Daemon(tmp_path, targets.replace("/tmp/", f"{tmp_path}/"), auths))
        return made[-1]

    yield make
    for one in made:
        one.finish()


@pytest.mark.judge("iscsi-inq")
@pytest.mark.judge("qemu-img")
def test_sample_files_serve_a_disk_and_sigterm_ends_it(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    server = daemon()
    done = server.start()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"Reading configuration from `{server.targets}'",
        "target0:rw:0.0.0.0/0",
        f"\textent0:{tmp_path}/iscsi-target0:0:104857600",
        "DISK: 1 logical unit (204800 blocks, 512 bytes/block), type iscsi fs",
        'DISK: LUN 0: 100 MB disk storage for "target0"',
        "TARGET: iSCSI Qualified Name (IQN) is iqn.1994-04.org.netbsd.iscsi-target",
    ]
    assert f"Target:{NAME} Portal:{server.portal},1" in run_judge("iscsi-ls", f"iscsi://{server.portal}")
    inquiry = run_judge("iscsi-inq", server.url())
    assert "Vendor:NetBSD  \n" in inquiry
    assert "Product:NetBSD iSCSI    \n" in inquiry
    run_qemu_io(server.url(), "write -P 0x5a 1M 64k", "flush", "read -P 0x5a 1M 64k")
    assert "virtual size: 100 MiB" in run_judge("qemu-img", "info", server.url())
    server.stop()
    assert not server.pid_file.exists()
    with (tmp_path / "iscsi-target0").open("rb") as disk:
        disk.seek(1 << 20)
        assert disk.read(65536) == b"\x5a" * 65536


@pytest.mark.judge("iscsi-inq")
def test_users_of_the_auths_file_have_to_prove_themselves(daemon: Callable[..., Daemon]) -> None:
    server = daemon(auths="agc:chap:Rhode Island Red\n")
    assert server.start().returncode == 0
    assert "NetBSD" in run_judge("iscsi-inq", server.url(user="AGC%Rhode Island Red@"))
    for user in ("", "agc%Sussex@"):
        assert "NetBSD iSCSI" not in run_judge("iscsi-inq", server.url(user=user), check=False)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("extent0 /tmp/a 0 100MB\ntarget0 rw extent1 any\n", ":2: Error: no extent or device found for `target0'"),
        ("extent0 /tmp/a 0\ntarget0 rw extent0 any\n", ":1: Error: extent `extent0' needs a file, an offset"),
        ("extent0 /tmp/a 0 1MB\ntarget0 rw extent0 10.256/16\n", ":2: Error: allow_netmask: can't interpret mask"),
        ("extent0 /tmp/a 0 1MB\ntarget0 ro extent0 any\n", ":2: Error: target `target0': path: "),
    ],
)
def test_wrong_files_are_told_with_line_and_reason(daemon: Callable[..., Daemon], targets: str, words: str) -> None:
    server = daemon(targets)
    done = server.start()
    assert done.returncode == 1
    assert f"{server.targets}{words}" in done.stderr
    assert done.stderr.endswith("iscsi_target_start() failed\n")
    assert not server.pid_file.exists()


def test_port_that_is_taken_is_told_to_the_shell(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    server = daemon()
    assert server.start().returncode == 0
    pid = server.pid
    server.targets.write_text(f"extent0 {tmp_path}/another 0 1MB\ntarget0 rw extent0 any\n")
    words = ["-p", server.portal.rpartition(":")[2], "--runtime-dir", f"{server.runtime_dir}/other"]
    family = server.family
    done = server.start(*words)
    server.family = family
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert server.pid == pid


@pytest.mark.judge("iscsi-ls")
def test_sighup_has_it_read_its_file_again(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    server = daemon()
    assert server.start().returncode == 0
    more = f"extent1 {tmp_path}/more 0 1MB\ntarget1 rw extent1 any\nextent2 nonsense\n"
    server.targets.write_text(server.targets.read_text() + more)
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: "target1" in run_judge("iscsi-ls", f"iscsi://{server.portal}"), "the new target is served")
    server.targets.write_text("nothing that makes sense\n")
    os.kill(server.pid, signal.SIGHUP)
    assert "target1" in run_judge("iscsi-ls", f"iscsi://{server.portal}")
    server.targets.write_text(f"extent1 {tmp_path}/more 0 1MB\ntarget2 rw extent1 any\n")
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: "target2" in run_judge("iscsi-ls", f"iscsi://{server.portal}"), "the last target is served")
    assert "target1" not in run_judge("iscsi-ls", f"iscsi://{server.portal}")
    server.stop()


@pytest.mark.judge("iscsi-ls")
def test_masks_hold(daemon: Callable[..., Daemon]) -> None:
    server = daemon(
        "extent0 /tmp/a 0 1MB\ntarget0 rw extent0 127/8\ntarget1 ro extent0 10.4/16\nlun2 rw extent0 none\n"
    )
    assert server.start().returncode == 0
    listed = run_judge("iscsi-ls", f"iscsi://{server.portal}")
    assert [name for name in ("target0", "target1", "lun2") if name in listed] == ["target0"]


@pytest.mark.judge("qemu-io")
@pytest.mark.judge("qemu-img")
def test_raid0_concatenates_and_offsets_hold(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    server = daemon(
        "extent0 /tmp/a 4096 1MB\nextent1 /tmp/b 8192 2MB\ndevice0 RAID0 extent0 extent1\ntarget0 rw device0 any\n"
    )
    assert server.start().returncode == 0
    run_qemu_io(server.url(), "write -P 1 0 1M", "write -P 2 1M 2M", "flush")
    server.stop()
    assert (tmp_path / "a").read_bytes() == bytes(4096) + b"\1" * (1 << 20)
    assert (tmp_path / "b").read_bytes() == bytes(8192) + b"\2" * (2 << 20)


@pytest.mark.judge("qemu-io")
def test_extents_of_one_file_and_targets_of_one_extent_are_served(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """A mirror, one leg of which lies in a file that another extent has a part of, too; and one disk by two names."""
    server = daemon(
        "extent0 /tmp/a 0 1MB\nextent1 /tmp/b 0 1MB\nextent2 /tmp/a 1048576 1MB\nextent3 /tmp/c 0 1MB\n"
        "device0 RAID1 extent0 extent1\ndevice1 RAID0 device0 extent2\n"
        "target0 rw device1 any\ntarget1 rw extent3 any\ntarget2 rw extent3 any\n"
    )
    assert server.start().returncode == 0
    run_qemu_io(server.url(), "write -P 1 0 1M", "write -P 2 1M 1M", "flush")
    one, other = (server.url(NAME.replace("target0", name)) for name in ("target1", "target2"))
    run_qemu_io(one, "write -P 3 0 64k", "flush")
    run_qemu_io(other, "read -P 3 0 64k")
    server.stop()
    assert (tmp_path / "a").read_bytes() == b"\1" * (1 << 20) + b"\2" * (1 << 20)
    assert (tmp_path / "b").read_bytes() == b"\1" * (1 << 20)


@pytest.mark.judge("qemu-io")
def test_raid1_goes_on_when_a_leg_fails_and_is_equal_when_it_returns(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """The leg is a file on a file system of its own, which is full, and later is not."""
    if os.geteuid() != 0:
        pytest.skip("a file system of its own needs root")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "none", small], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        server = daemon(
            "extent0 /tmp/first 0 16MB\nextent1 /tmp/small/second 0 16MB\n"
            "device0 RAID1 extent0 extent1\ntarget0 rw device0 any\n"
        )
        with (tmp_path / "log").open("w") as log:
            process = _foreground(server, log)
            try:
                run_qemu_io(
                    server.url(), *[f"write -P {n} {n - 1}M 1M" for n in range(1, 17)], "flush", "read -P 9 8M 1M"
                )
                assert "going on without it: [Errno 28] No space left" in (tmp_path / "log").read_text()
                run_judge("mount", "-o", "remount,size=64M", small)
                wait_until(lambda: _equal(tmp_path / "first", small / "second"), "both legs are equal", 60)
                run_qemu_io(server.url(), "write -P 77 3M 1M", "flush", "read -P 77 3M 1M", "read -P 16 15M 1M")
            finally:
                process.terminate()
                assert process.wait(30) == 0
        assert _equal(tmp_path / "first", small / "second")
        assert "it is current" in (tmp_path / "log").read_text()
    finally:
        run_judge("umount", small)


def _foreground(server: Daemon, log: object) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-c", "from iscsid.compat.iscsi_target import main; main()", "-4D", "-p", "0"]
    argv += ["-f", str(server.targets), "--auths", str(server.folder / "auths"), "--pid-file", str(server.pid_file)]
    argv += ["--runtime-dir", server.runtime_dir, "--state-dir", str(server.folder / "state"), "--workers", "1"]
    process = subprocess.Popen(argv, stdout=log, stderr=log)  # type: ignore[call-overload]
    wait_until(server.pid_file.exists, "it serves")
    return process  # type: ignore[no-any-return]


def _equal(one: Path, other: Path) -> bool:
    return one.read_bytes() == other.read_bytes()
