"""The answer to SendTargets (RFC 7143 section 13.8 and appendix C): which targets there are, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from iscsid.errors import ConnectionFailed, InitiatorError
from iscsid.initiator.url import Portal, parse_portal
from iscsid.text.codec import Pair

_DEFAULT_TAG: Final = 1


@dataclass(frozen=True, slots=True)
class TargetPortal:
    """An address of a target and the portal group that it belongs to."""

    host: str
    port: int
    tag: int

    def __str__(self) -> str:
        return f"{Portal(self.host, self.port)},{self.tag}"


@dataclass(frozen=True, slots=True)
class TargetRecord:
    """A target that a discovery session told of."""

    name: str
    portals: tuple[TargetPortal, ...]


def parse_targets(pairs: Sequence[Pair], asked: Portal) -> list[TargetRecord]:
    """Return the targets; one without an address is where it was asked for. Raises ConnectionFailed."""
    found: dict[str, list[TargetPortal]] = {}
    current: list[TargetPortal] | None = None
    for name, value in pairs:
        if name == "TargetName":
            current = found.setdefault(value, [])
        elif name == "TargetAddress" and current is not None:
            current.append(_address(value))
        elif name == "SendTargets":
            raise ConnectionFailed(f"the target answers SendTargets={value[:80]}")
    here = TargetPortal(asked.host, asked.port, _DEFAULT_TAG)
    return [TargetRecord(name, tuple(portals) or (here,)) for name, portals in found.items()]


def _address(text: str) -> TargetPortal:
    address, comma, tag = text.rpartition(",")
    if not comma:
        address, tag = text, str(_DEFAULT_TAG)
    try:
        portal = parse_portal(address)
        number = int(tag)
    except (InitiatorError, ValueError) as error:
        raise ConnectionFailed(f"the target tells of an address that is none: {text[:80]!r}") from error
    return TargetPortal(portal.host, portal.port, number)
