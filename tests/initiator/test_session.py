"""initiator.session: what outlives a connection. Time is moved by hand, bytes travel when the test says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers import TARGET_NAME
from initiator_pair import PORTAL, World, result
from target_rig import DEVICES, pattern

from iscsid.errors import (
    CommandAborted,
    CommandFailed,
    CommandTimeout,
    ConnectionFailed,
    LoginRefused,
    OutcomeUnknown,
    ReservationConflict,
    SenseError,
)
from iscsid.initiator.session import BACK_OFF, REDIRECT_LIMIT, SessionOptions
from iscsid.initiator.task import Management, Task
from iscsid.initiator.url import Portal
from iscsid.scsi.const import PersistentReserveOut, Status
from iscsid.scsi.sense import REASONS, Reason
from iscsid.session.login import Admission
from iscsid.session.login_target import Redirect
from iscsid.text.keys import TARGET_OFFERS
from iscsid.wire.const import FINAL, AsyncEvent, LoginStatus, TmfFunction, TmfResponse
from iscsid.wire.pdu import AsyncMessage, NopIn, ScsiResponse, TaskManagementResponse, pack_sense


def read(world: World, offset: int = 0, length: int = 512) -> Task:
    return world.unit.read(offset, memoryview(bytearray(length)))


def answer(world: World, task: Task, status: int, sense: bytes = b"") -> None:
    """The target answers ``task`` in a way of the test's own."""
    connection = world.session.connection
    assert connection is not None
    pdu = ScsiResponse(
        flags=FINAL,
        status=status,
        initiator_task_tag=task.tag,
        stat_sn=connection.exp_stat_sn,
        exp_cmd_sn=connection.cmd_sn,
        max_cmd_sn=connection.max_cmd_sn + 1,
        data=pack_sense(sense) if sense else b"",
    )
    data = bytes(pdu.data)
    world.hear(pdu.pack() + data + bytes(-len(data) % 4))


def sense_of(reason: Reason) -> bytes:
    key, asc, ascq = REASONS[reason]
    return bytes((0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0))


# --- broken connections -----------------------------------------------------------------------------------------------


def test_reads_and_writes_are_sent_again_after_a_break() -> None:
    world = World(DEVICES["blocking"]()).know()
    data = pattern(4096)
    write, reading = world.unit.write(0, memoryview(data)), read(world, 8192)
    world.submit(write, reading)
    world.to_target()
    world.cut()
    assert not write.done and not reading.done
    world.pool.calls.clear()
    world.connect()
    world.run()
    result(write)
    result(reading)
    assert world.device.content[:4096] == data
    assert world.session.logins == 2


def test_replay_keeps_the_order() -> None:
    world = World(DEVICES["blocking"](), depth=2).know()
    tasks = [world.unit.write(0, memoryview(bytes([number]) * 512)) for number in range(6)]
    world.submit(*tasks)
    world.to_target()
    world.cut()
    world.pool.calls.clear()
    world.connect()
    world.run()
    assert all(task.done and task.error is None for task in tasks)
    assert world.device.content[:512] == bytes([5]) * 512


@pytest.mark.parametrize("kind", ["compare and write", "register", "raw"])
def test_command_that_may_not_be_repeated_ends_with_unknown_outcome(kind: str) -> None:
    world = World(DEVICES["blocking"]()).know()
    block = memoryview(bytes(512))
    task = {
        "compare and write": world.unit.compare_and_write(0, block, block),
        "register": world.unit.reserve_out(PersistentReserveOut.REGISTER, 0, 7),
        "raw": world.unit.command(bytes(6), b"", memoryview(bytearray(0)), None, False),
    }[kind]
    world.submit(task)
    world.cut()
    with pytest.raises(OutcomeUnknown):
        result(task)


def test_what_was_never_sent_is_sent_once_also_if_it_may_not_be_repeated() -> None:
    world = World(DEVICES["blocking"](), depth=1).know()
    world.submit(read(world))
    block = memoryview(bytes(512))
    task = world.unit.compare_and_write(0, block, block)
    world.submit(task)
    world.cut()
    world.pool.calls.clear()
    world.connect()
    world.run()
    result(task)


