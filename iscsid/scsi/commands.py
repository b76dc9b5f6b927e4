"""THE opcode table: every command that a logical unit can execute, one record each.

From it come dispatch, the reserved-bit check, the write protection check, exemption from unit attentions, conflicts
with reservations, and what REPORT SUPPORTED OPERATION CODES tells. A new command is one row here and one handler.

No field of a record has a default: a permission under a reservation is granted in the row, never assumed.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iscsid.scsi import (
    atomic,
    copy,
    copy_results,
    copy_token,
    inquiry,
    log,
    medium,
    mode,
    mode_select,
    ports,
    removable,
    report,
    reservation,
    reservation_in,
    reservation_out,
    rw,
    sanitize,
)
from iscsid.scsi.const import (
    MaintenanceOut,
    Opcode,
    PersistentReserveIn,
    PersistentReserveOut,
    ServiceAction,
    ThirdPartyCopyIn,
    ThirdPartyCopyOut,
)

if TYPE_CHECKING:
    from iscsid.scsi.lu import LogicalUnit, Nexus
    from iscsid.scsi.plan import Plan

Handler = Callable[["LogicalUnit", bytes, "Nexus"], "Plan"]


class Direction(enum.Enum):
    """Where the data of a command goes; OPTIONAL_OUT where the CDB decides whether there is any."""

    NONE = enum.auto()
    IN = enum.auto()
    OUT = enum.auto()
    OPTIONAL_OUT = enum.auto()


class Reservation(enum.Enum):
    """Who may send the command while another I_T nexus holds a reservation (SPC-4 5.13.1, SBC-3 table 13).

    What each class comes to under each reservation is the table in ``conflict``.
    """

    ALLOWED = enum.auto()  # everybody
    STATE = enum.auto()  # everybody, but under an SPC-2 reservation its holder only
    READING = enum.auto()  # everybody under the write exclusive types, else holders (and registrants) only
    WRITING = enum.auto()  # holders (and registrants, where the type says so) only
    STARTING = enum.auto()  # START STOP UNIT: as ALLOWED where it starts the unit, else as WRITING
    PREVENTING = enum.auto()  # PREVENT ALLOW MEDIUM REMOVAL: as ALLOWED where it allows, else as WRITING
    DECIDED = enum.auto()  # commands about reservations: what executes them decides


class Access(enum.Enum):
    """In which asymmetric access states of its target port the command is executed (SPC-4 5.15.2.4).

    In active/optimized and active/non-optimized every one is. READ CAPACITY, and what tells of the commands, are not
    on the list for standby, which others may join: initiators look at a disk before they look at its state.
    """

    ACTIVE = enum.auto()  # in no other
    STANDBY = enum.auto()  # in standby too
    UNAVAILABLE = enum.auto()  # in standby and unavailable too
    ALWAYS = enum.auto()  # in offline and transitioning too


class Attention(enum.Enum):
    """What a pending unit attention does to the command (SAM-5 5.14)."""

    REPORTED = enum.auto()  # the command ends in CHECK CONDITION
    EXEMPT = enum.auto()  # the command is executed and the unit attention stays
    TAKEN = enum.auto()  # REQUEST SENSE: the unit attention is its answer


class Feature(enum.Enum):
    """What a logical unit may have or lack; rows and CDB bits can depend on it."""

    DISK = enum.auto()  # always there
    THIN = enum.auto()  # the device can discard, so that logical block provisioning is offered
    ERASE = enum.auto()  # THIN, and the device tells what is allocated, so that it shows what SANITIZE has given back
    ATOMIC = enum.auto()  # the medium is memory, which no loss of power leaves with half a write
    REMOVABLE = enum.auto()  # the medium can be ejected
    LOGGED = enum.auto()  # the figures of all workers are at hand, so that log pages can tell the truth


@dataclass(frozen=True, slots=True)
class Command:
    """One operation code, or one service action of one.

    ``usage`` is the CDB usage data of SPC-4 6.35.3: its length is that of the CDB, and each bit of it that is 0 must be
    0 in a CDB. ``optional`` lists (feature, byte, mask): bits that are allowed only on units with the feature.
    ``writes``: refused while the medium is write protected. ``timeout`` is the recommended command timeout in seconds.
    ``name`` is that of the standard, in snake case capitals.
    """

    name: str
    opcode: int
    service_action: int | None
    usage: bytes
    optional: tuple[tuple[Feature, int, int], ...]
    direction: Direction
    handler: Handler
    writes: bool
    needs: Feature
    reservation: Reservation
    access: Access
    attention: Attention
    timeout: int

    def forbidden(self) -> int:
        """Return the bits that must be 0, as a mask over the CDB read as a little-endian number.

        Little-endian, so that byte ``n`` lies at bit ``8 * n`` whatever the length of the field the CDB came in.
        """
        usage = bytearray(self.usage)
        usage[0] = 0xFF
        if self.service_action is not None:
            usage[1] |= 0x1F
        return int.from_bytes(bytes(~byte & 0xFF for byte in usage), "little")


_NONE, _IN, _OUT, _MAYBE = Direction.NONE, Direction.IN, Direction.OUT, Direction.OPTIONAL_OUT
_ANY, _STATE, _STARTING = Reservation.ALLOWED, Reservation.STATE, Reservation.STARTING
_READING, _WRITING, _DECIDED = Reservation.READING, Reservation.WRITING, Reservation.DECIDED
_ACTIVE, _STANDBY, _UNAVAILABLE, _ALWAYS = Access.ACTIVE, Access.STANDBY, Access.UNAVAILABLE, Access.ALWAYS
_REPORTED, _EXEMPT, _TAKEN = Attention.REPORTED, Attention.EXEMPT, Attention.TAKEN
_ERASE = Feature.ERASE
_DISK, _THIN, _ATOMIC, _LOGGED = Feature.DISK, Feature.THIN, Feature.ATOMIC, Feature.LOGGED
_SHORT, _LONG = 30, 120  # seconds: commands bounded by one transfer; commands that may touch much of the medium
_HOURS = 24 * 3600  # seconds: commands that write all of the medium, some of them more than once

# WRITE SAME: UNMAP is bit 3 of byte 1. An initiator that is told of no provisioning may not set it (SBC-3 5.50).
_UNMAP_BIT = ((Feature.THIN, 1, 0x08),)
_LOEJ_BIT = ((Feature.REMOVABLE, 4, 0x02),)  # START STOP UNIT: load and eject (SBC-3 5.25)


def _row(
    opcode: Opcode,
    service_action: enum.IntEnum | None,
    usage: str,
    optional: tuple[tuple[Feature, int, int], ...],
    direction: Direction,
    handler: Handler,
    writes: bool,
    needs: Feature,
    reservation: Reservation,
    access: Access,
    attention: Attention,
    timeout: int,
) -> Command:
    name, action = (opcode.name, None) if service_action is None else (service_action.name, int(service_action))
    bits = bytes.fromhex(usage)
    return Command(
        name=name,
        opcode=int(opcode),
        service_action=action,
        usage=bits,
        optional=optional,
        direction=direction,
        handler=handler,
        writes=writes,
        needs=needs,
        reservation=reservation,
        access=access,
        attention=attention,
        timeout=timeout,
    )


_Op, _Sa, _Out, _In = Opcode, ServiceAction, ThirdPartyCopyOut, ThirdPartyCopyIn
_PrIn, _PrOut = PersistentReserveIn, PersistentReserveOut
# fmt: off
COMMANDS: tuple[Command, ...] = (
    #                                usage of each byte of the CDB        bits with a feature
    _row(_Op.TEST_UNIT_READY, None, "00 00 000000 00",
         (), _NONE, rw.test_unit_ready, False, _DISK, _STATE, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.REQUEST_SENSE, None, "03 01 0000 ff 00",
         (), _IN, inquiry.request_sense, False, _DISK, _ANY, _ALWAYS, _TAKEN, _SHORT),
    _row(_Op.READ_6, None, "08 1fffff ff 00",
         (), _IN, rw.read_6, False, _DISK, _READING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.WRITE_6, None, "0a 1fffff ff 00",
         (), _OUT, rw.write_6, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.INQUIRY, None, "12 01 ff ffff 00",
         (), _IN, inquiry.inquiry, False, _DISK, _ANY, _ALWAYS, _EXEMPT, _SHORT),
    _row(_Op.MODE_SELECT_6, None, "15 11 0000 ff 00",
         (), _OUT, mode_select.mode_select, False, _DISK, _WRITING, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.RESERVE_6, None, "16 00 00 0000 00",
         (), _NONE, reservation.reserve_unit, False, _DISK, _DECIDED, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.RELEASE_6, None, "17 00 00 0000 00",
         (), _NONE, reservation.reserve_unit, False, _DISK, _DECIDED, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.MODE_SENSE_6, None, "1a 08 ff ff ff 00",
         (), _IN, mode.mode_sense_6, False, _DISK, _READING, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.START_STOP_UNIT, None, "1b 01 00 00 05 00",
         _LOEJ_BIT, _NONE, removable.start_stop_unit, False, _DISK, _STARTING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.PREVENT_ALLOW_MEDIUM_REMOVAL, None, "1e 00 0000 01 00",
         (), _NONE, removable.prevent_allow_medium_removal, False, Feature.REMOVABLE, Reservation.PREVENTING, _ACTIVE,
         _REPORTED, _SHORT),
    _row(_Op.READ_CAPACITY_10, None, "25 00 00000000 0000 00 00",
         (), _IN, report.read_capacity_10, False, _DISK, _ANY, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.READ_10, None, "28 18 ffffffff 00 ffff 00",
         (), _IN, rw.read_10, False, _DISK, _READING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.WRITE_10, None, "2a 18 ffffffff 00 ffff 00",
         (), _OUT, rw.write_10, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.WRITE_AND_VERIFY_10, None, "2e 12 ffffffff 00 ffff 00",
         (), _OUT, medium.write_and_verify_10, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.VERIFY_10, None, "2f 16 ffffffff 00 ffff 00",
         (), _MAYBE, rw.verify_10, False, _DISK, _READING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.PRE_FETCH_10, None, "34 02 ffffffff 1f ffff 00",
         (), _NONE, medium.pre_fetch_10, False, _DISK, _READING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.SYNCHRONIZE_CACHE_10, None, "35 02 ffffffff 00 ffff 00",
         (), _NONE, rw.synchronize_cache_10, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.READ_DEFECT_DATA_10, None, "37 00 1f 00000000 ffff 00",
         (), _IN, medium.read_defect_data_10, False, _DISK, _READING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.WRITE_SAME_10, None, "41 00 ffffffff 00 ffff 00",
         _UNMAP_BIT, _OUT, rw.write_same_10, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.UNMAP, None, "42 00 00000000 00 ffff 00",
         (), _OUT, rw.unmap, True, _THIN, _WRITING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.SANITIZE, _Sa.SANITIZE_OVERWRITE, "48 a1 0000000000 ffff 00",
         (), _OUT, sanitize.overwrite, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _HOURS),
    _row(_Op.SANITIZE, _Sa.SANITIZE_BLOCK_ERASE, "48 a2 0000000000 0000 00",
         (), _NONE, sanitize.without_data, True, _ERASE, _WRITING, _ACTIVE, _REPORTED, _HOURS),
    _row(_Op.SANITIZE, _Sa.SANITIZE_EXIT_FAILURE_MODE, "48 bf 0000000000 0000 00",
         (), _NONE, sanitize.without_data, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.LOG_SENSE, None, "4d 00 ff ff 00 ffff ffff 00",
         (), _IN, log.log_sense, False, _LOGGED, _ANY, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.MODE_SELECT_10, None, "55 11 0000000000 ffff 00",
         (), _OUT, mode_select.mode_select, False, _DISK, _WRITING, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.RESERVE_10, None, "56 00 00 00 000000 0000 00",
         (), _NONE, reservation.reserve_unit, False, _DISK, _DECIDED, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.RELEASE_10, None, "57 00 00 00 000000 0000 00",
         (), _NONE, reservation.reserve_unit, False, _DISK, _DECIDED, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.MODE_SENSE_10, None, "5a 18 ff ff 000000 ffff 00",
         (), _IN, mode.mode_sense_10, False, _DISK, _READING, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_IN, _PrIn.READ_KEYS, "5e 00 0000000000 ffff 00",
         (), _IN, reservation_in.persistent_reserve_in, False, _DISK, _STATE, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_IN, _PrIn.READ_RESERVATION, "5e 01 0000000000 ffff 00",
         (), _IN, reservation_in.persistent_reserve_in, False, _DISK, _STATE, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_IN, _PrIn.REPORT_CAPABILITIES, "5e 02 0000000000 ffff 00",
         (), _IN, reservation_in.persistent_reserve_in, False, _DISK, _STATE, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_IN, _PrIn.READ_FULL_STATUS, "5e 03 0000000000 ffff 00",
         (), _IN, reservation_in.persistent_reserve_in, False, _DISK, _STATE, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_OUT, _PrOut.REGISTER, "5f 00 ff 0000 ffffffff 00",
         (), _OUT, reservation_out.persistent_reserve_out, False, _DISK, _DECIDED, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_OUT, _PrOut.RESERVE, "5f 01 ff 0000 ffffffff 00",
         (), _OUT, reservation_out.persistent_reserve_out, False, _DISK, _DECIDED, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_OUT, _PrOut.RELEASE, "5f 02 ff 0000 ffffffff 00",
         (), _OUT, reservation_out.persistent_reserve_out, False, _DISK, _DECIDED, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_OUT, _PrOut.CLEAR, "5f 03 ff 0000 ffffffff 00",
         (), _OUT, reservation_out.persistent_reserve_out, False, _DISK, _DECIDED, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_OUT, _PrOut.PREEMPT, "5f 04 ff 0000 ffffffff 00",
         (), _OUT, reservation_out.persistent_reserve_out, False, _DISK, _DECIDED, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_OUT, _PrOut.PREEMPT_AND_ABORT, "5f 05 ff 0000 ffffffff 00",
         (), _OUT, reservation_out.persistent_reserve_out, False, _DISK, _DECIDED, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_OUT, _PrOut.REGISTER_AND_IGNORE_EXISTING_KEY, "5f 06 ff 0000 ffffffff 00",
         (), _OUT, reservation_out.persistent_reserve_out, False, _DISK, _DECIDED, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.PERSISTENT_RESERVE_OUT, _PrOut.REGISTER_AND_MOVE, "5f 07 ff 0000 ffffffff 00",
         (), _OUT, reservation_out.persistent_reserve_out, False, _DISK, _DECIDED, _STANDBY, _REPORTED, _SHORT),
    # Whatever refuses a WRITE refuses these at the unit that is written, which may be another one.
    _row(_Op.THIRD_PARTY_COPY_OUT, _Out.EXTENDED_COPY_LID1, "83 00 0000000000000000 ffffffff 00 00",
         (), _OUT, copy.extended_copy_lid1, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.THIRD_PARTY_COPY_OUT, _Out.EXTENDED_COPY_LID4, "83 01 0000000000000000 ffffffff 00 00",
         (), _OUT, copy.extended_copy_lid4, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.THIRD_PARTY_COPY_OUT, _Out.POPULATE_TOKEN, "83 10 00000000 ffffffff ffffffff 00 00",
         (), _OUT, copy_token.populate_token, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.THIRD_PARTY_COPY_OUT, _Out.WRITE_USING_TOKEN, "83 11 00000000 ffffffff ffffffff 00 00",
         (), _OUT, copy_token.write_using_token, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.THIRD_PARTY_COPY_OUT, _Out.COPY_OPERATION_ABORT, "83 1c ffffffff 0000000000000000 00 00",
         (), _NONE, copy.copy_operation_abort, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.THIRD_PARTY_COPY_IN, _In.RECEIVE_COPY_STATUS_LID1, "84 00 ff 00000000000000 ffffffff 00 00",
         (), _IN, copy_results.receive_copy_status_lid1, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.THIRD_PARTY_COPY_IN, _In.RECEIVE_COPY_OPERATING_PARAMETERS, "84 03 0000000000000000 ffffffff 00 00",
         (), _IN, copy_results.receive_copy_operating_parameters, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.THIRD_PARTY_COPY_IN, _In.RECEIVE_COPY_FAILURE_DETAILS_LID1, "84 04 ff 00000000000000 ffffffff 00 00",
         (), _IN, copy_results.receive_copy_failure_details_lid1, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.THIRD_PARTY_COPY_IN, _In.RECEIVE_COPY_STATUS_LID4, "84 05 ffffffff 00000000 ffffffff 00 00",
         (), _IN, copy_results.receive_copy_status_lid4, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.THIRD_PARTY_COPY_IN, _In.RECEIVE_ROD_TOKEN_INFORMATION, "84 07 ffffffff 00000000 ffffffff 00 00",
         (), _IN, copy_results.receive_rod_token_information, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.READ_16, None, "88 18 ffffffffffffffff ffffffff 00 00",
         (), _IN, rw.read_16, False, _DISK, _READING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.COMPARE_AND_WRITE, None, "89 18 ffffffffffffffff 000000 ff 00 00",
         (), _OUT, atomic.compare_and_write, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.WRITE_16, None, "8a 18 ffffffffffffffff ffffffff 00 00",
         (), _OUT, rw.write_16, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.ORWRITE_16, None, "8b 18 ffffffffffffffff ffffffff 00 00",
         (), _OUT, atomic.orwrite_16, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.WRITE_AND_VERIFY_16, None, "8e 12 ffffffffffffffff ffffffff 00 00",
         (), _OUT, medium.write_and_verify_16, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.VERIFY_16, None, "8f 16 ffffffffffffffff ffffffff 00 00",
         (), _MAYBE, rw.verify_16, False, _DISK, _READING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.PRE_FETCH_16, None, "90 02 ffffffffffffffff ffffffff 1f 00",
         (), _NONE, medium.pre_fetch_16, False, _DISK, _READING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.SYNCHRONIZE_CACHE_16, None, "91 02 ffffffffffffffff ffffffff 00 00",
         (), _NONE, rw.synchronize_cache_16, False, _DISK, _WRITING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.WRITE_SAME_16, None, "93 01 ffffffffffffffff ffffffff 00 00",
         _UNMAP_BIT, _MAYBE, rw.write_same_16, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.WRITE_ATOMIC_16, None, "9c 18 ffffffffffffffff 0000 ffff 00 00",
         (), _OUT, atomic.write_atomic_16, True, _ATOMIC, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.SERVICE_ACTION_IN_16, _Sa.READ_CAPACITY_16, "9e 10 0000000000000000 ffffffff 00 00",
         (), _IN, report.read_capacity_16, False, _DISK, _ANY, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.SERVICE_ACTION_IN_16, _Sa.GET_LBA_STATUS, "9e 12 ffffffffffffffff ffffffff 00 00",
         (), _IN, report.get_lba_status, False, _THIN, _READING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.SERVICE_ACTION_IN_16, _Sa.REPORT_REFERRALS, "9e 13 ffffffffffffffff ffffffff 01 00",
         (), _IN, ports.report_referrals, False, _DISK, _ANY, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.REPORT_LUNS, None, "a0 00 ff 000000 ffffffff 00 00",
         (), _IN, report.report_luns, False, _DISK, _ANY, _ALWAYS, _EXEMPT, _SHORT),
    _row(_Op.MAINTENANCE_IN, _Sa.REPORT_TARGET_PORT_GROUPS, "a3 ea 00000000 ffffffff 00 00",
         (), _IN, ports.report_target_port_groups, False, _DISK, _ANY, _ALWAYS, _REPORTED, _SHORT),
    _row(_Op.MAINTENANCE_IN, _Sa.REPORT_SUPPORTED_OPERATION_CODES, "a3 0c 87 ff ffff ffffffff 00 00",
         (), _IN, report.report_supported_operation_codes, False, _DISK, _READING, _STANDBY, _REPORTED, _SHORT),
    _row(_Op.MAINTENANCE_IN, _Sa.REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS, "a3 0d 80 000000 ffffffff 00 00",
         (), _IN, report.report_supported_task_management_functions, False, _DISK, _READING, _STANDBY, _REPORTED,
         _SHORT),
    _row(_Op.MAINTENANCE_OUT, MaintenanceOut.SET_TARGET_PORT_GROUPS, "a4 0a 00000000 ffffffff 00 00",
         (), _OUT, ports.set_target_port_groups, False, _DISK, _WRITING, _UNAVAILABLE, _REPORTED, _SHORT),
    _row(_Op.READ_12, None, "a8 18 ffffffff ffffffff 00 00",
         (), _IN, rw.read_12, False, _DISK, _READING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.WRITE_12, None, "aa 18 ffffffff ffffffff 00 00",
         (), _OUT, rw.write_12, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.WRITE_AND_VERIFY_12, None, "ae 12 ffffffff ffffffff 00 00",
         (), _OUT, medium.write_and_verify_12, True, _DISK, _WRITING, _ACTIVE, _REPORTED, _LONG),
    _row(_Op.VERIFY_12, None, "af 16 ffffffff ffffffff 00 00",
         (), _MAYBE, rw.verify_12, False, _DISK, _READING, _ACTIVE, _REPORTED, _SHORT),
    _row(_Op.READ_DEFECT_DATA_12, None, "b7 1f ffffffff ffffffff 00 00",
         (), _IN, medium.read_defect_data_12, False, _DISK, _READING, _ACTIVE, _REPORTED, _SHORT),
)
# fmt: on
