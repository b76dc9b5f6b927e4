"""What a change means for each LUN, before anything is done: which are closed before they are opened, and why not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from iscsid.block.device import Sharing
from iscsid.daemon import placement
from iscsid.daemon.changes import Changes, Kind
from iscsid.daemon.revision import Key
from iscsid.errors import IscsidError
from iscsid.plugin import resizing
from iscsid.specs import LunSpec, ServerSpec, TargetSpec

if TYPE_CHECKING:
    from iscsid.plugin.manager import Plugins


class Refused(IscsidError):
    """A change that cannot be made; the message is for the administrator."""


@dataclass(frozen=True, slots=True)
class Task:
    """Work on the medium of a LUN: a verb of its back end, see ``daemon.works``."""

    target: str
    lun: int
    serial: str
    verb: str
    arguments: Mapping[str, Any]


def sharing(plugins: Plugins, lun: LunSpec) -> Sharing:
    """How many processes may open the medium of ``lun`` under its layers."""
    return plugins.sharing(lun.backend, lun.options, [layer.layer for layer in lun.layers])


def is_exclusive(plugins: Plugins, lun: LunSpec) -> bool:
    """Whether one process has the medium to itself."""
    return placement.is_exclusive(lun, sharing(plugins, lun))


def held(plugins: Plugins, changes: Changes, *, everything: bool) -> list[Key]:
    """The LUNs that are closed before anything is opened: those that cannot be open twice, and with ``everything`` all
    that stay.

    One whose medium another LUN gets is closed, too. A layer of it (a write-back cache) may have data that is not on
    the medium yet, and nothing but the configuration tells that it is the same medium.
    """
    taken = [medium(lun.new) for lun in changes.luns if lun.new is not None and not lun.stays]
    return [
        (lun.target, lun.lun)
        for lun in changes.luns
        if lun.old is not None
        and ((lun.stays and everything) or sharing(plugins, lun.old) is not Sharing.SHARED)
        and (lun.stays or medium(lun.old) in taken)
    ]


def resizes(changes: Changes, held: Collection[Key]) -> list[Task]:
    """The work of making those media larger that are closed for it, each once."""
    works: dict[str, Task] = {}
    for lun in changes.luns:
        if lun.kind is Kind.RESIZED and lun.new is not None and (lun.target, lun.lun) in held:
            arguments = {"size": lun.new.options["size"], "shrink": False}
            works.setdefault(lun.new.serial, Task(lun.target, lun.lun, lun.new.serial, resizing.VERB, arguments))
    return list(works.values())


def keeps(plugins: Plugins, lun: LunSpec) -> str:
    """The first layer of ``lun`` that has something of its own that belongs to the data below it; "": none has."""
    return next((layer.layer for layer in lun.layers if plugins.layers[layer.layer].keeps), "")


def must_not_keep(plugins: Plugins, target: str, lun: LunSpec) -> None:
    """Raises Refused where other data, or another size, would be wrong for a layer of ``lun``."""
    if layer := keeps(plugins, lun):
        words = f"its layer {layer} keeps what belongs to the data and the size that it has now"
        raise Refused(f"target {target}, lun {lun.lun}: {words}")


def may_be_resized_in_use(plugins: Plugins, lun: LunSpec) -> bool:
    """Whether the medium can grow while several processes have it open."""
    return sharing(plugins, lun) is Sharing.SHARED and plugins.implements(lun.backend, "iscsid_resize")


def has_size(plugins: Plugins, lun: LunSpec) -> bool:
    """Whether the configuration can say how large the medium is."""
    info = plugins.backends.get(lun.backend)
    return info is not None and any(option.name == "size" for option in info.options or ())


def lun_of(spec: ServerSpec, target: str, lun: int) -> LunSpec:
    """The LUN that the administrator means. Raises Refused."""
    for found in spec.targets:
        if found.name == target.lower():
            for each in found.luns:
                if each.lun == lun:
                    return each
            numbers = ", ".join(str(each.lun) for each in found.luns) or "none"
            raise Refused(f"{target} has no LUN {lun}; it has {numbers}")
    raise Refused(f"there is no target {target}")


def resized(spec: ServerSpec, serial: str, size: int) -> ServerSpec:
    """``spec`` with ``size`` bytes for the unit of this serial number, wherever it is a LUN."""

    def changed(target: TargetSpec) -> TargetSpec:
        luns = (
            replace(lun, options={**lun.options, "size": size}) if lun.serial == serial else lun for lun in target.luns
        )
        return replace(target, luns=tuple(luns))

    return replace(spec, targets=tuple(map(changed, spec.targets)))


def medium(lun: LunSpec) -> object:
    """Equal for two LUNs with one medium, whatever else their options say."""
    return lun.backend, lun.options.get("path", {**lun.options, "size": None})
