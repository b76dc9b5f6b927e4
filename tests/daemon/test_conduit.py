"""daemon.conduit: what goes to the authority, what comes back, and when a change is acknowledged."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from iscsid.daemon.conduit import Conduit
from iscsid.daemon.errands import Errands
from iscsid.errors import BlockError, Fault, ScsiError
from iscsid.scsi import reservation
from iscsid.scsi.const import Status
from iscsid.scsi.lu import Identity
from iscsid.scsi.mode import ModeState
from iscsid.scsi.ports import ONE_GROUP, AccessState, PortGroup
from iscsid.scsi.removable import FIXED, Medium
from iscsid.scsi.sanitize import Sanitize
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId
from iscsid.shared.messages import AskReset, AskUnit, SanitizeOver, UnitAnswer, UnitApplied, UpdateUnit, Withdraw

NEXUS = NexusId("iqn.2026-11.org.example:host", 5, "iqn.2026-11.org.iscsid:disk0", 1)
OTHER = NexusId("iqn.2026-11.org.example:other", 6, "iqn.2026-11.org.iscsid:disk0", 1)


class FakeDevice:
    def __init__(self) -> None:
        self.lock = contextlib.nullcontext()
        self.flushed = 0

    def flush(self) -> None:
        self.flushed += 1


class FakeUnit:
    def __init__(self) -> None:
        self.device = FakeDevice()
        self.identity = Identity("S1", "the disk", target="disk")
        self.port_groups = ONE_GROUP
        self.state: Any = None
        self.sanitize: Sanitize | None = None
        self.medium = FIXED
        self.default_mode_state = self.mode_state = ModeState(wce=True)
        self.saved_mode_state: ModeState | None = None
        self.blocks, self.block_size, self.volatile, self.metered = 2048, 512, True, False


class FakeEngine:
    """Remembers what it was told, and lets the test say when everything has stopped."""

    def __init__(self) -> None:
        self.updates: list[tuple[Any, ...]] = []

    def update(self, *update: Any) -> None:
        self.updates.append(update)

    def stop(self, index: int = 0) -> None:
        self.updates[index][3]()


class Rig:
    def __init__(self, engines: int = 1, units: int = 1) -> None:
        self.sent: list[Any] = []
        self.engines = [FakeEngine() for _ in range(engines)]
        self.units = [FakeUnit() for _ in range(units)]
        self.calls: list[tuple[Any, Any]] = []

        def submit(run: Any, done: Any) -> None:
            self.calls.append((run, done))

        self.conduit = Conduit(
            {"S1": self.units},  # type: ignore[dict-item]
            lambda: self.engines,  # type: ignore[arg-type, return-value]
            self.sent.append,
            submit,
            Errands(submit),
        )


def update(unit: str = "S1", attentions: Any = (), aborts: Any = (), **parts: Any) -> UpdateUnit:
    state = {
        "reservations": reservation.to_plain(reservation.EMPTY),
        "mode": None,
        "saved_mode": None,
        "access": {},
        "sanitize": None,
        "medium": FIXED.to_plain(),
        **parts,
    }
    return UpdateUnit(unit, 7, json.dumps(state), json.dumps(attentions), json.dumps(aborts), "a test")


def answer(ask: int, status: int = 0, reason: str = "", field: int = -1, bit: int = -1) -> UnitAnswer:
    return UnitAnswer(ask, status, reason, field, bit, True)


def test_ask_carries_the_command_whole() -> None:
    rig = Rig()
    rig.conduit.ask("S1", NEXUS, b"\x5f" + bytes(15), b"\x01\x02", lambda error: None)
    assert rig.sent == [AskUnit(1, "S1", *NEXUS, "5f" + "00" * 15, "0102")]


def test_every_ask_has_a_number_of_its_own_and_gets_its_own_answer() -> None:
    rig = Rig()
    heard: list[tuple[str, Any]] = []
    rig.conduit.ask("S1", NEXUS, bytes(16), b"", lambda error: heard.append(("first", error)))
    rig.conduit.ask("S1", NEXUS, bytes(16), b"", lambda error: heard.append(("second", error)))
    for number in (2, 1, 1, 9):  # answered twice, and never asked: nothing more is heard
        rig.conduit.answered(answer(number))
    assert heard == [("second", None), ("first", None)]


@pytest.mark.parametrize(
    ("told", "reason", "field", "bit"),
    [
        (answer(1, 0x18), Status.RESERVATION_CONFLICT, None, None),
        (answer(1, 0x02, "INVALID_FIELD_IN_CDB", 2, 4), Reason.INVALID_FIELD_IN_CDB, 2, 4),
        (answer(1, 0x02, "PARAMETER_LIST_LENGTH_ERROR"), Reason.PARAMETER_LIST_LENGTH_ERROR, None, None),
    ],
)
def test_refusal_comes_back_as_the_error_it_was(told: UnitAnswer, reason: Any, field: Any, bit: Any) -> None:
    rig = Rig()
    heard: list[ScsiError | None] = []
    rig.conduit.ask("S1", NEXUS, bytes(16), b"", heard.append)
    rig.conduit.answered(told)
    [error] = heard
    assert error is not None
    assert (error.reason, error.field, error.bit, error.in_data) == (
        (reason, field, bit, True) if told.reason else (reason, None, None, False)
    )


@pytest.mark.parametrize(("status", "complete"), [(0, True), (0x02, False)])
def test_reset_is_complete_when_the_answer_says_so(status: int, complete: bool) -> None:
    rig = Rig()
    heard: list[bool] = []
    rig.conduit.reset("", NEXUS, 6, heard.append)
    assert rig.sent == [AskReset(1, "", *NEXUS, 6)]
    rig.conduit.answered(answer(1, status, "INVALID_FIELD_IN_CDB" if status else ""))
    assert heard == [complete]


def test_change_reaches_every_unit_and_session_before_it_is_acknowledged() -> None:
    rig = Rig(engines=2, units=2)
    rig.conduit.update(update(attentions=[[NEXUS, "MODE_PARAMETERS_CHANGED"]], aborts=[OTHER]))
    assert all(unit.state is not None for unit in rig.units)
    for engine in rig.engines:
        assert [told[0] for told in engine.updates] == rig.units
        for _, attentions, aborts, _then, *_ in engine.updates:
            assert attentions == [Attention(NEXUS, Reason.MODE_PARAMETERS_CHANGED)]
            assert aborts == {OTHER}
    for engine in rig.engines:
        assert rig.sent == []
        engine.stop(0)
        engine.stop(0)  # a session may say it twice, by its end too
        engine.stop(1)
    assert rig.sent == [UnitApplied("S1", 7)]


def test_change_that_aborts_all_says_so_to_the_sessions() -> None:
    rig = Rig()
    rig.conduit.update(update(aborts="all"))
    assert rig.engines[0].updates[0][2] is None


@pytest.mark.parametrize("make", [lambda: Rig(engines=0), lambda: Rig(units=0)])
def test_change_that_concerns_nobody_here_is_acknowledged_at_once(make: Callable[[], Rig]) -> None:
    rig = make()
    rig.conduit.update(update())
    assert rig.sent == [UnitApplied("S1", 7)]


def test_change_of_a_unit_that_is_not_served_here_is_acknowledged_all_the_same() -> None:
    rig = Rig()
    rig.conduit.update(update("S2"))
    assert rig.sent == [UnitApplied("S2", 7)]
    assert rig.engines[0].updates == []


def test_mode_select_goes_with_what_only_this_worker_knows_of_the_unit() -> None:
    rig = Rig()
    rig.conduit.ask("S1", NEXUS, b"\x15" + bytes(15), b"", lambda error: None)
    assert json.loads(rig.sent[0].facts) == {
        "blocks": 2048,
        "block_size": 512,
        "volatile": True,
        "saving": False,
        "metered": False,
        "default": ModeState(wce=True).to_plain(),
    }


def test_mode_that_others_have_selected_is_taken_over_and_the_default_comes_back() -> None:
    rig = Rig()
    selected = ModeState(wce=True, swp=True)
    rig.conduit.update(update(mode=selected.to_plain()))
    assert rig.units[0].mode_state == selected
    rig.conduit.update(update())
    assert rig.units[0].mode_state == rig.units[0].default_mode_state


def test_flush_that_fails_when_the_cache_is_switched_off_is_told_with_the_acknowledgement(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig(engines=0)
    rig.conduit.update(update(mode=ModeState(wce=False).to_plain()))
    [(_, done)] = rig.calls
    done(None, OSError(5, "I/O error"))
    assert rig.sent == [UnitApplied("S1", 7, "WRITE_ERROR")]
    assert "the disk: flush failed" in caplog.text


def test_flush_that_fails_when_the_medium_goes_is_told_with_the_acknowledgement() -> None:
    rig = Rig(engines=0, units=2)
    rig.conduit.update(update(medium=EJECTED))
    [(_, done)] = rig.calls
    done(None, BlockError(Fault.BUSY))
    [_, (_, done)] = rig.calls
    done(None, None)
    assert rig.sent == [UnitApplied("S1", 7, "BUSY")]


def test_write_cache_that_is_switched_off_is_flushed_before_the_acknowledgement() -> None:
    rig = Rig(engines=0)
    rig.conduit.update(update(mode=ModeState(wce=False).to_plain()))
    assert rig.sent == []
    [(run, done)] = rig.calls
    run()
    assert rig.units[0].device.flushed == 1
    done(None, None)
    assert rig.sent == [UnitApplied("S1", 7)]
    rig.conduit.update(update(mode=ModeState(wce=False).to_plain()))
    assert len(rig.calls) == 1  # it is off already


def test_update_gives_each_unit_the_port_groups_of_its_target() -> None:
    rig = Rig()
    rig.conduit.update(update(access={"disk": [[1, 0, False, 0], [2, 2, True, 2]], "other": [[1, 3, False, 0]]}))
    first, second = rig.units[0].port_groups
    assert first == PortGroup(1)
    assert (second.tag, second.state, second.preferred) == (2, AccessState.STANDBY, True)
    rig.conduit.update(update(access={"other": [[1, 3, False, 0]]}))
    assert len(rig.units[0].port_groups) == 2


EJECTED = Medium(removable=True, loaded=False).to_plain()


def test_medium_that_goes_ends_what_is_not_done_and_is_flushed_before_the_acknowledgement() -> None:
    rig = Rig()
    rig.conduit.update(update(medium=EJECTED))
    assert rig.units[0].medium == Medium(removable=True, loaded=False)
    assert rig.engines[0].updates[0][4].reason is Reason.MEDIUM_NOT_PRESENT
    assert rig.calls == []  # what runs may still write
    rig.engines[0].stop()
    [(run, done)] = rig.calls
    run()
    assert rig.units[0].device.flushed == 1
    assert rig.sent == []
    done(None, None)
    assert rig.sent == [UnitApplied("S1", 7)]
    rig.conduit.update(update(medium=EJECTED))
    assert rig.engines[0].updates[1][4] is None  # it is gone already


def test_medium_without_a_cache_goes_without_a_flush() -> None:
    rig = Rig(engines=0)
    rig.units[0].volatile = False
    rig.conduit.update(update(medium=EJECTED))
    assert rig.sent == [UnitApplied("S1", 7)]


# -- sanitize, and what is withdrawn -----------------------------------------------------------------------------------

BLOCK_ERASE = bytes.fromhex("48 02").ljust(16, b"\0")


def test_ask_that_is_withdrawn_is_answered_by_the_authority() -> None:
    rig = Rig()
    heard: list[Any] = []
    withdraw = rig.conduit.ask("S1", NEXUS, b"\x16" + bytes(15), b"", heard.append)
    withdraw()
    assert rig.sent[-1] == Withdraw(1)
    rig.conduit.answered(answer(1, Status.TASK_ABORTED))
    assert heard[0].reason is Status.TASK_ABORTED
    withdraw()
    assert rig.sent[-1] == Withdraw(1) and len(rig.sent) == 2


def test_sanitize_goes_with_the_block_size_and_begins_when_all_workers_know() -> None:
    rig = Rig()
    heard: list[Any] = []
    rig.conduit.ask("S1", NEXUS, BLOCK_ERASE, b"", heard.append)
    assert rig.sent[0].facts == '{"block_size": 512}'
    assert rig.calls == []
    rig.conduit.answered(answer(1))
    [(_, done)] = rig.calls
    assert heard == []
    done(None, None)
    assert rig.sent[-1] == SanitizeOver(2, "S1", True)
    rig.conduit.answered(answer(2))
    assert heard == [None]


def test_sanitize_that_is_refused_or_leaves_a_failure_executes_nothing() -> None:
    rig = Rig()
    heard: list[Any] = []
    rig.conduit.ask("S1", NEXUS, BLOCK_ERASE, b"", heard.append)
    rig.conduit.answered(answer(1, Status.CHECK_CONDITION, "SANITIZE_IN_PROGRESS"))
    rig.conduit.ask("S1", NEXUS, bytes.fromhex("48 1f").ljust(16, b"\0"), b"", heard.append)
    rig.conduit.answered(answer(2))
    assert [error and error.reason for error in heard] == [Reason.SANITIZE_IN_PROGRESS, None]
    assert rig.calls == []


def test_sanitize_under_way_that_is_withdrawn_goes_on() -> None:
    rig = Rig()
    heard: list[Any] = []
    withdraw = rig.conduit.ask("S1", NEXUS, BLOCK_ERASE, b"", heard.append)
    rig.conduit.answered(answer(1))
    withdraw()
    assert heard[0].reason is Status.TASK_ABORTED
    rig.calls[0][1](None, None)
    assert rig.sent[-1] == SanitizeOver(2, "S1", True)
    rig.conduit.answered(answer(2))
    assert len(heard) == 1


def test_state_that_begins_a_sanitize_refuses_what_has_begun_and_reaches_the_unit() -> None:
    rig = Rig()
    state = Sanitize(False, True)
    rig.conduit.update(update(sanitize=state.to_plain()))
    assert rig.units[0].sanitize == state
    refusal = rig.engines[0].updates[0][4]
    assert refusal is not None and refusal.reason is Reason.SANITIZE_IN_PROGRESS
    rig.conduit.update(update(sanitize=state.to_plain()))
    rig.conduit.update(update(sanitize=Sanitize(True, True).to_plain()))
    rig.conduit.update(update())
    assert [told[4] for told in rig.engines[0].updates[1:]] == [None] * 3
    assert rig.units[0].sanitize is None
