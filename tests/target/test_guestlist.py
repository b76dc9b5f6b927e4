"""target.guestlist: names with wildcards, networks of both families."""

from __future__ import annotations

import pytest

from iscsid.target.guestlist import GuestList

HOST = "iqn.2010-11.org.example:host1"


def test_list_without_entries_admits_everybody() -> None:
    assert GuestList().admits("whoever", "not an address")


@pytest.mark.parametrize(
    ("pattern", "name", "admitted"),
    [
        (HOST, HOST, True),
        (HOST, HOST.upper(), True),
        (HOST, HOST + "0", False),
        ("iqn.2010-11.org.example:*", HOST, True),
        ("iqn.2010-11.org.example:host?", HOST, True),
        ("iqn.2010-11.org.example:host[2-9]", HOST, False),
        ("*", "no name at all", True),
        ("iqn.*", "no name at all", False),
    ],
)
def test_names_are_matched_as_a_shell_does(pattern: str, name: str, admitted: bool) -> None:
    assert GuestList([pattern]).admits(name, "192.0.2.1") is admitted


@pytest.mark.parametrize(
    ("network", "host", "admitted"),
    [
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.0.0.1/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.0/8", "::ffff:10.0.0.1", True),
        ("10.0.0.0/8", "fe80::1%eth0", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "", False),
    ],
)
def test_addresses_are_matched_by_their_bits(network: str, host: str, admitted: bool) -> None:
    assert GuestList((), [network]).admits(HOST, host) is admitted


def test_both_name_and_address_have_to_fit() -> None:
    guests = GuestList([HOST], ["10.0.0.0/8"])
    assert guests.admits(HOST, "10.0.0.1")
    assert not guests.admits(HOST, "11.0.0.1")
    assert not guests.admits("iqn.2010-11.org.example:other", "10.0.0.1")


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError):
        GuestList((), ["10.0.0.0/33"])
