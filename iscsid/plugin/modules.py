"""What is in the module of a plugin: importing one from a file, finding its hooks, and naming it in errors."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

from iscsid.errors import BlockError, PluginError
from iscsid.plugin import hookspecs

PREFIX: Final = "iscsid_"


def import_file(path: Path) -> ModuleType:
    """Import a file under a name that no module of ours or of a stranger has."""
    name = f"iscsid_plugin_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class up by its module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def unmarked_hooks(plugin: object) -> Iterator[str]:
    """Names of functions that look like hooks and are not marked as such."""
    return (name for name in _functions(plugin) if not hasattr(getattr(plugin, name), f"{hookspecs.PROJECT}_impl"))


def marked_hooks(plugin: object) -> Iterator[str]:
    """Names of the hooks."""
    return (name for name in _functions(plugin) if hasattr(getattr(plugin, name), f"{hookspecs.PROJECT}_impl"))


def _functions(plugin: object) -> Iterator[str]:
    """Names of functions that look like hooks."""
    for name in dir(plugin):
        if name.startswith(PREFIX) and callable(getattr(plugin, name)):
            yield name


def unknown_arguments(plugin: object, hook: str) -> str:
    """What is wrong with the arguments of a hook; "" where each is one that the hook is called with."""
    known = list(inspect.signature(getattr(hookspecs, hook)).parameters)
    asked = inspect.signature(getattr(plugin, hook)).parameters.values()
    unknown = [one.name for one in asked if one.default is one.empty and one.name not in (*known, "self")]
    if not unknown:
        return ""
    return f"{hook} has no argument {unknown[0]}; it has {', '.join(known) or 'none'}"


def failure_of(plugin: str, error: BaseException, file: str = "") -> PluginError:
    """A PluginError in the words of ``error``; its type is told where the words alone do not make sense.

    An error that nobody raised on purpose has the line of the plugin's ``file`` that it came through last.
    """
    words = str(error)
    if isinstance(error, OSError) and error.strerror:
        words = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif not isinstance(error, BlockError | PluginError):
        if not isinstance(error, ImportError) or not words:
            words = f"{type(error).__name__}: {words}".removesuffix(": ")
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        words += f" ({Path(file).name}, line {lines[-1]})" if file and lines else ""
    failure = PluginError(plugin, words)
    failure.__cause__ = error
    return failure
