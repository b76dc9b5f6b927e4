"""Worker processes: forked, watched, killed, reaped and replaced.

A worker is watched by its pidfd (its death is an event of the loop, no SIGCHLD, no pid that could be somebody else's
by now) and by its heart: the worker's loop sends a Beat each second, and one that shows no life for ``timeout``
seconds is killed. A dead worker is replaced at once; one that dies again as soon as it lives waits longer each time.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from iscsid.daemon.boot import ExitCode, WorkerBoot
from iscsid.daemon.channel import Channel, ChannelFull
from iscsid.daemon.logs import Logs
from iscsid.daemon.signals import HANDLED
from iscsid.errors import LocalProtocolError
from iscsid.shared.messages import Beat, BootFailed, Message, Ready

QUICK_DEATH: Final = 1.0  # seconds after Ready in which a death counts as "keeps dying"
COMING: Final = 1.0  # seconds in which a replacement is ready, as a rule: it has been forked, or will be
MAX_BACK_OFF: Final = 30.0
FIRST_BACK_OFF: Final = 0.5
STALL: Final = 5.0  # a loop that was away this long (stopped, frozen) believes no heartbeat that it missed

log = logging.getLogger(__name__)

Run = Callable[[Channel, WorkerBoot], int]


def back_off(failures: int) -> float:
    """Seconds to wait before the next fork, after so many quick deaths in a row: 0, 0.5, 1, 2, ... 30."""
    if failures <= 1:
        return 0.0
    return float(min(MAX_BACK_OFF, FIRST_BACK_OFF * 2 ** min(failures - 2, 16)))


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended: by an exit code, or by a signal."""

    code: int | None
    signal: int | None
    reason: str = ""  # what BootFailed said

    def __str__(self) -> str:
        if self.signal is not None:
            return f"killed by signal {self.signal} ({signal.strsignal(self.signal)})"
        return f"exit code {self.code}" + (f": {self.reason}" if self.reason else "")


@dataclass(eq=False, slots=True)
class Child:
    """One worker process. ``seen`` is when it last showed life, ``beat`` its last figures."""

    index: int
    pid: int
    pidfd: int
    channel: Channel
    seen: float
    ready_at: float | None = None
    beat: Beat = field(default_factory=Beat)
    boot_failure: str = ""
    doomed: bool = False  # was sent SIGKILL
    watches_write: bool = False


@dataclass(eq=False, slots=True)
class Slot:
    """A worker's place, which outlives the process in it. ``due`` is when a process is to be forked into it."""

    index: int
    child: Child | None = None
    failures: int = 0
    replaced: int = 0
    due: float | None = None


class Owner(Protocol):
    """Who has the children: the supervisor."""

    def on_message(self, child: Child, message: Message, now: float) -> None:
        """A message other than Beat, Ready and BootFailed."""

    def on_ready(self, child: Child, now: float) -> None:
        """Its devices are open."""

    def on_death(self, child: Child, death: Death, now: float) -> None:
        """It is reaped, and every message that it had sent was handed over."""


class Forker:
    """How a worker is born. ``boot`` gives what it knows, ``leave`` closes in it all that is the supervisor's."""

    def __init__(self, run: Run, boot: Callable[[int], WorkerBoot], logs: Logs, leave: Callable[[], None]) -> None:
        self._run = run
        self._boot = boot
        self._logs = logs
        self._leave = leave

    def __call__(self, index: int, now: float) -> Child:
        """Fork worker ``index``. Returns in the supervisor only. Raises OSError."""
        ours, theirs = Channel.pair()
        name = f"worker-{index}"
        handler = self._logs.handler_for(name)
        gc.collect()
        gc.freeze()  # what is alive now is never collected in the worker, so its pages stay shared
        # A signal between the fork and the worker's own dispositions would be written into the supervisor's pipe.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        try:
            pid = self._logs.fork()
            if pid == 0:
                self._live(ours, theirs, handler, index, name)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            gc.unfreeze()
            theirs.close()
            self._logs.forked(handler)
        return Child(index, pid, os.pidfd_open(pid), ours, now)

    def _live(self, ours: Channel, theirs: Channel, handler: Any, index: int, name: str) -> None:
        """The worker's whole life; does not return."""
        code = int(ExitCode.CRASHED)
        try:
            ours.close()
            self._leave()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            self._logs.enter_worker(handler, name)
            code = self._run(theirs, self._boot(index))
        except BaseException:
            log.critical("%s crashed", name, exc_info=True)
        finally:
            try:
                theirs.close()
                self._logs.leave_worker(handler)
            finally:
                os._exit(code)


