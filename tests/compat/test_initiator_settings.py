"""What variables come to, and what is said of those that make no sense."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iscsid.compat import initiator_settings
from iscsid.compat.initiator_settings import (
    DEFAULTS,
    LOGGER,
    Settings,
    SettingsError,
    debug,
    find_targets,
    log_in,
    read,
    trace,
)
from iscsid.compat.variables import Variables
from iscsid.errors import ConnectionFailed, InitiatorError, LoginRefused
from iscsid.initiator import TargetPortal, TargetRecord

NAME = "iqn.2026-11.org.example:disk0"


@pytest.fixture
def auths(tmp_path: Path) -> Path:
    path = tmp_path / "auths"
    path.write_text("joe:chap:secretsecret1\ntarget:chap:other\\:secret2\nann:none\n")
    return path


def variables(**values: object) -> Variables:
    made = Variables()
    made.reset({**DEFAULTS, **{name.replace("_", " "): str(value) for name, value in values.items()}})
    return made


def test_defaults_are_the_original_s() -> None:
    assert dict(DEFAULTS) == {
        "address family": "unspec",
        "digest type": "none",
        "auth type": "none",
        "mutual auth": "none",
        "target hostname": "localhost",
        "target port": "3260",
    }
    settings = read(variables())
    assert (settings.hostname, settings.port, settings.family) == ("localhost", 3260, socket.AF_UNSPEC)
    assert settings.instance is None
    assert settings.options["credentials"] is None
    assert settings.options["timeout"] == settings.options["recovery_timeout"] == 30
    assert settings.options["login_timeout"] == 5
    assert read(Variables()) == settings  # set_defaults was forgotten


@pytest.mark.parametrize(
    ("kind", "header", "data"),
    [("none", False, False), ("header", True, False), ("data", False, True), ("both", True, True), ("all", True, True)],
)
def test_digest_type_says_what_is_insisted_on(kind: str, header: bool, data: bool) -> None:
    options = read(variables(digest_type=kind)).options
    assert (options.get("header_digest", False), options.get("data_digest", False)) == (header, data)


@pytest.mark.parametrize(
    ("text", "family"), [("4", socket.AF_INET), ("6", socket.AF_INET6), ("unspec", socket.AF_UNSPEC)]
)
def test_address_family_is_used(text: str, family: int) -> None:
    assert read(variables(address_family=text)).family == family


def test_a_user_is_dropped_without_an_auth_type(auths: Path) -> None:
    assert read(variables(user="joe", auths_file=auths)).options["credentials"] is None


@pytest.mark.parametrize("kind", ["chap", "kerberos", "srp", "CHAP"])
def test_any_auth_type_with_a_user_is_chap(auths: Path, kind: str) -> None:
    credentials = read(variables(user="JOE", auth_type=kind, auths_file=auths)).options["credentials"]
    assert (credentials.user, credentials.secret) == ("JOE", b"secretsecret1")
    assert not credentials.target_secret


def test_mutual_auth_has_the_target_prove_itself(auths: Path) -> None:
    known = {"user": "joe", "auth_type": "chap", "mutual_auth": "chap", "auths_file": auths}
    credentials = read(variables(**known, target_user="target")).options["credentials"]
    assert (credentials.target_user, credentials.target_secret) == ("target", b"other:secret2")
    with pytest.raises(SettingsError, match="target user"):
        read(variables(**known))


def test_no_secret_is_shown(auths: Path) -> None:
    assert "secret" not in repr(read(variables(user="joe", auth_type="chap", auths_file=auths)))


def test_other_variables_of_ours_are_used() -> None:
    settings = read(variables(timeout="1.5", initiator_name="iqn.2026-11.org.example:me", target_instance="3"))
    assert settings.options["timeout"] == settings.options["login_timeout"] == 1.5
    assert settings.options["initiator_name"] == "iqn.2026-11.org.example:me"
    assert settings.instance == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target_port": "0"}, "target port `0'"),
        ({"target_port": "iscsi"}, "target port `iscsi'"),
        ({"target_port": "65536"}, "1 to 65535"),
        ({"target_instance": "-1"}, "target instance `-1'"),
        ({"digest_type": "md5"}, "none, header, data, both, all"),
        ({"auth_type": "pap"}, "none, chap, kerberos, srp"),
        ({"auth_type": "chap"}, "user must be specified with -u if using CHAP authentication"),
        ({"auth_type": "chap", "user": "joe", "auths_file": "/nonexistent/auths"}, "can't open `/nonexistent/auths'"),
        ({"mutual_auth": "chap"}, "needs an auth type"),
        ({"timeout": "0"}, "timeout `0'"),
        ({"timeout": "soon"}, "timeout `soon'"),
        ({"timeout": "nan"}, "timeout `nan'"),
    ],
)
def test_what_makes_no_sense_is_told(values: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read(variables(**values))
    assert words in str(raised.value)


def test_a_user_without_a_secret_is_told(auths: Path, capsys: pytest.CaptureFixture[str]) -> None:
    auths.write_text(auths.read_text() + "bad:pap:x\n")
    for user in ("ann", "nobody"):
        with pytest.raises(SettingsError, match=f"for `{user}' was found"):
            read(variables(user=user, auth_type="chap", auths_file=auths))
    assert f"{auths}:4: Warning" in capsys.readouterr().err


# -- connections -------------------------------------------------------------------------------------------------------


class FakeConnect:
    """Stands for ``connect``: which portals fail, and how."""

    def __init__(self, **failures: InitiatorError) -> None:
        self.failures = failures
        self.urls: list[str] = []

    def __call__(self, url: str, **_options: Any) -> str:
        self.urls.append(url)
        for host, failure in self.failures.items():
            if host in url:
                raise failure
        return "client"


def fake(monkeypatch: pytest.MonkeyPatch, **failures: InitiatorError) -> FakeConnect:
    connect = FakeConnect(**failures)
    monkeypatch.setattr(initiator_settings, "connect", connect)
    return connect


SETTINGS = Settings("localhost", 3260, socket.AF_UNSPEC, None, {})
PORTALS = (TargetPortal("one", 3260, 1), TargetPortal("two", 3261, 2))


def test_login_goes_on_to_the_next_portal(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = fake(monkeypatch, one=ConnectionFailed("refused"))
    client, portal = log_in(SETTINGS, NAME, PORTALS)
    assert (client, portal) == ("client", PORTALS[1])
    assert connect.urls == [f"iscsi://one:3260/{NAME}", f"iscsi://two:3261/{NAME}"]


def test_login_ends_with_the_last_reason_or_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, one=ConnectionFailed("refused"), two=ConnectionFailed("no route"))
    with pytest.raises(ConnectionFailed, match="no route"):
        log_in(SETTINGS, NAME, PORTALS)
    connect = fake(monkeypatch, one=LoginRefused(0x0201, "wrong secret"))
    with pytest.raises(LoginRefused):
        log_in(SETTINGS, NAME, PORTALS)
    assert len(connect.urls) == 1
    with pytest.raises(InitiatorError, match="no address"):
        log_in(SETTINGS, NAME, ())


def test_login_keeps_to_the_family(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    four = Settings("localhost", 3260, socket.AF_INET, None, {})
    _, portal = log_in(four, NAME, (TargetPortal("localhost", 3260, 1),))
    assert portal.host == "127.0.0.1"
    with pytest.raises(ConnectionFailed):
        log_in(four, NAME, (TargetPortal("::1", 3260, 1),))


def test_discovery_asks_the_host_in_its_family_and_without_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def discover(portal: str, **options: Any) -> list[TargetRecord]:
        asked.append((portal, options))
        return [TargetRecord(NAME, PORTALS)]

    monkeypatch.setattr(initiator_settings, "discover", discover)
    settings = Settings("localhost", 3261, socket.AF_INET, None, {"timeout": 5, "header_digest": True})
    assert [record.name for record in find_targets(settings)] == [NAME]
    assert asked == [("127.0.0.1:3261", {"timeout": 5})]


# -- traces ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet() -> Iterator[None]:
    root = logging.getLogger(LOGGER)
    loggers = [root, *(logging.getLogger(f"{LOGGER}.{name}") for name in initiator_settings.TRACES)]
    before = [(logger, logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.mark.usefixtures("quiet")
def test_debug_tells_what_it_is_asked_for_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    debug("nonsense")
    trace("net", "not %s", "told")
    debug("net")
    trace("net", "to %s", "one")
    trace("scsi", "not told")
    debug("all")
    trace("scsi", "read %d", 5)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[2] for line in lines] == ["to one", "read 5"]
    assert lines[0].startswith("pid ")
