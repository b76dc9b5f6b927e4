"""initiator.disk: every method against our target, without a socket."""

from __future__ import annotations

from typing import Any

import pytest
from initiator_pair import InMemoryClient, World
from target_rig import DEVICES, SIZE, Inline, pattern

from iscsid.errors import CommandAborted, ManagementFailed, Miscompare, SenseError, Unsupported
from iscsid.initiator.disk import Disk, management_text
from iscsid.initiator.task import Management, Task
from iscsid.scsi.reservation import Type as ReservationType
from iscsid.wire.const import TmfFunction, TmfResponse


def disk_of(world: World, **options: Any) -> Disk:
    return Disk(InMemoryClient(world), 0, **options)  # type: ignore[arg-type]  # all that a disk wants of it


@pytest.fixture
def disk() -> Disk:
    return disk_of(World())


def content(disk: Disk) -> bytearray:
    found: bytearray = disk.client.world.device.content  # type: ignore[attr-defined]  # it is an InMemoryClient
    return found


def test_facts(disk: Disk) -> None:
    assert (disk.lun, disk.size, disk.block_size) == (0, SIZE, 512)
    assert disk.capacity().blocks == SIZE // 512
    assert disk.inquiry().present
    assert disk.vpd(0x00)[1] == 0
    assert disk.report_luns() == [0]
    assert disk.limits.max_compare_and_write == 255
    disk.test_unit_ready()


def test_page_that_is_not_there_is_sense(disk: Disk) -> None:
    with pytest.raises(SenseError) as caught:
        disk.vpd(0xEE)
    assert caught.value.reason == "INVALID_FIELD_IN_CDB"


def test_long_transfers_are_cut(disk: Disk) -> None:
    data = pattern(5 << 20)
    disk.write(512, data)
    assert content(disk)[512 : 512 + len(data)] == data
    assert disk.read(512, len(data)) == data
    buffer = bytearray(len(data) + 10)
    disk.readinto(512, memoryview(buffer)[5:-5])
    assert buffer[5:-5] == data


@pytest.mark.parametrize(("offset", "length"), [(1, 512), (0, 511), (-512, 512), (SIZE, 512), (SIZE - 512, 1024)])
def test_what_is_not_made_of_blocks_of_the_disk_is_refused(disk: Disk, offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="bytes at"):
        disk.read(offset, length)
    with pytest.raises(ValueError, match="bytes at"):
        disk.write(offset, bytes(length))


def test_flush_reaches_the_device() -> None:
    world = World(DEVICES["volatile"]())
    disk = disk_of(world)
    disk.write(0, bytes(512))
    disk.flush()
    assert ("flush", 0, 0) in world.device.calls
    world.device.calls.clear()
    disk.write(0, bytes(512), fua=True)
    assert ("flush", 0, 0) in world.device.calls


