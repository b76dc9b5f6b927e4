"""initiator.client: sockets, waiting and other threads, against a target in a thread of its own."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref

import pytest
from initiator_pair import LoopbackTarget
from target_rig import DEVICES

from iscsid.errors import CommandAborted, ConnectionFailed, InitiatorError, LoginRefused
from iscsid.initiator.client import Client, default_initiator_name, place_of, random_isid
from iscsid.initiator.disk import Disk, discover, open_disk
from iscsid.initiator.url import Credentials, Portal
from iscsid.text.names import normalize

NAME = "iqn.2026-11.org.example:disk0"


def test_options_count_more_than_the_url() -> None:
    place = place_of(
        f"iscsi://me%secret@192.0.2.1/{NAME}/3?header_digest=crc32c",
        credentials=Credentials("you", b"other"),
        header_digest=False,
        data_digest=True,
        depth=7,
    )
    options = place.options
    assert (place.portal, place.lun) == (Portal("192.0.2.1", 3260), 3)
    assert options.credentials == Credentials("you", b"other")
    assert (options.header_digest, options.data_digest, options.depth) == (False, True, 7)


@pytest.mark.parametrize(
    ("url", "options", "reason"),
    [
        ("192.0.2.1", {}, "names no target"),
        (f"iscsi://192.0.2.1/{NAME}/0", {"initiator_name": "me"}, "is not an initiator name"),
    ],
)
def test_wrong_options_are_refused(url: str, options: dict[str, str], reason: str) -> None:
    with pytest.raises(InitiatorError, match=reason):
        place_of(url, **options)


def test_names_of_this_host_are_legal() -> None:
    assert normalize(default_initiator_name()) == default_initiator_name()
    assert all(random_isid() >> 40 == 0x80 for _ in range(100))


def test_disk_is_opened_used_and_closed() -> None:
    with LoopbackTarget() as target:
        with open_disk(target.url) as disk:
            disk.write(512, b"x" * 1024)
            assert disk.read(512, 1024) == b"x" * 1024
        assert discover(target.portal)[0].portals[0].tag == 3
        with pytest.raises(CommandAborted, match="closed"):
            disk.read(0, 512)


def test_url_without_lun_needs_one() -> None:
    with LoopbackTarget() as target:
        url = target.url.removesuffix("/0")
        with pytest.raises(InitiatorError, match="names no LUN"):
            open_disk(url)
        with open_disk(url, 0) as disk:
            assert disk.lun == 0


def test_target_that_is_not_there_refuses_the_login() -> None:
    with LoopbackTarget() as target:
        target.world._admit = lambda *_: 0x0203
        with pytest.raises(LoginRefused) as caught:
            open_disk(target.url)
        assert caught.value.status == 0x0203


def test_port_where_nobody_listens_is_an_error_at_once() -> None:
    with LoopbackTarget() as target:
        url = target.url
    with pytest.raises(ConnectionFailed, match="refused"):
        open_disk(url)


def test_host_that_is_no_name_is_an_error_at_once() -> None:
    with pytest.raises(ConnectionFailed):
        open_disk(f"iscsi://{'a' * 64}.example/{NAME}/0")


@pytest.mark.parametrize("at", [3, 7, 12])
def test_broken_connections_are_not_seen_by_the_caller(at: int) -> None:
    with LoopbackTarget() as target, open_disk(target.url) as disk:
        for number in range(40):
            if number % 10 == 5:
                target.drop_at = at
            data = bytes([number]) * 65536
            disk.write(number * 65536, data)
            assert disk.read(number * 65536, 65536) == data
        assert target.accepted > 2
        assert disk.client.session.logins == target.accepted


def test_threads_share_a_session() -> None:
    with LoopbackTarget() as target, open_disk(target.url) as disk:
        failures: list[BaseException] = []

        def use(number: int) -> None:
            try:
                for turn in range(50):
                    place = (number * 50 + turn) * 4096
                    disk.write(place, bytes([number, turn]) * 2048)
                    assert disk.read(place, 4096) == bytes([number, turn]) * 2048
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=use, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not failures and not any(thread.is_alive() for thread in threads)
        assert target.accepted == 1


def test_command_goes_out_while_another_thread_waits_for_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with LoopbackTarget(device=DEVICES["blocking"]()) as target:
        disk = open_disk(target.url, abort_timeout=0.2)
        client = disk.client
        slow = disk.submit_read(0, bytearray(512))
        waiting = threading.Thread(target=client.wait_until, args=(lambda: slow.done,))
        asking = threading.Thread(target=disk.test_unit_ready)
        with monkeypatch.context() as patch:
            patch.setattr(client.session, "next_tick", lambda now: 60.0, raising=False)
            waiting.start()
            while not client._polling:
                time.sleep(0.001)
            asking.start()
            asking.join(20)
            answered = not asking.is_alive()
        os.eventfd_write(client._bell, 1)
        disk.close()
        waiting.join(20)
        assert answered and slow.done and not waiting.is_alive()


def test_submit_holds_back_who_is_too_fast() -> None:
    with LoopbackTarget() as target, open_disk(target.url, depth=4) as disk:
        tickets = [disk.submit_read(0, bytearray(4096)) for _ in range(200)]
        assert disk.client.session.waiting <= 8
        for ticket in tickets:
            disk.wait(ticket)


def test_keeper_brings_what_was_submitted_and_not_waited_for() -> None:
    with LoopbackTarget() as target, open_disk(target.url) as disk:
        tickets = [disk.submit_write(0, b"k" * 512) for _ in range(3)]
        disk.client.keep()
        for _ in range(1000):
            if all(ticket.done for ticket in tickets):
                break
            threading.Event().wait(0.01)
            disk.client.keep()
        assert all(ticket.done for ticket in tickets)


def test_client_that_is_forgotten_is_not_kept_alive_by_its_keeper() -> None:
    with LoopbackTarget() as target:
        client = Client(place_of(target.url)).open()
        Disk(client, 0).read(0, 512)
        client.close()
        reference = weakref.ref(client)
        del client
        gc.collect()
        assert reference() is None


def test_close_twice_is_no_error() -> None:
    with LoopbackTarget() as target:
        client = Client(place_of(target.url)).open()
        client.close()
        client.close()


def test_callbacks_tell_which_of_many_tickets_is_done_first() -> None:
    with LoopbackTarget() as target, open_disk(target.url) as disk:
        done: list[object] = []
        tickets = [disk.submit_read(0, bytearray(512), callback=done.append) for _ in range(3)]
        tickets.append(disk.submit_write(0, bytes(512), callback=done.append))
        disk.client.wait_until(lambda: bool(done))
        assert done[0] in tickets
        disk.client.wait_until(lambda: len(done) == len(tickets))
        assert all(ticket.done for ticket in tickets)
