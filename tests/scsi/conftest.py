"""A logical unit over memory, driven as the target drives it: plan, gather, run."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from iscsid.block.device import Capabilities, Content, Device, Extent, Mode, Support
from iscsid.block.guard import Guarded
from iscsid.errors import ScsiError
from iscsid.scsi.absent import AbsentUnit
from iscsid.scsi.copy_state import Copies
from iscsid.scsi.lu import Identity, LogicalUnit
from iscsid.scsi.plan import Job, Plan, Read, Reply, Write
from iscsid.scsi.state import NexusId

sys.path[:0] = [str(Path(__file__).parent)]

TARGET = "iqn.2026-11.org.iscsid:disk0"
IDENTITY = Identity(serial="SER0001", name=f"{TARGET},L,0x0000000000000000")


class Memory(Device):
    """A device in memory that keeps a record of its calls and can be told what it is able to do."""

    mode = Mode.INLINE

    def __init__(self, blocks: int, block_size: int, lacks: Iterable[str], facts: dict[str, Any]) -> None:
        self.size = blocks * block_size
        self.block_size = block_size
        self.medium = bytearray(self.size)
        self.calls: list[tuple[Any, ...]] = []
        self.lacks = tuple(lacks)
        for name, value in facts.items():
            setattr(self, name, value)

    def capabilities(self) -> Capabilities:
        return dataclasses.replace(super().capabilities(), **dict.fromkeys(self.lacks, Support.NONE))

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.calls.append(("read", offset, len(buffer)))
        buffer[:] = self.medium[offset : offset + len(buffer)]

    def write(self, data: memoryview, offset: int) -> None:
        self.calls.append(("write", offset, len(data)))
        self.medium[offset : offset + len(data)] = data

    def flush(self) -> None:
        self.calls.append(("flush",))

    def discard(self, offset: int, length: int) -> None:
        self.calls.append(("discard", offset, length))
        self.medium[offset : offset + length] = bytes(length)

    def write_zeroes(self, offset: int, length: int, may_unmap: bool) -> None:
        self.calls.append(("zero", offset, length, may_unmap))
        self.medium[offset : offset + length] = bytes(length)

    def block_status(self, offset: int, length: int) -> Iterable[Extent]:
        yield Extent(offset, length, Content.DATA)


class FakeNexus:
    """What ``lu.Nexus`` asks for."""

    def __init__(self) -> None:
        self.initiator_name = "iqn.2026-11.org.example:host"
        self.target_name = TARGET
        self.portal_group_tag = 1
        self.luns: list[int] = [0]
        self.attentions: list[Any] | None = None
        self.copies = Copies()
        self.id = NexusId(self.initiator_name, 1, TARGET, 1)
        self.restricted = False


class Unit:
    """A logical unit, its medium and a nexus; CDBs are hex with spaces, padded to 16 bytes."""

    def __init__(self, lu: LogicalUnit | AbsentUnit, memory: Memory | None) -> None:
        self.lu = lu
        self.memory = memory
        self.nexus = FakeNexus()

    def plan(self, cdb: str) -> Plan:
        return self.lu.plan(bytes.fromhex(cdb).ljust(16, b"\0"), self.nexus)

    def run(self, cdb: str, data: bytes = b"") -> bytes:
        """Do what the plan says; return the data-in."""
        plan = self.plan(cdb)
        if isinstance(plan, Reply):
            return plan.data
        if isinstance(plan, Job):
            assert len(data) == plan.parameter_length
            return bytes(plan.run(memoryview(data)))
        device = self.lu.device
        if isinstance(plan, Read):
            buffer = bytearray(plan.length)
            device.read_into(memoryview(buffer), plan.offset)
            return bytes(buffer)
        assert isinstance(plan, Write) and len(data) == plan.length
        device.write(memoryview(data), plan.offset, plan.fua)
        return b""

    def refusal(self, cdb: str, data: bytes = b"") -> ScsiError:
        """Return the error that the command ends in, be it planned or run."""
        with pytest.raises(ScsiError) as caught:
            self.run(cdb, data)
        return caught.value


@pytest.fixture
def make_unit() -> Callable[..., Unit]:
    """Build a unit of ``blocks``; ``lacks`` names capabilities of the device that are missing, ``facts`` its facts."""

    def build(
        blocks: int = 2048,
        block_size: int = 512,
        *,
        lacks: Iterable[str] = (),
        readonly: bool = False,
        identity: Identity = IDENTITY,
        **facts: Any,
    ) -> Unit:
        memory = Memory(blocks, block_size, lacks, facts)
        return Unit(LogicalUnit(Guarded(memory, readonly=readonly), identity), memory)

    return build


@pytest.fixture
def unit(make_unit: Callable[..., Unit]) -> Unit:
    """A disk of 2048 blocks of 512 bytes with a volatile cache that can do everything."""
    return make_unit(discard_zeroes=True)


@pytest.fixture
def absent() -> Unit:
    """A logical unit number that leads nowhere."""
    return Unit(AbsentUnit(), None)
