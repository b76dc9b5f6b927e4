"""text.chap: the arithmetic against published vectors and another implementation's form, and hostile values."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.plugin.auth import CHAP_ALGORITHMS
from iscsid.text import chap


@pytest.mark.parametrize(("number", "name"), [(5, "md5"), (6, "sha1"), (7, "sha256"), (8, "sha3_256")])
def test_digest_is_the_hash_over_identifier_secret_and_challenge(number: int, name: str) -> None:
    wanted = hashlib.new(name, b"\x07" + b"secret" + b"challenge").digest()
    assert chap.digest(number, 7, b"secret", b"challenge") == wanted
    assert chap.ALGORITHMS[number].length == len(wanted)


def test_digest_of_a_known_conversation() -> None:
    # RFC 1994 gives no vectors; RFC 1321's suite does for the hash: identifier "a", secret "b", challenge "c".
    assert chap.digest(5, ord("a"), b"b", b"c").hex() == "900150983cd24fb0d6963f7d28e17f72"
    assert chap.digest(7, ord("a"), b"b", b"c").hex().startswith("ba7816bf8f01cfea")  # FIPS 180-2 B.1


def test_names_are_those_of_the_plugins_door() -> None:
    assert tuple(row.name for row in chap.ALGORITHMS.values()) == CHAP_ALGORITHMS
    assert set(chap.PREFERENCE) == set(chap.ALGORITHMS)


@pytest.mark.parametrize(("text", "chosen"), [("5", 5), ("9,x,7,5", 7), ("0x8", 8), ("1,2", None)])
def test_first_allowed_member_is_chosen(text: str, chosen: int | None) -> None:
    assert chap.choose_algorithm(text, tuple(chap.ALGORITHMS)) == chosen


@pytest.mark.parametrize("text", ["", "5,", ",".join(["1"] * 33), "5" * 256])
def test_list_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        chap.choose_algorithm(text, (5,))


@pytest.mark.parametrize("text", ["0x" + "ab" * 1024, "0b" + "AAAA" * 341 + "AA==", "0xabc"])
def test_longest_challenge_in_either_form_is_taken(text: str) -> None:
    assert 1 <= len(chap.parse_challenge(text)) <= 1024


@pytest.mark.parametrize(
    "text", ["", "0x", "0b", "0b====", "ab", "0xzz", "0b!!", "0x" + "ab" * 1025, "0b" + "A" * 4096]
)
def test_challenge_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        chap.parse_challenge(text)


@pytest.mark.parametrize("text", ["256", "-1", "", "x", "0x100"])
def test_identifier_that_is_no_byte_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        chap.parse_identifier(text)


@pytest.mark.parametrize("text", ["", "a\nb", "x" * 256])
def test_name_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        chap.parse_name(text)


@pytest.mark.parametrize(("length", "fits"), [(0, False), (11, False), (12, True), (255, True), (256, False)])
def test_secret_has_a_length_that_is_safe(length: int, fits: bool) -> None:
    if fits:
        chap.check_secret(bytes(length))
    else:
        with pytest.raises(ValueError):
            chap.check_secret(bytes(length))


@given(st.text(max_size=200))
def test_noise_raises_value_errors_only(text: str) -> None:
    for parse in (chap.parse_challenge, chap.parse_identifier, chap.parse_name):
        with contextlib.suppress(ValueError):
            parse(text)
    try:
        chap.choose_algorithm(text, (5,))
        chap.parse_response(text, 7)
    except ValueError:
        pass
