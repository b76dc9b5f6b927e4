"""The contract of a device, for every layer over every back end that differs in what layers care about.

The tests are those of test_contract.py, run on stacks: over memory that is lent and never waits, over a file that
needs flushes, and over one that is reached around the page cache. What is native under a layer is in EXPECTED.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_contract
from test_contract import EXPECTED, INLINE

from iscsid.block.device import Capabilities, Support
from iscsid.plugin.manager import Plugins

NONE, EMULATE, NATIVE = Support.NONE, Support.EMULATE, Support.NATIVE
UNDER = ("ram", "file-disk", "file-direct")
_PATH = object()  # stands for a path in the test's folder

#: Options that leave the data as it is; several rows for a layer have names of their own.
STACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "offset": ("offset", {}),
    "rate": ("rate", {"iops": 10**6, "bytes_per_second": 1 << 40}),
    "delay": ("delay", {"flush": 1}),
    "retry": ("retry", {}),
    "fault": ("fault", {"per_million": 0}),
    "log": ("log", {"calls": "flush"}),
    "stats": ("stats", {"path": _PATH}),
    "cow-file": ("cow", {"path": _PATH}),
    "checksum": ("checksum", {"path": _PATH}),
    "cache": ("cache", {}),
    "cache-back": ("cache", {"mode": "back", "size": "1 MiB", "dirty": "128 KiB"}),
    "crypt": ("crypt", {"format": "plain", "sector": 4096, "key_file": _PATH}),
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
    if stack in _WAITS:
        tried = {"read_nowait": NATIVE, "write_nowait": NATIVE} if kind in INLINE else {}
        if stack == "fault":
            tried = {"read_nowait": NONE, "write_nowait": NONE}
        return dataclasses.replace(below, view=NONE, **tried)
    return below


def inline(stack: str, kind: str) -> bool:
    return kind in INLINE and stack not in _WAITS | {"cow-file", "checksum", "cache", "cache-back", "crypt"}


@pytest.fixture(params=[f"{stack}/{kind}" for stack, kind in itertools.product(STACKS, UNDER)])
def medium(request: pytest.FixtureRequest, stacked: Callable[..., Any], tmp_path: Path) -> Any:
    stack, kind = request.param.split("/")
    layer, values = STACKS[stack]
    values = {key: str(tmp_path / f"{layer}.{key}") if value is _PATH else value for key, value in values.items()}
    if stack == "crypt":
        Path(values["key_file"]).write_bytes(bytes(range(64)))
        Path(values["key_file"]).chmod(0o600)
    medium = stacked(request.param, kind, [(layer, values)])
    if stack == "crypt":
        guard = medium.open()
        guard.write_zeroes(0, 2 << 20)  # what was never written reads as noise
        guard.close()
    return medium


@pytest.fixture(autouse=True)
def truth(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {f"{stack}/{kind}": expected(stack, kind) for stack, kind in itertools.product(STACKS, UNDER)}
    monkeypatch.setattr(test_contract, "EXPECTED", table)
    quick = {f"{stack}/{kind}" for stack, kind in itertools.product(STACKS, UNDER) if inline(stack, kind)}
    monkeypatch.setattr(test_contract, "INLINE", quick)


globals().update(
    {name: test for name, test in vars(test_contract).items() if name.startswith("test_") and inspect.isfunction(test)}
)


def test_every_layer_is_in_the_suite(plugins: Plugins) -> None:
    assert {layer for layer, _ in STACKS.values()} | LEFT_OUT == set(plugins.layers)
