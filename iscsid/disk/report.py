"""What the commands for disks tell: tables for people, plain values for programs, a picture of a bench."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from iscsid import screen
from iscsid.disk.bench import READ, SLICES, WRITE, Figures, Load, percentile
from iscsid.disk.ends import EndError

PERCENTILES: Final = {"p50_us": 50.0, "p99_us": 99.0, "p99.9_us": 99.9}
PICTURES: Final = (".svg", ".png")


def fact_table(facts: Mapping[str, Any]) -> Table:
    """Name and value in a line each; nothing for what is None."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    for name, value in facts.items():
        if value is not None:
            word = "yes" if value is True else "no" if value is False else str(value)
            table.add_row(Text(name.replace("_", " "), style="bold"), Text(word))
    return table


# -- bench -------------------------------------------------------------------------------------------------------------


def figures_of(latencies: Counter[int], size: int, seconds: float) -> dict[str, float | int]:
    """Commands, rates and latencies of one kind of command. ``latencies`` in microseconds, as all times here."""
    count = latencies.total()
    total = sum(latency * number for latency, number in latencies.items())
    return {
        "commands": count,
        "iops": round(count / seconds, 1) if seconds else 0.0,
        "mb_per_second": round(count * size / seconds / 1e6, 2) if seconds else 0.0,
        "mean_us": round(total / count, 1) if count else 0.0,
        **{name: percentile(latencies, percent) for name, percent in PERCENTILES.items()},
        "max_us": max(latencies, default=0),
    }


def bench_answer(url: str, load: Load, figures: Figures) -> dict[str, Any]:
    """All of a bench as plain values. ``url`` has no secrets; ``series``: the figures of equal parts of the time."""
    part = load.seconds / SLICES
    answer: dict[str, Any] = {
        "url": url,
        "load": {
            "size": load.size,
            "depth": load.depth,
            "sessions": load.sessions,
            "read_percent": load.reads,
            "access": "sequential" if load.sequential else "random",
            "seconds": load.seconds,
        },
        "seconds": round(figures.seconds, 3),
    }
    for name, kinds in (("read", (READ,)), ("write", (WRITE,)), ("total", (READ, WRITE))):
        answer[name] = figures_of(figures.latencies(*kinds), load.size, figures.seconds)
    answer["series"] = [
        {"at": round(part * (number + 1), 3), **figures_of(read + write, load.size, part)}
        for number, (read, write) in enumerate(zip(*figures.slices, strict=True))
    ]
    return answer


def bench_table(answer: Mapping[str, Any]) -> Table:
    """The figures of a bench, for people; only the kinds of commands that there were."""
    right = ("COMMANDS", "IOPS", "MB/s", "MEAN", "P50", "P99", "P99.9", "MAX")
    table = screen.table("", *right, right=right)
    kinds = [name for name in ("read", "write") if answer[name]["commands"]]
    for name in kinds if len(kinds) == 1 else [*kinds, "total"]:
        found = answer[name]
        times = (found[key] for key in ("mean_us", *PERCENTILES, "max_us"))
        rates = (f"{found['commands']:,}", f"{found['iops']:,.0f}", f"{found['mb_per_second']:,.1f}")
        table.add_row(*map(Text, (name, *rates, *map(time_text, times))))
    return table


def time_text(microseconds: float) -> str:
    """Three digits and a unit: 1500 is "1.5 ms"."""
    for unit in ("µs", "ms"):
        if microseconds < 999.5:
            return f"{microseconds:.3g} {unit}"
        microseconds /= 1000
    return f"{microseconds:.3g} s"


def check_picture(path: str) -> None:
    """Raise EndError unless ``plot`` can make this picture: asked before the work that it shows."""
    if Path(path).suffix.lower() not in PICTURES:
        raise EndError(f"{path}: a plot is an {' or a '.join(PICTURES)} file")
    try:
        _pygal()
        if Path(path).suffix.lower() == ".png":
            import cairosvg  # noqa: F401
    except ImportError as error:
        raise EndError(f"a plot needs {error.name}: pip install 'iscsid[plot]'") from error
    except OSError as error:  # cairosvg is there, but not the library that it is a door to
        raise EndError(f"a PNG needs libcairo, which this host lacks; an SVG does not: {error}") from error


def _pygal() -> Any:
    """The module, without the hook that it puts into the import system for its plugins.

    The hook has the form that Python 3.12 has dropped, and 3.11 warns of it with each later import of anything.
    """
    import pygal

    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != pygal.__name__]
    return pygal


def plot(path: str, answer: Mapping[str, Any]) -> None:
    """Draw rates and latencies over the time into an SVG or PNG file. Raises EndError."""
    pygal = _pygal()
    load = answer["load"]
    chart = pygal.XY(
        title=f"{load['size']} bytes, {load['access']}, {load['read_percent']} % reads, depth {load['depth']}"
        f" × {load['sessions']}: {answer['total']['iops']:,.0f} commands per second",
        x_title="seconds",
        style=pygal.style.CleanStyle,
        show_dots=False,
        js=[],  # the picture stands by itself: nothing is fetched
        range=(0, _round_up(max(part["iops"] for part in answer["series"]))),
        secondary_range=(0, _round_up(max(part["p99_us"] for part in answer["series"]))),
        legend_at_bottom=True,
        value_formatter=lambda value: f"{value:,.0f}",
        x_value_formatter=lambda value: f"{value:g}",
    )
    chart.add("commands per second", [(part["at"], part["iops"]) for part in answer["series"]])
    for name, key in (("p50, µs (right)", "p50_us"), ("p99, µs (right)", "p99_us")):
        chart.add(name, [(part["at"], part[key]) for part in answer["series"]], secondary=True)
    try:
        if Path(path).suffix.lower() == ".png":
            chart.render_to_png(path)
        else:
            chart.render_to_file(path)
    except OSError as error:
        raise EndError(f"{path}: {error.strerror}") from error


def _round_up(value: float) -> float:
    """The next number of two digits: where an axis ends well."""
    if value <= 0:
        return 1.0
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / step) * step
