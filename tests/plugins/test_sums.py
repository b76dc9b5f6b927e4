"""The file of sums: marks are on the medium before the writes that they are for."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from iscsid_plugins import sums as module
from iscsid_plugins.sums import REGION, UNKNOWN, Sums, sum_of
from layer_kit import Disk

from iscsid.errors import BlockError, Fault

SIZE = 10 * REGION


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "sums")


@pytest.fixture
def sums(path: str) -> Iterator[Sums]:
    sums = Sums(path, SIZE, 4096)
    yield sums
    sums.close()


def test_sums_are_kept_and_unknown_where_never_written(sums: Sums) -> None:
    sums.write(7, array("I", [1, 2, 3]))
    assert list(sums.read(6, 5)) == [UNKNOWN, 1, 2, 3, UNKNOWN]


def test_every_sum_has_its_place_on_the_medium_from_the_beginning(sums: Sums, path: str) -> None:
    facts = os.stat(path)
    assert facts.st_blocks * 512 >= facts.st_size >= SIZE // 4096 * 4


def test_file_with_holes_is_filled_when_it_is_opened(path: str) -> None:
    first = Sums(path, SIZE, 4096)
    first.write(7, array("I", [1, 2, 3]))
    first.close()
    content = Path(path).read_bytes()
    Path(path).unlink()
    with open(path, "wb") as file:
        file.truncate(len(content))
        for at in range(0, len(content), 4096):
            if any(page := content[at : at + 4096]):
                os.pwrite(file.fileno(), page, at)
    again = Sums(path, SIZE, 4096)
    facts = os.stat(path)
    assert facts.st_blocks * 512 >= facts.st_size
    assert list(again.read(6, 5)) == [UNKNOWN, 1, 2, 3, UNKNOWN]
    again.close()


def test_sum_is_crc32c_and_never_unknown() -> None:
    assert sum_of(memoryview(b"123456789")) == 0xE3069283  # the check value of RFC 3720 appendix B.4
    assert sum_of(memoryview(b"")) == 0xFFFFFFFF


def test_mark_is_on_the_medium_when_it_returns(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sums, disk = Sums(path, SIZE, 4096), Disk(path)
    monkeypatch.setattr(module, "os", disk)
    sums.mark(REGION - 512, 1024)
    assert sums.marked == {0, 1}
    assert not disk.pending
    again = len(disk.images)
    sums.mark(0, 512)
    assert len(disk.images) == again  # what is marked costs nothing
    monkeypatch.undo()
    sums.close()
    reopened = Sums(path, SIZE, 4096)
    assert reopened.marked == {0, 1}
    reopened.settle()
    assert not reopened.marked
    reopened.close()


def test_file_in_use_is_refused(sums: Sums, path: str) -> None:
    with pytest.raises(BlockError) as caught:
        Sums(path, SIZE, 4096)
    assert caught.value.fault is Fault.BUSY


def test_file_has_its_own_unit_and_its_own_device(path: str) -> None:
    Sums(path, SIZE, 4096).close()
    with pytest.raises(BlockError, match="belongs to a device of"):
        Sums(path, SIZE - 512, 4096)
    sums = Sums(path, SIZE, 512)
    assert sums.unit == 4096
    sums.close()


def test_file_of_another_kind_is_not_touched(path: str) -> None:
    Path(path).write_bytes(b"precious" * 1000)
    with pytest.raises(BlockError, match="not a file of checksums"):
        Sums(path, SIZE, 4096)
    assert Path(path).read_bytes() == b"precious" * 1000
