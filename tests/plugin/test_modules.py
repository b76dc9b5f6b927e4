"""Importing a plugin from a file, finding its hooks, and the words of its errors."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from iscsid.errors import BlockError, Fault, PluginError
from iscsid.plugin import hookimpl
from iscsid.plugin.modules import failure_of, import_file, marked_hooks, unknown_arguments, unmarked_hooks


def test_file_is_imported_under_a_name_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("VALUE = 3")
    module = import_file(tmp_path / "json.py")
    try:
        assert module.VALUE == 3
        assert module.__name__ == "iscsid_plugin_file_json"
        assert sys.modules["json"] is not module
    finally:
        del sys.modules[module.__name__]


@pytest.mark.parametrize(("text", "error"), [("1 +", SyntaxError), ("raise SystemExit(2)", SystemExit)])
def test_file_that_does_not_import_leaves_nothing_behind(tmp_path: Path, text: str, error: type[BaseException]) -> None:
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(error):
        import_file(tmp_path / "broken.py")
    assert "iscsid_plugin_file_broken" not in sys.modules


def test_file_that_is_no_python_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="is no Python file"):
        import_file(tmp_path / "notes.txt")


def test_hooks_are_found_by_their_mark() -> None:
    plugin = ModuleType("plugin")

    @hookimpl
    def iscsid_open() -> None: ...

    def iscsid_create() -> None: ...

    plugin.__dict__.update(iscsid_open=iscsid_open, iscsid_create=iscsid_create, iscsid_number=3, other=print)
    assert list(marked_hooks(plugin)) == ["iscsid_open"]
    assert list(unmarked_hooks(plugin)) == ["iscsid_create"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "No such file", "/x"), "/x: No such file"),
        (OSError(5, "I/O error"), "I/O error"),
        (BlockError(Fault.BUSY, "in use"), "in use"),
        (ValueError("odd"), "ValueError: odd"),
        (KeyError(), "KeyError"),
    ],
)
def test_failure_tells_the_type_where_the_words_alone_make_no_sense(error: Exception, reason: str) -> None:
    failure = failure_of("raid", error)
    assert isinstance(failure, PluginError)
    assert (failure.plugin, failure.reason, failure.__cause__) == ("raid", reason, error)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import os\n\nos.sep.count(1)", "TypeError: must be str, not int (mine.py, line 3)"),
        ("\nimport no_such_module_anywhere", "No module named 'no_such_module_anywhere' (mine.py, line 2)"),
        ("import json\njson.loads('{')", "(mine.py, line 2)"),
        ("def f(:", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("open('/nowhere/at/all')", "/nowhere/at/all: No such file or directory"),
    ],
)
def test_error_that_nobody_meant_has_the_line_of_the_file(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(Exception) as caught:
        import_file(path)
    failure = failure_of("mine", caught.value, str(path))
    assert failure.reason.endswith(reason)


def test_arguments_that_a_hook_is_not_called_with_are_named() -> None:
    plugin = ModuleType("plugin")

    @hookimpl
    def iscsid_open(options: object, rool: str) -> None: ...

    @hookimpl
    def iscsid_create(options: object, more: int = 3) -> None: ...

    plugin.__dict__.update(iscsid_open=iscsid_open, iscsid_create=iscsid_create)
    assert unknown_arguments(plugin, "iscsid_open") == "iscsid_open has no argument rool; it has options, role"
    assert unknown_arguments(plugin, "iscsid_create") == ""
