"""The unit attentions that wait for one I_T_L nexus (SAM-5 5.14): their order, and what makes which superfluous.

A queue is a plain list, oldest first. It cannot grow beyond the number of reasons there are.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence

from iscsid.scsi.sense import REASONS, Reason

_RESET_ASC = 0x29  # POWER ON, RESET, OR BUS DEVICE RESET OCCURRED, and its finer forms
# Of these, the one that says more goes before the others (SAM-5 table 46).
_PRECEDENCE = {
    Reason.I_T_NEXUS_LOSS: 1,
    Reason.BUS_DEVICE_RESET_FUNCTION: 2,
    Reason.POWER_ON_RESET_OR_BUS_DEVICE_RESET: 3,
}


def establish(queue: MutableSequence[Reason], reason: Reason) -> None:
    """Add ``reason`` to ``queue``.

    One that waits already is not added again. A power on or reset makes everything before it superfluous: the initiator
    has to look at the unit afresh (SAM-5 5.14.3, 6.3), so it takes the place of what waits, unless that says all of it.
    """
    if REASONS[reason].asc == _RESET_ASC:
        rank = _PRECEDENCE[reason]
        if any(_PRECEDENCE.get(other, 0) > rank for other in queue):
            return
        queue.clear()
    if reason not in queue:
        queue.append(reason)


def reset_waits(queue: Sequence[Reason]) -> bool:
    """Whether ``queue`` tells of a power on or a reset, which is more than the loss of a nexus."""
    return any(_PRECEDENCE.get(reason, 0) > _PRECEDENCE[Reason.I_T_NEXUS_LOSS] for reason in queue)
