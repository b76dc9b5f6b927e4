"""The command ``iscsid layer``: finds the layer, opens what is below it, prints the answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from iscsid.cli import main

CONFIG = """
[[target]]
name = "iqn.2026-11.org.iscsid:disk"

[[target.lun]]
lun = 0
backend = "file"
path = "{folder}/disk"
size = "1 MiB"
layers = [{{ layer = "log" }}, {layers}]
"""
STATS = '{{ layer = "stats", path = "{folder}/{name}" }}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def run(folder: Path, *names: str, verb: str = "stats", lun: str = "0", options: tuple[str, ...] = ()) -> Result:
    from iscsid_plugins.stats import Counters

    for name in names:
        Counters(str(folder / name)).close()
    layers = ", ".join(STATS.format(folder=folder, name=name) for name in names)
    path = folder / "iscsid.toml"
    path.write_text(CONFIG.format(folder=folder, layers=layers))
    return CliRunner().invoke(main, ["layer", verb, str(path), "iqn.2026-11.org.iscsid:disk", lun, *options])


def test_verb_is_done_by_the_layer_that_knows_it(folder: Path) -> None:
    result = run(folder, "one", options=("--json",))
    assert result.exit_code == 0
    assert json.loads(result.stdout)["read"]["calls"] == 0
    assert "read:" in run(folder, "one").stdout


def test_layer_must_be_one_and_know_the_verb(folder: Path) -> None:
    result = run(folder, "one", verb="commit")
    assert (result.exit_code, "no layer can commit; there are: log, stats" in result.stderr) == (1, True)
    result = run(folder, "one", "two")
    assert (result.exit_code, "more than one layer can stats" in result.stderr) == (1, True)


def test_lun_that_is_not_there_is_told(folder: Path) -> None:
    result = run(folder, "one", lun="7")
    assert (result.exit_code, "no target iqn.2026-11.org.iscsid:disk with a LUN 7" in result.stderr) == (1, True)
