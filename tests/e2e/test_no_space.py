"""A file on a file system that is full: what does not fit is refused by its name, and nothing else is lost."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_initiator import Initiator
from e2e_server import Server, run_judge

StartServer = Callable[..., Server]

SPACE_ALLOCATION_FAILED = (0x7, 0x27, 0x07)  # DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT (SBC-3 4.7.3.6)
SPACE = 256 << 10
PIECE = 4096
BLOCKS = PIECE // 512
PIECES = SPACE // PIECE


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file system of SPACE bytes."""
    if os.geteuid() != 0:
        pytest.skip("a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        run_judge("mount", "-t", "tmpfs", "-o", f"size={SPACE}", "none", folder)
    except AssertionError as error:
        pytest.skip(f"a small file system cannot be mounted here: {error}")
    yield folder
    run_judge("umount", folder)


def write(initiator: Initiator, piece: int) -> tuple[int, int, int] | None:
    """Write a piece; None, or the sense key, ASC and ASCQ that it was refused with."""
    cdb = struct.pack(">BBQIBB", 0x8A, 0, piece * BLOCKS, BLOCKS, 0, 0)
    status, data = initiator.command(cdb, bytes([piece % 255 + 1]) * PIECE)
    if status == 0:
        return None
    sense = data[2:]  # behind SenseLength (RFC 7143 11.4.7.2)
    return sense[2] & 0xF, sense[12], sense[13]


def unmap(initiator: Initiator, piece: int) -> int:
    descriptor = struct.pack(">QII", piece * BLOCKS, BLOCKS, 0)
    cdb = struct.pack(">BBIBHB", 0x42, 0, 0, 0, 8 + len(descriptor), 0)
    return initiator.command(cdb, struct.pack(">HHI", 6 + len(descriptor), len(descriptor), 0) + descriptor)[0]


def test_write_that_finds_no_space_is_refused_and_the_disk_goes_on(small: Path, start: StartServer) -> None:
    server = start([{"backend": "file", "path": small / "disk.img", "size": "64 MiB"}])
    with Initiator(server.address) as initiator:
        results = [write(initiator, piece) for piece in range(PIECES + 1)]
        written = results.index(SPACE_ALLOCATION_FAILED)
        assert written > PIECES // 2
        assert set(results[:written]) == {None} and set(results[written:]) == {SPACE_ALLOCATION_FAILED}
        for piece in range(written):
            assert initiator.read(piece * BLOCKS, BLOCKS) == bytes([piece % 255 + 1]) * PIECE
        assert write(initiator, 1) is None  # what has its blocks can be written
        assert unmap(initiator, 0) == 0
        assert write(initiator, 10 * PIECES) is None  # and what was given back can be had again
