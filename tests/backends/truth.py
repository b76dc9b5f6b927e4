"""What can be done with each medium of the contract suite: the truth table, which docs/capabilities.md shows.

The suite compares every row with what the guard says of the medium. ``python tests/backends/truth.py`` prints the page.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Final

from iscsid.block.device import Capabilities, Support

NONE, EMULATE, NATIVE = Support.NONE, Support.EMULATE, Support.NATIVE

_IN_MEMORY = Capabilities(
    write=NATIVE,
    flush=NONE,
    fua=EMULATE,
    discard=NATIVE,
    write_zeroes=NATIVE,
    block_status=NATIVE,
    prefetch=NATIVE,
    space=NATIVE,
    view=NONE,
    read_nowait=NATIVE,
    write_nowait=NATIVE,
)
_BUFFERED = dataclasses.replace(_IN_MEMORY, flush=NATIVE, fua=NATIVE)
_DIRECT = dataclasses.replace(_BUFFERED, prefetch=NONE, read_nowait=NONE, write_nowait=NONE)

_REMOTE = dataclasses.replace(_BUFFERED, read_nowait=NONE, write_nowait=NONE, space=NONE)

# The truth table: what the guard says of each medium. Everything that is advertised to an initiator follows from it.
EXPECTED = {
    "null": Capabilities(write=NATIVE, fua=EMULATE, write_zeroes=EMULATE, block_status=EMULATE),
    "ram": dataclasses.replace(_IN_MEMORY, prefetch=NONE, view=NATIVE, read_nowait=NONE, write_nowait=NONE),
    "file-tmpfs": _IN_MEMORY,
    "file-disk": _BUFFERED,
    "file-direct": _DIRECT,
    "block": dataclasses.replace(_BUFFERED, block_status=EMULATE, space=NONE),
    "block-4k": dataclasses.replace(_BUFFERED, block_status=EMULATE, space=NONE),
    "block-direct": dataclasses.replace(_DIRECT, block_status=EMULATE, space=NONE),
    "qcow2": dataclasses.replace(_BUFFERED, fua=EMULATE),
    "qcow2-v2": dataclasses.replace(_BUFFERED, fua=EMULATE),
    "qcow2-subclusters": dataclasses.replace(_BUFFERED, fua=EMULATE),
    "concat": _BUFFERED,
    "mirror": dataclasses.replace(_BUFFERED, write_nowait=NONE, space=NONE),
    "nbd": _REMOTE,
    "nbd-shared": dataclasses.replace(_REMOTE, flush=NONE),
    "nbd-qemu": _REMOTE,
}
INLINE = {"null", "ram", "file-tmpfs"}

UNDER = ("ram", "file-disk", "file-direct")
A_PATH = object()  # stands for a path in the test's folder

#: Options that leave the data as it is; several rows for a layer have names of their own.
STACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "offset": ("offset", {}),
    "rate": ("rate", {"iops": 10**6, "bytes_per_second": 1 << 40}),
    "delay": ("delay", {"flush": 1}),
    "retry": ("retry", {}),
    "fault": ("fault", {"per_million": 0}),
    "log": ("log", {"calls": "flush"}),
    "stats": ("stats", {"path": A_PATH}),
    "record": ("record", {"path": A_PATH}),
    "cow-file": ("cow", {"path": A_PATH}),
    "checksum": ("checksum", {"path": A_PATH}),
    "cache": ("cache", {}),
    "cache-back": ("cache", {"mode": "back", "size": "1 MiB", "dirty": "128 KiB"}),
    "crypt": ("crypt", {"format": "plain", "sector": 4096, "key_file": A_PATH}),
    "cow-memory": ("cow", {"cluster": "4 KiB"}),
}
#: Layers without a device that keeps the contract: one needs a certain content and is ``offset`` otherwise, the other
#: is there to refuse writes.
LEFT_OUT = {"partition", "protect"}

_WAITS = {"rate", "delay", "retry", "fault"}
_OVERLAY = Capabilities(
    write=NATIVE,
    fua=EMULATE,
    write_zeroes=EMULATE,
    block_status=EMULATE,
    read_nowait=NATIVE,
    write_nowait=NATIVE,
)


def expected(stack: str, kind: str) -> Capabilities:
    """The truth table of layers, as what each takes away from the device below, and adds."""
    below = EXPECTED[kind]
    if stack.startswith("cow"):
        flush = NATIVE if stack == "cow-file" else NONE
        now = NONE if kind == "file-direct" else NATIVE  # buffers have to be aligned there
        return dataclasses.replace(_OVERLAY, flush=flush, read_nowait=now, write_nowait=now)
    if stack.startswith("cache"):
        now = NONE if kind == "file-direct" else NATIVE
        back = {"flush": NATIVE, "fua": EMULATE, "block_status": EMULATE} if stack == "cache-back" else {}
        return dataclasses.replace(below, view=NONE, read_nowait=now, write_nowait=now, **back)
    if stack == "crypt":
        lost = dict.fromkeys(("view", "discard", "space"), NONE) | dict.fromkeys(
            ("block_status", "write_zeroes"), EMULATE
        )
        tried = {"read_nowait": NATIVE, "write_nowait": NATIVE} if kind in INLINE else {}
        return dataclasses.replace(below, **lost, **tried)
    if stack == "checksum":
        return dataclasses.replace(_OVERLAY, flush=NATIVE, read_nowait=NONE, write_nowait=NONE)
    if stack == "record":
        return dataclasses.replace(below, write_nowait=NONE)
    if stack in _WAITS:
        tried = {"read_nowait": NATIVE, "write_nowait": NATIVE} if kind in INLINE else {}
        if stack == "fault":
            tried = {"read_nowait": NONE, "write_nowait": NONE}
        return dataclasses.replace(below, view=NONE, **tried)
    return below


def inline(stack: str, kind: str) -> bool:
    return kind in INLINE and stack not in _WAITS | {"cow-file", "checksum", "cache", "cache-back", "crypt", "record"}


TRUTH: Final = EXPECTED | {f"{stack}/{kind}": expected(stack, kind) for stack, kind in itertools.product(STACKS, UNDER)}
QUICK: Final = INLINE | {f"{stack}/{kind}" for stack, kind in itertools.product(STACKS, UNDER) if inline(stack, kind)}

_HEAD = """\
# What each back end can do

