"""What the authority may ask for: everything that the arbiter knows how to do, and nothing else."""

from __future__ import annotations

from typing import get_args

import pytest

from iscsid.shared.actions import Action, End, Keep, Kill, Tell
from iscsid.shared.authority import ADMINISTRATOR
from iscsid.shared.messages import UnitAnswer


def test_actions_are_all_there_are() -> None:
    assert set(get_args(Action)) == {Tell, Kill, Keep, End}


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        (Tell(ADMINISTRATOR, UnitAnswer(1, 0, "", -1, -1, False)), ("worker", "message")),
        (Kill(0, "late"), ("worker", "reason")),
        (Keep("unit", None), ("unit", "kept")),
        (End(1, "reset"), ("tsih", "reason")),
    ],
)
def test_action_is_a_value_with_names(action: Action, fields: tuple[str, ...]) -> None:
    assert action._fields == fields
    assert action == type(action)(*action)  # type: ignore[arg-type]
