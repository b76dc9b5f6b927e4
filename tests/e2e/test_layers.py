"""Layers in a real server: a limit over two workers, errors that initiators see, overlays, and killed workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from e2e_server import TARGET, Server, wait_until

from iscsid.errors import ConnectionFailed, InitiatorError, SenseError
from iscsid.initiator import Disk, open_disk

StartServer = Callable[..., Server]
ONE, TWO = "iqn.2026-11.org.iscsid.e2e:one", "iqn.2026-11.org.iscsid.e2e:two"
SIZE = "16 MiB"


def lun(folder: Path, *layers: dict[str, Any], name: str = "disk") -> dict[str, Any]:
    return {"backend": "file", "path": folder / name, "size": SIZE, "layers": list(layers)}


def layer_command(server: Server, verb: str, number: int = 0) -> dict[str, Any]:
    argv = [sys.executable, "-m", "iscsid", "layer", verb, str(server.config), TARGET, str(number), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def reads(disk: Disk, count: int) -> None:
    buffers = [bytearray(4096) for _ in range(count)]
    for task in [disk.submit_read(index * 4096, buffer) for index, buffer in enumerate(buffers)]:
        disk.wait(task)


def test_rate_is_that_of_the_lun_on_however_many_workers(start: StartServer, tmp_path: Path) -> None:
    server = start([lun(tmp_path, {"layer": "rate", "iops": 60, "burst": 0}), lun(tmp_path, name="free")])
    with open_disk(server.url(), initiator_name=ONE) as one, open_disk(server.url(), initiator_name=TWO) as two:
        workers = {server.worker_of(name) for name in (ONE, TWO)}
        assert len(workers) == 2
        begun = time.monotonic()
        threads = [threading.Thread(target=reads, args=(disk, 60)) for disk in (one, two)]
        for thread in threads:
            thread.start()
        with open_disk(server.url(1), initiator_name=ONE) as free:
            freely = time.monotonic()
            for _ in range(20):
                free.read(0, 4096)
            assert time.monotonic() - freely < 1.5  # nobody waits for the LUN beside
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun >= 119 / 60


def test_delay_is_no_limit_of_throughput(start: StartServer, tmp_path: Path) -> None:
    server = start([lun(tmp_path, {"layer": "delay", "read": 1000})], workers=1)
    names = [f"{ONE}{number}" for number in range(4)]  # each may have sixteen reads under way that are not at hand
    with ExitStack() as stack:
        disks = [stack.enter_context(open_disk(server.url(), initiator_name=name)) for name in names]
        threads = [threading.Thread(target=reads, args=(disk, 16)) for disk in disks]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1.0 <= time.monotonic() - begun < 3.9  # sixteen threads would take 4 seconds for 64 of them


def test_wrong_bit_is_a_medium_error(start: StartServer, tmp_path: Path) -> None:
    checksum = {"layer": "checksum", "path": tmp_path / "sums"}
    server = start([lun(tmp_path, checksum)])
    with open_disk(server.url()) as disk:
        disk.write(0, b"x" * 65536)
        disk.flush()
        with (tmp_path / "disk").open("r+b") as file:
            file.seek(10000)
            file.write(b"y")
        assert disk.read(0, 8192) == b"x" * 8192
        with pytest.raises(SenseError) as caught:
            disk.read(8192, 4096)
        assert caught.value.key == 0x3  # MEDIUM ERROR
    server.stop()
    argv = [sys.executable, "-m", "iscsid", "layer", "verify", str(server.config), TARGET, "0"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert "sound: no" in done.stdout


def test_overlay_survives_a_killed_worker_and_is_committed(start: StartServer, tmp_path: Path) -> None:
    server = start([lun(tmp_path, {"layer": "cow", "path": tmp_path / "overlay"})])
    disk_path = tmp_path / "disk"
    with open_disk(server.url(), initiator_name=ONE) as disk:
        disk.write(4096, b"x" * 4096)  # and no flush
        index = server.worker_of(ONE)
        victim = server.workers()[index]
        assert victim is not None
        server.remember_children()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: server.workers()[index] not in (None, victim), "another worker")
        assert read_after(server, 4096, 4096) == b"x" * 4096
    assert not any(disk_path.read_bytes())
    server.stop()
    assert layer_command(server, "commit") == {"committed": 65536}
    assert disk_path.read_bytes()[4096:8192] == b"x" * 4096


def test_dirty_cache_survives_a_killed_worker(start: StartServer, tmp_path: Path) -> None:
    server = start([lun(tmp_path, {"layer": "cache", "mode": "back"})])
    with open_disk(server.url(), initiator_name=ONE) as disk:
        disk.write(4096, b"x" * 4096)
        assert not any((tmp_path / "disk").read_bytes())
        index = server.worker_of(ONE)
        victim = server.workers()[index]
        assert victim is not None
        server.remember_children()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: server.workers()[index] not in (None, victim), "another worker")
        assert read_after(server, 4096, 4096) == b"x" * 4096
    server.stop()
    assert (tmp_path / "disk").read_bytes()[4096:8192] == b"x" * 4096


def read_after(server: Server, offset: int, length: int) -> bytes:
    """A read by a new session, as soon as one is let in."""
    found: list[bytes] = []

    def tried() -> bool:
        try:
            with open_disk(server.url(), initiator_name=TWO) as disk:
                found.append(bytes(disk.read(offset, length)))
        except (ConnectionFailed, InitiatorError, OSError):
            return False
        return True

    wait_until(tried, "a session after the worker's death")
    return found[0]


def test_stats_of_all_workers_are_shown_while_they_count(start: StartServer, tmp_path: Path) -> None:
    server = start([lun(tmp_path, {"layer": "stats", "path": tmp_path / "counters"})])
    with open_disk(server.url(), initiator_name=ONE) as one, open_disk(server.url(), initiator_name=TWO) as two:
        reads(one, 30)
        reads(two, 40)
        answer = layer_command(server, "stats")
        assert answer["read"]["calls"] >= 70
        assert answer["read"]["bytes"] >= 70 * 4096


def test_cache_has_written_all_when_a_reload_puts_a_layer_under_it(start: StartServer, tmp_path: Path) -> None:
    """The new stack is opened when the old one is closed, and has its data below."""
    server = start([lun(tmp_path, {"layer": "cache", "mode": "back"})])
    with open_disk(server.url()) as disk:
        disk.write(4096, b"x" * 4096)
        text = server.config.read_text()
        server.config.write_text(text.replace("layers = [", 'layers = [{ layer = "protect", size = 512 }, '))
        argv = [sys.executable, "-m", "iscsid", "reload", "-d", server.runtime_dir]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert disk.read(4096, 4096) == b"x" * 4096
        with pytest.raises(InitiatorError, match=r"(?i)protect"):
            disk.write(0, b"y" * 512, fua=True)
    server.stop()
    assert (tmp_path / "disk").read_bytes()[4096:8192] == b"x" * 4096


def test_layers_of_a_lun_that_a_reload_adds_share_what_was_prepared(start: StartServer, tmp_path: Path) -> None:
    server = start([lun(tmp_path)])
    text = server.config.read_text()
    rate = '{ layer = "rate", iops = 200, burst = 0 }'
    server.config.write_text(f'{text}\n[[target.lun]]\nlun = 1\nbackend = "ram"\nsize = "{SIZE}"\nlayers = [{rate}]\n')
    argv = [sys.executable, "-m", "iscsid", "reload", "-d", server.runtime_dir]
    subprocess.run(argv, capture_output=True, timeout=60, check=True)
    with open_disk(server.url(1), initiator_name=ONE) as one, open_disk(server.url(1), initiator_name=TWO) as two:
        assert len({server.worker_of(name) for name in (ONE, TWO)}) == 2
        begun = time.monotonic()
        threads = [threading.Thread(target=reads, args=(disk, 40)) for disk in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun >= 79 / 200
