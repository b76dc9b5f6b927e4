"""Reservations as a value: who is restricted, RESERVE and RELEASE, losses and resets, and the way through JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.scsi import reservation
from iscsid.scsi.const import Status
from iscsid.scsi.plan import Ask
from iscsid.scsi.reservation import (
    ALL_REGISTRANTS,
    EMPTY,
    MAX_REGISTRATIONS,
    REGISTRANTS_ONLY,
    Reservations,
    Restriction,
    Type,
    from_plain,
    nexus_lost,
    power_loss,
    release,
    reserve,
    reset,
    restriction,
    to_plain,
)
from iscsid.scsi.state import NexusId

A = NexusId("iqn.2026-11.org.example:a", 1, "iqn.2026-11.org.iscsid:disk0", 1)
B = A._replace(initiator="iqn.2026-11.org.example:b")
C = A._replace(initiator="iqn.2026-11.org.example:c")

WRITE, ALL, SPC_2 = Restriction.WRITE_EXCLUSIVE, Restriction.EXCLUSIVE_ACCESS, Restriction.SPC_2


def held(kind: Type, **more: Any) -> Reservations:
    """A and B are registered, A holds a reservation of ``kind``, C is a stranger."""
    return Reservations({A: 0xA, B: 0xB}, 2, None if kind in ALL_REGISTRANTS else A, kind, **more)


each_type = pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name)


# SPC-4 6.13.3.4, table 211: what each type leaves to the holder, another registrant, and a stranger.
@pytest.mark.parametrize(
    ("kind", "holder", "registrant", "stranger"),
    [
        (Type.WRITE_EXCLUSIVE, None, WRITE, WRITE),
        (Type.EXCLUSIVE_ACCESS, None, ALL, ALL),
        (Type.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, None, None, WRITE),
        (Type.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY, None, None, ALL),
        (Type.WRITE_EXCLUSIVE_ALL_REGISTRANTS, None, None, WRITE),
        (Type.EXCLUSIVE_ACCESS_ALL_REGISTRANTS, None, None, ALL),
    ],
)
def test_restriction_by_type_and_sender(
    kind: Type, holder: Restriction | None, registrant: Restriction | None, stranger: Restriction | None
) -> None:
    assert [restriction(held(kind), nexus) for nexus in (A, B, C)] == [holder, registrant, stranger]


def test_restriction_of_spc2_spares_its_holder_alone() -> None:
    r = Reservations(spc2_holder=A)
    assert [restriction(r, nexus) for nexus in (A, B, C)] == [None, SPC_2, SPC_2]


def test_registration_alone_restricts_nobody() -> None:
    assert [restriction(Reservations({A: 1}), nexus) for nexus in (A, B)] == [None, None]
    assert restriction(EMPTY, A) is None


@pytest.mark.parametrize(
    "other",
    [A._replace(isid=2), A._replace(portal_group_tag=2), A._replace(target="iqn.2026-11.org.iscsid:disk1")],
)
def test_another_port_of_the_holder_is_another_nexus(other: NexusId) -> None:
    assert restriction(held(Type.WRITE_EXCLUSIVE), other) is WRITE


@each_type
def test_holder_is_one_nexus_or_every_registrant(kind: Type) -> None:
    r = held(kind)
    assert (r.is_holder(A), r.is_holder(B), r.is_holder(C)) == (True, kind in ALL_REGISTRANTS, False)


def test_nobody_holds_what_is_not_there() -> None:
    assert not Reservations({A: 1}).is_holder(A)


# -- registrations that go -------------------------------------------------------------------------------------------


@each_type
def test_without_the_holder_the_reservation_goes_unless_all_registrants_hold_it(kind: Type) -> None:
    left = held(kind).without([A])
    assert left.registrations == {B: 0xB}
    assert (left.type, left.holder) == ((kind, None) if kind in ALL_REGISTRANTS else (None, None))


@each_type
def test_without_another_registrant_the_reservation_stays(kind: Type) -> None:
    left = held(kind).without([B])
    assert (left.type, left.holder, left.registrations) == (kind, held(kind).holder, {A: 0xA})


@each_type
def test_without_the_last_registrant_nothing_is_left(kind: Type) -> None:
    left = held(kind).without([A, B, C])
    assert (left.type, left.holder, left.registrations) == (None, None, {})


def test_generation_wraps_at_32_bits() -> None:
    assert Reservations(pr_generation=41).next_generation() == 42
    assert Reservations(pr_generation=2**32 - 1).next_generation() == 0


# -- RESERVE and RELEASE (SPC-2 7.17, 7.21; SPC-4 5.13.3) -------------------------------------------------------------


def test_reserve_takes_a_free_unit() -> None:
    outcome = reserve(EMPTY, A)
    assert (outcome.error, outcome.state.spc2_holder) == (None, A)


def test_reserve_again_by_the_holder_changes_nothing() -> None:
    r = Reservations(spc2_holder=A)
    assert reserve(r, A).state == r and reserve(r, A).error is None


def test_reserve_while_another_holds_it_conflicts() -> None:
    outcome = reserve(Reservations(spc2_holder=A), B)
    assert outcome.error is not None and outcome.error.reason is Status.RESERVATION_CONFLICT
    assert outcome.state.spc2_holder == A


def test_release_by_the_holder_frees_the_unit() -> None:
    assert release(Reservations(spc2_holder=A), A).state == EMPTY


@pytest.mark.parametrize("r", [EMPTY, Reservations(spc2_holder=A)])
def test_release_by_another_is_good_and_changes_nothing(r: Reservations) -> None:
    outcome = release(r, B)
    assert (outcome.error, outcome.state) == (None, r)


@pytest.mark.parametrize("command", [reserve, release])
@pytest.mark.parametrize("nexus", [A, B, C], ids="ABC")
@each_type
def test_spc2_under_a_persistent_reservation(kind: Type, nexus: NexusId, command: Any) -> None:
    """SPC-4 5.13.3: GOOD and nothing more for whom the reservation lets in, for others the conflict of SPC-2."""
    let_in = nexus == A or (nexus == B and kind in REGISTRANTS_ONLY | ALL_REGISTRANTS)
    outcome = command(held(kind), nexus)
    assert outcome.state == held(kind)
    assert (outcome.error is None) is let_in
    assert outcome.error is None or outcome.error.reason is Status.RESERVATION_CONFLICT


@pytest.mark.parametrize("command", [reserve, release])
@pytest.mark.parametrize("nexus", [A, B], ids="AB")
def test_spc2_conflicts_with_any_registration(nexus: NexusId, command: Any) -> None:
    """SPC-2 5.5.1: from the registered nexus as well, for there is no reservation that it would hold."""
    outcome = command(Reservations({A: 1}), nexus)
    assert outcome.error is not None and outcome.error.reason is Status.RESERVATION_CONFLICT


@pytest.mark.parametrize("command", [reserve, release])
def test_spc2_raises_and_aborts_nothing(command: Any) -> None:
    outcome = command(Reservations(spc2_holder=A), A)
    assert (outcome.attentions, outcome.aborts, outcome.persist) == ((), (), False)


def test_command_is_asked_of_the_authority(unit: Any) -> None:
    plan = reservation.reserve_unit(unit.lu, bytes((0x16,)).ljust(16, b"\0"), unit.nexus)
    assert isinstance(plan, Ask) and plan.parameter_length == 0


# -- losses and resets -----------------------------------------------------------------------------------------------


def test_loss_of_the_holders_nexus_ends_an_spc2_reservation() -> None:
    assert nexus_lost(Reservations(spc2_holder=A), A).state == EMPTY


def test_loss_of_another_nexus_changes_nothing() -> None:
    assert nexus_lost(Reservations(spc2_holder=A), B).state == Reservations(spc2_holder=A)


@each_type
def test_persistent_reservation_outlives_nexus_and_reset(kind: Type) -> None:
    r = held(kind)
    assert nexus_lost(r, A).state == r
    assert reset(r) == r


def test_reset_ends_an_spc2_reservation() -> None:
    assert reset(Reservations(spc2_holder=A)) == EMPTY


def test_power_loss_keeps_what_aptpl_asked_to_keep() -> None:
    r = held(Type.WRITE_EXCLUSIVE, aptpl=True)
    assert power_loss(r) == dataclasses.replace(r, pr_generation=0)


def test_power_loss_takes_everything_without_aptpl() -> None:
    assert power_loss(held(Type.WRITE_EXCLUSIVE)) == EMPTY
    assert power_loss(Reservations(spc2_holder=A, aptpl=True)).spc2_holder is None


# -- plain values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "r",
    [
        EMPTY,
        Reservations({A: 1}, 1),
        Reservations({A: 2**64 - 1, B: 1}, 2**32 - 1, aptpl=True),
        Reservations(spc2_holder=B),
        *map(held, Type),
    ],
)
def test_value_comes_back_from_json(r: Reservations) -> None:
    assert from_plain(json.loads(json.dumps(to_plain(r)))) == r


def test_order_of_registrations_comes_back_from_json() -> None:
    r = Reservations({C: 1, A: 2, B: 3})
    assert list(from_plain(json.loads(json.dumps(to_plain(r)))).registrations) == [C, A, B]


def plain(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(to_plain(held(Type.WRITE_EXCLUSIVE)))), **changes}


NEXUS = list(A)


@pytest.mark.parametrize(
    "nonsense",
    [
        None,
        [],
        {},
        "registrations",
        {**plain(), "more": 1},
        plain(registrations=None),
        plain(registrations={}),
        plain(registrations=[]),  # a holder that is not registered
        plain(registrations=[NEXUS]),
        plain(registrations=[[*NEXUS, 0]]),  # key 0 is none
        plain(registrations=[[*NEXUS, 2**64]]),
        plain(registrations=[[*NEXUS, "1"]]),
        plain(registrations=[[*NEXUS, True]]),
        plain(registrations=[[*NEXUS, 1], [*NEXUS, 2]]),
        plain(registrations=[["a", 1, "t", 1, 1, 1]]),
        plain(registrations=[[1, 1, "t", 1, 1]]),
        plain(registrations=[["a", 1, None, 1, 1]]),
        plain(registrations=[["a", 2**48, "t", 1, 1]]),
        plain(registrations=[["a", 1, "t", 2**16, 1]]),
        plain(registrations=[["a", n, "t", 1, 1] for n in range(MAX_REGISTRATIONS + 1)]),
        plain(pr_generation=-1),
        plain(pr_generation=2**32),
        plain(pr_generation=1.0),
        plain(holder=None),
        plain(holder=list(C)),
        plain(holder="iqn"),
        plain(type=None),  # a holder of nothing
        plain(type=0),
        plain(type=2),
        plain(type=9),
        plain(type="1"),
        plain(type=7),  # a single holder of what all registrants hold
        plain(type=7, holder=None, registrations=[]),
        plain(aptpl=1),
        plain(aptpl=None),
        plain(spc2_holder=NEXUS),  # beside registrations
        plain(spc2_holder=[]),
    ],
)
def test_nonsense_is_a_value_error(nonsense: object) -> None:
    with pytest.raises(ValueError):
        from_plain(nonsense)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(sorted(plain())), inner, max_size=6),
    max_leaves=20,
)


@given(st.fixed_dictionaries(dict.fromkeys(plain(), _JSON)))
def test_noise_raises_value_error_alone(noise: dict[str, Any]) -> None:
    try:
        reservation.from_plain(noise)
    except ValueError:
        return
