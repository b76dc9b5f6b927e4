"""initiator.discovery: the answer to SendTargets."""

from __future__ import annotations

import pytest

from iscsid.errors import ConnectionFailed
from iscsid.initiator.discovery import TargetPortal, TargetRecord, parse_targets
from iscsid.initiator.url import Portal

ASKED = Portal("192.0.2.1", 3260)


def test_targets_come_with_their_portals() -> None:
    pairs = [
        ("TargetName", "iqn.a"),
        ("TargetAddress", "192.0.2.1:3260,1"),
        ("TargetAddress", "[2001:db8::1]:860,2"),
        ("TargetName", "iqn.b"),
        ("TargetName", "iqn.a"),
        ("TargetAddress", "host.example,7"),
        ("TargetAddress", "192.0.2.3"),
    ]
    assert parse_targets(pairs, ASKED) == [
        TargetRecord(
            "iqn.a",
            (
                TargetPortal("192.0.2.1", 3260, 1),
                TargetPortal("2001:db8::1", 860, 2),
                TargetPortal("host.example", 3260, 7),
                TargetPortal("192.0.2.3", 3260, 1),
            ),
        ),
        TargetRecord("iqn.b", (TargetPortal("192.0.2.1", 3260, 1),)),
    ]


def test_portal_prints_as_on_the_wire() -> None:
    assert str(TargetPortal("2001:db8::1", 860, 2)) == "[2001:db8::1]:860,2"


@pytest.mark.parametrize(
    "pairs",
    [
        [("SendTargets", "Reject")],
        [("TargetName", "iqn.a"), ("TargetAddress", "::::,1")],
        [("TargetName", "iqn.a"), ("TargetAddress", "192.0.2.1:3260,one")],
    ],
)
def test_answer_that_is_none_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(ConnectionFailed):
        parse_targets(pairs, ASKED)
