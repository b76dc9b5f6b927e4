"""Disks of the host, with what happens to disks: bad sectors, growth, unplugging, write protection."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_disk import bad_disk
from e2e_server import TARGET, Server, run_judge, wait_until

from iscsid.errors import SenseError
from iscsid.initiator import open_disk

StartServer = Callable[..., Server]
LoopDevice = Callable[[int, int], tuple[str, Path]]

pytestmark = pytest.mark.judge("losetup")
MIB = 1 << 20
BAD = 2052


def sense(call: Callable[[], object]) -> tuple[int, int, int, int | None]:
    with pytest.raises(SenseError) as caught:
        call()
    error = caught.value
    return error.key, error.asc, error.ascq, error.information


@pytest.mark.judge("qemu-io")
@pytest.mark.parametrize("direct", [False, True])
def test_bad_sector_is_told_by_its_number_and_healed_by_a_write(
    start: StartServer, tmp_path: Path, direct: bool
) -> None:
    with bad_disk(tmp_path / "bad", 4 * MIB, BAD * 512 + 17) as path:
        server = start([{"backend": "block", "path": path, "direct": direct, "layers": [{"layer": "delay"}]}])
        with open_disk(server.url()) as disk:
            for offset, length in ((MIB, 2 * MIB), (BAD * 512, 512), ((BAD - 1) * 512, 1024)):
                assert sense(lambda at=offset, size=length: disk.read(at, size)) == (0x03, 0x11, 0x00, BAD)
            assert disk.read((BAD - 4) * 512, 4 * 512) == bytes(4 * 512)
            assert disk.read((BAD + 1) * 512, 3 * 512) == bytes(3 * 512)
            disk.write(BAD * 512, b"x" * 512)
            disk.flush()
            assert disk.read((BAD - 1) * 512, 1536) == bytes(512) + b"x" * 512 + bytes(512)
        output = run_judge("qemu-io", "-f", "raw", "-c", f"read -P 0x78 {BAD * 512} 512", server.url())
        assert "failed" not in output
        server.stop()


def test_device_that_has_grown_is_served_as_large_as_it_is(start: StartServer, loop_device: LoopDevice) -> None:
    path, backing = loop_device(16 * MIB, 512)
    server = start([{"backend": "block", "path": path}])
    with open_disk(server.url()) as disk:
        assert disk.size == 16 * MIB
        grow(path, backing, 32 * MIB)
        done = server.ask_command("lun", "resize", TARGET, "0")
        assert not done.returncode, done.stderr
        disk.test_unit_ready()
        assert [(data[2] & 0x0F, data[12], data[13]) for data in disk.attentions][-1] == (0x06, 0x2A, 0x09)
    with open_disk(server.url()) as disk:
        assert disk.size == 32 * MIB
        disk.write(32 * MIB - 512, b"x" * 512)
        disk.flush()
    assert backing.read_bytes()[-512:] == b"x" * 512


def grow(path: str, backing: Path, size: int) -> None:
    os.truncate(backing, size)
    run_judge("losetup", "--set-capacity", path)


def test_device_that_is_gone_is_not_ready_and_status_says_so(start: StartServer, loop_device: LoopDevice) -> None:
    path, backing = loop_device(16 * MIB, 512)
    server = start([{"backend": "block", "path": path}, {"backend": "ram", "size": "16 MiB"}])
    with open_disk(server.url()) as disk, open_disk(server.url(1)) as neighbour:
        grow(path, backing, 0)
        for call in (lambda: disk.write(0, b"x" * 4096), lambda: disk.read(MIB, 4096)):
            assert sense(call)[:3] == (0x02, 0x04, 0x00)
        neighbour.write(0, b"x" * 4096)
        wait_until(
            lambda: f"{path} is gone" in server.ask_command("status").stdout, "status tells that the disk is gone"
        )
        grow(path, backing, 16 * MIB)
        disk.write(0, b"y" * 4096)
        disk.flush()
        assert disk.read(0, 4096) == b"y" * 4096


def test_device_that_is_write_protected_is_served_so(start: StartServer, loop_device: LoopDevice) -> None:
    path, _ = loop_device(16 * MIB, 4096)
    run_judge("blockdev", "--setro", path)
    try:
        server = start([{"backend": "block", "path": path}])
        with open_disk(server.url()) as disk:
            assert disk.block_size == 4096
            assert disk.read(0, 4096) == bytes(4096)
            assert sense(lambda: disk.write(0, bytes(4096)))[:3] == (0x07, 0x27, 0x00)
    finally:
        run_judge("blockdev", "--setrw", path)  # the kernel keeps it for the next one who gets this device


@pytest.mark.judge("mkfs.ext4", "mount")
def test_mounted_device_is_neither_served_nor_found_right(
    start: StartServer, loop_device: LoopDevice, tmp_path: Path
) -> None:
    path, _ = loop_device(16 * MIB, 512)
    server = start([{"backend": "block", "path": path}])
    assert "in use" in run_judge("mkfs.ext4", "-q", path, check=False)
    server.stop()
    run_judge("mkfs.ext4", "-q", path)
    point = tmp_path / "mnt"
    point.mkdir()
    run_judge("mount", path, point)
    try:
        words = f"{path} is in use: {path} is mounted on {point}"
        for command in ("check", "serve"):
            argv = [
                sys.executable,
                "-m",
                "iscsid",
                command,
                *(["-c"] if command == "serve" else []),
                str(server.config),
            ]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode
            assert words in done.stdout + done.stderr
    finally:
        run_judge("umount", point)
