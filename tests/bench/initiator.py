"""Compare the initiator library with libiscsi's iscsi-perf, against the same server.

    python tests/bench/initiator.py [--servers tgt,iscsid-ram] [--seconds 2] [--rounds 3]

Random reads of 4 KiB with 32 in flight, in turns, and the ratio of the medians. iscsi-perf is C, so a ratio of 1 means
that Python costs nothing; what is asked for is two thirds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from loads import BY_NAME, perf_command, perf_rate
from peers import SERVERS, Unavailable

from iscsid.initiator import open_disk

BLOCK = 4096
DEPTH = 32
SIZE = 256 << 20
LOAD = BY_NAME["randread-4k-d32"]


def our_rate(url: str, seconds: float, depth: int = DEPTH) -> float:
    """Reads per second of the pipelined form."""
    with open_disk(url, depth=depth) as disk:
        blocks = disk.size // BLOCK
        buffers = [memoryview(bytearray(BLOCK)) for _ in range(depth)]
        places = [random.randrange(blocks) * BLOCK for _ in range(4096)]
        tickets = [disk.submit_read(place, buffer) for place, buffer in zip(places, buffers, strict=False)]
        start = time.monotonic()
        done = 0
        while time.monotonic() - start < seconds:
            for index in range(depth):
                disk.wait(tickets[index])
                tickets[index] = disk.submit_read(places[done & 4095], buffers[index])
                done += 1
        for ticket in tickets:
            disk.wait(ticket)
        return done / (time.monotonic() - start)


def their_rate(url: str, seconds: int) -> float:
    """Reads per second of iscsi-perf."""
    argv = perf_command(LOAD, url, seconds)
    output = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 30, check=True)
    return perf_rate(output.stdout)


def compare(server: str, seconds: int, rounds: int) -> tuple[float, float]:
    """The medians of both, in reads per second."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        image, own = Path(folder) / "image", Path(folder) / "server"
        own.mkdir()
        with image.open("wb") as file:
            file.truncate(SIZE)
        with SERVERS[server](own, image) as peer:
            pairs = [(our_rate(peer.url, seconds), their_rate(peer.url, seconds)) for _ in range(rounds)]
    ours, theirs = zip(*pairs, strict=True)
    return statistics.median(ours), statistics.median(theirs)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", default="tgt", help="comma-separated; there are: " + ", ".join(SERVERS))
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    for server in options.servers.split(","):
        try:
            ours, theirs = compare(server, options.seconds, options.rounds)
        except Unavailable as exc:
            print(f"{server}: {exc}")
            continue
        print(
            f"{server:12} ours {ours / 1e3:6.1f} k/s   iscsi-perf {theirs / 1e3:6.1f} k/s   ratio {ours / theirs:.2f}"
        )


if __name__ == "__main__":
    main()
