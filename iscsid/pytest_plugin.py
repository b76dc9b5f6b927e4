"""The pytest plugin: an iSCSI target of its own for each test that asks for one.

    @pytest.mark.iscsid(backend="file", size="1 GiB")
    def test_backup(iscsid_target):
        run_backup_tool(iscsid_target.url())

What the marker may say is what ``iscsid.testing.TestTarget`` takes; without one it is a RAM disk of 64 MiB.
``iscsid_targets`` makes as many as a test likes. docs/testing.md tells more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from iscsid.testing import TestTarget

MARKER = "iscsid"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", f"{MARKER}(**options): what iscsid_target serves, see iscsid.testing.TestTarget")


@pytest.fixture
def iscsid_targets(tmp_path: Path) -> Iterator[Callable[..., TestTarget]]:
    """Call it with the options of ``TestTarget`` for a target that is running; all of them end with the test."""
    from iscsid.testing import TestTarget  # not at the top: every pytest run of everybody imports this module

    with contextlib.ExitStack() as stack:
        made = 0

        def make(**options: Any) -> TestTarget:
            nonlocal made
            made += 1
            return stack.enter_context(TestTarget(tmp_path / f"iscsid{made}", **options))

        yield make


@pytest.fixture
def iscsid_target(request: pytest.FixtureRequest, iscsid_targets: Callable[..., TestTarget]) -> TestTarget:
    """A target that is running, with what the marker ``iscsid`` says."""
    options: dict[str, Any] = {}
    for mark in request.node.iter_markers(MARKER):  # the nearest first
        if mark.args:
            raise pytest.UsageError(f"the marker {MARKER} takes keyword arguments only")
        options = {**mark.kwargs, **options}
    return iscsid_targets(**options)
