"""A whole session in memory: an initiator, the engine, devices that misbehave on demand and a pool run by hand."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from helpers import TARGET_NAME, Pair

from iscsid.block.device import Device, Mode, Threading
from iscsid.block.guard import Guarded
from iscsid.errors import ScsiError
from iscsid.scsi.lu import Identity, LogicalUnit
from iscsid.scsi.sense import REASONS, Reason, parse_sense
from iscsid.target.engine import Engine
from iscsid.target.node import TargetNode
from iscsid.wire import lun as lun_field
from iscsid.wire.const import FINAL, OVERFLOW, UNDERFLOW
from iscsid.wire.pdu import R2T, ScsiDataIn, ScsiDataOut, ScsiResponse, unpack_sense

BLOCK = 512
SIZE = 8 << 20
GOOD, CHECK_CONDITION = 0x00, 0x02


class Memory(Device):
    """Bytes. ``bad`` raises ``error`` for what touches that byte, ``flushes`` counts."""

    threading = Threading.PARALLEL

    def __init__(self, size: int = SIZE, block_size: int = BLOCK, mode: Mode = Mode.BLOCKING) -> None:
        self.size = size
        self.block_size = block_size
        self.mode = mode
        self.content = bytearray(size)
        self.error: Exception = OSError(5, "bad sector")
        self.bad: int | None = None
        self.calls: list[tuple[str, int, int]] = []

    def _called(self, name: str, offset: int, length: int) -> None:
        self.calls.append((name, offset, length))
        if self.bad is not None and offset <= self.bad < offset + length:
            raise self.error

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._called("read", offset, len(buffer))
        buffer[:] = self.content[offset : offset + len(buffer)]

    def write(self, data: memoryview, offset: int) -> None:
        self._called("write", offset, len(data))
        self.content[offset : offset + len(data)] = data


class Inline(Memory):
    """Never waits."""

    def __init__(self, size: int = SIZE, block_size: int = BLOCK) -> None:
        super().__init__(size, block_size, Mode.INLINE)


class Lending(Inline):
    """Lends what it holds."""

    def view(self, offset: int, length: int) -> memoryview:
        self._called("view", offset, length)
        return memoryview(self.content)[offset : offset + length].toreadonly()


class Volatile(Memory):
    """Has a cache to be flushed."""

    def flush(self) -> None:
        self.calls.append(("flush", 0, 0))


class Nowait(Volatile):
    """Has data at hand as long as ``at_hand`` says so for a call."""

    def __init__(self, size: int = SIZE, block_size: int = BLOCK) -> None:
        super().__init__(size, block_size)
        self.at_hand: Callable[[int], bool] = lambda offset: True

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        if not self.at_hand(offset):
            raise BlockingIOError
        self.read_into(buffer, offset)

    def write_nowait(self, data: memoryview, offset: int) -> None:
        if not self.at_hand(offset):
            self.content[offset : offset + len(data)] = bytes(len(data))  # "nothing promised of the range"
            raise BlockingIOError
        self.write(data, offset)


DEVICES: dict[str, Callable[..., Memory]] = {
    "inline": Inline,
    "lending": Lending,
    "blocking": Memory,
    "volatile": Volatile,
    "nowait": Nowait,
}


class FakePool:
    """Calls wait until the test runs them, in any order."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[[], Any], Callable[[Any, Exception | None], None]]] = []

    def submit(self, run: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
        self.calls.append((run, done))

    def finish(self, index: int = 0) -> None:
        """Run one call and report it."""
        run, done = self.calls.pop(index)
        result, error = None, None
        try:
            result = run()
        except Exception as exc:
            error = exc
        done(result, error)


class FakeAuthority:
    """Asks and resets wait until the test answers them, in any order."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.resets: list[tuple[Any, ...]] = []
        self.withdrawn: list[tuple[Any, ...]] = []

    def ask(self, *request: Any) -> Callable[[], None]:
        self.asked.append(request)
        return lambda: self.withdrawn.append(request)

    def reset(self, *request: Any) -> None:
        self.resets.append(request)

    def answer(self, error: ScsiError | None = None, index: int = 0) -> None:
        self.asked.pop(index)[-1](error)

    def performed(self, complete: bool = True, index: int = 0) -> None:
        self.resets.pop(index)[-1](complete)


@dataclass
class Outcome:
    """How a command ended."""

    status: int = -1
    data: bytearray = field(default_factory=bytearray)
    pdus: list[ScsiDataIn] = field(default_factory=list)
    overflow: int = 0
    underflow: int = 0
    sense: tuple[int, int, int] | None = None
    exp_data_sn: int = 0

    @property
    def reason(self) -> Reason | None:
        """The reason whose sense data came; None without any."""
        return None if self.sense is None else next(key for key, value in REASONS.items() if value == self.sense)


class Session(Pair):
    """A session with LUN 0 on ``device``, and others on ``more``."""

    def __init__(
        self,
        device: Memory | None = None,
        offers: Mapping[str, str] | None = None,
        *,
        more: Sequence[Memory] = (),
        answer_text: Callable[[Engine, Sequence[tuple[str, str]]], Sequence[tuple[str, str]]] | None = None,
        **options: Any,
    ) -> None:
        self.device = device if device is not None else Inline()
        self.pool = FakePool()
        self.authority = FakeAuthority()
        self.established: list[Engine] = []
        self.data_out: dict[int, bytes] = {}
        self.r2ts: list[R2T] = []
        self.others: list[Any] = []
        self.outcomes: dict[int, Outcome] = {}
        units = {
            number: LogicalUnit(Guarded(disk), Identity(f"serial{number}", f"{TARGET_NAME},L,{number}"))
            for number, disk in enumerate((self.device, *more))
        }
        self.node = TargetNode(TARGET_NAME, units)
        super().__init__(
            offers,
            engine=lambda connection: Engine(
                connection,
                {TARGET_NAME: self.node}.__getitem__,
                answer_text or (lambda engine, pairs: []),
                self.pool.submit,
                self.established.append,
                self.authority,
            ),
            **options,
        )

    # --- commands ---------------------------------------------------------------------------------------------------

    def read(
        self, tag: int, lba: int, blocks: int, expected: int | None = None, *, fua: bool = False, **more: Any
    ) -> None:
        cdb = rw_cdb(0x28, lba, blocks, fua=fua)
        self.command(cdb, tag=tag, read=blocks * self.device.block_size if expected is None else expected, **more)

    def write(
        self,
        tag: int,
        lba: int,
        data: bytes,
        *,
        immediate: int = 0,
        expected: int | None = None,
        fua: bool = False,
        **more: Any,
    ) -> None:
        """WRITE(10) of ``data``, of which ``immediate`` bytes go with the command; ``settle`` sends the rest."""
        self.data_out[tag] = data
        cdb = rw_cdb(0x2A, lba, len(data) // self.device.block_size, fua=fua)
        expected = len(data) if expected is None else expected
        self.command(cdb, tag=tag, write=expected, data=data[:immediate], **more)

    def unsolicited(self, tag: int, start: int, end: int, *, size: int = 0, final: bool = True) -> None:
        """Send bytes ``start`` to ``end`` of a write's data without being asked."""
        size = size or end - start
        data = self.data_out[tag]
        for data_sn, at in enumerate(range(start, end, size)):
            self.send(
                ScsiDataOut(
                    flags=FINAL if final and at + size >= end else 0,
                    initiator_task_tag=tag,
                    data_sn=data_sn,
                    buffer_offset=at,
                    data=data[at : min(at + size, end)],
                )
            )

    # --- answers ----------------------------------------------------------------------------------------------------

    def hear(self) -> list[Any]:
        """Sort what the target sends: R2Ts, data and status of commands, and all else, which is returned."""
        others = []
        for pdu in self.receive():
            if isinstance(pdu, R2T):
                self.r2ts.append(pdu)
            elif isinstance(pdu, ScsiDataIn):
                self._hear_data(pdu)
            elif isinstance(pdu, ScsiResponse):
                self._end(pdu, pdu.status)
                outcome = self.outcomes[pdu.initiator_task_tag]
                outcome.exp_data_sn = pdu.exp_data_sn
                if pdu.data:
                    outcome.sense = parse_sense(unpack_sense(pdu.data))
            else:
                others.append(pdu)
        return others

    def _hear_data(self, pdu: ScsiDataIn) -> None:
        outcome = self.outcomes.setdefault(pdu.initiator_task_tag, Outcome())
        assert outcome.status == -1, "data after the status"
        assert (pdu.data_sn, pdu.buffer_offset) == (len(outcome.pdus), len(outcome.data))
        assert len(pdu.data) <= self.parameters.max_recv_data_segment_length
        outcome.pdus.append(pdu)
        outcome.data += pdu.data
        if pdu.has_status:
            self._end(pdu, pdu.status)

    def _end(self, pdu: Any, status: int) -> None:
        outcome = self.outcomes.setdefault(pdu.initiator_task_tag, Outcome())
        assert outcome.status == -1, "two answers to one command"
        outcome.status = status
        outcome.overflow = pdu.residual_count if pdu.flags & OVERFLOW else 0
        outcome.underflow = pdu.residual_count if pdu.flags & UNDERFLOW else 0

    def settle(self, size: int = 0, choose: Callable[[int], int] = lambda count: 0) -> list[Any]:
        """Let everything come to its end; ``choose(n)`` picks which of n pool calls is next."""
        others = self.hear()
        while self.r2ts or self.pool.calls:
            if self.r2ts:
                r2t = self.r2ts.pop(0)
                self.answer_r2t(r2t, self.data_out[r2t.initiator_task_tag], size=size)
            else:
                self.pool.finish(choose(len(self.pool.calls)))
            others += self.hear()
        return others

    def outcome(self, tag: int, size: int = 0) -> Outcome:
        """Settle, and return how the command ended."""
        self.settle(size)
        return self.outcomes.pop(tag)

    # --- what must hold ---------------------------------------------------------------------------------------------

    def assert_idle(self) -> None:
        """Nothing is left of any command: no task, no credit, no memory."""
        engine = self.engine
        window = self.connection.window
        assert (len(engine.tasks), engine.tasks._immediate) == (0, 0)
        assert (window.active, window.ahead) == (0, window.size - 1)
        assert (engine._data_out._gathering, list(engine._data_out._waiting)) == (0, [])
        data_in = engine._data_in
        assert (data_in._pieces, list(data_in._ready), list(data_in._starved)) == (0, [], [])
        assert (engine.calls.in_flight, self.pool.calls) == (0, [])
        assert not engine.busy


def rw_cdb(opcode: int, lba: int, blocks: int, *, fua: bool = False) -> bytes:
    return struct.pack(">BBIBHB6x", opcode, 0x08 if fua else 0, lba, 0, blocks, 0)


def pattern(length: int, seed: int = 1) -> bytes:
    """Bytes that repeat only after a prime number of them."""
    return (bytes((seed * 31 + index) % 251 for index in range(251)) * (length // 251 + 1))[:length]


def raw_lun(number: int) -> int:
    return lun_field.encode(number)
