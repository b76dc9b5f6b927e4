"""Images that lie, through the whole server: each field of the header, and each kind of entry of each table.

At the start and at a reload what makes no sense is refused, and says which file and why. What only shows when it is
used ends in sense data, and in an image that is marked as corrupt where what is read contradicts itself. Nothing hangs,
and nothing takes memory by what an image claims.
"""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_qcow2 import SECTOR, Kind, Served, assert_sound, make_image, run, served
from e2e_server import Server

from iscsid.errors import InitiatorError, SenseError
from iscsid.initiator.disk import Disk
from iscsid.scsi.const import SenseKey

#: How many of all lies each test of a kind of image tells; 1000 are all of them.
MUTATIONS = int(os.environ.get("ISCSID_QCOW2_MUTATIONS", "8"))

pytestmark = [pytest.mark.judge("qemu-img", "qemu-io"), pytest.mark.timeout(120 + MUTATIONS)]

SIZE = 1 << 20
CLUSTER = 4096
MEMORY = 64 << 20  # bytes that a server may come to take more, whatever it is given
CORRUPT = 2
COPIED = 1 << 63
KINDS = {
    "plain": Kind(f"cluster_size={CLUSTER}", True, "qcow2"),
    "subclusters": Kind("cluster_size=16k,extended_l2=on,compression_type=zstd", True, "raw"),
    "v2": Kind(f"cluster_size={CLUSTER},compat=0.10", True, "raw"),
    "data-file": Kind(f"cluster_size={CLUSTER},data_file={{path}}.data"),
}
FIELDS = range(4, 112, 4)
#: Of a field of 32 bits.
NUMBERS = (0, 1, 0x80000000, 0xFFFFFFFF)
#: Of an entry of 64 bits.
ENTRIES = (1, 0x200, 1 << 40, COPIED | 1 << 40, COPIED | 0x1200, 1 << 56, (1 << 62) + 5, (1 << 64) - 1)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("server")) as made:
        yield made


def number(content: bytes, at: int, size: int = 8) -> int:
    return int.from_bytes(content[at : at + size], "big")


def used_image(kind: str, folder: Path) -> tuple[Path, dict[str, int]]:
    """An image with data, compressed clusters, a backing file and a snapshot; and where an entry of each table lies."""
    path = folder / "disk.qcow2"
    make_image(KINDS[kind], path, SIZE)
    if kind != "data-file":
        run("snapshot", "-c", "before", path)
    subprocess.run(
        ["qemu-io", "-c", "write -P 7 0 80k", "-c", "write -P 8 700k 9k", path], check=True, capture_output=True
    )
    assert_sound(path)
    content = path.read_bytes()
    l1, reftable, snapshots = number(content, 40), number(content, 48), number(content, 64)
    places = {"the L1 table": l1, "the refcount table": reftable}
    places["an L2 table"] = number(content, l1) & 0x00FF_FFFF_FFFF_FE00
    places["a refcount block"] = number(content, reftable)
    if snapshots:
        places["the snapshot table"] = snapshots
        places["the L1 table of a snapshot"] = number(content, snapshots)
        places["an L2 table of a snapshot"] = number(content, number(content, snapshots)) & 0x00FF_FFFF_FFFF_FE00
    return path, places


