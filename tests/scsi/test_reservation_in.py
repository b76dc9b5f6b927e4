"""PERSISTENT RESERVE IN: the parameter data, byte by byte as SPC-4 6.13 draws it."""

from __future__ import annotations

from typing import Any

import pytest

from iscsid.errors import ScsiError
from iscsid.scsi import transport_id
from iscsid.scsi.const import PersistentReserveIn as Action
from iscsid.scsi.const import Status
from iscsid.scsi.lu import SharedState
from iscsid.scsi.plan import Reply
from iscsid.scsi.reservation import ALL_REGISTRANTS, EMPTY, MAX_REGISTRATIONS, Reservations, Type
from iscsid.scsi.reservation_in import persistent_reserve_in, pr_in
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId

A = NexusId("iqn.2026-11.org.example:a", 0x23D000001, "iqn.2026-11.org.iscsid:disk0", 1)
B = A._replace(initiator="iqn.2026-11.org.example:bb", portal_group_tag=2)

each_type = pytest.mark.parametrize("kind", Type, ids=lambda kind: kind.name)


def ask(r: Reservations, action: int, allocation_length: int = 0xFFFF) -> bytes:
    return pr_in(r, A, bytes((0x5E, action, 0, 0, 0, 0, 0)) + allocation_length.to_bytes(2, "big") + bytes(7))


def held(kind: Type | None, **more: bool) -> Reservations:
    holder = None if kind is None or kind in ALL_REGISTRANTS else B
    return Reservations({A: 0x1111, B: 0xFEDCBA9876543210}, 0x01020304, holder, kind, **more)


# -- READ KEYS (6.13.2, table 207) -----------------------------------------------------------------------------------


def test_read_keys_of_nobody_is_a_header() -> None:
    assert ask(EMPTY, Action.READ_KEYS) == bytes(8)


def test_read_keys_lists_them_in_the_order_of_registration() -> None:
    assert ask(held(None), Action.READ_KEYS) == bytes.fromhex(
        "01020304"  # PRGENERATION
        "00000010"  # ADDITIONAL LENGTH
        "0000000000001111"
        "fedcba9876543210"
    )


def test_read_keys_lists_a_shared_key_as_often_as_it_is_shared() -> None:
    assert ask(Reservations({A: 5, B: 5}), Action.READ_KEYS)[8:] == bytes.fromhex("0000000000000005") * 2


def test_read_keys_of_the_fullest_unit_fits_the_allocation_length() -> None:
    full = Reservations({A._replace(isid=n): n + 1 for n in range(MAX_REGISTRATIONS)})
    assert len(ask(full, Action.READ_KEYS)) == 8 + 8 * MAX_REGISTRATIONS


# -- READ RESERVATION (6.13.3, tables 208 and 209) -------------------------------------------------------------------


def test_read_reservation_of_none_is_a_header() -> None:
    assert ask(held(None), Action.READ_RESERVATION) == bytes.fromhex("01020304 00000000")


@each_type
def test_read_reservation_tells_key_scope_and_type(kind: Type) -> None:
    key = "0000000000000000" if kind in ALL_REGISTRANTS else "fedcba9876543210"
    assert (
        ask(held(kind), Action.READ_RESERVATION)
        == bytes.fromhex(
            "01020304"  # PRGENERATION
            "00000010" + key + "00000000"  # ADDITIONAL LENGTH  # obsolete
            "00" + f"{int(kind):02x}"  # SCOPE 0h, TYPE
            "0000"  # obsolete
        )
    )


# -- REPORT CAPABILITIES (6.13.4, tables 212 and 213) ----------------------------------------------------------------


@pytest.mark.parametrize(("aptpl", "second"), [(False, 0xB0), (True, 0xB1)])
def test_report_capabilities_offers_everything(aptpl: bool, second: int) -> None:
    assert ask(held(None, aptpl=aptpl), Action.REPORT_CAPABILITIES) == bytes(
        (
            *(0x00, 0x08),  # LENGTH
            0x1D,  # CRH, SIP_C, ATP_C, PTPL_C
            second,  # TMV, ALLOW COMMANDS 011b, PTPL_A
            *(0xEA, 0x01),  # WR_EX_AR EX_AC_RO WR_EX_RO EX_AC WR_EX; EX_AC_AR
            *(0x00, 0x00),
        )
    )


# -- READ FULL STATUS (6.13.5, tables 216 and 217) -------------------------------------------------------------------


def test_read_full_status_of_nobody_is_a_header() -> None:
    assert ask(Reservations(pr_generation=9), Action.READ_FULL_STATUS) == bytes.fromhex("00000009 00000000")


@each_type
def test_read_full_status_tells_of_every_registration(kind: Type) -> None:
    names = [transport_id.build(nexus.initiator, nexus.isid) for nexus in (A, B)]
    all_hold = kind in ALL_REGISTRANTS
    holding, not_holding = f"01 0{kind:x}", "00 00"  # R_HOLDER, SCOPE and TYPE; ALL_TG_PT is 0
    descriptors = b"".join(
        bytes.fromhex(f"{key} 00000000 {flags} 00000000 {port} {len(name):08x}") + name
        for key, flags, port, name in (
            ("0000000000001111", holding if all_hold else not_holding, "0001", names[0]),
            ("fedcba9876543210", holding, "0002", names[1]),
        )
    )
    data = ask(held(kind), Action.READ_FULL_STATUS)
    assert data == bytes.fromhex("01020304") + len(descriptors).to_bytes(4, "big") + descriptors


def test_read_full_status_without_a_reservation_has_no_holder() -> None:
    data = ask(Reservations({A: 1}), Action.READ_FULL_STATUS)
    assert data[8 + 12 : 8 + 14] == b"\0\0"


# -- what holds for all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 23])
@pytest.mark.parametrize("action", Action, ids=lambda action: action.name)
def test_answer_is_cut_to_the_allocation_length(action: Action, length: int) -> None:
    r = held(Type.WRITE_EXCLUSIVE)
    assert ask(r, action, length) == ask(r, action)[:length]


@pytest.mark.parametrize("action", [0x04, 0x1F])
def test_unknown_service_action_is_refused(action: int) -> None:
    with pytest.raises(ScsiError) as caught:
        ask(EMPTY, action)
    assert (caught.value.reason, caught.value.field, caught.value.bit) == (Reason.INVALID_FIELD_IN_CDB, 1, 4)


@pytest.mark.parametrize("holder", [A, B], ids="AB")
@pytest.mark.parametrize("action", Action, ids=lambda action: action.name)
def test_spc2_reservation_conflicts_for_its_holder_as_well(action: Action, holder: NexusId) -> None:
    with pytest.raises(ScsiError) as caught:
        ask(Reservations(spc2_holder=holder), action)
    assert caught.value.reason is Status.RESERVATION_CONFLICT


def test_command_is_answered_from_the_copy_of_the_unit(unit: Any) -> None:
    unit.lu.state = SharedState(reservations=held(None))
    plan = persistent_reserve_in(unit.lu, bytes.fromhex("5e 00 0000000000 00 0c").ljust(16, b"\0"), unit.nexus)
    assert isinstance(plan, Reply) and plan.data == ask(held(None), Action.READ_KEYS)[:12]
