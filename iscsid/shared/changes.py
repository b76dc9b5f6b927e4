"""What is asked of the authority, and the change of a unit that each ask is."""

from __future__ import annotations

from dataclasses import dataclass

from iscsid.errors import ScsiError
from iscsid.scsi.ports import Access
from iscsid.scsi.removable import Medium
from iscsid.scsi.state import NexusId, Outcome
from iscsid.shared.rules import AccessChange, MediumChange, Request, Reset, UnitState


@dataclass(eq=False, slots=True)
class Ask:
    """Who waits for an answer, and for how many units' changes."""

    worker: int
    number: int
    units: int
    error: ScsiError | None = None
    dead: bool = False


@dataclass(eq=False, slots=True)
class Change:
    """One change of one unit: a command's, a reset's, or (neither) the loss of ``nexus``.

    ``before`` is the state that it was brought into force over, ``failure`` what a flush that this asked for has failed
    with; ``undo`` is the change that is taken back for that.
    """

    nexus: NexusId
    ask: Ask | None = None
    request: Request | None = None
    reset: Reset | None = None
    access: AccessChange | None = None
    medium: MediumChange | None = None
    outcome: Outcome | None = None
    sanitized: bool | None = None  # how a sanitize operation has ended
    configured: tuple[Access, Medium | None] | None = None  # what another configuration says; None: as it is
    before: UnitState | None = None
    failure: ScsiError | None = None
    undo: Change | None = None

    @property
    def name(self) -> str:
        if self.sanitized is not None:
            return "sanitize completed" if self.sanitized else "sanitize failed"
        if self.reset is not None:
            return self.reset.name
        if self.access is not None:
            return "change of the access state"
        if self.medium is not None:
            return "load" if self.medium.load else "eject"
        if self.configured is not None:
            return "another configuration"
        if self.undo is not None:
            return f"the end of {self.undo.name}"
        return "nexus lost" if self.request is None else f"command {self.request.cdb[:2].hex()}"

    @property
    def resets_unit(self) -> bool:
        """Whether it aborts the tasks of every nexus."""
        return self.reset is not None and not self.reset.nexus_only
