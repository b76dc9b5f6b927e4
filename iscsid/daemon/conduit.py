"""A worker's line to the authority: what its sessions ask, what comes back, and what changes because of others.

A change of a unit's state is applied here between two commands, to the unit and to every session that sees it, and is
acknowledged when the tasks that it aborts have stopped. So when the authority answers, no worker can still be executing
what the change forbids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count

from iscsid.errors import ScsiError
from iscsid.scsi import reservation
from iscsid.scsi.const import Status
from iscsid.scsi.lu import LogicalUnit, SharedState
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId
from iscsid.shared.messages import AskReset, AskUnit, Message, UnitAnswer, UnitApplied, UpdateUnit
from iscsid.target.engine import Engine

Done = Callable[[ScsiError | None], None]


class Conduit:
    """One worker's end.

    Args:
        units: the logical units of this worker by serial number; several where one medium has several LUNs.
        sessions: the engines of the sessions that are open now.
        send: sends a message to the supervisor.
    """

    def __init__(
        self,
        units: Mapping[str, Sequence[LogicalUnit]],
        sessions: Callable[[], Iterable[Engine]],
        send: Callable[[Message], None],
    ) -> None:
        self._units = units
        self._sessions = sessions
        self._send = send
        self._asks: dict[int, Done] = {}  # bounded by the windows and limits of the sessions that ask
        self._numbers = count(1)

    # --- target.engine.Authority ------------------------------------------------------------------------------------

    def ask(self, unit: str, nexus: NexusId, cdb: bytes, data: bytes, done: Done) -> None:
        """See ``target.engine.Authority``."""
        number = self._remember(done)
        self._send(AskUnit(number, unit, *nexus, cdb.hex(), data.hex()))

    def reset(self, unit: str, nexus: NexusId, function: int, done: Callable[[bool], None]) -> None:
        """See ``target.engine.Authority``."""
        number = self._remember(lambda error: done(error is None))
        self._send(AskReset(number, unit, *nexus, function))

    def _remember(self, done: Done) -> int:
        number = next(self._numbers)
        self._asks[number] = done
        return number

    # --- what the supervisor says -----------------------------------------------------------------------------------

    def answered(self, answer: UnitAnswer) -> None:
        """The authority has executed what was asked, and every worker has applied it."""
        done = self._asks.pop(answer.ask, None)
        if done is not None:
            done(_error_of(answer))

    def update(self, update: UpdateUnit) -> None:
        """Apply a change, and acknowledge it when everything that it aborts has stopped."""
        units = self._units.get(update.unit, ())
        plain = json.loads(update.state)
        state = SharedState(reservation.from_plain(plain["reservations"]))
        for unit in units:
            unit.state = state
        attentions = [Attention(NexusId(*nexus), Reason[name]) for nexus, name in json.loads(update.attentions)]
        aborts = json.loads(update.aborts)
        nexuses = None if aborts == "all" else {NexusId(*nexus) for nexus in aborts}
        left = 1

        def stopped() -> None:
            nonlocal left
            left -= 1
            if not left:
                self._send(UnitApplied(update.unit, update.generation))

        for engine in list(self._sessions()):
            for unit in units:
                left += 1
                engine.update(unit, attentions, nexuses, _once(stopped))
        stopped()


def _once(call: Callable[[], None]) -> Callable[[], None]:
    """``call``, for the first time that it is called."""
    calls = [call]

    def once() -> None:
        if calls:
            calls.pop()()

    return once


def _error_of(answer: UnitAnswer) -> ScsiError | None:
    if answer.status == Status.GOOD:
        return None
    if not answer.reason:
        return ScsiError(Status(answer.status))
    field = None if answer.field < 0 else answer.field
    bit = None if answer.bit < 0 else answer.bit
    return ScsiError(Reason[answer.reason], field=field, bit=bit, in_data=answer.in_data)
