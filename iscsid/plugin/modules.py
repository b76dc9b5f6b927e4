"""What is in the module of a plugin: importing one from a file, finding its hooks, and naming it in errors."""

from __future__ import annotations

import importlib.util
import sys
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


def failure_of(plugin: str, error: BaseException) -> PluginError:
    """A PluginError in the words of ``error``; its type is told where the words alone do not make sense."""
    words = str(error)
    if isinstance(error, OSError) and error.strerror:
        words = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    elif not words:
        words = type(error).__name__
    elif not isinstance(error, BlockError | PluginError | ImportError):
        words = f"{type(error).__name__}: {words}"
    failure = PluginError(plugin, words)
    failure.__cause__ = error
    return failure
