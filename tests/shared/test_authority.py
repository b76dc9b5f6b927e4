"""Invariants: every ask is answered exactly once or its asker is dead; none before every live worker that serves the
unit has applied the change; one change of a unit at a time, generations grow by one; queues are bounded.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from iscsid.errors import LocalProtocolError, ScsiError
from iscsid.scsi.mode import ModeState
from iscsid.scsi.ports import AccessState, PortGroup
from iscsid.scsi.removable import Medium
from iscsid.scsi.reservation import Reservations
from iscsid.scsi.sanitize import Sanitize
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId, Outcome
from iscsid.shared import rules
from iscsid.shared.actions import Action, End, Keep, Kill, Tell
from iscsid.shared.authority import ADMINISTRATOR, MAX_WAITING, Authority, Place
from iscsid.shared.barrier import DEADLINE
from iscsid.shared.messages import (
    MAX_MESSAGE,
    AskReset,
    AskUnit,
    SanitizeOver,
    UnitAnswer,
    UnitApplied,
    UpdateUnit,
    Withdraw,
    encode,
)
from iscsid.shared.rules import AccessChange, MediumChange, Request, UnitState

DISK, TAPE = "iqn.x:disk", "iqn.x:tape"
A = NexusId("iqn.x:a", 1, DISK, 1)
B = NexusId("iqn.x:b", 2, DISK, 1)
C = NexusId("iqn.x:c", 3, DISK, 1)
RESERVE, RELEASE, VENDOR = "160000000000", "170000000000", "c00000000000"
LU_RESET, WARM_RESET, COLD_RESET, NEXUS_RESET = 5, 6, 7, 11
GOOD, CHECK_CONDITION, BUSY, CONFLICT, TASK_ABORTED = 0x00, 0x02, 0x08, 0x18, 0x40
PLACES = {
    "S0": Place(frozenset({DISK})),
    "S1": Place(frozenset({DISK})),
    "T": Place(frozenset({TAPE}), frozenset({1})),
}


def vendor(state: UnitState, request: Request) -> Outcome:
    """A command that does what its parameters (JSON) say."""
    wanted = json.loads(request.data)
    if "raise" in wanted:
        raise RuntimeError("planted")
    if "refuse" in wanted:
        raise ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=3, bit=4, in_data=True)
    if "save" in wanted:
        state = dataclasses.replace(state, saved_mode=ModeState(swp=wanted["save"]))
    if "register" in wanted:
        keys = {NexusId(name, 1, DISK, 1): 1 for name in wanted["register"]}
        state = dataclasses.replace(state, reservations=Reservations(keys))
    gone = [NexusId(*nexus) for nexus in wanted.get("preempt", [])]
    raised = tuple(Attention(nexus, Reason.REGISTRATIONS_PREEMPTED) for nexus in gone)
    aborts = tuple(gone) if "abort" in wanted else ()
    return Outcome(state, attentions=raised, aborts=aborts, persist="persist" in wanted)


@pytest.fixture(autouse=True)
def with_vendor_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.APPLY, 0xC0, vendor)


class Rig:
    """An authority with ready workers and what it wants done, sorted out."""

    def __init__(self, workers: int = 2) -> None:
        self.authority = Authority(PLACES)
        self.log: list[Action] = []
        self.number = 0
        for worker in range(workers):
            assert self.authority.worker_ready(worker) == []

    def do(self, actions: Iterable[Action]) -> list[Action]:
        """Remember what is to be done, and check that it can be sent."""
        found = list(actions)
        for action in found:
            if isinstance(action, Tell):
                assert len(encode(action.message)) <= MAX_MESSAGE
        self.log += found
        return found

    def open(self, worker: int, tsih: int, nexus: NexusId) -> list[Action]:
        return self.do(self.authority.session_opened(worker, tsih, nexus, 0.0))

    def ask(self, worker: int, nexus: NexusId, cdb: str, unit: str = "S0", now: float = 0.0, **data: Any) -> int:
        self.number += 1
        parameters = json.dumps(data).encode().hex() if data else ""
        self.do(self.authority.ask(worker, AskUnit(self.number, unit, *nexus, cdb, parameters), now))
        return self.number

    def reset(self, worker: int, nexus: NexusId, function: int, unit: str = "S0") -> int:
        self.number += 1
        self.do(self.authority.ask(worker, AskReset(self.number, unit, *nexus, function), 0.0))
        return self.number

    def applied(self, worker: int, unit: str = "S0", generation: int | None = None) -> list[Action]:
        number = self.authority.generation(unit) if generation is None else generation
        return self.do(self.authority.applied(worker, UnitApplied(unit, number), 0.0))

    def answers(self) -> dict[int, UnitAnswer]:
        return {a.message.ask: a.message for a in self.log if isinstance(a, Tell) and isinstance(a.message, UnitAnswer)}

    def status(self, ask: int) -> int | None:
        answer = self.answers().get(ask)
        return None if answer is None else answer.status

    def reason(self, ask: int) -> str:
        return self.answers()[ask].reason

    def updates(self) -> list[tuple[int, UpdateUnit]]:
        return [(a.worker, a.message) for a in self.log if isinstance(a, Tell) and isinstance(a.message, UpdateUnit)]

    def raised(self) -> set[tuple[int, NexusId, str]]:
        """Worker, nexus, reason."""
        return {
            (worker, NexusId(*nexus), name)
            for worker, update in self.updates()
            for nexus, name in json.loads(update.attentions)
        }


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.open(0, 1, A)
    rig.open(1, 2, B)
    return rig


# -- a change ----------------------------------------------------------------------------------------------------------


def test_change_is_told_to_every_worker_and_answered_when_all_have_applied_it(rig: Rig) -> None:
    ask = rig.ask(0, A, RESERVE)
    assert [(worker, update.generation) for worker, update in rig.updates()] == [(0, 1), (1, 1)]
    state = json.loads(rig.updates()[0][1].state)
    assert state["reservations"]["spc2_holder"] == list(A)
    rig.applied(0)
    assert rig.status(ask) is None
    rig.applied(1)
    assert rig.status(ask) == GOOD
    assert rig.log[-1] == Tell(0, UnitAnswer(ask, GOOD, "", -1, -1, False))
    assert rig.authority.state("S0").reservations.spc2_holder == A


def test_change_of_one_unit_is_told_for_that_unit_alone(rig: Rig) -> None:
    rig.ask(0, A, RESERVE, unit="S1")
    assert {update.unit for _, update in rig.updates()} == {"S1"}
    assert rig.authority.generation("S0") == 0


def test_unit_of_an_owner_is_told_to_the_owner_alone(rig: Rig) -> None:
    ask = rig.ask(1, NexusId("iqn.x:a", 1, TAPE, 1), RESERVE, unit="T")
    assert [worker for worker, _ in rig.updates()] == [1]
    rig.applied(1, "T")
    assert rig.status(ask) == GOOD


def test_command_that_fails_is_answered_at_once_and_changes_nothing(rig: Rig) -> None:
    ask = rig.ask(0, A, VENDOR, refuse=1)
    assert rig.log[-1] == Tell(0, UnitAnswer(ask, CHECK_CONDITION, "INVALID_FIELD_IN_PARAMETER_LIST", 3, 4, True))
    assert rig.updates() == []


def test_conflict_is_answered_with_its_status(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    rig.applied(0)
    rig.applied(1)
    ask = rig.ask(1, B, RESERVE)
    assert rig.log[-1] == Tell(1, UnitAnswer(ask, CONFLICT, "", -1, -1, False))


def test_command_that_changes_nothing_is_answered_at_once(rig: Rig) -> None:
    assert rig.status(rig.ask(0, A, RELEASE)) == GOOD
    assert rig.updates() == []
    assert rig.authority.generation("S0") == 0


def test_bug_in_a_rule_costs_its_command_alone(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    ask = rig.ask(0, A, VENDOR, **{"raise": 1})
    assert rig.answers()[ask].reason == "INTERNAL_TARGET_FAILURE"
    assert "planted" in caplog.text
    assert rig.status(rig.ask(0, A, RELEASE)) == GOOD


def test_unknown_unit_and_unknown_function_are_refused(rig: Rig) -> None:
    assert rig.reason(rig.ask(0, A, RESERVE, unit="X")) == "LOGICAL_UNIT_NOT_SUPPORTED"
    assert rig.reason(rig.reset(0, A, LU_RESET, unit="X")) == "LOGICAL_UNIT_NOT_SUPPORTED"
    assert rig.status(rig.reset(0, A._replace(target="iqn.x:no"), WARM_RESET, unit="")) == CHECK_CONDITION
    assert rig.reason(rig.reset(0, A, 1)) == "INVALID_FIELD_IN_CDB"
    assert rig.authority.asks == 0


def test_number_in_use_and_bad_hexadecimal_are_a_workers_bug(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    with pytest.raises(LocalProtocolError, match="not answered yet"):
        rig.authority.ask(0, AskUnit(rig.number, "S0", *A, RELEASE, ""), 0.0)
    with pytest.raises(LocalProtocolError, match="ask 99"):
        rig.authority.ask(0, AskUnit(99, "S0", *A, "xy", ""), 0.0)
    rig.do(rig.authority.ask(1, AskUnit(rig.number, "S1", *B, RELEASE, ""), 0.0))
    assert rig.authority.asks == 1, "numbers are each worker's own"


# -- one at a time -----------------------------------------------------------------------------------------------------


def test_second_change_waits_for_the_first(rig: Rig) -> None:
    first, second = rig.ask(0, A, RESERVE), rig.ask(1, B, RESERVE)
    assert len(rig.updates()) == 2
    rig.applied(0)
    rig.applied(1)
    assert (rig.status(first), rig.status(second)) == (GOOD, CONFLICT)


def test_changes_of_two_units_do_not_wait_for_each_other(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    other = rig.ask(1, B, RESERVE, unit="S1")
    rig.applied(0, "S1")
    rig.applied(1, "S1")
    assert rig.status(other) == GOOD


def test_generations_grow_by_one(rig: Rig) -> None:
    for _ in range(3):
        rig.ask(0, A, RESERVE)
        rig.applied(0)
        rig.applied(1)
        rig.ask(0, A, RELEASE)
        rig.applied(0)
        rig.applied(1)
    assert [update.generation for worker, update in rig.updates() if worker == 1] == [1, 2, 3, 4, 5, 6]


def test_asks_beyond_the_limit_are_busy(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    waiting = [rig.ask(0, A, RELEASE) for _ in range(MAX_WAITING)]
    assert rig.status(waiting[-1]) is None
    assert rig.status(rig.ask(0, A, RELEASE)) == BUSY
    assert rig.status(rig.reset(1, B, LU_RESET)) == BUSY
    assert rig.status(rig.reset(1, B, WARM_RESET, unit="")) == BUSY
    assert rig.authority.asks == MAX_WAITING + 1
    rig.applied(0)
    rig.applied(1)
    rig.applied(0)
    rig.applied(1)
    assert rig.authority.asks == 0
    assert all(rig.status(ask) == GOOD for ask in waiting)


def test_acknowledgement_of_an_older_generation_does_not_count(rig: Rig) -> None:
    ask = rig.ask(0, A, RESERVE)
    rig.applied(0)
    rig.applied(1, generation=0)
    rig.applied(1, "X", generation=1)
    assert rig.status(ask) is None


# -- deaths and births -------------------------------------------------------------------------------------------------


def test_death_counts_as_applied(rig: Rig) -> None:
    ask = rig.ask(0, A, RESERVE)
    rig.applied(0)
    rig.do(rig.authority.worker_died(1, 0.0))
    assert rig.status(ask) == GOOD


def test_dead_asker_gets_no_answer_and_its_change_goes_through(rig: Rig) -> None:
    ask = rig.ask(0, A, VENDOR, save=True)
    assert isinstance(rig.log[-1], Keep)
    rig.do(rig.authority.worker_died(0, 0.0))
    rig.do(rig.authority.kept("S0", True, 0.0))
    rig.applied(1)
    assert rig.status(ask) is None
    assert rig.authority.asks == 0
    assert rig.authority.state("S0").saved_mode == ModeState(swp=True)


def test_what_a_dead_worker_waited_for_does_not_happen(rig: Rig) -> None:
    first = rig.ask(1, B, RESERVE)
    rig.ask(0, A, RELEASE)
    rig.ask(0, A, VENDOR, save=True)
    rig.do(rig.authority.worker_died(0, 0.0))
    rig.applied(1)
    assert rig.status(first) == GOOD
    assert rig.authority.asks == 0
    assert not any(isinstance(action, Keep) for action in rig.log)


def test_late_worker_is_killed_and_its_death_lets_the_answer_out(rig: Rig) -> None:
    ask = rig.ask(0, A, RESERVE, now=100.0)
    rig.applied(0)
    assert rig.authority.deadline() == 100.0 + DEADLINE
    for second in range(int(DEADLINE)):
        assert rig.authority.expire(100.0 + second) == []
    (kill,) = rig.authority.expire(100.0 + DEADLINE)
    assert isinstance(kill, Kill)
    assert kill.worker == 1
    assert "command 1600 on unit S0" in kill.reason
    assert rig.authority.expire(101.0 + DEADLINE) == []
    assert rig.status(ask) is None
    rig.do(rig.authority.worker_died(1, 111.0))
    assert rig.status(ask) == GOOD
    assert rig.authority.deadline() is None


def test_supervisor_that_was_stopped_kills_nobody_for_it(rig: Rig) -> None:
    rig.authority.expire(100.0)
    rig.ask(0, A, RESERVE, now=100.0)
    assert rig.authority.expire(200.0) == []
    for second in range(1, int(DEADLINE)):
        assert rig.authority.expire(200.0 + second) == []
    assert len(rig.authority.expire(200.0 + DEADLINE)) == 2


def test_new_worker_learns_every_state_there_is_before_anything_else(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    rig.applied(0)
    rig.applied(1)
    (tell,) = rig.authority.worker_ready(2)
    assert isinstance(tell, Tell)
    update = tell.message
    assert isinstance(update, UpdateUnit)
    assert (tell.worker, update.unit, update.generation) == (2, "S0", 1)
    assert json.loads(update.state) == rules.to_plain(rig.authority.state("S0"))
    assert (update.attentions, update.aborts) == ("[]", "[]")


def test_worker_born_during_a_change_has_its_outcome_and_is_not_waited_for(rig: Rig) -> None:
    ask = rig.ask(0, A, RESERVE)
    (tell,) = rig.authority.worker_ready(2)
    assert isinstance(tell, Tell)
    assert json.loads(tell.message.state)["reservations"]["spc2_holder"] == list(A)  # type: ignore[union-attr]
    rig.applied(2)
    rig.applied(0)
    assert rig.status(ask) is None
    rig.applied(1)
    assert rig.status(ask) == GOOD


def test_restored_state_is_in_force_for_the_first_worker() -> None:
    authority = Authority(PLACES)
    kept = rules.kept(UnitState(saved_mode=ModeState(d_sense=True)))
    assert kept is not None
    authority.restore("S1", kept)
    (tell,) = authority.worker_ready(0)
    assert isinstance(tell, Tell)
    assert isinstance(tell.message, UpdateUnit)
    assert tell.message.unit == "S1"
    assert json.loads(tell.message.state)["mode"]["d_sense"] is True


def test_restoring_nonsense_is_refused() -> None:
    with pytest.raises(ValueError):
        Authority(PLACES).restore("S0", {"reservations": 1})


# -- what has to be on disk --------------------------------------------------------------------------------------------


def test_change_is_kept_before_any_worker_hears_of_it(rig: Rig) -> None:
    ask = rig.ask(0, A, VENDOR, save=True)
    assert rig.log == [Keep("S0", rules.kept(UnitState(saved_mode=ModeState(swp=True))))]
    assert rig.authority.state("S0") == UnitState()
    rig.do(rig.authority.kept("S0", True, 0.0))
    assert len(rig.updates()) == 2
    assert rig.status(ask) is None
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) == GOOD


def test_change_that_cannot_be_kept_does_not_happen(rig: Rig) -> None:
    ask, waiting = rig.ask(0, A, VENDOR, save=True), rig.ask(1, B, RELEASE)
    rig.do(rig.authority.kept("S0", False, 0.0))
    assert rig.answers()[ask].reason == "INTERNAL_TARGET_FAILURE"
    assert rig.status(waiting) == GOOD
    assert rig.authority.state("S0") == UnitState()
    assert rig.updates() == []


def test_what_is_on_disk_is_written_again_after_a_failure(rig: Rig) -> None:
    rig.ask(0, A, VENDOR, save=True)
    rig.do(rig.authority.kept("S0", False, 0.0))
    ask = rig.ask(0, A, RESERVE)
    assert rig.log[-1] == Keep("S0", None)
    rig.do(rig.authority.kept("S0", True, 0.0))
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) == GOOD
    rig.ask(0, A, RELEASE)
    assert not isinstance(rig.log[-1], Keep)


def test_outcome_that_asks_for_it_is_kept_though_nothing_that_persists_has_changed(rig: Rig) -> None:
    rig.ask(0, A, VENDOR, persist=1, register=["iqn.x:a"])
    assert rig.log == [Keep("S0", None)]


# -- aborts ------------------------------------------------------------------------------------------------------------


def test_preempt_and_abort_names_the_nexuses(rig: Rig) -> None:
    rig.ask(0, A, VENDOR, preempt=[B], abort=1)
    assert [json.loads(update.aborts) for _, update in rig.updates()] == [[list(B)], [list(B)]]
    assert rig.raised() == {(1, B, "REGISTRATIONS_PREEMPTED")}


def test_attention_of_a_nexus_that_nobody_knows_is_told_to_all(rig: Rig) -> None:
    rig.ask(0, A, VENDOR, preempt=[C])
    assert rig.raised() == {(0, C, "REGISTRATIONS_PREEMPTED"), (1, C, "REGISTRATIONS_PREEMPTED")}


def test_waiting_command_of_an_aborted_nexus_is_never_executed(rig: Rig) -> None:
    first = rig.ask(0, A, RESERVE)
    preempt = rig.ask(0, A, VENDOR, preempt=[B], abort=1)
    aborted, other = rig.ask(1, B, VENDOR, save=True), rig.ask(0, A, RELEASE)
    rig.applied(0)
    rig.applied(1)
    assert rig.status(first) == GOOD
    assert rig.status(aborted) == TASK_ABORTED
    rig.applied(0)
    rig.applied(1)
    assert rig.status(preempt) == GOOD
    rig.applied(0)
    rig.applied(1)
    assert rig.status(other) == GOOD
    assert not any(isinstance(action, Keep) for action in rig.log)


def test_abort_reaches_what_was_asked_before_the_worker_had_heard_of_it(rig: Rig) -> None:
    rig.ask(0, A, VENDOR, preempt=[B], abort=1)
    assert rig.status(rig.ask(1, B, RESERVE)) == TASK_ABORTED
    rig.applied(1)
    after = rig.ask(1, B, RELEASE)
    assert rig.status(after) is None
    rig.applied(0)
    assert rig.status(after) == GOOD


def test_reset_aborts_everything_and_tells_everybody(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    rig.applied(0)
    rig.applied(1)
    rig.log.clear()
    ask = rig.reset(1, B, LU_RESET)
    assert [(worker, update.aborts, update.reason) for worker, update in rig.updates()] == [
        (0, '"all"', "LOGICAL UNIT RESET"),
        (1, '"all"', "LOGICAL UNIT RESET"),
    ]
    assert rig.raised() == {(0, A, "BUS_DEVICE_RESET_FUNCTION"), (1, B, "BUS_DEVICE_RESET_FUNCTION")}
    rig.applied(0)
    assert rig.status(ask) is None
    rig.applied(1)
    assert rig.status(ask) == GOOD
    assert rig.authority.state("S0").reservations.spc2_holder is None


def test_reset_answers_waiting_commands_but_not_waiting_resets(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    reset, command, second = rig.reset(1, B, LU_RESET), rig.ask(0, A, RELEASE), rig.reset(0, A, LU_RESET)
    rig.applied(0)
    rig.applied(1)
    assert rig.status(command) == TASK_ABORTED
    rig.applied(0)
    rig.applied(1)
    assert (rig.status(reset), rig.status(second)) == (GOOD, None)
    rig.applied(0)
    rig.applied(1)
    assert rig.status(second) == GOOD


def test_nexus_reset_is_performed_on_all_units_for_the_sender_alone(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    rig.applied(0)
    rig.applied(1)
    rig.log.clear()
    ask = rig.reset(0, A, NEXUS_RESET, unit="")
    assert rig.raised() == {(0, A, "I_T_NEXUS_LOSS")}
    assert {json.dumps(json.loads(update.aborts)) for _, update in rig.updates()} == {json.dumps([list(A)])}
    assert rig.authority.state("S0").reservations.spc2_holder is None
    for worker in (0, 1):
        for unit in ("S0", "S1"):
            assert rig.status(ask) is None
            rig.applied(worker, unit)
    assert rig.status(ask) == GOOD
    assert not any(isinstance(action, End) for action in rig.log)


def test_nexus_reset_leaves_the_reservation_and_the_waiting_commands_of_others(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    rig.applied(0)
    rig.applied(1)
    ask = rig.reset(1, B, NEXUS_RESET)
    own, other = rig.ask(1, B, RELEASE), rig.ask(0, A, RELEASE)
    assert (rig.status(own), rig.status(other)) == (TASK_ABORTED, None)
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) == GOOD
    assert rig.authority.state("S0").reservations.spc2_holder is None, "the release of A came after it"


def test_target_reset_is_answered_when_all_units_of_the_target_are_through(rig: Rig) -> None:
    ask = rig.reset(0, A, WARM_RESET, unit="")
    assert sorted((update.unit, worker) for worker, update in rig.updates()) == [
        ("S0", 0),
        ("S0", 1),
        ("S1", 0),
        ("S1", 1),
    ]
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) is None
    rig.applied(0, "S1")
    rig.applied(1, "S1")
    assert rig.status(ask) == GOOD
    assert not any(isinstance(action, End) for action in rig.log)


def test_cold_reset_ends_the_sessions_of_the_target_after_the_answer(rig: Rig) -> None:
    rig.open(1, 3, NexusId("iqn.x:a", 1, TAPE, 1))
    ask = rig.reset(0, A, COLD_RESET, unit="")
    for unit in ("S0", "S1"):
        rig.applied(0, unit)
        rig.applied(1, unit)
    assert rig.log[-3:] == [
        Tell(0, UnitAnswer(ask, GOOD, "", -1, -1, False)),
        End(1, "TARGET COLD RESET"),
        End(2, "TARGET COLD RESET"),
    ]


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_reservation_goes_with_the_last_session_of_its_nexus(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    rig.applied(0)
    rig.applied(1)
    rig.log.clear()
    rig.do(rig.authority.session_closed(1, 0.0))
    assert [(worker, update.reason) for worker, update in rig.updates()] == [(0, "nexus lost"), (1, "nexus lost")]
    assert rig.authority.state("S0").reservations.spc2_holder is None


def test_reservation_goes_with_the_worker_of_its_nexus(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    rig.applied(1)
    rig.do(rig.authority.worker_died(0, 0.0))
    assert rig.authority.state("S0").reservations.spc2_holder is None
    assert [(worker, update.generation) for worker, update in rig.updates()] == [(0, 1), (1, 1), (1, 2)]


def test_reservation_under_way_goes_with_its_session(rig: Rig) -> None:
    ask = rig.ask(0, A, RESERVE)
    rig.do(rig.authority.session_closed(1, 0.0))
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) == GOOD
    assert rig.authority.state("S0").reservations.spc2_holder is None


def test_reinstatement_is_a_loss_of_the_nexus(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    rig.applied(0)
    rig.applied(1)
    rig.open(1, 9, A)
    assert rig.authority.state("S0").reservations.spc2_holder is None
    again = rig.ask(1, A, RESERVE)
    rig.do(rig.authority.session_closed(1, 0.0))
    for _ in range(2):
        rig.applied(0)
        rig.applied(1)
    assert rig.status(again) == GOOD
    assert rig.authority.state("S0").reservations.spc2_holder == A, "the new session's is not the old one's"


def test_what_waits_for_a_session_that_has_ended_does_not_happen(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    waiting = rig.ask(1, B, VENDOR, save=True)
    rig.do(rig.authority.session_closed(2, 0.0))
    assert rig.status(waiting) == TASK_ABORTED


def test_session_that_never_opened_closes_without_effect(rig: Rig) -> None:
    assert rig.authority.session_closed(77, 0.0) == []


# -- limits ------------------------------------------------------------------------------------------------------------


def test_state_too_long_for_a_message_is_refused(rig: Rig) -> None:
    ask = rig.ask(0, A, VENDOR, register=["\x01" * 223 + str(number) for number in range(128)])
    assert rig.answers()[ask].reason == "INSUFFICIENT_REGISTRATION_RESOURCES"


def test_state_of_the_longest_names_fits(rig: Rig) -> None:
    rig.ask(0, A, VENDOR, register=[f"iqn.{number:0219}" for number in range(128)])
    assert len(rig.updates()) == 2


def test_attentions_too_many_for_one_message_take_several_which_all_are_to_be_acknowledged() -> None:
    rig = Rig(1)
    nexuses = {NexusId(f"iqn.{number:0219}", number, DISK, 1) for number in range(1000)}
    for tsih, nexus in enumerate(sorted(nexuses), 1):
        rig.open(0, tsih, nexus)
    ask = rig.reset(0, A, LU_RESET)
    parts = len(rig.updates())
    assert parts > 1
    assert {nexus for _, nexus, _ in rig.raised()} == nexuses
    assert len({update.generation for _, update in rig.updates()}) == 1
    for _ in range(parts):
        assert rig.status(ask) is None
        rig.applied(0)
    assert rig.status(ask) == GOOD


# -- any order of events -----------------------------------------------------------------------------------------------


class Interleaving(RuleBasedStateMachine):
    """Three workers that each handle one message at a time, a disk that writes when it likes, and initiators."""

    WORKERS = 3

    def __init__(self) -> None:
        super().__init__()
        rules.APPLY[0xC0] = vendor
        self.authority = Authority(PLACES)
        self.now = 0.0
        self.number = 0
        self.inbox: dict[int, deque[Any]] = {}
        self.generations: dict[tuple[int, str], int] = {}  # that each live worker has applied
        self.doomed: set[int] = set()
        self.keeps: deque[str] = deque()
        self.open: dict[int, tuple[int, NexusId]] = {}
        self.tsih = 0
        self.pending: dict[tuple[int, int], str] = {}  # asks without an answer, and their units
        self.told: Counter[str] = Counter()
        for worker in range(self.WORKERS):
            self.born(worker)

    def born(self, worker: int) -> None:
        self.inbox[worker] = deque()
        self.do(self.authority.worker_ready(worker))

    def do(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Keep):
                assert action.unit not in self.keeps, "one change at a time"
                self.keeps.append(action.unit)
            elif isinstance(action, Kill):
                self.doomed.add(action.worker)
            elif isinstance(action, Tell) and action.worker in self.inbox:
                self.tell(action.worker, action.message)

    def tell(self, worker: int, message: UpdateUnit | UnitAnswer) -> None:
        if isinstance(message, UnitAnswer):
            key = (worker, message.ask)
            assert key in self.pending, "an answer to what was not asked, or a second one"
            unit = self.pending.pop(key)
            if message.status == GOOD:
                ahead = (other for inbox in self.inbox.values() for other in inbox if isinstance(other, UpdateUnit))
                late = [other for other in ahead if other.unit == unit and other.reason != "as it is"]
                assert not late, "a worker has not applied the change"
        else:
            assert message.generation in (self.told[message.unit], self.told[message.unit] + 1)
            self.told[message.unit] = message.generation
        self.inbox[worker].append(message)

    @rule(worker=st.integers(0, 2), unit=st.sampled_from(["S0", "S1"]), what=st.integers(0, 5), data=st.data())
    def ask(self, worker: int, unit: str, what: int, data: st.DataObject) -> None:
        mine = [nexus for home, nexus in self.open.values() if home == worker]
        if worker not in self.inbox or not mine:
            return
        nexus = data.draw(st.sampled_from(mine))
        self.number += 1
        self.pending[worker, self.number] = unit
        others = [list(other) for _, other in self.open.values() if other != nexus]
        parameters = [{}, {}, {"save": True}, {"save": False}, {"preempt": others, "abort": 1}, {"refuse": 1}][what]
        cdb = [RESERVE, RELEASE, VENDOR, VENDOR, VENDOR, VENDOR][what]
        message = AskUnit(self.number, unit, *nexus, cdb, json.dumps(parameters).encode().hex())
        self.do(self.authority.ask(worker, message, self.now))

    @rule(worker=st.integers(0, 2), unit=st.sampled_from(["S0", "S1", ""]), function=st.integers(4, 7))
    def reset(self, worker: int, unit: str, function: int) -> None:
        mine = [nexus for home, nexus in self.open.values() if home == worker]
        if worker not in self.inbox or not mine:
            return
        self.number += 1
        self.pending[worker, self.number] = unit
        self.do(self.authority.ask(worker, AskReset(self.number, unit, *mine[0], function), self.now))

    @rule(worker=st.integers(0, 2))
    def handle(self, worker: int) -> None:
        """The worker takes its next message."""
        if not self.inbox.get(worker):
            return
        message = self.inbox[worker].popleft()
        if isinstance(message, UpdateUnit):
            assert message.generation >= self.generations.get((worker, message.unit), 0)
            self.generations[worker, message.unit] = message.generation
            self.do(self.authority.applied(worker, UnitApplied(message.unit, message.generation), self.now))

    @rule(worker=st.integers(0, 2), name=st.sampled_from(["a", "b", "c"]))
    def log_in(self, worker: int, name: str) -> None:
        if worker in self.inbox and len(self.open) < 8:
            self.tsih += 1
            nexus = NexusId(f"iqn.x:{name}", 1, DISK, 1)
            self.do(self.authority.session_opened(worker, self.tsih, nexus, self.now))
            self.open[self.tsih] = (worker, nexus)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def log_out(self, data: st.DataObject) -> None:
        tsih = data.draw(st.sampled_from(sorted(self.open)))
        del self.open[tsih]
        self.do(self.authority.session_closed(tsih, self.now))

    @precondition(lambda self: self.keeps)
    @rule(ok=st.booleans())
    def write(self, ok: bool) -> None:
        self.do(self.authority.kept(self.keeps.popleft(), ok, self.now))

    @rule(worker=st.integers(0, 2))
    def die(self, worker: int) -> None:
        if worker in self.inbox:
            self.bury(worker)

    def bury(self, worker: int) -> None:
        del self.inbox[worker]
        self.doomed.discard(worker)
        self.pending = {key: value for key, value in self.pending.items() if key[0] != worker}
        self.generations = {key: value for key, value in self.generations.items() if key[0] != worker}
        self.open = {tsih: home for tsih, home in self.open.items() if home[0] != worker}
        self.do(self.authority.worker_died(worker, self.now))

    @rule(worker=st.integers(0, 2))
    def replace(self, worker: int) -> None:
        if worker not in self.inbox:
            self.born(worker)

    @rule(seconds=st.sampled_from([0.5, 4.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.authority.expire(self.now))
        for worker in list(self.doomed):
            self.bury(worker)

    @invariant()
    def every_ask_has_an_answer_or_is_waited_for(self) -> None:
        assert self.authority.asks == len(self.pending)

    @invariant()
    def holders_are_logged_in(self) -> None:
        """When nothing is under way."""
        if not self.keeps and not any(self.inbox.values()):
            nexuses = {nexus for _, nexus in self.open.values()}
            for unit in ("S0", "S1"):
                assert self.authority.state(unit).reservations.spc2_holder in (None, *nexuses)

    def teardown(self) -> None:
        """When all messages are handled and the disk has written, nothing waits, and all know the last generation."""
        while self.keeps or any(self.inbox.values()):
            if self.keeps:
                self.write(True)
            for worker in list(self.inbox):
                self.handle(worker)
        assert not self.pending
        assert self.authority.asks == 0
        assert self.authority.deadline() is None
        for worker in self.inbox:
            for unit in ("S0", "S1"):
                assert self.generations.get((worker, unit), 0) == self.authority.generation(unit)
        rules.APPLY.pop(0xC0, None)


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_no_answer_comes_before_every_worker_has_applied_the_change() -> None:
    """Each order in which three workers may acknowledge, one of them dying instead."""
    for dead in (None, 0, 1, 2):
        for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)):
            rig = Rig(3)
            rig.open(0, 1, A)
            ask = rig.ask(0, A, RESERVE)
            for position, worker in enumerate(order):
                assert rig.status(ask) is None, (dead, order, position)
                if worker == dead:
                    rig.do(rig.authority.worker_died(worker, 0.0))
                else:
                    rig.applied(worker, generation=1)
            assert rig.status(ask) == (None if dead == 0 else GOOD)


# -- sanitize ----------------------------------------------------------------------------------------------------------

BLOCK_ERASE, WITH_AUSE, EXIT_FAILURE_MODE = "48020000000000000000", "48220000000000000000", "481f0000000000000000"


def sanitize(rig: Rig, worker: int = 0, nexus: NexusId = A, cdb: str = BLOCK_ERASE, unit: str = "S0") -> int:
    """Ask for it as a worker does, which knows the block size."""
    rig.number += 1
    rig.do(rig.authority.ask(worker, AskUnit(rig.number, unit, *nexus, cdb, "", '{"block_size":512}'), 0.0))
    return rig.number


def keep(rig: Rig, ok: bool = True) -> Any:
    """What is to be put on disk, which now is there."""
    kept = next(action for action in reversed(rig.log) if isinstance(action, Keep)).kept
    rig.do(rig.authority.kept("S0", ok, 0.0))
    return kept


def begin(rig: Rig, cdb: str = BLOCK_ERASE) -> None:
    ask = sanitize(rig, cdb=cdb)
    keep(rig)
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) == GOOD


def over(rig: Rig, worker: int = 0, ok: bool = True) -> int:
    rig.number += 1
    rig.do(rig.authority.sanitize_over(worker, SanitizeOver(rig.number, "S0", ok), 0.0))
    return rig.number


def sanitized(rig: Rig) -> Sanitize | None:
    return rig.authority.state("S0").sanitize


def told(rig: Rig) -> Any:
    return json.loads(rig.updates()[-1][1].state)["sanitize"]


def test_sanitize_is_on_disk_as_failed_and_applied_by_all_before_it_begins(rig: Rig) -> None:
    ask = sanitize(rig)
    assert rig.updates() == []
    assert keep(rig)["sanitize"] == {"failed": True, "unrestricted": False}
    assert told(rig) == {"failed": False, "unrestricted": False}
    rig.applied(0)
    assert rig.status(ask) is None
    rig.applied(1)
    assert rig.status(ask) == GOOD


def test_sanitize_that_cannot_be_kept_does_not_begin(rig: Rig) -> None:
    ask = sanitize(rig)
    keep(rig, ok=False)
    assert rig.reason(ask) == "INTERNAL_TARGET_FAILURE"
    assert sanitized(rig) is None


def test_commands_that_change_state_are_refused_meanwhile(rig: Rig) -> None:
    begin(rig)
    assert rig.reason(rig.ask(1, B, RESERVE)) == "SANITIZE_IN_PROGRESS"
    assert rig.reason(sanitize(rig, 1, B)) == "SANITIZE_IN_PROGRESS"
    assert rig.status(rig.ask(1, B, RESERVE, unit="S1")) is None


def test_completed_sanitize_is_good_when_it_is_kept_and_all_know(rig: Rig) -> None:
    begin(rig)
    ask = over(rig)
    assert keep(rig) is None
    assert told(rig) is None
    rig.applied(0)
    assert rig.status(ask) is None
    rig.applied(1)
    assert rig.status(ask) == GOOD
    assert sanitized(rig) is None


def test_sanitize_whose_completion_cannot_be_kept_has_failed(rig: Rig) -> None:
    begin(rig)
    ask = over(rig)
    keep(rig, ok=False)
    assert rig.reason(ask) == "INTERNAL_TARGET_FAILURE"
    assert sanitized(rig) == Sanitize(True, False)
    assert told(rig) == {"failed": True, "unrestricted": False}


def test_failed_sanitize_refuses_everything_until_one_completes(rig: Rig) -> None:
    begin(rig)
    ask = over(rig, ok=False)
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) == GOOD
    assert rig.reason(rig.ask(1, B, RESERVE)) == "SANITIZE_COMMAND_FAILED"
    assert rig.reason(sanitize(rig, cdb=EXIT_FAILURE_MODE)) == "INVALID_FIELD_IN_CDB"
    again = sanitize(rig, 1, B)
    rig.applied(0)
    rig.applied(1)
    assert rig.status(again) == GOOD
    over(rig, 1)
    keep(rig)
    assert sanitized(rig) is None


def test_failure_that_may_be_left_is_left(rig: Rig) -> None:
    begin(rig, WITH_AUSE)
    over(rig, ok=False)
    rig.applied(0)
    rig.applied(1)
    ask = sanitize(rig, 1, B, EXIT_FAILURE_MODE)
    assert keep(rig) is None
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) == GOOD
    assert sanitized(rig) is None


def test_worker_that_dies_at_it_leaves_the_unit_failed(rig: Rig) -> None:
    begin(rig)
    rig.do(rig.authority.worker_died(0, 0.0))
    assert sanitized(rig) == Sanitize(True, False)
    assert [worker for worker, _ in rig.updates()][-1] == 1
    rig.applied(1)
    rig.do(rig.authority.worker_ready(0))
    assert told(rig) == {"failed": True, "unrestricted": False}


def test_other_worker_that_dies_changes_nothing(rig: Rig) -> None:
    begin(rig)
    rig.do(rig.authority.worker_died(1, 0.0))
    assert sanitized(rig) == Sanitize(False, False)
    assert rig.reason(over(rig, 1)) == "SANITIZE_COMMAND_FAILED"


@pytest.mark.parametrize("kept_first", [True, False])
def test_worker_that_dies_before_it_could_begin_leaves_the_unit_failed(rig: Rig, kept_first: bool) -> None:
    sanitize(rig)
    if kept_first:
        keep(rig)
    rig.do(rig.authority.worker_died(0, 0.0))
    if not kept_first:
        keep(rig)
    rig.do(rig.authority.worker_ready(0))
    rig.applied(1)
    assert sanitized(rig) == Sanitize(True, False)


def test_sanitize_outlives_session_and_reset_of_who_asked(rig: Rig) -> None:
    begin(rig)
    reset = rig.reset(1, B, LU_RESET)
    rig.applied(0)
    rig.applied(1)
    assert rig.status(reset) == GOOD
    rig.do(rig.authority.session_closed(1, 0.0))
    assert sanitized(rig) == Sanitize(False, False)


def test_sanitize_asks_for_the_reservation_when_its_turn_comes(rig: Rig) -> None:
    rig.ask(1, B, RESERVE)
    ask = sanitize(rig)
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) == CONFLICT
    assert sanitized(rig) is None


def test_sanitize_that_was_under_way_when_the_server_ended_has_failed() -> None:
    rig = Rig()
    sanitize(rig, cdb=WITH_AUSE)
    kept = keep(rig)
    after = Authority(PLACES)
    after.restore("S0", kept)
    assert after.state("S0").sanitize == Sanitize(True, True)


# -- asks that are withdrawn -------------------------------------------------------------------------------------------


def test_ask_that_is_withdrawn_while_it_waits_never_happens(rig: Rig) -> None:
    first = rig.ask(0, A, RESERVE)
    second = rig.ask(0, A, RELEASE)
    rig.do(rig.authority.withdraw(0, Withdraw(second), 0.0))
    assert rig.status(second) == TASK_ABORTED
    rig.applied(0)
    rig.applied(1)
    assert rig.status(first) == GOOD
    assert rig.authority.state("S0").reservations.spc2_holder == A


def test_ask_that_is_withdrawn_too_late_is_answered_as_it_is(rig: Rig) -> None:
    ask = rig.ask(0, A, RESERVE)
    rig.do(rig.authority.withdraw(0, Withdraw(ask), 0.0))
    assert rig.status(ask) is None
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) == GOOD
    assert rig.do(rig.authority.withdraw(0, Withdraw(ask), 0.0)) == []


def test_ask_of_another_worker_is_not_withdrawn(rig: Rig) -> None:
    rig.ask(0, A, RESERVE)
    ask = rig.ask(0, A, RELEASE)
    assert rig.do(rig.authority.withdraw(1, Withdraw(ask), 0.0)) == []
    assert rig.status(ask) is None


# -- flushes that fail -------------------------------------------------------------------------------------------------

FACTS = {
    "blocks": 2048,
    "block_size": 512,
    "volatile": True,
    "saving": True,
    "default": ModeState(wce=True).to_plain(),
}


def select_wce(rig: Rig, wce: bool, *, save: bool = False) -> int:
    """MODE SELECT(6) with the caching page, by A of worker 0."""
    rig.number += 1
    page = bytes(4) + bytes((0x08, 0x12, 0x04 if wce else 0)) + bytes(17)
    cdb = bytes((0x15, 0x11 if save else 0x10, 0, 0, len(page), 0))
    message = AskUnit(rig.number, "S0", *A, cdb.hex(), page.hex(), json.dumps(FACTS))
    rig.do(rig.authority.ask(0, message, 0.0))
    return rig.number


def flush_fails(rig: Rig, worker: int, failure: str = "WRITE_ERROR") -> None:
    applied = UnitApplied("S0", rig.authority.generation("S0"), failure)
    rig.do(rig.authority.applied(worker, applied, 0.0))


def cached(rig: Rig) -> bool:
    return (rig.authority.state("S0").mode or ModeState(wce=True)).wce


@pytest.mark.parametrize(
    ("failure", "status", "reason"), [("WRITE_ERROR", CHECK_CONDITION, "WRITE_ERROR"), ("BUSY", BUSY, "")]
)
def test_mode_select_whose_flush_fails_switches_the_cache_on_again_and_fails(
    rig: Rig, failure: str, status: int, reason: str
) -> None:
    rig.open(1, 2, B)
    ask = select_wce(rig, False)
    waiting = rig.ask(1, B, RESERVE)
    flush_fails(rig, 1, failure)
    assert not cached(rig)
    rig.applied(0)
    assert cached(rig) and rig.status(ask) is None  # not every worker knows
    rig.applied(0)
    rig.applied(1)
    assert (rig.status(ask), rig.reason(ask)) == (status, reason)
    assert (1, B, "MODE_PARAMETERS_CHANGED") in rig.raised()
    rig.applied(0)
    rig.applied(1)
    assert rig.status(waiting) == GOOD
    assert cached(rig)


def test_saved_mode_whose_flush_fails_is_not_kept_either(rig: Rig) -> None:
    ask = select_wce(rig, False, save=True)
    rig.do(rig.authority.kept("S0", True, 0.0))
    flush_fails(rig, 0)
    rig.applied(1)
    assert [action.kept for action in rig.log if isinstance(action, Keep)][-1] is None
    rig.do(rig.authority.kept("S0", True, 0.0))
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) == CHECK_CONDITION
    assert rig.authority.state("S0").saved_mode is None


def test_flush_that_fails_for_an_earlier_change_is_not_that_of_this_one(rig: Rig) -> None:
    ask = select_wce(rig, False)
    rig.do(rig.authority.applied(0, UnitApplied("S0", 0, "WRITE_ERROR"), 0.0))
    rig.applied(0)
    rig.applied(1)
    assert rig.status(ask) == GOOD
    assert not cached(rig)


def test_worker_that_dies_after_its_flush_has_failed_leaves_the_cache_on(rig: Rig) -> None:
    dead = select_wce(rig, False)
    flush_fails(rig, 0)
    rig.do(rig.authority.worker_died(0, 0.0))
    ask = rig.ask(1, B, RESERVE)
    for _ in range(3):
        rig.applied(1)
    assert (rig.status(dead), rig.status(ask)) == (None, GOOD)
    assert cached(rig)


def test_eject_whose_flush_fails_is_told(rig: Rig) -> None:
    authority = Authority({"S0": Place(frozenset({DISK}), medium=Medium(removable=True))})
    authority.worker_ready(0)
    authority.change_medium(4, "S0", MediumChange(load=False), 0.0)
    [answer] = authority.applied(0, UnitApplied("S0", 1, "WRITE_ERROR"), 0.0)
    assert answer == Tell(ADMINISTRATOR, UnitAnswer(4, CHECK_CONDITION, "WRITE_ERROR", -1, -1, False))


def test_reset_whose_flush_fails_is_performed_all_the_same(rig: Rig) -> None:
    select_wce(rig, True, save=True)
    rig.do(rig.authority.kept("S0", True, 0.0))
    for worker in (0, 1):
        rig.applied(worker)
    ask = rig.reset(0, A, LU_RESET)
    flush_fails(rig, 0)
    rig.applied(1)
    assert rig.status(ask) == GOOD


# -- the administrator -------------------------------------------------------------------------------------------------


def test_administrators_change_is_answered_when_all_units_of_the_target_have_it_everywhere() -> None:
    groups = {DISK: (PortGroup(1), PortGroup(2))}
    authority = Authority({unit: Place(frozenset({DISK}), None, groups) for unit in ("S0", "S1")})
    for worker in (0, 1):
        authority.worker_ready(worker)
    authority.session_opened(1, 7, B, 0.0)
    told = authority.change_access(3, AccessChange(DISK, 2, AccessState.STANDBY), 0.0)
    updates = [(action.worker, action.message) for action in told if isinstance(action, Tell)]
    assert [(worker, message.unit) for worker, message in updates if isinstance(message, UpdateUnit)] == [
        (0, "S0"),
        (1, "S0"),
        (0, "S1"),
        (1, "S1"),
    ]
    for worker, message in updates:
        assert isinstance(message, UpdateUnit)
        assert json.loads(message.attentions) == ([[list(B), "ASYMMETRIC_ACCESS_STATE_CHANGED"]] if worker == 1 else [])
    last: list[Any] = []
    for worker, message in updates:
        assert not last and isinstance(message, UpdateUnit)
        last = authority.applied(worker, UnitApplied(message.unit, message.generation), 0.0)
    assert last == [Tell(ADMINISTRATOR, UnitAnswer(3, GOOD, "", -1, -1, False))]
    assert authority.state("S0").access[DISK][1].state is AccessState.STANDBY
    assert authority.asks == 0


def test_administrators_change_of_a_target_without_units_is_refused() -> None:
    (answer,) = Authority({}).change_access(1, AccessChange(DISK, 1, AccessState.STANDBY), 0.0)
    assert isinstance(answer, Tell) and answer.worker == ADMINISTRATOR
    assert isinstance(answer.message, UnitAnswer) and answer.message.status == CHECK_CONDITION


def test_ports_of_a_place_are_one_in_each_portal_group_of_each_target() -> None:
    place = Place(frozenset({DISK, TAPE}), None, {DISK: (PortGroup(1), PortGroup(2))})
    assert place.ports == {(DISK, 1), (DISK, 2), (TAPE, 1)}


# -- another configuration ---------------------------------------------------------------------------------------------


def removable(**fields: Any) -> Authority:
    """Two workers, a removable unit, and a session to it in worker 1."""
    authority = Authority({"S0": Place(frozenset({DISK}), medium=Medium(removable=True, **fields))})
    for worker in (0, 1):
        authority.worker_ready(worker)
    authority.session_opened(1, 7, B, 0.0)
    return authority


def test_administrator_ejects_in_every_worker_before_the_answer() -> None:
    authority = removable()
    told = authority.change_medium(3, "S0", MediumChange(load=False), 0.0)
    assert [action.worker for action in told if isinstance(action, Tell)] == [0, 1]
    assert not authority.state("S0").medium.loaded
    assert authority.applied(0, UnitApplied("S0", 1), 0.0) == []
    assert authority.applied(1, UnitApplied("S0", 1), 0.0) == [
        Tell(ADMINISTRATOR, UnitAnswer(3, GOOD, "", -1, -1, False))
    ]


def test_medium_that_is_loaded_is_told_to_who_is_logged_in() -> None:
    told = removable(loaded=False).change_medium(3, "S0", MediumChange(load=True), 0.0)
    raised = {action.worker: json.loads(action.message.attentions) for action in told}  # type: ignore[union-attr]
    assert raised == {0: [], 1: [[list(B), "MEDIUM_MAY_HAVE_CHANGED"]]}


@pytest.mark.parametrize(
    ("unit", "place", "reason"),
    [
        ("S9", Medium(removable=True), "LOGICAL_UNIT_NOT_SUPPORTED"),
        ("S0", Medium(), "INVALID_FIELD_IN_CDB"),
        ("S0", Medium(removable=True, prevents=frozenset({B})), "MEDIUM_REMOVAL_PREVENTED"),
    ],
)
def test_administrator_hears_why_a_medium_stays(unit: str, place: Medium, reason: str) -> None:
    authority = Authority({"S0": Place(frozenset({DISK}), medium=place)})
    (answer,) = authority.change_medium(3, unit, MediumChange(load=False), 0.0)
    assert isinstance(answer, Tell) and isinstance(answer.message, UnitAnswer)
    assert (answer.worker, answer.message.reason) == (ADMINISTRATOR, reason)


def test_unit_that_comes_has_what_was_kept_of_it_and_every_worker_is_told() -> None:
    rig = Rig()
    kept = rules.kept(UnitState(saved_mode=ModeState(swp=True)))
    assert kept is not None
    told = rig.do(rig.authority.admit({"N": Place(frozenset({DISK}))}, {"N": kept}))
    assert [(action.worker, action.message.unit) for action in told] == [(0, "N"), (1, "N")]  # type: ignore[union-attr]
    assert rig.authority.state("N").saved_mode == ModeState(swp=True)
    assert rig.do(rig.authority.admit({"M": Place(frozenset({DISK}))}, {})) == []


def test_unit_whose_kept_state_makes_no_sense_does_not_come() -> None:
    rig = Rig()
    with pytest.raises(ValueError, match="kept"):
        rig.authority.admit({"N": Place(frozenset({DISK})), "M": Place(frozenset({DISK}))}, {"N": {"zebra": 1}})
    assert rig.do(rig.authority.settle(PLACES, 0.0)) == []


def test_what_waits_for_a_unit_that_goes_is_answered_once() -> None:
    rig = Rig()
    rig.open(0, 1, A)
    first, second = rig.ask(0, A, RESERVE), rig.ask(0, A, RESERVE)
    assert rig.status(first) is rig.status(second) is None
    rig.do(rig.authority.settle({key: place for key, place in PLACES.items() if key != "S0"}, 0.0))
    answers = rig.answers()
    assert {answers[ask].reason for ask in (first, second)} == {"LOGICAL_UNIT_NOT_SUPPORTED"}
    assert rig.do(rig.authority.applied(0, UnitApplied("S0", 1), 0.0)) == []  # too late
    assert rig.do(rig.authority.kept("S0", True, 0.0)) == []
    assert rig.authority.asks == 0
    assert rig.status(rig.ask(0, A, RESERVE)) == CHECK_CONDITION


def test_unit_on_one_more_target_keeps_its_state_and_its_access() -> None:
    standby = (PortGroup(1, AccessState.STANDBY),)
    authority = Authority({"S0": Place(frozenset({DISK}), None, {DISK: standby})})
    authority.worker_ready(0)
    place = Place(frozenset({DISK, TAPE}), None, {DISK: (PortGroup(1),), TAPE: (PortGroup(1),)})
    (told,) = authority.settle({"S0": place}, 0.0)
    assert isinstance(told, Tell) and isinstance(told.message, UpdateUnit)
    assert authority.state("S0").access == {DISK: standby, TAPE: (PortGroup(1),)}
    assert authority.settle({"S0": place}, 0.0) == []


def test_configuration_that_comes_while_a_change_is_under_way_follows_it() -> None:
    authority = Authority({"S0": Place(frozenset({DISK}))})
    authority.worker_ready(0)
    authority.session_opened(0, 7, A, 0.0)
    authority.ask(0, AskUnit(1, "S0", *A, RESERVE, ""), 0.0)
    groups = (PortGroup(1, AccessState.STANDBY),)
    place = Place(frozenset({DISK, TAPE}), access={TAPE: groups}, medium=Medium(removable=True))
    assert authority.settle({"S0": place}, 0.0) == []
    answer, told = authority.applied(0, UnitApplied("S0", 1), 0.0)
    assert isinstance(answer.message, UnitAnswer) and answer.message.status == GOOD  # type: ignore[union-attr]
    state = authority.state("S0")
    assert (state.access, state.medium) == ({TAPE: groups}, Medium(removable=True))
    assert state.reservations.spc2_holder == A
    assert json.loads(told.message.state)["medium"]["removable"]  # type: ignore[union-attr]
    assert authority.applied(0, UnitApplied("S0", 2), 0.0) == []
