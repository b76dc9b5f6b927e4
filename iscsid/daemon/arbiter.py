"""The authority at its post in the supervisor: who it hears, and who does what it decides.

What is shared and in which order it changes is ``shared.authority``'s; here are the workers to tell, the ones to kill,
the sessions to end and the disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import count
from typing import Final, TypeAlias

from iscsid.daemon.access import port_groups
from iscsid.daemon.children import Child, Fleet
from iscsid.daemon.errors import StartError
from iscsid.daemon.keeper import Keeper
from iscsid.errors import LocalProtocolError, ScsiError
from iscsid.scsi.ports import PortGroup
from iscsid.scsi.removable import Medium
from iscsid.scsi.state import NexusId
from iscsid.shared.actions import Action, End, Keep, Kill, Tell
from iscsid.shared.authority import ADMINISTRATOR, Authority, Place
from iscsid.shared.messages import (
    AskReset,
    AskUnit,
    SanitizeOver,
    SessionInfo,
    UnitAnswer,
    UnitApplied,
    Withdraw,
    error_of,
)
from iscsid.shared.rules import AccessChange, MediumChange
from iscsid.specs import ServerSpec

Request: TypeAlias = AskUnit | AskReset | Withdraw | SanitizeOver | UnitApplied
REQUESTS: Final = (AskUnit, AskReset, Withdraw, SanitizeOver, UnitApplied)

log = logging.getLogger(__name__)


class Arbiter:
    """What all workers share, for the supervisor.

    Args:
        places: see :func:`places`.
        keeper: the files.
        end_session: ends the session of a TSIH for a reason.

    Raises StartError when what was kept cannot be read.
    """

    def __init__(
        self, places: Mapping[str, Place], keeper: Keeper, end_session: Callable[[int, str, float], None]
    ) -> None:
        self.authority = Authority(places)
        self._keeper = keeper
        self._end_session = end_session
        self._fleet: Fleet | None = None
        self._numbers = count(1)
        self._asked: dict[int, Callable[[ScsiError | None], None]] = {}  # by the administrator
        self._written: list[tuple[str, bool]] = []  # and not yet told to the authority
        for unit, kept in keeper.load(places).items():
            try:
                self.authority.restore(unit, kept)
            except ValueError as exc:
                path = keeper.path(unit)
                raise StartError(
                    f"reservations of unit {unit}: {path}: {exc}; remove the file to start without them"
                ) from exc
            log.info("unit %s: the reservations of before are in force again", unit)
            if self.authority.state(unit).sanitize is not None:
                log.warning("unit %s: a SANITIZE did not complete; it is refused until one has", unit)

    def lead(self, fleet: Fleet) -> None:
        """These are the workers."""
        self._fleet = fleet

    # -- what is heard -----------------------------------------------------------------------------------------------

    def on_request(self, child: Child, message: Request, now: float) -> None:
        """A worker asks, or has applied."""
        try:
            if isinstance(message, UnitApplied):
                actions = self.authority.applied(child.index, message, now)
            elif isinstance(message, SanitizeOver):
                actions = self.authority.sanitize_over(child.index, message, now)
            elif isinstance(message, Withdraw):
                actions = self.authority.withdraw(child.index, message, now)
            else:
                actions = self.authority.ask(child.index, message, now)
        except LocalProtocolError as exc:
            self._kill(child.index, str(exc))
            return
        self._act(actions, now)

    def on_ready(self, child: Child, now: float) -> None:
        """A worker takes connections from now on."""
        self._act(self.authority.worker_ready(child.index), now)

    def on_death(self, child: Child, now: float) -> None:
        """A worker is reaped."""
        self._act(self.authority.worker_died(child.index, now), now)

    def on_session_opened(self, child: Child, tsih: int, info: SessionInfo, now: float) -> None:
        """A login has succeeded."""
        if info.target:
            nexus = NexusId(info.initiator, info.isid, info.target, info.portal_group_tag)
            self._act(self.authority.session_opened(child.index, tsih, nexus, now), now)

    def on_session_closed(self, tsih: int, now: float) -> None:
        """A session has ended, and what it had in its media with it."""
        self._act(self.authority.session_closed(tsih, now), now)

    def change_access(self, change: AccessChange, done: Callable[[ScsiError | None], None], now: float) -> None:
        """The administrator wants this; ``done`` is called when every worker has applied it, or with what went wrong.

        It is called at once, or later, in the supervisor's loop.
        """
        number = next(self._numbers)
        self._asked[number] = done
        self._act(self.authority.change_access(number, change, now), now)

    def change_medium(
        self, unit: str, change: MediumChange, done: Callable[[ScsiError | None], None], now: float
    ) -> None:
        """As :meth:`change_access`, of the medium of ``unit``."""
        number = next(self._numbers)
        self._asked[number] = done
        self._act(self.authority.change_medium(number, unit, change, now), now)

    def sanitizing(self, unit: str) -> bool:
        """Whether a SANITIZE of ``unit`` is under way."""
        state = self.authority.state(unit).sanitize
        return state is not None and not state.failed

    def admit(self, places: Mapping[str, Place], now: float) -> None:
        """Units come, with the reservations that were kept of them. Raises StartError, with none of them there."""
        try:
            self._act(self.authority.admit(places, self._keeper.load(places)), now)
        except ValueError as exc:
            raise StartError(f"the reservations of a unit cannot be read: {exc}") from exc

    def settle(self, places: Mapping[str, Place], now: float) -> None:
        """These are all units from now on."""
        self._act(self.authority.settle(places, now), now)

    def on_kept(self, _mask: int, now: float) -> None:
        """The keeper's descriptor is readable."""
        self._keeper.collect()
        written, self._written = self._written, []
        for unit, ok in written:
            self._act(self.authority.kept(unit, ok, now), now)

    def expire(self, now: float) -> None:
        """See to those who are late."""
        self._act(self.authority.expire(now), now)

    def deadline(self) -> float | None:
        """When :meth:`expire` has something to do next."""
        return self.authority.deadline()

    # -- what is done ------------------------------------------------------------------------------------------------

    def _act(self, actions: Iterable[Action], now: float) -> None:
        for action in actions:
            if isinstance(action, Tell):
                self._tell(action)
            elif isinstance(action, Keep):
                self._keeper.keep(action.unit, action.kept, partial(self._on_written, action.unit))
            elif isinstance(action, Kill):
                self._kill(action.worker, action.reason)
            elif isinstance(action, End):
                self._end_session(action.tsih, action.reason, now)

    def _on_written(self, unit: str, ok: bool) -> None:
        self._written.append((unit, ok))

    def _tell(self, action: Tell) -> None:
        if action.worker == ADMINISTRATOR:
            assert isinstance(action.message, UnitAnswer)
            self._asked.pop(action.message.ask)(error_of(action.message))
            return
        child = self._fleet and self._fleet.get(action.worker)
        if self._fleet and child:
            self._fleet.send(child, action.message)

    def _kill(self, worker: int, reason: str) -> None:
        child = self._fleet and self._fleet.get(worker)
        if self._fleet and child:
            self._fleet.kill(child, reason)


def places(spec: ServerSpec, owners: Mapping[str, int]) -> dict[str, Place]:
    """Every unit by its serial number: one that several LUNs or targets lead to is one unit."""
    by_unit: dict[str, dict[str, tuple[PortGroup, ...]]] = {}
    media: dict[str, Medium] = {}
    for target in spec.targets:
        groups = port_groups(spec, target)
        for lun in target.luns:
            by_unit.setdefault(lun.serial, {})[target.name] = groups
            media[lun.serial] = Medium(lun.removable, lun.loaded)
    return {
        unit: Place(frozenset(access), _workers(access, owners), access, media[unit])
        for unit, access in by_unit.items()
    }


def _workers(targets: Iterable[str], owners: Mapping[str, int]) -> frozenset[int] | None:
    """The workers that open the devices of these targets; None: all."""
    found = {owners.get(target) for target in targets}
    return None if None in found else frozenset(index for index in found if index is not None)
