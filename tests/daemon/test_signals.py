"""Signals come as numbers that the loop reads, and the process gets its own handlers back."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator

import pytest

from iscsid.daemon.signals import HANDLED, Requests, Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    signals = Signals()
    yield signals
    signals.close()


def wait(signals: Requests) -> list[int]:
    assert select.select([signals], [], [], 5)[0]
    return signals.read()


@pytest.mark.parametrize("number", HANDLED)
def test_signal_wakes_the_loop_and_is_read_once(signals: Signals, number: int) -> None:
    os.kill(os.getpid(), number)
    assert wait(signals) == [number]
    assert signals.read() == []


def test_two_signals_are_both_read(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    assert sorted(wait(signals)) == sorted([signal.SIGHUP, signal.SIGTERM])


def test_signal_that_somebody_else_handles_is_not_reported(signals: Signals) -> None:
    old = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert wait(signals) == []
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_close_restores_the_handlers() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    signals = Signals()
    assert [signal.getsignal(number) for number in HANDLED] != before
    signals.close()
    assert [signal.getsignal(number) for number in HANDLED] == before
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    assert fd == -1


def test_worker_ignores_what_is_meant_for_the_supervisor() -> None:
    pid = os.fork()
    if pid == 0:
        signals = Signals()
        signals.leave_to_supervisor()
        for number in HANDLED:
            os.kill(os.getpid(), number)
        ignored = all(signal.getsignal(number) is signal.SIG_IGN for number in HANDLED)
        os._exit(0 if ignored else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_requests_are_read_like_signals_and_touch_no_handler() -> None:
    before = [signal.getsignal(number) for number in HANDLED]
    requests = Requests()
    requests.send(signal.SIGHUP)
    requests.send(signal.SIGTERM)
    assert wait(requests) == [signal.SIGHUP, signal.SIGTERM]
    assert [signal.getsignal(number) for number in HANDLED] == before
    requests.close()
    requests.send(signal.SIGTERM)  # nobody is there
    requests.close()


def test_requests_that_nobody_reads_do_not_block() -> None:
    requests = Requests()
    for _ in range(100_000):
        requests.send(signal.SIGTERM)
    assert len(wait(requests)) == 512
    requests.close()
