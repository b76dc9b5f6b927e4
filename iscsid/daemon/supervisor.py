"""The supervisor: one loop that accepts, places, watches and replaces, and never waits for anybody.

It starts in this order: pid file, portals bound, back ends prepared, workers forked; and when every worker is ready,
the portals open. It stops in the other: portals closed, workers told to finish, killed when they do not, back ends
released. What is decided is decided elsewhere (placement, registry); here is who is told.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
import mmap
import os
import resource
import selectors
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from iscsid.block.device import Sharing
from iscsid.daemon import arbiter, listener, placement, worker
from iscsid.daemon.arbiter import Arbiter
from iscsid.daemon.boot import WorkerBoot
from iscsid.daemon.children import Child, Death, Fleet, Forker, Run
from iscsid.daemon.control import Control
from iscsid.daemon.doorman import Caller, DoorLimits, Doorman
from iscsid.daemon.errors import StartError
from iscsid.daemon.firstpdu import LoginHint
from iscsid.daemon.health import Book
from iscsid.daemon.keeper import Keeper
from iscsid.daemon.listener import Listener
from iscsid.daemon.logs import Logs
from iscsid.daemon.media import Media
from iscsid.daemon.pidfile import PidFile
from iscsid.daemon.reloader import Answer, Reloader, Reread
from iscsid.daemon.reports import Reports
from iscsid.daemon.signals import Requests, Signals
from iscsid.daemon.stats import ProcessStats
from iscsid.shared.figures import FigureTable
from iscsid.shared.messages import (
    Connect,
    Drop,
    Held,
    Message,
    Revised,
    SessionClosed,
    SessionFigures,
    SessionInfo,
    SessionOpened,
    Stop,
    UnitHealth,
    Worked,
)
from iscsid.shared.registry import Limits, Nexus, Registry, Session
from iscsid.specs import LunSpec, PortalSpec, ServerSpec

if TYPE_CHECKING:
    from iscsid.plugin.manager import Plugins

PIDFILE_NAME: Final = "server.pid"
TICK: Final = 1.0  # seconds between two looks at what no event tells
AWAY: Final = 1.0  # seconds in one turn, from which on others may have waited for us
STOP_SHARE: Final = 0.8  # of stop_timeout is the workers' own; the rest is for their flushing and going
COPY_KEY_SIZE: Final = 32  # bytes of the key for tokens of copies: that of the hash
SPARE_UNITS: Final = 4096  # that may come while the server runs: room for their figures, not taken before
MAX_FILES: Final = 65536  # descriptors that are asked for: sessions, callers, and what back ends open

OK: Final = 0
FAILED: Final = 1

log = logging.getLogger(__name__)


class Phase(enum.Enum):
    """Where the server is in its life."""

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Started:
    """What is told when the portals are open: where they are (with the ports that the kernel chose) and who serves."""

    portals: tuple[PortalSpec, ...]
    pids: tuple[int, ...]


def _nothing(*_: object) -> None:
    pass


def serve(
    spec: ServerSpec,
    plugins: Plugins,
    *,
    notify: Callable[[str], None] = _nothing,
    started: Callable[[Started], None] = _nothing,
    sessions: Callable[[Session, bool], None] = _nothing,
    signals: Callable[[], Requests] = Signals,
    run: Run = worker.run,
    reread: Reread | None = None,
) -> int:
    """Serve until a signal or the control socket says stop; the exit code.

    0: stopped, and every worker had finished. 1: it could not start, or something was lost in the stop; the log says
    what. ``notify`` gets the lines of sd_notify(3), ``started`` is called once, when connections may come, and
    ``sessions`` with each session that is logged in (True) or gone (False); none may wait. To be called before any
    other thread is started, for it forks, and in the main thread, unless ``signals`` says where its orders come from
    instead. SIGTERM and SIGINT stop gracefully, the second one at once; SIGHUP asks ``reread`` for the configuration
    and its plugins once more, in the loop, and makes the server what it says. It may raise IscsidError.
    """
    return Supervisor(spec, plugins, run, notify, started, sessions, signals, reread).run()


class Supervisor:
    """One server."""

    def __init__(
        self,
        spec: ServerSpec,
        plugins: Plugins,
        run: Run,
        notify: Callable[[str], None],
        started: Callable[[Started], None],
        sessions: Callable[[Session, bool], None] = _nothing,
        signals: Callable[[], Requests] = Signals,
        reread: Reread | None = None,
    ) -> None:
        self.spec = spec
        self.plugins = plugins
        self.phase = Phase.STARTING
        self.registry = Registry(Limits(spec.max_sessions, spec.max_pending_logins, spec.max_pending_logins_per_host))
        self.stats = ProcessStats()
        self.health = Book()
        self.began = time.monotonic()
        self.listeners: list[Listener] = []
        self._run_worker = run
        self._notify = notify
        self._started = started
        self._tell_session = sessions
        self._make_signals = signals
        self._code = OK
        self._next_tick = self.began
        self._away = False
        self._stop_at: float | None = None
        self._accepting = False
        count = spec.workers or len(os.sched_getaffinity(0))
        self.owners = placement.owners(spec.targets, partial(_sharing, plugins), count)
        self.count = count
        self.reloader = Reloader(self, reread)
        self._copy_key = os.urandom(COPY_KEY_SIZE)

    # -- life --------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """The whole life; the exit code."""
        with contextlib.ExitStack() as stack:
            self._logs = Logs(self.spec.log_level)
            stack.callback(self._logs.close)
            try:
                self._start(stack)
            except StartError as exc:
                log.critical("cannot start: %s", exc)
                return FAILED
            while self.phase is not Phase.STOPPING or any(self.fleet):
                self._turn()
            log.info("stopped")
        return self._code

    def _start(self, stack: contextlib.ExitStack) -> None:
        """Everything up to the fork of the workers; ``stack`` undoes it. Raises StartError."""
        _raise_file_limit()
        runtime_dir = self.spec.runtime_dir
        try:
            os.makedirs(runtime_dir, mode=0o755, exist_ok=True)
        except OSError as exc:
            raise StartError(f"runtime_dir {runtime_dir}: {exc.strerror or exc}") from exc
        self._pidfile = PidFile(os.path.join(runtime_dir, PIDFILE_NAME))
        stack.callback(self._pidfile.release)
        self.listeners = listener.bind(self.spec.portals)
        stack.callback(self._close_listeners)
        self._keeper = Keeper(self.spec.state_dir)
        stack.callback(self._keeper.close)
        self.arbiter = Arbiter(arbiter.places(self.spec, self.owners), self._keeper, self._end_session)
        self.media = Media(self.spec, self.plugins)
        stack.callback(self.media.release)
        self.selector = selectors.DefaultSelector()
        stack.callback(self.selector.close)
        self.reports = Reports(self)
        self.control = Control(runtime_dir, self.selector, self.reports.commands)
        self.reports.control = self.control
        stack.callback(self.control.close)
        limits = DoorLimits(
            self.spec.max_pending_logins, self.spec.max_pending_logins_per_host, self.spec.login_timeout
        )
        self.doorman = Doorman(self.selector, limits, self._place)
        stack.callback(self.doorman.close)
        self._signals = self._make_signals()
        stack.callback(self._signals.close)
        self.selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        self.selector.register(self._keeper, selectors.EVENT_READ, self.arbiter.on_kept)
        self.figures = self._figures()
        forker = Forker(self._run_worker, self._boot, self._logs, self._leave)
        self.fleet = Fleet(self.count, self.selector, forker, self)
        self.arbiter.lead(self.fleet)
        stack.callback(self.fleet.end)
        try:
            self.fleet.start(time.monotonic())
        except OSError as exc:
            raise StartError(f"cannot fork a worker: {exc.strerror or exc}") from exc

    def _figures(self) -> FigureTable:
        units = [lun.serial for target in self.spec.targets for lun in target.luns]
        # Shared with all who are forked from here.
        memory = mmap.mmap(-1, FigureTable.size(self.count, units, SPARE_UNITS))
        return FigureTable(memoryview(memory), self.count, units, SPARE_UNITS)

    def bound(self, spec: ServerSpec) -> ServerSpec:
        """``spec`` with the ports that the kernel chose: the workers tell of them in discovery."""
        return dataclasses.replace(spec, portals=tuple(portal.portal for portal in self.listeners))

    def _boot(self, index: int) -> WorkerBoot:
        """What a worker is born with now."""
        media = self.media
        spec = self.bound(self.spec)
        return WorkerBoot(
            index, spec, self.plugins, media.options, self.owners, self._copy_key, media.layers, self.figures
        )

    def _leave(self) -> None:
        """In a worker just forked: close what is the supervisor's. The epoll descriptor goes first: it is shared with
        the supervisor, and to unregister anything here would unregister it there."""
        self.selector.close()
        self._signals.leave_to_supervisor()
        self._pidfile.close()
        self._keeper.leave()
        self.control.leave()
        self.doorman.leave()
        for portal in self.listeners:
            portal.close()
        self.fleet.leave()

    def _turn(self) -> None:
        """One round of the loop."""
        events = self.selector.select(self._patience(time.monotonic()))
        woken = time.monotonic()
        for key, mask in sorted(events, key=lambda event: not self.fleet.owns(event[0].fd)):
            key.data(mask, time.monotonic())
        now = time.monotonic()
        # After a turn that took long, what came meanwhile is heard before anybody is found to be late.
        self._away = not self._away and now - woken > AWAY
        if self._away:
            return
        self.doorman.expire(now)
        self.reports.expire(now)
        self.arbiter.expire(now)
        self.reloader.expire(now)
        self.fleet.tick(now, self.spec.worker_timeout)
        if self._stop_at is not None and now >= self._stop_at:
            self._kill_all("it did not stop in time")
        if now >= self._next_tick:
            self._next_tick = now + TICK
            self._tick(now)

    def _patience(self, now: float) -> float:
        """How long there is nothing to do but to wait for events."""
        deadlines = [self._next_tick, self.doorman.deadline(), self.reports.deadline(), self._stop_at]
        deadlines += [self.fleet.next_due(), self.arbiter.deadline(), self.reloader.deadline()]
        return max(0.0, min(deadline for deadline in deadlines if deadline is not None) - now)

    def _tick(self, now: float) -> None:
        """What no event tells."""
        self.control.expire(now)
        self.stats.sample()
        self._logs.prune()
        self.reports.log_refusals()
        self.health.tick({(target.name, lun.lun) for target in self.spec.targets for lun in target.luns}, now)
        if self.phase is Phase.SERVING:
            self.doorman.retry()  # who waits for a worker that did not come as soon as hoped
            if not self._accepting:
                self._accept_again()

    # -- connections -------------------------------------------------------------------------------------------------

    def _open_portals(self) -> None:
        try:
            for portal in self.listeners:
                portal.open()
        except OSError as exc:
            self._abort(f"portal {portal.portal}: {exc.strerror or exc}")
            return
        self.phase = Phase.SERVING
        self._accept_again()
        portals = tuple(portal.portal for portal in self.listeners)
        log.info("serving on %s with %d workers", ", ".join(map(str, portals)), self.count)
        self._notify("READY=1")
        self._started(Started(portals, tuple(child.pid for child in self.fleet)))

    def _accept_again(self) -> None:
        for portal in self.listeners:
            self.selector.register(portal, selectors.EVENT_READ, partial(self._on_connections, portal))
        self._accepting = True

    def _pause_accepting(self) -> None:
        """Until the next tick: with no descriptor left the listening sockets would wake the loop for nothing."""
        if self._accepting:
            for portal in self.listeners:
                self.selector.unregister(portal)
            self._accepting = False

    def _on_connections(self, portal: Listener, _mask: int, now: float) -> None:
        for _ in range(listener.ACCEPT_BATCH):
            if not self._accepting:
                return
            try:
                accepted = portal.accept()
            except OSError as exc:
                log.error("cannot accept connections: %s", exc.strerror or exc)
                self._pause_accepting()
                return
            if accepted is None:
                return
            self.doorman.admit(*accepted, now, portal.portal.portal_group_tag)

    def _place(self, caller: Caller, hint: LoginHint) -> bool:
        """Give a caller to its worker; False when that one is not ready."""
        now = time.monotonic()
        tag = caller.portal_group_tag
        nexus = Nexus(hint.initiator, hint.isid, hint.target, tag)
        named = self.registry.named(hint.tsih, hint.initiator, hint.isid) if hint.tsih else None
        index = placement.choose(
            named.worker if named else None,
            self.registry.worker_of(nexus) if hint.target else None,
            self.owners.get(hint.target.lower()),
            {child.index: self.registry.load(child.index) for child in self.fleet.ready()},
            self.fleet.coming(now),
        )
        child = None if index is None else self.fleet.get(index)
        if child is None:
            return False
        info = SessionInfo(hint.initiator, hint.isid, hint.target, caller.peer, caller.portal, portal_group_tag=tag)
        session = named if hint.tsih else self._begin(child, nexus, caller.host, info, now)
        tsih = session.tsih if session else 0
        connect = Connect(tsih, hint.initiator, hint.isid, hint.target, caller.peer, caller.portal, tag)
        self.fleet.send(child, connect, caller.sock.detach())
        log.debug("%s: %s to worker %d as session %d", caller.peer, hint, child.index, tsih)
        return True

    def _begin(self, child: Child, nexus: Nexus, host: str, info: SessionInfo, now: float) -> Session | None:
        room, victims = self.registry.make_room(nexus, host)
        for victim in victims:
            self._drop(victim, "gave way to a newer login", now)
        if not room:
            log.warning("%s: refused: there are %d sessions", info.peer, self.spec.max_sessions)
            return None
        return self.registry.begin(child.index, nexus, host, info, now)

    def _drop(self, session: Session, reason: str, now: float) -> None:
        self.registry.dropping(session, now)
        child = self.fleet.get(session.worker)
        if child is not None:
            self.fleet.send(child, Drop(session.tsih, reason))

    def _end_session(self, tsih: int, reason: str, now: float) -> None:
        session = self.registry.get(tsih)
        if session is not None:
            self._drop(session, reason, now)

    # -- workers -----------------------------------------------------------------------------------------------------

    def on_message(self, child: Child, message: Message, now: float) -> None:
        if isinstance(message, SessionFigures):
            self.registry.figures(child.index, message)
            self.reports.heard_of(message.tsih)
        elif isinstance(message, SessionOpened):
            for other in self.registry.opened(child.index, message.tsih, message.info, now):
                self._drop(other, "reinstated by another connection", now)
            self.arbiter.on_session_opened(child, message.tsih, message.info, now)
            if (session := self.registry.get(message.tsih)) is not None:
                self._tell_session(session, True)
            log.debug("session %d is open in worker %d", message.tsih, child.index)
        elif isinstance(message, SessionClosed):
            if (session := self.registry.closed(child.index, message.tsih)) is not None:
                self._tell_session(session, False)
                self.arbiter.on_session_closed(message.tsih, now)
                log.debug("session %d is closed: %s", message.tsih, message.reason)
            self.reports.heard_of(message.tsih)
        elif isinstance(message, UnitHealth):
            self.health.heard(child.index, message)
        elif isinstance(message, Held | Worked | Revised):
            self.reloader.on_answer(child, message, now)
        elif isinstance(message, arbiter.REQUESTS):
            self.arbiter.on_request(child, message, now)

    def on_ready(self, child: Child, now: float) -> None:
        log.debug("worker %d (pid %d) is ready", child.index, child.pid)
        self.stats.watch(child.pid)
        self.arbiter.on_ready(child, now)
        self.reloader.on_ready(child, now)
        if self.phase is Phase.STARTING and len(self.fleet.ready()) == self.count:
            self._open_portals()
        elif self.phase is Phase.SERVING:
            self.doorman.retry()

    def on_death(self, child: Child, death: Death, now: float) -> None:
        lost = self.registry.worker_died(child.index)
        self.arbiter.on_death(child, now)
        self.reloader.on_death(child, now)
        self.stats.forget(child.pid)
        self.health.died(child.index)
        for session in lost:
            self._tell_session(session, False)
            self.reports.heard_of(session.tsih)
        if self.phase is Phase.STOPPING:
            if death.code != OK:
                self._code = FAILED
                level = logging.DEBUG if child.doomed else logging.ERROR
                log.log(level, "worker %d (pid %d): %s", child.index, child.pid, death)
        elif self.phase is Phase.STARTING:
            self._abort(death.reason or f"worker {child.index}: {death}")
        else:
            log.error(
                "worker %d (pid %d): %s; %d sessions lost; replacing it", child.index, child.pid, death, len(lost)
            )

    # -- stop --------------------------------------------------------------------------------------------------------

    def _on_signals(self, _mask: int, now: float) -> None:
        for number in self._signals.read():
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                self._hang_up(now)
            elif self.phase is Phase.STOPPING:
                log.warning("%s: stopping at once", name)
                self._kill_all()
            else:
                self.stop(name, now)

    def _hang_up(self, now: float) -> None:
        if self.phase is not Phase.SERVING:
            log.warning("SIGHUP: ignored: the server is %s", self.phase.value)
            return
        log.info("SIGHUP: reading the configuration again")
        self.reloader.reload(_tell_reload, now)

    def stop(self, reason: str, now: float) -> None:
        """Begin the graceful stop; the loop ends when the last worker has gone."""
        if self.phase is Phase.STOPPING:
            return
        log.info("stopping (%s)", reason)
        self._enter_stop()
        self._stop_at = now + self.spec.stop_timeout
        for child in self.fleet:
            self.fleet.send(child, Stop(self.spec.stop_timeout * STOP_SHARE))

    def _abort(self, reason: str) -> None:
        """The start has failed: nothing is served yet, so nothing is to be finished."""
        log.critical("cannot start: %s", reason)
        self._code = FAILED
        self._enter_stop()
        self._kill_all()

    def _enter_stop(self) -> None:
        self.phase = Phase.STOPPING
        self._notify("STOPPING=1")
        self._pause_accepting()
        self._close_listeners()
        self.doorman.close()
        self.fleet.stop()

    def _close_listeners(self) -> None:
        for portal in self.listeners:
            portal.close()

    def _kill_all(self, reason: str = "") -> None:
        self._stop_at = None
        for child in self.fleet:
            self.fleet.kill(child, reason)


def _tell_reload(answer: Answer) -> None:
    for problem in answer.problems:
        log.error("reload: %s", problem)
    if not (answer.problems or answer.rows):
        log.info("reload: nothing is different")


def _sharing(plugins: Plugins, lun: LunSpec) -> Sharing:
    return plugins.sharing(lun.backend, lun.options, [layer.layer for layer in lun.layers])


def _raise_file_limit() -> None:
    """Take as many descriptors as this process may have, up to MAX_FILES; a lower hard limit is the operator's."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
