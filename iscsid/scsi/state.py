"""What every worker must agree on about one logical unit: a pure value, and what changes it.

The authority in the supervisor is the only one that makes a new state; every worker holds a copy. A command that
changes it (PERSISTENT RESERVE OUT, RESERVE, MODE SELECT, a reset) is sent there whole, is executed by a pure function
of this room, and is answered when every worker has applied what came of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from iscsid.errors import ScsiError
from iscsid.scsi.sense import Reason


class NexusId(NamedTuple):
    """An I_T nexus (RFC 7143 4.4.1): the initiator port is name and ISID, the target port name and portal group."""

    initiator: str
    isid: int
    target: str
    portal_group_tag: int


@dataclass(frozen=True, slots=True)
class Attention:
    """A unit attention for one nexus."""

    nexus: NexusId
    reason: Reason


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a command that wanted to change the state.

    ``error``: the command ends with it (CHECK CONDITION, or RESERVATION CONFLICT as ``ScsiError(Status…)``) and
    nothing else of this counts. ``attentions`` are raised, and the tasks of the nexuses in ``aborts`` on this unit are
    aborted (and have stopped), before the command is answered. ``persist``: the state is on disk before that, too.
    """

    state: Any
    error: ScsiError | None = None
    attentions: tuple[Attention, ...] = ()
    aborts: tuple[NexusId, ...] = ()
    persist: bool = False