class Fleet:
    """All workers, by index."""

    def __init__(
        self, count: int, selector: selectors.BaseSelector, fork: Callable[[int, float], Child], owner: Owner
    ) -> None:
        self.slots = [Slot(index) for index in range(count)]
        self.stopping = False
        self._selector = selector
        self._fork = fork
        self._owner = owner
        self._last_tick: float | None = None
        self._descriptors: set[int] = set()

    def start(self, now: float) -> None:
        """Fork every worker. Raises OSError."""
        for slot in self.slots:
            self._spawn(slot, now)

    def __iter__(self) -> Iterator[Child]:
        return (slot.child for slot in self.slots if slot.child is not None)

    def get(self, index: int) -> Child | None:
        """The process that is worker ``index`` now."""
        return self.slots[index].child

    def ready(self) -> list[Child]:
        """Workers that take connections."""
        return [child for child in self if child.ready_at is not None and not child.doomed and not child.channel.eof]

    def coming(self, now: float) -> list[int]:
        """Workers that will be ready in a moment: just forked, about to be, or dead and not yet reaped."""
        return [slot.index for slot in self.slots if not self.stopping and _is_coming(slot, now)]

    def owns(self, fd: int) -> bool:
        """Whether an event of this descriptor is news of a worker. The loop hears those first: a session's socket is
        closed by its worker's death after the channel is, so that no login that follows goes to the dead worker."""
        return fd in self._descriptors

    def send(self, child: Child, message: Message, fd: int | None = None) -> None:
        """Send; the descriptor is given away. A worker that does not read its channel is killed."""
        try:
            child.channel.send(message, fd)
        except ChannelFull as exc:
            self.kill(child, str(exc))
        self._watch(child)

    def kill(self, child: Child, reason: str = "") -> None:
        """SIGKILL; the death comes as an event. ``reason`` is for the log, where it needs one."""
        if not child.doomed:
            if reason:
                log.error("worker %d (pid %d): killing it: %s", child.index, child.pid, reason)
            child.doomed = True
            signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    def stop(self) -> None:
        """Replace nobody from now on."""
        self.stopping = True
        for slot in self.slots:
            slot.due = None

    def tick(self, now: float, timeout: float) -> None:
        """What is due: kill the lifeless, send what is stuck, fork replacements. To be called each second."""
        stalled = self._last_tick is not None and now - self._last_tick > STALL
        self._last_tick = now
        for child in list(self):
            if stalled:
                child.seen = now
            if now - child.seen > timeout:
                self.kill(child, f"no sign of life for {now - child.seen:.0f} seconds")
            child.channel.flush()
            self._watch(child)
        for slot in self.slots:
            if slot.due is not None and slot.due <= now:
                self._respawn(slot, now)

    def next_due(self) -> float | None:
        """When the next replacement is to be forked."""
        return min((slot.due for slot in self.slots if slot.due is not None), default=None)

    def leave(self) -> None:
        """In a worker just forked: close its copies, and keep off the selector, which is the supervisor's still."""
        for child in self:
            child.channel.close()
            os.close(child.pidfd)

    def end(self) -> None:
        """Kill and reap whoever is left: nothing of ours may outlive the server, whatever went wrong."""
        for slot in self.slots:
            if slot.child is not None:
                self.kill(slot.child, "the server ends")
                os.waitid(os.P_PIDFD, slot.child.pidfd, os.WEXITED)
                self._bury(slot, slot.child)

    # -- within ------------------------------------------------------------------------------------------------------

    def _spawn(self, slot: Slot, now: float) -> None:
        slot.due = None
        slot.child = child = self._fork(slot.index, now)
        self._selector.register(child.channel, selectors.EVENT_READ, partial(self._on_channel, child))
        self._selector.register(child.pidfd, selectors.EVENT_READ, partial(self._on_exit, slot, child))
        self._descriptors |= {child.channel.fileno(), child.pidfd}
        log.debug("worker %d: pid %d", child.index, child.pid)

    def _respawn(self, slot: Slot, now: float) -> None:
        try:
            self._spawn(slot, now)
            slot.replaced += 1
        except OSError as exc:
            slot.failures += 1
            slot.due = now + max(FIRST_BACK_OFF, back_off(slot.failures))
            log.error("worker %d: cannot fork: %s", slot.index, exc.strerror or exc)

    def _on_channel(self, child: Child, mask: int, now: float) -> None:
        if child.channel.fileno() < 0:
            return  # it was buried earlier in this round of events
        if mask & selectors.EVENT_WRITE:
            child.channel.flush()
        if mask & selectors.EVENT_READ:
            self._receive(child, now)
        self._watch(child)

    def _receive(self, child: Child, now: float) -> bool:
        """One batch of messages; whether there were any."""
        try:
            batch = child.channel.receive()
        except LocalProtocolError as exc:
            self.kill(child, str(exc))
            return True
        for message, fd in batch:
            if fd is not None:
                os.close(fd)  # workers send none
            child.seen = now
            self._on_message(child, message, now)
        return bool(batch)

    def _on_message(self, child: Child, message: Message, now: float) -> None:
        if isinstance(message, Beat):
            child.beat = message
        elif isinstance(message, Ready):
            child.ready_at = now
            self._owner.on_ready(child, now)
        elif isinstance(message, BootFailed):
            child.boot_failure = message.reason
        else:
            self._owner.on_message(child, message, now)

    def _watch(self, child: Child) -> None:
        """Ask for what the channel waits for; nothing when the other end is closed, or the loop would spin."""
        if child.channel.eof:
            if child.channel in self._selector.get_map():
                self._selector.unregister(child.channel)
        elif child.channel.wants_write != child.watches_write:
            child.watches_write = child.channel.wants_write
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if child.watches_write else 0)
            self._selector.modify(child.channel, events, partial(self._on_channel, child))

    def _on_exit(self, slot: Slot, child: Child, _mask: int, now: float) -> None:
        while not child.channel.eof and self._receive(child, now):
            pass
        result = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED)
        assert result is not None  # no WNOHANG
        exited = result.si_code == os.CLD_EXITED
        death = Death(
            code=result.si_status if exited else None,
            signal=None if exited else result.si_status,
            reason=child.boot_failure,
        )
        self._bury(slot, child)
        self._plan_replacement(slot, child, now)
        self._owner.on_death(child, death, now)

    def _bury(self, slot: Slot, child: Child) -> None:
        slot.child = None
        self._descriptors -= {child.channel.fileno(), child.pidfd}
        if child.channel in self._selector.get_map():
            self._selector.unregister(child.channel)
        self._selector.unregister(child.pidfd)
        child.channel.close()
        os.close(child.pidfd)

    def _plan_replacement(self, slot: Slot, child: Child, now: float) -> None:
        quick = child.ready_at is None or now - child.ready_at < QUICK_DEATH
        slot.failures = slot.failures + 1 if quick else 0
        if not self.stopping:
            slot.due = now + back_off(slot.failures)


def _is_coming(slot: Slot, now: float) -> bool:
    child = slot.child
    if child is None:
        return slot.due is not None and slot.due <= now
    if child.ready_at is None:
        return now - child.seen < COMING  # nothing was heard of it since the fork
    return (child.doomed or child.channel.eof) and slot.failures == 0
