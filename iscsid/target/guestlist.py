"""Which initiators may use a target: by the names they give and the addresses they come from.

A name is what an initiator says of itself, and an address can be another's too: both keep order among friends. Who is
to be kept out has to be asked for a proof (``session.chap``).
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Iterable

from iscsid.text.names import normalize

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class GuestList:
    """``initiators`` are names, with the wildcards of a shell; ``networks`` as in "10.0.0.0/8". None given: everybody.

    Raises ValueError for what is not a network.
    """

    __slots__ = ("_names", "_networks")

    def __init__(self, initiators: Iterable[str] = (), networks: Iterable[str] = ()) -> None:
        self._names = [re.compile(fnmatch.translate(pattern.lower())) for pattern in initiators]
        self._networks: list[Network] = [ipaddress.ip_network(network, strict=False) for network in networks]

    def admits(self, initiator: str, host: str) -> bool:
        """Whether the initiator of this name may come from ``host``, a numeric address."""
        return self._knows(initiator) and self._covers(host)

    def _knows(self, initiator: str) -> bool:
        if not self._names:
            return True
        try:
            name = normalize(initiator)
        except ValueError:
            name = initiator.lower()  # no name of the RFC's forms, but one that a pattern may stand for
        return any(pattern.match(name) for pattern in self._names)

    def _covers(self, host: str) -> bool:
        if not self._networks:
            return True
        try:
            address = address_of(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks if network.version == address.version)


def address_of(host: str) -> Address:
    """Return the address that a socket calls ``host``: without its zone, and IPv4 where IPv6 only wraps it.

    Raises ValueError for what is not an address.
    """
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
