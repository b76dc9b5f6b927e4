"""Changes of a running server: another configuration, and media that are reopened or resized, one change at a time.

Everything that may fail comes first: the configuration is read and checked, its media are prepared, and every worker
opens them, unseen. When one of these fails, all of it is undone and nothing has changed. Only then initiators see it
(``Commit``), and what has gone is released when every worker has closed it. A worker that dies meanwhile counts as one
that has answered: its successor is forked with what is in force then.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

from iscsid.block.device import Sharing
from iscsid.daemon import arbiter, placement
from iscsid.daemon.changes import Changes, Kind, LunChange, diff
from iscsid.daemon.children import Child
from iscsid.daemon.errors import StartError
from iscsid.daemon.media import FAILURES, Prepared
from iscsid.daemon.revision import Revision, write
from iscsid.errors import ConfigError, IscsidError
from iscsid.plugin.manager import Plugins
from iscsid.shared.messages import Commit, Lend, Revise, Revised, Undo
from iscsid.specs import LunSpec, ServerSpec, TargetSpec

if TYPE_CHECKING:
    from iscsid.daemon.supervisor import Supervisor

OPEN_SECONDS: Final = 30.0  # what opening may take; then nothing changes
CLOSE_SECONDS: Final = 60.0  # what ending and closing may take; then the worker is killed
MAX_WAITING: Final = 16  # changes that wait for their turn

log = logging.getLogger(__name__)

Reread = Callable[[], tuple[ServerSpec, Plugins]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a change: ``rows`` for people ([what, how]), and ``problems``, with which nothing has changed."""

    rows: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()


Done = Callable[[Answer], None]


class Refused(IscsidError):
    """A change that cannot be made; the message is for the administrator."""


