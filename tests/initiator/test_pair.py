"""Our initiator against our target's engine, bytes only: every way that data takes, whatever was negotiated."""

from __future__ import annotations

import pytest
from helpers import DIGESTS, TARGET_NAME
from hypothesis import given, settings
from hypothesis import strategies as st
from initiator_pair import NONCE, World
from target_rig import DEVICES, SIZE, pattern

from iscsid.errors import ConnectionFailed, LoginRefused, Miscompare, SenseError
from iscsid.initiator.commands import parse_inquiry, parse_luns, parse_vpd
from iscsid.initiator.task import TextExchange
from iscsid.initiator.url import Credentials
from iscsid.session.chap import ChapTarget
from iscsid.session.login import Admission
from iscsid.text.chap import Account
from iscsid.text.keys import TARGET_OFFERS

WAYS_TO_WRITE = {
    "immediate and unsolicited": {"InitialR2T": "No", "ImmediateData": "Yes"},
    "immediate": {"InitialR2T": "Yes", "ImmediateData": "Yes"},
    "unsolicited": {"InitialR2T": "No", "ImmediateData": "No"},
    "solicited": {"InitialR2T": "Yes", "ImmediateData": "No"},
}
SMALL = {"MaxBurstLength": "4096", "FirstBurstLength": "2048", "MaxOutstandingR2T": "3"}


@pytest.mark.parametrize("digests", DIGESTS.values(), ids=DIGESTS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("way", WAYS_TO_WRITE.values(), ids=WAYS_TO_WRITE)
def test_write_and_read_meet_whatever_is_negotiated(way: dict[str, str], device: str, digests: dict[str, str]) -> None:
    world = World(DEVICES[device](), offers={**way, **SMALL, **digests}).know()
    data = bytearray(pattern(40 * 1024))
    world.do(world.unit.write(1024, memoryview(data)))
    assert world.device.content[1024 : 1024 + len(data)] == data
    found = bytearray(len(data))
    world.do(world.unit.read(1024, memoryview(found)))
    assert found == data


@pytest.mark.parametrize("chunk", [1, 37, 0])
@pytest.mark.parametrize("digests", DIGESTS.values(), ids=DIGESTS)
def test_answers_may_come_in_any_pieces(digests: dict[str, str], chunk: int) -> None:
    world = World(chunk=chunk, offers=digests).know()
    world.device.content[:] = pattern(SIZE)
    found = bytearray(8192)
    world.do(world.unit.read(512, memoryview(found)))
    assert found == world.device.content[512:8704]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=40),
    st.sampled_from(list(WAYS_TO_WRITE.values())),
    st.integers(1, 5),
)
def test_many_in_flight_do_what_a_list_of_bytes_does(
    steps: list[tuple[bool, int, int]], way: dict[str, str], depth: int
) -> None:
    world = World(offers={**way, **SMALL}, queue_depth=depth).know()
    model = bytearray(64 * 1024)
    reads = []
    for number, (is_write, lba, blocks) in enumerate(steps):
        offset, length = lba * 512, blocks * 512
        if is_write:
            data = pattern(length, number)
            model[offset : offset + length] = data
            world.submit(world.unit.write(offset, memoryview(data)))
            world.run()
        else:
            buffer = bytearray(length)
            world.submit(world.unit.read(offset, memoryview(buffer)))
            reads.append((buffer, bytes(model[offset : offset + length])))
            if number % 2:
                world.run()
    world.run()
    assert not world.session.busy
    # A read that was in flight while a later write was submitted is executed before it: the target takes them in order.
    assert all(bytes(buffer) == expected for buffer, expected in reads)


def test_window_of_the_target_bounds_what_is_in_flight() -> None:
    world = World(DEVICES["blocking"](), queue_depth=4).know()
    tasks = [world.unit.read(0, memoryview(bytearray(512))) for _ in range(20)]
    world.submit(*tasks)
    world.to_target()
    assert (world.session.in_flight, world.session.waiting) == (4, 16)
    world.run()
    assert all(task.done and task.error is None for task in tasks)


