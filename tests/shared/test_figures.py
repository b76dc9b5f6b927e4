"""shared.figures: each worker's line, the sum of all, and what outlives a worker."""

from __future__ import annotations

import mmap
import os

import pytest

from iscsid.scsi.log import Figures
from iscsid.shared.figures import LINE, FigureTable, Ledger, added


def table(workers: int, *units: str) -> FigureTable:
    return FigureTable(memoryview(bytearray(FigureTable.size(workers, units))), workers, units)


@pytest.mark.parametrize(
    ("workers", "units", "lines"), [(1, ["a"], 2), (4, ["a", "b", "c"], 15), (2, ["a", "a"], 3), (3, [], 1)]
)
def test_size_is_a_line_for_each_worker_and_one_more_for_each_unit(workers: int, units: list[str], lines: int) -> None:
    assert FigureTable.size(workers, units) == lines * LINE


def test_gauge_of_a_unit_is_read_by_all_and_touches_no_figures() -> None:
    shared = table(2, "a", "b")
    assert shared.gauge("b").value == 0
    shared.gauge("b").value = 0x8000
    assert (shared.gauge("a").value, shared.gauge("b").value) == (0, 0x8000)
    assert shared.total("a") == shared.total("b") == Figures()


def test_table_begins_with_nothing() -> None:
    assert table(2, "a").total("a") == Figures()


def test_every_line_is_its_own() -> None:
    figures, number = table(3, "a", "b"), 0
    for worker in range(3):
        for unit in "ab":
            number += 10
            figures.store(worker, unit, Figures(number, number + 1, number + 2, number + 3))
    assert figures.row(0, "a") == Figures(10, 11, 12, 13)
    assert figures.row(2, "b") == Figures(60, 61, 62, 63)
    assert figures.total("a") == Figures(90, 93, 96, 99)


def test_unit_that_is_named_twice_has_one_line() -> None:
    figures = table(2, "a", "a", "b")
    figures.store(1, "b", Figures(5))
    assert figures.total("a") == Figures() and figures.total("b") == Figures(5)


def test_ledger_counts_on_from_its_predecessor() -> None:
    figures = table(2, "a")
    first = Ledger(figures, 1)
    first.post("a", [Figures(100, 0, 1, 0)])
    first.post("a", [Figures(150, 50, 1, 0)])  # totals of the process, not what came since
    assert figures.total("a") == Figures(150, 50, 1, 0)
    successor = Ledger(figures, 1)
    successor.post("a", [Figures()])
    successor.post("a", [Figures(7, 7, 0, 7)])
    assert figures.total("a") == Figures(157, 57, 1, 7)


def test_ledger_adds_the_luns_of_one_unit() -> None:
    figures = table(1, "a")
    Ledger(figures, 0).post("a", [Figures(1, 2, 3, 4), Figures(10, 20, 30, 40)])
    assert figures.total("a") == Figures(11, 22, 33, 44)


def test_sum_of_nothing_is_nothing() -> None:
    assert added([]) == Figures()


def test_figures_of_another_process_are_seen_and_outlive_it() -> None:
    size = FigureTable.size(2, ["a"])
    figures = FigureTable(memoryview(mmap.mmap(-1, size)), 2, ["a"])
    pid = os.fork()
    if not pid:
        Ledger(figures, 1).post("a", [Figures(1 << 40, 2, 3, 4)])
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    Ledger(figures, 0).post("a", [Figures(1, 1, 1, 1)])
    assert figures.total("a") == Figures((1 << 40) + 1, 3, 4, 5)


def test_unit_that_comes_later_has_a_place_that_other_processes_learn() -> None:
    memory = memoryview(bytearray(FigureTable.size(2, ["a"], 2)))
    here, there = (FigureTable(memory, 2, ["a"], 2) for _ in range(2))
    here.add(["a", "b"])
    there.learn(here.columns)
    Ledger(there, 1).post("b", [Figures(read_commands=3)])
    assert here.total("b").read_commands == 3
    assert here.total("a") == Figures()


def test_units_beyond_the_room_are_refused_and_none_is_added() -> None:
    one = FigureTable(memoryview(bytearray(FigureTable.size(1, ["a"], 1))), 1, ["a"], 1)
    with pytest.raises(ValueError, match="room for 2 units"):
        one.add(["b", "c"])
    assert one.columns == {"a": 0}
    one.add(["a", "b"])


def test_unit_that_goes_and_comes_back_counts_on() -> None:
    shared = table(1, "a")
    ledger = Ledger(shared, 0)
    ledger.post("a", [Figures(read_commands=3)])
    ledger.forget("a")
    ledger.post("a", [Figures(read_commands=2)])
    assert shared.total("a").read_commands == 5
