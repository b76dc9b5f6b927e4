"""Operations of a nexus: one per list identifier, a bounded number of them."""

from __future__ import annotations

import pytest

from iscsid.errors import BlockError, Fault, ScsiError
from iscsid.scsi.copy_state import ALONE, MAX_OPERATIONS, Copies, Operation
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import NexusId


def over(identifier: int) -> Operation:
    operation = Operation(identifier, 0)
    operation.running = False
    return operation


def test_operation_is_found_by_its_list_identifier() -> None:
    copies, operation = Copies(), Operation(7, 0)
    copies.begin(operation)
    assert copies.get(7) is operation
    assert copies.get(8) is None


def test_list_identifier_of_a_running_operation_is_refused() -> None:
    copies, first = Copies(), Operation(7, 0)
    copies.begin(first)
    with pytest.raises(ScsiError) as caught:
        copies.begin(Operation(7, 0))
    assert caught.value.reason is Reason.OPERATION_IN_PROGRESS
    assert copies.get(7) is first


def test_operation_that_is_over_gives_way_to_one_with_its_list_identifier() -> None:
    copies, second = Copies(), Operation(7, 0)
    copies.begin(over(7))
    copies.begin(second)
    assert copies.get(7) is second


def test_oldest_operation_that_is_over_gives_way_when_there_are_many() -> None:
    copies = Copies()
    copies.begin(Operation(0, 0))
    for identifier in range(1, MAX_OPERATIONS + 5):
        copies.begin(over(identifier))
    assert copies.get(0) is not None
    assert [copies.get(identifier) for identifier in range(1, 6)] == [None] * 5
    assert all(copies.get(identifier) for identifier in range(6, MAX_OPERATIONS + 5))


def test_no_more_than_so_many_run_at_once() -> None:
    copies = Copies()
    for identifier in range(MAX_OPERATIONS):
        copies.begin(Operation(identifier, 0))
    with pytest.raises(BlockError) as caught:
        copies.begin(Operation(MAX_OPERATIONS, 0))
    assert caught.value.fault is Fault.NO_RESOURCES


def test_unit_alone_finds_nobody() -> None:
    assert ALONE.find((1, 3, b"12345678"), NexusId("a", 1, "b", 1)) is None


def test_cancelled_operation_says_so() -> None:
    operation = Operation(1, 0)
    assert not operation.cancelled
    operation.cancel()
    assert operation.cancelled
