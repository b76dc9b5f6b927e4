"""target.meter: what a session has moved is told of the unit that it went to, once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.scsi.log import Figures
from iscsid.target.meter import Meter


def seat() -> Any:
    return SimpleNamespace(tally=Figures()), None


@pytest.fixture
def counters() -> SimpleNamespace:
    return SimpleNamespace(read_bytes=0, written_bytes=0, commands=0, write_commands=0, other_commands=0)


def test_bytes_go_to_the_unit_whose_turn_it_was(counters: SimpleNamespace) -> None:
    meter, first, second = Meter(counters), seat(), seat()
    meter.turn(first)
    counters.read_bytes += 512
    meter.turn(second)
    counters.read_bytes += 1024
    counters.written_bytes += 2048
    meter.turn(first)
    counters.written_bytes += 4096
    meter.settle()
    assert first[0].tally == Figures(512, 4096)
    assert second[0].tally == Figures(1024, 2048)
    assert meter.seat is first


def test_settling_twice_counts_nothing_twice(counters: SimpleNamespace) -> None:
    meter, only = Meter(counters), seat()
    meter.turn(only)
    counters.read_bytes = 512
    meter.settle()
    meter.settle()
    assert only[0].tally == Figures(512, 0)


def test_what_went_nowhere_is_told_of_no_unit(counters: SimpleNamespace) -> None:
    meter, only = Meter(counters), seat()
    counters.read_bytes = 100
    meter.turn(only)
    meter.turn(None)
    counters.read_bytes = 200
    meter.turn(only)
    meter.settle()
    assert only[0].tally == Figures()


def test_read_commands_are_those_that_are_neither_writes_nor_others(counters: SimpleNamespace) -> None:
    meter, first, second = Meter(counters), seat(), seat()
    meter.turn(first)
    counters.commands, counters.write_commands, counters.other_commands = 10, 3, 2
    meter.turn(second)
    counters.commands, counters.write_commands = 14, 4
    meter.settle()
    assert (first[0].tally.read_commands, first[0].tally.write_commands) == (5, 3)
    assert (second[0].tally.read_commands, second[0].tally.write_commands) == (3, 1)
