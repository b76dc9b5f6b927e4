"""The command ``iscsid plugin``: what there is, a new one, and whether one keeps the contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from iscsid.cli import Exit, main
from iscsid.plugin.info import API_VERSION
from iscsid.plugin.manager import load

BROKEN = """
from iscsid.plugin import BackendInfo, Device, hookimpl

class Broken(Device):
    size = 4 << 20
    def read_into(self, buffer, offset):
        buffer[:-1] = bytes(len(buffer) - 1)
    def write(self, data, offset):
        {write}

@hookimpl
def iscsid_backend_info():
    return BackendInfo("broken", "reads too little", (), api={api})

@hookimpl
def iscsid_open(options, role):
    return Broken()
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["plugin", *map(str, words)])


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.py"
    path.write_text(BROKEN.format(write="pass", api=1))
    return path


# list


def test_list_shows_every_plugin_with_its_options() -> None:
    lines = {line.split()[0]: line for line in run("list").output.splitlines()}
    plugins = load()
    assert {*plugins.backends, *plugins.layers, *plugins.auth_sources} <= set(lines)
    assert "PATH, size" in lines["file"]
    assert "iscsid" in lines["file"]
    assert "any" in lines["chap"]


def test_list_shows_strangers_with_their_file_and_failures_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN.format(write="pass", api=1))
    (tmp_path / "newer.py").write_text(BROKEN.format(write="pass", api=API_VERSION + 1))
    (tmp_path / "typo.py").write_text("import nothing_of_this_name")
    result = run("list", "--plugin-dir", tmp_path)
    assert result.exit_code == Exit.OK
    assert str(tmp_path / "broken.py") in result.output
    reason = f"{tmp_path / 'newer.py'}: made for API {API_VERSION + 1}; this server has {API_VERSION}"
    assert f"left out: newer: {reason}" in result.output
    reason = f"{tmp_path / 'typo.py'}: No module named 'nothing_of_this_name' (typo.py, line 1)"
    assert f"left out: typo: {reason}" in result.output


def test_check_of_what_could_not_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "typo.py").write_text("import nothing_of_this_name")
    result = run("check", "typo", "--plugin-dir", tmp_path)
    assert result.exit_code == Exit.FAILED
    assert f"plugin typo: {tmp_path / 'typo.py'}: No module named" in result.stderr


def test_list_for_programs_has_all_of_each_option() -> None:
    answer = json.loads(run("list", "--json").output)
    assert answer["api"] == API_VERSION
    (file,) = [one for one in answer["plugins"] if one["name"] == "file"]
    assert file["kind"] == "back end"
    size = next(option for option in file["options"] if option["name"] == "size")
    assert {"type", "required", "default", "doc", "minimum", "maximum", "choices"} <= set(size)


# new


def test_new_tells_what_it_wrote(tmp_path: Path) -> None:
    result = run("new", "shelf", "--in", tmp_path)
    assert result.exit_code == Exit.OK
    assert all(Path(line).is_file() for line in result.output.splitlines())
    assert run("new", "shelf", "--in", tmp_path).exit_code == Exit.FAILED


def test_new_of_a_taken_or_bad_name_writes_nothing(tmp_path: Path) -> None:
    assert "there is one of this name already" in run("new", "file", "--in", tmp_path).stderr
    assert run("new", "No", "--in", tmp_path).exit_code == Exit.USAGE
    assert not list(tmp_path.iterdir())


# check


def test_check_of_a_good_back_end_tells_what_it_can() -> None:
    result = run("check", "ram", "-o", "size=4 MiB")
    assert result.exit_code == Exit.OK
    assert "does itself  write, discard" in result.output
    assert "is emulated  fua" in result.output
    assert "is missing   flush" in result.output
    assert "0 violated" in result.output
    assert "holds: " not in result.output
    assert "holds: facts fit together" in run("check", "ram", "-o", "size=4 MiB", "-v").output


def test_check_of_a_layer_runs_over_memory_and_over_a_file() -> None:
    result = run("check", "log", "-o", "calls=flush")
    assert result.exit_code == Exit.OK
    assert "layer log over ram" in result.output
    assert "layer log over file" in result.output


def test_check_of_a_layer_keeps_nothing_from_one_medium_for_the_next(tmp_path: Path) -> None:
    result = run("check", "checksum", "-o", f"path={tmp_path / 'sums'}")
    assert result.exit_code == Exit.OK, result.output
    assert result.output.count("0 violated") == 2
    assert not list(tmp_path.iterdir())


def test_check_of_the_null_device_knows_that_it_forgets() -> None:
    assert run("check", "null", "-o", "size=4 MiB").exit_code == Exit.OK


def test_check_of_a_broken_back_end_fails_and_says_how(broken: Path) -> None:
    result = run("check", broken, "--overwrite")
    assert result.exit_code == Exit.FAILED
    assert "VIOLATED: first and last block are reached: the first block: byte " in result.output
    assert "The device is as large as it says." in result.output


def test_check_that_hangs_ends(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(BROKEN.format(write="import threading; threading.Event().wait()", api=1))
    result = run("check", path, "--overwrite", "--seconds", "0.2")
    assert result.exit_code == Exit.FAILED
    assert "HANGS: " in result.output
    assert "no answer in 0.2 seconds" in result.output


def test_check_never_touches_a_medium_with_data(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"precious".ljust(4 << 20, b"\0"))
    result = run("check", "file", "-o", f"path={disk}")
    assert result.exit_code == Exit.FAILED
    assert "there is data on it" in result.stderr
    assert disk.read_bytes().startswith(b"precious")
    assert run("check", "file", "-o", f"path={disk}", "--overwrite").exit_code == Exit.OK


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("fil",), Exit.FAILED, "there is no such back end or layer (did you mean"),
        (("file",), Exit.FAILED, "path: missing"),
        (("ram", "-o", "size"), Exit.USAGE, "not KEY=VALUE"),
        (("ram", "-o", "size=1 MiB"), Exit.FAILED, "the checks need"),
        (("ram", "-o", "sise=1 MiB", "-o", "size=4M"), Exit.FAILED, "sise: unknown option"),
        (("/nowhere/at/all.py",), Exit.FAILED, "all"),
    ],
)
def test_check_of_what_cannot_be_checked_says_why(words: tuple[str, ...], code: Exit, reason: str) -> None:
    result = run("check", *words)
    assert result.exit_code == code
    assert reason in result.stderr
