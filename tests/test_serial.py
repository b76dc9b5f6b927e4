"""32-bit serial numbers wrap; comparison looks half the circle ahead and no further."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid import serial

numbers = st.integers(0, serial.MASK)


@pytest.mark.parametrize(
    ("number", "step", "result"),
    [
        (0, 1, 1),
        (0xFFFFFFFF, 1, 0),
        (0xFFFFFFF0, 0x20, 0x10),
        (0, -1, 0xFFFFFFFF),
        (5, 0, 5),
        (5, 1 << 32, 5),
    ],
)
def test_add_at_the_wrap_goes_round(number: int, step: int, result: int) -> None:
    assert serial.add(number, step) == result


@pytest.mark.parametrize(
    ("left", "right", "before"),
    [
        (1, 2, True),
        (2, 1, False),
        (7, 7, False),
        (0xFFFFFFFF, 0, True),
        (0, 0xFFFFFFFF, False),
        (0xFFFFFFF0, 0x10, True),
        (0, 0x7FFFFFFF, True),
        (0, 0x80000000, False),  # RFC 1982 leaves this pair undefined: neither is less
        (0x80000000, 0, False),
        (0, 0x80000001, False),
        (0x80000001, 0, True),
    ],
)
def test_less_across_the_wrap_follows_rfc_1982(left: int, right: int, before: bool) -> None:
    assert serial.less(left, right) is before


@pytest.mark.parametrize(("start", "end", "steps"), [(3, 3, 0), (3, 5, 2), (5, 3, 0xFFFFFFFE), (0xFFFFFFFE, 1, 3)])
def test_distance_counts_forward_only(start: int, end: int, steps: int) -> None:
    assert serial.distance(start, end) == steps


@given(numbers, st.integers(1, serial.HALF - 1))
def test_number_a_short_way_ahead_is_later(number: int, step: int) -> None:
    ahead = serial.add(number, step)
    assert serial.less(number, ahead)
    assert not serial.less(ahead, number)
    assert serial.distance(number, ahead) == step


@given(numbers, numbers)
def test_adding_the_distance_arrives(start: int, end: int) -> None:
    assert serial.add(start, serial.distance(start, end)) == end


@given(numbers, numbers)
def test_less_never_holds_both_ways(left: int, right: int) -> None:
    assert not (serial.less(left, right) and serial.less(right, left))
