"""The authentication source ``chap``: what it takes, what it refuses, and secrets in files."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from iscsid.plugin.manager import load

JOE = {"user": "joe", "secret": "a secret of joe's"}
DISK = {"user": "disk0", "secret": "a secret of the disk's"}


def source(**options: Any) -> Any:
    plugins = load(["chap"])
    assert plugins.validate_auth("chap", options) == []
    return plugins.authenticate("chap", options)


def problems(**options: Any) -> str:
    return "\n".join(load(["chap"]).validate_auth("chap", options))


def write(path: Path, secret: str, mode: int = 0o600) -> str:
    path.write_text(secret)
    path.chmod(mode)
    return str(path)


def test_source_knows_its_accounts_and_no_others() -> None:
    accounts = source(chap=[JOE], mutual=DISK)
    assert accounts.secret("joe") == b"a secret of joe's"
    assert accounts.secret("Joe") is None
    assert accounts.own() == ("disk0", b"a secret of the disk's")
    assert source(chap=[JOE]).own() is None


def test_case_of_users_counts_only_where_it_is_not_ignored() -> None:
    assert source(chap=[JOE], ignore_case=True).secret("JOE") == b"a secret of joe's"


def test_secret_in_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    accounts = source(chap=[{"user": "joe", "secret_file": write(path, "the first secret\n")}])
    assert accounts.secret("joe") == b"the first secret"
    write(path, "the second secret\r\n")
    assert accounts.secret("joe") == b"the second secret"


def test_secret_file_that_is_gone_shuts_its_account_out_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "secret"
    accounts = source(chap=[{"user": "ann", "secret_file": write(path, "the secret of ann")}, JOE])
    assert accounts.secret("ann") == b"the secret of ann"
    path.unlink()
    with caplog.at_level(logging.ERROR):
        assert accounts.secret("ann") is None
        assert accounts.secret("joe") == b"a secret of joe's"
    assert "ann" in caplog.text and str(path) in caplog.text
    assert "the secret of ann" not in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "chap: must be an array"),
        ({"chap": []}, "chap: must be an array"),
        ({"chap": ["joe"]}, r"chap\[0\]: must be a table"),
        ({"chap": [{"user": "joe"}]}, "either a secret or a secret_file"),
        ({"chap": [{**JOE, "secret_file": "/x"}]}, "either a secret or a secret_file"),
        ({"chap": [{"user": "joe", "secret_file": "x"}]}, "absolute path"),
        ({"chap": [{"user": "joe", "secret_file": "/nowhere/secret"}]}, "No such file"),
        ({"chap": [{"user": "joe", "secret_file": "/"}]}, "directory"),
        ({"chap": [{"user": "joe", "secret": "short"}]}, "has 5 bytes: RFC 7143 asks for 12"),
        ({"chap": [{"user": "joe", "secret": "x" * 256}]}, "more than 255"),
        ({"chap": [{"secret": JOE["secret"]}]}, "needs a user"),
        ({"chap": [{"user": 7, "secret": JOE["secret"]}]}, "user must be a string"),
        ({"chap": [{**JOE, "name": "x"}]}, "unknown key name"),
        ({"chap": [JOE, JOE]}, "is there twice"),
        ({"chap": [JOE], "mutual": {"user": "d", "secret": JOE["secret"]}}, "the two directions"),
        ({"chap": [JOE], "algorithms": ["MD4"]}, "out of MD5"),
        ({"chap": [JOE], "ignore_case": 1}, "true or false"),
        ({"chap": [JOE], "chaps": 1}, "unknown key"),
    ],
)
def test_options_that_cannot_be_are_refused_with_the_reason(options: dict[str, Any], reason: str) -> None:
    found = problems(**options)
    assert re.search(reason, found), found
    assert JOE["secret"] not in found


def test_secret_file_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "secret", "a secret of joe's", 0o644)
    assert "can be read by everybody" in problems(chap=[{"user": "joe", "secret_file": path}])


def test_short_secret_is_taken_where_that_is_allowed() -> None:
    assert source(chap=[{"user": "joe", "secret": "short"}], allow_short_secrets=True).secret("joe") == b"short"


def test_no_secret_is_in_a_repr() -> None:
    accounts = source(chap=[JOE], mutual=DISK)
    assert "secret of" not in repr(accounts) + repr(vars(accounts))
