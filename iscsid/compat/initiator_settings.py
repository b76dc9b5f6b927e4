"""What the variables of an initiator come to: where to go, who to be, what to insist on.

Both the API (:mod:`iscsid.compat.libiscsi_initiator`) and iscsi-initiator(8) read them here, when they start. A value
that makes no sense is told then; the original went on, without authentication or digests that were asked for.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from iscsid.compat import auths
from iscsid.compat.variables import Variables
from iscsid.errors import ConnectionFailed, InitiatorError, IscsidError, LoginRefused
from iscsid.initiator import Client, Credentials, Portal, TargetPortal, TargetRecord, connect, discover

NONE: Final = "none"
CHAP: Final = "chap"
DEFAULTS: Final[Mapping[str, str]] = {
    "address family": "unspec",
    "digest type": NONE,
    "auth type": NONE,
    "mutual auth": NONE,
    "target hostname": "localhost",
    "target port": "3260",
}
DIGESTS: Final = {  # of PDU headers, of their data
    NONE: (False, False),
    "header": (True, False),
    "data": (False, True),
    "both": (True, True),
    "all": (True, True),
}
AUTH_TYPES: Final = (NONE, CHAP, "kerberos", "srp")
FAMILIES: Final = {"unspec": socket.AF_UNSPEC, "4": socket.AF_INET}  # whatever else is set means IPv6
SECONDS: Final = 30.0  # for a command, and for a target to come back
LOGIN_SECONDS: Final = 5.0  # for a login, as in the original
MAX_SECONDS: Final = 86400.0
TRACES: Final = ("net", "iscsi", "scsi")
LOGGER: Final = "iscsid.compat.initiator"


class SettingsError(IscsidError):
    """A variable makes no sense, or a user has no secret."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to connect with. ``options`` go to ``iscsid.initiator.connect`` and ``discover``."""

    hostname: str
    port: int
    family: int
    instance: int | None  # which of the targets that are discovered; None: it was not said
    options: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Settings({self.hostname!r}, {self.port})"


def read(variables: Variables) -> Settings:
    """Look at the variables. Raises SettingsError."""
    values = _Values(variables)
    digest = values["digest type"].lower()
    if digest not in DIGESTS:
        raise SettingsError(f"digest type `{digest}': there are {', '.join(DIGESTS)}")
    header, data = DIGESTS[digest]
    seconds = _seconds(values["timeout"])
    options: dict[str, Any] = {
        "credentials": _credentials(values),
        "timeout": seconds,
        "recovery_timeout": seconds,
        "login_timeout": min(seconds, LOGIN_SECONDS),
    }
    options.update({name: True for name, wanted in (("header_digest", header), ("data_digest", data)) if wanted})
    if name := values["initiator name"]:
        options["initiator_name"] = name
    return Settings(
        hostname=values["target hostname"],
        port=_number("target port", values["target port"], 1, 65535),
        family=FAMILIES.get(values["address family"], socket.AF_INET6),
        instance=_number("target instance", text, 0, 1 << 20) if (text := values["target instance"]) else None,
        options=options,
    )


class _Values:
    """The variables, with defaults also where set_defaults was not called."""

    def __init__(self, variables: Variables) -> None:
        self._variables = variables

    def __getitem__(self, name: str) -> str:
        value = self._variables.getvar(name)
        return DEFAULTS.get(name, "") if value is None else value


def _number(name: str, text: str, least: int, most: int) -> int:
    text = text.strip()
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or not least <= int(text) <= most:
        raise SettingsError(f"{name} `{text}': it is a number from {least} to {most}")
    return int(text)


def _seconds(text: str) -> float:
    if not text:
        return SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.1 <= seconds <= MAX_SECONDS:
        raise SettingsError(f"timeout `{text}': seconds, 0.1 to {MAX_SECONDS:g}")
    return seconds


