"""The real server as a child process: configured by TOML, asked through its command line, ended by its process id."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from iscsid.daemon.control import ControlError, ask

TARGET = "iqn.2026-11.org.iscsid.e2e:disk0"
START_SECONDS = 30.0
STOP_SECONDS = 30.0
PATIENCE = 30.0  # for a condition that comes soon on an idle machine


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Return the first true value of `condition`; fail with `what` when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"in vain: {what}")
        time.sleep(0.02)
    return value


def toml_value(value: object) -> str:
    """A TOML value: booleans, numbers and strings, which JSON writes the same way, and lists and tables of them."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml_value(value[key])}" for key in value) + " }"
    return json.dumps(value)


def write_config(
    path: Path, server: Mapping[str, object], luns: Sequence[Mapping[str, object]], target: str = TARGET
) -> Path:
    """A configuration with one target; `luns` are numbered in their order."""
    lines = ["[server]", *(f"{key} = {toml_value(value)}" for key, value in server.items())]
    lines += ["", "[[target]]", f'name = "{target}"']
    for number, lun in enumerate(luns):
        lines += ["", "[[target.lun]]", f"lun = {number}", *(f"{key} = {toml_value(lun[key])}" for key in lun)]
    path.write_text("\n".join(lines) + "\n")
    return path


class Server:
    """One `iscsid serve`. Its log is standard error, in `log`; what it says to people is in `output`."""

    def __init__(
        self,
        folder: Path,
        luns: Sequence[Mapping[str, object]],
        *,
        workers: int = 2,
        portals: Sequence[str] = ("127.0.0.1:0",),
        **options: object,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.output, self.log = folder / "output", folder / "log"
        # The control socket's path may have 107 bytes, and a test's own folder may lie deep.
        self._runtime = tempfile.TemporaryDirectory(prefix="iscsid-e2e-")
        self.runtime_dir = self._runtime.name
        facts = {"portals": list(portals), "workers": workers, "runtime_dir": self.runtime_dir}
        self.config = write_config(folder / "e2e.toml", {**facts, "state_dir": str(folder / "state"), **options}, luns)
        self.process: subprocess.Popen[bytes] | None = None
        self.expected_status = 0
        self._family: set[psutil.Process] = set()

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> Server:
        argv = [sys.executable, "-m", "iscsid", "serve", "-c", str(self.config)]
        with self.output.open("wb") as output, self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=log)
        wait_until(self._serves, "the server is ready", START_SECONDS)
        return self

    def _serves(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log.read_text()}")
        try:
            return bool(ask(self.runtime_dir, "status")["phase"] == "serving")
        except ControlError:
            return False

    def remember_children(self) -> None:
        """Note every process that must be gone when the server is."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family.update(psutil.Process(self.pid).children(recursive=True))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and wait; the exit status. Fails when it hangs or leaves a child, which is then killed."""
        assert self.process is not None
        self.remember_children()
        problems = []
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            problems.append(f"did not stop within {STOP_SECONDS:g} seconds of signal {number}")
            self.process.kill()
            self.process.wait()
        _, left = psutil.wait_procs(self._family, timeout=STOP_SECONDS)
        for child in left:
            problems.append(f"left process {child.pid} behind")
            child.kill()
        assert not problems, f"the server {', '.join(problems)}:\n{self.tail()}"
        return self.process.returncode

    def finish(self) -> None:
        """The end of a test: a clean stop with the expected status, and no traceback in the log."""
        try:
            if self.process is not None:
                status = self.stop()
                assert status == self.expected_status, f"exit status {status}:\n{self.tail()}"
                assert "Traceback" not in self.log.read_text(), self.tail()
        finally:
            self._runtime.cleanup()

    def tail(self, characters: int = 6000) -> str:
        return self.log.read_text(errors="replace")[-characters:]

    # -- facts -------------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def status(self) -> dict[str, Any]:
        return ask(self.runtime_dir, "status")

    def sessions(self) -> list[dict[str, Any]]:
        return list(ask(self.runtime_dir, "sessions")["sessions"])

    def workers(self) -> list[int | None]:
        """The process id of each worker, None for one that is dead just now."""
        return [worker["pid"] for worker in self.status()["workers"]]

    def worker_of(self, initiator: str) -> int:
        """The index of the worker that serves the open session of this initiator name; waits until there is one."""

        def found() -> list[int]:
            return [x["worker"] for x in self.sessions() if x["initiator"] == initiator and x["state"] == "open"]

        return int(wait_until(found, f"a session of {initiator}")[0])

    def portal(self, index: int = 0) -> str:
        return str(self.status()["portals"][index])

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.portal().rpartition(":")
        return host.strip("[]"), int(port)

    def url(self, lun: int = 0, portal: int = 0) -> str:
        return f"iscsi://{self.portal(portal)}/{TARGET}/{lun}"

    def memory(self) -> int:
        """Resident bytes of the whole process tree; what workers share is counted for each."""
        self.remember_children()
        total = 0
        for pid in (self.pid, *(child.pid for child in self._family)):
            try:
                total += psutil.Process(pid).memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total

    def ask_command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of the commands that ask a server, as a user would."""
        argv = [sys.executable, "-m", "iscsid", *words, "-c", str(self.config)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)


def run_judge(*argv: str | Path, timeout: float = 60.0, check: bool = True) -> str:
    """Run a foreign program; return all that it printed. It may not hang and, with `check`, not fail."""
    words = [str(word) for word in argv]
    env = {**os.environ, "PATH": os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))}
    try:
        done = subprocess.run(
            words,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            env=env,
        )
    except subprocess.TimeoutExpired as exc:
        raise AssertionError(
            f"{words} hangs; it said:\n{(exc.stdout or b'').decode(errors='replace')[-3000:]}"
        ) from None
    output = done.stdout.decode(errors="replace")
    assert not check or done.returncode == 0, f"{words} ended with {done.returncode}:\n{output[-3000:]}"
    return output


def run_qemu_io(url: str, *commands: str) -> str:
    """Let qemu-io do its commands in order. A `read -P` that finds other bytes fails, as does any failed command.

    That QEMU cannot ask which blocks are allocated (GET LBA STATUS) is no failure, although it says so.
    """
    words = [word for command in commands for word in ("-c", command)]
    output = run_judge("qemu-io", "-f", "raw", "-d", "unmap", "-t", "none", *words, url)
    troubles = [
        line
        for line in output.splitlines()
        if re.search("failed|error", line, re.IGNORECASE) and "GET_LBA_STATUS" not in line
    ]
    assert not troubles, output
    return output
