"""The targets of one worker: their devices opened through the plugins, guarded, and made logical units."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from iscsid.block.device import Device, Support
from iscsid.block.guard import Guarded
from iscsid.daemon.access import port_groups
from iscsid.daemon.boot import WorkerBoot
from iscsid.daemon.gate import Gate, GateError
from iscsid.daemon.locks import RangeLock, lock_path
from iscsid.daemon.pool import Pool
from iscsid.errors import BlockError, Fault, IscsidError
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
        self.by_name: dict[str, TargetNode] = {}
        self._locks: list[RangeLock] = []
        self._slow: list[tuple[Guarded, Callable[[memoryview, int], None]]] = []
        self._slow_until = 0.0
        self._ledger = None if boot.figures is None else Ledger(boot.figures, boot.index)
        copying = CopyServices(self.find, boot.copy_key, _seconds)
        try:
            for target in boot.spec.targets:
                if boot.serves(target.name):
                    self.by_name[target.name] = _open_target(boot, target, self._locks, copying)
        except NodeError:
            self.close(flush=False)
            raise

    def find(self, designation: Designation, nexus: NexusId) -> Party | None:
        """Return the unit with a designation of VPD page 83h, and the nexus to it of the initiator port in ``nexus``.

        Only on targets that it could log in to. That of its session comes first: a medium may be a LUN of several.
        """
        for node in sorted(self.by_name.values(), key=lambda node: node.name != nexus.target):
            if not self.gate.may_reach(nexus, node.name):
                continue
            for unit in dict.fromkeys(node.units.values()):
                if designation in designations(unit):
                    tags = [group.tag for group in unit.port_groups]
                    tag = nexus.portal_group_tag if nexus.portal_group_tag in tags else tags[0]
                    port = NexusId(nexus.initiator, nexus.isid, node.name, tag)
                    return Party(unit, Nexus(port, node.luns, node.copying))
        return None

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
            for lock in self._locks:
                lock.close()
        self.by_name.clear()
        self._slow.clear()


def _part(device: Guarded, flush: bool, release: bool) -> None:
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


def _open_target(boot: WorkerBoot, target: TargetSpec, locks: list[RangeLock], copying: CopyServices) -> TargetNode:
    units: dict[int, LogicalUnit] = {}
    for lun in target.luns:
        try:
            units[lun.lun] = _open_unit(boot, target, lun, locks)
        except Exception as error:  # a device of a stranger may raise anything
            for unit in units.values():
                _discard(unit.device)
            words = str(error) if isinstance(error, IscsidError | OSError) else f"{type(error).__name__}: {error}"
            raise NodeError(f"{target.name} LUN {lun.lun}: {words}") from error
    offers = {**TARGET_OFFERS, **target.parameters}
    tags = tuple(group.tag for group in boot.spec.access(target))
    return TargetNode(target.name, units, alias=target.alias, portal_group_tags=tags, offers=offers, copying=copying)


def _open_unit(boot: WorkerBoot, target: TargetSpec, lun: LunSpec, locks: list[RangeLock]) -> LogicalUnit:
    options = boot.prepared.get((target.name, lun.lun), lun.options)
    role = "readonly" if lun.readonly else "owner" if target.name in boot.owners else "worker"
    device = boot.plugins.open(lun.backend, options, role)
    try:
        plain = tuple((layer.layer, layer.options) for layer in lun.layers)
        for name, values in boot.layers.get((target.name, lun.lun), plain):
            device = boot.plugins.wrap(device, name, values)
        guarded = Guarded(device, block_size=lun.block_size, readonly=lun.readonly)
        if guarded.size >> 64:
            raise BlockError(Fault.INVALID, "larger than an initiator can address")
        if guarded.serialised:
            guarded.lock = threading.Lock()
        name = f"{target.name},L,0x{lun.lun:016x}"
        locks.append(RangeLock(lock_path(boot.spec.runtime_dir, lun.serial or name)))
        guarded.exclusive = locks[-1].exclusive
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
