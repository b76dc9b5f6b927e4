"""What a device is: the contract between a back end and everything above it.

A back end subclasses :class:`Device`, gives it a size, ``read_into`` and ``write``, and overrides whatever else its
medium can do. What it does not override is absent, and :class:`iscsid.block.guard.Guarded` either emulates it or makes
sure that nobody is told it exists. A device never sees a CDB, a LUN or a session.

Offsets and lengths are bytes. They are multiples of ``block_size`` and inside the device: the guard checks that, no
device need do it again. Errors are :class:`~iscsid.errors.BlockError` or OSError; anything else is a bug in the device
and is answered with HARDWARE ERROR.

The durability contract, on which data that must not be lost depends: when ``flush`` returns, every write that had
returned before ``flush`` was called, through this handle or any other on the same medium, is on the medium. When
``write_fua`` returns, its data is.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Support(enum.IntEnum):
    """How an operation is available: not at all, by emulation in the guard, or by the device itself."""

    NONE = 0
    EMULATE = 1
    NATIVE = 2


class Mode(enum.Enum):
    """Where the calls of a device may run."""

    INLINE = "inline"  # no call ever waits for a disk or a network: run them in the worker's loop
    BLOCKING = "blocking"  # calls may wait: run them in the worker's thread pool


class Threading(enum.Enum):
    """How many threads may be inside one device object at once."""

    SERIAL = "serial"  # one call at a time
    PER_HANDLE = "per-handle"  # one call at a time in each; several devices of the medium may be open (block.handles)
    PARALLEL = "parallel"  # any number


class Sharing(enum.Enum):
    """How many worker processes may open one medium."""

    SHARED = "shared"  # any number; the medium keeps them coherent
    SHARED_READ = "shared-read"  # any number of readers, one writer
    EXCLUSIVE_OWNER = "exclusive-owner"  # exactly one process


class Content(enum.IntFlag):
    """What a range of the medium holds (see :meth:`Device.block_status`)."""

    DATA = 0
    HOLE = 1  # not allocated
    ZERO = 2  # reads as zeros


class Extent(NamedTuple):
    """A range with one content; ``offset`` and ``length`` in bytes."""

    offset: int
    length: int
    content: Content


class Space(NamedTuple):
    """How full the medium is, in bytes: what this device takes of it, and what is left for it and whoever shares it."""

    used: int
    available: int


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a device can do, asked once at open.

    ``flush`` NONE means that a completed write is on the medium (or that the medium is memory): nothing is volatile.
    """

    write: Support = Support.NONE
    flush: Support = Support.NONE
    fua: Support = Support.NONE
    discard: Support = Support.NONE
    write_zeroes: Support = Support.NONE
    block_status: Support = Support.NONE
    prefetch: Support = Support.NONE
    space: Support = Support.NONE
    view: Support = Support.NONE
    read_nowait: Support = Support.NONE
    write_nowait: Support = Support.NONE


class Device:
    """Base class of every device. Only ``size``, ``read_into`` and ``write`` must be given.

    The attributes are facts: constant between open and close. Lengths in bytes; 0 means "nothing to say".
    """

    size: int
    block_size: int = 512  # logical block, a power of two from 512 to 65536
    physical_block_size: int = 0  # what the medium writes without read-modify-write; 0: block_size
    alignment: int = 1  # memory address and file offset of a buffer must be multiples of this (O_DIRECT)
    minimum_io: int = 0
    optimal_io: int = 0
    discard_granularity: int = 0
    discard_alignment: int = 0
    discard_zeroes: bool = False  # a discarded range reads as zeros
    rotational: bool = False
    readonly: bool = False
    removable: bool = False
    mode: Mode = Mode.BLOCKING
    threading: Threading = Threading.SERIAL

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``. A short read is an error, never a partly filled buffer.

        Returns nothing; a number that is returned by this or one of the calls that write is taken for that of bytes.
        """
        raise NotImplementedError

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``. ``data`` may not be kept after the return."""
        raise NotImplementedError

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        """As ``read_into``, but raise BlockingIOError instead of waiting for the medium. Runs in the worker's loop."""
        raise NotImplementedError

    def write_nowait(self, data: memoryview, offset: int) -> None:
        """As ``write``, but raise BlockingIOError, with nothing promised of the range, instead of waiting."""
        raise NotImplementedError

    def write_fua(self, data: memoryview, offset: int) -> None:
        """As ``write``, and the data is on the medium at the return."""
        raise NotImplementedError

    def flush(self) -> None:
        """Put every completed write on the medium (see the durability contract above)."""
        raise NotImplementedError

    def discard(self, offset: int, length: int) -> None:
        """Give the range back to the medium; it reads as zeros afterwards exactly if ``discard_zeroes``."""
        raise NotImplementedError

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        """Make the range read as zeros, faster than by writing them; deallocate only where ``may_unmap``."""
        raise NotImplementedError

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        """Yield extents that cover the range from ``offset`` without gap or overlap, each of at least one block."""
        raise NotImplementedError

    def prefetch(self, offset: int, length: int) -> None:
        """Start to bring the range into the cache; return without waiting for it."""
        raise NotImplementedError

    def space(self) -> Space:
        """How full the medium is now, without walking over it."""
        raise NotImplementedError

    def view(self, offset: int, length: int) -> memoryview:
        """Lend the range where it lies. The bytes may change under the borrower; the mapping may not go away."""
        raise NotImplementedError

    def current_size(self) -> int:
        """How many bytes the medium has now. Asked when a call has failed: one that was cut has fewer than ``size``."""
        return self.size

    def close(self) -> None:
        """Release what the device holds. Called once; no other call follows."""

    def capabilities(self) -> Capabilities:
        """What this object can do: by default, what its class overrides.

        A device whose medium turns out to be less able than its class (a file system without holes) narrows the
        answer with ``dataclasses.replace``.
        """

        def support(*names: str) -> Support:
            overridden = all(getattr(type(self), name) is not getattr(Device, name) for name in names)
            return Support.NATIVE if overridden else Support.NONE

        return Capabilities(
            write=Support.NONE if self.readonly else support("write"),
            flush=support("flush"),
            fua=support("write_fua"),
            discard=support("discard"),
            write_zeroes=support("write_zeroes"),
            block_status=support("block_status"),
            prefetch=support("prefetch"),
            space=support("space"),
            view=support("view"),
            read_nowait=support("read_nowait"),
            write_nowait=support("write_nowait"),
        )
