"""The layer ``fault``: things go wrong, on purpose. To see what an initiator, or the layer above, makes of it.

``action`` is what happens to a call that is hit: it fails with ``error``; half of a write is done before it fails
(``torn``); a write is reported done and is not (``drop``); one bit of what is read or written is wrong (``corrupt``);
nothing comes back for ``seconds``, or before the device is closed (``hang``), which occupies the thread, as a medium
that hangs does. Which calls are hit is said by the other options together. Calls are counted in each worker by itself.
"""

from __future__ import annotations

import mmap
import random
import threading
from collections.abc import Mapping
from typing import Any

from iscsid.plugin import BlockError, Device, Fault, LayerInfo, Option, hookimpl

from .around import NOWAIT, TRANSFERS, Around, Call, extent_of

ACTIONS = ("error", "torn", "drop", "corrupt", "hang")
ALWAYS = 1_000_000
OPTIONS = (
    Option("action", "str", default="error", choices=ACTIONS, doc="what happens"),
    Option("error", "str", choices=tuple(fault.name.lower() for fault in Fault), doc="without it, that of the medium"),
    Option("calls", "str", default="any", choices=("any", "read", "write", "discard", "flush"), doc="which are hit"),
    Option("offset", "size", default=0, doc="where the range that is hit begins"),
    Option("size", "size", minimum=1, doc="how long it is; without it, up to the end"),
    Option("per_million", "int", default=ALWAYS, minimum=0, maximum=ALWAYS, doc="how many are hit, by chance"),
    Option("after", "int", default=0, minimum=0, doc="as many go well before"),
    Option("count", "int", minimum=1, doc="as many are hit, and then no more"),
    Option("seconds", "int", default=0, minimum=0, maximum=86_400, doc="how long it hangs; 0: until it is closed"),
    Option("seed", "int", doc="of the chance, so that it is the same each time"),
)


class Faulty(Around):
    """One thing that goes wrong; several are several layers."""

    waits = True

    def __init__(self, below: Device, options: Mapping[str, Any]) -> None:
        self._options = options
        self._start = options["offset"]
        self._end = below.size if options["size"] is None else self._start + options["size"]
        self._to_pass = options["after"]
        self._left = options["count"]
        self._random = random.Random(options["seed"])
        self._mutex = threading.Lock()
        self._closing = threading.Event()
        super().__init__(below)

    def around(self, name: str, kind: str, call: Call) -> Call:
        if self._options["calls"] not in ("any", kind):
            return call
        if name in NOWAIT:
            return self.refuse(name)  # the full call comes next, and one command counts once
        extent = extent_of(name)

        def maybe(*arguments: Any) -> Any:
            if not self._hits(kind, *extent(*arguments)):
                return call(*arguments)
            return self._strike(name, kind, call, arguments)

        return maybe

    def _hits(self, kind: str, offset: int, length: int) -> bool:
        if kind != "flush" and (offset >= self._end or offset + length <= self._start):
            return False
        with self._mutex:
            if self._to_pass:
                self._to_pass -= 1
                return False
            if self._left == 0 or self._random.randrange(ALWAYS) >= self._options["per_million"]:
                return False
            if self._left is not None:
                self._left -= 1
        return True

    def _strike(self, name: str, kind: str, call: Call, arguments: tuple[Any, ...]) -> Any:
        action = self._options["action"]
        writes = name in TRANSFERS and kind == "write"
        if action == "hang":
            self._closing.wait(self._options["seconds"] or None)
            return call(*arguments)
        if action == "drop" and kind != "read":
            return None
        if action == "corrupt" and name in TRANSFERS:
            return self._corrupt(writes, call, *arguments)
        if action == "torn" and writes:
            data, offset = arguments
            half = len(data) // 2 - len(data) // 2 % self.block_size
            if half:
                call(data[:half], offset)
        raise BlockError(self._fault(kind), f"the layer fault says so ({name})")

    def _corrupt(self, writes: bool, call: Call, buffer: memoryview, offset: int) -> None:
        bit = self._random.randrange(len(buffer) * 8)
        if not writes:
            call(buffer, offset)
            buffer[bit // 8] ^= 1 << bit % 8
            return
        wrong = memoryview(mmap.mmap(-1, len(buffer)))  # at an address that O_DIRECT takes
        wrong[:] = buffer
        wrong[bit // 8] ^= 1 << bit % 8
        call(wrong, offset)

    def _fault(self, kind: str) -> Fault:
        if self._options["error"] is not None:
            return Fault[self._options["error"].upper()]
        return Fault.READ_ERROR if kind == "read" else Fault.WRITE_ERROR

    def close(self) -> None:
        self._closing.set()
        super().close()


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    return LayerInfo("fault", "errors, torn and lost writes, wrong bits and hangs, on purpose", OPTIONS)


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Faulty:
    return Faulty(device, options)
