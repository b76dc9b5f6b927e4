"""A unit whose commands wait while its medium is closed, worked on and opened again, in a worker that goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from worker_kit import BLOCK, TARGET, Initiator, MemoryDevice, Running, SlowDevice, lun_of, running, until

from iscsid.daemon import holder
from iscsid.daemon.revision import Revision, write
from iscsid.scsi import reservation
from iscsid.scsi.sanitize import Sanitize
from iscsid.shared.messages import (
    AskReset,
    Commit,
    Held,
    Hold,
    Revise,
    Revised,
    Undo,
    UnitAnswer,
    UnitApplied,
    UpdateUnit,
    Work,
    Worked,
)
from iscsid.specs import LunSpec, ServerSpec, TargetSpec
from iscsid.target.task import HeldTask
from iscsid.wire.const import TaskAttribute, TmfFunction
from iscsid.wire.pdu import ScsiResponse, TaskManagementRequest, TaskManagementResponse

ZERO = (TARGET, 0)
CAPACITY, MEDIUM, NOT_READY = (6, 0x2A, 0x09), (6, 0x28, 0x00), (2, 0x04, 0x00)


class Medium:
    """What lies in the drawer: it may be open once. ``refuses`` is what the next openings raise, oldest first."""

    def __init__(self) -> None:
        self.memory = bytearray(1 << 20)
        self.opened: list[MemoryDevice] = []
        self.refuses: list[Exception] = []
        self.slow = False
        self.flush_error: Exception | None = None

    def __call__(self, _role: str) -> MemoryDevice:
        if self.refuses:
            raise self.refuses.pop(0)
        assert not self.opened or self.opened[-1].log[-1:] == ["close"], "it is open already"
        medium = self

        class Once(SlowDevice if self.slow else MemoryDevice):  # type: ignore[misc]
            def flush(self) -> None:
                self._note("flush")
                if medium.flush_error is not None:
                    raise medium.flush_error

        device: MemoryDevice = Once(len(self.memory))
        device.memory = self.memory
        self.opened.append(device)
        return device

    @property
    def latest(self) -> MemoryDevice:
        return self.opened[-1]


MEDIA: list[Medium] = []


def planted(role: str) -> MemoryDevice:
    """The medium of the test, in a revision: pickled by its name."""
    return MEDIA[-1](role)


@pytest.fixture
def medium() -> Iterator[Medium]:
    MEDIA.append(Medium())
    yield MEDIA[-1]
    MEDIA.clear()


def hold(worker: Running, *luns: int, number: int = 1) -> Held:
    worker.channel.send(Hold(number, json.dumps([[TARGET, lun] for lun in luns]), False))
    answer: Held = worker.wait_for(Held)
    return answer


def revise(worker: Running, *, number: int = 1, other: bool = False) -> None:
    luns = tuple(LunSpec(lun, "planted") for lun in worker.nodes.by_name[TARGET].luns)
    spec = ServerSpec(targets=(TargetSpec(TARGET, luns),))
    keys = frozenset({ZERO})
    revision = Revision(number, spec, {ZERO: {"device": planted}}, {}, keys, {}, other=keys if other else frozenset())
    worker.channel.send(Revise(number), write(revision)[0])


def commit(worker: Running, *, other: bool = False) -> None:
    revise(worker, other=other)
    assert worker.wait_for(Revised) == Revised(1, False)
    worker.channel.send(Commit(1))
    assert worker.wait_for(Revised) == Revised(1, True)


def held(worker: Running, count: int) -> None:
    """Wait until as many commands wait."""

    def waiting() -> int:
        engines = [link.engine for link in list(worker.worker._links.values())]
        return sum(isinstance(task, HeldTask) for engine in engines for task in engine.tasks)

    until(lambda: waiting() == count, f"{count} commands that wait")


def sense(host: Initiator, cdb: bytes = bytes(16), lun: int = 0) -> tuple[int, int, int] | None:
    host.send(host.command(cdb, lun=lun))
    return found(host)


def found(host: Initiator) -> tuple[int, int, int] | None:
    status, data = host.status()
    return None if status == 0 else (data[4] & 0x0F, data[14], data[15])


def management(host: Initiator, function: TmfFunction, referenced: int = 0xFFFFFFFF) -> TaskManagementRequest:
    host.tag += 1
    return TaskManagementRequest(
        immediate=True,
        function=function,
        initiator_task_tag=host.tag,
        referenced_task_tag=referenced,
        cmd_sn=host.cmd_sn,
        exp_stat_sn=host.exp_stat_sn,
    )


# --- what is held -----------------------------------------------------------------------------------------------------


def test_commands_wait_without_a_thread_and_go_on_with_the_other_device(medium: Medium) -> None:
    with running(lun_of(medium), lun_of(MemoryDevice(), 1)) as worker:
        host = worker.log_in()
        while sense(host, lun=1):
            pass
        assert hold(worker, 0) == Held(1)
        assert medium.latest.log[-2:] == ["flush", "close"]
        threads = worker.worker._pool.threads
        host.send(*(host.write_command(lba, bytes([lba]) * BLOCK) for lba in range(20)))
        held(worker, 20)
        assert worker.worker._pool.threads == threads and not worker.worker._pool.outstanding
        assert sense(host, lun=1) is None
        commit(worker)
        assert [found(host) for _ in range(20)] == [None] * 20
        assert len(medium.opened) == 2
        assert medium.memory[: 20 * BLOCK] == b"".join(bytes([lba]) * BLOCK for lba in range(20))


def test_medium_of_another_size_or_with_other_data_is_told_once(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        hold(worker, 0)
        medium.memory = bytearray(2 << 20)
        host.send(host.read_command(0))
        held(worker, 1)
        commit(worker, other=True)
        assert [found(host), sense(host), sense(host)] == [MEDIUM, CAPACITY, None]


def test_what_has_begun_ends_before_the_device_is_closed(medium: Medium) -> None:
    medium.slow = True
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        device: Any = medium.latest
        device.gate.clear()
        host.send(host.read_command(0))
        assert device.entered.acquire(timeout=20)
        worker.channel.send(Hold(1, json.dumps([ZERO]), False))
        until(lambda: worker.nodes.held, "the hold")
        host.send(host.read_command(1))
        held(worker, 1)
        assert "close" not in device.log
        device.gate.set()
        assert worker.wait_for(Held) == Held(1)
        assert host.status()[0] == 0
        commit(worker)
        assert host.status()[0] == 0


def test_session_that_begins_meanwhile_waits_as_well(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        hold(worker, 0)
        host = worker.log_in(greeted=False)
        host.send(host.command(bytes(16)), host.command(bytes(16)))
        held(worker, 2)
        commit(worker)
        assert [found(host), found(host)] == [(6, 0x29, 0), None]


def test_session_that_ends_meanwhile_leaves_nothing_behind(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        hold(worker, 0)
        host.send(host.write_command(0, b"x" * BLOCK))
        held(worker, 1)
        host.close()
        until(lambda: not worker.worker._links, "the end of the session")
        commit(worker)
        assert sense(worker.log_in(2)) is None
        assert medium.memory[:BLOCK] == bytes(BLOCK)


def test_order_of_commands_is_kept_and_the_head_of_the_queue_begins_first(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        hold(worker, 0)
        simple, ordered, head = (host.write_command(0, bytes([byte]) * BLOCK) for byte in (1, 2, 3))
        ordered.flags |= TaskAttribute.ORDERED
        head.flags |= TaskAttribute.HEAD_OF_QUEUE
        host.send(simple, ordered, head)
        held(worker, 3)
        commit(worker)
        answered = [host.expect(ScsiResponse).initiator_task_tag for _ in range(3)]
        assert answered == [pdu.initiator_task_tag for pdu in (head, simple, ordered)]
        assert medium.memory[:BLOCK] == b"\2" * BLOCK


# --- task management --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [TmfFunction.ABORT_TASK, TmfFunction.ABORT_TASK_SET])
def test_aborted_command_never_runs(medium: Medium, function: TmfFunction) -> None:
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        hold(worker, 0)
        command = host.write_command(0, b"x" * BLOCK)
        host.send(command)
        held(worker, 1)
        host.send(management(host, function, command.initiator_task_tag))
        assert host.expect(TaskManagementResponse).response == 0
        held(worker, 0)
        commit(worker)
        assert sense(host) is None
        assert medium.memory[:BLOCK] == bytes(BLOCK)


def test_reset_unit_has_forgotten_what_waited(medium: Medium) -> None:
    with running(lun_of(medium, serial="S")) as worker:
        host = worker.log_in()
        hold(worker, 0)
        host.send(host.write_command(0, b"x" * BLOCK))
        held(worker, 1)
        host.send(management(host, TmfFunction.LOGICAL_UNIT_RESET))
        asked = worker.wait_for(AskReset)
        state = {
            "reservations": _plain_reservations(),
            "mode": None,
            "saved_mode": None,
            "access": {},
            "sanitize": None,
        }
        medium_state = worker.nodes.by_name[TARGET].numbered[0].medium.to_plain()
        plain = json.dumps({**state, "medium": medium_state})
        worker.channel.send(UpdateUnit(asked.unit, 1, plain, "[]", json.dumps("all"), "reset"))
        worker.wait_for(UnitApplied)
        worker.channel.send(UnitAnswer(asked.ask, 0, "", -1, -1, False))
        assert host.expect(TaskManagementResponse).response == 0
        held(worker, 0)
        worker.channel.send(Undo(1))
        assert sense(host) is None
        assert medium.memory[:BLOCK] == bytes(BLOCK)


def _plain_reservations() -> Mapping[str, Any]:
    return reservation.to_plain(reservation.EMPTY)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_undone_hold_opens_the_device_as_it_was(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        hold(worker, 0)
        host.send(host.write_command(0, b"x" * BLOCK))
        held(worker, 1)
        worker.channel.send(Undo(1))
        assert found(host) is None
        assert len(medium.opened) == 2 and medium.memory[:BLOCK] == b"x" * BLOCK
        assert sense(host) is None  # and there is nothing to tell


def test_undone_revision_closes_what_it_opened_first(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        hold(worker, 0)
        revise(worker)
        worker.wait_for(Revised)
        worker.channel.send(Undo(1))
        assert sense(host) is None
        assert [device.log[-1:] == ["close"] for device in medium.opened] == [True, True, False]


def test_medium_that_has_changed_in_spite_of_the_undo_is_told(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        hold(worker, 0)
        medium.memory = bytearray(2 << 20)
        worker.channel.send(Undo(1))
        assert [sense(host), sense(host)] == [CAPACITY, None]


def test_device_that_cannot_be_flushed_stays_open(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        medium.flush_error = OSError(28, "planted")
        answer = hold(worker, 0)
        assert "flush failed" in answer.error and "planted" in answer.error and TARGET in answer.error
        assert "close" not in medium.latest.log
        host.send(host.read_command(0))
        held(worker, 1)
        worker.channel.send(Undo(1))
        assert host.status()[0] == 0
        medium.flush_error = None
        assert len(medium.opened) == 1


def test_device_that_cannot_be_opened_is_told_and_the_old_one_is_back(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        hold(worker, 0)
        medium.refuses = [OSError(5, "planted")]
        revise(worker)
        assert "planted" in worker.wait_for(Revised).error
        worker.channel.send(Undo(1))
        assert sense(host) is None


def test_unit_that_cannot_even_be_reopened_is_not_ready_and_comes_back_by_itself(
    medium: Medium, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(holder, "RETRY_SECONDS", 0.1)
    with running(lun_of(medium), lun_of(MemoryDevice(), 1)) as worker:
        host = worker.log_in()
        hold(worker, 0)
        host.send(host.write_command(0, b"x" * BLOCK))
        held(worker, 1)
        medium.refuses = [OSError(5, "planted")] * 10**6
        worker.channel.send(Undo(1))
        assert found(host) == NOT_READY
        assert sense(host) == NOT_READY
        assert host_inquiry(host) == 0
        assert "not ready" in caplog.text and f"{TARGET} LUN 0" in caplog.text and "planted" in caplog.text
        medium.refuses = []
        until(lambda: len(medium.opened) == 2, "another try")
        until(lambda: sense(host) == MEDIUM, "the unit is ready")
        assert sense(host) is None
        assert medium.memory[:BLOCK] == bytes(BLOCK)


def host_inquiry(host: Initiator) -> int:
    host.send(host.command(bytes.fromhex("12 00 00 00 24 00"), read=36))
    return host.status()[0]


def test_unit_that_is_not_ready_is_brought_back_by_the_next_change(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        hold(worker, 0)
        medium.refuses = [OSError(5, "planted")]
        worker.channel.send(Undo(1))
        assert sense(host) == NOT_READY
        assert hold(worker, 0) == Held(1)
        commit(worker)
        assert [sense(host), sense(host)] == [MEDIUM, None]


def test_hold_that_is_given_up_before_commands_have_ended_closes_nothing(medium: Medium) -> None:
    medium.slow = True
    with running(lun_of(medium)) as worker:
        host = worker.log_in()
        device: Any = medium.latest
        device.gate.clear()
        host.send(host.read_command(0))
        assert device.entered.acquire(timeout=20)
        worker.channel.send(Hold(1, json.dumps([ZERO]), False))
        until(lambda: worker.nodes.held, "the hold")
        host.send(host.read_command(1))
        held(worker, 1)
        worker.channel.send(Undo(1))
        assert device.entered.acquire(timeout=20)  # the one that waited has begun
        device.gate.set()
        assert [host.status()[0], host.status()[0]] == [0, 0]
        assert "close" not in device.log and len(medium.opened) == 1
        assert hold(worker, 0, number=2) == Held(2)
        assert device.log[-1] == "close"
        worker.channel.send(Undo(2))


# --- work -------------------------------------------------------------------------------------------------------------


def work(worker: Running, number: int = 1) -> None:
    worker.channel.send(Work(number, TARGET, 0, "snapshot", json.dumps({"action": "create", "name": "x"})))


def test_work_is_done_while_the_device_is_closed(medium: Medium) -> None:
    calls: list[Any] = []

    def image(_backend: str, _options: Any, verb: str, arguments: Any) -> dict[str, Any]:
        calls.append((verb, arguments["name"], medium.latest.log[-1]))
        return {"snapshots": [1]}

    with running(lun_of(medium)) as worker:
        worker.nodes.boot.plugins.image = image  # type: ignore[method-assign, assignment]
        host = worker.log_in()
        hold(worker, 0)
        work(worker)
        assert worker.wait_for(Worked) == Worked(1, '{"snapshots": [1]}')
        assert calls == [("snapshot", "x", "close")]
        commit(worker, other=True)
        assert [sense(host), sense(host)] == [MEDIUM, None]


def test_work_that_fails_is_told_and_undone(medium: Medium) -> None:
    def image(*_: Any) -> dict[str, Any]:
        raise ValueError("planted")

    with running(lun_of(medium)) as worker:
        worker.nodes.boot.plugins.image = image  # type: ignore[method-assign]
        host = worker.log_in()
        hold(worker, 0)
        work(worker)
        assert worker.wait_for(Worked) == Worked(1, "", "planted")
        worker.channel.send(Undo(1))
        assert sense(host) is None


def test_undo_during_the_work_waits_for_its_end_and_the_next_change_for_the_undo(medium: Medium) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def image(*_: Any) -> dict[str, Any]:
        begun.set()
        assert may_end.wait(20)
        return {}

    with running(lun_of(medium)) as worker:
        worker.nodes.boot.plugins.image = image  # type: ignore[method-assign]
        host = worker.log_in()
        hold(worker, 0)
        work(worker)
        assert begun.wait(20)
        worker.channel.send(Undo(1))
        worker.channel.send(Hold(2, json.dumps([ZERO]), False))
        host.send(host.read_command(0))
        held(worker, 1)
        assert len(medium.opened) == 1
        may_end.set()
        assert worker.wait_for(Held, revision=2) == Held(2)
        assert [device.log[-1] for device in medium.opened] == ["close", "close"]
        worker.channel.send(Undo(2))
        assert host.status()[0] == 0


def test_worker_that_stops_meanwhile_ends_well(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        hold(worker, 0)
        revise(worker)
        worker.wait_for(Revised)
        assert worker.stop() == 0
        assert medium.latest.log[-1] == "close"


def test_unit_that_is_being_erased_is_not_held(medium: Medium) -> None:
    with running(lun_of(medium)) as worker:
        unit = worker.nodes.by_name[TARGET].numbered[0]
        unit.sanitize = Sanitize(False, False)
        answer = hold(worker, 0)
        assert "a SANITIZE is under way" in answer.error
        worker.channel.send(Undo(1))
        unit.sanitize = None
        assert sense(worker.log_in()) is None
        assert len(medium.opened) == 1
