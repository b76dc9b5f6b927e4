"""iscsi-initiator(8) lists the targets of real servers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_server import wait_until

from iscsid.testing import TestTarget

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import peers
from ports import free_port

ARGV = [sys.executable, "-m", "iscsid.compat.iscsi_initiator"]
MIB = 1 << 20
NAME = "iqn.2026-11.org.iscsid.e2e:disk0"


@pytest.fixture
def target(tmp_path: Path) -> Iterator[TestTarget]:
    with TestTarget(tmp_path, name=NAME, size="1 MiB") as made:
        yield made


def run(*words: object) -> subprocess.CompletedProcess[str]:
    argv = [*ARGV, *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_discovery_lists_the_targets_of_a_host(target: TestTarget) -> None:
    done = run("-D", "-4", "-h", "localhost", "-p", target.port)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Targets available from host localhost:\n{NAME} at 127.0.0.1:{target.port},1\n"
    wait_until(lambda: target.sessions() == [], "the logout")


def test_discovery_of_a_host_that_does_not_answer_ends_with_1() -> None:
    done = run("-D", "-h", "127.0.0.1", "-p", free_port())
    assert done.returncode == 1
    assert done.stdout == "initiator_discover() in discover failed\n"
    assert "refused" in done.stderr.lower()


def test_verbose_tells_what_it_does(target: TestTarget) -> None:
    done = run("-Dv", "-h", "127.0.0.1", "-p", target.port)
    assert f": discovery at 127.0.0.1:{target.port}\n" in done.stdout
    assert f": target {NAME} at" in done.stdout


@pytest.mark.judge("tgtd")
def test_discovery_of_tgt(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    (tmp_path / "tgt").mkdir()
    try:
        with peers.tgt(tmp_path / "tgt", image) as peer:
            port = peer.url.split("/")[2].rpartition(":")[2]
            done = run("-D", "-h", "127.0.0.1", "-p", port)
    except peers.Unavailable as exc:
        pytest.skip(str(exc))
    assert done.stdout.splitlines()[1:] == [f"{peers.TARGET_NAME} at 127.0.0.1:{port},1"]
