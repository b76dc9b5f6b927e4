"""target.discovery: SendTargets by value and kind of session (RFC 7143 appendix C)."""

from __future__ import annotations

import pytest

from iscsid.specs import PortalSpec
from iscsid.target.discovery import DiscoveredTarget, reachable, send_targets
from iscsid.text.codec import build, parse, split

DISK0 = DiscoveredTarget("iqn.2026-11.org.iscsid:disk0", (("10.0.0.1:3260", 1), ("[2001:db8::1]:3260", 1)))
DISK1 = DiscoveredTarget("iqn.2026-11.org.iscsid:disk1", (("10.0.0.1:3261", 2),))
TARGETS = [DISK0, DISK1]
REJECTED = [("SendTargets", "Reject")]


def test_all_in_discovery_lists_every_target_with_every_address() -> None:
    assert send_targets("All", TARGETS, "") == [
        ("TargetName", DISK0.name),
        ("TargetAddress", "10.0.0.1:3260,1"),
        ("TargetAddress", "[2001:db8::1]:3260,1"),
        ("TargetName", DISK1.name),
        ("TargetAddress", "10.0.0.1:3261,2"),
    ]


def test_name_in_discovery_lists_that_target_alone() -> None:
    assert send_targets(DISK1.name, TARGETS, "") == DISK1.pairs()


@pytest.mark.parametrize("session", ["", DISK0.name])
def test_name_that_is_not_served_lists_nothing(session: str) -> None:
    assert send_targets("iqn.2026-11.org.iscsid:nobody", TARGETS, session) == []


@pytest.mark.parametrize("value", ["Alle", "A", "all", "ALL", "iqn.", "-", "All "])
@pytest.mark.parametrize("session", ["", DISK0.name])
def test_value_that_is_neither_all_nor_a_name_is_rejected(value: str, session: str) -> None:
    assert send_targets(value, TARGETS, session) == REJECTED


def test_empty_value_in_discovery_is_rejected() -> None:
    assert send_targets("", TARGETS, "") == REJECTED


@pytest.mark.parametrize("value", ["", "All", DISK1.name])
def test_normal_session_hears_of_its_own_target_only(value: str) -> None:
    assert send_targets(value, TARGETS, DISK1.name) == DISK1.pairs()
    assert send_targets(DISK0.name, TARGETS, DISK1.name) == []


def test_target_without_addresses_is_told_by_its_name() -> None:
    target = DiscoveredTarget("iqn.2026-11.org.iscsid:bare", ())
    assert send_targets("All", [target], "") == [("TargetName", target.name)]


def test_no_targets_is_an_empty_answer() -> None:
    assert send_targets("All", [], "") == []


def test_long_list_goes_over_several_segments_and_comes_back_whole() -> None:
    targets = [DiscoveredTarget(f"iqn.2026-11.org.iscsid:d{number}", (("10.0.0.1:3260", 1),)) for number in range(500)]
    pairs = send_targets("All", targets, "")
    assert len(pairs) == 1000
    pieces = split(build(pairs), 8192)
    assert len(pieces) > 1
    assert parse(b"".join(pieces), pair_limit=1000) == pairs


def test_targets_may_come_from_a_generator() -> None:
    assert send_targets("All", (target for target in TARGETS), "")[0] == ("TargetName", DISK0.name)


HERE, V6 = "192.0.2.1:3260", "[2001:db8::1]:3260"


@pytest.mark.parametrize(
    ("portals", "here", "others"),
    [
        ([], HERE, []),
        ([PortalSpec("192.0.2.1")], HERE, []),
        ([PortalSpec("0.0.0.0"), PortalSpec("::")], HERE, []),
        ([PortalSpec("0.0.0.0", 3261, 2)], HERE, [("192.0.2.1:3261", 2)]),
        ([PortalSpec("::", 3261, 2)], V6, [("[2001:db8::1]:3261", 2)]),
        ([PortalSpec("198.51.100.1", 3260, 2)], HERE, [("198.51.100.1:3260", 2)]),
        ([PortalSpec("2001:db8::1", 3260, 7)], HERE, [("[2001:db8::1]:3260", 7)]),
        ([PortalSpec("127.0.0.1", 3260, 2), PortalSpec("fe80::1", 3260, 2)], HERE, []),
        ([PortalSpec("127.0.0.2", 3260, 2), PortalSpec("192.0.2.1")], "127.0.0.1:3260", [("127.0.0.2:3260", 2)]),
    ],
)
def test_reachable_portals(portals: list[PortalSpec], here: str, others: list[tuple[str, int]]) -> None:
    assert reachable(portals, here, 1) == [(here, 1), *others]
