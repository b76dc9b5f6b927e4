"""The initiator half of libiscsi(3): see :mod:`iscsid.compat.libiscsi`, which has all of it.

A handle holds variables. :func:`iscsi_initiator_start` makes 16 slots of them, which belong to the process as they did
in the original, and :func:`iscsi_initiator_discover` logs a slot in to a target. Functions that the man page shows with
a leading handle and the header without one take both. Nothing waits for ever: what cannot be done returns -1 with the
reason on stderr, where the original hung.

The structures have the names and fields of ``initiator.h`` and ``iscsiutil.h`` as far as they concern a caller.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from iscsid.compat.initiator_settings import (
    DEFAULTS,
    Settings,
    SettingsError,
    debug,
    find_targets,
    log_in,
    read,
    trace,
)
from iscsid.compat.variables import Variables
from iscsid.errors import InitiatorError
from iscsid.initiator import Client, TargetPortal, TargetRecord
from iscsid.initiator.task import Management, Task
from iscsid.initiator.unit import Unit
from iscsid.text.names import normalize
from iscsid.wire.const import TmfFunction

CONFIG_INITIATOR_NUM_TARGETS: Final = 16
ISCSI_NOP_OUT: Final = 0x00  # types of a command: opcodes of RFC 7143 section 11.2.1.2
ISCSI_SCSI_CMD: Final = 0x01
HOST_SIZE: Final = 1024  # characters of a host's or a target's name, as in the original's structures
NAME_SIZE: Final = 256


class iscsi_initiator_t(Variables):
    """The variables of an initiator."""


class strv_t(list[str]):
    """A growable array of strings: ``v`` are they, ``c`` is their number."""

    @property
    def v(self) -> list[str]:
        return self

    @property
    def c(self) -> int:
        return len(self)


@dataclass(slots=True)
class initiator_target_t:
    """What is known of a slot's target. ``all_targets``: IQN, address, IQN, address, …"""

    name: str = ""  # of the host
    ip: str = ""
    port: int = 0
    TargetName: str = ""
    iqnwanted: str = ""
    has_session: int = 0
    all_targets: strv_t = field(default_factory=strv_t)


@dataclass(slots=True)
class iscsi_scsi_cmd_args_t:
    """A SCSI command. ``input``: it has data-in, ``trans_len`` bytes, into ``recv_data`` or, where that is None, a
    buffer that is put there; ``output``: it has data-out, ``send_data``. Filled in: ``status``, the bytes moved, and
    ``sense_data``, which the original threw away.
    """

    cdb: bytes = b""
    lun: int = 0
    input: int = 0
    output: int = 0
    trans_len: int = 0
    send_data: bytes | bytearray | memoryview = b""
    recv_data: bytearray | memoryview | None = None
    status: int = 0
    bytes_sent: int = 0
    bytes_recv: int = 0
    sense_data: bytes = b""


@dataclass(slots=True)
class iscsi_nop_out_args_t:
    """A question for a sign of life."""

    lun: int = 0
    data: bytes = b""


@dataclass(slots=True)
class initiator_cmd_t:
    """A command for the slot ``isid``: ``ptr`` are its arguments, of the kind that ``type`` says.

    ``status`` is 0, or -1 when there was no answer; then ``callback(callback_arg)`` is called by initiator_enqueue.
    """

    type: int = ISCSI_SCSI_CMD
    ptr: iscsi_scsi_cmd_args_t | iscsi_nop_out_args_t | None = None
    isid: int = 0
    callback: Callable[[Any], object] | None = None
    callback_arg: Any = None
    status: int = 0
    targetname: str = ""
    running: tuple[Client, Task] | None = field(default=None, repr=False)


class _Slot:
    """One of the 16: a target, and the session with it."""

    def __init__(self, settings: Settings) -> None:
        self.turn = threading.RLock()
        self.info = initiator_target_t(name=settings.hostname[: HOST_SIZE - 1], port=settings.port)
        self.client: Client | None = None
        self.state = ""  # while something is being done

    def describe(self) -> str:
        if self.state:
            return self.state
        if self.client is None:
            return "No Session"
        return "Normal session" if self.client.session.ready else "connecting"


