"""A block device with bad sectors: a loop device over a file of a file system of ours (FUSE).

As a program, ``bad_disk.py FOLDER SIZE [OFFSET ...]`` is that file system. In its one file, ``disk``, the bytes at the
offsets cannot be read until they are written. Reads come past its page cache, so a sector is refused by itself.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 20.0  # seconds until the file system is there


@contextlib.contextmanager
def bad_disk(folder: Path, size: int, *bad: int) -> Iterator[str]:
    """The path of a block device of ``size`` bytes in 512-byte sectors; those with the bytes ``bad`` cannot be read."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("needs root and FUSE, to have a device with bad sectors")
    folder.mkdir()
    argv = [sys.executable, __file__, str(folder), str(size), *map(str, bad)]
    with contextlib.ExitStack() as stack:
        system = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        stack.callback(system.wait, PATIENCE)
        stack.callback(_unmount, folder)
        deadline = time.monotonic() + PATIENCE
        while not (folder / "disk").exists():
            assert system.poll() is None and time.monotonic() < deadline, "the file system did not come"
            time.sleep(0.02)
        command = ["losetup", "--find", "--show", str(folder / "disk")]
        device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        stack.callback(_until_free, device)
        stack.callback(subprocess.run, ["losetup", "--detach", device], check=True)
        yield device


def _unmount(folder: Path) -> None:
    """From the tree at least: what stays would be in the way of everybody who empties it."""
    if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _until_free(device: str) -> None:
    """Detaching is not done when losetup is, and the file system cannot go before."""
    deadline = time.monotonic() + PATIENCE
    while Path("/sys/block", Path(device).name, "loop").exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def serve(folder: str, size: int, bad: list[int]) -> None:
    """Be the file system, until it is unmounted."""
    import mfusepy

    data = bytearray(size)

    class System(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            if path == "/disk":
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}
            raise mfusepy.FuseOSError(errno.ENOENT)

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", "disk"]

        def open(self, path: str, flags: int) -> int:
            return 0

        def read(self, path: str, length: int, offset: int, fh: int) -> bytes:
            if any(offset <= at < offset + length for at in bad):
                raise mfusepy.FuseOSError(errno.EIO)
            return bytes(data[offset : offset + length])

        def write(self, path: str, piece: bytes, offset: int, fh: int) -> int:
            data[offset : offset + len(piece)] = piece
            bad[:] = [at for at in bad if not offset <= at < offset + len(piece)]
            return len(piece)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            return 0

    mfusepy.FUSE(System(), folder, foreground=True, direct_io=True, nothreads=True)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), [int(word) for word in sys.argv[3:]])
