"""Compare iscsid with the C servers, side by side on one machine: ``python tests/bench/run.py [options]``.

Every round puts every load on every server in turn, so that a machine that slows down slows all of them; the tables
show medians over the rounds, ratios to tgt, and those of our back ends to a raw file. Needs tgt, istgt, libiscsi-bin,
qemu-utils and qemu-block-extra; a server that cannot be run, such as that of a loop device without root, is named and
left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from loads import BY_NAME, LOADS, Load, LoadError, Sample, fill, measure, missing_programs
from peers import SERVERS, Peer, StartError, Unavailable
from report import RAW, as_json, backend_table, cpu_table, rate_table
from rich.console import Console

CHUNK = 1 << 20


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=3, help="length of one run (default 3)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each load on each server (default 3)")
    parser.add_argument("--only", help="comma-separated parts of the names of the loads to run")
    parser.add_argument("--servers", help="comma-separated servers; default all: " + ", ".join(SERVERS))
    parser.add_argument("--size", type=int, default=256, help="size of the disk in MiB (default 256)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample to FILE")
    parser.add_argument("--list", action="store_true", help="list loads and servers, and end")
    options = parser.parse_args(argv)
    if options.seconds < 1 or options.rounds < 1 or options.size < 16:
        parser.error("at least 1 second, 1 round and 16 MiB")
    return options


def chosen_loads(only: str | None) -> list[Load]:
    if only is None:
        return list(LOADS)
    parts = [part.strip() for part in only.split(",")]
    exact = [BY_NAME[part] for part in parts if part in BY_NAME]
    return exact if len(exact) == len(parts) else [x for x in LOADS if any(part in x.name for part in parts)]


def chosen_servers(names: str | None) -> list[str]:
    servers = list(SERVERS) if names is None else [name.strip() for name in names.split(",")]
    unknown = [name for name in servers if name not in SERVERS]
    if unknown:
        raise SystemExit(f"no such server: {', '.join(unknown)}; there are: {', '.join(SERVERS)}")
    return servers


def make_image(path: Path, size: int) -> None:
    """A file without holes: random bytes, the same in every chunk."""
    chunk = os.urandom(CHUNK)
    with path.open("wb") as image:
        for _ in range(size // CHUNK):
            image.write(chunk)


def start_all(
    names: Sequence[str], folder: Path, image: Path, stack: contextlib.ExitStack, say: Console
) -> dict[str, Peer]:
    """Start every server that can be run. They idle while another one is measured."""
    peers = {}
    for name in names:
        own = folder / name
        own.mkdir()
        try:
            peers[name] = stack.enter_context(SERVERS[name](own, image))
            fill(peers[name], image.stat().st_size)
        except (Unavailable, StartError, LoadError) as exc:
            say.print(f"[bold red]without {name}:[/] {exc}", highlight=False)
            peers.pop(name, None)
    return peers


def run(options: argparse.Namespace, say: Console) -> int:
    loads, names = chosen_loads(options.only), chosen_servers(options.servers)
    if not loads:
        raise SystemExit(f"no load has {options.only!r} in its name; see --list")
    if missing := missing_programs():
        raise SystemExit(f"not installed: {', '.join(missing)}")
    samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    shm = Path("/dev/shm")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="iscsid-bench-", dir=shm)))
        image = folder / "disk.img"
        make_image(image, options.size << 20)
        peers = start_all(names, folder, image, stack, say)
        for number in range(options.rounds):
            for load in loads:
                for name, peer in peers.items():
                    say.print(f"round {number + 1}/{options.rounds}  {load.name}  {name}", style="dim", highlight=False)
                    try:
                        samples[load.name, name].append(measure(load, peer, options.seconds))
                    except LoadError as exc:
                        say.print(f"[bold red]{name}, {load.name}:[/] {exc}", highlight=False)
    show(samples, loads, list(peers))
    if options.json:
        options.json.write_text(json.dumps(as_json(samples, loads, list(peers)), indent=1) + "\n")
    expected = len(loads) * len(names) * options.rounds
    return 0 if sum(map(len, samples.values())) == expected else 1


def show(samples: dict[tuple[str, str], list[Sample]], loads: Sequence[Load], servers: Sequence[str]) -> None:
    out = Console(width=None if sys.stdout.isatty() else 30 + 24 * len(servers))
    python = f"{platform.python_implementation()} {platform.python_version()}"
    out.print(f"{os.cpu_count()} CPUs, Linux {platform.release()}, {python}, load average {os.getloadavg()[0]:.2f}")
    out.print(rate_table(samples, loads, servers))
    out.print(cpu_table(samples, loads, servers))
    if RAW in servers and any(server.startswith("iscsid-") and server != RAW for server in servers):
        out.print(backend_table(samples, loads, servers))


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    if options.list:
        print("loads:  ", *BY_NAME)
        print("servers:", *SERVERS)
        return 0
    return run(options, Console(stderr=True))


if __name__ == "__main__":
    sys.exit(main())
