"""SANITIZE: what a unit refuses meanwhile, what the state comes to, what is left on the medium, and how it fails."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iscsid.block.device import Content, Extent
from iscsid.errors import ScsiError
from iscsid.scsi.plan import Ask
from iscsid.scsi.sanitize import ALLOWED, WHOLE, Erasure, Sanitize, Stopped, apply, refusal
from iscsid.scsi.sense import Reason, build_sense

SIZE = 2048 * 512
OVERWRITE, BLOCK_ERASE, CRYPTO_ERASE, EXIT_FAILURE_MODE = 1, 2, 3, 0x1F
IMMED, ZNR, AUSE = 0x80, 0x40, 0x20
INVERT = 0x80

RUNNING, RUNNING_AUSE = Sanitize(False, False), Sanitize(False, True)
FAILED, FAILED_AUSE = Sanitize(True, False), Sanitize(True, True)


def cdb(action: int, length: int = 0, flags: int = 0) -> bytes:
    return struct.pack(">BB5xHB", 0x48, flags | action, length, 0)


def parameters(pattern: bytes, first: int = 1, length: int | None = None) -> bytes:
    return struct.pack(">BxH", first, len(pattern) if length is None else length) + pattern


def erase(unit: Any, action: int, data: bytes = b"") -> None:
    Erasure(unit.lu, cdb(action, len(data)), data)()


def refused(state: Sanitize | None, action: int, data: bytes = b"", flags: int = 0) -> ScsiError:
    with pytest.raises(ScsiError) as caught:
        apply(state, cdb(action, len(data), flags), data, 512)
    return caught.value


# -- the state ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [RUNNING, RUNNING_AUSE, FAILED, FAILED_AUSE])
def test_state_survives_as_plain_values(state: Sanitize) -> None:
    assert Sanitize.from_plain(state.to_plain()) == state


@pytest.mark.parametrize(
    "plain", [None, [], {}, {"failed": True}, {"failed": 1, "unrestricted": True}, {**FAILED.to_plain(), "more": True}]
)
def test_plain_values_that_are_no_state_are_refused(plain: Any) -> None:
    with pytest.raises(ValueError):
        Sanitize.from_plain(plain)


@pytest.mark.parametrize(("flags", "unrestricted"), [(0, False), (IMMED, False), (AUSE, True), (IMMED | AUSE, True)])
@pytest.mark.parametrize(("action", "data"), [(OVERWRITE, parameters(b"\xaa")), (BLOCK_ERASE, b"")])
def test_operation_begins(action: int, data: bytes, flags: int, unrestricted: bool) -> None:
    assert apply(None, cdb(action, len(data), flags), data, 512) == Sanitize(False, unrestricted)


@pytest.mark.parametrize("action", [OVERWRITE, BLOCK_ERASE, EXIT_FAILURE_MODE])
@pytest.mark.parametrize("state", [RUNNING, RUNNING_AUSE])
def test_second_operation_is_refused_while_one_is_under_way(state: Sanitize, action: int) -> None:
    assert refused(state, action).reason is Reason.SANITIZE_IN_PROGRESS


def test_exit_failure_mode_has_nothing_to_leave() -> None:
    assert apply(None, cdb(EXIT_FAILURE_MODE), b"", 512) is None


def test_exit_failure_mode_leaves_the_failure_that_allowed_it() -> None:
    assert apply(FAILED_AUSE, cdb(EXIT_FAILURE_MODE), b"", 512) is None


def test_restricted_failure_is_left_by_another_restricted_operation_alone() -> None:
    """SBC-3 4.11.1."""
    error = refused(FAILED, EXIT_FAILURE_MODE)
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 1)
    error = refused(FAILED, BLOCK_ERASE, flags=AUSE)
    assert (error.reason, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, 1, 5)
    assert apply(FAILED, cdb(BLOCK_ERASE), b"", 512) == RUNNING
    assert apply(FAILED_AUSE, cdb(BLOCK_ERASE, flags=AUSE), b"", 512) == RUNNING_AUSE


@pytest.mark.parametrize(
    ("data", "field", "bit"),
    [
        (parameters(b"\xaa", 0), 0, 4),  # OVERWRITE COUNT
        (parameters(b"\xaa", INVERT), 0, 4),
        (parameters(b"\xaa", 0x20 | 1), 0, 6),  # TEST, which is vendor specific
        (b"\x01\x01" + parameters(b"\xaa")[2:], 1, None),  # reserved
        (parameters(b"\xaa", length=0), 2, None),
        (parameters(b"\xaa", length=2), 2, None),
        (parameters(b"\xaa\xbb", length=1), 2, None),
        (parameters(bytes(513)), 2, None),
    ],
)
def test_parameter_list_that_makes_no_sense_is_pointed_at(data: bytes, field: int, bit: int | None) -> None:
    error = refused(None, OVERWRITE, data)
    assert (error.reason, error.in_data, error.field, error.bit) == (Reason.INVALID_FIELD_IN_CDB, True, field, bit)


def test_parameter_list_shorter_than_the_cdb_says_is_refused() -> None:
    with pytest.raises(ScsiError) as caught:
        apply(None, cdb(OVERWRITE, 12), bytes(8), 512)
    assert (caught.value.reason, caught.value.field, caught.value.in_data) == (Reason.INVALID_FIELD_IN_CDB, 7, False)


# -- what a unit refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [RUNNING, FAILED])
def test_commands_are_refused_but_for_those_in_the_table(unit: Any, state: Sanitize) -> None:
    unit.lu.sanitize = state
    reason = Reason.SANITIZE_COMMAND_FAILED if state.failed else Reason.SANITIZE_IN_PROGRESS
    for command in unit.lu.commands:
        plain = bytearray(command.opcode.to_bytes(1, "big") + bytes(15))
        plain[1] |= command.service_action or 0
        if command.opcode in ALLOWED[state.failed]:
            with contextlib.suppress(ScsiError):
                unit.plan(plain.hex())
        else:
            assert unit.refusal(plain.hex()).reason is reason, command.name
    unit.lu.sanitize = None
    assert unit.run("00 00000000 00") == b""


def test_inquiry_report_luns_and_request_sense_are_always_allowed(unit: Any) -> None:
    for state in (RUNNING, FAILED):
        unit.lu.sanitize = state
        assert unit.run("12 00 00 00ff 00")
        assert unit.run("a0 00 00 000000 00000100 00 00")
        assert unit.run("03 00 0000 ff 00")


def test_mode_that_changes_meanwhile_lets_nobody_in(unit: Any) -> None:
    unit.lu.sanitize = RUNNING
    unit.lu.mode_state = unit.lu.mode_state
    assert unit.refusal("28 00 00000000 00 0001 00").reason is Reason.SANITIZE_IN_PROGRESS


@pytest.mark.parametrize(("descriptor", "at"), [(0, 15), (1, 12)])
def test_sense_data_tells_the_progress(unit: Any, descriptor: int, at: int) -> None:
    """SPC-4 4.5.2.4.4: SKSV, and 65536ths."""
    unit.lu.sanitize = RUNNING
    unit.lu.progress.value = 0x8000
    sense = unit.run(f"03 0{descriptor} 0000 ff 00")
    assert sense[at : at + 3] == bytes.fromhex("80 8000")
    codes = (sense[1], sense[2], sense[3]) if descriptor else (sense[2], sense[12], sense[13])
    assert codes == (0x02, 0x04, 0x1B)
    assert build_sense(unit.refusal("00 00000000 00"), bool(descriptor)) == sense
    unit.lu.sanitize = FAILED
    sense = unit.run("03 00 0000 ff 00")
    assert (sense[2], sense[12], sense[13]) == (0x03, 0x31, 0x03)


def test_unit_attention_goes_first(unit: Any) -> None:
    unit.lu.sanitize = RUNNING
    unit.nexus.attentions = [Reason.MODE_PARAMETERS_CHANGED]
    assert unit.run("03 00 0000 ff 00")[12] == 0x2A
    assert unit.run("03 00 0000 ff 00")[12] == 0x04


def test_progress_never_says_that_all_is_done() -> None:
    assert refusal(RUNNING, WHOLE).progress == WHOLE - 1
    assert refusal(RUNNING).progress is None


# -- the commands ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "length"), [(OVERWRITE, 5), (OVERWRITE, 516), (BLOCK_ERASE, 0), (EXIT_FAILURE_MODE, 0)]
)
@pytest.mark.parametrize("flags", [0, IMMED, AUSE, IMMED | AUSE])
def test_command_goes_to_the_authority(unit: Any, action: int, length: int, flags: int) -> None:
    plan = unit.plan(cdb(action, length, flags).hex())
    assert isinstance(plan, Ask) and plan.parameter_length == length
    assert unit.memory.calls == []


@pytest.mark.parametrize("length", [0, 1, 4, 517, 0xFFFF])
def test_overwrite_with_a_list_too_short_or_too_long_is_refused(unit: Any, length: int) -> None:
    error = unit.refusal(cdb(OVERWRITE, length).hex())
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 7)


@pytest.mark.parametrize("action", [BLOCK_ERASE, EXIT_FAILURE_MODE])
def test_parameter_list_where_none_belongs_is_refused(unit: Any, action: int) -> None:
    error = unit.refusal(cdb(action, 8).hex())
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 8)


@pytest.mark.parametrize("action", [OVERWRITE, BLOCK_ERASE, EXIT_FAILURE_MODE])
def test_znr_is_refused_for_there_are_no_zones(unit: Any, action: int) -> None:
    assert unit.refusal(cdb(action, flags=ZNR).hex()).reason is Reason.INVALID_FIELD_IN_CDB


def test_cryptographic_erase_is_no_command(unit: Any) -> None:
    error = unit.refusal(cdb(CRYPTO_ERASE).hex())
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 1)


@pytest.mark.parametrize("lacks", ["discard", "block_status"])
def test_block_erase_is_no_command_where_it_cannot_be_shown(make_unit: Callable[..., Any], lacks: str) -> None:
    unit = make_unit(lacks=[lacks])
    error = unit.refusal(cdb(BLOCK_ERASE).hex())
    assert (error.reason, error.field) == (Reason.INVALID_FIELD_IN_CDB, 1)
    assert isinstance(unit.plan(cdb(OVERWRITE, 8).hex()), Ask)


def test_write_protected_unit_is_not_sanitized(make_unit: Callable[..., Any]) -> None:
    assert make_unit(readonly=True).refusal(cdb(OVERWRITE, 8).hex()).reason is Reason.WRITE_PROTECTED


# -- the operation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", [b"\xaa", b"\x01\x02\x03", bytes(range(256)) * 2])
def test_overwrite_begins_its_pattern_anew_in_every_block(unit: Any, pattern: bytes) -> None:
    erase(unit, OVERWRITE, parameters(pattern))
    assert unit.memory.medium == (pattern * 512)[:512] * 2048
    assert unit.memory.calls == [("write", 0, SIZE), ("flush",)]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("invert", [0, INVERT])
def test_overwrite_flushes_each_pass_and_the_last_one_is_not_inverted(unit: Any, count: int, invert: int) -> None:
    """SBC-3 5.24.2.2: with INVERT and an even count the first pass is the inverted one."""
    passes: list[int] = []
    flush = unit.memory.flush
    unit.memory.flush = lambda: (passes.append(unit.memory.medium[-1]), flush())
    erase(unit, OVERWRITE, parameters(b"\xa5", invert | count))
    assert passes == [[0xA5, 0x5A, 0xA5][-count:], [0xA5] * count][not invert]
    assert unit.memory.medium == b"\xa5" * SIZE


def test_block_erase_writes_zeros_over_what_is_allocated_and_gives_it_back(unit: Any) -> None:
    def status(offset: int, length: int) -> Iterator[Extent]:
        yield Extent(0, 1024, Content.DATA)
        yield Extent(1024, SIZE - 1024, Content.HOLE | Content.ZERO)

    unit.memory.block_status = status
    unit.memory.medium[:1024] = b"x" * 1024
    erase(unit, BLOCK_ERASE)
    assert unit.memory.calls == [("write", 0, 1024), ("flush",), ("discard", 0, SIZE), ("flush",)]
    assert unit.memory.medium == bytes(SIZE)


def test_progress_grows_over_all_passes(make_unit: Callable[..., Any]) -> None:
    unit = make_unit(blocks=4096)
    seen: list[int] = []
    write = unit.memory.write

    def watched(data: memoryview, offset: int) -> None:
        seen.append(unit.lu.progress.value)
        write(data, offset)

    unit.memory.write = unit.lu.device._write = watched
    unit.lu.progress.value = 77
    erase(unit, OVERWRITE, parameters(b"\xaa", 2))
    assert seen == [0, 0x4000, 0x8000, 0xC000]


def test_operation_waits_for_what_is_held(unit: Any) -> None:
    """A piece of a third-party copy, which is no task of the unit."""
    order: list[Any] = []

    @contextlib.contextmanager
    def exclusive(*arguments: Any) -> Iterator[None]:
        order.append(arguments)
        yield

    unit.lu.device.exclusive = exclusive
    unit.lu.device.lock = contextlib.nullcontext()
    erase(unit, OVERWRITE, parameters(b"\xaa"))
    assert order == [(0, SIZE)]


@pytest.mark.parametrize(("action", "data"), [(OVERWRITE, parameters(b"\xaa")), (BLOCK_ERASE, b"")])
def test_operation_that_is_stopped_says_so(unit: Any, action: int, data: bytes) -> None:
    erasure = Erasure(unit.lu, cdb(action, len(data)), data)
    erasure.stop()
    with pytest.raises(Stopped, match="the server ends"):
        erasure()
    assert ("flush",) not in unit.memory.calls


@pytest.mark.parametrize(("action", "data"), [(OVERWRITE, parameters(b"\xaa")), (BLOCK_ERASE, b"")])
def test_medium_that_fails_ends_the_operation(unit: Any, action: int, data: bytes) -> None:
    def broken() -> None:
        raise OSError(5, "bad sector")

    unit.memory.flush = broken
    with pytest.raises(OSError, match="bad sector"):
        erase(unit, action, data)
