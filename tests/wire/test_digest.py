"""CRC32C: both implementations give the vectors of RFC 7143 appendix A.4, and the same for everything else."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from iscsid.wire import digest
from iscsid.wire.digest import crc32c, crc32c_python

google_crc32c = pytest.importorskip("google_crc32c")

# The SCSI READ(10) command of appendix A.4, whole PDU header.
READ_COMMAND = bytes.fromhex(
    "01c00000 00000000 00000000 00000000 14000000 00000400 00000014 00000018 28000000 00000000 02000000 00000000"
)

# Data, and the four bytes as the RFC prints them: in the order of the wire.
VECTORS = [
    (bytes(32), "aa36918a"),
    (b"\xff" * 32, "43aba862"),
    (bytes(range(32)), "4e79dd46"),
    (bytes(range(31, -1, -1)), "5cdb3f11"),
    (READ_COMMAND, "563a96d9"),
    (b"", "00000000"),
    (b"123456789", "839206e3"),  # the check value of the CRC catalogues, 0xe3069283
]

IMPLEMENTATIONS = [pytest.param(crc32c, id="chosen"), pytest.param(crc32c_python, id="python")]
KINDS = [bytes, bytearray, lambda data: memoryview(bytes(data)), lambda data: memoryview(bytearray(data))]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("kind", KINDS, ids=["bytes", "bytearray", "view", "writable-view"])
@pytest.mark.parametrize(("data", "wire"), VECTORS)
def test_crc32c_of_rfc_vector_matches_in_every_kind_of_buffer(
    implementation: Callable[..., int], kind: Callable[[bytes], object], data: bytes, wire: str
) -> None:
    assert implementation(kind(data)).to_bytes(4, "little").hex() == wire


@pytest.mark.parametrize(("data", "wire"), VECTORS)
def test_digest_is_in_the_order_of_the_wire(data: bytes, wire: str) -> None:
    assert digest.digest(data).hex() == wire


def test_crc32c_is_the_c_library_where_it_is_there() -> None:
    if google_crc32c.implementation != "c":
        pytest.skip("google_crc32c has no C part here")
    assert crc32c is not crc32c_python


@pytest.mark.parametrize("length", [*range(20), 47, 48, 49, 4093, 4096, 70001])
def test_crc32c_implementations_agree_on_random_data(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert crc32c(data) == crc32c_python(data) == crc32c(memoryview(bytearray(data)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_crc32c_in_pieces_equals_crc32c_of_the_whole(implementation: Callable[..., int]) -> None:
    data = random.Random(1).randbytes(1000)
    for cut in (0, 1, 2, 3, 4, 500, 999, 1000):
        assert implementation(data[cut:], implementation(data[:cut])) == implementation(data)


def test_crc32c_of_a_view_longer_than_a_piece_is_that_of_the_whole() -> None:
    data = random.Random(2).randbytes(2 * digest._PIECE + 12345)
    assert crc32c(memoryview(bytearray(data))) == crc32c(bytearray(data)) == crc32c(data)


def test_crc32c_of_a_slice_ignores_what_lies_around_it() -> None:
    data = random.Random(3).randbytes(300)
    assert crc32c(memoryview(data)[17:203]) == crc32c(data[17:203]) == crc32c_python(memoryview(data)[17:203])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_crc32c_sees_every_flipped_bit(implementation: Callable[..., int]) -> None:
    right = implementation(READ_COMMAND)
    for bit in range(len(READ_COMMAND) * 8):
        damaged = bytearray(READ_COMMAND)
        damaged[bit // 8] ^= 1 << bit % 8
        assert implementation(damaged) != right


def test_choose_without_the_library_takes_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "google_crc32c", None)
    assert digest._choose() is crc32c_python


def test_choose_without_the_c_part_takes_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(google_crc32c, "implementation", "python")
    assert digest._choose() is crc32c_python
