"""target.engine: jobs that hold a range of their unit against others, in the loop and in the pool."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

import pytest
from target_rig import GOOD, Memory, Session, pattern

from iscsid.block.guard import Guarded
from iscsid.errors import BlockError, Fault
from iscsid.scsi.sense import Reason


def device_of(session: Session) -> Guarded:
    return next(iter(session.node.devices()))


class Ranges:
    """Ranges of a device, of which some are somebody else's; what is asked for is noted."""

    def __init__(self, session: Session) -> None:
        self.taken = False
        self.log: list[object] = []
        device_of(session).exclusive = self.exclusive

    @contextlib.contextmanager
    def exclusive(self, offset: int, length: int, wait: bool = True, /) -> Iterator[None]:
        if self.taken and not wait:
            raise BlockingIOError
        self.log.append((offset, length, wait))
        yield
        self.log.append("released")


def compare_and_write(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBQ3xBxx", 0x89, 0, lba, blocks)


def test_job_of_an_inline_device_that_finds_its_range_free_runs_in_the_loop() -> None:
    session = Session()
    ranges = Ranges(session)
    session.command(compare_and_write(4, 1), tag=1, write=1024, data=bytes(512) + pattern(512))
    assert not session.pool.calls
    assert session.outcome(1).status == GOOD
    assert ranges.log == [(2048, 512, False), "released"]
    assert session.device.content[2048:2560] == pattern(512)
    session.assert_idle()


def test_job_of_an_inline_device_waits_for_its_range_in_the_pool() -> None:
    session = Session()
    ranges = Ranges(session)
    ranges.taken = True
    session.command(compare_and_write(4, 1), tag=1, write=1024, data=bytes(512) + pattern(512))
    assert (len(session.pool.calls), ranges.log) == (1, [])
    assert session.device.calls == []
    assert session.outcome(1).status == GOOD
    assert ranges.log == [(2048, 512, True), "released"]
    session.assert_idle()


def test_job_of_a_blocking_device_holds_its_range_in_the_pool_before_the_device() -> None:
    session = Session(Memory())
    ranges = Ranges(session)

    @contextlib.contextmanager
    def lock() -> Iterator[None]:
        ranges.log.append("locked")
        yield

    device_of(session).lock = lock()
    session.command(compare_and_write(4, 1), tag=1, write=1024, data=bytes(512) + pattern(512))
    assert session.outcome(1).status == GOOD
    assert ranges.log == [(2048, 512, True), "locked", "released"]
    session.assert_idle()


def test_range_that_cannot_be_held_fails_the_command_and_touches_nothing() -> None:
    session = Session()

    def broken(offset: int, length: int, wait: bool = True, /) -> contextlib.AbstractContextManager[None]:
        raise BlockError(Fault.INTERNAL, "no lock file")

    device_of(session).exclusive = broken
    session.command(compare_and_write(4, 1), tag=1, write=1024, data=bytes(512) + pattern(512))
    assert session.outcome(1).reason is Reason.INTERNAL_TARGET_FAILURE
    assert session.device.calls == []
    session.assert_idle()


def test_range_is_given_back_by_a_job_that_fails() -> None:
    session = Session()
    ranges = Ranges(session)
    session.command(compare_and_write(4, 1), tag=1, write=1024, data=pattern(1024))
    outcome = session.outcome(1)
    assert outcome.reason is Reason.MISCOMPARE_DURING_VERIFY
    assert ranges.log == [(2048, 512, False), "released"]
    session.assert_idle()


@pytest.mark.parametrize(("blocks", "length"), [(1, 512), (1, 1536), (1, 2048), (0, 512)])
def test_compare_and_write_of_another_length_than_its_cdb_tells_is_refused(blocks: int, length: int) -> None:
    session = Session()
    session.data_out[1] = bytes(length)
    session.command(compare_and_write(4, blocks), tag=1, write=length, data=bytes(512))
    assert session.outcome(1).reason is Reason.INVALID_FIELD_IN_CDB
    assert session.device.calls == []
    session.assert_idle()
