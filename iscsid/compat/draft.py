"""What the importers of others' configurations have in common: a draft of ours, and notes of what is not in it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import tomli_w

from iscsid.compat.conffile import Message
from iscsid.compat.convert import is_device, medium_size

MIN_SECRET: Final = 12  # bytes, from which on a secret needs no permission (RFC 7143 section 9.2.1)

Table = dict[str, Any]

_SIZE: Final = re.compile(r"(\d{1,18})\s*([kmgtp]?)b?", re.ASCII | re.IGNORECASE)
_FACTORS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


@dataclass(slots=True)
class Draft:
    """Tables of a configuration, and what the reader has to know, by lines of the file it comes from."""

    server: Table = field(default_factory=dict)
    discovery: Table | None = None
    targets: list[Table] = field(default_factory=list)
    notes: list[Message] = field(default_factory=list)

    def note(self, line: int, text: str) -> None:
        self.notes.append(Message(line, text))

    def document(self) -> Table:
        tables: Table = {"server": self.server} if self.server else {}
        if self.discovery is not None:
            tables["discovery"] = {"auth": self.discovery}
        return {**tables, "target": self.targets}

    def toml(self, source: str) -> str:
        """Return the text of the configuration, the notes as comments in front of it."""
        lines = [f"# Made from {source} by iscsid import-targets."]
        if self.notes:
            lines += ["#", "# What is not in it, or is not quite the same:"]
            for note in self.notes:
                first, *more = note.at(source).splitlines()
                lines += [f"# - {_plain(first)}", *(f"#   {_plain(line)}" for line in more)]
        return "\n".join(lines) + "\n\n" + tomli_w.dumps(self.document())


def _plain(text: str) -> str:
    """Nothing that a comment of TOML must not hold."""
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in text)


def disk(draft: Draft, line: int, path: str, size: int | None = None) -> Table:
    """Return the back end for a path that somebody else's server has served; ``size``: what it may be made to have."""
    if is_device(path):
        table: Table = {"backend": "block", "path": path}
    else:
        table = {"backend": "file", "path": path}
        there = medium_size(path)
        if size and (there is None or there <= size):
            table["size"] = size
        elif size:
            draft.note(line, f"{path} has {there} bytes, more than {size}: all of them are served")
    if medium_size(path) is None and "size" not in table:
        draft.note(line, f"{path} is not there, so `iscsid check` will refuse this until it is")
    return table


def auth(draft: Draft, line: int, accounts: Iterable[tuple[str, str]], mutual: tuple[str, str] | None) -> Table | None:
    """Return ``[target.auth]`` for users and secrets; None when there are none. The first of two accounts counts."""
    secrets: dict[str, str] = {}
    for user, secret in accounts:
        if secrets.setdefault(user, secret) != secret:
            draft.note(line, f"the user {user} has two secrets; the first counts")
    if not secrets:
        return None
    table: Table = {"chap": [{"user": user, "secret": secret} for user, secret in secrets.items()]}
    if mutual and mutual[1] in secrets.values():
        draft.note(
            line, f"{mutual[0]}: the target's secret is an initiator's too, which RFC 7143 9.2.1 forbids: left out"
        )
    elif mutual:
        table["mutual"] = {"user": mutual[0], "secret": mutual[1]}
    every = [*secrets.values(), *([mutual[1]] if mutual else [])]
    if any(len(secret.encode()) < MIN_SECRET for secret in every):
        draft.note(line, f"a secret has fewer than {MIN_SECRET} bytes: allow_short_secrets is set")
        table["allow_short_secrets"] = True
    return table


def portal(host: str, port: int = 3260) -> str:
    """Return an address as ``portals`` has it."""
    host = host.strip("[]")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def number_of_bytes(text: str) -> int | None:
    """Return the bytes of "512", "4G", "10 MB", all of them binary; None for what is no size."""
    match = _SIZE.fullmatch(text.strip())
    return int(match[1]) * _FACTORS[match[2].lower()] if match else None
