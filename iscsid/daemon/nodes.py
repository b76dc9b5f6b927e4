"""The targets of one worker: their devices opened through the plugins, guarded, and made logical units."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from iscsid.block.device import Device, Support
from iscsid.block.guard import Guarded, Transfer
from iscsid.daemon.access import port_groups
from iscsid.daemon.boot import WorkerBoot
from iscsid.daemon.gate import Gate, GateError
from iscsid.daemon.locks import RangeLock, lock_path
from iscsid.daemon.pool import Pool
from iscsid.daemon.revision import Key, Revision
from iscsid.errors import BlockError, Fault, IscsidError, ScsiError
from iscsid.plugin.manager import load
from iscsid.scsi.const import Status
from iscsid.scsi.copy_move import designations
from iscsid.scsi.copy_state import CopyServices, Designation, Party
from iscsid.scsi.lu import Identity, LogicalUnit
from iscsid.scsi.removable import Medium
from iscsid.scsi.state import NexusId
from iscsid.shared.figures import Ledger
from iscsid.specs import LunSpec, TargetSpec
from iscsid.target.node import Nexus, TargetNode
from iscsid.text.keys import TARGET_OFFERS

log = logging.getLogger(__name__)

RETRY_SECONDS = 5.0  # how long writes go to the pool after the loop has waited for a medium
CLOSE_SECONDS = 30.0  # what flushing and closing may take, when nobody is there to kill a worker that takes longer


class NodeError(IscsidError):
    """A device cannot be opened; the message names target, LUN and reason."""


class Nodes:
    """Every target that this worker serves, by name, and the gate. Raises NodeError when one cannot be opened."""

    def __init__(self, boot: WorkerBoot) -> None:
        try:
            self.gate = Gate(boot.spec, boot.plugins)
        except GateError as error:
            raise NodeError(str(error)) from error
        boot.plugins.condition = threading.Condition
        self.by_name: dict[str, TargetNode] = {}
        self._locks: dict[Guarded, RangeLock] = {}
        self.boot = boot
        self._slow: list[tuple[Guarded, Transfer]] = []
        self._slow_until = 0.0
        self.held: frozenset[LogicalUnit] = frozenset()  # whose devices are about to be closed, or are
        self._ledger = None if boot.figures is None else Ledger(boot.figures, boot.index)
        self._copying = copying = CopyServices(self.find, boot.copy_key, _seconds)
        try:
            for target in boot.spec.targets:
                if boot.serves(target.name):
                    self.by_name[target.name] = _open_target(boot, target, self._locks, copying)
        except NodeError:
            self.close(flush=False)
            raise

    def find(self, designation: Designation, nexus: NexusId) -> Party | None:
        """Return the unit with a designation of VPD page 83h, and the nexus to it of the initiator port in ``nexus``.

        Only on targets that it could log in to, and none that is held: BUSY. That of its session comes first: a medium
        may be a LUN of several.
        """
        for node in sorted(self.by_name.values(), key=lambda node: node.name != nexus.target):
            if not self.gate.may_reach(nexus, node.name):
                continue
            for unit in dict.fromkeys(node.units.values()):
                if designation in designations(unit):
                    if unit in self.held:
                        raise ScsiError(Status.BUSY)
                    tags = [group.tag for group in unit.port_groups]
                    tag = nexus.portal_group_tag if nexus.portal_group_tag in tags else tags[0]
                    port = NexusId(nexus.initiator, nexus.isid, node.name, tag)
                    return Party(unit, Nexus(port, node.luns, node.copying))
        return None

    def learn(self, columns: Mapping[str, int]) -> None:
        """Where units that come are in the table of figures."""
        if self.boot.figures is not None:
            self.boot.figures.learn(columns)

    def stage(self, revision: Revision, received: Mapping[Key, Sequence[int]]) -> Staged:
        """Open what is to be there by ``revision``, for which the descriptors in ``received`` came; nothing is seen of
        it yet. May wait for media, and runs beside the loop. Raises NodeError, with nothing left open but those."""
        plugins = self.boot.plugins if revision.plugins is None else load(*revision.plugins)
        plugins.condition = threading.Condition
        prepared = {**self.boot.prepared, **revision.prepared}
        layers = {**self.boot.layers, **revision.layers}
        boot = replace(
            self.boot, spec=revision.spec, plugins=plugins, prepared=prepared, layers=layers, owners=revision.owners
        )
        units: dict[Key, LogicalUnit] = {}
        locks: dict[Guarded, RangeLock] = {}
        try:
            gate = Gate(revision.spec, plugins)
            for target in revision.spec.targets:
                for lun in target.luns:
                    if boot.serves(target.name) and (target.name, lun.lun) in revision.prepared:
                        units[target.name, lun.lun] = _open_lun(boot, target, lun, locks)
        except (NodeError, GateError) as error:
            for unit in units.values():
                _discard(unit.device)
            raise NodeError(str(error)) from error
        return Staged(revision, boot, gate, units, locks, received)

    def commit(self, staged: Staged) -> Committed:
        """Serve what ``staged`` has opened, and no more what it has not. What sessions see is the caller's."""
        done = Committed()
        before = {(node.name, lun): unit for node in self.by_name.values() for lun, unit in node.numbered.items()}
        self.boot = boot = staged.boot
        staged.gate.succeed(self.gate)
        self.gate = staged.gate
        self._locks |= staged.locks
        there = {target.name for target in boot.spec.targets if boot.serves(target.name)}
        done.removed = [self.by_name.pop(name) for name in list(self.by_name) if name not in there]
        after: dict[Key, LogicalUnit] = {}
        for target in boot.spec.targets:
            if target.name in there:
                keys = [(target.name, lun.lun) for lun in target.luns]
                after |= {key: staged.units[key] if key in staged.units else before[key] for key in keys}
                self._renew(boot, target, {number: after[target.name, number] for _, number in keys})
                for lun in target.luns:
                    after[target.name, lun.lun].device.io_timeout = lun.io_timeout or boot.spec.io_timeout
        for key, unit in before.items():
            if after.get(key) is unit:
                continue
            done.closing.append((key, unit.device))
            if key in staged.revision.stays:
                done.replaced[unit] = after[key]
                after[key].tally = unit.tally
                if key in staged.revision.other or unit.failure is not None:
                    done.other.add(after[key])
            elif self._ledger is not None:
                self._ledger.forget(unit.identity.serial)
        done.targets = {name for name, lun in before.keys() ^ after.keys()}
        done.targets |= {name for name, lun in staged.units if (name, lun) not in staged.revision.stays}
        return done

    def _renew(self, boot: WorkerBoot, target: TargetSpec, units: dict[int, LogicalUnit]) -> None:
        node = self.by_name.get(target.name)
        if node is None:
            node = self.by_name[target.name] = TargetNode(target.name, {}, copying=self._copying)
        tags = tuple(group.tag for group in boot.spec.access(target))
        offers = {**TARGET_OFFERS, **target.parameters}
        node.renew(units, alias=target.alias, portal_group_tags=tags, offers=offers)

    def shut(self, device: Guarded, *, flush: bool = True) -> None:
        """Put on the medium of a device of none of the units what was written, and close it. Waits, beside the loop.
        Raises what the device raises."""
        try:
            _part(device, flush, True)
        finally:
            lock = self._locks.pop(device, None)
            if lock is not None:
                lock.close()

    def unit(self, key: Key) -> LogicalUnit | None:
        """The logical unit of a LUN, if this worker serves it."""
        node = self.by_name.get(key[0])
        return None if node is None else node.numbered.get(key[1])

    def part(self, units: Mapping[Key, LogicalUnit]) -> None:
        """Put on their media what was written to these units, of which nobody uses the devices, and close these. Waits,
        beside the loop. Raises NodeError: where a device cannot be flushed, with all of them open."""
        devices = [(key, unit.device) for key, unit in units.items() if not unit.device.closed]
        problems = []
        for flush in (True, False):
            for (name, lun), device in devices:
                try:
                    if flush:
                        with device.lock:
                            device.flush()
                    else:
                        self.shut(device, flush=False)
                except Exception as error:  # a device of a stranger may raise anything
                    problems.append(f"{name} LUN {lun}: {'flush' if flush else 'close'} failed: {error}")
            if problems:
                raise NodeError("; ".join(problems))

    def reopen(self, keys: Iterable[Key]) -> Reopened:
        """Open LUNs once more as they were. Waits, beside the loop; nothing is seen of it yet."""
        boot, found = self.boot, Reopened()
        wanted = set(keys)
        for target in boot.spec.targets:
            for lun in target.luns:
                key = target.name, lun.lun
                if key in wanted:
                    try:
                        found.units[key] = _open_lun(boot, target, lun, found.locks)
                    except NodeError as error:
                        found.problems[key] = error
        return found

    def restore(self, found: Reopened) -> dict[LogicalUnit, LogicalUnit]:
        """Serve what :meth:`reopen` has opened in the place of what was there; the answer tells in the place of what.
        What sessions see is the caller's."""
        self._locks |= found.locks
        replaced = {}
        for (name, lun), unit in found.units.items():
            old = self.by_name[name].numbered[lun]
            unit.tally = old.tally
            replaced[old] = unit
        for target in self.boot.spec.targets:
            node = self.by_name.get(target.name)
            if node is not None and not replaced.keys().isdisjoint(node.numbered.values()):
                units = {number: replaced.get(unit, unit) for number, unit in node.numbered.items()}
                self._renew(self.boot, target, units)
        return replaced

    def by_serial(self) -> dict[str, list[LogicalUnit]]:
        """The logical units by what the workers and the supervisor call them; one medium may have several LUNs."""
        units: dict[str, list[LogicalUnit]] = {}
        for node in self.by_name.values():
            for unit in dict.fromkeys(node.units.values()):
                units.setdefault(unit.identity.serial, []).append(unit)
        return units

    def stalled(self, now: float) -> None:
        """The loop has waited for a medium: send buffered writes to the pool for a while, from every session.

        A buffered write costs a copy as long as the kernel has room for dirty pages, and waits for the disk when it has
        not; nothing tells beforehand which it will be.
        """
        self._slow_until = now + RETRY_SECONDS
        if self._slow:
            return
        for node in self.by_name.values():
            for device in node.devices():
                if not device.inline and device.can.write_nowait is Support.NATIVE:
                    self._slow.append((device, device.write_now))
                    device.write_now = _later

    def tick(self, now: float) -> None:
        """Tell all workers what the units have done, and let writes back into the loop when the time is up."""
        if self._ledger is not None:
            for serial, units in self.by_serial().items():
                self._ledger.post(serial, [unit.tally for unit in units])
        if self._slow and now >= self._slow_until:
            for device, write_now in self._slow:
                device.write_now = write_now
            self._slow.clear()

    def close(self, seconds: float = CLOSE_SECONDS, *, flush: bool = True, release: bool = True) -> None:
        """Put everything that was written on its medium, and close the devices; what fails is logged.

        A device that takes longer than ``seconds`` is given up; all of them do it at the same time, so it delays no
        other. Without ``release`` they stay open, because calls that hang still use them.
        """
        pool = Pool()
        left: set[tuple[str, int]] = set()
        for node in self.by_name.values():
            for device in node.devices():
                key = (node.name, id(device))
                left.add(key)
                pool.submit(partial(_part, device, flush, release), partial(_parted, left, key))
        if not pool.wait(seconds):
            for name in sorted({name for name, _ in left}):
                log.error("%s: not flushed and closed within %g seconds", name, seconds)
        pool.close(0.0 if left else seconds)
        if release and not left:
            for lock in self._locks.values():
                lock.close()
        self.by_name.clear()
        self._slow.clear()


