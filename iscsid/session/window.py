"""Which commands may come on a session, and in which order they are taken (RFC 7143 4.2.2.1).

The window is what keeps a session's commands bounded: ``size`` commands may be unfinished, and MaxCmdSN tells the
initiator how many more may follow. ``active`` counts those that were taken and not yet answered. An initiator that does
not keep to MaxCmdSN is not heard: what is beyond it is dropped.

Commands come in order on a connection, so one is held only where another before it was lost to a wrong digest. As many
as the window has, each with at most one data segment, may be held.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from iscsid import serial
from iscsid.wire.pdu import Data


class Numbered(Protocol):
    """A request PDU with a command sequence number."""

    cmd_sn: int
    data: Data


Request = TypeVar("Request", bound=Numbered)


class CommandWindow(Generic[Request]):
    """The target's command numbering.

    Attributes:
        exp_cmd_sn: the next CmdSN to be taken (ExpCmdSN).
        size: how many commands may be unfinished at once.
        active: how many are; ``began`` and ``ended`` count.
        ahead: how far MaxCmdSN is ahead of ExpCmdSN, -1 when the window is closed.
        held: requests that wait for their turn, by CmdSN; None: one that is not awaited, nor executed, any more.
    """

    __slots__ = ("active", "ahead", "exp_cmd_sn", "held", "size")

    def __init__(self, exp_cmd_sn: int, size: int) -> None:
        self.exp_cmd_sn = exp_cmd_sn
        self.size = size
        self.active = 0
        self.ahead = size - 1
        self.held: dict[int, Request | None] = {}

    @property
    def max_cmd_sn(self) -> int:
        """The last CmdSN that may come now. It never moves back: taking a command moves both ends of the window."""
        return (self.exp_cmd_sn + self.ahead) & serial.MASK

    def began(self) -> None:
        """A command was taken that is not answered yet."""
        self.active += 1
        self.ahead -= 1

    def ended(self) -> None:
        """Such a command is answered."""
        self.active -= 1
        self.ahead += 1

    def place(self, request: Request) -> bool:
        """Take ``request``, hold it for its turn, or ignore it; return whether it is to be executed now.

        What lies outside the window, or came before, is ignored without an answer, as the RFC asks. Only a request that
        is held gets a copy of its data.
        """
        distance = serial.distance(self.exp_cmd_sn, request.cmd_sn)
        if distance > self.ahead:
            return False
        if distance == 0:
            self.exp_cmd_sn = serial.add(request.cmd_sn, 1)
            return True
        if request.cmd_sn not in self.held:
            request.data = memoryview(bytes(request.data))
            self.held[request.cmd_sn] = request
        return False

    def skip(self, cmd_sn: int) -> None:
        """Use up the number of a command that was refused before it was looked at, if it is its turn."""
        if cmd_sn == self.exp_cmd_sn and self.ahead >= 0:
            self.exp_cmd_sn = serial.add(cmd_sn, 1)

    def next_held(self) -> Request | None:
        """Take the held request whose turn has come, if there is one."""
        while self.exp_cmd_sn in self.held:
            request = self.held.pop(self.exp_cmd_sn)
            self.exp_cmd_sn = serial.add(self.exp_cmd_sn, 1)
            if request is not None:
                return request
        return None

    def give_up(self, cmd_sn: int, before: int, mine: Callable[[Request], bool]) -> bool:
        """Take a request that has not come, or waits for its turn and is ``mine``, as received: it is never executed.

        False where ``cmd_sn`` lies outside the window, or not before ``before``, the number of who asks for that.
        """
        distance = serial.distance(self.exp_cmd_sn, cmd_sn)
        if distance > self.ahead or not serial.less(cmd_sn, before):
            return False
        held = self.held.get(cmd_sn)
        if held is not None and not mine(held):
            return False
        self.held[cmd_sn] = None
        return True

    def drop(self, before: int, chosen: Callable[[Request], bool]) -> None:
        """Never execute those of the held requests before ``before`` that are ``chosen``."""
        for cmd_sn, request in self.held.items():
            if request is not None and serial.less(cmd_sn, before) and chosen(request):
                self.held[cmd_sn] = None
