"""Another size for a medium, by whichever means its back end has."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest
from iscsid_backends import null

from iscsid.errors import PluginError
from iscsid.plugin import BackendInfo, Device, Member, Option, Verb, hookimpl, resizing
from iscsid.plugin.manager import Plugins

SIZED = (Option("size", "size"), Option("shrink", "bool", default=False))


def plugins(**hooks: Any) -> tuple[Plugins, list[Any]]:
    """A back end "mine" with these hooks beside the ones that it needs; each notes what it was asked."""
    log: list[Any] = []

    @hookimpl
    def iscsid_open(options: Mapping[str, Any], role: str) -> Device:
        raise NotImplementedError

    @hookimpl
    def iscsid_resize(options: Mapping[str, Any], size: int, shrink: bool) -> None:
        log.append(("hook", size, shrink))

    @hookimpl
    def iscsid_image(options: Mapping[str, Any], verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        log.append((verb, dict(arguments)))
        return {}

    @hookimpl
    def iscsid_backend_info() -> BackendInfo:
        verbs = (Verb("resize", "another size", SIZED),) if "verb" in hooks else ()
        return BackendInfo("mine", "a test's", None, verbs=verbs)

    module: Any = ModuleType("mine")
    module.iscsid_open, module.iscsid_backend_info = iscsid_open, iscsid_backend_info
    if "hook" in hooks:
        module.iscsid_resize = iscsid_resize
    if "verb" in hooks:
        module.iscsid_image = iscsid_image
    found = Plugins()
    assert found.add("mine", lambda: module), found.failures
    return found, log


def test_hook_goes_before_the_verb_and_says_whether_to_cut() -> None:
    found, log = plugins(hook=True, verb=True)
    assert resizing.resize(found, "mine", {"claim": 9, "size": 4096}, 512, shrink=True) == {"claim": 9, "size": 512}
    assert log == [("hook", 512, True)]


def test_verb_is_asked_where_there_is_no_hook() -> None:
    found, log = plugins(verb=True)
    assert resizing.resize(found, "mine", {"path": "/x"}, 512) == {"path": "/x"}
    assert log == [("resize", {"size": 512, "shrink": False})]


def test_back_end_that_has_neither_is_named() -> None:
    found, _ = plugins()
    assert not resizing.can(found, "mine")
    with pytest.raises(PluginError, match="the back end mine cannot change the size"):
        resizing.resize(found, "mine", {}, 512)


@pytest.mark.parametrize("means", ["hook", "verb"])
def test_either_is_enough(means: str) -> None:
    found, _ = plugins(**{means: True})
    assert resizing.can(found, "mine")
    assert resizing.has_verb(found, "mine", "resize") == (means == "verb")
    assert not resizing.has_verb(found, "other", "resize")


def test_members_are_resized_by_their_own_back_ends_and_remembered_with_their_size() -> None:
    found, log = plugins(hook=True)
    able, unable = Member("mine", {"size": 4096, "claim": 9}), Member("null", {"size": 4096})
    given: list[Any] = []

    @hookimpl
    def iscsid_resize(options: Mapping[str, Any], size: int, shrink: bool) -> None:
        given.extend(options["legs"])
        options["legs"][0].resize(size, shrink)

    outer: Any = ModuleType("outer")
    outer.iscsid_resize = iscsid_resize
    outer.iscsid_open = hookimpl(lambda options, role: None)
    outer.iscsid_backend_info = hookimpl(lambda: BackendInfo("outer", "a test's", (Option("legs", "members"),)))
    assert found.add("outer", lambda: outer), found.failures
    assert found.add("null", lambda: null), found.failures
    answer = resizing.resize(found, "outer", {"legs": (able, unable)}, 512, shrink=True)
    assert log == [("hook", 512, True)]
    assert [member.resizer is not None for member in given] == [True, False]
    assert [member.options for member in answer["legs"]] == [{"size": 512, "claim": 9}, {"size": 512}]
    assert [member.resizer for member in answer["legs"]] == [None, None]
