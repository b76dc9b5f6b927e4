"""The PDUs an initiator sends (RFC 7143 section 11), and a target receives.

SCSI Command and SCSI Data-Out are made once per command, so they keep byte 1 as one raw int ``flags`` with properties
over it and unpack by assignment to slots; the others walk their layout. The tests hold both ways to the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from iscsid.wire.bhs import Buffer, Data, Layout, Login, Pdu, Text, bits
from iscsid.wire.const import ATTRIBUTES, FINAL, IMMEDIATE, READ, RESERVED_TAG, WRITE, Opcode


@dataclass(slots=True, kw_only=True)
class NopOut(Pdu):
    """NOP-Out (section 11.18): a ping, or an answer when it has a Target Transfer Tag."""

    opcode: ClassVar[int] = int(Opcode.NOP_OUT)
    layout: ClassVar[Layout] = Layout(
        "B2x", "QIIII16x", "byte_1 lun initiator_task_tag target_transfer_tag cmd_sn exp_stat_sn"
    )

    lun: int = 0
    initiator_task_tag: int = RESERVED_TAG
    target_transfer_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@dataclass(slots=True, kw_only=True)
class ScsiCommand(Pdu):
    """SCSI Command (section 11.3). ``cdb`` has 16 bytes; a longer CDB goes on in an AHS (``wire.ahs.full_cdb``)."""

    opcode: ClassVar[int] = int(Opcode.SCSI_COMMAND)
    layout: ClassVar[Layout] = Layout(
        "B2x",
        "QIIII16s",
        "flags lun initiator_task_tag expected_data_transfer_length cmd_sn exp_stat_sn cdb",
    )

    flags: int = FINAL
    lun: int = 0
    initiator_task_tag: int = 0
    expected_data_transfer_length: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    cdb: bytes = bytes(16)

    @property
    def final(self) -> bool:
        """F: no unsolicited Data-Out follows."""
        return self.flags & FINAL != 0

    @property
    def read(self) -> bool:
        return self.flags & READ != 0

    @property
    def write(self) -> bool:
        return self.flags & WRITE != 0

    @property
    def attributes(self) -> int:
        """A ``TaskAttribute``, or a reserved value."""
        return self.flags & ATTRIBUTES

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int, ahs: bytes, data: Data) -> Self:
        pdu = object.__new__(cls)
        (
            pdu.flags,
            pdu.lun,
            pdu.initiator_task_tag,
            pdu.expected_data_transfer_length,
            pdu.cmd_sn,
            pdu.exp_stat_sn,
            pdu.cdb,
        ) = _unpack_scsi_command(buffer, offset)
        pdu.immediate = buffer[offset] & IMMEDIATE != 0
        pdu.ahs = ahs
        pdu.data = data
        return pdu


@dataclass(slots=True, kw_only=True)
class TaskManagementRequest(Pdu):
    """Task Management Function Request (section 11.5); ``function`` is a ``TmfFunction`` or unknown."""

    opcode: ClassVar[int] = int(Opcode.TASK_MANAGEMENT_REQUEST)
    layout: ClassVar[Layout] = Layout(
        "B2x",
        "QIIIIII8x",
        "byte_1 lun initiator_task_tag referenced_task_tag cmd_sn exp_stat_sn ref_cmd_sn exp_data_sn",
    )

    function: int = 0
    lun: int = 0
    initiator_task_tag: int = 0
    referenced_task_tag: int = RESERVED_TAG
    cmd_sn: int = 0
    exp_stat_sn: int = 0
    ref_cmd_sn: int = 0
    exp_data_sn: int = 0

    @property
    def byte_1(self) -> int:
        return FINAL | bits("function", self.function, 0x7F)

    @byte_1.setter
    def byte_1(self, value: int) -> None:
        self.function = value & 0x7F


@dataclass(slots=True, kw_only=True)
class LoginRequest(Login):
    """Login Request (section 11.12). Always immediate; ``exp_stat_sn`` counts only when a session is reinstated."""

    opcode: ClassVar[int] = int(Opcode.LOGIN_REQUEST)
    layout: ClassVar[Layout] = Layout(
        "BBB",
        "QIH2xII16x",
        "byte_1 version_max version_min isid_and_tsih initiator_task_tag cid cmd_sn exp_stat_sn",
    )

    immediate: bool = True
    version_min: int = 0
    cid: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0


@dataclass(slots=True, kw_only=True)
class TextRequest(Text):
    """Text Request (section 11.10)."""

    opcode: ClassVar[int] = int(Opcode.TEXT_REQUEST)
    layout: ClassVar[Layout] = Layout(
        "B2x", "QIIII16x", "byte_1 lun initiator_task_tag target_transfer_tag cmd_sn exp_stat_sn"
    )

    cmd_sn: int = 0
    exp_stat_sn: int = 0


@dataclass(slots=True, kw_only=True)
class ScsiDataOut(Pdu):
    """SCSI Data-Out (section 11.7). Not numbered by CmdSN; ``flags`` has nothing but F."""

    opcode: ClassVar[int] = int(Opcode.SCSI_DATA_OUT)
    layout: ClassVar[Layout] = Layout(
        "B2x",
        "QII4xI4xII4x",
        "flags lun initiator_task_tag target_transfer_tag exp_stat_sn data_sn buffer_offset",
    )

    flags: int = 0
    lun: int = 0
    initiator_task_tag: int = 0
    target_transfer_tag: int = RESERVED_TAG
    exp_stat_sn: int = 0
    data_sn: int = 0
    buffer_offset: int = 0

    @property
    def final(self) -> bool:
        """F: the last PDU of this sequence."""
        return self.flags & FINAL != 0

    @classmethod
    def unpack(cls, buffer: Buffer, offset: int, ahs: bytes, data: Data) -> Self:
        pdu = object.__new__(cls)
        (
            pdu.flags,
            pdu.lun,
            pdu.initiator_task_tag,
            pdu.target_transfer_tag,
            pdu.exp_stat_sn,
            pdu.data_sn,
            pdu.buffer_offset,
        ) = _unpack_scsi_data_out(buffer, offset)
        pdu.immediate = buffer[offset] & IMMEDIATE != 0
        pdu.ahs = ahs
        pdu.data = data
        return pdu


@dataclass(slots=True, kw_only=True)
class LogoutRequest(Pdu):
    """Logout Request (section 11.14); ``reason`` is a ``LogoutReason`` or unknown."""

    opcode: ClassVar[int] = int(Opcode.LOGOUT_REQUEST)
    layout: ClassVar[Layout] = Layout("B2x", "8xIH2xII16x", "byte_1 initiator_task_tag cid cmd_sn exp_stat_sn")

    reason: int = 0
    initiator_task_tag: int = 0
    cid: int = 0
    cmd_sn: int = 0
    exp_stat_sn: int = 0

    @property
    def byte_1(self) -> int:
        return FINAL | bits("reason", self.reason, 0x7F)

    @byte_1.setter
    def byte_1(self, value: int) -> None:
        self.reason = value & 0x7F


@dataclass(slots=True, kw_only=True)
class SnackRequest(Pdu):
    """SNACK Request (section 11.16); ``snack_type`` is a ``SnackType`` or unknown. Not numbered by CmdSN."""

    opcode: ClassVar[int] = int(Opcode.SNACK_REQUEST)
    layout: ClassVar[Layout] = Layout(
        "B2x", "QII4xI8xII", "byte_1 lun initiator_task_tag target_transfer_tag exp_stat_sn beg_run run_length"
    )

    snack_type: int = 0
    lun: int = 0
    initiator_task_tag: int = RESERVED_TAG
    target_transfer_tag: int = RESERVED_TAG  # or the SNACK Tag
    exp_stat_sn: int = 0
    beg_run: int = 0
    run_length: int = 0

    @property
    def byte_1(self) -> int:
        return FINAL | bits("snack_type", self.snack_type, 0x0F)

    @byte_1.setter
    def byte_1(self, value: int) -> None:
        self.snack_type = value & 0x0F


_unpack_scsi_command = ScsiCommand.layout.unpacker.unpack_from
_unpack_scsi_data_out = ScsiDataOut.layout.unpacker.unpack_from
