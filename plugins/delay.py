"""The layer ``delay``: every call takes longer. A slow disk, to see how an initiator takes it.

Waiting calls occupy no thread, so any number may wait at once: what is added is latency, and no limit of throughput.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from iscsid.plugin import Device, LayerInfo, Option, hookimpl, pause

from .around import NOWAIT, Around, Call

_LIMIT = 3_600_000
OPTIONS = (
    Option("read", "int", default=0, minimum=0, maximum=_LIMIT, doc="milliseconds"),
    Option(
        "write", "int", default=0, minimum=0, maximum=_LIMIT, doc="milliseconds; of writes of zeros and discards too"
    ),
    Option("flush", "int", default=0, minimum=0, maximum=_LIMIT, doc="milliseconds"),
    Option("jitter", "int", default=0, minimum=0, maximum=_LIMIT, doc="up to as many milliseconds more, at random"),
)


class Delay(Around):
    waits = True

    def __init__(self, below: Device, options: Mapping[str, Any]) -> None:
        self._options = options
        super().__init__(below)

    def around(self, name: str, kind: str, call: Call) -> Call:
        least = self._options["write" if kind == "discard" else kind]
        jitter = self._options["jitter"]
        if not least and not (jitter and kind != "flush"):
            return call

        def seconds() -> float:
            return float(least + random.uniform(0, jitter)) / 1000

        def delayed(*arguments: Any) -> Any:
            pause(self, seconds, time.sleep)
            return call(*arguments)

        return self.refuse(name) if name in NOWAIT else delayed


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    return LayerInfo("delay", "calls take longer", OPTIONS)


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Delay:
    return Delay(device, options)
