"""What a layer is: a device over another, which passes on whatever it does not change.

A layer subclasses :class:`Filter` and overrides the calls that it changes. The others are those of the device below,
bound once, so a layer costs nothing where it does nothing. One rule keeps data from going around a layer: there are
several ways to read and several to write, and a layer that changes one of them has the others only if it overrides
them too. The guard then does without: a lent view becomes a read, a discard that is not there is not offered.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from iscsid.block.device import Capabilities, Device, Support

FACTS: Final = (
    "size",
    "block_size",
    "physical_block_size",
    "alignment",
    "minimum_io",
    "optimal_io",
    "discard_granularity",
    "discard_alignment",
    "discard_zeroes",
    "rotational",
    "readonly",
    "removable",
    "mode",
    "threading",
)
"""The attributes of a device; a layer has those of the device below unless it sets its own."""

CALLS: Final = {
    "read_into": "",
    "write": "write",
    "flush": "flush",
    "write_fua": "fua",
    "discard": "discard",
    "write_zeroes": "write_zeroes",
    "block_status": "block_status",
    "prefetch": "prefetch",
    "space": "space",
    "view": "view",
    "read_nowait": "read_nowait",
    "write_nowait": "write_nowait",
}
"""Each call of a device but ``close``, and the field of Capabilities that tells of it."""

AROUND: Final = {
    "read_into": ("view", "read_nowait"),
    "write": ("write_fua", "write_nowait", "discard", "write_zeroes"),
}
"""The other ways to what a call does: not passed on by a layer that overrides it."""


class Filter(Device):
    """Base class of layers. ``below`` is the device under it, which it closes."""

    below: Device

    def __init__(self, below: Device) -> None:
        """Take the facts of ``below``, and its calls where the class has none of its own."""
        self.below = below
        own = type(self)
        for fact in FACTS:
            if not _says(own, fact):
                setattr(self, fact, getattr(below, fact))
        self._hidden = {way for call, ways in AROUND.items() if changes(own, call) for way in ways}
        for call in CALLS:
            if not changes(own, call) and call not in self._hidden:
                setattr(self, call, getattr(below, call))

    def capabilities(self) -> Capabilities:
        """Those of the device below, less the ways around what this layer changes.

        A call that the layer overrides counts as native only where the device below has it: a layer that can do more
        than that says so by ``dataclasses.replace``.
        """
        hidden = {CALLS[way]: Support.NONE for way in self._hidden if not changes(type(self), way)}
        answer = dataclasses.replace(self.below.capabilities(), **hidden)
        return dataclasses.replace(answer, write=Support.NONE) if self.readonly else answer

    def current_size(self) -> int:
        """As much less than ``size`` as the device below has less than its own."""
        return max(0, self.size - max(0, self.below.size - self.below.current_size()))

    def close(self) -> None:
        self.below.close()


def _says(layer: type[Filter], fact: str) -> bool:
    """Whether a class of layers gives a fact itself, be it the default of all devices."""
    return any(fact in vars(cls) for cls in layer.__mro__[: layer.__mro__.index(Filter)])


def changes(layer: type[Filter], call: str) -> bool:
    """Whether a class of layers has ``call`` of its own."""
    return getattr(layer, call) is not getattr(Device, call)
