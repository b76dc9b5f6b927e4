"""The file of users and secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsid.compat import auths

SAMPLE = """\
# the entries of the original's own file
nulltest:none:
agc:chap:Rhode Island Red
iqn.1991-05.com.microsoft\\:ws2:CHAP:1234567890123456
"""


def test_sample_gives_its_users_and_secrets() -> None:
    found = auths.parse(SAMPLE)
    assert found.messages == ()
    assert found.secret("agc") == "Rhode Island Red"
    assert found.secret("iqn.1991-05.com.microsoft:ws2") == "1234567890123456"
    assert found.secret("nulltest") is None
    assert found.secret("nobody") is None


def test_users_and_types_are_compared_without_case() -> None:
    assert auths.parse("Agc:ChAp:x").secret("aGC") == "x"


def test_first_line_that_fits_wins() -> None:
    assert auths.parse("a:none\na:chap:one\na:chap:two").secret("a") == "one"


def test_secret_keeps_trailing_blanks() -> None:
    assert auths.parse("a:chap:b \n").secret("a") == "b "


def test_secret_with_an_escaped_colon() -> None:
    assert auths.parse("a:chap:b\\:c").secret("a") == "b:c"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:chap", "auths:1: Error: `a' has no secret"),
        ("\na:srp:x", "auths:2: Warning: `a' has type `srp'; there are chap and none"),
        ("a:chap:b:c", "auths:1: Error: `a' has more than 3 fields: write a colon as `\\:'"),
    ],
)
def test_line_that_cannot_be_used_is_told_and_skipped(text: str, message: str) -> None:
    found = auths.parse(text)
    assert [told.at("auths") for told in found.messages] == [message]
    assert found.secret("a") is None


def test_secrets_are_neither_in_messages_nor_in_what_is_printed() -> None:
    found = auths.parse("a:chap:hush\nb:chap:hush:hush")
    assert "hush" not in repr(found)


def test_load_of_a_missing_file_raises_for_the_caller(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        auths.load(tmp_path / "auths")


def test_load_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "auths"
    path.write_text(SAMPLE)
    assert auths.load(path).secret("agc") == "Rhode Island Red"
