"""The layer ``cow``: what is written goes into an overlay, and the device below is never written.

The overlay is a sparse file or memory. Clusters that were written lie there (``plugins/overlay.py`` tells how, and what
survives a crash); the rest is read from below. A write to a part of a new cluster brings the rest of it up first. The
device below may be read-only.

* ``flush`` makes the overlay's file durable, the clusters before the bitmap. Without a flush the newest clusters may be
  lost with the host, but not with the worker.
* An overlay in memory needs no flush. It outlives its worker, and not the server.

``iscsid layer commit`` writes the overlay into the device below and empties it, ``iscsid layer discard`` forgets it.
Commit copies all, flushes the device below, and only then empties the overlay: if it is interrupted it can be repeated.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from iscsid.plugin import (
    BlockError,
    Capabilities,
    Descriptor,
    Device,
    Fault,
    Filter,
    LayerInfo,
    Mode,
    Option,
    Sharing,
    Support,
    Threading,
    Verb,
    hookimpl,
)

from .overlay import Overlay, open_file

OPTIONS = (
    Option(
        "path", "path", doc="the overlay's file, made if it is missing; without it the overlay is memory", medium=True
    ),
    Option("cluster", "size", default=65536, choices=tuple(1 << shift for shift in range(12, 22)), doc="of a new one"),
)
_BITS, _MEMORY = "cow_bits", "cow_memory"
COPY = 1 << 20  # bytes; what commit moves at once
_NONE = Support.NONE


class Cow(Filter):
    """``overlay`` is owned by the object. Reads take no lock; the first write to a cluster does."""

    readonly = False
    discard_granularity = 0
    discard_alignment = 0
    discard_zeroes = False

    def __init__(self, below: Device, overlay: Overlay) -> None:
        super().__init__(below)
        self._overlay = overlay
        self._growing = threading.Lock()
        quick = below.mode is Mode.INLINE and below.threading is Threading.PARALLEL and not overlay.durable
        self.mode = Mode.INLINE if quick else Mode.BLOCKING
        self._below_now = below.capabilities().read_nowait is Support.NATIVE

    def capabilities(self) -> Capabilities:
        native = Support.NATIVE
        now = _NONE if self._overlay.waits or self.alignment > 1 else native
        flush = native if self._overlay.durable else _NONE
        return Capabilities(write=native, flush=flush, read_nowait=now, write_nowait=now)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        for at, length, here in self._overlay.runs(offset, len(buffer)):
            part = buffer[at - offset : at - offset + length]
            (self._overlay.read_into if here else self.below.read_into)(part, at)

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        if self.mode is Mode.INLINE:
            return self.read_into(buffer, offset)
        for at, length, here in self._overlay.runs(offset, len(buffer)):
            part = buffer[at - offset : at - offset + length]
            if here:
                self._overlay.read_into(part, at, os.RWF_NOWAIT if self._overlay.durable else 0)
            elif self._below_now:
                self.below.read_nowait(part, at)
            else:
                raise BlockingIOError
        return None

    def write(self, data: memoryview, offset: int) -> None:
        for at, length, here in list(self._overlay.runs(offset, len(data))):
            part = data[at - offset : at - offset + length]
            if here:
                self._overlay.write(part, at)
            else:
                self._grow(part, at)

    def write_nowait(self, data: memoryview, offset: int) -> None:
        """Into the page cache, where the clusters are here already."""
        if self.mode is Mode.INLINE:
            return self.write(data, offset)
        if not all(here for _, _, here in self._overlay.runs(offset, len(data))):
            raise BlockingIOError
        return self._overlay.write(data, offset)

    def flush(self) -> None:
        self._overlay.sync()

    def _grow(self, data: memoryview, offset: int) -> None:
        """Write where no cluster was a moment ago; each becomes whole before it counts."""
        overlay, cluster = self._overlay, self._overlay.cluster
        with self._growing:
            at, end = offset, offset + len(data)
            while at < end:
                index = at // cluster
                stop = min((index + 1) * cluster, end)
                part = data[at - offset : stop - offset]
                if overlay.has(index):  # another thread was quicker
                    overlay.write(part, at)
                elif at == index * cluster and stop in ((index + 1) * cluster, self.size):
                    last = end // cluster if end < self.size else overlay.count
                    if not any(overlay.has(other) for other in range(index, last)):
                        stop = end if end == self.size else last * cluster
                        part, index = data[at - offset : stop - offset], last - 1
                    overlay.write(part, at)
                    overlay.mark(at // cluster, index + 1)
                else:
                    self._bring_up(index, part, at)
                at = stop

    def _bring_up(self, index: int, part: memoryview, at: int) -> None:
        start = index * self._overlay.cluster
        length = min(self._overlay.cluster, self.size // self.block_size * self.block_size - start)
        whole = memoryview(mmap.mmap(-1, length))  # at an address that O_DIRECT takes
        self.below.read_into(whole, start)
        whole[at - start : at - start + len(part)] = part
        self._overlay.write(whole, start)
        self._overlay.mark(index, index + 1)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._overlay.close()


def commit(below: Device, overlay: Overlay) -> int:
    """Write all clusters that are here into ``below`` and empty the overlay; how many bytes that was."""
    if below.readonly:
        raise BlockError(Fault.READ_ONLY, "the device below is read-only")
    done, end = 0, below.size // below.block_size * below.block_size
    buffer = memoryview(mmap.mmap(-1, COPY))
    for at, length, here in overlay.runs(0, end):
        for start in range(at, at + length, COPY) if here else ():
            part = buffer[: min(COPY, at + length - start)]
            overlay.read_into(part, start)
            below.write(part, start)
            done += len(part)
    if below.capabilities().flush is Support.NATIVE:
        below.flush()
    overlay.clear()
    return done


def _memory(name: str) -> int:
    return os.memfd_create(f"iscsid-{name}", os.MFD_CLOEXEC)


def _open(device: Device, options: Mapping[str, Any]) -> Overlay:
    """The overlay of ``device``: with the memory that was prepared, or, for tools, with some of its own."""
    path, fds = options["path"], list[int]()
    try:
        if path is not None:
            fds.append(open_file(path))
        else:
            fds.append(os.dup(options[_MEMORY]) if _MEMORY in options else _memory("cow"))
        fds.append(os.dup(options[_BITS]) if _BITS in options else _memory("cow-bits"))
        cluster = max(options["cluster"], device.block_size)
        return Overlay(fds[0], fds[1], device.size, cluster, durable=path is not None, name=path or "overlay")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    verbs = (Verb("commit", "write the overlay into the device below"), Verb("discard", "forget the overlay"))
    doc = "writes go into an overlay, the device below stays as it is"
    return LayerInfo("cow", doc, OPTIONS, sharing=Sharing.EXCLUSIVE_OWNER, verbs=verbs, preserves=True, keeps=True)


@hookimpl
def iscsid_layer_prepare(name: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
    made = {_BITS: Descriptor(_memory("cow-bits"))}
    if options["path"] is None:
        made[_MEMORY] = Descriptor(_memory("cow"))
    return made


@hookimpl
def iscsid_layer_release(name: str, options: Mapping[str, Any]) -> None:
    for key in (_BITS, _MEMORY):
        if key in options:
            os.close(options[key])


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Cow:
    overlay = _open(device, options)
    try:
        return Cow(device, overlay)
    except BaseException:
        overlay.close()
        raise


@hookimpl
def iscsid_layer_verb(
    name: str, verb: str, options: Mapping[str, Any], below: Callable[[], Device]
) -> Mapping[str, Any]:
    if options["path"] is None:
        raise BlockError(Fault.INVALID, "the overlay is memory, which ends with the server")
    if not os.path.exists(options["path"]):
        raise BlockError(Fault.INVALID, f"{options['path']}: there is no overlay")
    device = below()
    overlay = _open(device, options)
    try:
        if verb == "commit":
            return {"committed": commit(device, overlay)}
        overlay.clear()
        return {"discarded": True}
    finally:
        overlay.close()
