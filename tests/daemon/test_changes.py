"""The difference of two configurations: what comes, goes, grows and stays, and what needs a restart."""

from __future__ import annotations

from dataclasses import replace

import pytest

from iscsid.daemon.changes import Kind, diff
from iscsid.specs import AccessSpec, AuthSpec, LayerSpec, LunSpec, PortalSpec, ServerSpec, TargetSpec

LUN = LunSpec(0, "file", {"path": "/a", "size": 4096}, serial="S0")
SECOND = LunSpec(1, "ram", {"size": 4096}, serial="S1")
DISK = TargetSpec("disk", (LUN, SECOND))
OTHER = TargetSpec("other", (LunSpec(0, "ram", {"size": 512}, serial="S2"),))
OLD = ServerSpec(targets=(DISK, OTHER))


def with_disk(**changes: object) -> ServerSpec:
    return replace(OLD, targets=(replace(DISK, **changes), OTHER))  # type: ignore[arg-type]


def with_lun(**changes: object) -> ServerSpec:
    return with_disk(luns=(replace(LUN, **changes), SECOND))  # type: ignore[arg-type]


CASES: list[tuple[str, ServerSpec, list[list[str]]]] = [
    ("nothing", OLD, []),
    ("order", replace(OLD, targets=(OTHER, DISK)), []),
    ("added", replace(OLD, targets=(DISK, OTHER, TargetSpec("new"))), [["target new", "added"]]),
    (
        "added with a LUN",
        replace(OLD, targets=(DISK, OTHER, TargetSpec("new", (LUN,)))),
        [["target new", "added"], ["target new lun 0", "added"]],
    ),
    (
        "removed",
        replace(OLD, targets=(DISK,)),
        [["target other", "removed"], ["target other lun 0", "removed"]],
    ),
    ("LUN added", with_disk(luns=(LUN, SECOND, replace(SECOND, lun=7))), [["target disk lun 7", "added"]]),
    ("LUN removed", with_disk(luns=(SECOND,)), [["target disk lun 0", "removed"]]),
    ("size", with_lun(options={"path": "/a", "size": 8192}), [["target disk lun 0", "resized"]]),
    ("size taken away", with_lun(options={"path": "/a"}), [["target disk lun 0", "changed"]]),
    ("path", with_lun(options={"path": "/b", "size": 4096}), [["target disk lun 0", "changed"]]),
    ("size and path", with_lun(options={"path": "/b", "size": 8192}), [["target disk lun 0", "changed"]]),
    ("back end", with_lun(backend="ram", options={"size": 8192}), [["target disk lun 0", "changed"]]),
    ("serial", with_lun(serial="X"), [["target disk lun 0", "changed"]]),
    ("removable", with_lun(removable=True), [["target disk lun 0", "changed"]]),
    ("patience", with_lun(io_timeout=5.0), [["target disk", "changed"]]),
    (
        "size and patience",
        with_lun(options={"path": "/a", "size": 8192}, io_timeout=5.0),
        [["target disk", "changed"], ["target disk lun 0", "resized"]],
    ),
    ("layers", with_lun(layers=(LayerSpec("rate"),)), [["target disk lun 0", "changed"]]),
    ("alias", with_disk(alias="x"), [["target disk", "changed"]]),
    ("guests", with_disk(initiators=("iqn.a",)), [["target disk", "changed"]]),
    ("auth", with_disk(auth=AuthSpec("chap")), [["target disk", "changed"]]),
    ("parameters", with_disk(parameters={"MaxBurstLength": "512"}), [["target disk", "changed"]]),
    ("portal groups", with_disk(portal_groups=(AccessSpec(1),)), [["target disk portal_group", "needs a restart"]]),
    ("server's patience", replace(OLD, io_timeout=5.0), [["server io_timeout", "changed"]]),
    ("live", replace(OLD, nop_timeout=1.0), [["server nop_timeout", "changed"]]),
    ("discovery", replace(OLD, discovery_auth=AuthSpec("chap")), [["server discovery_auth", "changed"]]),
    ("portals", replace(OLD, portals=(PortalSpec("::1"),)), [["server portals", "needs a restart"]]),
    ("workers", replace(OLD, workers=3), [["server workers", "needs a restart"]]),
]


@pytest.mark.parametrize(("new", "rows"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_difference(new: ServerSpec, rows: list[list[str]]) -> None:
    changes = diff(OLD, new)
    assert changes.rows() == rows
    assert bool(changes) == any(how != "needs a restart" for _, how in rows)


@pytest.mark.parametrize("new", [case[1] for case in CASES], ids=[case[0] for case in CASES])
def test_what_is_there_afterwards_differs_by_what_needs_a_restart_alone(new: ServerSpec) -> None:
    after = diff(OLD, new).spec
    again = diff(after, new)
    assert not again
    assert again.restart == diff(OLD, new).restart


def test_what_needs_a_restart_keeps_its_value_beside_what_does_not() -> None:
    changes = diff(OLD, replace(with_disk(alias="x", portal_groups=(AccessSpec(1),)), workers=9, nop_interval=1.0))
    assert (changes.spec.workers, changes.spec.nop_interval) == (0, 1.0)
    assert (changes.spec.targets[0].alias, changes.spec.targets[0].portal_groups) == ("x", ())


def test_change_of_a_lun_tells_whether_the_unit_is_the_same() -> None:
    (grown,) = diff(OLD, with_lun(options={"path": "/a", "size": 8192})).luns
    assert (grown.kind, grown.stays, grown.lun, grown.target) == (Kind.RESIZED, True, 0, "disk")
    (changed,) = diff(OLD, with_lun(serial="X")).luns
    assert not changed.stays
