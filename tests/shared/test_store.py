"""Invariant: what was encoded for a unit decodes for that unit and no other, and nothing else decodes."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsid.shared import store

KEPT = {"reservations": {"registrations": [["iqn.x:host", 1, "iqn.x:disk", 1, 2**64 - 1]]}, "mode": None}


def test_kept_state_survives() -> None:
    assert store.decode(store.encode("SERIAL1", KEPT), "SERIAL1") == KEPT


def test_equal_states_give_equal_texts() -> None:
    assert store.encode("S", {"a": 1, "b": 2}) == store.encode("S", {"b": 2, "a": 1})


def test_text_says_its_version_and_unit() -> None:
    document = json.loads(store.encode("SERIAL1", KEPT))
    assert document["version"] == store.VERSION
    assert document["unit"] == "SERIAL1"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.text(max_size=20))
def test_any_name_survives(unit: str, name: str) -> None:
    text = store.encode(unit, {"name": name})
    assert text.isascii()
    assert store.decode(text, unit) == {"name": name}


@pytest.mark.parametrize("unit", ["", "SERIAL1", "../../etc/passwd", "a/b", "\x00", "ü" * 36])
def test_file_name_is_one_plain_name(unit: str) -> None:
    name = store.file_name(unit)
    assert name.isascii()
    assert name.endswith(".json")
    assert name.removesuffix(".json").isalnum()


def test_file_names_of_units_differ() -> None:
    assert len({store.file_name(f"SERIAL{number}") for number in range(1000)}) == 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ("[]", "not the state"),
        ("{}", "not the state"),
        ('{"version":1}', "not the state"),
        ('{"version":2,"unit":"S","kept":{}}', "version 2; this server knows version 1"),
        ('{"version":1,"unit":"T","kept":{}}', "of unit 'T', not 'S'"),
        ('{"version":1,"unit":"S","kept":[]}', "not the state"),
        ('{"version":1,"unit":"S","kept":{},"more":1}', "not the state"),
        ("[" * 100_000, "nested too deeply"),
        (" " * (store.MAX_TEXT + 1), "longer than"),
    ],
)
def test_text_that_is_not_ours_is_refused_with_the_reason(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        store.decode(text, "S")


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_text_that_was_cut_off_is_refused(cut: int) -> None:
    text = store.encode("S", KEPT)
    with pytest.raises(ValueError):
        store.decode(text[:cut], "S")


@given(st.text(max_size=200))
def test_any_text_decodes_or_raises_the_one_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        store.decode(text, "S")
