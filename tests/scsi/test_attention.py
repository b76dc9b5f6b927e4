"""scsi.attention: one queue of unit attentions (SAM-5 5.14)."""

from __future__ import annotations

import pytest

from iscsid.scsi.attention import establish, reset_waits
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


LOSS, RESET, POWER_ON = (
    Reason.I_T_NEXUS_LOSS,
    Reason.BUS_DEVICE_RESET_FUNCTION,
    Reason.POWER_ON_RESET_OR_BUS_DEVICE_RESET,
)


@pytest.mark.parametrize(
    ("waits", "comes", "left"),
    [
        (POWER_ON, RESET, POWER_ON),
        (POWER_ON, LOSS, POWER_ON),
        (RESET, LOSS, RESET),
        (LOSS, RESET, RESET),
        (RESET, POWER_ON, POWER_ON),
        (LOSS, LOSS, LOSS),
    ],
)
def test_reset_that_says_more_goes_before_one_that_says_less(waits: Reason, comes: Reason, left: Reason) -> None:
    queue = [waits, Reason.MODE_PARAMETERS_CHANGED]
    establish(queue, comes)
    assert queue[0] is left


def test_loss_of_a_nexus_leaves_what_waits_behind_a_reset() -> None:
    queue = [RESET, Reason.MODE_PARAMETERS_CHANGED]
    establish(queue, LOSS)
    assert queue == [RESET, Reason.MODE_PARAMETERS_CHANGED]


def test_reset_waits_where_a_nexus_loss_would_say_too_little() -> None:
    assert not reset_waits([]) and not reset_waits([LOSS, Reason.MODE_PARAMETERS_CHANGED])
    assert reset_waits([RESET, Reason.MODE_PARAMETERS_CHANGED]) and reset_waits([POWER_ON])


def test_queue_cannot_grow_beyond_the_reasons_there_are() -> None:
    queue: list[Reason] = []
    for _ in range(3):
        for reason in Reason:
            establish(queue, reason)
    assert len(queue) == len(set(queue)) <= len(Reason)
