"""Changes of a running server: another configuration, and media that are reopened, resized or otherwise worked on, one
change at a time.

Everything that may fail comes first: the configuration is read and checked, its media are prepared, and every worker
opens them, unseen. When one of these fails, all of it is undone and nothing has changed. Only then initiators see it
(``Commit``), and what has gone is released when every worker has closed it. A worker that dies meanwhile counts as one
that has answered: its successor is forked with what is in force then.

A medium that cannot be open twice, and one that is to be cut, goes another way: first every worker that has it lets its
commands wait and closes it (``Hold``), then one of them works on it (``Work``), and then it is opened as above. What
fails on this way is undone by opening it again as it was.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from iscsid.daemon import arbiter, plans
from iscsid.daemon.changes import Changes, Kind, LunChange, diff
from iscsid.daemon.children import Child
from iscsid.daemon.errors import StartError
from iscsid.daemon.media import FAILURES, Prepared
from iscsid.daemon.plans import Refused, Task, lun_of
from iscsid.daemon.revision import Key, Revision, write
from iscsid.errors import ConfigError, IscsidError
from iscsid.plugin import resizing
from iscsid.plugin.manager import Plugins
from iscsid.shared.messages import Commit, Held, Hold, Lend, Revise, Revised, Undo, Work, Worked
from iscsid.specs import LunSpec, ServerSpec

if TYPE_CHECKING:
    from iscsid.daemon.supervisor import Supervisor

OPEN_SECONDS: Final = 30.0  # what opening may take; then nothing changes
CLOSE_SECONDS: Final = 60.0  # what ending and closing may take; then the worker is killed
MAX_WAITING: Final = 16  # changes that wait for their turn
HOLD_BATCH: Final = 256  # LUNs in one message

_LATE: Final = {"open": "opened", "work": "done", "hold": "ended and closed"}  # the last step that has begun first
_DONE: Final = {"create": "created", "apply": "applied", "delete": "deleted"}

log = logging.getLogger(__name__)

Reread = Callable[[], tuple[ServerSpec, Plugins]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a change: ``rows`` for people ([what, how]), and ``problems``, with which nothing has changed.

    ``facts`` are what work on a medium has answered.
    """

    rows: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


Done = Callable[[Answer], None]


@dataclass(eq=False, slots=True)
class _Change:
    """The one that is under way. ``waits`` counts the answers that workers owe, ``told`` are those that know of it.

    ``works`` are done while ``held`` LUNs are closed; ``aside``: they do not change anything, and nothing is held.
    ``other``: there are other data on the LUNs then. ``working`` are the workers at it.
    """

    number: int
    changes: Changes
    plugins: Plugins
    done: Done
    works: list[Task] = field(default_factory=list)
    aside: bool = False
    other: bool = False
    rows: tuple[tuple[str, str], ...] | None = None
    deadline: float = 0.0
    steps: deque[str] = field(default_factory=deque)  # that are to come
    begun: set[str] = field(default_factory=set)
    held: list[Key] = field(default_factory=list)
    prepared: list[Prepared] = field(default_factory=list)
    fresh: list[Prepared] = field(default_factory=list)  # of those, what is to be undone when it does not happen
    relayered: list[Prepared] = field(default_factory=list)  # and those of which only the layers are
    owners: dict[str, int] = field(default_factory=dict)
    revision: Revision | None = None
    waits: Counter[Child] = field(default_factory=Counter)
    told: set[Child] = field(default_factory=set)
    working: set[Child] = field(default_factory=set)
    worked: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    committed: bool = False
    gone: list[Prepared] = field(default_factory=list)
    unlayered: list[Prepared] = field(default_factory=list)

    def answered(self, child: Child) -> None:
        """A worker owes one answer less."""
        self.waits[child] -= 1
        self.waits = +self.waits


