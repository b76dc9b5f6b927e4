"""The hooks of iscsid: each called seldom, and each says when, in which process, and what it may answer.

Input and output never go through a hook: ``iscsid_open`` answers a Device, whose methods are called directly. All
hooks but ``iscsid_event`` are put to the one plugin that owns the back end or the layer. A hook that a plugin does not
implement answers None. ``options`` are what the configuration says, checked against the plugin's own description,
converted (a size is an int) and with defaults filled in.

Whatever a hook raises becomes a PluginError that names the plugin; the server lives on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from iscsid.block.device import Device, Sharing
    from iscsid.plugin.auth import AuthInfo, CredentialSource
    from iscsid.plugin.info import BackendInfo, LayerInfo

PROJECT = "iscsid"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def iscsid_backend_info() -> BackendInfo | None:
    """Describe the back end of this plugin. Called once, at load, in the supervisor."""


@hookspec(firstresult=True)
def iscsid_layer_info() -> LayerInfo | None:
    """Describe the layer of this plugin. Called once, at load, in the supervisor."""


@hookspec(firstresult=True)
def iscsid_auth_info() -> AuthInfo | None:
    """Describe the authentication source of this plugin. Called once, at load, in the supervisor."""


@hookspec(firstresult=True)
def iscsid_authenticate(options: Mapping[str, Any]) -> CredentialSource:
    """Make the source of secrets for one target, or for discovery. Called in every worker, when it starts."""
    raise NotImplementedError


@hookspec(firstresult=True)
def iscsid_probe(uri: str) -> int | None:
    """How sure the plugin is, 0 to 100, that it can open ``uri``. Must not write. For tools."""


@hookspec(firstresult=True)
def iscsid_validate(options: Mapping[str, Any]) -> list[str] | None:
    """What is wrong with the options beyond their types, as sentences; nothing or None when all is well.

    Called by ``check`` and before each start and reload, perhaps while the medium is being served: it must neither
    open for writing nor create anything.
    """


@hookspec(firstresult=True)
def iscsid_create(options: Mapping[str, Any]) -> None:
    """Make the medium. For tools; the server never calls it."""


@hookspec(firstresult=True)
def iscsid_image(options: Mapping[str, Any], verb: str, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Do ``verb``, one of the ``verbs`` of the back end, with the medium that ``options`` describe.

    For ``iscsid image``, which runs while no server has the medium, or beside one: a back end whose media one process
    has to itself sees to it that they are not in use. ``arguments`` are checked against the verb's options, converted
    and complete. What it answers is printed, and has to be fit for JSON.
    """


@hookspec(firstresult=True)
def iscsid_sharing(options: Mapping[str, Any]) -> Sharing | None:
    """How many processes may open the medium, where that depends on the options; None: as BackendInfo says.

    Called in the supervisor, before ``iscsid_prepare``: it must not wait. What is promised here and turns out not to
    hold is for ``iscsid_prepare`` to refuse.
    """


@hookspec(firstresult=True)
def iscsid_prepare(options: Mapping[str, Any], role: str) -> Mapping[str, Any] | None:
    """Do what must be done once for all workers: claim the medium, create what the options allow, make shared memory.

    Called in the supervisor, once for each logical unit, before the workers that serve it are forked; no thread may be
    started. What it returns is added to the options that ``iscsid_open`` gets in every worker. File descriptors in it
    are inherited by fork, and sent to the workers that run already: make each a ``Descriptor``, open them close-on-exec
    and let them live until ``iscsid_release``. ``role`` is "readonly" where nobody will write to the medium, else
    "worker". Raise BlockError(BUSY) for a medium that others have: when the server starts it is tried again for some
    seconds, since they may be about to end.
    """


@hookspec(firstresult=True)
def iscsid_release(options: Mapping[str, Any]) -> None:
    """Undo ``iscsid_prepare``; ``options`` has what it returned. In the supervisor, after the last worker closed it."""


@hookspec(firstresult=True)
def iscsid_resize(options: Mapping[str, Any], size: int, shrink: bool) -> Mapping[str, Any] | None:
    """Make the medium that ``iscsid_prepare`` has prepared ``size`` bytes large.

    Without ``shrink`` it may be in use, and is never cut: raise BlockError(INVALID) for a size that is smaller, or that
    it cannot have. With ``shrink`` nobody has it open, and what is behind a smaller size is cut off, and lost.

    In the supervisor where several processes may have it open: each worker then opens it once more and closes it as it
    was. ``options`` has what ``iscsid_prepare`` returned, and is with the new ``size``, and what this returns, what
    ``iscsid_open`` and ``iscsid_release`` get from then on. Where one process has it, or with ``shrink``, in a worker,
    when every worker has closed it; what this returns is then of no account. For a medium that has an option ``size``.
    """


@hookspec(firstresult=True)
def iscsid_open(options: Mapping[str, Any], role: str) -> Device:
    """Open the medium. Called in a worker, after the fork, once for each logical unit.

    ``role`` is "worker" (others open it too), "owner" (this is the only process) or "readonly".
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Device:
    """Wrap ``device`` in the layer ``name``. Called in a worker, right after ``iscsid_open``; closing the answer
    closes ``device``."""
    raise NotImplementedError


@hookspec(firstresult=True)
def iscsid_layer_validate(name: str, options: Mapping[str, Any]) -> list[str] | None:
    """As ``iscsid_validate``, for the layer ``name``."""


@hookspec(firstresult=True)
def iscsid_layer_prepare(name: str, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """As ``iscsid_prepare``, for the layer ``name``, once for each place in a stack. After ``iscsid_prepare`` of the
    back end, from the lowest layer up; the device is not open yet. What it returns is added to the options that
    ``iscsid_filter`` gets in every worker: memory that all workers share, or that a dying worker must not lose."""


@hookspec(firstresult=True)
def iscsid_layer_release(name: str, options: Mapping[str, Any]) -> None:
    """Undo ``iscsid_layer_prepare``; ``options`` has what it returned. After the last worker closed the device."""


@hookspec(firstresult=True)
def iscsid_layer_verb(
    name: str, verb: str, options: Mapping[str, Any], below: Callable[[], Device]
) -> Mapping[str, Any] | None:
    """Do ``verb``, one of the ``verbs`` of the layer ``name``, for ``iscsid layer``.

    ``options`` are those of the layer in a configuration; ``below()`` opens the device under it, which the caller
    closes. What needs that device to itself sees to it that no server has it. What it answers is printed, and has to
    be fit for JSON.
    """


@hookspec
def iscsid_event(event: Any) -> None:
    """Something happened (a session opened, a worker died). Put to every plugin that implements it; must not wait."""
