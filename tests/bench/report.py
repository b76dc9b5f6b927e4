"""Samples into medians, ratios and the table that is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from loads import Load, Sample
from rich.table import Table

Samples = Mapping[tuple[str, str], Sequence[Sample]]  # (load, server) -> one sample a round

BASELINE = "tgt"
RAW = "iscsid-file"  # what our other back ends are compared with


def middle(samples: Samples, load: str, server: str) -> Sample | None:
    """The median of rate and of CPU time, each on its own; None when there was no run."""
    found = samples.get((load, server))
    return Sample(median(s.rate for s in found), median(s.cpu for s in found)) if found else None


def ratio(value: float, base: float | None) -> str:
    return "" if base is None or base == 0 else f"{value / base:.2f}×"


def rate_table(samples: Samples, loads: Iterable[Load], servers: Sequence[str]) -> Table:
    """I/O rates, each with its ratio to the baseline: above 1 is faster."""
    table = _table("I/O rate", servers)
    for load in loads:
        base = middle(samples, load.name, BASELINE)
        row = []
        for server in servers:
            here = middle(samples, load.name, server)
            row += _cells(here and here.rate, base and base.rate, lambda rate, load=load: f"{load.shown(rate):.1f}")
        table.add_row(f"{load.name} [{load.unit}]", *row)
    return table


def cpu_table(samples: Samples, loads: Iterable[Load], servers: Sequence[str]) -> Table:
    """CPU time of the server per I/O, each with its ratio to the baseline: below 1 is cheaper."""
    table = _table("CPU time of the server per I/O, µs", servers)
    for load in loads:
        base = middle(samples, load.name, BASELINE)
        row = []
        for server in servers:
            here = middle(samples, load.name, server)
            row += _cells(here and here.cpu, base and base.cpu, lambda cpu: f"{cpu * 1e6:.1f}")
        table.add_row(load.name, *row)
    return table


def backend_table(samples: Samples, loads: Iterable[Load], servers: Sequence[str]) -> Table:
    """Our back ends against a raw file: ratios of I/O rate, above 1 is faster, and of CPU time, below 1 is cheaper."""
    others = [server for server in servers if server.startswith("iscsid-") and server != RAW]
    table = Table(title="Our back ends against a raw file", title_justify="left")
    table.add_column("load", no_wrap=True)
    for server in others:
        table.add_column(f"{server.removeprefix('iscsid-')}/file", justify="right", no_wrap=True)
        table.add_column("CPU", justify="right", no_wrap=True, style="dim")
    for load in loads:
        base, row = middle(samples, load.name, RAW), list[str]()
        for server in others:
            here = middle(samples, load.name, server)
            row += (
                ["–", ""] if here is None or base is None else [ratio(here.rate, base.rate), ratio(here.cpu, base.cpu)]
            )
        table.add_row(load.name, *row)
    return table


def _table(title: str, servers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("load", no_wrap=True)
    for server in servers:
        table.add_column(server, justify="right", no_wrap=True)
        table.add_column("/tgt", justify="right", no_wrap=True, style="dim")
    return table


def _cells(value: float | None, base: float | None, show: Any) -> tuple[str, str]:
    return ("–", "") if value is None else (show(value), ratio(value, base))


def as_json(samples: Samples, loads: Iterable[Load], servers: Sequence[str]) -> list[dict[str, Any]]:
    """One record per load and server: medians, ratios to the baseline and to our raw file, and every sample."""
    records = []
    for load in loads:
        base, raw = middle(samples, load.name, BASELINE), middle(samples, load.name, RAW)
        for server in servers:
            here = middle(samples, load.name, server)
            if here is None:
                continue
            records.append(
                {
                    "load": load.name,
                    "server": server,
                    "rate": here.rate,
                    "cpu_us": here.cpu * 1e6,
                    "rate_ratio": here.rate / base.rate if base else None,
                    "cpu_ratio": here.cpu / base.cpu if base and base.cpu else None,
                    "file_ratio": here.rate / raw.rate if raw else None,
                    "rates": [s.rate for s in samples[load.name, server]],
                    "cpus_us": [s.cpu * 1e6 for s in samples[load.name, server]],
                }
            )
    return records