def test_depth_bounds_what_is_in_flight() -> None:
    world = World(DEVICES["blocking"](), depth=3).know()
    tasks = [world.unit.read(0, memoryview(bytearray(512))) for _ in range(8)]
    world.submit(*tasks)
    assert (world.session.in_flight, world.session.waiting) == (3, 5)
    world.run()
    assert all(task.done for task in tasks)


def test_facts_are_read() -> None:
    world = World().know()
    assert (world.unit.size, world.unit.block_size) == (SIZE, 512)
    assert parse_inquiry(world.do(world.unit.inquiry()).result.data).vendor == "ISCSID"
    assert b"serial0" in parse_vpd(0x80, world.do(world.unit.vpd(0x80)).result.data)
    assert parse_luns(world.do(world.unit.report_luns()).result.data) == [0]


def test_compare_and_write_that_differs_is_a_miscompare() -> None:
    world = World().know()
    world.do(world.unit.compare_and_write(0, memoryview(bytes(512)), memoryview(b"a" * 512)))
    wrong = bytes(7) + b"b" * 505
    world.device.content[:7] = bytes(7)
    with pytest.raises(Miscompare) as caught:
        world.do(world.unit.compare_and_write(0, memoryview(wrong), memoryview(b"c" * 512)))
    assert caught.value.information == 7
    assert world.device.content[7:512] == b"a" * 505


def test_bad_sector_is_an_exception_with_its_reason() -> None:
    world = World(DEVICES["inline"]()).know()
    world.device.bad = 5000
    with pytest.raises(SenseError) as caught:
        world.do(world.unit.read(4096, memoryview(bytearray(4096))))
    assert (caught.value.key, caught.value.asc, caught.value.reason) == (3, 0x11, "UNRECOVERED_READ_ERROR")


def test_raw_command_tells_status_data_and_residual() -> None:
    world = World().know()
    result = world.do(world.unit.command(b"\x12\0\0\0\xff\0", b"", memoryview(bytearray(255)), None, False)).result
    assert (result.status, bytes(result.data[8:14])) == (0, b"ISCSID")
    assert result.residual == 255 - len(result.data)
    refused = world.do(world.unit.command(b"\xff" * 6, b"", memoryview(bytearray(0)), None, False)).result
    assert (refused.status, refused.sense[2] & 0x0F, refused.sense[12]) == (2, 5, 0x20)


def test_discovery_session_hears_of_targets() -> None:
    world = World(target_name=None).connect()
    answer = world.do(TextExchange([("SendTargets", "All")])).answer
    assert answer == [
        ("TargetName", TARGET_NAME),
        ("TargetAddress", "192.0.2.1:3260,3"),
        ("TargetAddress", "[2001:db8::1]:860,3"),
    ]


USER, SECRET, OWN = "host", b"a secret of 96 bits", b"the target's secret"


def chap_world(credentials: Credentials | None) -> World:
    def admit(*_: str) -> Admission:
        authenticator = ChapTarget({USER: SECRET}.get, bytes(reversed(NONCE)), own=Account("target", OWN))
        return Admission(offers=TARGET_OFFERS, authenticator=authenticator)

    return World(admit=admit, credentials=credentials)


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials(USER, SECRET),
        Credentials(USER, SECRET, "target", OWN),
        Credentials(USER, SECRET, "", OWN),
    ],
    ids=["one way", "mutual", "mutual by any name"],
)
def test_login_with_chap_succeeds(credentials: Credentials) -> None:
    assert chap_world(credentials).connect().session.ready


@pytest.mark.parametrize(
    ("credentials", "error"),
    [
        (Credentials(USER, b"another secret"), LoginRefused),
        (Credentials("nobody", SECRET), LoginRefused),
        (Credentials(USER, SECRET, "target", b"not the secret"), ConnectionFailed),
        (Credentials(USER, SECRET, "impostor", OWN), ConnectionFailed),
        (None, ConnectionFailed),
    ],
    ids=["secret", "user", "target's secret", "target's name", "none"],
)
def test_login_with_wrong_credentials_fails_for_good(credentials: Credentials | None, error: type[Exception]) -> None:
    session = chap_world(credentials).connect().session
    assert isinstance(session.failure, error)
    assert (session.connection, session.connect_at) == (None, None)
