"""What another configuration changes in a running server: the difference of two, as a pure function."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from iscsid.specs import LunSpec, ServerSpec, TargetSpec

LIVE: Final = ("nop_interval", "nop_timeout", "stop_timeout", "worker_timeout", "io_timeout", "discovery_auth")
"""The keys of the server that count from the next moment on; any other needs a restart."""


class Kind(enum.Enum):
    """What happens to a LUN."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"  # another unit takes its place, as if it had been removed and added
    RESIZED = "resized"  # the same medium with another size
    RELOADED = "loaded"  # the same unit with whatever medium is there now


@dataclass(frozen=True, slots=True)
class LunChange:
    """One LUN of a target; ``new`` is None exactly where it is removed, ``old`` where it is added."""

    target: str
    kind: Kind
    old: LunSpec | None
    new: LunSpec | None

    @property
    def lun(self) -> int:
        """The number, which both have."""
        spec = self.new or self.old
        assert spec is not None
        return spec.lun

    @property
    def stays(self) -> bool:
        """Whether initiators meet the same unit as before."""
        return self.kind in (Kind.RESIZED, Kind.RELOADED)


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference.

    ``spec`` is what the server has afterwards: the new configuration, with the old values of all that needs a
    ``restart``. ``changed`` are the targets of which something else than the LUNs is different, ``server`` the keys of
    [server] that are. LUNs of targets that come or go are among ``luns`` as well.
    """

    spec: ServerSpec
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    luns: tuple[LunChange, ...] = ()
    server: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.luns or self.server)

    def rows(self) -> list[list[str]]:
        """What is done, for people: [what, "added" and so on]."""
        rows = [[f"target {name}", "added"] for name in self.added]
        rows += [[f"target {name}", "removed"] for name in self.removed]
        rows += [[f"target {name}", "changed"] for name in self.changed]
        rows += [[f"target {change.target} lun {change.lun}", change.kind.value] for change in self.luns]
        rows += [[f"server {key}", "changed"] for key in self.server]
        return rows + [[what, "needs a restart"] for what in self.restart]


def diff(old: ServerSpec, new: ServerSpec) -> Changes:
    """What has to be done to a server of ``old`` to make it one of ``new``."""
    before = {target.name: target for target in old.targets}
    after = {target.name: target for target in new.targets}
    different = [f.name for f in dataclasses.fields(new) if getattr(old, f.name) != getattr(new, f.name)]
    live = tuple(key for key in different if key in LIVE)
    restart = [f"server {key}" for key in different if key not in (*LIVE, "targets")]
    targets: list[TargetSpec] = []
    changed: list[str] = []
    luns: list[LunChange] = []
    for name, target in after.items():
        was = before.get(name, TargetSpec(name))
        if name in before and was.portal_groups != target.portal_groups:
            restart.append(f"target {name} portal_group")
            target = replace(target, portal_groups=was.portal_groups)
        if name in before and (replace(was, luns=()) != replace(target, luns=()) or _patience(was, target)):
            changed.append(name)
        targets.append(target)
        luns += _luns(name, was, target)
    for name in before.keys() - after.keys():
        luns += _luns(name, before[name], TargetSpec(name))
    values: dict[str, Any] = {key: getattr(new, key) for key in live}
    return Changes(
        replace(old, targets=tuple(targets), **values),
        tuple(name for name in after if name not in before),
        tuple(name for name in before if name not in after),
        tuple(changed),
        tuple(luns),
        live,
        tuple(restart),
    )


def _patience(old: TargetSpec, new: TargetSpec) -> bool:
    """Whether a LUN of both has another ``io_timeout``: it counts at once, and initiators see nothing of it."""
    before = {lun.lun: lun.io_timeout for lun in old.luns}
    return any(before.get(lun.lun, lun.io_timeout) != lun.io_timeout for lun in new.luns)


def _luns(name: str, old: TargetSpec, new: TargetSpec) -> Iterator[LunChange]:
    before = {lun.lun: lun for lun in old.luns}
    after = {lun.lun: lun for lun in new.luns}
    for number in sorted(before.keys() | after.keys()):
        was, will = before.get(number), after.get(number)
        if was != will and not (was and will and replace(was, io_timeout=will.io_timeout) == will):
            yield LunChange(name, _kind(was, will), was, will)


def _kind(old: LunSpec | None, new: LunSpec | None) -> Kind:
    if old is None or new is None:
        return Kind.ADDED if old is None else Kind.REMOVED
    size = new.options.get("size")
    alike = replace(old, options={**old.options, "size": size}, io_timeout=new.io_timeout) == new
    return Kind.RESIZED if alike and size else Kind.CHANGED
