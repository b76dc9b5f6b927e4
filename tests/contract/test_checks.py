"""The checks see what is wrong: devices with one planted fault each. tests/backends has the good ones."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from threading import Lock

import pytest
from contract_kit import Good, ShortRead, medium_of

from iscsid.block.device import Content, Device, Extent, Mode, Support, Threading
from iscsid.block.guard import Guarded
from iscsid.block.handles import Handles
from iscsid.contract import CHECKS, NotApplicable, Violation, checks, name_of
from iscsid.errors import BlockError

SIZE = 4 << 20


class Smaller(Good):
    def write(self, data: memoryview, offset: int) -> None:
        if offset + len(data) > SIZE - 4096:
            raise OSError(28, "No space left on device")
        super().write(data, offset)


class Keeps(Good):
    def __init__(self, memory: bytearray) -> None:
        super().__init__(memory)
        self.kept: list[tuple[memoryview, int]] = []

    def write(self, data: memoryview, offset: int) -> None:
        self.flush()
        self.kept.append((data, offset))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.flush()
        super().read_into(buffer, offset)

    def flush(self) -> None:
        for data, offset in self.kept:
            super().write(data, offset)
        self.kept.clear()


class OwnCopy(Good):
    def __init__(self, memory: bytearray) -> None:
        super().__init__(bytearray(memory))


class DiscardsTooMuch(Good):
    def discard(self, offset: int, length: int) -> None:
        super().discard(max(0, offset - 512), length + 512)


class DiscardsNothing(Good):
    def discard(self, offset: int, length: int) -> None:
        pass


class CallsAllZero(Good):
    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Content.HOLE | Content.ZERO)


class Gap(Good):
    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length // 2 // 512 * 512, Content.DATA)


class ZeroesTooMuch(Good):
    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self.discard(offset, length + 512)


class Shrinks(Good):
    def discard(self, offset: int, length: int) -> None:
        del self.memory[SIZE - 4096 :]


class LeavesFilesOpen(Good):
    def __init__(self, memory: bytearray) -> None:
        super().__init__(memory)
        LEFT.append(os.open("/dev/null", os.O_RDONLY))


class RefusesAtOnce(Good):
    mode = Mode.BLOCKING

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        raise BlockingIOError


class Raises(Good):
    def write(self, data: memoryview, offset: int) -> None:
        raise ValueError("a bug")


class Touchy(Good):
    """Fails when it is entered twice; there may be several of it."""

    threading = Threading.PER_HANDLE

    def __init__(self, memory: bytearray) -> None:
        super().__init__(memory)
        self.inside = Lock()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        assert self.inside.acquire(blocking=False), "entered twice"
        try:
            time.sleep(0)  # others may try
            yield
        finally:
            self.inside.release()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        with self.alone():
            super().read_into(buffer, offset)

    def write(self, data: memoryview, offset: int) -> None:
        with self.alone():
            super().write(data, offset)


class Liar(Touchy):
    """Says of itself what it is not."""

    threading = Threading.PARALLEL


LEFT: list[int] = []


@pytest.fixture(autouse=True)
def close_what_is_left() -> Iterator[None]:
    yield
    while LEFT:
        os.close(LEFT.pop())


def violated(kind: type[Device]) -> set[str]:
    found = set()
    for check in CHECKS:
        with medium_of(kind) as medium:
            try:
                check(medium)
            except NotApplicable:
                pass
            except (Violation, BlockError, OSError):
                found.add(check.__name__)  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("kind", [Good, Touchy])
def test_good_device_keeps_the_contract(kind: type[Device]) -> None:
    assert violated(kind) == set()


def test_device_that_several_threads_may_enter_by_handles_has_several() -> None:
    with medium_of(Touchy) as medium:
        device = medium.device()
        assert isinstance(device, Handles)
        device.close()


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (ShortRead, checks.write_is_read_back_and_its_neighbours_stay),
        (Smaller, checks.first_and_last_block_are_reached),
        (Keeps, checks.data_is_not_kept_after_the_write),
        (OwnCopy, checks.write_by_one_handle_is_read_by_the_other),
        (OwnCopy, checks.data_outlives_every_handle),
        (DiscardsTooMuch, checks.discard_zeroes_the_range_where_it_says_so_and_never_more),
        (DiscardsNothing, checks.discard_by_one_handle_is_seen_by_the_other),
        (CallsAllZero, checks.block_status_covers_the_range_and_never_calls_data_zero),
        (Gap, checks.block_status_covers_the_range_and_never_calls_data_zero),
        (ZeroesTooMuch, checks.write_zeroes_zeroes_the_range_and_no_more),
        (Shrinks, checks.size_never_changes),
        (LeavesFilesOpen, checks.close_gives_every_descriptor_back),
        (RefusesAtOnce, checks.read_now_of_what_was_just_read_reads),
        (Raises, checks.refused_write_changes_nothing),
        (Liar, checks.threads_on_two_handles_do_not_disturb_each_other),
    ],
)
def test_planted_fault_is_found(kind: type[Device], check: checks.Check) -> None:
    assert check.__name__ in violated(kind)  # type: ignore[attr-defined]


def test_every_check_has_a_name_and_says_what_it_is_about() -> None:
    assert len(CHECKS) > 30
    assert all(check.__doc__ for check in CHECKS)
    assert name_of(checks.facts_fit_together) == "facts fit together"
    names = [name_of(check) for check in CHECKS]
    assert len(set(names)) == len(names)
    assert not any(helper in CHECKS for helper in (checks.pattern, checks.extents_of, checks.name_of))


def test_patterns_are_not_each_others() -> None:
    patterns = [checks.pattern(512, seed) for seed in range(4)]
    assert all(one != two for one, two in itertools.combinations(patterns, 2))


def test_unit_is_whole_blocks_and_pages() -> None:
    with medium_of(Good) as medium:
        assert checks.unit_of(medium.open()) == 4096
        assert checks.unit_of(medium.open(block_size=65536)) == 65536
        assert isinstance(medium.open(), Guarded)
        assert medium.open().can.discard is Support.NATIVE
