"""The device below stays as it is; the overlay is committed or forgotten."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layer_kit import SIZE, Recorder, read, write

from iscsid.block.guard import Guarded
from iscsid.errors import PluginError
from iscsid.plugin.manager import Plugins

Wrap = Callable[..., Any]
READS = {"read_into", "read_nowait"}


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "overlay")


def test_writes_are_read_and_never_reach_the_device_below(below: Recorder, wrap: Wrap, path: str) -> None:
    below.memory[:] = original = random.Random(1).randbytes(SIZE)
    guard, model = Guarded(wrap(below, "cow", path=path, cluster=4096)), bytearray(original)
    rng = random.Random(2)
    for _ in range(200):
        offset = rng.randrange(SIZE // 512 - 64) * 512
        data = rng.randbytes(rng.randint(1, 64) * 512)
        model[offset : offset + len(data)] = data
        write(guard, data, offset)
        assert read(guard, offset, len(data)) == data
    assert read(guard, 0, SIZE) == model
    assert below.memory == original
    assert set(below.names()) <= READS
    guard.close()


def test_overlay_is_writable_over_a_device_that_is_not(below: Recorder, wrap: Wrap) -> None:
    below.readonly = True
    guard = Guarded(wrap(below, "cow"))
    write(guard, b"x" * 512, 512)
    assert read(guard, 0, 1024) == bytes(512) + b"x" * 512
    guard.close()


def test_whole_clusters_are_not_read_from_below(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "cow"))
    write(guard, b"x" * (3 * 65536 + 512), 65536)
    assert below.calls == [("read_into", 4 * 65536, 65536)]
    guard.close()


def test_last_cluster_may_be_shorter(wrap: Wrap, below: Recorder) -> None:
    below.size = SIZE - 512
    guard = Guarded(wrap(below, "cow"))
    write(guard, b"x" * 512, SIZE - 1024)
    write(guard, b"y" * 1024, SIZE - 2048)
    assert read(guard, SIZE - 2048, 1536) == b"y" * 1024 + b"x" * 512
    guard.close()


def test_threads_that_write_one_cluster_lose_nothing(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "cow"))
    threads = [threading.Thread(target=write, args=(guard, bytes([n + 1]) * 512, n * 512)) for n in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(guard, 0, 32 * 512) == b"".join(bytes([n + 1]) * 512 for n in range(32))
    guard.close()


def test_overlay_in_memory_outlives_its_worker(below: Recorder, all_plugins: Plugins) -> None:
    ((name, options),) = prepared = all_plugins.prepare_layers([("cow", {})])
    child = os.fork()
    if not child:
        write(all_plugins.wrap(below, name, options), b"x" * 512)
        os._exit(0)  # as if it were killed
    assert os.waitpid(child, 0)[1] == 0
    device = all_plugins.wrap(below, name, options)
    assert read(device, 0, 512) == b"x" * 512
    device.close()
    all_plugins.release_layers(prepared)


def test_failure_below_leaves_the_cluster_as_it_was(below: Recorder, wrap: Wrap) -> None:
    guard = Guarded(wrap(below, "cow"))

    def fail(*_: Any) -> None:
        raise OSError(5, "a scratch")

    below.fail = fail
    with pytest.raises(OSError, match="a scratch"):
        write(guard, b"x" * 512)
    below.fail = lambda *_: None
    assert read(guard, 0, 512) == bytes(512)
    guard.close()


def test_commit_writes_below_flushes_and_empties(below: Recorder, wrap: Wrap, all_plugins: Plugins, path: str) -> None:
    guard = Guarded(wrap(below, "cow", path=path, cluster=4096))
    write(guard, b"x" * 8192, 4096)
    guard.flush()
    guard.close()
    answer = all_plugins.layer_verb("cow", {"path": path}, "commit", lambda: below)
    assert answer == {"committed": 8192}
    assert below.names()[-2:] == ["write", "flush"]
    assert below.memory == bytes(4096) + b"x" * 8192 + bytes(SIZE - 12288)
    assert all_plugins.layer_verb("cow", {"path": path}, "commit", lambda: below) == {"committed": 0}


def test_commit_that_fails_can_be_repeated(below: Recorder, wrap: Wrap, all_plugins: Plugins, path: str) -> None:
    guard = Guarded(wrap(below, "cow", path=path))
    write(guard, b"x" * 512)
    guard.flush()
    guard.close()

    def fail(name: str, *_: Any) -> None:
        if name == "flush":
            raise OSError(5, "a scratch")

    below.fail = fail
    with pytest.raises(PluginError, match="cow"):
        all_plugins.layer_verb("cow", {"path": path}, "commit", lambda: below)
    below.fail = lambda *_: None
    assert all_plugins.layer_verb("cow", {"path": path}, "commit", lambda: below) == {"committed": 65536}


def test_discard_forgets_the_overlay(below: Recorder, wrap: Wrap, all_plugins: Plugins, path: str) -> None:
    guard = Guarded(wrap(below, "cow", path=path))
    write(guard, b"x" * 512)
    guard.flush()
    with pytest.raises(PluginError, match="in use"):
        all_plugins.layer_verb("cow", {"path": path}, "discard", lambda: below)
    guard.close()
    all_plugins.layer_verb("cow", {"path": path}, "discard", lambda: below)
    guard = Guarded(wrap(below, "cow", path=path))
    assert read(guard, 0, 512) == bytes(512)
    guard.close()


def test_overlay_in_memory_has_no_verbs(below: Recorder, all_plugins: Plugins) -> None:
    with pytest.raises(PluginError, match="ends with the server"):
        all_plugins.layer_verb("cow", {}, "commit", lambda: below)
