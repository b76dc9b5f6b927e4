"""Invariant: what ``keep`` said yes to is what the next ``load`` finds, and a crash leaves the old or the new file."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iscsid.daemon import keeper as module
from iscsid.daemon.errors import StartError
from iscsid.daemon.keeper import Keeper
from iscsid.shared import store

KEPT = {"reservations": {"holder": ["iqn.x:host", 1, "iqn.x:disk", 1]}}


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper(str(tmp_path / "deep" / "state"))
    yield keeper
    keeper.close()


def keep(keeper: Keeper, unit: str, kept: dict[str, Any] | None) -> bool:
    """Whether it could be kept."""
    results: list[bool] = []
    keeper.keep(unit, kept, results.append)
    assert results == [], "the answer comes from the loop"
    assert keeper._pool.wait(10.0)
    (ok,) = results
    return ok


def test_what_was_kept_is_loaded(keeper: Keeper) -> None:
    assert keep(keeper, "S0", KEPT)
    assert keeper.load(["S0", "S1"]) == {"S0": KEPT}


def test_server_without_a_state_directory_has_nothing_kept(keeper: Keeper) -> None:
    assert keeper.load(["S0"]) == {}
    assert not os.path.exists(keeper.directory), "nothing is made to look for something"


def test_file_in_place_of_the_directory_is_nothing_kept(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    keeper = Keeper(str(tmp_path / "state"))
    assert keeper.load(["S0"]) == {}
    assert not keep(keeper, "S0", KEPT)
    keeper.close()


def test_later_state_replaces_the_earlier_one(keeper: Keeper) -> None:
    assert keep(keeper, "S0", KEPT)
    assert keep(keeper, "S0", {"mode": 1})
    assert keeper.load(["S0"]) == {"S0": {"mode": 1}}
    assert os.listdir(keeper.directory) == [store.file_name("S0")], "no other file stays behind"


def test_nothing_to_keep_removes_the_file(keeper: Keeper) -> None:
    assert keep(keeper, "S0", KEPT)
    assert keep(keeper, "S0", None)
    assert keep(keeper, "S0", None), "and is content where there is none"
    assert keeper.load(["S0"]) == {}
    assert os.listdir(keeper.directory) == []


def test_nothing_to_keep_makes_no_directory(keeper: Keeper) -> None:
    assert keep(keeper, "S0", None)
    assert not os.path.exists(keeper.directory)


def test_keys_are_for_the_server_alone_to_read(keeper: Keeper) -> None:
    assert keep(keeper, "S0", KEPT)
    assert stat.S_IMODE(os.stat(keeper.directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(keeper.path("S0")).st_mode) == 0o600


def test_file_is_on_the_medium_before_it_has_its_name_and_the_name_before_the_answer(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keep(keeper, "S1", KEPT)
    calls: list[str] = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            target = args[0] if isinstance(args[0], str) else os.readlink(f"/proc/self/fd/{args[0]}")
            calls.append(f"{name} {os.path.basename(target)}")
            return real(*args)

        monkeypatch.setattr(os, name, call)

    spy("fsync")
    spy("rename")
    new = store.file_name("S0") + ".new"
    assert keep(keeper, "S0", KEPT)
    assert calls == [f"fsync {new}", f"rename {new}", f"fsync {module.DIRECTORY}"]
    calls.clear()
    assert keep(keeper, "S0", None)
    assert calls == [f"fsync {module.DIRECTORY}"]


@pytest.mark.parametrize("failing", ["fsync", "rename"])
def test_failure_is_told_and_leaves_the_old_file(
    keeper: Keeper, failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert keep(keeper, "S0", KEPT)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, fail)
        assert not keep(keeper, "S0", {"mode": 1})
    assert "the reservations of unit S0 cannot be kept: [Errno 28] No space left on device" in caplog.text
    assert keeper.load(["S0"]) == {"S0": KEPT}
    assert os.listdir(keeper.directory) == [store.file_name("S0")]


def test_rest_of_a_crash_is_overwritten(keeper: Keeper) -> None:
    assert keep(keeper, "S0", KEPT)
    Path(keeper.path("S0") + ".new").write_text("half of some" * 1000)
    assert keeper.load(["S0"]) == {"S0": KEPT}
    assert keep(keeper, "S0", {"mode": 1})
    assert keeper.load(["S0"]) == {"S0": {"mode": 1}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("{}", "not the state of a logical unit"),
        (json.dumps({"version": 9, "unit": "S0", "kept": {}}), "version 9"),
        ("\xff", "ascii"),
    ],
)
def test_file_that_cannot_be_understood_refuses_the_start_and_says_what_to_do(
    keeper: Keeper, text: str, words: str
) -> None:
    os.makedirs(keeper.directory)
    Path(keeper.path("S0")).write_bytes(text.encode("latin-1"))
    with pytest.raises(StartError, match="remove the file to start without them") as caught:
        keeper.load(["S0"])
    assert keeper.path("S0") in str(caught.value)
    assert words in str(caught.value)


def test_file_that_cannot_be_read_refuses_the_start(keeper: Keeper) -> None:
    os.makedirs(keeper.path("S0"))
    with pytest.raises(StartError, match=r"reservations of unit S0: .*: Is a directory"):
        keeper.load(["S0"])


def test_files_of_units_that_are_gone_stay(keeper: Keeper) -> None:
    assert keep(keeper, "S0", KEPT)
    assert keeper.load(["S1"]) == {}
    assert keeper.load(["S0"]) == {"S0": KEPT}


def test_states_of_one_unit_are_written_in_order(keeper: Keeper) -> None:
    order: list[int] = []
    for number in range(20):
        keeper.keep("S0", {"number": number}, lambda ok, number=number: order.append(number))  # type: ignore[misc]
    assert keeper._pool.wait(10.0)
    assert order == list(range(20))
    assert keeper.load(["S0"]) == {"S0": {"number": 19}}
