"""What can be done with each medium of the contract suite: the truth table, which docs/capabilities.md shows.

The suite compares every row with what the guard says of the medium. ``python tests/backends/truth.py`` prints the page.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
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

SIZE = 8 << 20
#: Back ends that differ in what layers care about: memory that is lent and never waits, a file that needs flushes, and
#: one that is reached around the page cache. The whole suite runs on each layer over these, a part of it over all.
UNDER = ("ram", "file-disk", "file-direct")
A_PATH = object()  # stands for a path in the test's folder

#: Layers, the lowest first, with options that leave the data as it is; a layer may have several rows with other names.
STACKS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "offset": [("offset", {})],
    "partition": [("partition", {"number": 1})],
    "protect": [("protect", {"offset": SIZE - (1 << 20)}), ("offset", {"size": SIZE - (1 << 20)})],
    "rate": [("rate", {"iops": 10**6, "bytes_per_second": 1 << 40})],
    "delay": [("delay", {"flush": 1})],
    "retry": [("retry", {})],
    "fault": [("fault", {"per_million": 0})],
    "log": [("log", {"calls": "flush"})],
    "stats": [("stats", {"path": A_PATH})],
    "record": [("record", {"path": A_PATH})],
    "cow-file": [("cow", {"path": A_PATH})],
    "cow-memory": [("cow", {"cluster": "4 KiB"})],
    "checksum": [("checksum", {"path": A_PATH})],
    "cache": [("cache", {})],
    "cache-back": [("cache", {"mode": "back", "size": "1 MiB", "dirty": "128 KiB"})],
    "crypt": [("crypt", {"format": "plain", "sector": 4096, "key_file": A_PATH})],
}
#: Bytes where a stack has less than the back end: what is left of a partition, or beside what is protected.
SIZES = {"partition": 6 << 20, "protect": SIZE - (1 << 20)}
#: Layers that keep something cannot be over what keeps nothing. An overlay keeps all, and so needs nothing below.
NOT_OVER_NULL = {"partition", "checksum", "cache", "cache-back", "crypt"}

_WAITS = {"rate", "delay", "retry", "fault"}
_DIRECT_KINDS = {"file-direct", "block-direct"}  # buffers have to be aligned
_OVERLAY = Capabilities(
    write=NATIVE,
    fua=EMULATE,
    write_zeroes=EMULATE,
    block_status=EMULATE,
    read_nowait=NATIVE,
    write_nowait=NATIVE,
)


def stacks() -> Iterator[tuple[str, str]]:
    """Every stack over every back end, as (stack, kind)."""
    for stack, kind in itertools.product(STACKS, EXPECTED):
        if kind != "null" or stack not in NOT_OVER_NULL:
            yield stack, kind


def size(kind: str) -> int:
    """Of a back end, or of "stack/kind"."""
    return SIZES.get(kind.split("/")[0], SIZE)


def expected(stack: str, kind: str) -> Capabilities:
    """The truth table of layers, as what each takes away from the device below, and adds."""
    below = EXPECTED[kind]
    tried = {"read_nowait": NATIVE, "write_nowait": NATIVE} if kind in INLINE else {}
    now = NONE if kind in _DIRECT_KINDS else NATIVE
    if stack.startswith("cow"):
        flush = NATIVE if stack == "cow-file" else NONE
        return dataclasses.replace(_OVERLAY, flush=flush, read_nowait=now, write_nowait=now)
    if stack.startswith("cache"):
        back = {"flush": NATIVE, "fua": EMULATE, "block_status": EMULATE} if stack == "cache-back" else {}
        write = now if kind in INLINE or stack == "cache-back" else below.write_nowait
        return dataclasses.replace(below, view=NONE, read_nowait=now, write_nowait=write, **back)
    if stack == "crypt":
        lost = dict.fromkeys(("view", "discard", "space"), NONE)
        emulated = dict.fromkeys(("block_status", "write_zeroes"), EMULATE)
        return dataclasses.replace(below, **lost, **emulated, **tried)
    if stack == "checksum":
        return dataclasses.replace(_OVERLAY, flush=NATIVE, read_nowait=NONE, write_nowait=NONE)
    if stack == "record":
        return dataclasses.replace(below, write_nowait=NONE)
    if stack == "fault":
        return dataclasses.replace(below, view=NONE, read_nowait=NONE, write_nowait=NONE)
    if stack in _WAITS:
        return dataclasses.replace(below, view=NONE, **tried)
    return below


def inline(stack: str, kind: str) -> bool:
    return kind in INLINE and stack not in _WAITS | {"cow-file", "checksum", "cache", "cache-back", "crypt", "record"}


TRUTH: Final = EXPECTED | {f"{stack}/{kind}": expected(stack, kind) for stack, kind in stacks()}
QUICK: Final = INLINE | {f"{stack}/{kind}" for stack, kind in stacks() if inline(stack, kind)}

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
_LAYERS = """\
## What layers make of it

