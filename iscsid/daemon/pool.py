"""The threads in which a worker waits for its media.

One pool a worker, bounded; a thread is started when there is more to do than threads to do it. What a call returns
comes back to the loop through an eventfd, so ``done`` always runs in the loop and never inside ``submit``. How many
calls may wait is bounded by those who submit: the command windows of the sessions.

A call of a device (``DeviceCall``) has bounds of its own, so that a medium that hangs costs its neighbours nothing:
half of the threads at most are in one device, the others of its calls wait; and one that takes longer than the
device's ``io_timeout`` is answered without its result, and its thread replaced. What it still does then, nobody knows;
so until a write that was given up has come back, everything else for that device is answered with BUSY: an old write
must not overtake a new one.

A call that leaves by ``Later`` (block.turn) is parked without a thread and begun again when its time has come.
"""

from __future__ import annotations

import heapq
import logging
import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple

from iscsid.block.guard import Guarded
from iscsid.block.health import READ, WRITE
from iscsid.block.turn import Later, Turn, current
from iscsid.errors import BlockError, Fault, ScsiError
from iscsid.scsi.sense import Reason
from iscsid.target.task import DeviceCall, Done, Run

log = logging.getLogger(__name__)

MAX_THREADS = 32  # half of them, for one device, keep a disk's queue busy
MAX_HUNG = 128  # threads that are replaced, for all devices together
JOIN_SECONDS = 1.0


