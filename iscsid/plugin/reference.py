"""The reference of hooks, made from their specifications: ``python -m iscsid.plugin.reference > docs/hooks.md``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Final

from iscsid.plugin import hookspecs
from iscsid.plugin.info import API_VERSION

_HEAD: Final = f"""\
# Hooks

This page is made from the specifications that the server checks plugins against (`iscsid/plugin/hookspecs.py`), by
`python -m iscsid.plugin.reference > docs/hooks.md`; a test holds it to them. [backends.md](backends.md) tells how they
play together. All names are those of `iscsid.plugin`, and this is `API_VERSION` {API_VERSION}: a plugin that says
another one is left out, with a line in the log.

A hook is a function with the decorator `@hookimpl`; it may leave out arguments that it does not need.
"""
_KINDS: Final = {
    "Back ends": (
        "backend_info",
        "probe",
        "validate",
        "create",
        "image",
        "sharing",
        "prepare",
        "open",
        "resize",
        "release",
    ),
    "Layers": ("layer_info", "layer_validate", "layer_prepare", "filter", "layer_release", "layer_verb"),
    "Who may log in": ("auth_info", "authenticate"),
    "Observers": ("event",),
}
"""The hooks in the order in which they are called, where there is one."""


def hooks() -> dict[str, Callable[..., Any]]:
    """Every specification, by name."""
    return {name: spec for name, spec in vars(hookspecs).items() if name.startswith("iscsid_")}


def page() -> str:
    """docs/hooks.md."""
    known = hooks()
    parts = [_HEAD]
    for kind, names in _KINDS.items():
        parts.append(f"## {kind}\n")
        parts += [_entry(f"iscsid_{name}", known[f"iscsid_{name}"]) for name in names]
    return "\n".join(parts)


def _entry(name: str, spec: Callable[..., Any]) -> str:
    text = re.sub(r"``(.+?)``", r"`\1`", inspect.getdoc(spec) or "", flags=re.DOTALL)
    return f"### `{name}`\n\n```python\n{name}{_signature(spec)}\n```\n\n{text}\n"


def _signature(spec: Callable[..., Any]) -> str:
    """As it stands in the source, whose annotations are strings."""
    told = inspect.signature(spec)
    arguments = ", ".join(f"{argument.name}: {argument.annotation}" for argument in told.parameters.values())
    return f"({arguments}) -> {told.return_annotation}"


if __name__ == "__main__":
    print(page(), end="")
