"""SANITIZE: make everything that was ever written unreadable (SBC-3 4.11, 5.24).

A sanitize operation is not a task. The command asks the authority for the state ``Sanitize`` of the unit; when every
worker has it, and refuses what it forbids, the worker that asked executes an ``Erasure`` in its pool, whatever becomes
of the command and of its session: no abort, no reset and no loss of the nexus ends it (SBC-3 4.11.2). When the erasure
has ended the state does, or it becomes that of a failed operation. So does that of a worker that died meanwhile, and
of a server that was stopped: what a half-done operation has left is readable by nobody until another one has completed,
or until an initiator that had asked for that way out (AUSE) takes it.

CRYPTOGRAPHIC ERASE is not supported: there is no key to forget. BLOCK ERASE is where blocks can be given back and where
it can be told afterwards that they were (``Feature.ERASE``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from iscsid.block.device import Content
from iscsid.errors import ScsiError
from iscsid.scsi.const import Opcode, ServiceAction
from iscsid.scsi.plan import Ask, Plan
from iscsid.scsi.rw import CHUNK, pieces
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

IMMED, AUSE = 0x80, 0x20  # byte 1 of the CDB (SBC-3 5.24.1); ZNR is for zones, which no unit has
SERVICE_ACTION = 0x1F
INVERT, TEST, COUNT = 0x80, 0x60, 0x1F  # byte 0 of the parameter list of OVERWRITE (SBC-3 5.24.2.2)
HEADER = 4  # bytes before its INITIALIZATION PATTERN
WINDOW = 64 << 20  # bytes whose allocation is asked for, and that are given back, at once
WHOLE = 1 << 16  # the PROGRESS INDICATION of what is done (SPC-4 4.5.2.4.4)

METHODS = frozenset({int(ServiceAction.SANITIZE_OVERWRITE), int(ServiceAction.SANITIZE_BLOCK_ERASE)})
"""The service actions that begin an operation."""

_INVERTED = bytes(0xFF - value for value in range(256))


# -- the state that all workers share --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sanitize:
    """An operation that is under way, or that has ``failed``; a unit without one has None.

    ``unrestricted``: it was asked for with AUSE, so that EXIT FAILURE MODE leaves the failure.
    """

    failed: bool
    unrestricted: bool

    def to_plain(self) -> dict[str, bool]:
        """As plain values."""
        return {"failed": self.failed, "unrestricted": self.unrestricted}

    @classmethod
    def from_plain(cls, plain: Any) -> Sanitize:
        """The inverse. Raises ValueError."""
        if not isinstance(plain, Mapping) or plain.keys() != {"failed", "unrestricted"}:
            raise ValueError("not the state of a sanitize operation")
        if not all(isinstance(value, bool) for value in plain.values()):
            raise ValueError("the state of a sanitize operation is told by true and false")
        return cls(plain["failed"], plain["unrestricted"])


_ALWAYS = frozenset({int(Opcode.INQUIRY), int(Opcode.REPORT_LUNS), int(Opcode.REQUEST_SENSE)})
ALLOWED: dict[bool, frozenset[int]] = {
    False: _ALWAYS,  # while an operation is under way (SBC-3 4.11.2)
    True: _ALWAYS | {int(Opcode.SANITIZE)},  # after one has failed (SBC-3 4.11.3)
}
"""``Sanitize.failed`` -> the operation codes that are executed meanwhile; all others end in ``refusal``."""


def refusal(state: Sanitize, progress: int | None = None) -> ScsiError:
    """What a command that is not in ALLOWED ends with, and what REQUEST SENSE tells.

    ``progress``, of an operation that is under way, is in 65536ths.
    """
    if state.failed:
        return ScsiError(Reason.SANITIZE_COMMAND_FAILED)
    return ScsiError(Reason.SANITIZE_IN_PROGRESS, progress=None if progress is None else min(progress, WHOLE - 1))


def check(state: Sanitize | None, opcode: int) -> None:
    """Raise what ``state`` refuses a command with this operation code for."""
    if state is not None and opcode not in ALLOWED[state.failed]:
        raise refusal(state)


def apply(state: Sanitize | None, cdb: bytes, data: bytes, block_size: int) -> Sanitize | None:
    """The state that a SANITIZE command leads to. Raises ScsiError.

    After a failure in the restricted completion mode (AUSE 0) there is no way out but another operation in that mode
    that completes: EXIT FAILURE MODE, and whatever comes with AUSE, is refused (SBC-3 4.11.1, 5.24.1).
    """
    check(state, cdb[0])
    action, unrestricted = cdb[1] & SERVICE_ACTION, bool(cdb[1] & AUSE)
    restricted = state is not None and not state.unrestricted
    if action == ServiceAction.SANITIZE_EXIT_FAILURE_MODE:
        if restricted:
            raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, bit=4)
        return None
    if restricted and unrestricted:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, bit=5)
    if action == ServiceAction.SANITIZE_OVERWRITE:
        check_pattern(cdb, data, block_size)
    return Sanitize(False, unrestricted)


def check_pattern(cdb: bytes, data: bytes, block_size: int) -> None:
    """Refuse a parameter list of OVERWRITE that makes no sense (SBC-3 5.24.2.2).

    The code is INVALID FIELD IN CDB, as that of a wrong length is, and as libiscsi's suite has it; the field pointer
    tells that it is the parameter list.
    """
    if len(data) != int.from_bytes(cdb[7:9], "big") or len(data) <= HEADER:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=7)
    if data[0] & TEST:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=0, bit=6, in_data=True)  # vendor specific, and not here
    if not data[0] & COUNT:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=0, bit=4, in_data=True)
    if data[1]:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=1, in_data=True)
    length = int.from_bytes(data[2:4], "big")
    if not 0 < length <= block_size or length != len(data) - HEADER:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=2, in_data=True)


# -- the commands ----------------------------------------------------------------------------------------------------


def overwrite(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-3 5.24.2.2: write a pattern all over the medium, as often as is asked for."""
    parameter_length = int.from_bytes(cdb[7:9], "big")
    if not HEADER < parameter_length <= HEADER + lu.block_size:
        raise ScsiError(Reason.INVALID_FIELD_IN_CDB, field=7)
    return Ask(parameter_length)


