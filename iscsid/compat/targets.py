"""targets(5): extents, devices made of them, and the targets that serve them. Text in, records and messages out.

A bad line is told with its number and skipped, as the original did; what is used by nothing but a line that was
skipped is as good as not there. Three columns, prefixes of the first word (``lun0`` is a target like ``target0``), the
IQN behind ``=``, flags and masks are the original's. What it left undefined is an error here: columns that are
missing, lengths that are no numbers, RAID levels that it could parse and not serve.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from iscsid.compat import netmask
from iscsid.compat.conffile import Line, Message, lines, read
from iscsid.compat.netmask import Netmask

PATH: Final = "/etc/iscsi/targets"
IQN: Final = "iqn.1994-04.org.netbsd.iscsi-target"
READ_ONLY: Final = frozenset(["readonly", "ro", "r"])
RAID0: Final = 0
RAID1: Final = 1
MAX_SIZE: Final = 1 << 63
MAX_DEPTH: Final = 16  # devices within devices
WHOLE: Final = "size"  # in the place of a length: all of what is there

_UNITS: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NUMBER: Final = re.compile(r"(\d+)(.?)", re.ASCII)
_LEVEL: Final = re.compile(r"raid(\d+)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Extent:
    """``length`` bytes of a file or device from ``offset`` on; None: up to its end."""

    name: str
    path: str
    offset: int
    length: int | None


@dataclass(frozen=True, slots=True)
class Device:
    """Extents or devices, one after the other (RAID0) or each the image of the others (RAID1)."""

    name: str
    level: int
    members: tuple[Storage, ...]


Storage: TypeAlias = Extent | Device


@dataclass(frozen=True, slots=True)
class Target:
    """One target with one LUN 0. ``iqn`` is None where the line gives none: see :meth:`full_name`."""

    name: str
    iqn: str | None
    readonly: bool
    storage: Storage
    mask: Netmask
    line: int = 0  # where it stands

    def full_name(self, base: str = IQN) -> str:
        """The iSCSI name: that of the line, or the server's and the word in front."""
        return self.iqn or f"{base}:{self.name}"


@dataclass(slots=True)
class TargetsFile:
    """What a file says. ``extents`` and ``devices`` by name, whether a target has them or not."""

    extents: dict[str, Extent] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)


def load(path: str | Path = PATH) -> TargetsFile:
    """Read a file. Raises OSError, and ValueError for one that is no text."""
    return parse(read(path))


def parse(text: str) -> TargetsFile:
    """Understand the text of a file; what is wrong with it is in ``messages``, in the order of the lines."""
    parser = _Parser()
    for line in lines(text):
        parser.add(line)
    return parser.file


def dump(storage: Storage, depth: int = 1) -> Iterator[str]:
    """The lines that iscsi-target(8) prints of a target's storage when it starts."""
    indent = "\t" * depth
    if isinstance(storage, Extent):
        length = WHOLE if storage.length is None else storage.length
        yield f"{indent}{storage.name}:{storage.path}:{storage.offset}:{length}"
        return
    yield f"{indent}{storage.name}:RAID{storage.level}"
    for member in storage.members:
        yield from dump(member, depth + 1)


class _Refused(Exception):
    """A line that is skipped; the message says why."""


