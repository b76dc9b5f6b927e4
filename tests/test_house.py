"""The house as a whole: sizes, a test file for every module, packaging that matches the tree, nothing left undone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).resolve().parent.parent
MAX_FUNCTION = 60  # lines
MAX_MODULE = 600
UNFINISHED = re.compile("|".join(rf"\b{word}\b" for word in ("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")))
SILENCED = re.compile(rf"{'type: ' + 'ignore'}(?!\[)|{'no' + 'qa'}(?!:)")

# A module of the source -> its test file. These have none of their own: what they do is tested where it is called.
WITHOUT_OWN_TEST = {
    "iscsid/__main__.py",  # tests/test_cli.py runs it
}


def source_files() -> list[Path]:
    return [path for top in ("iscsid", "backends", "plugins") for path in sorted((ROOT / top).rglob("*.py"))]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def too_long(source: str) -> list[tuple[int, str, int]]:
    """Line, name and length of every function over the cap; decorators count, the docstring too."""
    found = []
    for node in functions(ast.parse(source)):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        length = (node.end_lineno or first) - first + 1
        if length > MAX_FUNCTION:
            found.append((first, node.name, length))
    return found


def place_of_test(module: str) -> str:
    """Where the tests of a source file live: iscsid/wire/pdu.py -> tests/wire/test_pdu.py."""
    folders, _, name = module.rpartition("/")
    room = folders.removeprefix("iscsid").strip("/")
    return "/".join(part for part in ("tests", room, f"test_{name}") if part)


def test_no_function_is_longer_than_the_cap() -> None:
    found = [
        f"{relative(path)}:{line}: {name} has {length} lines"
        for path in source_files()
        for line, name, length in too_long(path.read_text())
    ]
    assert not found, "\n".join(found)


def test_no_module_is_longer_than_the_cap() -> None:
    sizes = {relative(path): len(path.read_text().splitlines()) for path in source_files()}
    found = [f"{path}: {lines} lines" for path, lines in sizes.items() if lines > MAX_MODULE]
    assert not found, "\n".join(found)


def test_every_module_has_its_test_file() -> None:
    modules = [relative(path) for path in source_files() if path.name != "__init__.py"]
    missing = [
        f"{module}: no {place_of_test(module)}"
        for module in modules
        if module not in WITHOUT_OWN_TEST and not (ROOT / place_of_test(module)).is_file()
    ]
    assert not missing, "\n".join(missing)


def test_tests_are_at_least_as_long_as_the_code() -> None:
    code = sum(len(path.read_text().splitlines()) for path in source_files())
    tests = sum(len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py"))
    assert tests >= code


def test_nothing_is_left_undone_and_no_checker_silenced_wholesale() -> None:
    files = [*source_files(), *sorted((ROOT / "tests").rglob("*.py"))]
    found = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if UNFINISHED.search(line) or SILENCED.search(line)
    ]
    assert not found, "\n".join(found)


def test_packages_of_pyproject_are_the_folders_of_the_tree() -> None:
    setuptools = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in (ROOT / "iscsid").rglob("__init__.py")
    }
    assert set(setuptools["packages"]) == folders | {"iscsid_backends", "iscsid_plugins"}
    assert setuptools["package-dir"] == {"iscsid": "iscsid", "iscsid_backends": "backends", "iscsid_plugins": "plugins"}
    assert setuptools["packages"] == sorted(setuptools["packages"])


def test_every_package_ships_its_types() -> None:
    assert all((ROOT / top / "py.typed").is_file() for top in ("iscsid", "backends", "plugins"))


def test_versions_agree() -> None:
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    source = (ROOT / "iscsid/__init__.py").read_text()
    assert f'__version__ = "{project["version"]}"' in source


def test_importing_iscsid_imports_nothing_else(tmp_path: Path) -> None:
    code = "import sys, iscsid; print(sorted(name for name in sys.modules if name.startswith('iscsid')))"
    assert run_python(code, tmp_path) == "['iscsid']"


def run_python(code: str, folder: Path) -> str:
    """Run ``code`` in a new interpreter that finds iscsid in the tree and nothing else of it."""
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return result.stdout.strip()


@pytest.mark.parametrize("lines", [MAX_FUNCTION, MAX_FUNCTION + 1])
def test_planted_function_is_measured_with_its_decorators(lines: int) -> None:
    source = "@cache\ndef f():\n" + "    pass\n" * (lines - 2)
    assert bool(too_long(source)) == (lines > MAX_FUNCTION)


@pytest.mark.parametrize(
    ("module", "test"),
    [
        ("iscsid/cli.py", "tests/test_cli.py"),
        ("iscsid/wire/pdu.py", "tests/wire/test_pdu.py"),
        ("backends/file.py", "tests/backends/test_file.py"),
        ("plugins/rate.py", "tests/plugins/test_rate.py"),
    ],
)
def test_place_of_a_test_file_follows_the_module(module: str, test: str) -> None:
    assert place_of_test(module) == test
