"""What is done once for all workers before any opens it: the back ends' ``prepare``, and its undoing."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iscsid.daemon.errors import StartError
from iscsid.errors import BlockError, Fault, PluginError
from iscsid.plugin import resizing
from iscsid.specs import LunSpec, ServerSpec

if TYPE_CHECKING:
    from iscsid.plugin.manager import Plugins

log = logging.getLogger(__name__)

Layers = Sequence[tuple[str, Mapping[str, Any]]]
FAILURES = (PluginError, BlockError, OSError)
BUSY_SECONDS = 3.0  # how long a start waits for media that others have
BUSY_PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class Prepared:
    """One LUN, ready to be opened: with which options, and wrapped in what."""

    target: str
    lun: LunSpec
    options: Mapping[str, Any]
    layers: Layers
    plugins: Plugins


class Media:
    """The prepared back ends and layers of a server, by target name and LUN.

    ``options`` holds what to open each LUN with, ``layers`` the names and options of what to wrap it in.
    """

    def __init__(self, spec: ServerSpec, plugins: Plugins) -> None:
        """Prepare every LUN, in the order of the configuration. Raises StartError, with nothing left prepared."""
        self.plugins = plugins
        self._luns: dict[tuple[str, int], Prepared] = {}
        self.options: dict[tuple[str, int], Mapping[str, Any]] = {}
        self.layers: dict[tuple[str, int], Layers] = {}
        deadline = time.monotonic() + BUSY_SECONDS
        for target in spec.targets:
            for lun in target.luns:
                try:
                    self.put(self._prepare_patiently(target.name, lun, deadline))
                except FAILURES as exc:
                    self.release()
                    raise StartError(f"target {target.name}, lun {lun.lun}: {exc}") from exc

    def _prepare_patiently(self, target: str, lun: LunSpec, deadline: float) -> Prepared:
        """As :meth:`prepare`; who has the medium may be the last worker of a server that was killed a moment ago."""
        while True:
            try:
                return self.prepare(target, lun)
            except FAILURES as error:
                cause = error.__cause__ if isinstance(error, PluginError) else error
                busy = isinstance(cause, BlockError) and cause.fault is Fault.BUSY
                if not busy or time.monotonic() >= deadline:
                    raise
            time.sleep(BUSY_PAUSE)

    def prepare(self, target: str, lun: LunSpec, plugins: Plugins | None = None) -> Prepared:
        """Prepare one LUN. Raises one of FAILURES, with nothing left prepared."""
        plugins = plugins or self.plugins
        names = [layer.layer for layer in lun.layers]
        role = plugins.role_under(names, "readonly" if lun.readonly else "worker")
        options = plugins.prepare(lun.backend, lun.options, role)
        try:
            layers = plugins.prepare_layers((layer.layer, layer.options) for layer in lun.layers)
        except FAILURES:
            self.undo(Prepared(target, lun, options, (), plugins))
            raise
        return Prepared(target, lun, options, layers, plugins)

    def resize(self, target: str, lun: LunSpec) -> Prepared:
        """Give the medium the size that ``lun`` has, which is otherwise as it was; it stays prepared as it is. Raises
        one of FAILURES."""
        old = self._luns[target, lun.lun]
        options = old.plugins.resize(lun.backend, old.options, lun.options["size"])
        return Prepared(target, lun, options, old.layers, old.plugins)

    def relayered(self, target: str, lun: LunSpec, size: int | None = None) -> Prepared:
        """The LUN as it is prepared, with its layers prepared anew: what they know of the data is over when a worker
        has changed these, or has given the medium ``size`` bytes. Raises one of FAILURES."""
        old = self._luns[target, lun.lun]
        options = old.options if size is None else resizing.sized(old.options, size)
        layers = old.plugins.prepare_layers((layer.layer, layer.options) for layer in lun.layers)
        return Prepared(target, lun, options, layers, old.plugins)

    def again(self, target: str, lun: int) -> Prepared:
        """The LUN as it is prepared now."""
        return self._luns[target, lun]

    def put(self, prepared: Prepared) -> Prepared | None:
        """What workers that are forked from now on open; the answer is what they had opened before."""
        key = prepared.target, prepared.lun.lun
        old = self._luns.get(key)
        self._luns[key] = prepared
        self.options[key] = prepared.options
        self.layers[key] = prepared.layers
        return old

    def take(self, target: str, lun: int) -> Prepared:
        """The LUN is gone for workers that are forked from now on; it is to be undone when the others have closed."""
        del self.options[target, lun], self.layers[target, lun]
        return self._luns.pop((target, lun))

    def undo(self, prepared: Prepared, *, layers_only: bool = False) -> None:
        """Undo what :meth:`prepare` did, or with ``layers_only`` what :meth:`relayered` did. A failure is logged."""
        target, lun = prepared.target, prepared.lun
        try:
            prepared.plugins.release_layers(prepared.layers)
        except FAILURES as exc:
            log.error("target %s, lun %d: release of a layer: %s", target, lun.lun, exc)
        if layers_only:
            return
        try:
            prepared.plugins.release(lun.backend, prepared.options)
        except FAILURES as exc:
            log.error("target %s, lun %d: release: %s", target, lun.lun, exc)

    def release(self) -> None:
        """Undo all of it, the last one first, after the last worker has closed. A failure stops no other."""
        while self._luns:
            self.undo(self._luns.popitem()[1])
