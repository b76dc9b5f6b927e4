"""What a worker does to a medium beside reading and writing it, because the administrator asks: other sizes, snapshots.

In the pool, while no worker has the medium open; or beside one that has, where the verb only looks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from iscsid.daemon.boot import WorkerBoot
from iscsid.plugin import resizing
from iscsid.shared.messages import Work

ANSWER_LIMIT: Final = 64 << 10  # bytes of an answer, which is quoted once more in its message


def perform(boot: WorkerBoot, work: Work) -> str:
    """Do it; the answer as JSON. Raises PluginError."""
    (lun,) = (
        lun for target in boot.spec.targets if target.name == work.target for lun in target.luns if lun.lun == work.lun
    )
    arguments = json.loads(work.arguments)
    options = boot.prepared.get((work.target, work.lun), lun.options)
    if work.verb == resizing.VERB:
        resizing.resize(boot.plugins, lun.backend, options, arguments["size"], shrink=arguments["shrink"])
        return "{}"
    return within(boot.plugins.image(lun.backend, options, work.verb, arguments))


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
