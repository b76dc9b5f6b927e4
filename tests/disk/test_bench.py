"""The bench: exact percentiles, loads that do what they say, sessions that fail."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.disk import bench
from iscsid.disk.bench import READ, SLICES, WRITE, Figures, Load, Loop, percentile
from iscsid.disk.ends import EndError
from iscsid.errors import InitiatorError
from iscsid.testing import TestTarget


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([], 50, 0),
        ([7], 99.9, 7),
        ([1, 2, 3, 4], 50, 2),
        ([1, 2, 3, 4], 51, 3),
        ([1, 2, 3, 4], 100, 4),
        (list(range(1, 1001)), 99.9, 999),
        (list(range(1, 1001)), 99, 990),
    ],
)
def test_percentile_is_the_nearest_rank(values: list[int], percent: float, expected: int) -> None:
    assert percentile(Counter(values), percent) == expected


@given(st.lists(st.integers(0, 50), min_size=1), st.floats(0.1, 100))
def test_so_many_percent_do_not_exceed_the_percentile(values: list[int], percent: float) -> None:
    found = percentile(Counter(values), percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100
    assert sum(value < found for value in values) < len(values) * percent / 100


def test_figures_of_sessions_are_added() -> None:
    one, other = Figures(1.0), Figures(2.0)
    one.slices[READ][0][5] += 1
    other.slices[READ][0][5] += 2
    other.slices[WRITE][3][9] += 1
    one.add(other)
    assert one.seconds == 2.0
    assert one.latencies(READ) == {5: 3}
    assert one.latencies(READ, WRITE) == {5: 3, 9: 1}


# -- one session, without a target -------------------------------------------------------------------------------------


class Ticket:
    def __init__(self, error: InitiatorError | None = None) -> None:
        self.error = error


class FakeDisk:
    """Answers all that is in flight whenever somebody waits; a millisecond goes by each time."""

    block_size = 512
    max_transfer = 1 << 20

    def __init__(self, size: int = 1 << 20, error: InitiatorError | None = None) -> None:
        self.size = size
        self.error = error
        self.now = 100.0
        self.calls: list[tuple[str, int]] = []
        self.most = 0
        self._pending: list[Callable[[Any], None]] = []
        self.client = self

    def submit_read(self, offset: int, buffer: memoryview, *, callback: Callable[[Any], None]) -> None:
        self._take("read", offset, callback)

    def submit_write(self, offset: int, data: memoryview, *, callback: Callable[[Any], None]) -> None:
        self._take("write", offset, callback)

    def _take(self, kind: str, offset: int, callback: Callable[[Any], None]) -> None:
        self.calls.append((kind, offset))
        self._pending.append(callback)
        self.most = max(self.most, len(self._pending))

    def wait_until(self, over: Callable[[], bool]) -> None:
        self.now += 0.001
        pending, self._pending = self._pending, []
        for callback in pending:
            callback(Ticket(self.error))
        assert over()


def run_loop(disk: FakeDisk, load: Load, number: int = 0) -> Figures:
    return Loop(disk, load, number, clock=lambda: disk.now).run()  # type: ignore[arg-type]


def test_depth_is_kept_until_the_time_is_over() -> None:
    disk = FakeDisk()
    figures = run_loop(disk, Load(depth=8, seconds=0.1))
    assert disk.most == 8
    assert figures.latencies(READ) == {1000: len(disk.calls)}
    assert len(disk.calls) == pytest.approx(800, abs=16)
    assert figures.seconds == pytest.approx(0.1, abs=0.002)
    assert all(counter.total() for counter in figures.slices[READ])


def test_random_offsets_lie_all_over_the_disk_on_multiples() -> None:
    disk = FakeDisk()
    run_loop(disk, Load(size=4096, seconds=0.5))
    offsets = {offset for _, offset in disk.calls}
    assert all(offset % 4096 == 0 and offset + 4096 <= disk.size for offset in offsets)
    assert len(offsets) == 256
    again = FakeDisk()
    run_loop(again, Load(size=4096, seconds=0.5))
    assert again.calls == disk.calls
    other = FakeDisk()
    run_loop(other, Load(size=4096, seconds=0.5), number=1)
    assert other.calls != disk.calls


def test_sequential_sessions_begin_apart_and_wrap() -> None:
    disk = FakeDisk(size=8 * 4096)
    run_loop(disk, Load(depth=1, seconds=0.01, sequential=True, sessions=2), number=1)
    assert [offset // 4096 for _, offset in disk.calls[:6]] == [4, 5, 6, 7, 0, 1]


@pytest.mark.parametrize(("reads", "low", "high"), [(100, 1, 1), (0, 0, 0), (70, 0.65, 0.75)])
def test_mix_is_what_was_asked_for(reads: int, low: float, high: float) -> None:
    disk = FakeDisk()
    figures = run_loop(disk, Load(reads=reads, seconds=0.2))
    share = sum(kind == "read" for kind, _ in disk.calls) / len(disk.calls)
    assert low <= share <= high
    assert figures.latencies(WRITE).total() == sum(kind == "write" for kind, _ in disk.calls)


def test_command_that_fails_ends_the_bench() -> None:
    with pytest.raises(InitiatorError, match="broken"):
        run_loop(FakeDisk(error=InitiatorError("broken")), Load(seconds=0.1))


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (Load(size=1000), "multiples of 512"),
        (Load(size=0), "multiples of 512"),
        (Load(size=2 << 20), "up to 1048576"),
        (Load(size=8192), "the disk has 4096 bytes"),
    ],
)
def test_load_that_the_disk_cannot_take_is_refused(load: Load, message: str) -> None:
    with pytest.raises(EndError, match=message):
        load.check(FakeDisk(size=4096))  # type: ignore[arg-type]


# -- real sessions -----------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_sessions_are_processes_of_their_own(iscsid_target: TestTarget) -> None:
    seen: set[str] = set()
    told: list[float] = []

    def report(seconds: float) -> None:
        told.append(seconds)
        seen.update(str(session["tsih"]) for session in iscsid_target.sessions())

    figures = bench.run(iscsid_target.url(), Load(depth=4, seconds=1.0, sessions=2), report)
    assert figures.latencies(READ).total() > 100
    assert 1.0 <= figures.seconds < 10
    assert len(seen) == 2
    assert told == sorted(told)
    deadline = time.monotonic() + 20
    while iscsid_target.sessions():  # the server hears of a logout when it has been answered
        assert time.monotonic() < deadline
    assert len(figures.slices[READ]) == SLICES


@pytest.mark.process
def test_session_that_cannot_log_in_is_told(iscsid_target: TestTarget) -> None:
    with pytest.raises(EndError, match=r"refuse|not found|target"):
        bench.run(iscsid_target.url().replace(":test", ":other"), Load(seconds=1.0))


@pytest.mark.process
def test_child_that_dies_is_told(iscsid_target: TestTarget) -> None:
    import psutil

    def kill(seconds: float) -> None:
        for child in psutil.Process().children(recursive=True):
            if "multiprocessing.spawn" in " ".join(child.cmdline()):
                child.kill()

    with pytest.raises(EndError, match="ended before its time"):
        bench.run(iscsid_target.url(), Load(seconds=30.0, depth=1), kill)
    assert threading.active_count() >= 1


def test_child_ends_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pipe:
        def send(self, item: object) -> None:
            assert item is None

        def recv(self) -> object:
            raise EOFError

    class Opened(FakeDisk):
        def __enter__(self) -> Opened:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(bench, "open_disk", lambda url, **options: Opened())
    monkeypatch.setattr(bench.signal, "signal", lambda *_: None)
    bench.session(Pipe(), "iscsi://", Load(), 0, {})  # type: ignore[arg-type]
