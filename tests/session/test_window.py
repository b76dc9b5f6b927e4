"""session.window. Invariants: what is executed is executed once and in order; MaxCmdSN never moves back; nothing beyond
it is taken or held, whatever the initiator sends.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsid import serial
from iscsid.session.window import CommandWindow
from iscsid.wire.pdu import Data


@dataclass
class Command:
    cmd_sn: int
    data: Data = b""


def window(exp_cmd_sn: int = 10, size: int = 4) -> CommandWindow[Command]:
    return CommandWindow(exp_cmd_sn, size)


def take(one: CommandWindow[Command], cmd_sn: int) -> list[int]:
    """Place a command and return which ones are executed by that, as a connection does."""
    executed = []
    if one.place(Command(cmd_sn)):
        executed.append(cmd_sn)
    while (held := one.next_held()) is not None:
        executed.append(held.cmd_sn)
    return executed


def test_new_window_is_open_for_its_size() -> None:
    one = window(10, 4)
    assert (one.exp_cmd_sn, one.max_cmd_sn, one.active, one.ahead) == (10, 13, 0, 3)


@pytest.mark.parametrize("start", [0, 1, 0x7FFFFFFE, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF])
def test_commands_in_order_are_taken_across_any_wrap(start: int) -> None:
    one = window(start)
    for step in range(10):
        cmd_sn = serial.add(start, step)
        assert take(one, cmd_sn) == [cmd_sn]
        assert one.exp_cmd_sn == serial.add(cmd_sn, 1)
        assert one.max_cmd_sn == serial.add(cmd_sn, 4)


def test_command_taken_moves_both_ends_when_it_is_done_at_once() -> None:
    one = window(10, 4)
    take(one, 10)
    assert (one.exp_cmd_sn, one.max_cmd_sn) == (11, 14)


def test_unfinished_command_keeps_max_cmd_sn_where_it_was() -> None:
    one = window(10, 4)
    take(one, 10)
    one.began()
    assert (one.exp_cmd_sn, one.max_cmd_sn, one.active) == (11, 13, 1)
    one.ended()
    assert (one.exp_cmd_sn, one.max_cmd_sn, one.active) == (11, 14, 0)


def test_window_full_of_unfinished_commands_is_closed() -> None:
    one = window(10, 2)
    for cmd_sn in (10, 11):
        assert take(one, cmd_sn) == [cmd_sn]
        one.began()
    # Section 4.2.2.1: MaxCmdSN = ExpCmdSN - 1 says that the window is closed.
    assert (one.exp_cmd_sn, one.max_cmd_sn, one.ahead) == (12, 11, -1)
    assert take(one, 12) == []
    assert one.exp_cmd_sn == 12
    assert not one.held


def test_closed_window_takes_the_command_again_when_one_is_done() -> None:
    one = window(10, 1)
    take(one, 10)
    one.began()
    assert take(one, 11) == []
    one.ended()
    assert take(one, 11) == [11]


@pytest.mark.parametrize("cmd_sn", [9, 8, 0, 0xFFFFFFFF, 0x8000000B])
def test_command_that_came_before_is_ignored(cmd_sn: int) -> None:
    one = window(10)
    assert take(one, cmd_sn) == []
    assert one.exp_cmd_sn == 10
    assert not one.held


@pytest.mark.parametrize("cmd_sn", [14, 15, 1000, 0x7FFFFFFF])
def test_command_beyond_max_cmd_sn_is_ignored(cmd_sn: int) -> None:
    one = window(10, 4)
    assert take(one, cmd_sn) == []
    assert not one.held


def test_command_at_max_cmd_sn_is_held() -> None:
    one = window(10, 4)
    assert take(one, 13) == []
    assert list(one.held) == [13]
    assert one.exp_cmd_sn == 10


def test_held_commands_follow_the_one_they_waited_for() -> None:
    one = window(10, 4)
    assert take(one, 13) == []
    assert take(one, 11) == []
    assert take(one, 10) == [10, 11]
    assert take(one, 12) == [12, 13]
    assert not one.held


def test_duplicate_of_a_held_command_is_ignored() -> None:
    one = window(10, 4)
    first, second = Command(12), Command(12)
    one.place(first)
    one.place(second)
    take(one, 10)
    one.place(Command(11))
    assert one.next_held() is first
    assert one.next_held() is None


def test_only_a_held_command_has_its_data_copied() -> None:
    one = window(10, 4)
    buffer = bytearray(b"data in the receive buffer")
    now, later, never = (Command(number, memoryview(buffer)) for number in (10, 12, 99))
    for command in (later, never, now):
        one.place(command)
    buffer[:4] = b"gone"
    assert now.data == never.data == b"gone in the receive buffer"
    assert later.data == b"data in the receive buffer"
    assert isinstance(later.data, memoryview)


def test_nothing_held_means_no_next() -> None:
    assert window().next_held() is None


def test_skip_uses_up_the_number_whose_turn_it_is() -> None:
    one = window(10, 4)
    one.place(Command(11))
    one.skip(10)
    held = one.next_held()
    assert held is not None
    assert held.cmd_sn == 11
    assert one.exp_cmd_sn == 12


@pytest.mark.parametrize("cmd_sn", [9, 11, 13, 99])
def test_skip_of_another_number_changes_nothing(cmd_sn: int) -> None:
    one = window(10, 4)
    one.skip(cmd_sn)
    assert one.exp_cmd_sn == 10


def test_skip_in_a_closed_window_changes_nothing() -> None:
    one = window(10, 1)
    take(one, 10)
    one.began()
    one.skip(11)
    assert one.exp_cmd_sn == 11


# --- any initiator --------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("place"), st.integers(-6, 12)),  # a CmdSN, relative to ExpCmdSN
        st.tuples(st.just("skip"), st.integers(-1, 1)),
        st.tuples(st.just("end"), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.integers(0, 0xFFFFFFFF), st.integers(1, 6), st.booleans())
def test_any_sequence_of_commands_keeps_order_and_bounds(
    steps: list[tuple[str, int]], start: int, size: int, unfinished: bool
) -> None:
    one = window(start, size)
    seen: list[int] = []
    highest = one.max_cmd_sn
    for what, number in steps:
        cmd_sn = serial.add(one.exp_cmd_sn, number)
        if what == "place":
            executed = take(one, cmd_sn)
            if unfinished:
                for _ in executed:
                    one.began()
            seen += executed
        elif what == "skip":
            before = one.exp_cmd_sn
            one.skip(cmd_sn)
            if one.exp_cmd_sn != before:
                one.held.pop(before, None)
                seen.append(before)
        elif one.active:
            one.ended()
        assert seen == [serial.add(start, step) for step in range(len(seen))]
        assert not serial.less(one.max_cmd_sn, highest)
        assert one.active <= size
        assert len(one.held) < size
        assert one.ahead == size - one.active - 1
        highest = one.max_cmd_sn


@pytest.mark.parametrize("start", [10, 0xFFFFFFFE])
def test_request_that_is_given_up_is_passed_over_whether_it_has_come_or_not(start: int) -> None:
    one = window(start, 8)
    numbers = [serial.add(start, step) for step in range(6)]
    for cmd_sn in (numbers[1], numbers[2], numbers[4]):
        assert take(one, cmd_sn) == []
    assert not one.give_up(numbers[1], numbers[5], lambda held: False)  # somebody else's
    assert one.give_up(numbers[1], numbers[5], lambda held: True)
    assert one.give_up(numbers[3], numbers[5], lambda held: False)  # has not come
    assert take(one, numbers[3]) == []  # and does not count when it comes
    assert take(one, numbers[0]) == [numbers[0], numbers[2], numbers[4]]
    assert one.exp_cmd_sn == numbers[5]
    assert not one.held


@pytest.mark.parametrize(("cmd_sn", "before"), [(9, 12), (14, 20), (12, 12), (13, 12), (11, 10)])
def test_number_outside_the_window_or_not_before_that_of_who_asks_is_not_given_up(cmd_sn: int, before: int) -> None:
    one = window(10, 4)
    assert not one.give_up(cmd_sn, before, lambda held: True)
    assert not one.held


def test_requests_that_are_dropped_are_those_chosen_before_a_number() -> None:
    one = window(10, 8)
    for cmd_sn in (11, 12, 13, 14):
        take(one, cmd_sn)
    one.drop(14, lambda held: held.cmd_sn != 12)
    assert take(one, 10) == [10, 12, 14]