class _Lane:
    """The calls of one device: how many are on their way to it or in it, those that wait, and those that hang."""

    __slots__ = ("hung", "hung_since", "hung_writes", "running", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.waiting: deque[_Call] = deque()
        self.hung = 0
        self.hung_since = 0.0  # when the oldest of them began, and after it has come back still
        self.hung_writes = 0


class Stuck(NamedTuple):
    """How many calls of a device were given up and have not come back, how many wait for it, and since when."""

    hung: int
    waiting: int
    since: float


class _Call:
    """One call. ``began``: when a thread took it, 0.0 while none has it. ``over``: the waits that are over.

    ``expired``: it was answered without its result; ``hung``: from within its device.
    ``lane`` and ``device`` are None for what is no call of a device.
    """

    __slots__ = ("began", "device", "done", "expired", "hung", "lane", "over", "run", "since")

    def __init__(self, run: Run, done: Done, lane: _Lane | None, since: float) -> None:
        self.run = run
        self.done = done
        self.device = run if isinstance(run, DeviceCall) else None
        self.lane = lane
        self.since = since
        self.began = 0.0
        self.expired = False
        self.hung = False
        self.over: frozenset[int] = frozenset()


class Pool:
    """Bounded threads for calls that may wait. ``outstanding`` counts calls whose ``done`` has not run yet."""

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self.outstanding = 0
        self.hung = 0  # calls that were given up and have not come back
        self._max_threads = max_threads
        self._share = max(1, max_threads // 2)
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._work: SimpleQueue[_Call | None] = SimpleQueue()
        self._finished: deque[tuple[_Call, Any, Exception | None]] = deque()
        self._threads: list[threading.Thread] = []
        self._guard = threading.Lock()  # of what the lanes count; those that hang are the loop's alone
        self._lanes: dict[Guarded, _Lane] = {}
        self._watched: dict[_Call, None] = {}  # calls of devices that have not been answered, the oldest first
        self._parked = _Parking(self._enter)
        self._closed = False

    def fileno(self) -> int:
        """Readable when ``collect`` has something to do."""
        return self._event

    @property
    def threads(self) -> int:
        """How many threads there are, at work or not."""
        return len(self._threads)

    def submit(self, run: Run, done: Done) -> None:
        """Call ``run()`` in a thread, then ``done(result, error)`` in ``collect``. ``done`` should not raise."""
        self.outstanding += 1
        if isinstance(run, DeviceCall):
            lane = self._lanes.setdefault(run.device, _Lane())
            call = _Call(run, done, lane, time.monotonic())
            self._watched[call] = None
            if lane.hung_writes:
                self._finish(call, None, BlockError(Fault.BUSY, "a write hangs in the device"))
                return
        else:
            call = _Call(run, done, None, 0.0)
        limit = self._max_threads + min(self.hung, MAX_HUNG)
        if self.outstanding + self.hung > len(self._threads) < limit and not self._start_thread():
            self._finish(call, None, BlockError(Fault.NO_RESOURCES, "no thread can be started"))
        else:
            self._enter(call)

    def hangs(self, device: Guarded) -> bool:
        """Whether a call that was given up is in the device still."""
        lane = self._lanes.get(device)
        return lane is not None and bool(lane.hung)

    def stuck(self) -> dict[Guarded, Stuck]:
        """The devices that hang."""
        return {
            device: Stuck(lane.hung, len(lane.waiting), lane.hung_since)
            for device, lane in self._lanes.items()
            if lane.hung
        }

    def collect(self) -> None:
        """Report what has finished."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return
        for _ in range(len(self._finished)):
            call, result, error = self._finished.popleft()
            if call.device is not None:
                self._settle(call)
            if not call.expired:
                self._report(call, result, error)

    def expire(self, now: float) -> None:
        """Answer calls that have been in their device for too long, and those that wait for a device that hangs.

        ``now`` is of ``time.monotonic``. To be called each second or so, in the loop.
        """
        for call in list(self._watched):
            device, lane = call.device, call.lane
            assert device is not None and lane is not None
            limit = device.device.io_timeout * device.patience
            began = call.began
            if not limit:
                continue
            if began and now - began > limit:
                self._give_up(call, device, lane, now - began)
            elif not began and lane.hung and now - call.since > limit:
                self._expire_unbegun(call, BlockError(Fault.BUSY, "the device hangs"))
        used = {call.device.device for call in self._watched if call.device is not None}
        for idle in [device for device, lane in self._lanes.items() if device not in used and not lane.hung]:
            del self._lanes[idle]

    def _give_up(self, call: _Call, device: DeviceCall, lane: _Lane, seconds: float) -> None:
        if not lane.hung:
            words = "%s: a call hangs in the device since %.0f seconds; it is answered without its result"
            log.error(words, device.device.label, seconds)
            lane.hung_since = call.began
        self.hung += 1
        call.hung = True
        lane.hung += 1
        lane.hung_writes += device.writes
        self._expire(call, ScsiError(Reason.COMMAND_TIMEOUT_DURING_PROCESSING))
        if not device.writes:
            return
        with self._guard:
            waiting = list(lane.waiting)
        for other in waiting:
            self._expire_unbegun(other, BlockError(Fault.BUSY, "a write hangs in the device"))

    def _expire_unbegun(self, call: _Call, error: Exception) -> None:
        """BUSY says that nothing was done, so it is for a call that no thread has begun, nor ever will."""
        with self._guard:
            if call.began or call.expired:
                return
            call.expired = True
        self._answer_early(call, error)

    def _expire(self, call: _Call, error: Exception) -> None:
        if not call.expired:
            call.expired = True
            self._answer_early(call, error)

    def _answer_early(self, call: _Call, error: Exception) -> None:
        del self._watched[call]
        self._report(call, None, error)

    def _settle(self, call: _Call) -> None:
        """A call of a device has come back from its thread, or never went there."""
        device, lane = call.device, call.lane
        assert device is not None and lane is not None
        if not call.expired:
            del self._watched[call]
        elif call.hung:
            self.hung -= 1
            lane.hung -= 1
            lane.hung_writes -= device.writes
            if not lane.hung:
                words = "%s: the device answers again; what a write did that was given up is unknown"
                log.warning(words, device.device.label)

    def _report(self, call: _Call, result: Any, error: Exception | None) -> None:
        self.outstanding -= 1
        try:
            call.done(result, error)
        except Exception:  # a bug of one, which must not cost the others what they wait for
            log.exception("the end of a call could not be reported")

    def wait(self, seconds: float) -> bool:
        """Collect until nothing is outstanding; False when the time is up before."""
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._event, select.POLLIN)
        while self.outstanding:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
            self.collect()
        return True

    def close(self, seconds: float = JOIN_SECONDS) -> bool:
        """End the threads, after what was submitted; False when some hang in a medium after ``seconds``.

        Those are left behind. They are daemon threads, so they keep no process alive, but their devices are in use.
        """
        if self._closed:
            return True
        self._closed = True
        deadline = time.monotonic() + seconds
        self._parked.close()
        with self._guard:
            for lane in self._lanes.values():
                while lane.waiting:
                    self._work.put(lane.waiting.popleft())
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            return False  # and the eventfd stays theirs: its number must not become somebody else's
        os.close(self._event)
        return True

    def _start_thread(self) -> bool:
        """Start one thread more; False when there is none at all and none to be had."""
        thread = threading.Thread(target=self._serve, name=f"pool-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # a limit of the system's; those that there are do it
            return bool(self._threads)
        self._threads.append(thread)
        return True

    def _enter(self, call: _Call) -> None:
        """Hand a call to the threads, or have it wait for others of its device. In any thread."""
        lane = call.lane
        if lane is not None:
            call.since = min(call.since, time.monotonic())
            with self._guard:
                if lane.running >= self._share and not self._closed:
                    lane.waiting.append(call)
                    return
                lane.running += 1
        self._work.put(call)

    def _leave(self, lane: _Lane) -> None:
        """A call has left its device; the next one may go."""
        with self._guard:
            if not lane.waiting:
                lane.running -= 1
                return
            call = lane.waiting.popleft()
        self._work.put(call)

    def _serve(self) -> None:
        turn = Turn()
        current.set(turn)
        while (call := self._work.get()) is not None:
            self._perform(turn, call)
            del call  # what it holds would otherwise live until the next one comes

    def _perform(self, turn: Turn, call: _Call) -> None:
        result: Any = None
        error: Exception | None = None
        lane = call.lane
        if lane is not None:
            with self._guard:
                if not call.expired:
                    call.began = time.monotonic()
            if not call.began:
                self._leave(lane)
                self._finish(call, None, None)
                return
        turn.begin(call.over)
        try:
            result = call.run()
        except Later as later:
            if not call.expired:
                if lane is not None:
                    self._leave(lane)
                call.over = frozenset(turn.over)
                call.began, call.since = 0.0, math.inf  # it waits on purpose
                self._parked.add(later.seconds, call)
                return
        except Exception as exc:  # whatever it is, it belongs to the one who asked
            error = exc
        except BaseException as exc:  # sys.exit() in a plugin ends no thread of ours
            error = BlockError(Fault.INTERNAL, f"the device raised {type(exc).__name__}")
            error.__cause__ = exc
            if call.device is not None:
                call.device.device.health.note(WRITE if call.device.writes else READ, error)
        if lane is not None:
            self._leave(lane)
        self._finish(call, result, error)

    def _finish(self, call: _Call, result: Any, error: Exception | None) -> None:
        self._finished.append((call, result, error))
        os.eventfd_write(self._event, 1)


class _Parking:
    """Calls that wait for a time, and not for a medium; ``begin`` gets them back. One thread, made for the first."""

    def __init__(self, begin: Callable[[_Call], None]) -> None:
        self._begin = begin
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, _Call]] = []
        self._count = 0  # orders those that are due at one time
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, seconds: float, call: _Call) -> None:
        with self._changed:
            if not self._closed and self._clock_runs():
                self._count += 1
                heapq.heappush(self._heap, (time.monotonic() + seconds, self._count, call))
                self._changed.notify()
                return
        self._begin(call)

    def close(self) -> None:
        """Nobody waits any more: what is parked goes on now."""
        with self._changed:
            self._closed = True
            for _, _, call in self._heap:
                self._begin(call)
            self._heap.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _clock_runs(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="pool-clock", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # a limit of the system's: rather too early than never
                return False
            self._thread = thread
        return True

    def _run(self) -> None:
        with self._changed:
            while not self._closed:
                left = self._heap[0][0] - time.monotonic() if self._heap else None
                if left is not None and left <= 0:
                    self._begin(heapq.heappop(self._heap)[2])
                else:
                    self._changed.wait(left)