@dataclass(eq=False, slots=True)
class Staged:
    """What is open for a revision and not seen yet. ``received``: the descriptors that came for each LUN."""

    revision: Revision
    boot: WorkerBoot
    gate: Gate
    units: dict[Key, LogicalUnit]
    locks: dict[Guarded, RangeLock]
    received: Mapping[Key, Sequence[int]]


@dataclass(eq=False, slots=True)
class Reopened:
    """What was opened once more and is not seen yet, and why something could not be."""

    units: dict[Key, LogicalUnit] = field(default_factory=dict)
    locks: dict[Guarded, RangeLock] = field(default_factory=dict)
    problems: dict[Key, NodeError] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Committed:
    """What a revision has done to the nodes.

    ``removed`` are the nodes that have gone, ``replaced`` the units that others of the same medium stand in for,
    ``closing`` the devices that nobody is to use any more, ``targets`` those of which LUNs have come or gone, and
    ``other`` the units of ``replaced`` on which there may be other data than before.
    """

    removed: list[TargetNode] = field(default_factory=list)
    replaced: dict[LogicalUnit, LogicalUnit] = field(default_factory=dict)
    closing: list[tuple[Key, Guarded]] = field(default_factory=list)
    targets: set[str] = field(default_factory=set)
    other: set[LogicalUnit] = field(default_factory=set)


