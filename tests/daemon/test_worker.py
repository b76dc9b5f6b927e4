"""A whole worker: real sockets on one side, a real channel on the other, and devices that can be held."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from worker_kit import (
    BLOCK,
    NAME,
    TARGET,
    WAIT,
    CachedDevice,
    Initiator,
    MemoryDevice,
    Running,
    SlowDevice,
    boot_of,
    lun_of,
    running,
    until,
)

from iscsid.daemon import channel as channel_module
from iscsid.daemon import worker as module
from iscsid.daemon.boot import ExitCode
from iscsid.daemon.channel import Channel
from iscsid.daemon.link import OUTPUT_LIMIT
from iscsid.plugin import BlockError, Fault
from iscsid.session.login import LoginFailed
from iscsid.shared.messages import (
    Beat,
    BootFailed,
    Connect,
    Drop,
    Poll,
    Ready,
    SessionClosed,
    SessionFigures,
    SessionOpened,
    Stop,
    Stopped,
)
from iscsid.target.calls import Calls
from iscsid.target.logout import Logout
from iscsid.wire.const import AsyncEvent, LoginStatus
from iscsid.wire.pdu import AsyncMessage, LogoutResponse, NopIn, NopOut, Reject, TextRequest, TextResponse

ONES, TWOS = b"1" * BLOCK, b"2" * BLOCK
OTHER = "iqn.2010-11.org.example:other"


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice()


@pytest.fixture
def slow() -> SlowDevice:
    return SlowDevice()


@pytest.fixture
def worker(device: MemoryDevice) -> Iterator[Running]:
    """A worker with a disk that never waits."""
    with running(lun_of(device)) as worker:
        yield worker


@pytest.fixture
def slow_worker(slow: SlowDevice) -> Iterator[Running]:
    """A worker with a disk that can be held."""
    with running(lun_of(slow)) as worker:
        yield worker


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clocks are looked at often."""
    monkeypatch.setattr(module, "TICK_SECONDS", 0.02)


@pytest.fixture(autouse=True)
def logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def hang_in(slow: SlowDevice, initiator: Initiator, lba: int = 0, data: bytes = ONES) -> None:
    """Begin a write that hangs in the device until ``slow.gate`` is set."""
    slow.gate.clear()
    while slow.entered.acquire(blocking=False):
        pass
    initiator.send(initiator.write_command(lba, data))
    assert slow.entered.acquire(timeout=WAIT)


# --- life -------------------------------------------------------------------------------------------------------------


def test_worker_says_ready_and_then_beats(quick: None, worker: Running) -> None:
    worker.wait_for(Ready)
    for _ in range(3):
        beat = worker.wait_for(Beat)
        assert beat.connections == 0
        assert 0.0 <= beat.busy <= 1.0


def test_session_from_login_to_logout(worker: Running, device: MemoryDevice) -> None:
    initiator = worker.log_in(7)
    info = worker.wait_for(SessionOpened, tsih=7).info
    assert (info.initiator, info.isid, info.target) == (NAME, initiator.isid, TARGET)
    assert info.peer == "{}:{}".format(*initiator.sock.getsockname())
    assert info.portal == "{}:{}".format(*initiator.sock.getpeername())
    assert info.max_recv_data_segment_length == 262144
    initiator.write(3, ONES + TWOS)
    assert device.memory[3 * BLOCK : 5 * BLOCK] == ONES + TWOS
    assert initiator.read(4) == TWOS
    worker.channel.send(Poll())
    assert worker.wait_for(SessionFigures) == SessionFigures(7, 3, BLOCK, 2 * BLOCK)
    assert worker.wait_for(Beat, connections=1, commands=3)
    initiator.send(initiator.logout_request())
    assert initiator.expect(LogoutResponse).response == 0
    assert initiator.at_end()
    assert worker.wait_for(SessionClosed, tsih=7).reason == "logged out"


