"""A mirror that becomes larger or smaller: its state goes with it, and what its legs have more is made equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from iscsid_backends import mirror_resize, mirror_state
from iscsid_backends.mirror_state import INTENT, MirrorState, recorded_size

from iscsid.block.guard import Guarded
from iscsid.errors import PluginError
from iscsid.plugin import BlockError, Member, resizing
from iscsid.plugin.manager import Plugins, load

MIB = 1 << 20
REGION = mirror_state.SMALLEST_REGION
LEGS = ["one", "two"]


@pytest.fixture
def plugins() -> Plugins:
    return load()


def state(path: Path, size: int, **bits: int) -> None:
    """A state whose regions, by ``r0`` and so on, have these bits."""
    made = MirrorState(str(path), size, LEGS)
    for region in range(made.count):
        made.trust(1, region)
    for name, value in bits.items():
        region = int(name[1:])
        if value & INTENT:
            made.intend(range(region, region + 1))
        for leg in range(2):
            if value & 1 << leg:
                made.distrust(leg, [region])
    made.sync()
    made.close()


def bits(path: Path) -> list[int]:
    return list(path.read_bytes()[mirror_state.HEADER :])


def test_what_comes_to_a_mirror_is_copied_from_the_leg_that_has_all(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state(path, 2 * REGION, r0=1, r1=INTENT)
    assert mirror_resize.adopt(str(path), 3 * REGION + 512, LEGS)
    assert recorded_size(str(path)) == 3 * REGION + 512
    assert bits(path) == [1, INTENT, 1, 1]
    MirrorState(str(path), 3 * REGION + 512, LEGS).close()
    assert not (tmp_path / "state.new").exists()


def test_region_that_was_cut_by_the_end_is_copied_as_well(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state(path, REGION + 512)
    assert mirror_resize.adopt(str(path), 2 * REGION, LEGS)
    assert bits(path) == [0, 2]


@pytest.mark.parametrize("why", ["other legs", "no leg is whole"])
def test_state_stays_as_it_is_where_it_cannot_be_told_what_is_right(tmp_path: Path, why: str) -> None:
    path = tmp_path / "state"
    state(path, 2 * REGION, **({"r0": 1, "r1": 2} if why == "no leg is whole" else {}))
    before = path.read_bytes()
    assert not mirror_resize.adopt(str(path), 3 * REGION, ["one", "three"] if why == "other legs" else LEGS)
    assert path.read_bytes() == before


def test_larger_regions_know_what_the_small_ones_knew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_state, "MAX_REGIONS", 4)
    path = tmp_path / "state"
    state(path, 4 * REGION, r1=2, r2=INTENT)
    assert mirror_resize.adopt(str(path), 6 * REGION, LEGS)
    assert bits(path) == [2, INTENT, 2]
    MirrorState(str(path), 6 * REGION, LEGS).close()


# A mirror over files.


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    for name in LEGS:
        (tmp_path / name).write_bytes(b"d" * (2 * MIB))
    legs = [{"backend": "file", "path": str(tmp_path / name)} for name in LEGS]
    return {"members": legs, "state": str(tmp_path / "state")}


class Prepared:
    """The mirror, as a server has it: prepared once, opened again and again."""

    def __init__(self, plugins: Plugins, options: dict[str, Any]) -> None:
        self.plugins = plugins
        self.options = plugins.prepare("mirror", options)

    def open(self) -> Guarded:
        return Guarded(self.plugins.open("mirror", self.options, "owner"))

    def resize(self, size: int, *, shrink: bool = False) -> None:
        self.options = resizing.resize(self.plugins, "mirror", self.options, size, shrink=shrink)


@pytest.fixture
def mirror(plugins: Plugins, options: dict[str, Any]) -> Any:
    made = Prepared(plugins, options)
    made.open().close()
    yield made
    plugins.release("mirror", made.options)


def test_mirror_grows_with_all_its_legs(mirror: Prepared, tmp_path: Path) -> None:
    mirror.resize(4 * MIB)
    device = mirror.open()
    assert device.size == 4 * MIB
    there = memoryview(bytearray(4 * MIB))
    device.read_into(there, 0)
    assert there == b"d" * (2 * MIB) + bytes(2 * MIB)
    device.write(memoryview(b"x" * 512), 4 * MIB - 512)
    device.close()
    assert [(tmp_path / name).read_bytes()[-512:] for name in LEGS] == [b"x" * 512] * 2


def test_mirror_is_cut_only_where_that_is_said(mirror: Prepared, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="would be lost"):
        mirror.resize(MIB)
    device = mirror.open()
    assert device.size == 2 * MIB
    device.close()
    mirror.resize(MIB, shrink=True)
    assert [(tmp_path / name).stat().st_size for name in LEGS] == [MIB] * 2
    device = mirror.open()
    assert device.size == MIB
    device.close()


def test_mirror_is_not_larger_than_what_its_legs_have_in_common(mirror: Prepared, tmp_path: Path) -> None:
    with (tmp_path / "one").open("r+b") as file:
        file.truncate(4 * MIB)
    device = mirror.open()
    assert device.size == 2 * MIB
    device.close()


def test_mirror_whose_cut_was_interrupted_opens(mirror: Prepared, tmp_path: Path) -> None:
    """The state is smaller by then, and the first leg."""
    mirror_resize._rewrite(str(tmp_path / "state"), MIB, mirror_state.recorded_names(str(tmp_path / "state")), 0)
    with (tmp_path / "one").open("r+b") as file:
        file.truncate(MIB)
    device = mirror.open()
    assert device.size == MIB
    device.close()


def test_leg_that_cannot_be_resized_is_named_before_anything_is_done(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state(path, 2 * MIB)
    before = path.read_bytes()
    able = Member("file", resizer=lambda size, shrink: pytest.fail("it was resized"))
    for other, words in (
        (Member("block"), "block.*cannot"),
        (Member("file", layers=(("offset", {}),), resizer=able.resizer), "under layers"),
        (Member("file", problem="planted", resizer=able.resizer), "down: planted"),
    ):
        with pytest.raises(BlockError, match=words):
            mirror_resize.resize({"members": (able, other), "state": str(path)}, MIB, True)
    assert path.read_bytes() == before
