"""A logical unit number where there is none (SPC-4 table 160 and SAM-5 4.7.4).

INQUIRY, REPORT LUNS and REQUEST SENSE are answered, since initiators find units by sending them to LUN 0 of any target;
everything else ends in LOGICAL UNIT NOT SUPPORTED.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iscsid.errors import ScsiError
from iscsid.scsi.const import NO_LOGICAL_UNIT, Opcode
from iscsid.scsi.inquiry import DESC, EVPD, STANDARD, VERSION_SPC_4, vpd_page
from iscsid.scsi.plan import Plan, Reply
from iscsid.scsi.report import report_luns
from iscsid.scsi.sense import Reason, build_sense

if TYPE_CHECKING:
    from iscsid.scsi.lu import Nexus


class AbsentUnit:
    """Answers for a logical unit number that leads nowhere; it has ``plan`` as a LogicalUnit has."""

    __slots__ = ()

    def plan(self, cdb: bytes, nexus: Nexus) -> Plan:
        """As ``LogicalUnit.plan``."""
        handler = _HANDLERS.get(cdb[0])
        if handler is None:
            raise ScsiError(Reason.LOGICAL_UNIT_NOT_SUPPORTED)
        return handler(cdb, nexus)


def _inquiry(cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.6.2: peripheral qualifier 011b and device type 1Fh; the only VPD page is the list of pages."""
    page, allocation_length = cdb[2], int.from_bytes(cdb[3:5], "big")
    if page:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2)
    if cdb[1] & EVPD:
        return Reply(vpd_page(NO_LOGICAL_UNIT, 0x00, b"\0")[:allocation_length])
    head = bytes((NO_LOGICAL_UNIT, 0, VERSION_SPC_4, 0x02, STANDARD.size - 5))
    return Reply(head.ljust(8, b"\0").ljust(36).ljust(STANDARD.size, b"\0")[:allocation_length])


def _request_sense(cdb: bytes, nexus: Nexus) -> Plan:
    """SPC-4 6.39: GOOD, with LOGICAL UNIT NOT SUPPORTED as the sense data that was asked for."""
    sense = build_sense(ScsiError(Reason.LOGICAL_UNIT_NOT_SUPPORTED), bool(cdb[1] & DESC))
    return Reply(sense[: cdb[4]])


def _report_luns(cdb: bytes, nexus: Nexus) -> Plan:
    return report_luns(None, cdb, nexus)


_HANDLERS: dict[int, Callable[[bytes, Nexus], Plan]] = {
    int(Opcode.INQUIRY): _inquiry,
    int(Opcode.REQUEST_SENSE): _request_sense,
    int(Opcode.REPORT_LUNS): _report_luns,
}
