"""Real forks of small workers: life signs, deaths, replacements and their back-off, and nothing left behind."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iscsid.daemon import children as module
from iscsid.daemon.boot import ExitCode, WorkerBoot
from iscsid.daemon.channel import Channel
from iscsid.daemon.children import Child, Death, Fleet, Forker, back_off
from iscsid.daemon.logs import Logs
from iscsid.shared.messages import Beat, BootFailed, Drop, Message, Poll, Ready, SessionClosed, Stopped
from iscsid.specs import ServerSpec

pytestmark = pytest.mark.process

WAIT = 20.0


def obedient(channel: Channel, boot: WorkerBoot) -> int:
    """Ready; answers Poll with a Beat; Drop says how to end."""
    channel.send(Ready())
    poll = selectors.DefaultSelector()
    poll.register(channel, selectors.EVENT_READ)
    while not channel.eof:
        poll.select()
        for message, _ in channel.receive():
            if isinstance(message, Poll):
                channel.send(Beat(connections=boot.index))
            elif isinstance(message, Drop):
                if message.reason == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if message.reason == "raise":
                    raise RuntimeError("planted")
                channel.send(SessionClosed(message.tsih, "last words"))
                channel.send(Stopped())
                return message.tsih
    return ExitCode.OK


def stillborn(channel: Channel, boot: WorkerBoot) -> int:
    channel.send(BootFailed("no medium"))
    return ExitCode.BOOT_FAILED


def deaf(channel: Channel, boot: WorkerBoot) -> int:
    channel.send(Ready())
    signal.pause()
    return 0


class Nursery:
    """A fleet, its loop, and what it told."""

    def __init__(self, run: Callable[[Channel, WorkerBoot], int] = obedient, count: int = 1) -> None:
        self.selector = selectors.DefaultSelector()
        self.logs = Logs("info")
        self.messages: list[tuple[int, Message]] = []
        self.ready: list[int] = []
        self.deaths: list[tuple[int, Death]] = []
        plugins: Any = None
        spec = ServerSpec()
        forker = Forker(run, lambda index: WorkerBoot(index, spec, plugins), self.logs, self.leave)
        self.fleet = Fleet(count, self.selector, forker, self)

    def leave(self) -> None:
        self.selector.close()
        self.fleet.leave()

    def on_message(self, child: Child, message: Message, now: float) -> None:
        self.messages.append((child.index, message))

    def on_ready(self, child: Child, now: float) -> None:
        self.ready.append(child.pid)

    def on_death(self, child: Child, death: Death, now: float) -> None:
        self.deaths.append((child.index, death))

    def run_until(self, condition: Callable[[], object], now: float | None = None) -> None:
        """The loop, with a clock that stands still where ``now`` is given."""
        deadline = time.monotonic() + WAIT
        while not condition():
            assert time.monotonic() < deadline, "did not come"
            for key, mask in self.selector.select(0.05):
                key.data(mask, time.monotonic() if now is None else now)

    def start(self, now: float = 0.0) -> list[Child]:
        self.fleet.start(now)
        self.run_until(lambda: len(self.ready) == len(self.fleet.slots), now)
        return list(self.fleet)

    def close(self) -> None:
        self.fleet.end()
        self.selector.close()
        self.logs.close()


@pytest.fixture
def nursery() -> Iterator[Callable[..., Nursery]]:
    made: list[Nursery] = []

    def make(*args: Any, **kwargs: Any) -> Nursery:
        made.append(Nursery(*args, **kwargs))
        return made[-1]

    yield make
    for one in made:
        one.close()


Make = Callable[..., Nursery]


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 0), (1, 0), (2, 0.5), (3, 1), (4, 2), (7, 16), (8, 30), (9, 30), (10_000, 30)]
)
def test_back_off_is_nothing_at_first_and_bounded(failures: int, seconds: float) -> None:
    assert back_off(failures) == seconds


@pytest.mark.parametrize(
    ("death", "text"),
    [
        (Death(3, None, "no medium"), "exit code 3: no medium"),
        (Death(1, None), "exit code 1"),
        (Death(None, signal.SIGKILL), "killed by signal 9 (Killed)"),
        (Death(None, signal.SIGRTMIN + 1), "killed by signal 35 (Real-time signal 1)"),
    ],
)
def test_death_is_told_in_words(death: Death, text: str) -> None:
    assert str(death) == text


def test_workers_become_ready_with_pids_and_indices_of_their_own(nursery: Make) -> None:
    one = nursery(count=2)
    children = one.start()
    assert [child.index for child in children] == [0, 1]
    assert {child.pid for child in children} == set(one.ready)
    assert one.fleet.ready() == children


def test_beat_is_kept_and_counts_as_a_sign_of_life(nursery: Make) -> None:
    one = nursery(count=2)
    _, child = one.start(now=0.0)
    one.fleet.send(child, Poll())
    one.run_until(lambda: child.beat.connections == 1, now=5.0)
    assert child.seen == 5.0
    assert one.messages == [], "beats are not passed on"


def test_last_words_are_heard_before_the_death(nursery: Make) -> None:
    one = nursery()
    (child,) = one.start()
    one.fleet.send(child, Drop(0, "exit"))
    one.run_until(lambda: one.deaths)
    assert one.messages == [(0, SessionClosed(0, "last words")), (0, Stopped())]
    assert one.deaths == [(0, Death(0, None))]
    assert one.fleet.get(0) is None
    assert list(one.fleet) == []


@pytest.mark.parametrize(
    ("reason", "tsih", "death"),
    [
        ("exit", 0, Death(0, None)),
        ("exit", 5, Death(5, None)),
        ("kill", 0, Death(None, 9)),
        ("raise", 0, Death(1, None)),
    ],
)
def test_death_is_told_and_replaced_at_once(nursery: Make, reason: str, tsih: int, death: Death) -> None:
    one = nursery(count=2)
    first, second = one.start(now=0.0)
    one.fleet.send(first, Drop(tsih, reason))
    one.run_until(lambda: one.deaths, now=100.0)
    assert one.deaths == [(0, death)]
    assert one.fleet.next_due() == 100.0
    one.fleet.tick(100.0, 1000.0)
    replacement = one.fleet.get(0)
    assert replacement is not None
    assert replacement.pid != first.pid
    assert one.fleet.get(1) is second
    assert one.fleet.slots[0].replaced == 1
    one.run_until(lambda: replacement in one.fleet.ready(), now=101.0)


def test_exception_in_a_worker_is_logged_with_its_traceback(nursery: Make, caplog: pytest.LogCaptureFixture) -> None:
    one = nursery()
    (child,) = one.start()
    one.fleet.send(child, Drop(0, "raise"))
    one.run_until(lambda: one.deaths)
    one.fleet.end()
    one.logs.close()
    assert "worker-0 crashed" in caplog.text
    assert "RuntimeError: planted" in caplog.text


def test_boot_failure_is_told_with_its_reason(nursery: Make) -> None:
    one = nursery(stillborn)
    one.fleet.start(0.0)
    one.run_until(lambda: one.deaths)
    assert one.deaths == [(0, Death(int(ExitCode.BOOT_FAILED), None, "no medium"))]


def test_worker_that_keeps_dying_waits_longer_each_time(nursery: Make) -> None:
    one = nursery(stillborn)
    one.fleet.start(0.0)
    waits = []
    for number in range(1, 6):
        one.run_until(lambda number=number: len(one.deaths) == number, now=0.0)
        due = one.fleet.next_due()
        assert due is not None
        waits.append(due)
        one.fleet.tick(due - 0.01, 1000.0)
        assert one.fleet.get(0) is None or due == 0.0
        one.fleet.tick(due, 1000.0)
    assert waits == [0.0, 0.5, 1.0, 2.0, 4.0]


def test_worker_that_lived_for_a_while_is_forgiven(nursery: Make) -> None:
    one = nursery()
    (child,) = one.start(now=0.0)
    one.fleet.slots[0].failures = 5
    one.fleet.send(child, Drop(0, "kill"))
    one.run_until(lambda: one.deaths, now=module.QUICK_DEATH)
    assert one.fleet.next_due() == module.QUICK_DEATH
    assert one.fleet.slots[0].failures == 0


def test_lifeless_worker_is_killed_and_nobody_else(nursery: Make, caplog: pytest.LogCaptureFixture) -> None:
    one = nursery(count=2)
    first, second = one.start(now=0.0)
    one.fleet.tick(0.0, 3.0)
    one.fleet.send(second, Poll())
    one.run_until(lambda: second.seen == 2.0, now=2.0)
    one.fleet.tick(3.5, 3.0)
    assert first.doomed
    assert not second.doomed
    assert one.fleet.ready() == [second]
    one.run_until(lambda: one.deaths, now=3.6)
    assert one.deaths == [(0, Death(None, signal.SIGKILL))]
    assert "no sign of life for 4 seconds" in caplog.text


def test_supervisor_that_was_stopped_itself_kills_nobody_for_it(nursery: Make) -> None:
    """Frozen for an hour together with its workers, it finds all beats old when it wakes up."""
    one = nursery()
    (child,) = one.start(now=0.0)
    one.fleet.tick(0.0, 60.0)
    one.fleet.tick(3600.0, 60.0)
    assert not child.doomed
    one.fleet.tick(3604.0, 60.0)
    assert not child.doomed


def test_worker_that_does_not_read_is_killed(nursery: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iscsid.daemon.channel.MAX_QUEUED", 3)
    one = nursery(deaf)
    (child,) = one.start()
    while not child.doomed:
        one.fleet.send(child, Drop(1, "x" * 1000))
    one.run_until(lambda: one.deaths)
    assert one.deaths == [(0, Death(None, signal.SIGKILL))]


def test_queued_messages_go_out_when_the_worker_reads(nursery: Make) -> None:
    one = nursery()
    (child,) = one.start()
    os.kill(child.pid, signal.SIGSTOP)
    sent = 0
    while not child.channel.wants_write:
        one.fleet.send(child, Poll())
        sent += 1
    one.fleet.send(child, Drop(0, "exit"))
    os.kill(child.pid, signal.SIGCONT)
    one.run_until(lambda: one.deaths)
    assert one.deaths == [(0, Death(0, None))]


def test_nobody_is_replaced_after_stop(nursery: Make) -> None:
    one = nursery(count=2)
    first, second = one.start(now=0.0)
    one.fleet.kill(first)
    one.run_until(lambda: one.deaths)
    assert one.fleet.next_due() is not None
    one.fleet.stop()
    assert one.fleet.next_due() is None
    one.fleet.kill(second)
    one.run_until(lambda: len(one.deaths) == 2)
    assert one.fleet.next_due() is None


def test_fork_that_fails_is_tried_again_later(
    nursery: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = nursery()
    (child,) = one.start(now=0.0)
    one.fleet.kill(child)
    one.run_until(lambda: one.deaths, now=100.0)
    before = len(os.listdir("/proc/self/fd"))

    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(one.logs, "fork", refuse)
        one.fleet.tick(100.0, 1000.0)
    assert "cannot fork: Resource temporarily unavailable" in caplog.text
    due = one.fleet.next_due()
    assert due is not None
    assert due > 100.0
    while len(one.logs._handlers) > 0:
        one.logs.prune()
    assert len(os.listdir("/proc/self/fd")) <= before
    one.fleet.tick(due, 1000.0)
    assert one.fleet.get(0) is not None


def test_event_of_a_worker_buried_in_the_same_round_is_ignored(nursery: Make) -> None:
    one = nursery()
    (child,) = one.start()
    channel_event = one.selector.get_key(child.channel).data
    exit_event = one.selector.get_key(child.pidfd).data
    assert one.fleet.owns(child.pidfd)
    os.kill(child.pid, signal.SIGKILL)
    pidfd = os.dup(child.pidfd)
    selector = selectors.DefaultSelector()
    selector.register(pidfd, selectors.EVENT_READ)
    assert selector.select(WAIT)
    selector.close()
    os.close(pidfd)
    fd = child.pidfd
    exit_event(selectors.EVENT_READ, 0.0)
    channel_event(selectors.EVENT_READ, 0.0)
    assert len(one.deaths) == 1
    assert not one.fleet.owns(fd)


def test_worker_that_closed_its_channel_takes_no_connections(nursery: Make) -> None:
    one = nursery()
    (child,) = one.start()
    child.channel.eof = True
    assert one.fleet.ready() == []


def test_worker_is_coming_from_its_fork_or_quick_replacement_until_it_is_late_or_ready(nursery: Make) -> None:
    one = nursery(count=2)
    one.fleet.start(0.0)
    assert one.fleet.coming(0.5) == [0, 1]
    assert one.fleet.coming(module.COMING) == []
    one.run_until(lambda: len(one.ready) == 2, now=0.5)
    assert one.fleet.coming(0.6) == []
    first = one.fleet.get(0)
    assert first is not None
    one.fleet.kill(first)
    assert one.fleet.coming(50.0) == [0], "dead, not yet reaped"
    one.run_until(lambda: one.deaths, now=50.0)
    assert one.fleet.coming(50.0) == [0], "to be forked at once"
    one.fleet.slots[0].due = 55.0
    assert one.fleet.coming(50.0) == [], "backing off"
    one.fleet.slots[0].due = 50.0
    one.fleet.stop()
    assert one.fleet.coming(50.0) == []


def test_end_kills_and_reaps_and_closes_everything(nursery: Make) -> None:
    before = len(os.listdir("/proc/self/fd"))
    one = Nursery(deaf, count=2)
    pids = [child.pid for child in one.start()]
    one.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_garbage_on_the_channel_kills_the_worker(nursery: Make, caplog: pytest.LogCaptureFixture) -> None:
    def garbage(channel: Channel, boot: WorkerBoot) -> int:
        channel._socket.send(b"garbage")
        signal.pause()
        return 0

    one = nursery(garbage)
    with caplog.at_level(logging.ERROR):
        one.fleet.start(0.0)
        one.run_until(lambda: one.deaths)
    assert "not a message" in caplog.text