class _Initiator:
    """What the process has between start and shutdown."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.slots = [_Slot(settings) for _ in range(CONFIG_INITIATOR_NUM_TARGETS)]
        self.workers = ThreadPoolExecutor(CONFIG_INITIATOR_NUM_TARGETS, "iscsi-initiator")
        self.places = threading.BoundedSemaphore(CONFIG_INITIATOR_NUM_TARGETS)  # of the queue


class _Failed(Exception):
    """Why a function returns -1."""


_started: _Initiator | None = None
_starting = threading.Lock()


def _current() -> _Initiator:
    if _started is None:
        raise _Failed("it is not started")
    return _started


def _slot(number: int) -> _Slot:
    initiator = _current()
    if not 0 <= number < CONFIG_INITIATOR_NUM_TARGETS:
        raise _Failed(f"there is no slot {number}: 0 .. {CONFIG_INITIATOR_NUM_TARGETS - 1}")
    return initiator.slots[number]


def _guarded(name: str, action: Callable[[], int]) -> int:
    """What ``action`` returns; -1, and the reason on stderr, for what fails."""
    try:
        return action()
    except (_Failed, SettingsError, InitiatorError) as failed:
        print(f"{name}: {failed}", file=sys.stderr, flush=True)
        return -1


def _without_handle(arguments: Iterable[Any]) -> tuple[Any, ...]:
    """The arguments as the header has them, where they may be as the man page has them."""
    found = tuple(arguments)
    return found[1:] if found and isinstance(found[0], Variables) else found


def _arguments(name: str, count: int, given: tuple[Any, ...]) -> tuple[Any, ...]:
    found = _without_handle(given)
    if len(found) != count:
        raise TypeError(f"{name} takes {count} arguments, and a handle before them if you like, not {len(found)}")
    return found


# -- variables ---------------------------------------------------------------------------------------------------------


def iscsi_initiator_set_defaults(ini: iscsi_initiator_t) -> int:
    """Forget all variables but the six that have a default. Returns 1. To be called first."""
    ini.reset(DEFAULTS)
    return 1


def iscsi_initiator_setvar(ini: iscsi_initiator_t, name: str, value: str) -> int:
    """Set a variable; any name is taken. Returns 1. They are read, and refused, by iscsi_initiator_start."""
    return ini.setvar(name, value)


def iscsi_initiator_getvar(ini: iscsi_initiator_t, name: str) -> str | None:
    """Return the value of a variable, None if it was never set."""
    return ini.getvar(name)


# -- life --------------------------------------------------------------------------------------------------------------


def iscsi_initiator_start(ini: iscsi_initiator_t) -> int:
    """Make the 16 slots, each for the host that the variables name. No network traffic.

    0, or -1 with the reason on stderr: a variable makes no sense, a user has no secret, or it was started before.
    """

    def start() -> int:
        global _started  # noqa: PLW0603
        debug(ini.getvar("debug") or "")
        settings = read(ini)
        with _starting:
            if _started is not None:
                raise _Failed("it is started already")
            _started = _Initiator(settings)
        return 0

    return _guarded("iscsi_initiator_start", start)


def ii_initiator_init(
    hostname: str,
    port: int,
    address_family: int,
    user: str,
    lun: str,
    auth_type: int,
    mutual_auth: int,
    digest_type: int,
) -> int:
    """The older entry point: start with these in place of variables. Numbers: 0 is none, whatever else is.

    ``address_family`` is one of ``socket``; ``lun`` had no meaning, and has none. For mutual authentication the user
    is the target's as well. Returns 0 or -1.
    """

    ini = iscsi_initiator_t()
    iscsi_initiator_set_defaults(ini)
    families: dict[int, str] = {socket.AF_INET: "4", socket.AF_INET6: "6"}
    values = {
        "target hostname": hostname,
        "target port": str(port),
        "address family": families.get(address_family, "unspec"),
        "user": user,
        "auth type": "chap" if auth_type else "none",
        "mutual auth": "chap" if mutual_auth else "none",
        "target user": user,
        "digest type": "both" if digest_type else "none",
    }
    for name, value in values.items():
        iscsi_initiator_setvar(ini, name, value or "")
    return iscsi_initiator_start(ini)


def iscsi_initiator_shutdown(*handle: iscsi_initiator_t) -> int:
    """Log all slots out and forget them; then it may be started anew. 0, or -1 when it is not started."""
    _arguments("iscsi_initiator_shutdown", 0, handle)

    def shut_down() -> int:
        global _started
        with _starting:
            initiator, _started = _current(), None
        for number, slot in enumerate(initiator.slots):
            _close(slot, number)
        initiator.workers.shutdown()  # what waited there finds nothing started, and tells its callback
        return 0

    return _guarded("iscsi_initiator_shutdown", shut_down)


def _close(slot: _Slot, number: int) -> None:
    with slot.turn:
        client, slot.client = slot.client, None
        if client is None:
            return
        slot.state = "logging out"
        try:
            client.close()
        except InitiatorError as error:
            trace("net", "logout of slot %d: %s", number, error)  # told, and no more: the session is over
        slot.state = ""


# -- discovery and login -----------------------------------------------------------------------------------------------


def iscsi_initiator_discover(*arguments: Any) -> int:
    """``(host, target, lun)``: log slot ``target`` in to its target, asking first which there are.

    The host that is asked is the variable ``target hostname``; ``host`` was never read, and ``lun`` only said whom a
    NOP-Out was for. The target is the one of initiator_set_target_name, else that of the variable ``target
    instance``, else the first; iscsi_initiator_get_targets returns all of them. A slot that is logged in is asked for
    a sign of life. 0, or -1 with the reason on stderr.
    """
    _host, target, lun = _arguments("iscsi_initiator_discover", 3, arguments)

    def discover() -> int:
        slot = _slot(int(target))
        with slot.turn:
            if slot.client is not None:
                _sign_of_life(slot.client, int(lun))
            else:
                _log_in(slot, _current().settings)
        return 0

    return _guarded("iscsi_initiator_discover", discover)


iscsi_initiator_discovery = iscsi_initiator_discover
initiator_discover = iscsi_initiator_discover


def _log_in(slot: _Slot, settings: Settings) -> None:
    """Fill the slot. Raises InitiatorError and _Failed."""
    info = slot.info
    try:
        slot.state = "Discovery session"
        name, portals = _wanted(slot, settings)
        slot.state = "logging in"
        slot.client, portal = log_in(settings, name, portals)
        info.TargetName, info.ip, info.port, info.has_session = name, portal.host, portal.port, 1
    finally:
        slot.state = ""


def _wanted(slot: _Slot, settings: Settings) -> tuple[str, tuple[TargetPortal, ...]]:
    """Which target the slot is for, and where it is.

    A target that was named is logged in to even where the host tells of none: discovery may have an account of its own.
    """
    wanted = slot.info.iqnwanted
    records: list[TargetRecord] = []
    try:
        records = find_targets(settings)
    except InitiatorError:
        if not wanted:
            raise
    slot.info.all_targets[:] = [
        text for record in records for portal in record.portals for text in (record.name, str(portal))
    ]
    if wanted:
        known = {record.name: record.portals for record in records}
        return wanted, known.get(wanted, (TargetPortal(settings.hostname, settings.port, 1),))
    instance = settings.instance or 0
    if instance >= len(records):
        raise _Failed(f"there is no target {instance}: {settings.hostname} tells of {len(records)}")
    return records[instance].name, records[instance].portals


def _sign_of_life(client: Client, lun: int) -> None:
    """Have the target answer, which connects anew where the connection was lost. Raises InitiatorError."""
    client.run(Unit(lun, client.options.timeout).command(bytes(6), b"", memoryview(b""), None, True))


def iscsi_initiator_get_targets(target: int, svp: list[str]) -> int:
    """Append what slot ``target`` was told of, IQN and ``ip:port,tag`` in turn. 1, or -1 when it has no session."""

    def get() -> int:
        slot = _slot(target)
        if slot.client is None:
            raise _Failed(f"slot {target} has no session")
        svp.extend(slot.info.all_targets)
        return 1

    return _guarded("iscsi_initiator_get_targets", get)


initiator_get_targets = iscsi_initiator_get_targets


def iscsi_initiator_get_max_targets() -> int:
    """How many slots there are."""
    return CONFIG_INITIATOR_NUM_TARGETS


def initiator_set_target_name(target: int, iqn: str) -> int:
    """Say which target slot ``target`` is for, before it is logged in. 0, or -1 for what is no slot or no name."""

    def set_name() -> int:
        slot = _slot(target)
        try:
            slot.info.iqnwanted = slot.info.TargetName = normalize(iqn[: NAME_SIZE - 1])
        except ValueError as error:
            raise _Failed(f"{iqn!r} is not a target name: {error}") from error
        return 0

    return _guarded("initiator_set_target_name", set_name)


def get_target_info(target: int, info: initiator_target_t) -> None:
    """Fill ``info`` with what is known of slot ``target``; one that does not exist leaves it as it is."""
    initiator = _started
    if initiator is None or not 0 <= target < CONFIG_INITIATOR_NUM_TARGETS:
        return
    found = initiator.slots[target].info
    info.name, info.ip, info.port, info.TargetName = found.name, found.ip, found.port, found.TargetName
    info.iqnwanted, info.has_session = found.iqnwanted, found.has_session
    info.all_targets = strv_t(found.all_targets)


def iscsi_initiator_info(*arguments: Any) -> int:
    """``(buf, size, len)``: write a table of the slots into the bytearray ``buf`` from ``len`` on, NUL-terminated.

    Returns the length of the text, with ``len``; where that is ``size`` or more, it was cut, as snprintf(3) has it.
    """
    buffer, size, length = _arguments("iscsi_initiator_info", 3, arguments)
    lines = [f"  {'TID':>3} {'TargetName':>30} {'TargetAddress':>25}\n\n"]
    slots = _started.slots if _started is not None else ()
    for number in range(CONFIG_INITIATOR_NUM_TARGETS):
        info, state = (slots[number].info, slots[number].describe()) if slots else (initiator_target_t(), "No Session")
        address = f"{info.ip}:{info.port}" if info.has_session else ""
        lines.append(f"  {number:>3} {info.TargetName:>30} {address:>25} ({state})\n")
    data = "".join(lines).encode()
    size = min(size, len(buffer))
    room = max(0, size - length - 1)
    if size > length:
        part = data[:room]
        buffer[length : length + len(part) + 1] = part + b"\0"
    return int(length) + len(data)


# -- commands ----------------------------------------------------------------------------------------------------------


def initiator_command(cmd: initiator_cmd_t) -> int:
    """Do a command, and wait for it; a slot that is not logged in is logged in first.

    0 when it was answered, whatever the SCSI status in its arguments is; -1, in ``cmd.status`` too, when it was not.
    """

    def run() -> int:
        client = _client(int(cmd.isid))
        match cmd.type, cmd.ptr:
            case (int(kind), iscsi_scsi_cmd_args_t() as args) if kind == ISCSI_SCSI_CMD:
                _run_scsi(client, cmd, args)
            case (int(kind), iscsi_nop_out_args_t() | None as nop) if kind == ISCSI_NOP_OUT:
                _sign_of_life(client, nop.lun if nop is not None else 0)
            case _:
                raise _Failed(f"type {cmd.type} and {type(cmd.ptr).__name__} are no command that there is")
        return 0

    cmd.status = _guarded("initiator_command", run)
    return cmd.status


def initiator_enqueue(cmd: initiator_cmd_t) -> int:
    """Do a command while the caller goes on; ``cmd.callback`` is called when it is over, in another thread.

    0, or -1 when it is not started or 16 are under way.
    """

    def enqueue() -> int:
        initiator = _current()
        if not initiator.places.acquire(blocking=False):
            raise _Failed("the queue is full")
        try:
            initiator.workers.submit(work, initiator)
        except RuntimeError as error:
            initiator.places.release()
            raise _Failed("it is shut down") from error
        return 0

    def work(initiator: _Initiator) -> None:
        try:
            initiator_command(cmd)
        finally:
            initiator.places.release()
            if cmd.callback is not None:
                cmd.callback(cmd.callback_arg)

    return _guarded("initiator_enqueue", enqueue)


def initiator_abort(cmd: initiator_cmd_t) -> int:
    """Abort a command that is under way (ABORT TASK). 0, or -1 when it is not, or the target does not do it."""

    def abort() -> int:
        running = cmd.running
        if running is None or running[1].done:
            raise _Failed("the command is not under way")
        client, task = running
        request = Management(TmfFunction.ABORT_TASK, task.lun, task)
        client.ask(request)
        if response := client.wait(request).response:
            raise _Failed(f"the target answers {response}")
        return 0

    return _guarded("initiator_abort", abort)


def _client(number: int) -> Client:
    slot = _slot(number)
    with slot.turn:
        if slot.client is None:
            _log_in(slot, _current().settings)
        if slot.client is None:
            raise _Failed(f"slot {number} has no session")
        return slot.client


def _run_scsi(client: Client, cmd: initiator_cmd_t, args: iscsi_scsi_cmd_args_t) -> None:
    """Raises InitiatorError and _Failed."""
    if args.input and args.output:
        raise _Failed("a command moves data in one direction only")
    if args.input and args.recv_data is None:
        args.recv_data = bytearray(args.trans_len)
    buffer = memoryview(args.recv_data or b"").cast("B")[: args.trans_len] if args.input else memoryview(b"")
    data = memoryview(args.send_data).cast("B")[: args.trans_len or None] if args.output else memoryview(b"")
    try:
        task = Unit(args.lun, client.options.timeout).command(bytes(args.cdb), data, buffer, None, False)
    except ValueError as error:
        raise _Failed(str(error)) from error
    cmd.running = (client, task)
    try:
        result = client.run(task).result
    finally:
        cmd.running = None
    args.status, args.sense_data = result.status, bytes(result.sense)
    args.bytes_recv = len(result.data)
    args.bytes_sent = len(data) - max(0, result.residual) if args.output else 0
    trace("scsi", "slot %d: CDB %s, status %d", cmd.isid, bytes(args.cdb).hex(), result.status)
