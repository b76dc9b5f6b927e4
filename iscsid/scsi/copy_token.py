"""Token copies: POPULATE TOKEN and WRITE USING TOKEN (SBC-3 5.15, 5.52), what Windows calls offloaded data transfer.

Which tokens there are, and why:

* **Block zero** (FFFF0001h): a constant of the standard that stands for zeros; WRITE USING TOKEN takes it.
* **Access upon reference** (00010000h): the token stands for places, not for bytes, and WRITE USING TOKEN copies what
  is there when it is processed. POPULATE TOKEN makes these, and they say so in ROD TYPE. A point in time copy would
  have to notice, or to survive, every later write to its source by any worker, and nothing here does; so none of those
  types is offered, and POPULATE TOKEN that insists on one (RTV) is refused.

A token may be presented to any worker, by any initiator: it holds the unit, the ranges and when it expires, and is
authenticated with a key that all workers of one server have and nobody else. A token of a server that was restarted is
unknown to the next. Nothing counts its uses, so its lifetime is its inactivity timeout, and DEL_TKN deletes nothing.
Whoever presents a token reads its source by a nexus of his own: a unit that he may not use, or that another has
reserved, he cannot read by a token either.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from iscsid.errors import ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.copy import ANY_COST, running
from iscsid.scsi.copy_list import (
    ACCESS_UPON_REFERENCE,
    BLOCK_ZERO,
    DEFAULT_TIMEOUT,
    MAX_RANGES,
    MAX_TIMEOUT,
    MAX_TRANSFER,
    pack_cscd,
)
from iscsid.scsi.copy_move import PIECE, SourceError, check, designations, find, move, quiet, write_zeroes
from iscsid.scsi.copy_state import Designation, Operation, Party
from iscsid.scsi.plan import DONE, Job, Plan
from iscsid.scsi.sense import Reason

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

TOKEN_SIZE = 512

_RANGE = struct.Struct(">QI4x")  # LOGICAL BLOCK ADDRESS, NUMBER OF LOGICAL BLOCKS
# POPULATE TOKEN DATA LENGTH, RTV IMMED, INACTIVITY TIMEOUT, ROD TYPE, BLOCK DEVICE RANGE DESCRIPTOR LENGTH
_POPULATE = struct.Struct(">HBxII2xH")
_RTV = 0x02
# WRITE USING TOKEN DATA LENGTH, DEL_TKN IMMED, OFFSET INTO ROD, ROD TOKEN, BLOCK DEVICE RANGE DESCRIPTOR LENGTH
_USE = struct.Struct(">HB5xQ512s6xH")
_RANGES_AT_POPULATE, _RANGES_AT_USE = 14, 534  # where their lengths stand

# ROD TYPE, ROD TOKEN LENGTH, COPY MANAGER ROD TOKEN IDENTIFIER, CREATOR LOGICAL UNIT DESCRIPTOR, NUMBER OF BYTES
# REPRESENTED (SPC-4 5.17.6.5.2); what is ours follows in EXTENDED ROD TOKEN DATA
_TOKEN = struct.Struct(">I2xHQ32s8xQ192x")
_TOKEN_LENGTH = TOKEN_SIZE - 8
# version, number of ranges, code set, type and length of the designator, creation and lifetime in seconds, designator
_OURS = struct.Struct(">BBBBB3xQI20s")
_TOKEN_RANGE = struct.Struct(">QI")
_VERSION = 1
_DIGEST, _DIGEST_SIZE = "sha256", 32

Ranges = tuple[tuple[int, int], ...]
"""LBA and number of blocks, each."""


class Token(NamedTuple):
    """What a token of ours says; ``blocks`` are those of the unit that made it."""

    designation: Designation
    ranges: Ranges
    created: int
    lifetime: int


# -- tokens ----------------------------------------------------------------------------------------------------------


def seal(token: Token, block_size: int, key: bytes) -> bytes:
    """Return the 512 bytes of an access upon reference token."""
    code_set, kind, designator = token.designation
    ours = _OURS.pack(
        _VERSION, len(token.ranges), code_set, kind, len(designator), token.created, token.lifetime, designator
    )
    ours += b"".join(_TOKEN_RANGE.pack(*each) for each in token.ranges)
    identifier = int.from_bytes(hmac.digest(key, ours, _DIGEST)[:8], "big")
    represented = sum(blocks for _lba, blocks in token.ranges) * block_size
    creator = pack_cscd(token.designation, block_size)
    head = _TOKEN.pack(ACCESS_UPON_REFERENCE, _TOKEN_LENGTH, identifier, creator, represented)
    body = (head + ours).ljust(TOKEN_SIZE - _DIGEST_SIZE, b"\0")
    return body + hmac.digest(key, body, _DIGEST)


def unseal(data: bytes, key: bytes, now: int) -> Token:
    """Return what the token says. Raises ScsiError for one that is not ours, was changed, or has expired."""
    body, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
    if len(data) != TOKEN_SIZE or not hmac.compare_digest(hmac.digest(key, body, _DIGEST), digest):
        raise ScsiError(Reason.TOKEN_UNKNOWN)
    _version, count, code_set, kind, length, created, lifetime, designator = _OURS.unpack_from(data, _TOKEN.size)
    at = _TOKEN.size + _OURS.size
    ranges = tuple(_TOKEN_RANGE.iter_unpack(data[at : at + count * _TOKEN_RANGE.size]))
    # A clock that is behind the token's creation is another clock: a machine that was started again.
    if not 0 <= now - created <= lifetime:
        raise ScsiError(Reason.TOKEN_EXPIRED)
    return Token((code_set, kind, designator[:length]), ranges, created, lifetime)


def zero_token() -> bytes:
    """Return the block device zero ROD token (SBC-3 4.28.3)."""
    return struct.pack(">I2xH504x", BLOCK_ZERO, _TOKEN_LENGTH)


# -- POPULATE TOKEN --------------------------------------------------------------------------------------------------


def populate_token(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-3 5.15. No medium is read: the places are checked and written down."""
    return _token_job(lu, cdb, nexus, _POPULATE.size, _run_populate)


