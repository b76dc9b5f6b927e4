"""The authentication source ``chap``: accounts from the configuration, their secrets in it or in files.

A secret's file is looked at for every login, so that a secret can be changed without a reload. A file that cannot be
used then shuts its account out, and the log says why; at the start it is a problem of the configuration.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from iscsid.plugin import CHAP_ALGORITHMS, AuthInfo, CredentialSource, hookimpl

log = logging.getLogger(__name__)

MIN_SECRET = 12  # bytes: the 96 bits of RFC 7143 section 9.2.1
MAX_SECRET = 255
MAX_USER = 255  # bytes of CHAP_N
MAX_ACCOUNTS = 4096
_KEYS = ("chap", "mutual", "algorithms", "ignore_case", "allow_short_secrets")
_ACCOUNT_KEYS = ("user", "secret", "secret_file")


@dataclass(slots=True)
class _Account:
    user: str
    secret: bytes | None = field(repr=False)
    path: str = ""
    shortest: int = MIN_SECRET
    seen: tuple[int, ...] = ()  # of the file, when ``secret`` was read from it

    def refresh(self) -> None:
        """Look at the file, and read it when it is not the one that was read."""
        if not self.path:
            return
        try:
            facts = os.stat(self.path)
            seen = (facts.st_dev, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_size)
            if seen != self.seen:
                self.secret = read_secret(self.path, self.shortest)
                self.seen = seen
        except (OSError, ValueError) as error:
            self.secret, self.seen = None, ()
            log.error("no secret for user %s: %s", self.user, _words(error))


class ChapSource(CredentialSource):
    """The accounts of one ``[target.auth]`` or ``[discovery.auth]``."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.algorithms = tuple(options.get("algorithms", CHAP_ALGORITHMS))
        self._fold = bool(options.get("ignore_case"))
        shortest = 1 if options.get("allow_short_secrets") else MIN_SECRET
        self._accounts: dict[str, _Account] = {}
        for table in options["chap"]:
            self._accounts.setdefault(self._key(table["user"]), _account(table, shortest))
        mutual = options.get("mutual")
        self._own = _account(mutual, shortest) if mutual else None

    def _key(self, user: str) -> str:
        return user.casefold() if self._fold else user

    def secret(self, user: str) -> bytes | None:
        for account in self._accounts.values():  # all of them: who is asked for must not show in the time it takes
            account.refresh()
        found = self._accounts.get(self._key(user))
        return None if found is None else found.secret

    def own(self) -> tuple[str, bytes] | None:
        if self._own is None:
            return None
        self._own.refresh()
        return None if self._own.secret is None else (self._own.user, self._own.secret)


@hookimpl
def iscsid_auth_info() -> AuthInfo:
    return AuthInfo("chap", "CHAP accounts in the configuration, their secrets in it or in files")


@hookimpl
def iscsid_validate(options: Mapping[str, Any]) -> list[str]:
    return list(_problems(options))


@hookimpl
def iscsid_authenticate(options: Mapping[str, Any]) -> ChapSource:
    return ChapSource(options)


def read_secret(path: str, shortest: int) -> bytes:
    """Return what is in the file without the end of its line.

    Raises OSError, or ValueError for a file that others can read, or whose secret is too short or too long.
    """
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if not stat.S_ISREG(mode):
            raise ValueError(f"{path} is not a file")
        if mode & stat.S_IROTH:
            raise ValueError(f"{path} can be read by everybody (chmod o-r it)")
        content = file.read(MAX_SECRET + 3)
    secret = content.removesuffix(b"\n").removesuffix(b"\r")
    _check_length(secret, shortest)
    return secret


def _check_length(secret: bytes, shortest: int) -> None:
    if len(secret) < shortest:
        hint = "" if shortest == 1 else f": RFC 7143 asks for {MIN_SECRET} (allow_short_secrets = true takes it)"
        raise ValueError(f"the secret has {len(secret)} bytes{hint}")
    if len(secret) > MAX_SECRET:
        raise ValueError(f"the secret has more than {MAX_SECRET} bytes")


def _account(table: Mapping[str, Any], shortest: int) -> _Account:
    secret = table["secret"].encode() if "secret" in table else None
    return _Account(table["user"], secret, table.get("secret_file", ""), shortest)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _problems(options: Mapping[str, Any]) -> Iterator[str]:
    """Everything that is wrong, each as "key: reason"; no reason holds a secret."""
    for key in options:
        if key not in _KEYS:
            yield f"{key}: unknown key (there are {', '.join(_KEYS)})"
    for key in ("ignore_case", "allow_short_secrets"):
        if not isinstance(options.get(key, False), bool):
            yield f"{key}: must be true or false"
    yield from _algorithm_problems(options.get("algorithms", list(CHAP_ALGORITHMS)))
    shortest = 1 if options.get("allow_short_secrets") is True else MIN_SECRET
    tables = options.get("chap")
    if not isinstance(tables, list) or not 0 < len(tables) <= MAX_ACCOUNTS:
        yield 'chap: must be an array of accounts, as in [{ user = "...", secret_file = "..." }]'
        return
    fold = options.get("ignore_case") is True
    users: set[str] = set()
    secrets: dict[bytes, str] = {}
    for index, table in enumerate(tables):
        where = f"chap[{index}]"
        secret, problem = _read_account(table, shortest)
        if problem:
            yield f"{where}: {problem}"
            continue
        user = table["user"].casefold() if fold else table["user"]
        if user in users:
            yield f"{where}: the user {table['user']} is there twice"
        users.add(user)
        secrets.setdefault(secret, where)
    if "mutual" in options:
        secret, problem = _read_account(options["mutual"], shortest)
        if not problem and secret in secrets:
            problem = f"has the secret of {secrets[secret]}: the two directions must not share one (RFC 7143 9.2.1)"
        if problem:
            yield f"mutual: {problem}"


def _algorithm_problems(value: Any) -> Iterator[str]:
    if not isinstance(value, list | tuple) or not value or not all(name in CHAP_ALGORITHMS for name in value):
        yield f"algorithms: must be an array out of {', '.join(CHAP_ALGORITHMS)}"


def _read_account(table: Any, shortest: int) -> tuple[bytes, str]:
    """Return the secret of an account, and what is wrong with the account, "" for nothing."""
    if not isinstance(table, Mapping):
        return b"", 'must be a table, as in { user = "...", secret_file = "..." }'
    if strangers := [key for key in table if key not in _ACCOUNT_KEYS]:
        return b"", f"unknown key {strangers[0]} (there are {', '.join(_ACCOUNT_KEYS)})"
    if wrong := [key for key in table if not isinstance(table[key], str) or not table[key]]:
        return b"", f"{wrong[0]} must be a string that is not empty"
    user = table.get("user", "")
    if not user or len(user.encode()) > MAX_USER or not user.isprintable():
        return b"", f"needs a user, of at most {MAX_USER} printable bytes"
    if ("secret" in table) == ("secret_file" in table):
        return b"", "needs either a secret or a secret_file"
    try:
        if "secret_file" in table:
            if not os.path.isabs(table["secret_file"]):
                return b"", "secret_file must be an absolute path"
            return read_secret(table["secret_file"], shortest), ""
        secret = table["secret"].encode()
        _check_length(secret, shortest)
    except (OSError, ValueError) as error:
        return b"", _words(error)
    return secret, ""
