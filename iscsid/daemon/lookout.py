"""What one worker tells of its units that are not well: calls that hang, errors, and media that are too short.

Nothing is counted here; what goes wrong is noted where it happens (``block.health``, the pool), and looked at each
second. A device whose calls have failed is asked for its size, and asked again for as long as it is too short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from iscsid.block.guard import Guarded
from iscsid.block.health import FLUSH, NOT_READY, READ, WRITE
from iscsid.daemon.errands import Errands
from iscsid.daemon.pool import Pool, Stuck
from iscsid.scsi.lu import LogicalUnit
from iscsid.shared.messages import Message, UnitHealth
from iscsid.target.node import TargetNode
from iscsid.target.task import DeviceCall

MEASURE_SECONDS: Final = 10.0  # between two looks at the size of a device that was too short
QUIET: Final = Stuck(0, 0, 0.0)


@dataclass(eq=False, slots=True)
class _Patient:
    """A device that has something. ``errors`` is how many were seen, ``size`` what was measured, -1: nothing."""

    errors: int = 0
    at: float = 0.0
    size: int = -1
    measure_at: float = 0.0
    measuring: bool = False


class Lookout:
    """Of one worker.

    Args:
        nodes: its targets, at any time.
        pool: where its calls hang.
        errands: by which devices are asked.
        send: sends a message to the supervisor.
    """

    def __init__(
        self,
        nodes: Callable[[], Iterable[TargetNode]],
        pool: Pool,
        errands: Errands,
        send: Callable[[Message], None],
    ) -> None:
        self._nodes = nodes
        self._pool = pool
        self._errands = errands
        self._send = send
        self._patients: dict[Guarded, _Patient] = {}
        self._told: dict[tuple[str, int], UnitHealth] = {}

    def tick(self, now: float) -> None:
        """Look, and tell what is different. To be called each second."""
        stuck = self._pool.stuck()
        there = set()
        for node in self._nodes():
            for number, unit in node.numbered.items():
                device, key = unit.device, (node.name, number)
                if device.health.kind or device in stuck or unit.failure is not None or key in self._told:
                    there.add(device)
                    self._tell(key, self._look(key, unit, stuck.get(device, QUIET), now))
        for gone in self._patients.keys() - there:
            del self._patients[gone]

    def _tell(self, key: tuple[str, int], found: UnitHealth) -> None:
        if found == self._told.get(key, UnitHealth(*key, promised=found.promised)):
            return
        self._told[key] = found
        self._send(found)

    def _look(self, key: tuple[str, int], unit: LogicalUnit, stuck: Stuck, now: float) -> UnitHealth:
        device, health = unit.device, unit.device.health
        patient = self._patients.setdefault(device, _Patient())
        errors = sum(health.counts.values())
        if errors != patient.errors:
            patient.errors, patient.at, patient.measure_at = errors, now, now
        if 0 <= patient.size < device.size or patient.measure_at == now:
            self._measure(device, patient, stuck, now)
        return UnitHealth(
            *key,
            hanging=stuck.hung,
            waiting=stuck.waiting,
            since=stuck.since if stuck.hung else 0.0,
            read_errors=health.counts[READ],
            write_errors=health.counts[WRITE],
            flush_errors=health.counts[FLUSH],
            kind=health.kind,
            reason=health.words,
            at=patient.at,
            absent=bool(health.kind) and health.fault in NOT_READY,
            ready=unit.failure is None,
            size=patient.size,
            promised=device.size,
        )

    def _measure(self, device: Guarded, patient: _Patient, stuck: Stuck, now: float) -> None:
        if patient.measuring or stuck.hung or now < patient.measure_at:
            return
        patient.measuring = True
        patient.measure_at = now + MEASURE_SECONDS
        call = DeviceCall(device, partial(_size, device), writes=False)
        self._errands.submit(device, call, partial(self._measured, patient))

    def _measured(self, patient: _Patient, size: int | None, error: Exception | None) -> None:
        """One that cannot even tell its size has had an error more, which is told as such."""
        patient.measuring = False
        if size is not None:
            patient.size = size


def _size(device: Guarded) -> int:
    with device.lock:
        return device.current_size()
