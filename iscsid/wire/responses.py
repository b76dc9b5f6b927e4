"""The PDUs a target sends (RFC 7143 section 11), and an initiator receives.

SCSI Response and SCSI Data-In come once per command, so they keep byte 1 as one raw int ``flags`` with properties over
it and unpack by assignment to slots; the others walk their layout. The tests hold both ways to the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from iscsid.errors import RejectError
from iscsid.wire.bhs import Buffer, Data, Layout, Login, Pdu, Text
from iscsid.wire.const import (
    ACKNOWLEDGE,
    BIDIRECTIONAL_OVERFLOW,
    BIDIRECTIONAL_UNDERFLOW,
    FINAL,
    IMMEDIATE,
    OVERFLOW,
    RESERVED_TAG,
    STATUS,
    UNDERFLOW,
    Opcode,
    RejectReason,
)


@dataclass(slots=True, kw_only=True)
class NopIn(Pdu):
    """NOP-In (section 11.19): a ping, or an answer when it has an Initiator Task Tag."""

    opcode: ClassVar[int] = int(Opcode.NOP_IN)
    layout: ClassVar[Layout] = Layout(
        "B2x", "QIIIII12x", "byte_1 lun initiator_task_tag target_transfer_tag stat_sn exp_cmd_sn max_cmd_sn"
    )

    lun: int = 0
    initiator_task_tag: int = RESERVED_TAG
    target_transfer_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0


@dataclass(slots=True, kw_only=True)
class ScsiResponse(Pdu):
    """SCSI Response (section 11.4). ``response`` is a ``ScsiResponseCode``, ``status`` the SCSI status (SAM)."""

    opcode: ClassVar[int] = int(Opcode.SCSI_RESPONSE)
    layout: ClassVar[Layout] = Layout(
        "BBB",
        "8xIIIIIIII",
        "flags response status initiator_task_tag snack_tag stat_sn exp_cmd_sn max_cmd_sn exp_data_sn "
        "bidirectional_read_residual_count residual_count",
    )

    flags: int = FINAL
    response: int = 0
    status: int = 0
    initiator_task_tag: int = 0
    snack_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    exp_data_sn: int = 0
    bidirectional_read_residual_count: int = 0
    residual_count: int = 0

    @property
    def overflow(self) -> bool:
        """O: ``residual_count`` bytes were not transferred because the initiator expected too few."""
        return self.flags & OVERFLOW != 0

    @property
    def underflow(self) -> bool:
        """U: ``residual_count`` bytes were expected and not transferred."""
        return self.flags & UNDERFLOW != 0

    @property
    def bidirectional_overflow(self) -> bool:
        return self.flags & BIDIRECTIONAL_OVERFLOW != 0

    @property
    def bidirectional_underflow(self) -> bool:
        return self.flags & BIDIRECTIONAL_UNDERFLOW != 0

    @property
    def sense(self) -> bytes:
        """The sense data in the data segment (section 11.4.7.1), b"" where there is none.

        Raises RejectError when SenseLength says more than is there.
        """
        return unpack_sense(self.data)

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int, ahs: bytes, data: Data) -> Self:
        pdu = object.__new__(cls)
        (
            pdu.flags,
            pdu.response,
            pdu.status,
            pdu.initiator_task_tag,
            pdu.snack_tag,
            pdu.stat_sn,
            pdu.exp_cmd_sn,
            pdu.max_cmd_sn,
            pdu.exp_data_sn,
            pdu.bidirectional_read_residual_count,
            pdu.residual_count,
        ) = _unpack_scsi_response(buffer, offset)
        pdu.immediate = buffer[offset] & IMMEDIATE != 0
        pdu.ahs = ahs
        pdu.data = data
        return pdu


@dataclass(slots=True, kw_only=True)
class TaskManagementResponse(Pdu):
    """Task Management Function Response (section 11.6); ``response`` is a ``TmfResponse`` or unknown.

    ``additional_response_information`` (RFC 7144 section 4.3) has 3 bytes; only QUERY ASYNCHRONOUS EVENT gives any.
    """

    opcode: ClassVar[int] = int(Opcode.TASK_MANAGEMENT_RESPONSE)
    layout: ClassVar[Layout] = Layout(
        "BBx",
        "3s5xI4xIII12x",
        "byte_1 response additional_response_information initiator_task_tag stat_sn exp_cmd_sn max_cmd_sn",
    )

    response: int = 0
    additional_response_information: bytes = bytes(3)
    initiator_task_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0


@dataclass(slots=True, kw_only=True)
class LoginResponse(Login):
    """Login Response (section 11.13). ``status`` is a ``LoginStatus``: Status-Class << 8 | Status-Detail."""

    opcode: ClassVar[int] = int(Opcode.LOGIN_RESPONSE)
    layout: ClassVar[Layout] = Layout(
        "BBB",
        "QI4xIIIH10x",
        "byte_1 version_max version_active isid_and_tsih initiator_task_tag stat_sn exp_cmd_sn max_cmd_sn status",
    )

    version_active: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    status: int = 0


@dataclass(slots=True, kw_only=True)
class TextResponse(Text):
    """Text Response (section 11.11)."""

    opcode: ClassVar[int] = int(Opcode.TEXT_RESPONSE)
    layout: ClassVar[Layout] = Layout(
        "B2x", "QIIIII12x", "byte_1 lun initiator_task_tag target_transfer_tag stat_sn exp_cmd_sn max_cmd_sn"
    )

    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0


@dataclass(slots=True, kw_only=True)
class ScsiDataIn(Pdu):
    """SCSI Data-In (section 11.7). ``status``, ``stat_sn`` and ``residual_count`` count only with the S bit."""

    opcode: ClassVar[int] = int(Opcode.SCSI_DATA_IN)
    layout: ClassVar[Layout] = Layout(
        "BxB",
        "QIIIIIIII",
        "flags status lun initiator_task_tag target_transfer_tag stat_sn exp_cmd_sn max_cmd_sn data_sn buffer_offset "
        "residual_count",
    )

    flags: int = 0
    status: int = 0
    lun: int = 0
    initiator_task_tag: int = 0
    target_transfer_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    data_sn: int = 0
    buffer_offset: int = 0
    residual_count: int = 0

    @property
    def final(self) -> bool:
        """F: the last PDU of this sequence."""
        return self.flags & FINAL != 0

    @property
    def acknowledge(self) -> bool:
        """A: the target asks for a DataACK SNACK."""
        return self.flags & ACKNOWLEDGE != 0

    @property
    def overflow(self) -> bool:
        return self.flags & OVERFLOW != 0

    @property
    def underflow(self) -> bool:
        return self.flags & UNDERFLOW != 0

    @property
    def has_status(self) -> bool:
        """S: the status of the command rides on this PDU, and no SCSI Response follows."""
        return self.flags & STATUS != 0

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int, ahs: bytes, data: Data) -> Self:
        pdu = object.__new__(cls)
        (
            pdu.flags,
            pdu.status,
            pdu.lun,
            pdu.initiator_task_tag,
            pdu.target_transfer_tag,
            pdu.stat_sn,
            pdu.exp_cmd_sn,
            pdu.max_cmd_sn,
            pdu.data_sn,
            pdu.buffer_offset,
            pdu.residual_count,
        ) = _unpack_scsi_data_in(buffer, offset)
        pdu.immediate = buffer[offset] & IMMEDIATE != 0
        pdu.ahs = ahs
        pdu.data = data
        return pdu


@dataclass(slots=True, kw_only=True)
class LogoutResponse(Pdu):
    """Logout Response (section 11.15); ``response`` is a ``LogoutResponseCode``; times in seconds."""

    opcode: ClassVar[int] = int(Opcode.LOGOUT_RESPONSE)
    layout: ClassVar[Layout] = Layout(
        "BBx",
        "8xI4xIII4xHH4x",
        "byte_1 response initiator_task_tag stat_sn exp_cmd_sn max_cmd_sn time2wait time2retain",
    )

    response: int = 0
    initiator_task_tag: int = 0
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    time2wait: int = 0
    time2retain: int = 0


@dataclass(slots=True, kw_only=True)
class R2T(Pdu):
    """Ready To Transfer (section 11.8). ``stat_sn`` is the next one to come; an R2T does not use it up."""

    opcode: ClassVar[int] = int(Opcode.R2T)
    layout: ClassVar[Layout] = Layout(
        "B2x",
        "QIIIIIIII",
        "byte_1 lun initiator_task_tag target_transfer_tag stat_sn exp_cmd_sn max_cmd_sn r2t_sn buffer_offset "
        "desired_data_transfer_length",
    )

    lun: int = 0
    initiator_task_tag: int = 0
    target_transfer_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    r2t_sn: int = 0
    buffer_offset: int = 0
    desired_data_transfer_length: int = 0


@dataclass(slots=True, kw_only=True)
class AsyncMessage(Pdu):
    """Asynchronous Message (section 11.9); ``async_event`` is an ``AsyncEvent``, the parameters depend on it."""

    opcode: ClassVar[int] = int(Opcode.ASYNC_MESSAGE)
    layout: ClassVar[Layout] = Layout(
        "B2x",
        "QI4xIIIBBHHH4x",
        "byte_1 lun initiator_task_tag stat_sn exp_cmd_sn max_cmd_sn async_event async_v_code parameter1 parameter2 "
        "parameter3",
    )

    lun: int = 0
    initiator_task_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    async_event: int = 0
    async_v_code: int = 0
    parameter1: int = 0
    parameter2: int = 0
    parameter3: int = 0


@dataclass(slots=True, kw_only=True)
class Reject(Pdu):
    """Reject (section 11.17); ``reason`` is a ``RejectReason``, ``data`` the header of the PDU that is rejected."""

    opcode: ClassVar[int] = int(Opcode.REJECT)
    layout: ClassVar[Layout] = Layout(
        "BBx", "8xI4xIIII8x", "byte_1 reason initiator_task_tag stat_sn exp_cmd_sn max_cmd_sn data_sn"
    )

    reason: int = 0
    initiator_task_tag: int = RESERVED_TAG
    stat_sn: int = 0
    exp_cmd_sn: int = 0
    max_cmd_sn: int = 0
    data_sn: int = 0  # or R2TSN


_unpack_scsi_response = ScsiResponse.layout.unpacker.unpack_from
_unpack_scsi_data_in = ScsiDataIn.layout.unpacker.unpack_from


def pack_sense(sense: bytes) -> bytes:
    """Return the data segment that carries ``sense`` in a SCSI Response or an Asynchronous Message: length and data."""
    return len(sense).to_bytes(2, "big") + sense


def unpack_sense(data: Data) -> bytes:
    """Return the sense data of a data segment that ``pack_sense`` could have made; what follows it is not looked at.

    Section 11.4.7 lets response data follow. Raises RejectError when SenseLength says more than is there.
    """
    if not data:
        return b""
    length = int.from_bytes(data[:2], "big")
    if len(data) < 2 + length:
        raise RejectError(RejectReason.INVALID_PDU_FIELD, f"SenseLength {length} in a segment of {len(data)} bytes")
    return bytes(data[2 : 2 + length])
