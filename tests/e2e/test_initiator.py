"""The initiator library against real servers: ours, tgt and istgt, and the figures of libiscsi's judge beside ours."""

from __future__ import annotations

import asyncio
import hashlib
import io
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from e2e_initiator import steady
from e2e_peers import peers, running
from e2e_server import TARGET, Server, wait_until
from ports import free_port

from iscsid.errors import CommandAborted, ConnectionFailed, Miscompare, ReservationConflict, Unsupported
from iscsid.initiator import Disk, DiskFile, ReservationType, aio, connect, discover, open_disk, open_file

StartServer = Callable[..., Server]
SIZE = 64 << 20
COPY = int(os.environ.get("ISCSID_COPY_BYTES", SIZE))  # 1 GiB for who has the time
ONE, TWO = "iqn.2026-11.org.iscsid.e2e:one", "iqn.2026-11.org.iscsid.e2e:two"

TARGETS = [
    pytest.param("iscsid-ram", id="iscsid"),
    pytest.param("tgt", marks=pytest.mark.judge("tgtd")),
    pytest.param("istgt", marks=pytest.mark.judge("istgt")),
]


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with running(request.param, tmp_path, max(SIZE, COPY)) as found:
        yield found


@pytest.mark.parametrize("url", TARGETS, indirect=True)
def test_disk_of_any_target_is_found_and_used(url: str) -> None:
    portal, name = url.removeprefix("iscsi://").split("/")[:2]
    records = discover(portal)
    assert [record.name for record in records] == [name]
    assert f"{records[0].portals[0].host}:{records[0].portals[0].port}" == portal
    with open_disk(url) as disk:
        assert disk.size == max(SIZE, COPY)
        assert disk.inquiry().device_type == 0
        assert disk.lun in disk.report_luns()
        assert disk.vpd(0x83)[1] == 0x83
        data = os.urandom(5 << 20)
        disk.write(4096, data)
        disk.flush()
        assert disk.read(4096, len(data)) == data
        disk.write_zeroes(4096, 1 << 20)
        assert not any(disk.read(4096, 1 << 20))
        assert disk.read((1 << 20) + 4096, 4096) == data[1 << 20 : (1 << 20) + 4096]


@pytest.mark.parametrize("url", TARGETS, indirect=True)
def test_reset_of_any_target_leaves_the_disk_usable(url: str) -> None:
    with open_disk(url) as disk:
        disk.write(0, b"a" * 4096)
        tickets = [disk.submit_read(0, bytearray(4096)) for _ in range(8)]
        disk.lun_reset()
        for ticket in tickets:
            try:
                disk.wait(ticket)
            except CommandAborted:
                continue
        assert disk.read(0, 4096) == b"a" * 4096


@pytest.mark.parametrize("url", TARGETS, indirect=True)
def test_reservation_holds_off_another_initiator_on_any_target(url: str) -> None:
    with open_disk(url, initiator_name=ONE) as one, open_disk(url, initiator_name=TWO) as two:
        one.register(0xA)
        one.reserve(0xA, ReservationType.EXCLUSIVE_ACCESS)
        assert one.read_keys().keys == (0xA,)
        held = one.read_reservation()
        assert held is not None and held.type is ReservationType.EXCLUSIVE_ACCESS
        one.write(0, b"1" * 512)
        with pytest.raises(ReservationConflict):
            two.write(0, b"2" * 512)
        two.register(0xB)
        if "FreeBSD" in two.inquiry().vendor:
            one.release(0xA, ReservationType.EXCLUSIVE_ACCESS)  # istgt goes on refusing who has preempted
            two.reserve(0xB, ReservationType.EXCLUSIVE_ACCESS)
        else:
            two.preempt(0xB, 0xA, ReservationType.EXCLUSIVE_ACCESS)
        two.write(0, b"2" * 512)
        two.release(0xB, ReservationType.EXCLUSIVE_ACCESS)
        two.clear(0xB)
        assert two.read_keys().keys == ()


@pytest.mark.parametrize("url", TARGETS, indirect=True)
def test_copy_to_any_target_and_back_is_equal(url: str) -> None:
    piece = 4 << 20
    written, found = hashlib.sha256(), hashlib.sha256()
    with open_disk(url) as disk:
        for offset in range(0, COPY, piece):
            data = os.urandom(piece)
            written.update(data)
            disk.write(offset, data)
        disk.flush()
        buffer = bytearray(piece)
        for offset in range(0, COPY, piece):
            disk.readinto(offset, buffer)
            found.update(buffer)
    assert found.digest() == written.digest()


