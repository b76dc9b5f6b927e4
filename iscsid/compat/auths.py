"""The file ``/etc/iscsi/auths``: ``user:type:secret``, one a line, for both sides of CHAP.

Users and types are compared without case, and the first line that fits wins. A secret is taken as it stands, inner and
trailing blanks too. Two things are better than in the original: a file that is missing is an error of the caller and
not the end of the process, and lines that cannot be used are told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from iscsid.compat.conffile import Message, lines, read

PATH: Final = "/etc/iscsi/auths"
CHAP: Final = "chap"
NONE: Final = "none"
_TYPES: Final = (CHAP, NONE)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. ``secret`` is "" where there is none."""

    user: str
    kind: str  # "chap" or "none"
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Auths:
    """A whole file, and what is to be told of it."""

    entries: tuple[Entry, ...] = ()
    messages: tuple[Message, ...] = ()

    def secret(self, user: str) -> str | None:
        """The CHAP secret of ``user``; None when no line gives one."""
        wanted = user.casefold()
        for entry in self.entries:
            if entry.user.casefold() == wanted and entry.kind == CHAP and entry.secret:
                return entry.secret
        return None


def load(path: str | Path = PATH) -> Auths:
    """Read a file. Raises OSError, and ValueError for one that is no text."""
    return parse(read(path))


def parse(text: str) -> Auths:
    """What ``text`` says; a line that cannot be used is in ``messages``, never its secret."""
    entries: list[Entry] = []
    messages: list[Message] = []
    for line in lines(text, ":"):
        if isinstance(line, Message):
            messages.append(line)
            continue
        user, kind = line.fields[0], (line.fields[1].lower() if len(line.fields) > 1 else NONE)
        secret = line.fields[2] if len(line.fields) > 2 else ""
        if kind not in _TYPES:
            messages.append(Message(line.number, f"Warning: `{user}' has type `{kind}'; there are chap and none"))
        elif len(line.fields) > 3:
            # A colon that was meant to be part of the secret: what is left of it would be another secret.
            messages.append(Message(line.number, f"Error: `{user}' has more than 3 fields: write a colon as `\\:'"))
        elif kind == CHAP and not secret:
            messages.append(Message(line.number, f"Error: `{user}' has no secret"))
        else:
            entries.append(Entry(user, kind, secret))
    return Auths(tuple(entries), tuple(messages))
