"""The vocabulary between supervisor and worker: slots dataclasses and their JSON form.

Rules of this file: a message is a flat record of ints, floats, strings and booleans (and one SessionInfo); it is
told by its name, and a message whose meaning changes gets a new name. Both ends are forked from one process, so what
does not decode is a bug of ours: LocalProtocolError, never a wire answer.

The life of a session, as the supervisor hears of it: every ``Connect`` with a TSIH of its own is answered by
``SessionOpened`` when its login reaches full feature phase, or by ``SessionClosed`` when it does not; every
``SessionOpened`` is followed by one ``SessionClosed``. A ``Connect`` that names the TSIH of a session that is already
open, and one with TSIH 0, are not answered.

The life of a change to what workers share about a logical unit: a worker asks (``AskUnit``, ``AskReset``), every worker
that serves the unit gets ``UpdateUnit`` and says ``UnitApplied`` when what it aborts has stopped, and when all have
said so, or are dead, ``UnitAnswer`` goes to the one that asked. Every ask is answered exactly once. A worker that was
just forked gets the state of each unit that has one by UpdateUnit, before its first Connect.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, TypeAlias, get_args, get_type_hints

from iscsid.errors import LocalProtocolError, ScsiError
from iscsid.scsi.const import Status
from iscsid.scsi.sense import Reason, reason_of

MAX_MESSAGE = 192 * 1024  # the longest: AskUnit with MAX_PARAMETERS in hexadecimal; the kernel takes 208 KiB
MAX_PARAMETERS = 64 * 1024  # bytes of parameter list in an AskUnit: twice what 128 of the longest TransportIDs need


@dataclass(slots=True)
class SessionInfo:
    """Who is at the other end of a session and what was negotiated; all that ``iscsid sessions`` can tell."""

    initiator: str
    isid: int  # the 6 bytes, big-endian
    target: str  # "": a discovery session
    peer: str  # "address:port", as its connection came
    portal: str  # the address that it came to
    initiator_alias: str = ""
    header_digest: bool = False
    data_digest: bool = False
    max_recv_data_segment_length: int = 0  # the initiator's
    max_burst_length: int = 0
    first_burst_length: int = 0
    error_recovery_level: int = 0
    portal_group_tag: int = 1


# -- to a worker -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Connect:
    """A connection, whose socket comes with the message; nothing was read from it.

    ``tsih`` is what the session gets when the login succeeds, or the session that the login names. 0: there is none
    to be had. A login that itself carries TSIH 0 is then refused with 0302h (out of resources), one that names a TSIH
    with 020Ah (session does not exist). The other fields are what the first PDU was seen to say: good enough to
    choose a worker, to be checked by the login. ``peer`` and ``portal`` are "address:port"; ``portal_group_tag`` is
    that of the portal.
    """

    tsih: int
    initiator: str
    isid: int
    target: str
    peer: str
    portal: str
    portal_group_tag: int = 1


@dataclass(slots=True)
class Drop:
    """End this session; ``reason`` is for the log and for SessionClosed."""

    tsih: int
    reason: str


@dataclass(slots=True)
class Stop:
    """Finish the commands in flight within this time, log out, flush, answer Stopped and exit with 0."""

    deadline_seconds: float


@dataclass(slots=True)
class Poll:
    """Answer with SessionFigures for each open session, and then a Beat."""


@dataclass(slots=True)
class UpdateUnit:
    """What is shared about a logical unit has changed; to be applied between two commands, and acknowledged.

    Several of them may have the same generation, each with a part of the unit attentions; each is to be acknowledged.
    """

    unit: str  # its key: the serial number
    generation: int  # of the state: one more with every change
    state: str  # JSON object: "reservations" as scsi.reservation.from_plain reads it, "mode" or null, ...
    attentions: str  # JSON list of [nexus, name of a sense.Reason], the nexus as [initiator, isid, target, tag]
    aborts: str  # JSON: "all", or the list of the nexuses whose tasks on the unit are to be aborted
    reason: str  # for the log


@dataclass(slots=True)
class UnitAnswer:
    """The answer to AskUnit or AskReset ``ask``; a status of 0 is GOOD, or function complete."""

    ask: int
    status: int
    reason: str  # the name of the sense.Reason when the status is CHECK CONDITION, or ""
    field: int  # of the field pointer, -1: none
    bit: int  # of the field pointer, -1: none
    in_data: bool  # the field pointer points into the parameter list


@dataclass(slots=True)
class Lend:
    """A file descriptor, which comes with the message and is number ``number`` (from 0) of those of ``revision``."""

    revision: int
    number: int


@dataclass(slots=True)
class Revise:
    """Open what ``revision`` of the configuration adds, unseen by initiators, and answer Revised.

    What it is (``daemon.revision``) is in the memory whose descriptor comes with the message, however long it is.
    """

    revision: int


@dataclass(slots=True)
class Hold:
    """Let the commands of these LUNs wait, flush and close their devices, and answer Held; ``more`` messages follow.

    ``revision`` is what opens them again, or another device in their place; Undo opens them as they were.
    """

    revision: int
    luns: str  # JSON list of [target, LUN]
    more: bool


@dataclass(slots=True)
class Work:
    """Do something to the medium of a LUN, which no worker has open if it is to change, and answer Worked.

    ``verb`` is one of its back end's (``iscsid_image``), or "resize", for which its back end may have other means.
    """

    revision: int
    target: str
    lun: int
    verb: str
    arguments: str  # JSON object


@dataclass(slots=True)
class Commit:
    """Every worker has opened what ``revision`` adds: let it be seen, close what it removes, and answer Revised."""

    revision: int


@dataclass(slots=True)
class Undo:
    """``revision`` does not happen: close what was opened for it. There is no answer."""

    revision: int


# -- to the supervisor -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Ready:
    """Every device is open; connections may come."""


@dataclass(slots=True)
class BootFailed:
    """The worker cannot serve what it was given; it exits with BOOT_FAILED next. ``reason`` is for the operator."""

    reason: str


@dataclass(slots=True)
class SessionOpened:
    """A login has reached full feature phase."""

    tsih: int
    info: SessionInfo


@dataclass(slots=True)
class SessionClosed:
    """A session has ended, or its login failed."""

    tsih: int
    reason: str


@dataclass(slots=True)
class SessionFigures:
    """What a session has done since it was opened."""

    tsih: int
    commands: int
    read_bytes: int
    written_bytes: int


@dataclass(slots=True)
class Beat:
    """The worker's loop goes round. Sent by the loop itself each second, with totals since the fork.

    ``busy`` is the part of the last period (0.0 to 1.0) that the loop did not spend waiting.
    """

    connections: int = 0
    commands: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    busy: float = 0.0


@dataclass(slots=True)
class AskUnit:
    """A command that changes what workers share about a unit (PERSISTENT RESERVE OUT, RESERVE, MODE SELECT, ...).

    ``ask`` is the worker's number for it, of none that is not yet answered. ``cdb`` and ``data``, the parameter list,
    are in hexadecimal. ``facts`` is a JSON object, or "": what only who has opened the device knows of it, where a
    command depends on that (MODE SELECT: see ``shared.rules``).
    """

    ask: int
    unit: str
    initiator: str
    isid: int
    target: str
    portal_group_tag: int
    cdb: str
    data: str
    facts: str = ""


@dataclass(slots=True)
class AskReset:
    """A task management function that reaches over sessions; ``unit`` "" stands for all units of the target.

    ``function`` is that of RFC 7143 section 11.5.1: LOGICAL UNIT RESET, TARGET WARM or COLD RESET, I_T NEXUS
    RESET.
    """

    ask: int
    unit: str
    initiator: str
    isid: int
    target: str
    portal_group_tag: int
    function: int


@dataclass(slots=True)
class Withdraw:
    """AskUnit ``ask`` is aborted; where it still waits for its turn it is answered TASK ABORTED, and does not happen.

    There is no other answer to this than that of the ask.
    """

    ask: int


@dataclass(slots=True)
class SanitizeOver:
    """The sanitize operation that this worker was executing has ended; ``ok``: it has completed, to the last byte.

    ``ask`` is a number as in AskUnit. GOOD says that all workers know that it has completed.
    """

    ask: int
    unit: str
    ok: bool


@dataclass(slots=True)
class UnitApplied:
    """An UpdateUnit is in force in this worker, and what it aborts has stopped; ``failure``, of ``failure_text``, is
    what the flush of a cache that it switched off, or of a medium that it took away, has ended with."""

    unit: str
    generation: int
    failure: str = ""


@dataclass(slots=True)
class Revised:
    """The answer to Revise and to Commit (``done``); ``error``, for the operator, tells why it could not be opened."""

    revision: int
    done: bool
    error: str = ""


@dataclass(slots=True)
class UnitHealth:
    """How a LUN is in this worker. Sent when that changes; a LUN that nothing was said of is well.

    ``hanging`` calls of its device are over their time, since ``since``, and ``waiting`` others wait for them. The
    numbers of errors are since the device was opened; ``kind``, ``reason`` and ``at`` are of the last one, "" where
    there was none, and ``absent`` if it said that the medium, or the way to it, is not there. ``ready`` is false while
    the device cannot be opened. ``size`` is what the device has instead of the ``promised`` bytes, -1 where nobody has
    asked. Times are of ``time.monotonic``, which is the same in all processes.
    """

    target: str
    lun: int
    hanging: int = 0
    waiting: int = 0
    since: float = 0.0
    read_errors: int = 0
    write_errors: int = 0
    flush_errors: int = 0
    kind: str = ""
    reason: str = ""
    at: float = 0.0
    absent: bool = False
    ready: bool = True
    size: int = -1
    promised: int = 0


@dataclass(slots=True)
class Held:
    """The answer to Hold; ``error``, for the operator, tells why the devices could not be closed."""

    revision: int
    error: str = ""


@dataclass(slots=True)
class Worked:
    """The answer to Work: a JSON object, or an error for the operator."""

    revision: int
    answer: str
    error: str = ""


@dataclass(slots=True)
class Stopped:
    """Every session has ended and every device is flushed and closed; the worker exits next."""


ToWorker: TypeAlias = (
    Connect | Drop | Stop | Poll | UpdateUnit | UnitAnswer | Lend | Hold | Work | Revise | Commit | Undo
)
ToSupervisor: TypeAlias = (
    Ready
    | BootFailed
    | SessionOpened
    | SessionClosed
    | SessionFigures
    | Beat
    | AskUnit
    | AskReset
    | Withdraw
    | SanitizeOver
    | UnitApplied
    | Revised
    | UnitHealth
    | Held
    | Worked
    | Stopped
)
Message: TypeAlias = ToWorker | ToSupervisor


def error_of(answer: UnitAnswer) -> ScsiError | None:
    """What the answer says that has gone wrong; None: nothing."""
    if answer.status == Status.GOOD:
        return None
    if not answer.reason:
        return ScsiError(Status(answer.status))
    pointer = None if answer.field < 0 else answer.field
    bit = None if answer.bit < 0 else answer.bit
    return ScsiError(Reason[answer.reason], field=pointer, bit=bit, in_data=answer.in_data)


def failure_text(error: Exception) -> str:
    """What a device has raised, for UnitApplied."""
    reason = reason_of(error, is_write=True)
    return (reason.reason if isinstance(reason, ScsiError) else reason).name


def failure_of(text: str) -> ScsiError:
    """The inverse, with sense data or a status."""
    return ScsiError(Reason[text] if text in Reason.__members__ else Status[text])


@dataclass(frozen=True, slots=True)
class _Form:
    """How one message is written: its class and, for each field, the type that JSON must give."""

    cls: type[Any]
    types: dict[str, type] = field(default_factory=dict)


def _form(cls: type[Any]) -> _Form:
    return _Form(cls, get_type_hints(cls))


_FORMS: dict[str, _Form] = {cls.__name__: _form(cls) for cls in get_args(Message)}
_INFO = _form(SessionInfo)


def encode(message: Message) -> bytes:
    """The message as one datagram of at most MAX_MESSAGE bytes."""
    data = json.dumps([type(message).__name__, dataclasses.asdict(message)], separators=(",", ":")).encode("ascii")
    if len(data) > MAX_MESSAGE:
        raise LocalProtocolError(f"{type(message).__name__} of {len(data)} bytes is longer than {MAX_MESSAGE}")
    return data


def decode(data: bytes) -> Message:
    """The inverse of :func:`encode`. Raises LocalProtocolError."""
    try:
        name, values = json.loads(data)
        form = _FORMS[name]
    except (ValueError, TypeError, KeyError, RecursionError) as exc:
        raise LocalProtocolError(f"not a message: {data[:80]!r}") from exc
    message: Message = _build(form, values)
    return message


def _build(form: _Form, values: Any) -> Any:
    if not isinstance(values, dict) or values.keys() != form.types.keys():
        raise LocalProtocolError(f"{form.cls.__name__} has other fields than {', '.join(form.types)}")
    return form.cls(**{key: _value(form, key, value) for key, value in values.items()})


def _value(form: _Form, key: str, value: Any) -> Any:
    expected = form.types[key]
    if expected is SessionInfo:
        return _build(_INFO, value)
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise LocalProtocolError(f"{form.cls.__name__}.{key} is {value!r}, not {expected.__name__}")
    return value
