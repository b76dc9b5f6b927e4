"""Which worker gets a connection: pure functions over what the supervisor knows.

Sessions are spread and never pinned by target, so that two sessions to one LUN use two cores; the one exception is a
target with a medium that only one process may open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from iscsid.block.device import Sharing
from iscsid.specs import LunSpec, TargetSpec


def choose(
    session: int | None, nexus: int | None, owner: int | None, loads: Mapping[int, int], coming: Collection[int] = ()
) -> int | None:
    """The index of the worker for a login, or None when the one it belongs to is not ready: the login then waits.

    ``session`` is the worker of the session that the login names by its TSIH, ``nexus`` the one that has a session of
    the same initiator port and target, ``owner`` the one that alone may open the target's media; None where there is
    no such. ``loads`` gives the number of sessions, pending ones included, of each worker that is ready. ``coming``
    are workers that will be ready in a moment, with no session yet: when one dies, its sessions come back before its
    replacement is there, and would all end up with those that live.
    """
    for worker in (session, nexus, owner):
        if worker is not None:
            return worker if worker in loads else None
    candidates = {**dict.fromkeys(coming, 0), **loads}
    best = min(candidates, key=lambda worker: (candidates[worker], worker not in loads, worker), default=None)
    return best if best in loads else None


def is_exclusive(lun: LunSpec, sharing: Sharing) -> bool:
    """Whether only one process may open this LUN's medium, the way the configuration wants it opened."""
    if sharing is Sharing.SHARED_READ:
        return not lun.readonly
    return sharing is Sharing.EXCLUSIVE_OWNER


def owners(targets: Iterable[TargetSpec], sharing: Callable[[LunSpec], Sharing], workers: int) -> dict[str, int]:
    """The owner of each target with an exclusive LUN, by target name; such targets are dealt out in turn.

    ``sharing`` says how the medium of a LUN may be opened.
    """
    exclusive = [target.name for target in targets if any(is_exclusive(lun, sharing(lun)) for lun in target.luns)]
    return {name: position % workers for position, name in enumerate(exclusive)}
