"""Back ends that are made of others: the option type "members".

A configuration gives a list of tables, each a back end with its own options, and layers over it where it has the key
``layers``, as a LUN has. The manager checks and prepares them like
any LUN's; the back end that has them opens each when it wants to, as often as it wants to, and closes what it opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from iscsid.block.device import Device
from iscsid.errors import BlockError, Fault

TYPE: Final = "members"
MAX_MEMBERS: Final = 64
MAX_LAYERS: Final = 16
MAX_DEPTH: Final = 16  # members of members


@dataclass(frozen=True, slots=True)
class Member:
    """One member. ``layers`` are names with their options, the lowest first. ``problem``: why it could not be
    prepared, where the back end can do without it; else ""."""

    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    problem: str = ""
    opener: Callable[[], Device] | None = field(default=None, repr=False, compare=False)
    resizer: Callable[[int, bool], object] | None = field(default=None, repr=False, compare=False)

    def open(self) -> Device:
        """Open it, in the worker and in the role of whoever it is a member of.

        Raises PluginError, and BlockError before there is a worker.
        """
        if self.opener is None:
            raise BlockError(Fault.INVALID, "members are opened by iscsid_open")
        return self.opener()

    def resize(self, size: int, shrink: bool) -> None:
        """Give its medium ``size`` bytes, within ``iscsid_resize`` of whoever it is a member of, and while nobody has
        it open. Raises PluginError, and BlockError where ``resizer`` is None: it cannot be done."""
        if self.resizer is None:
            raise BlockError(Fault.UNSUPPORTED, f"the back end {self.backend} cannot change the size of its medium")
        self.resizer(size, shrink)


def members(given: Any) -> tuple[Member, ...]:
    """What a configuration says, or what was made of it before. Raises ValueError."""
    if not isinstance(given, list | tuple) or not given:
        raise ValueError("is a list of tables, one for each member")
    if len(given) > MAX_MEMBERS:
        raise ValueError(f"has at most {MAX_MEMBERS} members, not {len(given)}")
    return tuple(_member(index, item) for index, item in enumerate(given))


def _member(index: int, given: Any) -> Member:
    if isinstance(given, Member):
        return given
    if not isinstance(given, Mapping) or not isinstance(given.get("backend"), str):
        raise ValueError(f"member {index} is no table with a backend")
    options = {key: value for key, value in given.items() if key not in ("backend", "layers")}
    return Member(given["backend"], options, tuple(_layers(index, given.get("layers", ()))))


def _layers(index: int, given: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(given, list | tuple) or len(given) > MAX_LAYERS:
        raise ValueError(f"member {index}: layers is a list of at most {MAX_LAYERS} tables")
    for layer in given:
        if not isinstance(layer, Mapping) or not isinstance(layer.get("layer"), str):
            raise ValueError(f"member {index}: one of its layers is no table with a layer")
        yield layer["layer"], {key: value for key, value in layer.items() if key != "layer"}


def depth(options: Mapping[str, Any]) -> int:
    """How deep the members of members go; 0: there are none. Raw tables and Members alike; looks no deeper than
    MAX_DEPTH + 1."""
    level = [options]
    for found in range(MAX_DEPTH + 1):
        level = [inner for table in level for inner in _inner(table)]
        if not level:
            return found
    return MAX_DEPTH + 1


def _inner(options: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The options of all that may be a member in ``options``."""
    found: list[Mapping[str, Any]] = []
    for value in options.values():
        if isinstance(value, list | tuple):
            found += [item.options for item in value if isinstance(item, Member)]
            found += [item for item in value if isinstance(item, Mapping) and isinstance(item.get("backend"), str)]
    return found
