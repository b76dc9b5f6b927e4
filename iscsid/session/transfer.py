"""Data transfers of one task, on the target's side (RFC 7143 4.2.5.2, 11.7, 11.8).

``WriteTransfer`` knows which Data-Out PDU may come next and which R2Ts to send; it never sees where the bytes go.
``DataInPlan`` cuts data for the initiator into Data-In PDUs. DataPDUInOrder and DataSequenceInOrder are always Yes, so
one offset says how far a transfer is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from iscsid import serial
from iscsid.session.params import Parameters
from iscsid.wire.const import RESERVED_TAG


class Grant(NamedTuple):
    """One R2T: the initiator may send ``length`` bytes from ``offset`` under ``tag`` (Target Transfer Tag)."""

    tag: int
    r2t_sn: int
    offset: int
    length: int


class TransferError(Exception):
    """A Data-Out PDU does not fit: the task it belongs to fails, the connection goes on."""


class WriteTransfer:
    """What is still to come for one command with data-out.

    Args:
        wanted: bytes the command needs, at most its EDTL.
        immediate: bytes that came with the command.
        more: whether unsolicited Data-Out PDUs follow the command (its F bit was 0).
        unsolicited_limit: bytes that may come without R2T, immediate data included: the smaller of FirstBurstLength
            and the command's EDTL.
    """

    __slots__ = (
        "_burst",
        "_data_sn",
        "_end",
        "_expect_tag",
        "_grants",
        "_max_grants",
        "_r2t_sn",
        "_solicited",
        "received",
        "unsolicited",
        "wanted",
    )

    def __init__(self, parameters: Parameters, wanted: int, immediate: int, more: bool, unsolicited_limit: int) -> None:
        self.wanted = wanted
        self.received = immediate
        self.unsolicited = more
        self._end = unsolicited_limit if more else immediate
        self._solicited = immediate
        self._expect_tag = RESERVED_TAG
        self._burst = parameters.max_burst_length
        self._max_grants = parameters.max_outstanding_r2t
        self._grants: deque[Grant] = deque()
        self._data_sn = 0
        self._r2t_sn = 0

    @property
    def complete(self) -> bool:
        """Everything that was wanted, and every unsolicited PDU that was announced, has come."""
        return not self.unsolicited and self.received >= self.wanted

    def accept(self, tag: int, data_sn: int, offset: int, length: int, final: bool) -> None:
        """Take the next Data-Out PDU into account, or raise TransferError for one that breaks the sequence."""
        if not (self.unsolicited or self._grants):
            raise TransferError("data that nobody has asked for")
        if tag != self._expect_tag:
            raise TransferError(f"target transfer tag {tag:#x} where {self._expect_tag:#x} was due")
        if data_sn != self._data_sn:
            raise TransferError(f"DataSN {data_sn} where {self._data_sn} was due")
        if offset != self.received:
            raise TransferError(f"buffer offset {offset} where {self.received} was due")
        if offset + length > self._end:
            raise TransferError(f"data up to {offset + length} where the burst ends at {self._end}")
        self.received += length
        self._data_sn = serial.add(data_sn, 1)
        if final:
            self._end_sequence()
        elif self.received == self._end and not self.unsolicited:
            raise TransferError("the burst is full and its last PDU has no F bit")

    def _end_sequence(self) -> None:
        if self.unsolicited:
            self.unsolicited = False
            self._solicited = self.received
        elif self.received < self._end:
            raise TransferError(f"the burst ends at {self.received}, short of {self._end}")
        else:
            self._grants.popleft()
        self._data_sn = 0
        if self._grants:
            self._expect(self._grants[0])

    def _expect(self, grant: Grant) -> None:
        self._expect_tag = grant.tag
        self._end = grant.offset + grant.length

    def stop(self) -> None:
        """Ask for no more: the transfer is complete when what was granted or announced has come."""
        self.wanted = self._solicited

    def grants(self, tags: Iterator[int]) -> Iterator[Grant]:
        """Yield the R2Ts to send now: up to MaxOutstandingR2T are open, each of at most MaxBurstLength bytes."""
        if self.unsolicited:
            return
        while self._solicited < self.wanted and len(self._grants) < self._max_grants:
            length = min(self._burst, self.wanted - self._solicited)
            grant = Grant(next(tags), self._r2t_sn, self._solicited, length)
            self._r2t_sn = serial.add(self._r2t_sn, 1)
            self._solicited += length
            self._grants.append(grant)
            if len(self._grants) == 1:
                self._expect(grant)
            yield grant


class Segment(NamedTuple):
    """One Data-In PDU: ``final`` ends a burst, ``last`` the transfer."""

    offset: int
    length: int
    data_sn: int
    final: bool
    last: bool


class DataInPlan:
    """Cuts ``length`` bytes for the initiator into Data-In PDUs (RFC 7143 11.7).

    A PDU carries at most the initiator's MaxRecvDataSegmentLength, which it may declare anew in the middle of a
    transfer (13.12), a burst at most MaxBurstLength bytes.
    """

    __slots__ = ("_burst", "_burst_left", "_parameters", "data_sn", "length", "offset")

    def __init__(self, parameters: Parameters, length: int) -> None:
        self.length = length
        self.offset = 0
        self.data_sn = 0
        self._parameters = parameters
        self._burst = parameters.max_burst_length
        self._burst_left = self._burst

    def next_length(self) -> int:
        """Bytes of the next PDU, if that many are at hand; 0 when everything was taken."""
        longest = self._parameters.peer_max_recv_data_segment_length
        return min(longest, self._burst_left, self.length - self.offset)

    def take(self, available: int) -> Segment:
        """Return the next PDU, of at most ``available`` (> 0) bytes, and move on."""
        offset = self.offset
        length = min(self.next_length(), available)
        self.offset = offset + length
        self._burst_left -= length
        data_sn = self.data_sn
        self.data_sn = serial.add(data_sn, 1)
        last = self.offset == self.length
        final = last or not self._burst_left
        if not self._burst_left:
            self._burst_left = self._burst
        return Segment(offset, length, data_sn, final, last)
