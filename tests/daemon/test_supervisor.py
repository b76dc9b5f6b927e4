"""A real supervisor, real forks, workers that only say which they are: who gets what, and what outlives what."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.daemon import supervisor as module
from iscsid.daemon.supervisor import FAILED, OK, Supervisor
from iscsid.errors import PluginError
from iscsid.specs import PortalSpec

pytestmark = pytest.mark.process

Start = Callable[..., Any]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def closed(sock: socket.socket) -> bool:
    """Wait for the other side to close."""
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(1000):
            pass
    return True


# -- start and stop ----------------------------------------------------------------------------------------------------


def test_graceful_stop_exits_with_0_and_leaves_nothing(start: Start) -> None:
    server = start()
    pids = server.told["pids"]
    assert len(pids) == 2
    assert all(map(is_alive, pids))
    assert server.stop() == OK
    assert not any(map(is_alive, pids))
    assert os.listdir(server.runtime_dir) == []
    log = server.log
    assert "notify READY=1" in log
    assert "notify STOPPING=1" in log
    assert "worker-0 INFO hello from worker 0" in log
    assert "worker-1 INFO hello from worker 1" in log
    assert "ERROR" not in log


def test_stop_ends_open_sessions_and_refuses_new_connections(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    sock = server.login()
    kit.answer_of(sock)
    idle = server.connect()
    assert server.stop() == OK
    assert closed(sock)
    assert closed(idle)
    with pytest.raises(ConnectionRefusedError):
        server.connect()


def test_stop_by_control_socket(start: Start) -> None:
    server = start()
    assert server.ask("stop")["pid"] == server.pid
    assert server.wait() == OK


def test_worker_that_does_not_stop_is_killed_and_the_exit_code_says_so(start: Start, kit: SimpleNamespace) -> None:
    server = start(kit.deaf_run, stop_timeout=0.2)
    assert server.stop() == FAILED
    assert "it did not stop in time" in server.log
    assert not any(map(is_alive, server.told["pids"]))


def test_second_signal_stops_at_once(start: Start, kit: SimpleNamespace) -> None:
    server = start(kit.deaf_run, stop_timeout=1000.0)
    os.kill(server.pid, signal.SIGINT)
    server.until(lambda status: status["phase"] == "stopping")
    assert server.stop() == FAILED


def test_sighup_without_a_configuration_file_is_answered_in_the_log(start: Start) -> None:
    server = start()
    os.kill(server.pid, signal.SIGHUP)
    server.until(lambda _: "reload: this server has no configuration file to read again" in server.log)
    assert server.stop() == OK


def test_sighup_while_the_server_stops_is_ignored_aloud(start: Start, kit: SimpleNamespace) -> None:
    server = start(kit.deaf_run, stop_timeout=1000.0)
    os.kill(server.pid, signal.SIGINT)
    server.until(lambda status: status["phase"] == "stopping")
    os.kill(server.pid, signal.SIGHUP)
    server.until(lambda _: "SIGHUP: ignored: the server is stopping" in server.log)
    assert server.stop() == FAILED


def test_second_server_in_the_same_directory_is_refused_with_the_pid(start: Start) -> None:
    first = start()
    second = start()
    assert second.wait() == FAILED
    assert f"already running (pid {first.pid})" in second.log
    first.ask("status")
    assert first.stop() == OK


def test_portal_in_use_refuses_the_start(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = start(portals=(PortalSpec("127.0.0.1", port),))
        assert server.wait() == FAILED
        assert f"cannot start: portal 127.0.0.1:{port}: Address already in use" in server.log
    assert os.listdir(server.runtime_dir) == []


def test_back_end_that_cannot_prepare_refuses_the_start(start: Start, kit: SimpleNamespace) -> None:
    server = start(plugins=kit.FakePlugins(prepare=PluginError("null", "no medium in sight")))
    assert server.wait() == FAILED
    assert "cannot start: target disk, lun 0: plugin null: no medium in sight" in server.log
    assert server.told == {}


def test_worker_that_cannot_boot_stops_the_first_start_with_its_reason(start: Start, kit: SimpleNamespace) -> None:
    server = start(kit.failing_run)
    assert server.wait() == FAILED
    assert "cannot start: target x, lun 0: the medium is upside down" in server.log
    assert server.told == {}


def test_worker_that_crashes_in_the_first_boot_stops_the_start(start: Start, kit: SimpleNamespace) -> None:
    server = start(kit.crashing_run)
    assert server.wait() == FAILED
    assert "exit code 1" in server.log
    assert "RuntimeError: planted" in server.log, "the traceback of the worker is in the log"


def test_runtime_directory_that_cannot_be_made_refuses_the_start(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    server = start(runtime_dir=str(tmp_path / "file" / "run"))
    assert server.wait() == FAILED
    assert "cannot start: runtime_dir" in server.log


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_both_families_are_served(start: Start, kit: SimpleNamespace, host: str) -> None:
    server = start(portals=(PortalSpec(host, 0),))
    assert kit.answer_of(server.login())["portal"].startswith(f"[{host}]" if ":" in host else host)


# -- placement ---------------------------------------------------------------------------------------------------------


def test_login_reaches_a_worker_unread_with_what_the_first_pdu_says(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    sock = server.login(isid=0x800000000007)
    answer = kit.answer_of(sock)
    assert answer["first"] == 48 + 36
    assert answer["tsih"] == 1
    assert (answer["initiator"], answer["target"], answer["isid"]) == ("host", "disk", 0x800000000007)
    host, port = sock.getsockname()
    assert answer["peer"] == f"{host}:{port}"


def test_sessions_to_one_target_are_spread_over_the_workers(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    answers = [kit.answer_of(server.login(isid=isid)) for isid in range(1, 5)]
    assert sorted(answer["worker"] for answer in answers) == [0, 0, 1, 1]
    assert len({answer["tsih"] for answer in answers}) == 4
    assert {answer["pid"] for answer in answers} == set(server.told["pids"])


def test_same_nexus_goes_to_the_same_worker(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    first = kit.answer_of(server.login(isid=1))
    others = [kit.answer_of(server.login(isid=1)) for _ in range(3)]
    assert {answer["worker"] for answer in others} == {first["worker"]}


def test_exclusive_target_goes_to_its_owner(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    answers = [kit.answer_of(server.login("single", isid=isid)) for isid in range(1, 5)]
    assert {answer["worker"] for answer in answers} == {0}


def test_named_session_goes_to_its_worker_and_an_unknown_one_gets_no_tsih(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    opened = [kit.answer_of(server.login(isid=isid)) for isid in (1, 2)]
    server.until(lambda status: status["sessions"]["open"] == 2)
    for isid, session in enumerate(opened, 1):
        answer = kit.answer_of(server.login(isid=isid, tsih=session["tsih"]))
        assert (answer["tsih"], answer["worker"]) == (session["tsih"], session["worker"])
    assert kit.answer_of(server.login(isid=1, tsih=99))["refused"]
    assert kit.answer_of(server.login(isid=3, tsih=opened[0]["tsih"]))["refused"], "another initiator port's session"


def test_failed_login_frees_its_place(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    assert kit.answer_of(server.login("refuse"))["refused"]
    server.until(lambda status: status["sessions"] == {"login": 0, "open": 0, "closing": 0})


def test_session_limit_refuses_and_frees(start: Start, kit: SimpleNamespace) -> None:
    server = start(max_sessions=2)
    socks = [server.login(isid=isid) for isid in (1, 2)]
    for sock in socks:
        kit.answer_of(sock)
    server.until(lambda status: status["sessions"]["open"] == 2)
    assert kit.answer_of(server.login(isid=3))["tsih"] == 0
    socks[0].close()
    server.until(lambda status: status["sessions"]["open"] == 1)
    assert kit.answer_of(server.login(isid=3))["tsih"] == 3


def test_login_that_never_ends_gives_way_to_a_newer_one(start: Start, kit: SimpleNamespace) -> None:
    server = start(max_pending_logins_per_host=2)
    socks = [server.login("pending", isid=isid) for isid in (1, 2, 3)]
    kit.answer_of(socks[2])
    assert closed(socks[0])
    server.until(lambda status: status["sessions"] == {"login": 2, "open": 0, "closing": 0})


# -- strangers ---------------------------------------------------------------------------------------------------------


def test_garbage_is_closed_and_others_are_served(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    sock = server.connect()
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert closed(sock)
    kit.answer_of(server.login())
    assert server.ask("status")["refused"] == {"no login": 1}


def test_500_idle_connections_do_not_keep_a_login_out(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    idle = [server.connect() for _ in range(500)]
    assert kit.answer_of(server.login())["tsih"] == 1
    status = server.ask("status")
    assert status["callers"] <= 64
    for sock in idle:
        sock.close()
    server.until(lambda status: status["callers"] == 0)
    assert server.stop() == OK


def test_idle_connection_is_closed_at_its_deadline(start: Start) -> None:
    server = start(login_timeout=0.1)
    half = server.connect()
    half.sendall(b"\x43\x87")
    assert closed(half)
    assert server.ask("status")["refused"] == {"timeout": 1}


# -- workers that die --------------------------------------------------------------------------------------------------


def test_killed_worker_is_replaced_and_the_other_sessions_live(start: Start, kit: SimpleNamespace) -> None:
    server = start()
    first, second = (server.login(isid=isid) for isid in (1, 2))
    dead, alive = kit.answer_of(first), kit.answer_of(second)
    os.kill(dead["pid"], signal.SIGKILL)
    assert closed(first)
    server.until(lambda status: all(worker["pid"] != dead["pid"] for worker in status["workers"]))
    again = server.login(isid=1)
    answer = kit.answer_of(again)
    assert answer["pid"] not in server.told["pids"], "the old worker's sessions are no load: the new one is free"
    status = server.until(lambda status: status["sessions"]["open"] == 2)
    assert [worker["replaced"] for worker in status["workers"]] == [int(w == dead["worker"]) for w in (0, 1)]
    second.setblocking(False)
    with pytest.raises(BlockingIOError):
        second.recv(1)
    assert kit.answer_of(server.login(isid=2))["worker"] == alive["worker"]
    assert "1 sessions lost; replacing it" in server.log
    assert server.stop() == OK


def test_login_waits_for_the_replacement_of_its_worker(start: Start, kit: SimpleNamespace) -> None:
    """With the only worker dead, a login is not refused: it is placed when the next one is ready."""
    server = start(workers=1)
    assert closed(server.login("crash"))
    # What is handed to a worker before its death is noticed is lost with it, and the initiator tries again.
    server.until(lambda status: status["workers"][0]["pid"] not in server.told["pids"])
    answers = [kit.answer_of(server.login(isid=isid)) for isid in (2, 3)]
    assert {answer["pid"] for answer in answers}.isdisjoint(server.told["pids"])


def test_worker_that_keeps_dying_is_forked_more_slowly_and_the_server_lives(start: Start, kit: SimpleNamespace) -> None:
    server = start(workers=1)
    for deaths in (1, 2, 3):
        server.login("crash").close()
        # Not "until it is not ready": the first replacement may be ready between two looks.
        server.until(
            lambda status, deaths=deaths: (
                status["workers"][0]["replaced"] == deaths and status["workers"][0]["state"] == "ready"
            )
        )
    assert kit.answer_of(server.login())["worker"] == 0


def test_worker_whose_loop_hangs_is_killed_and_replaced(start: Start, kit: SimpleNamespace) -> None:
    server = start(workers=1, worker_timeout=2.0)  # within which a worker has to start, on a busy machine too
    server.login("hang")
    server.until(lambda status: status["workers"][0]["replaced"] >= 1)
    assert "no sign of life" in server.log
    kit.answer_of(server.login(isid=2))


def test_workers_end_when_the_supervisor_is_killed(start: Start) -> None:
    server = start()
    pids = server.told["pids"]
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            assert select.select([fd], [], [], 20)[0], "an orphan lives on"
            os.close(fd)
    again = start()
    assert again.told["pids"], "a stale pid file and a stale socket stop nobody"
    assert again.stop() == OK


def test_signals_to_the_whole_group_do_not_disturb_the_graceful_stop(start: Start, kit: SimpleNamespace) -> None:
    """systemd sends SIGTERM to every process of the unit, a terminal SIGINT to the group."""
    server = start()
    kit.answer_of(server.login())
    for pid in server.told["pids"]:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert server.stop() == OK


def _links(pid: int) -> list[str]:
    """What the descriptors of a process lead to."""
    links = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return links


def test_worker_holds_no_descriptor_of_the_supervisor(start: Start, kit: SimpleNamespace) -> None:
    ours = set(_links(os.getpid()))  # which the server was forked with, as a program's own is not
    server = start()
    idle = server.connect()
    server.until(lambda status: status["callers"] == 1)
    first = kit.answer_of(server.login())
    os.kill(first["pid"], signal.SIGKILL)
    status = server.until(
        lambda status: (
            [worker["state"] for worker in status["workers"]] == ["ready"] * 2
            and first["pid"] not in [worker["pid"] for worker in status["workers"]]
        )
    )
    for worker in status["workers"]:
        links = [link for link in _links(worker["pid"]) if link not in ours]
        assert sum(link.startswith("socket:") for link in links) <= 1 + worker["sessions"], "its channel, its sessions"
        assert not any("pidfd" in link or link.endswith(".pid") for link in links)
    idle.close()
    server.until(lambda status: status["callers"] == 0)


def test_record_of_a_killed_worker_does_not_hang_the_logs_of_the_next(start: Start, kit: SimpleNamespace) -> None:
    server = start(workers=1)
    for round_ in range(3):
        server.login("crash", isid=round_ + 1).close()
        server.until(lambda status, round_=round_: status["workers"][0]["replaced"] == round_ + 1)
    status = server.until(lambda status: status["workers"][0]["state"] == "ready")
    assert server.stop() == OK
    assert f"worker-0 INFO hello from worker 0, pid {status['workers'][0]['pid']}" in server.log


def test_what_came_in_a_long_turn_is_heard_before_anybody_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload prepares media in the loop; logins and answers of workers lie in their sockets meanwhile."""
    clock, told = [0.0], []

    def prepare(_mask: int, _now: float) -> None:
        told.append("reload")
        clock[0] += 30.0

    turns = [
        [(SimpleNamespace(fd=1, data=prepare), 1)],
        [(SimpleNamespace(fd=2, data=lambda *_: told.append("login")), 1)],
    ]
    expiring = SimpleNamespace(expire=lambda now: told.append("expire"))
    quiet = SimpleNamespace(expire=lambda now: None)
    loop = SimpleNamespace(
        selector=SimpleNamespace(select=lambda patience: turns.pop(0)),
        fleet=SimpleNamespace(owns=lambda fd: False, tick=lambda now, timeout: None),
        doorman=expiring, reports=quiet, arbiter=quiet, reloader=quiet,
        spec=SimpleNamespace(worker_timeout=30.0),
        _patience=lambda now: 0.0, _stop_at=None, _next_tick=1000.0, _away=False,
    )  # fmt: skip
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for _ in range(2):
        Supervisor._turn(loop)  # type: ignore[arg-type]
    assert told == ["reload", "login", "expire"]
