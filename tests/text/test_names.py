"""A name is either refused with a reason or comes out in the one spelling that goes over the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.text.names import MAX_LENGTH, normalize

GOOD = [
    "iqn.2026-11.org.iscsid:demo",
    "iqn.2001-04.com.example",
    "iqn.2001-04.com.example:storage:diskarrays-sn-a8675309",
    "iqn.1994-04.org.netbsd.iscsi-target:target0",
    "iqn.2001-04.com.3par:0.1-2",
    "iqn.2001-04.localhost:x",
    "iqn.2001-04.com.example:grün",
    "eui.02004567a425678d",
    "naa.52004567ba64678d",
    "naa.62004567ba64678d0123456789abcdef",
    "iqn.2001-04.com.example:" + "a" * (MAX_LENGTH - 24),
]


@pytest.mark.parametrize("name", GOOD)
def test_name_in_normal_form_is_unchanged(name: str) -> None:
    assert normalize(name) == name


@pytest.mark.parametrize(
    ("typed", "normal"),
    [
        ("IQN.2026-11.ORG.Iscsid:Demo", "iqn.2026-11.org.iscsid:demo"),
        ("EUI.02004567A425678D", "eui.02004567a425678d"),
        ("naa.52004567BA64678D", "naa.52004567ba64678d"),
        ("iqn.2001-04.com.example:stra\u00dfe", "iqn.2001-04.com.example:strasse"),  # case folding, table B.2
        ("iqn.2001-04.com.example:a\u00adb", "iqn.2001-04.com.example:ab"),  # soft hyphen, table B.1
        ("iqn.2001-04.com.example:\uff21", "iqn.2001-04.com.example:a"),  # full-width A, NFKC
        ("iqn.2001-04.com.example:u\u0308", "iqn.2001-04.com.example:\u00fc"),  # combining mark, NFKC
    ],
)
def test_name_in_another_spelling_is_normalised(typed: str, normal: str) -> None:
    assert normalize(typed) == normal


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "cannot be empty"),
        ("disk0", "begins with iqn., eui. or naa."),
        ("iqn", "begins with iqn., eui. or naa."),
        ("iqn:2026-11.org.iscsid", "begins with iqn., eui. or naa."),
        ("wwn.2026-11.org.iscsid", "begins with iqn., eui. or naa."),
        ("iqn.", "year and month"),
        ("iqn.org.iscsid:disk", "year and month"),
        ("iqn.2026-13.org.iscsid:disk", "year and month"),
        ("iqn.2026-00.org.iscsid:disk", "year and month"),
        ("iqn.26-11.org.iscsid:disk", "year and month"),
        ("iqn.2026-11", "reversed domain"),
        ("iqn.2026-11.", "reversed domain"),
        ("iqn.2026-11:disk", "year and month"),
        ("iqn.2026-11.org..iscsid", "reversed domain"),
        ("iqn.2026-11.org.-iscsid", "reversed domain"),
        ("iqn.2026-11.org.iscsid-:x", "reversed domain"),
        ("iqn.2026-11." + "a" * 64, "reversed domain"),
        ("iqn.2026-11.org.iscsid:", "nothing follows"),
        ("iqn.2026-11.org.iscsid:my_disk", "'_' cannot stand"),
        ("iqn.2026-11.org.iscsid:my disk", "' ' cannot stand"),
        ("iqn.2026-11.org.iscsid:a/b", "'/' cannot stand"),
        ("iqn.2026-11.org.iscsid:a,b", "',' cannot stand"),
        ("iqn.2026-11.org.iscsid:a\x00b", "cannot stand"),
        ("iqn.2026-11.org.iscsid:a\u3002b", "cannot stand"),
        ("iqn.2026-11.org.iscsid:a\ue000b", "cannot stand"),  # private use
        ("iqn.2026-11.org.iscsid:a\u0378b", "cannot stand"),  # unassigned
        ("iqn.2026-11.org.iscsid:\u05d0", "cannot mix"),  # Hebrew beside Latin
        ("\u05d0", "cannot be written right to left"),
        ("iqn.2001-04.com.example:" + "a" * (MAX_LENGTH - 23), "at most 223 bytes, this one has 224"),
        ("iqn.2001-04.com.example:" + "ü" * 100, "this one has 224"),  # bytes count, not letters
        ("eui.02004567a425678", "16 hexadecimal"),
        ("eui.02004567a425678g", "16 hexadecimal"),
        ("naa.52004567ba64678d0", "16 or 32 hexadecimal"),
        ("naa.", "16 or 32 hexadecimal"),
    ],
)
def test_name_of_no_known_form_is_refused_with_its_reason(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace(".", r"\.")):
        normalize(name)


@given(st.text(max_size=40) | st.text(alphabet="iqneua.0123-:z", max_size=40).map("iqn.2026-11.".__add__))
def test_any_text_is_refused_by_value_error_or_normalised_for_good(text: str) -> None:
    try:
        once = normalize(text)
    except ValueError:
        return
    assert normalize(once) == once
    assert len(once.encode()) <= MAX_LENGTH
