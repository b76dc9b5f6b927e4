"""A real supervisor and fake workers that ask, apply and answer: who hears what when, and what a crash leaves."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.daemon.arbiter import places
from iscsid.daemon.supervisor import FAILED, OK
from iscsid.scsi.ports import PortGroup
from iscsid.shared import store
from iscsid.shared.authority import Place
from iscsid.specs import LunSpec, ServerSpec, TargetSpec

Start = Callable[..., Any]

RESERVE, RELEASE = "160000000000", "170000000000"
GOOD, CHECK_CONDITION, CONFLICT = 0x00, 0x02, 0x18
REGISTER, PR_RESERVE = "5f000000000000001800", "5f010100000000001800"  # PERSISTENT RESERVE OUT; write exclusive


def keys(reservation_key: int, service_action_key: int = 0, aptpl: bool = False) -> str:
    """The parameter list of PERSISTENT RESERVE OUT (SPC-4 table 215), in hexadecimal."""
    flags = bytes([0, 0, 0, 0, aptpl, 0, 0, 0])
    return (reservation_key.to_bytes(8, "big") + service_action_key.to_bytes(8, "big") + flags).hex()


class Initiators:
    """Two sessions in two workers."""

    def __init__(self, server: Any, kit: SimpleNamespace) -> None:
        self.server = server
        self.kit = kit
        self.socks = [server.login(isid=1), server.login(isid=2)]
        self.homes = [kit.answer_of(sock) for sock in self.socks]
        assert {home["worker"] for home in self.homes} == {0, 1}

    def ask(self, which: int, cdb: str, data: str = "") -> dict[str, Any]:
        self.kit.order(self.socks[which], cdb=cdb, data=data)
        answer: dict[str, Any] = self.kit.answer_of(self.socks[which])
        return answer

    def told(self, which: int) -> list[dict[str, Any]]:
        """The updates that the worker of this session has had."""
        return told(self.socks[which], self.kit)


def told(sock: socket.socket, kit: SimpleNamespace) -> list[dict[str, Any]]:
    kit.order(sock, told=True)
    updates: list[dict[str, Any]] = kit.answer_of(sock)["told"]
    return updates


@pytest.fixture
def two(start: Start, kit: SimpleNamespace) -> Initiators:
    return Initiators(start(), kit)


def test_places_lists_each_unit_once_with_its_targets_and_workers() -> None:
    targets = (
        TargetSpec("disk", (LunSpec(0, "null", serial="A"), LunSpec(1, "null", serial="B"))),
        TargetSpec("path", (LunSpec(5, "null", serial="A"),)),
        TargetSpec("single", (LunSpec(0, "lonely", serial="C"),)),
        TargetSpec("mixed", (LunSpec(0, "lonely", serial="D"),)),
        TargetSpec("other", (LunSpec(0, "lonely", serial="D"),)),
    )
    one = (PortGroup(1),)
    assert places(ServerSpec(targets=targets), {"single": 1, "mixed": 0, "other": 1}) == {
        "A": Place(frozenset({"disk", "path"}), None, {"disk": one, "path": one}),
        "B": Place(frozenset({"disk"}), None, {"disk": one}),
        "C": Place(frozenset({"single"}), frozenset({1}), {"single": one}),
        "D": Place(frozenset({"mixed", "other"}), frozenset({0, 1}), {"mixed": one, "other": one}),
    }


@pytest.mark.process
def test_change_reaches_both_workers_before_the_answer(two: Initiators) -> None:
    assert two.ask(0, RESERVE)["status"] == GOOD
    for which in (0, 1):
        (update,) = two.told(which)
        assert (update["unit"], update["generation"]) == ("SERIAL", 1)
        assert json.loads(update["state"])["reservations"]["spc2_holder"] == ["host", 1, "disk", 1]
    assert two.ask(1, RESERVE)["status"] == CONFLICT
    assert two.ask(0, RELEASE)["status"] == GOOD
    assert two.ask(1, RESERVE)["status"] == GOOD
    assert [update["generation"] for update in two.told(0)] == [1, 2, 3]


@pytest.mark.process
def test_stopped_worker_is_killed_at_the_deadline_and_the_answer_goes_out(
    start: Start, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iscsid.shared.barrier.DEADLINE", 2.0)  # the other one is to keep it
    two = Initiators(start(), kit)
    os.kill(two.homes[1]["pid"], signal.SIGSTOP)
    assert two.ask(0, RESERVE)["status"] == GOOD
    assert "killing it: it has not applied command 1600 on unit SERIAL" in two.server.log
    two.server.until(lambda status: all(row["pid"] != two.homes[1]["pid"] for row in status["workers"]))
    assert two.server.stop() == OK


@pytest.mark.process
def test_new_worker_has_the_state_before_its_first_session(two: Initiators) -> None:
    assert two.ask(0, RESERVE)["status"] == GOOD
    os.kill(two.homes[1]["pid"], signal.SIGKILL)
    assert two.socks[1].recv(1) == b""
    two.server.until(lambda status: all(row["pid"] != two.homes[1]["pid"] for row in status["workers"]))
    sock = two.server.login(isid=3)
    home = two.kit.answer_of(sock)
    assert home["worker"] == two.homes[1]["worker"]
    assert home["pid"] != two.homes[1]["pid"]
    (update,) = told(sock, two.kit)
    assert update["generation"] == 1
    assert json.loads(update["state"])["reservations"]["spc2_holder"] == ["host", 1, "disk", 1]


@pytest.mark.process
def test_reservation_goes_with_its_session_and_with_its_worker(two: Initiators) -> None:
    assert two.ask(0, RESERVE)["status"] == GOOD
    two.socks[0].close()
    two.server.until(lambda status: status["sessions"]["open"] == 1)
    assert two.ask(1, RESERVE)["status"] == GOOD
    os.kill(two.homes[1]["pid"], signal.SIGKILL)
    assert two.socks[1].recv(1) == b""
    two.server.until(lambda status: all(row["pid"] != two.homes[1]["pid"] for row in status["workers"]))
    sock = two.server.login(isid=3)
    two.kit.answer_of(sock)
    two.kit.order(sock, cdb=RESERVE)
    assert two.kit.answer_of(sock)["status"] == GOOD


@pytest.mark.process
def test_reset_aborts_in_both_workers_before_its_answer(two: Initiators) -> None:
    assert two.ask(0, RESERVE)["status"] == GOOD
    two.kit.order(two.socks[1], reset=5)
    assert two.kit.answer_of(two.socks[1])["status"] == GOOD
    for which, isid in ((0, 1), (1, 2)):
        update = two.told(which)[-1]
        assert update["aborts"] == '"all"'
        assert json.loads(update["state"])["reservations"]["spc2_holder"] is None
        assert json.loads(update["attentions"]) == [[["host", isid, "disk", 1], "BUS_DEVICE_RESET_FUNCTION"]]


@pytest.mark.process
def test_cold_reset_ends_every_session_of_the_target(two: Initiators) -> None:
    two.kit.order(two.socks[0], reset=7, unit="")
    assert two.kit.answer_of(two.socks[0])["status"] == GOOD
    for sock in two.socks:
        assert sock.recv(1) == b""
    two.server.until(lambda status: not any(status["sessions"].values()))


@pytest.mark.process
def test_worker_that_asks_nonsense_is_killed_alone(two: Initiators) -> None:
    two.kit.order(two.socks[0], cdb="no hexadecimal")
    assert two.socks[0].recv(1) == b""
    assert two.ask(1, RESERVE)["status"] == GOOD
    assert "killing it: ask 1:" in two.server.log


# -- what outlives the server ------------------------------------------------------------------------------------------


def kill(server: Any) -> None:
    """SIGKILL for the supervisor, and for its workers what that comes to."""
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    for pid in server.told["pids"]:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        assert select.select([pidfd], [], [], 20.0)[0], "a worker outlives its supervisor"
        os.close(pidfd)


@pytest.mark.process
def test_reservation_with_aptpl_outlives_a_killed_supervisor(start: Start, kit: SimpleNamespace) -> None:
    first = Initiators(start(), kit)
    assert first.ask(0, REGISTER, keys(0, 7, aptpl=True))["status"] == GOOD
    assert first.ask(0, PR_RESERVE, keys(7))["status"] == GOOD
    kill(first.server)
    second = Initiators(start(), kit)
    for which in (0, 1):
        (update,) = second.told(which)
        reservations = json.loads(update["state"])["reservations"]
        assert reservations["registrations"] == [["host", 1, "disk", 1, 7]]
        assert reservations["holder"] == ["host", 1, "disk", 1]
        assert reservations["type"] == 1
    assert second.ask(1, PR_RESERVE, keys(8))["status"] == CONFLICT
    assert second.ask(0, REGISTER, keys(7, 0))["status"] == GOOD
    assert second.server.stop() == OK
    third = Initiators(start(), kit)
    assert third.told(0) == [], "what was given up is forgotten"


@pytest.mark.process
def test_reservation_without_aptpl_ends_with_the_server(start: Start, kit: SimpleNamespace, tmp_path: Path) -> None:
    first = Initiators(start(), kit)
    assert first.ask(0, REGISTER, keys(0, 7))["status"] == GOOD
    kill(first.server)
    assert not (tmp_path / "state").exists()
    assert Initiators(start(), kit).told(0) == []


@pytest.mark.process
def test_register_with_aptpl_fails_and_changes_nothing_where_it_cannot_be_kept(
    start: Start, kit: SimpleNamespace, tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("in the way")
    two = Initiators(start(), kit)
    answer = two.ask(0, REGISTER, keys(0, 7, aptpl=True))
    assert (answer["status"], answer["reason"]) == (CHECK_CONDITION, "INTERNAL_TARGET_FAILURE")
    assert two.told(1) == []
    assert two.ask(0, RESERVE)["status"] == GOOD


@pytest.mark.process
@pytest.mark.parametrize("kept", ["nonsense", {"version": 1, "unit": "SERIAL", "kept": {"reservations": 1}}])
def test_state_that_cannot_be_read_refuses_the_start(start: Start, tmp_path: Path, kept: Any) -> None:
    folder = tmp_path / "state" / "reservations"
    folder.mkdir(parents=True)
    (folder / store.file_name("SERIAL")).write_text(kept if isinstance(kept, str) else json.dumps(kept))
    server = start()
    assert server.wait() == FAILED
    assert "cannot start: reservations of unit SERIAL" in server.log
    assert "remove the file to start without them" in server.log