@pytest.mark.parametrize("name", TARGETS)
def test_digests_protect_the_data(name: str, tmp_path: Path) -> None:
    options = {"parameters": peers.DIGESTS} if name == "tgt" else {}
    with running(name, tmp_path, SIZE, **options) as url:
        for header, data in itertools.product((True, False), repeat=2):
            with open_disk(url, header_digest=header, data_digest=data) as disk:
                connection = disk.client.session.connection
                assert connection is not None
                used = connection.parameters.header_digest, connection.parameters.data_digest
                assert used == ((True, True) if name == "tgt" else (header, data))  # tgt wants what may be had
                content = os.urandom(3 << 20)
                disk.write(0, content)
                assert disk.read(0, len(content)) == content


@pytest.mark.judge("tgtd")
def test_target_that_refuses_digests_is_left_when_they_are_insisted_on(tmp_path: Path) -> None:
    with running("tgt", tmp_path, SIZE) as url:
        with pytest.raises(ConnectionFailed):
            open_disk(url, header_digest=True)
        with open_disk(url) as disk:
            assert disk.read(0, 512) == bytes(512)


@pytest.mark.judge("tgtd")
@pytest.mark.parametrize("reason", ["Temporary", "Permanent"])
def test_redirection_of_tgt_is_followed(tmp_path: Path, reason: str) -> None:
    """To ours, at another address of this host: tgt redirects nobody to the address where he is already."""
    ours = Server(tmp_path / "ours", [{"backend": "ram", "size": "8 MiB"}] * 2, portals=["127.0.0.2:0"])
    ours.config.write_text(ours.config.read_text().replace(TARGET, peers.TARGET_NAME))
    ours.start()
    try:
        host, port = ours.address
        moved = {"RedirectAddress": host, "RedirectPort": str(port), "RedirectReason": reason}
        with running("tgt", tmp_path, SIZE, parameters=moved) as url, open_disk(url) as disk:
            assert disk.size == 8 << 20
            disk.write(0, b"moved..." * 512)
            (session,) = ours.sessions()
            assert session["target"] == peers.TARGET_NAME
            assert disk.read(0, 4096) == b"moved..." * 512
    finally:
        ours.finish()


@contextmanager
def writing(disk: Disk, model: bytearray) -> Iterator[threading.Event]:
    """Write and read all the while; ``model`` is what the disk must hold in the end."""
    stop, progressed = threading.Event(), threading.Event()
    trouble: list[BaseException] = []

    def work() -> None:
        try:
            count = 0
            while not stop.is_set():
                offset = count * 7 % 500 * 4096
                tickets = []
                for number in range(16):
                    place = (offset + number * 4096) % len(model)
                    data = os.urandom(4096)
                    model[place : place + 4096] = data
                    tickets.append(disk.submit_write(place, data))
                for ticket in tickets:
                    disk.wait(ticket)
                buffer = disk.read(offset % len(model), 4096)
                assert buffer == model[offset : offset + 4096]
                progressed.set()
                count += 1
        except BaseException as exc:
            trouble.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield progressed
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()
    assert not trouble, f"the load failed: {trouble[0]!r}"


def test_load_survives_the_death_of_its_worker(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram, workers=2)
    model = bytearray(4 << 20)
    with open_disk(server.url(), initiator_name=ONE) as disk:
        with writing(disk, model) as progressed:
            for _ in range(3):
                progressed.clear()
                assert progressed.wait(30)
                victim = server.workers()[server.worker_of(ONE)]
                assert victim is not None
                logins = disk.client.session.logins
                os.kill(victim, signal.SIGKILL)
                wait_until(lambda before=logins: disk.client.session.logins > before, "the initiator is back")
        assert disk.read(0, len(model)) == model


def test_load_survives_a_restart_of_the_server(start: StartServer, tmp_path: Path) -> None:
    port = free_port()
    image = tmp_path / "disk.img"
    luns = [{"backend": "file", "path": image, "size": "16 MiB"}]
    server = start(luns, portals=[f"127.0.0.1:{port}"])
    model = bytearray(4 << 20)
    with open_disk(server.url(), initiator_name=ONE) as disk:
        with writing(disk, model) as progressed:
            progressed.clear()
            assert progressed.wait(30)
            server.stop()
            server.start()
            progressed.clear()
            assert progressed.wait(30), "the load goes on"
        assert disk.read(0, len(model)) == model
        assert disk.client.session.logins == 2
    assert image.read_bytes()[: len(model)] == model


