"""The one writer of what workers share about logical units: in which order it changes, and who has to know before the
initiator does.

Pure: the supervisor tells what it hears and does what comes back. What a change comes to is decided in ``rules``.

One change of a unit is under way at a time. It is executed, kept on disk where it is to outlive the server, sent to
every worker that serves the unit, and answered when the last of them has applied it or is dead (``barrier``). Changes
that were asked for meanwhile wait in line, up to MAX_WAITING; then BUSY is the answer.

A task that a change aborts may itself be waiting here for its turn; it must not be executed after that. So whatever
waits for a nexus whose tasks are aborted, or comes from it before its worker has applied the abort, is answered TASK
ABORTED at once. The same happens to what waits for a session that has ended.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from iscsid.errors import LocalProtocolError, ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.ports import ONE_GROUP, Access
from iscsid.scsi.removable import FIXED, Medium
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId, Outcome
from iscsid.shared import rules
from iscsid.shared.actions import Action, End, Keep, Kill, Tell
from iscsid.shared.barrier import Barrier
from iscsid.shared.changes import Ask, Change
from iscsid.shared.messages import AskReset, AskUnit, SanitizeOver, UnitApplied, UpdateUnit, Withdraw, failure_of
from iscsid.shared.parts import json_text, parts, unit_answer
from iscsid.shared.rules import AccessChange, MediumChange, Request, UnitState

MAX_WAITING: Final = 256  # asks per unit that wait for their turn: two whole command windows
MAX_STATE: Final = 96 * 1024  # bytes of a state in a message; a change that makes it longer is refused
ADMINISTRATOR: Final = -1  # in place of a worker's index: who asks at the control socket
NOBODY: Final = NexusId("", 0, "", 0)
STALL: Final = 5.0  # seconds between two calls of expire() after which nobody could have been heard

log = logging.getLogger(__name__)


# -- what is known -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a unit is: the targets that have it, the workers that serve it (None: all), and the target port groups of
    each target, and the medium, as the server begins with them."""

    targets: frozenset[str]
    workers: frozenset[int] | None = None
    access: Access = field(default_factory=dict)
    medium: Medium = FIXED

    @property
    def ports(self) -> frozenset[tuple[str, int]]:
        """Its target ports: one in each portal group of each target."""
        return frozenset((target, g.tag) for target in self.targets for g in self.access.get(target, ONE_GROUP))


@dataclass(eq=False, slots=True)
class _Unit:
    """One unit. ``current`` is under way: until ``barrier`` is there its outcome is not in force yet."""

    key: str
    place: Place
    state: UnitState = field(default_factory=UnitState)
    text: str = ""  # the state as the workers are told it
    generation: int = 0
    waiting: deque[Change] = field(default_factory=deque)
    lost: dict[NexusId, None] = field(default_factory=dict)  # nexuses whose loss is to be looked at first
    current: Change | None = None
    barrier: Barrier | None = None
    sanitizer: int | None = None  # the worker that executes the sanitize operation of the state
    unsure: bool = False  # whether what is on disk is what should be: the last attempt to write it has failed

    def take(self, state: UnitState) -> None:
        """A new state comes into force."""
        self.state = state
        self.text = _state_text(state)
        self.generation += 1

    @property
    def orphaned(self) -> bool:
        """Whether nobody executes the sanitize operation that the state says is under way."""
        return self.sanitizer is None and rules.sanitizing(self.state)


