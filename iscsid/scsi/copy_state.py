"""Third-party copies: what one I_T_L nexus has started, and what a copy asks of the worker that it runs in.

List identifiers belong to one I_T nexus (SPC-4 5.17.3), and so to one session, which lives in one worker: nothing here
is shared. Tokens outlive it, which is why they carry all that is to be known of them (``copy_token``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from iscsid.errors import BlockError, Fault, ScsiError
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

Designation = tuple[int, int, bytes]
"""Code set, designator type and designator of a logical unit, as in VPD page 83h."""

MAX_OPERATIONS = 64  # of one nexus that RECEIVE COPY RESULTS can tell of; the oldest that are over give way


class Party(NamedTuple):
    """A unit that takes part in a copy, and the nexus by which the copy manager reaches it for the initiator."""

    unit: LogicalUnit
    nexus: Nexus


class CopyServices(NamedTuple):
    """What the worker does for its copies.

    ``find`` returns the unit with a designation that an initiator port may use, if this worker serves it, and the nexus
    of that port with it; the asking nexus is given. ``key`` authenticates tokens, the same in every worker. ``now`` is
    a clock in seconds that is the same in every worker.
    """

    find: Callable[[Designation, NexusId], Party | None]
    key: bytes
    now: Callable[[], int]


ALONE = CopyServices(lambda designation, nexus: None, b"", lambda: 0)
"""For a unit that knows of no others."""


class Operation:
    """One copy, under way or over.

    ``segments`` and ``transferred`` (bytes) grow as it proceeds, in a thread of the pool; ``cancelled`` is looked at
    between two pieces. ``error`` is what it ended with. ``token`` is what POPULATE TOKEN made.
    """

    __slots__ = (
        "cancelled",
        "error",
        "list_identifier",
        "running",
        "segments",
        "service_action",
        "token",
        "transferred",
    )

    def __init__(self, list_identifier: int, service_action: int) -> None:
        self.list_identifier = list_identifier
        self.service_action = service_action
        self.running = True
        self.cancelled = False
        self.segments = 0
        self.transferred = 0
        self.error: ScsiError | None = None
        self.token = b""

    def cancel(self) -> None:
        """Let it end with COPY ABORTED before its next piece."""
        self.cancelled = True


class Copies:
    """The copies of one I_T_L nexus, by list identifier, and the services they use."""

    __slots__ = ("_operations", "services")

    def __init__(self, services: CopyServices = ALONE) -> None:
        self.services = services
        self._operations: dict[int, Operation] = {}

    def begin(self, operation: Operation) -> None:
        """Enter an operation; it takes the place of one that is over.

        Raises ScsiError where one with its list identifier is under way, BlockError where too many are.
        """
        operations = self._operations
        former = operations.get(operation.list_identifier)
        if former is not None and not former.running:
            operations.pop(operation.list_identifier, None)
        elif former is None and len(operations) >= MAX_OPERATIONS:
            over = [other for other in list(operations.values()) if not other.running]
            if not over:
                raise BlockError(Fault.NO_RESOURCES, "too many copies at once")
            operations.pop(over[0].list_identifier, None)
        # One step, for two threads of the pool may come with the same list identifier.
        if operations.setdefault(operation.list_identifier, operation) is not operation:
            raise ScsiError(Reason.OPERATION_IN_PROGRESS)

    def get(self, list_identifier: int) -> Operation | None:
        """Return the operation with the list identifier, if it is remembered."""
        return self._operations.get(list_identifier)