def test_totals_keep_what_closed_sessions_have_done(quick: None, worker: Running) -> None:
    initiator = worker.log_in()
    initiator.write(0, ONES)
    initiator.close()
    worker.wait_for(SessionClosed)
    assert worker.wait_for(Beat, connections=0, commands=2, written_bytes=BLOCK, read_bytes=0)


@pytest.mark.parametrize("part", [Initiator.close, Initiator.reset])
def test_connection_that_is_lost_ends_its_session_alone(worker: Running, part: Callable[[Initiator], None]) -> None:
    first, second = worker.log_in(1), worker.log_in(2, isid=2)
    part(first)
    worker.wait_for(SessionClosed, tsih=1)
    second.write(0, ONES)
    assert second.read(0) == ONES


def test_commands_in_one_segment_are_all_answered(worker: Running) -> None:
    initiator = worker.log_in()
    initiator.send(*(initiator.write_command(lba, bytes([lba]) * BLOCK) for lba in range(32)))
    assert [initiator.status()[0] for _ in range(32)] == [0] * 32
    initiator.send(*(initiator.read_command(lba) for lba in range(32)))
    assert [initiator.status() for _ in range(32)] == [(0, bytes([lba]) * BLOCK) for lba in range(32)]


def test_bytes_that_come_one_by_one_make_the_same_session(worker: Running) -> None:
    initiator = worker.log_in()
    for byte in initiator.encode(initiator.write_command(0, ONES)):
        initiator.sock.sendall(bytes([byte]))
    assert initiator.status()[0] == 0


def test_two_sessions_of_different_nexus_live_side_by_side(worker: Running) -> None:
    sessions = [worker.log_in(1), worker.log_in(2, isid=2), worker.log_in(3, name=OTHER)]
    for number, session in enumerate(sessions):
        session.write(number, ONES)
    assert not [message for message in worker.said if isinstance(message, SessionClosed)]


def test_device_that_waits_is_called_in_the_pool(slow_worker: Running, slow: SlowDevice) -> None:
    initiator = slow_worker.log_in()
    initiator.write(0, ONES)
    assert initiator.read(0) == ONES
    assert slow.log == ["write 0", "read 0"]
    assert "worker" not in slow.threads


def test_hung_device_holds_up_nobody_who_does_not_use_it(device: MemoryDevice, slow: SlowDevice) -> None:
    with running(lun_of(slow, 0), lun_of(device, 1)) as worker:
        first, second = worker.log_in(1), worker.log_in(2, isid=2)
        hang_in(slow, first)
        second.send(second.command(bytes(6), lun=1))
        assert unit_attention(second) == 0x2900
        second.send(second.command(struct.pack(">BBQIBB", 0x88, 0, 0, 1, 0, 0), read=BLOCK, lun=1))
        assert second.status() == (0, bytes(BLOCK))
        slow.gate.set()
        assert first.status()[0] == 0


