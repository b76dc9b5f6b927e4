"""Another size for a medium: by the hook ``iscsid_resize``, or by the verb "resize" of the back end.

The hook may be called while the medium is in use, and then only lets it grow; with ``shrink`` nobody has it open. The
verb always needs the medium for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from iscsid.errors import PluginError

if TYPE_CHECKING:
    from iscsid.plugin.manager import Plugins

VERB: Final = "resize"


def resize(
    plugins: Plugins, backend: str, options: Mapping[str, Any], size: int, *, shrink: bool = False
) -> dict[str, Any]:
    """Give a medium that nobody has open, and that was prepared as ``options``, ``size`` bytes; fewer than it has only
    with ``shrink``. Returns the options to open it with from now on. Raises PluginError."""
    if plugins.implements(backend, "iscsid_resize"):
        return plugins.resize(backend, options, size, shrink=shrink)
    if has_verb(plugins, backend, VERB):
        plugins.image(backend, options, VERB, {"size": size, "shrink": shrink})
        return dict(options)
    raise cannot(backend)


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
