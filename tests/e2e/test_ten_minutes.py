"""docs/plugin-in-ten-minutes.md, followed to the letter."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port

from iscsid.daemon.control import ControlError, ask

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "plugin-in-ten-minutes.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
WAIT = 60.0


class Shell:
    """Two terminals in one folder: one that waits for each command, and one for the server."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        bin_ = folder / "bin"
        bin_.mkdir()
        for name, words in (("iscsid", "-m iscsid"), ("python", "")):
            (bin_ / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
            (bin_ / name).chmod(0o755)
        self.environment = os.environ | {"PATH": f"{bin_}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        self.server: subprocess.Popen[bytes] | None = None

    def run(self, block: str) -> str:
        block = block.replace("13260", str(self.port))
        if block.startswith("iscsid serve"):
            self.serve(block)
            return ""
        script = f"set -e\n{block}\npwd > {self.folder}/where\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.where(),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        return done.stdout

    def where(self) -> Path:
        told = self.folder / "where"
        return Path(told.read_text().strip()) if told.exists() else self.folder

    def serve(self, block: str) -> None:
        argv = ["bash", "-c", f"exec {block}"]
        self.server = subprocess.Popen(argv, cwd=self.where(), env=self.environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + WAIT
        while not self.serves():
            assert self.server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def serves(self) -> bool:
        try:
            return bool(ask(str(self.where() / "run"), "status")["phase"] == "serving")
        except ControlError:
            return False

    def close(self) -> None:
        if self.server is not None:
            self.server.send_signal(signal.SIGTERM)
            assert self.server.wait(WAIT) == 0


@pytest.fixture
def shell() -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(prefix="iscsid-") as folder:  # the path of a socket may have 107 bytes
        shell = Shell(Path(folder), free_port())
        yield shell
        shell.close()


@pytest.mark.process
def test_page_followed_to_the_letter_gives_a_served_disk(shell: Shell) -> None:
    said = [(block, shell.run(block)) for kind, block in BLOCKS if kind == "sh"]
    (expected,) = [block for kind, block in BLOCKS if kind == "text"]
    told = {block.split("\n", 1)[0]: answer for block, answer in said}
    tests = [answer for block, answer in said if "pytest" in block]
    assert [re.findall(r"(\d) skipped", answer) for answer in tests] == [["4"], ["1"]]
    (checked,) = [answer for first, answer in told.items() if first.startswith("iscsid plugin check")]
    assert checked.startswith(expected)
    assert "0 violated" in checked
    last = said[-1][1]
    assert f"{64 << 20} b'hello'" in last
    assert last.endswith("hello")


def test_links_of_the_page_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (ROOT / "docs" / link).resolve().is_file(), link