def test_attempts_back_off_and_end() -> None:
    world = World(recovery_timeout=5.0).know()
    task = world.submit(read(world))
    world.cut()
    pauses = []
    while world.session.connect_at is not None:
        pauses.append(round(world.session.connect_at - world.now, 3))
        world.now = world.session.connect_at
        world.session.lost(ConnectionFailed("refused"), world.now)
    assert tuple(pauses[: len(BACK_OFF) - 1]) == BACK_OFF[:-1]
    assert sum(pauses) == pytest.approx(5.0)  # the last attempt is made when the time is up, not later
    with pytest.raises(ConnectionFailed, match="refused"):
        result(task)


def test_command_under_which_every_connection_breaks_is_given_up() -> None:
    world = World(DEVICES["blocking"](), recovery_timeout=5.0).know()
    task = world.submit(read(world))
    begin, logins = world.now, 0
    while not task.done and logins < 1000:
        world.cut(ConnectionResetError("the command is too much for it"))
        world.pool.calls.clear()
        if not task.done:
            world.connect(pool=False)
            logins += 1
    assert 5.0 <= world.now - begin < 10.0
    assert logins < 20  # with growing pauses
    with pytest.raises(ConnectionFailed, match="too much"):
        result(task)
    world.connect()
    world.submit(other := read(world))
    world.run()
    result(other)


def test_command_that_a_lost_target_kept_long_has_more_than_one_attempt() -> None:
    world = World(DEVICES["blocking"](), recovery_timeout=5.0, timeout=60.0).know()
    task = world.submit(read(world))
    for _ in range(2):
        world.later(6.0)
        world.cut()
        world.pool.calls.clear()
        world.connect(pool=False)
    world.run()
    result(task)


def test_next_command_after_giving_up_tries_anew() -> None:
    world = World(recovery_timeout=0.0).know()
    world.submit(read(world))
    world.cut()
    world.session.lost(ConnectionFailed("refused"), world.now)
    assert world.session.failure is not None
    task = world.submit(read(world))
    assert world.session.connect_at == world.now
    world.connect()
    world.run()
    result(task)


def test_a_target_that_was_given_up_has_one_attempt_for_each_command() -> None:
    world = World(recovery_timeout=5.0).know()
    world.submit(read(world))
    world.cut()
    world.later(5.0)
    world.session.lost(ConnectionFailed("refused"), world.now)
    assert world.session.failure is not None
    task = world.submit(read(world))
    assert world.session.connect_at == world.now
    world.session.lost(ConnectionFailed("still refused"), world.now)
    with pytest.raises(ConnectionFailed, match="still refused"):
        result(task)
    task = world.submit(read(world))
    world.connect()
    world.run()
    result(task)
    world.cut()
    world.submit(read(world))
    world.session.lost(ConnectionFailed("refused"), world.now)
    assert world.session.failure is None  # it was back, so it has all the time again


def test_idle_session_that_breaks_comes_back_with_the_next_command() -> None:
    world = World().know()
    world.cut()
    assert world.session.connect_at is None
    task = world.submit(read(world))
    world.connect()
    world.run()
    result(task)


def test_first_connection_that_fails_is_not_tried_again() -> None:
    world = World()
    world.session.open(world.now)
    world.session.lost(ConnectionFailed("refused"), world.now)
    assert (world.session.connect_at, str(world.session.failure)) == (None, "refused")


def test_target_that_is_not_there_yet_after_a_restart_is_waited_for() -> None:
    verdicts: list[int | Admission] = [LoginStatus.NOT_FOUND, LoginStatus.SERVICE_UNAVAILABLE]
    welcome = Admission(offers=TARGET_OFFERS)
    world = World(admit=lambda *_: verdicts.pop(0) if late and verdicts else welcome)
    late: list[bool] = []
    world.know()
    late.append(True)
    task = world.submit(read(world))
    world.cut()
    for _ in range(3):
        world.connect()
    result(task)


def test_login_that_is_refused_says_why() -> None:
    world = World(admit=lambda *_: LoginStatus.NOT_FOUND).connect()
    failure = world.session.failure
    assert isinstance(failure, LoginRefused) and failure.status == LoginStatus.NOT_FOUND


def test_login_that_takes_too_long_is_given_up() -> None:
    world = World(login_timeout=3.0)
    world.session.open(world.now)
    world.session.connected(world.now)
    world.later(3.0)
    assert isinstance(world.session.failure, ConnectionFailed)