def test_server_that_is_gone_is_an_error_after_the_time_for_recovery(
    start: StartServer, ram: list[dict[str, Any]]
) -> None:
    server = start(ram)
    with open_disk(server.url(), recovery_timeout=0.3) as disk:
        server.stop()
        with pytest.raises(ConnectionFailed):
            for _ in range(2):  # the first may still be an orderly farewell
                disk.read(0, 4096)


def test_nobody_at_the_port_is_an_error_at_once() -> None:
    with pytest.raises(ConnectionFailed, match="refused"):
        open_disk(f"iscsi://127.0.0.1:{free_port()}/{TARGET}/0")


def test_disk_of_ours_is_compared_discarded_and_mapped(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram)
    with open_disk(server.url()) as disk:
        disk.write(0, b"x" * 65536)
        disk.compare_and_write(0, b"x" * 512, b"y" * 512)
        with pytest.raises(Miscompare):
            disk.compare_and_write(0, b"x" * 512, b"z" * 512)
        disk.discard(0, 1 << 20)
        assert not any(disk.read(0, 65536))
        extents = list(disk.block_status())
        assert extents[0].offset == 0 and sum(extent.length for extent in extents) == disk.size


@pytest.mark.judge("tgtd")
def test_what_a_target_cannot_do_is_unsupported(tmp_path: Path) -> None:
    with running("tgt", tmp_path, SIZE) as url, open_disk(url) as disk, pytest.raises(Unsupported):
        disk.discard(0, 4096)


def test_session_is_shared_by_units_and_threads(start: StartServer) -> None:
    server = start([{"backend": "ram", "size": "8 MiB"}] * 3)
    with connect(server.url()) as client:
        disks = [Disk(client, lun) for lun in (0, 1, 2)]
        troubles: list[BaseException] = []

        def use(disk: Disk) -> None:
            try:
                for number in range(100):
                    data = bytes((disk.lun, number)) * 2048
                    disk.write(number * 4096, data)
                    assert disk.read(number * 4096, 4096) == data
            except BaseException as exc:
                troubles.append(exc)

        threads = [threading.Thread(target=use, args=(disk,)) for disk in disks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not troubles
        assert len(server.sessions()) == 1


def test_idle_session_answers_the_pings_of_the_server(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram, nop_interval=1, nop_timeout=2)
    with open_disk(server.url()) as disk:
        connection = disk.client.session.connection
        with steady(server.address, lba=8192) as other:
            wait_until(lambda: other.served > 20, "time goes by")
            assert not threading.Event().wait(4.5)
        disk.read(0, 512)
        assert disk.client.session.connection is connection and disk.client.session.logins == 1


def test_file_at_any_offset_keeps_its_neighbours(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram)
    model = io.BytesIO(bytes(64 << 20))
    with open_disk(server.url()) as disk, open_file(disk, buffer_size=8192) as file:
        for number in range(40):
            place, data = number * 5003 % 100_000, os.urandom(number * 313)
            for each in (model, file):
                each.seek(place)
                each.write(data)
        file.flush()
        with DiskFile(disk, writable=False) as raw:
            raw.seek(3)
            assert raw.read(150_000) == model.getvalue()[3:150_003]
        file.seek(-5, os.SEEK_END)
        assert (len(file.read(100)), file.tell()) == (5, disk.size)


def test_asyncio_does_many_at_a_time_and_recovers(start: StartServer, ram: list[dict[str, Any]]) -> None:
    server = start(ram, workers=2)

    async def use() -> None:
        assert [record.name for record in await aio.discover(server.portal())] == [TARGET]
        async with await aio.open_disk(server.url(), initiator_name=ONE) as disk:
            data = [os.urandom(65536) for _ in range(64)]
            await asyncio.gather(*(disk.write(number * 65536, piece) for number, piece in enumerate(data)))
            victim = server.workers()[server.worker_of(ONE)]
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
            found = await asyncio.gather(*(disk.read(number * 65536, 65536) for number in range(64)))
            assert found == data
            await disk.lun_reset()
            assert (await disk.read(0, 3 << 20)) == b"".join(data)[: 3 << 20]
            extents = [extent async for extent in disk.block_status(0, 1 << 20)]
            assert sum(extent.length for extent in extents) == 1 << 20

    asyncio.run(use())
