"""What ``iscsid disk info`` tells, of real targets and of answers."""

from __future__ import annotations

from typing import Any

import pytest

from iscsid.disk import facts
from iscsid.errors import InitiatorError, SenseError, Unsupported
from iscsid.initiator import BlockStatus, Provisioning
from iscsid.testing import TestTarget

MIB = 1 << 20


@pytest.mark.process
@pytest.mark.iscsid(luns=[{"size": "8 MiB", "serial": "S1", "block_size": 4096}, {"lun": 7, "size": "1 MiB"}])
def test_facts_of_a_disk_and_of_all_disks(iscsid_target: TestTarget) -> None:
    with iscsid_target.disk() as disk:
        disk.write(0, b"x" * 65536)
        disk.register(0x12)
        disk.reserve(0x12)
        found = facts.disk_facts(disk)
    assert (found["size"], found["blocks"], found["block_size"]) == (8 * MIB, 2048, 4096)
    assert (found["serial"], found["vendor"], found["mapped"]) == ("S1", "ISCSID", 65536)
    assert found["url"] == iscsid_target.url()
    assert found["reservation"] == {"keys": ["0x12"], "holder": "0x12", "type": "write-exclusive"}
    units = facts.unit_list(iscsid_target.url().removesuffix("/0"), {})
    assert [(unit["lun"], unit["size"]) for unit in units] == [(0, 8 * MIB), (7, MIB)]
    assert units[0]["serial"] == "S1"


class FakeDisk:
    def __init__(self, error: InitiatorError, extents: int = 0) -> None:
        self.error = error
        self.extents = extents

    def block_status(self) -> Any:
        for number in range(self.extents):
            yield BlockStatus(number, 1, Provisioning(number % 2))
        if not self.extents:
            raise self.error

    def read_keys(self) -> Any:
        raise self.error


def test_what_a_target_does_not_tell_is_none() -> None:
    assert facts.mapped_bytes(FakeDisk(Unsupported("no map"))) is None  # type: ignore[arg-type]
    assert facts.reservation(FakeDisk(SenseError(5, 0x20, 0, "no such command"))) is None  # type: ignore[arg-type]
    with pytest.raises(SenseError):
        facts.reservation(FakeDisk(SenseError(4, 0x44, 0, "broken")))  # type: ignore[arg-type]


def test_mapped_share_is_counted_up_to_a_limit() -> None:
    nothing = InitiatorError("unused")
    assert facts.mapped_bytes(FakeDisk(nothing, 10)) == 5  # type: ignore[arg-type]
    assert facts.mapped_bytes(FakeDisk(nothing, facts.MAX_EXTENTS + 1)) is None  # type: ignore[arg-type]


def test_lines_are_for_people() -> None:
    told: dict[str, Any] = {
        "url": "u",
        "vendor": "v",
        "product": "p",
        "revision": "1",
        "serial": "",
        "size": 8 * MIB,
        "blocks": 16384,
        "block_size": 512,
        "physical_block_size": 4096,
        "thin": True,
        "unmapped_reads_zeros": True,
        "mapped": 2 * MIB,
        "limits": {"max_transfer": MIB, "max_unmap": 0},
        "reservation": {"keys": ["0x1", "0x2"], "holder": "0x1", "type": "exclusive-access"},
    }
    lines = facts.fact_lines(told)
    assert lines["size"] == "8 MiB (8388608 bytes)"
    assert lines["blocks"] == "16384 of 512 bytes, 4096 on the medium"
    assert lines["provisioning"] == "thin, unmapped blocks read as zeros"
    assert lines["mapped"] == "2 MiB (25.0%)"
    assert lines["max_transfer"] == "1 MiB"
    assert "max_unmap" not in lines
    assert lines["registered keys"] == "0x1, 0x2"
    assert lines["reservation"] == "exclusive-access by 0x1"
    told |= {"mapped": None, "reservation": None, "thin": False, "unmapped_reads_zeros": False}
    lines = facts.fact_lines(told)
    assert lines["provisioning"] == "thick"
    assert not lines.keys() & {"mapped", "reservation", "registered keys"}
    told |= {"reservation": {"keys": [], "holder": None, "type": None}}
    assert facts.fact_lines(told)["reservation"] == "none"
