"""A device that records what is asked of it, for layers to be put over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iscsid.block.device import Device, Mode, Threading

SIZE = 1 << 20


class Recorder(Device):
    """Memory with all calls. ``calls`` are (name, offset, length); ``fail`` raises what it likes before each."""

    size = SIZE
    threading = Threading.PARALLEL
    mode = Mode.BLOCKING
    discard_zeroes = True

    def __init__(self) -> None:
        self.memory = bytearray(self.size)
        self.calls: list[tuple[str, int, int]] = []
        self.fail: Callable[[str, int, int], Any] = lambda name, offset, length: None
        self.closed = False

    def _note(self, name: str, offset: int = 0, length: int = 0) -> None:
        self.calls.append((name, offset, length))
        self.fail(name, offset, length)

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._note("read_into", offset, len(buffer))
        buffer[:] = self.memory[offset : offset + len(buffer)]

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        self._note("read_nowait", offset, len(buffer))
        buffer[:] = self.memory[offset : offset + len(buffer)]

    def write(self, data: memoryview, offset: int) -> None:
        self._note("write", offset, len(data))
        self.memory[offset : offset + len(data)] = data

    def write_nowait(self, data: memoryview, offset: int) -> None:
        self._note("write_nowait", offset, len(data))
        self.memory[offset : offset + len(data)] = data

    def write_fua(self, data: memoryview, offset: int) -> None:
        self._note("write_fua", offset, len(data))
        self.memory[offset : offset + len(data)] = data

    def flush(self) -> None:
        self._note("flush")

    def discard(self, offset: int, length: int) -> None:
        self._note("discard", offset, length)
        self.memory[offset : offset + length] = bytes(length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self._note("write_zeroes", offset, length)
        self.memory[offset : offset + length] = bytes(length)

    def close(self) -> None:
        self.closed = True


def read(device: Any, offset: int = 0, length: int = 4096) -> bytes:
    buffer = bytearray(length)
    device.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def write(device: Any, data: bytes, offset: int = 0) -> None:
    device.write(memoryview(data), offset)


class Disk:
    """Stands for ``os`` in the module: what was written and not synced may be on the medium or not, page by page."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pending: list[tuple[bytes, int]] = []
        self.durable = bytearray()
        self.images: list[tuple[bytearray, list[tuple[bytes, int]], int]] = []
        self.synced = -1  # the last step that a sync had finished

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        self.pending.append((bytes(data), offset))
        self.crash()
        return os.pwrite(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self.durable[:] = Path(self.path).read_bytes()
        self.pending.clear()
        self.crash()

    def crash(self) -> None:
        self.images.append((bytearray(self.durable), list(self.pending), self.synced))


class Volatile(Recorder):
    """A Recorder with a write cache: ``pending`` is what was written since the last flush, ``durable`` the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.durable = bytearray(self.memory)
        self.pending: list[tuple[bytes, int]] = []

    def write(self, data: memoryview, offset: int) -> None:
        super().write(data, offset)
        self.pending += [(bytes(data[at : at + 512]), offset + at) for at in range(0, len(data), 512)]

    def flush(self) -> None:
        super().flush()
        self.durable[:] = self.memory
        self.pending.clear()
