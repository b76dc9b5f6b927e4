"""``iscsid disk``: the command line, against a target of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from iscsid import cli, cli_disk
from iscsid.disk.job import Job
from iscsid.errors import InitiatorError
from iscsid.testing import TestTarget

MIB = 1 << 20
OTHER = "iqn.2026-11.org.example:other"
SECRET = "secret of 16 b.."
URL = "iscsi://192.0.2.1/iqn.2026-11.org.example:disk0/0"

Targets = Callable[..., TestTarget]


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.main, ["disk", *map(str, words)])


def answer_of(*words: object) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("LIBISCSI_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["bench", URL, "--mix", "50"], 2, "say --write-to-this-disk"),
        (["bench", URL, "--size", "4Q"], 2, "'4Q' is not a size"),
        (["bench", URL, "--depth", "0"], 2, "0 is not in the range"),
        (["bench", URL, "--plot", "x.jpg"], 1, "x.jpg: a plot is an .svg or a .png file"),
        (["reserve", URL], 2, "Missing option '--key'"),
        (["reserve", URL, "--key", "0"], 2, "'0' is not a key"),
        (["reserve", URL, "--key", "0x1FFFFFFFFFFFFFFFF"], 2, "is not a key"),
        (["reserve", URL, "--key", "1", "--type", "mine"], 2, "'mine' is not one of"),
        (["info", "http://192.0.2.1/"], 1, "iscsid: an iSCSI URL begins with iscsi://"),
        (["info", "iscsi://me%@192.0.2.1/iqn.2026-11.org.example:disk0/0"], 1, "iscsid: the URL names a user without"),
        (["discover", "x y"], 1, "is not host[:port]"),
        (["copy", "/nowhere/a", "/nowhere/b"], 1, "iscsid: /nowhere/a: No such file or directory\n"),
        (["frobnicate"], 2, "No such command"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(words: list[str], code: int, message: str) -> None:
    result = run(*words)
    assert message in result.output
    assert result.exit_code == code


def test_help_tells_of_the_environment() -> None:
    assert "LIBISCSI_CHAP_TARGET_PASSWORD" in run("--help").output


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("4K", 4096), ("4k", 4096), ("1M", MIB), ("64KiB", 65536), ("1 M", None), ("", None)],
)
def test_sizes_have_units(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(click.BadParameter):
            cli_disk.size_of(text)
    else:
        assert cli_disk.size_of(text) == size


def test_isid_is_the_same_for_a_name_and_of_the_type_random() -> None:
    one, other = cli_disk.stable_isid("iqn.2026-11.org.example:a"), cli_disk.stable_isid("iqn.2026-11.org.example:b")
    assert one == cli_disk.stable_isid("iqn.2026-11.org.example:a") != other
    assert one >> 40 == other >> 40 == 0x80


def test_command_to_go_on_has_no_secrets_and_its_options() -> None:
    job = Job("/srv/my image", f"iscsi://me%hidden@192.0.2.1/{OTHER}/0", verify=True, sparse=False)
    assert cli_disk._again(job) == (
        f"iscsid disk copy '/srv/my image' iscsi://192.0.2.1:3260/{OTHER}/0 --resume --verify --no-sparse"
    )


# -- credentials -------------------------------------------------------------------------------------------------------


def test_credentials_come_from_the_url_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli_disk.credentials_for(URL) is None
    monkeypatch.setenv("LIBISCSI_CHAP_USERNAME", "me")
    with pytest.raises(InitiatorError, match="belong together"):
        cli_disk.credentials_for(URL)
    monkeypatch.setenv("LIBISCSI_CHAP_PASSWORD", SECRET)
    monkeypatch.setenv("LIBISCSI_CHAP_TARGET_USERNAME", "you")
    monkeypatch.setenv("LIBISCSI_CHAP_TARGET_PASSWORD", "other")
    found = cli_disk.credentials_for(URL)
    assert found is not None
    assert (found.user, found.secret, found.target_user, found.target_secret) == (
        "me",
        SECRET.encode(),
        "you",
        b"other",
    )
    assert cli_disk.credentials_for(URL.replace("//", "//a%b@")) is None
    with pytest.raises(InitiatorError, match="the other needs its own"):
        cli_disk._credentials_of_both(URL, URL.replace("//", "//a%b@"))
    assert cli_disk._credentials_of_both("/srv/x", URL) == found
    assert cli_disk._credentials_of_both("/srv/x", "/srv/y") is None


@pytest.mark.process
def test_secret_of_the_environment_lets_in(iscsid_targets: Targets, monkeypatch: pytest.MonkeyPatch) -> None:
    target = iscsid_targets(chap=("me", SECRET), size="1 MiB")
    url = f"iscsi://{target.portal}/{target.name}/0"
    assert run("info", url).exit_code == 1
    monkeypatch.setenv("LIBISCSI_CHAP_USERNAME", "me")
    monkeypatch.setenv("LIBISCSI_CHAP_PASSWORD", SECRET)
    assert answer_of("info", url)["size"] == MIB
    monkeypatch.setenv("LIBISCSI_CHAP_PASSWORD", "wrong wrong wrong")
    result = run("info", url)
    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "wrong wrong" not in result.output


# -- discover, info ----------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.iscsid(luns=[{"size": "8 MiB", "serial": "S1"}, {"size": "1 MiB", "product": "SMALL"}])
def test_targets_and_disks_are_listed_and_described(iscsid_target: TestTarget) -> None:
    (found,) = answer_of("discover", iscsid_target.portal)
    assert found == {"name": iscsid_target.name, "portals": [f"{iscsid_target.portal},1"]}
    assert iscsid_target.name in run("discover", iscsid_target.portal).stdout
    whole = iscsid_target.url().removesuffix("/0")
    assert [unit["product"] for unit in answer_of("info", whole)] == ["VIRTUAL-DISK", "SMALL"]
    assert "SMALL" in run("info", whole).stdout
    facts = answer_of("info", iscsid_target.url())
    assert (facts["serial"], facts["size"], facts["mapped"]) == ("S1", 8 * MIB, 0)
    lines = run("info", iscsid_target.url()).stdout
    assert "8 MiB (8388608 bytes)" in lines
    assert "thin, unmapped blocks read as zeros" in lines
    result = run("info", iscsid_target.url(5))
    assert result.exit_code == 1
    assert result.output.startswith("iscsid: ")


# -- copy --------------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.iscsid(luns=[{"size": "8 MiB"}, {"size": "8 MiB"}, {"size": "1 MiB"}])
def test_copies_go_every_way(iscsid_target: TestTarget, tmp_path: Path, state_home: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(3 * MIB) + bytes(2 * MIB) + os.urandom(MIB + 13))
    size = image.stat().st_size
    result = run("copy", image, iscsid_target.url(0), "--verify")
    assert result.exit_code == 0, result.output
    assert "both ends compare equal" in result.output
    assert run("copy", iscsid_target.url(0), iscsid_target.url(1), "--no-sparse", "-q").output == ""
    assert run("copy", iscsid_target.url(1), tmp_path / "back", "--depth", "3").exit_code == 0
    assert (tmp_path / "back").read_bytes() == image.read_bytes().ljust(8 * MIB, b"\0")
    assert run("copy", image, tmp_path / "other").exit_code == 0
    assert (tmp_path / "other").read_bytes() == image.read_bytes()
    result = run("copy", image, iscsid_target.url(2))
    assert (result.exit_code, f"too small: it has 1048576 bytes, and {size}" in result.output) == (1, True)
    result = run("copy", image, tmp_path / "other")
    assert (result.exit_code, "exists; --force overwrites it" in result.output) == (1, True)
    assert not list(state_home.rglob("*.json"))
    assert not list(tmp_path.glob("*.iscsid-copy"))


def test_interrupt_tells_how_to_go_on_and_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(os.urandom(4 * MIB))
    begin = cli_disk._interruptible

    def interrupted() -> Any:
        context = begin()
        enter = context.__enter__

        class Entered:
            def __enter__(self) -> Any:
                stop = enter()
                signal.raise_signal(signal.SIGTERM)
                return stop

            def __exit__(self, *error: Any) -> Any:
                return context.__exit__(*error)

        return Entered()

    monkeypatch.setattr(cli_disk, "_interruptible", interrupted)
    result = run("copy", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1
    again = f"iscsid disk copy {tmp_path}/a {tmp_path}/b --resume"
    assert result.output == f"iscsid: interrupted; to go on: {again}\n"
    monkeypatch.undo()
    assert run(*again.split()[2:]).exit_code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# -- bench -------------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.iscsid(size="4 MiB")
def test_bench_tells_figures_and_draws_them(iscsid_target: TestTarget, tmp_path: Path) -> None:
    words = ("bench", iscsid_target.url(), "--seconds", "0.5", "--depth", "8")
    found = answer_of(*words, "--mix", "50", "--write-to-this-disk", "--sessions", "2", "--plot", tmp_path / "x.svg")
    for kind in ("read", "write", "total"):
        figures = found[kind]
        assert figures["commands"] > 10
        assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["p99.9_us"] <= figures["max_us"]
        assert figures["mb_per_second"] == pytest.approx(figures["iops"] * 4096 / 1e6, rel=0.01, abs=0.01)
    assert found["load"]["sessions"] == 2
    assert (tmp_path / "x.svg").read_bytes().startswith(b"<?xml")
    table = run(*words, "--sequential", "--size", "64K").stdout
    assert [line.split()[0] for line in table.splitlines()] == ["COMMANDS", "read"]
    result = run(*words, "--size", "1000")
    assert (result.exit_code, "multiples of 512" in result.output) == (1, True)


# -- reservations ------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.iscsid(size="1 MiB")
def test_reservation_is_held_between_commands(iscsid_target: TestTarget) -> None:
    url = iscsid_target.url()
    assert run("keys", url).output == "registered: nobody\nreserved: no\n"
    assert run("reserve", url, "--key", "0x12", "--type", "exclusive-access").exit_code == 0
    assert run("keys", url).output == "registered: 0x12\nreserved: exclusive-access by 0x12\n"
    result = run("reserve", url, "--key", "5", "--initiator-name", OTHER)
    assert result.exit_code == 1
    assert result.output == f"iscsid: {url} is reserved: exclusive-access by 0x12\n"
    assert answer_of("keys", url)["keys"] == ["0x12"]
    result = run("release", url, "--key", "0x13")
    assert (result.exit_code, "not registered with the key 0x13" in result.output) == (1, True)
    assert run("release", url, "--key", "0x12", "--stay-registered").exit_code == 0
    assert answer_of("keys", url) | {"generation": 0} == {"generation": 0, "keys": ["0x12"], "reservation": None}
    assert run("reserve", url, "--key", "0x14").exit_code == 0  # a new key in place of the old one
    assert run("release", url, "--key", "0x14").exit_code == 0
    assert answer_of("keys", url)["keys"] == []


@pytest.mark.process
@pytest.mark.iscsid(size="1 MiB")
def test_reservation_is_taken_away_and_all_are_cleared(iscsid_target: TestTarget) -> None:
    url, other = iscsid_target.url(), ("--initiator-name", OTHER)
    assert run("reserve", url, "--key", "1").exit_code == 0
    result = run("preempt", url, "--key", "2", "--victim", "9", *other)
    assert (result.exit_code, "nobody is registered with the key 0x9" in result.output) == (1, True)
    assert answer_of("keys", url)["keys"] == ["0x1"]
    assert run("preempt", url, "--key", "2", "--victim", "1", *other, "--abort").exit_code == 0
    assert answer_of("keys", url)["reservation"] == {"key": "0x2", "type": "write-exclusive"}
    assert run("clear", url, "--key", "3").exit_code == 0
    assert answer_of("keys", url)["keys"] == []
