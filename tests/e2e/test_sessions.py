"""Several sessions, several workers, and the death of one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from e2e_initiator import Closed, Initiator, steady
from e2e_server import Server, run_qemu_io, wait_until

StartServer = Callable[..., Server]

ONE, TWO = "iqn.2026-11.org.iscsid.e2e:one", "iqn.2026-11.org.iscsid.e2e:two"


def test_two_sessions_of_one_disk_run_in_two_workers_and_see_each_others_data(
    start: StartServer, ram: list[dict[str, Any]]
) -> None:
    server = start(ram, workers=2)
    with Initiator(server.address, ONE) as one, Initiator(server.address, TWO) as two:
        places = {server.worker_of(name) for name in (ONE, TWO)}
        assert places == {0, 1}
        for lba, (writer, reader) in enumerate([(one, two), (two, one)] * 4):
            data = os.urandom(4096)
            writer.write(lba * 8, data)
            assert reader.read(lba * 8, 8) == data
        one.logout()
        two.logout()
    wait_until(lambda: not server.sessions(), "both sessions are over")


def moved(initiator: Initiator, page: int) -> int:
    """The total bytes processed that LOG SENSE tells of reads (03h) or writes (02h)."""
    status, data = initiator.command(bytes.fromhex(f"4d00{0x40 | page:02x}0000 0000 0100 00"), expect=256)
    assert status == 0 and data[4:6] == b"\0\5"
    return int.from_bytes(data[8:16], "big")


def test_log_pages_tell_what_the_sessions_of_all_workers_have_moved(
    start: StartServer, ram: list[dict[str, Any]]
) -> None:
    server = start(ram, workers=2)
    with Initiator(server.address, ONE) as one, Initiator(server.address, TWO) as two:
        assert {server.worker_of(name) for name in (ONE, TWO)} == {0, 1}
        for initiator in (one, two):
            initiator.write(0, bytes(4096))
            initiator.read(0, 4)
        for initiator in (one, two):
            wait_until(lambda asked=initiator: moved(asked, 0x02) == 8192, "written bytes of both")
            wait_until(lambda asked=initiator: moved(asked, 0x03) == 4096, "read bytes of both")


@pytest.mark.judge("qemu-io")
@pytest.mark.parametrize("backend", ["ram", "file"])
def test_foreign_sessions_see_what_ours_has_written_and_flushed(
    start: StartServer, tmp_path: Any, backend: str
) -> None:
    lun: dict[str, Any] = {"backend": backend, "size": "64 MiB"}
    if backend == "file":
        lun["path"] = tmp_path / "disk.img"
    server = start([lun], workers=4)
    with Initiator(server.address, ONE) as ours:
        ours.write(2048, b"\x5a" * 65536)
        ours.flush()
        for _ in range(4):  # spread over the other workers
            run_qemu_io(server.url(), "read -P 0x5a 1M 64k")
        run_qemu_io(server.url(), "write -P 0xa5 1M 64k", "flush")
        assert ours.read(2048, 128) == b"\xa5" * 65536


def test_status_and_sessions_commands_show_who_is_there(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram, workers=2)
    with Initiator(server.address, ONE) as one:
        one.write(0, b"\1" * 4096)
        assert server.worker_of(ONE) in (0, 1)
        status = json.loads(server.ask_command("status", "--json").stdout)
        assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]
        assert all(psutil.pid_exists(worker["pid"]) for worker in status["workers"])
        assert server.pid == status["pid"] and server.pid not in server.workers()
        (session,) = json.loads(server.ask_command("sessions", "--json").stdout)["sessions"]
        assert session["initiator"] == ONE
        assert session["written_bytes"] == 4096
        assert ONE in server.ask_command("sessions").stdout


def test_new_login_of_the_same_initiator_port_ends_the_old_session(
    start: StartServer, ram: list[dict[str, Any]]
) -> None:
    """RFC 7143 6.3.5, session reinstatement."""
    server = start(ram, workers=2)
    with Initiator(server.address, ONE) as old, Initiator(server.address, ONE, login=False) as new:
        old.write(0, b"\7" * 512)
        new.isid = old.isid
        new.login()
        old.wait_closed()
        assert new.read(0, 1) == b"\7" * 512
        wait_until(lambda: len(server.sessions()) == 1, "one session is left")


def test_killed_worker_is_replaced_and_nobody_else_notices(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram, workers=2)
    with Initiator(server.address, ONE) as victim:
        data = os.urandom(65536)
        victim.write(8, data)
        index = server.worker_of(ONE)
        with steady(server.address) as good:
            other = server.worker_of(good.initiator.name)
            assert other != index
            before = server.workers()
            server.remember_children()
            for _ in range(32):  # commands in flight, whose answers nobody has read
                victim.send(victim.command_pdu(bytes.fromhex("88000000000000000008000000800000"), expect=65536))
            os.kill(before[index], signal.SIGKILL)
            victim.wait_closed()
            wait_until(
                lambda: (
                    server.status()["workers"][index]["state"] == "ready" and server.workers()[index] != before[index]
                ),
                "the worker is replaced",
            )
            with Initiator(server.address, ONE) as again:
                assert again.read(8, 128) == data, "the RAM disk has lost its data"
                again.write(8, b"\0" * 512)
                assert server.worker_of(ONE) == index
        after = server.status()["workers"]
        assert after[index]["replaced"] == 1
        assert after[other]["pid"] == before[other] and after[other]["replaced"] == 0
    assert f"worker {index}" in server.log.read_text()


@pytest.mark.judge("iscsi-perf")
def test_foreign_load_goes_on_while_the_other_worker_is_killed_again_and_again(
    start: StartServer, ram: list[dict[str, Any]]
) -> None:
    server = start(ram, workers=2)
    command = ["iscsi-perf", "-i", ONE, "-m", "32", "-b", "8", "-t", "4", "-r", "-x", "0", server.url()]
    load = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        index = server.worker_of(ONE)
        for _ in range(2):
            server.remember_children()
            pid = wait_until(lambda: server.workers()[1 - index], "the other worker lives")
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda pid=pid: server.workers()[1 - index] not in (None, pid), "it is replaced")
        output, _ = load.communicate(timeout=60)
    finally:
        if load.poll() is None:
            load.kill()
            load.communicate()
    assert load.returncode == 0, output.decode()
    assert "finished." in output.decode()


@pytest.mark.judge("iscsi-perf")
def test_foreign_initiator_logs_in_again_after_its_worker_was_killed(
    start: StartServer, ram: list[dict[str, Any]]
) -> None:
    server = start(ram, workers=2)
    command = ["iscsi-perf", "-i", ONE, "-m", "8", "-b", "8", "-t", "8", "-r", server.url()]
    load = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        index = server.worker_of(ONE)
        server.remember_children()
        pid = server.workers()[index]
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.workers()[index] not in (None, pid), "the worker is replaced")
        server.worker_of(ONE)
        commands = wait_until(lambda: [x["commands"] for x in server.sessions() if x["initiator"] == ONE], "figures")[0]
        wait_until(lambda: any(x["commands"] > commands for x in server.sessions()), "it reads on")
        # Not to its end: the unit attention of a new session makes it miscount its reads, and wait for ever.
    finally:
        if load.poll() is None:
            load.kill()
            load.communicate()


def test_killed_supervisor_takes_its_workers_along(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram, workers=2)
    server.expected_status = -signal.SIGKILL
    with Initiator(server.address, ONE) as one:
        one.write(0, b"\0" * 512)
        server.remember_children()
        os.kill(server.pid, signal.SIGKILL)
        one.wait_closed()


def test_sessions_are_spread_over_all_workers(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram, workers=4)
    clients = [Initiator(server.address, f"{ONE}-{number}") for number in range(8)]
    try:
        wait_until(lambda: len([x for x in server.sessions() if x["state"] == "open"]) == 8, "eight sessions")
        assert [worker["sessions"] for worker in server.status()["workers"]] == [2, 2, 2, 2]
    finally:
        for client in clients:
            client.close()


def test_dead_worker_costs_a_busy_client_its_session_only_once(start: StartServer, ram: list[dict[str, Any]]) -> None:
    """Log in, work, be thrown out, and again: the service comes back every time."""
    server = start(ram, workers=1)
    for number in range(3):
        with Initiator(server.address, ONE) as client:
            client.write(number, bytes([number]) * 512)
            (pid,) = server.workers()
            assert pid is not None
            server.remember_children()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(Closed):
                deadline = time.monotonic() + 10
                while time.monotonic() < deadline:
                    client.read(0, 1)
        wait_until(lambda pid=pid: server.workers()[0] not in (None, pid), "the worker is replaced")
    with Initiator(server.address, ONE) as client:
        assert [client.read(number, 1) for number in range(3)] == [bytes([number]) * 512 for number in range(3)]
