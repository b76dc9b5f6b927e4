"""Work on a medium in a worker: which call of its back end it is, and answers that fit into a message."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from worker_kit import MemoryDevice

from iscsid.daemon.boot import WorkerBoot
from iscsid.daemon.works import ANSWER_LIMIT, perform, within
from iscsid.errors import PluginError
from iscsid.plugin import Device
from iscsid.shared.messages import MAX_MESSAGE, Work, Worked, encode
from iscsid.specs import LayerSpec, LunSpec, ServerSpec, TargetSpec


class Plugins(SimpleNamespace):
    """Two back ends: "sized" has the hook, "image" the verbs."""

    def __init__(self) -> None:
        verbs = tuple(SimpleNamespace(name=name) for name in ("resize", "snapshot"))
        backends = {"sized": SimpleNamespace(verbs=()), "image": SimpleNamespace(verbs=verbs)}
        super().__init__(log=[], backends=backends, smallest=0)

    def role_under(self, layers: Any, role: str) -> str:
        return role

    def open(self, backend: str, options: Mapping[str, Any], role: str) -> MemoryDevice:
        self.opened = MemoryDevice()
        return self.opened

    def wrap(self, device: Device, layer: str, options: Mapping[str, Any]) -> Device:
        if device.size < self.smallest:
            raise PluginError(layer, "too small")
        return device

    def implements(self, backend: str, hook: str) -> bool:
        return backend == "sized" and hook == "iscsid_resize"

    def resize(self, backend: str, options: Mapping[str, Any], size: int, *, shrink: bool) -> dict[str, Any]:
        self.log.append((backend, dict(options), size, shrink))
        return {}

    def image(self, backend: str, options: Mapping[str, Any], verb: str, arguments: Any) -> dict[str, Any]:
        self.log.append((backend, dict(options), verb, arguments))
        return {"verb": verb}


def boot(plugins: Any) -> WorkerBoot:
    luns = (LunSpec(0, "sized", {"size": 1}, layers=(LayerSpec("part", {}),)), LunSpec(1, "image", {"path": "/x"}))
    return WorkerBoot(0, ServerSpec(targets=(TargetSpec("disk", luns),)), plugins, {("disk", 0): {"claim": 9}})


@pytest.mark.parametrize(
    ("lun", "verb", "arguments", "call"),
    [
        (0, "resize", {"size": 512, "shrink": True}, ("sized", {"claim": 9}, 512, True)),
        (
            1,
            "resize",
            {"size": 512, "shrink": False},
            ("image", {"path": "/x"}, "resize", {"size": 512, "shrink": False}),
        ),
        (1, "snapshot", {"action": "list"}, ("image", {"path": "/x"}, "snapshot", {"action": "list"})),
    ],
)
def test_work_is_done_by_the_back_end_of_the_lun(lun: int, verb: str, arguments: Any, call: Any) -> None:
    plugins = Plugins()
    answer = json.loads(perform(boot(plugins), Work(1, "disk", lun, verb, json.dumps(arguments))))
    assert plugins.log == [call]
    assert answer == ({"verb": "snapshot"} if verb == "snapshot" else {})


def test_long_answer_is_cut_and_says_by_how_much() -> None:
    snapshots = [{"id": str(number), "name": "\u00e9" * 255} for number in range(2000)]
    text = within({"snapshots": snapshots, "short": 1})
    found = json.loads(text)
    assert len(text) <= ANSWER_LIMIT
    assert len(encode(Worked(1, text))) <= MAX_MESSAGE
    assert found["snapshots"] == snapshots[: len(found["snapshots"])]
    assert found["left_out"] + len(found["snapshots"]) + ("short" in found) == 2001


def test_short_answer_is_whole() -> None:
    assert json.loads(within({"snapshots": [1, 2]})) == {"snapshots": [1, 2]}


def test_medium_is_not_cut_where_its_layers_would_not_fit() -> None:
    plugins = Plugins()
    plugins.smallest = 4096
    for size, shrink in ((4096, True), (512, False)):
        perform(boot(plugins), Work(1, "disk", 0, "resize", json.dumps({"size": size, "shrink": shrink})))
    assert plugins.opened.log == ["close"]
    plugins.log.clear()
    with pytest.raises(PluginError, match="too small"):
        perform(boot(plugins), Work(1, "disk", 0, "resize", json.dumps({"size": 512, "shrink": True})))
    assert plugins.opened.log == ["close"] and plugins.log == []
