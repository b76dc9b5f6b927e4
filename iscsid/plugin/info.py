"""How a back end or a layer describes itself, and the check of the options that a configuration gives it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from iscsid.block.device import Sharing
from iscsid.plugin.members import TYPE, members

API_VERSION = 1

_UNITS: dict[str, int] = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGTPE", start=1)
    for suffix, base in (("", 1024), ("IB", 1024), ("B", 1000))
}
_SIZE = re.compile(r"\s*(\d{1,20})(?:\.(\d{1,9}))?\s*([A-Za-z]*)\s*")
#: The largest size and offset that the file calls of the kernel take.
MAX_SIZE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a back end or a layer.

    ``type`` is "str", "path" (a string without NUL, not empty), "int", "bool", "size" (bytes, or a string with a unit
    such as "10 GiB") or "members" (other back ends, as a tuple of ``Member``). ``minimum`` and ``maximum`` are for
    numbers, ``choices`` for all but members. ``medium``: the path, or the name, of where the data is, or of what is
    kept beside it; two logical units that name the same are refused (``plugin.claims``).
    """

    name: str
    type: str
    required: bool = False
    default: Any = None
    doc: str = ""
    minimum: int | None = None
    maximum: int | None = None
    choices: tuple[Any, ...] = ()
    medium: bool = False

    def __post_init__(self) -> None:
        if self.type not in _CONVERTERS:
            raise ValueError(f"option {self.name}: type {self.type!r} is not one of {', '.join(_CONVERTERS)}")


@dataclass(frozen=True, slots=True)
class Verb:
    """Something that can be done with a medium of a back end, by ``iscsid image NAME``: see ``iscsid_image``.

    Or with what a layer keeps, by ``iscsid layer NAME``: see ``iscsid_layer_verb``. Those take no options of their own.
    """

    name: str
    doc: str
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """A back end: the name that ``backend = ...`` gives, what it is, and the options it takes.

    ``options`` None takes any option unchecked; ``iscsid_open`` then has to deal with them. ``degrades``: it can do
    without a member that cannot be prepared. ``verbs`` are what ``iscsid_image`` can be asked. ``handles``: how often a
    worker opens one medium at most, if its devices are ``Threading.PER_HANDLE``.
    """

    name: str
    doc: str
    options: tuple[Option, ...] | None = None
    sharing: Sharing = Sharing.SHARED
    api: int = API_VERSION
    degrades: bool = False
    verbs: tuple[Verb, ...] = ()
    handles: int = 8


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """A layer: the name that ``layer = ...`` gives, what it does, and its options (as in BackendInfo).

    ``sharing`` is how many processes may have this layer over one medium: one that keeps something of the data to
    itself (a write-back cache, an overlay in memory) allows one. ``verbs`` are what ``iscsid_layer_verb`` can be asked.
    ``preserves``: it never writes to the device below, which is then opened read-only; ``part``: it uses only a part of
    it, so that others may use other parts. ``keeps``: it has something, over restarts or in memory, that belongs to the
    very data below it (an overlay, checksums), and is wrong where these change behind its back, or the size does.
    """

    name: str
    doc: str
    options: tuple[Option, ...] | None = None
    api: int = API_VERSION
    sharing: Sharing = Sharing.SHARED
    verbs: tuple[Verb, ...] = ()
    preserves: bool = False
    part: bool = False
    keeps: bool = False


def parse_size(text: str) -> int:
    """Bytes of "512", "10 GiB", "1.5T" (a letter alone is binary, as is KiB; KB is 1000). Raises ValueError."""
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[3].upper()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size such as 10 GiB")
    fraction = match[2] or ""
    scale: int = 10 ** len(fraction)
    size, rest = divmod(int(match[1] + fraction) * unit, scale)
    if rest:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return size


def near(name: str, known: Iterable[str]) -> str:
    """`` (did you mean "x"?)`` when a known name is near, else nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f' (did you mean "{found[0]}"?)' if found else ""


def check_options(
    schema: tuple[Option, ...] | None, given: Mapping[str, Any], *, strict: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """The options with defaults filled in and values converted, and what is wrong with them, all of it.

    Keys that the schema does not know are passed on, and are a problem if ``strict``. A converted value converts to
    itself.
    """
    if schema is None:
        return dict(given), []
    known = {option.name: option for option in schema}
    values: dict[str, Any] = dict(given)
    unknown = [name for name in given if name not in known] if strict else []
    problems = [f"{name}: unknown option{near(name, known)}" for name in unknown]
    for option in schema:
        if option.name not in given:
            values[option.name] = option.default
            if option.required:
                problems.append(f"{option.name}: missing ({option.doc})" if option.doc else f"{option.name}: missing")
            continue
        try:
            values[option.name] = _value(option, given[option.name])
        except ValueError as error:
            problems.append(f"{option.name}: {error}")
    return values, problems


def _value(option: Option, given: Any) -> Any:
    if given is None and not option.required:
        return option.default  # as when it is not given: what check_options fills in converts to itself
    value = _CONVERTERS[option.type](given)
    if option.minimum is not None and value < option.minimum:
        raise ValueError(f"{given!r} is below {option.minimum}")
    if option.maximum is not None and value > option.maximum:
        raise ValueError(f"{given!r} is above {option.maximum}")
    if option.choices and value not in option.choices:
        names = ", ".join(map(str, option.choices))
        raise ValueError(f"{given!r} is not one of {names}{near(str(given), map(str, option.choices))}")
    return value


def _string(given: Any) -> str:
    if not isinstance(given, str):
        raise ValueError(f"{given!r} is not a string")
    return given


def _path(given: Any) -> str:
    path = _string(given)
    if not path or "\0" in path:
        raise ValueError(f"{given!r} is not a path")
    return path


def _int(given: Any) -> int:
    if not isinstance(given, int) or isinstance(given, bool):
        raise ValueError(f"{given!r} is not a whole number")
    return given


def _bool(given: Any) -> bool:
    if not isinstance(given, bool):
        raise ValueError(f"{given!r} is neither true nor false")
    return given


def _size(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise ValueError(f"{given!r} is not a size")
    size = parse_size(given) if isinstance(given, str) else given
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"{given!r} is not from 0 to {MAX_SIZE} bytes")
    return size


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "str": _string,
    "path": _path,
    "int": _int,
    "bool": _bool,
    "size": _size,
    TYPE: members,
}
