"""PERSISTENT RESERVE OUT: what each service action does, to whom it raises what, and what hostile lists come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsid.errors import ScsiError
from iscsid.scsi import transport_id
from iscsid.scsi.const import PersistentReserveOut as Action
from iscsid.scsi.const import Status
from iscsid.scsi.plan import Ask
from iscsid.scsi.reservation import (
    ALL_REGISTRANTS,
    EMPTY,
    MAX_REGISTRATIONS,
    REGISTRANTS_ONLY,
    Reservations,
    Type,
    from_plain,
    release,
    reserve,
    to_plain,
)
from iscsid.scsi.reservation_out import MAX_PARAMETER_LENGTH, persistent_reserve_out, pr_out
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId, Outcome

TARGET = "iqn.2026-11.org.iscsid:disk0"
A = NexusId("iqn.2026-11.org.example:a", 0xA, TARGET, 1)
B = NexusId("iqn.2026-11.org.example:b", 0xB, TARGET, 1)
C = NexusId("iqn.2026-11.org.example:c", 0xC, TARGET, 1)
D = NexusId("iqn.2026-11.org.example:d", 0xD, TARGET, 1)
KEY_A, KEY_B, KEY_C, NEW = 0xAAAA, 0xBBBB, 0xCCCC, 0x1234567890ABCDEF

CONFLICT = Status.RESERVATION_CONFLICT
IN_CDB, IN_LIST = Reason.INVALID_FIELD_IN_CDB, Reason.INVALID_FIELD_IN_PARAMETER_LIST
LENGTH_ERROR = Reason.PARAMETER_LIST_LENGTH_ERROR
PREEMPTED, RELEASED = Reason.RESERVATIONS_PREEMPTED, Reason.RESERVATIONS_RELEASED
UNREGISTERED = Reason.REGISTRATIONS_PREEMPTED
SPEC_I_PT, ALL_TG_PT, APTPL = 0x08, 0x04, 0x01

each_type = pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name)
both_preempts = pytest.mark.parametrize("action", [Action.PREEMPT, Action.PREEMPT_AND_ABORT], ids=lambda a: a.name)


def cdb(action: int, length: int, scope_type: int = 0) -> bytes:
    return bytes((0x5F, action, scope_type, 0, 0)) + length.to_bytes(4, "big") + bytes(7)


def basic(key: int, new: int = 0, flags: int = 0, names: bytes | None = None) -> bytes:
    data = key.to_bytes(8, "big") + new.to_bytes(8, "big") + bytes((0, 0, 0, 0, flags, 0, 0, 0))
    return data if names is None else data + len(names).to_bytes(4, "big") + names


def out(
    r: Reservations,
    nexus: NexusId,
    action: Action,
    key: int,
    new: int = 0,
    kind: int = 0,
    flags: int = 0,
    names: bytes | None = None,
    **more: Any,
) -> Outcome:
    data = basic(key, new, flags, names)
    return pr_out(r, nexus, cdb(action, len(data), kind), data, **more)


def move(
    r: Reservations,
    nexus: NexusId,
    key: int,
    new: int,
    to: NexusId,
    flags: int = 0,
    name: bytes | None = None,
    **more: Any,
) -> Outcome:
    name = transport_id.build(to.initiator, to.isid) if name is None else name
    data = key.to_bytes(8, "big") + new.to_bytes(8, "big") + bytes((0, flags))
    data += to.portal_group_tag.to_bytes(2, "big") + len(name).to_bytes(4, "big") + name
    return pr_out(r, nexus, cdb(Action.REGISTER_AND_MOVE, len(data)), data, **more)


def state(*nexuses: NexusId, kind: Type | None = None, **more: Any) -> Reservations:
    """The nexuses, of A, B and C, are registered with their keys; the first holds a reservation of ``kind``."""
    keys = {A: KEY_A, B: KEY_B, C: KEY_C}
    holder = None if kind is None or kind in ALL_REGISTRANTS else nexuses[0]
    return Reservations({nexus: keys[nexus] for nexus in nexuses}, 7, holder, kind, **more)


def raised(outcome: Outcome) -> dict[NexusId, Reason]:
    """Who gets which unit attention; each gets one."""
    assert outcome.error is None
    told = {attention.nexus: attention.reason for attention in outcome.attentions}
    assert len(told) == len(outcome.attentions)
    return told


def refused(outcome: Outcome, before: Reservations) -> Any:
    """The reason of an error, which has changed nothing."""
    assert outcome.error is not None
    assert outcome.state == before
    assert (outcome.attentions, outcome.aborts, outcome.persist) == ((), (), False)
    return outcome.error.reason


# -- REGISTER (SPC-4 5.13.7, table 48) -------------------------------------------------------------------------------


def test_register_of_a_new_nexus_counts_and_raises_nothing() -> None:
    outcome = out(state(B), A, Action.REGISTER, 0, NEW)
    assert outcome.state.registrations == {B: KEY_B, A: NEW}
    assert outcome.state.pr_generation == 8
    assert raised(outcome) == {}


def test_register_of_no_key_by_a_stranger_does_nothing() -> None:
    assert out(state(B), A, Action.REGISTER, 0, 0, flags=APTPL).state == state(B)


def test_register_with_a_key_by_a_stranger_conflicts() -> None:
    for new in (0, NEW):
        assert refused(out(state(B), A, Action.REGISTER, KEY_B, new), state(B)) is CONFLICT


def test_register_of_another_key_changes_it() -> None:
    outcome = out(state(A, B), A, Action.REGISTER, KEY_A, NEW)
    assert outcome.state == dataclasses.replace(state(A, B), registrations={A: NEW, B: KEY_B}, pr_generation=8)


@pytest.mark.parametrize("key", [0, KEY_B, NEW])
def test_register_with_a_wrong_key_conflicts(key: int) -> None:
    assert refused(out(state(A, B), A, Action.REGISTER, key, NEW), state(A, B)) is CONFLICT


@each_type
def test_holder_that_changes_its_key_stays_holder(kind: Type) -> None:
    outcome = out(state(A, B, kind=kind), A, Action.REGISTER, KEY_A, NEW)
    assert (outcome.state.type, outcome.state.is_holder(A)) == (kind, True)
    assert raised(outcome) == {}


@pytest.mark.parametrize("action", [Action.REGISTER, Action.REGISTER_AND_IGNORE_EXISTING_KEY])
def test_register_ignores_scope_and_type(action: Action) -> None:
    assert out(EMPTY, A, action, 0, NEW, kind=0xFF).state.registrations == {A: NEW}


@pytest.mark.parametrize("action", [Action.REGISTER, Action.REGISTER_AND_IGNORE_EXISTING_KEY])
@each_type
def test_unregistering_the_holder_releases(kind: Type, action: Action) -> None:
    """SPC-4 5.13.11.2.2: only the registrants only types tell the others; all registrants keep what they hold."""
    outcome = out(state(A, B, C, kind=kind), A, action, KEY_A, 0)
    assert outcome.state.registrations == {B: KEY_B, C: KEY_C}
    assert outcome.state.type is (kind if kind in ALL_REGISTRANTS else None)
    assert raised(outcome) == ({B: RELEASED, C: RELEASED} if kind in REGISTRANTS_ONLY else {})
    assert outcome.state.pr_generation == 8


@each_type
def test_unregistering_another_keeps_the_reservation(kind: Type) -> None:
    outcome = out(state(A, B, C, kind=kind), B, Action.REGISTER, KEY_B, 0)
    assert (outcome.state.type, outcome.state.holder) == (kind, state(A, kind=kind).holder)
    assert raised(outcome) == {}


@each_type
def test_unregistering_the_last_releases(kind: Type) -> None:
    outcome = out(state(A, kind=kind), A, Action.REGISTER, KEY_A, 0)
    assert outcome.state == Reservations(pr_generation=8)
    assert raised(outcome) == {}


def test_register_beyond_the_limit_is_refused() -> None:
    full = Reservations({A._replace(isid=n): 1 for n in range(MAX_REGISTRATIONS)})
    assert refused(out(full, B, Action.REGISTER, 0, 1), full) is Reason.INSUFFICIENT_REGISTRATION_RESOURCES
    assert out(full, A._replace(isid=5), Action.REGISTER, 1, 2).error is None


# -- REGISTER AND IGNORE EXISTING KEY (table 49) ---------------------------------------------------------------------


@pytest.mark.parametrize("key", [0, KEY_A, KEY_B])
def test_register_and_ignore_looks_at_no_key(key: int) -> None:
    ignore = Action.REGISTER_AND_IGNORE_EXISTING_KEY
    assert out(state(B), A, ignore, key, NEW).state.registrations == {B: KEY_B, A: NEW}
    assert out(state(A, B), A, ignore, key, NEW).state.registrations == {A: NEW, B: KEY_B}
    assert out(state(A, B), A, ignore, key, 0).state.registrations == {B: KEY_B}


def test_register_and_ignore_of_no_key_by_a_stranger_does_nothing() -> None:
    assert out(state(B), A, Action.REGISTER_AND_IGNORE_EXISTING_KEY, KEY_B, 0).state == state(B)


def test_register_and_ignore_refuses_spec_i_pt() -> None:
    names = transport_id.build(B.initiator, B.isid)
    outcome = out(EMPTY, A, Action.REGISTER_AND_IGNORE_EXISTING_KEY, 0, NEW, flags=SPEC_I_PT, names=names)
    assert refused(outcome, EMPTY) is IN_LIST
    assert outcome.error is not None and (outcome.error.field, outcome.error.bit) == (20, 3)


# -- SPEC_I_PT (SPC-4 6.14.3) ----------------------------------------------------------------------------------------


def name_of(*nexuses: NexusId) -> bytes:
    return b"".join(transport_id.build(nexus.initiator, nexus.isid) for nexus in nexuses)


def device_name(name: str) -> bytes:
    value = name.encode() + bytes(4 - len(name.encode()) % 4)
    return b"\x05\0" + len(value).to_bytes(2, "big") + value


def test_spec_i_pt_registers_the_named_ports_too() -> None:
    outcome = out(EMPTY, A, Action.REGISTER, 0, NEW, flags=SPEC_I_PT, names=name_of(B, C))
    assert outcome.state.registrations == {A: NEW, B: NEW, C: NEW}
    assert outcome.state.pr_generation == 1


def test_spec_i_pt_names_need_not_be_logged_in() -> None:
    assert B in out(EMPTY, A, Action.REGISTER, 0, NEW, flags=SPEC_I_PT, names=name_of(B)).state.registrations


def test_spec_i_pt_may_name_the_sender_and_nobody() -> None:
    assert out(EMPTY, A, Action.REGISTER, 0, NEW, flags=SPEC_I_PT, names=name_of(A)).state.registrations == {A: NEW}
    assert out(EMPTY, A, Action.REGISTER, 0, NEW, flags=SPEC_I_PT, names=b"").state.registrations == {A: NEW}


def test_spec_i_pt_takes_a_device_for_all_its_known_ports() -> None:
    known = [B, B._replace(isid=0xB2), C]
    names = device_name(B.initiator)
    outcome = out(EMPTY, A, Action.REGISTER, 0, NEW, flags=SPEC_I_PT, names=names, known=known)
    assert set(outcome.state.registrations) == {A, B, B._replace(isid=0xB2)}


def test_spec_i_pt_of_a_device_without_ports_is_refused() -> None:
    outcome = out(EMPTY, A, Action.REGISTER, 0, NEW, flags=SPEC_I_PT, names=device_name(B.initiator), known=[C])
    assert refused(outcome, EMPTY) is IN_LIST


def test_spec_i_pt_of_one_that_is_registered_is_refused_whole() -> None:
    outcome = out(state(B), A, Action.REGISTER, 0, NEW, flags=SPEC_I_PT, names=name_of(C, B))
    assert refused(outcome, state(B)) is IN_LIST


@pytest.mark.parametrize("new", [0, NEW])
def test_spec_i_pt_by_a_registrant_is_refused(new: int) -> None:
    outcome = out(state(A), A, Action.REGISTER, KEY_A, new, flags=SPEC_I_PT, names=name_of(B))
    assert refused(outcome, state(A)) is IN_LIST


def test_spec_i_pt_by_a_stranger_without_a_new_key_does_nothing() -> None:
    outcome = out(state(B), A, Action.REGISTER, 0, 0, flags=SPEC_I_PT, names=name_of(C))
    assert (outcome.error, outcome.state) == (None, state(B))


def test_spec_i_pt_beyond_the_limit_registers_nobody() -> None:
    names = name_of(*(B._replace(isid=n) for n in range(MAX_REGISTRATIONS)))
    outcome = out(EMPTY, A, Action.REGISTER, 0, NEW, flags=SPEC_I_PT, names=names)
    assert refused(outcome, EMPTY) is Reason.INSUFFICIENT_REGISTRATION_RESOURCES


@pytest.mark.parametrize(
    "action", [Action.RESERVE, Action.RELEASE, Action.CLEAR, Action.PREEMPT, Action.PREEMPT_AND_ABORT]
)
def test_spec_i_pt_is_refused_by_other_service_actions(action: Action) -> None:
    outcome = out(state(A), A, action, KEY_A, KEY_A, kind=1, flags=SPEC_I_PT, names=name_of(B))
    assert refused(outcome, state(A)) is IN_LIST


# -- ALL_TG_PT -------------------------------------------------------------------------------------------------------

PORTS = [(TARGET, 1), (TARGET, 2), (TARGET, 3)]


def through(nexus: NexusId, *tags: int) -> list[NexusId]:
    return [nexus._replace(portal_group_tag=tag) for tag in tags]


def test_all_tg_pt_registers_by_every_port() -> None:
    outcome = out(EMPTY, A, Action.REGISTER, 0, NEW, flags=ALL_TG_PT, ports=PORTS)
    assert outcome.state.registrations == dict.fromkeys(through(A, 1, 2, 3), NEW)
    assert outcome.state.pr_generation == 1


def test_all_tg_pt_knows_the_ports_that_are_used() -> None:
    outcome = out(EMPTY, A, Action.REGISTER, 0, NEW, flags=ALL_TG_PT, known=[B._replace(portal_group_tag=4)])
    assert set(outcome.state.registrations) == set(through(A, 1, 4))


def test_all_tg_pt_holds_for_named_ports_too() -> None:
    flags = ALL_TG_PT | SPEC_I_PT
    outcome = out(EMPTY, A, Action.REGISTER, 0, NEW, flags=flags, names=name_of(B), ports=PORTS)
    assert set(outcome.state.registrations) == {*through(A, 1, 2, 3), *through(B, 1, 2, 3)}


def test_all_tg_pt_unregisters_by_every_port() -> None:
    r = Reservations({**dict.fromkeys(through(A, 1, 2), KEY_A), B: KEY_B})
    assert out(r, A, Action.REGISTER, KEY_A, 0, flags=ALL_TG_PT, ports=PORTS).state.registrations == {B: KEY_B}


def test_all_tg_pt_conflicts_where_another_key_is_registered_by_another_port() -> None:
    r = Reservations({A._replace(portal_group_tag=2): KEY_B})
    assert refused(out(r, A, Action.REGISTER, 0, NEW, flags=ALL_TG_PT, ports=PORTS), r) is CONFLICT
    ignoring = out(r, A, Action.REGISTER_AND_IGNORE_EXISTING_KEY, 0, NEW, flags=ALL_TG_PT, ports=PORTS)
    assert ignoring.state.registrations == dict.fromkeys(through(A, 1, 2, 3), NEW)


def test_without_all_tg_pt_one_port_is_registered() -> None:
    assert out(EMPTY, A, Action.REGISTER, 0, NEW, ports=PORTS).state.registrations == {A: NEW}


# -- APTPL -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [Action.REGISTER, Action.REGISTER_AND_IGNORE_EXISTING_KEY])
def test_aptpl_is_what_the_last_registration_said(action: Action) -> None:
    activated = out(state(A), A, action, KEY_A, NEW, flags=APTPL)
    assert (activated.state.aptpl, activated.persist) == (True, True)
    ended = out(activated.state, A, action, NEW, KEY_A)
    assert (ended.state.aptpl, ended.persist) == (False, True)
    assert out(ended.state, A, action, KEY_A, NEW).persist is False


@pytest.mark.parametrize(
    ("action", "new", "kind", "persist"),
    [
        (Action.RESERVE, 0, 1, True),
        (Action.RELEASE, 0, 1, False),  # nothing was held, so that nothing has changed
        (Action.CLEAR, 0, 0, True),
        (Action.PREEMPT, KEY_B, 1, True),
    ],
)
def test_change_under_aptpl_is_to_be_on_disk(action: Action, new: int, kind: int, persist: bool) -> None:
    outcome = out(state(A, B, aptpl=True), A, action, KEY_A, new, kind)
    assert (outcome.persist, outcome.state.aptpl) == (persist, True)


def test_aptpl_of_other_service_actions_is_ignored() -> None:
    assert out(state(A), A, Action.RESERVE, KEY_A, kind=1, flags=APTPL).state.aptpl is False


# -- RESERVE (SPC-4 5.13.9) ------------------------------------------------------------------------------------------


@each_type
def test_reserve_by_a_registrant_takes_the_reservation(kind: Type) -> None:
    outcome = out(state(A, B), A, Action.RESERVE, KEY_A, kind=kind)
    assert outcome.state == state(A, B, kind=kind)  # PRGENERATION is not incremented
    assert raised(outcome) == {}


@each_type
def test_reserve_again_is_good_for_a_holder_and_conflicts_for_others(kind: Type) -> None:
    r = state(A, B, kind=kind)
    assert out(r, A, Action.RESERVE, KEY_A, kind=kind).state == r
    again = out(r, B, Action.RESERVE, KEY_B, kind=kind)
    if kind in ALL_REGISTRANTS:
        assert (again.error, again.state) == (None, r)
    else:
        assert refused(again, r) is CONFLICT


@pytest.mark.parametrize("other", Type, ids=lambda kind: kind.name)
@each_type
def test_reserve_of_another_type_by_the_holder_conflicts(kind: Type, other: Type) -> None:
    if kind is not other:
        r = state(A, B, kind=kind)
        assert refused(out(r, A, Action.RESERVE, KEY_A, kind=other), r) is CONFLICT


@pytest.mark.parametrize(("scope_type", "bit"), [(0x00, 3), (0x02, 3), (0x04, 3), (0x09, 3), (0x0F, 3), (0x11, 7)])
def test_reserve_of_an_unknown_type_or_scope_is_refused(scope_type: int, bit: int) -> None:
    outcome = out(state(A), A, Action.RESERVE, KEY_A, kind=scope_type)
    assert refused(outcome, state(A)) is IN_CDB
    assert outcome.error is not None and (outcome.error.field, outcome.error.bit) == (2, bit)


# -- RELEASE (SPC-4 5.13.11.2.1) -------------------------------------------------------------------------------------


@each_type
def test_release_by_a_holder_tells_whom_the_type_let_in(kind: Type) -> None:
    outcome = out(state(A, B, C, kind=kind), A, Action.RELEASE, KEY_A, kind=kind)
    assert outcome.state == state(A, B, C)  # PRGENERATION is not incremented
    told = kind in REGISTRANTS_ONLY | ALL_REGISTRANTS
    assert raised(outcome) == ({B: RELEASED, C: RELEASED} if told else {})


@each_type
def test_release_by_another_registrant_does_nothing_unless_it_holds_it_too(kind: Type) -> None:
    r = state(A, B, kind=kind)
    outcome = out(r, B, Action.RELEASE, KEY_B, kind=kind)
    assert outcome.error is None
    assert outcome.state == (state(A, B) if kind in ALL_REGISTRANTS else r)
    assert raised(outcome) == ({A: RELEASED} if kind in ALL_REGISTRANTS else {})


def test_release_of_nothing_is_good() -> None:
    assert out(state(A), A, Action.RELEASE, KEY_A, kind=1).state == state(A)


@pytest.mark.parametrize("scope_type", [0x00, 0x03, 0x05, 0x11, 0xF1])
def test_release_of_what_is_not_held_is_refused(scope_type: int) -> None:
    r = state(A, kind=Type.WRITE_EXCLUSIVE)
    wrong = out(r, A, Action.RELEASE, KEY_A, kind=scope_type)
    assert refused(wrong, r) is Reason.INVALID_RELEASE_OF_PERSISTENT_RESERVATION


# -- CLEAR (SPC-4 5.13.11.2.7) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, *Type])
@pytest.mark.parametrize("sender", [A, B], ids="AB")
def test_clear_takes_everything_and_tells_all_others(kind: Type | None, sender: NexusId) -> None:
    key = KEY_A if sender == A else KEY_B
    outcome = out(state(A, B, C, kind=kind), sender, Action.CLEAR, key)
    assert outcome.state == Reservations(pr_generation=8)
    assert raised(outcome) == {nexus: PREEMPTED for nexus in (A, B, C) if nexus != sender}
    assert outcome.aborts == ()


# -- PREEMPT, PREEMPT AND ABORT (SPC-4 5.13.11.2.3 to 6) -------------------------------------------------------------


def aborted(action: Action, *nexuses: NexusId) -> tuple[NexusId, ...]:
    return nexuses if action is Action.PREEMPT_AND_ABORT else ()


@both_preempts
@pytest.mark.parametrize("wanted", Type, ids=lambda kind: kind.name)
@pytest.mark.parametrize("kind", sorted(set(Type) - ALL_REGISTRANTS), ids=lambda kind: kind.name)
def test_preempt_of_the_holders_key_moves_the_reservation(kind: Type, wanted: Type, action: Action) -> None:
    outcome = out(state(A, B, C, kind=kind), B, action, KEY_B, KEY_A, wanted)
    assert outcome.state.registrations == {B: KEY_B, C: KEY_C}
    assert (outcome.state.type, outcome.state.pr_generation) == (wanted, 8)
    assert outcome.state.holder == (None if wanted in ALL_REGISTRANTS else B)
    assert raised(outcome) == ({A: UNREGISTERED} if kind is wanted else {A: UNREGISTERED, C: RELEASED})
    assert outcome.aborts == aborted(action, A)


@both_preempts
@pytest.mark.parametrize("kind", sorted(set(Type) - ALL_REGISTRANTS), ids=lambda kind: kind.name)
def test_preempt_of_another_key_takes_registrations_only(kind: Type, action: Action) -> None:
    outcome = out(state(A, B, C, kind=kind), B, action, KEY_B, KEY_C, 0xFF)  # scope and type are ignored
    assert outcome.state.registrations == {A: KEY_A, B: KEY_B}
    assert (outcome.state.type, outcome.state.holder, outcome.state.pr_generation) == (kind, A, 8)
    assert raised(outcome) == {C: UNREGISTERED}
    assert outcome.aborts == aborted(action, C)


@both_preempts
def test_preempt_without_a_reservation_takes_registrations(action: Action) -> None:
    outcome = out(state(A, B), A, action, KEY_A, KEY_B)
    assert (outcome.state.registrations, outcome.state.type) == ({A: KEY_A}, None)
    assert raised(outcome) == {B: UNREGISTERED}


@both_preempts
@pytest.mark.parametrize("wanted", Type, ids=lambda kind: kind.name)
@pytest.mark.parametrize("kind", sorted(ALL_REGISTRANTS), ids=lambda kind: kind.name)
def test_preempt_of_key_zero_takes_all_registrants(kind: Type, wanted: Type, action: Action) -> None:
    outcome = out(state(A, B, C, kind=kind), B, action, KEY_B, 0, wanted)
    assert outcome.state.registrations == {B: KEY_B}
    assert (outcome.state.type, outcome.state.pr_generation) == (wanted, 8)
    assert outcome.state.holder == (None if wanted in ALL_REGISTRANTS else B)
    assert raised(outcome) == {A: UNREGISTERED, C: UNREGISTERED}
    assert outcome.aborts == aborted(action, A, C)


@both_preempts
@pytest.mark.parametrize("kind", sorted(ALL_REGISTRANTS), ids=lambda kind: kind.name)
def test_preempt_of_one_key_leaves_the_reservation_to_the_other_registrants(kind: Type, action: Action) -> None:
    outcome = out(state(A, B, C, kind=kind), B, action, KEY_B, KEY_A, Type.WRITE_EXCLUSIVE)
    assert outcome.state.registrations == {B: KEY_B, C: KEY_C}
    assert (outcome.state.type, outcome.state.holder) == (kind, None)
    assert raised(outcome) == {A: UNREGISTERED}


@both_preempts
@pytest.mark.parametrize("kind", [None, *sorted(set(Type) - ALL_REGISTRANTS)])
def test_preempt_of_key_zero_is_refused_elsewhere(kind: Type | None, action: Action) -> None:
    r = state(A, B, kind=kind)
    outcome = out(r, B, action, KEY_B, 0, 1)
    assert refused(outcome, r) is IN_LIST
    assert outcome.error is not None and outcome.error.field == 8


@both_preempts
@pytest.mark.parametrize("kind", [None, *Type])
def test_preempt_of_a_key_that_nobody_has_conflicts(kind: Type | None, action: Action) -> None:
    r = state(A, B, kind=kind)
    assert refused(out(r, B, action, KEY_B, NEW, 1), r) is CONFLICT


@both_preempts
@pytest.mark.parametrize("kind", sorted(set(Type) - ALL_REGISTRANTS), ids=lambda kind: kind.name)
def test_holder_that_preempts_itself_changes_the_type(kind: Type, action: Action) -> None:
    outcome = out(state(A, B, kind=kind), A, action, KEY_A, KEY_A, Type.WRITE_EXCLUSIVE)
    assert outcome.state.registrations == {A: KEY_A, B: KEY_B}
    assert (outcome.state.type, outcome.state.holder) == (Type.WRITE_EXCLUSIVE, A)
    assert raised(outcome) == ({} if kind is Type.WRITE_EXCLUSIVE else {B: RELEASED})
    assert outcome.aborts == ()


@both_preempts
def test_registrant_that_preempts_its_own_key_is_unregistered(action: Action) -> None:
    outcome = out(state(A, B, kind=Type.WRITE_EXCLUSIVE), B, action, KEY_B, KEY_B)
    assert (outcome.state.registrations, outcome.state.holder) == ({A: KEY_A}, A)
    assert raised(outcome) == {}
    assert outcome.aborts == ()  # its own command is among its tasks


@both_preempts
def test_last_of_all_registrants_that_preempts_itself_releases(action: Action) -> None:
    outcome = out(state(A, kind=Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS), A, action, KEY_A, KEY_A)
    assert outcome.state == Reservations(pr_generation=8)


@both_preempts
def test_preempt_of_a_key_that_several_share_takes_all_but_the_sender(action: Action) -> None:
    r = Reservations({A: NEW, B: NEW, C: NEW, D: 1}, 7, A, Type.WRITE_EXCLUSIVE)
    outcome = out(r, B, action, NEW, NEW, Type.WRITE_EXCLUSIVE)
    assert outcome.state.registrations == {B: NEW, D: 1}
    assert outcome.state.holder == B
    assert raised(outcome) == {A: UNREGISTERED, C: UNREGISTERED}
    assert outcome.aborts == aborted(action, A, C)


@both_preempts
@pytest.mark.parametrize("scope_type", [0x00, 0x02, 0x0F, 0x11])
def test_preempt_of_the_reservation_needs_a_type(scope_type: int, action: Action) -> None:
    r = state(A, B, kind=Type.WRITE_EXCLUSIVE)
    assert refused(out(r, B, action, KEY_B, KEY_A, scope_type), r) is IN_CDB


# -- REGISTER AND MOVE (SPC-4 5.13.8, table 50) ----------------------------------------------------------------------

MOVABLE = sorted(set(Type) - ALL_REGISTRANTS)


@pytest.mark.parametrize("kind", MOVABLE, ids=lambda kind: kind.name)
def test_move_registers_the_new_holder(kind: Type) -> None:
    outcome = move(state(A, B, kind=kind), A, KEY_A, NEW, C)
    assert outcome.state == dataclasses.replace(
        state(A, B, kind=kind), registrations={A: KEY_A, B: KEY_B, C: NEW}, holder=C, pr_generation=8
    )
    assert raised(outcome) == {}


def test_move_to_a_registrant_changes_its_key() -> None:
    outcome = move(state(A, B, kind=Type.EXCLUSIVE_ACCESS), A, KEY_A, NEW, B)
    assert (outcome.state.registrations, outcome.state.holder) == ({A: KEY_A, B: NEW}, B)


def test_move_with_unreg_unregisters_the_sender() -> None:
    outcome = move(state(A, B, kind=Type.WRITE_EXCLUSIVE), A, KEY_A, NEW, C, flags=0x02)
    assert (outcome.state.registrations, outcome.state.holder) == ({B: KEY_B, C: NEW}, C)


def test_move_sets_aptpl() -> None:
    outcome = move(state(A, kind=Type.WRITE_EXCLUSIVE), A, KEY_A, NEW, C, flags=0x01)
    assert (outcome.state.aptpl, outcome.persist) == (True, True)


def test_move_goes_to_another_port_of_the_target() -> None:
    to = A._replace(portal_group_tag=2)
    outcome = move(state(A, kind=Type.WRITE_EXCLUSIVE), A, KEY_A, NEW, to, ports=PORTS)
    assert outcome.state.holder == to


@pytest.mark.parametrize(
    ("r", "sender", "key", "new", "to", "reason"),
    [
        (state(B, kind=Type.WRITE_EXCLUSIVE), A, 0, NEW, C, CONFLICT),  # not registered
        (state(A, kind=Type.WRITE_EXCLUSIVE), A, KEY_B, NEW, C, CONFLICT),
        (state(A, B, kind=Type.WRITE_EXCLUSIVE), B, KEY_B, NEW, C, CONFLICT),  # not the holder
        (state(A, B, kind=Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS), A, KEY_A, NEW, C, CONFLICT),
        (state(A, B, kind=Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS), A, KEY_A, NEW, C, CONFLICT),
        (state(A, B), A, KEY_A, NEW, C, IN_CDB),  # nothing to move
        (state(A, kind=Type.WRITE_EXCLUSIVE), A, KEY_A, 0, C, IN_LIST),
        (state(A, kind=Type.WRITE_EXCLUSIVE), A, KEY_A, NEW, A, IN_LIST),  # to itself
        (state(A, kind=Type.WRITE_EXCLUSIVE), A, KEY_A, NEW, C._replace(portal_group_tag=9), IN_LIST),
        (state(A, kind=Type.WRITE_EXCLUSIVE), A, KEY_A, NEW, C._replace(portal_group_tag=0), IN_LIST),
    ],
)
def test_move_that_cannot_be_is_refused(
    r: Reservations, sender: NexusId, key: int, new: int, to: NexusId, reason: Reason | Status
) -> None:
    assert refused(move(r, sender, key, new, to), r) is reason


@pytest.mark.parametrize(
    ("name", "flags", "reason"),
    [
        (device_name(C.initiator), 0, IN_LIST),  # a device is no port
        (b"", 0, LENGTH_ERROR),
        (name_of(C)[:-4], 0, LENGTH_ERROR),
        (name_of(C, C), 0, IN_LIST),
        (name_of(C), 0x04, IN_LIST),
        (name_of(C), 0x80, IN_LIST),
    ],
)
def test_move_with_a_wrong_parameter_list_is_refused(name: bytes, flags: int, reason: Reason) -> None:
    r = state(A, kind=Type.WRITE_EXCLUSIVE)
    assert refused(move(r, A, KEY_A, NEW, C, flags, name), r) is reason


def test_move_beyond_the_limit_is_refused_unless_the_sender_goes() -> None:
    registrations = {A: KEY_A, **{B._replace(isid=n): 1 for n in range(MAX_REGISTRATIONS - 1)}}
    r = Reservations(registrations, 0, A, Type.WRITE_EXCLUSIVE)
    assert refused(move(r, A, KEY_A, NEW, C), r) is Reason.INSUFFICIENT_REGISTRATION_RESOURCES
    assert move(r, A, KEY_A, NEW, C, flags=0x02).state.holder == C


# -- what holds for all ----------------------------------------------------------------------------------------------

NEEDS_KEY = [Action.RESERVE, Action.RELEASE, Action.CLEAR, Action.PREEMPT, Action.PREEMPT_AND_ABORT]


# SPC-4 table 66: from a nexus that is not registered, or with a key that is not its own.
@pytest.mark.parametrize(("sender", "key"), [(C, 0), (C, KEY_A), (B, KEY_A), (B, 0), (A, KEY_B)])
@pytest.mark.parametrize("kind", [None, *Type])
@pytest.mark.parametrize("action", NEEDS_KEY, ids=lambda action: action.name)
def test_without_the_right_key_everything_conflicts(
    action: Action, kind: Type | None, sender: NexusId, key: int
) -> None:
    r = state(A, B, kind=kind)
    assert refused(out(r, sender, action, key, KEY_A, 1), r) is CONFLICT


@pytest.mark.parametrize("sender", [A, B], ids="AB")
@pytest.mark.parametrize("action", Action, ids=lambda action: action.name)
def test_spc2_reservation_conflicts_with_every_service_action(action: Action, sender: NexusId) -> None:
    r = Reservations(spc2_holder=A)
    assert refused(out(r, sender, action, 0, NEW, 1), r) is CONFLICT


@pytest.mark.parametrize("action", [0x08, 0x1F])
def test_unknown_service_action_is_refused(action: int) -> None:
    outcome = pr_out(state(A), A, cdb(action, 24), basic(KEY_A))
    assert refused(outcome, state(A)) is IN_CDB
    assert outcome.error is not None and outcome.error.field == 1


@pytest.mark.parametrize("length", [0, 1, 23, 25, 28, 32, MAX_PARAMETER_LENGTH + 1, 2**32 - 1])
@pytest.mark.parametrize("action", Action, ids=lambda action: action.name)
def test_wrong_length_is_refused(action: Action, length: int) -> None:
    data = basic(KEY_A, NEW).ljust(min(length, MAX_PARAMETER_LENGTH + 1), b"\0")
    r = state(A, kind=Type.WRITE_EXCLUSIVE)
    assert refused(pr_out(r, A, cdb(action, length, 1), data), r) is LENGTH_ERROR


def test_less_data_than_the_list_is_long_is_refused() -> None:
    assert refused(pr_out(EMPTY, A, cdb(Action.REGISTER, 24), basic(0, 1)[:-1]), EMPTY) is LENGTH_ERROR


def test_data_behind_the_list_is_not_looked_at() -> None:
    outcome = pr_out(EMPTY, A, cdb(Action.REGISTER, 24), basic(0, NEW) + b"more")
    assert outcome.state.registrations == {A: NEW}


@pytest.mark.parametrize("told", [-28, -1, 1, 4, 2**32 - 1])
def test_length_of_transport_ids_has_to_fit(told: int) -> None:
    names = name_of(B)
    data = basic(0, NEW, SPEC_I_PT) + (len(names) + told & 0xFFFFFFFF).to_bytes(4, "big") + names
    assert refused(pr_out(EMPTY, A, cdb(Action.REGISTER, len(data)), data), EMPTY) is LENGTH_ERROR


def test_spec_i_pt_without_a_length_is_refused() -> None:
    assert refused(out(EMPTY, A, Action.REGISTER, 0, NEW, flags=SPEC_I_PT), EMPTY) is LENGTH_ERROR


@pytest.mark.parametrize("bit", [1, 4, 5, 6, 7])
def test_reserved_flag_is_refused_and_pointed_at(bit: int) -> None:
    outcome = out(EMPTY, A, Action.REGISTER, 0, NEW, flags=1 << bit)
    assert refused(outcome, EMPTY) is IN_LIST
    assert outcome.error is not None and (outcome.error.field, outcome.error.bit) == (20, bit)
    assert outcome.error.in_data


def test_command_is_asked_of_the_authority(unit: Any) -> None:
    plan = persistent_reserve_out(unit.lu, cdb(Action.REGISTER, 24), unit.nexus)
    assert isinstance(plan, Ask) and plan.parameter_length == 24


def test_list_that_is_too_long_is_never_gathered(unit: Any) -> None:
    with pytest.raises(ScsiError) as caught:
        persistent_reserve_out(unit.lu, cdb(Action.REGISTER, MAX_PARAMETER_LENGTH + 1), unit.nexus)
    assert caught.value.reason is LENGTH_ERROR


def test_longest_list_that_can_succeed_fits() -> None:
    longest = [NexusId("iqn." + "a" * 219, n, TARGET, 1) for n in range(MAX_REGISTRATIONS - 1)]
    outcome = out(EMPTY, A, Action.REGISTER, 0, NEW, flags=SPEC_I_PT, names=name_of(*longest))
    assert len(outcome.state.registrations) == MAX_REGISTRATIONS


# -- any commands in any order ---------------------------------------------------------------------------------------

NEXUSES = [A, B, C, D, A._replace(portal_group_tag=2)]
_keys = st.integers(0, 3)
_names = st.lists(st.sampled_from(NEXUSES), max_size=3).map(lambda nexuses: name_of(*nexuses))
_basic = st.tuples(
    st.sampled_from(NEXUSES),
    st.sampled_from(sorted(set(Action) - {Action.REGISTER_AND_MOVE})),
    _keys,
    _keys,
    st.sampled_from([0, *Type, 0x11]),
    st.sampled_from([0, APTPL, ALL_TG_PT, SPEC_I_PT, ALL_TG_PT | SPEC_I_PT | APTPL]),
    st.none() | _names,
)
_moves = st.tuples(st.sampled_from(NEXUSES), _keys, _keys, st.sampled_from(NEXUSES), st.integers(0, 3))
_steps = st.lists(_basic | _moves | st.tuples(st.sampled_from(NEXUSES), st.booleans()), max_size=30)


def perform(r: Reservations, step: tuple[Any, ...]) -> Outcome:
    if len(step) == 2:
        return (reserve if step[1] else release)(r, step[0])
    if len(step) == 5:
        return move(r, *step, ports=PORTS)
    nexus, action, key, new, kind, flags, names = step
    return out(r, nexus, action, key, new, kind, flags, names, known=NEXUSES, ports=PORTS[:2])


def check(before: Reservations, outcome: Outcome, senders: Collection[NexusId]) -> None:
    after = outcome.state
    assert from_plain(to_plain(after)) == after  # holder registered, keys not 0, limits: what from_plain insists on
    if outcome.error is not None:
        assert after is before and not outcome.attentions
        return
    told = [attention.nexus for attention in outcome.attentions]
    assert len(set(told)) == len(told) and not set(told) & set(senders)
    assert set(told) <= set(before.registrations) and set(outcome.aborts) <= set(before.registrations)
    # Whoever lost a registration without asking for it is told so, and nobody else is.
    lost = set(before.registrations) - set(after.registrations) - set(senders)
    reasons = {attention.nexus for attention in outcome.attentions if attention.reason is not RELEASED}
    assert reasons <= lost and all(n in reasons or n[:2] in {s[:2] for s in senders} for n in lost)
    if after.registrations != before.registrations:
        assert after.pr_generation == before.pr_generation + 1


@settings(max_examples=300)
@given(_steps)
def test_any_sequence_of_commands_keeps_the_state_sound(steps: list[tuple[Any, ...]]) -> None:
    r = EMPTY
    for step in steps:
        outcome = perform(r, step)
        check(r, outcome, step[:1])
        r = outcome.state


@given(st.binary(max_size=120), st.binary(min_size=16, max_size=16), st.sampled_from(NEXUSES))
def test_noise_is_an_error_or_a_sound_state(noise: bytes, command: bytes, sender: NexusId) -> None:
    r = state(A, B, kind=Type.WRITE_EXCLUSIVE)
    for action in range(32):
        for data in (noise, basic(KEY_A, NEW, SPEC_I_PT, noise), basic(KEY_A, NEW)[:20] + noise):
            outcome = pr_out(r, sender, cdb(action, len(data), command[2]), data, NEXUSES)
            assert from_plain(to_plain(outcome.state)) == outcome.state
        outcome = pr_out(r, sender, bytes((0x5F, action)) + command[2:], noise, NEXUSES)
        assert from_plain(to_plain(outcome.state)) == outcome.state
