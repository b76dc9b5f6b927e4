"""``iscsid image``: words to options, verbs to back ends, answers to people and programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from iscsid import cli
from iscsid.cli_image import find_backend, print_answer, split_options, typed
from iscsid.errors import PluginError
from iscsid.plugin.info import BackendInfo, Option, Verb
from iscsid.plugin.manager import load


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.main, ["image", *map(str, words)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    assert run("create", path, "--size", "8 MiB", "-o", "lazy_refcounts=on", "-o", "refcount_bits=8").exit_code == 0
    return path


def test_image_is_made_described_and_checked(path: Path) -> None:
    told = json.loads(run("info", path, "--json").output)
    assert (told["size"], told["lazy_refcounts"], told["refcount_bits"]) == (8 << 20, True, 8)
    assert "lazy refcounts: yes" in run("info", path).output
    result = run("check", path)
    assert result.exit_code == 0
    assert "sound: yes" in result.output


def test_image_that_is_not_sound_has_exit_code_1(path: Path) -> None:
    assert run("snapshot", path, "-o", "action=create", "-o", "name=s").exit_code == 0
    with open(path, "r+b") as file:
        file.seek(2 * 65536)
        file.write(bytes(2))
    assert run("check", path).exit_code == 1
    assert run("check", path, "-o", "repair=true").exit_code == 0
    assert run("check", path).exit_code == 0


def test_image_is_resized_and_snapshots_are_listed(path: Path) -> None:
    assert run("resize", path, "--size", "16 MiB").exit_code == 0
    assert "name s" in run("snapshot", path, "-o", "action=create", "-o", "name=s").output
    assert "name s" in run("snapshot", path).output
    assert "snapshots: none" in run("snapshot", path, "-o", "action=delete", "-o", "name=s").output


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["info", "/nowhere"], 1, "no back end knows /nowhere"),
        (["info", "/nowhere", "-b", "qcow2"], 1, "/nowhere: No such file"),
        (["info", "/nowhere", "-b", "file"], 1, "cannot info"),
        (["info", "/nowhere", "-b", "filr"], 1, "did you mean"),
        (["create", "/nowhere/x", "--size", "1M", "-o", "clustersize=5"], 1, "clustersize: unknown option"),
        (["create", "/nowhere/x", "-o", "nonsense"], 2, "not KEY=VALUE"),
        (["create", "/nowhere/x", "--size", "much"], 1, "is not a size"),
        (["frobnicate", "x"], 2, "No such command"),
    ],
)
def test_what_is_wrong_is_told(words: list[str], code: int, message: str) -> None:
    result = run(*words)
    assert result.exit_code == code
    assert message in result.output


def test_help_tells_the_options_of_back_ends() -> None:
    output = run("create", "--help").output
    assert "Options (-o) of qcow2" in output
    assert "cluster_size" in output


VERB = Verb("create", "", (Option("size", "size"), Option("fast", "bool"), Option("count", "int")))
INFO = BackendInfo("x", "", (Option("path", "path"), Option("cache", "size")), verbs=(VERB,))


def test_words_are_split_by_who_knows_them() -> None:
    own, arguments = split_options(INFO, VERB, ["size=1M", "fast=on", "count=3", "cache=5", "path=y", "other=1"])
    assert own == {"cache": "5"}
    assert arguments == {"size": "1M", "fast": True, "count": 3, "path": "y", "other": "1"}
    with pytest.raises(click.UsageError):
        split_options(INFO, VERB, ["size"])


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("bool", "Yes", True),
        ("bool", "off", False),
        ("bool", "5", "5"),
        ("int", "-5", -5),
        ("int", "x", "x"),
        ("str", "1", "1"),
    ],
)
def test_words_get_the_type_of_their_option(kind: str, text: str, value: Any) -> None:
    assert typed(Option("x", kind), text) == value


def test_answer_is_printed_a_line_for_each_key(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer({"a_b": 1, "none": None, "yes": True, "empty": [], "many": [{"x": 1, "y": 2}, "word"]})
    assert capsys.readouterr().out == "a b: 1\nyes: yes\nempty: none\nmany:\n  x 1, y 2\n  word\n"


def test_back_end_is_named_or_found(path: Path) -> None:
    plugins = load()
    assert find_backend(plugins, str(path), "info", None) == "qcow2"
    assert find_backend(plugins, "anything", "info", "ram") == "ram"
    assert find_backend(plugins, "anything", "create", None) == "qcow2"
    with pytest.raises(PluginError):
        find_backend(plugins, "/nowhere", "info", None)
