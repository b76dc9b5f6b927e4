"""The soft thresholds of thin provisioning (SBC-3 4.7.3.7): who has asked for it is told when a medium runs full.

Every worker watches for its own sessions. It asks a device how full its medium is once a second, and only while an
initiator has a threshold enabled in the logical block provisioning mode page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

from iscsid.block.device import Space
from iscsid.daemon.errands import Errands
from iscsid.scsi.log import threshold_sets
from iscsid.scsi.lu import LogicalUnit
from iscsid.scsi.sense import Reason
from iscsid.scsi.state import Attention
from iscsid.target.engine import Engine

log = logging.getLogger(__name__)


class Thresholds:
    """What one worker watches.

    Args:
        units: its logical units.
        sessions: the engines of the sessions that are open now.
        errands: where it asks.
    """

    def __init__(
        self, units: Iterable[LogicalUnit], sessions: Callable[[], Iterable[Engine]], errands: Errands
    ) -> None:
        self._units = [unit for unit in units if unit.metered]
        self._sessions = sessions
        self._errands = errands
        self._asked: set[LogicalUnit] = set()  # whose device has not answered yet
        self._reached: set[LogicalUnit] = set()  # and told; armed again when there is more space

    def renew(self, units: Iterable[LogicalUnit]) -> None:
        """These are the units from now on."""
        self._units = [unit for unit in units if unit.metered]
        self._reached.intersection_update(self._units)

    def tick(self) -> None:
        """Ask. To be called about each second."""
        for unit in self._units:
            if not _enabled(unit):
                self._reached.discard(unit)
            elif unit not in self._asked:
                self._asked.add(unit)
                self._errands.submit(unit.device, partial(_space, unit), partial(self._told, unit))

    def _told(self, unit: LogicalUnit, space: Space | None, error: Exception | None) -> None:
        self._asked.discard(unit)
        if space is None:
            log.debug("%s: does not tell how full it is: %s", unit.identity.name, error)
        elif not _enabled(unit) or threshold_sets(unit, space.available) > unit.mode_state.threshold_count:
            self._reached.discard(unit)
        elif unit not in self._reached:
            self._reached.add(unit)
            log.warning("%s: %d bytes left, a threshold is reached", unit.identity.name, space.available)
            for engine in list(self._sessions()):
                if engine.nexus is not None:
                    reached = Attention(engine.nexus, Reason.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED)
                    engine.update(unit, (reached,), (), _nothing)


def _enabled(unit: LogicalUnit) -> bool:
    """LBPERE enables notification as such (SBC-3 6.5.8), ENABLED the threshold (6.5.7)."""
    return unit.mode_state.lbpere and unit.mode_state.threshold_enabled


def _nothing() -> None:
    """Nothing is aborted, so there is nothing to wait for."""


def _space(unit: LogicalUnit) -> Space:
    with unit.device.lock:
        return unit.device.space()
