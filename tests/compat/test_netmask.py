"""Which addresses a mask lets in."""

from __future__ import annotations

import pytest

from iscsid.compat import netmask


@pytest.mark.parametrize(
    ("mask", "inside", "outside"),
    [
        ("any", ["10.0.0.1", "::1", "fe80::1%lo"], []),
        ("all", ["10.0.0.1", "::1"], []),
        ("0/0", ["10.0.0.1", "::1"], []),
        ("0.0.0.0/0", ["255.255.255.255", "::1"], []),
        ("none", [], ["0.0.0.0", "127.0.0.1", "::1"]),
        ("10.4/16", ["10.4.0.0", "10.4.255.255", "::ffff:10.4.1.1"], ["10.5.0.0", "::1", "::ffff:10.5.0.0"]),
        ("10.4.0.0/16", ["10.4.1.2"], ["10.5.0.0"]),
        ("10.4.1.2/16", ["10.4.9.9"], ["10.5.0.0"]),
        ("10", ["10.0.0.0"], ["10.0.0.1"]),
        ("192.168.1.7", ["192.168.1.7"], ["192.168.1.8"]),
        ("192.168.1.7/31", ["192.168.1.6"], ["192.168.1.8"]),
        ("fd00::/8", ["fd12::1"], ["fe80::1", "10.0.0.1"]),
    ],
)
def test_mask_lets_in_its_networks_only(mask: str, inside: list[str], outside: list[str]) -> None:
    parsed = netmask.parse(mask)
    assert parsed.text == mask
    assert [address for address in inside if not parsed.allows(address)] == []
    assert [address for address in outside if parsed.allows(address)] == []


@pytest.mark.parametrize(
    "mask", ["", "Any", "ten", "10.256", "1.2.3.4.5", "10/33", "10/", "10/-1", "10/x", "10..4", "1234", "10/8/8", "²"]
)
def test_mask_that_makes_no_sense_is_refused_in_the_original_words(mask: str) -> None:
    with pytest.raises(ValueError, match=r"allow_netmask: can't interpret mask `.*' as an IPv4 address"):
        netmask.parse(mask)


def test_ipv6_mask_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="IPv6 network"):
        netmask.parse("fd00::/200")
