"""How a command ends when it does not end with data: status, sense and residual, from whatever ended it."""

from __future__ import annotations

import logging

from iscsid.errors import BlockError, Fault, ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.sense import build_sense, reason_of
from iscsid.session.connection import TargetConnection
from iscsid.wire.pdu import ScsiCommand, pack_sense

log = logging.getLogger(__name__)

GOOD = int(Status.GOOD)
CHECK_CONDITION = int(Status.CHECK_CONDITION)


class Answers:
    """Answers of one session."""

    __slots__ = ("_connection",)

    def __init__(self, connection: TargetConnection) -> None:
        self._connection = connection

    def good(self, command: ScsiCommand, length: int) -> None:
        """GOOD for a command that moved, or had to move, ``length`` bytes."""
        expected = command.expected_data_transfer_length
        if length == expected:
            self._connection.good(command.initiator_task_tag)
        else:
            self._connection.respond(command.initiator_task_tag, GOOD, b"", expected, length)

    def fail(
        self, command: ScsiCommand, error: Exception, *, writes: bool = False, sent: int = 0, exp_data_sn: int = 0
    ) -> None:
        """CHECK CONDITION with sense data, BUSY or TASK SET FULL, as ``error`` asks.

        ``error`` is what a command or a device raised: ScsiError, BlockError, OSError, or a bug (which becomes HARDWARE
        ERROR). ``sent`` bytes of data had moved before.
        """
        if not isinstance(error, ScsiError | BlockError | OSError) or _is_internal(error):
            log.error("LUN %#x: the device failed", command.lun, exc_info=error)
        reason = reason_of(error, writes)
        tag = command.initiator_task_tag
        expected = command.expected_data_transfer_length
        if isinstance(reason, ScsiError):
            sense = pack_sense(build_sense(reason))
            self._connection.respond(tag, CHECK_CONDITION, sense, expected, sent, exp_data_sn)
        else:
            self._connection.respond(tag, int(reason), b"", expected, sent, exp_data_sn)


def _is_internal(error: Exception) -> bool:
    return isinstance(error, BlockError) and error.fault is Fault.INTERNAL
