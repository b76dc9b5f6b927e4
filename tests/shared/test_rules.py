"""Invariant: every command and every reset comes to what its clause says, and what is kept restores."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from iscsid.scsi import ports, reservation, reservation_out
from iscsid.scsi.const import Status
from iscsid.scsi.mode import ModeState
from iscsid.scsi.ports import AccessState, PortGroup
from iscsid.scsi.removable import Medium
from iscsid.scsi.reservation import Reservations, Type
from iscsid.scsi.sanitize import Sanitize
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention, NexusId
from iscsid.shared import rules
from iscsid.shared.messages import MAX_PARAMETERS
from iscsid.shared.rules import MediumChange, Request, UnitState

A = NexusId("iqn.x:a", 1, "iqn.x:disk", 1)
B = NexusId("iqn.x:b", 2, "iqn.x:disk", 1)
C = NexusId("iqn.x:c", 3, "iqn.x:disk", 1)
RESERVE = bytes.fromhex("160000000000")
RELEASE = bytes.fromhex("170000000000")
REGISTER = bytes.fromhex("5f000000000000001800")
PERSISTENT = UnitState(Reservations({A: 1, B: 2}, 5, A, Type.WRITE_EXCLUSIVE, aptpl=True))
FACTS = {
    "blocks": 2048,
    "block_size": 512,
    "volatile": True,
    "saving": True,
    "default": ModeState(wce=True).to_plain(),
}


def mode_select(state: UnitState, *, wce: bool, save: bool = False, known: tuple[NexusId, ...] = (A, B, C)) -> Any:
    """MODE SELECT(6) with the caching page."""
    page = bytes([0x08, 0x12, 0x04 if wce else 0x00]) + bytes(17)
    data = bytes(4) + page
    cdb = bytes([0x15, 0x11 if save else 0x10, 0, 0, len(data), 0])
    return rules.apply(state, Request(A, cdb, data, known, facts=FACTS))


@pytest.mark.parametrize("cdb", [RESERVE, RESERVE.replace(b"\x16", b"\x56") + bytes(4)])
def test_reserve_makes_the_sender_the_holder(cdb: bytes) -> None:
    outcome = rules.apply(UnitState(), Request(A, cdb))
    assert outcome.error is None
    assert outcome.state == UnitState(Reservations(spc2_holder=A))


def test_reserve_of_another_conflicts() -> None:
    outcome = rules.apply(UnitState(Reservations(spc2_holder=A)), Request(B, RESERVE))
    assert outcome.error is not None
    assert outcome.error.reason is Status.RESERVATION_CONFLICT
    assert outcome.state == UnitState(Reservations(spc2_holder=A))


@pytest.mark.parametrize("cdb", [RELEASE, RELEASE.replace(b"\x17", b"\x57") + bytes(4)])
def test_release_frees_the_unit(cdb: bytes) -> None:
    outcome = rules.apply(UnitState(Reservations(spc2_holder=A)), Request(A, cdb))
    assert outcome.state == UnitState()


def test_register_registers_and_leaves_the_mode_alone() -> None:
    before = UnitState(mode=ModeState(swp=True))
    data = bytes(8) + (7).to_bytes(8, "big") + bytes(8)
    outcome = rules.apply(before, Request(A, REGISTER, data))
    assert outcome.error is None
    assert outcome.state.reservations.registrations == {A: 7}
    assert outcome.state.mode == before.mode


@pytest.mark.parametrize("cdb", [b"", bytes(6), bytes([0x28]) + bytes(9)])
def test_command_that_changes_nothing_shared_is_refused(cdb: bytes) -> None:
    outcome = rules.apply(UnitState(), Request(A, cdb))
    assert outcome.error is not None
    assert outcome.error.reason is Reason.INVALID_COMMAND_OPERATION_CODE


def test_mode_select_changes_the_mode_and_tells_all_others() -> None:
    outcome = mode_select(UnitState(), wce=False)
    assert outcome.error is None
    assert outcome.state.mode == ModeState(wce=False)
    assert outcome.state.saved_mode is None
    assert {(raised.nexus, raised.reason) for raised in outcome.attentions} == {
        (B, Reason.MODE_PARAMETERS_CHANGED),
        (C, Reason.MODE_PARAMETERS_CHANGED),
    }


def test_mode_select_of_what_is_raises_nothing() -> None:
    outcome = mode_select(UnitState(), wce=True)
    assert outcome.error is None
    assert outcome.attentions == ()


def test_mode_select_with_sp_saves() -> None:
    outcome = mode_select(UnitState(), wce=False, save=True)
    assert outcome.state.saved_mode == ModeState(wce=False)
    assert rules.kept(outcome.state) is not None
    assert rules.kept(UnitState(mode=ModeState(wce=False))) is None


def test_mode_select_that_is_refused_is_an_outcome_with_the_error() -> None:
    outcome = rules.apply(UnitState(), Request(A, bytes.fromhex("151000000400"), b"\0", facts=FACTS))
    assert outcome.error is not None
    assert outcome.error.reason is Reason.PARAMETER_LIST_LENGTH_ERROR


def test_reset_takes_the_spc_2_reservation_and_what_was_not_saved() -> None:
    saved = ModeState(d_sense=True)
    before = UnitState(Reservations(spc2_holder=A), ModeState(swp=True), saved)
    assert rules.reset(before) == UnitState(Reservations(), saved, saved)
    assert rules.reset(PERSISTENT) == PERSISTENT


def test_nexus_loss_takes_the_spc_2_reservation_of_that_nexus_only() -> None:
    before = UnitState(Reservations(spc2_holder=A))
    assert rules.nexus_lost(before, B).state == before
    assert rules.nexus_lost(before, A).state == UnitState()
    assert rules.nexus_lost(PERSISTENT, A).state == PERSISTENT


@pytest.mark.parametrize(
    ("function", "name", "reason"),
    [
        (5, "LOGICAL UNIT RESET", Reason.BUS_DEVICE_RESET_FUNCTION),
        (6, "TARGET WARM RESET", Reason.BUS_DEVICE_RESET_FUNCTION),
        (7, "TARGET COLD RESET", Reason.BUS_DEVICE_RESET_FUNCTION),
        (11, "I_T NEXUS RESET", Reason.I_T_NEXUS_LOSS),
    ],
)
def test_functions_have_the_numbers_of_the_rfc(function: int, name: str, reason: Reason) -> None:
    reset = rules.RESETS[function]
    assert reset.name == name
    assert reset.attention is reason
    assert reset.nexus_only == (function == 11)
    assert reset.ends_sessions == (function == 7)
    assert len(rules.RESETS) == 4


def test_nexus_reset_takes_what_its_loss_takes_and_tells_that_nexus() -> None:
    before = UnitState(Reservations(spc2_holder=A))
    outcome = rules.nexus_reset(before, A, rules.RESETS[11])
    assert (outcome.state, outcome.aborts) == (UnitState(), (A,))
    assert outcome.attentions == (Attention(A, Reason.I_T_NEXUS_LOSS),)
    assert rules.nexus_reset(before, B, rules.RESETS[11]).state == before


# -- as plain values ---------------------------------------------------------------------------------------------------


def test_plain_state_is_json_that_the_rooms_below_read() -> None:
    state = dataclasses.replace(PERSISTENT, mode=ModeState(swp=True))
    plain = json.loads(json.dumps(rules.to_plain(state)))
    assert reservation.from_plain(plain["reservations"]) == state.reservations
    assert ModeState.from_plain(plain["mode"]) == state.mode
    assert plain["saved_mode"] is None


def test_nothing_is_kept_without_aptpl_and_saved_pages() -> None:
    assert rules.kept(UnitState()) is None
    assert rules.kept(dataclasses.replace(PERSISTENT, reservations=Reservations({A: 1}))) is None
    assert rules.kept(UnitState(Reservations(spc2_holder=A), ModeState(swp=True))) is None


def test_what_is_kept_restores_to_what_persists() -> None:
    saved = ModeState(d_sense=True)
    state = dataclasses.replace(PERSISTENT, mode=ModeState(swp=True), saved_mode=saved)
    kept = rules.kept(state)
    assert kept is not None
    restored = rules.restore(json.loads(json.dumps(kept)))
    assert restored.reservations == dataclasses.replace(PERSISTENT.reservations, pr_generation=0)
    assert restored.mode == restored.saved_mode == saved
    assert rules.kept(restored) == kept


@pytest.mark.parametrize(
    "change",
    [
        {"reservations": None},
        {"reservations": {}},
        {"mode": {}},
        {"saved_mode": 1},
        {"saved_mode": {"wce": 1}},
        {"more": 1},
    ],
)
def test_what_was_not_kept_by_us_is_refused(change: dict[str, Any]) -> None:
    kept = rules.kept(PERSISTENT)
    assert kept is not None
    with pytest.raises(ValueError):
        rules.restore({**kept, **change})


def test_longest_register_fits_into_an_ask() -> None:
    assert reservation_out.MAX_PARAMETER_LENGTH <= MAX_PARAMETERS


IN, OUT = Medium(removable=True), Medium(removable=True, loaded=False)


def start_stop(state: UnitState, byte_4: int) -> Any:
    return rules.apply(state, Request(A, bytes((0x1B, 0, 0, 0, byte_4, 0)), known=(A, B)))


def test_eject_takes_the_medium_and_load_tells_all_others() -> None:
    ejected = start_stop(UnitState(medium=IN), 0x02)
    assert (ejected.state.medium, ejected.attentions) == (OUT, ())
    loaded = start_stop(ejected.state, 0x03)
    assert loaded.state.medium == IN
    assert [(raised.nexus, raised.reason) for raised in loaded.attentions] == [(B, Reason.MEDIUM_MAY_HAVE_CHANGED)]
    assert start_stop(loaded.state, 0x03).attentions == ()


def test_stop_and_start_tell_nobody() -> None:
    stopped = start_stop(UnitState(), 0x00)
    assert not stopped.state.medium.started
    assert (start_stop(stopped.state, 0x01).state, stopped.attentions) == (UnitState(), ())


def test_prevention_refuses_the_eject_and_goes_with_nexus_and_reset() -> None:
    prevented = rules.apply(UnitState(medium=IN), Request(B, bytes.fromhex("1e0000000100"))).state
    refused = start_stop(prevented, 0x02)
    assert refused.error is not None and refused.error.reason is Reason.MEDIUM_REMOVAL_PREVENTED
    assert refused.state == prevented
    assert rules.nexus_lost(prevented, B).state == UnitState(medium=IN)
    assert rules.nexus_lost(prevented, A).state == prevented
    assert rules.reset(prevented) == UnitState(medium=IN)


def test_administrator_loads_and_everybody_is_told() -> None:
    outcome = rules.change_medium(UnitState(medium=OUT), MediumChange(load=True), (A, B))
    assert outcome.state.medium == IN
    assert {raised.nexus for raised in outcome.attentions} == {A, B}
    assert rules.change_medium(UnitState(), MediumChange(load=False), (A,)).error is not None


def test_capacity_that_changed_is_told_to_all_who_are_logged_in() -> None:
    assert {(raised.nexus, raised.reason) for raised in rules.capacity_changed((A, B))} == {
        (A, Reason.CAPACITY_DATA_HAS_CHANGED),
        (B, Reason.CAPACITY_DATA_HAS_CHANGED),
    }


# -- asymmetric access -------------------------------------------------------------------------------------------------

TWO_GROUPS = {A.target: (PortGroup(1), PortGroup(2))}
STPG = bytes.fromhex("a40a 00000000 00000008 0000")
TO_STANDBY = bytes(4) + bytes.fromhex("02 00 0002")


def test_set_target_port_groups_changes_the_state_and_tells_the_others() -> None:
    outcome = rules.apply(UnitState(access=TWO_GROUPS), Request(A, STPG, TO_STANDBY, (A, B, C)))
    assert outcome.error is None
    assert outcome.state.access[A.target][1].state is AccessState.STANDBY
    assert [raised.nexus for raised in outcome.attentions] == [B, C]


def test_administrator_changes_the_state_and_all_are_told() -> None:
    change = rules.AccessChange(A.target, 2, AccessState.OFFLINE)
    outcome = rules.change_access(UnitState(access=TWO_GROUPS), change, (A, B))
    assert outcome.state.access[A.target][1].state is AccessState.OFFLINE
    assert [raised.nexus for raised in outcome.attentions] == [A, B]


def test_access_is_not_kept_and_no_reset_changes_it() -> None:  # SPC-4 5.15.2.9
    state = dataclasses.replace(PERSISTENT, access=TWO_GROUPS)
    kept = rules.kept(state)
    assert kept is not None and "access" not in kept
    assert rules.reset(state).access == TWO_GROUPS


def test_configuration_adds_and_takes_groups_and_keeps_the_states_that_were_set() -> None:
    standby = PortGroup(2, AccessState.STANDBY)
    before = UnitState(access={"iqn.x:disk": (PortGroup(1), standby), "iqn.x:gone": (PortGroup(1),)}, medium=OUT)
    access = {"iqn.x:disk": (PortGroup(1), PortGroup(2)), "iqn.x:new": (PortGroup(1),)}
    after = rules.reconfigured(before, access, None)
    assert after.access == {"iqn.x:disk": (PortGroup(1), standby), "iqn.x:new": (PortGroup(1),)}
    assert after.medium == OUT
    assert rules.reconfigured(before, access, IN).medium == IN


# -- sanitize ----------------------------------------------------------------------------------------------------------

BLOCK_ERASE, EXIT_FAILURE_MODE = (bytes((0x48, action)) + bytes(14) for action in (0x02, 0x1F))
IN_PROGRESS, FAILED = Sanitize(False, False), Sanitize(True, True)


def do_sanitize(state: UnitState, cdb: bytes = BLOCK_ERASE, nexus: NexusId = A) -> Any:
    return rules.apply(state, Request(nexus, cdb, known=(A, B), facts={"block_size": 512}))


def test_sanitize_begins_and_its_end_is_that_of_the_worker() -> None:
    begun = do_sanitize(UnitState())
    assert (begun.error, begun.attentions) == (None, ())
    assert begun.state == UnitState(sanitize=IN_PROGRESS)
    assert [rules.sanitizing(state) for state in (UnitState(), begun.state)] == [False, True]
    assert rules.sanitized(begun.state, True) == UnitState()
    failed = rules.sanitized(begun.state, False)
    assert failed.sanitize is not None and failed.sanitize.failed and not rules.sanitizing(failed)
    assert rules.sanitized(UnitState(), False) == UnitState()


@pytest.mark.parametrize(
    "cdb",
    [BLOCK_ERASE, RESERVE, REGISTER, STPG, bytes.fromhex("151000000400"), bytes.fromhex("1b0000000200")],
    ids=lambda cdb: f"{cdb[0]:02x}",
)
def test_nothing_shared_changes_while_it_is_in_progress(cdb: bytes) -> None:
    """SBC-3 4.11.3: whatever is not exempt ends with SANITIZE IN PROGRESS."""
    state = UnitState(access=TWO_GROUPS, medium=IN, sanitize=IN_PROGRESS)
    outcome = do_sanitize(state, cdb, B)
    assert outcome.error is not None and outcome.error.reason is Reason.SANITIZE_IN_PROGRESS
    assert outcome.state == state


def test_failed_unit_is_left_by_another_operation_or_by_exit_failure_mode() -> None:
    failed = UnitState(sanitize=FAILED)
    refused = do_sanitize(failed, RESERVE)
    assert refused.error is not None and refused.error.reason is Reason.SANITIZE_COMMAND_FAILED
    assert rules.sanitizing(do_sanitize(failed).state)
    assert do_sanitize(failed, EXIT_FAILURE_MODE).state == UnitState()


@pytest.mark.parametrize("reservations", [Reservations(spc2_holder=B), PERSISTENT.reservations])
def test_sanitize_of_a_unit_that_another_has_reserved_meanwhile_conflicts(reservations: Reservations) -> None:
    state = UnitState(reservations)
    outcome = do_sanitize(state, nexus=C)
    assert outcome.error is not None and outcome.error.reason is Status.RESERVATION_CONFLICT
    assert outcome.state == state


def test_no_reset_and_no_lost_nexus_ends_a_sanitize() -> None:  # SBC-3 4.11.3
    begun = do_sanitize(UnitState()).state
    assert rules.reset(begun) == begun
    assert rules.nexus_lost(begun, A).state == begun
    assert rules.nexus_reset(begun, A, rules.RESETS[11]).state == begun


@pytest.mark.parametrize("state", [IN_PROGRESS, FAILED])
def test_sanitize_that_was_not_done_is_a_failed_one_after_a_restart(state: Sanitize) -> None:
    kept = rules.kept(UnitState(sanitize=state))
    assert kept is not None
    restored = rules.restore(json.loads(json.dumps(kept)))
    assert restored == UnitState(sanitize=dataclasses.replace(state, failed=True))
    with pytest.raises(ValueError):
        rules.restore({**kept, "sanitize": {"failed": "perhaps"}})


def test_plain_access_medium_and_sanitize_are_read_by_the_rooms_below() -> None:
    state = UnitState(access=TWO_GROUPS, medium=OUT, sanitize=IN_PROGRESS)
    plain = json.loads(json.dumps(rules.to_plain(state)))
    assert ports.from_plain(plain["access"]) == TWO_GROUPS
    assert Medium.from_plain(plain["medium"]) == OUT
    assert Sanitize.from_plain(plain["sanitize"]) == IN_PROGRESS


@pytest.mark.parametrize(
    ("medium", "reason"),
    [
        (Medium(removable=True, loaded=False), Reason.MEDIUM_NOT_PRESENT),
        (Medium(started=False), Reason.INITIALIZING_COMMAND_REQUIRED),
    ],
)
def test_sanitize_of_a_medium_that_went_before_its_turn_is_refused(medium: Medium, reason: Reason) -> None:
    outcome = do_sanitize(UnitState(medium=medium))
    assert outcome.error is not None and outcome.error.reason == reason
    assert outcome.state.sanitize is None


@pytest.mark.parametrize("force", [False, True])
def test_medium_that_is_being_sanitized_is_not_ejected(force: bool) -> None:
    state = UnitState(sanitize=Sanitize(False, False), medium=Medium(removable=True))
    outcome = rules.change_medium(state, MediumChange(False, force), ())
    assert outcome.error is not None and outcome.error.reason == Reason.SANITIZE_IN_PROGRESS
    assert outcome.state == state
    failed = UnitState(sanitize=Sanitize(True, False), medium=Medium(removable=True))
    assert rules.change_medium(failed, MediumChange(False, force), ()).error is None


# -- what has come in between ------------------------------------------------------------------------------------------

# The command as its worker planned it, when nothing was in its way.
WAITING = {
    "MODE SELECT(6)": Request(
        C, bytes.fromhex("151000001800"), bytes(4) + bytes.fromhex("0812") + bytes(18), facts=FACTS
    ),
    "MODE SELECT(10)": Request(
        C, bytes.fromhex("55100000000000001c00"), bytes(8) + bytes.fromhex("0812") + bytes(18), facts=FACTS
    ),
    "SET TARGET PORT GROUPS": Request(C, STPG, TO_STANDBY),
    "START STOP UNIT": Request(C, bytes.fromhex("1b0000000000")),
    "PREVENT ALLOW MEDIUM REMOVAL": Request(C, bytes.fromhex("1e0000000100")),
    "SANITIZE": Request(C, BLOCK_ERASE, facts=FACTS),
}
FREE = UnitState(access=TWO_GROUPS, medium=IN)


def refused(state: UnitState, command: str) -> object:
    """Why the authority refuses a command in this state; None: it does not. What is refused changes nothing."""
    outcome = rules.apply(state, WAITING[command])
    assert (outcome.error is None) == (outcome.state != state)
    return outcome.error and outcome.error.reason


@pytest.mark.parametrize("command", WAITING)
@pytest.mark.parametrize(
    "reservations", [Reservations(spc2_holder=B), PERSISTENT.reservations], ids=["SPC-2", "persistent"]
)
def test_command_that_waited_while_another_nexus_reserved_the_unit_conflicts(
    command: str, reservations: Reservations
) -> None:
    assert refused(FREE, command) is None
    assert refused(dataclasses.replace(FREE, reservations=reservations), command) is Status.RESERVATION_CONFLICT


def test_what_a_reservation_lets_through_is_let_through() -> None:
    stopped = dataclasses.replace(IN, started=False, prevents=frozenset({C}))
    state = dataclasses.replace(FREE, reservations=PERSISTENT.reservations, medium=stopped)
    assert rules.apply(state, Request(C, bytes.fromhex("1b0000000100"))).state.medium.started
    assert not rules.apply(state, Request(C, bytes.fromhex("1e0000000000"))).state.medium.prevents


@pytest.mark.parametrize(
    ("state", "reason", "passing"),
    [
        (
            AccessState.STANDBY,
            Reason.TARGET_PORT_IN_STANDBY_STATE,
            {"MODE SELECT(6)", "MODE SELECT(10)", "SET TARGET PORT GROUPS"},
        ),
        (AccessState.UNAVAILABLE, Reason.TARGET_PORT_IN_UNAVAILABLE_STATE, {"SET TARGET PORT GROUPS"}),
        (AccessState.OFFLINE, Reason.LOGICAL_UNIT_OFFLINE, set[str]()),
    ],
    ids=lambda value: value.name if isinstance(value, AccessState) else "",
)
def test_command_that_waited_while_its_port_left_the_active_state_is_not_ready(
    state: AccessState, reason: Reason, passing: set[str]
) -> None:
    access = {C.target: (PortGroup(1, state), PortGroup(2))}
    found = {command: refused(dataclasses.replace(FREE, access=access), command) for command in WAITING}
    assert found == {command: None if command in passing else reason for command in WAITING}
    elsewhere = {"iqn.x:other": (PortGroup(1, state),), **TWO_GROUPS}
    assert refused(dataclasses.replace(FREE, access=elsewhere), "PREVENT ALLOW MEDIUM REMOVAL") is None


def test_sanitize_that_waited_while_the_medium_was_stopped_or_protected_is_refused() -> None:
    stopped = dataclasses.replace(FREE, medium=dataclasses.replace(IN, started=False))
    assert refused(stopped, "SANITIZE") is Reason.INITIALIZING_COMMAND_REQUIRED
    assert refused(dataclasses.replace(FREE, mode=ModeState(swp=True)), "SANITIZE") is Reason.WRITE_PROTECTED
