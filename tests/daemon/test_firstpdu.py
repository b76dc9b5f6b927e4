"""Whatever a stranger sends, reading the first PDU says how much is needed, or refuses, or gives a bounded hint."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.daemon.firstpdu import MAX_FIRST_PDU, LoginHint, needed, read
from iscsid.errors import RemoteProtocolError
from iscsid.shared.messages import Connect, encode
from iscsid.wire.pdu import LoginRequest, padding

NAMES = b"InitiatorName=iqn.2026-11.org.example:host\0TargetName=iqn.2026-11.org.iscsid:disk0\0"


def login(text: bytes = NAMES, *, tsih: int = 0, isid: int = 0x800000000001, continued: bool = False) -> bytes:
    pdu = LoginRequest(isid=isid, tsih=tsih, transit=not continued, continued=continued, nsg=3, csg=1, data=text)
    return pdu.pack() + text + bytes(padding(len(text)))


@pytest.mark.parametrize("length", range(len(login())))
def test_needed_grows_with_what_is_there_and_ends_at_the_whole_pdu(length: int) -> None:
    whole = login()
    expected = 1 if length == 0 else 48 if length < 48 else len(whole)
    assert needed(whole[:length]) == expected
    assert needed(whole[:length]) > length


def test_needed_of_a_whole_pdu_is_its_length_whatever_follows() -> None:
    whole = login()
    assert needed(whole) == len(whole)
    assert needed(whole + b"more") == len(whole)


def test_needed_counts_padding() -> None:
    assert needed(login(b"A=bc\0")) == 48 + 8


@pytest.mark.parametrize(
    "data",
    [
        b"G",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01",  # TLS
        b"\x00",  # NOP-Out
        b"\x41" + bytes(47),  # SCSI Command
        b"\x23" + bytes(47),  # Login Response
        b"\x43\x87\0\0\x01" + bytes(43),  # AHS
        b"\x43\x87\0\0\0\0\x20\x01" + bytes(40),  # 8193 bytes of data
        b"\x43\x87\0\0\0\xff\xff\xff" + bytes(40),  # 16 MiB of data
    ],
)
def test_what_is_no_login_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        needed(data)


def test_longest_login_is_taken() -> None:
    assert needed(login(b"X=" + b"x" * 8189 + b"\0")) == MAX_FIRST_PDU


def test_hint_has_names_isid_and_tsih() -> None:
    assert read(login(tsih=7)) == LoginHint(
        7, 0x800000000001, "iqn.2026-11.org.example:host", "iqn.2026-11.org.iscsid:disk0"
    )


def test_hint_of_discovery_has_no_target() -> None:
    hint = read(login(b"InitiatorName=iqn.x:host\0SessionType=Discovery\0TargetName=iqn.x:disk\0"))
    assert (hint.initiator, hint.target) == ("iqn.x:host", "")


def test_hint_of_a_login_that_goes_on_has_the_keys_that_are_whole() -> None:
    hint = read(login(b"InitiatorName=iqn.x:host\0TargetName=iqn.x:di", continued=True))
    assert (hint.initiator, hint.target) == ("iqn.x:host", "")


def test_hint_ignores_what_follows_the_pdu() -> None:
    assert read(login() + b"\xff" * 100) == read(login())


@pytest.mark.parametrize("text", [b"\xff\xfe=1\0", b"no equals sign\0", b"=\0", b"InitiatorName", b""])
def test_text_without_sense_gives_an_empty_hint(text: bytes) -> None:
    assert read(login(text)) == LoginHint(0, 0x800000000001, "", "")


def test_names_longer_than_names_are_do_not_reach_a_message() -> None:
    """8 KiB of TargetName would otherwise not fit into the message to the worker."""
    hint = read(login(b"InitiatorName=" + b"i" * 4000 + b"\0TargetName=" + b"t" * 4000 + b"\0"))
    assert (hint.initiator, hint.target) == ("", "")


def test_longest_names_reach_a_message() -> None:
    name = "\u20ac" * 74  # 222 bytes, each character six bytes of JSON
    hint = read(login(f"InitiatorName={name}\0TargetName={name}\0".encode()))
    assert hint.target == name
    encode(Connect(1, hint.initiator, hint.isid, hint.target, "peer", "portal"))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_need_more_or_give_a_hint(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        if needed(data) <= len(data):
            read(data)


@given(st.binary(max_size=400), st.booleans())
def test_any_text_gives_a_hint_with_bounded_names(text: bytes, continued: bool) -> None:
    hint = read(login(text, continued=continued))
    assert len(hint.initiator.encode()) <= 223
    assert len(hint.target.encode()) <= 223
