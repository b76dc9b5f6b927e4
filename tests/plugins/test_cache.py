"""Hits do not go below, nothing old is read, and a flush is honest."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from layer_kit import SIZE, Recorder, Volatile, read, write

from iscsid.block.guard import Guarded
from iscsid.plugin.manager import Plugins

Wrap = Callable[..., Any]
BACK = {"mode": "back", "size": "1 MiB", "dirty": "64 KiB"}  # sixteen blocks


def test_block_that_was_read_is_not_read_again(below: Recorder, wrap: Wrap) -> None:
    below.memory[:] = data = random.Random(1).randbytes(SIZE)
    guard = Guarded(wrap(below, "cache"))
    assert read(guard, 0, 65536) == data[:65536]
    below.calls.clear()
    assert read(guard, 4096, 8192) == data[4096:12288]
    buffer = bytearray(512)
    guard.read_now(memoryview(buffer), 512)
    assert (bytes(buffer), below.calls) == (data[512:1024], [])
    assert read(guard, 61440, 8192) == data[61440:69632]
    assert below.calls == [("read_into", 65536, 4096)]
    guard.close()


def test_long_reads_do_not_empty_the_cache(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "cache", size="1 MiB"))
    read(guard, 0, 4096)
    read(guard, 8192, 512 << 10)
    below.calls.clear()
    read(guard, 0, 4096)
    assert below.calls == []
    read(guard, 8192, 4096)
    assert below.names() == ["read_into"]
    guard.close()


@pytest.mark.parametrize("call", ["write", "write_nowait", "write_fua", "discard", "write_zeroes"])
def test_write_through_makes_what_was_kept_old(below: Recorder, wrap: Wrap, call: str) -> None:
    guard = Guarded(wrap(below, "cache"))
    below.memory[:] = b"a" * SIZE
    read(guard)
    {
        "write": lambda: guard.write(memoryview(b"b" * 512), 0),
        "write_nowait": lambda: guard.write_now(memoryview(b"b" * 512), 0),
        "write_fua": lambda: guard.write(memoryview(b"b" * 512), 0, True),
        "discard": lambda: guard.discard(0, 512),
        "write_zeroes": lambda: guard.write_zeroes(0, 512),
    }[call]()
    assert below.names()[-1] == call
    assert read(guard, 0, 1024) == bytes(below.memory[:1024]) != b"a" * 1024
    guard.close()


def test_read_during_a_write_is_not_kept(below: Recorder, wrap: Wrap) -> None:
    guard, entered, leave = Guarded(wrap(below, "cache")), threading.Event(), threading.Event()

    def hold(name: str, *_: Any) -> None:
        if name == "write":
            entered.set()
            assert leave.wait(20)

    below.fail = hold
    thread = threading.Thread(target=write, args=(guard, b"b" * 4096))
    thread.start()
    assert entered.wait(20)
    assert read(guard) == bytes(4096)
    leave.set()
    thread.join()
    assert read(guard) == b"b" * 4096
    guard.close()


def test_written_back_is_read_and_reaches_the_device_with_a_flush(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "cache", **BACK))
    assert guard.volatile
    write(guard, b"x" * 8192, 4096)
    assert read(guard, 4096, 8192) == b"x" * 8192
    assert below.calls == []
    guard.flush()
    assert below.calls == [("write", 4096, 8192), ("flush", 0, 0)]
    guard.flush()
    assert below.names() == ["write", "flush", "flush"]
    guard.close()


def test_no_more_is_dirty_than_is_said(below: Recorder, wrap: Wrap) -> None:
    device = wrap(below, "cache", **BACK)
    guard = Guarded(device)
    for at in range(0, SIZE, 4096):
        write(guard, b"x" * 4096, at)
        assert len(device._slots.dirty) <= 16
    write(guard, b"y" * SIZE)  # more than may be dirty, in one go
    assert len(device._slots.dirty) <= 16
    guard.close()
    assert below.memory == b"y" * SIZE


def test_part_of_a_block_is_completed_from_below(below: Recorder, wrap: Wrap) -> None:
    below.memory[:] = b"a" * SIZE
    guard = Guarded(wrap(below, "cache", **BACK))
    with pytest.raises(BlockingIOError):
        guard.write_now(memoryview(b"b" * 512), 512)
    write(guard, b"b" * 8192, 512)
    guard.write_now(memoryview(b"c" * 512), 1024)  # it is here now
    guard.close()
    assert below.memory[:12288] == b"a" * 512 + b"b" * 512 + b"c" * 512 + b"b" * 7168 + b"a" * 3584


def test_flush_that_cannot_write_fails_until_it_can_and_loses_nothing(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "cache", **BACK))
    write(guard, b"x" * 4096)

    def fail(*_: Any) -> None:
        raise OSError(5, "a scratch")

    below.fail = fail
    for _ in range(2):
        with pytest.raises(OSError, match="a scratch"):
            guard.flush()
    assert read(guard) == b"x" * 4096
    below.fail = lambda *_: None
    guard.flush()
    assert below.memory[:4096] == b"x" * 4096
    guard.close()


def test_read_that_meets_a_write_that_fails_half_way_is_not_kept(below: Recorder, wrap: Wrap) -> None:
    below.memory[:] = b"o" * SIZE
    device = wrap(below, "cache", **BACK)
    guard = Guarded(device)
    plain = below.read_into
    met: list[bytes] = []

    def slow(buffer: memoryview, offset: int) -> None:
        plain(buffer, offset)
        if offset:
            raise OSError(5, "a scratch")
        if not met:
            met.append(bytes(buffer))
            with pytest.raises(OSError, match="a scratch"):
                write(guard, b"n" * 4608)  # a whole block, and a part of one that cannot be read
            guard.flush()
            device._slots.drop(0)  # as if many others had come

    below.read_into = slow  # type: ignore[method-assign]
    assert read(guard) == b"o" * 4096
    assert below.memory[:4096] == b"n" * 4096
    assert read(guard) == b"n" * 4096
    guard.close()


def test_discard_keeps_what_is_dirty_around_it(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "cache", **BACK))
    write(guard, b"x" * 16384)
    guard.discard(512, 12288)
    assert read(guard, 0, 16384) == b"x" * 512 + bytes(12288) + b"x" * 3584
    guard.close()
    assert below.memory[:16384] == b"x" * 512 + bytes(12288) + b"x" * 3584


def test_what_a_dead_worker_had_not_written_below_is_not_lost(below: Recorder, all_plugins: Plugins) -> None:
    ((name, options),) = prepared = all_plugins.prepare_layers([("cache", BACK)])
    child = os.fork()
    if not child:
        write(all_plugins.wrap(below, name, options), b"x" * 12288, 4096)
        os._exit(0)  # as if it were killed
    assert os.waitpid(child, 0)[1] == 0
    assert not any(below.memory)
    device = all_plugins.wrap(below, name, options)
    assert read(device, 4096, 12288) == b"x" * 12288
    device.close()
    assert below.memory[4096:16384] == b"x" * 12288
    all_plugins.release_layers(prepared)


@pytest.mark.parametrize("options", [{"size": "1 MiB", "unit": "16 KiB"}, BACK])
@pytest.mark.parametrize("seed", range(3))
def test_random_calls_agree_with_a_model_and_flushed_data_survives_the_host(
    wrap: Wrap, options: dict[str, Any], seed: int
) -> None:
    rng, below = random.Random(seed), Volatile()
    guard, model = Guarded(wrap(below, "cache", **options)), bytearray(SIZE)
    for _ in range(400):
        offset = rng.randrange(SIZE // 1024) * 512
        length = rng.randint(1, 40) * 512
        what = rng.choice(("read", "read", "write", "write", "flush", "now"))
        if what == "write":
            model[offset : offset + length] = data = rng.randbytes(length)
            write(guard, data, offset)
        elif what == "flush":
            guard.flush()
            assert below.durable == model
        elif what == "now":
            buffer = bytearray(length)
            try:
                guard.read_now(memoryview(buffer), offset)
            except BlockingIOError:
                continue
            assert buffer == model[offset : offset + length]
        else:
            assert read(guard, offset, length) == model[offset : offset + length]
    guard.close()
    assert below.memory == model


@pytest.mark.parametrize("mode", ["through", "back"])
def test_threads_find_what_they_wrote(below: Recorder, wrap: Wrap, mode: str) -> None:
    guard = Guarded(wrap(below, "cache", mode=mode, size="1 MiB", **({"dirty": "64 KiB"} if mode == "back" else {})))
    failures: list[BaseException] = []

    def work(number: int) -> None:
        rng = random.Random(number)
        try:
            for _ in range(60):
                at = (rng.randrange(24) * 8 + number) * 512  # the threads share blocks, and no sector
                data = rng.randbytes(512)
                write(guard, data, at)
                assert read(guard, at, 512) == data
                if rng.random() < 0.05:
                    guard.flush()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    guard.close()


def test_bounds_that_do_not_fit_are_refused(all_plugins: Plugins) -> None:
    assert all_plugins.validate_layer("cache", {"dirty": 65536}) == ['dirty: is for mode = "back"']
    too_much = {"mode": "back", "size": "1 MiB", "dirty": "1 MiB"}
    assert all_plugins.validate_layer("cache", too_much) == ["dirty: 1048576 is more than half of size, 1048576"]


def test_discard_that_fails_loses_no_write_that_was_kept(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "cache", **BACK))
    write(guard, b"x" * 12288)

    def fail(name: str, *_: Any) -> None:
        if name == "write_zeroes":
            raise OSError(5, "no")

    below.fail = fail
    with pytest.raises(Exception, match="no"):
        guard.write_zeroes(0, 12288)
    below.fail = lambda *_: None
    guard.flush()
    assert bytes(below.memory[:12288]) == b"x" * 12288
    guard.close()


@pytest.mark.parametrize("when", ["write", "write_zeroes"])
def test_write_beside_a_range_that_is_being_zeroed_is_kept(below: Recorder, wrap: Wrap, when: str) -> None:
    """One block has both: the write must not be forgotten with it, and must not bring back what was zeroed."""
    below.memory[:] = b"o" * SIZE
    guard, entered, leave = Guarded(wrap(below, "cache", **BACK)), threading.Event(), threading.Event()
    if when == "write":
        write(guard, b"d" * 512, 1024)  # the block is dirty, and goes below first

    def hold(name: str, *_: Any) -> None:
        if name == when and not entered.is_set():
            entered.set()
            assert leave.wait(20)

    below.fail = hold
    zero = threading.Thread(target=guard.write_zeroes, args=(0, 512))
    zero.start()
    assert entered.wait(20)
    writer = threading.Thread(target=write, args=(guard, b"n" * 512, 2048))
    writer.start()
    writer.join(0.1)
    leave.set()
    zero.join(20)
    writer.join(20)
    guard.flush()
    assert read(guard, 0, 512) == bytes(below.memory[:512]) == bytes(512)
    assert read(guard, 2048, 512) == bytes(below.memory[2048:2560]) == b"n" * 512
    guard.close()