class Reloader:
    """What changes a server; ``reread`` reads its configuration once more, None: it has none."""

    def __init__(self, server: Supervisor, reread: Reread | None) -> None:
        self._server = server
        self._reread = reread
        self._current: _Change | None = None
        self._waiting: deque[Callable[[float], None]] = deque()
        self._number = 0

    # -- what is asked -----------------------------------------------------------------------------------------------

    def reload(self, done: Done, now: float) -> None:
        """Read the configuration again and do what it says; ``done`` is called when that is so, or with problems."""
        self._queue(partial(self._reload, done), done, now)

    def reopen(self, target: str, lun: int, done: Done, now: float, size: int | None = None, cut: bool = False) -> None:
        """Give a LUN ``size`` bytes; None: whatever its medium has now. Its sessions go on. Only with ``cut`` it may
        become smaller, and loses what is behind."""
        self._queue(partial(self._reopen, target, lun, size, cut, done), done, now)

    def snapshot(self, target: str, lun: int, action: str, name: str, done: Done, now: float) -> None:
        """Create, apply, delete or list snapshots of a LUN, by the verb "snapshot" of its back end."""
        self._queue(partial(self._snapshot, target, lun, action, name, done), done, now)

    def clone(self, target: str, lun: int, file: str, done: Done, now: float) -> None:
        """Have the back end of a LUN make ``file`` of what it holds now. One that has snapshots makes it of one, beside
        the server: then ``done`` gets the fact "medium", and nothing is made."""
        self._queue(partial(self._clone, target, lun, file, done), done, now)

    def look(self, serial: str, done: Done, now: float) -> None:
        """Reopen a unit, wherever it is a LUN, if its medium may be opened twice: there may be another one now."""
        self._queue(partial(self._look, serial, done), done, now)

    def _queue(self, begin: Callable[[float], None], done: Done, now: float) -> None:
        if len(self._waiting) >= MAX_WAITING:
            done(Answer(problems=("too many changes are under way",)))
            return
        self._waiting.append(begin)
        self._next(now)

    def _next(self, now: float) -> None:
        while self._waiting and self._current is None:
            self._waiting.popleft()(now)

    def _reload(self, done: Done, now: float) -> None:
        if self._reread is None:
            done(Answer(problems=("this server has no configuration file to read again",)))
            return
        try:
            spec, plugins = self._reread()
        except ConfigError as error:
            done(Answer(problems=tuple(str(error).splitlines())))
            return
        except IscsidError as error:
            done(Answer(problems=(str(error),)))
            return
        self._begin(self._change(diff(self._server.spec, spec), plugins, done), now)

    def _reopen(self, target: str, lun: int, size: int | None, cut: bool, done: Done, now: float) -> None:
        server = self._server
        try:
            old = lun_of(server.spec, target, lun)
            if size is None:
                change = self._change(self._again(old.serial, Kind.RELOADED), server.plugins, done)
            elif plans.may_be_resized_in_use(server.plugins, old) and not cut:
                change = self._change(diff(server.spec, plans.resized(server.spec, old.serial, size)), None, done)
            else:
                new = server.spec
                if plans.has_size(server.plugins, old):
                    new = plans.resized(new, old.serial, size)
                if not resizing.can(server.plugins, old.backend):
                    raise Refused(str(resizing.cannot(old.backend)))
                changes = self._again(old.serial, Kind.RESIZED, new)
                work = Task(target.lower(), lun, old.serial, resizing.VERB, {"size": size, "shrink": cut})
                change = self._change(changes, None, done, works=[work])
        except Refused as error:
            done(Answer(problems=(str(error),)))
            return
        self._begin(change, now)

    def _snapshot(self, target: str, lun: int, action: str, name: str, done: Done, now: float) -> None:
        server = self._server
        what = f"target {target.lower()} lun {lun}"
        try:
            old = lun_of(server.spec, target, lun)
            if not resizing.has_verb(server.plugins, old.backend, "snapshot"):
                raise Refused(f"{what}: the back end {old.backend} has no snapshots")
        except Refused as error:
            done(Answer(problems=(str(error),)))
            return
        aside = action == "list"
        changes = Changes(server.spec) if aside else self._again(old.serial, Kind.RELOADED)
        arguments = {"action": action} if aside else {"action": action, "name": name}
        work = Task(target.lower(), lun, old.serial, "snapshot", arguments)
        rows = () if aside else ((what, f"snapshot {name} {_DONE[action]}"),)
        change = self._change(changes, None, done, works=[work], rows=rows)
        change.aside, change.other = aside, action == "apply"
        self._begin(change, now)

    def _clone(self, target: str, lun: int, file: str, done: Done, now: float) -> None:
        server = self._server
        what = f"target {target.lower()} lun {lun}"
        try:
            old = lun_of(server.spec, target, lun)
            if not resizing.has_verb(server.plugins, old.backend, "clone"):
                cannot = f"the back end {old.backend} cannot be cloned in use; copy the disk with `iscsid disk copy`"
                raise Refused(f"{what}: {cannot}")
        except Refused as error:
            done(Answer(problems=(str(error),)))
            return
        if resizing.has_verb(server.plugins, old.backend, "snapshot"):
            plain = {key: value for key, value in old.options.items() if isinstance(value, str | int | None)}
            done(Answer(facts={"medium": {"backend": old.backend, "options": plain}}))
            return
        work = Task(target.lower(), lun, old.serial, "clone", {"to": file})
        changes = self._again(old.serial, Kind.RELOADED)
        self._begin(self._change(changes, None, done, works=[work], rows=((what, f"cloned into {file}"),)), now)

    def _look(self, serial: str, done: Done, now: float) -> None:
        luns = [lun for target in self._server.spec.targets for lun in target.luns if lun.serial == serial]
        if any(plans.keeps(self._server.plugins, lun) for lun in luns):
            done(Answer())  # its layers belong to the medium that was there
            return
        self._begin(self._change(self._again(serial, Kind.RELOADED), None, done), now)

    def _again(self, serial: str, kind: Kind, new: ServerSpec | None = None) -> Changes:
        """The unit with this serial number, wherever it is a LUN, is another; the spec is ``new``, if it is."""
        old, new = self._server.spec, new or self._server.spec
        pairs = [
            (target.name, was, will)
            for target, after in zip(old.targets, new.targets, strict=True)
            for was, will in zip(target.luns, after.luns, strict=True)
        ]
        return Changes(
            new, luns=tuple(LunChange(name, kind, *pair) for name, *pair in pairs if pair[0].serial == serial)
        )

    def _change(self, changes: Changes, plugins: Plugins | None, done: Done, **how: Any) -> _Change:
        self._number += 1
        return _Change(self._number, changes, plugins or self._server.plugins, done, **how)

    # -- before anybody sees it --------------------------------------------------------------------------------------

    def _begin(self, change: _Change, now: float) -> None:
        if not change.changes and not change.works:
            change.done(Answer(tuple((what, how) for what, how in change.changes.rows())))
            return
        self._current = change
        try:
            self._prepare(change)
        except (Refused, OSError) as error:
            self._fail(change, str(error), now)
            return
        self._advance(now)

    def _prepare(self, change: _Change) -> None:
        """What is done once for all workers. Raises Refused."""
        server = self._server
        change.owners = self._owners(change)
        self._must_not_sanitize(change)
        change.held = plans.held(server.plugins, change.changes, everything=bool(change.works))
        change.works = change.works or plans.resizes(change.changes, change.held)
        for lun in change.changes.luns:
            if lun.new is None:
                continue
            try:
                made = self._made(change, lun, lun.new)
            except FAILURES as error:
                raise Refused(f"target {lun.target}, lun {lun.lun}: {error}") from error
            change.prepared.append(made)
        units = [lun.serial for target in change.changes.spec.targets for lun in target.luns]
        server.figures.add(units)
        steps = (("hold", bool(change.held)), ("work", bool(change.works)), ("open", not change.aside))
        change.steps.extend(step for step, wanted in steps if wanted)

    def _must_not_sanitize(self, change: _Change) -> None:
        for lun in change.changes.luns:
            if lun.old is not None and self._server.arbiter.sanitizing(lun.old.serial):
                raise Refused(f"target {lun.target}, lun {lun.lun}: a SANITIZE is under way")

    def _made(self, change: _Change, lun: LunChange, new: LunSpec) -> Prepared:
        media = self._server.media
        held = (lun.target, lun.lun) in change.held
        if lun.kind is Kind.RESIZED and not held:
            return media.resize(lun.target, new)
        if lun.stays and held and (lun.kind is Kind.RESIZED or change.other or not change.works):
            plans.must_not_keep(change.plugins, lun.target, new)
        if lun.kind is Kind.RESIZED or change.other:
            size = None if change.other else next(w.arguments["size"] for w in change.works if w.serial == new.serial)
            made = media.relayered(lun.target, new, size)
            change.relayered.append(made)
            return made
        if lun.kind is Kind.RELOADED and ("path" not in new.options or change.works):
            return media.again(lun.target, lun.lun)
        try:
            made = media.prepare(lun.target, new, change.plugins)
        except FAILURES:
            if lun.kind is not Kind.RELOADED:
                raise
            return media.again(lun.target, lun.lun)  # it can be claimed once only, and so is the same one as before
        change.fresh.append(made)
        return made

    def _owners(self, change: _Change) -> dict[str, int]:
        """The workers that have a target to themselves, as ``placement.owners`` has it. Raises Refused where a target
        that stays would have another."""
        server, spec = self._server, change.changes.spec
        names = {target.name for target in spec.targets}
        owners = {name: index for name, index in server.owners.items() if name in names}
        touched = {lun.target for lun in change.changes.luns}
        for target in spec.targets:
            if target.name not in touched:
                continue
            alone = any(plans.is_exclusive(change.plugins, lun) for lun in target.luns)
            if target.name in change.changes.added:
                if alone:
                    owners[target.name] = len(owners) % server.count
            elif alone and target.name not in owners:
                what = "that only one process may open needs a restart, for all workers serve the target"
                raise Refused(f"target {target.name}: a LUN {what}")
        return owners

    # -- what workers are told ---------------------------------------------------------------------------------------

    def _hold(self, change: _Change) -> None:
        for child in self._server.fleet.ready():
            self._send_hold(change, child)

    def _send_hold(self, change: _Change, child: Child) -> None:
        """Ask one worker to close what is held."""
        self._owes(change, child)
        for start in range(0, len(change.held), HOLD_BATCH):
            keys = json.dumps(change.held[start : start + HOLD_BATCH])
            self._server.fleet.send(child, Hold(change.number, keys, start + HOLD_BATCH < len(change.held)))

    def _work(self, change: _Change) -> None:
        """Ask one worker for each work. Raises Refused where there is none."""
        for work in change.works:
            owner = self._server.owners.get(work.target)
            able = [child for child in self._server.fleet.ready() if owner in (None, child.index)]
            if not able or (change.held and able[0] not in change.told):
                raise Refused(f"target {work.target}, lun {work.lun}: the worker that has it is about to be replaced")
            self._owes(change, able[0])
            change.working.add(able[0])
            message = Work(change.number, work.target, work.lun, work.verb, json.dumps(work.arguments))
            self._server.fleet.send(able[0], message)

    def _open(self, change: _Change) -> None:
        """Ask every worker. Raises ValueError and OSError."""
        server = self._server
        keys = [(made.target, made.lun.lun) for made in change.prepared]
        arguments = change.plugins.arguments
        change.revision = Revision(
            change.number,
            server.bound(change.changes.spec),
            {key: made.options for key, made in zip(keys, change.prepared, strict=True)},
            {key: made.layers for key, made in zip(keys, change.prepared, strict=True)},
            frozenset((lun.target, lun.lun) for lun in change.changes.luns if lun.stays),
            change.owners,
            None if arguments is None or arguments == server.plugins.arguments else arguments,
            server.figures.columns,
            frozenset(keys if change.other else ()),
        )
        for child in server.fleet.ready():
            self._send_open(change, child)

    def _send_open(self, change: _Change, child: Child) -> None:
        """Ask one worker to open what comes. Raises ValueError and OSError."""
        assert change.revision is not None
        fd, descriptors = write(change.revision)
        self._owes(change, child)
        fleet = self._server.fleet
        for number, descriptor in enumerate(descriptors):
            fleet.send(child, Lend(change.number, number), os.dup(descriptor))
        fleet.send(child, Revise(change.number), fd)

    @staticmethod
    def _owes(change: _Change, child: Child) -> None:
        change.told.add(child)
        change.waits[child] += 1

    # -- what workers answer -----------------------------------------------------------------------------------------

    def on_answer(self, child: Child, message: Held | Worked | Revised, now: float) -> None:
        """A worker has closed what waits, has done its work, has opened what comes, or could not; or it has closed what
        goes."""
        change = self._current
        done = isinstance(message, Revised) and message.done
        if change is None or message.revision != change.number or done != change.committed:
            return
        if isinstance(message, Worked):
            change.working.discard(child)
        if message.error:
            self._fail(change, message.error, now)
            return
        if isinstance(message, Worked):
            change.worked = True
            change.facts.update(json.loads(message.answer))
        change.answered(child)
        self._advance(now)

    def on_ready(self, child: Child, now: float) -> None:
        """A worker is there that was forked before the change is in force: it is asked as well."""
        change = self._current
        if change is None or change.committed:
            return
        try:
            if "hold" in change.begun:
                self._send_hold(change, child)
            if "open" in change.begun:
                self._send_open(change, child)
        except (ValueError, OSError) as error:
            self._fail(change, str(error), now)

    def on_death(self, child: Child, now: float) -> None:
        """A worker is reaped."""
        change = self._current
        if change is None:
            return
        del change.waits[child]
        change.told.discard(child)
        if child in change.working:
            change.working.discard(child)
            lost = f"worker {child.index} died at it: it may have been done or not"
            self._fail(change, lost, now)
            return
        self._advance(now)

    def deadline(self) -> float | None:
        """When :meth:`expire` has something to do."""
        return self._current.deadline if self._current is not None else None

    def expire(self, now: float) -> None:
        """See to those who are late."""
        change = self._current
        if change is None or now < change.deadline:
            return
        late = ", ".join(f"worker {child.index}" for child in change.waits)
        if not change.committed:
            what = next(words for step, words in _LATE.items() if step in change.begun)
            self._fail(change, f"not {what} within {OPEN_SECONDS:g} seconds: {late}", now)
            return
        change.deadline = now + CLOSE_SECONDS
        for child in change.waits:
            self._server.fleet.kill(child, "it has not closed what the configuration has no more")

    def _advance(self, now: float) -> None:
        change = self._current
        while change is not None and change is self._current and not change.waits:
            try:
                if change.steps:
                    self._step(change, now)
                elif change.aside or change.committed:
                    self._end(change, now)
                else:
                    self._must_not_sanitize(change)  # one that began since the change did
                    self._commit(change, now)
            except (Refused, StartError, ValueError, OSError) as error:
                self._fail(change, str(error), now)

    def _step(self, change: _Change, now: float) -> None:
        step = change.steps.popleft()
        change.begun.add(step)
        change.deadline = now + OPEN_SECONDS
        {"hold": self._hold, "work": self._work, "open": self._open}[step](change)

    def _commit(self, change: _Change, now: float) -> None:
        """Every worker has it open: from here on it is so. Raises StartError, with nothing changed."""
        server, spec = self._server, change.changes.spec
        places = arbiter.places(spec, change.owners)
        known = arbiter.places(server.spec, server.owners).keys()
        server.arbiter.admit({key: place for key, place in places.items() if key not in known}, now)
        for lun in change.changes.luns:
            if lun.new is None:
                change.gone.append(server.media.take(lun.target, lun.lun))
        for made in change.prepared:
            old = server.media.put(made)
            if old is not None and made in change.fresh:
                change.gone.append(old)
            if old is not None and made in change.relayered:
                change.unlayered.append(old)
        server.spec, server.plugins, server.media.plugins = spec, change.plugins, change.plugins
        server.owners.clear()
        server.owners.update(change.owners)
        change.committed = True
        change.deadline = now + CLOSE_SECONDS
        change.waits = Counter(change.told)
        for child in list(server.fleet):
            if child in change.told:
                server.fleet.send(child, Commit(change.number))
            else:
                server.fleet.kill(child, "it was forked with a configuration that has changed")
        server.arbiter.settle(places, now)

    def _end(self, change: _Change, now: float) -> None:
        if change.aside:
            for child in change.told:
                self._server.fleet.send(child, Undo(change.number))
        for old in change.gone:
            self._server.media.undo(old)
        for old in change.unlayered:
            self._server.media.undo(old, layers_only=True)
        self._current = None
        rows = tuple((what, how) for what, how in change.changes.rows()) if change.rows is None else change.rows
        for what, how in rows:
            log.info("%s: %s", what, how)
        change.done(Answer(rows, facts=change.facts))
        self._next(now)

    def _fail(self, change: _Change, reason: str, now: float) -> None:
        """Nothing of it happens."""
        for child in change.told:
            self._server.fleet.send(child, Undo(change.number))
        for made in change.fresh:
            self._server.media.undo(made)
        for made in change.relayered:
            self._server.media.undo(made, layers_only=True)
        self._current = None
        if change.worked and not change.aside:
            log.error("what is done to the medium stays, and nothing else has changed: %s", reason)
            reason = f"{reason}; but what was asked for is done to the medium"
        else:
            log.error("nothing has changed: %s", reason)
        change.done(Answer(problems=(reason,)))
        self._next(now)
