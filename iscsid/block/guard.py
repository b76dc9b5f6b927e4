"""The one door to a device: checks what goes in, and does itself what the device cannot.

Everything above ``block`` holds a :class:`Guarded`, never a Device. Four rules hold here and need hold nowhere else:

* No device sees a range that is not inside it and made of whole blocks, a write when it is read-only, a call that it
  did not declare, or a buffer that it cannot address. So back ends stay naive.
* ``can`` tells the truth. NATIVE and EMULATE both mean "it is done when the call returns"; NONE means that the call is
  refused with UNSUPPORTED (or READ_ONLY). What can be advertised is read from ``can`` and from nothing else.
* A call that has changed something stays in its thread (``block.turn``): the next step of its command may depend on it.
* A device raises BlockError or OSError. Whatever else comes out of it is a bug of its own and leaves here as
  BlockError(INTERNAL) with the original as its cause; SystemExit, too: a device ends nobody's process. One that says
  how many bytes it has read or written, and they are not all, has failed.

``read_now``, ``write_now`` and ``view`` are what the worker's loop calls for each command. They are closures made once
at construction: one check of the range and one call of the device.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol

from iscsid.block.device import Capabilities, Content, Device, Extent, Mode, Space, Support, Threading
from iscsid.block.fault import fault_of
from iscsid.block.filter import Filter, changes
from iscsid.block.health import FLUSH, READ, WRITE, Health
from iscsid.block.ranges import checked, chunks, merged, whole_blocks
from iscsid.block.turn import Later, stay
from iscsid.block.whole import check_whole
from iscsid.errors import BlockError, Fault

MIN_BLOCK_SIZE = 512
MAX_BLOCK_SIZE = 65536
#: Emulated and bounced transfers go in pieces of this many bytes: large enough that the calls do not count, small
#: enough that sixteen pool threads at it take no memory worth speaking of.
CHUNK = 1 << 20
#: Bounce buffers kept for the next call; more are made when more calls run at once, and dropped afterwards.
SPARE_BUFFERS = 4

# Private and anonymous: reading it maps the kernel's page of zeros, so it costs no memory. Page-aligned for O_DIRECT.
_ZEROES = memoryview(mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)).toreadonly()

# Field of Capabilities -> the method of Device that must stand behind it.
_METHODS = {
    "write": "write",
    "flush": "flush",
    "fua": "write_fua",
    "discard": "discard",
    "write_zeroes": "write_zeroes",
    "block_status": "block_status",
    "prefetch": "prefetch",
    "space": "space",
    "view": "view",
    "read_nowait": "read_nowait",
    "write_nowait": "write_nowait",
}
# What is not of the device, however it comes out of it.
_PASSING = (Later, KeyboardInterrupt, GeneratorExit)
_LENGTHS = ("physical_block_size", "minimum_io", "optimal_io", "discard_granularity", "discard_alignment")

Transfer = Callable[[memoryview, int], object]


class Exclusive(Protocol):
    """See ``Guarded.exclusive``."""

    def __call__(self, offset: int, length: int, wait: bool = True, /) -> contextlib.AbstractContextManager[object]: ...


class Guarded:
    """A device with its facts checked, its gaps filled and its calls guarded.

    ``block_size`` is that of the logical unit (0: the device's own); it may be larger than the device's, never
    smaller. ``readonly`` adds write protection. Bytes behind the last whole block are out of reach.
    ``volatile`` tells that completed writes need a flush, ``lends`` that ``view`` may be called, ``inline`` that every
    call may run in the worker's loop.

    Offsets and lengths are bytes; buffers are flat memoryviews of bytes. Where ``serialised`` (the device is
    ``Threading.SERIAL``), the caller holds ``lock``, a context manager, around every call that another thread could
    meet; this room makes no locks, so the daemon puts a real one there. ``read_now`` and ``write_now`` need no lock: a
    serialised device, which therefore is never ``inline``, always refuses them.

    ``io_timeout`` is how many seconds a call may take before the daemon answers without it; 0.0: any number. ``label``
    is what to call the device in messages, and ``health`` what has gone wrong in it.

    ``exclusive(offset, length, wait=True)`` is a context manager around calls that no other holder of an overlapping
    range may meet, whichever process it is in; it is entered before ``lock``. Without ``wait``, entering raises
    BlockingIOError where another one holds the range. It, too, is the daemon's to give.

    Raises BlockError(INVALID) when the facts of the device do not fit together.
    """

    __slots__ = (
        "_bounces",
        "_device",
        "_mask",
        "_read",
        "_write",
        "_write_fua",
        "block_size",
        "blocks",
        "can",
        "discard_alignment",
        "discard_granularity",
        "discard_zeroes",
        "exclusive",
        "health",
        "inline",
        "io_timeout",
        "label",
        "lends",
        "lock",
        "minimum_io",
        "optimal_io",
        "physical_block_size",
        "read_now",
        "readonly",
        "removable",
        "rotational",
        "serialised",
        "size",
        "view",
        "volatile",
        "write_now",
    )

    #: ``read_now(buffer, offset)``: fill the buffer, or raise BlockingIOError instead of waiting.
    read_now: Transfer
    #: ``write_now(data, offset)``: write all, or raise BlockingIOError, with nothing promised of the range.
    write_now: Transfer
    #: ``view(offset, length)``: the range where it lies; only where ``lends``.
    view: Callable[[int, int], memoryview]
    lock: contextlib.AbstractContextManager[Any]
    exclusive: Exclusive
    minimum_io: int
    optimal_io: int
    discard_granularity: int
    discard_alignment: int

    def __init__(self, device: Device, *, block_size: int = 0, readonly: bool = False) -> None:
        _check_facts(device)
        self._device: Device | None = device
        self._take_geometry(device, block_size)
        declared = _declared(device)
        self.readonly = readonly or device.readonly or not declared["write"]
        self.can = _complete(declared, self.readonly)
        self.volatile = self.can.flush is Support.NATIVE
        # Several handles are the manager's to give; a handle by itself is serial.
        self.serialised = device.threading is not Threading.PARALLEL
        # The loop takes no lock, and long jobs go to the pool even of a device that never waits.
        self.inline = device.mode is Mode.INLINE and not self.serialised
        self.lends = self.can.view is Support.NATIVE
        self.rotational = device.rotational
        self.removable = device.removable
        self.discard_zeroes = device.discard_zeroes and self.can.discard is Support.NATIVE
        self.lock = contextlib.nullcontext()
        self.exclusive = _unshared
        self.io_timeout = 0.0
        self.label = type(device).__name__
        self.health = Health()
        self._bounces: list[mmap.mmap] = []
        self._bind(device)

    def _take_geometry(self, device: Device, block_size: int) -> None:
        wanted = block_size or device.block_size
        if not _is_block_size(wanted):
            raise BlockError(Fault.INVALID, f"block size {wanted}: not a power of two from 512 to 65536")
        if wanted < device.block_size:
            raise BlockError(Fault.INVALID, f"block size {wanted}: the device has blocks of {device.block_size} bytes")
        self.block_size = wanted
        self._mask = wanted - 1
        self.blocks = device.size // wanted
        self.size = self.blocks * wanted
        if not self.blocks:
            raise BlockError(Fault.INVALID, f"a device of {device.size} bytes has no block of {wanted} bytes")
        self.physical_block_size = max(wanted, device.physical_block_size)
        # What is no multiple of the block cannot be said in blocks, and saying nothing is always allowed.
        for name in ("minimum_io", "optimal_io", "discard_granularity", "discard_alignment"):
            value = getattr(device, name)
            setattr(self, name, 0 if value % wanted else value)

    def _bind(self, device: Device) -> None:
        """Choose, once, the function behind each data call."""
        native = Support.NATIVE
        self._read = self._bounced_read(device.read_into) if device.alignment > 1 else device.read_into
        self._write = self._bounced_write(device.write) if device.alignment > 1 else device.write
        self._write_fua = self._bounced_write(device.write_fua) if device.alignment > 1 else device.write_fua
        read_now: Transfer = _would_block
        write_now: Transfer = _would_block
        if self.inline:
            read_now, write_now = self._read, self._write
        elif not self.serialised and device.alignment == 1:
            read_now = device.read_nowait if self.can.read_nowait is native else _would_block
            write_now = device.write_nowait if self.can.write_nowait is native else _would_block
        self.read_now = _guarded_transfer(self, read_now, writing=False)
        self.write_now = _guarded_transfer(self, _read_only if self.readonly else write_now, writing=True)
        self.view = _guarded_view(self, device.view) if self.lends else _no_view

    # Data calls. May wait for the medium unless ``inline``.

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``. An error tells the first block that cannot be read, where it is known."""
        self._check(offset, len(buffer))
        try:
            done = self._read(buffer, offset)
            if done is not None:
                check_whole(done, len(buffer), Fault.READ_ERROR)
        except BaseException as error:
            _place(self, error)
            _rethrow(self, error, READ)

    def write(self, data: memoryview, offset: int, fua: bool = False) -> None:
        """Write all of ``data``; with ``fua`` it is on the medium at the return."""
        self._check(offset, len(data))
        self._need(self.can.write)
        try:
            emulates = fua and self.can.fua is not Support.NATIVE
            done = self._write_fua(data, offset) if fua and not emulates else self._write(data, offset)
            if done is not None:
                check_whole(done, len(data), Fault.WRITE_ERROR)
        except BaseException as error:
            _rethrow(self, error, WRITE)
        stay()
        if emulates:
            self.flush()

    def flush(self) -> None:
        """Put every completed write on the medium. Nothing to do where nothing is ``volatile``."""
        device = self._open()
        try:
            if self.volatile:
                device.flush()
        except BaseException as error:
            _rethrow(self, error, FLUSH)

    def discard(self, offset: int, length: int) -> None:
        """Give the range back to the medium; it reads as zeros afterwards exactly if ``discard_zeroes``."""
        self._check(offset, length)
        self._need(self.can.discard)
        if length:
            try:
                self._open().discard(offset, length)
            except BaseException as error:
                _rethrow(self, error, WRITE)
            stay()

    def write_zeroes(self, offset: int, length: int, may_unmap: bool = False, fua: bool = False) -> None:
        """Make the range read as zeros; deallocate only where ``may_unmap``."""
        self._check(offset, length)
        self._need(self.can.write_zeroes)
        try:
            if length and not self._native_zeroes(offset, length, may_unmap):
                write: Transfer = self._open().write  # not through the bounce buffers: the zeros are page-aligned
                for at, size in chunks(offset, length, CHUNK):
                    done = write(_ZEROES[:size], at)
                    if done is not None:
                        check_whole(done, size, Fault.WRITE_ERROR)
                    stay()
        except BaseException as error:
            _rethrow(self, error, WRITE)
        stay()
        if fua:
            self.flush()

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield extents of whole blocks that cover the range, neighbours differing in content.

        A device that cannot tell has one extent of data. Whoever needs no more of them stops asking.
        """
        self._check(offset, length)
        if not length:
            return
        if self.can.block_status is not Support.NATIVE:
            yield Extent(offset, length, Content.DATA)
            return
        try:
            extents = checked(self._open().block_status(offset, length), offset, length)
            yield from merged(whole_blocks(extents, self.block_size))
        except BaseException as error:
            _rethrow(self, error, READ)

    def prefetch(self, offset: int, length: int) -> None:
        """Start to bring the range into the cache."""
        self._check(offset, length)
        self._need(self.can.prefetch)
        if length:
            try:
                self._open().prefetch(offset, length)
            except BaseException as error:
                _rethrow(self, error, READ)

    def space(self) -> Space:
        """How full the medium is."""
        self._need(self.can.space)
        try:
            used, available = self._open().space()
        except BaseException as error:
            _rethrow(self, error, READ)
        return Space(max(0, used), max(0, available))

    def current_size(self) -> int:
        """How many bytes the medium has now: fewer than ``size`` where it was cut while in use. A device that cannot
        tell has not failed: it is asked because it has."""
        try:
            return int(self._open().current_size())
        except BaseException as error:
            _rethrow(self, error, "")

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._device is None

    def close(self) -> None:
        """Release the device; further calls but this one raise BlockError(NOT_READY)."""
        device, self._device = self._device, None
        if device is None:
            return
        self._read = self._write = self._write_fua = _closed
        self.read_now = self.write_now = _closed
        self.view = _closed_view
        self._bounces.clear()
        try:
            device.close()
        except BaseException as error:
            _rethrow(self, error, WRITE)

    # Parts of the above.

    def _open(self) -> Device:
        if self._device is None:
            raise BlockError(Fault.NOT_READY, "the device is closed")
        return self._device

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size or (offset | length) & self._mask:
            _refuse(offset, length, self.size, self.block_size)

    def _need(self, support: Support) -> None:
        if support is Support.NONE:
            # A call that only a read-only device lacks fails for that reason.
            raise BlockError(Fault.READ_ONLY if self.readonly else Fault.UNSUPPORTED)

    def _native_zeroes(self, offset: int, length: int, may_unmap: bool) -> bool:
        """Let the device do it; False when it cannot after all (a range or a file system it cannot do it for)."""
        if self.can.write_zeroes is not Support.NATIVE:
            return False
        try:
            self._open().write_zeroes(offset, length, may_unmap)
        except Exception as error:
            if fault_of(error, writing=True) is not Fault.UNSUPPORTED:
                raise
            return False
        return True

    def _bounced_read(self, read: Transfer) -> Transfer:
        """``read`` through an aligned buffer when that of the caller is not aligned."""
        alignment = self._open().alignment

        def bounced(buffer: memoryview, offset: int) -> object:
            if is_aligned(buffer, alignment):
                return read(buffer, offset)
            with self._bounce() as bounce:
                for at, size in chunks(0, len(buffer), CHUNK):
                    done = read(bounce[:size], offset + at)
                    if done is not None:
                        check_whole(done, size, Fault.READ_ERROR)
                    buffer[at : at + size] = bounce[:size]
            return None

        return bounced

    def _bounced_write(self, write: Transfer) -> Transfer:
        """``write`` through an aligned buffer when that of the caller is not aligned."""
        alignment = self._open().alignment

        def bounced(data: memoryview, offset: int) -> object:
            if is_aligned(data, alignment):
                return write(data, offset)
            with self._bounce() as bounce:
                for at, size in chunks(0, len(data), CHUNK):
                    bounce[:size] = data[at : at + size]
                    done = write(bounce[:size], offset + at)
                    if done is not None:
                        check_whole(done, size, Fault.WRITE_ERROR)
                    stay()
            return None

        return bounced

    @contextlib.contextmanager
    def _bounce(self) -> Iterator[memoryview]:
        """Lend a page-aligned buffer of CHUNK bytes. Any number of threads may ask: list.pop and append are atomic."""
        try:
            area = self._bounces.pop()
        except IndexError:
            area = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with memoryview(area) as buffer:
            yield buffer
        if len(self._bounces) < SPARE_BUFFERS:
            self._bounces.append(area)


def _unshared(offset: int, length: int, wait: bool = True, /) -> contextlib.AbstractContextManager[object]:
    """``exclusive`` where nobody else can hold anything."""
    return contextlib.nullcontext()


def is_aligned(buffer: memoryview, alignment: int) -> bool:
    """Whether the first byte of ``buffer`` lies at a multiple of ``alignment``.

    A read-only buffer has no address that can be had cheaply; it counts as not aligned.
    """
    if buffer.readonly or not len(buffer):
        return not len(buffer)
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % alignment == 0


def _guarded_transfer(guard: Guarded, transfer: Transfer, *, writing: bool) -> Transfer:
    size, mask, block_size = guard.size, guard._mask, guard.block_size
    kind, short = (WRITE, Fault.WRITE_ERROR) if writing else (READ, Fault.READ_ERROR)

    def guarded(buffer: memoryview, offset: int) -> None:
        length = len(buffer)
        if offset < 0 or offset + length > size or (offset | length) & mask:
            _refuse(offset, length, size, block_size)
        try:
            done = transfer(buffer, offset)
            if done is not None:
                check_whole(done, length, short)
        except BaseException as error:
            _rethrow(guard, error, kind)

    return guarded


def _guarded_view(guard: Guarded, view: Callable[[int, int], memoryview]) -> Callable[[int, int], memoryview]:
    size, mask, block_size = guard.size, guard._mask, guard.block_size

    def guarded(offset: int, length: int) -> memoryview:
        if offset < 0 or length < 0 or offset + length > size or (offset | length) & mask:
            _refuse(offset, length, size, block_size)
        try:
            lent = view(offset, length)
            if len(lent) != length:
                check_whole(len(lent), length, Fault.READ_ERROR)
            return lent
        except BaseException as error:
            _rethrow(guard, error, READ)

    return guarded


def _refuse(offset: int, length: int, size: int, block_size: int) -> NoReturn:
    if offset < 0 or length < 0 or offset + length > size:
        raise BlockError(Fault.OUT_OF_RANGE, f"{length} bytes at {offset}: the device has {size}")
    raise BlockError(Fault.INVALID, f"{length} bytes at {offset}: not whole blocks of {block_size} bytes")


def _rethrow(guard: Guarded, error: BaseException, kind: str) -> NoReturn:
    """What a device has raised in a call of this kind, as those above expect it; "": of no kind that counts."""
    try:
        if isinstance(error, (BlockingIOError, *_PASSING)):
            raise error
        told = error
        if not isinstance(error, (BlockError, OSError)):
            words = f"the device raised {type(error).__name__}: {error}"
            told = BlockError(fault_of(error, writing=kind != READ), words)
            told.__cause__ = error
        if kind:
            guard.health.note(kind, told)
        raise told
    finally:
        # The traceback holds this frame. Without the cycle all that it holds, buffers above all, is freed at once.
        error = told = None  # type: ignore[assignment]


def _place(guard: Guarded, error: BaseException) -> None:
    """Turn where a device says that it cannot be read into a block of the logical unit.

    It counts if all layers over that device hand on reads as they are.
    """
    if not isinstance(error, BlockError):
        return
    device = guard._device
    while isinstance(device, Filter) and not changes(type(device), "read_into"):
        device = device.below
    error.block = error.at[1] // guard.block_size if error.at is not None and error.at[0] is device else None


def _would_block(buffer: memoryview, offset: int) -> None:
    raise BlockingIOError


def _read_only(data: memoryview, offset: int) -> None:
    raise BlockError(Fault.READ_ONLY)


def _closed(buffer: memoryview, offset: int) -> None:
    raise BlockError(Fault.NOT_READY, "the device is closed")


def _closed_view(offset: int, length: int) -> memoryview:
    raise BlockError(Fault.NOT_READY, "the device is closed")


def _no_view(offset: int, length: int) -> memoryview:
    raise BlockError(Fault.UNSUPPORTED, "the device lends nothing")


def _is_block_size(value: int) -> bool:
    return MIN_BLOCK_SIZE <= value <= MAX_BLOCK_SIZE and not value & (value - 1)


def _check_facts(device: Device) -> None:
    """Raise BlockError(INVALID) with the first fact of ``device`` that makes no sense."""
    if not isinstance(device, Device):
        raise BlockError(Fault.INVALID, f"not a Device but {type(device).__name__}")
    read = getattr(device, "read_into", None)
    if not callable(read) or getattr(read, "__func__", read) is Device.read_into:
        raise BlockError(Fault.INVALID, f"{type(device).__name__} has no method read_into")
    for name in ("size", "block_size", "alignment", *_LENGTHS):
        value = getattr(device, name, None)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise BlockError(Fault.INVALID, f"{name} is {value!r}, not a number of bytes")
    if not _is_block_size(device.block_size):
        raise BlockError(Fault.INVALID, f"block_size {device.block_size}: not a power of two from 512 to 65536")
    for name in ("alignment", "physical_block_size"):
        value = getattr(device, name)
        if value & (value - 1):
            raise BlockError(Fault.INVALID, f"{name} {value}: not a power of two")
    if not 1 <= device.alignment <= mmap.PAGESIZE or device.alignment > device.block_size:
        raise BlockError(Fault.INVALID, f"alignment {device.alignment}: not from 1 to the block and the page size")
    if not isinstance(device.mode, Mode) or not isinstance(device.threading, Threading):
        raise BlockError(
            Fault.INVALID, f"mode {device.mode!r}, threading {device.threading!r}: not of the enumerations"
        )


def _declared(device: Device) -> dict[str, bool]:
    """What the device says it does itself; what it leaves to be emulated counts as not done."""
    answer = device.capabilities()
    if not isinstance(answer, Capabilities):
        raise BlockError(Fault.INVALID, f"capabilities() gave {answer!r}")
    declared = {name: getattr(answer, name) == Support.NATIVE for name in _METHODS}
    for name, method in _METHODS.items():
        # Asked of the object and not of its class: a layer binds the calls of the device below to itself.
        call = getattr(device, method, None)
        if declared[name] and getattr(call, "__func__", call) is getattr(Device, method):
            raise BlockError(Fault.INVALID, f"declares {name} but has no method {method}")
    return declared


def _complete(declared: dict[str, bool], readonly: bool) -> Capabilities:
    """What can be done through the guard, given what the device declares."""

    def native(name: str, otherwise: Support = Support.NONE) -> Support:
        return Support.NATIVE if declared[name] else otherwise

    def writing(name: str, otherwise: Support = Support.NONE) -> Support:
        return Support.NONE if readonly else native(name, otherwise)

    return Capabilities(
        write=writing("write"),
        flush=native("flush"),
        # By a flush after the write; where nothing is volatile a completed write is on the medium anyway.
        fua=writing("fua", Support.EMULATE),
        discard=writing("discard"),
        write_zeroes=writing("write_zeroes", Support.EMULATE),
        block_status=native("block_status", Support.EMULATE),
        prefetch=native("prefetch"),
        space=native("space"),
        view=native("view"),
        read_nowait=native("read_nowait"),
        write_nowait=writing("write_nowait"),
    )
