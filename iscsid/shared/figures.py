"""The figures of logical units over all workers: memory that the supervisor makes before it forks.

Each worker has, for each unit, a line of its own, which it alone writes and everybody reads. So nothing is locked, no
message is sent, and what a worker has counted stays when it dies: its successor counts on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from iscsid.scsi.log import Figures

LINE: Final = 64  # bytes: one cache line, so that workers do not take lines from each other
_CELL: Final = 8
_FIELDS: Final = tuple(field.name for field in dataclasses.fields(Figures))


class FigureTable:
    """The lines of ``workers`` workers for ``units``, the serial numbers of all logical units.

    Behind those of the workers is one line more, in which the worker that sanitizes a unit tells how far it is.
    ``memory`` has at least ``size`` bytes, all 0 at first, and is shared by all processes that have the table.
    """

    def __init__(self, memory: memoryview, workers: int, units: Sequence[str], spare: int = 0) -> None:
        self._cells = memory.cast("Q")
        self._workers = workers
        self._width = len(set(units)) + spare
        self._columns = {unit: number for number, unit in enumerate(dict.fromkeys(units))}

    @staticmethod
    def size(workers: int, units: Sequence[str], spare: int = 0) -> int:
        """How many bytes of memory the table needs; never 0. ``spare``: for so many units that come later. Memory that
        nobody has written is not taken, so they cost nothing before."""
        return max(1, (workers + 1) * (len(set(units)) + spare)) * LINE

    @property
    def columns(self) -> dict[str, int]:
        """Where each unit is. A unit that has gone keeps its place, in case it comes back."""
        return dict(self._columns)

    def add(self, units: Iterable[str]) -> None:
        """Find a place for each unit that has none. Raises ValueError where there is no room, with none added."""
        new = [unit for unit in dict.fromkeys(units) if unit not in self._columns]
        if len(self._columns) + len(new) > self._width:
            raise ValueError(f"there is room for {self._width} units since the server was started")
        for unit in new:
            self._columns[unit] = len(self._columns)

    def learn(self, columns: Mapping[str, int]) -> None:
        """The places that :meth:`add` has found in another process."""
        self._columns.update(columns)

    def store(self, worker: int, unit: str, figures: Figures) -> None:
        """Replace the line of ``worker`` for ``unit``. Each number is stored as a whole: no reader sees half of one."""
        at = self._start(worker, unit)
        for number, name in enumerate(_FIELDS):
            self._cells[at + number] = getattr(figures, name)

    def row(self, worker: int, unit: str) -> Figures:
        """What ``worker``, and those before it in its place, have counted."""
        at = self._start(worker, unit)
        return Figures(*self._cells[at : at + len(_FIELDS)])

    def total(self, unit: str) -> Figures:
        """The sum over all workers."""
        return added(self.row(worker, unit) for worker in range(self._workers))

    def gauge(self, unit: str) -> Gauge:
        """How far the sanitize operation of ``unit`` is."""
        return Gauge(self._cells, self._start(self._workers, unit))

    def _start(self, worker: int, unit: str) -> int:
        return (worker * self._width + self._columns[unit]) * (LINE // _CELL)


class Gauge:
    """One number that one worker at a time writes, and that all read (``scsi.sanitize.Gauge``)."""

    def __init__(self, cells: memoryview, at: int) -> None:
        self._cells = cells
        self._at = at

    @property
    def value(self) -> int:
        number: int = self._cells[self._at]
        return number

    @value.setter
    def value(self, number: int) -> None:
        self._cells[self._at] = number


class Ledger:
    """What one worker writes: its own counts on top of what its predecessors have left."""

    def __init__(self, table: FigureTable, worker: int) -> None:
        self._table = table
        self._worker = worker
        self._before: dict[str, Figures] = {}

    def forget(self, unit: str) -> None:
        """What this process has counted of ``unit`` is gone with it; the line goes on from where it is."""
        self._before.pop(unit, None)

    def post(self, unit: str, tallies: Iterable[Figures]) -> None:
        """``tallies`` are all that this process has counted of ``unit``, which may have several LUNs."""
        before = self._before.setdefault(unit, self._table.row(self._worker, unit))
        self._table.store(self._worker, unit, added((before, *tallies)))


def added(figures: Iterable[Figures]) -> Figures:
    """Return the sum."""
    listed = tuple(figures)
    return Figures(*(sum(getattr(each, name) for each in listed) for name in _FIELDS))
