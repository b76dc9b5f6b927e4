"""Back ends made of others: what a configuration may say, and how members are prepared, opened and released."""

from __future__ import annotations

import importlib.metadata
import textwrap
from pathlib import Path
from typing import Any

import pytest

from iscsid.block.device import Sharing
from iscsid.errors import BlockError, PluginError
from iscsid.plugin.info import Option, check_options
from iscsid.plugin.manager import Plugins, load
from iscsid.plugin.members import MAX_DEPTH, MAX_MEMBERS, Member, depth, members

LEAF = """
    from iscsid.plugin import BackendInfo, BlockError, Device, Fault, Option, Sharing, hookimpl

    EVENTS = []

    class Leaf(Device):
        size = 4096

        def read_into(self, buffer, offset):
            buffer[:] = bytes(len(buffer))

    @hookimpl
    def iscsid_backend_info():
        options = (Option("path", "path", required=True), Option("bad", "bool", default=False))
        return BackendInfo("leaf", "a leaf", options, sharing=Sharing.SHARED_READ)

    @hookimpl
    def iscsid_prepare(options):
        if options["bad"]:
            raise BlockError(Fault.NOT_READY, "the disk is not there")
        EVENTS.append(("prepare", options["path"]))
        return {"ready": True}

    @hookimpl
    def iscsid_release(options):
        EVENTS.append(("release", options["path"]))

    @hookimpl
    def iscsid_open(options, role):
        EVENTS.append(("open", options["path"], role, options.get("ready", False)))
        return Leaf()
"""

TREE = """
    from iscsid.plugin import BackendInfo, BlockError, Device, Fault, Option, hookimpl

    class Tree(Device):
        size = 4096

        def read_into(self, buffer, offset):
            buffer[:] = bytes(len(buffer))

    @hookimpl
    def iscsid_backend_info():
        options = (Option("members", "members", required=True), Option("fails", "bool", default=False))
        return BackendInfo("tree", "made of others", options, degrades=DEGRADES)

    @hookimpl
    def iscsid_prepare(options):
        if options["fails"]:
            raise BlockError(Fault.INVALID, "of no use")

    @hookimpl
    def iscsid_open(options, role):
        tree = Tree()
        tree.legs = [member.open() for member in options["members"] if not member.problem]
        tree.problems = [member.problem for member in options["members"]]
        return tree
"""


@pytest.fixture(autouse=True)
def no_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    return made(tmp_path, degrades=False)


def made(folder: Path, *, degrades: bool) -> Plugins:
    (folder / "leaf.py").write_text(textwrap.dedent(LEAF))
    (folder / "tree.py").write_text(textwrap.dedent(TREE).replace("DEGRADES", str(degrades)))
    plugins = load([], [folder])
    assert plugins.failures == []
    return plugins


def events() -> list[tuple[Any, ...]]:
    import sys

    found: list[tuple[Any, ...]] = sys.modules["iscsid_plugin_file_leaf"].EVENTS
    return found


def leaf(path: str, **options: Any) -> dict[str, Any]:
    return {"backend": "leaf", "path": path, **options}


def tree(*inner: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"members": list(inner), **options}


def nested(levels: int) -> dict[str, Any]:
    options: dict[str, Any] = {"path": "/x"}
    for level in range(levels):
        options = {"members": [{"backend": "tree" if level else "leaf", **options}]}
    return options


