"""CPU and memory of workers, by psutil; nothing else of ours imports it."""

from __future__ import annotations

from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """``cpu_percent`` of one core since the last sample, ``rss`` in bytes (shared pages included)."""

    cpu_percent: float = 0.0
    rss: int = 0
    threads: int = 0


class ProcessStats:
    """The figures of some processes, by pid, as they were when ``sample`` was called last."""

    def __init__(self) -> None:
        self._processes: dict[int, psutil.Process] = {}
        self._figures: dict[int, ProcessFigures] = {}

    def watch(self, pid: int) -> None:
        """Begin: the first sample tells the CPU time since now."""
        try:
            process = psutil.Process(pid)
            process.cpu_percent()
        except psutil.Error:
            return  # dead already; its pidfd will say so
        self._processes[pid] = process

    def forget(self, pid: int) -> None:
        """Stop watching."""
        self._processes.pop(pid, None)
        self._figures.pop(pid, None)

    def sample(self) -> None:
        """Read the figures of all. A process that has died since keeps those that it had."""
        for pid, process in self._processes.items():
            try:
                with process.oneshot():
                    self._figures[pid] = ProcessFigures(
                        process.cpu_percent(), process.memory_info().rss, process.num_threads()
                    )
            except psutil.Error:
                continue

    def of(self, pid: int) -> ProcessFigures:
        """The figures of ``pid``; zeros before the first sample."""
        return self._figures.get(pid, ProcessFigures())
