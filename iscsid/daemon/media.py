"""What is done once for all workers before any is forked: the back ends' ``prepare``, and its undoing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from iscsid.daemon.errors import StartError
from iscsid.errors import BlockError, PluginError
from iscsid.specs import LunSpec, ServerSpec

if TYPE_CHECKING:
    from iscsid.plugin.manager import Plugins

log = logging.getLogger(__name__)

Layers = Sequence[tuple[str, Mapping[str, Any]]]


class Media:
    """The prepared back ends and layers of a server, by target name and LUN.

    ``options`` holds what to open each LUN with, ``layers`` the names and options of what to wrap it in.
    """

    def __init__(self, spec: ServerSpec, plugins: Plugins) -> None:
        """Prepare every LUN, in the order of the configuration. Raises StartError, with nothing left prepared."""
        self._plugins = plugins
        self._luns: list[tuple[str, LunSpec]] = []
        self.options: dict[tuple[str, int], Mapping[str, Any]] = {}
        self.layers: dict[tuple[str, int], Layers] = {}
        for target in spec.targets:
            for lun in target.luns:
                try:
                    self._prepare(target.name, lun)
                except (PluginError, BlockError, OSError) as exc:
                    self.release()
                    raise StartError(f"target {target.name}, lun {lun.lun}: {exc}") from exc

    def _prepare(self, target: str, lun: LunSpec) -> None:
        self.options[target, lun.lun] = self._plugins.prepare(lun.backend, lun.options)
        self._luns.append((target, lun))
        self.layers[target, lun.lun] = ()
        self.layers[target, lun.lun] = self._plugins.prepare_layers(
            (layer.layer, layer.options) for layer in lun.layers
        )

    def release(self) -> None:
        """Undo it, the last one first, after the last worker has closed. A failure is logged and stops no other."""
        while self._luns:
            target, lun = self._luns.pop()
            try:
                self._plugins.release_layers(self.layers[target, lun.lun])
            except (PluginError, BlockError, OSError) as exc:
                log.error("target %s, lun %d: release of a layer: %s", target, lun.lun, exc)
            try:
                self._plugins.release(lun.backend, self.options[target, lun.lun])
            except (PluginError, BlockError, OSError) as exc:
                log.error("target %s, lun %d: release: %s", target, lun.lun, exc)
