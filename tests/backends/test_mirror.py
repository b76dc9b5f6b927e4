"""What the mirror promises while legs fail and come back, and after a crash. Legs are memory that can be broken."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from iscsid_backends import mirror
from iscsid_backends.mirror import MirrorDevice
from iscsid_backends.mirror_state import MirrorState
from turns import leaves

from iscsid.block.device import Device, Support, Threading
from iscsid.block.turn import pause
from iscsid.errors import BlockError, Fault
from iscsid.plugin.members import Member

SIZE = 64 << 20
WAIT = 20.0


class Disk:
    """A medium: what is cached in a device that is open is lost when the device is dropped without a flush."""

    def __init__(self, fill: int = 0, size: int = SIZE) -> None:
        self.size = size
        self.data = bytearray([fill]) * size
        self.broken: set[str] = set()
        self.bad: set[int] = set()  # blocks of 4096 bytes that cannot be read until they are written
        self.opened = 0
        self.flushes = 0
        self.hold: threading.Event | None = None
        self.entered = threading.Event()


class Handle(Device):
    """The disk, open."""

    threading = Threading.PARALLEL

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.size = disk.size
        disk.opened += 1

    def _check(self, call: str) -> None:
        if call in self.disk.broken:
            raise OSError(5, f"{call} fails")

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self._check("read")
        if not self.disk.bad.isdisjoint(range(offset // 4096, (offset + len(buffer) - 1) // 4096 + 1)):
            raise OSError(5, "a bad block")
        buffer[:] = self.disk.data[offset : offset + len(buffer)]

    def read_nowait(self, buffer: memoryview, offset: int) -> None:
        self.read_into(buffer, offset)

    def write(self, data: memoryview, offset: int) -> None:
        if self.disk.hold is not None:
            self.disk.entered.set()
            assert self.disk.hold.wait(WAIT)
        if "half" in self.disk.broken:
            self.disk.data[offset : offset + len(data) // 2] = data[: len(data) // 2]
            raise OSError(5, "half of the write fails")
        self._check("write")
        self.disk.data[offset : offset + len(data)] = data
        self.disk.bad.difference_update(range(offset // 4096, (offset + len(data)) // 4096))

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        if "zero" in self.disk.broken:
            raise BlockError(Fault.UNSUPPORTED)
        if "hole" in self.disk.broken:
            raise OSError(errno.EOPNOTSUPP, "no holes here")
        self.write(memoryview(bytes(length)), offset)

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length, True)

    def flush(self) -> None:
        self._check("flush")
        self.disk.flushes += 1

    def close(self) -> None:
        self.disk.opened -= 1


class Rig:
    """Disks, and mirrors over them that are closed at the end."""

    def __init__(self, folder: Path) -> None:
        self.state = str(folder / "state")
        self.disks = [Disk(0), Disk(0)]
        self.mirrors: list[MirrorDevice] = []

    def member(self, number: int) -> Member:
        def opener() -> Device:
            if "open" in self.disks[number].broken:
                raise OSError(6, "no such disk")
            return Handle(self.disks[number])

        return Member("disk", {"path": f"/{number}"}, opener=opener)

    def open(self, *, readonly: bool = False) -> MirrorDevice:
        members = [self.member(number) for number in range(len(self.disks))]
        device = MirrorDevice(members, self.state, readonly=readonly, retry=0.0)
        self.mirrors.append(device)
        return device

    def crash(self, device: MirrorDevice) -> None:
        """The process is gone: nothing is flushed, nothing is settled."""
        self.mirrors.remove(device)
        device._stop.set()
        assert device._thread is not None
        device._thread.join()
        device._state._map.close()  # what is in it stays, and its file is nobody's any more

    def close(self) -> None:
        for device in self.mirrors:
            device.close()
        self.mirrors.clear()


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "RECHECK", 0.01)
    monkeypatch.setattr(mirror, "SETTLE", 0.0)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    for disk in made.disks:
        disk.broken.clear()
    made.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def current(device: MirrorDevice) -> bool:
    return all(device._trusted(leg) for leg in device.legs)


def put(device: Device, data: bytes, offset: int) -> None:
    device.write(memoryview(data), offset)


def get(device: Device, length: int, offset: int) -> bytes:
    buffer = bytearray(b"\xa5" * length)
    device.read_into(memoryview(buffer), offset)
    return bytes(buffer)


BLOCK = bytes(range(256)) * 16
FAR = 40 << 20  # in another region than 0


def test_new_mirror_copies_the_first_leg_to_the_others(rig: Rig) -> None:
    rig.disks = [Disk(1), Disk(2), Disk(3)]
    device = rig.open()
    assert get(device, 512, 0) == b"\x01" * 512
    until(lambda: current(device))
    assert rig.disks[1].data == rig.disks[2].data == rig.disks[0].data


def test_write_reaches_every_leg_and_read_comes_from_one(rig: Rig) -> None:
    device = rig.open()
    put(device, BLOCK, 4096)
    assert [disk.data[4096:8192] for disk in rig.disks] == [BLOCK, BLOCK]
    rig.disks[1].data[4096:8192] = bytes(4096)
    assert get(device, 4096, 4096) == BLOCK


def test_flush_reaches_every_leg(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    before = [disk.flushes for disk in rig.disks]
    device.flush()
    assert [disk.flushes - was for disk, was in zip(rig.disks, before, strict=True)] == [1, 1]


@pytest.mark.parametrize("call", ["read", "write", "flush"])
@pytest.mark.parametrize("leg", [0, 1])
def test_failing_leg_reaches_nobody_and_is_rebuilt_when_it_is_back(
    rig: Rig, call: str, leg: int, caplog: pytest.LogCaptureFixture
) -> None:
    device = rig.open()
    until(lambda: current(device))
    put(device, BLOCK, 0)
    rig.disks[leg].broken = {call, "open"}
    put(device, BLOCK, FAR)
    device.flush()
    assert get(device, 4096, 0) == BLOCK
    assert get(device, 4096, FAR) == BLOCK
    if not (call == "read" and leg == 1):  # nobody reads it
        assert f"disk /{leg} failed to {call}, going on without it" in caplog.text
        put(device, BLOCK[::-1], 8192)
        assert rig.disks[leg].data[8192:12288] == bytes(4096)
    rig.disks[leg].broken.clear()
    until(lambda: current(device))
    assert rig.disks[0].data == rig.disks[1].data
    assert get(device, 4096, FAR) == BLOCK


def test_what_a_leg_lost_of_unflushed_writes_is_copied_to_it(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    put(device, BLOCK, 0)
    rig.disks[1].broken = {"flush", "open"}
    device.flush()
    rig.disks[1].data[0:4096] = bytes(4096)  # it was in its cache, and its power failed
    rig.disks[1].broken.clear()
    until(lambda: current(device))
    assert rig.disks[1].data[0:4096] == BLOCK


def test_last_leg_that_has_the_data_stays_and_its_error_is_told(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    rig.disks[1].broken = {"write", "open"}
    put(device, BLOCK, 0)
    rig.disks[0].broken = {"read"}
    with pytest.raises(OSError, match="read fails"):
        get(device, 4096, 0)
    rig.disks[0].broken.clear()
    assert get(device, 4096, 0) == BLOCK


def test_write_that_no_leg_takes_is_an_error(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    for disk in rig.disks:
        disk.broken = {"write"}
    with pytest.raises(OSError, match="write fails"):
        put(device, BLOCK, 0)
    for disk in rig.disks:
        disk.broken.clear()
    put(device, BLOCK, 0)
    assert [bytes(disk.data[:4096]) for disk in rig.disks] == [BLOCK, BLOCK]


def test_flush_that_no_leg_takes_is_an_error(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    for disk in rig.disks:
        disk.broken = {"flush"}
    with pytest.raises(OSError, match="flush fails"):
        device.flush()


def test_mirror_opens_with_a_leg_that_is_not_there(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.open()
    until(lambda: current(rig.mirrors[0]))
    rig.close()
    rig.disks[0].broken = {"open"}
    device = rig.open()
    assert "disk /0 cannot be opened" in caplog.text
    put(device, BLOCK, 0)
    rig.disks[0].broken.clear()
    until(lambda: current(device))
    assert rig.disks[0].data[:4096] == BLOCK


def test_mirror_without_any_leg_does_not_open(rig: Rig) -> None:
    for disk in rig.disks:
        disk.broken = {"open"}
    with pytest.raises(BlockError, match="no leg of the mirror can be opened"):
        rig.open()


def test_what_a_leg_misses_is_remembered_over_a_restart(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    rig.disks[0].broken = {"write", "open"}
    put(device, BLOCK, FAR)
    rig.close()
    rig.disks[0].broken = {"write"}  # it can be read again, and is not to be
    device = rig.open()
    assert get(device, 4096, FAR) == BLOCK
    rig.disks[0].broken.clear()
    until(lambda: current(device))
    assert rig.disks[0].data[FAR : FAR + 4096] == BLOCK


def test_regions_in_flight_at_a_crash_are_made_equal(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    put(device, BLOCK, 0)
    rig.crash(device)
    rig.disks[1].data[0:4096] = b"\xee" * 4096  # the write had reached the first leg only
    rig.disks[1].data[FAR] = 0xEE  # no write was under way here: nothing to look at
    device = rig.open()
    until(lambda: current(device))
    assert rig.disks[1].data[0:4096] == BLOCK
    assert rig.disks[1].data[FAR] == 0xEE


def test_nothing_is_copied_after_a_clean_end(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    put(device, BLOCK, 0)
    rig.close()
    rig.disks[1].data[0] = 0xEE
    device = rig.open()
    assert current(device)
    assert rig.disks[1].data[0] == 0xEE
    assert rig.disks[0].opened == 1


def test_crash_in_the_middle_of_a_rebuild_goes_on_with_it(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    rig.disks[1].broken = {"write", "open"}
    put(device, BLOCK, 0)
    put(device, BLOCK, FAR)
    rig.crash(device)
    device = rig.open()
    rig.disks[1].broken.clear()
    until(lambda: current(device))
    assert rig.disks[0].data == rig.disks[1].data


@pytest.mark.parametrize("kind", ["zero", "hole"])
@pytest.mark.parametrize("leg", [0, 1])
def test_leg_that_cannot_zero_a_range_writes_it_and_stays_up(rig: Rig, kind: str, leg: int) -> None:
    device = rig.open()
    until(lambda: current(device))
    put(device, BLOCK, 0)
    rig.disks[leg].broken = {kind}
    device.write_zeroes(0, 4096, False)
    assert rig.disks[0].data[:4096] == rig.disks[1].data[:4096] == bytes(4096)
    assert all(leg.handle is not None for leg in device.legs)


def test_capabilities_are_what_all_legs_can(rig: Rig) -> None:
    able = rig.open().capabilities()
    assert (able.write, able.flush, able.fua, able.discard) == (Support.NATIVE,) * 4
    assert (able.space, able.view, able.write_nowait, able.block_status) == (Support.NONE,) * 4


def test_read_nowait_leaves_errors_to_the_pool(rig: Rig) -> None:
    device = rig.open()
    buffer = memoryview(bytearray(512))
    device.read_nowait(buffer, 0)
    rig.disks[0].broken = {"read"}
    with pytest.raises(BlockingIOError):
        device.read_nowait(buffer, 0)
    assert device.legs[0].handle is not None


def test_readonly_mirror_changes_nothing(rig: Rig) -> None:
    rig.open()
    rig.close()
    device = rig.open(readonly=True)
    assert device.capabilities().write is Support.NONE
    assert device._thread is None


def test_write_under_way_and_a_copy_of_the_same_range_do_not_mix(rig: Rig) -> None:
    """A copy that had read the old data and wrote it after the new would undo the write on one leg."""
    device = rig.open()
    until(lambda: current(device))
    rig.disks[1].broken = {"write", "open"}
    put(device, BLOCK, 0)
    rig.disks[0].hold = threading.Event()
    writer = threading.Thread(target=put, args=(device, BLOCK[::-1], 0))
    writer.start()
    assert rig.disks[0].entered.wait(WAIT)
    rig.disks[1].broken.clear()
    until(lambda: device.legs[1].handle is not None)
    assert not current(device)
    rig.disks[0].hold.set()
    writer.join(WAIT)
    until(lambda: current(device))
    assert rig.disks[0].data == rig.disks[1].data
    assert get(device, 4096, 0) == BLOCK[::-1]


def test_legs_are_equal_after_failures_under_load(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    end = threading.Event()
    errors: list[Exception] = []
    written: dict[int, bytes] = {}

    def load(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(150):
                block = dice.randrange(SIZE // 4096 // 4) * 4 + seed
                data = dice.randbytes(4096)
                put(device, data, block * 4096)
                written[block] = data
                assert get(device, 4096, block * 4096) == data
                if not dice.randrange(10):
                    device.flush()
        except Exception as error:
            errors.append(error)

    def vandal() -> None:
        dice = random.Random(7)
        while not end.is_set():
            until(lambda: current(device) or end.is_set())
            disk = dice.choice(rig.disks)
            disk.broken = {dice.choice(["read", "write", "flush"]), "open"}
            end.wait(0.02)
            disk.broken = set()

    threads = [threading.Thread(target=load, args=(seed,)) for seed in range(4)]
    breaker = threading.Thread(target=vandal)
    for thread in [*threads, breaker]:
        thread.start()
    for thread in threads:
        thread.join(60)
    end.set()
    breaker.join(WAIT)
    assert errors == []
    until(lambda: current(device))
    assert rig.disks[0].data == rig.disks[1].data
    assert all(rig.disks[0].data[block * 4096 : block * 4096 + 4096] == data for block, data in written.items())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"members": ["/a"]}, "from 2 to 7 legs, not 1"),
        ({"members": ["/a", "/a"]}, "two legs are the same"),
        ({"members": ["/a", "/b"], "state": "/nowhere/at/all"}, "there is no folder /nowhere/at"),
    ],
)
def test_options_that_make_no_sense_are_told(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    members = tuple(Member("file", {"path": path}) for path in options["members"])
    (problem,) = mirror.iscsid_validate({"state": str(tmp_path / "s"), **options, "members": members})
    assert reason in problem


def test_leg_that_is_too_small_stays_down(rig: Rig) -> None:
    rig.open()
    rig.close()
    rig.disks[1] = Disk(0, SIZE)
    device = rig.open()
    rig.disks[1].broken = {"write", "open"}
    put(device, BLOCK, 0)
    rig.disks[1].size = SIZE // 2
    rig.disks[1].broken.clear()
    leg = device.legs[1]
    with pytest.raises(BlockError, match="33554432 bytes, not 67108864"):
        leg.open(device)


def test_state_file_of_the_mirror_is_the_one_that_is_told(rig: Rig) -> None:
    rig.open()
    rig.close()
    state = MirrorState(rig.state, SIZE, ["disk /0", "disk /1"])
    assert state.intended() == []
    state.close()


def test_write_that_a_leg_refuses_during_its_rebuild_is_copied_to_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both legs miss something, so neither is left out; the piece was copied before the write that failed."""
    monkeypatch.setattr(mirror, "COPY", 4096)
    device = rig.open()
    until(lambda: current(device))
    device._stop.set()  # the thread: the test is it
    device._thread.join()  # type: ignore[union-attr]
    device._stop.clear()
    with device._lock:
        device._state.distrust(1, [0])
        device._state.distrust(0, device._state.regions(FAR, 1))
    finish = device._finish_region

    def refuse(*args: Any) -> bool:
        rig.disks[1].broken = {"write"}
        put(device, BLOCK, 0)
        rig.disks[1].broken.clear()
        return finish(*args)

    monkeypatch.setattr(device, "_finish_region", refuse)
    device._rebuild(device.legs[1])
    monkeypatch.undo()
    rig.disks[0].broken = {"read"}
    with pytest.raises(OSError, match=r"fails|no leg"):
        get(device, 4096, 0)  # and not what was there before
    rig.disks[0].broken.clear()
    device._rebuild(device.legs[1])
    assert rig.disks[1].data[:4096] == BLOCK


