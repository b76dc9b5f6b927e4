"""What the supervisor knows of sessions: their TSIHs, who they belong to, and which worker has them.

Pure: time is an argument, and what has to be done comes back as a return value. A session is PENDING from the moment
its connection is given to a worker until its login succeeds or fails, and then OPEN. DROPPING is a session that the
worker was told to end; it holds its TSIH until the worker says that it is gone, so that no TSIH is ever given out
twice while anybody may still know it.

Two limits hold: ``max_sessions`` on what is PENDING or OPEN, and ``max_pending``, in all and per host, on logins. A
stranger who starts logins and never ends them uses up neither: the oldest pending login makes room for a new one.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from iscsid.shared.messages import SessionFigures, SessionInfo

MAX_TSIH = 0xFFFF  # 16 bits, 0 reserved (RFC 7143 section 11.12.6)


class Nexus(NamedTuple):
    """What makes two logins the same session (RFC 7143 section 6.3.5).

    ``target`` is "" for a discovery session and for a first PDU that does not tell.
    """

    initiator: str
    isid: int
    target: str
    portal_group_tag: int = 1


class State(enum.Enum):
    """Where a session is in its life."""

    PENDING = "login"
    OPEN = "open"
    DROPPING = "closing"


@dataclass(slots=True)
class Session:
    """One session, or what may become one. ``since`` is the time of its last change of state."""

    tsih: int
    worker: int
    nexus: Nexus
    host: str
    state: State
    since: float
    info: SessionInfo
    figures: SessionFigures = field(init=False)

    def __post_init__(self) -> None:
        self.figures = SessionFigures(self.tsih, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much there may be at once."""

    max_sessions: int
    max_pending: int
    max_pending_per_host: int


class Registry:
    """Every session of the server."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._sessions: dict[int, Session] = {}  # by TSIH; in order of creation
        self._by_nexus: dict[Nexus, list[Session]] = {}  # the latest last
        self._loads: Counter[int] = Counter()
        self._last_tsih = 0

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def get(self, tsih: int) -> Session | None:
        """The session of this TSIH, whatever its state."""
        return self._sessions.get(tsih)

    def load(self, worker: int) -> int:
        """How many sessions this worker has, pending ones included: they are work that is on its way."""
        return self._loads[worker]

    def count(self, state: State) -> int:
        """How many sessions are in ``state``."""
        return sum(session.state is state for session in self._sessions.values())

    def named(self, tsih: int, initiator: str, isid: int) -> Session | None:
        """The open session that a login with a TSIH other than 0 means.

        None when there is none, and when its initiator port is another: an initiator may not join somebody else's
        session by guessing 16 bits.
        """
        session = self._sessions.get(tsih)
        if session is None or session.state is not State.OPEN:
            return None
        return session if session.nexus[:2] == (initiator, isid) else None

    def worker_of(self, nexus: Nexus) -> int | None:
        """The worker that has a session of ``nexus``, or is about to: a reinstatement belongs there."""
        sessions = self._by_nexus.get(nexus)
        return sessions[-1].worker if sessions else None

    # -- changes -----------------------------------------------------------------------------------------------------

    def make_room(self, nexus: Nexus, host: str) -> tuple[bool, list[Session]]:
        """Whether one more login may begin, and the pending logins that give way to it and are to be dropped.

        A login that reinstates a session replaces it, so it may come even when all ``max_sessions`` are open.
        """
        pending = [session for session in self._sessions.values() if session.state is State.PENDING]
        same_host = [session for session in pending if session.host == host]
        victims: list[Session] = []
        if len(same_host) >= self.limits.max_pending_per_host:
            victims.append(same_host[0])
        elif len(pending) >= self.limits.max_pending:
            victims.append(pending[0])
        live = len(pending) - len(victims) + self.count(State.OPEN)
        if live >= self.limits.max_sessions and not self._reinstates(nexus):
            oldest = next((session for session in pending if session not in victims), None)
            if oldest is None:
                return False, []
            victims.append(oldest)
        return True, victims

    def begin(self, worker: int, nexus: Nexus, host: str, info: SessionInfo, now: float) -> Session | None:
        """A login is given to ``worker``; None when all TSIHs are taken. See :meth:`make_room` for the limits."""
        tsih = self._free_tsih()
        if not tsih:
            return None
        session = Session(tsih, worker, nexus, host, State.PENDING, now, info)
        self._sessions[tsih] = session
        self._by_nexus.setdefault(nexus, []).append(session)
        self._loads[worker] += 1
        return session

    def dropping(self, session: Session, now: float) -> None:
        """The worker is being told to end ``session``."""
        session.state = State.DROPPING
        session.since = now

    def opened(self, worker: int, tsih: int, info: SessionInfo, now: float) -> list[Session]:
        """A login has succeeded. Returns the sessions of the same nexus that *other* workers have.

        Those are to be dropped: the worker reinstates what it has itself, and placement sends a nexus to its worker,
        but the first PDU of a login need not have told the whole nexus.
        """
        session = self._of_worker(worker, tsih)
        if session is None or session.state is not State.PENDING:
            return []
        session.state = State.OPEN
        session.since = now
        session.info = info
        self._rename(session, Nexus(info.initiator, info.isid, info.target, info.portal_group_tag))
        if not info.target:
            return []  # discovery sessions do not reinstate one another
        others = self._by_nexus[session.nexus]
        return [other for other in others if other.worker != worker and other.state is State.OPEN]

    def closed(self, worker: int, tsih: int) -> Session | None:
        """A session has ended, or its login has failed; None when this worker has no such session."""
        session = self._of_worker(worker, tsih)
        if session is not None:
            self._remove(session)
        return session

    def figures(self, worker: int, figures: SessionFigures) -> None:
        """What a session has done so far."""
        session = self._of_worker(worker, figures.tsih)
        if session is not None:
            session.figures = figures

    def worker_died(self, worker: int) -> list[Session]:
        """Every session of ``worker`` is gone with it; they are returned."""
        lost = [session for session in self._sessions.values() if session.worker == worker]
        for session in lost:
            self._remove(session)
        return lost

    # -- within ------------------------------------------------------------------------------------------------------

    def _of_worker(self, worker: int, tsih: int) -> Session | None:
        session = self._sessions.get(tsih)
        return session if session is not None and session.worker == worker else None

    def _reinstates(self, nexus: Nexus) -> bool:
        """Whether a login of ``nexus`` replaces a session; only one such login at a time may go over the limit."""
        sessions = self._by_nexus.get(nexus, ())
        return bool(nexus.target) and len(sessions) == 1 and sessions[0].state is State.OPEN

    def _free_tsih(self) -> int:
        """The next TSIH that nobody holds: the last one used comes back last."""
        if len(self._sessions) >= MAX_TSIH:
            return 0
        tsih = self._last_tsih
        while True:
            tsih = tsih % MAX_TSIH + 1
            if tsih not in self._sessions:
                self._last_tsih = tsih
                return tsih

    def _rename(self, session: Session, nexus: Nexus) -> None:
        if nexus != session.nexus:
            self._forget_nexus(session)
            session.nexus = nexus
            self._by_nexus.setdefault(nexus, []).append(session)

    def _remove(self, session: Session) -> None:
        del self._sessions[session.tsih]
        self._forget_nexus(session)
        self._loads[session.worker] -= 1
        if not self._loads[session.worker]:
            del self._loads[session.worker]

    def _forget_nexus(self, session: Session) -> None:
        sessions = self._by_nexus[session.nexus]
        sessions.remove(session)
        if not sessions:
            del self._by_nexus[session.nexus]
