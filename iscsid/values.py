"""What a key of the configuration may hold: one function for each kind of value, which answers what the specs hold.

Each raises ValueError with what is wrong, in words that fit behind the name of the key.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from typing import Any

from iscsid.plugin.info import near, parse_size
from iscsid.specs import PortalSpec
from iscsid.text.names import normalize

DEFAULT_PORT = 3260
MAX_RUNTIME_DIR = 94  # bytes: the control socket in it has an address of at most 107 (unix(7))

Read = Callable[[Any], Any]  # a value of TOML -> the value of the spec; ValueError says what is wrong


def kind_of(value: Any) -> str:
    """What TOML calls a value."""
    for types, name in _KINDS:
        if isinstance(value, types):
            return name
    return "a date or time"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "a boolean"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "a string"),
    (list, "an array"),
    (dict, "a table"),
)


def _expect(value: Any, kind: type | tuple[type, ...], name: str) -> None:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"must be {name}, not {kind_of(value)}")


def _string(value: Any) -> str:
    _expect(value, str, "a string")
    return str(value)


def boolean(value: Any) -> bool:
    """``true`` or ``false``."""
    _expect(value, bool, "true or false")
    return bool(value)


def integer(minimum: int | None = None, maximum: int | None = None) -> Read:
    """A whole number within both bounds."""

    def read(value: Any) -> int:
        _expect(value, int, "a whole number")
        _check_bounds(value, minimum, maximum)
        return int(value)

    return read


def seconds(minimum: float, maximum: float) -> Read:
    """A duration in seconds, whole or not."""

    def read(value: Any) -> float:
        _expect(value, (int, float), "a number of seconds")
        _check_bounds(value, minimum, maximum)
        return float(value)

    return read


def _check_bounds(value: float, minimum: float | None, maximum: float | None) -> None:
    if (minimum is None or value >= minimum) and (maximum is None or value <= maximum):  # false for nan
        return
    if minimum is not None and maximum is not None:
        raise ValueError(f"must be from {minimum:,} to {maximum:,}, not {value:,}")
    bound = f"at least {minimum:,}" if minimum is not None else f"at most {maximum:,}"
    raise ValueError(f"must be {bound}, not {value:,}")


def text(maximum: int, *, printable_ascii: bool = False) -> Read:
    """A string of at most ``maximum`` bytes of UTF-8; ``printable_ascii`` for what INQUIRY shows (SPC-4 4.3.1)."""

    def read(value: Any) -> str:
        _expect(value, str, "a string")
        if (length := len(value.encode())) > maximum:
            raise ValueError(f"has at most {maximum} bytes, this one has {length}")
        if printable_ascii and not all(" " <= char <= "~" for char in value):
            raise ValueError("may hold printable ASCII only")
        if not value.isprintable():
            raise ValueError("may not hold control characters")
        return str(value)

    return read


def folder(value: Any) -> str:
    """The absolute path of a folder; ``~`` at its start is the home of the user who runs the server."""
    path = os.path.expanduser(_string(value))
    if not os.path.isabs(path) or "\0" in path:
        raise ValueError(f"must be an absolute path, not {value!r}")
    return os.path.normpath(path)


def runtime_folder(value: Any) -> str:
    """As ``folder``, and short."""
    path = folder(value)
    if len(path.encode()) > MAX_RUNTIME_DIR:
        raise ValueError(f"has at most {MAX_RUNTIME_DIR} bytes: a longer path leaves no room for the socket in it")
    return path


def choice(*choices: str) -> Read:
    """One string out of a closed list."""

    def read(value: Any) -> str:
        name = _string(value)
        if name not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {name!r}{near(name, choices)}")
        return name

    return read


def array(read_item: Read, *, empty: str = "") -> Read:
    """An array whose items are all read by ``read_item``; none may stand there twice.

    ``empty``: why it may not be empty, where it may not.
    """

    def read(value: Any) -> tuple[Any, ...]:
        _expect(value, list, "an array")
        if empty and not value:
            raise ValueError(empty)
        items: list[Any] = []
        for index, item in enumerate(value):
            try:
                result = read_item(item)
            except ValueError as error:
                raise ValueError(f"[{index}] {error}") from None
            if result in items:
                raise ValueError(f"[{index}] says {result} once more")
            items.append(result)
        return tuple(items)

    return read


def size(value: Any) -> int:
    """Bytes, or a string with a unit (see ``plugin.info.parse_size``)."""
    if isinstance(value, str):
        value = parse_size(value)
    _expect(value, int, 'bytes, or a string with a unit, as in "10 GiB"')
    return int(value)


def workers(value: Any) -> int:
    """A number of worker processes; ``"auto"`` is 0, one per core."""
    if value == "auto":
        return 0
    if isinstance(value, str):
        raise ValueError(f'must be "auto" or a number, not {value!r}')
    return int(integer(1, 1024)(value))


def block_size(value: Any) -> int:
    """The length of a logical block in bytes; 0 takes the device's own."""
    length = int(size(value))
    if length and not (512 <= length <= 65536 and length & (length - 1) == 0):
        raise ValueError(f"must be 0 or a power of two from 512 to 65,536, not {length:,}")
    return length


def iscsi_name(value: Any) -> str:
    """An iqn., eui. or naa. name, normalised."""
    return normalize(_string(value))


def initiator_pattern(value: Any) -> str:
    """The name of an initiator, in which ``*``, ``?`` and ``[...]`` stand for others as in a shell."""
    pattern = str(text(255)(value)).lower()
    if not pattern:
        raise ValueError("cannot be empty")
    return pattern if any(char in pattern for char in "*?[") else normalize(pattern)


def network(value: Any) -> str:
    """An address, or a network as in "10.0.0.0/8"; bits behind the mask are let pass."""
    try:
        return str(ipaddress.ip_network(_string(value), strict=False))
    except ValueError:
        raise ValueError(f'must be as in "10.0.0.0/8", "192.0.2.7" or "2001:db8::/32", not {value!r}') from None


_HOST_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


def portal(value: Any) -> PortalSpec:
    """``host``, ``host:port`` or ``[IPv6]:port``; port 0 takes any that is free."""
    _expect(value, str, "a string")
    host, port = _split_portal(value)
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"the port of {value!r} must be a number from 0 to 65,535")
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        labels = host.removesuffix(".").split(".")
        if not all(_HOST_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit() or len(host) > 253:
            raise ValueError(f'{value!r} must be as in "192.0.2.1:3260", "[2001:db8::1]:3260" or "host:3260"') from None
    return PortalSpec(host, int(port))


def _split_portal(value: str) -> tuple[str, str]:
    if value.startswith("["):
        host, bracket, rest = value[1:].partition("]")
        if bracket and ":" in host and (not rest or rest.startswith(":")):
            return host, rest[1:] if rest else str(DEFAULT_PORT)
    elif value.count(":") > 1:  # an IPv6 address without brackets has no port
        return value, str(DEFAULT_PORT)
    else:
        host, colon, port = value.partition(":")
        return host, port if colon else str(DEFAULT_PORT)
    return "", "0"  # no host name: the caller refuses it
