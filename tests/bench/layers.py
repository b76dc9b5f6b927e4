"""What layers cost a command: ``python tests/bench/layers.py [options]``.

Whole commands go through one session's engine, from the bytes that came to those that are to be sent, without a socket:
what a worker does for each. Every round puts every stack in turn under the same commands, in this one process and by
its CPU time, so that a machine that slows down, or is busy with others, slows all of them; the table has medians over
the rounds, and ratios to the device without layers. A target that also pays for a socket notices less.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import statistics
import struct
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers import TARGET_NAME, Pair
from rich.console import Console
from rich.table import Table

from iscsid.block.guard import Guarded
from iscsid.plugin.manager import Plugins, load
from iscsid.scsi.lu import Identity, LogicalUnit
from iscsid.target.engine import Engine
from iscsid.target.node import TargetNode
from iscsid.wire.const import FINAL, READ, WRITE
from iscsid.wire.pdu import ScsiCommand

SIZE: Final = 16 << 20
BLOCK: Final = 4096  # bytes of a command
DEPTH: Final = 32  # commands that come at once
BARE: Final = "bare"
BACK_ENDS: Final = ("ram", "file")
OPERATIONS: Final = ("read", "write")

#: Stacks that pass everything on. ``empty`` is what a LUN has with ``layers = []``.
STACKS: Final[Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]] = {
    BARE: (),
    "empty": (),
    "offset": (("offset", {"offset": "1 MiB"}),),
    "protect": (("protect", {"offset": SIZE - (1 << 20)}),),
    "stats": (("stats", {"path": None}),),
    "log off": (("log", {"level": "off"}),),
    "log quiet": (("log", {"level": "debug"}),),
    "log failed": (("log", {"calls": "failed"}),),
    "retry": (("retry", {}),),
    "delay": (("delay", {"flush": 1}),),
    "rate": (("rate", {"iops": 10**9}),),
}


class Rig:
    """One session with a disk, to which the same commands come again and again."""

    def __init__(self, guard: Guarded) -> None:
        self.guard = guard
        unit = LogicalUnit(guard, Identity("serial", f"{TARGET_NAME},L,0"))
        node = TargetNode(TARGET_NAME, {0: unit})
        self.pair = Pair(
            engine=lambda connection: Engine(
                connection,
                {TARGET_NAME: node}.__getitem__,
                lambda engine, pairs: [],
                self._submit,
                lambda engine: None,
                None,  # type: ignore[arg-type]  # nothing is shared
            ),
            queue_depth=2 * DEPTH,
        )

    def _submit(self, run: Any, done: Any) -> None:
        raise NotImplementedError("the data of every command is at hand")

    def seconds(self, operation: str, batches: int) -> float:
        """CPU time of a command, which differs by no more than its place from the one before."""
        pair, engine, outbox = self.pair, self.pair.engine, self.pair.connection.outbox
        framer = pair.connection.framer
        places = random.Random(1)
        spent = 0
        for _ in range(batches):
            stream = b"".join(self._commands(operation, places))
            room = framer.writable()
            room[: len(stream)] = stream
            room.release()
            begun = time.thread_time_ns()
            engine.receive(len(stream))
            outbox.segments()
            outbox.sent(outbox.queued)
            engine.sent()
            spent += time.thread_time_ns() - begun
        return spent / batches / DEPTH / 1e9

    def _commands(self, operation: str, places: random.Random) -> Iterable[bytes]:
        reads = operation == "read"
        blocks = BLOCK // 512
        for tag in range(DEPTH):
            lba = places.randrange((SIZE - (2 << 20)) // BLOCK) * blocks
            command = ScsiCommand(
                flags=FINAL | (READ if reads else WRITE),
                cdb=struct.pack(">BBIBHB6x", 0x28 if reads else 0x2A, 0, lba, 0, blocks, 0),
                initiator_task_tag=tag,
                expected_data_transfer_length=BLOCK,
                data=b"" if reads else bytes(BLOCK),
            )
            self.pair.number(command)
            yield self.pair.encode(command)


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="runs of each stack (default 15)")
    parser.add_argument("--batches", type=int, default=60, help=f"of {DEPTH} commands in a run (default 60)")
    parser.add_argument("--only", help="comma-separated stacks; default all: " + ", ".join(STACKS))
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.batches < 1:
        parser.error("at least 1 round and 1 batch")
    if options.only is not None and (unknown := set(options.only.split(",")) - set(STACKS)):
        parser.error(f"no such stack: {', '.join(sorted(unknown))}")
    return options


def prepare(plugins: Plugins, back_end: str, folder: Path, stack: contextlib.ExitStack) -> Mapping[str, Any]:
    """The options of a medium without holes, in the page cache. All stacks are over it: no two files are alike."""
    path = {"path": str(folder / "disk.img")} if back_end == "file" else {}
    options = plugins.prepare(back_end, {"size": SIZE, **path})
    stack.callback(plugins.release, back_end, options)
    device = plugins.open(back_end, options, "worker")
    for at in range(0, SIZE, 1 << 20):
        device.write(memoryview(os.urandom(1 << 20)), at)
    device.close()
    return options


def open_stack(
    plugins: Plugins, back_end: str, options: Mapping[str, Any], name: str, folder: Path, stack: contextlib.ExitStack
) -> Rig:
    said = [
        (layer, {key: str(folder / f"{back_end}.{name}") if key == "path" else value for key, value in given.items()})
        for layer, given in STACKS[name]
    ]
    layers = plugins.prepare_layers(said)
    stack.callback(plugins.release_layers, layers)
    device = plugins.open(back_end, options, "worker")
    for layer, given in layers:
        device = plugins.wrap(device, layer, given)
    guard = Guarded(device)
    stack.callback(guard.close)
    return Rig(guard)


def run(rounds: int, batches: int, chosen: Sequence[str], folder: Path) -> dict[tuple[str, str, str], list[float]]:
    """Seconds of a command by back end, operation and stack, one for each round."""
    plugins = load()
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    names = [BARE, *(name for name in chosen if name != BARE)]
    with contextlib.ExitStack() as stack:
        rigs = {}
        for back_end in BACK_ENDS:
            options = prepare(plugins, back_end, folder, stack)
            for name in names:
                rigs[back_end, name] = open_stack(plugins, back_end, options, name, folder, stack)
        gc.collect()
        gc.disable()
        stack.callback(gc.enable)
        for number in range(rounds):
            for back_end in BACK_ENDS:
                for operation in OPERATIONS:
                    for name in names[number % len(names) :] + names[: number % len(names)]:
                        seconds = rigs[back_end, name].seconds(operation, batches)
                        found[back_end, operation, name].append(seconds)
            gc.collect()
    return found


def ratio(found: Mapping[tuple[str, str, str], Sequence[float]], back_end: str, operation: str, name: str) -> float:
    """Of a stack to the bare device: the median over the rounds, each of which has both of them side by side."""
    pairs = zip(found[back_end, operation, name], found[back_end, operation, BARE], strict=True)
    return statistics.median(one / bare for one, bare in pairs)


def table(found: Mapping[tuple[str, str, str], Sequence[float]], names: Iterable[str]) -> Table:
    shown = Table(title=f"{BLOCK} bytes, {DEPTH} at once: µs of a command, and its ratio to the bare device")
    shown.add_column("layers")
    columns = [(back_end, operation) for back_end in BACK_ENDS for operation in OPERATIONS]
    for back_end, operation in columns:
        shown.add_column(f"{back_end} {operation}", justify="right")
    for name in names:
        cells = []
        for back_end, operation in columns:
            middle = statistics.median(found[back_end, operation, name])
            cells.append(f"{middle * 1e6:.2f}  {ratio(found, back_end, operation, name):.3f}×")
        shown.add_row(name, *cells)
    return shown


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    names = list(STACKS) if options.only is None else [BARE, *options.only.split(",")]
    names = list(dict.fromkeys(names))
    with tempfile.TemporaryDirectory(prefix="iscsid-bench-") as folder:
        found = run(options.rounds, options.batches, names, Path(folder))
    Console(width=None if sys.stdout.isatty() else 110).print(table(found, names))
    return 0


if __name__ == "__main__":
    sys.exit(main())