def test_device_that_fails_fails_the_command_only(worker: Running, device: MemoryDevice) -> None:
    initiator = worker.log_in()

    def failing(_data: memoryview, _offset: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    unit = next(iter(worker.nodes.by_name[TARGET].devices()))
    real, unit.write_now = unit.write_now, failing
    initiator.send(initiator.write_command(0, ONES))
    assert initiator.status()[0] == 2
    unit.write_now = real
    initiator.write(0, ONES)


# --- logins -----------------------------------------------------------------------------------------------------------


def test_unknown_target_is_answered_and_the_claim_given_back(worker: Running) -> None:
    initiator = worker.connect(7, target="iqn.2026-11.org.iscsid:nothing")
    with pytest.raises(LoginFailed) as caught:
        initiator.log_in()
    assert caught.value.status == LoginStatus.NOT_FOUND
    assert initiator.at_end()
    worker.wait_for(SessionClosed, tsih=7)


def test_name_that_is_no_name_is_not_found(worker: Running) -> None:
    with pytest.raises(LoginFailed) as caught:
        worker.connect(target="not-a-name").log_in()
    assert caught.value.status == LoginStatus.NOT_FOUND


def test_login_without_a_tsih_to_be_had_is_out_of_resources_and_not_told(worker: Running) -> None:
    with pytest.raises(LoginFailed) as caught:
        worker.connect(0).log_in()
    assert caught.value.status == LoginStatus.OUT_OF_RESOURCES
    worker.log_in(3)
    worker.wait_for(SessionOpened, tsih=3)
    assert not [message for message in worker.said if isinstance(message, SessionClosed)]


@pytest.mark.parametrize(
    ("open_session", "status"),
    [(True, LoginStatus.TOO_MANY_CONNECTIONS), (False, LoginStatus.SESSION_DOES_NOT_EXIST)],
)
def test_login_that_names_a_tsih_never_speaks_for_it(worker: Running, open_session: bool, status: int) -> None:
    first = worker.log_in(5) if open_session else None
    with pytest.raises(LoginFailed) as caught:
        worker.connect(5, names=5).log_in()
    assert caught.value.status == status
    worker.log_in(6, isid=6)
    worker.wait_for(SessionOpened, tsih=6)
    assert not [message for message in worker.said if isinstance(message, SessionClosed)]
    if first is not None:
        first.write(0, ONES)


def test_discovery_names_the_target_at_the_address_that_was_reached(worker: Running) -> None:
    initiator = worker.log_in(target=None)
    assert worker.wait_for(SessionOpened).info.target == ""
    request = TextRequest(initiator_task_tag=1, cmd_sn=initiator.cmd_sn, data=b"SendTargets=All\0", final=True)
    initiator.send(request)
    answer = bytes(initiator.expect(TextResponse).data)
    address = "{}:{}".format(*initiator.sock.getpeername())
    here = initiator.sock.getpeername()[0]  # where the portals of the configuration, 0.0.0.0:3260, are reached
    expected = f"TargetName={TARGET}\0TargetAddress={address},1\0TargetAddress={here}:3260,1\0"
    assert answer == expected.encode()


def test_login_that_does_not_come_to_an_end_is_ended(quick: None, device: MemoryDevice) -> None:
    with running(lun_of(device), login_timeout=0.1) as worker:
        initiator = worker.connect(4)
        assert initiator.at_end()
        assert worker.wait_for(SessionClosed, tsih=4).reason == "login took too long"


def test_rubbish_instead_of_a_login_ends_the_connection(worker: Running) -> None:
    initiator = worker.connect(4, send=b"GET / HTTP/1.1\r\n" * 10)
    assert initiator.at_end()
    worker.wait_for(SessionClosed, tsih=4)


def test_connect_without_its_descriptor_gives_the_claim_back(worker: Running) -> None:
    worker.channel.send(Connect(4, NAME, 1, TARGET, "peer", "portal"))
    worker.wait_for(SessionClosed, tsih=4)


def test_descriptor_that_is_no_socket_is_closed_and_the_claim_given_back(worker: Running) -> None:
    reader, writer = os.pipe()
    worker.channel.send(Connect(4, NAME, 1, TARGET, "peer", "portal"), writer)
    worker.wait_for(SessionClosed, tsih=4)
    assert os.read(reader, 1) == b"", "the worker has kept it"
    os.close(reader)


def test_socket_that_is_no_tcp_connection_is_closed_and_the_claim_given_back(worker: Running) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        worker.channel.send(Connect(4, NAME, 1, TARGET, "peer", "portal"), theirs.detach())
        worker.wait_for(SessionClosed, tsih=4)
        assert ours.recv(1) == b""


def test_connection_that_the_loop_cannot_watch_is_closed_and_forgotten(worker: Running) -> None:
    class Full:
        """An epoll at the limit of what the system lets one user watch."""

        def __getattr__(self, name: str) -> Any:
            return getattr(watched, name)

        def register(self, *_arguments: Any) -> None:
            raise OSError(errno.ENOSPC, "no more watches")

    worker.wait_for(Ready)
    watched, worker.worker._epoll = worker.worker._epoll, Full()  # type: ignore[assignment]
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as ours:
        worker.channel.send(Connect(4, NAME, 1, TARGET, "peer", "portal"), listener.accept()[0].detach())
        worker.wait_for(SessionClosed, tsih=4)
        assert ours.recv(1) == b""
    assert not worker.worker.guests()
    worker.worker._epoll = watched
    worker.log_in(5)


# --- one nexus, one session -------------------------------------------------------------------------------------------


def test_login_of_the_same_nexus_replaces_the_session(worker: Running) -> None:
    old = worker.log_in(1)
    new = worker.log_in(2)
    assert old.at_end()
    assert worker.wait_for(SessionClosed, tsih=1).reason == "the initiator has logged in again"
    worker.wait_for(SessionOpened, tsih=2)
    new.write(0, ONES)


def test_discovery_sessions_do_not_replace_one_another(worker: Running) -> None:
    worker.log_in(1, target=None)
    worker.log_in(2, target=None)
    worker.wait_for(SessionOpened, tsih=2)
    assert not [message for message in worker.said if isinstance(message, SessionClosed)]


def unit_attention(initiator: Initiator) -> int:
    """ASC and ASCQ of the unit attention that is answered next."""
    status, data = initiator.status()
    assert status == 2 and data[4] & 0xF == 6, data.hex()
    return int.from_bytes(data[14:16], "big")


def test_new_session_executes_nothing_while_a_write_of_the_old_one_is_in_the_pool(
    slow_worker: Running, slow: SlowDevice
) -> None:
    old = slow_worker.log_in(1)
    hang_in(slow, old, 0, ONES)
    new = slow_worker.log_in(2, greeted=False)
    new.send(new.command(bytes(6)), new.write_command(0, TWOS))
    third = slow_worker.log_in(3, isid=3)  # the worker has had the command by now
    assert not slow.entered.acquire(blocking=False), "the second write has entered the device"
    slow.gate.set()
    assert unit_attention(new) == 0x2907
    assert new.status()[0] == 0
    assert slow.log == ["write 0", "write 0"]
    assert slow.memory[:BLOCK] == TWOS
    third.read(0)


def test_command_behind_the_login_waits_too(slow_worker: Running, slow: SlowDevice) -> None:
    old = slow_worker.log_in(1)
    hang_in(slow, old, 0, ONES)
    new = slow_worker.connect(2)
    commands = new.command(bytes(6)), new.write_command(0, TWOS)
    new.sock.sendall(new.encode(new.login.start(), *commands))
    assert not new.login.receive(new.receive())
    new.establish()
    other = slow_worker.log_in(3, isid=3)
    assert not slow.entered.acquire(blocking=False), "the second write has entered the device"
    slow.gate.set()
    assert unit_attention(new) == 0x2907
    assert new.status()[0] == 0
    assert slow.memory[:BLOCK] == TWOS
    other.read(0)


def test_third_login_waits_for_what_the_second_has_waited_for(slow_worker: Running, slow: SlowDevice) -> None:
    first = slow_worker.log_in(1)
    hang_in(slow, first, 0, ONES)
    second = slow_worker.log_in(2, greeted=False)
    third = slow_worker.log_in(3, greeted=False)
    assert second.at_end()
    assert slow_worker.wait_for(SessionClosed, tsih=2)
    third.send(third.command(bytes(6)), third.write_command(0, TWOS))
    slow_worker.log_in(4, isid=4)
    assert not slow.entered.acquire(blocking=False), "the second write has entered the device"
    slow.gate.set()
    assert unit_attention(third) == 0x2907
    assert third.status()[0] == 0
    assert slow.memory[:BLOCK] == TWOS


def test_login_after_a_lost_connection_waits_as_well(slow_worker: Running, slow: SlowDevice) -> None:
    first = slow_worker.log_in(1)
    link = slow_worker.link_of(first)
    hang_in(slow, first, 0, ONES)
    first.reset()
    until(lambda: not link.alive)
    second = slow_worker.log_in(2, greeted=False)
    second.send(second.command(bytes(6)), second.write_command(0, TWOS))
    slow_worker.log_in(3, isid=3)
    assert not slow.entered.acquire(blocking=False), "the second write has entered the device"
    slow_worker.hear(0)
    assert not [message for message in slow_worker.said if isinstance(message, SessionClosed)]
    slow.gate.set()
    slow_worker.wait_for(SessionClosed, tsih=1)
    assert unit_attention(second) == 0x2907
    assert second.status()[0] == 0
    assert slow.memory[:BLOCK] == TWOS


def test_session_that_is_held_can_go_away(slow_worker: Running, slow: SlowDevice) -> None:
    first = slow_worker.log_in(1)
    hang_in(slow, first)
    second = slow_worker.log_in(2, greeted=False)
    second.send(second.command(bytes(6)), second.write_command(0, TWOS))
    second.close()
    slow_worker.wait_for(SessionClosed, tsih=2)
    slow.gate.set()
    slow_worker.wait_for(SessionClosed, tsih=1)
    assert slow.memory[:BLOCK] == ONES


def test_first_command_of_a_nexus_hears_of_power_on_and_of_a_lost_nexus_when_it_comes_back(worker: Running) -> None:
    def greeting(tsih: int, **options: int) -> str:
        initiator = worker.log_in(tsih, **options)
        assert initiator.greeting is not None
        initiator.read(0)
        return initiator.greeting[1][14:16].hex()

    assert [greeting(1), greeting(2), greeting(3, isid=3)] == ["2900", "2907", "2900"]
    worker.log_in(4).close()
    worker.wait_for(SessionClosed, tsih=4)
    assert greeting(5) == "2907"


def test_nexus_that_never_heard_of_power_on_hears_of_it_the_next_time(worker: Running) -> None:
    worker.log_in(1, greeted=False)
    again = worker.log_in(2)
    assert again.greeting is not None and again.greeting[1][14:16].hex() == "2900"


# --- the supervisor's word --------------------------------------------------------------------------------------------


def test_dropped_session_ends_with_the_reason_given(worker: Running) -> None:
    initiator, other = worker.log_in(1), worker.log_in(2, isid=2)
    worker.channel.send(Drop(1, "because"))
    assert initiator.at_end()
    assert worker.wait_for(SessionClosed, tsih=1).reason == "because"
    other.write(0, ONES)


def test_drop_of_an_unknown_session_is_passed_over(worker: Running) -> None:
    worker.channel.send(Drop(1, "because"))
    worker.channel.send(Drop(0, "because"))
    worker.log_in(2).write(0, ONES)


def test_drop_ends_a_login_that_is_under_way(worker: Running) -> None:
    initiator = worker.connect(1)
    worker.channel.send(Drop(1, "because"))
    assert initiator.at_end()
    assert worker.wait_for(SessionClosed, tsih=1).reason == "because"


def test_poll_tells_open_sessions_only_and_then_beats(worker: Running) -> None:
    worker.connect(1)
    worker.log_in(2, isid=2)
    worker.channel.send(Poll())
    worker.wait_for(Beat, connections=2)
    figures = [message for message in worker.said if isinstance(message, SessionFigures)]
    assert [message.tsih for message in figures] == [2]


# --- bad guests -------------------------------------------------------------------------------------------------------


def test_initiator_that_never_reads_costs_bounded_memory_and_nobody_else_anything(worker: Running) -> None:
    greedy, other = worker.log_in(1), worker.log_in(2, isid=2)
    link = worker.link_of(greedy)
    outbox = link.engine.connection.outbox
    pings = b"".join(
        greedy.encode(NopOut(immediate=True, initiator_task_tag=tag, cmd_sn=greedy.cmd_sn, data=bytes(4000)))
        for tag in range(500)
    )
    greedy.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        for _ in range(1000):
            greedy.sock.sendall(pings)
    assert outbox.queued < OUTPUT_LIMIT + (2 << 20)
    other.write(0, ONES)
    assert other.read(0) == ONES
    greedy.close()
    worker.wait_for(SessionClosed, tsih=1)


def test_commands_behind_a_logout_that_nobody_reads_end_that_session_only(worker: Running) -> None:
    bad, other = worker.log_in(1), worker.log_in(2, isid=2)
    link = worker.link_of(bad)
    ping = bad.encode(NopOut(immediate=True, initiator_task_tag=1, cmd_sn=bad.cmd_sn, data=bytes(4000)))
    bad.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        for _ in range(100_000):
            bad.sock.sendall(ping)
    bad.sock.settimeout(WAIT)
    assert link.alive
    threading.Thread(target=_pour, args=(bad.sock, bad.encode(bad.logout_request()) + ping * 500), daemon=True).start()
    while not link.engine.connection.closing and link.alive:
        bad.sock.recv(1 << 16)
    other.write(0, ONES)
    bad.close()
    worker.wait_for(SessionClosed, tsih=1)


def _pour(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the other side had enough
        sock.sendall(data)


def test_protocol_error_is_answered_before_the_end_however_much_comes_behind_it(worker: Running) -> None:
    initiator = worker.log_in(1)
    second_login = Initiator(initiator.sock).login.start()
    initiator.sock.sendall(initiator.encode(second_login) + bytes(1 << 20))
    assert isinstance(initiator.receive(), Reject)
    assert initiator.receive() is None, "an orderly end, or the Reject might have been lost"
    worker.wait_for(SessionClosed, tsih=1)


def test_initiator_that_falls_silent_is_pinged_and_lives_if_it_answers(quick: None, device: MemoryDevice) -> None:
    with running(lun_of(device), nop_interval=0.05, nop_timeout=WAIT) as worker:
        initiator = worker.log_in()
        while initiator.pings < 3:
            initiator.send(NopOut(immediate=True, initiator_task_tag=9, cmd_sn=initiator.cmd_sn))
            initiator.expect(NopIn)
            select.select([initiator.sock], [], [], WAIT)
        initiator.write(0, ONES)


def test_initiator_that_does_not_answer_a_ping_is_given_up(quick: None, device: MemoryDevice) -> None:
    with running(lun_of(device), nop_interval=0.05, nop_timeout=0.1) as worker:
        initiator = worker.log_in(3)
        initiator.answers_pings = False
        assert initiator.at_end()
        assert worker.wait_for(SessionClosed, tsih=3).reason == "initiator does not answer"
        assert initiator.pings == 1


def test_answers_that_came_while_the_loop_was_away_are_heard_before_the_clock_is_looked_at(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stalling(MemoryDevice):
        """Keeps the loop, as a page cache that is full of dirty pages does."""

        def write(self, data: memoryview, offset: int) -> None:
            stalled.set()
            assert gate.wait(WAIT)
            away[0] = 1000.0
            super().write(data, offset)

    stalled, gate, away = threading.Event(), threading.Event(), [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + away[0]))
    with running(lun_of(Stalling()), nop_interval=0.05, nop_timeout=500.0) as worker:
        silent, busy = worker.log_in(1), worker.log_in(2, isid=2)
        ping = silent.next_ping()
        busy.send(busy.write_command(0, ONES))
        assert stalled.wait(WAIT)
        silent.answer_ping(ping)
        gate.set()
        assert busy.status()[0] == 0
        assert len(silent.read(0)) == BLOCK, "it was given up although it had answered"


# --- bugs of ours -----------------------------------------------------------------------------------------------------


def test_bug_in_one_session_costs_that_session_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: MemoryDevice
) -> None:
    monkeypatch.setattr(Logout, "request", _planted)
    with running(lun_of(device)) as worker:
        first, second = worker.log_in(1), worker.log_in(2, isid=2)
        first.send(first.logout_request())
        assert first.at_end()
        assert worker.wait_for(SessionClosed, tsih=1).reason == "internal error"
        second.write(0, ONES)
    assert "session 1 ends by an error of this server" in caplog.text
    assert "ZeroDivisionError: planted" in caplog.text


def test_bug_in_the_end_of_a_call_costs_that_session_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, slow: SlowDevice
) -> None:
    with running(lun_of(slow)) as worker:
        first, second = worker.log_in(1), worker.log_in(2, isid=2)
        with monkeypatch.context() as patch:
            patch.setattr(Calls, "answer", _planted)
            first.send(first.write_command(0, ONES))
            assert first.at_end()
        assert worker.wait_for(SessionClosed, tsih=1).reason == "internal error"
        second.write(0, TWOS)
    assert "ZeroDivisionError: planted" in caplog.text


