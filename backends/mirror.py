"""The back end ``mirror``: the same data on several devices. What NetBSD's targets(5) calls RAID1.

A write is complete when every leg that is up has it; a read comes from one. A leg that fails is left out, no error
reaches the initiator as long as another has the data, and what it misses is noted in the state file before the write
that it missed is answered. It is opened again from time to time; when it is back, a thread copies what it missed, a
piece at a time, while everything goes on. After a crash the regions that were being written are copied from the first
leg to the others, so that what was read once is read again whichever leg is lost.

One process has the mirror (EXCLUSIVE_OWNER): which legs may be read must not be a matter of opinion.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from iscsid.plugin import (
    BackendInfo,
    BlockError,
    Capabilities,
    Content,
    Device,
    Extent,
    Fault,
    Member,
    Option,
    Sharing,
    Support,
    Threading,
    hookimpl,
    stay,
)

from .mirror_leg import Handle, Leg, name_of
from .mirror_resize import adopt, resize
from .mirror_state import MAX_LEGS, MirrorState, recorded_names, recorded_size

OPTIONS = (
    Option("members", "members", required=True, doc=f"the legs, from 2 to {MAX_LEGS}, all of one size"),
    Option("state", "path", required=True, doc="the file that remembers which leg misses what", medium=True),
    Option("retry", "int", default=10, minimum=1, maximum=86400, doc="seconds between two tries to mend a leg"),
)
COPY: Final = 1 << 20  # bytes that are copied at a time: writes to them wait
LOOK, LOOKS = 4096, 64  # bytes, and how many places are compared of a leg that is back
SETTLE: Final = 5.0  # seconds without a write until a region counts as quiet
RECHECK: Final = 0.5  # seconds between two looks of the thread that rebuilds, while there is something to do

log = logging.getLogger(__name__)

Call = Callable[[Handle], None]
Failure = tuple[Leg, Handle, Exception]


class MirrorDevice(Device):
    """Opens the legs. At least one has to come up; those that do not are tried again.

    Locks: ``_gate`` for handles and their calls, never held while anything is waited for; ``_lock`` for the state and
    the ranges that are written and copied. ``_gate`` may be taken under ``_lock``.
    """

    threading = Threading.PARALLEL

    def __init__(self, members: Sequence[Member], state: str, *, readonly: bool, retry: float) -> None:
        self.legs = [Leg(number, member) for number, member in enumerate(members)]
        self._retry = retry
        self._gate = threading.Lock()
        self._lock = threading.Condition()
        self._retired: list[Handle] = []
        self._writing: dict[int, tuple[int, int]] = {}  # begin and end of writes under way, by a number of their own
        self._copying: tuple[int, int] | None = None
        self._written: dict[int, float] = {}  # region -> when it was last written
        self._next = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            self._take_facts(self._open_legs(), readonly)
            self._take_size(state)
            self._state = MirrorState(state, self.size, [leg.name for leg in self.legs])
            if not self.readonly:
                self._state.recover([leg.number for leg in self.legs if leg.handle is not None])
        except BaseException:
            self._close_legs()
            raise
        if not self.readonly:
            self._thread = threading.Thread(target=self._mend, name="mirror", daemon=True)
            self._thread.start()

    # -- opening -----------------------------------------------------------------------------------------------------

    def _open_legs(self) -> list[Device]:
        devices = []
        for leg in self.legs:
            try:
                handle = leg.open()
                leg.take_up(handle)
                devices.append(handle.device)
            except Exception as error:
                log.error("mirror: %s cannot be opened: %s", leg.name, error)
        if not devices:
            raise BlockError(Fault.NOT_READY, "no leg of the mirror can be opened")
        return devices

    def _take_size(self, state: str) -> None:
        """What the legs have, where they have grown: if all are there, for the one that is down may be smaller."""
        recorded = recorded_size(state)
        if not 0 < recorded < self.size or recorded_names(state) != [leg.name for leg in self.legs]:
            return
        all_up = all(leg.handle is not None for leg in self.legs)
        if self.readonly or not all_up or not adopt(state, self.size, [leg.name for leg in self.legs]):
            self.size = recorded

    def _take_facts(self, devices: Sequence[Device], readonly: bool) -> None:
        self.size = min(device.size for device in devices)
        self.block_size = max(device.block_size for device in devices)
        self.physical_block_size = max(device.physical_block_size for device in devices)
        self.alignment = max(device.alignment for device in devices)
        self.discard_granularity = max(device.discard_granularity for device in devices)
        self.discard_zeroes = all(device.discard_zeroes for device in devices)
        self.rotational = any(device.rotational for device in devices)
        self.readonly = readonly or all(device.readonly for device in devices)

    def _current(self, leg: Leg, regions: Iterable[int]) -> bool:
        """Whether the leg may be trusted with these regions."""
        return not any(self._state.stale(region) & leg.bit for region in regions)

    @contextlib.contextmanager
    def _using(self, leg: Leg) -> Iterator[Handle | None]:
        """The leg's handle, if it is up; it is not closed as long as this lasts."""
        with self._gate:
            handle = leg.handle
            if handle is not None:
                handle.calls += 1
        try:
            yield handle
        finally:
            if handle is not None:
                with self._gate:
                    handle.calls -= 1

    # -- reading -----------------------------------------------------------------------------------------------------

    def read_into(self, buffer: memoryview, offset: int) -> None:
        regions = self._state.regions(offset, len(buffer))
        failure: Exception | None = None
        for leg in self.legs:
            with self._using(leg) as handle:
                if handle is None or not self._current(leg, regions):
                    continue
                try:
                    with handle.lock:
                        handle.device.read_into(buffer, offset)
                    return
                except Exception as error:
                    failure = error
                    self._failed(leg, handle, "read", error, regions)
        raise failure or BlockError(Fault.READ_ERROR, "no leg of the mirror has the data")

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        """From the first leg that has the data; if that fails, read_into is called, and deals with it."""
        regions = self._state.regions(offset, len(buffer))
        for leg in self.legs:
            with self._using(leg) as handle:
                if handle is None or not self._current(leg, regions):
                    continue
                if not handle.reads_now:
                    break
                try:
                    handle.device.read_nowait(buffer, offset)
                    return
                except Exception as error:
                    raise BlockingIOError from error
        raise BlockingIOError

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        regions = self._state.regions(offset, length)
        for leg in self.legs:
            with self._using(leg) as handle:
                if handle is not None and self._current(leg, regions):
                    if not handle.can("block_status"):
                        return [Extent(offset, length, Content.DATA)]
                    with handle.lock:
                        return list(handle.device.block_status(offset, length))
        raise BlockError(Fault.READ_ERROR, "no leg of the mirror has the data")

    def prefetch(self, offset: int, length: int) -> None:
        regions = self._state.regions(offset, length)
        for leg in self.legs:
            with self._using(leg) as handle:
                if handle is not None and self._current(leg, regions):
                    if handle.can("prefetch"):
                        with handle.lock:
                            handle.device.prefetch(offset, length)
                    return

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, data: memoryview, offset: int) -> None:
        self._change(offset, len(data), lambda handle: handle.device.write(data, offset))

    def write_fua(self, data: memoryview, offset: int) -> None:
        self._change(offset, len(data), lambda handle: handle.write_fua(data, offset))

    def discard(self, offset: int, length: int) -> None:
        self._change(offset, length, lambda handle: handle.discard(offset, length, self.discard_zeroes))

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self._change(offset, length, lambda handle: handle.write_zeroes(offset, length, may_unmap))

    def _change(self, offset: int, length: int, call: Call) -> None:
        """Do it on every leg that is up; good when one that can be trusted has it, and the others' lack is noted."""
        regions = self._state.regions(offset, length)
        with self._range(offset, length, regions):
            done, failures = self._on_all(call)
            if not any(self._current(leg, regions) for leg in done):
                self._spoilt(done)  # they have what no leg that counts has
                self._choose([leg for leg, _, _ in failures], regions)
                raise failures[0][2] if failures else BlockError(Fault.WRITE_ERROR, "no leg of the mirror is up")
            missing = [leg for leg in self.legs if leg not in done and self._current(leg, regions)]
            if missing:
                with self._lock:
                    for leg in missing:
                        self._state.distrust(leg.number, regions)
                    self._state.sync()
            for leg, handle, error in failures:
                self._failed(leg, handle, "write", error)

    def _choose(self, failed: Iterable[Leg], regions: range) -> None:
        """None that counts has all of a write, and each may have a part of it: the first one's is what is read."""
        others = [leg for leg in failed if self._current(leg, regions)][1:]
        if others:
            with self._lock:
                for leg in others:
                    self._state.distrust(leg.number, regions)
                self._state.sync()

    def _on_all(self, call: Call) -> tuple[list[Leg], list[Failure]]:
        """Call every leg that is up."""
        stay()  # a call that is left between two legs may never come to the second one
        done: list[Leg] = []
        failures: list[Failure] = []
        for leg in self.legs:
            with self._using(leg) as handle:
                if handle is None:
                    continue
                try:
                    with handle.lock:
                        call(handle)
                    done.append(leg)
                except Exception as error:
                    self._spoilt([leg])
                    failures.append((leg, handle, error))
        return done, failures

    def _spoilt(self, legs: Iterable[Leg]) -> None:
        """A region of these that is being rebuilt may lack something that was copied: it is not finished.

        And what was not flushed by now is not known to be on them, even if a later flush should succeed."""
        with self._lock:
            for leg in legs:
                leg.failures += 1
                leg.doubts.update(self._state.intended())

    @contextlib.contextmanager
    def _range(self, offset: int, length: int, regions: range) -> Iterator[None]:
        """A write of a range: the intent is noted, and nothing copies or writes the range meanwhile.

        Two writes at a time could reach one leg in one order, and the next leg in the other.
        """
        end = offset + length
        with self._lock:
            while any(offset < theirs and begin < end for begin, theirs in self._busy()):
                self._lock.wait()
            if self._state.intend(regions):
                self._state.sync()
            self._next += 1
            number = self._next
            self._writing[number] = (offset, end)
        try:
            yield
        finally:
            now = time.monotonic()
            with self._lock:
                del self._writing[number]
                self._written.update(dict.fromkeys(regions, now))
                self._lock.notify_all()

    def _busy(self) -> list[tuple[int, int]]:
        """The ranges that are written or copied."""
        copying = [self._copying] if self._copying is not None else []
        return [*self._writing.values(), *copying]

    def flush(self) -> None:
        """Every leg that is up; one that cannot is down from then on, and misses all that was not flushed."""
        with self._lock:
            quiet = self._quiet(SETTLE)
        done, failures = self._on_all(Handle.flush)
        if failures and not any(self._trusted(leg) for leg in done):
            raise failures[0][2]
        if not done:
            raise BlockError(Fault.WRITE_ERROR, "no leg of the mirror is up")
        for leg, handle, error in failures:
            self._failed(leg, handle, "flush", error)
        with self._lock:
            # What was written since then is not known to be flushed.
            self._state.settle(set(quiet).intersection(self._quiet(SETTLE)))

    def _quiet(self, seconds: float) -> list[int]:
        """The regions with an intent that have not been written for some time and are not being written."""
        before = time.monotonic() - seconds
        busy = {region for begin, end in self._writing.values() for region in self._state.regions(begin, end - begin)}
        return [
            region
            for region in self._state.intended()
            if region not in busy and self._written.get(region, 0.0) <= before
        ]

    # -- failing and coming back -------------------------------------------------------------------------------------

    def _trusted(self, leg: Leg) -> bool:
        """Whether the leg has all the data."""
        return leg.handle is not None and not self._state.any_stale(leg.number)

    def _failed(
        self, leg: Leg, handle: Handle, what: str, error: Exception, regions: Iterable[int] = (), *, quiet: bool = False
    ) -> None:
        """Leave the leg out: it misses every write that was not flushed, and ``regions``, which it could not read, are
        written anew when it is back. Not if no other has all the data; ``quiet`` says nothing then."""
        with self._lock:
            others = any(self._trusted(other) for other in self.legs if other is not leg)
            if leg.handle is not handle:
                return
            if not others:
                level = logging.DEBUG if quiet else logging.ERROR
                log.log(level, "mirror: %s failed to %s, and is needed: %s", leg.name, what, error)
                return
            log.error("mirror: %s failed to %s, going on without it: %s", leg.name, what, error)
            self._state.distrust(leg.number, {*self._state.intended(), *leg.doubts, *regions})
            with self._gate:
                leg.handle = None
                self._retired.append(handle)
            self._state.sync()

    def _mend(self) -> None:
        """The thread: open what is down, copy what is stale, until the device is closed."""
        last_try = time.monotonic()
        while not self._stop.wait(RECHECK):
            try:
                self._close_retired()
                now = time.monotonic()
                if now - last_try >= self._retry:
                    last_try = now
                    self._reopen()
                for leg in self.legs:
                    if leg.handle is not None and leg.rests <= now and self._state.any_stale(leg.number):
                        self._rebuild(leg)
            except Exception:
                log.exception("mirror: the rebuilding failed and is tried again")

    def _reopen(self) -> None:
        for leg in self.legs:
            if leg.handle is not None or any(not retired.calls for retired in self._retired):
                continue  # what it had open is closed first: a medium may be open once only
            try:
                handle = leg.open(self)
            except Exception as error:
                log.debug("mirror: %s is still down: %s", leg.name, error)
                continue
            try:
                self._look(leg, handle)
            except BaseException:
                handle.device.close()
                raise
            leg.take_up(handle)
            log.warning("mirror: %s is back", leg.name)

    def _look(self, leg: Leg, handle: Handle) -> None:
        """Distrust all of a leg that has come back with other data, but for what no other one has."""
        if self._is_another(leg, handle):
            log.error("mirror: %s holds other data than before, all of it is copied anew", leg.name)
            others = sum(other.bit for other in self.legs if other is not leg)
            with self._lock:
                elsewhere = (region for region in range(self._state.count) if others & ~self._state.stale(region))
                self._state.distrust(leg.number, elsewhere)
                self._state.sync()

    def _is_another(self, leg: Leg, handle: Handle) -> bool:
        """Whether a leg that was down has other data than it should, here and there where nothing is stale: another
        disk in the place of the one that failed."""
        length = max(LOOK, self.block_size)
        data, there = (memoryview(mmap.mmap(-1, length)) for _ in range(2))
        step = max(self.size // LOOKS // length, 1) * length
        for offset in range(0, self.size - length + 1, step):
            region = offset // self._state.region
            with self._alone(offset, length, wait=False) as alone:
                if not alone or not self._current(leg, [region]):
                    continue
                if self._fetch(leg, region, data, offset, quiet=True) and handle.has(data, there, offset) is False:
                    return True
        return False

    def _close_retired(self) -> None:
        with self._gate:
            idle = [handle for handle in self._retired if not handle.calls]
            self._retired = [handle for handle in self._retired if handle.calls]
        for handle in idle:
            with contextlib.suppress(Exception):  # it has failed: that is known
                handle.device.close()

    def _rebuild(self, leg: Leg) -> None:
        """One pass: copy every stale region to ``leg``. What nobody can read is left for the next one, after a time."""
        began = time.monotonic()
        before, leg.unread = leg.unread, set()
        if not before:
            log.warning("mirror: %s: rebuilding", leg.name)
        data, there = (memoryview(mmap.mmap(-1, COPY)) for _ in range(2))  # aligned, for devices that ask for it
        copied = 0
        try:
            for region in self._state.stale_regions(leg.number):
                copied += self._rebuild_region(leg, region, data, there, before)
        except _Interrupted:
            leg.unread |= before
        leg.rests = time.monotonic() + self._retry
        seconds = time.monotonic() - began
        if not self._state.any_stale(leg.number):
            log.warning("mirror: %s: %d regions rebuilt in %.1f s, it is current", leg.name, copied, seconds)
        elif leg.unread - before:
            words = "mirror: %s: %d regions rebuilt in %.1f s, it is not current: %d MiB of the rest cannot be read"
            log.error(words, leg.name, copied, seconds, len(leg.unread) * COPY >> 20)

    def _rebuild_region(
        self, leg: Leg, region: int, data: memoryview, there: memoryview, known: Collection[int]
    ) -> bool:
        """Copy one; whether all of it was. ``known`` are offsets of what could not be read before."""
        if not any(other.handle and self._current(other, [region]) for other in self.legs if other is not leg):
            return False  # who has it is down
        begin = region * self._state.region
        end = min(begin + self._state.region, self.size)
        failures = leg.failures
        for offset in range(begin, end, COPY):
            if self._stop.is_set():
                raise _Interrupted
            length = min(COPY, end - offset)
            with self._alone(offset, length):  # who may be trusted is asked when no write can change it
                if not self._fetch(leg, region, data[:length], offset, quiet=offset in known):
                    leg.unread.add(offset)
                    continue
                self._put(leg, data[:length], there[:length], offset)
        return leg.unread.isdisjoint(range(begin, end, COPY)) and self._finish_region(leg, region, failures)

    def _fetch(self, leg: Leg, region: int, data: memoryview, offset: int, *, quiet: bool) -> bool:
        """Read from any that can be trusted; False where none of them can."""
        for source in self.legs:
            with self._using(source) as origin:
                if source is leg or origin is None or not self._current(source, [region]):
                    continue
                try:
                    with origin.lock:
                        origin.device.read_into(data, offset)
                    return True
                except Exception as error:
                    self._failed(source, origin, f"read at {offset}", error, [region], quiet=quiet)
        return False

    def _put(self, leg: Leg, data: memoryview, there: memoryview, offset: int) -> None:
        """Write to the leg what it does not have: a sparse leg stays sparse, and what it cannot read is mended."""
        with self._using(leg) as goal:
            if goal is None:
                raise _Interrupted
            try:
                with goal.lock:
                    if not goal.has(data, there, offset):
                        goal.device.write(data, offset)
            except Exception as error:
                self._failed(leg, goal, "rebuild", error)
                raise _Interrupted from error

    def _finish_region(self, leg: Leg, region: int, failures: int) -> bool:
        """The copy is on the leg's medium before the leg is trusted with it; not if it has failed since the copy began,
        as ``failures`` tells: a leg that is needed elsewhere stays up without the write, or the flush, that failed."""
        with self._using(leg) as handle:
            if handle is None:
                return False
            try:
                with handle.lock:
                    handle.flush()
            except Exception as error:
                self._failed(leg, handle, "flush", error)
                return False
            with self._lock:
                if leg.handle is not handle or leg.failures != failures:
                    return False
                self._state.trust(leg.number, region)
                self._state.sync()
        return True

    @contextlib.contextmanager
    def _alone(self, offset: int, length: int, *, wait: bool = True) -> Iterator[bool]:
        """No write is in the range, and none begins; without ``wait``, False where one is."""
        end = offset + length
        with self._lock:
            self._copying = (offset, end)
            while busy := any(offset < theirs and begin < end for begin, theirs in self._writing.values()):
                if not wait:
                    break
                self._lock.wait()
        try:
            yield not busy
        finally:
            with self._lock:
                self._copying = None
                self._lock.notify_all()

    # -- the rest ----------------------------------------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """What all legs can that are up, and what one leg is enough for."""
        handles = [leg.handle for leg in self.legs if leg.handle is not None]

        def of(enough: Callable[[Iterable[bool]], bool], *names: str) -> dict[str, Support]:
            found = {name: enough(handle.can(name) for handle in handles) for name in names}
            return {name: Support.NATIVE if yes else Support.NONE for name, yes in found.items()}

        answer = dataclasses.replace(super().capabilities(), space=Support.NONE)
        changing = of(all, "discard", "write_zeroes")
        return dataclasses.replace(answer, **changing, **of(any, "block_status", "prefetch", "read_nowait"))

    def close(self) -> None:
        """Flush, note that nothing is under way, and close the legs."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if not self.readonly:
                self.flush()
                self._state.settle(self._state.intended())
        finally:
            self._state.close()
            self._close_legs()

    def _close_legs(self) -> None:
        self._close_retired()
        for leg in self.legs:
            if leg.handle is not None:
                with contextlib.suppress(Exception):  # flushed before
                    leg.handle.device.close()


class _Interrupted(Exception):
    """No more can be copied in this pass."""


@hookimpl
def iscsid_backend_info() -> BackendInfo:
    return BackendInfo(
        "mirror", "the same data on several back ends", OPTIONS, sharing=Sharing.EXCLUSIVE_OWNER, degrades=True
    )


@hookimpl
def iscsid_validate(options: Mapping[str, Any]) -> list[str]:
    problems = []
    legs = options["members"]
    if not 2 <= len(legs) <= MAX_LEGS:
        problems.append(f"a mirror has from 2 to {MAX_LEGS} legs, not {len(legs)}")
    names = [name_of(leg) for leg in legs]
    if len(set(names)) < len(names):
        problems.append("two legs are the same")
    folder = os.path.dirname(os.path.abspath(options["state"]))
    if not os.path.isdir(folder):
        problems.append(f"state: there is no folder {folder}")
    return problems


@hookimpl
def iscsid_resize(options: Mapping[str, Any], size: int, shrink: bool) -> None:
    resize(options, size, shrink)


@hookimpl
def iscsid_open(options: Mapping[str, Any], role: str) -> MirrorDevice:
    readonly = role == "readonly"
    return MirrorDevice(options["members"], options["state"], readonly=readonly, retry=options["retry"])