class Authority:
    """All units of the server, by key (the serial number)."""

    def __init__(self, units: Mapping[str, Place]) -> None:
        self._units = {
            key: _Unit(key, place, UnitState(access=place.access, medium=place.medium)) for key, place in units.items()
        }
        self._workers: set[int] = set()
        self._sessions: dict[int, tuple[int, NexusId]] = {}  # TSIH -> worker and nexus
        self._open: Counter[NexusId] = Counter()  # how many sessions each nexus has: two while one takes over
        self._asks: dict[tuple[int, int], Ask] = {}
        self._last_expire: float | None = None

    def restore(self, unit: str, plain: Mapping[str, Any]) -> None:
        """Start with what was kept of ``unit``. Before the first worker is ready. Raises ValueError."""
        here = self._units[unit]
        here.take(replace(rules.restore(plain), access=here.place.access, medium=here.place.medium))

    def state(self, unit: str) -> UnitState:
        """The state that is in force, or being brought into force."""
        return self._units[unit].state

    def generation(self, unit: str) -> int:
        """How often the state of ``unit`` has changed."""
        return self._units[unit].generation

    @property
    def asks(self) -> int:
        """How many asks are not answered yet."""
        return len(self._asks)

    # -- another configuration ---------------------------------------------------------------------------------------

    def admit(self, units: Mapping[str, Place], kept: Mapping[str, Mapping[str, Any]]) -> list[Action]:
        """Units that come, before any initiator sees them; ``kept`` is what was kept of some. Raises ValueError, with
        none of them there."""
        made = {key: _Unit(key, at, UnitState(access=at.access, medium=at.medium)) for key, at in units.items()}
        for key, plain in kept.items():
            unit = made[key]
            unit.take(replace(rules.restore(plain), access=unit.place.access, medium=unit.place.medium))
        self._units.update(made)
        return [
            Tell(worker, _update(unit, "[]", "[]", "as it was kept"))
            for unit in made.values()
            for worker in sorted(self._workers)
            if unit.generation and _serves(unit, worker)
        ]

    def settle(self, places: Mapping[str, Place], now: float) -> list[Action]:
        """``places`` are all units that there are from now on. What waits for one that has gone ends."""
        out: list[Action] = []
        for key in self._units.keys() - places.keys():
            unit = self._units.pop(key)
            for change in ([unit.current] if unit.current else []) + list(unit.waiting):
                self._settle(change, ScsiError(Reason.LOGICAL_UNIT_NOT_SUPPORTED), out)
        for key, place in places.items():
            unit = self._units[key]
            if unit.place == place:
                continue
            medium = None if unit.place.medium == place.medium else place.medium
            unit.place = place
            if unit.current is not None:  # its outcome is made already, of the state of before
                unit.waiting.appendleft(Change(NOBODY, configured=(place.access, medium)))
                continue
            state = rules.reconfigured(unit.state, place.access, medium)
            if state != unit.state:
                unit.take(state)
                update = _update(unit, "[]", "[]", "another configuration")
                out += [Tell(worker, update) for worker in sorted(self._workers) if _serves(unit, worker)]
        return out + self._advance_all(self._units.values(), now)

    # -- workers and sessions ----------------------------------------------------------------------------------------

    def worker_ready(self, worker: int) -> list[Action]:
        """A worker has been born: what it has to know before its first session."""
        self._workers.add(worker)
        return [
            Tell(worker, _update(unit, "[]", "[]", "as it is"))
            for unit in self._units.values()
            if unit.generation and _serves(unit, worker)
        ]

    def worker_died(self, worker: int, now: float) -> list[Action]:
        """It executes nothing any more, its asks need no answer, and its sessions are gone."""
        self._workers.discard(worker)
        for key in [key for key in self._asks if key[0] == worker]:
            self._asks.pop(key).dead = True
        for unit in self._units.values():
            unit.waiting = deque(change for change in unit.waiting if not (change.ask and change.ask.dead))
        out: list[Action] = []
        for tsih in [tsih for tsih, (home, _) in self._sessions.items() if home == worker]:
            self._forget(tsih, out)
        for unit in self._units.values():
            if unit.barrier is not None:
                unit.barrier.died(worker)
            if unit.sanitizer == worker:
                unit.sanitizer = None
        return out + self._advance_all(self._units.values(), now)

    def session_opened(self, worker: int, tsih: int, nexus: NexusId, now: float) -> list[Action]:
        """A session of ``nexus`` begins. One of the same nexus that is there already ends by that (RFC 7143 6.3.5)."""
        out: list[Action] = []
        if nexus in self._open:
            self._disown(nexus, out)
        self._sessions[tsih] = (worker, nexus)
        self._open[nexus] += 1
        return out + self._advance_all(self._of_target(nexus.target), now)

    def session_closed(self, tsih: int, now: float) -> list[Action]:
        """A session has ended, with all its tasks. Of no concern where it never had opened."""
        if tsih not in self._sessions:
            return []
        _, nexus = self._sessions[tsih]
        out: list[Action] = []
        self._forget(tsih, out)
        return out + self._advance_all(self._of_target(nexus.target), now)

    # -- what workers ask --------------------------------------------------------------------------------------------

    def ask(self, worker: int, message: AskUnit | AskReset, now: float) -> list[Action]:
        """A worker asks. Raises LocalProtocolError where it uses the number of an ask that is not answered yet."""
        if (worker, message.ask) in self._asks:
            raise LocalProtocolError(f"ask {message.ask} is not answered yet")
        nexus = NexusId(message.initiator, message.isid, message.target, message.portal_group_tag)
        if isinstance(message, AskUnit):
            return self._ask_unit(Ask(worker, message.ask, 1), message, nexus, now)
        return self._ask_reset(Ask(worker, message.ask, 1), message, nexus, now)

    def _ask_unit(self, ask: Ask, message: AskUnit, nexus: NexusId, now: float) -> list[Action]:
        unit = self._units.get(message.unit)
        if unit is None:
            return _refusal(ask, ScsiError(Reason.LOGICAL_UNIT_NOT_SUPPORTED))
        if _aborts_now(unit, ask.worker, nexus):
            return _refusal(ask, ScsiError(Status.TASK_ABORTED))
        try:
            cdb, data = bytes.fromhex(message.cdb), bytes.fromhex(message.data)
            facts = json.loads(message.facts) if message.facts else {}
        except ValueError as exc:
            raise LocalProtocolError(f"ask {message.ask}: {exc}") from exc
        change = Change(nexus, ask, Request(nexus, cdb, data, facts=facts))
        return self._enqueue(ask, [(unit, change)], now)

    def change_access(self, number: int, change: AccessChange, now: float) -> list[Action]:
        """The administrator asks, by a number of an ask of his that is not answered yet; for all units of the target,
        one at least. The answer goes to ADMINISTRATOR."""
        units = list(self._of_target(change.target))
        if not units:
            return _refusal(Ask(ADMINISTRATOR, number, 0), ScsiError(Reason.LOGICAL_UNIT_NOT_SUPPORTED))
        ask = Ask(ADMINISTRATOR, number, len(units))
        nobody = NexusId("", 0, change.target, change.tag)
        return self._enqueue(ask, [(unit, Change(nobody, ask, access=change)) for unit in units], now)

    def change_medium(self, number: int, unit: str, change: MediumChange, now: float) -> list[Action]:
        """The administrator loads or ejects the medium of ``unit``; as :meth:`change_access`."""
        here, ask = self._units.get(unit), Ask(ADMINISTRATOR, number, 1)
        if here is None:
            return _refusal(ask, ScsiError(Reason.LOGICAL_UNIT_NOT_SUPPORTED))
        return self._enqueue(ask, [(here, Change(NOBODY, ask, medium=change))], now)

    def _ask_reset(self, ask: Ask, message: AskReset, nexus: NexusId, now: float) -> list[Action]:
        reset = rules.RESETS.get(message.function)
        if reset is None:
            return _refusal(ask, ScsiError(Reason.INVALID_FIELD_IN_CDB))
        units = list(self._of_target(nexus.target))
        if message.unit:
            units = [unit for unit in self._units.values() if unit.key == message.unit]
        if not units:
            return _refusal(ask, ScsiError(Reason.LOGICAL_UNIT_NOT_SUPPORTED))
        ask.units = len(units)
        return self._enqueue(ask, [(unit, Change(nexus, ask, reset=reset)) for unit in units], now)

    def withdraw(self, worker: int, message: Withdraw, now: float) -> list[Action]:
        """A worker does not want any more what it has asked for. What is under way by then happens all the same."""
        ask = self._asks.get((worker, message.ask))
        out: list[Action] = []
        if ask is not None:
            for unit in self._units.values():
                self._abort(unit, lambda change: change.ask is ask, out)
        return out

    def sanitize_over(self, worker: int, message: SanitizeOver, now: float) -> list[Action]:
        """The sanitize operation that ``worker`` was executing has ended. It is looked at before all that waits."""
        unit, ask = self._units.get(message.unit), Ask(worker, message.ask, 1)
        if unit is None or unit.sanitizer != worker:
            return _refusal(ask, ScsiError(Reason.SANITIZE_COMMAND_FAILED))
        self._asks[worker, message.ask] = ask
        unit.waiting.appendleft(Change(NOBODY, ask, sanitized=message.ok))
        return self._advance_all([unit], now)

    def _enqueue(self, ask: Ask, changes: list[tuple[_Unit, Change]], now: float) -> list[Action]:
        if any(len(unit.waiting) >= MAX_WAITING for unit, _ in changes):
            return _refusal(ask, ScsiError(Status.BUSY))
        self._asks[ask.worker, ask.number] = ask
        for unit, change in changes:
            unit.waiting.append(change)
        return self._advance_all([unit for unit, _ in changes], now)

    # -- what becomes of it ------------------------------------------------------------------------------------------

    def kept(self, unit: str, ok: bool, now: float) -> list[Action]:
        """What ``Keep`` asked for is done, or could not be done: then the change does not happen."""
        here = self._units.get(unit)
        if here is None or here.current is None:
            return []  # it has gone meanwhile
        out: list[Action] = []
        here.unsure = not ok
        if not ok and here.current is not None and here.current.sanitized:
            here.sanitizer = None  # nobody would know after a restart that it has completed: so it has not
        if ok:
            self._publish(here, now, out)
        else:
            self._end(here, ScsiError(Reason.INTERNAL_TARGET_FAILURE), out)
        self._advance(here, now, out)
        return out

    def applied(self, worker: int, message: UnitApplied, now: float) -> list[Action]:
        """A worker has applied an update."""
        unit = self._units.get(message.unit)
        if unit is None or unit.barrier is None:
            return []
        change = unit.current
        if message.failure and message.generation == unit.generation and change is not None and change.reset is None:
            change.failure = change.failure or failure_of(message.failure)
        unit.barrier.applied(worker, message.generation)
        return self._advance_all([unit], now)

    def expire(self, now: float) -> list[Action]:
        """Who has had a barrier's time and not applied the change is to be killed. To be called each second."""
        stalled = self._last_expire is not None and now - self._last_expire > STALL
        self._last_expire = now
        out: list[Action] = []
        for unit in self._units.values():
            if unit.barrier is None:
                continue
            if stalled:
                unit.barrier.extend(now)
            name = unit.current.name if unit.current else ""
            reason = f"it has not applied {name} on unit {unit.key}"
            out += [Kill(worker, reason) for worker in unit.barrier.late(now)]
        return out

    def deadline(self) -> float | None:
        """When :meth:`expire` has something to do next."""
        deadlines = [unit.barrier.deadline for unit in self._units.values() if unit.barrier is not None]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    # -- within ------------------------------------------------------------------------------------------------------

    def _advance_all(self, units: Iterable[_Unit], now: float) -> list[Action]:
        out: list[Action] = []
        for unit in units:
            self._advance(unit, now, out)
        return out

    def _advance(self, unit: _Unit, now: float, out: list[Action]) -> None:
        """End what has come through, and begin what is next, until something has to be waited for."""
        while True:
            if unit.barrier is not None and unit.barrier.passed:
                self._through(unit, out)
            if unit.current is not None or not (unit.orphaned or unit.lost or unit.waiting):
                return
            self._begin(unit, now, out)

    def _through(self, unit: _Unit, out: list[Action]) -> None:
        """A change is in force everywhere. MODE SELECT that could not flush the cache it switched off switches it on
        again before it fails; of others the failure is told."""
        change = unit.current
        assert change is not None
        if change.failure and change.request and change.before and change.before.mode != unit.state.mode:
            unit.current = unit.barrier = None
            unit.waiting.appendleft(Change(change.nexus, change.ask, failure=change.failure, undo=change))
        else:
            self._end(unit, change.failure, out)

    def _begin(self, unit: _Unit, now: float, out: list[Action]) -> None:
        change = _next(unit)
        unit.current = change
        outcome = change.outcome = self._execute(unit, change)
        if outcome.error is not None:
            self._end(unit, outcome.error, out)
        elif outcome.state == unit.state and not (outcome.attentions or outcome.aborts or change.reset):
            self._end(unit, change.failure, out)
        elif (change.request or change.undo or change.sanitized) and self._must_keep(unit, outcome):
            out.append(Keep(unit.key, rules.kept(outcome.state)))
        else:
            self._publish(unit, now, out)

    @staticmethod
    def _must_keep(unit: _Unit, outcome: Outcome) -> bool:
        return outcome.persist or unit.unsure or rules.kept(outcome.state) != rules.kept(unit.state)

    def _execute(self, unit: _Unit, change: Change) -> Outcome:
        """What the change comes to; a bug in it costs this one command."""
        if change.reset is not None:
            if change.reset.nexus_only:
                return rules.nexus_reset(unit.state, change.nexus, change.reset)
            return Outcome(rules.reset(unit.state))
        known = frozenset(self._known(unit))
        if change.undo is not None and change.undo.request and change.undo.before:
            return rules.mode_undone(unit.state, change.undo.before, replace(change.undo.request, known=known))
        if change.access is not None:
            return rules.change_access(unit.state, change.access, known)
        if change.medium is not None:
            return rules.change_medium(unit.state, change.medium, known)
        if change.sanitized is not None:
            return Outcome(rules.sanitized(unit.state, change.sanitized))
        if change.configured is not None:
            return Outcome(rules.reconfigured(unit.state, *change.configured))
        if change.request is None:
            return rules.nexus_lost(unit.state, change.nexus)
        try:
            outcome = rules.apply(unit.state, replace(change.request, known=known, ports=unit.place.ports))
        except Exception:
            log.exception("unit %s: %s", unit.key, change.name)
            return Outcome(unit.state, error=ScsiError(Reason.INTERNAL_TARGET_FAILURE))
        if len(json.dumps(_state_text(outcome.state))) > MAX_STATE:
            return Outcome(unit.state, error=ScsiError(Reason.INSUFFICIENT_REGISTRATION_RESOURCES))
        return outcome

    def _publish(self, unit: _Unit, now: float, out: list[Action]) -> None:
        """Bring the outcome into force: from here on there is no way back."""
        change = unit.current
        assert change is not None and change.outcome is not None
        outcome = change.outcome
        if rules.sanitizing(outcome.state) and not rules.sanitizing(unit.state):
            unit.sanitizer = None if change.ask is None or change.ask.dead else change.ask.worker
        change.before = unit.state
        unit.take(outcome.state)
        if change.resets_unit or outcome.aborts:
            aborted = None if change.resets_unit else frozenset(outcome.aborts)
            self._abort(unit, lambda other: aborted is None or other.nexus in aborted, out)
        counts = {}
        for worker in sorted(self._workers):
            if _serves(unit, worker):
                updates = list(self._updates(unit, change, outcome, worker))
                out += [Tell(worker, update) for update in updates]
                counts[worker] = len(updates)
        unit.barrier = Barrier(unit.generation, counts, now)

    def _updates(self, unit: _Unit, change: Change, outcome: Outcome, worker: int) -> Iterator[UpdateUnit]:
        """The messages for one worker."""
        raised = list(self._raised(unit, change, outcome, worker))
        if change.resets_unit:
            for attentions, _ in parts(raised, []):
                yield _update(unit, attentions, '"all"', change.name)
        else:
            for attentions, aborts in parts(raised, [json_text(nexus) for nexus in outcome.aborts]):
                yield _update(unit, attentions, aborts, change.name)

    def _raised(self, unit: _Unit, change: Change, outcome: Outcome, worker: int) -> Iterator[str]:
        """The unit attentions that concern ``worker``: of its own sessions, and of those of which nothing is known."""
        homes: dict[NexusId, set[int]] = {}
        for home, nexus in self._sessions.values():
            homes.setdefault(nexus, set()).add(home)
        for attention in outcome.attentions:
            if worker in homes.get(attention.nexus, {worker}):
                yield json_text([attention.nexus, attention.reason.name])
        if change.reset is not None and change.resets_unit:
            for nexus, at in homes.items():
                if worker in at and nexus.target in unit.place.targets:
                    yield json_text([nexus, change.reset.attention.name])

    def _end(self, unit: _Unit, error: ScsiError | None, out: list[Action]) -> None:
        """The change is through, or does not happen."""
        change = unit.current
        assert change is not None
        unit.current = unit.barrier = None
        self._settle(change, error, out)

    def _settle(self, change: Change, error: ScsiError | None, out: list[Action]) -> None:
        """Answer who asked, when this was the last unit that it waited for."""
        ask = change.ask
        if ask is None:
            return
        ask.units -= 1
        ask.error = ask.error or error
        if ask.units or ask.dead:
            return
        del self._asks[ask.worker, ask.number]
        out.append(_answer(ask, ask.error))
        if change.reset is not None and change.reset.ends_sessions and ask.error is None:
            for tsih, (_, nexus) in self._sessions.items():
                if nexus.target == change.nexus.target:
                    out.append(End(tsih, change.reset.name))

    def _abort(self, unit: _Unit, concerns: Callable[[Change], bool], out: list[Action]) -> None:
        """Answer the commands (no resets: those are no tasks) that wait for their turn and are aborted."""
        stay: deque[Change] = deque()
        for change in unit.waiting:
            if change.request is not None and concerns(change):
                self._settle(change, ScsiError(Status.TASK_ABORTED), out)
            else:
                stay.append(change)
        unit.waiting = stay

    def _known(self, unit: _Unit) -> Iterator[NexusId]:
        return (nexus for nexus in self._open if nexus.target in unit.place.targets)

    def _of_target(self, target: str) -> Iterator[_Unit]:
        return (unit for unit in self._units.values() if target in unit.place.targets)

    def _forget(self, tsih: int, out: list[Action]) -> None:
        """A session is gone; where it was the only one of its nexus, the nexus is lost."""
        _, nexus = self._sessions.pop(tsih)
        self._open[nexus] -= 1
        if not self._open[nexus]:
            del self._open[nexus]
            self._disown(nexus, out)

    def _disown(self, nexus: NexusId, out: list[Action]) -> None:
        """``nexus`` is lost: what its commands wait for does not happen, what goes with it goes."""
        for unit in self._of_target(nexus.target):
            self._abort(unit, lambda change: change.nexus == nexus, out)
            coming = unit.state
            if unit.current is not None and unit.current.outcome is not None and unit.barrier is None:
                coming = unit.current.outcome.state
            if any(rules.nexus_lost(state, nexus).state != state for state in (unit.state, coming)):
                unit.lost[nexus] = None


