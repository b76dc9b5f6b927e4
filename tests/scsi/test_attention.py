"""scsi.attention: one queue of unit attentions (SAM-5 5.14)."""

from __future__ import annotations

import pytest

from iscsid.scsi.attention import establish
from iscsid.scsi.sense import REASONS, Reason


def test_attentions_wait_in_the_order_of_their_causes() -> None:
    queue: list[Reason] = []
    for reason in (Reason.MODE_PARAMETERS_CHANGED, Reason.CAPACITY_DATA_HAS_CHANGED):
        establish(queue, reason)
    assert queue == [Reason.MODE_PARAMETERS_CHANGED, Reason.CAPACITY_DATA_HAS_CHANGED]


def test_attention_that_waits_already_is_not_added_and_keeps_its_place() -> None:
    queue = [Reason.MODE_PARAMETERS_CHANGED, Reason.CAPACITY_DATA_HAS_CHANGED]
    establish(queue, Reason.MODE_PARAMETERS_CHANGED)
    assert queue == [Reason.MODE_PARAMETERS_CHANGED, Reason.CAPACITY_DATA_HAS_CHANGED]


RESETS = [reason for reason, sense in REASONS.items() if sense.asc == 0x29]


@pytest.mark.parametrize("reset", RESETS, ids=lambda reason: reason.name)
def test_reset_takes_the_place_of_what_waits(reset: Reason) -> None:
    queue = [Reason.MODE_PARAMETERS_CHANGED, Reason.CAPACITY_DATA_HAS_CHANGED]
    establish(queue, reset)
    assert queue == [reset]


def test_what_comes_after_a_reset_waits_behind_it() -> None:
    queue: list[Reason] = []
    establish(queue, RESETS[0])
    establish(queue, Reason.MODE_PARAMETERS_CHANGED)
    assert queue == [RESETS[0], Reason.MODE_PARAMETERS_CHANGED]


def test_queue_cannot_grow_beyond_the_reasons_there_are() -> None:
    queue: list[Reason] = []
    for _ in range(3):
        for reason in Reason:
            establish(queue, reason)
    assert len(queue) == len(set(queue)) <= len(Reason)
