"""A target node as one worker serves it: its name, its logical units, and who is at the other end of a session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableSequence, Sequence

from iscsid.block.guard import Guarded
from iscsid.scsi.lu import LogicalUnit
from iscsid.scsi.sense import Reason
from iscsid.text.keys import TARGET_OFFERS
from iscsid.wire import lun as lun_field


class Nexus:
    """The I_T nexus of one session, as ``scsi`` sees it (``scsi.lu.Nexus``)."""

    __slots__ = ("attentions", "initiator_name", "isid", "luns", "portal_group_tag", "target_name")

    def __init__(
        self,
        initiator_name: str = "",
        isid: int = 0,
        target_name: str = "",
        portal_group_tag: int = 1,
        luns: Sequence[int] = (),
    ) -> None:
        self.initiator_name = initiator_name
        self.isid = isid
        self.target_name = target_name
        self.portal_group_tag = portal_group_tag
        self.luns = luns
        self.attentions: MutableSequence[Reason] | None = None


class TargetNode:
    """One target.

    Attributes:
        offers: what it offers in negotiation, by the RFC's key names.
        units: the logical units by the raw LUN field of a PDU, in every form that SAM allows for a number.
    """

    __slots__ = ("alias", "luns", "name", "offers", "portal_group_tag", "units")

    def __init__(
        self,
        name: str,
        units: Mapping[int, LogicalUnit],
        *,
        alias: str = "",
        portal_group_tag: int = 1,
        offers: Mapping[str, str] = TARGET_OFFERS,
    ) -> None:
        self.name = name
        self.alias = alias
        self.offers = offers
        self.portal_group_tag = portal_group_tag
        self.luns = tuple(sorted(units))
        self.units = {form: unit for number, unit in units.items() for form in lun_field.fields(number)}

    def nexus(self, initiator_name: str, isid: int) -> Nexus:
        """The nexus of a session that has logged in."""
        return Nexus(initiator_name, isid, self.name, self.portal_group_tag, self.luns)

    def devices(self) -> Iterable[Guarded]:
        """Every device of the target."""
        return {id(unit.device): unit.device for unit in self.units.values()}.values()