def test_members_are_made_of_tables_and_of_themselves() -> None:
    (member,) = members([leaf("/a")])
    assert member == Member("leaf", {"path": "/a"})
    assert members((member,)) == (member,)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([], "list of tables"),
        ("leaf", "list of tables"),
        (None, "list of tables"),
        ([1], "member 0 is no table"),
        ([leaf("/a"), {"path": "/b"}], "member 1 is no table with a backend"),
        ([{"backend": 1}], "member 0 is no table with a backend"),
        ([leaf("/a")] * (MAX_MEMBERS + 1), "at most 64 members"),
        ([leaf("/a", layers="slow")], "member 0: layers is a list"),
        ([leaf("/a", layers=[{"ms": 1}])], "member 0: one of its layers is no table with a layer"),
    ],
)
def test_members_that_make_no_sense_are_refused(given: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        members(given)


def test_check_options_tells_what_is_wrong_with_members() -> None:
    _, problems = check_options((Option("members", "members"),), {"members": 5})
    assert problems == ["members: is a list of tables, one for each member"]


def test_depth_counts_members_of_members() -> None:
    assert [depth(nested(levels)) for levels in (0, 1, 3)] == [0, 1, 3]
    assert depth(nested(MAX_DEPTH + 5)) == MAX_DEPTH + 1


def test_member_is_not_opened_before_there_is_a_worker() -> None:
    with pytest.raises(BlockError):
        Member("leaf", {}).open()


def test_members_are_prepared_opened_and_released_with_their_back_end(plugins: Plugins) -> None:
    prepared = plugins.prepare("tree", tree(leaf("/a"), leaf("/b")))
    device = plugins.open("tree", prepared, "owner")
    assert len(device.legs) == 2  # type: ignore[attr-defined]
    plugins.release("tree", prepared)
    assert events() == [
        ("prepare", "/a"),
        ("prepare", "/b"),
        ("open", "/a", "owner", True),
        ("open", "/b", "owner", True),
        ("release", "/a"),
        ("release", "/b"),
    ]


def test_members_of_members_are_opened_too(plugins: Plugins) -> None:
    prepared = plugins.prepare("tree", tree({"backend": "tree", **tree(leaf("/a"))}))
    plugins.open("tree", prepared)
    assert events() == [("prepare", "/a"), ("open", "/a", "worker", True)]


def test_member_that_cannot_be_prepared_undoes_the_others(plugins: Plugins) -> None:
    with pytest.raises(PluginError, match="the disk is not there"):
        plugins.prepare("tree", tree(leaf("/a"), leaf("/b", bad=True), leaf("/c")))
    assert events() == [("prepare", "/a"), ("release", "/a")]


def test_back_end_that_cannot_be_prepared_undoes_its_members(plugins: Plugins) -> None:
    with pytest.raises(PluginError, match="of no use"):
        plugins.prepare("tree", tree(leaf("/a"), fails=True))
    assert events() == [("prepare", "/a"), ("release", "/a")]


def test_back_end_that_degrades_learns_of_a_member_that_cannot_be_prepared(tmp_path: Path) -> None:
    plugins = made(tmp_path, degrades=True)
    prepared = plugins.prepare("tree", tree(leaf("/a", bad=True), leaf("/b")))
    device = plugins.open("tree", prepared)
    assert ["the disk is not there" in problem for problem in device.problems] == [True, False]  # type: ignore[attr-defined]
    plugins.release("tree", prepared)
    assert events() == [("prepare", "/b"), ("open", "/b", "worker", True), ("release", "/b")]


def test_problems_of_members_are_told_with_their_place(plugins: Plugins) -> None:
    assert plugins.validate("tree", tree(leaf("/a"), {"backend": "laef"}, {"backend": "leaf"})) == [
        'members[1]: there is no back end laef (did you mean "leaf"?)',
        "members[2]: path: missing",
    ]


def test_members_too_deep_are_a_problem(plugins: Plugins) -> None:
    assert plugins.validate("tree", nested(MAX_DEPTH + 1)) == ["members within members more than 16 deep"]


SLOW = """
    from iscsid.plugin import BlockError, Fault, Filter, LayerInfo, Option, Sharing, hookimpl

    class Slow(Filter):
        pass

    @hookimpl
    def iscsid_layer_info():
        return LayerInfo("slow", "slow", (Option("ms", "int", required=True),), sharing=Sharing.EXCLUSIVE_OWNER)

    @hookimpl
    def iscsid_filter(device, name, options):
        if options["ms"] < 0:
            raise BlockError(Fault.INVALID, "time goes one way")
        slow = Slow(device)
        slow.ms = options["ms"]
        return slow
"""


@pytest.fixture
def layered(tmp_path: Path) -> Plugins:
    (tmp_path / "slow.py").write_text(textwrap.dedent(SLOW))
    return made(tmp_path, degrades=False)


def test_member_may_have_layers(layered: Plugins) -> None:
    options = tree(leaf("/a", layers=[{"layer": "slow", "ms": 1}, {"layer": "slow", "ms": 2}]))
    assert layered.validate("tree", options) == []
    (leg,) = layered.open("tree", layered.prepare("tree", options)).legs  # type: ignore[attr-defined]
    assert (leg.ms, leg.below.ms) == (2, 1)
    assert layered.sharing("tree", options) is Sharing.EXCLUSIVE_OWNER


def test_problems_of_the_layers_of_members_are_told(layered: Plugins) -> None:
    options = tree(leaf("/a", layers=[{"layer": "slow"}, {"layer": "slwo", "ms": 2}]))
    assert layered.validate("tree", options) == [
        "members[0]: ms: missing",
        'members[0]: there is no layer slwo (did you mean "slow"?)',
    ]


def test_layer_that_fails_over_a_member_fails_its_opening(layered: Plugins) -> None:
    with pytest.raises(PluginError, match="time goes one way"):
        layered.open("tree", tree(leaf("/a", layers=[{"layer": "slow", "ms": -1}])))


def test_sharing_is_what_the_strictest_allows(plugins: Plugins) -> None:
    assert plugins.sharing("tree", tree(leaf("/a"))) is Sharing.SHARED_READ
    assert plugins.sharing("leaf", {"path": "/a"}) is Sharing.SHARED_READ


def test_member_is_resized_by_what_its_owner_was_given() -> None:
    calls: list[Any] = []
    member = Member("leaf", resizer=lambda size, shrink: calls.append((size, shrink)))
    member.resize(512, True)
    assert calls == [(512, True)]
    with pytest.raises(BlockError, match="the back end leaf cannot change the size"):
        Member("leaf").resize(512, False)
