"""A back end that misbehaves is answered for and told of, its neighbour does not notice, and it recovers; and what a
server has, no other one gets."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iscsid.daemon.control import ask
from iscsid.errors import IscsidError
from iscsid.testing import TestServerError, TestTarget

PLUGIN = """
import errno, time
from iscsid.plugin import BackendInfo, BlockError, Device, Fault, Option, Threading, hookimpl

class Moody(Device):
    threading = Threading.PARALLEL
    size = 1 << 20
    def __init__(self, path):
        self.path, self.memory = path, bytearray(self.size)
    def mood(self):
        try:
            with open(self.path) as file:
                return file.read()
        except FileNotFoundError:
            return ""
    def short(self):
        while (mood := self.mood()) == "hang":
            time.sleep(0.01)
        if mood == "raise":
            raise ZeroDivisionError("a bug of the back end")
        if mood == "exit":
            raise SystemExit(3)
        if mood == "gone":
            raise OSError(errno.ENODEV, "no such disk")
        if mood == "cut":
            raise BlockError(Fault.READ_ERROR, "there is nothing here")
        return mood == "short"
    def read_into(self, buffer, offset):
        buffer[:] = self.memory[offset:offset + len(buffer)]
        return len(buffer) - self.short()
    def write(self, data, offset):
        short = self.short()
        self.memory[offset:offset + len(data)] = data
        return len(data) - short
    def current_size(self):
        return 4096 if self.mood() == "cut" else self.size

@hookimpl
def iscsid_backend_info():
    return BackendInfo("moody", "misbehaves as a file says", (Option("gate", "path", required=True),))

@hookimpl
def iscsid_open(options, role):
    return Moody(options["gate"])
