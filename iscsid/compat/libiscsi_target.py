"""The target half of libiscsi(3): see :mod:`iscsid.compat.libiscsi`, which has all of it.

A handle is filled by :func:`iscsi_target_set_defaults` and :func:`iscsi_target_setvar`, made ready by
:func:`iscsi_target_start`, which reads targets(5) and looks at the storage, and serves while a thread is in
:func:`iscsi_target_listen`. Return values are the original's, but where it was plainly wrong (docs/netbsd.md).
"""

from __future__ import annotations

import enum
import logging
import os
import signal
import sys
import syslog
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from iscsid import config
from iscsid.block.guard import Guarded
from iscsid.compat import auths, convert, targets
from iscsid.compat.auths import Auths
from iscsid.compat.targets import Target
from iscsid.compat.variables import Variables
from iscsid.daemon.errors import StartError
from iscsid.daemon.media import Media
from iscsid.daemon.signals import Requests
from iscsid.daemon.supervisor import Started, serve
from iscsid.errors import ConfigError, IscsidError
from iscsid.specs import ServerSpec, TargetSpec

if TYPE_CHECKING:
    from iscsid.plugin.manager import Plugins
    from iscsid.shared.registry import Session

PIDFILE: Final = "/var/run/iscsi-target.pid"
DEFAULTS: Final = {
    "iqn": targets.IQN,
    "target port": "3260",
    "address family": "unspec",
    "max sessions": "16",
    "configfile": targets.PATH,
    "blocklen": "512",
}
DEBUG: Final[dict[str, tuple[str, ...]]] = {
    "net": ("iscsid.daemon",),
    "iscsi": ("iscsid.wire", "iscsid.text", "iscsid.session", "iscsid.target"),
    "scsi": ("iscsid.scsi", "iscsid.block"),
    "all": ("iscsid", "iscsid_backends", "iscsid_plugins"),
}
log = logging.getLogger(__name__)

STOP_PATIENCE: Final = 10.0  # seconds beyond the server's own stop_timeout that a shutdown waits
_KEYS: Final = {  # of [server], by what they come from
    "portals": "target port",
    "max_sessions": "max sessions",
    "workers": "workers",
    "runtime_dir": "runtime directory",
    "state_dir": "state directory",
}


class State(enum.IntEnum):
    """Where a target is in its life, with the original's numbers."""

    SHUT_DOWN = 0
    INITIALIZING = 1
    INITIALIZED = 2
    SHUTTING_DOWN = 3


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What a targets file has come to."""

    spec: ServerSpec
    plugins: Plugins
    targets: tuple[Target, ...]


class _Failed(Exception):
    """A step of the start did not succeed; its message, if any, goes to stderr."""


class _NoFile(_Failed):
    """The targets file cannot be read."""


class iscsi_target_t(Variables):
    """A target. Several may live in one process, each with a port and a runtime directory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State.SHUT_DOWN
        self.main_pid = 0  # the process that started it
        self.listener_pid = 0  # and the one that listens
        self.listener_listening = False
        self.portals: tuple[str, ...] = ()  # with the ports that the kernel chose, while it listens
        self.last_tsih = 0
        self._loaded: _Loaded | None = None
        self._next: _Loaded | None = None  # what reconfigure has read, until the server has taken it
        self._requests: Requests | None = None
        self._listener: int | None = None  # the thread that listens
        self._finished = threading.Event()
        self._code = 0
        self._logged_in: set[int] = set()


# -- variables ---------------------------------------------------------------------------------------------------------


def iscsi_target_set_defaults(tgt: iscsi_target_t) -> int:
    """Forget all variables but the six that have a default. Returns 1. To be called first."""
    tgt.reset(DEFAULTS)
    return 1


def iscsi_target_setvar(tgt: iscsi_target_t, name: str, value: str) -> int:
    """Set a variable; any name is taken. Returns 1. What is wrong with a value is told by what uses it."""
    return tgt.setvar(name, value)


def iscsi_target_getvar(tgt: iscsi_target_t, name: str) -> str | None:
    """Return the value of a variable, None if it was never set."""
    return tgt.getvar(name)


def _value(tgt: iscsi_target_t, name: str) -> str:
    """A variable that has a default, whether set_defaults was called or not."""
    value = tgt.getvar(name)
    return DEFAULTS.get(name, "") if value is None else value


# -- life --------------------------------------------------------------------------------------------------------------


