"""A mirror of another size: its state file is rewritten, in one step, and its legs are resized one after the other.

A crash between any two of these leaves a mirror that opens: as large as its smallest leg, or as its state says if that
is less. What the legs have beyond the old end may differ, so it is copied from one leg to the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from iscsid.plugin import BlockError, Fault

from .mirror_state import HEADER, INTENT, recorded_names, recorded_size, region_size, sync_directory


def adopt(path: str, size: int, legs: Sequence[str]) -> bool:
    """Have the state say ``size`` where it said less, of a mirror whose legs have all grown by themselves. False, with
    nothing changed: it is that of other legs, or none of them has all the data to copy from. Raises OSError."""
    if recorded_names(path) != list(legs):
        return False
    whole = _whole_leg(path, len(legs))
    if whole is None:
        return False
    _rewrite(path, size, legs, ((1 << len(legs)) - 1) & ~(1 << whole))
    return True


def resize(options: Mapping[str, Any], size: int, shrink: bool) -> None:
    """Give the mirror ``size`` bytes, which nobody has open. Raises BlockError, PluginError and OSError."""
    members, path = options["members"], options["state"]
    for member in members:
        if member.problem:
            raise BlockError(Fault.NOT_READY, f"a leg is down: {member.problem}")
        if member.layers or member.resizer is None:
            words = "is under layers" if member.layers else "cannot change its size"
            raise BlockError(Fault.UNSUPPORTED, f"a leg ({member.backend}) {words}")
    have = recorded_size(path)
    if shrink and size < have:
        _rewrite(path, size, recorded_names(path), 0)  # first: legs that are longer than it are no harm
    for member in members:
        member.resize(size, shrink)


def _whole_leg(path: str, count: int) -> int | None:
    """The first leg that misses nothing."""
    stale = 0
    for bits in _read(path):
        stale |= bits & ~INTENT
    return next((leg for leg in range(count) if not stale & 1 << leg), None)


def _rewrite(path: str, size: int, legs: Sequence[str], beyond: int) -> None:
    """Put in the place of the state another one of the same mirror with ``size`` bytes; what it gets more of is stale
    on the legs whose bits are in ``beyond``. Raises OSError."""
    old, new = recorded_size(path), bytearray(-(-size // region_size(size)))
    step, region = region_size(old), region_size(size)
    for index, bits in enumerate(_read(path)):
        begin, end = index * step, min((index + 1) * step, size)
        for place in range(begin // region, -(-end // region)) if begin < end else ():
            new[place] |= bits
    for place in range(old // region, len(new)) if size > old else ():
        new[place] |= beyond
    header = json.loads(_header(path).rstrip(b"\0 \n"))
    text = json.dumps({**header, "size": size, "legs": list(legs)}).encode()
    temporary = f"{path}.new"
    with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text.ljust(HEADER, b"\0") + new)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(HEADER)
        return file.read()


def _header(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEADER)
