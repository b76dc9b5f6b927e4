"""``iscsid lun``: what its commands ask a server for, and what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from iscsid import cli_lun
from iscsid.cli_lun import lun
from iscsid.errors import PluginError

SNAPSHOT = {"id": "1", "name": "first", "size": 8 << 20, "vm_state_size": 0, "seconds": 1000000000}


class Asked:
    """What a command asked for, in the place of the function that asks."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.answer: dict[str, Any] = {}

    def __call__(
        self, command: str, file: Any, runtime_dir: Any, as_json: bool, quiet: bool = False, /, **arguments: Any
    ) -> Any:
        assert (command, file, runtime_dir) == ("lun", None, "/x")
        assert (arguments.pop("target"), arguments.pop("lun")) == ("t", 3)
        self.calls.append(arguments)
        return self.answer


@pytest.fixture
def asked() -> Asked:
    return Asked()


def run(asked: Asked, *words: str) -> Result:
    return CliRunner().invoke(lun, [*words, "-d", "/x"], obj=asked)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (("eject", "t", "3", "--force"), {"verb": "eject", "force": True}),
        (("load", "t", "3"), {"verb": "load"}),
        (("resize", "t", "3"), {"verb": "resize"}),
        (("resize", "t", "3", "1 MiB"), {"verb": "resize", "size": 1 << 20, "shrink": False}),
        (("resize", "t", "3", "512", "--shrink"), {"verb": "resize", "size": 512, "shrink": True}),
        (("snapshot", "create", "t", "3", "x"), {"verb": "snapshot", "action": "create", "name": "x"}),
        (("snapshot", "apply", "t", "3", "x"), {"verb": "snapshot", "action": "apply", "name": "x"}),
        (("snapshot", "delete", "t", "3", "x"), {"verb": "snapshot", "action": "delete", "name": "x"}),
        (("snapshot", "list", "t", "3"), {"verb": "snapshot", "action": "list"}),
    ],
)
def test_command_asks_for_what_it_says(asked: Asked, words: tuple[str, ...], arguments: dict[str, Any]) -> None:
    done = run(asked, *words)
    assert done.exit_code == 0, done.output
    assert asked.calls == [arguments]


@pytest.mark.parametrize(
    "words",
    [
        ("resize", "t", "3", "--shrink"),
        ("resize", "t", "3", "large"),
        ("snapshot", "create", "t", "3"),
        ("snapshot", "list", "t", "3", "x"),
        ("snapshot", "explode", "t", "3", "x"),
        ("snapshot", "create", "t", "three", "x"),
        ("clone", "t", "3"),
        ("clone", "t", "3", "new", "--format", "vmdk"),
    ],
)
def test_nonsense_is_not_asked(asked: Asked, words: tuple[str, ...]) -> None:
    assert run(asked, *words).exit_code == 2
    assert not asked.calls


def test_snapshots_are_shown_with_their_size_and_time(asked: Asked) -> None:
    asked.answer = {"snapshots": [SNAPSHOT], "left_out": 7}
    shown = run(asked, "snapshot", "list", "t", "3").output
    assert "first" in shown and "8 MiB" in shown and "2001-09-0" in shown and "and 7 more" in shown
    assert run(asked, "snapshot", "list", "t", "3", "--json").output == ""


class Images:
    """Plugins whose one back end clones, or fails to."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.error: Exception | None = None

    def image(self, backend: str, options: Any, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((backend, options, verb, arguments))
        if self.error is not None:
            raise self.error
        return {"path": arguments["to"]}


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Images:
    found = Images()
    monkeypatch.setattr(cli_lun, "load_plugins", lambda: found)
    return found


def test_clone_is_made_of_a_snapshot_that_is_there_for_it_alone(asked: Asked, images: Images, tmp_path: Path) -> None:
    asked.answer = {"medium": {"backend": "qcow2", "options": {"path": "/disk"}}}
    to = str(tmp_path / "new")
    done = run(asked, "clone", "t", "3", to, "--format", "raw")
    assert done.exit_code == 0 and f"{to} is a clone" in done.output
    ((backend, options, verb, arguments),) = images.asked
    name = arguments["name"]
    assert (backend, options, verb) == ("qcow2", {"path": "/disk"}, "clone")
    assert arguments == {"name": name, "to": to, "format": "raw"}
    assert asked.calls == [
        {"verb": "clone", "destination": to},
        {"verb": "snapshot", "action": "create", "name": name},
        {"verb": "snapshot", "action": "delete", "name": name},
    ]


def test_snapshot_goes_when_the_clone_fails(asked: Asked, images: Images, tmp_path: Path) -> None:
    asked.answer = {"medium": {"backend": "qcow2", "options": {"path": "/disk"}}}
    images.error = PluginError("qcow2", "planted")
    assert isinstance(run(asked, "clone", "t", "3", str(tmp_path / "new")).exception, PluginError)
    assert asked.calls[-1]["action"] == "delete"


def test_snapshot_that_is_named_stays(asked: Asked, images: Images, tmp_path: Path) -> None:
    asked.answer = {"medium": {"backend": "qcow2", "options": {"path": "/disk"}}}
    to = str(tmp_path / "new")
    assert run(asked, "clone", "t", "3", to, "--snapshot", "then", "--json").output.strip().startswith("{")
    assert images.asked[0][3] == {"name": "then", "to": to, "format": "qcow2"}
    assert asked.calls == [{"verb": "snapshot", "action": "list"}, {"verb": "clone", "destination": to}]


def test_clone_that_the_server_has_made_is_told(asked: Asked, images: Images, tmp_path: Path) -> None:
    asked.answer = {"rows": [["target t lun 3", "cloned"]]}
    assert "is a clone" in run(asked, "clone", "t", "3", str(tmp_path / "new")).output
    assert not images.asked and len(asked.calls) == 1