# --- redirection ------------------------------------------------------------------------------------------------------


def moving(*addresses: str, permanent: bool = False) -> Callable[..., Admission]:
    left = list(addresses)

    def admit(*_: str) -> Admission:
        if left:
            raise Redirect(left.pop(0), permanent=permanent)
        return Admission(offers=TARGET_OFFERS)

    return admit


@pytest.mark.parametrize(("permanent", "home"), [(True, Portal("2001:db8::7", 861)), (False, PORTAL)])
def test_redirection_is_followed_and_remembered_if_permanent(permanent: bool, home: Portal) -> None:
    world = World(admit=moving("[2001:db8::7]:861,1", permanent=permanent)).connect()
    assert world.session.portal == Portal("2001:db8::7", 861)
    world.connect()
    assert world.session.ready
    world.cut()
    assert world.session.portal == home


def test_redirections_without_end_are_not_followed() -> None:
    world = World(admit=moving(*["192.0.2.9"] * 100))
    for _ in range(REDIRECT_LIMIT + 1):
        world.connect()
    assert world.session.connect_at is None
    assert "on and on" in str(world.session.failure)


def test_place_that_is_away_is_waited_for_although_each_attempt_is_sent_there_anew() -> None:
    moves = ["192.0.2.9"] * 11
    world = World(DEVICES["blocking"](), recovery_timeout=60.0, admit=moving()).know()
    task = world.submit(read(world))
    world.cut()
    world.pool.calls.clear()
    world._admit = moving(*moves)
    for _ in range(10):
        world.connect()
        assert world.session.portal == Portal("192.0.2.9")
        world.session.lost(ConnectionFailed("refused"), world.now)
        assert not task.done
    world.connect().connect()
    world.run()
    result(task)


# --- what a target says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [Reason.POWER_ON_RESET_OR_BUS_DEVICE_RESET, Reason.CAPACITY_DATA_HAS_CHANGED])
def test_unit_attention_is_noted_and_the_command_done_again(reason: Reason) -> None:
    world = World(DEVICES["blocking"]()).know()
    task = world.submit(read(world))
    answer(world, task, Status.CHECK_CONDITION, sense_of(reason))
    assert world.session.attentions[-1] == sense_of(reason)
    assert not task.done and world.session.in_flight == 1


def test_unit_attention_for_ever_is_an_error_in_the_end() -> None:
    world = World(DEVICES["blocking"]()).know()
    task = world.submit(read(world))
    for _ in range(20):
        if not task.done:
            answer(world, task, Status.CHECK_CONDITION, sense_of(Reason.I_T_NEXUS_LOSS))
    with pytest.raises(SenseError):
        result(task)


@pytest.mark.parametrize("status", [Status.BUSY, Status.TASK_SET_FULL])
def test_busy_target_is_asked_again_after_growing_pauses(status: int) -> None:
    world = World(DEVICES["blocking"]()).know()
    task = world.submit(read(world))
    pauses = []
    for _ in range(4):
        answer(world, task, status)
        assert world.session.in_flight == 0
        pauses.append(round(world.session.next_tick(world.now), 3))
        world.later(pauses[-1] + 0.001)
        assert world.session.in_flight == 1
    assert pauses == [0.05, 0.1, 0.2, 0.4]
    answer(world, task, Status.GOOD)
    with pytest.raises(Exception, match="0 of 512 bytes"):
        result(task)


def test_target_that_stays_busy_is_an_error_at_the_time_out() -> None:
    world = World(DEVICES["blocking"](), timeout=2.0).know()
    task = world.submit(read(world))
    task.deadline = world.now
    answer(world, task, Status.BUSY)
    with pytest.raises(CommandFailed) as caught:
        result(task)
    assert caught.value.status == Status.BUSY


def test_target_that_is_busy_again_and_again_is_an_error_at_the_time_out() -> None:
    world = World(DEVICES["blocking"](), timeout=2.0).know()
    task = world.submit(read(world))
    begin = world.now
    while not task.done and world.now < begin + 10.0:
        answer(world, task, Status.BUSY)
        world.later(0.1 if task.done else world.session.next_tick(world.now) + 0.001)
    assert 2.0 <= world.now - begin < 4.0
    with pytest.raises(CommandFailed):
        result(task)


