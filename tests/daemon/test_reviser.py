"""Another configuration in a running worker: nothing is seen before it is committed, and what goes is closed last."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from worker_kit import BLOCK, TARGET, MemoryDevice, Running, SlowDevice, lun_of, running, until

from iscsid.daemon.revision import Key, Revision, write
from iscsid.plugin import Descriptor
from iscsid.shared.messages import Commit, Lend, Revise, Revised, SessionClosed, SessionOpened, Undo
from iscsid.specs import LunSpec, ServerSpec, TargetSpec

READY = bytes(16)
OPENED: list[MemoryDevice] = []


def fresh(_role: str) -> MemoryDevice:
    """A new disk of 1 MiB; pickled by its name."""
    OPENED.append(MemoryDevice())
    return OPENED[-1]


def larger(_role: str) -> MemoryDevice:
    OPENED.append(MemoryDevice(2 << 20))
    return OPENED[-1]


def broken(_role: str) -> MemoryDevice:
    raise OSError(5, "planted")


@pytest.fixture(autouse=True)
def none_opened() -> Iterator[None]:
    OPENED.clear()
    yield
    OPENED.clear()


ZERO = (TARGET, 0)


def revise(worker: Running, number: int, *luns: int, stays: tuple[Key, ...] = (), **made: Any) -> None:
    """Send a revision with these LUNs; ``made`` are the options of those to open, by ``lun0`` and so on."""
    spec = ServerSpec(targets=(TargetSpec(TARGET, tuple(LunSpec(lun, "planted") for lun in luns)),) if luns else ())
    prepared = {(TARGET, int(name[3:])): options for name, options in made.items()}
    fd, descriptors = write(Revision(number, spec, prepared, {}, frozenset(stays), {}))
    for index, descriptor in enumerate(descriptors):
        worker.channel.send(Lend(number, index), os.dup(descriptor))
    worker.channel.send(Revise(number), fd)


def sense(initiator: Any, cdb: bytes = READY, lun: int = 0) -> tuple[int, int, int] | None:
    initiator.send(initiator.command(cdb, lun=lun))
    status, data = initiator.status()
    return None if status == 0 else (data[4] & 0x0F, data[14], data[15])


LUNS_CHANGED, CAPACITY_CHANGED, POWER_ON = (6, 0x3F, 0x0E), (6, 0x2A, 0x09), (6, 0x29, 0x00)
NO_UNIT = (5, 0x25, 0x00)


def test_lun_is_not_seen_before_the_commit() -> None:
    with running(lun_of(MemoryDevice())) as worker:
        host = worker.log_in()
        revise(worker, 1, 0, 1, lun1={"device": fresh})
        assert worker.wait_for(Revised) == Revised(1, False)
        assert len(OPENED) == 1
        assert sense(host, lun=1) == NO_UNIT
        worker.channel.send(Commit(1))
        assert worker.wait_for(Revised) == Revised(1, True)
        assert [sense(host), sense(host)] == [LUNS_CHANGED, None]
        assert [sense(host, lun=1) for _ in range(3)] == [POWER_ON, LUNS_CHANGED, None]


def test_lun_that_cannot_be_opened_is_told_and_the_others_are_closed() -> None:
    with running(lun_of(MemoryDevice())) as worker:
        host = worker.log_in()
        revise(worker, 1, 0, 1, 2, lun1={"device": fresh}, lun2={"device": broken})
        said = worker.wait_for(Revised)
        assert (said.revision, said.done) == (1, False)
        assert f"{TARGET} LUN 2" in said.error and "planted" in said.error
        assert OPENED[0].log == ["close"]
        assert sense(host) is None


def test_undone_revision_is_closed_and_leaves_no_descriptor() -> None:
    with running(lun_of(MemoryDevice())) as worker:
        before = len(os.listdir("/proc/self/fd"))
        reader, writer = os.pipe()
        revise(worker, 1, 0, 1, lun1={"device": fresh, "claim": Descriptor(writer)})
        worker.wait_for(Revised)
        worker.channel.send(Undo(1))
        until(lambda: OPENED[0].log == ["close"], "the end of the device")
        os.close(writer)
        assert os.read(reader, 1) == b""  # nobody else has the other end
        os.close(reader)
        until(lambda: len(os.listdir("/proc/self/fd")) <= before, "the end of the descriptors")


def test_removed_lun_is_closed_when_what_runs_on_it_has_ended() -> None:
    slow = SlowDevice()
    with running(lun_of(MemoryDevice()), lun_of(slow, 1)) as worker:
        host = worker.log_in()
        while sense(host, lun=1):
            pass
        slow.gate.clear()
        host.send(host.command(b"\x28" + bytes(7) + b"\x01" + bytes(7), read=BLOCK, lun=1))
        assert slow.entered.acquire(timeout=20)
        revise(worker, 1, 0)
        worker.wait_for(Revised, done=False)
        worker.channel.send(Commit(1))
        assert sense(host) == LUNS_CHANGED
        assert "close" not in slow.log
        slow.gate.set()
        status, data = host.status()
        assert (status, data[4] & 0x0F, data[14]) == (2, 5, 0x25)
        worker.wait_for(Revised, done=True)
        assert slow.log[-1] == "close"


def test_resized_lun_is_the_same_unit_with_another_capacity() -> None:
    old = MemoryDevice()
    with running(lun_of(old)) as worker:
        host = worker.log_in()
        revise(worker, 1, 0, stays=(ZERO,), lun0={"device": larger})
        worker.wait_for(Revised, done=False)
        worker.channel.send(Commit(1))
        worker.wait_for(Revised, done=True)
        assert [sense(host), sense(host)] == [CAPACITY_CHANGED, None]
        assert old.log[-1] == "close"
        host.write((2 << 20) // BLOCK - 1, b"x" * BLOCK)
        assert OPENED[0].memory[-BLOCK:] == b"x" * BLOCK


def test_removed_target_ends_its_sessions_and_is_closed() -> None:
    old = MemoryDevice()
    with running(lun_of(old)) as worker:
        worker.log_in()
        revise(worker, 1)
        worker.wait_for(Revised, done=False)
        worker.channel.send(Commit(1))
        worker.wait_for(SessionClosed)
        worker.wait_for(Revised, done=True)
        assert old.log[-1] == "close"


def test_revision_whose_descriptor_was_lost_is_refused() -> None:
    with running(lun_of(MemoryDevice())) as worker:
        worker.channel.send(Revise(4))
        said = worker.wait_for(Revised)
        assert said.revision == 4 and "descriptor" in said.error


def test_commit_of_what_was_undone_does_nothing() -> None:
    with running(lun_of(MemoryDevice())) as worker:
        host = worker.log_in()
        revise(worker, 1, 0, 1, lun1={"device": fresh})
        worker.wait_for(Revised)
        worker.channel.send(Undo(1))
        worker.channel.send(Commit(1))
        assert sense(host) is None


def test_login_under_way_to_a_target_that_lets_it_in_no_more_is_closed() -> None:
    with running(lun_of(MemoryDevice())) as worker:
        early = worker.connect(1)
        login = early.login.start()
        login.transit = False  # let in, and not in full feature phase yet
        early.send(login)
        assert early.receive().status == 0
        guests = ("iqn.2026-11.org.example:other",)
        spec = ServerSpec(targets=(TargetSpec(TARGET, (LunSpec(0, "planted"),), initiators=guests),))
        fd, _ = write(Revision(1, spec, {}, {}, frozenset({ZERO}), {}))
        worker.channel.send(Revise(1), fd)
        worker.wait_for(Revised, done=False)
        worker.channel.send(Commit(1))
        early.sock.settimeout(8)  # before the time for a login is up
        assert early.at_end()


def test_login_under_way_outlives_the_removal_of_a_target_that_it_is_not_for() -> None:
    with running(lun_of(MemoryDevice())) as worker:
        logins = {}
        for tsih, target in ((1, TARGET), (2, None)):
            initiator = worker.connect(tsih, isid=tsih, target=target)
            login = initiator.login.start()
            login.transit = False  # let in, and not in full feature phase yet
            initiator.send(login)
            logins[target] = initiator, initiator.receive()
        revise(worker, 1)
        worker.wait_for(Revised, done=False)
        worker.channel.send(Commit(1))
        assert logins[TARGET][0].at_end()
        worker.wait_for(SessionClosed, tsih=1)
        initiator, response = logins[None]
        while requests := initiator.login.receive(response):
            initiator.send(*requests)
            response = initiator.receive()
        assert initiator.login.done
        worker.wait_for(SessionOpened, tsih=2)


def test_device_is_closed_when_nothing_beside_the_sessions_uses_it() -> None:
    """The question how full it is, say, which a session is not waited for."""
    old = MemoryDevice()
    asked, may_answer = threading.Event(), threading.Event()

    def question() -> None:
        asked.set()
        assert may_answer.wait(20)

    with running(lun_of(MemoryDevice()), lun_of(old, 1)) as worker:
        host = worker.log_in()
        unit = worker.nodes.by_name[TARGET].numbered[1]
        errands = worker.worker._reviser._errands
        errands.submit(unit.device, question, lambda result, error: None)
        assert asked.wait(20)
        revise(worker, 1, 0)
        worker.wait_for(Revised, done=False)
        worker.channel.send(Commit(1))
        assert sense(host) == LUNS_CHANGED
        assert "close" not in old.log
        may_answer.set()
        worker.wait_for(Revised, done=True)
        assert old.log[-1] == "close"