class _Parser:
    """Lines in, one file out."""

    def __init__(self) -> None:
        self.file = TargetsFile()
        self._used: dict[str, str] = {}  # name of an extent or device -> of the device that has it
        self._kinds: tuple[tuple[str, Callable[[Line], None]], ...] = (
            ("extent", self._extent),
            ("device", self._device),
            ("target", self._target),
            ("lun", self._target),
        )

    def add(self, line: Line | Message) -> None:
        """One line; the first word tells by its beginning what it is, and others say nothing."""
        if isinstance(line, Message):
            self.file.messages.append(line)
            return
        for prefix, take in self._kinds:
            if line.fields[0].startswith(prefix):
                try:
                    take(line)
                except _Refused as refused:
                    self._tell(line, str(refused))
                return

    def _tell(self, line: Line, text: str, *, skipped: bool = True) -> None:
        self.file.messages.append(Message(line.number, text, skipped))

    def _extent(self, line: Line) -> None:
        name = line.fields[0]
        if name in self.file.extents:
            raise _Refused(f"Error: attempt to re-define extent `{name}'")
        if len(line.fields) < 4:
            raise _Refused(f"Error: extent `{name}' needs a file, an offset and a length")
        path, offset, length = line.fields[1:4]
        if not (offset.isascii() and offset.isdigit()) or len(offset) > 19:
            raise _Refused(f"Error: extent `{name}' has offset `{offset}', which is no number of bytes")
        self.file.extents[name] = Extent(name, path, int(offset), _length(name, length))

    def _device(self, line: Line) -> None:
        name = line.fields[0]
        if name in self.file.devices:
            raise _Refused(f"Error: attempt to re-define device `{name}'")
        if len(line.fields) < 3:
            raise _Refused(f"Error: device `{name}' needs a RAID level and a member")
        level = _level(name, line.fields[1])
        members = [self._member(name, member) for member in line.fields[2:]]
        if len({member.name for member in members}) < len(members):
            raise _Refused(f"Error: device `{name}' has a member twice")
        if level == RAID1:
            _check_mirror(name, members)
        if max(map(_depth, members)) >= MAX_DEPTH:
            raise _Refused(f"Error: device `{name}' has devices more than {MAX_DEPTH} deep")
        for member in members:
            self._used[member.name] = name
        self.file.devices[name] = Device(name, level, tuple(members))

    def _member(self, device: str, name: str) -> Storage:
        member = self._find(name)
        if member is None:
            raise _Refused(f"Warning: no sub-device/extent `{name}'")
        if name in self._used:
            kind = "extent" if isinstance(member, Extent) else "device"
            raise _Refused(f"Error: {kind} `{name}' has already been used")
        return member

    def _find(self, name: str) -> Storage | None:
        return self.file.extents.get(name) or self.file.devices.get(name)

    def _target(self, line: Line) -> None:
        name, separator, iqn = line.fields[0].partition("=")
        if name in self.file.targets:
            raise _Refused(f"Error: attempt to re-define target `{name}'")
        if separator and not iqn:
            raise _Refused(f"Error: target `{name}' has no name behind its `='")
        columns = line.fields[1:]
        if len(columns) < 2:
            raise _Refused(f"Error: target `{name}' needs flags, an extent or device and a netmask")
        if old := len(columns) == 2:
            columns = ("ro", *columns)
        storage = self._find(columns[1])
        if storage is None:
            raise _Refused(f"Error: no extent or device found for `{name}'")
        try:
            mask = netmask.parse(columns[2])
        except ValueError as error:
            raise _Refused(f"Error: {error}") from None
        if old:
            self._tell(line, 'Warning: old 3 field "targets" entry, assuming read-only target', skipped=False)
        self.file.targets[name] = Target(name, iqn or None, columns[0] in READ_ONLY, storage, mask, line.number)


def _length(name: str, text: str) -> int | None:
    """Digits, and of what follows them the first letter."""
    if text.lower() == WHOLE:
        return None
    match = _NUMBER.match(text)
    if match is None or len(match[1]) > 19:
        raise _Refused(f"Error: extent `{name}' has length `{text}', which is no number of bytes")
    length = int(match[1]) * _UNITS.get(match[2].lower(), 1)
    if not 0 < length < MAX_SIZE:
        raise _Refused(f"Error: extent `{name}' has length `{text}'")
    return length


def _level(name: str, text: str) -> int:
    """A word that is no RAID level is 0, as it always was; a level that nobody can serve is told."""
    match = _LEVEL.match(text)
    level = int(match[1][:9]) if match else RAID0
    if level not in (RAID0, RAID1):
        raise _Refused(f"Error: device `{name}' is RAID{level}; there are RAID0 and RAID1")
    return level


def _depth(storage: Storage) -> int:
    return 0 if isinstance(storage, Extent) else 1 + max(map(_depth, storage.members))


def _check_mirror(name: str, members: list[Storage]) -> None:
    if len(members) < 2:
        raise _Refused(f"Error: device `{name}' is RAID1, but has only {len(members)} sub-devices/extents")
    first = members[0]
    for member in members:
        if isinstance(member, Extent) and isinstance(first, Extent) and member.length != first.length:
            raise _Refused(
                f"Error: extent `{member.name}' has size {member.length or WHOLE}, not {first.length or WHOLE}"
            )