def _planted(*_arguments: Any, **_named: Any) -> None:
    raise ZeroDivisionError("planted")


# --- stalls -----------------------------------------------------------------------------------------------------------


def test_loop_that_has_waited_sends_writes_to_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    device = CachedDevice()
    monkeypatch.setattr(module, "STALL_SECONDS", WAIT)  # whoever else keeps this machine busy
    with running(lun_of(device)) as worker:
        initiator = worker.log_in()
        initiator.write(0, ONES)
        assert device.log == ["write_nowait"]
        monkeypatch.setattr(module, "STALL_SECONDS", -1.0)
        monkeypatch.setattr(module, "STALL_SHARE", 0.0)
        initiator.read(0)
        initiator.write(0, TWOS)
        assert device.log[-1] == "write 0"


def test_turn_with_many_events_is_no_stall(worker: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    stalls: list[float] = []
    monkeypatch.setattr(worker.nodes, "stalled", stalls.append)
    worker.worker._stalled(1.0, module.STALL_SECONDS + 0.01, 100)
    assert stalls == []
    worker.worker._stalled(2.0, module.STALL_SECONDS + 0.01, 1)
    assert stalls == [2.0]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_stop_without_sessions_flushes_closes_and_says_so(slow: SlowDevice) -> None:
    with running(lun_of(slow)) as worker:
        assert worker.stop() == ExitCode.OK
        assert slow.log == ["flush", "close"]
        assert worker.said[-1] == Stopped()


def test_stop_asks_for_logouts_and_goes_when_the_last_has_come(worker: Running) -> None:
    initiator, pending = worker.log_in(1), worker.connect(2)
    worker.channel.send(Stop(WAIT))
    message = initiator.expect(AsyncMessage)
    assert (message.async_event, message.parameter3) == (AsyncEvent.LOGOUT_REQUEST, int(WAIT))
    assert pending.at_end(), "a login that is under way has nothing to finish"
    initiator.send(initiator.logout_request())
    initiator.expect(LogoutResponse)
    assert initiator.at_end()
    initiator.close()
    assert worker.ended() == ExitCode.OK
    worker.wait_for(SessionClosed, tsih=1)
    worker.wait_for(SessionClosed, tsih=2)
    worker.wait_for(Stopped)


def test_stop_takes_no_more_connections(worker: Running) -> None:
    worker.log_in(1)
    worker.channel.send(Stop(WAIT))
    late = worker.connect(2)
    assert late.at_end()
    worker.wait_for(SessionClosed, tsih=2)


def test_stop_lets_a_write_finish_and_answers_it(
    monkeypatch: pytest.MonkeyPatch, slow_worker: Running, slow: SlowDevice
) -> None:
    monkeypatch.setattr(module, "LOGOUT_SECONDS", 0.0)
    busy = slow_worker.log_in(1)
    hang_in(slow, busy)
    idle = slow_worker.log_in(2, isid=2)
    slow_worker.channel.send(Stop(WAIT))
    idle.expect(AsyncMessage)
    assert idle.at_end()
    busy.expect(AsyncMessage)
    slow.gate.set()
    assert busy.status()[0] == 0
    assert busy.at_end()
    assert slow_worker.ended() == ExitCode.OK
    assert slow.log == ["write 0", "flush", "close"]


def test_stop_ends_in_time_though_a_device_hangs(
    monkeypatch: pytest.MonkeyPatch, slow: SlowDevice, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "JOIN_SECONDS", 0.05)
    monkeypatch.setattr(module, "CLOSE_SECONDS", WAIT)  # the flush does not hang
    monkeypatch.setattr(slow, "flush", lambda: slow.log.append("flush"))
    with running(lun_of(slow)) as worker:
        hang_in(slow, worker.log_in(1))
        assert worker.stop(0.05) == ExitCode.OK
        worker.wait_for(Stopped)
        assert "1 calls hang in their media" in caplog.text
        assert slow.log == ["flush"], "not closed: a hung call still uses it"


def test_stop_ends_in_time_though_a_device_does_not_flush(
    monkeypatch: pytest.MonkeyPatch, slow: SlowDevice, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    with running(lun_of(slow)) as worker:
        slow.gate.clear()
        assert worker.stop() == ExitCode.OK
        assert f"{TARGET}: not flushed and closed within 0.05 seconds" in caplog.text


def test_stop_waits_a_little_for_initiators_to_close(worker: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGOUT_SECONDS", WAIT)
    initiator = worker.log_in(1)
    worker.channel.send(Stop(WAIT))
    initiator.expect(AsyncMessage)
    initiator.send(initiator.logout_request())
    initiator.expect(LogoutResponse)
    assert initiator.at_end()
    for _ in range(3):
        worker.wait_for(Beat, connections=0)
    assert worker.thread.is_alive()
    initiator.close()
    assert worker.ended() == ExitCode.OK


def test_worker_whose_supervisor_is_gone_ends(worker: Running, device: MemoryDevice) -> None:
    initiator = worker.log_in(1)
    worker.channel.close()
    assert initiator.expect(AsyncMessage)
    assert initiator.at_end()
    worker.thread.join(WAIT)
    assert worker.code == ExitCode.OK
    assert device.log == ["close"]
    worker.channel, _other = Channel.pair()
    _other.close()


def test_worker_whose_supervisor_does_not_read_ends(
    quick: None, monkeypatch: pytest.MonkeyPatch, device: MemoryDevice, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channel_module, "MAX_QUEUED", 3)
    monkeypatch.setattr(module, "TICK_SECONDS", 0.0)
    monkeypatch.setattr(module, "TOLD_SECONDS", 0.0)
    with running(lun_of(device)) as worker:
        worker.thread.join(WAIT)
        assert worker.code == ExitCode.OK
    assert "the supervisor does not read" in caplog.text


def test_boot_that_fails_is_told_with_its_reason() -> None:
    def make(_role: str) -> Any:
        raise BlockError(Fault.NO_MEDIUM, "no disk in it" + "!" * 100_000)

    ours, theirs = Channel.pair()
    assert module.run(theirs, boot_of(lun_of(make, 3))) == ExitCode.BOOT_FAILED
    ((message, _),) = ours.receive()
    assert isinstance(message, BootFailed)
    assert message.reason.startswith(f"{TARGET} LUN 3: no disk in it")
    ours.close()
    theirs.close()


@pytest.mark.process
def test_process_with_a_hung_thread_exits_with_the_right_code(
    slow: SlowDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "JOIN_SECONDS", 0.05)
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)
    ours, theirs = Channel.pair()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            ours.close()
            slow.gate.clear()
            code = module.run(theirs, boot_of(lun_of(slow)))
        finally:
            os._exit(code)
    theirs.close()
    pidfd = os.pidfd_open(pid)
    try:
        worker = Running.__new__(Running)
        worker.channel, worker.said, worker.initiators = ours, [], []
        worker.wait_for(Ready)
        initiator = worker.log_in(1)
        initiator.send(initiator.write_command(0, ONES))
        initiator.send(NopOut(immediate=True, initiator_task_tag=9, cmd_sn=initiator.cmd_sn))
        initiator.expect(NopIn)  # behind the write, which is in the pool by now
        ours.close()
        assert initiator.expect(AsyncMessage)
        assert initiator.at_end()
        assert select.select([pidfd], [], [], WAIT)[0], "a hung thread keeps the process alive"
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ExitCode.OK
        pid = 0
    finally:
        if pid:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        os.close(pidfd)
        initiator.close()