def iscsi_target_start(tgt: iscsi_target_t) -> int:
    """Read the targets file and look at the storage: missing files are made. Opens no socket and returns at once.

    0, or -1 with the reason on stderr: no file, no target in it, storage that cannot be opened, a variable that makes
    no sense, or it was started before.
    """
    if tgt.state is not State.SHUT_DOWN:
        return _fail("iscsi_target_start: it is started already")
    tgt.state = State.INITIALIZING
    _debug(_value(tgt, "debug"))
    try:
        loaded = _load(tgt)
        _tell_storage(loaded)
    except _Failed as failed:
        tgt.state = State.SHUT_DOWN
        return _fail(str(failed))
    except BaseException:
        tgt.state = State.SHUT_DOWN
        raise
    print(f"TARGET: iSCSI Qualified Name (IQN) is {_value(tgt, 'iqn')}", flush=True)
    tgt._loaded = loaded
    tgt.main_pid = os.getpid()
    tgt.state = State.INITIALIZED
    return 0


def iscsi_target_listen(
    tgt: iscsi_target_t,
    *,
    signals: Callable[[], Requests] = Requests,
    started: Callable[[], None] = lambda: None,
) -> int:
    """Serve until :func:`iscsi_target_shutdown`; blocks in the thread of the caller, whichever that is.

    0: it was shut down. -1: it was not started, cannot listen, or something was lost in the shutdown; the log says
    what. It forks its workers, so let other threads hold no locks for long. Signals stay the program's own;
    ``signals`` (``iscsid.daemon.signals.Signals``, in the main thread) has SIGTERM, SIGINT and SIGHUP do as they do
    in iscsi-target(8). ``started`` is called when connections may come, and may not wait.
    """
    requests = signals()
    if tgt.state is not State.INITIALIZED or tgt._loaded is None or tgt._requests is not None:
        requests.close()
        return _fail("iscsi_target_listen: it is not started, or listens already")
    tgt._listener = threading.get_ident()
    tgt._finished.clear()
    tgt._requests = requests
    loaded = tgt._loaded
    tgt.listener_pid = os.getpid()
    try:
        # A shutdown that came before there was anybody to be asked is seen here; a later one has asked.
        if tgt.state is State.INITIALIZED:
            code = serve(
                loaded.spec,
                loaded.plugins,
                started=lambda told: _started(tgt, told, started),
                sessions=lambda session, here: _tell_session(tgt, session, here),
                signals=lambda: requests,
                reread=lambda: _reread(tgt),
            )
            tgt._code = -1 if code else 0
    finally:
        tgt.listener_listening = False
        tgt.portals = ()
        tgt._logged_in.clear()
        tgt._requests = tgt._listener = None
        tgt.state = State.SHUT_DOWN
        tgt._finished.set()
        requests.close()
    return tgt._code


def iscsi_target_shutdown(tgt: iscsi_target_t) -> int:
    """Have the server stop: what is under way is finished, sessions are closed, storage is flushed.

    Returns when that is done; called by a signal handler in the thread that listens, at once, and listen returns
    soon after. 0, or -1 when it is down or on its way, and when something was lost.
    """
    if tgt.state in (State.SHUT_DOWN, State.SHUTTING_DOWN):
        return -1
    tgt.state = State.SHUTTING_DOWN
    requests, listener = tgt._requests, tgt._listener
    if requests is None:
        tgt.state = State.SHUT_DOWN
        return 0
    requests.send(signal.SIGTERM)
    if listener == threading.get_ident():
        return 0
    patience = (tgt._loaded.spec.stop_timeout if tgt._loaded else 0.0) + STOP_PATIENCE
    return tgt._code if tgt._finished.wait(patience) else -1


def iscsi_target_reconfigure(tgt: iscsi_target_t) -> int:
    """Read the targets file again. 1: it counts; 0: it cannot be read; -1: something in it, or in a variable, is wrong.

    Whatever it answers but 1, what is served stays as it was. A target that listens becomes what the file says in a
    moment; sessions of targets that are still the same go on.
    """
    if tgt._loaded is None or tgt.state is not State.INITIALIZED:
        return _fail("iscsi_target_reconfigure: it is not started")
    try:
        loaded = _load(tgt)
    except _NoFile as failed:
        _fail(str(failed))
        return 0
    except _Failed as failed:
        return _fail(str(failed))
    if tgt._requests is None:
        tgt._loaded = loaded
    else:
        tgt._next = loaded
        tgt._requests.send(signal.SIGHUP)
    return 1


