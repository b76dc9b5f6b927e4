"""The layer ``stats``: how many calls of each kind, how many bytes, how long they took.

The counters lie in a file that is mapped into memory, so to count is to add to memory, and whoever reads the file sees
what is: ``iscsid layer stats``. Each worker counts in a slot of its own, which it holds by a lock that the kernel frees
when the worker dies; its successor counts on. A call that is tried in vain in the worker's loop is not counted there,
but when it is made in the pool.

A histogram has a column for each power of two of nanoseconds: column n holds what took less than 2**n. To look at the
clock takes about as long as to find data that is at hand. So of the calls that do not wait, which take alike, each is
counted and one in ``SAMPLE`` is timed, and stands for the others; of those that may wait, in the pool, each is timed.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iscsid.plugin import BlockError, Device, Fault, LayerInfo, Mode, Option, Verb, hookimpl

from .around import NOWAIT, TRANSFERS, Around, Call

OPTIONS = (Option("path", "path", required=True, doc="the file of the counters, made if it is missing", medium=True),)
MAGIC = b"iscsid stats 2\n\0"
HEADER = 64
SLOTS = 64  # workers
COLUMNS = 64
SAMPLE = 64
# How many were timed is the sum of the histogram. ``pending`` are untimed ones that are not in the others yet, so that
# to count is to add to one number: their bytes, a multiple of 512, and in what that leaves free, how many they are.
_FIELDS = ("bytes", "errors", "nanoseconds", "untimed", "pending")
_BYTES, _ERRORS, _NANOSECONDS, _UNTIMED, _PENDING = range(len(_FIELDS))
_FEW = 511
_ORDER = ("read", "write", "discard", "flush")
_AT_HAND = len(_ORDER)  # from this row on, of each kind, the calls that do not wait
_PER_ROW = len(_FIELDS) + COLUMNS
_PER_SLOT = 2 * len(_ORDER) * _PER_ROW
FILE_SIZE = HEADER + SLOTS * _PER_SLOT * 8


class Counters:
    """The file at ``path``. Raises BlockError(INVALID) for a file that is something else, and OSError."""

    def __init__(self, path: str, readonly: bool = False) -> None:
        flags = os.O_RDONLY if readonly else os.O_RDWR | os.O_CREAT
        self._fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            facts = os.fstat(self._fd)
            if not facts.st_size and not readonly:
                os.posix_fallocate(self._fd, 0, FILE_SIZE)  # a mapping of a file that cannot grow kills
                os.pwrite(self._fd, MAGIC, 0)
                facts = os.fstat(self._fd)
            whole = stat.S_ISREG(facts.st_mode) and facts.st_size == FILE_SIZE
            if not whole or os.pread(self._fd, len(MAGIC), 0) not in (MAGIC, bytes(len(MAGIC))):
                raise BlockError(Fault.INVALID, f"{path}: not a file of counters")
            access = mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE
            self._map = mmap.mmap(self._fd, FILE_SIZE, access=access)
            self.all = memoryview(self._map)[HEADER:].cast("Q")
        except BaseException:
            os.close(self._fd)
            raise

    def take_slot(self) -> memoryview:
        """The counters of a slot that no other process, and no other device of this one, counts in."""
        for index in range(SLOTS):
            try:
                # Of the open file and not of the process: two LUNs of one worker are two.
                lock = _flock(fcntl.F_WRLCK, HEADER + index, 1)
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, lock)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                continue
            return self.all[index * _PER_SLOT : (index + 1) * _PER_SLOT]
        raise BlockError(Fault.NO_RESOURCES, f"more than {SLOTS} workers count")

    def totals(self) -> dict[str, dict[str, Any]]:
        """Of all workers, per kind: calls, bytes, errors, nanoseconds and the histogram."""
        answer: dict[str, dict[str, Any]] = {}
        for number, kind in enumerate(_ORDER):
            waited, at_hand = self._row(number), self._row(_AT_HAND + number)
            answer[kind] = {name: waited[name] + at_hand[name] for name in ("calls", *_FIELDS[:_UNTIMED])}
            columns = zip(waited["histogram"], at_hand["histogram"], strict=True)
            answer[kind]["histogram"] = [one + other for one, other in columns]
        return answer

    def _row(self, number: int) -> dict[str, Any]:
        """Times of all its calls, as those tell that were timed."""
        starts = range(number * _PER_ROW, SLOTS * _PER_SLOT, _PER_SLOT)
        sums = [sum(self.all[start + column] for start in starts) for column in range(_PER_ROW)]
        figures, histogram = dict(zip(_FIELDS, sums, strict=False)), sums[len(_FIELDS) :]
        for start in starts:
            pending = self.all[start + _PENDING]
            figures["bytes"] += pending & ~_FEW
            figures["untimed"] += pending & _FEW
        timed = sum(histogram)
        calls = figures["calls"] = timed + figures["untimed"]
        if figures["untimed"] and timed:
            figures["nanoseconds"] = figures["nanoseconds"] * calls // timed
            histogram = [round(count * calls / timed) for count in histogram]
        return {**figures, "histogram": histogram}

    def close(self) -> None:
        """The mapping itself goes with the last function that counts in it."""
        del self.all, self._map
        os.close(self._fd)


def _flock(kind: int, start: int, length: int) -> bytes:
    """struct flock of Linux on 64 bits."""
    return kind.to_bytes(2, "little") + bytes(6) + start.to_bytes(8, "little") + length.to_bytes(8, "little") + bytes(8)


class Stats(Around):
    def __init__(self, below: Device, counters: Counters) -> None:
        self._counters = counters
        self._slot = counters.take_slot()
        super().__init__(below)

    def around(self, name: str, kind: str, call: Call) -> Call:
        at_hand = name in NOWAIT or (name in TRANSFERS and self.below.mode is Mode.INLINE)
        first = (_ORDER.index(kind) + _AT_HAND * at_hand) * _PER_ROW
        counts = self._slot[first : first + _PER_ROW]
        if name == "flush":
            return _timed_flush(call, counts)
        if name == "view":
            return _sampled_view(call, counts)
        if name not in TRANSFERS:
            return _timed_range(call, counts)
        return _sampled_transfer(call, counts) if at_hand else _timed_transfer(call, counts)

    def close(self) -> None:
        try:
            super().close()
        finally:
            del self._slot
            self._counters.close()


# The functions that count are called for each command: nothing is in them that need not be. Between reading a counter
# and writing it back is no call, so that no other thread comes between.


def _timed_transfer(call: Call, counts: memoryview) -> Call:
    clock, columns = time.perf_counter_ns, counts[len(_FIELDS) :]

    def counted(buffer: memoryview, offset: int) -> None:
        begun = clock()
        try:
            call(buffer, offset)
        except BlockingIOError:
            raise
        except Exception:
            counts[_ERRORS] += 1
            raise
        taken = clock() - begun
        length, column = len(buffer), taken.bit_length()
        counts[_BYTES] += length
        counts[_NANOSECONDS] += taken
        columns[column] += 1

    return counted


def _sampled_transfer(call: Call, counts: memoryview) -> Call:
    timed, left = _timed_transfer(call, counts), 0

    def counted(buffer: memoryview, offset: int) -> None:
        nonlocal left
        if left <= 0:
            timed(buffer, offset)
            left = _settle(counts)
            return
        left -= 1
        try:
            call(buffer, offset)
        except BlockingIOError:
            raise
        except Exception:
            counts[_ERRORS] += 1
            raise
        size = len(buffer) + 1
        counts[_PENDING] += size

    return counted


def _settle(counts: memoryview) -> int:
    """Add what is pending to the other figures; how many calls may be pending until this has to be done again."""
    pending = counts[_PENDING]
    counts[_BYTES] += pending & ~_FEW
    counts[_UNTIMED] += pending & _FEW
    counts[_PENDING] = 0
    return SAMPLE - 1


def _timed_range(call: Call, counts: memoryview) -> Call:
    clock, columns = time.perf_counter_ns, counts[len(_FIELDS) :]

    def counted(offset: int, length: int, *rest: Any) -> Any:
        begun = clock()
        try:
            answer = call(offset, length, *rest)
        except Exception:
            counts[_ERRORS] += 1
            raise
        taken = clock() - begun
        column = taken.bit_length()
        counts[_BYTES] += length
        counts[_NANOSECONDS] += taken
        columns[column] += 1
        return answer

    return counted


def _sampled_view(call: Call, counts: memoryview) -> Call:
    timed, left = _timed_range(call, counts), 0

    def counted(offset: int, length: int) -> Any:
        nonlocal left
        if left <= 0:
            answer = timed(offset, length)
            left = _settle(counts)
            return answer
        left -= 1
        try:
            answer = call(offset, length)
        except Exception:
            counts[_ERRORS] += 1
            raise
        counts[_PENDING] += length + 1
        return answer

    return counted


def _timed_flush(call: Call, counts: memoryview) -> Call:
    counted = _timed_range(lambda _offset, _length: call(), counts)
    return lambda: counted(0, 0)


def percentile(histogram: Sequence[int], share: float) -> float:
    """Microseconds that ``share`` of the calls did not exceed: the upper end of the column; 0 for no calls."""
    wanted, seen = share * sum(histogram), 0
    for column, count in enumerate(histogram):
        seen += count
        if count and seen >= wanted:
            return float(1 << column) / 1000
    return 0.0


@hookimpl
def iscsid_layer_info() -> LayerInfo:
    verb = Verb("stats", "show what has been counted")
    return LayerInfo("stats", "counts calls, bytes and latencies", OPTIONS, verbs=(verb,))


@hookimpl
def iscsid_layer_verb(
    name: str, verb: str, options: Mapping[str, Any], below: Callable[[], Device]
) -> Mapping[str, Any]:
    counters = Counters(options["path"], readonly=True)
    try:
        totals = counters.totals()
    finally:
        counters.close()
    for figures in totals.values():
        histogram = figures.pop("histogram")
        calls, nanoseconds = figures["calls"], figures.pop("nanoseconds")
        figures["mean_us"] = round(nanoseconds / calls / 1000, 1) if calls else 0.0
        for name_of, share in (("p50_us", 0.5), ("p99_us", 0.99), ("p999_us", 0.999)):
            figures[name_of] = percentile(histogram, share)
        figures["histogram"] = {
            f"<{(1 << column) / 1000:g}us": count for column, count in enumerate(histogram) if count
        }
    return totals


@hookimpl
def iscsid_filter(device: Device, name: str, options: Mapping[str, Any]) -> Stats:
    counters = Counters(options["path"])
    try:
        return Stats(device, counters)
    except BaseException:
        counters.close()
        raise
