"""initiator.url: what libiscsi's users write, and what is wrong with it."""

from __future__ import annotations

import pytest

from iscsid.errors import InitiatorError
from iscsid.initiator.url import Credentials, DiskUrl, Portal, parse_portal, parse_url

NAME = "iqn.2026-11.org.example:disk0"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"iscsi://192.0.2.1/{NAME}/0", DiskUrl(Portal("192.0.2.1", 3260), NAME, 0)),
        (f"iscsi://host.example:860/{NAME}/255", DiskUrl(Portal("host.example", 860), NAME, 255)),
        (f"iscsi://[2001:db8::1]:3261/{NAME}/1", DiskUrl(Portal("2001:db8::1", 3261), NAME, 1)),
        (f"iscsi://[fe80::1%eth0]/{NAME}/1", DiskUrl(Portal("fe80::1%eth0", 3260), NAME, 1)),
        (f"iscsi://192.0.2.1/{NAME.upper()}/0", DiskUrl(Portal("192.0.2.1", 3260), NAME, 0)),
        (f"iscsi://192.0.2.1/{NAME}", DiskUrl(Portal("192.0.2.1", 3260), NAME)),
        ("iscsi://192.0.2.1", DiskUrl(Portal("192.0.2.1", 3260))),
        (
            f"iscsi://me%se%cr@t@192.0.2.1/{NAME}/0?target_user=it&target_password=its&header_digest=crc32c",
            DiskUrl(
                Portal("192.0.2.1", 3260),
                NAME,
                0,
                Credentials("me", b"se%cr@t", "it", b"its"),
                header_digest=True,
            ),
        ),
    ],
)
def test_url_is_taken_apart(url: str, expected: DiskUrl) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://192.0.2.1", "begins with iscsi://"),
        ("iscsi://", "is not host"),
        (f"iscsi://2001:db8::1/{NAME}/0", "brackets"),
        (f"iscsi://192.0.2.1:0/{NAME}/0", "no port 0"),
        (f"iscsi://192.0.2.1:99999/{NAME}/0", "no port 99999"),
        ("iscsi://192.0.2.1/disk0/0", "is not a target name"),
        (f"iscsi://192.0.2.1/{NAME}/x", "is not a LUN"),
        (f"iscsi://192.0.2.1/{NAME}/16384", "is not a LUN"),
        (f"iscsi://192.0.2.1/{NAME}/0/1", "is not host"),
        ("iscsi://192.0.2.1//0", "is not host"),
        (f"iscsi://me@192.0.2.1/{NAME}/0", "without a secret"),
        (f"iscsi://192.0.2.1/{NAME}/0?target_user=it", "only where we are"),
        (f"iscsi://192.0.2.1/{NAME}/0?colour=red", "unknown key"),
        (f"iscsi://192.0.2.1/{NAME}/0?data_digest=md5", "crc32c or none"),
        (f"iscsi://192.0.2.1/{NAME}/0?data_digest=none&data_digest=none", "twice"),
    ],
)
def test_wrong_url_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(InitiatorError, match=reason):
        parse_url(url)


def test_secrets_are_not_shown() -> None:
    assert "hidden" not in repr(parse_url(f"iscsi://me%hidden@192.0.2.1/{NAME}/0?target_secret=hidden2"))
    with pytest.raises(InitiatorError) as caught:
        parse_url("iscsi://me%hidden@192.0.2.1/x/0")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("text", ["192.0.2.1:3260", "[2001:db8::1]:860", "host:1"])
def test_portal_prints_as_it_is_read(text: str) -> None:
    assert str(parse_portal(text)) == text