def iscsi_target_write_pidfile(path: str | None = None) -> None:
    """Write this process's id, a decimal number and a newline; None: to /var/run/iscsi-target.pid.

    A failure is told on stderr and is no more than that.
    """
    name = PIDFILE if path is None else path
    try:
        with open(name, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        print(f'Couldn\'t create pid file "{name}": {error.strerror}', file=sys.stderr, flush=True)


# -- start -------------------------------------------------------------------------------------------------------------


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _load(tgt: iscsi_target_t, tell: Callable[[str], None] = _tell) -> _Loaded:
    """Read the file and make a configuration of it, telling what there is on the way. Raises _Failed.

    ``tell`` is given what is wrong and stops nothing.
    """
    block_length = _value(tgt, "blocklen")
    if block_length not in map(str, convert.BLOCK_LENGTHS):
        raise _Failed(f"Invalid block len {block_length}. Choose one of 512, 1024, 2048, 4096, or 8192.")
    server = _server_table(tgt)
    path = _value(tgt, "configfile")
    print(f"Reading configuration from `{path}'", flush=True)
    try:
        file = targets.load(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _NoFile(f"can't open `{path}' `r' ({reason})\nError: can't open `{path}'") from error
    for message in file.messages:
        tell(message.at(path))
    if not file.targets:
        raise _Failed("No targets to initialise")
    for target in file.targets.values():
        print(f"{target.name}:{'ro' if target.readonly else 'rw'}:{target.mask.text}")
        for line in targets.dump(convert.sized(target.storage)):
            print(line)
    sys.stdout.flush()
    state_dir = server["state_dir"]
    if convert.has_mirror([target.storage for target in file.targets.values()]):
        _make_folder(os.path.join(state_dir, convert.MIRRORS))
    settings = convert.Settings(state_dir, _value(tgt, "iqn"), int(block_length), _auth_table(tgt, tell))
    found = tuple(file.targets.values())
    tables = convert.target_tables(file, settings)
    try:
        spec, plugins = config.read({"server": server, "target": tables}, path)
    except ConfigError as error:
        raise _Failed("\n".join(_problems(error, path, found))) from error
    return _Loaded(spec, plugins, found)


def _server_table(tgt: iscsi_target_t) -> dict[str, Any]:
    """The table [server]. Raises _Failed for a variable that is no number."""
    port = _number(tgt, "target port")
    hosts = {"unspec": ("0.0.0.0", "[::]"), "4": ("0.0.0.0",)}.get(_value(tgt, "address family"), ("[::]",))
    runtime_dir, state_dir = tgt.getvar("runtime directory"), tgt.getvar("state directory")
    server: dict[str, Any] = {
        "portals": [f"{host}:{port}" for host in hosts],
        "max_sessions": _number(tgt, "max sessions"),
        "runtime_dir": runtime_dir or os.path.join(_own_folder("/run"), str(port)),
        "state_dir": state_dir or _own_folder("/var/lib"),
    }
    if workers := tgt.getvar("workers"):
        server["workers"] = int(workers) if workers.isdecimal() else workers
    return server


def _number(tgt: iscsi_target_t, name: str) -> int:
    text = _value(tgt, name).strip()
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise _Failed(f"Error: variable `{name}' has value `{text}', which is no number")
    return int(text)


def _own_folder(above: str) -> str:
    """Where root's targets keep things; those of another user in a folder that only this user may write to."""
    if os.geteuid() == 0:
        return os.path.join(above, "iscsi-target")
    folder = Path(tempfile.gettempdir()) / f"iscsi-target-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        raise _Failed(f"{folder}: {error.strerror}") from error
    if facts.st_uid != os.getuid() or facts.st_mode & 0o170022 != 0o040000:
        raise _Failed(f"{folder}: is not a folder that only this user may write to")
    return str(folder)


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise _Failed(f"{path}: {error.strerror}") from error


def _auth_table(tgt: iscsi_target_t, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """Who has to prove what: all CHAP users of the auths file, unless ``auth type`` is "none"."""
    kind = tgt.getvar("auth type")
    if kind == "none":
        return None
    path = tgt.getvar("auths file") or auths.PATH
    try:
        found = auths.load(path)
    except FileNotFoundError:
        found = Auths()
    except (OSError, ValueError) as error:
        # Unreadable, it may well ask for proof that nobody would be asked for.
        raise _Failed(f"can't open `{path}' `r' ({getattr(error, 'strerror', None) or error})") from error
    for message in found.messages:
        tell(message.at(path))
    table = convert.auth_table(found)
    if table is None and kind == "chap":
        raise _Failed(f"No matching user configuration entry for CHAP was found\nPlease add an entry to `{path}'")
    return table


def _problems(error: ConfigError, path: str, found: tuple[Target, ...]) -> list[str]:
    """What is wrong with the configuration, by the lines and variables that it comes from."""
    lines = []
    for problem in error.problems:
        table, _, rest = problem.where.partition("]")
        index = table.removeprefix("target[")
        if table.startswith("target[") and index.isdecimal():
            target = found[int(index)]
            lines.append(f"{path}:{target.line}: Error: target `{target.name}': {problem.reason}")
        elif problem.where == "server":
            lines.append(f"Error: variable `{_KEYS.get(problem.key, problem.key)}': {problem.reason}")
        else:
            lines.append(f"{path}: Error: {problem}{rest}")
    return list(dict.fromkeys(lines))


def _tell_storage(loaded: _Loaded) -> None:
    """Make and open everything once, so that what cannot be served is known now. Raises _Failed."""
    try:
        media = Media(loaded.spec, loaded.plugins)
    except StartError as error:
        raise _Failed(f"Error: {error}") from error
    try:
        for target, spec in zip(loaded.targets, loaded.spec.targets, strict=True):
            size, block_size = _look_at(spec, loaded.plugins, media)
            kind = "readonly disk" if target.readonly else "disk"
            print(f"DISK: 1 logical unit ({size // block_size} blocks, {block_size} bytes/block), type iscsi fs")
            print(f'DISK: LUN 0: {size >> 20} MB {kind} storage for "{target.name}"', flush=True)
    finally:
        media.release()


def _look_at(spec: TargetSpec, plugins: Plugins, media: Media) -> tuple[int, int]:
    """Return the size of a target's disk and of its blocks. Raises _Failed."""
    (lun,) = spec.luns
    try:
        role = "readonly" if lun.readonly else "owner"
        device = plugins.open(lun.backend, media.options[spec.name, lun.lun], role)
        try:
            for name, options in media.layers[spec.name, lun.lun]:
                device = plugins.wrap(device, name, options)
            guarded = Guarded(device, block_size=lun.block_size, readonly=lun.readonly)
            return guarded.size, guarded.block_size
        finally:
            device.close()
    except (IscsidError, OSError, ValueError) as error:
        raise _Failed(f"Error: target `{spec.name}': {error}") from error


def _debug(what: str) -> None:
    """Have parts of the server tell more; other words mean nothing, and once on it stays on."""
    for name in DEBUG.get(what, ()):
        logging.getLogger(name).setLevel(logging.DEBUG)


def _fail(message: str) -> int:
    _tell(message)
    return -1


# -- while it listens --------------------------------------------------------------------------------------------------


def _started(tgt: iscsi_target_t, told: Started, then: Callable[[], None]) -> None:
    tgt.portals = tuple(map(str, told.portals))
    tgt.setvar("target address", f"{told.portals[0]},{told.portals[0].portal_group_tag}")
    tgt.listener_listening = True
    then()


def _reread(tgt: iscsi_target_t) -> tuple[ServerSpec, Plugins]:
    """The configuration once more, for the server: what reconfigure has read, or after a SIGHUP what the file says."""
    loaded, tgt._next = tgt._next, None
    if loaded is None:
        try:
            loaded = _load(tgt, log.warning)
        except _Failed as failed:
            raise StartError(str(failed)) from failed
    tgt._loaded = loaded
    return loaded.spec, loaded.plugins


def _tell_session(tgt: iscsi_target_t, session: Session, here: bool) -> None:
    """A line on stdout and in syslog for each login and logout."""
    info = session.info
    host = info.peer.rpartition(":")[0].strip("[]")
    if here:
        tgt._logged_in.add(session.tsih)
        tgt.last_tsih = session.tsih
        tgt.setvar("target address", f"{info.portal},{info.portal_group_tag}")
        _tell_rejected(tgt, info.target, host)
    elif session.tsih not in tgt._logged_in:
        return  # a login that failed
    else:
        tgt._logged_in.discard(session.tsih)
    names = [target.name for target in tgt._loaded.spec.targets] if tgt._loaded else []
    disk = names.index(info.target) if info.target in names else 0
    kind = "Normal" if info.target else "Discovery"
    what = "> iSCSI {} login  successful" if here else "< iSCSI {} logout successful"
    line = f"{what.format(kind)} from {info.initiator} on {host} disk {disk}, ISID {info.isid}, TSIH {session.tsih}"
    print(line, flush=True)
    syslog.syslog(syslog.LOG_INFO | syslog.LOG_DAEMON, line)


def _tell_rejected(tgt: iscsi_target_t, target: str, host: str) -> None:
    """In syslog, the masks that hide targets from whoever asks which there are."""
    for other in tgt._loaded.targets if tgt._loaded and not target else ():
        if not other.mask.allows(host):
            words = f"WARNING: attempt to discover targets from {host} (not allowed by {other.mask.text})"
            syslog.syslog(syslog.LOG_WARNING | syslog.LOG_DAEMON, f"{words} has been rejected")