def without_data(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """BLOCK ERASE (SBC-3 5.24.2.3) and EXIT FAILURE MODE (5.24.2.5)."""
    return Ask()


# -- the operation ---------------------------------------------------------------------------------------------------


class Gauge(Protocol):
    """Where all workers read how far an operation is, in 65536ths."""

    value: int


class LocalGauge:
    """A gauge that nobody else reads."""

    value = 0


class Stopped(Exception):
    """The erasure was told to stop, and has done a part of its work."""

    def __init__(self) -> None:
        super().__init__("the server ends")


class Erasure:
    """One operation, to be called in the pool. Raises Stopped, BlockError or OSError when it is not completed.

    It goes in pieces of bounded size, takes the lock of the device for each, and looks between two whether ``stop`` was
    called. When it returns, everything is on the medium.
    """

    def __init__(self, lu: LogicalUnit, cdb: bytes, data: bytes) -> None:
        self._lu = lu
        self._stop = False
        overwrites = cdb[1] & SERVICE_ACTION == ServiceAction.SANITIZE_OVERWRITE
        self._method: Callable[[], None] = self._overwrite if overwrites else self._block_erase
        self._data = data
        self._done = self._total = 0

    def stop(self) -> None:
        """Have it end soon, undone. For the end of the server alone: nothing that an initiator sends stops it."""
        self._stop = True

    def __call__(self) -> None:
        device = self._lu.device
        self._lu.progress.value = 0
        # Third-party copies hold what they write (copy_move): none that was planned before the unit changed its state
        # is under way any more when this was to be had.
        with device.exclusive(0, device.size):
            pass
        self._method()

    def _overwrite(self) -> None:
        """Each pass is on the medium before the next begins. With INVERT every second one has the inverted pattern, and
        the last one the pattern as it is; the pattern begins anew in every block."""
        size, pattern = self._lu.block_size, self._data[HEADER:]
        block = (pattern * (size // len(pattern) + 1))[:size]
        count = self._data[0] & COUNT
        self._total = count * self._lu.device.size
        for left in reversed(range(count)):
            inverted = self._data[0] & INVERT and left % 2
            self._fill(block.translate(_INVERTED) if inverted else block, 0, self._lu.device.size)
            self._flush()

    def _block_erase(self) -> None:
        """Write zeros over what is allocated, and then give it all back: what is only given back is still on the medium
        below."""
        device, zeros = self._lu.device, bytes(self._lu.block_size)
        self._total = 2 * device.size
        for offset, length in self._windows():
            with device.lock:
                extents = list(device.block_status(offset, length))
            for extent in extents:
                if extent.content & Content.HOLE:
                    self._advance(extent.length)
                else:
                    self._fill(zeros, extent.offset, extent.length)
        self._flush()
        for offset, length in self._windows():
            with device.lock:
                device.discard(offset, length)
            self._advance(length)
        self._flush()

    def _windows(self) -> Iterator[tuple[int, int]]:
        size = self._lu.device.size
        return ((offset, min(WINDOW, size - offset)) for offset in range(0, size, WINDOW))

    def _fill(self, block: bytes, offset: int, length: int) -> None:
        device = self._lu.device
        piece = memoryview(block * (min(CHUNK, length) // len(block)))
        for start, size in pieces(length):
            with device.lock:
                device.write(piece[:size], offset + start)
            self._advance(size)

    def _advance(self, length: int) -> None:
        if self._stop:
            raise Stopped
        self._done += length
        self._lu.progress.value = min(WHOLE * self._done // self._total, WHOLE - 1)

    def _flush(self) -> None:
        with self._lu.device.lock:
            self._lu.device.flush()
