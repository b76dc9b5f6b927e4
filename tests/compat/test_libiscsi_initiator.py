"""The initiator half of libiscsi(3): each function, variable and return value, with a host that is not there.

tests/e2e/test_libiscsi_initiator.py has the same against real targets.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.compat import libiscsi, libiscsi_initiator
from iscsid.compat.initiator_settings import DEFAULTS, Settings
from iscsid.compat.libiscsi import (
    ISCSI_NOP_OUT,
    ISCSI_SCSI_CMD,
    get_target_info,
    ii_initiator_init,
    initiator_abort,
    initiator_cmd_t,
    initiator_command,
    initiator_enqueue,
    initiator_set_target_name,
    initiator_target_t,
    iscsi_initiator_discover,
    iscsi_initiator_discovery,
    iscsi_initiator_get_max_targets,
    iscsi_initiator_get_targets,
    iscsi_initiator_getvar,
    iscsi_initiator_info,
    iscsi_initiator_set_defaults,
    iscsi_initiator_setvar,
    iscsi_initiator_shutdown,
    iscsi_initiator_start,
    iscsi_initiator_t,
    iscsi_nop_out_args_t,
    iscsi_scsi_cmd_args_t,
    strv_t,
)
from iscsid.errors import ConnectionFailed, InitiatorError
from iscsid.initiator import TargetPortal, TargetRecord
from iscsid.initiator.task import Task

ONE, TWO = "iqn.2026-11.org.example:one", "iqn.2026-11.org.example:two"
RECORDS = [
    TargetRecord(ONE, (TargetPortal("192.0.2.1", 3260, 1), TargetPortal("192.0.2.2", 3261, 2))),
    TargetRecord(TWO, (TargetPortal("192.0.2.1", 3260, 1),)),
]


class FakeClient:
    """A session that answers every command with GOOD and ``answer``, when ``go_on`` is set."""

    options = SimpleNamespace(timeout=30.0)

    def __init__(self, name: str) -> None:
        self.name = name
        self.session = SimpleNamespace(ready=True)
        self.closed = False
        self.tasks: list[Task] = []
        self.requests: list[Any] = []
        self.answer, self.status, self.sense = b"", 0, b""
        self.failure: InitiatorError | None = None
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def run(self, task: Task) -> Task:
        self.tasks.append(task)
        self.entered.set()
        assert self.go_on.wait(10)
        if self.failure is not None:
            raise self.failure
        if len(task.buffer):
            task.buffer[: len(self.answer)] = self.answer[: len(task.buffer)]
        task.received, task.status, task.sense = min(len(self.answer), len(task.buffer)), self.status, self.sense
        task.end()
        return task

    def ask(self, request: Any) -> None:
        self.requests.append(request)

    def wait(self, request: Any) -> Any:
        request.response = 0
        self.go_on.set()
        return request

    def close(self) -> None:
        self.closed = True


class Host:
    """What there is to discover and to log in to."""

    def __init__(self) -> None:
        self.records: list[TargetRecord] | InitiatorError = RECORDS
        self.refused: InitiatorError | None = None
        self.asked = 0
        self.clients: list[FakeClient] = []
        self.portals: list[tuple[TargetPortal, ...]] = []

    def find_targets(self, _settings: Settings) -> list[TargetRecord]:
        self.asked += 1
        if isinstance(self.records, InitiatorError):
            raise self.records
        return self.records

    def log_in(self, _settings: Settings, name: str, portals: tuple[TargetPortal, ...]) -> Any:
        self.portals.append(portals)
        if self.refused is not None:
            raise self.refused
        self.clients.append(FakeClient(name))
        return self.clients[-1], portals[0]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(libiscsi_initiator, "find_targets", host.find_targets)
    monkeypatch.setattr(libiscsi_initiator, "log_in", host.log_in)
    return host


@pytest.fixture
def ini() -> Iterator[iscsi_initiator_t]:
    made = iscsi_initiator_t()
    assert iscsi_initiator_set_defaults(made) == 1
    yield made
    if libiscsi_initiator._started is not None:
        iscsi_initiator_shutdown()


@pytest.fixture
def started(ini: iscsi_initiator_t, host: Host) -> Host:
    assert iscsi_initiator_start(ini) == 0
    return host


def info_of(slot: int) -> initiator_target_t:
    info = initiator_target_t()
    get_target_info(slot, info)
    return info


# -- variables ---------------------------------------------------------------------------------------------------------


def test_every_name_of_the_library_is_there() -> None:
    assert set(libiscsi.__all__) >= {
        *(f"iscsi_initiator_{name}" for name in ("set_defaults", "start", "info", "shutdown", "discover", "discovery")),
        *(f"iscsi_initiator_{name}" for name in ("setvar", "getvar", "get_targets", "get_max_targets")),
        *("initiator_set_target_name", "get_target_info", "initiator_command", "initiator_enqueue", "initiator_abort"),
        *("ii_initiator_init", "iscsi_initiator_t", "initiator_cmd_t", "initiator_target_t", "strv_t"),
    }
    assert all(hasattr(libiscsi, name) for name in libiscsi.__all__)


@pytest.mark.parametrize(("name", "value"), DEFAULTS.items())
def test_set_defaults_sets_six_variables(ini: iscsi_initiator_t, name: str, value: str) -> None:
    assert iscsi_initiator_getvar(ini, name) == value
    iscsi_initiator_setvar(ini, name, "other")
    iscsi_initiator_setvar(ini, "user", "joe")
    assert iscsi_initiator_set_defaults(ini) == 1
    assert iscsi_initiator_getvar(ini, name) == value
    assert iscsi_initiator_getvar(ini, "user") is None


@pytest.mark.parametrize("name", ["user", "target instance", "debug", "no such variable"])
def test_variables_without_a_default_are_null_until_they_are_set(ini: iscsi_initiator_t, name: str) -> None:
    assert iscsi_initiator_getvar(ini, name) is None
    assert iscsi_initiator_setvar(ini, name, "1") == 1
    assert iscsi_initiator_setvar(ini, name, "2") == 1
    assert iscsi_initiator_getvar(ini, name) == "2"


def test_a_variable_that_is_null_is_an_error_of_the_program(ini: iscsi_initiator_t) -> None:
    with pytest.raises(TypeError):
        iscsi_initiator_setvar(ini, "user", None)  # type: ignore[arg-type]


# -- life --------------------------------------------------------------------------------------------------------------


def test_start_makes_16_slots_for_the_host_and_asks_nobody(ini: iscsi_initiator_t, host: Host) -> None:
    iscsi_initiator_setvar(ini, "target hostname", "store.example")
    iscsi_initiator_setvar(ini, "target port", "3261")
    assert iscsi_initiator_start(ini) == 0
    assert host.asked == 0
    assert iscsi_initiator_get_max_targets() == 16
    for slot in range(16):
        assert (info_of(slot).name, info_of(slot).port, info_of(slot).has_session) == ("store.example", 3261, 0)
    assert info_of(16) == initiator_target_t()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target port", "none"),
        ("digest type", "md5"),
        ("auth type", "chap"),  # and no user: the original crashed
        ("mutual auth", "chap"),
        ("target instance", "first"),
    ],
)
def test_start_with_a_variable_that_makes_no_sense_is_minus_1(
    ini: iscsi_initiator_t, name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert iscsi_initiator_setvar(ini, name, value) == 1
    assert iscsi_initiator_start(ini) == -1
    assert capsys.readouterr().err.startswith("iscsi_initiator_start: ")
    assert iscsi_initiator_shutdown() == -1


def test_start_twice_is_minus_1_and_after_a_shutdown_0(ini: iscsi_initiator_t, host: Host) -> None:
    assert iscsi_initiator_start(ini) == 0
    assert iscsi_initiator_start(ini) == -1
    assert iscsi_initiator_shutdown() == 0
    assert iscsi_initiator_start(ini) == 0


def test_shutdown_takes_a_handle_or_none_and_logs_out(started: Host, ini: iscsi_initiator_t) -> None:
    assert iscsi_initiator_discover("", 0, 0) == 0
    assert iscsi_initiator_discover("", 5, 0) == 0
    assert iscsi_initiator_shutdown(ini) == 0
    assert [client.closed for client in started.clients] == [True, True]
    assert iscsi_initiator_shutdown() == -1
    with pytest.raises(TypeError):
        iscsi_initiator_shutdown(ini, ini)


def test_nothing_works_before_start() -> None:
    assert iscsi_initiator_discover("", 0, 0) == -1
    assert iscsi_initiator_get_targets(0, []) == -1
    assert initiator_set_target_name(0, ONE) == -1
    assert initiator_command(initiator_cmd_t()) == -1
    assert initiator_enqueue(initiator_cmd_t()) == -1
    info = initiator_target_t(name="before")
    get_target_info(0, info)
    assert info.name == "before"


def test_older_entry_point_starts_with_numbers(host: Host, ini: iscsi_initiator_t) -> None:
    assert ii_initiator_init("store.example", 3261, socket.AF_INET, "", "0", 0, 0, 1) == 0
    assert info_of(0).name == "store.example"
    assert libiscsi_initiator._started is not None
    settings = libiscsi_initiator._started.settings
    assert (settings.family, settings.options["header_digest"]) == (socket.AF_INET, True)
    iscsi_initiator_shutdown()
    assert ii_initiator_init("store.example", 3261, socket.AF_UNSPEC, "", "0", 1, 0, 0) == -1


# -- discovery and login -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["discover", "discovery"])
@pytest.mark.parametrize("with_handle", [False, True])
def test_discover_leaves_the_slot_logged_in_to_the_first_target(
    started: Host, ini: iscsi_initiator_t, name: str, with_handle: bool
) -> None:
    function: Callable[..., int] = getattr(libiscsi, f"iscsi_initiator_{name}")
    handle = (ini,) if with_handle else ()
    assert function(*handle, "whatever", 3, 0) == 0
    info = info_of(3)
    assert (info.TargetName, info.ip, info.port, info.has_session) == (ONE, "192.0.2.1", 3260, 1)
    assert info_of(2).has_session == 0
    targets = strv_t()
    assert iscsi_initiator_get_targets(3, targets) == 1
    assert targets.c == 6
    assert targets.v == [ONE, "192.0.2.1:3260,1", ONE, "192.0.2.2:3261,2", TWO, "192.0.2.1:3260,1"]
    assert iscsi_initiator_get_targets(3, targets) == 1
    assert targets.c == 12  # appended
    assert iscsi_initiator_get_targets(2, targets) == -1


def test_discover_takes_the_target_that_was_named_or_that_of_the_instance(started: Host) -> None:
    assert initiator_set_target_name(1, TWO.upper()) == 0
    assert info_of(1).iqnwanted == TWO
    assert iscsi_initiator_discover("", 1, 0) == 0
    assert (info_of(1).TargetName, started.portals) == (TWO, [RECORDS[1].portals])
    iscsi_initiator_shutdown()
    ini = iscsi_initiator_t()
    iscsi_initiator_set_defaults(ini)
    iscsi_initiator_setvar(ini, "target instance", "1")
    assert iscsi_initiator_start(ini) == 0
    assert iscsi_initiator_discover("", 0, 0) == 0
    assert info_of(0).TargetName == TWO


def test_a_named_target_is_logged_in_to_where_discovery_tells_nothing(started: Host) -> None:
    assert initiator_set_target_name(0, TWO) == 0
    started.records = ConnectionFailed("discovery needs another account")
    assert iscsi_initiator_discover("", 0, 0) == 0
    assert started.portals == [(TargetPortal("localhost", 3260, 1),)]


@pytest.mark.parametrize("slot", [-1, 16, 1 << 40])
def test_slots_out_of_range_are_minus_1(started: Host, slot: int) -> None:
    assert iscsi_initiator_discover("", slot, 0) == -1
    assert initiator_set_target_name(slot, ONE) == -1
    assert iscsi_initiator_get_targets(slot, []) == -1
    assert initiator_command(initiator_cmd_t(isid=slot)) == -1


def test_all_16_slots_may_be_logged_in(started: Host) -> None:
    assert [iscsi_initiator_discover("", slot, 0) for slot in range(16)] == [0] * 16
    assert len(started.clients) == 16


def test_what_hung_is_minus_1_with_a_reason(started: Host, capsys: pytest.CaptureFixture[str]) -> None:
    started.records = ConnectionFailed("localhost:3260: Connection refused")
    assert iscsi_initiator_discover("", 0, 0) == -1
    started.records = []
    assert iscsi_initiator_discover("", 0, 0) == -1
    started.records = RECORDS
    started.refused = ConnectionFailed("the login takes too long")
    assert iscsi_initiator_discover("", 0, 0) == -1
    assert initiator_set_target_name(0, "no name") == -1
    reasons = capsys.readouterr().err
    assert all(
        words in reasons for words in ("Connection refused", "tells of 0", "takes too long", "not a target name")
    )
    assert info_of(0).has_session == 0
    started.refused = None
    assert iscsi_initiator_discover("", 0, 0) == 0


def test_discover_of_a_slot_that_is_logged_in_asks_for_a_sign_of_life(started: Host) -> None:
    assert iscsi_initiator_discover("", 0, 0) == 0
    assert iscsi_initiator_discover("", 0, 3) == 0
    assert started.asked == 1
    assert len(started.clients) == 1
    assert started.clients[0].tasks[0].cdb == bytes(16)  # TEST UNIT READY
    started.clients[0].failure = ConnectionFailed("gone")
    assert iscsi_initiator_discover("", 0, 0) == -1


def test_wrong_number_of_arguments_is_an_error_of_the_program(ini: iscsi_initiator_t) -> None:
    with pytest.raises(TypeError):
        iscsi_initiator_discovery(ini, "", 0)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_info_is_a_table_of_16_slots(started: Host, ini: iscsi_initiator_t) -> None:
    assert iscsi_initiator_discover("", 1, 0) == 0
    assert iscsi_initiator_discover("", 2, 0) == 0
    started.clients[1].session.ready = False
    buffer = bytearray(4096)
    length = iscsi_initiator_info(buffer, len(buffer), 0)
    text = buffer[:length].decode()
    assert buffer[length] == 0
    lines = text.splitlines()
    assert len(lines) == 18
    assert lines[0] == f"  TID {'TargetName':>30} {'TargetAddress':>25}"
    assert lines[1] == ""
    assert lines[3].split() == ["1", ONE, "192.0.2.1:3260", "(Normal", "session)"]
    assert lines[4].endswith("(connecting)")
    assert lines[17].split() == ["15", "(No", "Session)"]
    other = bytearray(4096)
    assert iscsi_initiator_info(ini, other, len(other), 10) == length + 10
    assert other[10 : 10 + length] == buffer[:length]


def test_info_is_cut_to_the_buffer_and_tells_its_whole_length(started: Host) -> None:
    whole = iscsi_initiator_info(bytearray(4096), 4096, 0)
    buffer = bytearray(b"x" * 20)
    assert iscsi_initiator_info(buffer, 20, 0) == whole
    assert buffer[19] == 0
    assert len(buffer) == 20
    assert iscsi_initiator_info(buffer, 0, 0) == whole
    assert iscsi_initiator_info(buffer, 20, 30) == whole + 30
    assert len(buffer) == 20


# -- commands ----------------------------------------------------------------------------------------------------------


def test_command_reads_and_logs_in_first(started: Host) -> None:
    args = iscsi_scsi_cmd_args_t(cdb=b"\x12\0\0\0\x24\0", input=1, trans_len=36, lun=1)
    cmd = initiator_cmd_t(type=ISCSI_SCSI_CMD, ptr=args, isid=4)
    assert iscsi_initiator_discover("", 4, 0) == 0
    client = started.clients[0]
    client.answer = os.urandom(30)
    assert initiator_command(cmd) == 0
    assert (cmd.status, args.status, args.bytes_recv) == (0, 0, 30)
    assert args.recv_data is not None
    assert args.recv_data[:30] == client.answer
    own = bytearray(100)
    args = iscsi_scsi_cmd_args_t(cdb=b"\x12\0\0\0\x24\0", input=1, trans_len=36, recv_data=own)
    assert initiator_command(initiator_cmd_t(ptr=args, isid=4)) == 0
    assert own[:30] == client.answer
    assert initiator_command(initiator_cmd_t(ptr=args, isid=9)) == 0
    assert len(started.clients) == 2


def test_command_writes_and_has_the_sense_data(started: Host) -> None:
    assert iscsi_initiator_discover("", 0, 0) == 0
    client = started.clients[0]
    args = iscsi_scsi_cmd_args_t(cdb=bytes([0x2A, *bytes(7), 1, 0]), output=1, trans_len=512, send_data=b"x" * 600)
    assert initiator_command(initiator_cmd_t(ptr=args)) == 0
    assert (bytes(client.tasks[0].data_out), args.bytes_sent) == (b"x" * 512, 512)
    client.status, client.sense = 2, b"sense"
    assert initiator_command(initiator_cmd_t(ptr=args)) == 0
    assert (args.status, args.sense_data) == (2, b"sense")


def test_command_that_is_none_or_has_no_answer_is_minus_1(started: Host) -> None:
    both = iscsi_scsi_cmd_args_t(cdb=bytes(6), input=1, output=1)
    odd = iscsi_scsi_cmd_args_t(cdb=bytes(5))
    good = iscsi_scsi_cmd_args_t(cdb=bytes(6))
    wrong = [
        initiator_cmd_t(ptr=both),
        initiator_cmd_t(ptr=odd),
        initiator_cmd_t(ptr=None),
        initiator_cmd_t(type=0x77, ptr=good),
        initiator_cmd_t(type=ISCSI_NOP_OUT, ptr=good),
    ]
    for cmd in wrong:
        assert initiator_command(cmd) == cmd.status == -1
    started.clients[0].failure = ConnectionFailed("gone")
    assert initiator_command(initiator_cmd_t(ptr=good)) == -1


def test_nop_out_is_answered_by_a_target_that_is_there(started: Host) -> None:
    for args in (iscsi_nop_out_args_t(), None):
        assert initiator_command(initiator_cmd_t(type=ISCSI_NOP_OUT, ptr=args)) == 0


def test_enqueue_returns_at_once_and_calls_back(started: Host) -> None:
    assert iscsi_initiator_discover("", 0, 0) == 0
    client = started.clients[0]
    client.go_on.clear()
    done = threading.Event()
    told: list[str] = []

    def over(argument: str) -> None:
        told.append(argument)
        if len(told) == 16:
            done.set()

    args = iscsi_scsi_cmd_args_t(cdb=bytes(6))
    commands = [initiator_cmd_t(ptr=args, callback=over, callback_arg="argument", status=7) for _ in range(16)]
    assert [initiator_enqueue(cmd) for cmd in commands] == [0] * 16
    assert initiator_enqueue(initiator_cmd_t(ptr=args)) == -1  # the queue is full
    assert not told
    client.go_on.set()
    assert done.wait(10)
    assert told == ["argument"] * 16
    assert all(cmd.status == 0 for cmd in commands)


def test_commands_that_wait_while_it_is_shut_down_are_told_as_failed(started: Host) -> None:
    assert iscsi_initiator_discover("", 0, 0) == 0
    client = started.clients[0]
    client.go_on.clear()
    done = threading.Event()
    cmd = initiator_cmd_t(ptr=iscsi_scsi_cmd_args_t(cdb=bytes(6)), callback=lambda _: done.set())
    assert initiator_enqueue(cmd) == 0
    assert client.entered.wait(10)
    client.failure = ConnectionFailed("closed")
    client.go_on.set()
    assert iscsi_initiator_shutdown() == 0
    assert done.is_set()
    assert cmd.status == -1


def test_abort_is_for_what_is_under_way(started: Host) -> None:
    assert iscsi_initiator_discover("", 0, 0) == 0
    client = started.clients[0]
    done = threading.Event()
    cmd = initiator_cmd_t(ptr=iscsi_scsi_cmd_args_t(cdb=bytes(6)), callback=lambda _: done.set())
    assert initiator_abort(cmd) == -1
    client.go_on.clear()
    assert initiator_enqueue(cmd) == 0
    assert client.entered.wait(10)
    assert initiator_abort(cmd) == 0
    assert client.requests[0].victim is client.tasks[0]
    assert done.wait(10)
    assert initiator_abort(cmd) == -1
