"""The unit attentions that wait for one I_T_L nexus (SAM-5 5.14): their order, and what makes which superfluous.

A queue is a plain list, oldest first. It cannot grow beyond the number of reasons there are.
"""

from __future__ import annotations

from collections.abc import MutableSequence

from iscsid.scsi.sense import REASONS, Reason

_RESET_ASC = 0x29  # POWER ON, RESET, OR BUS DEVICE RESET OCCURRED, and its finer forms


def establish(queue: MutableSequence[Reason], reason: Reason) -> None:
    """Add ``reason`` to ``queue``.

    One that waits already is not added again. A power on or reset makes everything before it superfluous: the initiator
    has to look at the unit afresh (SAM-5 5.14.3, 6.3), so it takes the place of what waits.
    """
    if REASONS[reason].asc == _RESET_ASC:
        queue.clear()
    if reason not in queue:
        queue.append(reason)
