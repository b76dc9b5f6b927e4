"""What the authority says fits into messages, all of it, and answers come back as the errors that they were."""

from __future__ import annotations

import json

import pytest

from iscsid.errors import ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.sense import Reason
from iscsid.shared.messages import error_of
from iscsid.shared.parts import MAX_PART, json_text, parts, unit_answer


def test_nothing_is_one_pair_of_empty_lists() -> None:
    assert list(parts([], [])) == [("[]", "[]")]


def test_long_lists_come_in_several_pairs_and_nothing_is_lost() -> None:
    raised = [json_text(["x" * 1000, number]) for number in range(200)]
    aborts = [json_text(["y" * 1000, number]) for number in range(100)]
    found = list(parts(raised, aborts))
    assert len(found) > 3
    assert all(len(json.dumps(one)) + len(json.dumps(two)) < MAX_PART + 4096 for one, two in found)
    assert [item for one, _ in found for item in json.loads(one)] == list(map(json.loads, raised))
    assert [item for _, two in found for item in json.loads(two)] == list(map(json.loads, aborts))


@pytest.mark.parametrize(
    "error",
    [
        None,
        ScsiError(Status.RESERVATION_CONFLICT),
        ScsiError(Reason.INVALID_FIELD_IN_CDB, field=3, bit=4),
        ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=9, in_data=True),
    ],
)
def test_answer_gives_the_error_back(error: ScsiError | None) -> None:
    back = error_of(unit_answer(7, error))
    told = None if error is None else (error.reason, error.field, error.bit, error.in_data)
    assert told == (None if back is None else (back.reason, back.field, back.bit, back.in_data))
