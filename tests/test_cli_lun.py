"""``iscsid lun``: what its commands ask a server for, and what they show."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner, Result

from iscsid.cli_lun import lun

SNAPSHOT = {"id": "1", "name": "first", "size": 8 << 20, "vm_state_size": 0, "seconds": 1000000000}


class Asked:
    """What a command asked for, in the place of the function that asks."""

    def __init__(self) -> None:
        self.arguments: dict[str, Any] = {}
        self.answer: dict[str, Any] = {}

    def __call__(self, command: str, file: Any, runtime_dir: Any, as_json: bool, /, **arguments: Any) -> Any:
        assert (command, file, runtime_dir) == ("lun", None, "/x")
        self.arguments = arguments
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
    assert asked.arguments == {"target": "t", "lun": 3, **arguments}


@pytest.mark.parametrize(
    "words",
    [
        ("resize", "t", "3", "--shrink"),
        ("resize", "t", "3", "large"),
        ("snapshot", "create", "t", "3"),
        ("snapshot", "list", "t", "3", "x"),
        ("snapshot", "explode", "t", "3", "x"),
        ("snapshot", "create", "t", "three", "x"),
    ],
)
def test_nonsense_is_not_asked(asked: Asked, words: tuple[str, ...]) -> None:
    assert run(asked, *words).exit_code == 2
    assert not asked.arguments


def test_snapshots_are_shown_with_their_size_and_time(asked: Asked) -> None:
    asked.answer = {"snapshots": [SNAPSHOT], "left_out": 7}
    shown = run(asked, "snapshot", "list", "t", "3").output
    assert "first" in shown and "8 MiB" in shown and "2001-09-0" in shown and "and 7 more" in shown
    assert run(asked, "snapshot", "list", "t", "3", "--json").output == ""
