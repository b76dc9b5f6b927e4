"""initiator.connection: what a target does wrong ends the connection, and only that."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import INITIATOR_NAME, ISID, TARGET_NAME
from hypothesis import given, settings
from hypothesis import strategies as st
from initiator_pair import World
from target_rig import DEVICES

from iscsid.errors import InitiatorError, RemoteProtocolError
from iscsid.initiator.connection import STRAYS, InitiatorConnection
from iscsid.initiator.task import Management, Task, TextExchange
from iscsid.session.login import InitiatorLogin
from iscsid.wire.const import FINAL, OVERFLOW, STATUS, UNDERFLOW, RejectReason
from iscsid.wire.pdu import (
    R2T,
    LoginResponse,
    Pdu,
    Reject,
    ScsiDataIn,
    ScsiResponse,
    TaskManagementResponse,
    TextResponse,
)


@pytest.fixture
def world() -> World:
    return World(DEVICES["blocking"]()).know()


def say(world: World, pdu: Any) -> None:
    """The target sends ``pdu``, rightly numbered; raises what the connection makes of it."""
    connection = world.session.connection
    assert connection is not None
    for name, value in (
        ("stat_sn", connection.exp_stat_sn),
        ("exp_cmd_sn", connection.cmd_sn),
        ("max_cmd_sn", connection.max_cmd_sn),
    ):
        setattr(pdu, name, value)
    data = pdu.pack() + bytes(pdu.data) + bytes(-len(pdu.data) % 4)
    connection.framer.writable()[: len(data)] = data
    connection.framer.received(len(data))
    connection.receive()


@pytest.mark.parametrize(
    "pdu",
    [
        ScsiDataIn(flags=FINAL, initiator_task_tag=77, data=b"abcd"),
        ScsiResponse(initiator_task_tag=77),
        R2T(initiator_task_tag=77, desired_data_transfer_length=5),
        TaskManagementResponse(initiator_task_tag=77),
        TextResponse(initiator_task_tag=77),
        LoginResponse(),
    ],
    ids=lambda pdu: type(pdu).__name__,
)
def test_answer_to_nothing_ends_the_connection(world: World, pdu: Pdu) -> None:
    with pytest.raises(RemoteProtocolError):
        say(world, pdu)


@pytest.mark.parametrize(
    "fields",
    [{"buffer_offset": 4}, {"data_sn": 1}, {"data": bytes(1024)}],
    ids=["offset", "number", "length"],
)
def test_data_in_out_of_order_or_bounds_ends_the_connection(world: World, fields: dict[str, Any]) -> None:
    buffer = bytearray(512)
    task = world.submit(world.unit.read(0, memoryview(buffer)))
    with pytest.raises(RemoteProtocolError, match="out of its order"):
        say(world, ScsiDataIn(**{"initiator_task_tag": task.tag, "data": b"abcd", **fields}))
    assert not any(buffer)


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 513), (512, 1), (1 << 31, 1)])
def test_r2t_for_what_is_not_there_ends_the_connection(world: World, offset: int, length: int) -> None:
    task = world.submit(world.unit.write(0, memoryview(bytes(512))))
    with pytest.raises(RemoteProtocolError, match="an R2T for"):
        say(
            world,
            R2T(
                initiator_task_tag=task.tag,
                target_transfer_tag=1,
                buffer_offset=offset,
                desired_data_transfer_length=length,
            ),
        )


def test_r2ts_for_more_than_the_data_end_the_connection(world: World) -> None:
    task = world.submit(Task(world.unit.field, bytes(16), data_out=memoryview(bytes(1 << 20))))
    r2t = R2T(initiator_task_tag=task.tag, buffer_offset=1 << 19, desired_data_transfer_length=1 << 19)
    say(world, r2t)
    say(world, r2t)
    with pytest.raises(RemoteProtocolError, match="more data than there is"):
        say(world, r2t)


def test_depth_of_hundreds_of_large_writes_is_no_fault_of_the_target() -> None:
    world = World(DEVICES["blocking"](), depth=400, queue_depth=400).know()
    data = memoryview(bytes(1 << 20))
    tasks = [world.submit(Task(world.unit.field, bytes(16), data_out=data)) for _ in range(330)]
    for task in tasks:
        say(world, R2T(initiator_task_tag=task.tag, buffer_offset=1 << 18, desired_data_transfer_length=3 << 18))


def test_good_with_less_data_than_was_read_is_an_error(world: World) -> None:
    task = world.submit(world.unit.read(0, memoryview(bytearray(512))))
    say(world, ScsiDataIn(flags=FINAL | STATUS, initiator_task_tag=task.tag, data=b"abcd"))
    assert task.done and "4 of 512 bytes" in str(task.error)


@pytest.mark.parametrize("flag", [UNDERFLOW, OVERFLOW])
@pytest.mark.parametrize("kind", ["read", "write", "compare and write"])
def test_good_for_another_length_is_an_error(world: World, kind: str, flag: int) -> None:
    """So it is where the blocks of the disk have another size by now: it was done elsewhere."""
    block = memoryview(bytearray(512))
    task = {
        "read": world.unit.read(0, block),
        "write": world.unit.write(0, block),
        "compare and write": world.unit.compare_and_write(0, block, block),
    }[kind]
    world.submit(task)
    if kind == "read":
        say(
            world,
            ScsiDataIn(flags=FINAL | STATUS | flag, initiator_task_tag=task.tag, data=block, residual_count=512 * 7),
        )
    else:
        say(world, ScsiResponse(flags=FINAL | flag, initiator_task_tag=task.tag, residual_count=512 * 7))
    assert task.done and isinstance(task.error, InitiatorError)


def test_response_code_of_a_failed_target_is_an_error(world: World) -> None:
    task = world.submit(world.unit.read(0, memoryview(bytearray(512))))
    say(world, ScsiResponse(response=1, initiator_task_tag=task.tag))
    assert "could not execute" in str(task.error)


def test_sense_length_beyond_the_segment_ends_the_connection(world: World) -> None:
    task = world.submit(world.unit.read(0, memoryview(bytearray(512))))
    with pytest.raises(RemoteProtocolError):
        say(world, ScsiResponse(status=2, initiator_task_tag=task.tag, data=b"\x00\xff\x70\x00"))


def test_aborted_tasks_are_remembered_for_a_while_only(world: World) -> None:
    connection = world.session.connection
    assert connection is not None
    for number in range(3 * STRAYS):
        task = Task(world.unit.field, bytes(16))
        task.tag = 1000 + number
        connection.forget(task)
    say(world, ScsiResponse(initiator_task_tag=1000 + 3 * STRAYS - 1))
    assert len(connection._aborted) == STRAYS


def test_reject_of_a_command_fails_it_and_ends_the_connection(world: World) -> None:
    task = world.submit(world.unit.read(0, memoryview(bytearray(512))))
    header = b"\x01" + bytes(15) + task.tag.to_bytes(4, "big") + bytes(28)
    with pytest.raises(RemoteProtocolError, match="invalid pdu field"):
        say(world, Reject(reason=RejectReason.INVALID_PDU_FIELD, data=header))
    assert isinstance(task.error, InitiatorError)


@pytest.mark.parametrize("reason", [RejectReason.DATA_DIGEST_ERROR, RejectReason.WAITING_FOR_LOGOUT])
def test_reject_that_is_not_the_commands_fault_has_it_sent_again(world: World, reason: RejectReason) -> None:
    task = world.submit(world.unit.read(0, memoryview(bytearray(512))))
    header = b"\x01" + bytes(15) + task.tag.to_bytes(4, "big") + bytes(28)
    with pytest.raises(RemoteProtocolError) as caught:
        say(world, Reject(reason=reason, data=header))
    assert not task.done
    world.session.lost(caught.value, world.now)
    world.connect()
    assert task.done and task.error is None


def test_reject_of_task_management_fails_only_that(world: World) -> None:
    request = world.submit(Management(5, 0))
    header = b"\x42" + bytes(15) + request.tag.to_bytes(4, "big") + bytes(28)
    say(world, Reject(reason=RejectReason.COMMAND_NOT_SUPPORTED, data=header))
    assert request.done and "command not supported" in str(request.error)


def test_text_in_pieces_is_joined(world: World) -> None:
    request = world.submit(TextExchange([("SendTargets", "All")]))
    pieces = [(b"TargetName=iq", False), (b"n.a\0", True)]
    for data, final in pieces:
        tag = 0xFFFFFFFF if final else 5
        say(
            world,
            TextResponse(
                initiator_task_tag=request.tag, target_transfer_tag=tag, final=final, continued=not final, data=data
            ),
        )
    assert request.answer == [("TargetName", "iqn.a")]


@pytest.mark.parametrize(
    "pdu",
    [
        TextResponse(final=True, data=b"\xff\xfe="),
        TextResponse(final=True, data=b"no pair\0"),
        TaskManagementResponse(),
    ],
    ids=["not utf-8", "no pair", "management"],
)
def test_text_that_is_answered_wrongly_ends_with_the_connection(world: World, pdu: Any) -> None:
    request = world.submit(TextExchange([("SendTargets", "All")]))
    pdu.initiator_task_tag = request.tag
    with pytest.raises(RemoteProtocolError) as caught:
        say(world, pdu)
    world.session.lost(caught.value, world.now)
    assert request.done and isinstance(request.error, InitiatorError)


def test_window_only_moves_forward(world: World) -> None:
    connection = world.session.connection
    assert connection is not None
    before = connection.max_cmd_sn
    connection._move_window(before - 5)
    assert connection.max_cmd_sn == before
    connection._move_window(before + 5)
    assert connection.max_cmd_sn == before + 5


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_instead_of_a_login_response_are_a_protocol_error_or_wait(data: bytes) -> None:
    connection = InitiatorConnection(InitiatorLogin(INITIATOR_NAME, TARGET_NAME, isid=ISID), lambda ticket: None)
    connection.framer.writable()[: len(data)] = data
    connection.framer.received(len(data))
    try:
        connection.receive()
    except RemoteProtocolError:
        return
    assert not connection.ready


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([0x20, 0x21, 0x22, 0x24, 0x25, 0x26, 0x31, 0x32, 0x3F]), st.binary(min_size=47, max_size=120))
def test_any_bytes_in_full_feature_phase_are_a_protocol_error_or_harmless(opcode: int, rest: bytes) -> None:
    world = World().connect()
    task = world.unit.command(bytes(6), b"", memoryview(bytearray(64)), None, True)
    world.submit(task)
    head = bytearray((bytes([opcode]) + rest)[:48])
    head[4:8] = (len(rest) - 47).to_bytes(4, "big")
    head[16:20] = task.tag.to_bytes(4, "big")
    world.hear(bytes(head) + rest[47:] + bytes(-(len(rest) - 47) % 4))
    assert world.session.connection is not None or world.session.waiting or task.done