# -- small things ------------------------------------------------------------------------------------------------------


def _next(unit: _Unit) -> Change:
    """What is to be executed now."""
    if unit.orphaned:
        return Change(NOBODY, sanitized=False)
    return Change(unit.lost.popitem()[0]) if unit.lost else unit.waiting.popleft()


def _serves(unit: _Unit, worker: int) -> bool:
    return unit.place.workers is None or worker in unit.place.workers


def _aborts_now(unit: _Unit, worker: int, nexus: NexusId) -> bool:
    """Whether a change is under way that aborts the tasks of ``nexus`` and that ``worker`` has not applied."""
    change = unit.current
    if change is None or unit.barrier is None or not unit.barrier.waits_for(worker):
        return False
    return change.resets_unit or (change.outcome is not None and nexus in change.outcome.aborts)


def _refusal(ask: Ask, error: ScsiError) -> list[Action]:
    return [_answer(ask, error)]


def _answer(ask: Ask, error: ScsiError | None) -> Tell:
    return Tell(ask.worker, unit_answer(ask.number, error))


def _update(unit: _Unit, attentions: str, aborts: str, reason: str) -> UpdateUnit:
    return UpdateUnit(unit.key, unit.generation, unit.text, attentions, aborts, reason)


def _state_text(state: UnitState) -> str:
    return json_text(rules.to_plain(state))
