"""The medium of the checks: prepared and released once, and nothing stays open or prepared when something fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsid.contract import Medium
from iscsid.errors import BlockError, PluginError
from iscsid.plugin.manager import Plugins, load

SIZE = 4 << 20


@pytest.fixture
def plugins() -> Plugins:
    return load()


def test_each_open_is_a_handle_of_its_own(plugins: Plugins) -> None:
    with Medium(plugins, "ram", {"size": SIZE}) as medium:
        one, two = medium.open(), medium.open()
        assert one is not two
        one.write(memoryview(b"a" * 512), 0)
        buffer = bytearray(512)
        two.read_into(memoryview(buffer), 0)
        assert buffer == b"a" * 512
        medium.close_handles()
        with pytest.raises(BlockError):
            one.flush() or one.read_into(memoryview(buffer), 0)


def test_exclusive_medium_is_open_once(plugins: Plugins) -> None:
    with Medium(plugins, "ram", {"size": SIZE}, [("cow", {})]) as medium:
        assert medium.exclusive
        one = medium.open()
        assert medium.open() is one
        assert medium.open("readonly", readonly=True) is not one
        assert one._device is None


def test_layers_that_cannot_be_prepared_leave_nothing_prepared(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = []
    release = plugins.release
    monkeypatch.setattr(plugins, "release", lambda *told: (released.append(told[0]), release(*told)))
    with pytest.raises(PluginError, match="path: missing"):
        Medium(plugins, "ram", {"size": SIZE}, [("stats", {})])
    assert released == ["ram"]


def test_device_that_no_guard_takes_is_closed(plugins: Plugins, tmp_path: Path) -> None:
    with Medium(plugins, "file", {"path": str(tmp_path / "disk"), "size": SIZE}) as medium:
        with pytest.raises(BlockError):
            medium.open(block_size=100)
        assert not medium._open


def test_what_is_forgotten_is_read_as_zeros(plugins: Plugins) -> None:
    with Medium(plugins, "null", {"size": SIZE}, forgets=True) as medium:
        assert medium.kept(b"abc") == bytes(3)
    with Medium(plugins, "ram", {"size": SIZE}) as medium:
        assert medium.kept(b"abc") == b"abc"
