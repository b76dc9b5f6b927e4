"""Every LUN is prepared before the fork, or none is; and what was prepared is released."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from iscsid.daemon import media as media_module
from iscsid.daemon.errors import StartError
from iscsid.daemon.media import Media
from iscsid.errors import BlockError, Fault, PluginError
from iscsid.specs import LayerSpec, LunSpec, ServerSpec, TargetSpec

SPEC = ServerSpec(
    targets=(
        TargetSpec("a", (LunSpec(0, "ram", {"size": 1}), LunSpec(5, "file", {"path": "x"}))),
        TargetSpec("b", (LunSpec(0, "ram", {"size": 2}),)),
    )
)


class Plugins:
    """Records what is asked; ``failing`` is the nth call of prepare (from 1) that raises ``error``."""

    def __init__(
        self, failing: int = 0, error: Exception | None = None, release_error: Exception | None = None
    ) -> None:
        self.failing = failing
        self.roles: list[str] = []
        self.error = error
        self.release_error = release_error
        self.prepared: list[str] = []
        self.released: list[tuple[str, int]] = []

    def role_under(self, layers: Iterable[str], role: str) -> str:
        return "readonly" if "keeps" in layers else role

    def prepare(self, backend: str, options: Mapping[str, Any], role: str) -> dict[str, Any]:
        if len(self.prepared) + 1 == self.failing:
            assert self.error is not None
            raise self.error
        self.prepared.append(backend)
        self.roles.append(role)
        return {**options, "number": len(self.prepared)}

    def release(self, backend: str, options: Mapping[str, Any]) -> None:
        self.released.append((backend, options["number"]))
        if self.release_error is not None:
            raise self.release_error

    def prepare_layers(self, layers: Iterable[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
        return [(self._layer(name), {**options, "made": True}) for name, options in layers]

    def release_layers(self, layers: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        self.released += [(name, options["made"]) for name, options in layers]

    def _layer(self, name: str) -> str:
        if name == "bad":
            raise PluginError("bad", "cannot")
        return name


def media(plugins: Any) -> Media:
    return Media(SPEC, plugins)


def test_options_are_there_for_every_lun() -> None:
    assert media(Plugins()).options == {
        ("a", 0): {"size": 1, "number": 1},
        ("a", 5): {"path": "x", "number": 2},
        ("b", 0): {"size": 2, "number": 3},
    }


def test_release_undoes_in_reverse_once() -> None:
    plugins = Plugins()
    prepared = media(plugins)
    prepared.release()
    prepared.release()
    assert plugins.released == [("ram", 3), ("file", 2), ("ram", 1)]


@pytest.mark.parametrize(
    "error", [PluginError("file", "broken"), BlockError(Fault.NO_MEDIUM, "broken"), OSError(5, "broken")]
)
def test_failure_names_target_and_lun_and_releases_what_was_prepared(error: Exception) -> None:
    plugins = Plugins(failing=2, error=error)
    with pytest.raises(StartError, match=r"target a, lun 5: .*broken"):
        media(plugins)
    assert plugins.released == [("ram", 1)]


def test_failure_in_release_is_logged_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    plugins = Plugins(release_error=PluginError("x", "stuck"))
    with caplog.at_level(logging.ERROR):
        media(plugins).release()
    assert len(plugins.released) == 3
    assert caplog.text.count("stuck") == 3


def layered(*layers: str) -> ServerSpec:
    lun = LunSpec(0, "ram", {"size": 1}, layers=tuple(LayerSpec(layer, {"key": 1}) for layer in layers))
    return ServerSpec(targets=(TargetSpec("a", (lun,)),))


def test_layers_are_prepared_and_released_before_their_back_end() -> None:
    plugins: Any = Plugins()
    media = Media(layered("one", "two"), plugins)
    assert media.layers == {("a", 0): [("one", {"key": 1, "made": True}), ("two", {"key": 1, "made": True})]}
    media.release()
    assert plugins.released == [("one", True), ("two", True), ("ram", 1)]


def test_layer_that_cannot_be_prepared_leaves_nothing_prepared() -> None:
    plugins: Any = Plugins()
    with pytest.raises(StartError, match=r"target a, lun 0: .*cannot"):
        Media(layered("one", "bad"), plugins)
    assert plugins.released == [("ram", 1)]


def test_lun_that_comes_and_goes_is_prepared_and_released_by_itself() -> None:
    plugins: Any = Plugins()
    media = Media(SPEC, plugins)
    lun = LunSpec(9, "file", {"path": "y"})
    made = media.prepare("a", lun)
    assert ("a", 9) not in media.options
    assert media.put(made) is None
    assert media.options["a", 9] == {"path": "y", "number": 4}
    gone = media.take("a", 9)
    assert ("a", 9) not in media.options and plugins.released == []
    media.undo(gone)
    assert plugins.released == [("file", 4)]
    media.release()
    assert len(plugins.released) == 4


def test_lun_that_takes_the_place_of_another_gives_that_back() -> None:
    plugins: Any = Plugins()
    media = Media(SPEC, plugins)
    old = media.put(media.prepare("a", LunSpec(0, "file", {"path": "y"})))
    assert old is not None and old.options == {"size": 1, "number": 1}
    assert media.options["a", 0]["number"] == 4


def test_lun_whose_layer_cannot_be_prepared_is_not_there() -> None:
    plugins: Any = Plugins()
    media = Media(SPEC, plugins)
    with pytest.raises(PluginError, match="cannot"):
        media.prepare("a", LunSpec(9, "ram", {"size": 1}, layers=(LayerSpec("bad"),)))
    assert plugins.released == [("ram", 4)]


def test_medium_is_prepared_for_reading_where_nobody_writes() -> None:
    luns = (
        LunSpec(0, "ram", {}),
        LunSpec(1, "ram", {}, readonly=True),
        LunSpec(2, "ram", {}, layers=(LayerSpec("keeps"),)),
    )
    plugins: Any = Plugins()
    Media(ServerSpec(targets=(TargetSpec("a", luns),)), plugins)
    assert plugins.roles == ["worker", "readonly", "readonly"]


class Busy(Plugins):
    """Somebody has the medium for ``times`` calls of prepare."""

    def __init__(self, times: int, cause: Exception) -> None:
        super().__init__()
        self.times = times
        self.cause = cause

    def prepare(self, backend: str, options: Mapping[str, Any], role: str) -> dict[str, Any]:
        if self.times:
            self.times -= 1
            raise PluginError("file", "in use") from self.cause
        return super().prepare(backend, options, role)


def test_start_waits_for_a_medium_that_a_server_has_that_is_about_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "BUSY_SECONDS", 20.0)
    plugins: Any = Busy(3, BlockError(Fault.BUSY))
    assert len(Media(SPEC, plugins).options) == 3
    assert plugins.times == 0


@pytest.mark.parametrize("cause", [BlockError(Fault.BUSY), BlockError(Fault.INVALID), OSError(2, "gone")])
def test_start_does_not_wait_forever_or_for_anything_else(monkeypatch: pytest.MonkeyPatch, cause: Exception) -> None:
    monkeypatch.setattr(media_module, "BUSY_SECONDS", 0.2)
    plugins: Any = Busy(1000000, cause)
    with pytest.raises(StartError, match="in use"):
        Media(SPEC, plugins)
    assert (1000000 - plugins.times > 1) is (isinstance(cause, BlockError) and cause.fault is Fault.BUSY)


def test_change_of_a_running_server_waits_for_no_medium() -> None:
    plugins: Any = Busy(0, BlockError(Fault.BUSY))
    media = Media(SPEC, plugins)
    plugins.times = 1000000
    with pytest.raises(PluginError, match="in use"):
        media.prepare("a", LunSpec(9, "file", {"path": "y"}))
    assert plugins.times == 999999


LAYERED = ServerSpec(
    targets=(TargetSpec("a", (LunSpec(0, "ram", {"size": 1}, layers=(LayerSpec("log", {"n": 1}),)),)),)
)


@pytest.mark.parametrize(("size", "options"), [(None, {"size": 1, "number": 1}), (9, {"size": 9, "number": 1})])
def test_layers_over_other_data_are_prepared_anew_and_the_medium_is_not(size: int | None, options: Any) -> None:
    plugins = Plugins()
    media = Media(LAYERED, plugins)  # type: ignore[arg-type]
    made = media.relayered("a", LAYERED.targets[0].luns[0], size)
    assert made.options == options and plugins.prepared == ["ram"]
    assert made.layers is not media.layers["a", 0] and made.layers == media.layers["a", 0]
    old = media.put(made)
    assert old is not None
    media.undo(old, layers_only=True)
    assert plugins.released == [("log", True)]
    assert media.options["a", 0] == options
