"""POPULATE TOKEN and WRITE USING TOKEN: tokens that hold, and everything else that is presented as one."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

import pytest
from copy_kit import KEY, acquaint

from iscsid.errors import ScsiError
from iscsid.scsi.copy_list import DEFAULT_TIMEOUT, MAX_RANGES, MAX_TIMEOUT, MAX_TRANSFER
from iscsid.scsi.copy_token import TOKEN_SIZE, Token, seal, unseal, zero_token
from iscsid.scsi.lu import Identity
from iscsid.scsi.sense import Reason

Ranges = Sequence[tuple[int, int]]
TOKEN = Token((1, 3, b"12345678"), ((5, 6), (70, 80)), 1000, 60)


def described(ranges: Ranges) -> bytes:
    return b"".join(struct.pack(">QI4x", *each) for each in ranges)


def populate(ranges: Ranges, *, flags: int = 0, timeout: int = 0, rod_type: int = 0) -> bytes:
    data = described(ranges)
    return struct.pack(">HBxII2xH", len(data) + 14, flags, timeout, rod_type, len(data)) + data


def use(token: bytes, ranges: Ranges, *, offset: int = 0, flags: int = 0) -> bytes:
    data = described(ranges)
    return struct.pack(">HB5xQ512s6xH", len(data) + 534, flags, offset, token, len(data)) + data


def cdb(action: int, data: bytes, identifier: int = 1) -> str:
    return f"83 {action:02x} 00000000 {identifier:08x} {len(data):08x} 00 00"


def token_of(unit, ranges: Ranges, **arguments: int) -> bytes:
    data = populate(ranges, **arguments)
    assert unit.run(cdb(0x10, data), data) == b""
    answer = unit.run("84 07 00000001 00000000 0000ffff 00 00")
    assert struct.unpack_from(">I", answer)[0] == len(answer) - 4
    assert answer[4:6] == bytes.fromhex("10 01")
    assert answer[32:38] == bytes.fromhex("00000202 0000")  # ROD TOKEN DESCRIPTORS LENGTH, and no segment
    assert len(answer) == 38 + TOKEN_SIZE
    return answer[38:]


def write(unit, data: bytes, identifier: int = 2) -> bytes:
    return unit.run(cdb(0x11, data, identifier), data)


def refused(unit, data: bytes, action: int = 0x11) -> ScsiError:
    return unit.refusal(cdb(action, data, 3), data)


@pytest.fixture
def two(make_unit: Callable) -> tuple:
    units = (make_unit(8192), make_unit(8192, identity=Identity("SER0002", "iqn.x,L,0x1")))
    acquaint(*units)
    units[0].memory.medium[:] = random.Random(1).randbytes(len(units[0].memory.medium))
    return units


def test_token_says_what_was_sealed() -> None:
    token = seal(TOKEN, 512, KEY)
    assert len(token) == TOKEN_SIZE
    assert token[:8] == bytes.fromhex("00010000 0000 01f8")  # access upon reference; ROD TOKEN LENGTH
    assert token[16:20] == bytes.fromhex("e4000000")  # CREATOR LOGICAL UNIT DESCRIPTOR
    assert int.from_bytes(token[48:64], "big") == 86 * 512  # NUMBER OF BYTES REPRESENTED
    assert unseal(token, KEY, 1060) == TOKEN


def test_fullest_token_fits() -> None:
    full = TOKEN._replace(designation=(1, 3, b"x" * 20), ranges=((1 << 63, 0xFFFFFFFF),) * MAX_RANGES)
    assert unseal(seal(full, 512, KEY), KEY, 1000) == full


@pytest.mark.parametrize("now", [999, 1061, 0, 1 << 40])
def test_token_expires(now: int) -> None:
    with pytest.raises(ScsiError) as caught:
        unseal(seal(TOKEN, 512, KEY), KEY, now)
    assert caught.value.reason is Reason.TOKEN_EXPIRED


def test_token_with_any_other_bit_is_unknown() -> None:
    token = seal(TOKEN, 512, KEY)
    for bit in range(0, TOKEN_SIZE * 8, 5):
        other = bytearray(token)
        other[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(ScsiError) as caught:
            unseal(bytes(other), KEY, 1000)
        assert caught.value.reason is Reason.TOKEN_UNKNOWN


@pytest.mark.parametrize("data", [b"", bytes(31), bytes(512), bytes(513)])
def test_what_is_no_token_is_unknown(data: bytes) -> None:
    with pytest.raises(ScsiError) as caught:
        unseal(data, KEY, 1000)
    assert caught.value.reason is Reason.TOKEN_UNKNOWN


def test_token_of_another_key_is_unknown() -> None:
    with pytest.raises(ScsiError) as caught:
        unseal(seal(TOKEN, 512, b"another"), KEY, 1000)
    assert caught.value.reason is Reason.TOKEN_UNKNOWN


@pytest.mark.parametrize(
    ("source", "offset", "target"),
    [
        ([(10, 8)], 0, [(100, 8)]),
        ([(10, 8)], 3, [(100, 5)]),
        ([(10, 8), (50, 4), (30, 2)], 0, [(100, 14)]),
        ([(10, 8), (50, 4), (30, 2)], 9, [(100, 1), (200, 4)]),
        ([(10, 4), (0, 0), (50, 4)], 0, [(100, 2), (0, 0), (200, 6)]),
        ([(0, 5000)], 7, [(100, 4100)]),
    ],
)
def test_ranges_are_written_from_those_of_the_token(two: tuple, source: Ranges, offset: int, target: Ranges) -> None:
    token = token_of(two[0], source)
    write(two[1], use(token, target, offset=offset))
    medium = two[0].memory.medium
    held = b"".join(medium[lba * 512 : (lba + blocks) * 512] for lba, blocks in source)[offset * 512 :]
    for lba, blocks in target:
        length = blocks * 512
        assert two[1].memory.medium[lba * 512 :][:length] == held[:length]
        held = held[length:]
    operation = two[1].nexus.copies.get(2)
    assert operation.transferred == sum(blocks for _, blocks in target) * 512
    assert (operation.error, operation.running, operation.segments) == (None, False, len(target))


def test_token_stands_for_what_is_there_when_it_is_used(two: tuple) -> None:
    token = token_of(two[0], [(10, 1)], flags=2, rod_type=0x00010000)
    two[0].memory.medium[5120:5632] = b"n" * 512
    write(two[0], use(token, [(20, 1)]))
    assert two[0].memory.medium[10240:10752] == b"n" * 512


def test_zero_token_writes_zeros(two: tuple) -> None:
    before = bytes(two[0].memory.medium)
    write(two[0], use(zero_token(), [(4, 3000), (4000, 1)], offset=9))
    assert two[0].memory.medium[4 * 512 : 3004 * 512] == bytes(3000 * 512)
    assert two[0].memory.medium[3004 * 512 : 4000 * 512] == before[3004 * 512 : 4000 * 512]
    assert not any(two[0].memory.medium[4000 * 512 : 4001 * 512])


def test_timeout_is_that_of_the_initiator_or_the_default(two: tuple) -> None:
    clock = acquaint(*two)
    token, brief = token_of(two[0], [(0, 1)]), token_of(two[0], [(0, 1)], timeout=5)
    clock[0] += 6
    write(two[1], use(token, [(0, 1)]))
    assert refused(two[1], use(brief, [(0, 1)])).reason is Reason.TOKEN_EXPIRED
    clock[0] += DEFAULT_TIMEOUT
    assert refused(two[1], use(token, [(0, 1)])).reason is Reason.TOKEN_EXPIRED


@pytest.mark.parametrize(
    ("data", "reason", "field"),
    [
        (populate([]), Reason.INVALID_FIELD_IN_PARAMETER_LIST, 14),
        (populate([(0, 1)], timeout=MAX_TIMEOUT + 1), Reason.INVALID_FIELD_IN_PARAMETER_LIST, 4),
        (populate([(0, 1)], flags=2, rod_type=0x00800000), Reason.INVALID_FIELD_IN_PARAMETER_LIST, 8),
        (populate([(0, 8), (7, 1)]), Reason.INVALID_FIELD_IN_PARAMETER_LIST, 16),
        (populate([(8191, 2)]), Reason.LBA_OUT_OF_RANGE, None),
        (populate([(0, 1)])[:-1], Reason.PARAMETER_LIST_LENGTH_ERROR, None),
        (populate([(0, 1)] * (MAX_RANGES + 1)), Reason.PARAMETER_LIST_LENGTH_ERROR, None),
    ],
)
def test_wrong_list_of_populate_token_is_refused(two: tuple, data: bytes, reason: Reason, field: int | None) -> None:
    error = refused(two[0], data, 0x10)
    assert (error.reason, error.field) == (reason, field)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (bytes(512), Reason.UNSUPPORTED_TOKEN_TYPE),
        (bytes.fromhex("00800000 0000 01f8"), Reason.UNSUPPORTED_TOKEN_TYPE),
        (bytes.fromhex("00010000 0000 01f8"), Reason.TOKEN_UNKNOWN),
        (bytes.fromhex("00010000 0000 01f9"), Reason.INVALID_TOKEN_LENGTH),
        (bytes.fromhex("ffff0001 0000 01f8 01"), Reason.TOKEN_CORRUPT),
    ],
)
def test_wrong_token_is_refused(two: tuple, token: bytes, reason: Reason) -> None:
    assert refused(two[0], use(token.ljust(512, b"\0"), [(0, 1)])).reason is reason
    assert not any(call[0] == "write" for call in two[0].memory.calls)


def test_more_than_the_token_holds_is_refused(two: tuple) -> None:
    token = token_of(two[0], [(0, 8)])
    for offset, blocks in ((0, 9), (1, 8), (1 << 63, 1)):
        error = refused(two[1], use(token, [(0, blocks)], offset=offset))
        assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_PARAMETER_LIST, 534)
    assert not any(two[1].memory.medium)


def test_more_than_the_limit_at_once_is_refused(make_unit: Callable) -> None:
    unit = make_unit(16)
    error = refused(unit, use(zero_token(), [(0, MAX_TRANSFER // 512 + 1)]))
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_PARAMETER_LIST, 534)


def test_destination_beyond_the_end_is_out_of_range(two: tuple) -> None:
    assert refused(two[0], use(zero_token(), [(8190, 3)])).reason is Reason.LBA_OUT_OF_RANGE


def test_write_protected_unit_makes_tokens_and_takes_none(make_unit: Callable) -> None:
    unit = make_unit(readonly=True)
    acquaint(unit)
    token = token_of(unit, [(0, 1)])
    assert refused(unit, use(token, [(8, 1)])).reason is Reason.WRITE_PROTECTED


def test_token_of_a_unit_that_is_not_here_is_not_reachable(two: tuple) -> None:
    token = token_of(two[0], [(0, 1)])
    acquaint(two[1])
    assert refused(two[1], use(token, [(0, 1)])).reason is Reason.COPY_TARGET_DEVICE_NOT_REACHABLE


def test_failing_source_is_a_failure_of_a_third_party(two: tuple) -> None:
    def fail(buffer: memoryview, offset: int) -> None:
        raise OSError(5, "bad sector")

    token = token_of(two[0], [(0, 1)])
    two[0].lu.device._read = fail
    assert refused(two[1], use(token, [(0, 1)])).reason is Reason.THIRD_PARTY_DEVICE_FAILURE
    assert two[1].nexus.copies.get(3).error is not None


def test_source_of_larger_blocks_needs_whole_ones(make_unit: Callable) -> None:
    small, large = make_unit(512), make_unit(64, 4096, identity=Identity("SER0002", "iqn.x"))
    acquaint(small, large)
    token = token_of(large, [(1, 2)])
    write(small, use(token, [(0, 8)], offset=8))
    error = refused(small, use(token, [(0, 9)], offset=0))
    assert error.reason is Reason.UNEXPECTED_INEXACT_SEGMENT


def test_nothing_to_do_is_good(unit) -> None:
    assert unit.run("83 10 00000000 00000001 00000000 00 00") == b""
    assert unit.run("83 11 00000000 00000001 00000000 00 00") == b""


@pytest.mark.parametrize("action", [0x10, 0x11])
def test_noise_raises_nothing_but_scsi_errors(two: tuple, action: int) -> None:
    token = token_of(two[0], [(0, 8)])
    data = populate([(0, 8), (10, 2)]) if action == 0x10 else use(token, [(4, 2), (10, 2)])
    dice = random.Random(action)
    for _ in range(500):
        noisy = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            noisy[dice.randrange(len(noisy))] = dice.randrange(256)
        try:
            two[1].run(cdb(action, data), bytes(noisy))
        except ScsiError as error:
            assert isinstance(error.reason, Reason)
