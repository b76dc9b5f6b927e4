"""Wrong data is an error; a crash is none, and loses nothing that was flushed."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from iscsid_plugins import sums
from layer_kit import SIZE, Disk, Recorder, Volatile, read, write
from turns import leaves

from iscsid.block.guard import Guarded
from iscsid.block.turn import pause
from iscsid.errors import BlockError, Fault
from iscsid.plugin.manager import Plugins

Wrap = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "sums")


def fault_of(call: Callable[..., Any], *arguments: Any) -> Fault | None:
    try:
        call(*arguments)
    except BlockError as error:
        return error.fault
    return None


@pytest.mark.parametrize(("offset", "length"), [(4096, 4096), (8192, 512), (0, 65536), (7680, 1024)])
def test_flipped_bit_is_an_error_wherever_it_is_read(
    below: Recorder, wrap: Wrap, path: str, offset: int, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    guard = Guarded(wrap(below, "checksum", path=path))
    write(guard, random.Random(1).randbytes(65536))
    below.memory[offset + length // 2] ^= 4
    assert fault_of(read, guard, offset, length) is Fault.READ_ERROR
    assert "is not what was written" in caplog.text
    guard.close()


def test_rest_of_the_device_is_read_and_the_unit_can_be_written_anew(below: Recorder, wrap: Wrap, path: str) -> None:
    guard = Guarded(wrap(below, "checksum", path=path))
    write(guard, b"x" * 65536)
    below.memory[5000] ^= 4
    assert read(guard, 0, 4096) == b"x" * 4096
    assert fault_of(write, guard, b"y" * 512, 4096) is Fault.READ_ERROR  # it would make wrong data right
    write(guard, b"y" * 4096, 4096)
    assert read(guard, 4096, 4096) == b"y" * 4096
    guard.close()


def test_old_data_is_not_compared(below: Recorder, wrap: Wrap, path: str) -> None:
    below.memory[:] = old = random.Random(3).randbytes(SIZE)
    guard = Guarded(wrap(below, "checksum", path=path))
    assert read(guard, 0, SIZE) == old
    write(guard, b"x" * 512, 512)
    assert read(guard, 0, 4096) == old[:512] + b"x" * 512 + old[1024:4096]
    below.memory[2000] ^= 1  # in a unit that has a sum now
    assert fault_of(read, guard, 0, 512) is Fault.READ_ERROR
    guard.close()


def test_sums_outlive_a_restart(below: Recorder, wrap: Wrap, path: str) -> None:
    guard = Guarded(wrap(below, "checksum", path=path))
    write(guard, b"x" * 4096)
    guard.close()
    below.memory[100] ^= 1
    guard = Guarded(wrap(below, "checksum", path=path))
    assert fault_of(read, guard) is Fault.READ_ERROR
    guard.close()


def test_short_last_unit_is_covered(wrap: Wrap, path: str, below: Recorder) -> None:
    below.size = SIZE - 1536
    guard = Guarded(wrap(below, "checksum", path=path))
    write(guard, b"x" * 512, below.size - 512)
    assert read(guard, below.size - 1024, 1024) == bytes(512) + b"x" * 512
    below.memory[below.size - 1] ^= 1
    assert fault_of(read, guard, below.size - 512, 512) is Fault.READ_ERROR
    guard.close()


@pytest.mark.parametrize(
    ("back", "length"),
    [(8192, 7680), (8192, 8192), (6656, 6656), (6656, 6144), (6144, 5632), (3072, 3072), (3072, 2560), (2560, 2560)],
)
def test_write_that_ends_in_a_short_last_unit_has_its_sums_right(
    wrap: Wrap, path: str, below: Recorder, back: int, length: int
) -> None:
    """``back`` from the end; the last unit has 2560 bytes."""
    below.size = SIZE - 1536
    guard = Guarded(wrap(below, "checksum", path=path))
    write(guard, b"o" * below.size)
    offset = below.size - back
    write(guard, b"n" * length, offset)
    assert read(guard, 0, below.size) == b"o" * offset + b"n" * length + b"o" * (back - length)
    guard.close()


@pytest.mark.parametrize("offset", [0, 512, 4096, SIZE])
def test_write_of_nothing_does_nothing(wrap: Wrap, path: str, below: Recorder, offset: int) -> None:
    guard = Guarded(wrap(below, "checksum", path=path))
    write(guard, b"", offset)
    read(guard, offset, 0)
    assert "write" not in below.names()
    guard.close()


def test_write_that_failed_leaves_nothing_to_be_compared(below: Recorder, wrap: Wrap, path: str) -> None:
    guard = Guarded(wrap(below, "checksum", path=path))
    write(guard, b"x" * 8192)

    def fail(name: str, *_: Any) -> None:
        if name == "write":
            below.memory[:512] = b"y" * 512  # half of it
            raise OSError(5, "a scratch")

    below.fail = fail
    with pytest.raises(OSError, match="a scratch"):
        write(guard, b"y" * 4096)
    below.fail = lambda *_: None
    assert read(guard, 0, 512) == b"y" * 512
    guard.close()


def test_verify_tells_what_differs(below: Recorder, wrap: Wrap, path: str, all_plugins: Plugins) -> None:
    guard = Guarded(wrap(below, "checksum", path=path))
    write(guard, b"x" * 65536)
    guard.close()
    below.memory[5000] ^= 1
    answer = all_plugins.layer_verb("checksum", {"path": path}, "verify", lambda: below)
    assert answer == {"covered": 65536, "sound": False, "wrong_units": 1, "offsets": [4096]}


@pytest.mark.parametrize("seed", range(6))
def test_crash_at_any_moment_raises_no_alarm_and_loses_nothing_flushed(
    wrap: Wrap, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Of what is not flushed, a random half reaches each medium, sector by sector."""
    caplog.set_level(logging.CRITICAL)
    rng, below = random.Random(seed), Volatile()
    guard = Guarded(wrap(below, "checksum", path=path))
    disk, states = Disk(path), [bytearray(SIZE)]
    disk.durable[:] = Path(path).read_bytes()
    monkeypatch.setattr(sums, "os", disk)
    crash = rng.randrange(5, 60)
    flushed = 0
    for _ in range(crash):
        if rng.random() < 0.2:
            guard.flush()
            flushed = len(states) - 1
        else:
            offset = rng.randrange(60) * 512
            data = rng.randbytes(rng.randint(1, 20) * 512)
            states.append(bytearray(states[-1]))
            states[-1][offset : offset + len(data)] = data
            write(guard, data, offset)
    monkeypatch.undo()
    image = bytearray(disk.durable)
    for data, offset in disk.pending:
        if rng.random() < 0.5:
            image[offset : offset + len(data)] = data
    after = Recorder()
    after.memory[:] = below.durable
    for data, offset in below.pending:
        if rng.random() < 0.5:
            after.memory[offset : offset + len(data)] = data
    Path(path + ".after").write_bytes(image)
    guard.close()
    found = Guarded(wrap(after, "checksum", path=path + ".after"))
    content = read(found, 0, SIZE)
    for at in range(0, SIZE, 512):
        assert content[at : at + 512] in {bytes(state[at : at + 512]) for state in states[flushed:]}
    write(found, bytes(4096))
    found.close()
    after.memory[rng.randrange(512)] ^= 1
    found = Guarded(wrap(after, "checksum", path=path + ".after"))
    assert fault_of(read, found, 0, 4096) is Fault.READ_ERROR
    found.close()


def test_write_that_pauses_half_way_is_no_corruption_to_anybody(below: Recorder, wrap: Wrap, path: str) -> None:
    guard = Guarded(wrap(below, "checksum", path=path))
    write(guard, b"x" * 8192)
    plain = below.write

    def torn(data: memoryview, offset: int) -> None:
        plain(data[:512], offset)  # as a layer does it that tries again what has failed
        pause("retry", lambda: 1.0, lambda _seconds: None)
        plain(data, offset)

    below.write = torn  # type: ignore[method-assign]
    assert leaves(lambda: write(guard, b"y" * 4096, 2048)) == 0
    assert read(guard, 0, 8192) == b"x" * 2048 + b"y" * 4096 + b"x" * 2048
    guard.close()
