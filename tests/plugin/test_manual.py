"""docs/backends.md tells the truth: its back end is run, and its tables are compared with the code."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from iscsid.block.device import Device
from iscsid.block.guard import Guarded
from iscsid.errors import Fault
from iscsid.plugin.info import Option
from iscsid.plugin.manager import Plugins, load

MANUAL = (Path(__file__).resolve().parents[2] / "docs" / "backends.md").read_text()
SMALLEST = re.search(r"```python\n(from iscsid.*?)```", MANUAL, re.DOTALL)


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    assert SMALLEST
    (tmp_path / "xor.py").write_text(SMALLEST[1])
    plugins = load([], [tmp_path])
    assert not [failure for failure in plugins.failures if failure.plugin == "xor"]
    return plugins


def test_smallest_back_end_fits_on_a_screen() -> None:
    assert SMALLEST
    assert len(SMALLEST[1].splitlines()) < 30


def test_smallest_back_end_serves(plugins: Plugins) -> None:
    assert plugins.validate("xor", {"size": "1 MiB"}) == []
    assert plugins.validate("xor", {}) == ["size: missing"]
    guard = Guarded(plugins.open("xor", plugins.prepare("xor", {"size": "1 MiB"})))
    buffer = bytearray(4096)
    guard.read_into(memoryview(buffer), 512)
    assert buffer == bytes(4096)
    data = bytes(range(256)) * 16
    guard.write(memoryview(data), 512, fua=True)
    guard.read_into(memoryview(buffer), 512)
    assert buffer == data
    guard.write_zeroes(1024, 512)
    guard.read_into(memoryview(buffer), 512)
    assert buffer == data[:512] + bytes(512) + data[1024:]
    guard.close()


def test_layer_of_the_manual_wraps(tmp_path: Path) -> None:
    found = [block for block in re.findall(r"```python\n(.*?)```", MANUAL, re.DOTALL) if "iscsid_filter" in block]
    (layer,) = found
    (tmp_path / "shout.py").write_text(layer)
    (tmp_path / "xor.py").write_text(SMALLEST[1] if SMALLEST else "")
    plugins = load([], [tmp_path])
    guard = Guarded(plugins.wrap(plugins.open("xor", {"size": 4096}), "shout", {}))
    guard.write(memoryview(b"iscsid  " * 64), 512)
    buffer = bytearray(512)
    guard.read_into(memoryview(buffer), 512)
    assert buffer == b"ISCSID  " * 64
    guard.close()


def test_every_method_of_a_device_is_described() -> None:
    methods = [name for name, value in vars(Device).items() if callable(value) and not name.startswith("_")]
    assert {"read_into", "capabilities"} < set(methods)
    assert all(f"`{name}(" in MANUAL for name in methods)


def test_every_fact_is_described_with_its_default() -> None:
    for name in Device.__annotations__:
        row = next(line for line in MANUAL.splitlines() if line.startswith("|") and f"`{name}`" in line.split("|")[1])
        default = getattr(Device, name, "–")
        assert row.split("|")[2].strip(" `") == str(default)


def test_every_fault_and_option_field_is_described() -> None:
    assert all(f"`{fault.name}`" in MANUAL for fault in Fault)
    assert all(field.name in MANUAL for field in dataclasses.fields(Option))


def test_every_builtin_is_described_with_its_options() -> None:
    rows = {line.split("|")[1].strip(" `"): line for line in MANUAL.splitlines() if line.startswith("| `")}
    for name, info in load().backends.items():
        assert info.options is not None
        assert all(f"`{option.name}`" in rows[name] for option in info.options)


def test_every_builtin_layer_is_described_with_its_options_and_defaults() -> None:
    section = MANUAL.split("## The layers that come with iscsid", 1)[1].split("\n## ", 1)[0]
    rows = {line.split("|")[1].strip(" `"): line for line in section.splitlines() if line.startswith("| `")}
    layers = load().layers
    assert set(rows) == set(layers)
    for name, info in layers.items():
        assert info.options is not None
        for option in info.options:
            default = "" if option.default is None else f" ({str(option.default).replace('True', 'true')})"
            assert f"`{option.name}`{default}" in rows[name], (name, option.name)
