"""Figures of real processes: this one, and one that has died."""

from __future__ import annotations

import os

from iscsid.daemon.stats import ProcessFigures, ProcessStats


def test_figures_of_this_process_after_a_sample() -> None:
    stats = ProcessStats()
    stats.watch(os.getpid())
    assert stats.of(os.getpid()) == ProcessFigures()
    stats.sample()
    figures = stats.of(os.getpid())
    assert figures.rss > 1 << 20
    assert figures.threads >= 1
    assert figures.cpu_percent >= 0.0


def test_process_that_is_not_there_is_no_error() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    stats = ProcessStats()
    stats.watch(pid)
    stats.sample()
    assert stats.of(pid) == ProcessFigures()


def test_process_that_dies_keeps_its_last_figures_until_it_is_forgotten() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    stats = ProcessStats()
    stats.watch(pid)
    stats.sample()
    alive = stats.of(pid)
    assert alive.rss > 0
    os.close(writer)
    os.waitpid(pid, 0)
    stats.sample()
    assert stats.of(pid) == alive
    stats.forget(pid)
    assert stats.of(pid) == ProcessFigures()