What an initiator sees of a back end, with a layer over it. **passed on**: what is below. **hidden**: it cannot be done
with this layer. **yes** and **emulated**: as above, whatever is below. Where that depends on what is below, the cell
says on what: *inline* ones, and *direct* ones, whose buffers have to be aligned. The suite runs on every one of these
layers over every back end.
"""
_OVER = """\
`protect` hides what it protects behind an `offset` here. `-file` and `-memory` say where an overlay is, and
`cache-back` is a cache with `mode = "back"`.

## Layers over back ends

Each layer over three back ends that differ in what layers care about.
"""
_WORDS = {Support.NONE: "", Support.EMULATE: "emulated", Support.NATIVE: "yes"}


def _fields() -> list[str]:
    return [field.name for field in dataclasses.fields(Capabilities)]


def _lines(title: str, rows: list[list[str]]) -> str:
    heads = [title, *_fields(), "inline"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(line.replace("|  |", "| |").replace("|  |", "| |") for line in lines) + "\n"


def _table(heading: str, names: list[str]) -> str:
    rows = [
        [f"`{name}`", *(_WORDS[getattr(TRUTH[name], field)] for field in _fields()), "yes" if name in QUICK else ""]
        for name in names
    ]
    return f"{heading}\n\n{_lines('medium', rows)}"


def _changes(stack: str, field: str, kinds: Iterable[str]) -> list[str]:
    """The words that are true of a layer and one capability over all of these back ends."""
    pairs = {(getattr(EXPECTED[kind], field), getattr(expected(stack, kind), field)) for kind in kinds}
    after = {after for _, after in pairs}
    found = ["passed on"] if all(before == now for before, now in pairs) else []
    if field == "write" and stack.startswith("cow"):
        found = []  # over what is read-only too
    return found + [{NONE: "hidden", EMULATE: "emulated", NATIVE: "yes"}[now] for now in after if len(after) == 1]


def _cell(stack: str, field: str) -> str:
    kinds = [kind for known, kind in stacks() if known == stack]
    if said := _changes(stack, field, kinds):
        return said[0]
    groups = {
        "inline": [kind for kind in kinds if kind in INLINE],
        "direct": [kind for kind in kinds if kind in _DIRECT_KINDS],
    }
    others = _changes(stack, field, set(kinds) - set(itertools.chain(*groups.values())))[0]
    differing = {name: _changes(stack, field, group) for name, group in groups.items()}
    return ", ".join([others, *(f"{said[-1]} over {name}" for name, said in differing.items() if others not in said)])


def _layers() -> str:
    rows = []
    for stack in STACKS:
        kinds = [kind for known, kind in stacks() if known == stack and kind in INLINE]
        never = not any(inline(stack, kind) for kind in kinds)
        rows.append([f"`{stack}`", *(_cell(stack, field) for field in _fields()), "hidden" if never else "passed on"])
    return _lines("layer", rows)


def page() -> str:
    """docs/capabilities.md."""
    over = [_table(f"### Over {kind}", [name for name in TRUTH if name.endswith(f"/{kind}")]) for kind in UNDER]
    return "\n".join([_HEAD, _table("## Back ends", list(EXPECTED)), _LAYERS, _layers(), _OVER, *over])


if __name__ == "__main__":
    print(page(), end="")
