"""What a change is called, and whom it concerns."""

from __future__ import annotations

import pytest

from iscsid.scsi.ports import AccessState
from iscsid.scsi.state import NexusId
from iscsid.shared import rules
from iscsid.shared.changes import Change
from iscsid.shared.rules import AccessChange, MediumChange, Request

A = NexusId("iqn.x:a", 1, "iqn.x:disk", 1)
MODE_SELECT = Change(A, request=Request(A, bytes.fromhex("151000001800")))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (Change(A), "nexus lost"),
        (MODE_SELECT, "command 1510"),
        (Change(A, undo=MODE_SELECT), "the end of command 1510"),
        (Change(A, reset=rules.RESETS[5]), "LOGICAL UNIT RESET"),
        (Change(A, access=AccessChange("iqn.x:disk", 1, AccessState.STANDBY)), "change of the access state"),
        (Change(A, medium=MediumChange(load=True)), "load"),
        (Change(A, medium=MediumChange(load=False)), "eject"),
        (Change(A, sanitized=True), "sanitize completed"),
        (Change(A, sanitized=False), "sanitize failed"),
        (Change(A, configured=({}, None)), "another configuration"),
    ],
)
def test_change_has_a_name_for_the_log(change: Change, name: str) -> None:
    assert change.name == name


@pytest.mark.parametrize(("function", "whole"), [(5, True), (6, True), (7, True), (11, False)])
def test_reset_of_a_nexus_resets_no_unit(function: int, whole: bool) -> None:
    assert Change(A, reset=rules.RESETS[function]).resets_unit is whole
    assert not Change(A).resets_unit
