"""A target node as one worker serves it: its name, its logical units, and who is at the other end of a session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from iscsid.block.guard import Guarded
from iscsid.scsi import attention
from iscsid.scsi.copy_state import ALONE, Copies, CopyServices
from iscsid.scsi.lu import LogicalUnit
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId
from iscsid.text.keys import TARGET_OFFERS
from iscsid.wire import lun as lun_field

NOBODY = NexusId("", 0, "", 1)


class Nexus:
    """One session's way to one logical unit, the I_T_L nexus, as ``scsi`` sees it (``scsi.lu.Nexus``).

    Attributes:
        id: the I_T nexus, by which the workers and the supervisor speak of it.
        attentions: the unit attentions that wait for it, oldest first.
        restricted: a reservation of another nexus, or the state of the port, stands in the way of some commands.
        copies: the third-party copies that were started through it.
    """

    __slots__ = (
        "attentions",
        "copies",
        "id",
        "initiator_name",
        "luns",
        "portal_group_tag",
        "restricted",
        "target_name",
    )

    def __init__(self, nexus_id: NexusId = NOBODY, luns: Sequence[int] = (), copying: CopyServices = ALONE) -> None:
        self.id = nexus_id
        self.initiator_name = nexus_id.initiator
        self.target_name = nexus_id.target
        self.portal_group_tag = nexus_id.portal_group_tag
        self.luns = luns
        self.attentions: list[Reason] = []
        self.restricted = False
        self.copies = Copies(copying)


Seat = tuple[LogicalUnit, Nexus]


def tell_renewed(
    seats: Mapping[int, Seat], known: Mapping[LogicalUnit, Nexus], luns: Sequence[int], *, changed: bool
) -> None:
    """A session has other ``seats``: those to units that it has not ``known`` begin, and each learns which ``luns``
    there are, by a unit attention where that is ``changed``."""
    for unit, nexus in dict(seats.values()).items():
        nexus.luns = luns
        nexus.restricted = unit.restricts(nexus.id)
        if unit not in known:
            attention.establish(nexus.attentions, Reason.POWER_ON_RESET_OR_BUS_DEVICE_RESET)
        if changed:
            attention.establish(nexus.attentions, Reason.REPORTED_LUNS_DATA_HAS_CHANGED)


class TargetNode:
    """One target.

    Attributes:
        offers: what it offers in negotiation, by the RFC's key names.
        numbered: the logical units by their numbers.
        units: the logical units by the raw LUN field of a PDU, in every form that SAM allows for a number.
        portal_group_tags: the portal groups through which it is served.
        copying: what the worker does for third-party copies.
    """

    __slots__ = ("alias", "copying", "luns", "name", "numbered", "offers", "portal_group_tags", "units")

    def __init__(
        self,
        name: str,
        units: Mapping[int, LogicalUnit],
        *,
        alias: str = "",
        portal_group_tags: Sequence[int] = (1,),
        offers: Mapping[str, str] = TARGET_OFFERS,
        copying: CopyServices = ALONE,
    ) -> None:
        self.name = name
        self.copying = copying
        self.renew(units, alias=alias, portal_group_tags=portal_group_tags, offers=offers)

    def renew(
        self,
        units: Mapping[int, LogicalUnit],
        *,
        alias: str = "",
        portal_group_tags: Sequence[int] = (1,),
        offers: Mapping[str, str] = TARGET_OFFERS,
    ) -> None:
        """Be what another configuration says; sessions that there are learn of it by ``Engine.renew``."""
        self.alias = alias
        self.offers = offers
        self.portal_group_tags = portal_group_tags
        self.luns = tuple(sorted(units))
        self.numbered = dict(units)
        self.units = {form: unit for number, unit in units.items() for form in lun_field.fields(number)}

    def seats(self, initiator_name: str, isid: int, portal_group_tag: int = 1) -> dict[int, Seat]:
        """What a session of this initiator port, through this portal group, finds behind each raw LUN field: the unit,
        and its nexus to it."""
        nexus_id = NexusId(initiator_name, isid, self.name, portal_group_tag)
        nexuses = {unit: Nexus(nexus_id, self.luns, self.copying) for unit in self.units.values()}
        for unit, nexus in nexuses.items():
            nexus.restricted = unit.restricts(nexus_id)
        return {form: (unit, nexuses[unit]) for form, unit in self.units.items()}

    def devices(self) -> Iterable[Guarded]:
        """Every device of the target."""
        return {id(unit.device): unit.device for unit in self.units.values()}.values()