This page is the truth table of the contract suite: every row is compared, by a test, with what the server finds out
when it opens such a medium, and everything that initiators are told follows from that.
`python tests/backends/truth.py > docs/capabilities.md` writes it. `iscsid plugin check` shows the same for your own
back end.

**yes**: the device does it. **emulated**: the server does it, by other calls of the device. Empty: it cannot be done,
and nobody is told that it could. *fua* writes through to the medium; no *flush* means that a completed write is there.
*Inline* media never wait: their commands are done in the worker's loop.
"""
_WORDS = {Support.NONE: "", Support.EMULATE: "emulated", Support.NATIVE: "yes"}


def _table(heading: str, names: list[str]) -> str:
    fields = [field.name for field in dataclasses.fields(Capabilities)]
    lines = [f"## {heading}", "", f"| medium | {' | '.join(fields)} | inline |", "|---" * (len(fields) + 2) + "|"]
    for name in names:
        cells = [_WORDS[getattr(TRUTH[name], field)] for field in fields] + ["yes" if name in QUICK else ""]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines) + "\n"


def page() -> str:
    """docs/capabilities.md."""
    layers = [_table(f"Layers over {kind}", [name for name in TRUTH if name.endswith(f"/{kind}")]) for kind in UNDER]
    return "\n".join([_HEAD, _table("Back ends", list(EXPECTED)), *layers])


if __name__ == "__main__":
    print(page(), end="")
