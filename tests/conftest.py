"""What every test may use. Keep it small: a fixture that one folder needs belongs to that folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))  # for helpers.py

# How long an example takes, or its making, says how busy the machine is.
settings.register_profile("iscsid", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("iscsid")

SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")  # not in everybody's PATH, but tgtd, istgt and losetup live there


def find_judge(name: str) -> str | None:
    """Return the path of a foreign program, or None."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_FOLDERS]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked ``judge(name)`` is skipped aloud without that program; where ISCSID_JUDGES=all it fails."""
    missing = [name for mark in item.iter_markers("judge") for name in mark.args if find_judge(name) is None]
    if missing:
        reason = f"needs {', '.join(missing)}, which `make test` installs"
        if os.environ.get("ISCSID_JUDGES") == "all":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture
def judge() -> Callable[[str], str]:
    """Gives the path of a foreign program that the test's ``judge`` mark names."""

    def path_of(name: str) -> str:
        path = find_judge(name)
        assert path is not None, f"{name} is not in this test's mark"
        return path

    return path_of
