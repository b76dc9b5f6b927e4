"""The values that workers share compare and travel as values."""

from __future__ import annotations

import dataclasses
import json

import pytest

from iscsid.errors import ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId, Outcome

NEXUS = NexusId("iqn.2026-11.org.example:host", 0x80_1234_567890, "iqn.2026-11.org.iscsid:disk0", 1)


def test_nexus_is_known_again_by_its_four_parts() -> None:
    again = NexusId(NEXUS.initiator, NEXUS.isid, NEXUS.target, NEXUS.portal_group_tag)
    assert again == NEXUS and hash(again) == hash(NEXUS)


@pytest.mark.parametrize(
    "other",
    [
        NEXUS._replace(initiator="iqn.2026-11.org.example:other"),
        NEXUS._replace(isid=1),
        NEXUS._replace(target="iqn.2026-11.org.iscsid:disk1"),
        NEXUS._replace(portal_group_tag=2),
    ],
)
def test_nexus_with_another_port_is_another_nexus(other: NexusId) -> None:
    assert other != NEXUS


def test_nexus_comes_back_from_json() -> None:
    assert NexusId(*json.loads(json.dumps(NEXUS))) == NEXUS


def test_attention_is_a_value() -> None:
    attention = Attention(NEXUS, Reason.RESERVATIONS_PREEMPTED)
    assert attention == Attention(NEXUS, Reason.RESERVATIONS_PREEMPTED)
    with pytest.raises(dataclasses.FrozenInstanceError):
        attention.reason = Reason.NO_SENSE  # type: ignore[misc]


def test_outcome_says_nothing_that_it_was_not_told() -> None:
    outcome = Outcome("state")
    assert (outcome.error, outcome.attentions, outcome.aborts, outcome.persist) == (None, (), (), False)


def test_outcome_carries_a_conflict_as_an_error() -> None:
    outcome = Outcome("state", error=ScsiError(Status.RESERVATION_CONFLICT))
    assert outcome.error is not None and outcome.error.reason is Status.RESERVATION_CONFLICT
