"""TSIHs are never given out twice, counts always agree with the sessions there are, limits hold."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from iscsid.shared.messages import SessionFigures, SessionInfo
from iscsid.shared.registry import MAX_TSIH, Limits, Nexus, Registry, Session, State

LIMITS = Limits(max_sessions=4, max_pending=3, max_pending_per_host=2)
DISK = "iqn.x:disk"


def info(initiator: str = "iqn.x:host", isid: int = 1, target: str = DISK) -> SessionInfo:
    return SessionInfo(initiator, isid, target, "10.0.0.1:1", "10.0.0.2:3260")


def nexus(initiator: str = "iqn.x:host", isid: int = 1, target: str = DISK) -> Nexus:
    return Nexus(initiator, isid, target)


def begin(registry: Registry, worker: int = 0, isid: int = 1, host: str = "10.0.0.1", target: str = DISK) -> Session:
    session = registry.begin(worker, nexus(isid=isid, target=target), host, info(isid=isid, target=target), 1.0)
    assert session is not None
    return session


def open_session(registry: Registry, worker: int = 0, isid: int = 1, target: str = DISK) -> Session:
    session = begin(registry, worker, isid, target=target)
    assert registry.opened(worker, session.tsih, info(isid=isid, target=target), 2.0) == []
    return session


def test_pending_session_counts_as_load_and_names_its_worker() -> None:
    registry = Registry(LIMITS)
    session = begin(registry, worker=2)
    assert registry.load(2) == 1
    assert registry.load(0) == 0
    assert registry.worker_of(nexus()) == 2
    assert registry.worker_of(nexus(isid=9)) is None
    assert registry.get(session.tsih) is session
    assert registry.named(session.tsih, "iqn.x:host", 1) is None, "a login cannot join a session that is not open"


def test_opened_session_is_found_by_tsih_of_its_own_initiator_port_only() -> None:
    registry = Registry(LIMITS)
    session = open_session(registry)
    assert session.state is State.OPEN
    assert session.since == 2.0
    assert registry.named(session.tsih, "iqn.x:host", 1) is session
    assert registry.named(session.tsih, "iqn.x:other", 1) is None
    assert registry.named(session.tsih, "iqn.x:host", 2) is None
    assert registry.named(session.tsih + 1, "iqn.x:host", 1) is None


def test_failed_login_leaves_nothing() -> None:
    registry = Registry(LIMITS)
    session = begin(registry)
    assert registry.closed(0, session.tsih) is session
    assert len(registry) == 0
    assert registry.load(0) == 0
    assert registry.worker_of(nexus()) is None


def test_messages_of_another_worker_change_nothing() -> None:
    registry = Registry(LIMITS)
    session = begin(registry, worker=0)
    assert registry.closed(1, session.tsih) is None
    assert registry.opened(1, session.tsih, info(), 2.0) == []
    registry.figures(1, SessionFigures(session.tsih, 5, 5, 5))
    assert session.state is State.PENDING
    assert session.figures.commands == 0
    assert registry.closed(0, session.tsih + 1) is None


def test_reinstatement_keeps_the_worker_until_the_last_session_of_the_nexus_is_gone() -> None:
    registry = Registry(LIMITS)
    old = open_session(registry, worker=1)
    new = begin(registry, worker=1)
    registry.closed(1, old.tsih)
    assert registry.worker_of(nexus()) == 1
    registry.opened(1, new.tsih, info(), 3.0)
    registry.closed(1, new.tsih)
    assert registry.worker_of(nexus()) is None


def test_failed_reinstatement_leaves_the_old_session() -> None:
    registry = Registry(LIMITS)
    old = open_session(registry, worker=1)
    new = begin(registry, worker=1)
    registry.closed(1, new.tsih)
    assert registry.worker_of(nexus()) == 1
    assert registry.named(old.tsih, "iqn.x:host", 1) is old


def test_login_that_hid_its_nexus_returns_the_session_it_replaces_in_another_worker() -> None:
    registry = Registry(LIMITS)
    old = open_session(registry, worker=0)
    new = begin(registry, worker=1, target="")
    assert registry.opened(1, new.tsih, info(), 3.0) == [old]
    assert new.nexus == nexus()
    assert registry.worker_of(nexus()) == 1
    registry.dropping(old, 3.0)
    assert registry.load(0) == 1, "a session that is being dropped is still there"
    registry.closed(0, old.tsih)
    assert registry.worker_of(nexus()) == 1


def test_discovery_sessions_do_not_reinstate_one_another() -> None:
    registry = Registry(LIMITS)
    open_session(registry, worker=0, target="")
    open_session(registry, worker=1, target="")


def test_dropped_login_holds_its_tsih_and_cannot_open() -> None:
    registry = Registry(LIMITS)
    session = begin(registry)
    registry.dropping(session, 2.0)
    assert registry.opened(0, session.tsih, info(), 3.0) == []
    assert session.state is State.DROPPING
    assert registry.named(session.tsih, "iqn.x:host", 1) is None
    assert begin(registry).tsih != session.tsih
    assert registry.closed(0, session.tsih) is session


def test_tsih_is_not_reused_soon_and_never_while_held() -> None:
    registry = Registry(LIMITS)
    first = begin(registry)
    assert first.tsih == 1
    gone = begin(registry)
    registry.closed(0, gone.tsih)
    assert begin(registry).tsih == 3
    registry._last_tsih = MAX_TSIH
    assert begin(registry).tsih == 2, "1 is held, 0 is reserved"


def test_no_tsih_is_left_when_all_are_held() -> None:
    registry = Registry(LIMITS)
    for _ in range(MAX_TSIH):
        assert registry.begin(0, nexus(), "h", info(), 1.0) is not None
    assert registry.begin(0, nexus(), "h", info(), 1.0) is None
    registry.closed(0, 777)
    session = registry.begin(0, nexus(), "h", info(), 1.0)
    assert session is not None
    assert session.tsih == 777


def test_worker_death_removes_its_sessions_only() -> None:
    registry = Registry(LIMITS)
    lost = [open_session(registry, worker=0, isid=1), begin(registry, worker=0, isid=2)]
    kept = open_session(registry, worker=1, isid=3)
    assert registry.worker_died(0) == lost
    assert list(registry) == [kept]
    assert registry.load(0) == 0
    assert registry.worker_died(0) == []


def test_room_is_made_by_the_oldest_pending_login_of_the_same_host() -> None:
    registry = Registry(LIMITS)
    begin(registry, isid=1, host="other")
    oldest = begin(registry, isid=2, host="busy")
    begin(registry, isid=3, host="busy")
    assert registry.make_room(nexus(isid=4), "busy") == (True, [oldest])


def test_room_is_made_by_the_oldest_pending_login_of_all() -> None:
    registry = Registry(LIMITS)
    oldest = begin(registry, isid=1, host="a")
    begin(registry, isid=2, host="b")
    begin(registry, isid=3, host="c")
    assert registry.make_room(nexus(isid=4), "d") == (True, [oldest])


def test_no_room_when_every_session_is_open() -> None:
    registry = Registry(LIMITS)
    for isid in range(1, 5):
        open_session(registry, isid=isid)
    assert registry.make_room(nexus(isid=9), "h") == (False, [])


def test_room_for_a_session_comes_from_a_pending_login() -> None:
    registry = Registry(LIMITS)
    for isid in range(1, 4):
        open_session(registry, isid=isid)
    pending = begin(registry, isid=5, host="a")
    assert registry.make_room(nexus(isid=9), "h") == (True, [pending])


def test_reinstatement_has_room_once_when_all_sessions_are_open() -> None:
    registry = Registry(LIMITS)
    for isid in range(1, 5):
        open_session(registry, isid=isid)
    assert registry.make_room(nexus(isid=1), "h") == (True, [])
    second = begin(registry, isid=1, host="h")
    assert registry.make_room(nexus(isid=1), "h") == (True, [second])


def test_figures_are_kept_per_session() -> None:
    registry = Registry(LIMITS)
    session = open_session(registry)
    registry.figures(0, SessionFigures(session.tsih, 3, 4096, 512))
    assert session.figures == SessionFigures(session.tsih, 3, 4096, 512)


def test_count_is_by_state() -> None:
    registry = Registry(LIMITS)
    open_session(registry, isid=1)
    begin(registry, isid=2)
    registry.dropping(begin(registry, isid=3), 1.0)
    assert [registry.count(state) for state in (State.PENDING, State.OPEN, State.DROPPING)] == [1, 1, 1]


class RegistryMachine(RuleBasedStateMachine):
    """Any order of events that a supervisor can produce keeps the books straight."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry(LIMITS)
        self.given: set[int] = set()  # TSIHs that a worker may know

    @rule(worker=st.integers(0, 2), isid=st.integers(0, 5), host=st.sampled_from("abc"))
    def login(self, worker: int, isid: int, host: str) -> None:
        room, victims = self.registry.make_room(nexus(isid=isid), host)
        for victim in victims:
            self.registry.dropping(victim, 0.0)
        if not room:
            return
        session = begin(self.registry, worker, isid, host)
        assert session.tsih not in self.given
        self.given.add(session.tsih)

    @rule(data=st.data(), isid=st.integers(0, 5))
    def open(self, data: st.DataObject, isid: int) -> None:
        if self.given:
            session = self.registry.get(data.draw(st.sampled_from(sorted(self.given))))
            assert session is not None
            for other in self.registry.opened(session.worker, session.tsih, info(isid=isid), 0.0):
                self.registry.dropping(other, 0.0)

    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        if self.given:
            tsih = data.draw(st.sampled_from(sorted(self.given)))
            session = self.registry.get(tsih)
            assert session is not None
            assert self.registry.closed(session.worker, tsih) is session
            self.given.remove(tsih)

    @rule(worker=st.integers(0, 2))
    def die(self, worker: int) -> None:
        self.given -= {session.tsih for session in self.registry.worker_died(worker)}

    @invariant()
    def books_agree(self) -> None:
        sessions = list(self.registry)
        assert {session.tsih for session in sessions} == self.given
        for worker in range(3):
            assert self.registry.load(worker) == sum(session.worker == worker for session in sessions)
        listed = [session for group in self.registry._by_nexus.values() for session in group]
        assert sorted(s.tsih for s in listed) == sorted(self.given)
        assert self.registry.count(State.PENDING) <= LIMITS.max_pending


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
