"""Whose the bytes are that a session has moved: the session counts them, and this tells its units."""

from __future__ import annotations

from typing import Protocol

from iscsid.target.node import Seat


class Counters(Protocol):
    """What is counted per command, and what does it."""

    read_bytes: int
    written_bytes: int
    commands: int
    write_commands: int
    other_commands: int


class Meter:
    """The account of one session.

    Counting by session, and settling when it turns to another unit, costs a command one comparison. READ commands are
    those that are neither WRITE nor anything else, so that they cost nothing more.

    Attributes:
        seat: where the session's last command went; None: nowhere.
    """

    __slots__ = ("_counters", "_settled", "seat")

    def __init__(self, counters: Counters) -> None:
        self.seat: Seat | None = None
        self._counters = counters
        self._settled = (0, 0, 0, 0)

    def turn(self, seat: Seat | None) -> None:
        """The next command goes to ``seat``."""
        self.settle()
        self.seat = seat

    def settle(self) -> None:
        """Add what was moved since the last time to the tally of the unit that it went to."""
        counters = self._counters
        writes = counters.write_commands
        reads = counters.commands - writes - counters.other_commands
        now = (counters.read_bytes, counters.written_bytes, reads, writes)
        if self.seat is not None:
            tally, then = self.seat[0].tally, self._settled
            tally.read_bytes += now[0] - then[0]
            tally.written_bytes += now[1] - then[1]
            tally.read_commands += now[2] - then[2]
            tally.write_commands += now[3] - then[3]
        self._settled = now
