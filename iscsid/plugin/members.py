"""Back ends that are made of others: the option type "members".

A configuration gives a list of tables, each a back end with its own options. The manager checks and prepares them like
any LUN's; the back end that has them opens each when it wants to, as often as it wants to, and closes what it opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from iscsid.block.device import Device
from iscsid.errors import BlockError, Fault

TYPE: Final = "members"
MAX_MEMBERS: Final = 64
MAX_DEPTH: Final = 16  # members of members


@dataclass(frozen=True, slots=True)
class Member:
    """One member. ``problem``: why it could not be prepared, where the back end can do without it; else ""."""

    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    opener: Callable[[], Device] | None = field(default=None, repr=False, compare=False)

    def open(self) -> Device:
        """Open it, in the worker and in the role of whoever it is a member of.

        Raises PluginError, and BlockError before there is a worker.
        """
        if self.opener is None:
            raise BlockError(Fault.INVALID, "members are opened by iscsid_open")
        return self.opener()


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
    return Member(given["backend"], {key: value for key, value in given.items() if key != "backend"})


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