def test_overlapping_writes_leave_the_same_on_every_leg(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    rig.disks[1].hold = hold = threading.Event()
    first = threading.Thread(target=put, args=(device, BLOCK, 0))
    first.start()
    assert rig.disks[1].entered.wait(WAIT)
    rig.disks[1].hold = None
    second = threading.Thread(target=put, args=(device, BLOCK[::-1], 0))
    second.start()
    second.join(0.1)
    hold.set()
    first.join(WAIT)
    second.join(WAIT)
    assert bytes(rig.disks[0].data[:4096]) == bytes(rig.disks[1].data[:4096]) == BLOCK[::-1]


class Slow(Handle):
    """As with the layer ``delay`` over the leg."""

    def write(self, data: memoryview, offset: int) -> None:
        pause(self, lambda: 1.0, lambda _seconds: None)
        super().write(data, offset)

    def flush(self) -> None:
        pause(self, lambda: 1.0, lambda _seconds: None)
        super().flush()


@pytest.mark.parametrize("most", [1, 10])
def test_write_that_pauses_between_two_legs_is_on_both_even_if_it_is_never_begun_again(rig: Rig, most: int) -> None:
    members = [rig.member(0), Member("disk", {"path": "/1"}, opener=lambda: Slow(rig.disks[1]))]
    device = MirrorDevice(members, rig.state, readonly=False, retry=0.0)
    rig.mirrors.append(device)
    until(lambda: current(device))
    assert leaves(lambda: put(device, BLOCK, 0), most) == 0
    assert rig.disks[0].data[:4096] == rig.disks[1].data[:4096] == BLOCK
    assert leaves(device.flush, most) == 0


BAD = 3  # a block in the first piece of the first region


def stale(device: MirrorDevice, leg: int) -> list[int]:
    return list(device._state.stale_regions(leg))


def test_piece_that_nobody_can_read_is_left_out_and_the_rest_is_copied(
    rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[object] = []
    rebuild = MirrorDevice._rebuild

    def counted(device: MirrorDevice, leg: Any) -> None:
        rebuild(device, leg)
        passes.append(leg)

    monkeypatch.setattr(MirrorDevice, "_rebuild", counted)
    rig.disks = [Disk(1), Disk(2)]
    rig.disks[0].bad = {BAD}
    device = rig.open()
    until(lambda: len(passes) > 3)
    assert stale(device, 1) == [0]
    assert rig.disks[0].data[1 << 20 :] == rig.disks[1].data[1 << 20 :]
    assert caplog.text.count("failed to read at 0") == 1
    assert caplog.text.count("1 MiB of the rest cannot be read") == 1
    with pytest.raises(OSError, match="bad block"):
        get(device, 4096, BAD * 4096)
    put(device, BLOCK, BAD * 4096)
    until(lambda: current(device))
    assert rig.disks[0].data == rig.disks[1].data
    until(lambda: "it is current" in caplog.text)


def test_source_with_a_bad_block_gives_way_to_another_one_and_is_mended(rig: Rig) -> None:
    rig.disks = [Disk(1), Disk(1), Disk(1)]
    device = rig.open()
    until(lambda: current(device))
    rig.disks[2].broken = {"write", "open"}
    put(device, BLOCK, 0)
    rig.disks[0].bad = {BAD}
    rig.disks[2].broken.clear()
    until(lambda: current(device) and not rig.disks[0].bad)
    assert rig.disks[0].data == rig.disks[1].data == rig.disks[2].data


def test_block_that_a_leg_cannot_read_is_written_anew(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    put(device, BLOCK, FAR)
    device.flush()
    rig.disks[0].bad = {FAR // 4096}
    assert get(device, 4096, FAR) == BLOCK
    until(lambda: not rig.disks[0].bad and current(device))
    assert rig.disks[0].data == rig.disks[1].data


def test_write_that_fails_half_way_on_every_leg_leaves_the_same_on_all(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    rig.disks[0].broken, rig.disks[1].broken = {"half"}, {"write"}
    with pytest.raises(OSError, match="half of the write fails"):
        put(device, BLOCK, 0)
    rig.disks[0].broken.clear()
    assert not current(device)  # the second leg has another half
    rig.disks[1].broken.clear()
    until(lambda: current(device))
    assert rig.disks[0].data[:4096] == rig.disks[1].data[:4096]


def test_flush_that_failed_is_not_forgotten_because_the_next_one_was_quicker(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    put(device, BLOCK, 0)
    leg = device.legs[1]
    handle = leg.handle
    assert handle is not None
    device._spoilt([leg])  # its flush has failed, and that of the other leg takes its time
    device.flush()
    assert device._state.intended() == []
    rig.disks[1].broken = {"open"}
    device._failed(leg, handle, "flush", OSError(5, "the flush"))
    assert stale(device, 1) == [0]


class Humble(Device):
    """Neither zeros nor discards, and one call at a time."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.size = disk.size
        disk.opened += 1
        self.prefetching = threading.Lock()

    read_into = Handle.read_into
    write = Handle.write
    _check = Handle._check

    def prefetch(self, offset: int, length: int) -> None:
        assert self.prefetching.acquire(blocking=False), "two calls at a time"
        time.sleep(0.01)
        self.prefetching.release()

    def close(self) -> None:
        self.disk.opened -= 1


class Thorough(Handle):
    discard_zeroes = True


@pytest.mark.parametrize("zeroes", [True, False])
def test_leg_that_comes_late_and_can_do_less_stays_up(rig: Rig, zeroes: bool) -> None:
    rig.disks[1].broken = {"open"}
    members = [
        Member("disk", {"path": "/0"}, opener=lambda: (Thorough if zeroes else Handle)(rig.disks[0])),
        Member("disk", {"path": "/1"}, opener=lambda: rig.member(1).open() and Humble(rig.disks[1])),
    ]
    device = MirrorDevice(members, rig.state, readonly=False, retry=0.0)
    rig.mirrors.append(device)
    rig.disks[1].broken.clear()
    until(lambda: current(device))
    put(device, BLOCK, 0)
    device.discard(0, 4096)
    assert current(device)
    assert rig.disks[0].data[:4096] == bytes(4096)
    assert rig.disks[1].data[:4096] == (bytes(4096) if zeroes else BLOCK)
    device.write_zeroes(0, 4096, False)
    assert current(device)
    assert rig.disks[1].data[:4096] == bytes(4096)


def test_disk_in_the_place_of_one_that_failed_is_copied_anew(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """It has the same path: the state file does not tell that it is another."""
    device = rig.open()
    until(lambda: current(device))
    put(device, BLOCK, FAR)
    device.flush()
    rig.disks[0].broken = {"write", "open"}
    put(device, BLOCK, 0)
    until(lambda: not rig.disks[0].opened)
    rig.disks[0].data[:] = bytes(SIZE)
    rig.disks[0].broken.clear()
    until(lambda: current(device))
    assert rig.disks[0].data == rig.disks[1].data
    assert get(device, 4096, FAR) == BLOCK
    assert "disk /0 holds other data than before" in caplog.text


def test_what_only_the_leg_has_that_is_back_is_read_from_it_whatever_it_holds(rig: Rig) -> None:
    device = rig.open()
    until(lambda: current(device))
    put(device, BLOCK, 0)
    put(device, BLOCK, FAR)
    device.flush()
    rig.close()
    state = MirrorState(rig.state, SIZE, ["disk /0", "disk /1"])
    state.distrust(1, [0])  # as if it had been stopped while that was copied
    state.close()
    rig.disks[0].broken = {"open"}
    device = rig.open()
    with pytest.raises(BlockError, match="no leg of the mirror has the data"):
        get(device, 4096, 0)
    rig.disks[0].data[FAR] ^= 1
    rig.disks[0].broken.clear()
    until(lambda: current(device))
    assert get(device, 4096, 0) == get(device, 4096, FAR) == BLOCK
    assert rig.disks[0].data == rig.disks[1].data


def test_leg_that_comes_back_as_it_was_is_copied_only_what_it_missed(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    device = rig.open()
    until(lambda: current(device))
    put(device, BLOCK, FAR)
    device.flush()
    rig.disks[1].broken = {"write", "open"}
    put(device, BLOCK, 0)
    until(lambda: not rig.disks[1].opened)
    rig.disks[1].data[FAR + 65536] = 0xEE  # where nobody looks
    rig.disks[1].broken.clear()
    until(lambda: current(device))
    assert rig.disks[1].data[FAR + 65536] == 0xEE
    assert "holds other data" not in caplog.text


def test_leg_that_comes_back_with_larger_blocks_stays_down(rig: Rig) -> None:
    device = rig.open()
    leg = device.legs[1]

    class Coarse(Handle):
        block_size = 4096

    leg.member = Member("disk", {}, opener=lambda: Coarse(rig.disks[1]))
    with pytest.raises(BlockError, match="block_size 4096, not 512"):
        leg.open(device)


def test_prefetch_goes_into_a_serial_leg_alone(rig: Rig) -> None:
    members = [
        Member("disk", {"path": f"/{number}"}, opener=lambda n=number: Humble(rig.disks[n])) for number in (0, 1)
    ]
    device = MirrorDevice(members, rig.state, readonly=False, retry=0.0)
    rig.mirrors.append(device)
    errors: list[BaseException] = []

    def prefetch() -> None:
        try:
            device.prefetch(0, 4096)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=prefetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert errors == []


def test_mirror_whose_smaller_leg_is_down_opens_with_its_size(rig: Rig) -> None:
    rig.disks[1] = Disk(0, SIZE + (32 << 20))
    rig.open()
    until(lambda: current(rig.mirrors[0]))
    rig.close()
    rig.disks[0].broken = {"open"}
    assert rig.open().size == SIZE
