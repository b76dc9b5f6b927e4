"""NBD URIs: what they say, and what is refused with its reason."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from iscsid_backends.nbd_uri import Address, Credentials, parse


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("nbd://storage.example", Address("storage.example", 10809, "", b"", False, "storage.example")),
        ("nbd://storage.example/", Address("storage.example", 10809, "", b"", False, "storage.example")),
        ("nbd://192.0.2.1:99/disk", Address("192.0.2.1", 99, "", b"disk", False, "192.0.2.1")),
        ("nbd://[2001:db8::1]:99/a", Address("2001:db8::1", 99, "", b"a", False, "2001:db8::1")),
        ("nbd://h//absolute/name", Address("h", 10809, "", b"/absolute/name", False, "h")),
        ("nbd://h/a%20b%ff", Address("h", 10809, "", b"a b\xff", False, "h")),
        ("NBD://h/a", Address("h", 10809, "", b"a", False, "h")),
        ("nbds://h/a", Address("h", 10809, "", b"a", True, "h")),
        ("nbds://192.0.2.1/a?tls-hostname=h", Address("192.0.2.1", 10809, "", b"a", True, "h")),
        ("nbd+unix:///a?socket=/run/nbd.sock", Address("", 0, "/run/nbd.sock", b"a", False, "localhost")),
        ("nbd+unix://?socket=/run/a%20b", Address("", 0, "/run/a b", b"", False, "localhost")),
        ("nbds+unix:///a?socket=/s&tls-hostname=h", Address("", 0, "/s", b"a", True, "h")),
    ],
)
def test_uri_says_where_the_export_is(uri: str, address: Address) -> None:
    assert parse(uri) == address


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("/srv/disk.img", "is none of nbd://"),
        ("iscsi://h/a", "is none of nbd://"),
        ("nbd://", "has no host"),
        ("nbd://h:0/", "a port of 0"),
        ("nbd://h:70000/", "[Pp]ort"),
        ("nbd://h:x/", "[Pp]ort"),
        ("nbd://me@h/", "user name"),
        ("nbd://h/a#b", "fragment"),
        ("nbd://h/a?socket=/s", "parameter socket is unknown"),
        ("nbd://h/a?tls-hostname=h", "parameter tls-hostname is unknown"),
        ("nbd://h/a?&", "bad query"),
        ("nbd+unix:///a", "not of the form"),
        ("nbd+unix:///a?socket=", "not of the form"),
        ("nbd+unix://h/a?socket=/s", "not of the form"),
        ("nbd+unix:///a?socket=/s&socket=/t", "given twice"),
        ("nbd+unix:///a?socket=/" + "s" * 107, "more than 107 bytes"),
        ("nbd+unix:///a?socket=/a%00b", "has a NUL"),
        ("nbd://h/" + "a" * 4097, "has 4097 bytes, more than 4096"),
        ("nbd://h/a%00b", "has a NUL"),
        ("nbd://" + "a" * 70 + "/", "no name of a host"),
        ("nbd://[::1/", "IPv6"),
    ],
)
def test_uri_that_is_wrong_is_refused_with_the_reason(uri: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(uri)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("nbd://h/a", "h:10809/a"),
        ("nbd://[::1]:9/a%0ab", "[::1]:9/a?b"),
        ("nbd+unix:///a?socket=/run/s", "/run/s/a"),
    ],
)
def test_address_in_a_message_is_printable(uri: str, words: str) -> None:
    assert str(parse(uri)) == words


def test_tls_checks_the_server_in_any_case() -> None:
    context = Credentials().context()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("name", ["ca", "cert"])
def test_file_of_tls_that_is_no_good_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pem"
    with pytest.raises(OSError, match=r"x\.pem"):
        Credentials(**{name: str(path)}).context()
    path.write_text("no certificate")
    with pytest.raises(OSError, match=r"x\.pem"):
        Credentials(**{name: str(path)}).context()
