"""A daemon whose shell hears how it went."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.process


def run(body: str) -> subprocess.CompletedProcess[str]:
    program = "import os, sys, time\nfrom iscsid.compat import background\n" + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)


def test_shell_goes_on_when_the_daemon_is_ready_and_the_daemon_stays(tmp_path: Path) -> None:
    facts = tmp_path / "facts"
    done = run(
        f"""
        print("before")
        daemon = background.begin()
        print("on its way", file=sys.stderr, flush=True)
        with open({str(facts)!r}, "w") as file:
            print(os.getcwd(), os.getsid(0) == os.getpid(), os.readlink("/proc/self/fd/1"), file=file)
        daemon.ready()
        daemon.ready()
        print("nobody hears", file=sys.stderr, flush=True)
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "before\n", "on its way\n")
    assert facts.read_text() == "/ True /dev/null\n"


def test_shell_hears_why_the_daemon_failed_and_with_which_code() -> None:
    done = run(
        """
        background.begin()
        print("the reason", file=sys.stderr)
        sys.exit(3)
        """
    )
    assert (done.returncode, done.stderr) == (3, "the reason\n")


def test_a_daemon_that_ends_unready_without_a_word_is_a_failure() -> None:
    assert run("background.begin()").returncode == 1
