"""Whose the bytes are that a session has moved: the session counts them, and this tells its units."""

from __future__ import annotations

from typing import Protocol

from iscsid.target.node import Seat


class Counters(Protocol):
    """What is counted per command, and what does it."""

    read_bytes: int
    written_bytes: int


class Meter:
    """The account of one session.

    Counting by session, and settling when it turns to another unit, costs a command one comparison.

    Attributes:
        seat: where the session's last command went; None: nowhere.
    """

    __slots__ = ("_counters", "_read", "_written", "seat")

    def __init__(self, counters: Counters) -> None:
        self.seat: Seat | None = None
        self._counters = counters
        self._read = self._written = 0  # what is settled

    def turn(self, seat: Seat | None) -> None:
        """The next command goes to ``seat``."""
        self.settle()
        self.seat = seat

    def settle(self) -> None:
        """Add what was moved since the last time to the tally of the unit that it went to."""
        counters = self._counters
        if self.seat is not None:
            tally = self.seat[0].tally
            tally.read_bytes += counters.read_bytes - self._read
            tally.written_bytes += counters.written_bytes - self._written
        self._read, self._written = counters.read_bytes, counters.written_bytes
