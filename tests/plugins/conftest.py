"""Fixtures of the layers' tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iscsid.block.device import Device
from iscsid.plugin.manager import Plugins, load

sys.path.insert(0, str(Path(__file__).parent))  # for layer_kit: a folder of tests is no package

from layer_kit import Recorder


@pytest.fixture
def below() -> Recorder:
    return Recorder()


@pytest.fixture(scope="session")
def all_plugins() -> Plugins:
    return load()


@pytest.fixture
def wrap(all_plugins: Plugins) -> Callable[..., Any]:
    """Put a layer over a device, prepared as the server does it."""

    def wrapped(device: Device, layer: str, **options: Any) -> Device:
        assert all_plugins.validate_layer(layer, options) == []
        return all_plugins.wrap(device, layer, options)

    return wrapped