def test_reservation_conflict_and_task_aborted_are_exceptions_of_their_own() -> None:
    world = World(DEVICES["blocking"]()).know()
    conflict, aborted = world.submit(read(world)), world.submit(read(world))
    answer(world, conflict, Status.RESERVATION_CONFLICT)
    answer(world, aborted, Status.TASK_ABORTED)
    with pytest.raises(ReservationConflict):
        result(conflict)
    with pytest.raises(CommandAborted):
        result(aborted)


def from_target(world: World, pdu: AsyncMessage | NopIn) -> None:
    connection = world.session.connection
    assert connection is not None
    pdu.stat_sn, pdu.exp_cmd_sn, pdu.max_cmd_sn = connection.exp_stat_sn, connection.cmd_sn, connection.max_cmd_sn
    world.hear(pdu.pack())


def test_logout_that_the_target_asks_for_waits_for_what_is_in_flight() -> None:
    world = World(DEVICES["blocking"]()).know()
    task = world.submit(read(world))
    world.to_target()
    from_target(world, AsyncMessage(async_event=AsyncEvent.LOGOUT_REQUEST, parameter3=10))
    later = world.submit(read(world))
    assert (world.session.in_flight, world.session.waiting) == (1, 1)
    world.run()
    result(task)
    assert world.session.connection is None and world.session.connect_at is not None
    world.connect()
    world.run()
    result(later)


def test_connection_that_the_target_drops_comes_back_after_the_time_it_names() -> None:
    world = World(DEVICES["blocking"]()).know()
    task = world.submit(read(world))
    from_target(world, AsyncMessage(async_event=AsyncEvent.CONNECTION_DROPPED, parameter2=3))
    assert world.session.connect_at == world.now + 3
    world.connect()
    world.run()
    result(task)


def test_ping_of_the_target_is_answered() -> None:
    world = World().know()
    from_target(world, NopIn(target_transfer_tag=5, lun=0))
    connection = world.session.connection
    assert connection is not None
    header = b"".join(connection.outbox.segments())
    assert (header[0], header[20:24]) == (0x40, b"\0\0\0\5")


def test_silent_target_is_pinged_and_then_given_up() -> None:
    world = World(ping_interval=10.0, ping_timeout=5.0).know()
    world.later(10.0)
    connection = world.session.connection
    assert connection is not None and connection.pinged
    world.run()
    assert not connection.pinged
    world.later(10.0)
    world.later(5.0)
    assert world.session.connection is None


def test_target_has_its_time_for_a_ping_also_when_we_were_away_for_long() -> None:
    """A laptop sleeps, a virtual machine is stopped for a while: the target knows nothing of that."""
    world = World(ping_interval=10.0, ping_timeout=5.0).know()
    world.later(3600.0)
    world.later(4.0)
    assert world.session.connection is not None
    world.run()
    assert not world.session.connection.pinged
    world.later(10.0)
    world.later(5.0)
    assert world.session.connection is None


# --- time-outs and task management ------------------------------------------------------------------------------------


def test_late_command_is_aborted() -> None:
    world = World(DEVICES["blocking"](), timeout=2.0).know()
    late, other = world.submit(read(world)), world.submit(read(world))
    other.deadline = world.now + 100
    world.to_target()
    world.later(2.0)
    world.run(pool=False)
    world.pool.calls.pop(1)[1](None, None)
    world.run()
    with pytest.raises(CommandTimeout, match="2 seconds"):
        result(late)
    assert world.session.ready
    assert world.session.logins == 1


def test_target_that_does_not_answer_the_abort_loses_the_connection_and_others_are_replayed() -> None:
    world = World(DEVICES["blocking"](), timeout=2.0, abort_timeout=1.0).know()
    late, other = world.submit(read(world)), world.submit(read(world))
    other.deadline = world.now + 100
    world.later(2.0)
    world.later(1.0)
    with pytest.raises(CommandTimeout):
        result(late)
    assert world.session.connection is None and not other.done
    world.connect()
    world.run()
    result(other)


def test_time_until_the_next_look_is_never_negative() -> None:
    """poll(2) takes a negative one for "for ever": nobody would look at what is late."""
    world = World(DEVICES["blocking"](), timeout=2.0).know()
    world.submit(read(world))
    world.to_target()
    world.now += 10.0  # answers to others kept everybody from looking at the clock
    assert world.session.next_tick(world.now) == 0.0


