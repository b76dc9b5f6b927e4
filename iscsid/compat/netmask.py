"""The last column of targets(5): which addresses may use a target.

``any`` and ``all`` let everybody in, ``none`` nobody. Else it is ``a[.b[.c[.d]]][/bits]``: octets that are missing are
zero, bits that are missing are 32. An IPv6 network is understood too.

The original asked the mask for SendTargets only, and let every IPv6 peer pass. Here a mask holds for logins as well,
and an IPv6 peer passes a mask that lets everybody in, or an IPv6 mask that has it.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

EVERYBODY: Final = ("any", "all")
NOBODY: Final = "none"


@dataclass(frozen=True, slots=True)
class Netmask:
    """A mask as it was written, and the networks that it lets in."""

    text: str
    networks: tuple[Network, ...]

    def allows(self, address: str) -> bool:
        """Whether a peer with this numeric address, as the kernel tells it, may come in."""
        peer = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(peer, ipaddress.IPv6Address) and peer.ipv4_mapped is not None:
            peer = peer.ipv4_mapped
        return any(peer in network for network in self.networks)


_ALL: Final = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


def parse(text: str) -> Netmask:
    """Raises ValueError with the words of the original."""
    if text in EVERYBODY:
        return Netmask(text, _ALL)
    if text == NOBODY:
        return Netmask(text, ())
    if ":" in text:
        return Netmask(text, (_network6(text),))
    address, slash, bits = text.partition("/")
    length = _bits(text, bits) if slash else 32
    if length == 0:
        return Netmask(text, _ALL)
    return Netmask(text, (ipaddress.ip_network((_octets(text, address), length), strict=False),))


def _network6(text: str) -> Network:
    try:
        return ipaddress.IPv6Network(text, strict=False)
    except ValueError:
        raise ValueError(f"allow_netmask: can't interpret mask `{text}' as an IPv6 network") from None


def _bits(text: str, bits: str) -> int:
    if not bits.isascii() or not bits.isdigit() or int(bits[:4]) > 32:
        raise ValueError(f"allow_netmask: can't interpret mask `{text}' as an IPv4 address")
    return int(bits)


def _octets(text: str, address: str) -> int:
    octets = address.split(".")
    good = len(octets) <= 4 and all(
        octet.isascii() and octet.isdigit() and len(octet) <= 3 and int(octet) < 256 for octet in octets
    )
    if not good:
        raise ValueError(f"allow_netmask: can't interpret mask `{text}' as an IPv4 address")
    return int.from_bytes(bytes([*map(int, octets), *[0] * (4 - len(octets))]), "big")
