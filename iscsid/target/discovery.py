"""SendTargets (RFC 7143 section 13.3 and appendix C): which targets an initiator is told of, as text pairs.

Which targets there are for this initiator, and at which addresses it can reach them, is for the caller to find out.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from iscsid.specs import PortalSpec
from iscsid.text.codec import Pair
from iscsid.text.keys import REJECT
from iscsid.text.names import normalize

ALL: Final = "All"


@dataclass(frozen=True, slots=True)
class DiscoveredTarget:
    """A target as discovery shows it.

    ``addresses`` are ``host:port``, with IPv6 hosts in brackets, as ``specs.PortalSpec`` prints them, and the portal
    group tag of each. Without any, the initiator takes the address that it is talking to (appendix C).
    """

    name: str
    addresses: tuple[tuple[str, int], ...]

    def pairs(self) -> list[Pair]:
        """Return TargetName and one TargetAddress for every address."""
        told = [("TargetName", self.name)]
        told += [("TargetAddress", f"{address},{tag}") for address, tag in self.addresses]
        return told


def reachable(portals: Iterable[PortalSpec], here: str, tag: int) -> list[tuple[str, int]]:
    """Return address and tag of every portal that an initiator may reach which has reached ``here``, in group ``tag``.

    ``here`` comes first. Where we listen on all addresses of a host, the one that the initiator has reached stands for
    them, in its family. A loopback address is for who is on this host, and a link-local one means another thing to
    everybody: they are told to nobody else.
    """
    host, _, _ = here.rpartition(":")
    own = ipaddress.ip_address(host.strip("[]"))
    found = {(here, tag): None}
    for portal in portals:
        address = ipaddress.ip_address(portal.host)
        if address.is_unspecified and address.version == own.version:
            address = own
        if address.is_unspecified or address.is_loopback != own.is_loopback:
            continue
        if address == own or not address.is_link_local:
            found[str(PortalSpec(str(address), portal.port)), portal.portal_group_tag] = None
    return list(found)


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
