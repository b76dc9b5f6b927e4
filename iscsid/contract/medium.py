"""The medium that the checks run on: prepared once, opened as often as a check likes, each time as one more worker."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from iscsid.block.device import Device, Sharing
from iscsid.block.guard import Guarded
from iscsid.errors import PluginError
from iscsid.plugin.manager import Plugins

SMALLEST: Final = 4 << 20
"""Bytes that a medium needs for the checks, and at least BLOCKS of its blocks."""
BLOCKS: Final = 320
Layers = Sequence[tuple[str, Mapping[str, Any]]]


class Medium:
    """A back end with its options, and layers over it, the lowest first. What it holds is overwritten by the checks.

    ``forgets``: a read gives zeros whatever was written, and that is meant (``null``). ``options`` and ``layers`` are
    those of the prepared medium, and ``exclusive`` tells that only one process may have it open.

    Raises PluginError.
    """

    def __init__(
        self,
        plugins: Plugins,
        backend: str,
        options: Mapping[str, Any],
        layers: Layers = (),
        *,
        forgets: bool = False,
    ) -> None:
        self.backend = backend
        self.forgets = forgets
        self.plugins = plugins
        plugins.condition = threading.Condition
        self.exclusive = plugins.sharing(backend, options, [name for name, _ in layers]) is Sharing.EXCLUSIVE_OWNER
        self.options = plugins.prepare(backend, options)
        try:
            self.layers = plugins.prepare_layers(layers)
        except PluginError:
            plugins.release(backend, self.options)
            raise
        self._open: dict[Guarded, object] = {}  # with what it was opened with

    def device(self, role: str = "worker") -> Device:
        """One more device, which the caller closes."""
        device = self.plugins.open(self.backend, self.options, role)
        try:
            for name, options in self.layers:
                device = self.plugins.wrap(device, name, options)
        except PluginError:
            device.close()
            raise
        return device

    def open(self, role: str = "worker", **arguments: Any) -> Guarded:
        """One more handle, with the arguments of ``Guarded``; ``close_handles`` closes it.

        A medium that only one process may have is open once only: all who use it alike share the device.
        """
        asked = role, arguments
        if self.exclusive:
            for guard, said in list(self._open.items()):
                if said == asked and guard._device is not None:
                    return guard
                guard.close()
                del self._open[guard]
        device = self.device(role)
        try:
            guard = Guarded(device, **arguments)
        except BaseException:
            device.close()
            raise
        self._open[guard] = asked
        return guard

    def kept(self, data: bytes) -> bytes:
        """What a read of ``data`` gives."""
        return bytes(len(data)) if self.forgets else data

    def close_handles(self) -> None:
        """Close whatever a check has left open."""
        for guard in self._open:
            guard.close()
        self._open.clear()

    def close(self) -> None:
        self.close_handles()
        try:
            self.plugins.release_layers(self.layers)
        finally:
            self.plugins.release(self.backend, self.options)

    def __enter__(self) -> Medium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
