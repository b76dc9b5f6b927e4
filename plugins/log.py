"""The layer ``log``: a line for each call, with what it was, how long it took and how it ended.

For finding out what an initiator does, and not for every day: a line costs more than the call. ``level = "off"`` takes
the layer out of the way altogether.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from iscsid.plugin import Device, LayerInfo, Option, hookimpl

from .around import KINDS, Around, Call, extent_of

log = logging.getLogger(__name__)

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO}
OPTIONS = (
    Option("level", "str", default="info", choices=("off", *LEVELS), doc="of the lines"),
    Option("name", "str", default="device", doc="what the lines begin with"),
    Option("calls", "str", default="all", choices=("all", "failed", *sorted(set(KINDS.values()))), doc="which to log"),
)


class Log(Around):
    def __init__(self, below: Device, level: int, label: str, calls: str) -> None:
        self._level, self._label, self._calls = level, label, calls
        super().__init__(below)

    def around(self, name: str, kind: str, call: Call) -> Call:
        if self._calls not in ("all", "failed", kind):
            return call
        extent, level, label, all_of_them = extent_of(name), self._level, self._label, self._calls != "failed"
        clock, enabled = time.perf_counter_ns, log.isEnabledFor

        def logged(*arguments: Any) -> Any:
            if all_of_them and not enabled(level):  # it may be again after a reload
                return call(*arguments)
            begun = clock()
            try:
                answer = call(*arguments)
            except BlockingIOError:
                raise  # it comes again, in the pool
            except Exception as error:
                taken = (clock() - begun) / 1000
                offset, length = extent(*arguments)
                log.log(level, "%s: %s %d+%d: %s after %.0f us", label, name, offset, length, error, taken)
                raise
            if all_of_them:
                taken = (clock() - begun) / 1000
                offset, length = extent(*arguments)
                log.log(level, "%s: %s %d+%d: %.0f us", label, name, offset, length, taken)
            return answer

        return logged


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    return LayerInfo("log", "a line in the log for each call", OPTIONS)


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Device:
    if options["level"] == "off":
        return device
    return Log(device, LEVELS[options["level"]], options["name"], options["calls"])
