"""Another size for a medium: by the hook ``iscsid_resize``, or by the verb "resize" of the back end.

The hook may be called while the medium is in use, and then only lets it grow; with ``shrink`` nobody has it open. The
verb always needs the medium for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from iscsid.errors import PluginError
from iscsid.plugin.members import Member

if TYPE_CHECKING:
    from iscsid.plugin.manager import Plugins

VERB: Final = "resize"


def resize(
    plugins: Plugins, backend: str, options: Mapping[str, Any], size: int, *, shrink: bool = False
) -> dict[str, Any]:
    """Give a medium that nobody has open, and that was prepared as ``options``, ``size`` bytes; fewer than it has only
    with ``shrink``. Returns the options to open it with from now on. Raises PluginError."""
    if plugins.implements(backend, "iscsid_resize"):
        plugins.resize(backend, {**options, **_able_members(plugins, options)}, size, shrink=shrink)
        return sized(options, size)
    if has_verb(plugins, backend, VERB):
        plugins.image(backend, options, VERB, {"size": size, "shrink": shrink})
        return dict(options)
    raise cannot(backend)


def _able_members(plugins: Plugins, options: Mapping[str, Any]) -> dict[str, Any]:
    """The members in ``options``, those that can be resized with what does it."""
    return {
        name: tuple(
            replace(member, resizer=_resizer(plugins, member)) if can(plugins, member.backend) else member
            for member in found
        )
        for name, found in _members(options)
    }


def _resizer(plugins: Plugins, member: Member) -> Callable[[int, bool], object]:
    return lambda size, shrink: resize(plugins, member.backend, member.options, size, shrink=shrink)


def _members(options: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Member, ...]]]:
    for name, value in options.items():
        if isinstance(value, tuple) and value and all(isinstance(item, Member) for item in value):
            yield name, value


def sized(options: Mapping[str, Any], size: int) -> dict[str, Any]:
    """``options`` after :func:`resize`, for who was not there: what says a size says this one, also in members."""
    found = dict(options)
    if found.get("size") is not None:
        found["size"] = size
    for name, there in _members(options):
        found[name] = tuple(replace(member, options=sized(member.options, size)) for member in there)
    return found


def cannot(backend: str) -> PluginError:
    """What to say of a back end that has neither."""
    return PluginError(backend, f"the back end {backend} cannot change the size of what is in use")


def can(plugins: Plugins, backend: str) -> bool:
    """Whether :meth:`resize` may succeed."""
    return plugins.implements(backend, "iscsid_resize") or has_verb(plugins, backend, VERB)


def has_verb(plugins: Plugins, backend: str, verb: str) -> bool:
    """Whether the back end has this verb (``iscsid_image``)."""
    info = plugins.backends.get(backend)
    return info is not None and any(known.name == verb for known in info.verbs)
