"""The threads in which a worker waits for its media.

One pool a worker, bounded; a thread is started when there is more to do than threads to do it. What a call returns
comes back to the loop through an eventfd, so ``done`` always runs in the loop and never inside ``submit``. How many
calls may wait is bounded by those who submit: the command windows of the sessions.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from queue import SimpleQueue
from typing import Any

from iscsid.target.task import Done, Run

MAX_THREADS = 16  # enough to keep a disk's queue busy; more only take turns at the interpreter's lock
JOIN_SECONDS = 1.0

_Work = tuple[Run, Done]


class Pool:
    """Bounded threads for calls that may wait. ``outstanding`` counts calls whose ``done`` has not run yet."""

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self.outstanding = 0
        self._max_threads = max_threads
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._finished: deque[tuple[Done, Any, Exception | None]] = deque()
        self._threads: list[threading.Thread] = []

    def fileno(self) -> int:
        """Readable when ``collect`` has something to do."""
        return self._event

    def submit(self, run: Run, done: Done) -> None:
        """Call ``run()`` in a thread, then ``done(result, error)`` in ``collect``."""
        self.outstanding += 1
        if self.outstanding > len(self._threads) < self._max_threads:
            thread = threading.Thread(target=self._serve, name=f"pool-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._work.put((run, done))

    def collect(self) -> None:
        """Report what has finished."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return
        for _ in range(len(self._finished)):
            done, result, error = self._finished.popleft()
            self.outstanding -= 1
            done(result, error)

    def close(self) -> None:
        """End the threads; one that hangs in a medium is left behind (it is a daemon thread)."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
        os.close(self._event)
        self._event = -1

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            run, done = work
            result, error = None, None
            try:
                result = run()
            except Exception as exc:  # whatever it is, it belongs to the one who asked
                error = exc
            self._finished.append((done, result, error))
            if self._event < 0:
                return
            os.eventfd_write(self._event, 1)