def put(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


class Trial:
    """One server, asked to serve one damaged image after the other."""

    def __init__(self, where: Served, path: Path) -> None:
        self.where, self.path = where, path
        self.sound = path.read_bytes()
        self.refused = self.served = 0
        where.serve(path)
        where.drop()
        self.memory = where.server.memory()

    def try_with(self, what: str, at: int, data: bytes) -> None:
        """Serve and use the image with ``data`` in it. Every outcome is good but a hang, a crash or an obscure word."""
        self.path.write_bytes(self.sound)
        put(self.path, at, data)
        problems = self.where.reload({"path": self.path})
        if problems:
            self.refused += 1
            (problem,) = problems
            assert str(self.path) in problem, (what, problem)
            assert not re.search(r"Traceback|\b\w+(Error|Exception)\b", problem), (what, problem)
        else:
            self.served += 1
            try:
                self.use(what)
            finally:
                self.where.drop()
        assert self.where.server.memory() - self.memory < MEMORY, what

    def use(self, what: str) -> None:
        with self.where.disk(timeout=20.0) as disk:
            step = max(SECTOR, min(disk.size // 16, 1 << 20) // SECTOR * SECTOR)
            for offset in range(0, min(disk.size, 16 * step) - step + 1, step):
                self.do(what, lambda: disk.read(offset, step))  # noqa: B023
                self.do(what, lambda: disk.write(offset, b"w" * SECTOR))  # noqa: B023
                self.do(what, lambda: disk.discard(offset, step))  # noqa: B023
            self.do(what, lambda: list(disk.block_status(0, min(disk.size, 16 * step))))
            self.do(what, disk.flush)

    def do(self, what: str, call: object) -> None:
        try:
            call()  # type: ignore[operator]
        except SenseError as error:
            good = (SenseKey.MEDIUM_ERROR, SenseKey.DATA_PROTECT)
            assert error.key in good, (what, str(error))
        except InitiatorError as error:
            raise AssertionError(what) from error


def chosen(kind: str, trials: list[tuple[str, int, bytes]]) -> list[tuple[str, int, bytes]]:
    return random.Random(kind).sample(trials, min(MUTATIONS, len(trials)))


@pytest.mark.parametrize("kind", KINDS)
def test_header_that_lies_is_refused_or_contained(kind: str, where: Served, tmp_path: Path) -> None:
    path, _ = used_image(kind, tmp_path)
    trial = Trial(where, path)
    lies = [(f"header at {at}: {value:#x}", at, struct.pack(">I", value)) for at in FIELDS for value in NUMBERS]
    for lie in chosen(kind, lies):
        trial.try_with(*lie)
    assert trial.refused


@pytest.mark.parametrize("kind", KINDS)
def test_table_that_lies_is_refused_or_contained(kind: str, where: Served, tmp_path: Path) -> None:
    path, places = used_image(kind, tmp_path)
    trial = Trial(where, path)
    lies = [
        (f"entry {index} of {table}: {value:#x}", at + 8 * index, struct.pack(">Q", value))
        for table, at in places.items()
        for index in (0, 1, 3)
        for value in ENTRIES
    ]
    for lie in chosen(kind, lies):
        trial.try_with(*lie)
    assert trial.served


def test_file_that_ends_early_is_refused_or_contained(where: Served, tmp_path: Path) -> None:
    path, places = used_image("plain", tmp_path)
    trial = Trial(where, path)
    whole = trial.sound
    for length in (0, 3, 71, 103, 511, CLUSTER, *(place + 100 for place in places.values()), len(whole) - 1):
        trial.sound = whole[:length]
        trial.try_with(f"cut off after {length} bytes", 0, b"")


# Behind an open disk.


def corrupt(path: Path) -> bool:
    return bool(number(path.read_bytes(), 72) & CORRUPT)


def read_all(disk: Disk) -> None:
    disk.read(0, disk.size)


def write_first(disk: Disk) -> None:
    disk.write(0, bytes(CLUSTER))


def write_new(disk: Disk) -> None:
    disk.write(disk.size - CLUSTER, bytes(range(256)) * 16)


@pytest.mark.parametrize(
    ("kind", "table", "at", "lie", "call"),
    [
        ("plain", "an L2 table", 0, struct.pack(">Q", COPIED | 0x1200), read_all),
        ("plain", "an L2 table", 0, struct.pack(">Q", COPIED | 1 << 60), read_all),
        ("subclusters", "an L2 table", 8, b"\xff" * 8, read_all),
        ("data-file", "an L2 table", 0, struct.pack(">Q", COPIED | 1 << 40), write_first),
        ("plain", "a refcount block", 0, bytes(CLUSTER), write_new),
    ],
)
def test_lie_behind_an_open_disk_is_a_medium_error_and_marks_the_image(
    kind: str, table: str, at: int, lie: bytes, call: Callable[[Disk], None], where: Served, tmp_path: Path
) -> None:
    path, places = used_image(kind, tmp_path)
    where.serve(path)
    with where.disk() as disk:
        put(path, places[table] + at, lie)
        with pytest.raises(SenseError) as caught:
            call(disk)
        assert caught.value.key == SenseKey.MEDIUM_ERROR
        with pytest.raises(SenseError) as caught:
            disk.write(0, bytes(SECTOR))
        assert caught.value.key == SenseKey.DATA_PROTECT
        with pytest.raises(SenseError) as caught:
            disk.flush()
        assert caught.value.key == SenseKey.MEDIUM_ERROR
    where.drop()
    assert corrupt(path)
    (problem,) = where.reload({"path": path})
    assert f"{path}: is marked as corrupt" in problem
    where.serve(path, readonly=True)
    where.drop()


def test_compressed_data_that_is_damaged_is_a_medium_error_and_no_more(where: Served, tmp_path: Path) -> None:
    path, places = used_image("plain", tmp_path)
    content = path.read_bytes()
    entries = (number(content, places["an L2 table"] + 8 * index) for index in range(SIZE // CLUSTER))
    index, entry = next((index, entry) for index, entry in enumerate(entries) if entry >> 62 == 1)
    where.serve(path)
    with where.disk() as disk:
        put(path, entry & ((1 << 58) - 1), b"\xff" * 32)
        with pytest.raises(SenseError) as caught:
            disk.read(index * CLUSTER, CLUSTER)
        assert caught.value.key == SenseKey.MEDIUM_ERROR
        disk.write(index * CLUSTER, data := bytes(range(256)) * 16)
        assert disk.read(index * CLUSTER, CLUSTER) == data
    where.drop()
    assert not corrupt(path)
    assert_sound(path)


# At the start.


@pytest.mark.parametrize(
    ("at", "lie", "words", "status"),
    [
        (48, struct.pack(">Q", 1 << 40), "the refcount table", 3),  # in the configuration's file, at this key
        (72, struct.pack(">Q", CORRUPT), "is marked as corrupt", 4),  # which can be served read-only
    ],
    ids=["table", "corrupt"],
)
def test_server_does_not_start_with_an_image_that_lies(
    at: int, lie: bytes, words: str, status: int, tmp_path: Path
) -> None:
    path = tmp_path / "disk.qcow2"
    make_image(Kind(), path, SIZE)
    put(path, at, lie)
    server = Server(tmp_path / "server", [{"backend": "qcow2", "path": path}])
    server.expected_status = status
    try:
        with pytest.raises(AssertionError, match=f"{re.escape(str(path))}.*{words}"):
            server.start()
    finally:
        server.finish()
