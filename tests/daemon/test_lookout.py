"""daemon.lookout: the supervisor hears of a LUN when something changes, and of one that is well nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from worker_kit import TARGET, WAIT, SlowDevice, boot_of, lun_of, until

from iscsid.daemon.errands import Errands
from iscsid.daemon.lookout import MEASURE_SECONDS, Lookout
from iscsid.daemon.nodes import Nodes
from iscsid.daemon.pool import Pool
from iscsid.errors import BlockError, Fault
from iscsid.scsi.sense import Reason
from iscsid.shared.messages import Message, UnitHealth
from iscsid.target.task import DeviceCall


class Cut(SlowDevice):
    """``left`` bytes are left of it; ``asked`` counts how often somebody has asked for them. None: it cannot tell."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = self.size
        self.asked = 0

    def current_size(self) -> int:
        self.asked += 1
        if self.left is None:
            raise OSError(5, "no answer")
        return self.left


class Watch:
    """A worker's lookout over two LUNs; ``sent`` is what the supervisor has heard."""

    def __init__(self) -> None:
        self.devices = [Cut(), Cut()]
        self.nodes = Nodes(boot_of(*(lun_of(device, lun, io_timeout=5.0) for lun, device in enumerate(self.devices))))
        self.guards = list(self.nodes.by_name[TARGET].devices())
        self.pool = Pool()
        self.sent: list[Message] = []
        self.lookout = Lookout(self.nodes.by_name.values, self.pool, Errands(self.pool.submit), self.sent.append)

    def fail(self, kind: str = "read", fault: Fault = Fault.READ_ERROR) -> None:
        self.guards[0].health.note(kind, BlockError(fault, "it is broken"))

    def tick(self, now: float) -> list[Message]:
        """What is heard at one tick, and after what was asked then."""
        begun = len(self.sent)
        self.lookout.tick(now)
        assert self.pool.wait(WAIT)
        return self.sent[begun:]


@pytest.fixture
def watch() -> Iterator[Watch]:
    watch = Watch()
    yield watch
    for device in watch.devices:
        device.gate.set()
    assert watch.pool.close(WAIT)
    watch.nodes.close()


def test_nothing_is_told_of_luns_that_are_well(watch: Watch) -> None:
    assert not watch.tick(1.0)
    assert [device.asked for device in watch.devices] == [0, 0]


def test_errors_are_told_once_each_time_that_there_are_more(watch: Watch) -> None:
    watch.fail()
    (message,) = watch.tick(7.0)
    assert message == UnitHealth(
        TARGET, 0, read_errors=1, kind="read", reason="it is broken", at=7.0, promised=watch.devices[0].size
    )
    (measured,) = watch.tick(8.0)
    assert isinstance(measured, UnitHealth)
    assert measured.size == watch.devices[0].size
    assert not watch.tick(9.0)
    watch.fail("flush", Fault.NOT_READY)
    (again,) = watch.tick(10.0)
    assert isinstance(again, UnitHealth)
    assert (again.read_errors, again.flush_errors, again.kind, again.absent, again.at) == (1, 1, "flush", True, 10.0)


def test_device_that_is_too_short_is_measured_until_it_is_not(watch: Watch) -> None:
    device = watch.devices[0]
    device.left = 512
    watch.fail()
    watch.tick(1.0)
    (short,) = watch.tick(2.0)
    assert isinstance(short, UnitHealth)
    assert (short.size, short.promised) == (512, device.size)
    device.left = device.size
    assert not watch.tick(3.0)
    assert device.asked == 1
    watch.tick(1.0 + MEASURE_SECONDS)
    (whole,) = watch.tick(2.0 + MEASURE_SECONDS)
    assert isinstance(whole, UnitHealth)
    assert whole.size == device.size
    watch.tick(99.0)
    assert device.asked == 2


def test_device_that_cannot_tell_its_size_is_asked_once(watch: Watch) -> None:
    watch.devices[0].left = None
    watch.fail()
    (message,) = watch.tick(1.0)
    for now in (2.0, 3.0, 50.0):
        assert not watch.tick(now)
    assert isinstance(message, UnitHealth)
    assert (message.size, watch.devices[0].asked) == (-1, 1)


def test_calls_that_hang_are_told_until_they_come_back(watch: Watch) -> None:
    device, guard = watch.devices[0], watch.guards[0]
    device.gate.clear()
    ended = threading.Event()
    call = DeviceCall(guard, lambda: guard.read_into(memoryview(bytearray(512)), 0), writes=False)
    watch.pool.submit(call, lambda result, error: ended.set())
    until(lambda: device.entered.acquire(blocking=False))
    watch.pool.expire(1e12)
    assert ended.is_set()
    watch.lookout.tick(1.0)
    (message,) = watch.sent
    assert isinstance(message, UnitHealth)
    assert (message.lun, message.hanging, message.waiting) == (0, 1, 0)
    assert message.since > 0.0
    device.gate.set()
    until(lambda: watch.pool.collect() or not watch.pool.hung)
    (well,) = watch.tick(2.0)
    assert well == UnitHealth(TARGET, 0, promised=device.size)


def test_device_that_hangs_is_not_asked_for_its_size(watch: Watch) -> None:
    device, guard = watch.devices[0], watch.guards[0]
    device.gate.clear()
    call = DeviceCall(guard, lambda: guard.read_into(memoryview(bytearray(512)), 0), writes=False)
    watch.pool.submit(call, lambda result, error: None)
    until(lambda: device.entered.acquire(blocking=False))
    watch.pool.expire(1e12)
    watch.fail()
    watch.lookout.tick(1.0)
    assert watch.pool.wait(WAIT)
    assert device.asked == 0


def test_unit_that_cannot_be_opened_again_is_not_ready(watch: Watch) -> None:
    unit = watch.nodes.by_name[TARGET].numbered[1]
    unit.failure = Reason.NOT_READY
    (message,) = watch.tick(1.0)
    assert isinstance(message, UnitHealth)
    assert (message.lun, message.ready) == (1, False)
    unit.failure = None
    (message,) = watch.tick(2.0)
    assert isinstance(message, UnitHealth)
    assert message.ready
