"""EXTENDED COPY between units: what is copied, and what a copy that cannot be done ends with."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from copy_kit import acquaint, b2b, cscd, extended_copy, lid1, lid4, refused

from iscsid.errors import ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.copy import running
from iscsid.scsi.copy_list import MAX_DESCRIPTORS_LENGTH, MAX_SEGMENT_LENGTH
from iscsid.scsi.copy_state import Operation
from iscsid.scsi.lu import Identity
from iscsid.scsi.plan import Job, Reply
from iscsid.scsi.sense import Reason


def neighbours(make_unit: Callable, *, blocks: int = 2048, block_size: int = 512, **facts: object) -> tuple:
    one = make_unit(2048)
    other = make_unit(blocks, block_size, identity=Identity("SER0002", "iqn.x,L,0x1"), **facts)
    acquaint(one, other)
    one.memory.medium[:] = random.Random(1).randbytes(len(one.memory.medium))
    return one, other


@pytest.fixture
def two(make_unit: Callable) -> tuple:
    return neighbours(make_unit)


@pytest.mark.parametrize(("build", "action"), [(lid1, 0), (lid4, 1)])
@pytest.mark.parametrize("which", [0, 1])
def test_segments_are_copied_in_turn(two: tuple, build: Callable, action: int, which: int) -> None:
    one, other = two
    segments = [b2b(0, 1, 8, 16, 100), b2b(1, 0, 4, 100, 1000), b2b(0xFFFF, 1, 1, 0, 0)]
    data = build([cscd(one), cscd(other, which=which)], segments)
    assert extended_copy(one, data, action) == b""
    assert other.memory.medium[100 * 512 : 108 * 512] == one.memory.medium[16 * 512 : 24 * 512]
    assert one.memory.medium[1000 * 512 : 1004 * 512] == one.memory.medium[16 * 512 : 20 * 512]
    assert other.memory.medium[:512] == one.memory.medium[:512]
    operation = one.nexus.copies.get(1 if build is lid1 else 0x01020304)
    assert (operation.running, operation.error, operation.segments) == (False, None, 3)
    assert operation.transferred == 13 * 512
    assert operation.service_action == action


def test_unit_that_is_asked_need_not_take_part(two: tuple) -> None:
    one, other = two
    extended_copy(other, lid1([cscd(one)], [b2b(0, 0, 4, 0, 8)]))
    assert one.memory.medium[8 * 512 : 12 * 512] == one.memory.medium[: 4 * 512]


@pytest.mark.parametrize(("flags", "copied"), [(0, 8 * 512), (2, 8 * 4096)])
def test_blocks_are_counted_by_source_or_destination(make_unit: Callable, flags: int, copied: int) -> None:
    one, other = neighbours(make_unit, blocks=256, block_size=4096)
    data = lid1([cscd(one), cscd(other, block_length=4096)], [b2b(0, 1, 8, 8, 2, flags=flags)])
    extended_copy(one, data)
    assert other.memory.medium[8192 : 8192 + copied] == one.memory.medium[4096 : 4096 + copied]
    assert not any(other.memory.medium[8192 + copied :])


def test_inexact_segment_is_unexpected(make_unit: Callable) -> None:
    one, other = neighbours(make_unit, blocks=256, block_size=4096)
    error = refused(one, lid1([cscd(one), cscd(other, block_length=4096)], [b2b(0, 1, 9, 0, 0)]))
    assert (error.reason, error.segment) == (Reason.UNEXPECTED_INEXACT_SEGMENT, 0)


@pytest.mark.parametrize("length", [0, 16])
def test_nothing_to_do_is_good(unit, length: int) -> None:
    assert extended_copy(unit, bytes(length)) == b""


def test_list_without_length_is_planned_as_done(unit) -> None:
    assert isinstance(unit.plan("83 00 0000000000000000 00000000 00 00"), Reply)


@pytest.mark.parametrize(("action", "header"), [(0, 16), (1, 48)])
def test_length_of_the_list_has_limits(unit, action: int, header: int) -> None:
    for length in (1, header - 1, header + MAX_DESCRIPTORS_LENGTH + 1, 0xFFFFFFFF):
        error = unit.refusal(f"83 {action:02x} 0000000000000000 {length:08x} 00 00")
        assert error.reason is Reason.PARAMETER_LIST_LENGTH_ERROR


def test_copy_is_a_job_for_the_pool_that_can_be_cancelled(two: tuple) -> None:
    one, other = two
    data = lid1([cscd(one), cscd(other)], [b2b(0, 1, 8, 0, 0)])
    plan = one.plan(f"83 00 0000000000000000 {len(data):08x} 00 00")
    assert isinstance(plan, Job) and plan.cost > 1 << 40 and not plan.locks
    plan.cancel()
    with pytest.raises(ScsiError) as caught:
        plan.run(memoryview(data))
    assert caught.value.reason is Reason.COPY_OPERATION_ABORTED
    assert not any(other.memory.medium)


def test_less_data_than_announced_is_a_length_error(two: tuple) -> None:
    one, other = two
    data = lid1([cscd(one), cscd(other)], [b2b(0, 1, 8, 0, 0)])
    plan = one.plan(f"83 00 0000000000000000 {len(data):08x} 00 00")
    with pytest.raises(ScsiError) as caught:
        plan.run(memoryview(data[:-1]))
    assert caught.value.reason is Reason.PARAMETER_LIST_LENGTH_ERROR


@pytest.mark.parametrize(
    ("segment", "reason", "field"),
    [
        (b2b(2, 0, 1, 0, 0), Reason.UNREACHABLE_COPY_TARGET, 4),
        (b2b(0, 2, 1, 0, 0), Reason.UNREACHABLE_COPY_TARGET, 6),
        (b2b(0, 0xC000, 1, 0, 0), Reason.UNREACHABLE_COPY_TARGET, 6),  # the null device
        (b2b(0, 1, 1, 2048, 0), Reason.COPY_TARGET_DEVICE_NOT_REACHABLE, None),
        (b2b(0, 1, 2, 0, 2047), Reason.COPY_TARGET_DEVICE_NOT_REACHABLE, None),
        (b2b(0, 1, 1, 0, 1 << 63), Reason.COPY_TARGET_DEVICE_NOT_REACHABLE, None),
    ],
)
def test_segment_that_cannot_be_copied_aborts_the_copy(two: tuple, segment: bytes, reason: Reason, field: int) -> None:
    one, other = two
    error = refused(one, lid1([cscd(one), cscd(other)], [b2b(0, 1, 2, 0, 0), segment, b2b(0, 1, 1, 7, 7)]))
    assert (error.reason, error.segment, error.field) == (reason, 1, field)
    assert other.memory.medium[:1024] == one.memory.medium[:1024]  # what was copied before stays
    assert not any(other.memory.medium[1024:])
    operation = one.nexus.copies.get(1)
    assert (operation.error, operation.segments, operation.running) == (error, 1, False)


def test_unknown_unit_is_not_reachable(two: tuple, make_unit: Callable) -> None:
    stranger = make_unit(identity=Identity("SER0003", "iqn.y"))
    error = refused(two[0], lid1([cscd(two[0]), cscd(stranger)], [b2b(0, 1, 1, 0, 0)]))
    assert (error.reason, error.field) == (Reason.COPY_TARGET_DEVICE_NOT_REACHABLE, 6)


def test_other_device_type_is_the_wrong_one(two: tuple) -> None:
    error = refused(two[0], lid1([cscd(two[0]), cscd(two[1], flags=1)], [b2b(0, 1, 1, 0, 0)]))
    assert error.reason is Reason.INCORRECT_COPY_TARGET_DEVICE_TYPE


def test_wrong_block_length_is_refused_and_none_is_taken(two: tuple) -> None:
    error = refused(two[0], lid1([cscd(two[0]), cscd(two[1], block_length=4096)], [b2b(0, 1, 1, 0, 0)]))
    assert (error.reason, error.segment) == (Reason.INVALID_COPY_PARAMETER, 0)
    extended_copy(two[0], lid1([cscd(two[0]), cscd(two[1], block_length=0)], [b2b(0, 1, 1, 0, 0)]))


def test_segment_has_a_maximum_length(make_unit: Callable) -> None:
    unit = make_unit(16, 65536)
    acquaint(unit)
    blocks = MAX_SEGMENT_LENGTH // 65536
    error = refused(unit, lid1([cscd(unit, block_length=0)], [b2b(0, 0, blocks + 1, 0, 0)]))
    assert (error.reason, error.field) == (Reason.INVALID_COPY_PARAMETER, 10)


def test_write_protected_destination_is_a_failure_of_a_third_party(make_unit: Callable) -> None:
    one, other = neighbours(make_unit, readonly=True)
    error = refused(one, lid1([cscd(one), cscd(other)], [b2b(0, 1, 1, 0, 0)]))
    assert (error.reason, error.segment) == (Reason.THIRD_PARTY_DEVICE_FAILURE, 0)


def test_failing_medium_is_a_failure_of_a_third_party(two: tuple) -> None:
    def fail(buffer: memoryview, offset: int) -> None:
        raise OSError(5, "bad sector")

    two[0].lu.device._read = fail
    error = refused(two[0], lid1([cscd(two[0]), cscd(two[1])], [b2b(0, 1, 1, 0, 0)]))
    assert error.reason is Reason.THIRD_PARTY_DEVICE_FAILURE


def test_conflict_with_a_reservation_stays_one(two: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = two

    def conflict(*_: object) -> None:
        raise ScsiError(Status.RESERVATION_CONFLICT)

    monkeypatch.setattr(type(other.lu), "plan", conflict)
    data = lid1([cscd(one), cscd(other)], [b2b(0, 1, 1, 0, 0)])
    monkeypatch.undo()
    plan = one.plan(f"83 00 0000000000000000 {len(data):08x} 00 00")
    monkeypatch.setattr(type(other.lu), "plan", conflict)
    with pytest.raises(ScsiError) as caught:
        plan.run(memoryview(data))
    assert (caught.value.reason, caught.value.segment) == (Status.RESERVATION_CONFLICT, None)
    assert one.nexus.copies.get(1).error.reason is Reason.THIRD_PARTY_DEVICE_FAILURE


def test_list_that_wants_no_list_identifier_is_not_remembered(two: tuple) -> None:
    extended_copy(two[0], lid1([cscd(two[0])], [b2b(0, 0, 1, 0, 1)], identifier=0, usage=3))
    assert two[0].nexus.copies.get(0) is None


def test_abort_reaches_the_operation_and_no_other(unit) -> None:
    operation, other = Operation(0x01020304, 1), Operation(2, 1)
    for each in (operation, other):
        unit.nexus.copies.begin(each)
    assert unit.run("83 1c 01020304 000000000000000000 00") == b""
    assert (operation.cancelled, other.cancelled) == (True, False)
    error = unit.refusal("83 1c 00000009 000000000000000000 00")
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 2)


def test_operation_that_raises_is_over() -> None:
    operation = Operation(1, 0)
    with pytest.raises(OSError, match="bad"), running(operation):
        raise OSError("bad")
    assert not operation.running
    assert operation.error is not None and operation.error.reason is Reason.THIRD_PARTY_DEVICE_FAILURE


def test_noise_ends_in_scsi_errors_or_is_copied(two: tuple) -> None:
    one, other = two
    data = lid1([cscd(one), cscd(other)], [b2b(0, 1, 8, 0, 100), b2b(1, 0, 8, 3, 9)])
    dice = random.Random(83)
    for _ in range(500):
        noisy = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            noisy[dice.randrange(len(noisy))] = dice.randrange(256)
        try:
            extended_copy(one, bytes(noisy))
        except ScsiError as error:
            assert isinstance(error.reason, Reason)
