"""One logical unit as both front ends see it: bytes in, commands out. Pure.

Offsets and lengths are bytes on multiples of the block size. What is longer than one command may be becomes several,
which may be in flight together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from iscsid.errors import InitiatorError, Unsupported
from iscsid.initiator import commands
from iscsid.initiator.commands import FUA, BlockLimits, Capacity, pieces
from iscsid.initiator.task import NO_DATA, Management, Task
from iscsid.scsi.const import PersistentReserveIn, PersistentReserveOut
from iscsid.scsi.reservation import Type as ReservationType
from iscsid.wire import lun as lun_field
from iscsid.wire.const import TmfFunction

MAX_TRANSFER: Final = 1 << 20  # bytes of one READ or WRITE: beyond that there is nothing to gain
MAX_ZEROES: Final = 32 << 20  # bytes of one WRITE SAME where the target tells no limit
LONG_TIMEOUT: Final = 120.0  # seconds for what may touch all of a medium: flushes, WRITE SAME, UNMAP


class Unit:
    """Builds the tasks of one logical unit.

    Attributes:
        lun: its number; ``field`` as it goes over the wire.
        timeout: seconds for a command.
        capacity, limits: what ``learn_`` has taken in; ``block_size`` and ``size`` in bytes.
        max_transfer: bytes that one READ or WRITE moves at most.
    """

    def __init__(self, lun: int, timeout: float) -> None:
        self.lun = lun
        self.field = lun_field.encode(lun)
        self.timeout = timeout
        self.block_size = 512
        self.size = 0
        self.capacity = Capacity(0, 512, 512, False, False)
        self.limits = BlockLimits()
        self.max_transfer = MAX_TRANSFER

    def learn_capacity(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.block_size = capacity.block_size
        self.size = capacity.size
        self._bound()

    def learn_limits(self, limits: BlockLimits) -> None:
        self.limits = limits
        self._bound()

    def _bound(self) -> None:
        blocks = max(1, MAX_TRANSFER // self.block_size)
        if self.limits.max_transfer:
            blocks = min(blocks, self.limits.max_transfer)
        self.max_transfer = blocks * self.block_size

    # --- data ---------------------------------------------------------------------------------------------------------

    def lba(self, offset: int, length: int) -> tuple[int, int]:
        """Return first block and number of blocks; raises ValueError for what is not made of whole blocks."""
        lba, odd = divmod(offset, self.block_size)
        blocks, rest = divmod(length, self.block_size)
        if odd or rest or offset < 0 or length < 0:
            raise ValueError(f"{length} bytes at {offset} are not whole blocks of {self.block_size} bytes")
        if offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} lie beyond the end at {self.size}")
        return lba, blocks

    def read(self, offset: int, buffer: memoryview) -> Task:
        """One READ(16) into ``buffer``, which is at most ``max_transfer`` long."""
        lba, blocks = self.lba(offset, len(buffer))
        return Task(self.field, commands.read_16(lba, blocks), buffer, timeout=self.timeout, exact=True)

    def write(self, offset: int, data: memoryview, fua: bool = False) -> Task:
        """One WRITE(16)."""
        lba, blocks = self.lba(offset, len(data))
        cdb = commands.write_16(lba, blocks, FUA if fua else 0)
        return Task(self.field, cdb, NO_DATA, data, timeout=self.timeout, exact=True)

    def reads(self, offset: int, buffer: memoryview) -> Iterator[Task]:
        self.lba(offset, len(buffer))
        for start, length in pieces(0, len(buffer), self.max_transfer):
            yield self.read(offset + start, buffer[start : start + length])

    def writes(self, offset: int, data: memoryview, fua: bool = False) -> Iterator[Task]:
        self.lba(offset, len(data))
        for start, length in pieces(0, len(data), self.max_transfer):
            yield self.write(offset + start, data[start : start + length], fua)

    def flush(self) -> Task:
        return self._task(commands.synchronize_cache_10(), timeout=LONG_TIMEOUT)

    def discards(self, offset: int, length: int) -> Iterator[Task]:
        """UNMAP, as much in one command as the target takes; raises Unsupported where it does not do that."""
        lba, blocks = self.lba(offset, length)
        limits = self.limits
        if not limits.max_unmap or not limits.max_unmap_descriptors:
            raise Unsupported("the target does not do UNMAP")
        for start, count in pieces(lba, blocks, min(limits.max_unmap, 0xFFFFFFFF)):
            cdb, data = commands.unmap([(start, count)])
            yield self._task(cdb, data_out=data, timeout=LONG_TIMEOUT)

    def zeroes(self, offset: int, length: int, may_unmap: bool) -> Iterator[Task]:
        """WRITE SAME(16) of a block of zeros."""
        lba, blocks = self.lba(offset, length)
        longest = self.limits.max_write_same or max(1, MAX_ZEROES // self.block_size)
        zero = bytes(self.block_size)
        unmap = may_unmap and self.capacity.thin and self.capacity.zeroes
        for start, count in pieces(lba, blocks, min(longest, max(1, MAX_ZEROES // self.block_size))):
            yield self._task(commands.write_same_16(start, count, unmap=unmap), data_out=zero, timeout=LONG_TIMEOUT)

    def compare_and_write(self, offset: int, compare: memoryview, data: memoryview) -> Task:
        """It is not sent again after a broken connection: the second one would miscompare."""
        if len(compare) != len(data):
            raise ValueError(f"{len(compare)} bytes cannot be compared and replaced by {len(data)}")
        lba, blocks = self.lba(offset, len(data))
        if not 0 < blocks <= (self.limits.max_compare_and_write or 255):
            raise ValueError(f"one COMPARE AND WRITE does 1 .. {self.limits.max_compare_and_write or 255} blocks")
        both = bytes(compare) + bytes(data)
        task = self._task(commands.compare_and_write(lba, blocks), data_out=both, replay=False)
        task.exact = True
        return task

    # --- facts --------------------------------------------------------------------------------------------------------

    def inquiry(self) -> Task:
        return self._task(commands.inquiry(), commands.ALLOCATION)

    def vpd(self, page: int) -> Task:
        return self._task(commands.inquiry(page), commands.ALLOCATION)

    def read_capacity_16(self) -> Task:
        return self._task(commands.read_capacity_16(), 32)

    def read_capacity_10(self) -> Task:
        return self._task(commands.read_capacity_10(), 8)

    def report_luns(self) -> Task:
        return self._task(commands.report_luns(), commands.LONG_ALLOCATION)

    def test_unit_ready(self) -> Task:
        return self._task(commands.test_unit_ready())

    def lba_status(self, offset: int) -> Task:
        lba, _ = self.lba(offset, 0)
        return self._task(commands.get_lba_status(lba), commands.LONG_ALLOCATION)

    def extents(self, data: memoryview, offset: int, end: int) -> list[commands.BlockStatus]:
        """What the answer to ``lba_status(offset)`` says of the bytes from ``offset`` to ``end``."""
        found: list[commands.BlockStatus] = []
        for lba, blocks, status in commands.parse_lba_status(data):
            start, stop = max(lba * self.block_size, offset), min((lba + blocks) * self.block_size, end)
            if found and start != found[-1].offset + found[-1].length:
                break  # a gap or an overlap: what is there has to be asked about by itself
            if start < stop:
                found.append(commands.BlockStatus(start, stop - start, status))
        if not found or found[0].offset != offset:
            raise InitiatorError(f"the target says nothing of the blocks at {offset}")
        return found

    # --- reservations -------------------------------------------------------------------------------------------------

    def reserve_in(self, action: PersistentReserveIn) -> Task:
        return self._task(commands.persistent_reserve_in(action), commands.ALLOCATION)

    def reserve_out(
        self,
        action: PersistentReserveOut,
        key: int,
        service_action_key: int = 0,
        kind: ReservationType | None = None,
        aptpl: bool = False,
    ) -> Task:
        for number in (key, service_action_key):
            if not 0 <= number < 1 << 64:
                raise ValueError(f"a reservation key has 64 bits, not {number:#x}")
        cdb, data = commands.persistent_reserve_out(
            action, key=key, service_action_key=service_action_key, kind=kind, aptpl=aptpl
        )
        return self._task(cdb, data_out=data, replay=False)

    # --- anything -----------------------------------------------------------------------------------------------------

    def command(self, cdb: bytes, data_out: Any, buffer: memoryview, timeout: float | None, replay: bool) -> Task:
        """Any command; its caller looks at the result himself."""
        if len(cdb) not in (6, 10, 12, 16) and not 16 < len(cdb) <= 260:
            raise ValueError(f"a CDB of {len(cdb)} bytes")
        if len(buffer) and len(data_out):
            raise ValueError("a command moves data in one direction only")
        return Task(
            self.field,
            cdb.ljust(16, b"\0"),
            buffer,
            memoryview(data_out).cast("B"),
            timeout=self.timeout if timeout is None else timeout,
            replay=replay,
            raw=True,
        )

    def management(self, function: TmfFunction, victim: Task | None = None) -> Management:
        whole_target = function in (TmfFunction.TARGET_WARM_RESET, TmfFunction.TARGET_COLD_RESET)
        return Management(function, 0 if whole_target else self.field, victim)

    def _task(
        self, cdb: bytes, data_in: int = 0, *, data_out: bytes = b"", timeout: float = 0.0, replay: bool = True
    ) -> Task:
        buffer = memoryview(bytearray(data_in)) if data_in else NO_DATA
        return Task(
            self.field,
            cdb,
            buffer,
            memoryview(data_out) if data_out else NO_DATA,
            timeout=max(self.timeout, timeout),
            replay=replay,
        )
