"""A leg of a mirror: a device that comes and goes, and does each call in the best way that it has."""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import Any, Final

from iscsid.plugin import BlockError, Device, Fault, Member, Support, Threading, fault_of

PIECE: Final = 1 << 20  # bytes of zeros that are written at a time


class Handle:
    """A leg's device while it is open, and how many calls are in it.

    Whoever calls it holds ``lock``. Where the device cannot do what the mirror has said that its legs can, for it was
    away when the mirror was opened, it is done by other means.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.able = device.capabilities()
        self.calls = 0
        serial = device.threading is not Threading.PARALLEL
        self.lock: contextlib.AbstractContextManager[Any] = threading.Lock() if serial else contextlib.nullcontext()
        self.reads_now = self.able.read_nowait is Support.NATIVE and not serial

    def can(self, call: str) -> bool:
        """Whether the device does it itself."""
        return bool(getattr(self.able, call) is Support.NATIVE)

    def has(self, data: memoryview, there: memoryview, offset: int) -> bool | None:
        """Whether ``data`` is what can be read; None where nothing can. ``there`` is memory to look at it."""
        try:
            self.device.read_into(there, offset)
        except Exception:
            return None
        return there == data

    def flush(self) -> None:
        if self.can("flush"):
            self.device.flush()

    def write_fua(self, data: memoryview, offset: int) -> None:
        if self.can("fua"):
            self.device.write_fua(data, offset)
        else:
            self.device.write(data, offset)
            self.flush()

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        """By writing where the device cannot, for this range or at all: the legs may differ in that, and none may be
        left with what others have zeroed."""
        if self.can("write_zeroes"):
            try:
                return self.device.write_zeroes(offset, length, may_unmap)
            except Exception as error:
                if not _unsupported(error):
                    raise
        zeroes = memoryview(mmap.mmap(-1, PIECE))  # aligned, for devices that ask for it
        for at in range(offset, offset + length, PIECE):
            self.device.write(zeroes[: min(PIECE, offset + length - at)], at)
        return None

    def discard(self, offset: int, length: int, zeroes: bool) -> None:
        """``zeroes``: the range has to read as zeros; otherwise it may stay what it is."""
        if self.can("discard") and (self.device.discard_zeroes or not zeroes):
            try:
                return self.device.discard(offset, length)
            except Exception as error:
                if not _unsupported(error):
                    raise
        if zeroes:
            self.write_zeroes(offset, length, True)
        return None


class Leg:
    """One of the devices. ``handle`` is None while it is down.

    ``failures`` counts what its copy may lack since; ``doubts`` are the regions with writes that were not flushed when
    it failed; ``unread`` the offsets of what could not be copied to it in the last pass, for nobody could read it;
    ``rests`` is when the next pass may begin, on the monotonic clock.
    """

    def __init__(self, number: int, member: Member) -> None:
        self.number = number
        self.bit = 1 << number
        self.member = member
        self.name = name_of(member)
        self.handle: Handle | None = None
        self.failures = 0
        self.doubts: set[int] = set()
        self.unread: set[int] = set()
        self.rests = 0.0

    def open(self, like: Device | None = None) -> Handle:
        """Open the device, without taking it up. Raises whatever a device may, and BlockError for one that cannot stand
        for ``like``."""
        device = self.member.open()
        problem = "" if like is None else _problem(device, like)
        if problem:
            device.close()
            raise BlockError(Fault.INVALID, problem)
        return Handle(device)

    def take_up(self, handle: Handle) -> None:
        """From now on this is the leg."""
        self.doubts.clear()
        self.unread.clear()
        self.rests = 0.0
        self.handle = handle


def _problem(device: Device, like: Device) -> str:
    """Why a device cannot do what ``like``, which is open, has promised."""
    if device.size < like.size:
        return f"{device.size} bytes, not {like.size}"
    for fact in ("block_size", "alignment"):
        if getattr(device, fact) > getattr(like, fact):
            return f"{fact} {getattr(device, fact)}, not {getattr(like, fact)}"
    return ""


def name_of(member: Member) -> str:
    """How a leg is told from others, in the state file and in the log."""
    words = [member.backend, str(member.options.get("path", ""))]
    words += [f"{name} {options}" for name, options in member.layers if name == "offset"]
    return " ".join(word for word in words if word)


def _unsupported(error: Exception) -> bool:
    """Whether the device cannot do the call, or not for this range, and has done nothing."""
    return fault_of(error, writing=True) is Fault.UNSUPPORTED