def test_zeroes_are_written_whatever_the_target_can(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write(0, b"x" * 8192)
    disk.write_zeroes(512, 4096)
    assert content(disk)[:8192] == b"x" * 512 + bytes(4096) + b"x" * 3584
    unit = disk._unit
    refused = unit.command(b"\xff" * 16, b"", memoryview(bytearray(0)), None, True)
    refused.raw = False
    monkeypatch.setattr(unit, "zeroes", lambda *_: [refused])
    disk.write_zeroes(0, 8192)
    assert not any(content(disk)[:8192])


def test_discard_needs_a_target_that_does_it(disk: Disk) -> None:
    disk._unit.learn_limits(disk.limits._replace(max_unmap=0))
    with pytest.raises(Unsupported):
        disk.discard(0, 512)


def test_compare_and_write_is_one_step(disk: Disk) -> None:
    disk.compare_and_write(0, bytes(512), b"a" * 512)
    with pytest.raises(Miscompare):
        disk.compare_and_write(0, bytes(512), b"b" * 512)
    with pytest.raises(ValueError, match="replaced"):
        disk.compare_and_write(0, bytes(512), bytes(1024))
    with pytest.raises(ValueError, match=r"1 \.\. 255"):
        disk.compare_and_write(0, bytes(512 * 256), bytes(512 * 256))


def test_map_needs_a_target_that_has_one(disk: Disk) -> None:
    with pytest.raises(Unsupported, match="GET LBA STATUS"):
        list(disk.block_status(0, 1 << 20))


def test_tickets_are_waited_for_in_any_order(disk: Disk) -> None:
    buffers = [bytearray(512) for _ in range(4)]
    content(disk)[:2048] = pattern(2048)
    tickets = [disk.submit_read(number * 512, buffer) for number, buffer in enumerate(buffers)]
    disk.push()
    for ticket in reversed(tickets):
        disk.wait(ticket)
    assert b"".join(buffers) == pattern(2048)
    disk.wait(disk.submit_write(0, b"w" * 512, fua=True))
    disk.wait(disk.submit_flush())
    assert content(disk)[:512] == b"w" * 512
    assert disk.max_transfer == 1 << 20


def test_one_failure_of_many_is_told_when_all_are_over() -> None:
    device = Inline(32 << 20)
    disk = disk_of(World(device, depth=2))
    device.bad = 3 << 20
    with pytest.raises(SenseError):
        disk.write(0, bytes(16 << 20))
    assert not disk.client.session.busy


class Recorder:
    """A client that remembers what it is asked, and answers it with what the test says."""

    def __init__(self, disk: Disk, response: int = TmfResponse.FUNCTION_COMPLETE) -> None:
        self.asked: list[Any] = []
        self.options = disk.client.options
        self.response = response

    def run(self, task: Task) -> Task:
        self.asked.append(task)
        return task

    def ask(self, request: Management) -> None:
        self.asked.append(request)

    def wait(self, request: Management) -> Management:
        request.response = self.response
        return request


@pytest.mark.parametrize(
    ("call", "action", "keys", "kind"),
    [
        (lambda disk: disk.register(5), 0, (0, 5), 0),
        (lambda disk: disk.register(5, old_key=4), 0, (4, 5), 0),
        (lambda disk: disk.register(5, ignore_existing=True), 6, (0, 5), 0),
        (lambda disk: disk.reserve(5, ReservationType.EXCLUSIVE_ACCESS), 1, (5, 0), 3),
        (lambda disk: disk.release(5), 2, (5, 0), 1),
        (lambda disk: disk.clear(5), 3, (5, 0), 0),
        (lambda disk: disk.preempt(5, 6), 4, (5, 6), 1),
        (lambda disk: disk.preempt(5, 6, abort=True), 5, (5, 6), 1),
    ],
)
def test_reservation_calls_are_the_service_actions(
    disk: Disk, call: Any, action: int, keys: tuple[int, int], kind: int
) -> None:
    recorder = disk.client = Recorder(disk)  # type: ignore[assignment]  # all that these calls want of it
    call(disk)
    (task,) = recorder.asked
    assert (task.cdb[0], task.cdb[1], task.cdb[2]) == (0x5F, action, kind)
    assert tuple(int.from_bytes(task.data_out[at : at + 8], "big") for at in (0, 8)) == keys
    assert not task.replay


def test_reservations_are_read(disk: Disk) -> None:
    assert disk.read_keys() == (0, ())
    assert disk.read_reservation() is None
    with pytest.raises(ValueError, match="64 bits"):
        disk.register(1 << 64)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("abort_task_set", TmfFunction.ABORT_TASK_SET),
        ("clear_task_set", TmfFunction.CLEAR_TASK_SET),
        ("lun_reset", TmfFunction.LOGICAL_UNIT_RESET),
        ("target_warm_reset", TmfFunction.TARGET_WARM_RESET),
        ("target_cold_reset", TmfFunction.TARGET_COLD_RESET),
    ],
)
def test_resets_are_the_functions(disk: Disk, name: str, function: TmfFunction) -> None:
    recorder = Recorder(disk)
    disk.client = recorder  # type: ignore[assignment]  # all that these calls want of it
    getattr(disk, name)()
    assert [request.function for request in recorder.asked] == [function]
    recorder.response = TmfResponse.FUNCTION_NOT_SUPPORTED
    with pytest.raises(ManagementFailed, match="function not supported"):
        getattr(disk, name)()
    assert management_text(function, 0x99).endswith("response 0x99")


def test_abort_of_a_ticket_tells_whether_it_came_in_time() -> None:
    disk = disk_of(World(DEVICES["blocking"]()))
    world: World = disk.client.world  # type: ignore[attr-defined]  # it is an InMemoryClient
    ticket = disk.submit_read(0, bytearray(512))
    world.to_target()
    assert disk.abort_task(ticket)
    with pytest.raises(CommandAborted):
        disk.wait(ticket)
    assert not disk.abort_task(ticket)


def test_raw_command_takes_one_direction(disk: Disk) -> None:
    assert disk.command(bytes(6)).status == 0
    assert disk.command(b"\x12\0\0\0\x24\0", data_in_length=36).data[8:14] == b"ISCSID"
    with pytest.raises(ValueError, match="one direction"):
        disk.command(bytes(6), b"x", 1)
    with pytest.raises(ValueError, match="CDB of 7"):
        disk.command(bytes(7))


@pytest.mark.parametrize("owned", [True, False])
def test_close_ends_the_session_that_it_owns(owned: bool) -> None:
    with disk_of(World(), owned=owned) as disk:
        client: Any = disk.client
    assert client.closed is owned
