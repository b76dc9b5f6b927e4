"""What ``iscsid plugin new`` writes: it passes its own tests as it stands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tomli

from iscsid import scaffold
from iscsid.errors import PluginError
from iscsid.plugin import API_VERSION
from iscsid.plugin.manager import load_file


@pytest.mark.process
@pytest.mark.parametrize("layer", [False, True])
def test_package_passes_its_own_tests(tmp_path: Path, layer: bool) -> None:
    scaffold.write_package("shelf", tmp_path, layer=layer)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(
        command, cwd=tmp_path / "iscsid-shelf", capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


@pytest.mark.parametrize("layer", [False, True])
def test_packaging_names_the_module_and_the_door(tmp_path: Path, layer: bool) -> None:
    written = scaffold.write_package("shelf", tmp_path, layer=layer)
    assert all(path.is_file() and "$" not in path.read_text() for path in written)
    root = tmp_path / "iscsid-shelf"
    project = tomli.loads((root / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["iscsid"] == {"shelf": "iscsid_shelf"}
    assert [f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"]] == ["iscsid_shelf.py"]
    assert str(root) in (root / "README.md").read_text()


@pytest.mark.parametrize("layer", [False, True])
def test_plugin_says_which_api_it_was_made_for(tmp_path: Path, layer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scaffold.write_package("shelf", tmp_path, layer=layer)
    path = tmp_path / "iscsid-shelf" / "iscsid_shelf.py"
    assert load_file(path).backends
    monkeypatch.setattr("iscsid.plugin.manager.API_VERSION", API_VERSION + 1)
    monkeypatch.setattr("iscsid.plugin.manager.BUILTIN", ())
    with pytest.raises(PluginError, match=f"made for API {API_VERSION}; this server has {API_VERSION + 1}"):
        load_file(path)


@pytest.mark.parametrize("layer", [False, True])
def test_what_is_written_is_formatted(tmp_path: Path, layer: bool) -> None:
    scaffold.write_package("shelf", tmp_path, layer=layer)
    root = str(tmp_path / "iscsid-shelf")
    for command in (["format", "--check"], ["check", "--select", "E,F,W,I,B"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--line-length", "120", "--no-cache", root],
            cwd=root,  # where iscsid is a stranger's package
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["", "Shelf", "9lives", "a-b", "a/b", "../up", "x" * 32])
def test_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        scaffold.write_package(name, tmp_path, layer=False)
    assert not list(tmp_path.iterdir())


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (path, *_) = scaffold.write_package("shelf", tmp_path, layer=False)
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        scaffold.write_package("shelf", tmp_path, layer=True)
    assert path.read_text() == "mine"