def write_using_token(lu: LogicalUnit, cdb: bytes, nexus: Nexus) -> Plan:
    """SBC-3 5.52. IMMED may be ignored: what is answered later has been done, not only begun."""
    return _token_job(lu, cdb, nexus, _USE.size, _run_use)


def _token_job(
    lu: LogicalUnit, cdb: bytes, nexus: Nexus, header: int, run: Callable[[Party, Operation, memoryview], None]
) -> Plan:
    list_identifier, length = struct.unpack_from(">II", cdb, 6)
    if not length:
        return DONE
    if not header <= length <= header + MAX_RANGES * _RANGE.size:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    operation = Operation(list_identifier, cdb[1] & 0x1F)
    job = partial(_run, run, quiet(Party(lu, nexus)), operation, length)
    return Job(job, length, ANY_COST, writes=True, locks=False, cancel=operation.cancel)


def _run(
    run: Callable[[Party, Operation, memoryview], None], own: Party, operation: Operation, length: int, data: memoryview
) -> bytes:
    if len(data) < length:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    own.nexus.copies.begin(operation)
    with running(operation):
        run(own, operation, data)
    return b""


def _run_populate(own: Party, operation: Operation, data: memoryview) -> None:
    _length, flags, timeout, rod_type, ranges_length = _POPULATE.unpack_from(data)
    if flags & _RTV and rod_type != ACCESS_UPON_REFERENCE:
        raise _invalid(8)
    if timeout > MAX_TIMEOUT:
        raise _invalid(4)
    unit = own.unit
    ranges = _ranges(data, _POPULATE.size, ranges_length, _RANGES_AT_POPULATE)
    for lba, blocks in ranges:
        check(own, lba << unit.shift, blocks << unit.shift, writes=False)
    services = own.nexus.copies.services
    token = Token(designations(unit)[0], ranges, services.now(), timeout or DEFAULT_TIMEOUT)
    operation.token = seal(token, unit.block_size, services.key)
    operation.transferred = sum(blocks for _lba, blocks in ranges) << unit.shift
    operation.segments = len(ranges)


# -- WRITE USING TOKEN -----------------------------------------------------------------------------------------------


def _run_use(own: Party, operation: Operation, data: memoryview) -> None:
    _length, _flags, offset, token, ranges_length = _USE.unpack_from(data)
    unit = own.unit
    ranges = _ranges(data, _USE.size, ranges_length, _RANGES_AT_USE)
    if sum(blocks for _lba, blocks in ranges) << unit.shift > MAX_TRANSFER:
        raise _invalid(_RANGES_AT_USE)
    source = _source(own, token)  # before the ranges: a token that is none is the greater fault
    for lba, blocks in ranges:
        check(own, lba << unit.shift, blocks << unit.shift, writes=True)
    targets = [(lba << unit.shift, blocks << unit.shift) for lba, blocks in ranges]
    if source is None:
        _zero(own, operation, targets)
    else:
        _copy(own, operation, targets, offset << unit.shift, *source)


