"""What the checks say with: what has to hold, and the words for what does not.

Not ``assert``: the words are for the author of a back end, who sees neither our source nor pytest's explanation.
"""

from __future__ import annotations

import unittest
from collections.abc import Callable
from typing import Any

from iscsid.block.guard import Guarded
from iscsid.errors import BlockError, Fault


class Violation(AssertionError):
    """The device breaks the contract; the text says how."""


class NotApplicable(unittest.SkipTest):
    """The device does not have what the check is about. pytest and unittest take it as a skip."""


def holds(truth: object, words: str) -> None:
    """Raise Violation with ``words`` unless ``truth``."""
    if not truth:
        raise Violation(words)


def same(answer: bytes | bytearray | memoryview, expected: bytes, what: str) -> None:
    """Raise Violation, with the first byte that differs, unless the bytes are the same."""
    answer = bytes(answer)
    if answer == expected:
        return
    if len(answer) != len(expected):
        raise Violation(f"{what}: {len(answer)} bytes instead of {len(expected)}")
    at = next(index for index, (one, two) in enumerate(zip(answer, expected, strict=True)) if one != two)
    raise Violation(f"{what}: byte {at} of {len(answer)} is {answer[at]:#04x}, not {expected[at]:#04x}")


def refused(fault: Fault, what: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Raise Violation unless the call raises BlockError with ``fault``."""
    try:
        call(*arguments, **named)
    except BlockError as error:
        holds(error.fault is fault, f"{what}: refused with {error.fault.name} ({error}), not with {fault.name}")
    else:
        raise Violation(f"{what}: not refused; {fault.name} was expected")


def needed(truth: object, why_not: str) -> None:
    """Raise NotApplicable unless ``truth``."""
    if not truth:
        raise NotApplicable(why_not)


def read(guard: Guarded, offset: int, length: int) -> bytes:
    """Read into a buffer that is not zeros, so that what was left unfilled is seen."""
    buffer = bytearray(b"\xa5" * length)
    guard.read_into(memoryview(buffer), offset)
    return bytes(buffer)


def write(guard: Guarded, data: bytes, offset: int, *, fua: bool = False) -> None:
    guard.write(memoryview(data), offset, fua=fua)
