"""initiator.unit: ranges into commands."""

from __future__ import annotations

import pytest

from iscsid.errors import InitiatorError, Unsupported
from iscsid.initiator.commands import BlockLimits, Capacity, Provisioning
from iscsid.initiator.unit import MAX_TRANSFER, Unit
from iscsid.wire.const import TmfFunction


def unit_of(block_size: int = 512, thin: bool = True, **limits: int) -> Unit:
    unit = Unit(3, 5.0)
    unit.learn_capacity(Capacity((1 << 30) // block_size, block_size, block_size, thin, thin))
    unit.learn_limits(BlockLimits(**limits))
    return unit


@pytest.mark.parametrize(
    ("block_size", "limit", "expected"),
    [(512, 0, MAX_TRANSFER), (4096, 0, MAX_TRANSFER), (512, 128, 65536), (4096, 1 << 20, MAX_TRANSFER)],
)
def test_transfers_keep_to_the_limit_of_both(block_size: int, limit: int, expected: int) -> None:
    unit = unit_of(block_size, max_transfer=limit)
    assert unit.max_transfer == expected
    tasks = list(unit.reads(block_size, memoryview(bytearray(3 * expected))))
    assert [len(task.buffer) for task in tasks] == [expected] * 3
    lbas = [int.from_bytes(task.cdb[2:10], "big") for task in tasks]
    assert lbas == [1 + number * expected // block_size for number in range(3)]


def test_discards_keep_to_the_limit() -> None:
    unit = unit_of(max_unmap=100, max_unmap_descriptors=1)
    assert len(list(unit.discards(0, 250 * 512))) == 3
    with pytest.raises(Unsupported):
        list(unit_of().discards(0, 512))


@pytest.mark.parametrize(("thin", "may_unmap", "flag"), [(True, True, 8), (True, False, 0), (False, True, 0)])
def test_zeroes_unmap_where_that_leaves_zeros(thin: bool, may_unmap: bool, flag: int) -> None:
    tasks = list(unit_of(thin=thin, max_write_same=64).zeroes(0, 100 * 512, may_unmap))
    assert [task.cdb[1] for task in tasks] == [flag] * 2
    assert all(bytes(task.data_out) == bytes(512) for task in tasks)


def test_extents_are_cut_to_what_was_asked() -> None:
    unit = unit_of()
    data = memoryview(bytes.fromhex("00000014 00000000 0000000000000000 00000010 01 000000"))
    assert unit.extents(data, 512, 1024) == [(512, 512, Provisioning.DEALLOCATED)]
    with pytest.raises(InitiatorError, match="says nothing"):
        unit.extents(data, 16 * 512, 20 * 512)


@pytest.mark.parametrize(
    "second", ["0000000000000012 00000004", "0000000000000008 00000004", "0000000000000000 00000010"]
)
def test_extents_end_where_they_are_not_without_a_gap(second: str) -> None:
    """What lies in the gap would be taken for nothing: it is asked about by itself."""
    unit = unit_of()
    first = "0000000000000000 00000010 01 000000"
    data = memoryview(bytes.fromhex(f"00000024 00000000 {first} {second} 01 000000"))
    assert unit.extents(data, 0, 64 * 512) == [(0, 16 * 512, Provisioning.DEALLOCATED)]


def test_target_resets_name_no_unit() -> None:
    unit = unit_of()
    assert unit.management(TmfFunction.TARGET_WARM_RESET).lun == 0
    assert unit.management(TmfFunction.LOGICAL_UNIT_RESET).lun == unit.field == 3 << 48


def test_only_what_may_be_repeated_is_replayed() -> None:
    unit = unit_of()
    block = memoryview(bytes(512))
    assert unit.write(0, block).replay and unit.flush().replay
    assert not unit.compare_and_write(0, block, block).replay
    assert not unit.command(bytes(6), b"", memoryview(bytearray(0)), None, False).replay
