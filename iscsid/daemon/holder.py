"""Units whose commands wait while their media are closed, changed and opened again.

A medium that one process has to itself cannot be opened a second time to take the place of the first. So nothing begins
on its unit any more (the commands wait as in a line, ``target.order``: they occupy no thread, count against the window
and may be aborted), what has begun ends, and the device is flushed and closed. From there on there are two ways:
another device takes its place (``reviser``), or it is opened again as it was. Where even that fails, the unit is not
ready, and is tried again from time to time; the worker and its other units live on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, Protocol

from iscsid.daemon.conduit import Conduit
from iscsid.daemon.errands import Errands
from iscsid.daemon.gate import Guest
from iscsid.daemon.link import Link
from iscsid.daemon.nodes import Nodes, Reopened
from iscsid.daemon.pool import Pool
from iscsid.daemon.revision import Key
from iscsid.daemon.thresholds import Thresholds
from iscsid.scsi.lu import LogicalUnit
from iscsid.scsi.sense import Reason
from iscsid.target.engine import Engine

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0  # between two tries to open what could not be opened again

Then = Callable[[], None]


class Sessions(Protocol):
    """Who has the sessions: the worker."""

    def guests(self) -> Mapping[Link, Guest]:
        """Every connection, and who is at its other end."""

    def leaving(self) -> Iterable[Engine]:
        """Sessions that are over, with calls in the pool."""


class Holder:
    """Those of one worker."""

    def __init__(
        self, host: Sessions, nodes: Nodes, conduit: Conduit, thresholds: Thresholds, errands: Errands, pool: Pool
    ) -> None:
        self._host = host
        self._nodes = nodes
        self._conduit = conduit
        self._thresholds = thresholds
        self._errands = errands
        self._pool = pool
        self._units: dict[Key, LogicalUnit] = {}
        self._waiting = 0  # counts what has been waited for, so that what is told too late is known
        self._give_up: Callable[[str], None] | None = None  # of a hold that waits for commands to end
        self._next_try = 0.0

    def hold(self, keys: Iterable[Key], then: Callable[[str], None]) -> None:
        """Let the commands of these LUNs wait, as far as they are served here, and close their devices. ``then`` is
        called, at once or later, when that is done, or with what went wrong; then :meth:`back` is to be called."""
        there = {key: unit for key in keys if (unit := self._nodes.unit(key)) is not None}
        self._units = there
        if (problem := self._sanitizing()) or not there:
            then(problem)
            return
        self._nodes.held = units = frozenset(there.values())
        self._give_up = then
        self._waiting += 1
        waiting = self._waiting
        left = 1

        def ended() -> None:
            nonlocal left
            left -= 1
            if not left and waiting == self._waiting:
                self._errands.shut([unit.device for unit in units], partial(self._close, then))

        for engine in self._engines():
            left += 1
            engine.shut(units, ended)
        ended()

    def give_up(self) -> None:
        """:meth:`back` will be called: do not wait for commands any longer, if they are what is waited for."""
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            self._waiting += 1
            self._errands.open([unit.device for unit in self._units.values()])
            give_up("it was given up")

    def _close(self, then: Callable[[str], None]) -> None:
        """Nothing is in the devices any more."""
        self._give_up = None
        hung = [unit.identity.name for unit in self._units.values() if self._pool.hangs(unit.device)]
        problem = f"{hung[0]}: a call hangs in the device" if hung else self._sanitizing()
        if problem:
            then(problem)
            return
        done = partial(self._closed, then)
        self._pool.submit(partial(self._nodes.part, dict(self._units)), done)

    def _closed(self, then: Callable[[str], None], _: object, error: Exception | None) -> None:
        then("" if error is None else str(error) or type(error).__name__)

    def _sanitizing(self) -> str:
        """What to say where an operation erases one of the units: it ends as failed when its device is closed."""
        for (target, lun), unit in self._units.items():
            if unit.sanitize is not None and not unit.sanitize.failed:
                return f"{target} LUN {lun}: a SANITIZE is under way"
        return ""

    def back(self, then: Then) -> None:
        """Have it as it was before :meth:`hold`, and call ``then``."""
        self._waiting += 1
        closed = [key for key, unit in self._units.items() if unit.device.closed]
        if closed:
            self._pool.submit(partial(self._nodes.reopen, closed), partial(self._reopened, then))
        else:
            self.release()
            then()

    def _reopened(self, then: Then, found: Reopened | None, error: Exception | None) -> None:
        assert found is not None, error
        for key, problem in found.problems.items():
            log.error("it cannot be opened again and is not ready: %s", problem)  # which says what
            if (unit := self._nodes.unit(key)) is not None:
                unit.failure = Reason.NOT_READY
        self._restore(found)
        self.release()
        then()

    def _restore(self, found: Reopened) -> None:
        """Have the sessions see what was opened again."""
        if not found.units:
            return
        self._conduit.stage(found.units.values())
        replaced = self._nodes.restore(found)
        units = self._nodes.by_serial()
        self._conduit.renew(units)
        self._thresholds.renew(unit for here in units.values() for unit in here)
        recovered = {new for old, new in replaced.items() if old.failure is not None}
        for link in list(self._host.guests()):
            node = link.engine.node
            if node is not None and not set(node.numbered.values()).isdisjoint(replaced.values()):
                link.engine.renew(replaced, _nothing, luns=False, other=recovered)
        self._errands.open([old.device for old in replaced])
        self._units |= found.units

    def release(self) -> None:
        """Let the commands of the units begin, or of those in their place."""
        self._waiting += 1
        held, self._units, self._nodes.held = self._units, {}, frozenset()
        self._errands.open([unit.device for unit in held.values()])
        units = {*held.values(), *(now for key in held if (now := self._nodes.unit(key)) is not None)}
        if not units:
            return
        for link in list(self._host.guests()):
            link.engine.open(units)
            link.flush()

    def joined(self, engine: Engine) -> None:
        """A session has begun: its commands wait as well."""
        if self._units:
            engine.shut(self._units.values(), _nothing)

    def retry(self, now: float, then: Then) -> bool:
        """Try to open what could not be opened again, if it is time to, and call ``then``; False: there is nothing to
        try. The caller sees to it that nothing is held meanwhile."""
        if now < self._next_try:
            return False
        units = [(name, lun, unit) for name, node in self._nodes.by_name.items() for lun, unit in node.numbered.items()]
        failed = [(name, lun) for name, lun, unit in units if unit.failure is not None]
        if not failed:
            return False
        self._next_try = now + RETRY_SECONDS

        def tried(found: Reopened | None, error: Exception | None) -> None:
            assert found is not None, error
            for key in found.units:
                log.warning("%s LUN %d: it is open again", *key)
            self._restore(found)
            self.release()
            then()

        self._pool.submit(partial(self._nodes.reopen, failed), tried)
        return True

    def _engines(self) -> list[Engine]:
        return [*self._host.leaving(), *(link.engine for link in self._host.guests())]


def _nothing() -> None:
    """Nobody waits."""
