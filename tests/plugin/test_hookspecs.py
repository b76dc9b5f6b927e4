"""The hooks: each is documented, specified and told to authors; and the door has exactly the names it says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import FunctionType

import pluggy
import pytest

import iscsid.plugin
from iscsid.plugin import hookspecs

DOCS = Path(__file__).resolve().parents[2] / "docs" / "backends.md"
HOOKS = {name: spec for name, spec in vars(hookspecs).items() if name.startswith("iscsid_")}


def test_every_hook_is_a_specification() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    assert {name for name in HOOKS if getattr(manager.hook, name).has_spec()} == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_hook_says_when_it_is_called(name: str) -> None:
    assert inspect.getdoc(HOOKS[name])


@pytest.mark.parametrize("name", HOOKS)
def test_hook_and_its_arguments_are_in_the_manual(name: str) -> None:
    arguments = ", ".join(inspect.signature(HOOKS[name]).parameters)
    assert f"`{name}({arguments})`" in DOCS.read_text()


@pytest.mark.parametrize("name", HOOKS)
def test_hook_without_an_owner_answers_nothing(name: str) -> None:
    spec: FunctionType = HOOKS[name]
    arguments = dict.fromkeys(inspect.signature(spec).parameters)
    try:
        assert spec(**arguments) is None
    except NotImplementedError:
        assert name in ("iscsid_open", "iscsid_filter", "iscsid_authenticate")  # these must answer something


def test_only_events_are_put_to_everybody() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    many = {name for name in HOOKS if not getattr(manager.hook, name).spec.opts["firstresult"]}
    assert many == {"iscsid_event"}


def _kind_and_name(name: str) -> tuple[bool, bool, str]:
    return not name.isupper(), name.islower(), name


def test_door_has_what_it_names() -> None:
    assert iscsid.plugin.__all__ == sorted(iscsid.plugin.__all__, key=_kind_and_name)
    assert all(hasattr(iscsid.plugin, name) for name in iscsid.plugin.__all__)


def test_every_name_of_the_door_is_in_the_manual() -> None:
    words = set(re.findall(r"\w+", DOCS.read_text()))
    assert set(iscsid.plugin.__all__) <= words