"""
BLOCK = b"x" * 512
WAIT = 30.0


@pytest.fixture
def target(tmp_path: Path) -> Iterator[TestTarget]:
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "moody.py").write_text(PLUGIN)
    luns = [{"backend": "moody", "gate": str(tmp_path / f"gate{lun}")} for lun in range(2)]
    server = {"plugin_dirs": [str(folder)], "io_timeout": 1}
    with TestTarget(tmp_path / "server", luns=luns, server=server) as target:
        yield target


def say(gate: Path, mood: str) -> None:
    """At once, for somebody may read it just now."""
    new = gate.with_suffix(".new")
    new.write_text(mood)
    new.rename(gate)


def health(target: TestTarget, lun: int = 0) -> dict[str, Any]:
    return dict(ask(target._runtime_dir, "status")["targets"][0]["luns"][lun]["health"])


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
        say(gate, "hang")
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
    until(lambda: f"{target.name} LUN 0: the device answers again" in target.log)


def attempt(target: TestTarget) -> None:
    with contextlib.suppress(IscsidError, OSError), target.disk(0) as disk:
        disk.read(0, 512)


@pytest.mark.process
@pytest.mark.parametrize(
    ("mood", "state", "reason"),
    [
        ("hang", "hanging", ""),
        ("raise", "failing", "the device raised ZeroDivisionError: a bug of the back end"),
        ("exit", "failing", "the device raised SystemExit: 3"),
        ("short", "failing", "the device has moved 511 of 512 bytes"),
        ("gone", "not ready", "[Errno 19] no such disk"),
        ("cut", "too short", "there is nothing here"),
    ],
)
def test_status_tells_what_ails_a_lun_and_its_neighbour_is_well(
    target: TestTarget, tmp_path: Path, mood: str, state: str, reason: str
) -> None:
    gate = tmp_path / "gate0"
    pids = [worker["pid"] for worker in ask(target._runtime_dir, "status")["workers"]]
    with target.disk(1) as neighbour:
        neighbour.write(0, BLOCK)
        assert health(target)["state"] == "ok"
        say(gate, mood)
        thread = threading.Thread(target=attempt, args=(target,), daemon=True)
        thread.start()
        done, deadline = 0, time.monotonic() + WAIT
        while (found := health(target))["state"] != state or done < 200:
            assert neighbour.read(0, 512) == BLOCK
            done += 1
            assert time.monotonic() < deadline, found
    assert not found["well"]
    assert health(target, 1)["state"] == "ok"
    if state == "hanging":
        assert found["hanging"] >= 1 and found["seconds"] >= 1.0
    else:
        assert found["errors"]["read"] >= 1
        assert (found["last_error"]["kind"], found["last_error"]["reason"]) == ("read", reason)
        until(lambda: f"{target.name} LUN 0: {state}: " in target.log)
    if state == "too short":
        assert (found["size"], found["promised"]) == (4096, 1 << 20)
    gate.unlink()
    thread.join(WAIT)
    with target.disk(0) as disk:
        assert disk.read(0, 512) == bytes(512)
    if state == "hanging":
        until(lambda: health(target)["state"] == "ok")
    assert [worker["pid"] for worker in ask(target._runtime_dir, "status")["workers"]] == pids


@pytest.mark.process
def test_status_shows_people_which_lun_is_not_well(target: TestTarget, tmp_path: Path) -> None:
    def shown() -> str:
        argv = [sys.executable, "-m", "iscsid", "status", "-d", target._runtime_dir]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    assert "LUNs       well\n" in shown()
    say(tmp_path / "gate0", "short")
    attempt(target)
    until(lambda: health(target)["state"] == "failing")
    screen = shown()
    assert "LUNs       1 of 2 LUNs is not well\n" in screen
    (line,) = [line for line in screen.splitlines() if line.startswith(f"  {target.name}")]
    assert line.startswith(f"  {target.name} LUN 0: failing for ")
    assert line.endswith(", read: the device has moved 511 of 512 bytes")


@pytest.mark.process
def test_layer_that_hangs_for_a_while_is_told_and_well_again(tmp_path: Path) -> None:
    fault = {"layer": "fault", "action": "hang", "calls": "read", "seconds": 5, "count": 1}
    luns = [{"layers": [fault]}, {}]
    with TestTarget(tmp_path, luns=luns, server={"io_timeout": 1}) as target:
        thread = threading.Thread(target=attempt, args=(target,), daemon=True)
        thread.start()
        with target.disk(1) as neighbour:
            while health(target)["state"] != "hanging":
                assert neighbour.read(0, 512) == bytes(512)
        until(lambda: health(target)["state"] == "ok")
        thread.join(WAIT)
        assert f"{target.name} LUN 0: the device answers again" in target.log


@pytest.mark.process
def test_file_that_is_cut_while_it_is_served_is_too_short(tmp_path: Path) -> None:
    with TestTarget(tmp_path, luns=[{"backend": "file", "size": "1 MiB"}]) as target:
        os.truncate(target.path(), 8192)
        with target.disk() as disk:
            assert disk.read(0, 512) == bytes(512)
            with pytest.raises(IscsidError):
                disk.read(1 << 19, 512)
        until(lambda: health(target)["state"] == "too short")
        found = health(target)
        assert (found["size"], found["promised"]) == (8192, 1 << 20)


# Who has a medium.


@pytest.mark.process
def test_second_server_of_a_file_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    luns = [{"backend": "file", "path": str(tmp_path / "disk"), "size": "1 MiB"}]
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    others = [{"backend": "file", "path": str(tmp_path / "link")}]
    second = TestTarget(tmp_path / "second", luns=others)
    with TestTarget(tmp_path / "first", luns=luns, workers=2) as first:
        with pytest.raises(TestServerError, match="link is in use by another"):
            second.start()
        pid = ask(first._runtime_dir, "status")["workers"][0]["pid"]
        os.kill(pid, 9)
        until(lambda: "replacing it" in first.log)
        with pytest.raises(TestServerError, match="link is in use by another"):
            second.start()
        with first.disk() as disk:
            disk.write(0, BLOCK)
            disk.flush()
        first.kill()  # its workers go by themselves, a moment later
        with second, second.disk() as disk:
            assert disk.read(0, 512) == BLOCK


@pytest.mark.process
def test_two_servers_read_one_file(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(BLOCK * 2048)
    luns = [{"backend": "file", "path": str(tmp_path / "disk"), "readonly": True}]
    with TestTarget(tmp_path / "first", luns=luns) as first, TestTarget(tmp_path / "second", luns=luns) as second:
        for target in (first, second):
            with target.disk() as disk:
                assert disk.read(0, 512) == BLOCK


@pytest.mark.process
@pytest.mark.judge("qemu-img")
def test_image_tools_and_servers_keep_off_what_the_other_has(tmp_path: Path, judge: Callable[[str], str]) -> None:
    path = tmp_path / "disk"
    luns = [{"backend": "file", "path": str(path), "size": "1 MiB"}]
    argv = [judge("qemu-img"), "resize", "-f", "raw", str(path), "2M"]
    with TestTarget(tmp_path / "server", luns=luns):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode and "lock" in done.stderr
    subprocess.run(argv, capture_output=True, check=True)
