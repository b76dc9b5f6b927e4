"""Which LUNs are closed before they are opened again."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from iscsid.block.device import Sharing
from iscsid.daemon import plans
from iscsid.daemon.changes import Changes, Kind, LunChange, diff
from iscsid.daemon.plans import Refused, Task
from iscsid.specs import LayerSpec, LunSpec, ServerSpec, TargetSpec

FILE = LunSpec(0, "file", {"path": "/a", "size": 512}, serial="A")
IMAGE = LunSpec(1, "image", {"path": "/b"}, serial="B")
SPEC = ServerSpec(targets=(TargetSpec("disk", (FILE, IMAGE)),))
CACHE = LayerSpec("cache", {})


class Plugins(SimpleNamespace):
    """A back end for all and one for one process, and a layer that allows one."""

    backends = {  # noqa: RUF012 - as the manager has it
        "file": SimpleNamespace(options=(SimpleNamespace(name="size"),), verbs=()),
        "image": SimpleNamespace(options=(), verbs=()),
    }
    layers = {"cache": SimpleNamespace(keeps=False), "cow": SimpleNamespace(keeps=True)}  # noqa: RUF012

    def sharing(self, backend: str, options: Any, layers: Any = ()) -> Sharing:
        alone = backend == "image" or "cache" in layers
        return Sharing.EXCLUSIVE_OWNER if alone else Sharing.SHARED

    def implements(self, backend: str, hook: str) -> bool:
        return backend == "file"


PLUGINS: Any = Plugins()


def again(*luns: LunSpec, kind: Kind = Kind.RELOADED) -> Changes:
    return Changes(SPEC, luns=tuple(LunChange("disk", kind, lun, lun) for lun in luns))


def changed(*luns: LunSpec) -> Changes:
    return diff(SPEC, ServerSpec(targets=(TargetSpec("disk", luns),)))


def test_medium_that_stays_is_closed_where_one_process_has_it() -> None:
    assert plans.held(PLUGINS, again(FILE, IMAGE), everything=False) == [("disk", 1)]
    assert plans.held(PLUGINS, again(FILE, IMAGE), everything=True) == [("disk", 0), ("disk", 1)]


def test_medium_that_goes_is_closed_only_where_another_lun_gets_it() -> None:
    assert plans.held(PLUGINS, changed(FILE), everything=False) == []
    moved = replace(IMAGE, lun=2)
    assert plans.held(PLUGINS, changed(FILE, moved), everything=False) == [("disk", 1)]
    layered = replace(IMAGE, layers=(CACHE,))
    assert plans.held(PLUGINS, changed(FILE, layered), everything=False) == [("disk", 1)]


def test_shared_medium_under_another_stack_is_opened_first() -> None:
    assert plans.held(PLUGINS, changed(replace(FILE, block_size=4096), IMAGE), everything=False) == []


def test_layer_for_one_process_makes_the_medium_one_for_it() -> None:
    cached = replace(FILE, layers=(CACHE,))
    assert plans.is_exclusive(PLUGINS, cached) and not plans.is_exclusive(PLUGINS, FILE)
    assert not plans.may_be_resized_in_use(PLUGINS, cached)
    assert plans.may_be_resized_in_use(PLUGINS, FILE) and not plans.may_be_resized_in_use(PLUGINS, IMAGE)


def test_each_medium_is_made_larger_once() -> None:
    new = replace(FILE, options={"path": "/a", "size": 1024})
    luns = tuple(LunChange(target, Kind.RESIZED, FILE, new) for target in ("disk", "again"))
    changes = Changes(SPEC, luns=luns)
    assert plans.resizes(changes, [("disk", 0), ("again", 0)]) == [
        Task("disk", 0, "A", "resize", {"size": 1024, "shrink": False})
    ]
    assert plans.resizes(changes, []) == []


def test_lun_that_is_not_there_is_named() -> None:
    assert plans.lun_of(SPEC, "DISK", 1) is IMAGE
    with pytest.raises(Refused, match="no LUN 7; it has 0, 1"):
        plans.lun_of(SPEC, "disk", 7)
    with pytest.raises(Refused, match="no target other"):
        plans.lun_of(SPEC, "other", 0)


def test_size_is_one_for_all_that_lead_to_the_medium() -> None:
    both = ServerSpec(targets=(*SPEC.targets, TargetSpec("again", (replace(FILE, lun=3),))))
    new = plans.resized(both, "A", 4096)
    found = [lun.options.get("size") for target in new.targets for lun in target.luns]
    assert found == [4096, None, 4096]
    assert plans.has_size(PLUGINS, FILE) and not plans.has_size(PLUGINS, IMAGE)


def test_layer_that_keeps_what_belongs_to_the_data_is_named() -> None:
    plans.must_not_keep(PLUGINS, "disk", replace(FILE, layers=(CACHE,)))
    layered = replace(FILE, layers=(CACHE, LayerSpec("cow", {})))
    assert plans.keeps(PLUGINS, layered) == "cow"
    with pytest.raises(Refused, match="target disk, lun 0: its layer cow keeps what belongs"):
        plans.must_not_keep(PLUGINS, "disk", layered)
