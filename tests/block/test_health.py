"""What counts as trouble of a device, and what is kept of it."""

from __future__ import annotations

import errno

import pytest

from iscsid.block.health import FLUSH, KINDS, MAX_WORDS, READ, TROUBLE, WRITE, Health
from iscsid.errors import BlockError, Fault


def test_new_device_is_well() -> None:
    health = Health()
    assert (health.kind, health.words) == ("", "")
    assert health.counts == dict.fromkeys(KINDS, 0)


@pytest.mark.parametrize("fault", Fault)
def test_what_a_well_device_may_answer_is_no_trouble(fault: Fault) -> None:
    health = Health()
    health.note(READ, BlockError(fault))
    assert bool(health.kind) is (fault in TROUBLE)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (OSError(errno.EIO, "x"), Fault.WRITE_ERROR),
        (OSError(errno.EROFS, "x"), Fault.READ_ONLY),  # the file system has become read-only under it
        (OSError(errno.ENOSPC, "x"), Fault.NO_SPACE),
        (OSError(errno.ESTALE, "x"), Fault.NOT_READY),
        (ZeroDivisionError("x"), Fault.INTERNAL),
        (OSError(errno.EAGAIN, "x"), None),
        (MemoryError("x"), None),
    ],
)
def test_errors_of_writes_are_told_by_their_fault(error: Exception, fault: Fault | None) -> None:
    health = Health()
    health.note(WRITE, error)
    assert (health.fault if health.kind else None) is fault


def test_last_one_is_kept_and_each_is_counted() -> None:
    health = Health()
    for kind in (READ, WRITE, WRITE, FLUSH):
        health.note(kind, BlockError(Fault.WRITE_ERROR, f"the {kind} failed " + "x" * 1000))
    assert health.counts == {READ: 1, WRITE: 2, FLUSH: 1}
    assert health.kind == FLUSH
    assert health.words.startswith("the flush failed")
    assert len(health.words) == MAX_WORDS


def test_error_without_words_is_told_by_its_name() -> None:
    health = Health()
    health.note(READ, ZeroDivisionError())
    assert health.words == "ZeroDivisionError"
