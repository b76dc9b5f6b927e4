"""Where a disk is, as one string: the URLs of libiscsi, QEMU and iscsi-perf.

    iscsi://[user[%secret]@]host[:port]/target-name/lun[?key=value&…]

The percent sign parts user and secret, as libiscsi has it, so neither is percent-encoded. An IPv6 address stands in
brackets. Keys: ``target_user`` and ``target_password`` (or ``target_secret``) for mutual CHAP, ``header_digest`` and
``data_digest`` (``crc32c``, ``none``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl

from iscsid.errors import InitiatorError
from iscsid.text.names import normalize
from iscsid.wire.lun import MAX_LUN

DEFAULT_PORT: Final = 3260  # assigned by IANA
_PREFIX: Final = "iscsi://"
_PORTAL = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^\[\]:/\s]+))(?::(?P<port>\d{1,5}))?\Z")
_KEYS: Final = frozenset({"target_user", "target_password", "target_secret", "header_digest", "data_digest"})
_DIGESTS: Final = {"crc32c": True, "none": False}


@dataclass(frozen=True, slots=True)
class Portal:
    """An address of a target; ``host`` without brackets."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Credentials:
    """CHAP: who we are, and who the target has to prove to be where ``target_secret`` is given."""

    user: str
    secret: bytes = field(repr=False)
    target_user: str = ""
    target_secret: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class DiskUrl:
    """A URL taken apart. ``target`` "" and ``lun`` None where it ends before them: a portal, for discovery."""

    portal: Portal
    target: str = ""
    lun: int | None = None
    credentials: Credentials | None = None
    header_digest: bool = False
    data_digest: bool = False


def parse_portal(text: str) -> Portal:
    """Return the portal that ``host[:port]`` names; raises InitiatorError with the reason."""
    match = _PORTAL.match(text)
    if match is None:
        raise InitiatorError(f"{text!r} is not host[:port]; an IPv6 address stands in brackets")
    port = int(match["port"] or DEFAULT_PORT)
    if not 0 < port < 65536:
        raise InitiatorError(f"{text!r}: there is no port {port}")
    return Portal(match["v6"] or match["host"], port)


def parse_url(url: str) -> DiskUrl:
    """Take a URL apart; raises InitiatorError, which never shows a secret."""
    if not url.startswith(_PREFIX):
        raise InitiatorError("an iSCSI URL begins with iscsi://")
    rest, _, query = url[len(_PREFIX) :].partition("?")
    account, at, place = rest.rpartition("@")
    options = _options(query)
    parts = place.split("/")
    if len(parts) > 3 or (len(parts) > 1 and not parts[1]):
        raise InitiatorError(f"{place!r} is not host[:port]/target-name/lun")
    return DiskUrl(
        portal=parse_portal(parts[0]),
        target=_target(parts[1]) if len(parts) > 1 else "",
        lun=_lun(parts[2]) if len(parts) > 2 else None,
        credentials=_credentials(account if at else None, options),
        header_digest=_digest(options, "header_digest"),
        data_digest=_digest(options, "data_digest"),
    )


def _options(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True)
    options = dict(pairs)
    if unknown := sorted(options.keys() - _KEYS):
        raise InitiatorError(f"unknown key in the URL: {unknown[0]}; there are {', '.join(sorted(_KEYS))}")
    if len(options) != len(pairs):
        raise InitiatorError("a key comes twice in the URL")
    return options


def _target(text: str) -> str:
    try:
        return normalize(text)
    except ValueError as error:
        raise InitiatorError(f"{text!r} is not a target name: {error}") from error


def _lun(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > MAX_LUN:
        raise InitiatorError(f"{text!r} is not a LUN: 0 .. {MAX_LUN}")
    return int(text)


def _credentials(account: str | None, options: dict[str, str]) -> Credentials | None:
    if account is None:
        if options.keys() & {"target_user", "target_password", "target_secret"}:
            raise InitiatorError("the target can be authenticated only where we are: user%secret@ is missing")
        return None
    user, _, secret = account.partition("%")
    if not user or not secret:
        raise InitiatorError("the URL names a user without a secret: user%secret@")
    target_secret = options.get("target_secret", options.get("target_password", ""))
    return Credentials(user, secret.encode(), options.get("target_user", ""), target_secret.encode())


def _digest(options: dict[str, str], key: str) -> bool:
    text = options.get(key, "none").lower()
    if text not in _DIGESTS:
        raise InitiatorError(f"{key} is crc32c or none")
    return _DIGESTS[text]