def _source(own: Party, token: bytes) -> tuple[Party, list[tuple[int, int]]] | None:
    """Return where the bytes of the token lie: unit, and offsets and lengths in bytes; None for the zero token."""
    rod_type, length = struct.unpack_from(">I2xH", token)
    if rod_type == BLOCK_ZERO:
        if token != zero_token():
            raise ScsiError(Reason.TOKEN_CORRUPT)
        return None
    if rod_type != ACCESS_UPON_REFERENCE:
        raise ScsiError(Reason.UNSUPPORTED_TOKEN_TYPE)
    if length != _TOKEN_LENGTH:
        raise ScsiError(Reason.INVALID_TOKEN_LENGTH)
    services = own.nexus.copies.services
    told = unseal(token, services.key, services.now())
    source = find(told.designation, own)
    if source is None:
        raise ScsiError(Reason.COPY_TARGET_DEVICE_NOT_REACHABLE)
    shift = source.unit.shift
    return source, [(lba << shift, blocks << shift) for lba, blocks in told.ranges]


def _zero(own: Party, operation: Operation, targets: Sequence[tuple[int, int]]) -> None:
    for at, length in targets:
        for start in range(0, length, PIECE):
            if operation.cancelled:
                raise ScsiError(Reason.COPY_OPERATION_ABORTED)
            size = min(PIECE, length - start)
            write_zeroes(own, at + start, size)
            operation.transferred += size
        operation.segments += 1


def _copy(
    own: Party,
    operation: Operation,
    targets: Sequence[tuple[int, int]],
    skip: int,
    source: Party,
    places: Sequence[tuple[int, int]],
) -> None:
    """Fill ``targets`` from ``places`` of the source, from byte ``skip`` of what they hold together."""
    if skip + sum(length for _at, length in targets) > sum(length for _start, length in places):
        raise _invalid(_RANGES_AT_USE)
    # What is skipped goes to where nothing is: below 0.
    for at, start, size in _pairs([(-skip, skip), *targets], places):
        if at < 0:
            continue
        if (start | size) % source.unit.block_size or size % own.unit.block_size:
            raise ScsiError(Reason.UNEXPECTED_INEXACT_SEGMENT)
        try:
            move(operation, source, start, own, at, size)
        except SourceError as error:
            raise _source_failed(error.__cause__) from error
    operation.segments = len(targets)


def _pairs(targets: Iterable[tuple[int, int]], places: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield (destination, source, length) of the stretches that are contiguous on both sides."""
    sources = iter(places)
    start = left = 0
    for at, length in targets:
        while length:
            while not left:
                start, left = next(sources)
            size = min(length, left)
            yield at, start, size
            at, start, length, left = at + size, start + size, length - size, left - size


def _source_failed(cause: BaseException | None) -> ScsiError:
    """A conflict with a reservation of the source stays what it is; whatever else is a failure of a third party."""
    if isinstance(cause, ScsiError) and isinstance(cause.reason, Status):
        return cause
    return ScsiError(Reason.THIRD_PARTY_DEVICE_FAILURE)


def _ranges(data: memoryview, at: int, length: int, field: int) -> Ranges:
    """Return the block device range descriptors (SBC-3 5.15.3): whole, one at least, none over another."""
    if not length or length % _RANGE.size:
        raise _invalid(field)
    if length > len(data) - at:
        raise ScsiError(Reason.PARAMETER_LIST_LENGTH_ERROR)
    ranges = tuple(_RANGE.iter_unpack(data[at : at + length]))
    if len(ranges) > MAX_RANGES:
        raise ScsiError(Reason.TOO_MANY_SEGMENT_DESCRIPTORS, field=field, in_data=True)
    ordered = sorted(each for each in ranges if each[1])
    if any(lba + blocks > after for (lba, blocks), (after, _) in pairwise(ordered)):
        raise _invalid(at)
    return ranges


def _invalid(field: int) -> ScsiError:
    return ScsiError(Reason.INVALID_FIELD_IN_PARAMETER_LIST, field=field, in_data=True)