@pytest.mark.parametrize("function", [TmfFunction.ABORT_TASK_SET, TmfFunction.ABORT_TASK])
def test_task_management_ends_the_tasks_that_it_covers(function: TmfFunction) -> None:
    world = World(DEVICES["blocking"]()).know()
    task = world.submit(read(world))
    world.to_target()
    request = world.submit(world.unit.management(function, task))
    world.run()
    assert result(request).response == TmfResponse.FUNCTION_COMPLETE
    with pytest.raises(CommandAborted):
        result(task)


def test_abort_of_a_task_that_is_over_says_so() -> None:
    world = World().know()
    task = world.do(read(world))
    request = world.do(world.unit.management(TmfFunction.ABORT_TASK, task))
    assert request.response == TmfResponse.TASK_DOES_NOT_EXIST


def tmf_answer(world: World, request: Management, response: int) -> None:
    connection = world.session.connection
    assert connection is not None
    pdu = TaskManagementResponse(initiator_task_tag=request.tag, response=response)
    pdu.stat_sn, pdu.exp_cmd_sn, pdu.max_cmd_sn = connection.exp_stat_sn, connection.cmd_sn, connection.max_cmd_sn
    world.hear(pdu.pack())


def test_abort_of_a_task_that_was_never_sent_takes_it_back() -> None:
    world = World(DEVICES["blocking"](), depth=1).know()
    data = memoryview(bytes([7]) * 512)
    first, waiting = world.submit(read(world)), world.submit(world.unit.write(0, data))
    request = world.submit(world.unit.management(TmfFunction.ABORT_TASK, waiting))
    world.run()
    assert result(request).response == TmfResponse.FUNCTION_COMPLETE
    with pytest.raises(CommandAborted):
        result(waiting)
    result(first)
    assert not any(world.device.content[:512])


def test_abort_of_a_task_of_an_earlier_connection_hits_no_other() -> None:
    """Tags begin anew with each connection."""
    world = World(DEVICES["blocking"]()).know()
    block = memoryview(bytes(512))
    gone = world.submit(world.unit.compare_and_write(0, block, block))
    world.cut()
    request = world.submit(world.unit.management(TmfFunction.ABORT_TASK, gone))
    others = [read(world) for _ in range(8)]
    world.submit(*others)
    world.pool.calls.clear()
    world.connect()
    world.run()
    assert result(request).response == TmfResponse.TASK_DOES_NOT_EXIST
    for other in others:
        result(other)


def test_task_that_is_being_aborted_is_not_tried_again() -> None:
    world = World(DEVICES["blocking"]()).know()
    task = world.submit(read(world))
    world.submit(world.unit.management(TmfFunction.ABORT_TASK, task))
    answer(world, task, Status.CHECK_CONDITION, sense_of(Reason.I_T_NEXUS_LOSS))
    with pytest.raises(SenseError):
        result(task)
    assert not world.session.in_flight


def test_task_that_is_being_aborted_is_not_sent_again_after_a_break() -> None:
    world = World(DEVICES["blocking"]()).know()
    task = world.submit(read(world))
    world.submit(world.unit.management(TmfFunction.ABORT_TASK, task))
    world.cut()
    with pytest.raises(OutcomeUnknown):
        result(task)


def test_late_command_that_the_target_does_not_abort_costs_the_connection() -> None:
    """What goes on at the target could be done after what the caller does next: a new login ends it."""
    world = World(DEVICES["blocking"](), timeout=2.0).know()
    late, other = world.submit(read(world)), world.submit(read(world))
    other.deadline = world.now + 100
    world.later(2.0)
    connection = world.session.connection
    assert connection is not None
    (request,) = connection.requests.values()
    assert isinstance(request, Management)
    tmf_answer(world, request, TmfResponse.FUNCTION_REJECTED)
    with pytest.raises(CommandTimeout):
        result(late)
    assert world.session.connection is None and not other.done


