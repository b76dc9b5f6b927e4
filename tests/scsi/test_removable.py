"""Invariant: a unit without a medium, or stopped, executes exactly what needs none, and who may change that is kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from iscsid.block.guard import Guarded
from iscsid.errors import ScsiError
from iscsid.scsi import removable
from iscsid.scsi.commands import COMMANDS
from iscsid.scsi.lu import Identity, LogicalUnit
from iscsid.scsi.plan import Ask, Job
from iscsid.scsi.removable import Medium
from iscsid.scsi.sense import REASONS, Reason
from iscsid.scsi.state import NexusId

A = NexusId("iqn.x:a", 1, "iqn.x:disk", 1)
B = NexusId("iqn.x:b", 2, "iqn.x:disk", 1)
IN = Medium(removable=True)
OUT = Medium(removable=True, loaded=False)
STOPPED = Medium(removable=True, started=False)
EJECT, LOAD, STOP, START = 0x02, 0x03, 0x00, 0x01


def start_stop(byte_4: int) -> bytes:
    return bytes((0x1B, 0, 0, 0, byte_4, 0))


def prevent_allow(byte_4: int) -> bytes:
    return bytes((0x1E, 0, 0, 0, byte_4, 0))


@pytest.mark.parametrize(
    ("before", "byte_4", "after"),
    [
        (IN, EJECT, OUT),
        (STOPPED, EJECT, OUT),
        (OUT, EJECT, OUT),
        (OUT, LOAD, IN),
        (IN, LOAD, IN),
        (STOPPED, LOAD, IN),
        (IN, STOP, STOPPED),
        (STOPPED, STOP, STOPPED),
        (STOPPED, START, IN),
        (IN, START, IN),
        (OUT, STOP, OUT),
    ],
)
def test_start_stop_leads_to(before: Medium, byte_4: int, after: Medium) -> None:
    assert removable.start_stop(before, start_stop(byte_4)) == after


@pytest.mark.parametrize("medium", [IN, OUT])
def test_medium_that_is_prevented_is_neither_taken_out_nor_put_in(medium: Medium) -> None:
    held = removable.prevent_allow(medium, A, prevent_allow(1))
    with pytest.raises(ScsiError) as caught:
        removable.start_stop(held, start_stop(EJECT if medium.loaded else LOAD))
    assert caught.value.reason is Reason.MEDIUM_REMOVAL_PREVENTED
    assert REASONS[Reason.MEDIUM_REMOVAL_PREVENTED] == (0x05, 0x53, 0x02)


def test_start_without_a_medium_is_refused() -> None:
    with pytest.raises(ScsiError) as caught:
        removable.start_stop(OUT, start_stop(START))
    assert caught.value.reason is Reason.MEDIUM_NOT_PRESENT


def test_prevention_belongs_to_the_nexus_and_goes_with_it() -> None:
    both = removable.prevent_allow(removable.prevent_allow(IN, A, prevent_allow(1)), B, prevent_allow(1))
    assert both.prevents == {A, B}
    assert removable.prevent_allow(both, A, prevent_allow(0)).prevents == {B}
    assert removable.nexus_lost(both, B).prevents == {A}
    assert removable.nexus_lost(IN, B) is IN


def test_reset_starts_and_allows_and_leaves_the_medium_where_it_is() -> None:
    assert removable.reset(Medium(True, True, False, frozenset({A}))) == IN
    assert removable.reset(Medium(True, False, True, frozenset({A}))) == OUT


def test_administrator_ejects_what_is_prevented_only_by_force() -> None:
    held = removable.prevent_allow(IN, A, prevent_allow(1))
    with pytest.raises(ScsiError) as caught:
        removable.administer(held, load=False, force=False)
    assert caught.value.reason is Reason.MEDIUM_REMOVAL_PREVENTED
    assert removable.administer(held, load=False, force=True) == OUT
    assert removable.administer(OUT, load=True, force=False) == IN
    assert removable.administer(OUT, load=False, force=False) is OUT


def test_administrator_moves_no_medium_that_is_fixed() -> None:
    with pytest.raises(ScsiError) as caught:
        removable.administer(Medium(), load=False, force=True)
    assert caught.value.reason is Reason.INVALID_FIELD_IN_CDB


def test_state_comes_back_from_plain_values() -> None:
    medium = Medium(True, False, True, frozenset({A, B}))
    assert Medium.from_plain(medium.to_plain()) == medium


@pytest.fixture
def make(make_unit: Callable[..., Any]) -> Callable[..., Any]:
    def build(medium: Medium = IN, **facts: Any) -> Any:
        unit = make_unit(discard_zeroes=True, **facts)
        unit.lu = LogicalUnit(Guarded(unit.memory), Identity("S", "n"), medium=medium)
        return unit

    return build


@pytest.mark.parametrize(("medium", "rmb"), [(IN, 0x80), (Medium(), 0)])
def test_inquiry_tells_whether_the_medium_is_removable(make: Callable[..., Any], medium: Medium, rmb: int) -> None:
    assert make(medium).run("12 00 00 0024 00")[1] == rmb


@pytest.mark.parametrize(
    ("medium", "sense"), [(OUT, (0x02, 0x3A, 0x00)), (STOPPED, (0x02, 0x04, 0x02))], ids=["ejected", "stopped"]
)
@pytest.mark.parametrize("cdb", ["00", "28 00 00000000 00 0001 00", "2a 00 00000000 00 0001", "35 06", "42 00"])
def test_medium_command_is_not_ready(make: Callable[..., Any], medium: Medium, sense: Any, cdb: str) -> None:
    assert REASONS[make(medium).refusal(cdb).reason] == sense


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_command_is_refused_by_what_it_needs(make: Callable[..., Any], command: Any) -> None:
    unit = make(OUT)
    if command not in unit.lu.commands and command.name not in {row.name for row in unit.lu.commands}:
        return
    cdb = bytes((command.opcode, command.service_action or 0)).hex()
    try:
        unit.plan(cdb)
        refused = False
    except ScsiError as error:
        refused = error.reason is Reason.MEDIUM_NOT_PRESENT
    assert refused is (command.name not in removable.WITHOUT_MEDIUM)


def test_names_of_what_needs_no_medium_are_names_of_commands() -> None:
    assert {command.name for command in COMMANDS} >= removable.WITHOUT_MEDIUM


def test_capacity_is_told_while_stopped_and_not_without_a_medium(make: Callable[..., Any]) -> None:
    assert len(make(STOPPED).run("25")) == 8
    assert make(OUT).refusal("25").reason is Reason.MEDIUM_NOT_PRESENT


def test_request_sense_polls_why_the_unit_is_not_ready(make: Callable[..., Any]) -> None:
    sense = make(OUT).run("03 00 0000 ff 00")
    assert (sense[2], sense[12], sense[13]) == (0x02, 0x3A, 0x00)


def test_unit_is_ready_again_when_the_medium_is(make: Callable[..., Any]) -> None:
    unit = make(OUT)
    unit.lu.medium = IN
    assert unit.run("00") == b""
    assert len(unit.run("28 00 00000000 00 0001 00")) == 512


@pytest.mark.parametrize("byte_4", [EJECT, STOP, EJECT | 0x04])
def test_what_is_stopped_or_ejected_is_flushed_before_the_authority_is_asked(
    make: Callable[..., Any], byte_4: int
) -> None:
    unit = make()
    plan = unit.plan(start_stop(byte_4).hex())
    assert isinstance(plan, Job) and isinstance(plan.then, Ask)
    plan.run(memoryview(b""))
    assert ("flush",) in unit.memory.calls


@pytest.mark.parametrize(("byte_4", "facts"), [(START, {}), (LOAD, {}), (0x04, {}), (EJECT, {"lacks": ("flush",)})])
def test_nothing_is_flushed_where_nothing_has_to_be(make: Callable[..., Any], byte_4: int, facts: Any) -> None:
    assert isinstance(make(**facts).plan(start_stop(byte_4).hex()), Ask)


def test_fixed_medium_is_not_ejected(make: Callable[..., Any]) -> None:
    unit = make(Medium())
    assert unit.refusal(start_stop(EJECT).hex()).reason is Reason.INVALID_FIELD_IN_CDB
    assert unit.refusal(prevent_allow(1).hex()).reason is Reason.INVALID_COMMAND_OPERATION_CODE
    assert isinstance(unit.plan(start_stop(STOP).hex()), Job)


def test_power_condition_and_obsolete_prevention_are_refused(make: Callable[..., Any]) -> None:
    unit = make()
    assert unit.refusal(start_stop(0x11).hex()).reason is Reason.INVALID_FIELD_IN_CDB
    assert unit.refusal(prevent_allow(2).hex()).reason is Reason.INVALID_FIELD_IN_CDB
    assert isinstance(unit.plan(prevent_allow(1).hex()), Ask)


def test_unit_whose_medium_the_server_cannot_use_is_not_ready_until_it_can(make: Callable[..., Any]) -> None:
    unit = make()
    unit.lu.failure = Reason.NOT_READY
    for cdb in ("00", "28 00 00000000 00 0001 00", "2a 00 00000000 00 0001", "42 00"):
        assert unit.refusal(cdb).reason is Reason.NOT_READY
    assert not unit.lu.executes(0x28) and unit.lu.executes(0x12)
    assert len(unit.run("12 00 00 0024 00")) == 36
    assert len(unit.run("25")) == 8
    assert unit.run("03 00 0000 ff 00")[2] == 0x02
    unit.lu.medium = OUT
    assert unit.refusal("00").reason is Reason.MEDIUM_NOT_PRESENT
    unit.lu.medium = IN
    unit.lu.failure = None
    assert unit.run("00") == b"" and unit.lu.hindrance is None
