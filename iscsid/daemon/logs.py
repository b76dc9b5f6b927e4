"""Log records of workers, through multiprocessing_logging; nothing else of ours imports it.

Rules of this file, each measured: one queue shared by workers hangs them all once one is killed while it writes, so
every worker has a MultiProcessingHandler of its own, made just before its fork. The supervisor closes its copy of the
queue's writing end, so that the worker's death, however it comes, is an end-of-file for the thread that reads. A
worker closes every end that is not its own. A worker's backlog is bounded: a flood of records is cut, not kept.

The queue's ends are private names of the standard library; ``_ends`` and ``_end_of_supervisor`` are the only places
that know them.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
import warnings
from typing import Any, Final, Protocol

from multiprocessing_logging import MultiProcessingHandler

MAX_BACKLOG: Final = 10_000  # records that a worker may have waiting; some MB at most
CLOSE_TIMEOUT: Final = 2.0  # seconds that the last records of a worker may take, when the server stops

_FORMAT: Final = "%(asctime)s %(processName)s[%(process)d] %(levelname)s %(name)s: %(message)s"
_FORMAT_JOURNAL: Final = "%(processName)s[%(process)d] %(levelname)s %(name)s: %(message)s"  # it has its own clock
LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


class _End(Protocol):
    def close(self) -> None: ...


class _Relay(logging.Handler):
    """Runs in the reading thread of one worker's handler: puts each record to the handlers of the supervisor."""

    def __init__(self, sinks: list[logging.Handler]) -> None:
        super().__init__()
        self._sinks = sinks

    def emit(self, record: logging.LogRecord) -> None:
        for sink in self._sinks:
            if record.levelno >= sink.level:
                sink.handle(record)


class Logs:
    """The logging of one server. The root logger's handlers are the sinks; one to stderr is made if there is none."""

    def __init__(self, level: str) -> None:
        if multiprocessing.get_start_method() != "fork":
            multiprocessing.set_start_method("fork", force=True)
        self._root = logging.getLogger()
        self._old_level = self._root.level
        self._root.setLevel(LEVELS[level])
        self._made: logging.Handler | None = None
        if not self._root.handlers:
            self._made = _to_stderr()
            self._root.addHandler(self._made)
        self._sinks = list(self._root.handlers)
        self._handlers: list[Any] = []  # of workers that live, or whose last records are being read
        self._process = multiprocessing.current_process()
        self._old_name = self._process.name
        self._process.name = "supervisor"

    def handler_for(self, name: str) -> Any:
        """The handler of a worker about to be forked. To be followed by the fork and :meth:`forked`."""
        handler = MultiProcessingHandler(f"logs of {name}", sub_handler=_Relay(self._sinks))
        queue = handler.queue
        handler.addFilter(lambda _record: queue.qsize() < MAX_BACKLOG)
        self._handlers.append(handler)
        return handler

    def fork(self) -> int:
        """os.fork while no thread of ours writes to a sink, so that no lock of a stream is copied while it is held.

        The handlers' own locks are renewed in the child by the logging module itself. From 3.12 Python warns of a
        fork beside threads; the threads are those of this file, and that is what the locks are for.
        """
        for sink in self._sinks:
            sink.acquire()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid:
            for sink in self._sinks:
                sink.release()
        return pid

    def forked(self, handler: Any) -> None:
        """In the supervisor, after the fork: only the worker writes into its queue."""
        writer, _ = _ends(handler)
        writer.close()

    def enter_worker(self, handler: Any, name: str) -> None:
        """In the worker: ``handler`` is the one and only."""
        self._process.name = name
        for other in self._handlers:
            if other is not handler:
                for end in _ends(other):
                    end.close()
        _, reader = _ends(handler)
        reader.close()
        _end_of_supervisor(handler)
        self._root.handlers[:] = [handler]

    @staticmethod
    def leave_worker(handler: Any) -> None:
        """In the worker, last of all: every record is on its way, or the supervisor is gone."""
        handler.queue.close()
        handler.queue.join_thread()

    def prune(self) -> None:
        """Let go of handlers whose worker is dead and whose last record was read. To be called now and then."""
        for handler in [handler for handler in self._handlers if not _thread(handler).is_alive()]:
            self._discard(handler)

    def close(self) -> None:
        """Read what dead workers have left, within CLOSE_TIMEOUT each, and put the root logger back as it was."""
        for handler in list(self._handlers):
            _thread(handler).join(CLOSE_TIMEOUT)
            self._discard(handler)
        if self._made is not None:
            self._root.removeHandler(self._made)
            self._made.close()
        self._root.setLevel(self._old_level)
        self._process.name = self._old_name

    def _discard(self, handler: Any) -> None:
        self._handlers.remove(handler)
        if not _thread(handler).is_alive():
            handler.close()
            _, reader = _ends(handler)
            reader.close()


def _to_stderr() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT_JOURNAL if "JOURNAL_STREAM" in os.environ else _FORMAT))
    return handler


def _thread(handler: Any) -> threading.Thread:
    thread: threading.Thread = handler._receive_thread
    return thread


def _ends(handler: Any) -> tuple[_End, _End]:
    """The writing and the reading end of a handler's queue."""
    return handler.queue._writer, handler.queue._reader


def _end_of_supervisor(handler: Any) -> None:
    """With the supervisor gone records go nowhere, and that is no error to print."""
    handler.queue._ignore_epipe = True
