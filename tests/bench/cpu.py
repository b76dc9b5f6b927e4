"""CPU time of a server: user and system time of its whole process tree, as the kernel counts it, in ticks."""

from __future__ import annotations

import time

import psutil


def tree_seconds(pid: int) -> float:
    """Seconds of CPU that `pid` and the children it has now have used, all their threads included.

    A process that ends between two readings takes its time along, so a reading is only good while nobody dies.
    """
    root = psutil.Process(pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


class Meter:
    """``with Meter(pid) as meter: ...``: afterwards `meter.seconds` is what the tree used in between,
    `meter.elapsed` the time that passed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.seconds = 0.0
        self.elapsed = 0.0

    def __enter__(self) -> Meter:
        self._start, self._started = tree_seconds(self.pid), time.monotonic()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.elapsed = time.monotonic() - self._started
        self.seconds = tree_seconds(self.pid) - self._start
