"""What the server tells of itself over the control socket: the commands, and the answers that wait for workers."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import iscsid
from iscsid.daemon.access import AccessControl
from iscsid.daemon.administration import Administration
from iscsid.daemon.children import Child, Slot
from iscsid.daemon.control import Client, Control, Handler
from iscsid.shared.messages import Poll
from iscsid.shared.registry import Session, State
from iscsid.specs import LunSpec

if TYPE_CHECKING:
    from iscsid.daemon.supervisor import Supervisor

POLL_TIMEOUT: Final = 0.5  # seconds that figures may take; a worker that is busy for longer gives those of before

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Waiter:
    """A client that waits for the figures of these sessions."""

    client: Client
    sessions: set[int]
    deadline: float


class Reports:
    """The commands of the control socket; ``control`` is set once there is one."""

    control: Control

    def __init__(self, server: Supervisor) -> None:
        self._server = server
        self._waiters: list[_Waiter] = []
        self._told: dict[str, int] = {}
        self._access = AccessControl(server)
        self._administration = Administration(server)
        self.commands: dict[str, Handler] = {
            "status": self._status,
            "sessions": self._sessions,
            "stop": self._stop,
            "alua": self._alua,
            "reload": self._reload,
            "lun": self._lun,
        }

    def heard_of(self, tsih: int) -> None:
        """New figures of a session are there, or its last."""
        for waiter in list(self._waiters):
            waiter.sessions.discard(tsih)
            if not waiter.sessions:
                self._answer(waiter)

    def deadline(self) -> float | None:
        """When :meth:`expire` has something to do."""
        return min((waiter.deadline for waiter in self._waiters), default=None)

    def expire(self, now: float) -> None:
        """Answer with what there is, where a worker takes too long."""
        for waiter in [waiter for waiter in self._waiters if waiter.deadline <= now]:
            self._answer(waiter)

    def log_refusals(self) -> None:
        """One line for all connections that were sent away since the last call: strangers must not fill the log."""
        refused = self._server.doorman.refused
        new = {reason: count - self._told.get(reason, 0) for reason, count in refused.items()}
        parts = [f"{count} {reason}" for reason, count in new.items() if count]
        if parts:
            self._told = dict(refused)
            log.info("connections closed before a login: %s", ", ".join(parts))

    # -- commands ----------------------------------------------------------------------------------------------------

    def _stop(self, _client: Client, _request: Mapping[str, Any], now: float) -> dict[str, Any]:
        self._server.stop("asked by the control socket", now)
        return {"ok": True, "pid": os.getpid()}

    def _alua(self, client: Client, request: Mapping[str, Any], now: float) -> dict[str, Any] | None:
        return self._access.alua(self.control, client, request, now)

    def _reload(self, client: Client, request: Mapping[str, Any], now: float) -> dict[str, Any] | None:
        return self._administration.reload(self.control, client, request, now)

    def _lun(self, client: Client, request: Mapping[str, Any], now: float) -> dict[str, Any] | None:
        return self._administration.lun(self.control, client, request, now)

    def _status(self, _client: Client, _request: Mapping[str, Any], now: float) -> dict[str, Any]:
        server = self._server
        return {
            "ok": True,
            "version": iscsid.__version__,
            "pid": os.getpid(),
            "phase": server.phase.value,
            "uptime": round(now - server.began, 3),
            "portals": [str(listener.portal) for listener in server.listeners],
            "targets": [
                {
                    "name": target.name,
                    "luns": [self._lun_status(target.name, lun, now) for lun in target.luns],
                }
                for target in server.spec.targets
            ],
            "sessions": {state.value: server.registry.count(state) for state in State},
            "callers": len(server.doorman),
            "refused": dict(server.doorman.refused),
            "workers": [self._worker(slot) for slot in server.fleet.slots],
        }

    def _lun_status(self, target: str, lun: LunSpec, now: float) -> dict[str, Any]:
        server = self._server
        medium = server.arbiter.authority.state(lun.serial).medium
        facts = {"lun": lun.lun, "backend": lun.backend, "readonly": lun.readonly}
        return {**facts, "health": server.health.tell((target, lun.lun), medium, now)}

    def _worker(self, slot: Slot) -> dict[str, Any]:
        child = slot.child
        figures = {"index": slot.index, "replaced": slot.replaced, "sessions": self._server.registry.load(slot.index)}
        if child is None:
            return {**figures, "state": "dead", "pid": None}
        process = asdict(self._server.stats.of(child.pid))
        return {**figures, "state": _state(child), "pid": child.pid, **asdict(child.beat), **process}

    def _sessions(self, client: Client, _request: Mapping[str, Any], now: float) -> dict[str, Any] | None:
        """Ask the workers for fresh figures first."""
        awaited = {session.tsih for session in self._server.registry if session.state is State.OPEN}
        if not awaited:
            return self._session_list()
        self._waiters.append(_Waiter(client, awaited, now + POLL_TIMEOUT))
        for child in self._server.fleet.ready():
            if self._server.registry.load(child.index):
                self._server.fleet.send(child, Poll())
        return None

    def _session_list(self) -> dict[str, Any]:
        now = time.monotonic()
        return {"ok": True, "sessions": [_session(session, now) for session in self._server.registry]}

    def _answer(self, waiter: _Waiter) -> None:
        self._waiters.remove(waiter)
        self.control.answer(waiter.client, self._session_list())


def _state(child: Child) -> str:
    if child.doomed:
        return "killed"
    return "starting" if child.ready_at is None else "ready"


def _session(session: Session, now: float) -> dict[str, Any]:
    return {
        "state": session.state.value,
        "worker": session.worker,
        "seconds": round(now - session.since, 3),
        **asdict(session.info),
        "isid": f"{session.info.isid:012x}",
        **asdict(session.figures),
    }
