"""How a command ends when it does not end with data: status, sense and residual, from whatever ended it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from iscsid.errors import BlockError, Fault, ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.sense import build_sense, reason_of
from iscsid.session.connection import TargetConnection
from iscsid.target.node import Seat
from iscsid.wire.const import READ, WRITE
from iscsid.wire.pdu import ScsiCommand, pack_sense

log = logging.getLogger(__name__)

GOOD = int(Status.GOOD)
CHECK_CONDITION = int(Status.CHECK_CONDITION)
_BOTH = int(READ | WRITE)


def expected_length(command: ScsiCommand, direction: int) -> int:
    """Return how many bytes the initiator expects to move in ``direction``, READ or WRITE.

    The EDTL of a command with both bits is that of the data-out (RFC 7143 11.3.4); none here moves data both ways.
    """
    flags = command.flags
    return command.expected_data_transfer_length if flags & (direction | WRITE) == direction else 0


class Answers:
    """Answers of one session."""

    __slots__ = ("_connection", "_seat_of")

    def __init__(self, connection: TargetConnection, seat_of: Callable[[int], Seat | None]) -> None:
        """``seat_of`` gives the logical unit, and the nexus to it, for a raw LUN field; None where there is none."""
        self._connection = connection
        self._seat_of = seat_of

    def good(self, command: ScsiCommand, length: int, direction: int) -> None:
        """GOOD for a command that had ``length`` bytes to move in ``direction``, and moved as many as it could.

        An initiator that expects nothing in that direction gets a residual that says that nothing was moved: all of
        what it expects in the other one, or else all of ``length`` (section 11.4.5).
        """
        expected = command.expected_data_transfer_length
        if length and not expected_length(command, direction):
            if not command.flags & _BOTH:
                expected = 0
            if expected:
                length = 0
        if length == expected:
            self._connection.good(command.initiator_task_tag)
        else:
            self._connection.respond(command.initiator_task_tag, GOOD, b"", expected, length)

    def status(self, command: ScsiCommand, status: int) -> None:
        """A status that is no failure and has no data, CONDITION MET; what the initiator expected was not moved."""
        expected = command.expected_data_transfer_length if command.flags & _BOTH else 0
        self._connection.respond(command.initiator_task_tag, status, b"", expected, 0)

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
            seat, descriptor = self._seat_of(command.lun), False
            if seat is not None:
                seat[0].tally.count(reason)
                descriptor = seat[0].mode_state.d_sense
            sense = pack_sense(build_sense(reason, descriptor))
            self._connection.respond(tag, CHECK_CONDITION, sense, expected, sent, exp_data_sn)
        else:
            self._connection.respond(tag, int(reason), b"", expected, sent, exp_data_sn)


def _is_internal(error: Exception) -> bool:
    return isinstance(error, BlockError) and error.fault is Fault.INTERNAL
