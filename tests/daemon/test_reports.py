"""What the control socket tells is what is: asked of real servers of fake workers."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import iscsid
from iscsid.daemon.health import Book
from iscsid.daemon.reports import Reports
from iscsid.scsi.removable import Medium

pytestmark = pytest.mark.process

Start = Callable[..., Any]


def test_status_tells_what_is_served_and_by_whom(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    kit.answer_of(server.login())
    status = server.until(lambda status: status["sessions"]["open"] == 1 and status["workers"][0]["rss"] > 0)
    assert status["version"] == iscsid.__version__
    assert status["pid"] == server.pid
    assert status["phase"] == "serving"
    assert status["uptime"] > 0
    assert status["portals"] == ["{}:{}".format(*server.address)]
    well = Book().tell(("disk", 0), Medium(), 0.0)
    assert status["targets"] == [
        {"name": "disk", "luns": [{"lun": 0, "backend": "null", "readonly": False, "health": well}]},
        {"name": "single", "luns": [{"lun": 0, "backend": "lonely", "readonly": False, "health": well}]},
    ]
    assert [worker["pid"] for worker in status["workers"]] == server.told["pids"]
    assert [worker["sessions"] for worker in status["workers"]] == [1, 0]
    assert [worker["replaced"] for worker in status["workers"]] == [0, 0]
    assert {worker["state"] for worker in status["workers"]} == {"ready"}


def test_status_has_the_figures_of_the_last_beat_and_of_the_process(start: Start, kit: SimpleNamespace) -> None:
    server = start(workers=1)
    kit.answer_of(server.login())
    (worker,) = server.until(lambda status: status["workers"][0].get("connections") == 1)["workers"]
    assert {"commands", "read_bytes", "written_bytes", "busy", "cpu_percent", "rss", "threads"} <= worker.keys()


def test_status_of_a_worker_that_is_being_replaced_says_dead(start: Start) -> None:
    server = start(workers=1)
    for _ in range(3):  # until the back-off leaves it dead for a while
        os.kill(server.until(lambda s: s["workers"][0]["pid"])["workers"][0]["pid"], signal.SIGKILL)
        dead = server.until(lambda s: s["workers"][0]["state"] != "ready")["workers"][0]
    assert dead["state"] in ("dead", "starting")
    assert dead["sessions"] == 0


def test_sessions_are_told_with_fresh_figures(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    for isid in (1, 0x80000000ABCD):
        kit.answer_of(server.login(isid=isid))
    server.until(lambda status: status["sessions"]["open"] == 2)
    sessions = server.ask("sessions")["sessions"]
    assert [session["isid"] for session in sessions] == ["000000000001", "80000000abcd"]
    for session in sessions:
        assert session["state"] == "open"
        assert session["initiator"] == "host"
        assert session["target"] == "disk"
        assert (session["commands"], session["read_bytes"], session["written_bytes"]) == (3, 4096, 512)
        assert session["peer"].startswith("127.0.0.1:")
    assert {session["worker"] for session in sessions} == {0, 1}


def test_sessions_of_a_server_without_any_is_an_empty_list(start: Start) -> None:
    assert start().ask("sessions") == {"sessions": []}


def test_sessions_waits_for_no_worker_that_does_not_answer(start: Start, kit: SimpleNamespace) -> None:
    server = start(workers=1)
    kit.answer_of(server.login())
    server.until(lambda status: status["sessions"]["open"] == 1)
    pid = server.told["pids"][0]
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    (session,) = server.ask("sessions")["sessions"]
    assert time.monotonic() - began < 10
    assert session["commands"] == 0, "what was known before"
    os.kill(pid, signal.SIGCONT)


def test_sessions_of_a_worker_that_dies_meanwhile_are_not_waited_for(start: Start, kit: SimpleNamespace) -> None:
    server = start(workers=1)
    kit.answer_of(server.login())
    server.until(lambda status: status["sessions"]["open"] == 1)
    os.kill(server.told["pids"][0], signal.SIGKILL)
    server.until(lambda status: status["sessions"]["open"] == 0)
    assert server.ask("sessions") == {"sessions": []}


def test_refusals_are_logged_once_for_many(caplog: pytest.LogCaptureFixture) -> None:
    refused: Counter[str] = Counter()
    server: Any = SimpleNamespace(doorman=SimpleNamespace(refused=refused))
    reports = Reports(server)
    with caplog.at_level("INFO"):
        reports.log_refusals()
        refused.update({"no login": 500, "timeout": 1})
        reports.log_refusals()
        reports.log_refusals()
        refused["timeout"] += 2
        reports.log_refusals()
    assert caplog.messages == [
        "connections closed before a login: 500 no login, 1 timeout",
        "connections closed before a login: 2 timeout",
    ]