def _part(device: Guarded, flush: bool, release: bool) -> None:
    if device.closed:
        return
    try:
        if flush:
            with device.lock:
                device.flush()
    finally:
        if release:
            device.close()


def _parted(left: set[tuple[str, int]], key: tuple[str, int], _result: Any, error: Exception | None) -> None:
    left.discard(key)
    if error is not None:
        log.error("%s: flush or close failed: %s", key[0], error)


def _seconds() -> int:
    """A clock that all workers share: the machine's, since it was started."""
    return int(time.monotonic())


def _later(_data: memoryview, _offset: int) -> None:
    raise BlockingIOError


def _open_target(
    boot: WorkerBoot, target: TargetSpec, locks: dict[Guarded, RangeLock], copying: CopyServices
) -> TargetNode:
    units: dict[int, LogicalUnit] = {}
    for lun in target.luns:
        try:
            units[lun.lun] = _open_lun(boot, target, lun, locks)
        except NodeError:
            for unit in units.values():
                _discard(unit.device)
            raise
    offers = {**TARGET_OFFERS, **target.parameters}
    tags = tuple(group.tag for group in boot.spec.access(target))
    return TargetNode(target.name, units, alias=target.alias, portal_group_tags=tags, offers=offers, copying=copying)


def _open_lun(boot: WorkerBoot, target: TargetSpec, lun: LunSpec, locks: dict[Guarded, RangeLock]) -> LogicalUnit:
    try:
        return _open_unit(boot, target, lun, locks)
    except Exception as error:  # a device of a stranger may raise anything
        words = str(error) if isinstance(error, IscsidError | OSError) else f"{type(error).__name__}: {error}"
        raise NodeError(f"{target.name} LUN {lun.lun}: {words}") from error