def _credentials(values: _Values) -> Credentials | None:
    """Who we are, if the target is to be told: a user alone implies CHAP."""
    kind, user, mutual = values["auth type"].lower(), values["user"], values["mutual auth"].lower()
    if kind not in AUTH_TYPES:
        raise SettingsError(f"auth type `{kind}': there are {', '.join(AUTH_TYPES)}")
    if kind == NONE:
        if mutual != NONE:
            raise SettingsError("mutual auth needs an auth type")
        return None
    if not user:
        raise SettingsError("user must be specified with -u if using CHAP authentication")
    path = values["auths file"] or auths.PATH
    try:
        found = auths.load(path)
    except (OSError, ValueError) as error:
        raise SettingsError(f"can't open `{path}' `r' ({getattr(error, 'strerror', None) or error})") from error
    for message in found.messages:
        print(message.at(path), file=sys.stderr, flush=True)
    secret = _secret(found, user, path)
    if mutual == NONE:
        return Credentials(user, secret)
    if mutual not in AUTH_TYPES:
        raise SettingsError(f"mutual auth `{mutual}': there are {', '.join(AUTH_TYPES)}")
    target = values["target user"]
    if not target:
        raise SettingsError("mutual auth needs the variable `target user': whose secret the target has to know")
    return Credentials(user, secret, target, _secret(found, target, path))


def _secret(found: auths.Auths, user: str, path: str) -> bytes:
    secret = found.secret(user)
    if secret is None:
        raise SettingsError(
            f"No matching user configuration entry for `{user}' was found\nPlease add an entry to `{path}'"
        )
    return secret.encode("utf-8", "surrogateescape")


# -- connections -------------------------------------------------------------------------------------------------------


def _resolve(settings: Settings, host: str, port: int) -> Portal:
    """The address of a host in the family that was asked for. Raises ConnectionFailed where it has none."""
    if settings.family == socket.AF_UNSPEC:
        return Portal(host, port)
    try:
        found = socket.getaddrinfo(host, port, settings.family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConnectionFailed(f"{host}: {error.strerror or error}") from error
    return Portal(str(found[0][4][0]), port)


def find_targets(settings: Settings) -> list[TargetRecord]:
    """Ask the host which targets it has. Raises InitiatorError."""
    portal = _resolve(settings, settings.hostname, settings.port)
    trace("net", "discovery at %s", portal)
    # Digests are for what is stored: tgt has none in a discovery session, whatever its targets have.
    options = {name: value for name, value in settings.options.items() if not name.endswith("_digest")}
    records = discover(str(portal), **options)
    for record in records:
        trace("iscsi", "target %s at %s", record.name, " ".join(map(str, record.portals)))
    return records


def log_in(settings: Settings, name: str, portals: Sequence[TargetPortal]) -> tuple[Client, TargetPortal]:
    """Log in to a target by the first of its portals that can be reached; return the session and that portal.

    Raises InitiatorError: the last reason, or the target's refusal, which no other portal would change.
    """
    if not portals:
        raise InitiatorError(f"{name} has no address")
    reason: InitiatorError | None = None
    for portal in portals:
        try:
            where = _resolve(settings, portal.host, portal.port)
            trace("net", "login to %s at %s", name, where)
            client = connect(f"iscsi://{where}/{name}", **settings.options)
        except LoginRefused:
            raise
        except InitiatorError as error:
            trace("net", "%s at %s: %s", name, portal, error)
            reason = error
        else:
            trace("iscsi", "logged in to %s", name)
            return client, replace(portal, host=where.host)
    assert reason is not None
    raise reason


# -- what is told when asked to ----------------------------------------------------------------------------------------


def trace(what: str, message: str, *args: object) -> None:
    """A line for who has set ``debug`` to ``what``, or ``all``."""
    logging.getLogger(f"{LOGGER}.{what}").debug(message, *args)


def debug(what: str) -> None:
    """Have ``net``, ``iscsi``, ``scsi`` or ``all`` told on stdout; other words mean nothing. Once on it stays on."""
    chosen = TRACES if what == "all" else tuple(name for name in TRACES if name == what)
    root = logging.getLogger(LOGGER)
    if chosen and not root.handlers:
        handler = _Stdout()
        handler.setFormatter(logging.Formatter("pid %(process)d: %(message)s"))
        root.addHandler(handler)
        root.propagate = False
    for name in chosen:
        logging.getLogger(f"{LOGGER}.{name}").setLevel(logging.DEBUG)


class _Stdout(logging.Handler):
    """Whatever stdout is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)
