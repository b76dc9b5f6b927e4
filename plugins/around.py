"""What layers share that do something around the calls of the device below and leave the data alone.

Such a layer has all capabilities of the device below: it puts a function of its own around each call that there is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Final

from iscsid.plugin import Capabilities, Device, Filter, Mode, Support, Threading

Call = Callable[..., Any]

#: Each call that moves or changes data, and what it does.
KINDS: Final = {
    "read_into": "read",
    "read_nowait": "read",
    "view": "read",
    "write": "write",
    "write_nowait": "write",
    "write_fua": "write",
    "write_zeroes": "write",
    "discard": "discard",
    "flush": "flush",
}
NOWAIT: Final = ("read_nowait", "write_nowait", "view")
#: Those whose arguments are a buffer and an offset; the others begin with offset and length, ``flush`` has none.
TRANSFERS: Final = ("read_into", "read_nowait", "write", "write_nowait", "write_fua")


def extent_of(name: str) -> Callable[..., tuple[int, int]]:
    """A function from the arguments of the call ``name`` to offset and length, in bytes."""
    if name in TRANSFERS:
        return lambda buffer, offset: (offset, len(buffer))
    if name == "flush":
        return lambda: (0, 0)
    return lambda offset, length, *_: (offset, length)


class Around(Filter):
    """``around(name, kind, call)`` gives the function that stands in the place of ``call``, for each of KINDS.

    ``waits``: calls of this layer may wait where the device below does not. Calls of an inline device go on being tried
    in the worker's loop then, as ``read_nowait`` and ``write_nowait``; memory is not lent.
    """

    waits = False

    def __init__(self, below: Device) -> None:
        super().__init__(below)
        self._refused: set[str] = set()
        self._tried = self.waits and below.mode is Mode.INLINE and below.threading is Threading.PARALLEL
        if self.waits:
            self.mode = Mode.BLOCKING
        for name, kind in KINDS.items():
            setattr(self, name, self.around(name, kind, self._call(name)))

    def _call(self, name: str) -> Call:
        if self._tried and name in ("read_nowait", "write_nowait"):
            return self.below.read_into if name == "read_nowait" else self.below.write
        call: Call = getattr(self.below, name)
        return call

    def refuse(self, name: str) -> Call:
        """What stands in the place of a nowait call that has to go to the pool each time."""
        self._refused.add(name)
        return _refused

    def around(self, name: str, kind: str, call: Call) -> Call:
        raise NotImplementedError

    def capabilities(self) -> Capabilities:
        answer = super().capabilities()
        if self.waits:
            answer = dataclasses.replace(answer, view=Support.NONE)
        if self._tried:
            write = Support.NONE if self.readonly else Support.NATIVE
            answer = dataclasses.replace(answer, read_nowait=Support.NATIVE, write_nowait=write)
        return dataclasses.replace(answer, **dict.fromkeys(self._refused, Support.NONE))


def _refused(*_: Any) -> Any:
    raise BlockingIOError
