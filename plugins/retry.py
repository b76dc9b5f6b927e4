"""The layer ``retry``: a call that fails is tried again, after a time. For media behind a network, and for old disks.

What another try cannot mend is not tried again: a range out of reach, a full or a read-only medium, what is not
supported. Nor is a flush: the kernel drops the data whose writing failed and says so once, so that the next flush
would succeed although data is lost. The wait occupies no thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from iscsid.plugin import BlockError, Device, Fault, LayerInfo, Option, fault_of, hookimpl, pause

from .around import Around, Call

OPTIONS = (
    Option("times", "int", default=3, minimum=1, maximum=100, doc="how often it is tried again"),
    Option("delay", "int", default=100, minimum=0, maximum=60_000, doc="milliseconds before each"),
)
PASSING: Final = (Fault.READ_ERROR, Fault.WRITE_ERROR, Fault.BUSY, Fault.NOT_READY, Fault.NO_RESOURCES)


class Retry(Around):
    """Nowait calls become full ones when they fail: they raise BlockingIOError, and the pool tries again."""

    waits = True

    def __init__(self, below: Device, times: int, delay: int) -> None:
        self._steps = [object() for _ in range(times)]  # one wait each, which a turn tells apart
        self._seconds = delay / 1000
        super().__init__(below)

    def around(self, name: str, kind: str, call: Call) -> Call:
        if kind == "flush":
            return call
        writing = kind != "read"

        def tried(*arguments: Any) -> Any:
            try:
                return call(*arguments)
            except (BlockError, OSError) as error:
                if isinstance(error, BlockingIOError) or fault_of(error, writing) not in PASSING:
                    raise
                raise BlockingIOError from error

        def persistent(*arguments: Any) -> Any:
            steps = iter(self._steps)
            while True:
                try:
                    return call(*arguments)
                except (BlockError, OSError) as error:
                    # A call that is begun anew has done the waits before, and has failed as often.
                    if fault_of(error, writing) not in PASSING or not self._waited(steps):
                        raise

        return tried if name in ("read_nowait", "write_nowait") else persistent

    def _waited(self, steps: Any) -> bool:
        """Wait before the next try; False when there is none."""
        return any(pause(step, lambda: self._seconds, time.sleep) for step in steps)


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    return LayerInfo("retry", "calls that fail are tried again", OPTIONS)


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Retry:
    return Retry(device, options["times"], options["delay"])