def open_stack(
    boot: WorkerBoot, target: str, lun: LunSpec, between: Callable[[Device], Device] | None = None
) -> Device:
    """Open the medium of a LUN, and all layers over it; ``between`` answers what these lie on. What it raises is a
    stranger's; nothing is left open."""
    options = boot.prepared.get((target, lun.lun), lun.options)
    role = "readonly" if lun.readonly else "owner" if target in boot.owners else "worker"
    under = boot.plugins.role_under([layer.layer for layer in lun.layers], role)
    device = boot.plugins.open(lun.backend, options, under)
    try:
        device = device if between is None else between(device)
        plain = tuple((layer.layer, layer.options) for layer in lun.layers)
        for name, values in boot.layers.get((target, lun.lun), plain):
            device = boot.plugins.wrap(device, name, values)
        return device
    except Exception:
        _discard(device)
        raise


def _open_unit(boot: WorkerBoot, target: TargetSpec, lun: LunSpec, locks: dict[Guarded, RangeLock]) -> LogicalUnit:
    device = open_stack(boot, target.name, lun)
    try:
        guarded = Guarded(device, block_size=lun.block_size, readonly=lun.readonly)
        if guarded.size >> 64:
            raise BlockError(Fault.INVALID, "larger than an initiator can address")
        guarded.label = f"{target.name} LUN {lun.lun}"
        if guarded.serialised:
            guarded.lock = threading.Lock()
        name = f"{target.name},L,0x{lun.lun:016x}"
        lock = locks[guarded] = RangeLock(lock_path(boot.spec.runtime_dir, lun.serial or name))
        guarded.exclusive = lock.exclusive
        guarded.io_timeout = lun.io_timeout or boot.spec.io_timeout
        figures = None if boot.figures is None else partial(boot.figures.total, lun.serial)
        identity = Identity(lun.serial, name, lun.vendor, lun.product, target=target.name)
        medium = Medium(lun.removable, lun.loaded)
        unit = LogicalUnit(guarded, identity, port_groups(boot.spec, target), figures, medium)
        unit.saved_mode_state = unit.default_mode_state  # state_dir keeps what is saved
        if boot.figures is not None:
            unit.progress = boot.figures.gauge(lun.serial)
        return unit
    except Exception:
        _discard(device)
        raise


def _discard(device: Device | Guarded) -> None:
    """Close a device whose target cannot be served for another reason, which is the one to be told."""
    with contextlib.suppress(Exception):
        device.close()
