"""VPD page 8Fh, third-party copy (SPC-4 7.8.17, SBC-3 6.6.6): what the copy manager can do, and how much at once.

A function of the limits that the parsers hold to, and of the rows of the opcode table.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from iscsid.scsi.const import Opcode
from iscsid.scsi.copy_list import (
    ACCESS_UPON_REFERENCE,
    BLOCK_ZERO,
    DEFAULT_TIMEOUT,
    MAX_CSCDS,
    MAX_DESCRIPTORS_LENGTH,
    MAX_RANGES,
    MAX_SEGMENT_LENGTH,
    MAX_SEGMENTS,
    MAX_TIMEOUT,
    MAX_TRANSFER,
    OPTIMAL_TRANSFER,
    THIS_UNIT,
)
from iscsid.scsi.copy_results import TYPE_CODES
from iscsid.scsi.copy_state import MAX_OPERATIONS

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus

_TOKEN_LIMITS, _COMMANDS, _PARAMETERS, _DESCRIPTORS = 0x0000, 0x0001, 0x0004, 0x0008
_CSCD_IDS, _TOKEN_FEATURES, _ROD_TYPES, _GENERAL = 0x000C, 0x0106, 0x0108, 0x8001

# MAXIMUM RANGE DESCRIPTORS, MAXIMUM and DEFAULT INACTIVITY TIMEOUT, MAXIMUM TOKEN TRANSFER SIZE, OPTIMAL TRANSFER COUNT
_LIMITS = struct.Struct(">6xHIIQQ")
_PARAMETER_DATA = struct.Struct(">4xHHII12x")
# REMOTE TOKENS, MINIMUM and MAXIMUM TOKEN LIFETIME, MAXIMUM TOKEN INACTIVITY TIMEOUT, length of what follows
_FEATURES = struct.Struct(">B11xIII18xH")
# block devices: length, granularity, maximum and optimal bytes in a ROD, optimal bytes to and from a token at once
_BLOCK_FEATURES = struct.Struct(">BxH2xHQQQQ8x")
_ROD_TYPE = struct.Struct(">IBxH56x")
_TOKEN_OUT, _TOKEN_IN = 0x01, 0x02
_GENERAL_COPIES = struct.Struct(">IIIBB18x")


def third_party_copy(lu: LogicalUnit, nexus: Nexus) -> bytes:
    """Page 8Fh (SPC-4 7.8.17): its descriptors, in the order of their types."""
    rod_types = _ROD_TYPE.pack(ACCESS_UPON_REFERENCE, _TOKEN_OUT | _TOKEN_IN, 0) + _ROD_TYPE.pack(
        BLOCK_ZERO, _TOKEN_IN, 0
    )
    transfer_blocks = MAX_TRANSFER >> lu.shift
    limits = _LIMITS.pack(MAX_RANGES, MAX_TIMEOUT, DEFAULT_TIMEOUT, transfer_blocks, OPTIMAL_TRANSFER >> lu.shift)
    return b"".join(
        (
            _descriptor(_TOKEN_LIMITS, limits),
            _descriptor(_COMMANDS, _counted(_commands(lu))),
            _descriptor(_PARAMETERS, _PARAMETER_DATA.pack(MAX_CSCDS, MAX_SEGMENTS, MAX_DESCRIPTORS_LENGTH, 0)),
            _descriptor(_DESCRIPTORS, _counted(TYPE_CODES)),
            _descriptor(_CSCD_IDS, struct.pack(">HH", 2, THIS_UNIT)),
            _descriptor(_TOKEN_FEATURES, _token_features()),
            _descriptor(_ROD_TYPES, struct.pack(">2xH", len(rod_types)) + rod_types),
            _descriptor(
                _GENERAL, _GENERAL_COPIES.pack(MAX_OPERATIONS, MAX_OPERATIONS, MAX_SEGMENT_LENGTH, lu.shift, 0)
            ),
        )
    )


def _token_features() -> bytes:
    """Tokens of other copy managers are not accepted; a token lives as long as its inactivity timeout."""
    block = _BLOCK_FEATURES.pack(
        0, _BLOCK_FEATURES.size - 4, 0, 0, OPTIMAL_TRANSFER, OPTIMAL_TRANSFER, OPTIMAL_TRANSFER
    )
    return _FEATURES.pack(0, 1, MAX_TIMEOUT, MAX_TIMEOUT, len(block)) + block


def _commands(lu: LogicalUnit) -> bytes:
    """Operation code, number of service actions, and these, as the table has them."""
    listed = b""
    for opcode in (Opcode.THIRD_PARTY_COPY_OUT, Opcode.THIRD_PARTY_COPY_IN):
        actions = bytes(row.service_action or 0 for row in lu.commands if row.opcode == opcode)
        listed += bytes((opcode, len(actions))) + actions
    return listed


def _counted(data: bytes) -> bytes:
    return bytes((len(data),)) + data


def _descriptor(kind: int, data: bytes) -> bytes:
    """A third-party copy descriptor: its length is a multiple of four (SPC-4 7.8.17.2)."""
    data += bytes(-len(data) % 4)
    return struct.pack(">HH", kind, len(data)) + data
