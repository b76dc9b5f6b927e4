"""Another configuration in a worker that is running: opened unseen, then shown, and what has gone is closed.

The supervisor says when. Nothing that initiators see changes before every worker has opened what comes (``Revise``),
and when one cannot, all of them close it again (``Undo``). Media that cannot be open twice are closed before, while
their commands wait (``Hold``, see ``holder``), and may be worked on meanwhile (``Work``). At ``Commit`` the sessions of
a target see other units between two commands; a session whose target has gone, or that would not be let in any more,
ends, and no other does. Devices that nobody is to use any more are flushed and closed when the last command that uses
them has ended.

What the supervisor says is done one after the other. An ``Undo`` does not wait, but for the step that is under way.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from iscsid.block.guard import Guarded
from iscsid.daemon.conduit import Conduit
from iscsid.daemon.errands import Errands
from iscsid.daemon.gate import Guest
from iscsid.daemon.holder import Holder, Sessions
from iscsid.daemon.link import Link
from iscsid.daemon.nodes import Committed, Nodes, Staged
from iscsid.daemon.pool import Pool
from iscsid.daemon.revision import Key, Revision, read
from iscsid.daemon.thresholds import Thresholds
from iscsid.daemon.works import perform
from iscsid.plugin.descriptors import found_in
from iscsid.shared.messages import Commit, Held, Hold, Lend, Message, Revise, Revised, Undo, Work, Worked
from iscsid.specs import ServerSpec
from iscsid.target.engine import Engine
from iscsid.target.node import TargetNode

log = logging.getLogger(__name__)

MESSAGES: Final = (Lend, Hold, Work, Revise, Commit, Undo)
LOGOUT_SECONDS: Final = 2.0  # what a session gets to log out by itself when its target goes
SETTLE_SECONDS: Final = 10.0  # what a command may take that uses a device which is to be closed
REASON_LIMIT: Final = 2000  # characters of an error


class Host(Sessions, Protocol):
    """Who has the sessions: the worker."""

    def revised(self, spec: ServerSpec) -> None:
        """This is the configuration from now on."""


@dataclass(eq=False, slots=True)
class _Closing:
    """What is left to do of a revision. ``links`` are sessions that may still use what goes, ``waits`` counts them."""

    number: int
    devices: list[tuple[Key, Guarded]]
    descriptors: list[int]
    links: dict[Link, float]  # when each is closed
    waits: int = 1


class Reviser:
    """One worker's end."""

    def __init__(
        self,
        host: Host,
        nodes: Nodes,
        conduit: Conduit,
        thresholds: Thresholds,
        errands: Errands,
        pool: Pool,
        send: Callable[[Message], None],
    ) -> None:
        self._host = host
        self._nodes = nodes
        self._conduit = conduit
        self._thresholds = thresholds
        self._errands = errands
        self._submit = pool.submit
        self._send = send
        self._holder = Holder(host, nodes, conduit, thresholds, errands, pool)
        self._lent: dict[int, dict[int, int]] = {}  # by revision and number
        self._number = 0  # the revision that has begun here and is neither committed nor undone
        self._busy = False  # a step is under way: what comes waits in _queue
        self._undone = False  # and then all is to be as it was
        self._queue: deque[tuple[Message, int | None]] = deque()
        self._keys: list[Key] = []  # that are to be held
        self._staged: Staged | None = None
        self._received: dict[Key, Sequence[int]] = {}  # descriptors that came for what is served now
        self._closing: list[_Closing] = []

    def on_message(self, message: Lend | Hold | Work | Revise | Commit | Undo, fd: int | None) -> None:
        """The supervisor speaks; the descriptor is ours."""
        if isinstance(message, Lend):
            if fd is not None:
                self._lent.setdefault(message.revision, {})[message.number] = fd
        elif isinstance(message, Undo):
            self._undo(message.revision)
        elif self._busy:
            self._queue.append((message, fd))
        else:
            self._do(message, fd)

    def joined(self, engine: Engine) -> None:
        """A session has begun."""
        self._holder.joined(engine)

    def tick(self, now: float) -> None:
        """Close the sessions that had their time. To be called each second."""
        for closing in list(self._closing):
            for link, deadline in list(closing.links.items()):
                if not link.alive or now >= deadline:
                    link.close("the configuration has changed")
                    del closing.links[link]
                    link.engine.calls.when_idle(partial(self._settled, closing))
        if not self._busy and not self._number:
            self._busy = self._holder.retry(now, self._free)

    def stop(self) -> None:
        """The worker ends, and its calls have: close what is left to be closed."""
        devices = [pair for closing in self._closing for pair in closing.devices]
        devices += [(key, unit.device) for key, unit in self._staged.units.items()] if self._staged is not None else []
        for (target, lun), device in devices:
            try:
                self._nodes.shut(device)
            except Exception as error:  # a device of a stranger may raise anything
                log.error("%s LUN %d: flush or close failed: %s", target, lun, error)
        self._closing.clear()

    # --- before anybody sees it -------------------------------------------------------------------------------------

    def _do(self, message: Message, fd: int | None) -> None:
        """The next step; whoever has to wait for it calls ``_free`` at its end."""
        if isinstance(message, Hold):
            self._number = message.revision
            self._keys += [(target, lun) for target, lun in json.loads(message.luns)]
            if not message.more:
                self._busy = True
                keys, self._keys = self._keys, []
                self._holder.hold(keys, partial(self._held, message.revision))
        elif isinstance(message, Work):
            self._number = message.revision
            self._busy = True
            self._submit(partial(perform, self._nodes.boot, message), partial(self._worked, message.revision))
        elif isinstance(message, Revise):
            self._number = message.revision
            self._revise(message.revision, fd)
        elif self._staged is not None and self._staged.revision.number == getattr(message, "revision", 0):
            self._commit(self._staged)

    def _free(self) -> None:
        """A step is over."""
        self._busy = False
        if self._undone:
            self._back()
        while self._queue and not self._busy:
            self._do(*self._queue.popleft())

    def _held(self, number: int, problem: str) -> None:
        if not self._undone:
            self._send(Held(number, problem[:REASON_LIMIT]))
        self._free()

    def _worked(self, number: int, answer: str | None, error: Exception | None) -> None:
        problem = "" if error is None else str(error) or type(error).__name__
        if not self._undone:
            self._send(Worked(number, answer or "", problem[:REASON_LIMIT]))
        self._free()

    def _revise(self, number: int, fd: int | None) -> None:
        lent = self._lent.pop(number, {})
        descriptors = [lent[key] for key in sorted(lent)]
        try:
            if fd is None:
                raise ValueError("a descriptor was lost: too many files are open")
            revision = read(fd, descriptors)
        except Exception as error:  # a value of a stranger's may raise anything; a descriptor that was lost is missing
            _close(descriptors)
            self._refuse(number, error)
            return
        received = {key: found_in((revision.prepared[key], revision.layers.get(key, ()))) for key in revision.prepared}
        self._nodes.learn(revision.columns)
        self._busy = True
        self._submit(partial(self._nodes.stage, revision, received), partial(self._opened, revision, descriptors))

    def _opened(
        self, revision: Revision, descriptors: Sequence[int], staged: Staged | None, error: Exception | None
    ) -> None:
        if staged is None:
            _close(descriptors)
            if not self._undone:
                self._refuse(revision.number, error or ValueError("it cannot be opened"))
        else:
            self._staged = staged
            if not self._undone:
                self._conduit.stage(staged.units.values())
                self._send(Revised(revision.number, False))
        self._free()

    def _refuse(self, number: int, error: Exception) -> None:
        self._send(Revised(number, False, (str(error) or type(error).__name__)[:REASON_LIMIT]))

    def _undo(self, number: int) -> None:
        _close(self._lent.pop(number, {}).values())
        waiting, self._queue = self._queue, deque()
        for message, fd in waiting:
            if getattr(message, "revision", 0) != number:
                self._queue.append((message, fd))
            elif fd is not None:
                _close([fd])
        if number != self._number:
            return
        if self._busy:
            self._undone = True
            self._holder.give_up()
        else:
            self._back()

    def _back(self) -> None:
        """Close what was opened, and then have what was held as it was."""
        self._busy, self._undone, self._number = True, False, 0
        self._keys.clear()
        staged, self._staged = self._staged, None
        if staged is not None:
            self._conduit.renew(self._nodes.by_serial())
        left = 1

        def closed(_result: object = None, error: Exception | None = None) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                log.error("close failed: %s", error)
            if not left:
                self._holder.back(self._free)

        for key, unit in staged.units.items() if staged is not None else ():
            left += 1
            _close(staged.received[key] if staged is not None else ())
            self._submit(partial(self._nodes.shut, unit.device, flush=False), closed)
        closed()

    # --- when it is seen --------------------------------------------------------------------------------------------

    def _commit(self, staged: Staged) -> None:
        self._staged = None
        self._number = 0
        before = self._nodes.boot
        done = self._nodes.commit(staged)
        units = self._nodes.by_serial()
        self._conduit.renew(units)
        self._thresholds.renew(unit for here in units.values() for unit in here)
        self._host.revised(staged.revision.spec)
        descriptors: list[int] = []
        for key, _ in done.closing:
            inherited = (before.prepared.get(key, {}), before.layers.get(key, ()))
            received = self._received.pop(key, None)
            descriptors += found_in(inherited) if received is None else received
        self._received |= staged.received
        devices = [(key, device) for key, device in done.closing if not device.closed]
        closing = _Closing(staged.revision.number, devices, descriptors, {})
        self._closing.append(closing)
        for link, guest in list(self._host.guests().items()):
            guest.move(self._nodes.gate)
            self._renew(link, guest, done, closing)
        for engine in list(self._host.leaving()) if devices else ():
            closing.waits += 1
            engine.calls.when_idle(partial(self._settled, closing))
        self._holder.release()
        self._settled(closing)

    def _renew(self, link: Link, guest: Guest, done: Committed, closing: _Closing) -> None:
        """What one connection sees of it."""
        engine, now = link.engine, time.monotonic()
        node = engine.node
        if link.established is None:
            if not guest.may_go_on([gone.name for gone in done.removed]):
                link.close("the configuration has changed")
        elif node in done.removed:
            engine.connection.request_logout(int(LOGOUT_SECONDS))
            self._wait(closing, link, now + LOGOUT_SECONDS)
            link.flush()
        elif not guest.may_stay(_name(node), engine.connection.parameters.initiator_name):
            link.close("may not use the target any more")
        elif node is not None:
            settled = _nothing
            if closing.devices:  # whatever is under way may be in one of them, for a copy reaches all
                self._wait(closing, link, now + SETTLE_SECONDS)
                settled = partial(self._link_settled, closing, link)
            if node.name in done.targets or any(unit in node.numbered.values() for unit in done.replaced.values()):
                engine.renew(done.replaced, settled, luns=node.name in done.targets, other=done.other)
            else:
                engine.settled(settled)
            link.flush()

    @staticmethod
    def _wait(closing: _Closing, link: Link, until: float) -> None:
        closing.links[link] = until
        closing.waits += 1

    def _link_settled(self, closing: _Closing, link: Link) -> None:
        if closing.links.pop(link, None) is not None:
            self._settled(closing)

    def _settled(self, closing: _Closing) -> None:
        """One less is waited for; after the last, and what is done beside the sessions, the devices are closed."""
        closing.waits -= 1
        if not closing.waits:
            self._errands.shut([device for _, device in closing.devices], partial(self._shut, closing))

    def _shut(self, closing: _Closing) -> None:
        devices, closing.devices = closing.devices, []
        left = len(devices)

        def closed(key: Key, _result: object, error: Exception | None) -> None:
            nonlocal left
            left -= 1
            if error is not None:
                log.error("%s LUN %d: flush or close failed: %s", *key, error)
            if not left:
                self._errands.open([device for _, device in devices])
                self._over(closing)

        for key, device in devices:
            self._submit(partial(self._nodes.shut, device), partial(closed, key))
        if not devices:
            self._over(closing)

    def _over(self, closing: _Closing) -> None:
        if closing in self._closing:
            self._closing.remove(closing)
        _close(closing.descriptors)
        self._send(Revised(closing.number, True))


def _nothing() -> None:
    """Nobody waits."""


def _name(node: TargetNode | None) -> str:
    return "" if node is None else node.name


def _close(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
