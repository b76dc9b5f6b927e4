"""target.node: every form of a LUN field finds its unit, and a nexus says who is there."""

from __future__ import annotations

import pytest
from target_rig import Inline

from iscsid.block.guard import Guarded
from iscsid.scsi.lu import Identity, LogicalUnit
from iscsid.target.node import Nexus, TargetNode
from iscsid.text.keys import TARGET_OFFERS

NAME = "iqn.2026-11.org.iscsid:disk0"


def unit(number: int = 0) -> LogicalUnit:
    return LogicalUnit(Guarded(Inline(1 << 20)), Identity(f"serial{number}", f"{NAME},L,{number}"))


@pytest.mark.parametrize(
    ("number", "fields"),
    [(0, (0, 0x4000 << 48)), (255, (0xFF << 48, 0x40FF << 48)), (256, (0x4100 << 48,)), (0x3FFF, (0x7FFF << 48,))],
)
def test_unit_is_found_under_every_form_of_its_number(number: int, fields: tuple[int, ...]) -> None:
    disk = unit()
    node = TargetNode(NAME, {number: disk})
    assert node.units == dict.fromkeys(fields, disk)
    assert node.luns == (number,)


def test_luns_are_sorted() -> None:
    assert TargetNode(NAME, {7: unit(7), 300: unit(300), 0: unit()}).luns == (0, 7, 300)


def test_devices_come_once_each_however_many_forms_there_are() -> None:
    units = {number: unit(number) for number in range(3)}
    devices = list(TargetNode(NAME, units).devices())
    assert devices == [units[number].device for number in range(3)]


def test_unit_under_two_numbers_is_one_device() -> None:
    disk = unit()
    assert list(TargetNode(NAME, {0: disk, 1: disk}).devices()) == [disk.device]


def test_nexus_has_what_the_session_and_the_node_say() -> None:
    node = TargetNode(NAME, {0: unit(), 5: unit(5)}, portal_group_tags=(1, 3))
    unit_0, nexus = node.seats("iqn.2010-11.org.example:host", 0x123, 3)[0]
    assert unit_0 is node.units[0]
    assert nexus.id == ("iqn.2010-11.org.example:host", 0x123, NAME, 3)
    assert (nexus.initiator_name, nexus.target_name, nexus.portal_group_tag) == nexus.id[:1] + nexus.id[2:]
    assert (nexus.luns, nexus.attentions, nexus.restricted) == ((0, 5), [], False)


def test_seats_under_every_form_of_a_number_share_their_nexus_and_units_have_their_own() -> None:
    node = TargetNode(NAME, {0: unit(), 5: unit(5)})
    seats = node.seats("iqn.2010-11.org.example:host", 0x123)
    assert seats.keys() == node.units.keys()
    assert seats[0] is not seats[5 << 48] and seats[0][1] is not seats[5 << 48][1]
    assert seats[0][1] is seats[0x4000 << 48][1]


def test_nexus_of_a_discovery_session_has_no_units() -> None:
    assert (Nexus().luns, Nexus().target_name, Nexus().portal_group_tag) == ((), "", 1)


def test_node_offers_the_defaults_unless_told_otherwise() -> None:
    assert TargetNode(NAME, {}).offers is TARGET_OFFERS
    node = TargetNode(NAME, {}, alias="a disk", offers={"InitialR2T": "Yes"})
    assert (node.alias, node.offers, node.luns) == ("a disk", {"InitialR2T": "Yes"}, ())


def test_node_without_units_serves_nothing() -> None:
    node = TargetNode(NAME, {})
    assert node.units == {} and list(node.devices()) == []
