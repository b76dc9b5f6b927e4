"""What a worker does to a medium beside reading and writing it, because the administrator asks: other sizes, snapshots.

In the pool, while no worker has the medium open; or beside one that has, where the verb only looks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from iscsid.block.device import Device
from iscsid.block.filter import Filter
from iscsid.block.guard import Guarded
from iscsid.daemon.boot import WorkerBoot
from iscsid.daemon.nodes import open_stack
from iscsid.plugin import resizing
from iscsid.shared.messages import Work
from iscsid.specs import LunSpec

ANSWER_LIMIT: Final = 64 << 10  # bytes of an answer, which is quoted once more in its message


def perform(boot: WorkerBoot, work: Work) -> str:
    """Do it; the answer as JSON. Raises PluginError and BlockError."""
    (lun,) = (
        lun for target in boot.spec.targets if target.name == work.target for lun in target.luns if lun.lun == work.lun
    )
    arguments = json.loads(work.arguments)
    options = boot.prepared.get((work.target, work.lun), lun.options)
    if work.verb == resizing.VERB:
        if arguments["shrink"]:
            _must_fit(boot, work.target, lun, arguments["size"])
        resizing.resize(boot.plugins, lun.backend, options, arguments["size"], shrink=arguments["shrink"])
        return "{}"
    return within(boot.plugins.image(lun.backend, options, work.verb, arguments))


class _Cut(Filter):
    """The first ``size`` bytes of a device."""

    def __init__(self, below: Device, size: int) -> None:
        super().__init__(below)
        self.size = min(below.size, size)


def _must_fit(boot: WorkerBoot, target: str, lun: LunSpec, size: int) -> None:
    """Raises what the layers raise over a medium of ``size`` bytes: before it is cut, for afterwards it is too late."""
    device = open_stack(boot, target, lun, partial(_Cut, size=size))
    try:
        Guarded(device, block_size=lun.block_size, readonly=lun.readonly)
    finally:
        device.close()


def within(answer: Mapping[str, Any]) -> str:
    """An answer as JSON; what makes it too long, at the ends of its lists, is left out and counted in "left_out"."""
    text = json.dumps(answer)
    if len(text) <= ANSWER_LIMIT:
        return text
    cut: dict[str, Any] = {"left_out": 0}
    room = ANSWER_LIMIT // 2
    for key, value in answer.items():
        items = value if isinstance(value, list) else [value]
        kept = []
        for item in items:
            room -= len(json.dumps(item)) + 2
            if room > 0:
                kept.append(item)
        cut["left_out"] += len(items) - len(kept)
        if isinstance(value, list):
            cut[key] = kept
        elif kept:
            cut[key] = value
    return json.dumps(cut)
