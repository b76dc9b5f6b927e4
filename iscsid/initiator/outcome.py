"""What a status and its sense data mean to the caller: which exception, and whether to try again first."""

from __future__ import annotations

from typing import Final

from iscsid.errors import CommandAborted, CommandFailed, InitiatorError, Miscompare, ReservationConflict, SenseError
from iscsid.initiator.task import Task
from iscsid.scsi.asc import describe
from iscsid.scsi.const import SenseKey, Status
from iscsid.scsi.sense import REASONS, Sense, parse_sense

ATTENTION_RETRIES: Final = 8  # a unit may have several attentions for us, each of which is told once
ABORT_RETRIES: Final = 3  # ABORTED COMMAND: a transport error inside the target
_BECOMING_READY: Final = (SenseKey.NOT_READY, 0x04, 0x01)
_REASON_OF: Final = {sense: reason.name for reason, sense in REASONS.items()}
_STATUS_NAMES: Final = {int(status): status.name.replace("_", " ") for status in Status}

# Retry now, retry after a pause, or not at all.
AT_ONCE: Final = "at once"
LATER: Final = "later"
NEVER: Final = "never"


def retry(task: Task) -> str:
    """Tell whether a task that ended with another status than GOOD is to be sent again."""
    if task.status in (Status.BUSY, Status.TASK_SET_FULL):
        return LATER
    if task.status != Status.CHECK_CONDITION:
        return NEVER
    try:
        sense = parse_sense(task.sense)
    except ValueError:
        return NEVER
    if sense.key == SenseKey.UNIT_ATTENTION and task.attempts < ATTENTION_RETRIES:
        return AT_ONCE  # the command was not executed (SAM-5 5.14), whatever it is
    if sense.key == SenseKey.ABORTED_COMMAND and task.replay and task.attempts < ABORT_RETRIES:
        return AT_ONCE
    return LATER if tuple(sense) == _BECOMING_READY else NEVER


def error_of(status: int, sense: bytes) -> InitiatorError | None:
    """Return the exception for a status, None for GOOD, CONDITION MET, and what was done after an error (SPC-4 4.5.6:
    RECOVERED ERROR)."""
    if status in (Status.GOOD, Status.CONDITION_MET):
        return None
    if status == Status.CHECK_CONDITION:
        error = sense_error(sense)
        return None if isinstance(error, SenseError) and error.key == SenseKey.RECOVERED_ERROR else error
    if status == Status.RESERVATION_CONFLICT:
        return ReservationConflict(status, "RESERVATION CONFLICT: another initiator holds a reservation")
    if status == Status.TASK_ABORTED:
        return CommandAborted("the target aborted the command for another initiator")
    return CommandFailed(status, _STATUS_NAMES.get(status, f"SCSI status {status:#04x}"))


def sense_error(data: bytes) -> CommandFailed:
    """Return the exception for sense data in either format."""
    try:
        sense = parse_sense(data)
    except ValueError as error:
        return CommandFailed(Status.CHECK_CONDITION, f"CHECK CONDITION with {error}")
    fixed = data[0] & 0x7F < 0x72
    information, pointer = _fixed(data) if fixed else _descriptors(data)
    field, bit, in_data = _pointer(pointer)
    cls = Miscompare if sense.key == SenseKey.MISCOMPARE else SenseError
    return cls(
        *sense,
        _text(sense, field, bit, in_data),
        reason=_REASON_OF.get(sense, ""),
        field=field,
        bit=bit,
        in_data=in_data,
        information=information,
        sense=data,
    )


def _text(sense: Sense, field: int | None, bit: int | None, in_data: bool) -> str:
    words = describe(sense)
    if field is None:
        return words
    where = "parameter list" if in_data else "CDB"
    return f"{words}, byte {field}{'' if bit is None else f' bit {bit}'} of the {where}"


def _fixed(data: bytes) -> tuple[int | None, bytes]:
    """SPC-4 4.5.3: INFORMATION is valid where the top bit of byte 0 says so; the pointer is in bytes 15 .. 17."""
    information = int.from_bytes(data[3:7], "big") if data[0] & 0x80 else None
    return information, data[15:18]


def _descriptors(data: bytes) -> tuple[int | None, bytes]:
    """SPC-4 4.5.2: a list of descriptors, of which types 0 (information) and 2 (sense key specific) matter."""
    information, pointer = None, b""
    position, end = 8, min(len(data), 8 + data[7] if len(data) > 7 else 0)
    while position + 2 <= end:
        kind, length = data[position], data[position + 1]
        body = data[position + 2 : position + 2 + length]
        if kind == 0 and len(body) == 10 and body[0] & 0x80:
            information = int.from_bytes(body[2:], "big")
        elif kind == 2 and len(body) == 6:
            pointer = body[2:5]
        position += 2 + length
    return information, pointer


def _pointer(data: bytes) -> tuple[int | None, int | None, bool]:
    """SPC-4 4.5.2.4.2: SKSV, C/D and BPV in the first byte, then the number of the byte."""
    if len(data) < 3 or not data[0] & 0x80:
        return None, None, False
    bit = data[0] & 0x07 if data[0] & 0x08 else None
    return int.from_bytes(data[1:3], "big"), bit, not data[0] & 0x40
