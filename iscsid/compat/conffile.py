"""How targets(5) and auths are written: lines of fields, comments, continuations and backslashes.

A line whose first character that is no blank is ``#`` is a comment. A backslash in front of the end of a line joins the
next one to it; a backslash in front of a separator makes it part of the field; any other backslash is itself. What the
original did by accident is not kept: there, a continuation that began with a blank had the blank glued to its field.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_FILE: Final = 4 << 20  # bytes; thousands of targets take a few hundred KiB
MAX_LINE: Final = 64 << 10  # characters of one line with its continuations
BLANKS: Final = " \t"
COMMENT: Final = "#"


@dataclass(frozen=True, slots=True)
class Line:
    """The fields of one line, and where it began."""

    number: int
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be told of a line. ``skipped``: nothing of the line counts."""

    number: int
    text: str
    skipped: bool = True

    def at(self, path: str) -> str:
        """As the original printed it."""
        return f"{path}:{self.number}: {self.text}"


def read(path: str | Path) -> str:
    """The text of a file. Raises OSError, and ValueError for one that is too long or no text."""
    with open(path, "rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"longer than {MAX_FILE} bytes")
    if b"\0" in data:
        raise ValueError("not a text file")
    return data.decode("utf-8", "surrogateescape")


def lines(text: str, separators: str = BLANKS) -> Iterator[Line | Message]:
    """Every line that says something, with its fields; a Message in place of one that is too long.

    Runs of separators count as one, and those in front of the first field for nothing.
    """
    for number, raw in _joined(text):
        body = raw.lstrip(BLANKS)
        if not body or body.startswith(COMMENT):
            continue
        if len(body) > MAX_LINE:
            yield Message(number, f"Error: a line of more than {MAX_LINE} characters")
            continue
        fields = tuple(_fields(body, separators))
        if fields:
            yield Line(number, fields)


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations, and the number of the first. A comment has none."""
    parts: list[str] = []
    first = 1
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not parts:
            first = number
        comment = not parts and line.lstrip(BLANKS).startswith(COMMENT)
        if line.endswith("\\") and not comment:
            parts.append(line[:-1])
            continue
        yield first, "".join([*parts, line])
        parts.clear()
    if parts:
        yield first, "".join(parts)


def _fields(line: str, separators: str) -> Iterator[str]:
    field: list[str] = []
    begun = False
    position = 0
    while position < len(line):
        char = line[position]
        position += 1
        if char == "\\" and position < len(line):
            following = line[position]
            position += 1
            field.append(following if following in separators else char + following)
            begun = True
        elif char in separators:
            if begun:
                yield "".join(field)
            field.clear()
            begun = False
        else:
            field.append(char)
            begun = True
    if begun:
        yield "".join(field)
