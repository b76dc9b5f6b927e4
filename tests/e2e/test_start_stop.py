"""The beginning and the end of a server's life, and what it says to a bad configuration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e_initiator import Initiator
from e2e_server import TARGET, Server, run_qemu_io, wait_until, write_config

StartServer = Callable[..., Server]

ONE = "iqn.2026-11.org.iscsid.e2e:one"


def iscsid(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "iscsid", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


# -- check ----------------------------------------------------------------------------------------------------------

GOOD = '[[target]]\nname = "{target}"\n\n[[target.lun]]\nlun = 0\nbackend = "ram"\nsize = "1 MiB"\n'
BAD = {
    "syntax": ("[server\n", ["line 1"]),
    "unknown key": ('[server]\nportal = ["127.0.0.1"]\n' + GOOD, ["server", "portal", "portals"]),
    "wrong type": ("[server]\nworkers = true\n" + GOOD, ["server", "workers"]),
    "out of range": ("[server]\nworkers = -1\n" + GOOD, ["server", "workers"]),
    "unknown back end": (GOOD.replace('"ram"', '"rom"'), ["backend", "rom", "ram"]),
    "bad size": (GOOD.replace("1 MiB", "1 MoB"), ["size", "MoB"]),
    "bad name": (GOOD.replace("{target}", "disk zero"), ["target[0].name", "' '"]),
    "LUN twice": (GOOD + GOOD.partition("\n\n")[2], ["lun", "0"]),
    "missing option": (GOOD.replace('size = "1 MiB"\n', ""), ["size"]),
    "option of another back end": (GOOD + 'path = "/tmp/x"\n', ["path"]),
}


@pytest.mark.parametrize("case", BAD)
def test_check_of_a_bad_file_names_file_place_and_reason(tmp_path: Path, case: str) -> None:
    content, words = BAD[case]
    path = tmp_path / "bad.toml"
    path.write_text(content.replace("{target}", TARGET))
    done = iscsid("check", path)
    assert done.returncode == 3, done.stderr
    assert str(path) in done.stderr
    missing = [word for word in words if word not in done.stderr]
    assert not missing, done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_check_of_a_good_file_and_of_the_shipped_one_is_content(tmp_path: Path) -> None:
    path = tmp_path / "good.toml"
    path.write_text(GOOD.replace("{target}", TARGET))
    done = iscsid("check", path)
    assert done.returncode == 0, done.stderr
    assert TARGET in done.stdout
    assert iscsid("check", Path(__file__).parents[2] / "etc" / "iscsid.toml").returncode == 0


def test_check_of_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    done = iscsid("check", tmp_path / "none.toml")
    assert done.returncode in (2, 3)
    assert "none.toml" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("case", ["syntax", "unknown key"])
def test_serve_of_a_bad_file_does_not_start(tmp_path: Path, case: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(BAD[case][0].replace("{target}", TARGET))
    done = iscsid("serve", "-c", path)
    assert done.returncode == 3
    assert str(path) in done.stderr and "Traceback" not in done.stderr


# -- start ----------------------------------------------------------------------------------------------------------


def test_start_tells_what_is_served_and_where(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram)
    output = wait_until(server.output.read_text, "it says something")
    assert TARGET in output
    assert server.portal() in output


def test_port_in_use_is_told_and_leaves_no_process(
    start: StartServer, ram: list[dict[str, Any]], tmp_path: Path
) -> None:
    server = start(ram)
    facts = {"portals": [server.portal()], "runtime_dir": str(tmp_path / "r"), "state_dir": str(tmp_path / "s")}
    done = iscsid("serve", "-c", write_config(tmp_path / "second.toml", facts, ram))
    assert done.returncode == 4
    assert server.portal() in done.stderr
    assert "in use" in done.stderr


def test_second_server_in_the_same_runtime_dir_is_refused(
    start: StartServer, ram: list[dict[str, Any]], tmp_path: Path
) -> None:
    server = start(ram)
    facts = {"portals": ["127.0.0.1:0"], "runtime_dir": server.runtime_dir, "state_dir": str(tmp_path / "s")}
    done = iscsid("serve", "-c", write_config(tmp_path / "second.toml", facts, ram))
    assert done.returncode == 4
    assert str(server.pid) in done.stderr
    assert server.status()["phase"] == "serving"


@pytest.mark.parametrize(
    "lun",
    [
        {"backend": "file", "path": "/nonexistent/disk.img", "size": "1 MiB"},
        {"backend": "block", "path": "/dev/null"},
    ],
    ids=["no folder", "no disk"],
)
def test_medium_that_cannot_be_opened_is_named(tmp_path: Path, lun: dict[str, Any]) -> None:
    facts = {"portals": ["127.0.0.1:0"], "runtime_dir": str(tmp_path / "r"), "state_dir": str(tmp_path / "s")}
    done = iscsid("serve", "-c", write_config(tmp_path / "medium.toml", facts, [lun]))
    assert done.returncode == 3
    assert os.path.dirname(lun["path"]) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.judge("qemu-io")
def test_ipv6_portal_serves_the_same_disk(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram, portals=["127.0.0.1:0", "[::1]:0"])
    assert server.portal(1).startswith("[::1]:")
    run_qemu_io(server.url(portal=1), "write -P 0x66 0 1M", "flush")
    run_qemu_io(server.url(), "read -P 0x66 0 1M")


# -- stop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_server_stops_with_status_0(start: StartServer, ram: list[dict[str, Any]], number: int) -> None:
    server = start(ram)
    assert server.stop(number) == 0
    assert not list(Path(server.runtime_dir).iterdir()), "something is left in the runtime folder"


@pytest.mark.judge("iscsi-perf", "qemu-img")
def test_stop_under_load_has_status_0_and_leaves_nobody(start: StartServer, tmp_path: Path) -> None:
    luns = [{"backend": "file", "path": tmp_path / "disk.img", "size": "64 MiB"}, {"backend": "ram", "size": "64 MiB"}]
    server = start(luns, workers=2)
    commands = [
        ["iscsi-perf", "-i", ONE, "-m", "32", "-b", "8", "-t", "30", "-r", "-x", "0", server.url(1)],
        [
            "qemu-img",
            "bench",
            "-f",
            "raw",
            "-t",
            "none",
            "-w",
            "-d",
            "32",
            "-c",
            "10000000",
            "-s",
            "4096",
            server.url(0),
        ],
    ]
    sink = subprocess.DEVNULL
    loads = [subprocess.Popen(argv, stdin=sink, stdout=sink, stderr=sink) for argv in commands]
    try:
        wait_until(lambda: sum(x["commands"] > 1000 for x in server.sessions()) == 2, "both loads run")
        assert server.stop() == 0, server.tail()
    finally:
        for load in loads:
            load.kill()
            load.wait()


def test_what_was_written_before_the_stop_is_there_after_the_next_start(start: StartServer, tmp_path: Path) -> None:
    lun = {"backend": "file", "path": tmp_path / "disk.img", "size": "64 MiB"}
    data = os.urandom(65536)
    first = start([lun])
    with Initiator(first.address, ONE) as one:
        one.write(100, data)
    assert first.stop() == 0
    with Initiator(start([lun]).address, ONE) as one:
        assert one.read(100, 128) == data


def test_stop_tells_an_idle_session_and_does_not_wait_for_its_answer(
    start: StartServer, ram: list[dict[str, Any]]
) -> None:
    """RFC 7143 11.9: Async Message, target requests logout; this initiator takes no notice."""
    server = start(ram, stop_timeout=4.0)
    with Initiator(server.address, ONE) as one:
        one.write(0, b"\0" * 512)
        assert server.stop() == 0
        said = one.wait_closed()
    assert said[:1] and said[0] & 0x3F == 0x32 and said[36] == 1, said[:48].hex()
