"""The receiving side of a stream: bytes in, PDUs out, in a buffer that is received into and decoded in place.

The caller asks ``writable()`` for room, receives into it, says ``received(n)`` and takes all whole PDUs from
``pdus()``. Nothing is copied on that way: ``pdu.data`` is a slice of the receive buffer and is good until the next
``writable()``. Who keeps it longer copies it.

Whatever the peer sends, ``pdus()`` yields PDUs and DamagedPdu and raises RemoteProtocolError (RejectError where a
Reject can still be sent first), and nothing else. It raises where the stream cannot be followed any further, and raises
the same again when it is asked again. The buffer never grows beyond one PDU of ``max_data_segment_length`` or what
``resize`` asked for, whichever is larger.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from iscsid.errors import LocalProtocolError, RejectError, RemoteProtocolError
from iscsid.wire import ahs as additional
from iscsid.wire.const import BHS_SIZE, DATA_SIZE_LIMIT, DIGEST_SIZE, LOGIN_DATA_LIMIT, OPCODE_MASK, RejectReason
from iscsid.wire.digest import crc32c
from iscsid.wire.pdu import Data, Pdu, ScsiCommand, segment_lengths, unexpected

DEFAULT_BUFFER_SIZE = 64 * 1024
DAMAGED = 0x40  # DamagedPdu.opcode: the first number that no opcode has, so that one table can dispatch both

# Below this it costs less to move what is pending to the front than to receive into less room.
_CHEAP_TO_MOVE = 4096
# The buffer grows by whole steps, so that PDUs of slightly different sizes do not each make a new one.
_STEP = 64 * 1024

_new = object.__new__
_peek = struct.Struct(">B3xI").unpack_from
_read_digest = struct.Struct("<I").unpack_from
_unpack_whole_command = struct.Struct(">BB2xIQIIII16s").unpack_from

_NO_PLAIN_PDU = -1  # a plain limit that no word 1 is below
_NEVER_PLAIN = 1 << 32  # a word 1 that is above every plain limit


@dataclass(slots=True)
class DamagedPdu:
    """A PDU that must be answered by a Reject with ``reason``, and after which the stream goes on.

    ``header`` is its BHS and AHS, which the Reject returns; ``pdu`` is what it says, without data, or None where the
    opcode is none that this side receives. After a data digest error this tells which task has lost its data.
    """

    opcode: ClassVar[int] = DAMAGED

    header: bytes
    reason: int
    message: str
    pdu: Pdu | None = None


class Framer:
    """Cuts a stream into PDUs.

    ``receives`` maps the opcodes this side accepts to their classes. ``max_data_segment_length`` is what we declared,
    8192 until then; a longer data segment is refused as soon as its header is there. The digests are off until the
    full feature phase. All three may be set at any time, also between two PDUs of one ``pdus()``, and hold from the
    next PDU on.
    """

    __slots__ = (
        "_buffer",
        "_command_head",
        "_data_digest",
        "_end",
        "_header_digest",
        "_max_data_segment_length",
        "_plain_limit",
        "_size",
        "_start",
        "_unpackers",
        "_view",
    )

    def __init__(self, receives: Mapping[int, type[Pdu]], buffer_size: int = DEFAULT_BUFFER_SIZE) -> None:
        self._unpackers = _unpackers(receives)
        # Byte 0 of the command that pdus() decodes itself; none where this side receives no commands.
        self._command_head = ScsiCommand.opcode if receives.get(ScsiCommand.opcode) is ScsiCommand else -1
        self._size = max(buffer_size, BHS_SIZE)
        self._buffer = bytearray(self._size)
        self._view = memoryview(self._buffer)
        self._start = 0  # of the first byte not decoded yet
        self._end = 0  # of the received bytes
        self._header_digest = False
        self._data_digest = False
        self._max_data_segment_length = LOGIN_DATA_LIMIT
        # A PDU whose word 1 (AHS length and data length) is not above this has no AHS, no digest and no excess of data.
        self._plain_limit = LOGIN_DATA_LIMIT

    @property
    def header_digest(self) -> bool:
        return self._header_digest

    @header_digest.setter
    def header_digest(self, value: bool) -> None:
        self._header_digest = value
        self._set_plain_limit()

    @property
    def data_digest(self) -> bool:
        return self._data_digest

    @data_digest.setter
    def data_digest(self, value: bool) -> None:
        self._data_digest = value
        self._set_plain_limit()

    @property
    def max_data_segment_length(self) -> int:
        return self._max_data_segment_length

    @max_data_segment_length.setter
    def max_data_segment_length(self, value: int) -> None:
        self._max_data_segment_length = value
        self._set_plain_limit()

    def _set_plain_limit(self) -> None:
        digests = self._header_digest or self._data_digest
        self._plain_limit = _NO_PLAIN_PDU if digests else self._max_data_segment_length

    @property
    def buffer_size(self) -> int:
        """How many bytes the buffer has now."""
        return len(self._buffer)

    @property
    def pending(self) -> int:
        """How many received bytes are not decoded yet: after ``pdus()`` ran out, those of a PDU that is cut short."""
        return self._end - self._start

    @property
    def head(self) -> bytes:
        """The BHS of the next PDU, whole or not: after RejectError that of what was refused."""
        return bytes(self._view[self._start : min(self._start + BHS_SIZE, self._end)])

    def resize(self, buffer_size: int) -> None:
        """Let the buffer grow to ``buffer_size`` with the next ``writable()``. It never shrinks."""
        self._size = max(self._size, buffer_size)

    def writable(self) -> memoryview:
        """Return the room to receive into, at least one byte.

        Ends the life of all data handed out. Raises LocalProtocolError when the buffer is full of PDUs that nobody
        took.
        """
        pending = self._end - self._start
        if not pending:
            self._start = self._end = 0
        size = len(self._buffer)
        whole = self._pending_size()
        if self._size > size or whole > size:
            self._move(bytearray(max(self._size, -(-whole // _STEP) * _STEP)))
        elif self._start and (pending <= _CHEAP_TO_MOVE or self._start + whole > size):
            self._move(self._buffer)
        if self._end == len(self._buffer):
            raise LocalProtocolError("the receive buffer is full of PDUs that nobody took")
        return self._view[self._end :]

    def received(self, count: int) -> None:
        """Say that ``count`` bytes were received into what ``writable()`` returned."""
        if not 0 <= count <= len(self._buffer) - self._end:
            raise LocalProtocolError(f"{count} bytes received into {len(self._buffer) - self._end}")
        self._end += count

    def _move(self, buffer: bytearray) -> None:
        """Move what is pending to the front of ``buffer``.

        A bytearray that has memoryviews cannot be resized, so growing means a new one, and the old one lives until the
        last slice of it is gone.
        """
        pending = self._end - self._start
        view = self._view if buffer is self._buffer else memoryview(buffer)
        view[:pending] = self._view[self._start : self._end]
        self._buffer, self._view = buffer, view
        self._start, self._end = 0, pending

    def _pending_size(self) -> int:
        """Return how many bytes the buffer must hold for the PDU at its start, as far as that is known yet."""
        if self._end - self._start < BHS_SIZE:
            return BHS_SIZE
        ahs_length, data_length = segment_lengths(self._buffer, self._start)
        size = BHS_SIZE + ahs_length + (DIGEST_SIZE if self._header_digest else 0)
        if data_length <= self._max_data_segment_length:
            size += self._data_size(data_length)
        # Otherwise pdus() refuses it as soon as its header is whole: no room is made for its data.
        return size

    def _data_size(self, length: int) -> int:
        """Return how many bytes a data segment takes with padding and digest; one that is empty has no digest."""
        return (length + 3 & ~3) + (DIGEST_SIZE if self._data_digest and length else 0)

    def pdus(self) -> Iterator[Pdu | DamagedPdu]:
        """Yield every whole PDU that has been received.

        May be left at any time: a later call goes on with the next PDU. Raises RemoteProtocolError when the header
        digest is wrong, RejectError (fatal) when the data segment is longer than we declared to take.
        """
        buffer = self._buffer
        view = self._view
        unpackers = self._unpackers
        command_head = self._command_head
        position = self._start
        end = self._end
        last = end - BHS_SIZE  # where the last whole BHS can start
        while position <= last:
            command = None
            if buffer[position] == command_head:
                # ScsiCommand.unpack, spelt out: word 1 and the fields in one go, without a call, take three quarters
                # of the time.
                command = _new(ScsiCommand)
                (
                    _,
                    command.flags,
                    lengths,
                    command.lun,
                    command.initiator_task_tag,
                    command.expected_data_transfer_length,
                    command.cmd_sn,
                    command.exp_stat_sn,
                    command.cdb,
                ) = _unpack_whole_command(buffer, position)
            else:
                head, lengths = _peek(buffer, position)
                unpack = unpackers[head]
                if unpack is None:
                    lengths = _NEVER_PLAIN
            if lengths > self._plain_limit:
                careful = self._decode_carefully(position)
                if careful is None:
                    return
                self._start, pdu = careful
                yield pdu
                position = self._start
                continue
            start = following = position + BHS_SIZE
            data: Data = b""
            if lengths:
                following = start + (lengths + 3 & ~3)
                if following > end:
                    return
                data = view[start : start + lengths]
            self._start = following
            if command is not None:
                command.immediate = False
                command.ahs = b""
                command.data = data
                yield command
            else:
                yield unpack(buffer, position, b"", data)
            position = following

    def _decode_carefully(self, position: int) -> tuple[int, Pdu | DamagedPdu] | None:
        """Decode a PDU that has digests, AHS, an unknown opcode or too much data.

        Returns where the next one starts and the PDU, or None when it is not whole yet.
        """
        buffer, view, end = self._buffer, self._view, self._end
        head, lengths = _peek(buffer, position)
        header_end = start = position + BHS_SIZE + (lengths >> 24 << 2)
        if self._header_digest:
            # Nothing in the header counts before this, the length of the data least of all.
            start += DIGEST_SIZE
            if end < start:
                return None
            if (crc32c(view[position:header_end]),) != _read_digest(buffer, header_end):
                raise RemoteProtocolError("wrong header digest")
        length = lengths & DATA_SIZE_LIMIT
        if length > self._max_data_segment_length:
            raise RejectError(
                RejectReason.PROTOCOL_ERROR,
                f"a data segment of {length} bytes, {self._max_data_segment_length} are allowed",
                fatal=True,
            )
        following = start + self._data_size(length)
        if end < following:
            return None
        data: Data = b""
        if length:
            data = view[start : start + length]
            if self._data_digest:
                # Padding is digested like data.
                digest_start = following - DIGEST_SIZE
                if (crc32c(view[start:digest_start]),) != _read_digest(buffer, digest_start):
                    header = bytes(view[position:header_end])
                    return following, self._damage(header, RejectReason.DATA_DIGEST_ERROR, "wrong data digest")
        unpack = self._unpackers[head]
        if unpack is None or header_end != position + BHS_SIZE:
            return following, self._decode_oddity(bytes(view[position:header_end]), data)
        return following, unpack(buffer, position, b"", data)

    def _decode_oddity(self, header: bytes, data: Data) -> Pdu | DamagedPdu:
        """Decode a whole PDU that has AHS, or an opcode that this side does not receive."""
        unpack = self._unpackers[header[0]]
        opcode = header[0] & OPCODE_MASK
        if unpack is None:
            error = unexpected(opcode)
            return self._damage(header, error.reason, str(error))
        if opcode != ScsiCommand.opcode:
            return self._damage(header, RejectReason.INVALID_PDU_FIELD, "AHS in what is no SCSI Command")
        ahs = header[BHS_SIZE:]
        try:
            additional.parse(ahs)
        except RejectError as exc:
            return self._damage(header, exc.reason, str(exc))
        return unpack(header, 0, ahs, data)

    def _damage(self, header: bytes, reason: int, message: str) -> DamagedPdu:
        unpack = self._unpackers[header[0]]
        return DamagedPdu(header, int(reason), message, unpack(header, 0, header[BHS_SIZE:], b"") if unpack else None)


_Unpack = Callable[..., Pdu]


def _unpackers(receives: Mapping[int, type[Pdu]]) -> list[_Unpack | None]:
    """Return the ``unpack`` for every value of byte 0, whatever its I bit and its reserved bit are."""
    classes = [receives.get(byte & OPCODE_MASK) for byte in range(256)]
    return [cls.unpack if cls else None for cls in classes]
