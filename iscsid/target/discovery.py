"""SendTargets (RFC 7143 section 13.3 and appendix C): which targets an initiator is told of, as text pairs.

Which targets there are for this initiator, and at which addresses it can reach them, is for the caller to find out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from iscsid.text.codec import Pair
from iscsid.text.keys import REJECT
from iscsid.text.names import normalize

ALL: Final = "All"


@dataclass(frozen=True, slots=True)
class DiscoveredTarget:
    """A target as discovery shows it.

    ``addresses`` are ``host:port`` with IPv6 hosts in brackets, as ``specs.PortalSpec`` prints them, all of the portal
    group ``portal_group_tag``. Without any, the initiator takes the address that it is talking to (appendix C).
    """

    name: str
    addresses: tuple[str, ...]
    portal_group_tag: int = 1

    def pairs(self) -> list[Pair]:
        """Return TargetName and one TargetAddress for every address."""
        told = [("TargetName", self.name)]
        told += [("TargetAddress", f"{address},{self.portal_group_tag}") for address in self.addresses]
        return told


def send_targets(value: str, targets: Iterable[DiscoveredTarget], session_target: str) -> list[Pair]:
    """Return the answer to ``SendTargets=value``; it may be empty, and longer than one PDU.

    ``session_target`` is the target that this session is logged in to, "" in a discovery session. A normal session
    hears of no other target. Appendix C forbids ``All`` in a normal session; libiscsi's test suite and the initiators
    that look for further portals of their target this way expect an answer, and one that tells no more than the empty
    value does harms nobody.
    """
    visible: Sequence[DiscoveredTarget] = [
        target for target in targets if not session_target or target.name == session_target
    ]
    if value == ALL:
        chosen = visible
    elif value == "":
        # The empty value means "my own target", and a discovery session has none.
        if not session_target:
            return [("SendTargets", REJECT)]
        chosen = visible
    else:
        chosen = [target for target in visible if target.name == value]
        if not chosen and not _is_name(value):
            return [("SendTargets", REJECT)]
    return [pair for target in chosen for pair in target.pairs()]


def _is_name(value: str) -> bool:
    try:
        normalize(value)
    except ValueError:
        return False
    return True