@pytest.mark.parametrize("answered", [True, False])
def test_late_command_that_may_not_be_repeated_may_have_been_done(answered: bool) -> None:
    """It was done, and its answer is on its way or lost: who takes it for not done makes two of it, or none."""
    world = World(DEVICES["blocking"](), timeout=2.0, abort_timeout=1.0).know()
    block = memoryview(bytes(512))
    task = world.submit(world.unit.compare_and_write(0, block, block))
    world.later(2.0)
    connection = world.session.connection
    assert connection is not None
    (request,) = connection.requests.values()
    assert isinstance(request, Management)
    if answered:
        tmf_answer(world, request, TmfResponse.TASK_DOES_NOT_EXIST)
    else:
        world.later(1.0)
    with pytest.raises(OutcomeUnknown, match="2 seconds"):
        result(task)


def test_command_that_may_not_be_repeated_may_have_been_done_when_the_session_ends() -> None:
    world = World(abort_timeout=2.0).know()
    block = memoryview(bytes(512))
    task = world.submit(world.unit.compare_and_write(0, block, block))
    world.session._end(CommandAborted("the session was closed"))
    with pytest.raises(OutcomeUnknown):
        result(task)


def test_late_task_management_breaks_the_connection() -> None:
    world = World().know()
    request = world.submit(Management(TmfFunction.LOGICAL_UNIT_RESET, 0, timeout=4.0))
    world.later(4.0)
    with pytest.raises(CommandTimeout):
        result(request)
    assert world.session.connection is None


# --- the command window -----------------------------------------------------------------------------------------------


def shut(world: World) -> None:
    """The target closes its window, with nothing under way."""
    connection = world.session.connection
    assert connection is not None
    connection.max_cmd_sn = connection.cmd_sn - 1


def pong(world: World) -> None:
    """The target answers our ping, and leaves the window as it is."""
    connection = world.session.connection
    assert connection is not None
    pdu = NopIn(initiator_task_tag=connection._tag, target_transfer_tag=0xFFFFFFFF)
    pdu.stat_sn, pdu.exp_cmd_sn, pdu.max_cmd_sn = connection.exp_stat_sn, connection.cmd_sn, connection.max_cmd_sn
    connection.outbox.clear()
    world.hear(pdu.pack())


def test_closed_window_is_asked_about_now_and_then_only() -> None:
    world = World().know()
    shut(world)
    task = world.submit(read(world))
    connection = world.session.connection
    assert connection is not None and connection.pinged
    for _ in range(5):
        pong(world)
        assert not connection.pinged
        assert 0.0 < world.session.next_tick(world.now) <= 0.5
        world.later(0.5)
        assert connection.pinged
    connection.max_cmd_sn += 8
    world.run()
    result(task)


def test_window_that_stays_closed_is_an_error_at_the_time_out() -> None:
    world = World(timeout=3.0).know()
    shut(world)
    task = world.submit(read(world))
    begin = world.now
    while not task.done and world.now < begin + 60.0:
        if world.session.connection is not None and world.session.connection.pinged:
            pong(world)
        world.later(0.25)
    assert 3.0 <= world.now - begin < 5.0
    with pytest.raises(CommandTimeout, match="takes no commands"):
        result(task)
    assert world.session.ready
    connection = world.session.connection
    assert connection is not None
    connection.max_cmd_sn += 8
    world.do(read(world))


# --- the end ----------------------------------------------------------------------------------------------------------


def test_close_logs_out_after_what_was_sent_is_answered() -> None:
    world = World(DEVICES["blocking"](), depth=1).know()
    sent, waiting = world.submit(read(world)), world.submit(read(world))
    world.session.close(world.now)
    with pytest.raises(CommandAborted):
        result(waiting)
    world.run()
    result(sent)
    assert world.session.closed
    late = world.submit(read(world))
    with pytest.raises(CommandAborted, match="closed"):
        result(late)


def test_close_does_not_wait_for_ever() -> None:
    world = World(abort_timeout=2.0).know()
    task = world.submit(read(world))
    world.session.close(world.now)
    world.later(2.0)
    world.later(2.0)
    assert world.session.closed and task.done


def test_options_insist_on_wanted_digests_only() -> None:
    offers = SessionOptions(
        initiator_name="iqn.2010-11.org.example:host", target_name=TARGET_NAME, isid=1, header_digest=True
    ).all_offers()
    assert (offers["HeaderDigest"], offers["DataDigest"]) == ("CRC32C", "None,CRC32C")
