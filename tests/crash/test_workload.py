"""An ext4 workload over and below each back end: every state that a crash may leave is whole. A sample of them.

``ISCSID_CRASH_POINTS=500 pytest tests/crash`` takes more states of a longer workload, ``ISCSID_CRASH_SEED`` others.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from iscsid_plugins.record import FLUSH

sys.path.insert(0, str(Path(__file__).parent))

from replay import Violation, load_record, run
from workload import work

POINTS = int(os.environ.get("ISCSID_CRASH_POINTS", "6"))
SEED = int(os.environ.get("ISCSID_CRASH_SEED", "0"))
STEPS = max(12, min(POINTS, 200))

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse here"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount by a loop device"),
    pytest.mark.judge("fusermount3", "mkfs.ext4", "e2fsck", "debugfs", "losetup", "mount"),
    pytest.mark.timeout(120 + 4 * POINTS),
]


@pytest.mark.judge("qemu-img")
@pytest.mark.parametrize("below", [False, True], ids=["above", "below"])
@pytest.mark.parametrize("backend", ["file", "block", "qcow2"])
def test_every_state_that_a_crash_may_leave_is_whole(tmp_path: Path, backend: str, below: bool) -> None:
    record, history = work(tmp_path, backend, below, STEPS, SEED)
    kind = "qcow2" if backend == "qcow2" and below else "raw"
    size, written = load_record(record)
    states = list(run(written, bytearray(size), history, tmp_path, kind=kind, points=POINTS, seed=SEED, mount=True))
    assert len(states) == POINTS
    assert len(history.versions) == STEPS


def test_disk_that_forgets_its_flushes_is_found(tmp_path: Path) -> None:
    """What the judges are for: the same record, with the flushes of the workload taken out."""
    record, history = work(tmp_path, "file", False, 12, SEED)
    size, written = load_record(record)
    forgetful = [entry for entry in written if entry.kind != FLUSH or entry.end <= history.start]
    assert len(forgetful) < len(written)
    with pytest.raises(Violation):
        list(run(forgetful, bytearray(size), history, tmp_path, points=12, seed=SEED))
