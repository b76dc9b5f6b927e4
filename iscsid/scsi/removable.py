"""Whether the medium is there and turning: START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL, and what each refuses.

The state ``Medium`` is one for all workers. Ejecting does not close the device below: it shuts every initiator out of
it, when what was written is on it, until somebody loads it again. A unit that is not removable can be stopped, too, and
is then not ready for anybody until it is started.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from iscsid.errors import ScsiError
from iscsid.scsi.plan import Ask, Job, Plan
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

NO_FLUSH, LOEJ, START = 0x04, 0x02, 0x01  # byte 4 of START STOP UNIT (SBC-3 5.25)
PREVENT = 0x01  # byte 4 of PREVENT ALLOW MEDIUM REMOVAL (SBC-3 5.15); 10b and 11b are obsolete

# fmt: off
WITHOUT_MEDIUM = frozenset(
    {
        "INQUIRY", "REQUEST_SENSE", "REPORT_LUNS", "START_STOP_UNIT", "PREVENT_ALLOW_MEDIUM_REMOVAL", "LOG_SENSE",
        "MODE_SENSE_6", "MODE_SENSE_10", "MODE_SELECT_6", "MODE_SELECT_10", "RESERVE_6", "RESERVE_10", "RELEASE_6",
        "RELEASE_10", "READ_KEYS", "READ_RESERVATION", "REPORT_CAPABILITIES", "READ_FULL_STATUS", "REGISTER",
        "RESERVE", "RELEASE", "CLEAR", "PREEMPT", "PREEMPT_AND_ABORT", "REGISTER_AND_IGNORE_EXISTING_KEY",
        "REGISTER_AND_MOVE", "COPY_OPERATION_ABORT", "RECEIVE_COPY_STATUS_LID1",
        "RECEIVE_COPY_OPERATING_PARAMETERS", "RECEIVE_COPY_FAILURE_DETAILS_LID1", "RECEIVE_COPY_STATUS_LID4",
        "RECEIVE_ROD_TOKEN_INFORMATION", "REPORT_TARGET_PORT_GROUPS", "SET_TARGET_PORT_GROUPS", "REPORT_REFERRALS",
        "REPORT_SUPPORTED_OPERATION_CODES", "REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS",
    }
)
# fmt: on
"""The commands that are executed without a medium; whatever else there is needs one."""

WHILE_STOPPED = WITHOUT_MEDIUM | {"READ_CAPACITY_10", "READ_CAPACITY_16"}
"""The commands that are executed while the unit is stopped: the capacity can be told of a medium that is there."""


@dataclass(frozen=True, slots=True)
class Medium:
    """What is known of the medium of a unit.

    ``removable``: it can be ejected. ``loaded``: it is there. ``started``: it is ready for use once it is there.
    ``prevents``: the nexuses that do not allow its removal.
    """

    removable: bool = False
    loaded: bool = True
    started: bool = True
    prevents: frozenset[NexusId] = frozenset()

    @property
    def hindrance(self) -> Reason | None:
        """Why the unit is not ready; None: it is."""
        if not self.loaded:
            return Reason.MEDIUM_NOT_PRESENT
        return None if self.started else Reason.INITIALIZING_COMMAND_REQUIRED

    def executes(self, command: str) -> bool:
        """Whether the command with this name is executed in this state."""
        if self.loaded:
            return self.started or command in WHILE_STOPPED
        return command in WITHOUT_MEDIUM

    def to_plain(self) -> dict[str, Any]:
        """As plain values."""
        prevents = [list(nexus) for nexus in sorted(self.prevents)]
        return {"removable": self.removable, "loaded": self.loaded, "started": self.started, "prevents": prevents}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Medium:
        """The inverse."""
        prevents = frozenset(NexusId(*nexus) for nexus in plain["prevents"])
        return cls(plain["removable"], plain["loaded"], plain["started"], prevents)


FIXED = Medium()
"""A medium that stays where it is."""


# -- what the authority makes of the commands ------------------------------------------------------------------------


def start_stop(medium: Medium, cdb: bytes) -> Medium:
    """Return what START STOP UNIT (SBC-3 5.25) makes of ``medium``. Raises ScsiError.

    While its removal is prevented a medium is neither taken out nor put in. One that is out cannot be started, and has
    nothing left to stop.
    """
    start = bool(cdb[4] & START)
    if cdb[4] & LOEJ:
        if start == medium.loaded:
            return dataclasses.replace(medium, started=True) if start else medium
        if medium.prevents:
            raise ScsiError(Reason.MEDIUM_REMOVAL_PREVENTED)
        return dataclasses.replace(medium, loaded=start, started=True)
    if medium.loaded:
        return dataclasses.replace(medium, started=start)
    if start:
        raise ScsiError(Reason.MEDIUM_NOT_PRESENT)
    return medium


def prevent_allow(medium: Medium, nexus: NexusId, cdb: bytes) -> Medium:
    """Return what PREVENT ALLOW MEDIUM REMOVAL (SBC-3 5.15) of ``nexus`` makes of ``medium``."""
    if cdb[4] & PREVENT:
        return dataclasses.replace(medium, prevents=medium.prevents | {nexus})
    return nexus_lost(medium, nexus)


def nexus_lost(medium: Medium, nexus: NexusId) -> Medium:
    """``nexus`` is gone, and what it has prevented with it (SBC-3 5.15)."""
    if nexus not in medium.prevents:
        return medium
    return dataclasses.replace(medium, prevents=medium.prevents - {nexus})


def reset(medium: Medium) -> Medium:
    """A logical unit reset: nothing is prevented (SBC-3 5.15), and the unit is started as it is by power on."""
    return dataclasses.replace(medium, started=True, prevents=frozenset())


def administer(medium: Medium, load: bool, force: bool) -> Medium:
    """Return what the administrator makes of ``medium``; ``force`` takes no heed of what initiators prevent.

    Raises ScsiError: INVALID FIELD IN CDB where the medium is not removable, MEDIUM REMOVAL PREVENTED.
    """
    if not medium.removable:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB)
    if load == medium.loaded:
        return medium
    if medium.prevents and not load and not force:
        raise ScsiError(Reason.MEDIUM_REMOVAL_PREVENTED)
    return dataclasses.replace(medium, loaded=load, started=True, prevents=medium.prevents if load else frozenset())


# -- the commands ----------------------------------------------------------------------------------------------------


def start_stop_unit(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-3 5.25. What is stopped or ejected is on its medium first, or the command fails; NO_FLUSH leaves that out.

    It is answered when it is done, with IMMED as without. LOEJ is refused, as a bit that must be 0, where the medium is
    not removable, and every power condition, for there is no power condition mode page. A medium that is taken out is
    flushed in spite of NO_FLUSH: nobody could do that later.
    """
    stops, ejects = not cdb[4] & START, bool(cdb[4] & LOEJ)
    if stops and lu.volatile and lu.medium.hindrance is None and (ejects or not cdb[4] & NO_FLUSH):
        return Job(partial(_flush, lu), writes=True, then=Ask())
    return Ask()


def _flush(lu: LogicalUnit, _data: memoryview) -> bytes:
    lu.device.flush()
    return b""


def prevent_allow_medium_removal(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-3 5.15: of this nexus."""
    return Ask()
