"""What is counted, by whom, and what can be read of it while it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from iscsid_plugins.stats import SAMPLE, Counters, percentile
from layer_kit import Recorder, read, write

from iscsid.block.device import Mode
from iscsid.block.guard import Guarded
from iscsid.errors import BlockError, Fault, PluginError
from iscsid.plugin.manager import Plugins

Wrap = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "counters")


def totals(path: str) -> dict[str, dict[str, Any]]:
    counters = Counters(path, readonly=True)
    answer = counters.totals()
    counters.close()
    return answer


def test_calls_bytes_and_times_are_counted(below: Recorder, wrap: Wrap, path: str) -> None:
    guard = Guarded(wrap(below, "stats", path=path))
    for _ in range(3):
        read(guard)
    guard.read_now(memoryview(bytearray(512)), 0)
    write(guard, bytes(1024))
    guard.discard(0, 8192)
    guard.flush()
    found = totals(path)
    counts = {kind: (figures["calls"], figures["bytes"], figures["errors"]) for kind, figures in found.items()}
    expected = {"read": (4, 3 * 4096 + 512, 0), "write": (1, 1024, 0), "discard": (1, 8192, 0), "flush": (1, 0, 0)}
    assert counts == expected
    assert sum(found["read"]["histogram"]) == 4
    assert found["read"]["nanoseconds"] > 0
    guard.close()


def test_calls_that_do_not_wait_are_all_counted_and_some_of_them_timed(wrap: Wrap, path: str) -> None:
    below = Recorder()
    below.mode = Mode.INLINE
    slow, timed = time.perf_counter_ns, []

    def clock() -> int:
        timed.append(slow())
        return timed[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter_ns", clock)
        guard = Guarded(wrap(below, "stats", path=path))
    for count in range(1, 2 * SAMPLE + 2):
        read(guard)
        write(guard, bytes(512 * count))
        found = totals(path)
        assert (found["read"]["calls"], found["read"]["bytes"]) == (count, 4096 * count)
        assert (found["write"]["calls"], found["write"]["bytes"]) == (count, 512 * sum(range(count + 1)))
    assert len(timed) == 2 * 2 * 3  # begin and end of a read and a write: the first, and after each SAMPLE
    assert sum(found["read"]["histogram"]) == pytest.approx(2 * SAMPLE + 1, abs=2)  # they stand for the others
    guard.close()
    successor = wrap(below, "stats", path=path)
    assert totals(path)["read"]["calls"] == 2 * SAMPLE + 1
    successor.close()


def test_lent_memory_is_counted(wrap: Wrap, path: str, all_plugins: Plugins) -> None:
    options = all_plugins.prepare("ram", {"size": 1 << 20})
    guard = Guarded(wrap(all_plugins.open("ram", options, "worker"), "stats", path=path))
    for _ in range(5):
        assert len(guard.view(4096, 512)) == 512
    figures = totals(path)["read"]
    assert (figures["calls"], figures["bytes"], figures["errors"]) == (5, 5 * 512, 0)
    assert sum(figures["histogram"]) == 5
    guard.close()
    all_plugins.release("ram", options)


def test_failures_are_counted_and_tries_in_vain_are_not(below: Recorder, wrap: Wrap, path: str) -> None:
    def fail(name: str, _offset: int, _length: int) -> None:
        raise BlockingIOError if name == "read_nowait" else BlockError(Fault.READ_ERROR)

    below.fail = fail
    guard = Guarded(wrap(below, "stats", path=path))
    with pytest.raises(BlockingIOError):
        guard.read_now(memoryview(bytearray(512)), 0)
    with pytest.raises(BlockError):
        read(guard)
    figures = totals(path)["read"]
    assert (figures["calls"], figures["errors"]) == (0, 1)
    guard.close()


def test_several_count_side_by_side_and_a_successor_goes_on(wrap: Wrap, path: str) -> None:
    devices = [wrap(Recorder(), "stats", path=path) for _ in range(2)]
    for device in devices:
        read(device)
        device.close()
    child = os.fork()
    if not child:
        read(wrap(Recorder(), "stats", path=path))
        os._exit(0)  # as if it were killed: it closes nothing
    assert os.waitpid(child, 0)[1] == 0
    last = wrap(Recorder(), "stats", path=path)
    read(last)
    assert totals(path)["read"]["calls"] == 4
    last.close()


def test_file_that_is_something_else_is_not_touched(below: Recorder, wrap: Wrap, path: str) -> None:
    Path(path).write_bytes(b"precious")
    with pytest.raises(PluginError, match="not a file of counters"):
        wrap(below, "stats", path=path)
    assert Path(path).read_bytes() == b"precious"


def test_percentile_is_the_end_of_its_column() -> None:
    histogram = [0] * 64
    histogram[10], histogram[20] = 99, 1  # 512 to 1023 ns, and about a millisecond
    assert percentile(histogram, 0.5) == 1.024
    assert percentile(histogram, 0.999) == 1048.576
    assert percentile([0] * 64, 0.5) == 0


def test_verb_shows_what_was_counted(below: Recorder, wrap: Wrap, path: str, all_plugins: Plugins) -> None:
    device = wrap(below, "stats", path=path)
    read(device)
    answer = all_plugins.layer_verb("stats", {"path": path}, "stats", lambda: below)
    assert answer["read"]["calls"] == 1
    assert answer["read"]["mean_us"] > 0
    assert sum(answer["read"]["histogram"].values()) == 1
    device.close()