@dataclass(eq=False, slots=True)
class _Change:
    """The one that is under way. ``waits`` are the workers that have not answered, ``told`` those that are asked."""

    number: int
    changes: Changes
    plugins: Plugins
    done: Done
    deadline: float
    prepared: list[Prepared] = field(default_factory=list)
    fresh: list[Prepared] = field(default_factory=list)  # of those, what is to be undone when it does not happen
    owners: dict[str, int] = field(default_factory=dict)
    revision: Revision | None = None
    waits: set[Child] = field(default_factory=set)
    told: set[Child] = field(default_factory=set)
    committed: bool = False
    gone: list[Prepared] = field(default_factory=list)


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

    def reopen(self, target: str, lun: int, size: int | None, done: Done, now: float) -> None:
        """Give a LUN ``size`` bytes; None: whatever its medium has now. Its sessions go on."""
        self._queue(partial(self._reopen, target, lun, size, done), done, now)

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
        self._begin(diff(self._server.spec, spec), plugins, done, now)

    def _reopen(self, target: str, lun: int, size: int | None, done: Done, now: float) -> None:
        server = self._server
        try:
            old = lun_of(server.spec, target, lun)
        except Refused as error:
            done(Answer(problems=(str(error),)))
            return
        if size is not None:
            self._begin(diff(server.spec, resized(server.spec, old.serial, size)), server.plugins, done, now)
            return
        self._reopen_all(old.serial, done, now)

    def _reopen_all(self, serial: str, done: Done, now: float) -> None:
        spec = self._server.spec
        changes = tuple(
            LunChange(target.name, Kind.RELOADED, lun, lun)
            for target in spec.targets
            for lun in target.luns
            if lun.serial == serial
        )
        self._begin(Changes(spec, luns=changes), self._server.plugins, done, now)

    def _look(self, serial: str, done: Done, now: float) -> None:
        spec, plugins = self._server.spec, self._server.plugins
        luns = [lun for target in spec.targets for lun in target.luns if lun.serial == serial]
        if any(self._exclusive(plugins, lun) for lun in luns):
            done(Answer())
        else:
            self._reopen_all(serial, done, now)

    # -- before anybody sees it --------------------------------------------------------------------------------------

    def _begin(self, changes: Changes, plugins: Plugins, done: Done, now: float) -> None:
        if not changes:
            done(Answer(tuple((what, how) for what, how in changes.rows())))
            return
        self._number += 1
        change = self._current = _Change(self._number, changes, plugins, done, now + OPEN_SECONDS)
        try:
            self._prepare(change)
            self._send_all(change)
        except (Refused, StartError, ValueError, OSError) as error:
            self._fail(change, str(error), now)
            return
        self._advance(now)

    def _prepare(self, change: _Change) -> None:
        """What is done once for all workers. Raises Refused."""
        server = self._server
        change.owners = self._owners(change)
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
        )

    def _made(self, change: _Change, lun: LunChange, new: LunSpec) -> Prepared:
        media = self._server.media
        if lun.stays and self._exclusive(change.plugins, new):
            raise Refused(f"target {lun.target}, lun {lun.lun}: one process has its medium, and cannot have it twice")
        if _medium(new) in self._given_up(change):
            what = "one process has its medium, which a reload cannot pass on; it needs a restart"
            raise Refused(f"target {lun.target}, lun {lun.lun}: {what}")
        if lun.kind is Kind.RESIZED:
            return media.resize(lun.target, new)
        if lun.kind is Kind.RELOADED and "path" not in new.options:
            return media.again(lun.target, lun.lun)
        try:
            made = media.prepare(lun.target, new, change.plugins)
        except FAILURES:
            if lun.kind is not Kind.RELOADED:
                raise
            return media.again(lun.target, lun.lun)  # it can be claimed once only, and so is the same one as before
        change.fresh.append(made)
        return made

    def _given_up(self, change: _Change) -> list[object]:
        """The media that one process has to itself and that their LUNs are without afterwards.

        The new LUN is opened before the old one is closed. A layer of the old one (a write-back cache) may have data
        by then that is not on the medium yet, and nothing but the configuration tells that it is the same medium.
        """
        plugins = self._server.plugins
        old = [lun.old for lun in change.changes.luns if lun.old is not None and not lun.stays]
        return [_medium(lun) for lun in old if self._exclusive(plugins, lun)]

    @staticmethod
    def _exclusive(plugins: Plugins, lun: LunSpec) -> bool:
        sharing = plugins.sharing(lun.backend, lun.options, [layer.layer for layer in lun.layers])
        return sharing is not Sharing.SHARED

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
            alone = any(
                placement.is_exclusive(
                    lun, change.plugins.sharing(lun.backend, lun.options, [layer.layer for layer in lun.layers])
                )
                for lun in target.luns
            )
            if target.name in change.changes.added:
                if alone:
                    owners[target.name] = len(owners) % server.count
            elif alone and target.name not in owners:
                what = "that only one process may open needs a restart, for all workers serve the target"
                raise Refused(f"target {target.name}: a LUN {what}")
        return owners

    def _send_all(self, change: _Change) -> None:
        for child in self._server.fleet.ready():
            self._send(change, child)

    def _send(self, change: _Change, child: Child) -> None:
        """Ask one worker to open what comes. Raises ValueError and OSError."""
        assert change.revision is not None
        fd, descriptors = write(change.revision)
        change.told.add(child)
        change.waits.add(child)
        fleet = self._server.fleet
        for number, descriptor in enumerate(descriptors):
            fleet.send(child, Lend(change.number, number), os.dup(descriptor))
        fleet.send(child, Revise(change.number), fd)

    # -- what workers answer -----------------------------------------------------------------------------------------

    def on_revised(self, child: Child, message: Revised, now: float) -> None:
        """A worker has opened what comes, or could not, or has closed what goes."""
        change = self._current
        if change is None or message.revision != change.number or message.done != change.committed:
            return
        if message.error:
            self._fail(change, message.error, now)
            return
        change.waits.discard(child)
        self._advance(now)

    def on_ready(self, child: Child, now: float) -> None:
        """A worker is there that was forked before the change is in force: it is asked as well."""
        change = self._current
        if change is not None and not change.committed and change.revision is not None:
            try:
                self._send(change, child)
            except (ValueError, OSError) as error:
                self._fail(change, str(error), now)

    def on_death(self, child: Child, now: float) -> None:
        """A worker is reaped."""
        if self._current is not None:
            self._current.waits.discard(child)
            self._current.told.discard(child)
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
            self._fail(change, f"not opened within {OPEN_SECONDS:g} seconds: {late}", now)
            return
        change.deadline = now + CLOSE_SECONDS
        for child in change.waits:
            self._server.fleet.kill(child, "it has not closed what the configuration has no more")

    def _advance(self, now: float) -> None:
        change = self._current
        if change is None or change.waits:
            return
        if not change.committed:
            try:
                self._commit(change, now)
            except StartError as error:
                self._fail(change, str(error), now)
                return
        if not change.waits:
            self._end(change, now)

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
        server.spec, server.plugins, server.media.plugins = spec, change.plugins, change.plugins
        server.owners.clear()
        server.owners.update(change.owners)
        change.committed = True
        change.deadline = now + CLOSE_SECONDS
        change.waits = set(change.told)
        for child in list(server.fleet):
            if child in change.told:
                server.fleet.send(child, Commit(change.number))
            else:
                server.fleet.kill(child, "it was forked with a configuration that has changed")
        server.arbiter.settle(places, now)

    def _end(self, change: _Change, now: float) -> None:
        for old in change.gone:
            self._server.media.undo(old)
        self._current = None
        rows = tuple((what, how) for what, how in change.changes.rows())
        for what, how in rows:
            log.info("%s: %s", what, how)
        change.done(Answer(rows))
        self._next(now)

    def _fail(self, change: _Change, reason: str, now: float) -> None:
        """Nothing of it happens."""
        for child in change.told:
            self._server.fleet.send(child, Undo(change.number))
        for made in change.fresh:
            self._server.media.undo(made)
        self._current = None
        log.error("nothing has changed: %s", reason)
        change.done(Answer(problems=(reason,)))
        self._next(now)


def lun_of(spec: ServerSpec, target: str, lun: int) -> LunSpec:
    """The LUN that the administrator means. Raises Refused."""
    for found in spec.targets:
        if found.name == target.lower():
            for each in found.luns:
                if each.lun == lun:
                    return each
            numbers = ", ".join(str(each.lun) for each in found.luns) or "none"
            raise Refused(f"{target} has no LUN {lun}; it has {numbers}")
    raise Refused(f"there is no target {target}")


def resized(spec: ServerSpec, serial: str, size: int) -> ServerSpec:
    """``spec`` with ``size`` bytes for the unit of this serial number, wherever it is a LUN."""

    def changed(target: TargetSpec) -> TargetSpec:
        luns = (
            replace(lun, options={**lun.options, "size": size}) if lun.serial == serial else lun for lun in target.luns
        )
        return replace(target, luns=tuple(luns))

    return replace(spec, targets=tuple(map(changed, spec.targets)))


def _medium(lun: LunSpec) -> object:
    """Equal for two LUNs with one medium, whatever else their options say."""
    return lun.backend, lun.options.get("path", {**lun.options, "size": None})
