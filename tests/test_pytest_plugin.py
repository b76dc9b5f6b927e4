"""The fixtures, in a pytest run of their own; and the examples of docs/testing.md, as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

MANUAL = Path(__file__).resolve().parents[1] / "docs" / "testing.md"


def run(folder: Path, source: str) -> str:
    """What pytest says of a file of tests; without our own configuration, as at a stranger's."""
    (folder / "test_theirs.py").write_text(source)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "--strict-markers", "-q", "-rA"]
    done = subprocess.run(
        [*argv, "-c", "/dev/null", "--rootdir", str(folder), str(folder)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.process
@pytest.mark.judge("qemu-img")
def test_examples_of_the_manual_pass(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", MANUAL.read_text(), re.DOTALL)
    output = run(tmp_path, example)
    assert f"{example.count('def test_')} passed" in output, output


@pytest.mark.process
def test_marker_of_a_test_counts_more_than_that_of_its_module(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
import pytest

pytestmark = pytest.mark.iscsid(size="2 MiB", block_size=4096)

def test_module(iscsid_target):
    with iscsid_target.disk() as disk:
        assert (disk.size, disk.block_size) == (2 << 20, 4096)

@pytest.mark.iscsid(size="3 MiB")
def test_own(iscsid_target, iscsid_targets):
    with iscsid_target.disk() as disk:
        assert (disk.size, disk.block_size) == (3 << 20, 4096)
    assert iscsid_targets().port != iscsid_target.port
""",
    )
    assert "2 passed" in output, output


@pytest.mark.process
def test_marker_with_bad_options_fails_the_test_with_the_reason(tmp_path: Path) -> None:
    output = run(
        tmp_path,
        """
import pytest

@pytest.mark.iscsid("file")
def test_positional(iscsid_target):
    pass

@pytest.mark.iscsid(szie="3 MiB")
def test_misspelt(iscsid_target):
    pass
""",
    )
    assert "2 errors" in output, output
    assert "takes keyword arguments only" in output
    assert 'did you mean "size"' in output


def test_plugin_costs_other_people_no_import() -> None:
    code = "import sys, iscsid.pytest_plugin; print([name for name in sys.modules if name.startswith('iscsid.')])"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['iscsid.pytest_plugin']"
