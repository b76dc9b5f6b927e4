"""Figures, tables and pictures of a bench."""

from __future__ import annotations

import builtins
import io
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from iscsid.disk import report
from iscsid.disk.bench import READ, SLICES, WRITE, Figures, Load
from iscsid.disk.ends import EndError

LOAD = Load(size=4096, depth=4, seconds=4.0, reads=50)


@pytest.fixture
def answer() -> dict[str, Any]:
    figures = Figures(4.0)
    for part in range(SLICES):
        figures.slices[READ][part].update({100: 90, 1500: 10})
        figures.slices[WRITE][part].update({200: 50})
    return report.bench_answer("iscsi://h/t/0", LOAD, figures)


def text_of(table: Table) -> str:
    output = io.StringIO()
    Console(file=output, width=200, markup=False).print(table)
    return output.getvalue()


def test_figures_are_rates_and_latencies() -> None:
    found = report.figures_of(Counter({100: 990, 2000: 9, 5000: 1}), 4096, 2.0)
    assert found == {
        "commands": 1000,
        "iops": 500.0,
        "mb_per_second": 2.05,
        "mean_us": 122.0,
        "p50_us": 100,
        "p99_us": 100,
        "p99.9_us": 2000,
        "max_us": 5000,
    }
    assert set(report.figures_of(Counter(), 4096, 0.0).values()) == {0}


def test_answer_is_plain_and_adds_up(answer: dict[str, Any]) -> None:
    assert json.loads(json.dumps(answer)) == answer
    assert answer["total"]["commands"] == answer["read"]["commands"] + answer["write"]["commands"] == SLICES * 150
    assert sum(part["commands"] for part in answer["series"]) == SLICES * 150
    assert answer["series"][-1]["at"] == 4.0
    assert answer["load"]["access"] == "random"


def test_table_has_a_line_for_each_kind_and_their_sum(answer: dict[str, Any]) -> None:
    lines = text_of(report.bench_table(answer)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["read", "write", "total"]
    assert "1.5 ms" in lines[1]
    answer["write"]["commands"] = 0
    assert len(text_of(report.bench_table(answer)).splitlines()) == 2


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(0, "0 µs"), (7, "7 µs"), (999, "999 µs"), (999.6, "1 ms"), (1500, "1.5 ms"), (2_500_000, "2.5 s")],
)
def test_time_is_told_in_its_unit(microseconds: float, text: str) -> None:
    assert report.time_text(microseconds) == text


def test_facts_are_a_line_each() -> None:
    text = text_of(report.fact_table({"a_b": True, "c": None, "d": "[x]", "e": 0}))
    assert [line.split() for line in text.splitlines()] == [["a", "b", "yes"], ["d", "[x]"], ["e", "0"]]


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_svg_shows_rates_and_latencies_and_needs_nothing_else(answer: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bench.svg"
    report.check_picture(str(path))
    report.plot(str(path), answer)
    words = " ".join(ElementTree.fromstring(path.read_text()).itertext())
    assert "commands per second" in words
    assert "p99, µs" in words
    assert "4096 bytes, random, 50 % reads, depth 4 × 1" in words
    assert "<script" not in path.read_text().replace('<script type="text/javascript">window.pygal', "")


def test_png_is_one(answer: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "bench.PNG"
    report.check_picture(str(path))
    report.plot(str(path), answer)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_imports_go_on_without_warnings(answer: dict[str, Any], tmp_path: Path) -> None:
    report.plot(str(tmp_path / "x.svg"), answer)
    sys.modules.pop("this_module_is_missing", None)
    with pytest.raises(ModuleNotFoundError):
        __import__("this_module_is_missing")
    assert not [finder for finder in sys.meta_path if "pygal" in type(finder).__module__]


def test_bench_of_nothing_is_drawn(tmp_path: Path) -> None:
    report.plot(str(tmp_path / "x.svg"), report.bench_answer("u", LOAD, Figures()))


def test_picture_that_cannot_be_made_is_told(
    answer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EndError, match=r"is an \.svg or a \.png file"):
        report.check_picture("x.jpg")
    with pytest.raises(EndError, match="No such file"):
        report.plot(str(tmp_path / "nowhere" / "x.svg"), answer)
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "pygal":
            raise ImportError("No module named 'pygal'", name="pygal")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(EndError, match=r"needs pygal: pip install 'iscsid\[plot\]'"):
        report.check_picture("x.svg")


@pytest.mark.parametrize(("value", "end"), [(0, 1), (87_454, 88_000), (100, 100), (3.14, 3.2)])
def test_axes_end_at_a_number_of_two_digits(value: float, end: float) -> None:
    assert report._round_up(value) == pytest.approx(end)
