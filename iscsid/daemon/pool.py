"""The threads in which a worker waits for its media.

One pool a worker, bounded; a thread is started when there is more to do than threads to do it. What a call returns
comes back to the loop through an eventfd, so ``done`` always runs in the loop and never inside ``submit``. How many
calls may wait is bounded by those who submit: the command windows of the sessions.

A call that leaves by ``Later`` (block.turn) is parked without a thread and begun again when its time has come.
"""

from __future__ import annotations

import heapq
import logging
import os
import select
import threading
import time
from collections import deque
from queue import SimpleQueue
from typing import Any

from iscsid.block.turn import Later, Turn, current
from iscsid.errors import BlockError, Fault
from iscsid.target.task import Done, Run

log = logging.getLogger(__name__)

MAX_THREADS = 16  # enough to keep a disk's queue busy; more only take turns at the interpreter's lock
JOIN_SECONDS = 1.0

_Work = tuple[Run, Done, frozenset[int]]  # with the waits that are over


class Pool:
    """Bounded threads for calls that may wait. ``outstanding`` counts calls whose ``done`` has not run yet."""

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self.outstanding = 0
        self._max_threads = max_threads
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._finished: deque[tuple[Done, Any, Exception | None]] = deque()
        self._threads: list[threading.Thread] = []
        self._parked = _Parking(self._work)
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
        if self.outstanding > len(self._threads) < self._max_threads and not self._start_thread():
            self._finish(done, None, BlockError(Fault.NO_RESOURCES, "no thread can be started"))
        else:
            self._work.put((run, done, frozenset()))

    def collect(self) -> None:
        """Report what has finished."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return
        for _ in range(len(self._finished)):
            done, result, error = self._finished.popleft()
            self.outstanding -= 1
            try:
                done(result, error)
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

    def _serve(self) -> None:
        turn = Turn()
        current.set(turn)
        while (work := self._work.get()) is not None:
            self._perform(turn, *work)
            del work  # what it holds would otherwise live until the next one comes

    def _perform(self, turn: Turn, run: Run, done: Done, over: frozenset[int]) -> None:
        result: Any = None
        error: Exception | None = None
        turn.begin(over)
        try:
            result = run()
        except Later as later:
            self._parked.add(later.seconds, (run, done, frozenset(turn.over)))
            return
        except Exception as exc:  # whatever it is, it belongs to the one who asked
            error = exc
        except BaseException as exc:  # sys.exit() in a plugin ends no thread of ours
            error = BlockError(Fault.INTERNAL, f"the device raised {type(exc).__name__}")
            error.__cause__ = exc
        self._finish(done, result, error)

    def _finish(self, done: Done, result: Any, error: Exception | None) -> None:
        self._finished.append((done, result, error))
        os.eventfd_write(self._event, 1)


class _Parking:
    """Calls that wait for a time, and not for a medium; ``work`` gets them back. One thread, made for the first."""

    def __init__(self, work: SimpleQueue[_Work | None]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, _Work]] = []
        self._count = 0  # orders those that are due at one time
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, seconds: float, work: _Work) -> None:
        with self._changed:
            if not self._closed and self._clock_runs():
                self._count += 1
                heapq.heappush(self._heap, (time.monotonic() + seconds, self._count, work))
                self._changed.notify()
                return
        self._work.put(work)

    def close(self) -> None:
        """Nobody waits any more: what is parked goes on now."""
        with self._changed:
            self._closed = True
            for _, _, work in self._heap:
                self._work.put(work)
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
                    self._work.put(heapq.heappop(self._heap)[2])
                else:
                    self._changed.wait(left)
