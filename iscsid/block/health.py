"""What has gone wrong in one device: counted where it happens, in the guard, and told by the daemon.

A device that is well costs nothing here. One that fails is not well for as long as it goes on failing; when that is
over is for those to say who have a clock.
"""

from __future__ import annotations

from typing import Final

from iscsid.block.fault import fault_of
from iscsid.errors import Fault

READ: Final = "read"
WRITE: Final = "write"
FLUSH: Final = "flush"
KINDS: Final = (READ, WRITE, FLUSH)
"""The kinds of calls, as they are counted: what changes the medium is a write, what only asks of it is a read."""

NOT_READY: Final = frozenset({Fault.NOT_READY, Fault.NO_MEDIUM})
"""The medium, or the way to it, is not there."""

TROUBLE: Final = NOT_READY | {Fault.READ_ERROR, Fault.WRITE_ERROR, Fault.NO_SPACE, Fault.INTERNAL}
"""What a device does not say while it is well; BUSY and refusals are answers as others."""

MAX_WORDS: Final = 200  # characters of an error's reason that are kept


class Health:
    """The errors of one device since it was opened: how many of each kind, and the last one.

    Any thread may note one. ``kind`` is "" before the first.
    """

    __slots__ = ("counts", "fault", "kind", "words")

    def __init__(self) -> None:
        self.counts = dict.fromkeys(KINDS, 0)
        self.kind = ""
        self.fault = Fault.INTERNAL
        self.words = ""

    def note(self, kind: str, error: BaseException) -> None:
        """A call of this ``kind`` ended in ``error``."""
        fault = fault_of(error, writing=kind != READ)
        # A write that the file system refuses is trouble, one that a layer refuses is meant.
        if fault in TROUBLE or (fault is Fault.READ_ONLY and isinstance(error, OSError)):
            self.kind, self.fault, self.words = kind, fault, (str(error) or type(error).__name__)[:MAX_WORDS]
            self.counts[kind] += 1
