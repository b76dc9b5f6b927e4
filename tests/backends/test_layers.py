"""The contract of a device, for every layer over every back end that differs in what layers care about.

The tests are those of test_contract.py, run on stacks: over memory that is lent and never waits, over a file that
needs flushes, and over one that is reached around the page cache. What is native under a layer is in truth.py.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_contract
from truth import A_PATH, LEFT_OUT, STACKS, UNDER

from iscsid.plugin.manager import Plugins


@pytest.fixture(params=[f"{stack}/{kind}" for stack, kind in itertools.product(STACKS, UNDER)])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def medium(kind: str, stacked: Callable[..., Any], tmp_path: Path) -> Any:
    stack, under = kind.split("/")
    layer, values = STACKS[stack]
    values = {key: str(tmp_path / f"{layer}.{key}") if value is A_PATH else value for key, value in values.items()}
    if stack == "crypt":
        Path(values["key_file"]).write_bytes(bytes(range(64)))
        Path(values["key_file"]).chmod(0o600)
    medium = stacked(under, [(layer, values)])
    if stack == "crypt":
        guard = medium.open()
        guard.write_zeroes(0, 2 << 20)  # what was never written reads as noise
        guard.close()
    return medium


globals().update(
    {name: test for name, test in vars(test_contract).items() if name.startswith("test_") and inspect.isfunction(test)}
)


def test_every_layer_is_in_the_suite(plugins: Plugins) -> None:
    assert {layer for layer, _ in STACKS.values()} | LEFT_OUT == set(plugins.layers)
