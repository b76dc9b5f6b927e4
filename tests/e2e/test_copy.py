"""Random data onto a disk and back, by QEMU: every back end, block size and number of workers.

ISCSID_COPY_MIB sets how much is copied: 64 by default.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e_server import Server, run_judge, run_qemu_io

StartServer = Callable[..., Server]
LoopDevice = Callable[[int, int], tuple[str, Path]]

SIZE = int(os.environ.get("ISCSID_COPY_MIB", "64")) << 20
COPY_SECONDS = 100.0

pytestmark = pytest.mark.judge("qemu-img")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of random data, made once."""
    path = tmp_path_factory.mktemp("source") / "random.img"
    with path.open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(os.urandom(1 << 20))
    yield path
    path.unlink()


@pytest.fixture
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, loop_device: LoopDevice
) -> Callable[[str, int], tuple[dict[str, Any], Path | None]]:
    """``disk(backend, block_size)``: the LUN, and the file in which its data must be found afterwards."""

    def make(backend: str, block_size: int) -> tuple[dict[str, Any], Path | None]:
        if backend == "ram":
            return {"backend": "ram", "size": SIZE, "block_size": block_size}, None
        if backend == "file":
            path = tmp_path / "disk.img"
            return {"backend": "file", "path": path, "size": SIZE, "block_size": block_size}, path
        device, backing = loop_device(SIZE, block_size)
        return {"backend": "block", "path": device}, backing

    return make


def copy_there_and_back(source: Path, url: str, back: Path) -> None:
    raw = ("-f", "raw", "-O", "raw")
    run_judge("qemu-img", "convert", "-n", *raw, source, url, timeout=COPY_SECONDS)
    run_judge("qemu-img", "compare", "-f", "raw", "-F", "raw", source, url, timeout=COPY_SECONDS)
    run_judge("qemu-img", "convert", *raw, url, back, timeout=COPY_SECONDS)
    assert filecmp.cmp(source, back, shallow=False), "what came back differs"
    back.unlink()


@pytest.mark.judge("losetup")
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("backend", ["ram", "file", "block"])
def test_copy_there_and_back_is_equal(
    start: StartServer,
    disk: Callable[[str, int], tuple[dict[str, Any], Path | None]],
    source: Path,
    tmp_path: Path,
    backend: str,
    block_size: int,
    workers: int,
) -> None:
    lun, medium = disk(backend, block_size)
    server = start([lun], workers=workers)
    assert len(server.workers()) == workers
    copy_there_and_back(source, server.url(), tmp_path / "back.img")
    server.stop()
    if medium is not None:
        if backend == "block":
            run_judge("blockdev", "--flushbufs", str(lun["path"]))
        assert filecmp.cmp(source, medium, shallow=False), "the medium does not hold what was written"


@pytest.mark.parametrize("key", ["HeaderDigest", "DataDigest"])
def test_copy_with_digests_is_equal(start: StartServer, source: Path, tmp_path: Path, key: str) -> None:
    """libiscsi does header digests; what it cannot do it must be able to decline."""
    server = start([{"backend": "ram", "size": SIZE}])
    portal, target, lun = server.url().removeprefix("iscsi://").split("/")
    digest = "crc32c" if key == "HeaderDigest" else "none-crc32c"
    image = (
        f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal={portal},file.target={target},file.lun={lun},"
        f"file.header-digest={digest}"
    )
    run_judge("qemu-img", "convert", "-n", "-f", "raw", "--target-image-opts", source, image, timeout=COPY_SECONDS)
    run_judge("qemu-img", "compare", "-f", "raw", "-F", "raw", source, server.url(), timeout=COPY_SECONDS)
    back = tmp_path / "back.img"
    run_judge("qemu-img", "convert", "--image-opts", "-O", "raw", image, back, timeout=COPY_SECONDS)
    assert filecmp.cmp(source, back, shallow=False)


@pytest.mark.judge("qemu-io")
def test_discarded_and_zeroed_ranges_read_as_zeros_and_neighbours_stay(start: StartServer, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    server = start([{"backend": "file", "path": path, "size": SIZE}])
    run_qemu_io(
        server.url(),
        *("write -P 0xaa 0 8M", "discard 1M 2M", "write -z -u 4M 1M", "write -z 6M 512k", "flush"),
        *("read -P 0xaa 0 1M", "read -P 0 1M 2M", "read -P 0xaa 3M 1M", "read -P 0 4M 1M"),
        *("read -P 0xaa 5M 1M", "read -P 0 6M 512k", "read -P 0xaa 6656k 1M"),
    )
    assert path.stat().st_blocks * 512 <= 6 << 20, "the discarded ranges still take space"


@pytest.mark.judge("qemu-io")
@pytest.mark.parametrize("block_size", [512, 4096])
def test_first_thing_that_qemu_does_with_a_thin_disk_may_be_a_long_read(start: StartServer, block_size: int) -> None:
    """Nobody has asked for the state of the blocks before, so QEMU does; its driver has assertions on that way."""
    server = start([{"backend": "ram", "size": "64 MiB", "block_size": block_size}])
    run_qemu_io(server.url(), "read -P 0 0 1M")
