"""What the checks say with: the words are for the author of a back end."""

from __future__ import annotations

import unittest

import pytest

from iscsid.contract.expect import NotApplicable, Violation, holds, needed, refused, same
from iscsid.errors import BlockError, Fault


def test_what_holds_says_nothing() -> None:
    holds(True, "never said")
    same(memoryview(b"abc"), b"abc", "never said")
    needed(1, "never said")


def test_first_byte_that_differs_is_told() -> None:
    with pytest.raises(Violation, match=r"^a read: byte 2 of 4 is 0xa5, not 0x00$"):
        same(b"\0\0\xa5\xa5", bytes(4), "a read")
    with pytest.raises(Violation, match="3 bytes instead of 4"):
        same(bytes(3), bytes(4), "a read")


def test_refusal_has_to_be_the_right_one() -> None:
    def busy() -> None:
        raise BlockError(Fault.BUSY)

    refused(Fault.BUSY, "a call", busy)
    with pytest.raises(Violation, match=r"a call: refused with BUSY .*, not with INVALID"):
        refused(Fault.INVALID, "a call", busy)
    with pytest.raises(Violation, match="not refused; BUSY was expected"):
        refused(Fault.BUSY, "a call", len, b"")


def test_check_that_does_not_apply_is_a_skip_for_test_runners() -> None:
    with pytest.raises(unittest.SkipTest, match="it lends no memory"):
        needed(False, "it lends no memory")
    assert not issubclass(NotApplicable, Violation)
