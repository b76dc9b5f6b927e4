"""Exports of NBD servers, served over iSCSI: to QEMU and to our own initiator, while their server comes and goes."""

from __future__ import annotations

import contextlib
import filecmp
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_server import Server, run_judge, run_qemu_io, wait_until

from iscsid.errors import InitiatorError
from iscsid.initiator import Provisioning, open_disk

sys.path.insert(0, str(Path(__file__).parent.parent / "backends"))

from nbd_kit import Process, nbdkit

StartServer = Callable[..., Server]
SIZE = 16 << 20

pytestmark = pytest.mark.judge("nbdkit")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Three MiB of data in a sparse file: at 1 MiB, and at 8 MiB."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset, length in ((1 << 20, 1 << 20), (8 << 20, 2 << 20)):
            file.seek(offset)
            file.write(os.urandom(length))
    return path


@pytest.fixture
def export(image: Path) -> Iterator[Process]:
    with nbdkit("file", str(image)) as server:
        yield server


@pytest.mark.judge("qemu-img")
def test_export_of_nbdkit_is_copied_by_qemu_and_its_holes_are_seen(
    image: Path, export: Process, start: StartServer, tmp_path: Path
) -> None:
    server = start([{"backend": "nbd", "uri": export.uri()}])
    back = tmp_path / "back.img"
    run_judge("qemu-img", "compare", "-f", "raw", "-F", "raw", image, server.url())
    run_judge("qemu-img", "convert", "-f", "raw", "-O", "raw", server.url(), back)
    assert filecmp.cmp(image, back, shallow=False)
    with open_disk(server.url()) as disk:
        found = [(at.offset, at.length) for at in disk.block_status() if at.status is Provisioning.MAPPED]
        assert found == [(1 << 20, 1 << 20), (8 << 20, 2 << 20)]
        disk.discard(8 << 20, 1 << 20)
        found = [(at.offset, at.length) for at in disk.block_status() if at.status is Provisioning.MAPPED]
        assert found == [(1 << 20, 1 << 20), (9 << 20, 1 << 20)]
    run_qemu_io(server.url(), "write -P 7 64k 64k", "flush", "write -f -P 8 256k 4k", "read -P 7 64k 64k")
    content = image.read_bytes()
    assert content[64 << 10 : 128 << 10] == b"\7" * 65536
    assert content[256 << 10 : 260 << 10] == b"\10" * 4096


def test_shared_export_is_served_by_all_workers_and_outlives_them_and_its_server(
    image: Path, export: Process, start: StartServer
) -> None:
    server = start([{"backend": "nbd", "uri": export.uri(), "shared": True}], workers=2)
    names = [f"iqn.2026-11.org.iscsid.e2e:{name}" for name in ("one", "two")]
    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(open_disk(server.url(), initiator_name=name)) for name in names]
        assert {server.worker_of(name) for name in names} == {0, 1}
        for turn, (writer, reader) in enumerate(((0, 1), (1, 0), (0, 1))):
            data = os.urandom(65536)
            disks[writer].write(turn << 16, data)
            assert image.read_bytes()[turn << 16 : turn + 1 << 16] == data
            assert disks[reader].read(turn << 16, 65536) == data
            if turn == 0:
                export.kill()
                export.start()
            elif turn == 1:
                victim = server.workers()[server.worker_of(names[0])]
                assert victim is not None
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda: victim not in server.workers() and None not in server.workers(), "a new worker")  # noqa: B023


def test_initiator_hears_of_a_lost_server_and_that_it_is_back(export: Process, start: StartServer) -> None:
    server = start([{"backend": "nbd", "uri": export.uri(), "reconnect": 0}, {"backend": "ram", "size": "1 MiB"}])
    with open_disk(server.url()) as disk, open_disk(server.url(1)) as neighbour:
        assert disk.size == SIZE
        disk.read(0, 4096)
        export.kill()
        with pytest.raises(InitiatorError, match=r"(?i)not ready"):
            disk.read(0, 4096)
        neighbour.write(0, b"x" * 4096)
        assert neighbour.read(0, 4096) == b"x" * 4096
        export.start()

        def back() -> bool:
            with contextlib.suppress(InitiatorError):
                return len(disk.read(0, 4096)) == 4096
            return False

        wait_until(back, "the export is back")
