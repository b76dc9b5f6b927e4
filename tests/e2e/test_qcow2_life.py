"""A long random life of qcow2 disks through the whole server, beside a model; QEMU judges what is left.

Hypothesis chooses what an initiator and an administrator do: reads, writes of any length at any place, WRITE SAME,
zeros, UNMAP, COMPARE AND WRITE, FUA, flushes, many commands at a time, another session, a login anew, and online
resizes and snapshots. A CI run does a few operations on each kind of image, ``ISCSID_QCOW2_OPERATIONS=10000`` as many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from e2e_qcow2 import (
    KINDS,
    SECTOR,
    Kind,
    Served,
    assert_same,
    assert_sound,
    forget_image,
    lun_change,
    make_image,
    served,
)
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from iscsid.errors import Miscompare
from iscsid.initiator.commands import Provisioning
from iscsid.initiator.disk import Disk
from iscsid.initiator.task import Task

OPERATIONS = int(os.environ.get("ISCSID_QCOW2_OPERATIONS", "30"))  # on each kind of image; 10000 before a release
STEPS = 250  # of one life at most: what Hypothesis can choose in one go
MAX_SIZE = 6 << 20
MAX_SNAPSHOTS = 3
#: Bytes of an UNMAP and of a WRITE SAME at most: those may touch all of the disk.
LONG = 4 << 20

# Hypothesis takes up to five minutes to make what failed short.
pytestmark = [pytest.mark.judge("qemu-img"), pytest.mark.timeout(480 + OPERATIONS // 4)]

places = st.integers(0, MAX_SIZE // SECTOR - 1)
lengths = st.sampled_from([1, 1, 2, 7, 8, 8, 16, 127, 128, 129, 256, 700])  # sectors
number = st.integers(0, (1 << 16) - 1)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("server")) as made:
        yield made


class Life(RuleBasedStateMachine):
    """One image. ``done`` counts the operations of all lives of its kind."""

    def __init__(self, where: Served, kind: Kind, folder: Path, done: list[int]) -> None:
        super().__init__()
        self.where, self.kind, self.done = where, kind, done
        self.path = folder / f"{len(done)}.qcow2"
        done.append(0)
        self.model = make_image(kind, self.path)
        self.snapshots: dict[str, bytes] = {}
        self.made = 0
        where.serve(self.path)
        self.disk, self.other = where.disk(), where.disk("other")
        assert self.disk.size == len(self.model)

    # What the model does.

    def stretch(self, place: int, sectors: int) -> tuple[int, int]:
        """Offset and length of a stretch of the disk as it is now."""
        self.done[-1] += 1
        blocks = len(self.model) // SECTOR
        place %= blocks
        return place * SECTOR, min(sectors, blocks - place) * SECTOR

    def stamp(self, length: int, tag: int) -> bytes:
        """Sectors that no other write has, so that whatever is found tells whence it came."""
        self.made += 1
        head = self.made << 32 | tag
        return b"".join((head | sector << 16).to_bytes(8, "big") * 64 for sector in range(length // SECTOR))

    def put(self, offset: int, data: bytes) -> None:
        self.model[offset : offset + len(data)] = data

    def expect(self, found: bytes | bytearray, offset: int) -> None:
        wanted = self.model[offset : offset + len(found)]
        if found != wanted:
            at = next(at for at in range(0, len(found), SECTOR) if found[at : at + SECTOR] != wanted[at : at + SECTOR])
            raise AssertionError(
                f"sector {(offset + at) // SECTOR}: {found[at : at + 16].hex()}, not {wanted[at : at + 16].hex()}"
            )

    # An initiator.

    @rule(place=places, sectors=lengths, tag=number, fua=st.booleans())
    def write(self, place: int, sectors: int, tag: int, fua: bool) -> None:
        offset, length = self.stretch(place, sectors)
        self.disk.write(offset, data := self.stamp(length, tag), fua=fua)
        self.put(offset, data)

    @rule(place=places, sectors=lengths)
    def read(self, place: int, sectors: int) -> None:
        offset, length = self.stretch(place, sectors)
        self.expect(self.disk.read(offset, length), offset)

    @rule(chosen=st.lists(st.tuples(st.sampled_from("wwwrzd"), st.integers(1, 96)), min_size=2, max_size=16))
    def many_at_a_time(self, chosen: list[tuple[str, int]]) -> None:
        """Commands side by side, each in a stretch of its own."""
        share = len(self.model) // SECTOR // len(chosen) * SECTOR
        reads: list[tuple[Task, int, bytearray]] = []
        tasks: list[Task] = []
        for index, (what, sectors) in enumerate(chosen):
            offset, length = self.stretch(index * share // SECTOR, min(sectors, share // SECTOR))
            if what == "r" and length:
                buffer = bytearray(length)
                reads.append((self.disk.submit_read(offset, buffer), offset, buffer))
            elif what == "w" and length:
                tasks.append(self.disk.submit_write(offset, data := self.stamp(length, sectors)))
                self.put(offset, data)
            elif length:
                unit = self.disk._unit
                for task in unit.discards(offset, length) if what == "d" else unit.zeroes(offset, length, True):
                    self.disk.client.submit(task)
                    tasks.append(task)
                self.put(offset, bytes(length))
        for task in tasks:
            self.disk.wait(task)
        for task, offset, buffer in reads:
            self.disk.wait(task)
            self.expect(buffer, offset)

    @rule(place=places, length=st.integers(1, LONG // SECTOR), may_unmap=st.booleans())
    def zero(self, place: int, length: int, may_unmap: bool) -> None:
        offset, length = self.stretch(place, length)
        self.disk.write_zeroes(offset, length, may_unmap=may_unmap)
        self.put(offset, bytes(length))

    @rule(place=places, sectors=lengths, tag=number)
    def write_same(self, place: int, sectors: int, tag: int) -> None:
        offset, length = self.stretch(place, sectors)
        block = self.stamp(SECTOR, tag)
        cdb = b"\x93\0" + (offset // SECTOR).to_bytes(8, "big") + (length // SECTOR).to_bytes(4, "big") + bytes(2)
        assert self.disk.command(cdb, block).status == 0
        self.put(offset, block * (length // SECTOR))

    @rule(place=places, length=st.integers(1, LONG // SECTOR))
    def discard(self, place: int, length: int) -> None:
        offset, length = self.stretch(place, length)
        self.disk.discard(offset, length)
        self.put(offset, bytes(length))

    @rule(place=places, sectors=st.integers(1, 16), tag=number, same=st.booleans())
    def compare_and_write(self, place: int, sectors: int, tag: int, same: bool) -> None:
        offset, length = self.stretch(place, sectors)
        data = self.stamp(length, tag)
        held = bytes(self.model[offset : offset + length])
        if same:
            self.disk.compare_and_write(offset, held, data)
            self.put(offset, data)
        else:
            with pytest.raises(Miscompare):
                self.disk.compare_and_write(offset, held[:-1] + bytes([held[-1] ^ 1]), data)

    @rule()
    def flush(self) -> None:
        self.done[-1] += 1
        self.disk.flush()

    @rule(place=places, sectors=lengths, tag=number)
    def write_and_read_by_two_sessions(self, place: int, sectors: int, tag: int) -> None:
        offset, length = self.stretch(place, sectors)
        self.other.write(offset, data := self.stamp(length, tag))
        self.put(offset, data)
        self.expect(self.disk.read(offset, length), offset)

    @rule()
    def look(self) -> None:
        """What is not mapped reads as zeros."""
        self.done[-1] += 1
        for extent in self.disk.block_status():
            if extent.status is not Provisioning.MAPPED:
                assert not any(self.model[extent.offset : extent.offset + extent.length]), extent

    @rule()
    def login_anew(self) -> None:
        self.done[-1] += 1
        self.disk.close()
        self.disk = self.where.disk()

    # An administrator.

    @rule(
        what=st.sampled_from(("resize", "grow", "create", "apply", "delete")),
        choice=st.integers(1, MAX_SIZE // SECTOR),
    )
    def administer(self, what: str, choice: int) -> None:
        """Change the disk while both sessions have it, and are writing where it does not matter when they do."""
        self.done[-1] += 1
        pending = self.begin_writes() if what in ("grow", "delete") else []
        if what == "grow":
            self.resize(min(len(self.model) + choice * SECTOR, 2 * MAX_SIZE))
        elif what == "resize":
            self.resize(choice * SECTOR)
        elif what == "create":
            self.make_snapshot()
        elif self.snapshots:
            name = sorted(self.snapshots)[choice % len(self.snapshots)]
            self.apply_snapshot(name) if what == "apply" else self.delete_snapshot(name)
        for disk, task in pending:
            disk.wait(task)

    def begin_writes(self) -> list[tuple[Disk, Task]]:
        """Writes of both sessions, under way, each in a stretch of its own."""
        pending = []
        for index in range(8):
            offset, length = self.stretch(
                index * (len(self.model) // SECTOR) // 8, min(9, len(self.model) // SECTOR // 8)
            )
            if length:
                disk = (self.disk, self.other)[index % 2]
                pending.append((disk, disk.submit_write(offset, data := self.stamp(length, index))))
                self.put(offset, data)
        self.disk.push()
        self.other.push()
        return pending

    def resize(self, size: int) -> None:
        problems = lun_change(self.where, "resize", size=size, shrink=True)
        if "compat=0.10" in self.kind.options and self.snapshots:
            assert problems, "version 2 does not record the sizes of snapshots"
            return
        assert not problems
        self.model = self.model[:size] + bytearray(max(0, size - len(self.model)))
        self.learn_size()

    def learn_size(self) -> None:
        for disk in (self.disk, self.other):
            assert disk.capacity().size == len(self.model)

    def make_snapshot(self) -> None:
        if len(self.snapshots) >= MAX_SNAPSHOTS:
            return
        self.made += 1
        problems = lun_change(self.where, "snapshot", action="create", name=f"s{self.made}")
        if not problems:
            self.snapshots[f"s{self.made}"] = bytes(self.model)
        if not self.kind.narrow:
            assert bool(problems) != self.kind.snapshots, problems

    def apply_snapshot(self, name: str) -> None:
        problems = lun_change(self.where, "snapshot", action="apply", name=name)
        if problems and self.kind.narrow:
            return
        assert not problems
        self.model = bytearray(self.snapshots[name])
        self.learn_size()

    def delete_snapshot(self, name: str) -> None:
        assert not lun_change(self.where, "snapshot", action="delete", name=name)
        del self.snapshots[name]

    # The verdict.

    def whole(self, disk: Disk) -> None:
        self.expect(disk.read(0, len(self.model)), 0)

    def teardown(self) -> None:
        try:
            self.whole(self.disk)
            self.whole(self.other)
        finally:
            self.disk.close()
            self.other.close()
            self.where.drop()
        assert_sound(self.path)
        assert_same(self.path, self.model)
        if "data_file_raw" in self.kind.options:
            assert Path(f"{self.path}.data").read_bytes()[: len(self.model)] == self.model
        forget_image(self.path)


@pytest.mark.parametrize("kind", KINDS)
def test_long_life_agrees_with_a_model_and_is_sound_for_qemu(
    kind: str, where: Served, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    counted, per_life = 0, min(OPERATIONS, STEPS)
    while counted < OPERATIONS:
        lives: list[int] = []
        run_state_machine_as_test(
            partial(Life, where, KINDS[kind], tmp_path, lives),
            settings=settings(
                max_examples=1 + max(1, (OPERATIONS - counted) // (2 * per_life)),
                stateful_step_count=per_life,
                deadline=None,
                database=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
        counted += sum(lives[1:])  # Hypothesis begins with the simplest life: one operation, again and again
    record_property("operations", counted)
