"""What a worker logs arrives, whatever happened to the worker before it; no thread and no descriptor stays behind."""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from iscsid.daemon import logs as module
from iscsid.daemon.logs import Logs

pytestmark = pytest.mark.process

log = logging.getLogger("worker")


class Sink(logging.Handler):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def sink() -> Iterator[Sink]:
    """The only handler of the root logger, for the test."""
    root = logging.getLogger()
    before = root.handlers[:]
    sink = Sink()
    root.handlers[:] = [sink]
    yield sink
    root.handlers[:] = before


@pytest.fixture
def logs(sink: Sink) -> Iterator[Logs]:
    logs = Logs("info")
    yield logs
    logs.close()


def fork(logs: Logs, work: Callable[[], None], name: str = "worker-7") -> int:
    """A worker that does ``work`` and ends; its pid."""
    handler = logs.handler_for(name)
    pid = logs.fork()
    if pid == 0:
        code = 1
        try:
            logs.enter_worker(handler, name)
            work()
            logs.leave_worker(handler)
            code = 0
        finally:
            os._exit(code)
    logs.forked(handler)
    return pid


def wait(pid: int) -> int:
    fd = os.pidfd_open(pid)
    ended = select.select([fd], [], [], 20)[0]
    os.close(fd)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended, "the worker hangs"
    return code


def test_record_of_a_worker_arrives_with_its_name_and_pid(logs: Logs, sink: Sink) -> None:
    pid = fork(logs, lambda: log.warning("%s of %d", "one", 2))
    assert wait(pid) == 0
    logs.close()
    (record,) = sink.records
    assert record.getMessage() == "one of 2"
    assert (record.processName, record.process, record.levelname) == ("worker-7", pid, "WARNING")


def test_every_record_of_a_worker_that_ends_arrives_in_order(logs: Logs, sink: Sink) -> None:
    assert wait(fork(logs, lambda: [log.info("%d", number) for number in range(2000)])) == 0
    logs.close()
    assert sink.lines == [str(number) for number in range(2000)]


def test_level_is_obeyed_in_the_worker(logs: Logs, sink: Sink) -> None:
    assert wait(fork(logs, lambda: (log.debug("no"), log.info("yes")))) == 0
    logs.close()
    assert sink.lines == ["yes"]


def test_level_of_a_sink_is_obeyed(logs: Logs, sink: Sink) -> None:
    sink.setLevel(logging.ERROR)
    assert wait(fork(logs, lambda: (log.info("no"), log.error("yes")))) == 0
    logs.close()
    assert sink.lines == ["yes"]


def test_traceback_of_a_worker_arrives(logs: Logs, sink: Sink) -> None:
    def fail() -> None:
        try:
            raise RuntimeError("planted")
        except RuntimeError:
            log.exception("failed")

    assert wait(fork(logs, fail)) == 0
    logs.close()
    assert "RuntimeError: planted" in (sink.records[0].exc_text or "")


@pytest.mark.parametrize("round_", range(3))
def test_worker_killed_while_it_writes_does_not_hang_the_next(logs: Logs, sink: Sink, round_: int) -> None:
    """With one queue for all, the dead worker's lock stops the next one for ever."""

    def write_for_ever() -> None:
        while True:
            log.info("x" * 1000)

    victim = fork(logs, write_for_ever, "victim")
    deadline = threading.Event()
    while len(sink.records) < 50:
        assert not deadline.wait(0.001)
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    assert wait(fork(logs, lambda: [log.warning("%d", number) for number in range(500)], "next")) == 0
    logs.close()
    assert [record.getMessage() for record in sink.records if record.processName == "next"] == list(
        map(str, range(500))
    )


def test_two_workers_at_once_lose_nothing(logs: Logs, sink: Sink) -> None:
    pids = [fork(logs, lambda: [log.info("x") for _ in range(500)], f"worker-{index}") for index in range(2)]
    assert [wait(pid) for pid in pids] == [0, 0]
    logs.close()
    assert len(sink.records) == 1000


def test_flood_beyond_the_backlog_is_cut_not_kept(logs: Logs, sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BACKLOG", 10)
    sink.acquire()  # nobody reads
    pid = fork(logs, lambda: [log.info("%d", number) for number in range(5000)])
    sink.release()
    assert wait(pid) == 0
    logs.close()
    assert 0 < len(sink.records) < 5000


def test_worker_whose_supervisor_is_gone_ends(sink: Sink) -> None:
    """It logs more than a pipe holds, and nobody reads: it must not wait for ever."""
    pids, pids_writer = os.pipe()
    go, go_writer = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        os.close(go_writer)
        logs = Logs("info")
        sink.acquire()  # the reading thread stops at the first record
        alive, alive_writer = os.pipe()

        def work() -> None:
            os.close(alive_writer)
            os.read(alive, 1)  # end-of-file: the supervisor is gone
            for _ in range(2000):
                log.info("x" * 1000)

        os.write(pids_writer, b"%d" % fork(logs, work))
        os.read(go, 1)
        os._exit(0)
    worker = os.pidfd_open(int(os.read(pids, 20)))
    for fd in (pids, pids_writer, go, go_writer):
        os.close(fd)
    os.waitpid(supervisor, 0)
    ended = select.select([worker], [], [], 20)[0]
    signal.pidfd_send_signal(worker, signal.SIGKILL) if not ended else None
    os.close(worker)
    assert ended


def test_prune_lets_go_of_dead_workers_only(logs: Logs, sink: Sink) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader, writer = os.pipe()
    living = fork(logs, lambda: (os.close(writer), os.read(reader, 1)))
    dead = fork(logs, lambda: None)
    assert wait(dead) == 0
    while len(logs._handlers) > 1:
        logs.prune()
    os.close(reader)
    os.close(writer)
    assert wait(living) == 0
    while logs._handlers:
        logs.prune()
    assert len(os.listdir("/proc/self/fd")) == before


def test_close_restores_the_root_logger(sink: Sink) -> None:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    threads = threading.active_count()
    logs = Logs("debug")
    assert root.level == logging.DEBUG
    assert wait(fork(logs, lambda: None)) == 0
    logs.close()
    assert root.level == level
    assert root.handlers == handlers
    assert threading.active_count() == threads


def test_handler_to_stderr_is_made_only_where_there_is_none(
    sink: Sink, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    root.handlers.clear()
    for journal, stamped in (("", True), ("8:1", False)):
        if journal:
            monkeypatch.setenv("JOURNAL_STREAM", journal)
        else:
            monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        logs = Logs("info")
        logging.getLogger("x").info("hello")
        logs.close()
        err = capsys.readouterr().err
        assert f"supervisor[{os.getpid()}] INFO x: hello" in err
        assert err[0].isdigit() is stamped, "the journal has its own clock"
    assert root.handlers == []
