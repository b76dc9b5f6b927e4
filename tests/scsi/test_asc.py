"""Every sense code of ours has words, and no sense code at all is without an answer."""

from __future__ import annotations

import pytest

from iscsid.scsi.asc import ADDITIONAL_SENSE, describe, sense_key_name
from iscsid.scsi.sense import REASONS, Reason, Sense


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_is_described_by_its_t10_name(reason: Reason) -> None:
    sense = REASONS[reason]
    assert (sense.asc, sense.ascq) in ADDITIONAL_SENSE
    assert describe(sense).endswith(f"({sense.key:X}/{sense.asc:02X}/{sense.ascq:02X})")


@pytest.mark.parametrize(
    ("sense", "text"),
    [
        (Sense(5, 0x24, 0), "ILLEGAL REQUEST: INVALID FIELD IN CDB (5/24/00)"),
        (Sense(6, 0x29, 7), "UNIT ATTENTION: I_T NEXUS LOSS OCCURRED (6/29/07)"),
        (Sense(0xE, 0x1D, 0), "MISCOMPARE: MISCOMPARE DURING VERIFY OPERATION (E/1D/00)"),
        (Sense(4, 0x40, 0x81), "HARDWARE ERROR: DIAGNOSTIC FAILURE ON COMPONENT 81h (4/40/81)"),
        (Sense(5, 0x24, 0x90), "ILLEGAL REQUEST: VENDOR SPECIFIC (5/24/90)"),
        (Sense(9, 0x80, 0x01), "VENDOR SPECIFIC: VENDOR SPECIFIC (9/80/01)"),
        (Sense(3, 0x7F, 0x01), "MEDIUM ERROR (3/7F/01)"),
    ],
)
def test_sense_in_words(sense: Sense, text: str) -> None:
    assert describe(sense) == text


@pytest.mark.parametrize("key", range(16))
def test_every_sense_key_has_a_name(key: int) -> None:
    assert sense_key_name(key)


def test_a_reserved_sense_key_is_named_by_its_number() -> None:
    assert sense_key_name(0xC) == "SENSE KEY Ch"


@pytest.mark.parametrize("code", sorted(ADDITIONAL_SENSE))
def test_codes_and_texts_are_well_formed(code: tuple[int, int]) -> None:
    assert all(0 <= number < 0x80 for number in code)
    assert ADDITIONAL_SENSE[code] == ADDITIONAL_SENSE[code].strip().upper()
