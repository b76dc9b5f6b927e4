"""iscsi-target(8): its options, and what it tells of those that it does not have."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from iscsid.compat import iscsi_target
from iscsid.compat.iscsi_target import main
from iscsid.compat.libiscsi_target import iscsi_target_getvar, iscsi_target_t


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[iscsi_target_t]]:
    """The handles that were started: no further than that."""
    handles: list[iscsi_target_t] = []

    def start(tgt: iscsi_target_t) -> int:
        handles.append(tgt)
        return -1

    handlers = logging.getLogger().handlers[:]
    monkeypatch.setattr(iscsi_target, "iscsi_target_start", start)
    yield handles
    logging.getLogger().handlers[:] = handlers


def run(*words: str) -> Any:
    return CliRunner().invoke(main, words)


NAMES = {
    "iqn": "iqn.1994-04.org.netbsd.iscsi-target",
    "target port": "3260",
    "address family": "unspec",
    "max sessions": "16",
    "configfile": "/etc/iscsi/targets",
    "blocklen": "512",
    "debug": None,
    "auth type": None,
}


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ([], {}),
        (["-4"], {"address family": "4"}),
        (["-6"], {"address family": "6"}),
        (["-46"], {"address family": "6"}),
        (["-6", "-4"], {"address family": "4"}),
        (["-b", "4096"], {"blocklen": "4096"}),
        (["-b4096"], {"blocklen": "4096"}),
        (["-4Dp", "3261"], {"address family": "4", "target port": "3261"}),
        (["-f", "/etc/x"], {"configfile": "/etc/x"}),
        (["-s", "127"], {"max sessions": "127"}),
        (["-t", "iqn.2026-11.org.example"], {"iqn": "iqn.2026-11.org.example"}),
        (["-v", "net", "-v", "scsi"], {"debug": "scsi"}),
        (["-p", "1", "name", "-p", "2"], {"target port": "1"}),
        (["-p", "1", "--", "name", "-p", "2"], {"target port": "1"}),
        (["--no-auth"], {"auth type": "none"}),
    ],
)
def test_options_set_variables(seen: list[iscsi_target_t], words: list[str], changes: dict[str, str]) -> None:
    result = run(*words)
    assert (result.exit_code, result.stderr) == (1, "iscsi_target_start() failed\n")
    assert {name: iscsi_target_getvar(seen[0], name) for name in NAMES} == {**NAMES, **changes}


def test_relative_file_is_found_from_the_root_too(seen: list[iscsi_target_t]) -> None:
    run("-f", "some/file")
    assert iscsi_target_getvar(seen[0], "configfile") == os.path.abspath("some/file")


@pytest.mark.parametrize("number", ["0", "128", "-1", "many"])
def test_number_of_sessions_out_of_range_is_told_and_passed_over(seen: list[iscsi_target_t], number: str) -> None:
    result = run("-s", number)
    assert "ignored" in result.stderr
    assert iscsi_target_getvar(seen[0], "max sessions") == "16"


def test_unknown_option_is_told_and_passed_over(seen: list[iscsi_target_t]) -> None:
    result = run("-4xy", "-p", "3261", "-z")
    assert [line for line in result.stderr.splitlines() if "unknown" in line] == [
        f"iscsi-target: unknown option -- {letter}" for letter in "xyz"
    ]
    assert iscsi_target_getvar(seen[0], "address family") == "4"
    assert iscsi_target_getvar(seen[0], "target port") == "3261"


def test_option_without_its_argument_is_a_usage_error() -> None:
    result = run("-p")
    assert result.exit_code == 2
    assert "requires an argument" in result.stderr


def test_version_is_that_of_the_original(seen: list[iscsi_target_t]) -> None:
    result = run("-V", "-p")
    assert result.exit_code in (0, 2)
    result = run("-V")
    assert result.exit_code == 0
    assert result.stdout == (
        '"netbsd-iscsi" 20111006\nPlease send all bug reports to Alistair Crooks <agc@NetBSD.org>\n'
    )
    assert seen == []


def test_help_names_every_option() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for option in ("-4", "-6", "-b", "-D", "-f", "-p", "-s", "-t", "-v", "-V", "--auths", "--pid-file"):
        assert f" {option}" in result.stdout


def test_pid_file_of_another_process_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("1\n")
    iscsi_target._remove_pidfile(str(path))
    assert path.exists()
    path.write_text(f"{os.getpid()}\n")
    iscsi_target._remove_pidfile(str(path))
    assert not path.exists()
    iscsi_target._remove_pidfile(str(path))
