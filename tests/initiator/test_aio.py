"""initiator.aio: the same session on an event loop."""

from __future__ import annotations

import asyncio

import pytest
from helpers import TARGET_NAME
from initiator_pair import LoopbackTarget

from iscsid.errors import CommandAborted, ConnectionFailed, Miscompare, SenseError, Unsupported
from iscsid.initiator.aio import AsyncClient, discover, open_disk
from iscsid.initiator.client import place_of


def test_disk_is_opened_used_and_closed() -> None:
    async def use(target: LoopbackTarget) -> None:
        assert (await discover(target.portal))[0].portals[0].tag == 3
        disk = await open_disk(target.url)
        async with disk:
            assert (disk.lun, disk.block_size, disk.size) == (0, 512, 8 << 20)
            await disk.write(0, b"x" * (3 << 20), fua=True)
            await disk.flush()
            assert await disk.read(0, 3 << 20) == b"x" * (3 << 20)
            await disk.write_zeroes(0, 4096)
            assert not any(await disk.read(0, 4096))
            await disk.compare_and_write(0, bytes(512), b"y" * 512)
            with pytest.raises(Miscompare):
                await disk.compare_and_write(0, bytes(512), b"y" * 512)
            assert (await disk.inquiry()).present
            assert await disk.report_luns() == [0]
            assert await disk.read_reservation() is None
            assert (await disk.read_keys()).keys == ()
            assert (await disk.command(bytes(6))).status == 0
            with pytest.raises(Unsupported):
                [extent async for extent in disk.block_status()]
            await disk.abort_task_set()
            with pytest.raises(SenseError):
                await disk.vpd(0xEE)
        with pytest.raises(CommandAborted):
            await disk.read(0, 512)

    with LoopbackTarget() as target:
        asyncio.run(use(target))


def test_many_share_a_session_and_a_broken_connection_is_not_seen() -> None:
    async def use(target: LoopbackTarget) -> None:
        async with await open_disk(target.url, depth=8) as disk:
            target.drop_at = 4
            await asyncio.gather(*(disk.write(number * 4096, bytes([number]) * 4096) for number in range(100)))
            target.drop_at = 2
            found = await asyncio.gather(*(disk.read(number * 4096, 4096) for number in range(100)))
            assert found == [bytes([number]) * 4096 for number in range(100)]
            assert disk.client.session.logins == 3

    with LoopbackTarget() as target:
        asyncio.run(use(target))


def test_nobody_at_the_port_is_an_error_at_once() -> None:
    with LoopbackTarget() as target:
        url = target.url

    async def use() -> None:
        with pytest.raises(ConnectionFailed):
            await open_disk(url)

    asyncio.run(use())


def test_who_gives_up_waiting_leaves_the_disk_usable() -> None:
    async def use(target: LoopbackTarget) -> None:
        async with await open_disk(target.url) as disk:
            reading = asyncio.ensure_future(disk.read(0, 512))
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert len(await disk.read(0, 512)) == 512

    with LoopbackTarget() as target:
        asyncio.run(use(target))


def test_write_whose_caller_gives_up_while_the_target_is_away_is_never_done() -> None:
    async def use(target: LoopbackTarget) -> None:
        disk = await open_disk(target.url, recovery_timeout=20.0)
        target.away = True
        target.drop()
        data = bytearray(b"old" + bytes(509))
        writing = asyncio.ensure_future(disk.write(0, data))
        while not disk.client.session.waiting:
            await asyncio.sleep(0.01)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert not disk.client.session.waiting
        data[:3] = b"new"  # the caller has it back
        target.away = False
        assert await disk.read(0, 512) == bytes(512)
        await disk.close()

    with LoopbackTarget() as target:
        asyncio.run(use(target))


def test_who_gives_up_waiting_has_his_buffer_back_only_when_nobody_uses_it() -> None:
    async def use(target: LoopbackTarget) -> None:
        async with await open_disk(target.url, abort_timeout=0.2) as disk:
            target.mute = True
            reading = asyncio.ensure_future(disk.read(0, 512))
            while not disk.client.session.in_flight:
                await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert not disk.client.session.in_flight and not disk.client.session.waiting
            target.mute = False

    with LoopbackTarget() as target:
        asyncio.run(use(target))


def test_login_that_nobody_awaits_any_more_leaves_no_session() -> None:
    async def use(target: LoopbackTarget) -> None:
        target.mute = True
        client = AsyncClient(place_of(target.url))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.open()
        assert client.session.closed

    with LoopbackTarget() as target:
        asyncio.run(use(target))


def test_host_that_is_no_name_is_an_error_at_once() -> None:
    async def use() -> None:
        with pytest.raises(ConnectionFailed):
            await asyncio.wait_for(open_disk(f"iscsi://{'a' * 64}.example/{TARGET_NAME}/0"), 20.0)

    asyncio.run(use())
